//! Which request wrote an annotation last, and when: of `metadata.managedFields` the part that anybody here reads. The real server keeps
//! entries for every field, and names them by the client's program.

#![expect(clippy::disallowed_macros, reason = "entries as they are stored")]

use serde_json::{Map, Value, json};

const OWNED: &str = "/fieldsV1/f:metadata/f:annotations";

/// Gives the annotations that a request adds or alters to the entry of whoever writes, with the time of the request; what is taken away
/// is nobody's any more. Entries that a client sends along are not heard.
pub fn keep(old: &Value, new: &mut Value, by: &str, now: &str) {
    let none = Map::new();
    let of = |meta: &Value| meta["annotations"].as_object().unwrap_or(&none).clone();
    let (before, after) = (of(&old["metadata"]), of(&new["metadata"]));
    let written: Vec<String> =
        after.iter().filter(|(key, text)| before.get(*key) != Some(*text)).map(|(key, _)| format!("f:{key}")).collect();
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| format!("f:{key}"));
    let moved: Vec<String> = written.iter().cloned().chain(gone).collect();
    let mut entries = old["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    if !moved.is_empty() {
        for owned in entries.iter_mut().filter_map(|entry| entry.pointer_mut(OWNED)?.as_object_mut()) {
            owned.retain(|key, _| !moved.contains(key));
        }
        if !written.is_empty() {
            let own = entries.iter().find(|entry| entry["manager"] == by);
            let own = own.and_then(|entry| entry.pointer(OWNED)?.as_object());
            let mut owned = own.cloned().unwrap_or_default();
            owned.extend(written.into_iter().map(|key| (key, json!({}))));
            entries.retain(|entry| entry["manager"] != by);
            entries.push(json!({"manager": by, "operation": "Update", "apiVersion": new["apiVersion"], "time": now,
                "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:annotations": owned}}}));
        }
        let owns =
            |entry: &Value| entry.pointer(OWNED).and_then(Value::as_object).is_some_and(|owned| !owned.is_empty());
        entries.retain(owns);
    }
    if let Some(meta) = new["metadata"].as_object_mut() {
        if entries.is_empty() {
            meta.remove("managedFields");
        } else {
            meta.insert("managedFields".to_owned(), Value::Array(entries));
        }
    }
}
