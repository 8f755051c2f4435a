//! The API server will not have the first write of a run, in which its session begins.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::condition::clip;
use crate::api::limits::MESSAGE_BYTES;
use crate::api::workflow::{Workflow, WorkflowStatus};
use crate::decide::{Plan, status};

const REASON: &str = "SessionInitFailed";
/// How often it is tried, each time later than before, in seven seconds altogether: somebody may just be changing a policy.
const TRIES: u32 = 5;

/// Ends a run whose session could not be written down: without that record nothing of it starts. None while it is tried again,
/// and none once a run has begun.
pub fn session_refused(workflow: &Workflow, why: &str, times: u32, now: &Time) -> Option<Plan<WorkflowStatus>> {
    // A quota is waited for: what fills it goes.
    if !has_no_session(workflow) || times < TRIES || why.contains("exceeded quota") {
        return None;
    }
    let message = format!(
        "the session of the run cannot be written down, the API server refuses it: {why}; nothing was started; mend what refuses it and create the run anew"
    );
    let (mut plan, mut status, message) = (Plan::default(), WorkflowStatus::default(), clip(&message, MESSAGE_BYTES));
    let at = (now, workflow.metadata.generation.unwrap_or_default());
    status::invalid(&mut status, REASON, &message, at);
    plan.warn(REASON, clip(&message, 900));
    plan.status = Some(status);
    Some(plan)
}

/// Whether a refusal of this pass is one of the first write.
pub fn has_no_session(workflow: &Workflow) -> bool {
    workflow.status.as_ref().is_none_or(|status| status.definition.is_none() && status.completed_at.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::condition;
    use crate::api::workflow::{DefinitionRef, Phase, WorkflowSpec};
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn a_run_without_a_session_fails_once_it_was_refused_for_good() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let mut run = Workflow::new("shop", WorkflowSpec::default());
        assert!(has_no_session(&run));
        assert_eq!(session_refused(&run, "denied by p", TRIES - 1, &now), None);
        assert_eq!(session_refused(&run, "exceeded quota: team", TRIES, &now), None);
        let plan = session_refused(&run, "denied by p", TRIES, &now).expect("an end");
        assert!(plan.effects.is_empty());
        let status = plan.status.expect("a status");
        assert_eq!((status.phase, status.completed_at.clone()), (Some(Phase::Failed), Some(now.clone())));
        // As little as can be: it is what was refused that must not be written once more.
        assert!(status.session.is_none() && status.definition.is_none());
        let told = condition::get(&status.conditions, "Succeeded").expect("a condition");
        assert!(told.reason == REASON && told.message.contains("denied by p"), "{told:?}");
        run.status = Some(status);
        assert_eq!(session_refused(&run, "denied by p", TRIES, &now), None);
        run.status = Some(WorkflowStatus { definition: Some(DefinitionRef::default()), ..WorkflowStatus::default() });
        assert!(!has_no_session(&run) && session_refused(&run, "x", TRIES, &now).is_none());
    }
}
