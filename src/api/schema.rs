//! Pieces of OpenAPI that schemars cannot know: free JSON.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A JSON object with any content: a JSON Schema, a pod template, parameters.
pub fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 256, "x-kubernetes-preserve-unknown-fields": true})
}

/// Any JSON value.
pub fn free_value(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// A number, or a percentage such as `10%`.
pub fn number_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "maxLength": 4, "pattern": "^([0-9]|[1-9][0-9]|100)%$"})
}
