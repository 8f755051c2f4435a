//! After the end: the status speaks of the newest generation, and `ttlSecondsAfterFinished` takes away what the run
//! made. The run itself goes only where no Git tool would make it again, and one of an event only when that is not to
//! be known any more.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;

use super::{Observed, Plan};
use crate::api::document::Scope;
use crate::api::name::LABEL_MADE_BY;
use crate::api::workflow::{Workflow, WorkflowStatus};
use crate::decide::plan::DeletableKind;
use crate::decide::{Effect, status, trigger};

/// Deletes of one pass at most.
const AT_ONCE: usize = 200;

/// How long what a finished run made is kept still; nothing where it is not over, or is kept for good.
fn left(run: &Workflow, status: &WorkflowStatus, now: &Time) -> Option<Duration> {
    kept_for(run.spec.ttl_seconds_after_finished, status.completed_at.as_ref(), now)
}

/// The same by the time that it is kept, and by its end.
pub fn kept_for(ttl: Option<i64>, end: Option<&Time>, now: &Time) -> Option<Duration> {
    let (ttl, end) = (ttl?, end?);
    let due = end.0.saturating_add(SignedDuration::from_secs(ttl)).unwrap_or(end.0);
    Some(Duration::try_from(due.duration_since(now.0)).unwrap_or(Duration::ZERO))
}

/// Whether what the run made is to go now.
pub fn is_due(run: &Workflow, now: &Time) -> bool {
    run.status.as_ref().and_then(|status| left(run, status, now)) == Some(Duration::ZERO)
}

pub(super) fn finished(o: &Observed, before: &WorkflowStatus) -> Plan<WorkflowStatus> {
    let mut plan = expired(o, before);
    let goes = plan.effects.iter().any(|effect| matches!(effect, Effect::Delete { what: DeletableKind::Workflow, .. }));
    // Nothing that may still change changes the end. Tools wait until somebody has looked at it all the same.
    plan.status = status::still(before, o.workflow.metadata.generation).filter(|_| !goes);
    plan
}

/// What is taken away now that its time has passed.
fn expired(o: &Observed, status: &WorkflowStatus) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let meta = &o.workflow.metadata;
    match left(&o.workflow, status, &o.now) {
        None => return plan,
        Some(Duration::ZERO) => {}
        Some(left) => {
            plan.look_again(left);
            return plan;
        }
    }
    let remove = |what, name: Option<&String>, uid: Option<&String>| Effect::Delete {
        what,
        name: name.cloned().unwrap_or_default(),
        uid: uid.cloned().unwrap_or_default(),
    };
    let uid = meta.uid.as_deref().unwrap_or_default();
    let step_runs = o.step_runs.values().map(|s| (DeletableKind::StepRun, &s.metadata));
    let own = |owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference]| {
        owners.iter().any(|o| o.controller == Some(true) && o.uid == uid)
    };
    let documents = o
        .documents
        .values()
        .filter(|d| d.spec.scope <= Scope::Workflow && own(d.metadata.owner_references.as_deref().unwrap_or_default()))
        .map(|d| (DeletableKind::Document, &d.metadata));
    let memories = o.memories.iter().map(|meta| (DeletableKind::Memory, meta));
    plan.effects = step_runs
        .chain(documents)
        .chain(memories)
        .take(AT_ONCE)
        .map(|(what, meta)| remove(what, meta.name.as_ref(), meta.uid.as_ref()))
        .collect();
    if plan.effects.len() == AT_ONCE {
        plan.look_again(Duration::from_secs(1));
    } else if let Some(left) = trigger::remembered(&o.workflow, &o.now) {
        plan.look_again(left);
    } else if meta.labels.as_ref().is_some_and(|l| l.contains_key(LABEL_MADE_BY)) {
        plan.effects.push(remove(DeletableKind::Workflow, meta.name.as_ref(), meta.uid.as_ref()));
    }
    plan
}
