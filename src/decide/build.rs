//! Child objects, complete: names from identity, owners, labels; `pod` is that of an attempt.

mod pod;
mod resources;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;
use serde_json::Value;

pub use pod::PROMPT;
pub use resources::quantities;

use super::egress::{self, Network};
use super::terms::{ANNOTATION_TERMS_DIGEST, Terms};
use crate::api::agent::{Agent, Protocol};
use crate::api::definition::Definition;
use crate::api::document::{Document, DocumentSpec, OUTPUT_TYPE, Scope};
use crate::api::limits::JOB_TTL_SECONDS;
use crate::api::name::{self, LABEL_AGENT, LABEL_ATTEMPT, LABEL_EGRESS, LABEL_SESSION, LABEL_STEP_RUN, LABEL_WORKFLOW};
use crate::api::step::Format;
use crate::api::step_run::{StepRun, StepRunSpec, StepRunStatus};
use crate::api::workflow::{InlineDocument, Workflow};
use crate::definition::agent::{CheckedAgent, template, work_digest};
use crate::definition::pinned;
use crate::definition::policy::AttemptPolicy;

/// On a Job: the generation of the Agent that it was made from.
pub const ANNOTATION_AGENT_GENERATION: &str = "lockstep.dev/agent-generation";
/// On a Job: the UID of that Agent, and the digest of what shapes its work.
pub const ANNOTATION_AGENT_UID: &str = "lockstep.dev/agent-uid";
pub const ANNOTATION_AGENT_DIGEST: &str = "lockstep.dev/agent-digest";

/// What every pod must know of the installation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Installation {
    /// Image that holds the shim.
    pub image: String,
    pub image_pull_policy: String,
    pub gateway_url: String,
    pub gateway_ca: String,
    /// Where the HTTP API is reached; empty where there is none.
    pub api_url: String,
    /// The operator, as the API server names it: who makes the runs of schedules.
    pub account: String,
    /// Whether the API server writes the name of whoever decides; elsewhere people write it.
    pub stamps_names: bool,
    pub network: Network,
    /// By resource, what the sidecar of a container that is left as it is asks for and may take, and no more than the container.
    pub attendant: BTreeMap<String, Quantity>,
    /// By resource, what the container of a prompt asks for and may take.
    pub prompt: BTreeMap<String, Quantity>,
}

fn owner<K: Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.meta().name.clone().unwrap_or_default(),
        uid: object.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

/// An owner that stays, where it is deleted in the foreground, until this object is gone: so a run goes when its last pod has.
/// Whoever names one needs the right to update the owner's finalizers, where OwnerReferencesPermissionEnforcement is on.
fn waiting_owner<K: Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference { block_owner_deletion: Some(true), ..owner(object) }
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), name::label_value(value))).collect()
}

/// The pinned definition, owned by its run.
pub fn revision(workflow: &Workflow, definition: &Definition) -> ControllerRevision {
    let meta = &workflow.metadata;
    let (own, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name::revision(&own, &uid)),
            namespace: meta.namespace.clone(),
            labels: Some(labels([(LABEL_WORKFLOW, &own)])),
            owner_references: Some(vec![owner(workflow)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(pinned::data(definition))),
        revision: 1,
    }
}

/// A document that stands in the run itself.
pub fn run_document(workflow: &Workflow, inline: &InlineDocument) -> Document {
    let spec = DocumentSpec {
        document_type: inline.document_type.clone(),
        format: inline.format,
        content: inline.content.clone(),
        ..of_run(workflow)
    };
    owned_document(workflow, name::run_document, spec)
}

/// A document that a run takes over from another; its content and scope are still the other's.
pub fn copied_document(workflow: &Workflow, of: &Document, place: &str) -> Document {
    let spec = DocumentSpec { workflow: workflow.metadata.name.clone(), ..of.spec.clone() };
    owned_document(workflow, |own, uid, kind| name::copied_document(own, uid, place, kind), spec)
}

/// The internal document that carries a run's output.
pub fn output_document(workflow: &Workflow, content: String) -> Document {
    let document_type = OUTPUT_TYPE.to_owned();
    let spec = DocumentSpec { document_type, format: Format::Json, content, ..of_run(workflow) };
    owned_document(workflow, name::run_document, spec)
}

/// Of run scope.
fn of_run(workflow: &Workflow) -> DocumentSpec {
    DocumentSpec {
        scope: Scope::Workflow,
        scope_id: workflow.metadata.uid.clone(),
        workflow: workflow.metadata.name.clone(),
        ..DocumentSpec::default()
    }
}

fn owned_document(workflow: &Workflow, named: impl FnOnce(&str, &str, &str) -> String, spec: DocumentSpec) -> Document {
    let meta = &workflow.metadata;
    let (own, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
    let mut document = Document::new(&named(&own, &uid, &spec.document_type), spec);
    document.metadata.namespace.clone_from(&meta.namespace);
    document.metadata.labels = Some(labels([(LABEL_WORKFLOW, &own)]));
    document.metadata.owner_references = Some(vec![owner(workflow)]);
    document
}

/// What the StepRun of a step is called, for the item keys around it.
pub fn step_run_name(workflow: &str, uid: &str, path: &str, keys: &[String]) -> String {
    name::step_run(workflow, uid, path, keys)
}

/// A StepRun, owned by its run.
pub fn step_run(workflow: &Workflow, session: &str, spec: StepRunSpec, keys: &[String]) -> StepRun {
    let meta = &workflow.metadata;
    let (own, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
    let mut labels = labels([(LABEL_WORKFLOW, &own), (LABEL_AGENT, &spec.agent_id), (LABEL_SESSION, session)]);
    // A question and an approval have no agent to be found by.
    if spec.agent_id.is_empty() {
        labels.remove(LABEL_AGENT);
    }
    let mut step_run = StepRun::new(&step_run_name(&own, &uid, &spec.path, keys), spec);
    step_run.metadata.namespace.clone_from(&meta.namespace);
    step_run.metadata.labels = Some(labels);
    step_run.metadata.owner_references = Some(vec![waiting_owner(workflow)]);
    step_run
}

/// What the Job of an attempt is called.
pub fn job_name(step_run: &StepRun, status: &StepRunStatus, attempt: i32) -> String {
    let meta = &step_run.metadata;
    let (own, uid) = (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    name::salted_job(own, uid, attempt, status.job_salt.as_deref().unwrap_or_default())
}

/// A Job to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    pub job: Job,
    /// What is sent: the pod template has the fields, too, that are newer than our types.
    pub body: Value,
}

impl std::ops::Deref for NewJob {
    type Target = Job;

    fn deref(&self) -> &Job {
        &self.job
    }
}

/// A Job with the template as the author wrote it and nothing else: what the API server says of it, it says of the Agent,
/// by the same paths.
pub fn dry_run(agent: &Agent, around: &Installation) -> Value {
    let mut template = Value::Object(template(agent).into_owned());
    if agent.spec.prompt.is_some()
        && let Some(own) = template.pointer_mut("/spec/containers/0").and_then(Value::as_object_mut)
    {
        own.insert("image".to_owned(), around.image.clone().into());
    }
    if let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) {
        pod.insert("restartPolicy".to_owned(), "Never".into());
    }
    Value::from_iter([
        ("apiVersion", "batch/v1".into()),
        ("kind", "Job".into()),
        ("metadata", Value::from_iter([("generateName", "lockstep-check-")])),
        ("spec", Value::from_iter([("template", template)])),
    ])
}

/// The Job of the current attempt.
pub fn job(
    step_run: &StepRun,
    status: &StepRunStatus,
    agent: &CheckedAgent<'_>,
    policy: &AttemptPolicy,
    around: &Installation,
) -> NewJob {
    let meta = &step_run.metadata;
    let own = meta.name.clone().unwrap_or_default();
    let attempt = status.attempt;
    let session = meta.labels.as_ref().and_then(|l| l.get(LABEL_SESSION)).cloned().unwrap_or_default();
    let mut labels = labels([
        (LABEL_WORKFLOW, &step_run.spec.workflow.name),
        (LABEL_STEP_RUN, &own),
        (LABEL_AGENT, &step_run.spec.agent_id),
        (LABEL_ATTEMPT, &attempt.to_string()),
        (LABEL_SESSION, &session),
    ]);
    labels.extend(egress::label(agent.agent(), &around.network).map(|label| (LABEL_EGRESS.to_owned(), label)));
    let mut template = pod::template(step_run, attempt, agent, around, &labels);
    let mut annotations = made_from(agent.agent());
    let terms = Terms::of(agent.agent(), policy.timeout).pin(template.metadata.get_or_insert_default());
    annotations.extend(terms.map(|digest| (ANNOTATION_TERMS_DIGEST.to_owned(), digest)));
    let job = Job {
        metadata: ObjectMeta {
            name: Some(job_name(step_run, status, attempt)),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![waiting_owner(step_run)]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            parallelism: Some(1),
            completions: Some(1),
            backoff_limit: Some(0),
            pod_replacement_policy: Some("Failed".to_owned()),
            ttl_seconds_after_finished: Some(JOB_TTL_SECONDS),
            active_deadline_seconds: Some(policy.start_timeout + policy.timeout + 120),
            template,
            ..JobSpec::default()
        }),
        status: None,
    };
    let body = with_newer_fields(&job, agent.agent());
    NewJob { job, body }
}

fn with_newer_fields(job: &Job, agent: &Agent) -> Value {
    let mut body = serde_json::to_value(job).unwrap_or_default();
    if agent.spec.prompt.is_some() {
        return body;
    }
    let Some(template) = body.pointer_mut("/spec/template") else { return body };
    // Ours stands before those of the author, or behind them, and is not among what they wrote.
    let inits = |t: &mut Value| t.pointer_mut("/spec/initContainers").and_then(Value::as_array_mut).map(std::mem::take);
    let mut own = inits(template).unwrap_or_default();
    let at = if agent.spec.protocol == Protocol::None { own.len().saturating_sub(1) } else { 0 };
    let ours = (at < own.len()).then(|| own.remove(at));
    set(template, "initContainers", own);
    add_missing(template, &Value::Object(agent.spec.template.clone()));
    let mut all = inits(template).unwrap_or_default();
    all.splice(at..at, ours);
    set(template, "initContainers", all);
    body
}

fn set(template: &mut Value, field: &str, list: Vec<Value>) {
    if let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) {
        pod.insert(field.to_owned(), Value::Array(list));
    }
}

/// Adds what stands in `written` and not in `built`; lists are in the order in which they were written.
fn add_missing(built: &mut Value, written: &Value) {
    match (built, written) {
        (Value::Object(built), Value::Object(written)) => {
            for (key, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                match built.get_mut(key) {
                    Some(there) => add_missing(there, value),
                    None => drop(built.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(built), Value::Array(written)) => {
            built.iter_mut().zip(written).for_each(|(built, written)| add_missing(built, written));
        }
        _ => {}
    }
}

/// What an attempt's record says it ran with.
fn made_from(agent: &Agent) -> BTreeMap<String, String> {
    [
        (ANNOTATION_AGENT_GENERATION, agent.metadata.generation.unwrap_or_default().to_string()),
        (ANNOTATION_AGENT_UID, agent.metadata.uid.clone().unwrap_or_default()),
        (ANNOTATION_AGENT_DIGEST, work_digest(agent)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests;
