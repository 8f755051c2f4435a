//! What a decision reads of the objects around a run or a StepRun, and when a cache does not do. Whoever gathers them, the
//! operator or the simulation, reads them with these.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::core::ObjectMeta;

use super::build::{self, ANNOTATION_AGENT_DIGEST, ANNOTATION_AGENT_GENERATION, ANNOTATION_AGENT_UID};
use super::step_run::{Hold, JobSeen, PodSeen, SourceAgent, gone_at, was_launched};
use super::terms::ANNOTATION_TERMS_DIGEST;
use crate::api::condition::clip;
use crate::api::name::{LABEL_ATTEMPT, LABEL_STEP_RUN};
use crate::api::step_run::{AttemptResult, JobRef};
use crate::api::workflow::StepStatus;
use crate::api::{StepRun, Workflow};
use crate::definition::agent::{ATTENDANT, CONTAINER};
use crate::definition::pinned;

/// Finalizers by which the garbage collector knows how an object is to go.
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

fn goes_with(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Whether a StepRun or its run is deleted in the foreground: after all that it owns.
pub fn goes_last(step_run: &StepRun, run: Option<&Workflow>) -> bool {
    goes_with(&step_run.metadata, FOREGROUND) || run.is_some_and(|run| goes_with(&run.metadata, FOREGROUND))
}

/// Whether a run is deleted alone: what it owns is to stay.
pub fn goes_alone(run: &Workflow) -> bool {
    goes_with(&run.metadata, ORPHAN)
}

/// The ControllerRevision of that run, if the definition lies in it as older versions pinned it.
pub fn plain_revision(run: &Workflow, found: Option<ControllerRevision>) -> Option<ObjectMeta> {
    let found = found?;
    let own = controller(&found.metadata, "Workflow").is_some_and(|(_, uid)| Some(uid) == run.metadata.uid.as_deref());
    found.data.filter(|data| own && pinned::is_plain(&data.0)).map(|_| found.metadata)
}

/// How many StepRuns the status says were begun, each step's once.
pub fn begun(workflow: &Workflow) -> usize {
    let steps = workflow.status.as_ref().map_or(&[][..], |s| &s.steps);
    let of = |index: usize| {
        let step: &StepStatus = &steps[index];
        let inside = format!("{}/", step.path);
        let is_group = steps.get(index + 1).is_some_and(|next| next.path.starts_with(&inside));
        match step.counts {
            Some(counts) if !is_group => usize::try_from(counts.started).unwrap_or_default(),
            _ => usize::from(step.step_run.is_some()),
        }
    };
    (0..steps.len()).map(of).sum()
}

fn has_ended(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

pub fn identity(job: &Job) -> (String, String, i32) {
    let attempt = job.labels().get(LABEL_ATTEMPT).and_then(|a| a.parse().ok()).unwrap_or_default();
    (job.name_any(), job.uid().unwrap_or_default(), attempt)
}

pub fn pod(found: &Pod) -> PodSeen {
    let status = found.status.clone().unwrap_or_default();
    let containers = status.container_statuses.clone().unwrap_or_default();
    let agent = containers.iter().find(|c| c.name == CONTAINER);
    let waits_for = obstacle(&status);
    let terminated = agent.and_then(|c| c.state.as_ref()?.terminated.clone());
    let phase_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));

    // A sidecar that attends the agent says how far it came, and reports when the agent has ended: then ends the pod.
    let sidecar = status.init_container_statuses.iter().flatten().find(|c| c.name == ATTENDANT);
    let is_attended = sidecar.is_some();
    let marks = || {
        let both = [sidecar?.state.as_ref(), sidecar?.last_state.as_ref()];
        both.into_iter().flatten().find_map(|s| s.terminated.clone()?.message)
    };

    // The API server's deletionTimestamp has the grace period in it already.
    let gone_by = found.metadata.deletion_timestamp.clone();
    let broken =
        status.init_container_statuses.iter().flatten().find_map(|c| {
            c.state.as_ref()?.terminated.clone().filter(|t| t.exit_code != 0).map(|t| (c.name.clone(), t))
        });
    let broken = broken.map(|(name, t)| {
        told(&[&format!("container {name}"), &t.reason.unwrap_or_default(), &t.message.unwrap_or_default()])
    });
    let reason = status.reason.as_ref().map(|r| told(&[r, status.message.as_deref().unwrap_or_default()]));
    PodSeen {
        uid: found.uid().unwrap_or_default(),
        ended: phase_ended || (terminated.is_some() && !is_attended),
        disrupted: gone_by.is_some() || is_disrupted(&status),
        gone_by,
        out_of_memory: terminated
            .as_ref()
            .filter(|t| t.reason.as_deref() == Some("OOMKilled"))
            .map(|_| out_of_memory(found.spec.as_ref())),
        termination: terminated
            .filter(|_| !is_attended)
            .map(|t| t.message.unwrap_or_else(|| t.reason.unwrap_or_default()))
            .or_else(|| marks().filter(|_| is_attended))
            .or(broken)
            .or(reason)
            .unwrap_or_default(),
        image_digest: agent.and_then(|c| image_digest(&c.image_id)),
        never_starts: waits_for.as_ref().is_some_and(|(reason, _)| reason == "InvalidImageName"),
        obstacle: waits_for.map(|(_, words)| words),
    }
}

/// Whether the cluster, and not what runs in it, ends a pod: eviction, preemption, a node that goes.
fn is_disrupted(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "DisruptionTarget" && c.status == "True")
}

/// Whether the cluster takes a pod away, by deletion or otherwise.
pub fn is_disrupted_pod(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() || pod.status.as_ref().is_some_and(is_disrupted)
}

/// The limit is that of the agent's container, or of the pod.
fn out_of_memory(spec: Option<&PodSpec>) -> String {
    let memory = |of: Option<&ResourceRequirements>| of?.limits.as_ref()?.get("memory").cloned();
    let own = spec.and_then(|s| s.containers.iter().find(|c| c.name == CONTAINER));
    let limit = own.and_then(|c| memory(c.resources.as_ref())).or_else(|| memory(spec?.resources.as_ref()));
    limit.map_or_else(
        || "out of memory, without a limit of its own".to_owned(),
        |l| format!("out of memory, limit {}", l.0),
    )
}

/// Whether the agent's container has ended while another one keeps the pod.
pub fn lingers(pod: &Pod) -> bool {
    let containers = || pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let state = |c: &ContainerStatus| c.state.clone().unwrap_or_default();
    containers().any(|c| c.name == CONTAINER && state(c).terminated.is_some())
        && containers().any(|c| c.name != CONTAINER && state(c).terminated.is_none())
}

/// The attempts whose pods linger.
pub fn lingering(pods: &[Arc<Pod>]) -> Vec<i32> {
    let attempt = |pod: &Pod| pod.labels().get(LABEL_ATTEMPT)?.parse().ok();
    pods.iter().filter(|pod| lingers(pod)).filter_map(|pod| attempt(pod)).collect()
}

/// Whether its containers are yet to be set up, so that Events say more than its status.
pub fn is_set_up(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let begun = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some());
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.into_iter().any(begun)
}

/// The digest at the end of `imageID`, which each container runtime writes in its own way: `repository@sha256:...`,
/// `docker-pullable://repository@sha256:...`, or `sha256:...` alone.
fn image_digest(image_id: &str) -> Option<String> {
    let digest = image_id.rsplit('@').next().unwrap_or_default();
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| digest.to_owned())
}

/// Why a pod does not run, reason and words: those of the scheduler, or of the first container that waits for more than its
/// turn.
fn obstacle(status: &PodStatus) -> Option<(String, String)> {
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        let reason = condition.reason.clone().unwrap_or_default();
        let words = told(&[&reason, condition.message.as_deref().unwrap_or_default()]);
        return Some((reason, words));
    }
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref().map(|w| (c, w)));
    let mut telling =
        waiting.filter(|(_, w)| !matches!(w.reason.as_deref(), Some("PodInitializing" | "ContainerCreating") | None));
    telling.next().map(|(c, w)| {
        let reason = w.reason.clone().unwrap_or_default();
        let words = told(&[&format!("container {}", c.name), &reason, w.message.as_deref().unwrap_or_default()]);
        (reason, words)
    })
}

/// Kubernetes' words, as far as there are any.
fn told(words: &[&str]) -> String {
    words.iter().filter(|word| !word.trim().is_empty()).copied().collect::<Vec<_>>().join(": ")
}

/// The attempt whose Job decides by its absence: only the API server may say that it is not there.
pub fn decisive_job(step_run: &StepRun, hold: Hold) -> Option<i32> {
    let status = step_run.status.clone().unwrap_or_default();
    let cancelled = status.attempts.last().filter(|a| a.result == AttemptResult::Cancelled).map(|a| a.number);
    match (status.completed_at, cancelled) {
        (Some(_), _) => None,
        (None, Some(number)) if hold == Hold::Stopping => Some(number),
        (None, _) => was_launched(step_run).then_some(status.attempt),
    }
}

/// What the Job of an attempt is called.
pub fn job_name(step_run: &StepRun, attempt: i32) -> String {
    build::job_name(step_run, &step_run.status.clone().unwrap_or_default(), attempt)
}

/// A Job as the status names it.
pub fn job_ref(job: &Job) -> JobRef {
    let (name, uid, attempt) = identity(job);
    JobRef { attempt, name, uid, terms: job.annotations().get(ANNOTATION_TERMS_DIGEST).cloned() }
}

/// Whether the operator made this Job for that StepRun: an owner can be claimed by anybody, but by policy only the
/// operator sets our labels.
pub fn is_own_job(job: &Job, step_run: &StepRun) -> bool {
    let uid = controller(&job.metadata, "StepRun").filter(|(version, _)| version.starts_with("lockstep.dev/"));
    uid.map(|(_, uid)| uid) == step_run.metadata.uid.as_deref()
        && job.labels().get(LABEL_STEP_RUN).map(String::as_str) == step_run.metadata.name.as_deref()
}

/// Whether one of these Jobs made the pod.
pub fn is_own_pod(pod: &Pod, jobs: &BTreeSet<String>) -> bool {
    controller(&pod.metadata, "Job").is_some_and(|(version, uid)| version == "batch/v1" && jobs.contains(uid))
}

/// UIDs of the Jobs of a StepRun: those that are there, and those that its status remembers while their pods still end.
pub fn job_uids<'a>(step_run: &StepRun, jobs: impl IntoIterator<Item = &'a Job>) -> BTreeSet<String> {
    let status = step_run.status.as_ref();
    let newest = status.and_then(|s| s.job.as_ref()).map(|j| j.uid.clone());
    let before = status.iter().flat_map(|s| &s.attempts).filter_map(|a| a.job_uid.clone());
    jobs.into_iter().filter_map(ResourceExt::uid).chain(newest).chain(before).collect()
}

/// API version and UID of the controller, if it is of that kind.
fn controller<'a>(meta: &'a ObjectMeta, kind: &str) -> Option<(&'a str, &'a str)> {
    let mut owners = meta.owner_references.iter().flatten();
    owners.find(|o| o.controller == Some(true) && o.kind == kind).map(|o| (o.api_version.as_str(), o.uid.as_str()))
}

/// Who holds a name that one of ours was to have, for people: what it is owned by, when it was made, who wrote it.
pub fn holder(meta: &ObjectMeta) -> String {
    let uid = meta.uid.as_deref().unwrap_or_default();
    let owner = meta.owner_references.iter().flatten().next();
    let owner = owner.map(|o| format!(", owner {} {}", o.kind, o.name)).unwrap_or_default();
    let made = meta.creation_timestamp.as_ref().map(|at| format!(", created {}", at.0)).unwrap_or_default();
    // The first entry is whoever made it, as a rule.
    let manager = meta.managed_fields.iter().flatten().find_map(|f| f.manager.as_deref());
    let manager = manager.map(|m| format!(" by {m}")).unwrap_or_default();
    clip(&format!("uid {uid}{made}{manager}{owner}"), 400)
}

/// A Job of ours.
pub fn job(job: &Job) -> JobSeen {
    JobSeen::Present {
        uid: job.uid().unwrap_or_default(),
        created: job.creation_timestamp(),
        deleting: job.metadata.deletion_timestamp.is_some(),
        ended: has_ended(job),
        agent_generation: job.annotations().get(ANNOTATION_AGENT_GENERATION).and_then(|g| g.parse().ok()),
        ran: SourceAgent {
            uid: job.annotations().get(ANNOTATION_AGENT_UID).cloned(),
            digest: job.annotations().get(ANNOTATION_AGENT_DIGEST).cloned(),
            terms: job.annotations().get(ANNOTATION_TERMS_DIGEST).cloned(),
        },
    }
}

pub fn is_unfinished(job: &Job) -> bool {
    !has_ended(job) && job.metadata.deletion_timestamp.is_none()
}

/// Whether a pod may still do something: one that should be long gone is on a node that nobody reaches.
pub fn is_alive(pod: &Pod, now: &Time) -> bool {
    let by = pod.metadata.deletion_timestamp.as_ref();
    let unreachable = by.is_some_and(|by| now.0 >= gone_at(by).0);
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !unreachable && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// How many may.
pub fn alive(pods: &[Arc<Pod>], now: &Time) -> usize {
    pods.iter().filter(|pod| is_alive(pod, now)).count()
}

/// Whether a run waits for the pods of that StepRun of its own to end: it is cancelled, and what is open waits for its own.
pub fn waits_for_pods(run: &Workflow, step_run: &StepRun) -> bool {
    let has_ended = run.status.as_ref().is_some_and(|s| s.completed_at.is_some());
    run.spec.cancel == Some(true) && !has_ended && step_run.status.as_ref().is_some_and(|s| s.completed_at.is_some())
}

/// The newest pod of an attempt.
pub fn newest_of(attempt: i32, pods: &[Arc<Pod>]) -> Option<&Arc<Pod>> {
    let own = attempt.to_string();
    let of_attempt = pods.iter().filter(|p| p.labels().get(LABEL_ATTEMPT) == Some(&own));
    of_attempt.max_by_key(|p| p.creation_timestamp().map(|t| t.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn step_run(status: &Value) -> StepRun {
        let mut step_run = StepRun::new("shop-a", crate::api::StepRunSpec::default());
        step_run.metadata.uid = Some("s".into());
        step_run.status = serde_json::from_value(status.clone()).expect("a status");
        step_run
    }

    #[test]
    fn how_an_object_goes_is_said_by_its_finalizers() {
        for (deleting, finalizers, last, alone) in [
            (true, json!(["foregroundDeletion"]), true, false),
            (true, json!(["a.b/c", "orphan"]), false, true),
            (true, json!(["a.b/c"]), false, false),
            (true, json!(null), false, false),
            (false, json!(["foregroundDeletion", "orphan"]), false, false),
        ] {
            let at = deleting.then_some("2026-01-01T00:00:00Z");
            let meta = json!({"deletionTimestamp": at, "finalizers": finalizers});
            let meta: ObjectMeta = serde_json::from_value(meta).expect("metadata");
            let mut run = Workflow::new("shop", crate::api::WorkflowSpec::default());
            let mut step = step_run(&Value::Null);
            assert!(!goes_last(&step, Some(&run)) && !goes_last(&step, None));
            run.metadata = meta.clone();
            assert_eq!((goes_last(&step, Some(&run)), goes_alone(&run)), (last, alone), "{finalizers}");
            step.metadata = meta;
            assert_eq!(goes_last(&step, None), last, "{finalizers}");
        }
    }

    #[test]
    fn only_the_run_s_own_definition_in_the_form_of_older_versions_is_in_the_way() {
        let mut run = Workflow::new("shop", crate::api::WorkflowSpec::default());
        run.metadata.uid = Some("w".into());
        let (plain, text) = (json!({"workflow": "shop"}), json!({"definition": "{}"}));
        for (what, uid, data, expected) in [
            ("as JSON", "w", &plain, true),
            ("as a text", "w", &text, false),
            ("another run's", "v", &plain, false),
            ("nothing in it", "w", &Value::Null, false),
        ] {
            let owners = owner("Workflow", "lockstep.dev/v1alpha1", uid, true);
            let found = json!({"metadata": {"name": "shop-1", "ownerReferences": owners}, "data": data, "revision": 1});
            let found = serde_json::from_value(found).expect("a ControllerRevision");
            assert_eq!(plain_revision(&run, Some(found)).is_some(), expected, "{what}");
        }
        assert_eq!(plain_revision(&run, None), None);
    }

    #[expect(clippy::fn_params_excessive_bools, reason = "a column of the tables")]
    fn owner(kind: &str, version: &str, uid: &str, controller: bool) -> Value {
        json!([{"apiVersion": version, "kind": kind, "name": "n", "uid": uid, "controller": controller}])
    }

    #[test]
    fn an_owner_that_is_claimed_makes_no_job_of_ours() {
        let v1 = "lockstep.dev/v1alpha1";
        let ours = || json!({LABEL_STEP_RUN: "shop-a"});
        for (what, labels, owners, own) in [
            ("the operator's", ours(), owner("StepRun", v1, "s", true), true),
            ("a stranger's: our labels only the operator sets", json!({}), owner("StepRun", v1, "s", true), false),
            ("of another StepRun", json!({LABEL_STEP_RUN: "shop-b"}), owner("StepRun", v1, "s", true), false),
            ("of another of that name", ours(), owner("StepRun", v1, "t", true), false),
            ("not controlled", ours(), owner("StepRun", v1, "s", false), false),
            ("of another kind", ours(), owner("Workflow", v1, "s", true), false),
            ("of another group", ours(), owner("StepRun", "example.com/v1", "s", true), false),
            ("nobody's", ours(), json!([]), false),
        ] {
            let job = json!({"metadata": {"name": "j", "labels": labels, "ownerReferences": owners}});
            let job: Job = serde_json::from_value(job).expect("a Job");
            assert_eq!(is_own_job(&job, &step_run(&json!(null))), own, "{what}");
        }
    }

    #[test]
    fn a_pod_counts_by_the_uid_of_its_job() {
        let status = json!({"attempt": 3, "job": {"attempt": 3, "name": "n", "uid": "third"}, "attempts": [
            {"number": 2, "round": 1, "result": "Retryable", "completedAt": "1970-01-01T00:00:00Z", "jobUID": "second"}]});
        let cached: Job = serde_json::from_value(json!({"metadata": {"name": "n", "uid": "seen"}})).expect("a Job");
        let jobs = job_uids(&step_run(&status), [&cached]);
        assert_eq!(jobs.iter().map(String::as_str).collect::<Vec<_>>(), ["second", "seen", "third"]);
        for (what, owners, own) in [
            ("of a Job that is there", owner("Job", "batch/v1", "seen", true), true),
            ("of the attempt's Job", owner("Job", "batch/v1", "third", true), true),
            ("of the Job of an attempt before, gone by now", owner("Job", "batch/v1", "second", true), true),
            ("of somebody's Job, with our labels", owner("Job", "batch/v1", "other", true), false),
            ("of a ReplicaSet", owner("ReplicaSet", "apps/v1", "third", true), false),
            ("not controlled", owner("Job", "batch/v1", "third", false), false),
            ("nobody's", json!([]), false),
        ] {
            let pod =
                json!({"metadata": {"name": "p", "labels": {LABEL_STEP_RUN: "shop-a"}, "ownerReferences": owners}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(is_own_pod(&pod, &jobs), own, "{what}");
        }
    }

    #[test]
    fn the_image_of_the_agents_container_is_known_by_its_digest() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (image_id, expected) in [
            (format!("registry.example/agents/writer@{digest}"), Some(digest.as_str())),
            (format!("docker-pullable://registry.example/agents/writer@{digest}"), Some(digest.as_str())),
            (digest.clone(), Some(digest.as_str())),
            (format!("{digest}00"), None),
            ("registry.example/agents/writer:v1".to_owned(), None),
            (String::new(), None),
        ] {
            let container = |name: &str, image_id: &str| json!({"name": name, "image": "i", "imageID": image_id, "ready": true, "restartCount": 0});
            let other = format!("other@sha256:{}", "ff".repeat(32));
            let statuses = json!([container("sidecar", &other), container(CONTAINER, &image_id)]);
            let found: Pod = serde_json::from_value(json!({"status": {"containerStatuses": statuses}})).expect("a pod");
            assert_eq!(pod(&found).image_digest.as_deref(), expected, "{image_id}");
        }
    }

    /// Container and state, as a node tells them.
    fn told(containers: &[(&str, Value)]) -> Value {
        let one = |(name, state): &(&str, Value)| json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state});
        containers.iter().map(one).collect()
    }

    fn ended() -> Value {
        json!({"terminated": {"exitCode": 0}})
    }

    #[test]
    fn a_pod_lingers_while_another_container_keeps_it() {
        let running = || json!({"running": {}});
        for (what, containers, lingers_on) in [
            ("the agent runs", vec![(CONTAINER, running()), ("mesh", running())], false),
            ("only a sidecar runs", vec![(CONTAINER, ended()), ("mesh", running())], true),
            ("a sidecar waits", vec![(CONTAINER, ended()), ("mesh", json!({"waiting": {}}))], true),
            ("all have ended", vec![("mesh", ended()), (CONTAINER, ended())], false),
            ("the agent is alone", vec![(CONTAINER, ended())], false),
            ("nothing is known", vec![], false),
        ] {
            let status = json!({"phase": "Running", "containerStatuses": told(&containers)});
            let pod = json!({"metadata": {"labels": {LABEL_ATTEMPT: "3"}}, "status": status});
            let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).expect("a pod"));
            assert_eq!(lingers(&pod), lingers_on, "{what}");
            assert_eq!(lingering(&[pod]), if lingers_on { vec![3] } else { vec![] }, "{what}");
        }
    }

    #[test]
    fn what_the_cluster_does_to_a_pod_is_seen() {
        let limits = |memory: &str| json!({"limits": {"memory": memory}});
        let out_of_memory = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "claimed"}});
        let read = |value: Value| pod(&serde_json::from_value(value).expect("a pod"));
        for (spec, words) in [
            (
                json!({"containers": [{"name": "mesh", "resources": limits("1Gi")}, {"name": CONTAINER, "resources": limits("64Mi")}]}),
                "out of memory, limit 64Mi",
            ),
            (json!({"containers": [{"name": CONTAINER}], "resources": limits("2Gi")}), "out of memory, limit 2Gi"),
            (json!({"containers": [{"name": CONTAINER}]}), "out of memory, without a limit of its own"),
        ] {
            let seen = read(
                json!({"spec": spec, "status": {"containerStatuses": told(&[(CONTAINER, out_of_memory.clone())])}}),
            );
            assert_eq!((seen.out_of_memory.as_deref(), seen.ended), (Some(words), true));
        }
        let target = |status: &str| json!({"status": {"conditions": [{"type": "DisruptionTarget", "status": status}]}});
        for (what, value, disrupted) in [
            ("deleted", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), true),
            ("evicted", target("True"), true),
            ("not evicted any more", target("False"), false),
            ("left alone", json!({}), false),
        ] {
            assert_eq!(read(value).disrupted, disrupted, "{what}");
        }
        for (reason, never) in [("InvalidImageName", true), ("ImagePullBackOff", false)] {
            let waits = json!({"waiting": {"reason": reason, "message": "m"}});
            let seen = read(json!({"status": {"containerStatuses": told(&[(CONTAINER, waits)])}}));
            assert_eq!(seen.obstacle, Some(format!("container {CONTAINER}: {reason}: m")));
            assert_eq!(seen.never_starts, never, "{reason}");
        }
        // What says no more than a reason ends with it.
        let waits = json!({"waiting": {"reason": "CreateContainerError"}});
        let seen = read(json!({"status": {"containerStatuses": told(&[(CONTAINER, waits)])}}));
        assert_eq!(seen.obstacle, Some(format!("container {CONTAINER}: CreateContainerError")));
        let unscheduled = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]);
        let seen = read(json!({"status": {"conditions": unscheduled}}));
        assert_eq!(seen.obstacle.as_deref(), Some("SchedulingGated"));
        let failed = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
        let seen = read(json!({"status": {"phase": "Failed", "initContainerStatuses": told(&[("fetch", failed)])}}));
        assert_eq!(seen.termination, "container fetch: Error");
        assert_eq!(read(json!({"status": {"phase": "Failed", "reason": "Evicted"}})).termination, "Evicted");
    }

    #[test]
    fn who_holds_a_name_is_told_in_words() {
        let meta = json!({"name": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": owner("CronJob", "batch/v1", "c", true), "managedFields": [{"manager": "kubectl-create"}]});
        let meta: ObjectMeta = serde_json::from_value(meta).expect("metadata");
        assert_eq!(holder(&meta), "uid u, created 2026-01-01T00:00:00Z by kubectl-create, owner CronJob n");
        assert_eq!(holder(&ObjectMeta::default()), "uid ");
    }

    #[test]
    fn a_pod_that_is_attended_ends_after_its_agent() {
        let seen = |phase: &str, attendant: serde_json::Value| {
            let found = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"},
                "status": {"phase": phase,
                    "initContainerStatuses": [{"name": ATTENDANT, "state": attendant, "ready": true, "restartCount": 0, "image": "", "imageID": ""}],
                    "containerStatuses": [{"name": "agent", "state": {"terminated": {"exitCode": 0, "message": "{\"n\": 1}"}},
                        "ready": false, "restartCount": 0, "image": "", "imageID": ""}]}}))
            .expect("a pod");
            let seen = pod(&found);
            (seen.ended, seen.termination)
        };
        assert!(!seen("Running", json!({"running": {}})).0, "the sidecar is about to report");
        let marks = json!({"terminated": {"exitCode": 0, "message": "claimed\nstarted\n"}});
        assert_eq!(seen("Succeeded", marks), (true, "claimed\nstarted\n".to_owned()), "not the agent's own words");
    }
}
