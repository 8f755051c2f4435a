//! What is legal and probably not meant. Warnings never change the exit code.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use crate::api::Agent;

/// With it, Flux leaves `${ }` alone.
const FLUX: &str = "kustomize.toolkit.fluxcd.io/substitute";

/// `${NAME}` in texts that Lockstep does not expand; where it does, that is a fault of its own.
pub fn variables(object: &Value, faults: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    texts(object.get("spec").unwrap_or(&Value::Null), "spec", &mut |path, text| {
        let told = faults.iter().any(|fault| super::path(fault) == path);
        // What a document says is its author's.
        if let Some(name) = variable(text).filter(|_| !told && !path.starts_with("spec.documents")) {
            warnings.push(format!(
                "{path}: ${{{name}}} looks like a variable of a shell or of Flux; Lockstep leaves it as it is here"
            ));
        }
    });
    warnings
}

/// `${ }` in an object that Flux would read as its own.
pub fn flux(object: &Value) -> Option<String> {
    let notes = object.pointer("/metadata/annotations").and_then(Value::as_object);
    if notes.and_then(|n| n.get(FLUX)).and_then(Value::as_str) == Some("disabled") {
        return None;
    }
    let mut first = None;
    texts(object.get("spec").unwrap_or(&Value::Null), "spec", &mut |path, text| {
        if text.contains("${") && first.is_none() {
            first = Some(path.to_owned());
        }
    });
    first.map(|path| {
        format!("metadata.annotations: {FLUX}: disabled is missing; Flux would replace the ${{ }} at {path} by its own variables")
    })
}

/// Fields of the pod template that Kubernetes does not know: it would drop them without a word.
pub fn of_agent(agent: &Agent) -> Vec<String> {
    let given = Value::Object(agent.spec.template.clone());
    let Ok(read) = serde_json::from_value::<PodTemplateSpec>(given.clone()) else {
        return Vec::new();
    };
    let kept = serde_json::to_value(read).unwrap_or_default();
    let mut warnings = Vec::new();
    lost(&given, &kept, "spec.template", &mut warnings);
    warnings
}

fn lost(given: &Value, kept: &Value, path: &str, warnings: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, member) in given.iter().filter(|(_, member)| !member.is_null()) {
                let path = format!("{path}.{key}");
                match kept.get(key) {
                    Some(kept) => lost(member, kept, &path, warnings),
                    None if is_empty(member) => {}
                    None => {
                        warnings.push(format!("{path}: is no field of a pod that is known here; it may be dropped"));
                    }
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                lost(given, kept, &format!("{path}[{index}]"), warnings);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// The first `${NAME}` of capitals, unless it is written `$${NAME}`.
fn variable(text: &str) -> Option<&str> {
    let capitals = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
            && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
    text.match_indices("${").find_map(|(at, _)| {
        let name = text[at + 2..].split('}').next().filter(|_| text[at..].contains('}'))?;
        (capitals(name) && !text[..at].ends_with('$')).then_some(name)
    })
}

fn texts(value: &Value, path: &str, see: &mut dyn FnMut(&str, &str)) {
    match value {
        Value::String(text) => see(path, text),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| texts(item, &format!("{path}[{index}]"), see));
        }
        Value::Object(members) => {
            members.iter().for_each(|(key, member)| texts(member, &format!("{path}.{key}"), see));
        }
        _ => {}
    }
}
