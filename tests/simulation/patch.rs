//! The two kinds of patch that Lockstep sends.

use serde_json::{Map, Value};

/// RFC 7386: null removes.
pub fn merge(target: &mut Value, change: &Value) {
    let Value::Object(fields) = change else {
        *target = change.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let own = target.as_object_mut().expect("an object");
    for (key, value) in fields {
        if value.is_null() {
            own.remove(key);
        } else {
            merge(own.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// RFC 6902, of it what Lockstep uses: test, add, replace, remove. As the API server does it, a test for null passes
/// where the field is absent, and a replace of an absent field adds it.
pub fn json(mut target: Value, operations: &Value) -> Result<Value, String> {
    for operation in operations.as_array().into_iter().flatten() {
        let word = |key: &str| operation[key].as_str().unwrap_or_default();
        let path = word("path");
        let (parent, last) = path.rsplit_once('/').ok_or_else(|| format!("{path}: no path"))?;
        let last = last.replace("~1", "/").replace("~0", "~");
        let value = &operation["value"];
        let parent = target.pointer_mut(parent).ok_or_else(|| format!("{path}: its parent is not there"))?;
        let fields = parent.as_object_mut().ok_or_else(|| format!("{path}: its parent is no object"))?;
        match word("op") {
            "test" if fields.get(&last).unwrap_or(&Value::Null) == value => {}
            "test" => return Err(format!("{path}: test failed")),
            "add" | "replace" => {
                fields.insert(last, value.clone());
            }
            "remove" if fields.contains_key(&last) => {
                fields.remove(&last);
            }
            other => return Err(format!("{path}: cannot {other}")),
        }
    }
    Ok(target)
}
