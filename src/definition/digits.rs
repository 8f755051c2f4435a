//! Integers that do not fit 64 bits with a sign. JSON readers and the API server make doubles of them, which are other
//! numbers: where text is read they are kept as texts of their digits, and what the API server has rounded is refused.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::{Number, Value};

/// The fewest digits that a number of 64 bits may not hold.
const LONG: usize = 19;
/// Doubles tell all integers of so many digits apart.
const EXACT: usize = 15;

/// The value of JSON text.
pub fn read(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(&kept(text))
}

/// The same of bytes that came by a connection, as whatever they are to be.
pub fn read_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::from_str(&kept(text)),
        // It says where they are no text.
        Err(_) => serde_json::from_slice(bytes),
    }
}

/// The same JSON text, its integers beyond 64 bits in quotes.
pub fn kept(text: &str) -> Cow<'_, str> {
    let mut written = String::new();
    let mut copied = 0;
    let mut at = 0;
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'"' => at = behind_quote(bytes, at),
            b'-' | b'0'..=b'9' => {
                while bytes.get(at).is_some_and(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E'))
                {
                    at += 1;
                }
                if is_beyond(&text[start..at]) {
                    written.push_str(&text[copied..start]);
                    written.push_str(&format!("\"{}\"", &text[start..at]));
                    copied = at;
                }
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    written.push_str(&text[copied..]);
    Cow::Owned(written)
}

fn behind_quote(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn is_beyond(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    digits.len() >= LONG && digits.bytes().all(|b| b.is_ascii_digit()) && number.parse::<i64>().is_err()
}

/// What is wrong with the numbers of an object that came by the API server, which keeps integers of 64 bits with a sign and
/// rounds longer ones.
pub fn faults(value: &Value, place: &str) -> Vec<String> {
    match value {
        Value::Number(number) if is_rounded(number) => vec![format!(
            "{place}: {number} is too large for an integer of 64 bits with a sign, and the API server does not keep its last digits; put it in quotes"
        )],
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, item)| faults(item, &format!("{place}[{index}]"))).collect()
        }
        Value::Object(members) => {
            members.iter().flat_map(|(key, member)| faults(member, &format!("{place}.{key}"))).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether it was an integer with more digits than are left: 6.022e23 was none, and 1e19 has lost nothing.
fn is_rounded(number: &Number) -> bool {
    // 128 bits: no number with more digits is an identifier.
    let long = 9_223_372_036_854_775_808.0..=3.5e38;
    if number.is_i64() {
        return false;
    }
    let whole = number.as_f64().filter(|double| double.fract() == 0.0 && long.contains(&double.abs()));
    let digits = match (number.as_u64(), whole) {
        (Some(uint), _) => uint.to_string(),
        (None, Some(double)) => double.abs().to_string(),
        (None, None) => return false,
    };
    digits.trim_end_matches('0').len() > EXACT
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_digit_of_an_integer_is_lost_where_json_is_read() {
        for (text, expected) in [
            ("9007199254740993", json!(9_007_199_254_740_993_i64)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("9223372036854775807", json!(i64::MAX)),
            ("9223372036854775808", json!("9223372036854775808")),
            ("18446744073709551615", json!("18446744073709551615")),
            ("-9223372036854775809", json!("-9223372036854775809")),
            (
                r#"{"id": 12345678901234567890123, "of": [1, 99999999999999999999]}"#,
                json!({"id": "12345678901234567890123", "of": [1, "99999999999999999999"]}),
            ),
            (
                r#"{"99999999999999999999": "\"99999999999999999999"}"#,
                json!({"99999999999999999999": "\"99999999999999999999"}),
            ),
            ("12345678901234567890.5", json!(12_345_678_901_234_567_890.5)),
            ("12345678901234567890e2", json!(1.234_567_890_123_456_8e21)),
            ("0.30000000000000004", json!(0.300_000_000_000_000_04)),
        ] {
            assert_eq!(read(text).ok(), Some(expected), "{text}");
        }
        for text in ["", "-", "\"", "\"\\", "00000000000000000000001", "99999999999999999999x", "[99999999999999999999"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_api_server_has_rounded_is_refused() {
        for (value, refused) in [
            (json!(i64::MAX), false),
            (json!(i64::MIN), false),
            // 12345678901234567890, as the API server gives it back.
            (json!(12_345_678_901_234_567_000_u64), true),
            (json!(1.234_567_890_123_456_7e24), true),
            (json!(-1.234_567_890_123_456_7e24), true),
            (json!(1e19), false),
            (json!(6.022e23), false),
            (json!(f64::MAX), false),
            (json!(0.123_456_789_012_345_67), false),
            (json!(1_234_567.890_123_456_7), false),
            (json!("12345678901234567890"), false),
        ] {
            let told = faults(&json!({"a": [value]}), "spec.parameters");
            assert_eq!(!told.is_empty(), refused, "{value}: {told:?}");
            assert!(told.iter().all(|fault| fault.starts_with("spec.parameters.a[0]: ") && fault.contains("quotes")));
        }
    }

    proptest::proptest! {
        #[test]
        fn doubles_and_ints_come_back_from_text(int: i64, double in proptest::num::f64::NORMAL) {
            let list = json!([int, double, {"\"": [double]}]);
            proptest::prop_assert_eq!(read(&list.to_string()).ok(), Some(list));
        }

        #[test]
        fn no_text_is_too_odd(text in "[-0-9eE.\"\\\\{}:,x]{0,80}") {
            let _ = read(&text);
        }
    }
}
