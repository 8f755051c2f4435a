//! May this attempt still speak? Decided on a StepRun that was just read, written with tests against what was read.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;

use super::auth::Caller;
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, cluster};
use crate::api::StepRun;
use crate::api::name;
use crate::api::step_run::{Claim, GateState, Report, StepRunStatus};
use crate::api::workflow::Phase;
use crate::protocol::AttemptRef;

pub fn api(gateway: &Gateway, attempt: &AttemptRef) -> Api<StepRun> {
    Api::namespaced(gateway.client.clone(), &attempt.namespace)
}

pub fn now() -> Time {
    Time(Timestamp::now())
}

/// The StepRun as it is now, if it is the one that is meant.
pub async fn read(gateway: &Gateway, attempt: &AttemptRef) -> Result<StepRun> {
    let api = api(gateway, attempt);
    cluster::find(|| api.get(&attempt.step_run))
        .await?
        .filter(|step_run| step_run.metadata.uid.as_ref() == Some(&attempt.uid))
        .ok_or_else(|| Refusal::new(Reason::NotFound, "there is no such StepRun"))
}

/// Its status; what the operator has not written yet has its defaults.
pub fn status(step_run: &StepRun) -> StepRunStatus {
    step_run.status.clone().unwrap_or_default()
}

/// The fence: the attempt is the current one, and the step neither ended nor waits for a person.
pub fn stands(step_run: &StepRun, attempt: &AttemptRef) -> Result<()> {
    if step_run.metadata.deletion_timestamp.is_some() {
        return Err(Refusal::fenced("the StepRun is being deleted"));
    }
    let status = status(step_run);
    if status.attempt != attempt.attempt {
        return Err(Refusal::fenced(format!("attempt {} is not the current one, {}", attempt.attempt, status.attempt)));
    }
    if status.completed_at.is_some() || status.phase.is_some_and(Phase::is_terminal) {
        return Err(Refusal::fenced("the step has ended"));
    }
    let gate = status.gate.is_some_and(|gate| gate.state == GateState::Waiting);
    let phase =
        matches!(status.phase, Some(Phase::WaitingForInput | Phase::WaitingForAcceptance | Phase::WaitingForDocuments));
    if gate || phase || status.waiting_for.is_some() {
        return Err(Refusal::fenced("the step waits for a person"));
    }
    Ok(())
}

/// The claim of this attempt, if there is one; what an earlier attempt left does not count.
pub fn claim(status: &StepRunStatus, attempt: i32) -> Option<&Claim> {
    let claim = status.agent.as_ref()?.claim.as_ref()?;
    (claim.attempt == attempt).then_some(claim)
}

/// The report of this attempt, if there is one.
pub fn report(status: &StepRunStatus, attempt: i32) -> Option<&Report> {
    let report = status.agent.as_ref()?.report.as_ref()?;
    (report.attempt == attempt).then_some(report)
}

/// What the status knows of the id that the shim holds.
pub fn id_digest(attempt: &AttemptRef) -> String {
    name::digest_bytes(attempt.id.as_bytes())
}

/// Whether the claim is the caller's: same id, same pod.
pub fn is_callers(claim: &Claim, attempt: &AttemptRef, caller: &Caller) -> bool {
    claim.id == id_digest(attempt) && claim.pod_uid == caller.pod_uid
}

/// For every call after the claim.
pub fn holds(status: &StepRunStatus, attempt: &AttemptRef, caller: &Caller) -> Result<()> {
    match claim(status, attempt.attempt) {
        Some(claim) if is_callers(claim, attempt, caller) => Ok(()),
        Some(_) => Err(Refusal::new(Reason::AlreadyClaimed, "another shim has claimed this attempt")),
        None => Err(Refusal::fenced("the attempt is not claimed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn attempt() -> AttemptRef {
        AttemptRef {
            namespace: "team".to_owned(),
            step_run: "s".to_owned(),
            uid: "u".to_owned(),
            attempt: 2,
            id: "0123456789abcdef0123456789abcdef".to_owned(),
        }
    }

    fn step_run(status: Value) -> StepRun {
        let mut step_run = StepRun::new("s", crate::api::StepRunSpec::default());
        step_run.status = serde_json::from_value(status).expect("a status");
        step_run
    }

    #[test]
    fn the_fence_stands_where_the_operator_put_it() {
        let gate = |state: &str| {
            json!({"attempt": 2, "gate": {"state": state, "round": 1, "outputDigest": "d",
                "openedAt": "2026-01-01T00:00:00Z", "policy": "p"}})
        };
        for (status, open) in [
            (json!({"attempt": 2}), true),
            (json!({"attempt": 2, "phase": "Running"}), true),
            (json!({"attempt": 2, "phase": "Pending"}), true),
            (gate("Rejected"), true),
            (json!(null), false),
            (json!({}), false),
            (json!({"attempt": 1}), false),
            (json!({"attempt": 3}), false),
            (json!({"attempt": 2, "completedAt": "2026-01-01T00:00:00Z"}), false),
            (json!({"attempt": 2, "phase": "Cancelled"}), false),
            (json!({"attempt": 2, "phase": "WaitingForInput"}), false),
            (gate("Waiting"), false),
            (
                json!({"attempt": 2, "waitingFor": {"id": "w", "kind": "RetriesSpent", "question": "?",
                "options": [], "since": "2026-01-01T00:00:00Z"}}),
                false,
            ),
        ] {
            let verdict = stands(&step_run(status.clone()), &attempt());
            assert_eq!(verdict.is_ok(), open, "{status}");
            assert!(verdict.err().is_none_or(|refusal| refusal.reason == Reason::Fenced));
        }
        let mut deleted = step_run(json!({"attempt": 2}));
        deleted.metadata.deletion_timestamp = Some(now());
        assert!(stands(&deleted, &attempt()).is_err());
    }

    #[test]
    fn only_the_id_and_pod_of_this_attempts_claim_hold_it() {
        let caller = |uid: &str| Caller { pod_name: "p".to_owned(), pod_uid: uid.to_owned() };
        let claimed = |number: i32, id: &str| {
            json!({"attempt": 2, "agent": {"claim": {"attempt": number, "id": id, "podName": "p",
                "podUID": "pod", "at": "2026-01-01T00:00:00Z"}}})
        };
        let id = id_digest(&attempt());
        for (state, pod, verdict) in [
            (claimed(2, &id), "pod", None),
            (claimed(2, &id), "other", Some(Reason::AlreadyClaimed)),
            (claimed(2, "sha256:other"), "pod", Some(Reason::AlreadyClaimed)),
            (claimed(1, &id), "pod", Some(Reason::Fenced)),
            (json!({"attempt": 2}), "pod", Some(Reason::Fenced)),
        ] {
            let status = status(&step_run(state.clone()));
            let found = holds(&status, &attempt(), &caller(pod)).err().map(|refusal| refusal.reason);
            assert_eq!(found, verdict, "{state}");
        }
    }
}
