//! A pinned definition: how a ControllerRevision holds it, and how it is read again. It is compared with the digest that the
//! run's status holds, however the API server, admission or a client has spelt it, and compiled.

use std::fmt::Write as _;

use serde_json::{Number, Value};

use super::program::Program;
use crate::api::definition::Definition;
use crate::api::name;

/// Why what a ControllerRevision holds is not the definition that was pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpinned {
    #[error("its digest is {found}, not the pinned {wanted}")]
    Changed { wanted: String, found: String },
    #[error("this version cannot read it: {0}")]
    Unreadable(String),
}

/// The only member of what a ControllerRevision holds.
const TEXT: &str = "definition";

/// What a ControllerRevision holds: the definition as one text. Its data may never change by a byte, and the garbage collector's
/// patch spells JSON anew, in the way of Go. A text it gives back as it was, so that it can take an owner away.
pub fn data(definition: &Definition) -> Value {
    Value::from_iter([(TEXT, text(&serde_json::to_value(definition).unwrap_or_default()))])
}

/// Whether the definition lies there as JSON and not as a text: so older versions pinned it.
pub fn is_plain(data: &Value) -> bool {
    carried(data).is_none()
}

fn carried(data: &Value) -> Option<&str> {
    data.as_object().filter(|members| members.len() == 1)?.get(TEXT)?.as_str()
}

/// JSON without the characters that Go escapes in a string and Rust does not. They stand in strings only, where they can be
/// escaped themselves: quotes and backslashes, which are left, both spell alike.
fn text(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a string does not fail.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            other => text.push(other),
        }
    }
    text
}

/// `sha256:...` of a definition, however it is spelt.
pub fn digest(definition: &Definition) -> String {
    canonical_digest(&serde_json::to_value(definition).unwrap_or_default())
}

/// Reads the data of a ControllerRevision, if it is what was pinned.
pub fn read(data: Value, digest: &str) -> Result<Program, Unpinned> {
    let definition = compared(data, digest)?;
    Program::compile(&definition).map_err(|faults| Unpinned::Unreadable(faults.join("; ")))
}

/// The same, not compiled. All of it counts, also what this version does not know.
pub fn compared(data: Value, digest: &str) -> Result<Definition, Unpinned> {
    let kept = json(data)?;
    let found = canonical_digest(&kept);
    // Versions before 0.2 took the digest of the text as they had written it.
    if found != digest && name::digest_bytes(kept.to_string().as_bytes()) != digest {
        return Err(Unpinned::Changed { wanted: digest.to_owned(), found });
    }
    serde_json::from_value(kept).map_err(|e| Unpinned::Unreadable(e.to_string()))
}

/// The definition as JSON, whichever way it is kept.
pub fn json(data: Value) -> Result<Value, Unpinned> {
    match carried(&data) {
        Some(text) => serde_json::from_str(text).map_err(|e| Unpinned::Unreadable(e.to_string())),
        None => Ok(data),
    }
}

/// `sha256:...` of JSON, however it is spelt: API server, admission and clients may put keys into another order, and
/// write a number another way.
pub fn canonical_digest(value: &Value) -> String {
    let mut text = String::new();
    spell(value, &mut text);
    name::digest_bytes(text.as_bytes())
}

fn spell(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort_unstable();
            text.push('{');
            for (n, key) in keys.into_iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                spell(&members[key], text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                spell(item, text);
            }
            text.push(']');
        }
        Value::Number(number) => text.push_str(&spelt(number)),
        other => text.push_str(&other.to_string()),
    }
}

/// Whole numbers that fit 64 bits with a sign are written as such, in as few digits as tell them apart; everything else
/// as the double that it is. So does Go.
fn spelt(number: &Number) -> String {
    /// Doubles beyond this are not whole numbers of that type.
    const LIMIT: f64 = 9_223_372_036_854_775_807.0;
    if let Some(whole) = number.as_i64() {
        return whole.to_string();
    }
    let double = number.as_f64().unwrap_or_default();
    if double.fract() == 0.0 && double.abs() < LIMIT {
        return if double == 0.0 { "0".to_owned() } else { double.to_string() };
    }
    format!("{double:e}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_definition_is_the_pinned_one_however_it_is_spelt() {
        let parameters = json!({"b": [1, 1.5, -0.0, 1e21, u64::MAX, i64::MIN, 0.1, 100.0, 1.234_567_890_123_456_7e18], "a": {"ö": "\u{1f600}<&>", "n": null}});
        let definition = Definition {
            workflow: "shop".into(),
            parameters: parameters.as_object().cloned().unwrap_or_default(),
            ..Definition::default()
        };
        let data = serde_json::to_value(&definition).expect("it serializes");
        let own = digest(&definition);
        assert_eq!(compared(data.clone(), &own), Ok(definition.clone()));
        // As Go would write it: keys in order, whole doubles as whole numbers, markup escaped, large numbers as doubles.
        let text = r#"{"workflowUid":"","workflow":"shop","steps":[],"session":"","parameters":{"a":{"n":null,"ö":"\ud83d\ude00\u003c\u0026\u003e"},
            "b":[1,1.5,0,1e+21,1.8446744073709552e19,-9223372036854775808,0.1,100,1234567890123456800]},"order":"Chain","onFailure":"Wait","input":""}"#;
        let respelt: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(compared(respelt.clone(), &own).map(|d| digest(&d)), Ok(own.clone()));
        // As versions before 0.2 took the digest.
        let older = name::digest_bytes(data.to_string().as_bytes());
        assert_eq!(compared(data.clone(), &older), Ok(definition));
        for change in [
            json!({"workflow": "other"}),
            json!({"steps": [{"name": "a"}]}),
            json!({"parameters": {"b": [1.000_000_1]}}),
            json!({"unknown": true}),
        ] {
            let mut changed = data.clone();
            let fields = changed.as_object_mut().expect("an object");
            fields.extend(change.as_object().cloned().expect("fields"));
            for digest in [&own, &older] {
                let refused = compared(changed.clone(), digest);
                assert!(matches!(refused, Err(Unpinned::Changed { .. })), "{change}");
                let refused = compared(json!({"definition": changed.to_string()}), digest);
                assert!(matches!(refused, Err(Unpinned::Changed { .. })), "{change}, as a text");
            }
        }
    }

    /// JSON as Go's encoder gives a text back, and as ours does.
    #[test]
    fn what_is_pinned_is_a_text_that_go_and_rust_spell_alike() {
        let parameters = json!({"z <b>": "a > 1 && b \u{2028}\u{2029}", "a": [1.0, 1e16, 1e21, 1e-7, u64::MAX, -0.0],
            "c": "\t\n\"\\/\u{1}\u{8}\u{c}\u{7f} ö \u{1f600} \\u003c"});
        let definition = Definition {
            workflow: "shop".into(),
            parameters: parameters.as_object().cloned().unwrap_or_default(),
            ..Definition::default()
        };
        let data = data(&definition);
        let sent = data.to_string();
        let body = &sent[r#"{"definition":""#.len()..sent.len() - r#""}"#.len()];
        // What is left of escapes is a quote or a backslash.
        assert!(!body.replace(r"\\", "").replace(r#"\""#, "").contains('\\'), "{body}");
        for c in ['<', '>', '&', '\u{2028}', '\u{2029}', '\n', '\t', '\u{1}', '\u{8}', '\u{c}'] {
            assert!(!body.contains(c), "{c:?} is spelt in two ways");
        }
        assert!(!is_plain(&data));
        assert_eq!(compared(data, &digest(&definition)), Ok(definition));
    }

    #[test]
    fn what_older_versions_pinned_as_json_is_read() {
        let definition = Definition { workflow: "shop".into(), input: "a > b".into(), ..Definition::default() };
        let data = serde_json::to_value(&definition).expect("it serializes");
        assert!(is_plain(&data));
        assert_eq!(compared(data, &digest(&definition)), Ok(definition));
        let other = json!({"definition": "{}", "x": 1});
        for (what, data) in [("no JSON", json!({"definition": "{"})), ("another member", other)] {
            assert!(compared(data, "sha256:d").is_err(), "{what}");
        }
    }
}
