//! Child objects, complete: names from identity, owners, labels; the pod of an attempt with the shim in it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, EnvVar, PodTemplateSpec, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;

use crate::api::agent::Agent;
use crate::api::definition::Definition;
use crate::api::document::{Document, DocumentSpec, OUTPUT_TYPE, Scope};
use crate::api::limits::JOB_TTL_SECONDS;
use crate::api::name::{self, LABEL_AGENT, LABEL_ATTEMPT, LABEL_SESSION, LABEL_STEP_RUN, LABEL_WORKFLOW};
use crate::api::step::Format;
use crate::api::step_run::{StepRun, StepRunSpec, StepRunStatus};
use crate::api::workflow::{InlineDocument, Workflow};
use crate::definition::agent::{CONTAINER, CheckedAgent, work_digest};
use crate::definition::policy::AttemptPolicy;
use crate::mutant::{self, Mutant};
use crate::protocol::{env, path};

/// On a Job: the generation of the Agent that it was made from.
pub const ANNOTATION_AGENT_GENERATION: &str = "lockstep.dev/agent-generation";
/// On a Job: the UID of that Agent, and the digest of what shapes its work.
pub const ANNOTATION_AGENT_UID: &str = "lockstep.dev/agent-uid";
pub const ANNOTATION_AGENT_DIGEST: &str = "lockstep.dev/agent-digest";
const VOLUME: &str = "lockstep";
/// Where the volume lies in the init container: the image has a file where the agent has the folder.
const INSTALL_ROOT: &str = "/shared";
const TOKEN_VOLUME: &str = "lockstep-token";
const TOKEN_SECONDS: i64 = 3600;

/// What every pod must know of the installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Image that holds the shim.
    pub image: String,
    pub image_pull_policy: String,
    pub gateway_url: String,
    pub gateway_ca: String,
}

fn owner<K: Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.meta().name.clone().unwrap_or_default(),
        uid: object.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        // Blocking would need the right to update finalizers where OwnerReferencesPermissionEnforcement is on.
        block_owner_deletion: None,
    }
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
        data: Some(RawExtension(serde_json::to_value(definition).unwrap_or_default())),
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
    let uid = if mutant::on(Mutant::NameWithoutRun) { workflow } else { uid };
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
    step_run.metadata.owner_references = Some(vec![owner(workflow)]);
    step_run
}

/// What the Job of an attempt is called.
pub fn job_name(step_run: &StepRun, status: &StepRunStatus, attempt: i32) -> String {
    let meta = &step_run.metadata;
    let (own, uid) = (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    name::salted_job(own, uid, attempt, status.job_salt.as_deref().unwrap_or_default())
}

/// The Job of the current attempt.
pub fn job(
    step_run: &StepRun,
    status: &StepRunStatus,
    agent: &CheckedAgent<'_>,
    policy: &AttemptPolicy,
    around: &Surroundings,
) -> Job {
    let meta = &step_run.metadata;
    let own = meta.name.clone().unwrap_or_default();
    let attempt = status.attempt;
    let session = meta.labels.as_ref().and_then(|l| l.get(LABEL_SESSION)).cloned().unwrap_or_default();
    let labels = labels([
        (LABEL_WORKFLOW, &step_run.spec.workflow.name),
        (LABEL_STEP_RUN, &own),
        (LABEL_AGENT, &step_run.spec.agent_id),
        (LABEL_ATTEMPT, &attempt.to_string()),
        (LABEL_SESSION, &session),
    ]);
    let template = pod_template(step_run, attempt, agent, around, &labels);
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(step_run, status, attempt)),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: Some(made_from(agent.agent())),
            owner_references: Some(vec![owner(step_run)]),
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

fn pod_template(
    step_run: &StepRun,
    attempt: i32,
    agent: &CheckedAgent<'_>,
    around: &Surroundings,
    labels: &BTreeMap<String, String>,
) -> PodTemplateSpec {
    let (mut meta, mut pod) = agent.pod();
    meta.labels.get_or_insert_default().extend(labels.clone());
    pod.restart_policy = Some("Never".to_owned());
    pod.automount_service_account_token = Some(false);
    pod.enable_service_links.get_or_insert(false);
    pod.volumes.get_or_insert_default().extend(volumes(step_run, attempt));
    let inherited = pod.containers.iter().find(|c| c.name == CONTAINER).and_then(|c| c.security_context.clone());
    pod.init_containers.get_or_insert_default().insert(0, install(around, inherited.as_ref()));
    // A checked Agent has that container; Kubernetes has no two of one name.
    for container in pod.containers.iter_mut().filter(|c| c.name == CONTAINER) {
        wrap(container, step_run, attempt, around);
    }
    PodTemplateSpec { metadata: Some(meta), spec: Some(pod) }
}

fn volumes(step_run: &StepRun, attempt: i32) -> [Volume; 2] {
    let uid = step_run.metadata.uid.as_deref().unwrap_or_default();
    let token = ServiceAccountTokenProjection {
        audience: Some(name::audience(uid, attempt)),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".to_owned(),
    };
    [
        Volume { name: VOLUME.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() },
        Volume {
            name: TOKEN_VOLUME.to_owned(),
            projected: Some(ProjectedVolumeSource {
                default_mode: Some(0o444),
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(token),
                    ..VolumeProjection::default()
                }]),
            }),
            ..Volume::default()
        },
    ]
}

/// Copies the shim into the pod. Hardened by itself, so that it passes where the agent's own container does.
fn install(around: &Surroundings, inherited: Option<&SecurityContext>) -> Container {
    let limits: BTreeMap<String, Quantity> =
        [("memory", "32Mi")].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into();
    let requests: BTreeMap<String, Quantity> =
        [("cpu", "10m"), ("memory", "16Mi")].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into();
    Container {
        name: "lockstep-install".to_owned(),
        image: Some(around.image.clone()),
        image_pull_policy: Some(around.image_pull_policy.clone()).filter(|p| !p.is_empty()),
        command: Some(vec!["/lockstep-shim".to_owned(), "install".to_owned(), INSTALL_ROOT.to_owned()]),
        resources: Some(ResourceRequirements { limits: Some(limits), requests: Some(requests), claims: None }),
        volume_mounts: Some(vec![VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: INSTALL_ROOT.to_owned(),
            ..VolumeMount::default()
        }]),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            run_as_user: inherited.and_then(|c| c.run_as_user),
            run_as_group: inherited.and_then(|c| c.run_as_group),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// Puts the shim before the agent's own command.
fn wrap(container: &mut Container, step_run: &StepRun, attempt: i32, around: &Surroundings) {
    let mut command = vec![path::SHIM.to_owned(), "run".to_owned(), "--".to_owned()];
    command.extend(container.command.take().into_iter().flatten());
    container.command = Some(command);
    container.termination_message_path = Some(path::TERMINATION_LOG.to_owned());
    container.termination_message_policy = Some("File".to_owned());
    container.volume_mounts.get_or_insert_default().extend([
        VolumeMount { name: VOLUME.to_owned(), mount_path: path::ROOT.to_owned(), ..VolumeMount::default() },
        VolumeMount {
            name: TOKEN_VOLUME.to_owned(),
            mount_path: "/var/run/secrets/lockstep.dev".to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        },
    ]);
    let variables = container.env.get_or_insert_default();
    let secret: Vec<&str> = variables
        .iter()
        .filter(|v| v.value_from.as_ref().is_some_and(|f| f.secret_key_ref.is_some()))
        .map(|v| v.name.as_str())
        .collect();
    let secret = secret.join(",");
    let meta = &step_run.metadata;
    let id = format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    for (key, value) in [
        (env::GATEWAY, around.gateway_url.as_str()),
        (env::GATEWAY_CA, around.gateway_ca.as_str()),
        (env::STEP_RUN, id.as_str()),
        (env::STEP_RUN_UID, meta.uid.as_deref().unwrap_or_default()),
        (env::ATTEMPT, attempt.to_string().as_str()),
        (env::SECRET_NAMES, secret.as_str()),
    ] {
        variables.retain(|v| v.name != key);
        variables.push(EnvVar { name: key.to_owned(), value: Some(value.to_owned()), value_from: None });
    }
}

#[cfg(test)]
mod tests;
