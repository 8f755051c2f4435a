//! What a decision reads of the objects around a run or a StepRun, and when a cache does not do. Whoever gathers them, the
//! operator or the simulation, reads them with these.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::agent::CONTAINER;
use super::build::{ANNOTATION_AGENT_DIGEST, ANNOTATION_AGENT_GENERATION, ANNOTATION_AGENT_UID};
use super::step_run::{Hold, JobSeen, PodSeen, Ran, was_launched};
use crate::api::name::LABEL_ATTEMPT;
use crate::api::step_run::AttemptResult;
use crate::api::workflow::StepStatus;
use crate::api::{StepRun, Workflow};

/// Seconds after which a pod that should be gone is not waited for.
const UNREACHABLE_SECONDS: i64 = 60;

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

pub fn pod(pod: &Pod) -> PodSeen {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.clone().unwrap_or_default();
    let terminated = containers.iter().find(|c| c.name == CONTAINER).and_then(|c| c.state.as_ref()?.terminated.clone());
    let phase_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));

    // The API server's deletionTimestamp has the grace period in it already.
    let gone_by = pod.metadata.deletion_timestamp.clone();
    let broken =
        status.init_container_statuses.iter().flatten().find_map(|c| {
            c.state.as_ref()?.terminated.clone().filter(|t| t.exit_code != 0).map(|t| (c.name.clone(), t))
        });
    let broken = broken.map(|(name, t)| {
        format!("container {name}: {}: {}", t.reason.unwrap_or_default(), t.message.unwrap_or_default())
    });
    let reason = status.reason.clone().map(|r| format!("{r}: {}", status.message.clone().unwrap_or_default()));
    PodSeen {
        uid: pod.uid().unwrap_or_default(),
        ended: phase_ended || terminated.is_some(),
        gone_by,
        termination: terminated
            .map(|t| t.message.unwrap_or_else(|| t.reason.unwrap_or_default()))
            .or(broken)
            .or(reason)
            .unwrap_or_default(),
        obstacle: obstacle(&status),
    }
}

/// Why a pod does not run: the scheduler's words, or those of the first container that waits for more than its turn.
fn obstacle(status: &PodStatus) -> Option<String> {
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!(
            "{}: {}",
            condition.reason.as_deref().unwrap_or_default(),
            condition.message.as_deref().unwrap_or_default()
        ));
    }
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref().map(|w| (c, w)));
    let mut telling =
        waiting.filter(|(_, w)| !matches!(w.reason.as_deref(), Some("PodInitializing" | "ContainerCreating") | None));
    telling.next().map(|(c, w)| {
        format!(
            "container {}: {}: {}",
            c.name,
            w.reason.as_deref().unwrap_or_default(),
            w.message.as_deref().unwrap_or_default()
        )
    })
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

/// A Job of ours.
pub fn job(job: &Job) -> JobSeen {
    JobSeen::Present {
        created: job.creation_timestamp(),
        deleting: job.metadata.deletion_timestamp.is_some(),
        ended: has_ended(job),
        agent_generation: job.annotations().get(ANNOTATION_AGENT_GENERATION).and_then(|g| g.parse().ok()),
        ran: Ran {
            uid: job.annotations().get(ANNOTATION_AGENT_UID).cloned(),
            digest: job.annotations().get(ANNOTATION_AGENT_DIGEST).cloned(),
        },
    }
}

pub fn is_unfinished(job: &Job) -> bool {
    !has_ended(job) && job.metadata.deletion_timestamp.is_none()
}

/// Whether a pod may still do something: one that should be long gone is on a node that nobody reaches.
pub fn is_alive(pod: &Pod, now: &Time) -> bool {
    let by = pod.metadata.deletion_timestamp.as_ref();
    let unreachable = by.is_some_and(|by| now.0.duration_since(by.0).as_secs() > UNREACHABLE_SECONDS);
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !unreachable && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// The newest pod of an attempt.
pub fn newest_of(attempt: i32, pods: &[Arc<Pod>]) -> Option<&Arc<Pod>> {
    let own = attempt.to_string();
    let of_attempt = pods.iter().filter(|p| p.labels().get(LABEL_ATTEMPT) == Some(&own));
    of_attempt.max_by_key(|p| p.creation_timestamp().map(|t| t.0))
}
