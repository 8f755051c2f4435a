//! The caches of everything that decisions read, one watch a kind.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::core::ObjectMeta;

use super::budgets::Budgets;
use super::cache::{Cache, Keeping, Table, Watched};
use crate::api::name::{LABEL_STEP_RUN, LABEL_TRIGGER};
use crate::api::{Agent, Document, StepRun, Trigger, Workflow, WorkflowTemplate};
use crate::decide::{document, seen};
use crate::definition::agent::CONTAINER;

pub struct World {
    pub agents: Arc<Cache<Agent>>,
    pub templates: Arc<Cache<WorkflowTemplate>>,
    /// Under their namespace.
    pub triggers: Arc<Cache<Trigger>>,
    /// Under `open NAMESPACE` until they are over, and under `trigger NAMESPACE/NAME`.
    pub workflows: Arc<Cache<Workflow>>,
    /// Under `NAMESPACE/UID` of their Workflow; until they have ended also under `open NAMESPACE/UID` of it, and under
    /// `agent NAMESPACE/NAME`.
    pub step_runs: Arc<Cache<StepRun>>,
    /// Under their namespace; contents are fetched when needed.
    pub documents: Arc<Cache<Document>>,
    /// Under the UID of their StepRun.
    pub jobs: Arc<Cache<Job>>,
    /// Under `NAMESPACE/STEPRUN`.
    pub pods: Arc<Cache<Pod>>,
    pub budgets: Budgets,
}

impl Default for World {
    fn default() -> Self {
        Self {
            agents: kept(Keeping::default()),
            templates: kept(Keeping::default()),
            triggers: kept(Keeping { keys: |t| t.namespace().into_iter().collect(), ..Keeping::default() }),
            workflows: kept(Keeping { keys: workflow_keys, ..Keeping::default() }),
            step_runs: kept(Keeping { keys: step_run_keys, ..Keeping::default() }),
            documents: kept(Keeping {
                keys: |d| d.namespace().into_iter().collect(),
                rank: document::key,
                strip: |d| d.spec.content.clear(),
            }),
            jobs: kept(Keeping { keys: job_keys, strip: strip_job, ..Keeping::default() }),
            pods: kept(Keeping { keys: pod_keys, strip: strip_pod, ..Keeping::default() }),
            budgets: Budgets::default(),
        }
    }
}

impl World {
    /// The Jobs of a StepRun.
    pub fn jobs_of(&self, step_run: &StepRun) -> Vec<Arc<Job>> {
        let mut jobs = self.jobs.under(&step_run.uid().unwrap_or_default());
        jobs.retain(|job| seen::is_own_job(job, step_run));
        jobs
    }

    /// The pods that its Jobs made; what only bears its labels is none.
    pub fn pods_of(&self, step_run: &StepRun, jobs: &[Arc<Job>]) -> Vec<Arc<Pod>> {
        let made = seen::job_uids(step_run, jobs.iter().map(AsRef::as_ref));
        let of = format!("{}/{}", step_run.namespace().unwrap_or_default(), step_run.name_any());
        let mut pods = self.pods.under(&of);
        pods.retain(|pod| seen::is_own_pod(pod, &made));
        pods
    }

    /// The pods that a cancelled run waits for, besides those that its open steps wait for themselves.
    pub fn pods_ending(&self, run: &Workflow, step_runs: &Table<StepRun>, now: &Time) -> usize {
        if run.spec.cancel != Some(true) {
            return 0;
        }
        let completed = step_runs.values().filter(|step_run| seen::waits_for_pods(run, step_run));
        completed.map(|step_run| seen::alive(&self.pods_of(step_run, &self.jobs_of(step_run)), now)).sum()
    }

    /// The StepRuns of a run that have not ended.
    pub fn open_step_runs(&self, run: &Workflow) -> Vec<Arc<StepRun>> {
        let run = run_key(&run.namespace().unwrap_or_default(), &run.uid().unwrap_or_default());
        self.step_runs.under(&open_key(&run))
    }

    /// A StepRun came, changed or went; counted is what the cache says of it now.
    pub fn hear_usage(&self, step_run: &StepRun) {
        let (namespace, uid) = (step_run.namespace().unwrap_or_default(), step_run.uid().unwrap_or_default());
        let there = self.step_runs.get(&namespace, &step_run.name_any()).filter(|s| s.uid().as_ref() == Some(&uid));
        let run = run_key(&namespace, &step_run.spec.workflow.uid);
        self.budgets.hear(&run, &uid, there.as_ref().and_then(|there| there.status.as_ref()));
    }
}

fn kept<K: Watched>(keeping: Keeping<K>) -> Arc<Cache<K>> {
    Arc::new(Cache::new(keeping))
}

fn job_keys(job: &Job) -> Vec<String> {
    controller_uid(&job.metadata, "StepRun").into_iter().collect()
}

fn workflow_keys(workflow: &Workflow) -> Vec<String> {
    let namespace = workflow.namespace().unwrap_or_default();
    let trigger = workflow.labels().get(LABEL_TRIGGER).map(|trigger| trigger_key(&namespace, trigger));
    let is_over = workflow.status.as_ref().is_some_and(|s| s.completed_at.is_some());
    let open = (!is_over).then(|| format!("open {namespace}"));
    trigger.into_iter().chain(open).collect()
}

/// Under what the runs of a Trigger are kept.
pub fn trigger_key(namespace: &str, name: &str) -> String {
    format!("trigger {namespace}/{name}")
}

fn step_run_keys(step_run: &StepRun) -> Vec<String> {
    let namespace = step_run.namespace().unwrap_or_default();
    let run = controller_uid(&step_run.metadata, "Workflow").map(|uid| run_key(&namespace, &uid));
    let mut keys: Vec<String> = run.clone().into_iter().collect();
    let is_open = step_run.status.as_ref().is_none_or(|s| s.completed_at.is_none());
    if is_open {
        keys.extend(run.map(|run| open_key(&run)));
        keys.push(format!("agent {namespace}/{}", step_run.spec.agent_id));
    }
    keys
}

/// Under what the StepRuns of a run are kept that have not ended.
fn open_key(run: &str) -> String {
    format!("open {run}")
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
    // Of its spec only what an end for lack of memory is told with.
    if let Some(spec) = pod.spec.take() {
        let containers = spec.containers.into_iter().filter(|c| c.name == CONTAINER);
        let kept = |c: Container| Container { name: c.name, resources: c.resources, ..Container::default() };
        let containers = containers.map(kept).collect();
        pod.spec = Some(PodSpec { containers, resources: spec.resources, ..PodSpec::default() });
    }
    pod.metadata.annotations = None;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::definition::agent::ATTENDANT;

    #[test]
    fn what_is_seen_of_a_pod_outlives_the_cache() {
        let state = |state: serde_json::Value, name: &str| {
            json!({"name": name, "state": state, "ready": true, "restartCount": 0, "image": "i",
                "imageID": "example.com/i@sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"})
        };
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        for (phase, sidecar) in [
            ("Running", json!({"running": {}})),
            ("Failed", json!({"terminated": {"exitCode": 1, "message": "claimed\nstarted\n"}})),
        ] {
            let mut pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {
                    "initContainers": [{"name": ATTENDANT, "image": "i", "restartPolicy": "Always"}],
                    "containers": [{"name": CONTAINER, "image": "i", "resources": {"limits": {"memory": "64Mi"}}}]},
                "status": {"phase": phase,
                    "conditions": [{"type": "DisruptionTarget", "status": "True"}],
                    "initContainerStatuses": [state(sidecar, ATTENDANT)],
                    "containerStatuses": [state(killed.clone(), CONTAINER)]}}))
            .expect("a pod");
            let whole = seen::pod(&pod);
            assert!(whole.out_of_memory.is_some() && whole.ended == (phase == "Failed"), "{whole:?}");
            strip_pod(&mut pod);
            assert_eq!(seen::pod(&pod), whole, "{phase}");
        }
    }
}
