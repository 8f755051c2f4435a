//! What an attempt's output is worth: pure, from the files' text and the step's contract. No cluster here.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::api::condition::clip;
use crate::api::limits::{DOCUMENT_BYTES, MESSAGE_BYTES, OUTPUT_INLINE_BYTES};
use crate::api::step::{Format, Produces};
use crate::api::step_run::ReportClass;
use crate::definition::expression::Evaluate;
use crate::definition::free_value;
use crate::protocol::{Fault, MASK, Output};

const FAULTS: usize = 20;
const FAULT_BYTES: usize = 512;
/// Of an offending value.
const VALUE_CHARS: usize = 80;
const VALUE_MEMBERS: usize = 20;
const URI_CHARS: usize = 2048;
/// The output of an attempt that wrote none, where none is needed.
const NULL: &str = "null";

/// What the output must meet.
#[derive(Clone, Debug, Default)]
pub struct Contract {
    pub produces: Option<Produces>,
    /// Whose schema it is, for messages, and the schema.
    pub schemas: Vec<(&'static str, Map<String, Value>)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Succeeded, InvalidOutput or OutputTooLarge.
    pub class: ReportClass,
    pub faults: Vec<Fault>,
    /// JSON text for the report; none where the document is the output and too large for a status.
    pub output: Option<String>,
    /// Content of the document to make.
    pub document: Option<String>,
    /// The output where it is too large for a report and no document of the step carries it.
    pub apart: Option<String>,
}

impl Judgement {
    pub fn fault(class: ReportClass, faults: Vec<Fault>) -> Self {
        Self { class, faults: bounded(faults), output: None, document: None, apart: None }
    }
}

/// The file name that the agent writes its document to.
pub fn document_file(produces: &Produces) -> String {
    format!("{}.{}", produces.document_type, produces.format.extension())
}

pub fn judge(contract: &Contract, output: &Output, evaluator: &dyn Evaluate) -> Judgement {
    let produces = contract.produces.as_ref();
    // A file that the step does not produce is nothing.
    let file = output.document.as_deref().filter(|_| produces.is_some());
    let result = output.result.as_deref();
    let sizes = [("result.json", result, output.result_bytes), ("the document", file, output.document_bytes)];
    for (name, text, whole_bytes) in sizes {
        let bytes = text.map_or(0, str::len);
        if bytes > DOCUMENT_BYTES {
            let bytes = whole_bytes.unwrap_or(bytes as u64);
            let text = format!(
                "{name} has {bytes} bytes, the limit is {DOCUMENT_BYTES}; put what is larger elsewhere, and produce a document of format link"
            );
            return Judgement::fault(ReportClass::OutputTooLarge, vec![whole(text)]);
        }
    }
    if let Some(fault) = result.and_then(free_value::nesting_of_text) {
        return Judgement::fault(ReportClass::OutputTooLarge, vec![whole(format!("result.json {fault}"))]);
    }
    let result_is_document = file.is_none() && produces.is_some_and(|produces| produces.format == Format::Json);
    let mut faults = result_faults(contract, output, file, evaluator);
    if let Some(produces) = produces.filter(|_| !result_is_document) {
        faults.extend(document_faults(produces, file, output));
    }
    if !faults.is_empty() {
        return Judgement::fault(ReportClass::InvalidOutput, faults);
    }
    let text = result.unwrap_or(NULL);
    let document = if result_is_document { result } else { file };
    let inline = text.len() <= OUTPUT_INLINE_BYTES;
    let apart = !inline && !result_is_document;
    Judgement {
        class: ReportClass::Succeeded,
        faults: Vec::new(),
        output: inline.then(|| text.to_owned()),
        document: document.map(str::to_owned),
        apart: apart.then(|| text.to_owned()),
    }
}

fn result_faults(contract: &Contract, output: &Output, file: Option<&str>, evaluator: &dyn Evaluate) -> Vec<Fault> {
    let Some(text) = output.result.as_deref() else {
        let needless = contract.schemas.is_empty() && (contract.produces.is_none() || file.is_some());
        return if needless { Vec::new() } else { vec![whole("no result.json".to_owned())] };
    };
    let value = match parse(text) {
        Ok(value) => value,
        Err(error) => return vec![whole(format!("result.json is not JSON: {error}"))],
    };
    let mut faults = Vec::new();
    for (whose, rules) in &contract.schemas {
        match evaluator.faults(rules, &value) {
            Ok(found) => faults.extend(found.into_iter().map(|fault| with_value(fault, &value, output))),
            Err(error) => faults.push(whole(format!("outputSchema of the {whose} cannot be used: {error}"))),
        }
    }
    faults
}

/// Says what stands at the pointer: the shim has masked what was secret, and here it is clipped.
fn with_value(fault: Fault, value: &Value, output: &Output) -> Fault {
    let found = value.pointer(&fault.pointer);
    let cause = because_masked(found.filter(|_| output.masked));
    let shown = match found {
        None => return fault,
        Some(Value::Object(members)) if members.len() > VALUE_MEMBERS => {
            format!("an object of {} members", members.len())
        }
        Some(Value::Array(items)) if items.len() > VALUE_MEMBERS => format!("an array of {} items", items.len()),
        Some(found) => found.to_string(),
    };
    let mut clipped = line(&shown, VALUE_CHARS);
    if clipped.len() < shown.len() {
        clipped.push('\u{2026}');
    }
    let message = line(&fault.message, FAULT_BYTES - 4 * VALUE_CHARS - cause.len());
    Fault { message: format!("{message}; it is {clipped}{cause}"), ..fault }
}

/// What is said of a wrong value of an output with masked ones, where it is such a one or a list with such a one.
fn because_masked(value: Option<&Value>) -> &'static str {
    let is_masked = |value: &Value| value.as_str().is_some_and(|text| text.contains(MASK));
    let found =
        value.is_some_and(|value| is_masked(value) || value.as_array().is_some_and(|all| all.iter().any(is_masked)));
    if found { "; *** stands there because the value of a Secret was masked" } else { "" }
}

fn document_faults(produces: &Produces, file: Option<&str>, output: &Output) -> Vec<Fault> {
    let name = document_file(produces);
    let parsed = match file {
        None => return vec![whole(format!("no {name}, which the step produces"))],
        Some(text) if text.trim().is_empty() => return vec![whole(format!("{name} is empty"))],
        Some(text) => match produces.format {
            Format::Json | Format::Link => parse(text),
            Format::Markdown | Format::Text => return Vec::new(),
        },
    };
    match parsed {
        Err(error) => vec![whole(format!("{name} is not JSON: {error}"))],
        Ok(value) if produces.format == Format::Link => {
            let cause = |fault: &Fault| because_masked(value.pointer(&fault.pointer).filter(|_| output.masked));
            let told = |fault: Fault| Fault { message: format!("{}{}", fault.message, cause(&fault)), ..fault };
            link_faults(&value).into_iter().map(told).collect()
        }
        Ok(_) => Vec::new(),
    }
}

/// Of `{uri, sha256, bytes, mediaType}`: what is linked is not looked at, only that it can be found and proven.
fn link_faults(link: &Value) -> Vec<Fault> {
    let Some(members) = link.as_object() else {
        return vec![whole("a link is an object {uri, sha256, bytes, mediaType}".to_owned())];
    };
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    let hex = |sum: &str| sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit());
    let rules = [
        ("uri", text("uri").is_some_and(is_uri), "is needed: a URI with a scheme, 2048 characters at most"),
        ("sha256", text("sha256").is_some_and(hex), "is needed: 64 hexadecimal digits"),
        ("bytes", members.get("bytes").is_some_and(Value::is_u64), "is needed: an integer, 0 or more"),
        ("mediaType", members.get("mediaType").is_none_or(Value::is_string), "is no text"),
    ];
    let broken = rules.into_iter().filter(|(_, holds, _)| !holds);
    broken.map(|(name, _, rule)| Fault { pointer: format!("/{name}"), message: rule.to_owned() }).collect()
}

fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(legal);
    let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control());
    named && plain && !rest.is_empty() && text.chars().count() <= URI_CHARS
}

fn whole(message: String) -> Fault {
    Fault { pointer: String::new(), message }
}

fn bounded(faults: Vec<Fault>) -> Vec<Fault> {
    let mut kept: Vec<Fault> = Vec::new();
    for fault in faults {
        let fault = Fault {
            pointer: clip(&line(&fault.pointer, FAULT_BYTES), FAULT_BYTES),
            // One line each, so that a report's message can be read back.
            message: clip(&line(&fault.message, FAULT_BYTES), FAULT_BYTES),
        };
        // Step and Agent may ask for the same.
        if kept.len() < FAULTS && !kept.contains(&fault) {
            kept.push(fault);
        }
    }
    kept
}

/// Faults as a report's message, one a line.
pub fn message(faults: &[Fault]) -> Option<String> {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    (!lines.is_empty()).then(|| clean(&lines.join("\n"), MESSAGE_BYTES))
}

/// Text of an agent as it may stand in a status: no control characters but newline and tab, and the head of it.
pub fn clean(text: &str, bytes: usize) -> String {
    clip(&printable(text), bytes)
}

/// As `clean`, but the end of it.
pub fn clean_tail(text: &str, bytes: usize) -> String {
    let text = printable(text);
    let mut start = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

/// One line of at most that many characters.
pub fn line(text: &str, chars: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(chars).collect()
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// JSON in which no object has a key twice: readers would differ over what it says.
pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Strict>(text).map(|strict| strict.0)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Strict(value))) = members.next_entry::<String, Strict>()? {
            if object.insert(key, value).is_some() {
                return Err(de::Error::custom("an object has a key twice"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::expression::InProcess;
    use ReportClass::{InvalidOutput, OutputTooLarge, Succeeded};
    use serde_json::json;

    fn contract(produces: Option<Format>, schema: Option<Value>) -> Contract {
        Contract {
            produces: produces.map(|format| Produces { document_type: "plan".to_owned(), format, scope: None }),
            schemas: schema
                .into_iter()
                .map(|schema| ("step", schema.as_object().cloned().unwrap_or_default()))
                .collect(),
        }
    }

    fn output(result: Option<&str>, document: Option<&str>) -> Output {
        Output { result: result.map(str::to_owned), document: document.map(str::to_owned), ..Output::default() }
    }

    #[test]
    fn outputs_are_judged() {
        let integer = || Some(json!({"type": "object", "properties": {"n": {"type": "integer"}}}));
        let markdown = Some(Format::Markdown);
        let json = Some(Format::Json);
        let long = format!("\"{}\"", "x".repeat(20_000));
        let huge = format!("\"{}\"", "x".repeat(600_000));
        let deep = "[".repeat(200);
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let (deepest, too_deep) = (nested(64), nested(65));
        // contract, result.json, document file; class, part of the first fault, output, document
        #[rustfmt::skip]
        let table = [
            (None, None, None, None, Succeeded, "", Some("null"), None),
            (None, None, None, Some("stray"), Succeeded, "", Some("null"), None),
            (None, None, Some("{\"a\":1}"), None, Succeeded, "", Some("{\"a\":1}"), None),
            // Its bytes are what is kept: no digit is lost.
            (None, integer(), Some("{\"n\":12345678901234567890123}"), None, Succeeded, "", Some("{\"n\":12345678901234567890123}"), None),
            (None, None, Some("{\"a\":1"), None, InvalidOutput, "result.json is not JSON", None, None),
            (None, None, Some(""), None, InvalidOutput, "result.json is not JSON", None, None),
            (None, None, Some("{\"a\":1,\"a\":2}"), None, InvalidOutput, "key twice", None, None),
            (None, None, Some(deep.as_str()), None, InvalidOutput, "recursion", None, None),
            (None, None, Some(deepest.as_str()), None, Succeeded, "", Some(deepest.as_str()), None),
            (None, None, Some(too_deep.as_str()), None, OutputTooLarge, "result.json nests 65 levels", None, None),
            (None, None, Some("{} {}"), None, InvalidOutput, "trailing", None, None),
            (None, None, Some(long.as_str()), None, Succeeded, "", None, None),
            (None, None, Some(huge.as_str()), None, OutputTooLarge, "524288", None, None),
            (None, integer(), None, None, InvalidOutput, "no result.json", None, None),
            (None, integer(), Some("{\"n\":1}"), None, Succeeded, "", Some("{\"n\":1}"), None),
            (None, integer(), Some("{\"n\":\"x\"}"), None, InvalidOutput, "not of type", None, None),
            (None, Some(json!({"$ref": "http://x/"})), Some("1"), None, InvalidOutput, "outputSchema of the step cannot be used", None, None),
            (markdown, None, None, Some("# Plan"), Succeeded, "", Some("null"), Some("# Plan")),
            (markdown, None, Some("7"), Some("# Plan"), Succeeded, "", Some("7"), Some("# Plan")),
            (markdown, integer(), None, Some("# Plan"), InvalidOutput, "no result.json", None, None),
            (markdown, None, Some("7"), None, InvalidOutput, "no plan.md", None, None),
            (markdown, None, None, None, InvalidOutput, "no result.json", None, None),
            (markdown, None, None, Some(" \n"), InvalidOutput, "plan.md is empty", None, None),
            (markdown, None, None, Some(huge.as_str()), OutputTooLarge, "the document has", None, None),
            (markdown, None, Some(long.as_str()), Some("# Plan"), Succeeded, "", None, Some("# Plan")),
            (json, None, Some("{\"n\":1}"), None, Succeeded, "", Some("{\"n\":1}"), Some("{\"n\":1}")),
            (json, None, Some(long.as_str()), None, Succeeded, "", None, Some(long.as_str())),
            (json, None, None, Some("{\"n\":1}"), Succeeded, "", Some("null"), Some("{\"n\":1}")),
            (json, None, None, Some("{n"), InvalidOutput, "plan.json is not JSON", None, None),
            (json, None, None, None, InvalidOutput, "no result.json", None, None),
            (json, integer(), Some("{\"n\":\"x\"}"), None, InvalidOutput, "not of type", None, None),
        ];
        for (produces, schema, result, document, class, part, kept, made) in table {
            let case = format!("{produces:?} {schema:?} {result:.40?} {document:.40?}");
            let judgement = judge(&contract(produces, schema), &output(result, document), &InProcess);
            assert_eq!(judgement.class, class, "{case}");
            assert_eq!(judgement.faults.is_empty(), class == Succeeded, "{case}");
            if let Some(fault) = judgement.faults.first() {
                assert!(fault.message.contains(part), "{case}: {fault}");
            }
            assert_eq!(judgement.output.as_deref(), kept, "{case}");
            assert_eq!(judgement.document.as_deref(), made, "{case}");
            // What succeeds has its output in exactly one place: the report, the step's document, or one of its own.
            let apart = class == Succeeded && kept.is_none() && made != result;
            assert_eq!(judgement.apart.as_deref(), result.filter(|_| apart), "{case}");
        }
    }

    #[test]
    fn what_is_wrong_is_shown_beside_its_pointer() {
        let schema = json!({"properties": {"n": {"type": "integer"}, "list": {"items": {"type": "integer"}},
            "all": {"type": "string"}}, "required": ["m"]});
        let long = "x".repeat(500);
        for (output_text, pointer, shown) in [
            (json!({"m": 1, "n": "two"}), "/n", "; it is \"two\"".to_owned()),
            // As the shim sends it.
            (json!({"m": 1, "n": "***"}), "/n", "; it is \"***\"".to_owned()),
            (json!({"m": 1, "n": long}), "/n", format!("; it is \"{}\u{2026}", "x".repeat(79))),
            (json!({"m": 1, "n": "a\u{7}\nb"}), "/n", "; it is \"a\\u0007\\nb\"".to_owned()),
            (json!({"m": 1, "list": [1, null]}), "/list/1", "; it is null".to_owned()),
            (json!({"m": 1, "all": vec![1; 100]}), "/all", "; it is an array of 100 items".to_owned()),
            (json!({"n": 1}), "", "; it is {\"n\":1}".to_owned()),
        ] {
            let text = output_text.to_string();
            let judgement = judge(&contract(None, Some(schema.clone())), &output(Some(&text), None), &InProcess);
            let fault = judgement.faults.first().expect("a fault");
            assert_eq!(fault.pointer, pointer, "{text}");
            assert!(fault.message.ends_with(&shown), "{text}: {fault}");
        }
    }

    #[test]
    fn what_masking_made_wrong_says_so() {
        let schema = json!({"properties": {"mode": {"enum": ["prod"]}, "all": {"uniqueItems": true}, "n": {"type": "integer"}},
            "required": ["m"]});
        let (contract, link_contract) = (contract(None, Some(schema)), contract(Some(Format::Link), None));
        for (output_text, masked, told) in [
            (r#"{"m":1,"mode":"***"}"#, true, true),
            (r#"{"m":1,"mode":"***"}"#, false, false),
            (r#"{"m":1,"all":["***","***"]}"#, true, true),
            (r#"{"m":1,"n":"two","mode":"prod","all":["***"]}"#, true, false),
            (r#"{"mode":"prod","all":["***"]}"#, true, false),
        ] {
            let made = Output { masked, ..output(Some(output_text), None) };
            let found = judge(&contract, &made, &InProcess).faults;
            assert_eq!(found.len(), 1, "{output_text}");
            assert_eq!(found[0].message.ends_with("because the value of a Secret was masked"), told, "{}", found[0]);
        }
        let link = r#"{"uri":"s3://bucket/x","sha256":"***","bytes":7}"#;
        let made = Output { masked: true, ..output(None, Some(link)) };
        let found = judge(&link_contract, &made, &InProcess).faults;
        assert!(found[0].pointer == "/sha256" && found[0].message.contains("Secret was masked"), "{}", found[0]);
    }

    #[test]
    fn links_say_where_and_what() {
        let good = json!({"uri": "s3://bucket/model.bin", "sha256": "0".repeat(64), "bytes": 7, "mediaType": "a/b"});
        let with = |name: &str, value: Value| {
            let mut link = good.clone();
            link[name] = value;
            link
        };
        let mut bare = good.clone();
        bare.as_object_mut().and_then(|members| members.remove("mediaType"));
        let table = [
            (good.clone(), vec![]),
            (bare, vec![]),
            (json!([]), vec![""]),
            (json!({}), vec!["/uri", "/sha256", "/bytes"]),
            (with("uri", json!("")), vec!["/uri"]),
            (with("uri", json!("bucket/model.bin")), vec!["/uri"]),
            (with("uri", json!("1s:x")), vec!["/uri"]),
            (with("uri", json!("s3://a b")), vec!["/uri"]),
            (with("uri", json!("s3:")), vec!["/uri"]),
            (with("uri", json!(format!("s3:{}", "x".repeat(2045)))), vec![]),
            (with("uri", json!(format!("s3:{}", "x".repeat(2046)))), vec!["/uri"]),
            (with("sha256", json!("0".repeat(63))), vec!["/sha256"]),
            (with("sha256", json!("g".repeat(64))), vec!["/sha256"]),
            (with("bytes", json!(-1)), vec!["/bytes"]),
            (with("bytes", json!(1.5)), vec!["/bytes"]),
            (with("mediaType", json!(1)), vec!["/mediaType"]),
            (with("more", json!(1)), vec![]),
        ];
        for (link, pointers) in table {
            let text = link.to_string();
            let judgement = judge(&contract(Some(Format::Link), None), &output(None, Some(&text)), &InProcess);
            let found: Vec<&str> = judgement.faults.iter().map(|fault| fault.pointer.as_str()).collect();
            assert_eq!(found, pointers, "{link}");
            assert_eq!(judgement.document.is_some(), pointers.is_empty(), "{link}");
        }
        let judgement = judge(&contract(Some(Format::Link), None), &output(Some("{}"), None), &InProcess);
        assert!(judgement.faults[0].message.contains("no plan.json"), "result.json is no link");
    }

    #[test]
    fn both_schemas_count_and_equal_faults_are_told_once() {
        let schema = |value: Value| value.as_object().cloned().unwrap_or_default();
        let mut contract = Contract::default();
        contract.schemas.push(("step", schema(json!({"required": ["a"]}))));
        contract.schemas.push(("Agent", schema(json!({"required": ["a", "b"]}))));
        let judgement = judge(&contract, &output(Some("{}"), None), &InProcess);
        assert_eq!(judgement.faults.len(), 2);
        let message = message(&judgement.faults).expect("a message");
        assert_eq!(message.lines().count(), 2);
    }

    #[test]
    fn texts_of_agents_are_cleaned() {
        assert_eq!(clean("a\u{1b}[31m\tb\nc\0", 100), "a[31m\tb\nc");
        assert_eq!(clean(&"é".repeat(600), 1024).len(), 1023);
        assert_eq!(clean_tail("0123456789", 4), "6789");
        assert_eq!(clean_tail("ééé", 3), "é");
        assert_eq!(line("a\nb\u{7}c", 2), "ab");
    }

    #[test]
    fn strict_parsing_keeps_values() {
        let text = r#"{"b":[1,-2,3.5,null,true,"x"],"a":{"c":18446744073709551615}}"#;
        assert_eq!(parse(text).expect("JSON").to_string(), text);
    }
}
