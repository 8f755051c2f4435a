//! What every free value must keep to, where one comes in: parameters, items, outputs, schemas. How deep it nests, and its
//! numbers. With what stands around it in an object, and with what the API server notes of its fields, it stays below the
//! 100 and 128 levels that other readers of JSON take.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::digits;
use crate::api::limits::FREE_VALUE_LEVELS;

/// Faults of a value that came by the API server, each with its path.
pub fn faults(value: &Value, place: &str) -> Vec<String> {
    match nesting(value) {
        Some(fault) => vec![format!("{place}: {fault}")],
        None => digits::faults(value, place),
    }
}

/// What is wrong with how deep a value nests.
pub fn nesting(value: &Value) -> Option<String> {
    told(levels(value))
}

/// The same of the object of a schema, or of parameters.
pub fn nesting_of(members: &Map<String, Value>) -> Option<String> {
    told(1 + members.values().map(levels).max().unwrap_or_default())
}

/// The same of JSON text, which may nest deeper than it can be read. A text that is no JSON nests nothing.
pub fn nesting_of_text(text: &str) -> Option<String> {
    let fault = told(levels_of_text(text))?;
    serde_json::from_str::<IgnoredAny>(text).is_ok().then_some(fault)
}

fn told(levels: usize) -> Option<String> {
    (levels > FREE_VALUE_LEVELS).then(|| {
        format!(
            "nests {levels} levels of lists and objects, at most {FREE_VALUE_LEVELS} are allowed; make it flatter, or put what is deeper into a text"
        )
    })
}

/// Lists and objects within each other: none in a number or a text.
fn levels(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(levels).max().unwrap_or_default(),
        Value::Object(members) => 1 + members.values().map(levels).max().unwrap_or_default(),
        _ => 0,
    }
}

/// Brackets within each other, those in quotes left out: no recursion.
fn levels_of_text(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                open += 1;
                most = most.max(open);
            }
            b']' | b'}' if !quoted => open = open.saturating_sub(1),
            _ => {}
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, level| if level % 2 == 0 { json!([inner]) } else { json!({"a": inner}) })
    }

    #[test]
    fn values_and_texts_nest_equally_deep() {
        for (value, expected) in [
            (json!(1), 0),
            (json!("[[{"), 0),
            (json!([]), 1),
            (json!({"a": []}), 2),
            (json!([{"]": "\\\"]"}, [1, [2]], {}]), 3),
            (nested(90), 90),
        ] {
            assert_eq!((levels(&value), levels_of_text(&value.to_string())), (expected, expected), "{value}");
        }
    }

    #[test]
    fn what_nests_too_deep_is_told_with_its_field() {
        let at = |levels: usize| faults(&json!({"a": nested(levels - 1)}), "spec.parameters");
        assert_eq!(at(FREE_VALUE_LEVELS), Vec::<String>::new());
        let told = at(FREE_VALUE_LEVELS + 1);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("spec.parameters: nests 65 levels") && told[0].contains("at most 64"), "{told:?}");
        let text = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(nesting_of_text(&text(FREE_VALUE_LEVELS)), None);
        assert!(nesting_of_text(&text(100_000)).is_some_and(|fault| fault.contains("nests 100000 levels")));
        assert_eq!(nesting_of_text(&"[".repeat(1000)), None, "it is no JSON");
    }
}
