//! The caches of everything that decisions read, one watch a kind.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::ObjectMeta;

use super::cache::{Cache, Keeping, Watched};
use crate::api::name::LABEL_STEP_RUN;
use crate::api::{Agent, Document, StepRun, Workflow, WorkflowTemplate};
use crate::decide::document;

pub struct World {
    pub agents: Arc<Cache<Agent>>,
    pub templates: Arc<Cache<WorkflowTemplate>>,
    pub workflows: Arc<Cache<Workflow>>,
    /// Under `NAMESPACE/UID` of their Workflow, and under `agent NAMESPACE/NAME`.
    pub step_runs: Arc<Cache<StepRun>>,
    /// Under their namespace; contents are fetched when needed.
    pub documents: Arc<Cache<Document>>,
    /// Under the UID of their StepRun.
    pub jobs: Arc<Cache<Job>>,
    /// Under `NAMESPACE/STEPRUN`.
    pub pods: Arc<Cache<Pod>>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            agents: kept(Keeping::default()),
            templates: kept(Keeping::default()),
            workflows: kept(Keeping { keys: workflow_keys, ..Keeping::default() }),
            step_runs: kept(Keeping { keys: step_run_keys, ..Keeping::default() }),
            documents: kept(Keeping {
                keys: |d| d.namespace().into_iter().collect(),
                rank: document::key,
                strip: |d| d.spec.content.clear(),
            }),
            jobs: kept(Keeping { keys: job_keys, strip: strip_job, ..Keeping::default() }),
            pods: kept(Keeping { keys: pod_keys, strip: strip_pod, ..Keeping::default() }),
        }
    }
}

fn kept<K: Watched>(keeping: Keeping<K>) -> Arc<Cache<K>> {
    Arc::new(Cache::new(keeping))
}

fn job_keys(job: &Job) -> Vec<String> {
    controller_uid(&job.metadata, "StepRun").into_iter().collect()
}

/// Key of the Workflows that wait for, or read, something of that name: `template NAMESPACE/NAME`, `agent ...`, `documents NAMESPACE`.
fn workflow_keys(workflow: &Workflow) -> Vec<String> {
    let namespace = workflow.namespace().unwrap_or_default();
    if workflow.status.as_ref().is_some_and(|s| s.completed_at.is_some()) {
        return Vec::new();
    }
    vec![format!("open {namespace}")]
}

fn step_run_keys(step_run: &StepRun) -> Vec<String> {
    let namespace = step_run.namespace().unwrap_or_default();
    let run = controller_uid(&step_run.metadata, "Workflow");
    let mut keys: Vec<String> = run.map(|uid| run_key(&namespace, &uid)).into_iter().collect();
    let open = step_run.status.as_ref().is_none_or(|s| s.completed_at.is_none());
    if open {
        keys.push(format!("agent {namespace}/{}", step_run.spec.agent_id));
    }
    keys
}

/// Under what the StepRuns of a run are kept: an owner of another namespace is none.
pub fn run_key(namespace: &str, uid: &str) -> String {
    format!("{namespace}/{uid}")
}

fn pod_keys(pod: &Pod) -> Vec<String> {
    let step_run = pod.labels().get(LABEL_STEP_RUN).cloned();
    step_run.map(|name| format!("{}/{name}", pod.namespace().unwrap_or_default())).into_iter().collect()
}

/// UID of the controller, if it is of that kind of ours.
pub fn controller_uid(meta: &ObjectMeta, kind: &str) -> Option<String> {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    owners
        .iter()
        .find(|o| o.controller == Some(true) && o.kind == kind && o.api_version.starts_with("lockstep.dev/"))
        .map(|o| o.uid.clone())
}

fn strip_job(job: &mut Job) {
    if let Some(spec) = &mut job.spec {
        spec.template = k8s_openapi::api::core::v1::PodTemplateSpec::default();
    }
}

fn strip_pod(pod: &mut Pod) {
    pod.spec = None;
    pod.metadata.annotations = None;
}
