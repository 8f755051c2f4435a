//! What a round came to, in words that do not change from round to round: no UIDs, times and hashes of them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::observer::{Observer, Step, attempt};

/// Of one round, comparable with that of another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct End {
    /// Kind and title of everything that there is in the end, and its status.
    pub objects: BTreeMap<String, Value>,
    /// Kind and title of everything that was ever created, and how often.
    pub created: BTreeMap<String, usize>,
}

/// Fields that hold times, identities, or digests over identities.
const PASSING: [&str; 29] = [
    "lastTransitionTime",
    "startedAt",
    "completedAt",
    "startTime",
    "at",
    "decidedAt",
    "openedAt",
    "deadline",
    "since",
    "notBefore",
    "uid",
    "podUID",
    "jobUID",
    "agentUID",
    "podName",
    "id",
    "creationTimestamp",
    "resourceVersion",
    "managedFields",
    "outputDigest",
    "inputDigest",
    "revisionName",
    "ownerReferences",
    "selfLink",
    "namespace",
    "stepRun",
    "documentName",
    "policy",
    "lockstep.dev/review",
];

pub fn end(observer: &Observer, prefix: &str) -> End {
    let steps = observer.steps(prefix);
    let mut end = End::default();
    for (namespace, kind, value) in observer.objects(prefix) {
        let Some(title) = title(&steps, prefix, (&namespace, kind), &value) else { continue };
        // Others' statuses are not the operator's affair, and come in their own time.
        let mut shown = match kind {
            "Job" | "Pod" | "ControllerRevision" => Value::Null,
            _ => value["status"].clone(),
        };
        if kind == "StepRun" {
            shown["annotations"] = value["metadata"]["annotations"].clone();
            shown["parameters"] = value["spec"]["parameters"].clone();
        }
        strip(&mut shown, kind);
        end.objects.insert(title, shown);
    }
    let by_place: BTreeMap<(String, &str, String), Value> = observer
        .objects(prefix)
        .into_iter()
        .map(|(namespace, kind, value)| {
            let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            ((namespace, kind, name), value)
        })
        .collect();
    for (namespace, kind, name, times) in observer.created(prefix) {
        // What came and went again has no title any more: its name tells that it should not have.
        let title = by_place
            .get(&(namespace.clone(), kind, name.clone()))
            .map_or(Some(format!("{kind} {namespace}/{name}, gone")), |v| title(&steps, prefix, (&namespace, kind), v));
        if let Some(title) = title {
            *end.created.entry(title).or_insert(0) += times;
        }
    }
    end
}

fn title(
    steps: &BTreeMap<(String, String), Step>,
    prefix: &str,
    (namespace, kind): (&str, &str),
    value: &Value,
) -> Option<String> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let step = |name: String| {
        steps.get(&(namespace.to_owned(), name.clone())).map_or_else(|| format!("? {name}"), |step| step.title.clone())
    };
    let own = match kind {
        "StepRun" => step(text("/metadata/name")),
        "Job" | "Pod" => {
            let owner = text("/metadata/labels/lockstep.dev~1steprun");
            if owner.is_empty() {
                return None;
            }
            format!("{}, attempt {}", step(owner), attempt(value))
        }
        "Document" => {
            let keys = text("/spec/scopeId");
            let keys = keys.split_once('/').map_or("", |(_, keys)| keys);
            format!(
                "{} by {}:{} {keys}, attempt {}",
                text("/spec/type"),
                text("/spec/workflow"),
                text("/spec/path"),
                value["spec"]["attempt"]
            )
        }
        "ControllerRevision" => text("/metadata/labels/lockstep.dev~1workflow"),
        _ => text("/metadata/name"),
    };
    Some(format!("{kind} {} {own}", namespace.trim_start_matches(prefix)))
}

fn strip(value: &mut Value, kind: &str) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| !PASSING.contains(&key.as_str()));
            // Over the definition with the run's UID in it; over the review with the StepRun's.
            if kind == "Workflow" && fields.contains_key("steps") {
                fields.remove("definition");
            }
            // Its name is made of the StepRun's UID.
            if let Some(job) = fields.get_mut("job").and_then(Value::as_object_mut) {
                job.remove("name");
            }
            if fields.contains_key("decidedBy") {
                fields.remove("digest");
                fields.remove("scopeId");
            }
            fields.values_mut().for_each(|inner| strip(inner, kind));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| strip(inner, kind)),
        _ => {}
    }
}

impl End {
    /// What differs, a line each.
    pub fn against(&self, expected: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let titles: BTreeSet<&String> = self.objects.keys().chain(expected.objects.keys()).collect();
        for title in titles {
            match (self.objects.get(title), expected.objects.get(title)) {
                (Some(_), None) => lines.push(format!("{title}: should not be there")),
                (None, Some(_)) => lines.push(format!("{title}: is missing")),
                (Some(found), Some(wanted)) => differences(found, wanted, title, &mut lines),
                (None, None) => {}
            }
        }
        let titles: BTreeSet<&String> = self.created.keys().chain(expected.created.keys()).collect();
        for title in titles {
            let (found, wanted) = (self.created.get(title), expected.created.get(title));
            if found != wanted {
                lines.push(format!("{title}: created {} times, not {}", found.unwrap_or(&0), wanted.unwrap_or(&0)));
            }
        }
        lines
    }
}

fn differences(found: &Value, wanted: &Value, place: &str, lines: &mut Vec<String>) {
    match (found, wanted) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                differences(a, b, &format!("{place}.{key}"), lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &format!("{place}[{n}]"), lines);
            }
        }
        (a, b) if a != b => lines.push(format!("{place}: {a}, not {b}")),
        _ => {}
    }
}
