//! JSON as Go's encoder writes it, byte for byte: keys in order, markup escaped, numbers as Go spells them.

use std::fmt::Write as _;

use serde_json::{Number, Value};

/// What the API server makes of JSON that it has read and writes again.
pub fn as_the_api_server_writes(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort_unstable();
            for (n, key) in keys.into_iter().enumerate() {
                text.push(if n > 0 { ',' } else { '{' });
                string(key, text);
                text.push(':');
                write(&members[key], text);
            }
            text.push_str(if members.is_empty() { "{}" } else { "}" });
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                text.push(if n > 0 { ',' } else { '[' });
                write(item, text);
            }
            text.push_str(if items.is_empty() { "[]" } else { "]" });
        }
        Value::String(value) => string(value, text),
        Value::Number(value) => number(value, text),
        Value::Bool(_) | Value::Null => text.push_str(&value.to_string()),
    }
}

fn string(value: &str, text: &mut String) {
    for c in Value::from(value).to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a string does not fail.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            other => text.push(other),
        }
    }
}

/// Whole numbers of 64 bits with a sign as they are, all else as a double: without an exponent where that is not too long.
fn number(value: &Number, text: &mut String) {
    if let Some(whole) = value.as_i64() {
        text.push_str(&whole.to_string());
        return;
    }
    let double = value.as_f64().unwrap_or_default();
    let magnitude = double.abs();
    if magnitude == 0.0 {
        text.push('0');
    } else if (1e-6..1e21).contains(&magnitude) {
        text.push_str(&double.to_string());
    } else {
        let exponential = format!("{double:e}");
        text.push_str(&if magnitude < 1.0 { exponential } else { exponential.replace('e', "e+") });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_what_go_writes() {
        for (value, expected) in [
            (json!({"b": 1, "a": [], "Z": {}}), r#"{"Z":{},"a":[],"b":1}"#),
            (
                json!(["<a>&", "\u{2028}\u{2029}", "ö😀", "\t\n\"\\/", "\u{1}\u{7f}"]),
                "[\"\\u003ca\\u003e\\u0026\",\"\\u2028\\u2029\",\"ö😀\",\"\\t\\n\\\"\\\\/\",\"\\u0001\u{7f}\"]",
            ),
            (
                json!([i64::MIN, u64::MAX, 0.1, 1.5, 100.0, -0.0, 1e16]),
                "[-9223372036854775808,18446744073709552000,0.1,1.5,100,0,10000000000000000]",
            ),
            (
                json!([1e21, 1.5e300, 1e-6, 1e-7, -2.5e-9, 1e20]),
                "[1e+21,1.5e+300,0.000001,1e-7,-2.5e-9,100000000000000000000]",
            ),
            (json!([true, null, {"<": false}]), r#"[true,null,{"\u003c":false}]"#),
        ] {
            assert_eq!(as_the_api_server_writes(&value), expected);
        }
    }
}
