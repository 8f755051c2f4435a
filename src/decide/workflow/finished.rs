//! After the end: what `ttlSecondsAfterFinished` takes away. The run itself goes only where no Git tool would make it again.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;

use super::{Observed, Plan};
use crate::api::document::Scope;
use crate::api::name::LABEL_MADE_BY;
use crate::api::workflow::WorkflowStatus;
use crate::decide::Effect;
use crate::decide::plan::Kept;

/// Deletes of one pass at most.
const AT_ONCE: usize = 200;

pub(super) fn finished(o: &Observed, status: &WorkflowStatus) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let meta = &o.workflow.metadata;
    let (Some(ttl), Some(end)) = (o.workflow.spec.ttl_seconds_after_finished, &status.completed_at) else {
        return plan;
    };
    let due = end.0.saturating_add(SignedDuration::from_secs(ttl)).unwrap_or(end.0);
    if let Ok(left) = Duration::try_from(due.duration_since(o.now.0))
        && !left.is_zero()
    {
        plan.look_again(left);
        return plan;
    }
    let remove = |what, name: Option<&String>, uid: Option<&String>| Effect::Delete {
        what,
        name: name.cloned().unwrap_or_default(),
        uid: uid.cloned().unwrap_or_default(),
    };
    let uid = meta.uid.as_deref().unwrap_or_default();
    let step_runs = o.step_runs.values().map(|s| (Kept::StepRun, &s.metadata));
    let own = |owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference]| {
        owners.iter().any(|o| o.controller == Some(true) && o.uid == uid)
    };
    let documents = o
        .documents
        .values()
        .filter(|d| d.spec.scope <= Scope::Workflow && own(d.metadata.owner_references.as_deref().unwrap_or_default()))
        .map(|d| (Kept::Document, &d.metadata));
    plan.effects = step_runs
        .chain(documents)
        .take(AT_ONCE)
        .map(|(what, meta)| remove(what, meta.name.as_ref(), meta.uid.as_ref()))
        .collect();
    if plan.effects.len() == AT_ONCE {
        plan.look_again(Duration::from_secs(1));
    } else if meta.labels.as_ref().is_some_and(|l| l.contains_key(LABEL_MADE_BY)) {
        plan.effects.push(remove(Kept::Workflow, meta.name.as_ref(), meta.uid.as_ref()));
    }
    plan
}
