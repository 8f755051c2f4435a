//! What a write of a status says: what is to change, and nothing else. So it leaves alone what another writer has written, and
//! what a newer version has, whose fields this one reads over.

use serde_json::{Map, Value};

/// The JSON merge patch (RFC 7386) that makes the one of the other: a field that is gone is null in it, and a list that differs
/// stands in it whole. That a field becomes null it cannot say; no status has such a field (`tests/crds.rs`).
pub fn between(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return after.clone() };
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let mut patch: Map<String, Value> = gone.map(|name| (name.clone(), Value::Null)).collect();
    for (name, value) in after {
        match before.get(name) {
            Some(old) if old == value => {}
            Some(old) => drop(patch.insert(name.clone(), between(old, value))),
            None => drop(patch.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_says_what_differs_and_no_more() {
        let before =
            json!({"same": {"a": [1]}, "number": 1, "list": [1, 2], "gone": {"a": 1}, "part": {"a": 1, "b": 2}});
        let all = json!({"number": 2, "list": [3], "gone": null, "part": {"a": null, "c": {"d": 1}}, "new": {"e": []}});
        for (what, before, after, patch) in [
            ("nothing", before.clone(), before.clone(), json!({})),
            (
                "all kinds of changes",
                before.clone(),
                json!({"same": {"a": [1]}, "number": 2, "list": [3], "part": {"b": 2, "c": {"d": 1}}, "new": {"e": []}}),
                all,
            ),
            ("the first status", Value::Null, json!({"phase": "Running"}), json!({"phase": "Running"})),
            ("another kind of value", json!({"a": {"b": 1}}), json!({"a": "text"}), json!({"a": "text"})),
        ] {
            assert_eq!(between(&before, &after), patch, "{what}");
            // What it makes of what was there, and of the same with fields that are not known.
            let mut made = before.clone();
            json_patch::merge(&mut made, &patch);
            assert_eq!(made, after, "{what}");
            let (mut newer, mut wanted) = (before, after);
            for status in [&mut newer, &mut wanted] {
                json_patch::merge(status, &json!({"unknown": {"deep": [{}]}}));
            }
            json_patch::merge(&mut newer, &patch);
            assert_eq!(newer, wanted, "{what}");
        }
    }
}
