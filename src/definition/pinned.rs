//! Reading a pinned definition: it is compared with the digest that the run's status holds, however the API server,
//! admission or a client has spelt it, and compiled.

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
    let found = canonical_digest(&data);
    // Versions before 0.2 took the digest of the text as they had written it.
    if found != digest && name::digest_bytes(data.to_string().as_bytes()) != digest {
        return Err(Unpinned::Changed { wanted: digest.to_owned(), found });
    }
    serde_json::from_value(data).map_err(|e| Unpinned::Unreadable(e.to_string()))
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
        // As older versions pinned it.
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
            }
        }
    }
}
