//! The kinds of patch that are served: merge patches (RFC 7386) and JSON patches (RFC 6902). Strategic merge patches and
//! server-side apply are not.

use json_patch::{AddOperation, PatchOperation};
use serde_json::Value;

use super::status::{Result, bad_request, patch_failed, plain};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Merge,
    Json,
}

impl Format {
    /// By the content type of the request.
    pub fn of(content_type: &str) -> Result<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/json-patch+json" => Ok(Self::Json),
            other => {
                let why = format!("the body of the request was in an unknown format: {other:?} is not served");
                Err(plain(415, "UnsupportedMediaType", &why))
            }
        }
    }
}

/// What becomes of a value by a patch.
pub fn apply(format: Format, mut value: Value, patch: &Value) -> Result<Value> {
    match format {
        Format::Merge => json_patch::merge(&mut value, patch),
        Format::Json => {
            let operations: json_patch::Patch =
                serde_json::from_value(patch.clone()).map_err(|error| bad_request(&error.to_string()))?;
            for operation in operations.0 {
                if let Some(operation) = as_the_api_server_reads_it(operation, &value) {
                    json_patch::patch(&mut value, &[operation]).map_err(|_| patch_failed())?;
                }
            }
        }
    }
    Ok(value)
}

/// Its library is laxer than the RFC: a test for null passes where nothing is, and what is not there is replaced by adding.
fn as_the_api_server_reads_it(operation: PatchOperation, value: &Value) -> Option<PatchOperation> {
    match operation {
        PatchOperation::Test(test) if test.value.is_null() && absent(value, test.path.as_str()) => None,
        PatchOperation::Replace(replace) if absent(value, replace.path.as_str()) => {
            Some(PatchOperation::Add(AddOperation { path: replace.path, value: replace.value }))
        }
        other => Some(other),
    }
}

/// Whether a field is not there, and its parent is.
fn absent(value: &Value, path: &str) -> bool {
    let parent = path.rsplit_once('/').map(|(parent, _)| value.pointer(parent));
    value.pointer(path).is_none() && matches!(parent, Some(Some(Value::Object(_))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_are_applied_as_the_api_server_does() {
        let object = json!({"a": 1, "b": {"c": [1, 2]}});
        for (patch, expected) in [
            (
                json!([{"op": "test", "path": "/a", "value": 1}, {"op": "remove", "path": "/a"}]),
                Some(json!({"b": {"c": [1, 2]}})),
            ),
            (json!([{"op": "test", "path": "/x", "value": null}]), Some(object.clone())),
            (json!([{"op": "test", "path": "/x", "value": 1}]), None),
            (json!([{"op": "replace", "path": "/x", "value": 1}]), Some(json!({"a": 1, "b": {"c": [1, 2]}, "x": 1}))),
            (json!([{"op": "replace", "path": "/x/y", "value": 1}]), None),
            (json!([{"op": "remove", "path": "/x"}]), None),
            (json!([{"op": "add", "path": "/b/c/-", "value": 3}]), Some(json!({"a": 1, "b": {"c": [1, 2, 3]}}))),
            // Nothing of a patch counts whose last operation fails.
            (json!([{"op": "remove", "path": "/a"}, {"op": "test", "path": "/b", "value": 1}]), None),
        ] {
            assert_eq!(apply(Format::Json, object.clone(), &patch).ok(), expected, "{patch}");
        }
        let merged = apply(Format::Merge, object, &json!({"a": null, "b": {"d": 2}})).expect("merged");
        assert_eq!(merged, json!({"b": {"c": [1, 2], "d": 2}}));
        assert_eq!(Format::of("application/strategic-merge-patch+json").expect_err("refused").code, 415);
    }
}
