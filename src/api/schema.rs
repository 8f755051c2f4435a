//! Pieces of OpenAPI that schemars cannot know: free JSON, and what the values of an enum mean.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::limits::ITEMS;

/// A JSON object with any content: a JSON Schema, a pod template, parameters.
pub fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 256, "x-kubernetes-preserve-unknown-fields": true})
}

/// Any JSON value.
pub fn free_value(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// A number of items, or a percentage such as `10%`.
pub fn number_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 0, "maximum": ITEMS, "maxLength": 4, "pattern": "^([0-9]|[1-9][0-9]|100)%$"})
}

/// An enum whose variants are documented, as one list of values. A structural schema has no place to say what a value means:
/// the texts ride in the title, and `crd` puts them below the description of each field of that type.
pub fn told(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    let Some(Value::Array(variants)) = object.remove("oneOf") else { return };
    let text = |variant: &Value, key: &str| variant.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let meanings: Vec<String> = variants
        .iter()
        .map(|variant| format!(" - `{}`: {}", text(variant, "const"), text(variant, "description").replace('\n', " ")))
        .collect();
    let values = variants.iter().filter_map(|variant| variant.get("const").cloned()).collect();
    object.insert("type".to_owned(), "string".into());
    object.insert("enum".to_owned(), Value::Array(values));
    object.insert("title".to_owned(), meanings.join("\n").into());
}
