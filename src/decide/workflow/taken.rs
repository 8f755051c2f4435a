//! A name that one of the run's own objects was to have is somebody else's, or what lies there cannot be read.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::condition::{self, Truth, clip};
use crate::api::limits::MESSAGE_BYTES;
use crate::api::workflow::{Phase, Workflow, WorkflowStatus};
use crate::decide::{Plan, status};

const REASON: &str = "NameTaken";

/// Says on the run who holds the name and how to go on; once, however often it is met again. The condition goes with the
/// first pass that comes through.
pub fn name_taken(workflow: &Workflow, what: &str, now: &Time) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let mut status = workflow.status.clone().unwrap_or_default();
    let message = clip(&format!("{what}; delete it and the run goes on, or rename the run"), MESSAGE_BYTES);
    let told =
        condition::get(&status.conditions, "Succeeded").is_some_and(|c| c.reason == REASON && c.message == message);
    if status.completed_at.is_some() {
        return plan;
    }
    if told {
        plan.status = status::still(&status, workflow.metadata.generation);
        return plan;
    }
    status.observed_generation = workflow.metadata.generation.unwrap_or_default();
    status.phase.get_or_insert(Phase::Pending);
    let at = (now, status.observed_generation);
    condition::set(&mut status.conditions, "Succeeded", Truth::Unknown, REASON, &message, at);
    condition::set(&mut status.conditions, "Reconciling", Truth::True, REASON, &message, at);
    plan.warn(REASON, message);
    plan.status = Some(status);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::workflow::WorkflowSpec;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn who_holds_a_name_is_told_once() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let mut run = Workflow::new("shop", WorkflowSpec::default());
        let plan = name_taken(&run, "StepRun x is there and is not Lockstep's: uid u by kubectl-create", &now);
        let status = plan.status.expect("a status");
        let told = condition::get(&status.conditions, "Succeeded").expect("a condition");
        assert_eq!((told.status.as_str(), told.reason.as_str()), ("Unknown", "NameTaken"));
        assert!(
            told.message.contains("uid u by kubectl-create") && told.message.contains("rename the run"),
            "{told:?}"
        );
        assert_eq!((plan.notices.len(), status.phase), (1, Some(Phase::Pending)));
        run.status = Some(status);
        let again = |what: &str| name_taken(&run, what, &now);
        assert_eq!(again("StepRun x is there and is not Lockstep's: uid u by kubectl-create"), Plan::default());
        // What was changed of the run since is seen all the same.
        let mut changed = run.clone();
        changed.metadata.generation = Some(2);
        let plan = name_taken(&changed, "StepRun x is there and is not Lockstep's: uid u by kubectl-create", &now);
        assert_eq!((plan.notices.len(), plan.status.map(|s| s.observed_generation)), (0, Some(2)));
        assert_eq!(again("Document y is there and is not Lockstep's: uid v").notices.len(), 1);
        let unreadable = again("Document z is there and cannot be read: spec.attempt: invalid value").notices;
        assert!(unreadable[0].note.contains("spec.attempt: invalid value; delete it and the run goes on"));
        run.status.as_mut().expect("a status").completed_at = Some(now.clone());
        assert_eq!(name_taken(&run, "Document z", &now), Plan::default());
    }
}
