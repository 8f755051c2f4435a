//! Lists as tables, which is how kubectl asks for them: the columns that a CustomResourceDefinition prints, without the objects.

#![expect(clippy::disallowed_macros, reason = "the rows of a table")]

use std::sync::Arc;

use http::{HeaderMap, header};
use serde_json::{Value, json};

use super::kind::Kind;
use super::object::Object;
use crate::api::crd;

/// In which form a list is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Objects,
    Table,
}

/// What is asked for.
pub fn form(headers: &HeaderMap) -> Form {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_table = accepted.split(';').any(|part| part.trim() == "as=Table");
    if is_table { Form::Table } else { Form::Objects }
}

/// The table of a kind of Lockstep's own. The rows hold no objects, as with `includeObject=None`; of other kinds there is the
/// name alone.
pub fn table(kind: Kind, objects: &[Arc<Object>], metadata: &Value) -> Value {
    let columns = columns(kind);
    let heads: Vec<Value> = columns.iter().map(|(name, kind, _)| json!({"name": name, "type": kind})).collect();
    let row = |object: &Arc<Object>| {
        let cell = |(_, _, pointer): &(String, String, String)| object.value.pointer(pointer).unwrap_or(&Value::Null);
        json!({"cells": columns.iter().map(cell).collect::<Vec<_>>(), "object": null})
    };
    let rows: Vec<Value> = objects.iter().map(row).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": heads, "rows": rows})
}

/// Name, type and JSON pointer of each column.
fn columns(kind: Kind) -> Vec<(String, String, String)> {
    let all = crd::all();
    let own = all.iter().find(|crd| crd.pointer("/spec/names/kind").is_some_and(|name| name == kind.name()));
    let printed = own.and_then(|crd| crd.pointer("/spec/versions/0/additionalPrinterColumns")?.as_array());
    let text = |column: &Value, field: &str| column[field].as_str().unwrap_or_default().to_owned();
    let column = |c: &Value| (text(c, "name"), text(c, "type"), text(c, "jsonPath").replace('.', "/"));
    let name = ("Name".to_owned(), "string".to_owned(), "/metadata/name".to_owned());
    std::iter::once(name).chain(printed.into_iter().flatten().map(column)).collect()
}
