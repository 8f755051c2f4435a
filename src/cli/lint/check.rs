//! One object, judged as the API server and the operator would: structure first, then the operator's own checks, whose
//! words are those of the conditions.

#![expect(clippy::disallowed_types, reason = "on the author's own machine")]

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{structure, warn};
use crate::api::{Agent, Document, Trigger, Workflow, WorkflowTemplate};
use crate::definition::expression::InProcess;
use crate::definition::{agent, trigger, validate};

pub const GROUP: &str = "lockstep.dev";
pub const VERSION: &str = "lockstep.dev/v1alpha1";

/// The parameter schemas of the templates that are looked at together, by namespace and name.
pub type Templates = BTreeMap<(String, String), Map<String, Value>>;

/// What was found in one object, each text with the path of its field in front.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ObjectFindings {
    pub faults: Vec<String>,
    pub warnings: Vec<String>,
    pub notes: Vec<String>,
}

/// The kind and name of an object.
pub fn title(value: &Value) -> String {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = Some(text("/metadata/name")).filter(|n| !n.is_empty()).unwrap_or(text("/metadata/generateName"));
    crate::cli::text::inline(format!("{} {name}", text("/kind")).trim(), 120)
}

pub fn key(value: &Value) -> (String, String) {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/metadata/namespace"), text("/metadata/name"))
}

/// The schema of a template's parameters, for runs that stand beside it.
/// One that says nothing allows everything, as the empty schema does.
pub fn template(value: &Value) -> Option<Map<String, Value>> {
    let is_template = value.get("kind").and_then(Value::as_str) == Some("WorkflowTemplate");
    let schema = || value.pointer("/spec/parametersSchema").and_then(Value::as_object).cloned();
    is_template.then(|| schema().unwrap_or_default())
}

pub fn object(value: &Value, templates: &Templates) -> ObjectFindings {
    let mut found = ObjectFindings::default();
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        let missing = ["apiVersion", "kind"].into_iter().filter(|key| text(key).is_none());
        found.faults.extend(missing.map(|key| format!("{key}: is missing, or no text")));
        return found;
    };
    if version.split('/').next() != Some(GROUP) {
        found.notes.push(format!("kind: {kind} is not Lockstep's; ignored"));
        return found;
    }
    if version != VERSION {
        found.faults.push(format!("apiVersion: {version} is not served; write {VERSION}"));
        return found;
    }
    let Some(schema) = structure::of_kind(kind).filter(|_| !matches!(kind, "StepRun" | "Memory")) else {
        found.faults.push(match kind {
            "StepRun" => "kind: StepRuns are made by the operator only".to_owned(),
            "Memory" => "kind: Memories are made by the operator only".to_owned(),
            _ => format!("kind: {kind} is no kind of {VERSION}; there are {}", structure::kinds().join(", ")),
        });
        return found;
    };
    let mut value = value.clone();
    metadata(&value, &mut found.faults);
    found.faults.extend(structure::faults(&whole(schema), &mut value));
    let further = match kind {
        "WorkflowTemplate" => typed(&value, &found.faults, of_template),
        "Workflow" => typed(&value, &found.faults, |run: &Workflow| of_workflow(run, templates.get(&place(run)))),
        "Agent" => {
            typed(&value, &found.faults, |agent: &Agent| (agent::faults(agent, &InProcess), warn::of_agent(agent)))
        }
        "Trigger" => typed(&value, &found.faults, |trigger: &Trigger| {
            (trigger::Program::compile(&trigger.spec).err().unwrap_or_default(), Vec::new())
        }),
        _ => typed(&value, &found.faults, |_: &Document| (Vec::new(), Vec::new())),
    };
    let (faults, warnings) = further;
    let path = |fault: &str| super::path(fault).to_owned();
    let told: Vec<String> = found.faults.iter().map(|fault| path(fault)).collect();
    found.faults.extend(faults.into_iter().filter(|fault| !told.contains(&path(fault))));
    found.warnings.extend(warnings);
    if matches!(kind, "WorkflowTemplate" | "Workflow") {
        found.warnings.extend(warn::variables(&value, &found.faults));
        found.warnings.extend(warn::flux(&value));
    }
    found
}

/// The schema of the whole object: what every object has stands beside `spec` and `status`.
fn whole(mut schema: Value) -> Value {
    let text = || Value::Object(Map::from_iter([("type".to_owned(), Value::from("string"))]));
    let free = || Value::Object(Map::from_iter([("type".to_owned(), Value::from("object"))]));
    if let Some(own) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        own.insert("apiVersion".to_owned(), text());
        own.insert("kind".to_owned(), text());
        own.insert("metadata".to_owned(), free());
    }
    schema
}

type Judged = (Vec<String>, Vec<String>);

/// As the operator reads it; what it cannot read is a fault, unless the structure says why already.
fn typed<K: DeserializeOwned>(value: &Value, told: &[String], judge: impl Fn(&K) -> Judged) -> Judged {
    match serde_json::from_value::<K>(value.clone()) {
        Ok(object) => judge(&object),
        Err(_) if !told.is_empty() => (Vec::new(), Vec::new()),
        Err(wrong) => (vec![format!("spec: {wrong}")], Vec::new()),
    }
}

fn of_template(template: &WorkflowTemplate) -> Judged {
    let spec = &template.spec;
    (validate::template(spec, &InProcess), validate::warnings(spec.into()))
}

fn of_workflow(run: &Workflow, template: Option<&Map<String, Value>>) -> Judged {
    let spec = &run.spec;
    let mut faults = validate::workflow(spec, &InProcess);
    let schema = template.or(spec.parameters_schema.as_ref());
    let broken = faults.iter().any(|fault| super::path(fault) == "spec.parametersSchema");
    // Without its template a run's parameters cannot be judged.
    let mut warnings = validate::warnings(spec.into());
    if !broken && (spec.template_ref.is_none() || template.is_some()) {
        let given = spec.parameters.clone().unwrap_or_default();
        let refused = validate::parameters(&given, schema, &InProcess).1;
        if refused.is_empty() {
            warnings.extend(validate::undeclared(&given, schema));
        }
        faults.extend(refused);
    }
    (faults, warnings)
}

fn place(run: &Workflow) -> (String, String) {
    let template = run.spec.template_ref.as_ref().map(|t| t.name.clone()).unwrap_or_default();
    (run.metadata.namespace.clone().unwrap_or_default(), template)
}

/// Members of `metadata` that a file may have.
const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

fn metadata(value: &Value, faults: &mut Vec<String>) {
    let Some(metadata) = value.get("metadata").and_then(Value::as_object) else {
        return faults.push("metadata.name: is missing".to_owned());
    };
    for key in metadata.keys().filter(|key| !METADATA.contains(&key.as_str())) {
        faults.push(format!("metadata.{key}: is no field here; there are name, namespace, labels and annotations"));
    }
    match (metadata.get("name"), metadata.get("generateName")) {
        (Some(Value::String(name)), _) if is_name(name) => {}
        (None | Some(Value::Null), Some(Value::String(_))) => {}
        (None | Some(Value::Null), _) => faults.push("metadata.name: is missing".to_owned()),
        (Some(name), _) => faults.push(format!(
            "metadata.name: {name} is no name; it has a-z, 0-9, - and . only, and begins and ends with a letter or digit"
        )),
    }
    for key in ["labels", "annotations"] {
        let entries = metadata.get(key).and_then(Value::as_object).into_iter().flatten();
        for (name, _) in entries.filter(|(_, value)| !value.is_string()) {
            faults.push(format!("metadata.{key}.{name}: must be a text; put it in quotes"));
        }
    }
}

fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || c == '-')
    };
    text.len() <= 253 && text.split('.').all(part)
}
