//! Values as people type them. What a schema says is a text stays one, and no digit is ever lost: the API server holds
//! whole numbers of 64 bits with a sign, and all others as doubles.

#![expect(clippy::disallowed_types, reason = "on the machine of whoever types")]

use serde_json::{Map, Value};

use super::text::inline;
use crate::definition::expression::{Evaluate, InProcess};
use crate::definition::free_value;

/// Doubles hold every whole number up to this one.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// What a typed text is: JSON where the schema allows that, or where there is none and nothing is lost; else the text.
pub fn typed(text: &str, schema: Option<&Map<String, Value>>) -> Result<Value, String> {
    let as_text = Value::String(text.to_owned());
    if let Some(fault) = free_value::nesting_of_text(text) {
        return Err(format!("the value {fault}"));
    }
    let Ok(json) = serde_json::from_str::<Value>(text) else { return Ok(as_text) };
    let loses = inexact(text, &json);
    // Spelt in another way it is the same number still, where a number is what is wanted.
    let respelt = matches!(&json, Value::Number(number) if number.to_string() != text);
    let fits = |value: &Value| schema.is_some_and(|s| InProcess.faults(s, value).is_ok_and(|faults| faults.is_empty()));
    match (&loses, schema.is_some(), fits(&json), fits(&as_text)) {
        (None, true, true, is_text) if !(respelt && is_text) => Ok(json),
        (_, true, _, true) => Ok(as_text),
        (None, true, ..) => Ok(json),
        (None, false, ..) if !respelt => Ok(json),
        (_, false, ..) if json.is_number() => Ok(as_text),
        _ => Err(format!(
            "{} has more digits than the API server keeps{}; put it in quotes, as a text",
            inline(text, 80),
            loses.filter(|at| at != text.trim()).map_or_else(String::new, |at| format!(" at {at}"))
        )),
    }
}

/// Whether a text would have been a number, had no digit been lost.
pub fn is_spared(text: &str, value: &Value) -> bool {
    value.is_string() && serde_json::from_str::<Value>(text).is_ok_and(|json| json.is_number())
}

/// Where JSON text holds a number that the API server would change: a pointer where that is known, else the number itself.
pub fn inexact(text: &str, json: &Value) -> Option<String> {
    let number = numbers(text).into_iter().find(|number| !is_exact(number))?;
    Some(loss(json, "").filter(|at| !at.is_empty()).unwrap_or_else(|| number.to_owned()))
}

/// The numbers in valid JSON, as they are spelt.
fn numbers(json: &str) -> Vec<&str> {
    let (mut found, mut quoted, mut escaped, mut start) = (Vec::new(), false, false, None);
    for (at, c) in json.char_indices().chain([(json.len(), ' ')]) {
        if quoted {
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        let in_number = c.is_ascii_digit() || matches!(c, '-' | '+' | '.') || start.is_some() && matches!(c, 'e' | 'E');
        match start {
            None if in_number => start = Some(at),
            Some(from) if !in_number => {
                found.push(&json[from..at]);
                start = None;
            }
            _ => {}
        }
        quoted = c == '"';
    }
    found
}

/// Whether all digits of a number are there still, once the API server has read it.
fn is_exact(number: &str) -> bool {
    if number.parse::<i64>().is_ok() {
        return true;
    }
    // The shortest text that means that double: what Kubernetes writes.
    number.parse::<f64>().is_ok_and(|double| double.is_finite() && digits(number) == digits(&format!("{double:e}")))
}

/// The digits of a number from the first to the last that is no zero, and the place of the last.
fn digits(number: &str) -> (String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all: String = [whole, fraction].concat().chars().filter(char::is_ascii_digit).collect();
    let some = all.trim_start_matches('0');
    let kept = some.trim_end_matches('0');
    if kept.is_empty() {
        return (String::new(), 0);
    }
    let count = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
    let place = exponent.parse::<i64>().unwrap_or_default() - count(fraction) + count(some) - count(kept);
    (kept.to_owned(), place)
}

/// How a value is written where its reader takes JSON for JSON and anything else for words: as it was typed, if that means
/// the same.
pub fn spelt(value: &Value, typed: &str) -> String {
    match (serde_json::from_str::<Value>(typed), value) {
        (Ok(json), value) if json == *value => typed.to_owned(),
        (Err(_), Value::String(words)) if words == typed => typed.to_owned(),
        _ => value.to_string(),
    }
}

/// Where a value holds a number that the API server would change.
pub fn loss(value: &Value, at: &str) -> Option<String> {
    match value {
        Value::Number(n) if n.is_i64() => None,
        Value::Number(n) => n.as_f64().is_none_or(|double| double.abs() >= EXACT).then(|| at.to_owned()),
        Value::Array(items) => items.iter().enumerate().find_map(|(n, item)| loss(item, &format!("{at}/{n}"))),
        Value::Object(members) => members.iter().find_map(|(key, member)| loss(member, &format!("{at}/{key}"))),
        _ => None,
    }
}

/// The schema of one parameter, with what its references name.
pub fn of_parameter(schema: &Map<String, Value>, key: &str) -> Option<Map<String, Value>> {
    let mut own = schema.get("properties")?.get(key)?.as_object()?.clone();
    if let Some(defs) = schema.get("$defs") {
        own.insert("$defs".to_owned(), defs.clone());
    }
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_typed_arrives_as_typed() {
        let text = json!({"type": "string"});
        let number = json!({"type": "number"});
        let either = json!({"type": ["string", "integer"]});
        let table = [
            // What the schema says.
            (Some(&text), "3.10", Some(json!("3.10"))),
            (Some(&text), "007", Some(json!("007"))),
            (Some(&text), "1234e56", Some(json!("1234e56"))),
            (Some(&text), "12345678901234567890", Some(json!("12345678901234567890"))),
            (Some(&text), "true", Some(json!("true"))),
            (Some(&text), "\"2\"", Some(json!("2"))),
            (Some(&number), "3.10", Some(json!(3.1))),
            (Some(&number), "20200219", Some(json!(20_200_219))),
            (Some(&number), "12345678901234567890", None),
            (Some(&number), "1e3", Some(json!(1000.0))),
            (Some(&number), "many", Some(json!("many"))),
            (Some(&number), "1e20", Some(json!(1e20))),
            (Some(&number), "0.1", Some(json!(0.1))),
            (Some(&number), "0.12345678901234567890", None),
            (Some(&number), "9007199254740993.0", None),
            (Some(&either), "5", Some(json!(5))),
            (Some(&either), "05", Some(json!("05"))),
            (Some(&either), "9007199254740993000", Some(json!(9_007_199_254_740_993_000_i64))),
            // Without one.
            (None, "2", Some(json!(2))),
            (None, "2.5", Some(json!(2.5))),
            (None, "true", Some(json!(true))),
            (None, "two words", Some(json!("two words"))),
            (None, "{\"a\": [1]}", Some(json!({"a": [1]}))),
            (None, "3.10", Some(json!("3.10"))),
            (None, "1e5", Some(json!("1e5"))),
            (None, "0.12345678901234567890", Some(json!("0.12345678901234567890"))),
            (None, "{\"a\": 0.12345678901234567890}", None),
            (
                None,
                "{\"a\": \"0.12345678901234567890\", \"b-1\": 0.5}",
                Some(json!({"a": "0.12345678901234567890", "b-1": 0.5})),
            ),
            (None, "881217801864", Some(json!(881_217_801_864_i64))),
            (None, "12345678901234567890", Some(json!("12345678901234567890"))),
            (None, "123456789012345678901234567890", Some(json!("123456789012345678901234567890"))),
            (None, "{\"a\": [1, 12345678901234567890]}", None),
        ];
        for (schema, typed_in, expected) in table {
            let schema = schema.and_then(Value::as_object);
            assert_eq!(typed(typed_in, schema).ok(), expected, "{schema:?} {typed_in}");
        }
        let lost = typed("{\"a\": [1, 12345678901234567890]}", None).expect_err("a digit would be lost");
        assert!(lost.contains("at /a/1"), "{lost}");
        let deep = typed(&format!("{}{}", "[".repeat(200), "]".repeat(200)), None).expect_err("too deep");
        assert!(deep.starts_with("the value nests 200 levels") && deep.contains("at most 64"), "{deep}");
        let lost = typed("[0.5, 0.12345678901234567890]", None).expect_err("a digit would be lost");
        assert!(lost.contains("at 0.12345678901234567890"), "{lost}");
    }

    #[test]
    fn every_digit_is_compared() {
        for (number, exact) in [
            ("0", true),
            ("-0.0", true),
            ("5", true),
            ("-9223372036854775808", true),
            ("9223372036854775807", true),
            ("9223372036854775808", false),
            ("9007199254740993", true),
            ("9007199254740993.0", false),
            ("100000000000000000000", true),
            ("1e20", true),
            ("1.50", true),
            ("0.1", true),
            ("0.30000000000000004", true),
            ("0.1000000000000000055511151231257827", false),
            ("1e400", false),
            ("12345678901234567890", false),
        ] {
            assert_eq!(is_exact(number), exact, "{number}");
        }
    }

    #[test]
    fn what_is_sent_is_read_as_what_was_meant() {
        let either = json!({"type": ["string", "number"]});
        let text = json!({"type": "string"});
        for (schema, typed_in, sent) in [
            (None, "20000", "20000"),
            (None, "two words", "two words"),
            (None, "12345678901234567890", "\"12345678901234567890\""),
            (None, "3.10", "\"3.10\""),
            (None, " {\"a\": 1} ", " {\"a\": 1} "),
            (Some(&either), "3.10", "\"3.10\""),
            (Some(&text), "007", "007"),
            (Some(&text), "3.10", "\"3.10\""),
            (Some(&text), "\"2\"", "\"2\""),
        ] {
            let value = typed(typed_in, schema.and_then(Value::as_object)).expect("a value");
            assert_eq!(spelt(&value, typed_in), sent, "{typed_in}");
        }
    }

    #[test]
    fn a_parameter_has_its_own_schema() {
        let all = json!({"$defs": {"v": {"type": "string"}}, "properties": {"version": {"$ref": "#/$defs/v"}}});
        let own = of_parameter(all.as_object().expect("an object"), "version").expect("it is there");
        assert_eq!(typed("3.10", Some(&own)), Ok(json!("3.10")));
        assert_eq!(of_parameter(all.as_object().expect("an object"), "other"), None);
    }
}
