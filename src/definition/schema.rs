//! JSON Schema (2020-12) of users: refused where it could hurt, then used to judge outputs and parameters.
//! Nothing is ever fetched, and what a schema may cost is bounded before it is compiled. Compiling and judging are for
//! whoever `expression::Evaluate` leads to; `bounded` is for everybody.

#![expect(clippy::disallowed_types, reason = "where it is defined")]

use serde_json::{Map, Value};

use crate::api::condition::clip;
use crate::api::limits::SCHEMA_BYTES;
use crate::protocol::Fault;

/// Schemas within schemas.
const DEPTH: usize = 32;
/// Levels of JSON, `enum` values and the like included: what older versions let in. `FREE_VALUE_LEVELS` holds for new ones.
const JSON_DEPTH: usize = 96;
const SUBSCHEMAS: usize = 200;
/// Chains of `anyOf` with two equal references double at each level: what they come to is counted, written out.
const EXPANDED: usize = 1000;
/// Members of all subschemas, with every reference written out: what the walk itself costs.
const EXPANDED_MEMBERS: usize = 20_000;
const PATTERNS: usize = 100;
/// One pattern, compiled.
const REGEX_BYTES: usize = 1 << 20;
/// All patterns of a schema, compiled.
const PATTERNS_BYTES: usize = 4 << 20;
/// What matching remembers of one pattern; with less it only takes longer.
const DFA_BYTES: usize = 256 << 10;
/// Of a compiled schema, for each byte of its text; a guess on the large side.
const PER_BYTE: usize = 40;
const FAULTS: usize = 20;
const FAULT_BYTES: usize = 256;

/// A JSON Schema as its author wrote it, within the limits. Compiling it is for whoever `expression::Evaluate` leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema(Map<String, Value>);

impl Schema {
    /// The limits that hold for a schema as it is written. The work is bounded by the limits themselves, and nothing is
    /// compiled: this may run anywhere.
    pub fn bounded(schema: &Map<String, Value>) -> Result<Self, String> {
        bounded(schema).map(|()| Self(schema.clone()))
    }

    pub fn as_object(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// A schema that was compiled. Only those who may spend time and memory without a bound make one: the processes that
/// evaluate, and the person's own in `lint`.
#[derive(Debug)]
pub struct Compiled {
    validator: jsonschema::Validator,
    bytes: usize,
}

impl Compiled {
    /// An error says what is wrong with the schema, and names the place.
    pub fn of(schema: &Map<String, Value>) -> Result<Self, String> {
        let schema = Value::Object(schema.clone());
        let size = measured(&schema)?;
        let patterns = patterns_bytes(&size.patterns)?;
        let validator = options(REGEX_BYTES).build(&schema).map_err(|error| {
            let place = place(error.instance_path().as_str());
            format!("{place}: {}", clip(&error.to_string(), FAULT_BYTES))
        })?;
        Ok(Self { validator, bytes: size.bytes * PER_BYTE + patterns })
    }

    /// At most 20 faults.
    pub fn faults(&self, instance: &Value) -> Vec<Fault> {
        if self.validator.is_valid(instance) {
            return Vec::new();
        }
        let told = self.validator.iter_errors(instance).take(FAULTS).map(|error| Fault {
            pointer: clip(error.instance_path().as_str(), FAULT_BYTES),
            // Masked: faults land in statuses, which more people read than the output.
            message: clip(&error.masked().to_string(), FAULT_BYTES),
        });
        told.collect()
    }

    /// What it takes of memory, near enough.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn options<'i>(regex_bytes: usize) -> jsonschema::ValidationOptions<'i> {
    let patterns = jsonschema::PatternOptions::regex().size_limit(regex_bytes).dfa_size_limit(DFA_BYTES);
    jsonschema::options()
        .offline()
        .with_draft(jsonschema::Draft::Draft202012)
        .should_validate_formats(true)
        .with_pattern_options(patterns)
}

/// What the patterns come to once they are compiled, each rounded up to a power of four.
fn patterns_bytes(patterns: &[(String, &str)]) -> Result<usize, String> {
    let mut all = 0;
    for (place, pattern) in patterns {
        let rule = Value::from_iter([("pattern", *pattern)]);
        let fits = |bytes: &usize| options(*bytes).build(&rule).is_ok();
        let steps = std::iter::successors(Some(REGEX_BYTES >> 8), |bytes| Some(bytes << 2));
        // One that is too large for itself, or no pattern, is told with the whole schema.
        all += steps.take_while(|bytes| *bytes <= REGEX_BYTES).find(fits).unwrap_or_default();
        if all > PATTERNS_BYTES {
            return Err(format!(
                "{place}: the patterns of the schema come to more than {} KiB once they are compiled; use fewer or simpler ones: bounds such as {{1,500}} and classes such as \\p{{L}} are large",
                PATTERNS_BYTES >> 10
            ));
        }
    }
    Ok(all)
}

/// As `Schema::bounded`, and nothing is kept.
pub fn bounded(schema: &Map<String, Value>) -> Result<(), String> {
    measured(&Value::Object(schema.clone())).map(drop)
}

struct Size<'a> {
    bytes: usize,
    /// Each once, with its place.
    patterns: Vec<(String, &'a str)>,
}

fn measured(schema: &Value) -> Result<Size<'_>, String> {
    if json_depth(schema, JSON_DEPTH).is_none() {
        return Err(format!("/: deeper than {JSON_DEPTH} levels of JSON"));
    }
    let bytes = serde_json::to_vec(schema).map_or(usize::MAX, |text| text.len());
    if bytes > SCHEMA_BYTES {
        return Err(format!("/: {bytes} bytes, the limit is {SCHEMA_BYTES}"));
    }
    let mut written = Walk::new(schema, Form::Written);
    written.visit(schema, "", 0)?;
    let mut expanded = Walk::new(schema, Form::Expanded);
    expanded.visit(schema, "", 0)?;
    let mut patterns = written.patterns;
    patterns.extend(expanded.patterns);
    patterns.sort_by_key(|(_, pattern)| *pattern);
    patterns.dedup_by_key(|(_, pattern)| *pattern);
    Ok(Size { bytes, patterns })
}

/// `None` where the value is deeper than that.
fn json_depth(value: &Value, left: usize) -> Option<()> {
    let left = left.checked_sub(1)?;
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| json_depth(item, left)),
        Value::Object(members) => members.values().try_for_each(|member| json_depth(member, left)),
        _ => Some(()),
    }
}

/// How a schema is walked: as its author wrote it, or with every reference written out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Written,
    Expanded,
}

/// Goes over a schema, and counts what is in it.
struct Walk<'a> {
    root: &'a Value,
    form: Form,
    seen: usize,
    members: usize,
    references: usize,
    /// The references that are being followed.
    trail: Vec<&'a str>,
    patterns: Vec<(String, &'a str)>,
}

const ONE: [&str; 12] = [
    "additionalItems",
    "additionalProperties",
    "items",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const MAP: [&str; 6] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Of no use without references to elsewhere, and able to turn a reference to another place.
const REFUSED: [&str; 5] = ["$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"];

impl<'a> Walk<'a> {
    fn new(root: &'a Value, form: Form) -> Self {
        Self { root, form, seen: 0, members: 0, references: 0, trail: Vec::new(), patterns: Vec::new() }
    }

    fn visit(&mut self, schema: &'a Value, at: &str, depth: usize) -> Result<(), String> {
        let Some(object) = schema.as_object() else {
            return Ok(());
        };
        if depth > DEPTH && self.form == Form::Written {
            return Err(format!("{}: schemas nest deeper than {DEPTH}", place(at)));
        }
        self.seen += 1;
        if self.seen > SUBSCHEMAS && self.form == Form::Written {
            return Err(format!("{}: more than {SUBSCHEMAS} subschemas", place(at)));
        }
        self.members += 1 + object.len();
        if self.members > EXPANDED_MEMBERS {
            return Err(format!(
                "{}: with every reference written out, the schemas have more than {EXPANDED_MEMBERS} members",
                place(at)
            ));
        }
        if let Some(keyword) = REFUSED.iter().find(|keyword| object.contains_key(**keyword)) {
            return Err(format!("{at}/{keyword}: not supported"));
        }
        if object.contains_key("$id") && !at.is_empty() {
            return Err(format!("{at}/$id: only the whole schema may have one"));
        }
        for (key, member) in object {
            let at = || format!("{at}/{}", escape(key));
            match member {
                Value::Object(_) if ONE.contains(&key.as_str()) => {
                    self.visit(member, &at(), depth + 1)?;
                }
                Value::Array(items) if LIST.contains(&key.as_str()) => {
                    self.members += items.len();
                    for (index, item) in items.iter().enumerate() {
                        self.visit(item, &format!("{}/{index}", at()), depth + 1)?;
                    }
                }
                // Definitions cost nothing until something refers to them.
                Value::Object(_) if self.form == Form::Expanded && matches!(key.as_str(), "$defs" | "definitions") => {}
                Value::Object(members) if MAP.contains(&key.as_str()) => {
                    self.members += members.len();
                    for (name, item) in members {
                        let at = format!("{}/{}", at(), escape(name));
                        if key == "patternProperties" {
                            self.pattern(&at, name)?;
                        }
                        self.visit(item, &at, depth + 1)?;
                    }
                }
                Value::String(reference) if key == "$ref" => self.follow(reference, &at(), depth)?,
                Value::String(pattern) if key == "pattern" => self.pattern(&at(), pattern)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn pattern(&mut self, at: &str, pattern: &'a str) -> Result<(), String> {
        if self.patterns.iter().any(|(_, known)| *known == pattern) {
            return Ok(());
        }
        if self.patterns.len() == PATTERNS {
            return Err(format!("{at}: more than {PATTERNS} different patterns"));
        }
        self.patterns.push((at.to_owned(), pattern));
        Ok(())
    }

    fn follow(&mut self, reference: &'a str, at: &str, depth: usize) -> Result<(), String> {
        let pointer = reference
            .strip_prefix('#')
            .filter(|pointer| pointer.starts_with("/$defs/") || pointer.starts_with("/definitions/"))
            .ok_or_else(|| format!("{at}: a reference must start with #/$defs/; nothing is fetched"))?;
        if pointer.contains('%') {
            return Err(format!("{at}: a reference must not be percent-encoded"));
        }
        let target = self
            .root
            .pointer(pointer)
            .ok_or_else(|| format!("{at}: {} does not exist", clip(reference, FAULT_BYTES)))?;
        if self.form == Form::Written {
            return Ok(());
        }
        if self.trail.contains(&reference) {
            return Err(format!("{at}: recursive references are not supported"));
        }
        self.references += 1;
        if self.references > EXPANDED {
            return Err(format!("{at}: with every reference written out, more than {EXPANDED} of them"));
        }
        self.trail.push(reference);
        self.visit(target, pointer, depth + 1)?;
        self.trail.pop();
        Ok(())
    }
}

fn escape(token: &str) -> String {
    clip(&token.replace('~', "~0").replace('/', "~1"), FAULT_BYTES)
}

fn place(pointer: &str) -> &str {
    if pointer.is_empty() { "/" } else { pointer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(schema: &Map<String, Value>) -> Result<(), String> {
        Compiled::of(schema).map(drop)
    }

    fn faults(schema: &Map<String, Value>, instance: &Value) -> Result<Vec<Fault>, String> {
        Compiled::of(schema).map(|compiled| compiled.faults(instance))
    }

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            other => panic!("{other} is no object"),
        }
    }

    fn doubling(levels: usize) -> Value {
        let mut defs = Map::new();
        for level in 0..levels {
            let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
            defs.insert(format!("l{level}"), json!({"anyOf": [next, next]}));
        }
        defs.insert(format!("l{levels}"), json!({"type": "string"}));
        json!({"$defs": defs, "$ref": "#/$defs/l0"})
    }

    fn numbered(number: usize, member: impl Fn(usize) -> (String, Value)) -> Map<String, Value> {
        (0..number).map(member).collect()
    }

    /// A definition with many members that is referred to often.
    fn wide(references: usize, members: usize) -> Value {
        let many = numbered(members * 10, |n| (format!("p{n}"), json!(true)));
        let refer = vec![json!({"$ref": "#/$defs/many"}); references];
        json!({"$defs": {"many": {"properties": many}}, "allOf": refer})
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!({"type": "string"}), |inner, _| json!({"not": inner}))
    }

    #[test]
    fn schemas_that_could_hurt_are_refused_with_their_place() {
        let many: Map<_, _> = (0..250).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
        for (schema, part) in [
            (json!({"$ref": "http://example.com/s"}), "/$ref: a reference must start with"),
            (json!({"$ref": "file:///etc/passwd"}), "/$ref: a reference"),
            (json!({"properties": {"a": {"$ref": "other.json#/x"}}}), "/properties/a/$ref: "),
            (json!({"properties": {"a": {"$ref": "#"}}}), "/properties/a/$ref: "),
            (json!({"$ref": "#/$defs/nothing"}), "does not exist"),
            (json!({"$dynamicRef": "#x"}), "/$dynamicRef"),
            (json!({"properties": {"a": {"$id": "http://x/"}}}), "/properties/a/$id"),
            (nested(40), "nest deeper"),
            (nested(500), "levels of JSON"),
            (json!({"properties": many}), "more than 200"),
            (json!({"description": "x".repeat(40_000)}), "the limit is 32768"),
            (doubling(15), "written out"),
            (wide(40, 80), "the schemas have more than 20000 members"),
            (
                json!({"patternProperties": numbered(101, |n| (format!("^a{n}$"), json!(true)))}),
                "more than 100 different patterns",
            ),
            (
                json!({"properties": numbered(101, |n| (format!("p{n}"), json!({"pattern": format!("^a{n}$")})))}),
                "more than 100 different patterns",
            ),
            (
                json!({"properties": numbered(90, |n| (format!("p{n}"), json!({"pattern": format!(r"^\p{{L}}{{1,20}}a{{{n}}}$")})))}),
                "come to more than 4096 KiB",
            ),
            (json!({"$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}), "recursive"),
            (json!({"type": "strin"}), "/type: "),
            (json!({"properties": {"a": {"pattern": "("}}}), "/properties/a/pattern"),
            (json!({"pattern": "(?=a)b"}), "/pattern"),
            (json!({"pattern": "(a{1000}){1000}"}), "/pattern"),
        ] {
            let error = check(&object(schema.clone())).expect_err(&schema.to_string());
            assert!(error.contains(part), "{error} lacks {part}");
            assert!(faults(&object(schema), &json!(1)).is_err());
        }
    }

    #[test]
    fn ordinary_schemas_pass() {
        for schema in [
            json!({}),
            json!({"type": "object", "properties": {"$ref": {"type": "string"}}}),
            json!({"$id": "https://example.com/s", "$defs": {"a": {"type": "string"}}, "items": {"$ref": "#/$defs/a"}}),
            json!({"enum": [{"$ref": "http://example.com"}]}),
            doubling(8),
            nested(20),
            json!({"properties": numbered(100, |n| (format!("p{n}"), json!({"pattern": format!("^[a-z]{{1,{}}}$", n + 1)})))}),
            json!({"properties": numbered(190, |n| (format!("p{n}"), json!({"pattern": "^[0-9a-f]{8}-[0-9a-f]{4}$"})))}),
        ] {
            assert_eq!(check(&object(schema)), Ok(()));
        }
    }

    /// What the operator and the gateway look at themselves.
    #[test]
    fn the_limits_are_told_without_compiling() {
        for (schema, told) in [
            (nested(40), true),
            (doubling(15), true),
            (wide(40, 80), true),
            (json!({"pattern": "("}), false),
            (json!({"type": "strin"}), false),
        ] {
            assert_eq!(bounded(&object(schema.clone())).is_err(), told, "{schema}");
        }
    }

    #[test]
    fn evil_patterns_take_linear_time() {
        let schema = object(json!({"type": "string", "pattern": "^(a+)+$"}));
        let begun = std::time::Instant::now();
        let found = faults(&schema, &json!(format!("{}!", "a".repeat(100_000)))).expect("compiles");
        assert_eq!(found.len(), 1);
        assert!(begun.elapsed().as_secs() < 5);
    }

    #[test]
    fn faults_are_pointed_at_bounded_and_masked() {
        let schema = object(json!({"type": "object", "required": ["risks"], "properties": {
            "risks": {"type": "integer"}, "list": {"items": {"type": "integer"}}, "mail": {"format": "email"}}}));
        let one = faults(&schema, &json!({"risks": "secret-value"})).expect("compiles");
        assert_eq!(one[0].pointer, "/risks");
        assert!(!one[0].message.contains("secret-value"), "{}", one[0].message);
        let missing = faults(&schema, &json!({})).expect("compiles");
        assert_eq!(missing[0].pointer, "");
        assert!(missing[0].message.contains("risks"));
        let many = faults(&schema, &json!({"risks": 1, "list": vec!["x"; 100]})).expect("compiles");
        assert_eq!(many.len(), 20);
        assert_eq!(faults(&schema, &json!({"risks": 1, "mail": "x"})).expect("compiles").len(), 1);
        assert_eq!(faults(&schema, &json!({"risks": 1})), Ok(Vec::new()));
    }
}
