//! One log record for every run that ends, target `lockstep::history`: what stays when the run is deleted. It is
//! written after the final status, so a crash in between loses the record, never doubles it.

use std::sync::Arc;

use crate::api::step_run::{Attempt, StepRunStatus};
use crate::api::workflow::WorkflowStatus;
use crate::api::{StepRun, Workflow};
use crate::decide::history::lost_attempts;
use crate::decide::history::record::record;
use crate::decide::trace::{self, TraceContext};

/// The run as it ends in this pass; none where it does not.
pub fn ending(run: &Workflow, next: Option<&WorkflowStatus>) -> Option<Workflow> {
    let next = next.filter(|status| status.completed_at.is_some())?;
    let over = run.status.as_ref().is_some_and(|status| status.completed_at.is_some());
    (!over).then(|| Workflow { status: Some(next.clone()), ..run.clone() })
}

/// Logs the record.
pub fn log<'a>(ended: Option<&Workflow>, step_runs: impl IntoIterator<Item = &'a Arc<StepRun>>) {
    if let Some(run) = ended {
        let step_runs: Vec<&StepRun> = step_runs.into_iter().map(AsRef::as_ref).collect();
        let record = record(run, step_runs);
        let trace = TraceContext::of_run(run.metadata.uid.as_deref().unwrap_or_default(), trace::told(run).as_deref());
        tracing::info!(target: "lockstep::history", %record, traceId = trace.id(), "a run has ended");
    }
}

/// Attempts that this pass records and of which no report tells.
pub fn lost(step_run: &StepRun, next: Option<&StepRunStatus>) -> Vec<Attempt> {
    let lost = next.map(|next| lost_attempts(step_run.status.as_ref(), next));
    lost.into_iter().flatten().cloned().collect()
}

/// Logs attempts that ended without a report, with the fields of those that the gateway logs.
pub fn log_lost(step_run: &StepRun, lost: &[Attempt]) {
    let (meta, spec) = (&step_run.metadata, &step_run.spec);
    for attempt in lost {
        tracing::error!(
            namespace = meta.namespace.as_deref().unwrap_or_default(),
            workflow = spec.workflow.name,
            step = spec.path,
            item = spec.item.as_ref().map(|i| i.key.as_str()),
            agent = spec.agent_id,
            attempt = attempt.number,
            stepRun = meta.name.as_deref().unwrap_or_default(),
            class = %attempt.result,
            exitCode = attempt.exit_code,
            cause = attempt.message,
            traceId = TraceContext::of_step(step_run).id(),
            "the attempt failed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::WorkflowSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn only_the_pass_that_ends_a_run_tells_of_it() {
        let open = WorkflowStatus::default();
        let over = WorkflowStatus { completed_at: Some(Time(Timestamp::UNIX_EPOCH)), ..WorkflowStatus::default() };
        let mut run = Workflow::new("shop", WorkflowSpec::default());
        for (before, next, tells) in [
            (None, None, false),
            (Some(&open), Some(&open), false),
            (Some(&open), Some(&over), true),
            (None, Some(&over), true),
            (Some(&over), Some(&over), false),
            (Some(&over), None, false),
        ] {
            run.status = before.cloned();
            let ended = ending(&run, next);
            assert_eq!(ended.is_some(), tells);
            assert!(ended.is_none_or(|run| run.status.is_some_and(|s| s.completed_at.is_some())));
        }
    }
}
