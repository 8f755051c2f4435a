//! The CustomResourceDefinitions as they are applied: what kube derives, made structural and small.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::{Agent, Document, Memory, StepRun, Trigger, Workflow, WorkflowTemplate};

/// All kinds, in the order in which they are listed.
pub fn all() -> Vec<Value> {
    let kinds = [
        Agent::crd(),
        WorkflowTemplate::crd(),
        Workflow::crd(),
        StepRun::crd(),
        Document::crd(),
        Memory::crd(),
        Trigger::crd(),
    ];
    kinds.iter().map(finished).collect()
}

/// Plural name and YAML text of every CRD.
pub fn files() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    all()
        .iter()
        .map(|crd| {
            let plural = crd.pointer("/spec/names/plural").and_then(Value::as_str).unwrap_or_default().to_owned();
            Ok((plural, serde_saphyr::to_string(crd)?))
        })
        .collect()
}

fn finished(crd: &CustomResourceDefinition) -> Value {
    let mut crd = serde_json::to_value(crd).unwrap_or_default();
    let documents = crd.pointer("/spec/names/kind").is_some_and(|kind| kind == "Document");
    if let Some(schema) = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        tidy(schema);
        if let Some(status) = schema.pointer_mut("/properties/status").and_then(Value::as_object_mut) {
            // Both defaults are needed: kstatus must read -1 before the first look and after a write that leaves it out. Documents have
            // the first alone: those that an older version published say nothing of it, and must not read as unseen.
            status.insert("default".to_owned(), if documents { json!({"observedGeneration": -1}) } else { json!({}) });
            if let Some(observed) = status.get_mut("properties").and_then(|p| p.get_mut("observedGeneration"))
                && !documents
            {
                observed["default"] = json!(-1);
            }
        }
    }
    crd
}

/// Takes out what schemars adds for `Option` (a stored null would defeat `has()`), and puts descriptions as they are read.
fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if object.get("nullable").is_some_and(Value::is_boolean) {
        object.remove("nullable");
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    describe(object);
    for key in ["properties", "additionalProperties", "items", "not"] {
        match object.get_mut(key) {
            Some(Value::Object(inner)) if key == "properties" => each(inner, tidy),
            Some(inner) => tidy(inner),
            None => {}
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(inner)) = object.get_mut(key) {
            inner.iter_mut().for_each(tidy);
        }
    }
}

/// A description is paragraphs, whatever lines it was written in. What the values of an enum mean came in the title (see
/// `schema::told`), and stands below, as `kubectl explain` shows it for Kubernetes' own kinds.
fn describe(object: &mut Map<String, Value>) {
    let meanings = object.remove("title").filter(|_| object.contains_key("enum"));
    let Some(Value::String(text)) = object.get_mut("description") else {
        return;
    };
    *text = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    if let Some(meanings) = meanings.as_ref().and_then(Value::as_str) {
        *text = format!("{text}\n\nPossible values:\n{meanings}");
    }
}

fn each(map: &mut Map<String, Value>, change: impl Fn(&mut Value)) {
    map.values_mut().for_each(change);
}

/// Writes one file a kind into a folder, or all of them to stdout.
pub fn write(dir: Option<&std::path::Path>) -> anyhow::Result<()> {
    for (plural, text) in files()? {
        match dir {
            Some(dir) => std::fs::write(dir.join(format!("{plural}.yaml")), text)?,
            None => println!("---\n{}", text.trim_end()),
        }
    }
    Ok(())
}
