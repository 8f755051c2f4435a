//! The OpenAPI 3.1 document, made from the table of calls and from the types that they take and give: their schemas are those
//! that the kinds have in their CustomResourceDefinitions, which is why no second derive describes them.

#![expect(clippy::disallowed_macros, reason = "the document is JSON")]

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::header;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::operations::{Form, IN_NAMESPACE, OPERATIONS, Operation, Parameter, REFUSALS, ResponseSpec};
use crate::decide::timeline::EventPayload;

static DOCUMENT: LazyLock<String> = LazyLock::new(|| made().to_string());

/// `GET /openapi.json`
pub async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

pub fn made() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut given = settings.clone().for_serialize().into_generator();
    let mut taken = settings.with(|settings| settings.inline_subschemas = true).into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for prefix in ["", IN_NAMESPACE] {
        for operation in OPERATIONS {
            let path = paths.entry(format!("{prefix}{}", operation.path)).or_insert_with(|| json!({}));
            path[operation.method.to_ascii_lowercase()] = operation_object(operation, prefix, (&mut given, &mut taken));
        }
    }
    let event = EventPayload::json_schema(&mut given).to_value();
    let mut schemas: Map<String, Value> = given.take_definitions(true);
    schemas.insert("Event".to_owned(), event);
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lockstep",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Runs agent workflows on Kubernetes. Every call is made with a bearer token of Kubernetes, and what it may do is what RBAC lets its holder do.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"kubernetes": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"kubernetes": {"type": "http", "scheme": "bearer", "description": "A token of Kubernetes, for example of `kubectl create token NAME`."}},
        },
    });
    tidy(&mut document);
    document
}

fn operation_object(
    operation: &Operation,
    prefix: &str,
    (given, taken): (&mut SchemaGenerator, &mut SchemaGenerator),
) -> Value {
    let mut parameters: Vec<Value> = in_path(prefix).chain(in_path(operation.path)).collect();
    parameters.extend(operation.parameters.iter().map(parameter));
    // Ids are unique: each call stands under two paths.
    let id = if prefix.is_empty() { operation.id.to_owned() } else { format!("{}InNamespace", operation.id) };
    let mut responses: Map<String, Value> = Map::new();
    for spec in operation.answers.iter().chain(REFUSALS) {
        responses.entry(spec.code.to_string()).or_insert_with(|| response(spec, given));
    }
    if operation.id == "run"
        && let Some(content) = responses.get_mut("200").and_then(|ok| ok.get_mut("content"))
    {
        content["text/event-stream"] = json!({"schema": event()});
    }
    let mut value = json!({
        "operationId": id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses,
    });
    if !operation.about.is_empty() {
        value["description"] = operation.about.into();
    }
    if let Some((of, is_required)) = operation.body {
        let mut schema = of(taken).to_value();
        let content = if operation.path.starts_with("/events") {
            // With attributes in headers the body is anything.
            json!({"application/cloudevents+json": {"schema": schema},
                "application/cloudevents-batch+json": {"schema": {"type": "array", "minItems": 1, "maxItems": 100, "items": schema}},
                "application/json": {"schema": {}}})
        } else {
            schema["additionalProperties"] = json!(false);
            json!({"application/json": {"schema": schema}})
        };
        value["requestBody"] = json!({"required": is_required, "content": content});
    }
    value
}

/// The parts of a path in braces.
fn in_path(path: &str) -> impl Iterator<Item = Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| {
        let about = match name {
            "namespace" => "The namespace of Kubernetes.",
            "run" => "The name of a run, or a story: then its newest run.",
            "step" => "The step, with the keys of the items behind it: `group/step/key`.",
            "type" => "The type of the document.",
            "agent" => "The name of the Agent.",
            "trigger" => "The name of the Trigger.",
            _ => "The story.",
        };
        json!({"name": name, "in": "path", "required": true, "description": about, "schema": {"type": "string", "minLength": 1}})
    })
}

fn parameter(one: &Parameter) -> Value {
    let schema = match one.form {
        Form::Text => json!({"type": "string"}),
        Form::Flag => json!({"type": "boolean"}),
        Form::Number(most) => json!({"type": "integer", "minimum": 1, "maximum": most}),
        Form::Time => json!({"type": "string", "format": "date-time"}),
    };
    json!({"name": one.name, "in": one.place, "required": false, "description": one.about, "schema": schema})
}

fn response(spec: &ResponseSpec, given: &mut SchemaGenerator) -> Value {
    let mut value = json!({"description": spec.about});
    if !spec.kind.is_empty() {
        let unknown = || if spec.kind == "text/event-stream" { event() } else { json!({"type": "string"}) };
        let schema = spec.of.map_or_else(unknown, |of| of(given).to_value());
        value["content"] = json!({spec.kind: {"schema": schema}});
    }
    if matches!(spec.code, 404 | 429 | 503) {
        value["headers"] = json!({"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}});
    }
    value
}

/// One event of a stream.
fn event() -> Value {
    json!({"type": "object", "required": ["event", "data"], "properties": {
        "id": {"type": "string", "description": "What `Last-Event-ID` goes on from; progress has none."},
        "event": {"type": "string", "description": "What it tells of, such as `step.started`."},
        "data": {"type": "string", "description": "The fact, as JSON text."},
    }})
}

/// What the values of an enum mean came in its title, see `api::schema::told`; marks for Kubernetes are of no use here.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.contains_key("enum")
                && let Some(Value::String(meanings)) = members.remove("title")
            {
                let before = members.get("description").and_then(Value::as_str).unwrap_or_default();
                let description = format!("{before}\n\nPossible values:\n{meanings}");
                members.insert("description".to_owned(), description.trim().into());
            }
            members.retain(|key, _| !key.starts_with("x-kubernetes-"));
            members.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_is_whole() {
        let document = made();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a reference into the document");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        let mut ids = BTreeSet::new();
        let paths = document["paths"].as_object().expect("paths");
        assert_eq!(paths.len() % 2, 0, "each with and without a namespace");
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().expect("methods") {
                assert!(ids.insert(operation["operationId"].as_str().expect("an id").to_owned()), "{method} {path}");
                assert!(operation["summary"].as_str().is_some_and(|s| !s.is_empty()));
                let named = operation["parameters"].as_array().expect("parameters");
                let braces = path.matches('{').count();
                assert_eq!(named.iter().filter(|p| p["in"] == "path").count(), braces, "{path}");
                for code in ["400", "401", "403", "404", "429", "503"] {
                    assert!(operation["responses"][code].is_object(), "{method} {path} {code}");
                }
            }
        }
        // Every schema is one.
        for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
            assert!(
                schema["description"].is_string() || schema["$ref"].is_string() || name.contains('.'),
                "{name} says nothing of what it is"
            );
        }
    }

    #[test]
    fn a_body_says_what_must_be_in_it() {
        let document = made();
        let body = &document["paths"]["/run"]["post"]["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(body["required"], json!(["input", "story_id"]));
        assert_eq!(body["properties"]["flow"]["default"], "default");
        let document = &document["paths"]["/documents"]["post"]["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(document["required"], json!(["type", "content"]));
    }
}
