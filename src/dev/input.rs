//! What the files and the command line ask for: the objects to make, and the run to start.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde_json::{Map, Value, json};

use super::installation::NAMESPACE;
use crate::api::name::{self, CREATED_BY};
use crate::api::step::{Format, Gate, OnFailure, OnReject, Produces, Step};
use crate::api::workflow::TemplateRef;
use crate::api::{Workflow, WorkflowSpec};
use crate::apiserver::{Format as Patch, Key, Kind, Part, Registry, Writer};
use crate::cli::dev::Args;
use crate::cli::fault::{Code, Fault};
use crate::cli::lint::{self, Depth};

/// The run's annotation with the digest of its spec, by which a command knows the run that it started.
const ASKED: &str = "lockstep.dev/dev-asked";
/// The kinds of objects that are taken from files, beside Workflows.
const TAKEN: [Kind; 5] = [Kind::Agent, Kind::WorkflowTemplate, Kind::Document, Kind::Secret, Kind::ConfigMap];

/// The objects of the files, and the run that is made of them and of the command line.
#[derive(Debug)]
pub struct DevInput {
    objects: Vec<(Key, Value)>,
    pub run: Workflow,
    /// Agents in the files, as they are written.
    pub agents: BTreeMap<String, Value>,
    /// Agents that the run names.
    pub named: BTreeSet<String>,
    /// The Agent that is tried alone, where the files have nothing to run.
    pub trial_agent: Option<String>,
}

/// Reads the files; their faults end it, in the words of lint.
pub fn read(args: &Args) -> Result<DevInput, Fault> {
    let texts = lint::texts(&args.files, Depth::One)?;
    let faults = lint::faults(&texts);
    if !faults.is_empty() {
        return Err(Fault::new(Code::Usage, format!("the files have faults:\n{}", faults.trim_end())));
    }
    let mut objects = Vec::new();
    let mut runs = Vec::new();
    for value in texts.iter().flat_map(|(_, text)| lint::objects(text)) {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, own) = (text("/kind"), text("/metadata/name"));
        if kind == "Workflow" {
            runs.push(value);
        } else if let Some(kind) = TAKEN.into_iter().find(|taken| taken.name() == kind) {
            objects.push((Key::new(kind, NAMESPACE, &own), placed(value)));
        } else {
            eprintln!("note: {kind} {own} is left out: dev takes Workflows, {}", names(&TAKEN.map(Kind::name)));
        }
    }
    if let Some((key, _)) = objects
        .iter()
        .enumerate()
        .find_map(|(at, one)| objects[..at].iter().any(|(key, _)| *key == one.0).then_some(one))
    {
        return Err(Fault::usage(format!("{} {} stands twice in the files; leave one", key.kind.name(), key.name)));
    }
    let (run, trial_agent) = run(args, runs, &objects)?;
    let named = named_agents(&run, &objects);
    let agents = of_kind(&objects, Kind::Agent).into_iter();
    let agents = agents.map(|(key, value)| (key.name.clone(), value.clone())).collect();
    Ok(DevInput { objects, run, agents, named, trial_agent })
}

/// Puts an object into the one namespace that there is here.
fn placed(mut value: Value) -> Value {
    value["metadata"]["namespace"] = json!(NAMESPACE);
    value
}

fn names(all: &[&str]) -> String {
    all.iter().map(|name| format!("{name}s")).collect::<Vec<_>>().join(", ")
}

fn of_kind(objects: &[(Key, Value)], kind: Kind) -> Vec<&(Key, Value)> {
    objects.iter().filter(|(key, _)| key.kind == kind).collect()
}

/// The run, and the Agent that is tried alone in it.
fn run(args: &Args, mut runs: Vec<Value>, objects: &[(Key, Value)]) -> Result<(Workflow, Option<String>), Fault> {
    let (templates, agents) = (of_kind(objects, Kind::WorkflowTemplate), of_kind(objects, Kind::Agent));
    let wrong = |why: serde_json::Error| Fault::usage(format!("the Workflow cannot be read: {why}"));
    if runs.len() > 1 {
        return Err(Fault::usage("the files have more than one Workflow; dev runs one"));
    }
    let (run, trial_agent) = match (runs.pop(), templates.as_slice(), agents.as_slice()) {
        (Some(run), ..) => {
            let mut run: Workflow = serde_json::from_value(run).map_err(wrong)?;
            run.status = None;
            (run, None)
        }
        (None, [], [(agent, value)]) => (trial(args, &agent.name, value)?, Some(agent.name.clone())),
        (None, [], []) => return Err(Fault::usage("the files have no Workflow, no WorkflowTemplate and no Agent")),
        (None, [], _) => {
            return Err(Fault::usage(
                "the files have several Agents and nothing to run; add a Workflow or a WorkflowTemplate, or leave one Agent",
            ));
        }
        (None, several, _) => {
            let known: Vec<&str> = several.iter().map(|(key, _)| key.name.as_str()).collect();
            let wanted = args.template.as_deref().or_else(|| (known.len() == 1).then(|| known[0]));
            let Some(name) = wanted.filter(|wanted| known.contains(wanted)) else {
                return Err(Fault::usage(format!("say with --template which of these is run: {}", known.join(", "))));
            };
            let template_ref = Some(TemplateRef { name: name.to_owned() });
            (Workflow::new(name, WorkflowSpec { template_ref, ..WorkflowSpec::default() }), None)
        }
    };
    if trial_agent.is_none() && (!args.command.is_empty() || !args.comments.is_empty() || args.produces.is_some()) {
        return Err(Fault::usage(
            "a command behind --, --comment and --produces go with one Agent and nothing to run; say --agent NAME=COMMAND",
        ));
    }
    let mut run = args.flags.put_into(run)?;
    if !args.flags.params.is_empty() {
        let schema = schema(&run, objects);
        let given = args.flags.parameters(schema.as_ref())?;
        run.spec.parameters.get_or_insert_default().extend(given);
    }
    let template = run.spec.template_ref.as_ref().map(|template| template.name.clone());
    let own = run.metadata.name.take().filter(|name| !name.is_empty());
    run.metadata.name = Some(args.name.clone().or(own).or(template).unwrap_or_else(|| "run".to_owned()));
    run.metadata.namespace = Some(NAMESPACE.to_owned());
    Ok((run, trial_agent))
}

/// The schema of the parameters: the template's, the run's own, or the Agent's whose trial it is.
fn schema(run: &Workflow, objects: &[(Key, Value)]) -> Option<Map<String, Value>> {
    let Some(template) = &run.spec.template_ref else { return run.spec.parameters_schema.clone() };
    let found = of_kind(objects, Kind::WorkflowTemplate).into_iter().find(|(key, _)| key.name == template.name)?;
    found.1.pointer("/spec/parametersSchema")?.as_object().cloned()
}

/// A run of one step, in which one Agent is tried, once: what fails is to be seen at once.
fn trial(args: &Args, agent: &str, value: &Value) -> Result<Workflow, Fault> {
    let schema = value.pointer("/spec/parametersSchema").and_then(Value::as_object).cloned();
    let given = args.flags.parameters(schema.as_ref())?;
    let properties = schema.as_ref().and_then(|schema| schema.get("properties")?.as_object());
    let preset = properties.into_iter().flatten().filter(|(_, own)| own.get("default").is_some()).map(|(key, _)| key);
    let of_run = |key: &String| (key.clone(), json!(format!("${{ parameters[{}] }}", json!(key))));
    let parameters: Map<String, Value> = given.keys().chain(preset).map(of_run).collect();
    let types = args.flags.docs.iter().filter_map(|doc| doc.split_once('=')).map(|(kind, _)| kind.to_owned());
    let gate = Gate {
        on_reject: Some(OnReject::Revise),
        max_rounds: Some(i32::try_from(args.comments.len()).unwrap_or(i32::MAX).saturating_add(1)),
        ..Gate::default()
    };
    // Names of steps are narrower than those of objects.
    let is_name = agent.len() <= 40
        && agent.starts_with(|c: char| c.is_ascii_lowercase())
        && agent.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let step = Step {
        name: if is_name { agent } else { "agent" }.to_owned(),
        agent_id: Some(agent.to_owned()),
        parameters: (!parameters.is_empty()).then_some(parameters),
        documents: types.collect(),
        produces: args.produces.as_deref().map(produced).transpose()?,
        gate: (!args.comments.is_empty()).then_some(gate),
        retry: Some(crate::api::step::Retry { max_attempts: Some(1), ..Default::default() }),
        ..Step::default()
    };
    let spec = WorkflowSpec {
        steps: vec![step],
        parameters_schema: schema,
        on_failure: Some(OnFailure::Fail),
        ..WorkflowSpec::default()
    };
    Ok(Workflow::new(agent, spec))
}

/// `plan.md` is a document of the type plan, as markdown.
fn produced(file: &str) -> Result<Produces, Fault> {
    let known = file.rsplit_once('.').and_then(|(kind, ending)| {
        let format = match ending {
            "md" => Format::Markdown,
            "json" => Format::Json,
            "txt" => Format::Text,
            _ => return None,
        };
        Some(Produces { document_type: kind.to_owned(), format, scope: None })
    });
    known.filter(|p| !p.document_type.is_empty()).ok_or_else(|| {
        Fault::usage(format!(
            "--produces {file:?} is not understood; write the file's name, as plan.md, plan.json or plan.txt"
        ))
    })
}

/// The Agents that the run's steps name, at whatever depth.
fn named_agents(run: &Workflow, objects: &[(Key, Value)]) -> BTreeSet<String> {
    let template = run.spec.template_ref.as_ref().map(|template| template.name.as_str());
    let mut named = BTreeSet::new();
    let own = serde_json::to_value(&run.spec.steps).unwrap_or_default();
    collect(&own, &mut named);
    for (key, value) in of_kind(objects, Kind::WorkflowTemplate) {
        if template == Some(key.name.as_str()) {
            collect(&value["spec"]["steps"], &mut named);
        }
    }
    named
}

fn collect(steps: &Value, into: &mut BTreeSet<String>) {
    for step in steps.as_array().into_iter().flatten() {
        into.extend(step["agentId"].as_str().map(str::to_owned));
        collect(&step["steps"], into);
    }
}

impl DevInput {
    pub fn name(&self) -> &str {
        self.run.metadata.name.as_deref().unwrap_or_default()
    }

    /// The digest of the run's spec: the same for the same files and flags.
    fn spec_digest(&self) -> String {
        name::digest_bytes(serde_json::to_string(&self.run.spec).unwrap_or_default().as_bytes())
    }

    /// Makes the objects, or brings them up to date. What is no longer in the files stays.
    pub fn apply(&self, registry: &mut Registry, user: &str) -> Result<(), Fault> {
        let by = Writer { user, is_dry_run: false };
        for (key, value) in &self.objects {
            let refused = |why: Box<kube::core::Status>| {
                Fault::usage(format!("{} {}: {}", key.kind.name(), key.name, why.message))
            };
            match registry.get(key) {
                Err(_) => drop(registry.create(key, value.clone(), by).map_err(refused)?),
                // A document never changes; another one of its type counts when it is newer.
                Ok(there) if key.kind == Kind::Document && there.value["spec"] != value["spec"] => {
                    return Err(Fault::usage(format!(
                        "the Document {} is another one than before, and documents never change; give it another name, or begin anew with --fresh",
                        key.name
                    )));
                }
                Ok(_) => {
                    let body = value.as_object().cloned().unwrap_or_default();
                    let body = body.into_iter().filter(|(field, _)| field != "metadata" && field != "status");
                    let patch = Value::Array(
                        body.map(|(field, value)| json!({"op": "add", "path": format!("/{field}"), "value": value}))
                            .collect(),
                    );
                    registry.patch(key, Part::Main, (Patch::Json, &patch), by).map_err(refused)?;
                }
            }
        }
        Ok(())
    }

    /// Starts the run, or resumes the one that is under way. A run that has ended and was shown (its UID is `shown`) is deleted
    /// first.
    pub fn start(
        &self,
        registry: &mut Registry,
        user: &str,
        shown: Option<&str>,
    ) -> Result<(Workflow, RunStart), Fault> {
        let by = Writer { user, is_dry_run: false };
        let key = Key::new(Kind::Workflow, NAMESPACE, self.name());
        let mut begun = RunStart::New;
        if let Ok(there) = registry.get(&key) {
            if shown == Some(there.uid.as_str()) {
                delete_with_owned(registry, &there.uid, by);
            } else if there.annotation(ASKED) != Some(self.spec_digest().as_str()) {
                return Err(Fault::usage(format!(
                    "the run {} is under way there with other steps, parameters, input or documents; --fresh begins anew, or choose another --name",
                    self.name()
                )));
            } else {
                begun = RunStart::Resumed;
            }
        }
        if begun == RunStart::New {
            let mut run = self.run.clone();
            let notes = run.metadata.annotations.get_or_insert_default();
            notes.insert(ASKED.to_owned(), self.spec_digest());
            notes.insert(CREATED_BY.to_owned(), user.to_owned());
            let value = serde_json::to_value(&run).unwrap_or_default();
            registry.create(&key, value, by).map_err(|why| Fault::usage(format!("Workflow: {}", why.message)))?;
        }
        let there = registry.get(&key).ok().and_then(|object| object.typed::<Workflow>());
        let run = there.ok_or_else(|| Fault::new(Code::Api, "the run cannot be read; --fresh begins anew"))?;
        Ok(((*run).clone(), begun))
    }
}

/// Deletes a run with all that it owns, owners first. Documents and Memories of its session and its project stay.
fn delete_with_owned(registry: &mut Registry, uid: &str, by: Writer<'_>) {
    let mut doomed = BTreeSet::from([uid.to_owned()]);
    let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    let all: Vec<_> = Kind::ALL.into_iter().flat_map(|kind| registry.store().list(kind)).collect();
    for object in all {
        let is_owned = object.owners().iter().filter_map(|owner| owner["uid"].as_str()).any(|uid| doomed.contains(uid));
        if is_owned || object.uid == uid {
            doomed.insert(object.uid.clone());
            // What is gone already is as good.
            let _ = registry.delete(&object.key, &options, by);
        }
    }
}

/// Whether the run is new, or was under way already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStart {
    New,
    Resumed,
}
