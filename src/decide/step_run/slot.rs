//! Where attempts are limited: whether this StepRun needs a slot now. One is held from the launch to the end of an attempt,
//! never while people are waited for or a back-off runs.

use super::{Agent, Hold, JobSeen, Observed, StepRun, StepRunStatus, gate, hold};
use crate::decide::agent::is_known_faulty;
use crate::decide::{budget, claim};
use crate::definition::agent::pod_faults;

/// Whether an attempt may be launched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slot {
    #[default]
    Yours,
    /// All are taken, and so many others wait longer.
    Wait { ahead: usize },
}

/// What a StepRun wants of the ledger of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    /// An attempt would be launched now.
    Launch,
    /// An attempt was launched and has not ended.
    Holds,
}

/// Whether the Job of the current attempt was made: stored after it was, and cleared when the attempt ends.
pub fn was_launched(step_run: &StepRun) -> bool {
    step_run.status.as_ref().is_some_and(|status| status.launched_at.is_some())
}

/// Whether an attempt was launched and has not ended.
pub fn holds_slot(step_run: &StepRun, job: &JobSeen) -> bool {
    let status = step_run.status.clone().unwrap_or_default();
    let begun = claim::current_claim(&status).is_some()
        || status.launched_at.is_some()
        || matches!(job, JobSeen::Present { ended: false, .. });
    begun && may_run(step_run, &status)
}

fn may_run(step_run: &StepRun, status: &StepRunStatus) -> bool {
    let waits = status.waiting_for.is_some() && !claim::agent_waits(status);
    let idle = status.completed_at.is_some() || waits || status.result.is_some();
    !idle && claim::current_report(status).is_none() && !hold::was_stopped(status) && gate::has_agent(step_run)
}

/// Decided on everything but the slot itself.
pub fn need(o: &Observed) -> Need {
    let status = o.step_run.status.clone().unwrap_or_default();
    if holds_slot(&o.step_run, &o.job) {
        return Need::Holds;
    }
    // Looked at where nothing may be evaluated: what is wrong with its schemas its status says, and the pass finds out.
    let is_launchable = |agent: &Agent| pod_faults(agent).is_empty() && !is_known_faulty(agent);
    let ready = o.agent.as_deref().is_some_and(is_launchable);
    let due = status.not_before.as_ref().is_none_or(|at| o.now.0 >= at.0);
    let free = o.job == JobSeen::Absent && o.refusal.is_none() && budget::spent(&o.step_run, &o.budget).is_none();
    let stays = o.hold == Hold::No && o.step_run.metadata.deletion_timestamp.is_none();
    let wanted = may_run(&o.step_run, &status) && ready && due && free && stays;
    if wanted { Need::Launch } else { Need::Nothing }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::api::agent::{Agent, AgentSpec};
    use crate::api::step_run::{Reuse, StepRunAsk};
    use crate::decide::gate::Guard;
    use crate::decide::step_run::SourceAgent;

    fn observed(status: &Value) -> Observed {
        let template = json!({"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}});
        let spec = serde_json::from_value(json!({"template": template})).expect("a spec");
        Observed {
            agent: Some(Arc::new(Agent::new("writer", spec))),
            guard: Guard::NotAsked,
            ..crate::decide::step_run::tests::observed(status)
        }
    }

    #[test]
    fn a_slot_is_needed_from_the_launch_to_the_end_of_an_attempt() {
        let at = "1970-01-01T00:00:00Z";
        let claim = |attempt: i32| json!({"attempt": attempt, "id": "i", "podName": "p", "podUID": "u", "at": at});
        let report = |attempt: i32| json!({"attempt": attempt, "class": "Succeeded", "digest": "d", "at": at});
        let wait = json!({"id": "1-0", "kind": "RetriesSpent", "question": "?", "options": [], "since": at});
        for (name, status, expected) in [
            ("new", json!(null), Need::Launch),
            ("launched", json!({"launchedAt": at}), Need::Holds),
            ("claimed", json!({"agent": {"claim": claim(1)}}), Need::Holds),
            ("claimed before", json!({"attempt": 2, "agent": {"claim": claim(1)}}), Need::Launch),
            ("reported", json!({"agent": {"claim": claim(1), "report": report(1)}}), Need::Nothing),
            ("reported before", json!({"attempt": 2, "agent": {"claim": claim(1), "report": report(1)}}), Need::Launch),
            ("backs off", json!({"attempt": 2, "notBefore": "1970-01-01T00:01:00Z"}), Need::Nothing),
            ("back-off over", json!({"attempt": 2, "notBefore": at}), Need::Launch),
            ("waits for a person", json!({"waitingFor": wait}), Need::Nothing),
            ("under review", json!({"result": {"attempt": 1, "digest": "d"}}), Need::Nothing),
            ("ended", json!({"phase": "Failed", "completedAt": at}), Need::Nothing),
        ] {
            assert_eq!(need(&observed(&status)), expected, "{name}");
        }
    }

    #[test]
    fn what_was_stopped_with_its_run_stays_so_before_a_copy_that_is_behind() {
        let at = "1970-01-01T00:00:00Z";
        let ended = |result: &str| {
            let attempt = json!({"number": 1, "round": 1, "result": result, "completedAt": at});
            observed(&json!({"attempt": 2, "attempts": [attempt]}))
        };
        for (result, goes_on) in [("Cancelled", false), ("Retryable", true)] {
            let o = ended(result);
            let plan = crate::decide::step_run::step_run(&o);
            let launches = plan.effects.iter().any(|e| matches!(e, crate::decide::Effect::CreateJob(_)));
            assert_eq!((launches, need(&o) == Need::Launch), (goes_on, goes_on), "{result}");
            assert!(plan.requeue.is_some(), "{result}");
        }
    }

    #[test]
    fn an_old_copy_that_closes_deletes_no_job_beyond_its_fence() {
        let at = "1970-01-01T00:00:00Z";
        let wait = json!({"id": "2-0", "kind": "RetriesSpent", "question": "?", "options": [], "since": at});
        let mut budget = wait.clone();
        budget["kind"] = json!("BudgetSpent");
        for (status, job, deletes) in [
            (json!({"attempt": 2, "phase": "WaitingForInput", "waitingFor": wait}), 3, false),
            (json!({"attempt": 2, "phase": "WaitingForInput", "waitingFor": wait}), 2, true),
            (json!({"attempt": 2, "phase": "WaitingForInput", "waitingFor": budget}), 2, false),
            (json!({"attempt": 2, "phase": "WaitingForInput", "waitingFor": budget}), 1, true),
            (json!({"attempt": 2, "phase": "Cancelled", "completedAt": at}), 3, true),
        ] {
            let mut o = observed(&status);
            o.hold = Hold::Closing;
            o.unfinished = vec![("job".into(), "uid".into(), job)];
            let plan = crate::decide::step_run::step_run(&o);
            let found = plan.effects.iter().any(|e| matches!(e, crate::decide::Effect::Delete { .. }));
            assert_eq!(found, deletes, "{status}");
        }
    }

    #[test]
    fn nothing_is_asked_for_that_would_not_be_launched() {
        type Change = fn(&mut Observed);
        let job = |ended| JobSeen::Present {
            uid: "j".into(),
            created: None,
            deleting: false,
            ended,
            agent_generation: None,
            ran: SourceAgent::default(),
        };
        let mut o = observed(&json!(null));
        o.job = job(false);
        assert_eq!(need(&o), Need::Holds, "its Job is there, though the status does not say so yet");
        o.job = job(true);
        assert_eq!(need(&o), Need::Nothing);
        let cases: [(&str, Change); 8] = [
            ("suspended", |o| o.hold = Hold::Suspended),
            ("closing", |o| o.hold = Hold::Closing),
            ("stopping", |o| o.hold = Hold::Stopping),
            ("no Agent", |o| o.agent = None),
            ("Agent not ready", |o| o.agent = Some(Arc::new(Agent::new("writer", AgentSpec::default())))),
            ("refused", |o| o.refusal = Some("quota".into())),
            ("a question", |o| Arc::make_mut(&mut o.step_run).spec.ask = Some(StepRunAsk::default())),
            ("taken over", |o| Arc::make_mut(&mut o.step_run).spec.reuse = Some(Reuse::default())),
        ];
        for (name, change) in cases {
            let mut o = observed(&json!(null));
            change(&mut o);
            assert_eq!(need(&o), Need::Nothing, "{name}");
        }
    }
}
