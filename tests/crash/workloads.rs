//! The seven reference workloads. Each run says in its steps' parameters what its agents do: `fails: n` fails the first n
//! attempts; what `produces` names is made.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use kube::ResourceExt;
use lockstep::api::StepRun;
use lockstep::api::step::{Produces, Step};
use serde_json::{Value, json};

use super::kubelet::{Agents, Deed};

pub struct Workload {
    pub name: &'static str,
    /// Name and spec.
    pub runs: Vec<(&'static str, Value)>,
    /// Run, gated step, and a step that must not come before the gate was accepted.
    pub gates: Vec<(&'static str, &'static str, &'static str)>,
}

pub fn workloads() -> Vec<Workload> {
    let step = |name: &str| json!({"name": name, "agentId": "worker"});
    let with = |name: &str, more: Value| laid_over(step(name), more);
    let alone = |name: &'static str, spec: Value, gates| Workload { name, runs: vec![("run", spec)], gates };
    vec![
        alone(
            "chain",
            json!({"steps": [step("a"), with("b", json!({"parameters": {"of": "${ steps.a.output }"}})), step("c")]}),
            vec![],
        ),
        alone(
            "gate",
            json!({"steps": [
                with("draft", json!({"produces": {"type": "draft"}, "gate": {}})),
                with("print", json!({"documents": ["draft"], "parameters": {"text": "${ documents.draft }"}}))]}),
            vec![("run", "draft", "print")],
        ),
        alone(
            "items",
            json!({"parameters": {"chapters": ["a", "b", "c", "d"]}, "steps": [
                with("chapter", json!({"forEach": {"in": "parameters.chapters", "as": "chapter", "key": "chapter", "maxParallel": 2}, "gate": {}})),
                with("print", json!({"parameters": {"chapters": "${ steps.chapter.output }"}}))]}),
            vec![("run", "chapter", "print")],
        ),
        alone(
            "nested",
            json!({"parameters": {"parts": [{"id": "p1", "chapters": ["c1", "c2"]}, {"id": "p2", "chapters": ["c1"]}]}, "steps": [
                {"name": "part", "forEach": {"in": "parameters.parts", "as": "part", "key": "part.id"}, "steps": [
                    with("outline", json!({"produces": {"type": "outline"}})),
                    with("chapter", json!({"forEach": {"in": "part.chapters", "as": "chapter", "key": "chapter"},
                        "documents": ["outline"], "parameters": {"outline": "${ documents.outline }"}})),
                    with("edit", json!({"documents": ["outline"], "parameters": {"chapters": "${ steps.chapter.output }"}, "produces": {"type": "notes"}}))]},
                with("print", json!({"documents": ["notes/*"], "parameters": {"parts": "${ steps.part.output }"}}))]}),
            vec![],
        ),
        alone(
            "retry",
            json!({"steps": [with("draft", json!({"parameters": {"fails": 1}, "retry": {"initialBackoffSeconds": 1}})), step("print")]}),
            vec![],
        ),
        alone(
            "question",
            json!({"steps": [with("draft", json!({"parameters": {"fails": 1}, "retry": {"maxAttempts": 1}})), step("print")]}),
            vec![],
        ),
        Workload {
            name: "session",
            runs: vec![
                (
                    "first",
                    json!({"session": "shared", "parameters": {"topics": ["x", "y"]}, "steps": [
                    with("note", json!({"forEach": {"in": "parameters.topics", "as": "topic", "key": "topic"}, "produces": {"type": "note"}})),
                    with("gather", json!({"documents": ["note/*"], "produces": {"type": "summary", "scope": "Session"}}))]}),
                ),
                (
                    "second",
                    json!({"session": "shared", "steps": [
                    with("read", json!({"documents": ["summary"], "parameters": {"text": "${ documents.summary }"}}))]}),
                ),
            ],
            gates: vec![],
        },
    ]
}

/// No scheduler is told of the pods: there is no node that it could choose.
pub fn agent() -> Value {
    json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "worker"},
        "spec": {"template": {"spec": {"schedulerName": "nobody", "containers": [{"name": "agent", "image": "none", "command": ["true"]}]}}}})
}

pub fn run(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "metadata": {"name": name}, "spec": spec})
}

/// What the agents of these workloads do. Namespaces end in the workload's name.
pub fn agents(workloads: &[Workload]) -> Result<Agents> {
    let mut produces = BTreeMap::new();
    for workload in workloads {
        for (_, spec) in &workload.runs {
            let steps: Vec<Step> = serde_json::from_value(spec["steps"].clone())?;
            collect(workload.name, &steps, "", &mut produces);
        }
    }
    Ok(Box::new(move |step_run, attempt| deed(&produces, step_run, attempt)))
}

type Produced = BTreeMap<(String, String), Produces>;

fn collect(workload: &str, steps: &[Step], above: &str, found: &mut Produced) {
    for step in steps {
        let path = format!("{above}{}", step.name);
        if let Some(produces) = &step.produces {
            found.insert((workload.to_owned(), path.clone()), produces.clone());
        }
        collect(workload, &step.steps, &format!("{path}/"), found);
    }
}

/// Output and document tell the step, the item and the attempt, so that a wrong one shows in the end state.
fn deed(produces: &Produced, step_run: &StepRun, attempt: i32) -> Deed {
    let namespace = step_run.namespace().unwrap_or_default();
    let workload = namespace.rsplit('-').next().unwrap_or_default().to_owned();
    let path = &step_run.spec.path;
    let keys =
        step_run.spec.scope_chain.last().and_then(|link| link.scope_id.split_once('/')).map_or("", |(_, keys)| keys);
    let parameters: Value = serde_json::from_str(&step_run.spec.parameters).unwrap_or_default();
    let fails = i64::from(attempt) <= parameters["fails"].as_i64().unwrap_or_default();
    let document = produces
        .get(&(workload, path.clone()))
        .map(|produces| (produces.clone(), format!("{} by {path} {keys}, attempt {attempt}", produces.document_type)));
    Deed { output: json!({"by": path, "for": keys, "attempt": attempt}), document, fails, takes: Duration::ZERO }
}

fn laid_over(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}
