//! `export`: a run as one file: what it was told, its definition as it was pinned, the documents, and what its steps gave and
//! people decided. `run --from` reads it, in this place or in another.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::complete;
use super::connect::Connection;
use super::control;
use super::fault::{Code, Fault};
use super::print::{Format, plain, put};
use super::text::inline;
use crate::api::condition;
use crate::api::definition::Definition;
use crate::api::document::Scope;
use crate::api::step::Format as Reading;
use crate::api::workflow::Phase;
use crate::api::{Document, StepRun, Workflow, WorkflowSpec, name};
use crate::decide::content::{self, Content, Loaded, Pin};
use crate::decide::history;
use crate::definition::pinned::{self, digest};

pub const API_VERSION: &str = "lockstep.dev/v1alpha1";
pub const KIND: &str = "RunExport";
/// Bytes of a file that `run --from` reads.
pub const FILE_BYTES: usize = 256 << 20;

/// Write a run to a file: definition, documents, results and decisions
#[derive(clap::Args, Debug)]
#[command(after_help = "\
JSON goes to standard output. Definition, documents and results stand in it with their SHA-256 digests, decisions with the
digest of what was decided on. What was exchanged or deleted since is left out, and standard error says so.

kubectl lockstep run --from FILE starts the run from it again, in this namespace or in another one, also of another cluster.

Who has the file has what the run was told: treat it as you treat the run. You need the right to read runs and documents
(ClusterRole lockstep-view), and controllerrevisions (Kubernetes' role view): without the last the definition is left out,
and elsewhere the template of that name is run.

Examples:
  kubectl lockstep export shop > run.json
  kubectl lockstep --context other run --from run.json -w
  kubectl lockstep export shop | jq '.steps[] | {StepId, Status, outputDigest}'")]
pub struct Args {
    /// The run
    #[arg(add = complete::by(complete::runs))]
    run: String,
}

/// The file.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Export {
    pub api_version: String,
    pub kind: String,
    pub run: ExportedRun,
    /// What it was told.
    pub spec: WorkflowSpec,
    /// Absent where the run never began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Pinned>,
    #[serde(default)]
    pub documents: Vec<Carried>,
    /// For people and programs that read the file; nothing is taken from here.
    #[serde(default)]
    pub steps: Vec<Value>,
    #[serde(default)]
    pub attempts: Vec<Value>,
    #[serde(default)]
    pub said: Value,
}

/// The run that was exported, and its state at that time.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExportedRun {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<String>,
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
}

/// The definition as the run pinned it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pinned {
    pub digest: String,
    pub content: Definition,
}

/// A document that the run read or made.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Carried {
    #[serde(rename = "type")]
    pub document_type: String,
    pub name: String,
    pub scope: Scope,
    pub format: Reading,
    /// The step that made it; absent for what the run was given.
    #[serde(default, rename = "StepId", skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    pub digest: String,
    pub content: String,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let run = control::run_of(on, &args.run, "export").await?;
    let mut steps = on.step_runs(&run.name_any()).await?;
    steps.retain(|step| run.metadata.uid.as_deref() == Some(&step.spec.workflow.uid));
    let definition = definition(on, &run).await?;
    let documents = documents(on, &run, &steps).await?;
    let text = written(&export(&run, &steps, definition, documents)?)?;
    if on.output == Format::Yaml {
        plain(Format::Yaml, &text)?;
    } else {
        put(&format!("{}\n", serde_json::to_string_pretty(&text).map_err(|why| unwritable(&why))?))?;
    }
    Ok(Code::Done)
}

fn unwritable(why: &serde_json::Error) -> Fault {
    Fault::new(Code::Api, format!("cannot write the run: {why}"))
}

fn written(of: &impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(of).map_err(|why| unwritable(&why))
}

fn all<T: Serialize>(of: &[T]) -> Result<Vec<Value>, Fault> {
    of.iter().map(written).collect()
}

/// What the objects say, put together.
pub fn export(
    run: &Workflow,
    steps: &[StepRun],
    definition: Option<Pinned>,
    documents: Vec<Carried>,
) -> Result<Export, Fault> {
    let instances = history::step_instances(run, steps);
    let mut lines = all(&history::entries(&instances))?;
    for (line, instance) in lines.iter_mut().zip(&instances) {
        let Some((step, fields)) = instance.step_run.zip(line.as_object_mut()) else { continue };
        fields.insert("inputDigest".to_owned(), Value::from(step.spec.input_digest.as_str()));
        if let Some(made) = content::made(step) {
            fields.insert("outputDigest".to_owned(), Value::from(made.digest));
        }
    }
    let status = run.status.clone().unwrap_or_default();
    Ok(Export {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        run: ExportedRun {
            name: run.name_any(),
            namespace: run.namespace().unwrap_or_default(),
            uid: run.uid().unwrap_or_default(),
            reason: condition::get(&status.conditions, "Succeeded").map(|succeeded| succeeded.reason.clone()),
            session: status.session.map(|session| session.id),
            creator: status.creator,
            phase: status.phase.unwrap_or_default(),
            created_at: run.metadata.creation_timestamp.clone(),
            started_at: status.started_at,
            completed_at: status.completed_at,
        },
        spec: run.spec.clone(),
        definition,
        documents,
        steps: lines,
        attempts: all(&history::attempts(&instances))?,
        said: written(&history::human_input(&instances))?,
    })
}

/// The pinned definition, if what is kept is what was pinned.
async fn definition(on: &Connection, run: &Workflow) -> Result<Option<Pinned>, Fault> {
    let Some(kept) = run.status.as_ref().and_then(|status| status.definition.as_ref()) else { return Ok(None) };
    let api = on.api::<ControllerRevision>();
    let read = match on.within("read the definition", api.get_opt(&kept.revision_name)).await? {
        Ok(read) => read,
        Err(kube::Error::Api(status)) if status.code == 403 => {
            eprintln!("left out: the definition: you may not read controllerrevisions; Kubernetes' role view has it");
            return Ok(None);
        }
        Err(wrong) => return Err(Fault::call("read the definition", &wrong)),
    };
    let data = read.and_then(|revision| revision.data).map(|data| data.0);
    let content = data.and_then(|data| pinned::compared(data, &kept.digest).ok());
    if content.is_none() {
        eprintln!("left out: the definition, which is gone, or is not what the run pinned ({})", kept.digest);
    }
    Ok(content.map(|content| Pinned { digest: digest(&content), content }))
}

/// What the run read and made, each once, and only if it is what was read or made.
async fn documents(on: &Connection, run: &Workflow, steps: &[StepRun]) -> Result<Vec<Carried>, Fault> {
    let (mut known, mut all) = (BTreeSet::new(), Vec::new());
    for (pin, step_id) in pins(steps) {
        if !known.insert(pin.name.clone()) {
            continue;
        }
        let found = on.read::<Document>("read the document", &pin.name).await?;
        let loaded = found.map(|found| Loaded::new(Arc::new(found)));
        match Content::of(&pin, loaded.as_ref()) {
            Ok(content) => all.push(carried(run, &content, step_id)),
            Err(changed) => eprintln!("left out: {}", inline(&changed.to_string(), 400)),
        }
    }
    Ok(all)
}

/// What the steps made comes first: another step may have read it.
fn pins(steps: &[StepRun]) -> Vec<(Pin, Option<String>)> {
    let mut pins = Vec::new();
    for step in steps {
        let made = content::made(step);
        let own = made.iter().flat_map(|made| [content::document_of(made), content::output_of(made)]).flatten();
        pins.extend(own.map(|pin| (pin, Some(history::label(step)))));
    }
    let read = steps.iter().flat_map(|step| &step.spec.documents);
    pins.extend(read.map(|document| (Pin::from(document), None)));
    pins
}

fn carried(run: &Workflow, content: &Content, step_id: Option<String>) -> Carried {
    let document = content.document();
    // Of an attempt that was not the last.
    let of_run = document.spec.path.clone().filter(|_| document.spec.workflow == run.metadata.name);
    Carried {
        document_type: document.spec.document_type.clone(),
        name: document.name_any(),
        scope: document.spec.scope,
        format: document.spec.format,
        step_id: step_id.or(of_run),
        digest: content.digest().to_owned(),
        content: content.text().to_owned(),
    }
}

/// A file as it was written; or which field is not as it was.
pub fn read(file: &str, text: &str) -> Result<Export, Fault> {
    let wrong = |field: &str, why: String| {
        Fault::usage(format!("{file}: {field}: {why}; kubectl lockstep export RUN writes such a file"))
    };
    if text.len() > FILE_BYTES {
        return Err(wrong("the file", format!("has {} bytes, at most {FILE_BYTES} are read", text.len())));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let export: Export = serde_path_to_error::deserialize(&mut json).map_err(|unfit| {
        let path = unfit.path().to_string();
        wrong(if path == "." { "the file" } else { &path }, inline(&unfit.inner().to_string(), 300))
    })?;
    json.end().map_err(|why| wrong("the file", inline(&why.to_string(), 300)))?;
    if export.kind != KIND {
        return Err(wrong("kind", format!("is {}, not {KIND}", inline(&export.kind, 80))));
    }
    if export.api_version != API_VERSION {
        let found = inline(&export.api_version, 80);
        return Err(wrong("apiVersion", format!("is {found}; this plugin reads {API_VERSION}")));
    }
    if let Some(pinned) = &export.definition {
        let found = digest(&pinned.content);
        if found != pinned.digest {
            let told = inline(&pinned.digest, 80);
            return Err(wrong("definition.content", format!("was changed: its digest is {found}, not {told}")));
        }
    }
    for (index, document) in export.documents.iter().enumerate() {
        let found = name::digest_bytes(document.content.as_bytes());
        if found != document.digest {
            let told = inline(&document.digest, 80);
            let field = format!("documents[{index}].content");
            return Err(wrong(&field, format!("was changed: its digest is {found}, not {told}")));
        }
    }
    Ok(export)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of the run that the pages of other verbs show.
    pub fn sample() -> Export {
        let (run, steps) = crate::cli::tree::sample::shop();
        let content = Definition {
            steps: vec![
                serde_json::from_value(serde_json::json!({"name": "plan", "agentId": "planner"})).expect("a step"),
            ],
            parameters: serde_json::from_value(serde_json::json!({"depth": 2})).expect("an object"),
            ..Definition::default()
        };
        let pinned = Pinned { digest: digest(&content), content };
        let document = |kind: &str, step_id: Option<&str>, content: &str| Carried {
            document_type: kind.to_owned(),
            name: format!("{kind}-1"),
            scope: Scope::Session,
            format: Reading::Markdown,
            step_id: step_id.map(str::to_owned),
            digest: name::digest_bytes(content.as_bytes()),
            content: content.to_owned(),
        };
        let documents = vec![document("brief", None, "# A shop"), document("plan", Some("plan"), "# A plan")];
        export(&run, &steps, Some(pinned), documents).expect("an export")
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let export = sample();
        let text = serde_json::to_string_pretty(&export).expect("JSON");
        assert_eq!(read("run.json", &text), Ok(export.clone()));
        let line = export.steps.iter().find(|line| line["StepId"] == "discovery").expect("the step");
        assert!(line["inputDigest"].is_string() && line["Status"] == "Completed", "{line}");
        assert_eq!(export.said["decisions"][0]["StepId"], "discovery", "{}", export.said);
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        let good = serde_json::to_value(sample()).expect("JSON");
        for (pointer, value, told) in [
            ("/kind", serde_json::json!("Workflow"), "kind: is Workflow"),
            ("/apiVersion", serde_json::json!("v2"), "apiVersion: is v2"),
            ("/run", serde_json::json!({"name": "a"}), "run: missing field"),
            ("/documents/1/content", serde_json::json!("# Another"), "documents[1].content: was changed"),
            ("/documents/0/scope", serde_json::json!("Galaxy"), "documents[0].scope: unknown variant"),
            ("/definition/content/steps/0/agentId", serde_json::json!("evil"), "definition.content: was changed"),
            ("/spec/templateRef", serde_json::json!(5), "spec.templateRef: invalid type"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
            let fault = read("run.json", &bad.to_string()).expect_err("refused");
            assert!(fault.code == Code::Usage && fault.text.contains(told), "{pointer}: {}", fault.text);
        }
        for (text, told) in [("", "the file: EOF"), ("kind: x", "the file: expected value"), ("{}{}", "missing field")]
        {
            let fault = read("run.json", text).expect_err("refused");
            assert!(fault.text.contains(told), "{text}: {}", fault.text);
        }
    }
}
