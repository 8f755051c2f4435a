//! JSON as deep as the real server stores it: its reader goes on where others stop.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Result, Value};

/// Lists and objects within each other. The real server takes 10,000; here whoever writes them out again needs the stack.
const LEVELS: usize = 400;

/// The value of JSON text.
pub fn read(bytes: &[u8]) -> Result<Value> {
    match serde_json::from_slice(bytes) {
        Err(error) if error.to_string().starts_with("recursion limit exceeded") => {
            deep(std::str::from_utf8(bytes).unwrap_or_default().trim_start(), 0)
        }
        read => read,
    }
}

/// One level after the other; keys come in the order of the real server.
fn deep(text: &str, level: usize) -> Result<Value> {
    match text.as_bytes().first() {
        Some(b'{') if level < LEVELS => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text)?;
            let read = members.into_iter().map(|(key, value)| Ok((key, deep(value.get(), level + 1)?)));
            Ok(Value::Object(read.collect::<Result<Map<_, _>>>()?))
        }
        Some(b'[') if level < LEVELS => {
            let items: Vec<&RawValue> = serde_json::from_str(text)?;
            Ok(Value::Array(items.into_iter().map(|item| deep(item.get(), level + 1)).collect::<Result<_>>()?))
        }
        _ => serde_json::from_str(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nests_deeper_than_others_read_is_read() {
        let text = |levels: usize| format!(" {}7{}", "{\"b\": 1, \"a\": [".repeat(levels), "]}".repeat(levels));
        for levels in [1, 60, 65, 150] {
            let value = read(text(levels).as_bytes()).expect("it is read");
            let innermost = (0..levels).try_fold(&value, |value, _| value["a"].get(0));
            assert_eq!(innermost.and_then(Value::as_u64), Some(7), "{levels}");
            let again = read(value.to_string().as_bytes()).expect("it is read again");
            assert_eq!(again, value);
        }
        assert!(read(text(10_000).as_bytes()).is_err());
        assert!(read(b"{\"a\": ").is_err());
    }
}
