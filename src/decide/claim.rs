//! May this process have the attempt, and may it report its end? The rules that hold an attempt to one start, as pure
//! functions of a StepRun. The gateway asks them about a copy that it just read, and writes only if what the answer
//! rested on still holds at the moment of writing: `free_still` and `held_still` say what that is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::api::step_run::{AgentReport, Claim, GateState, Report, StepRun, StepRunStatus};
use crate::api::workflow::Phase;
use crate::mutant::{self, Mutant};

/// Who asks: one process in one pod, for one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub attempt: i32,
    /// Digest of the id that the process made and keeps in memory.
    pub id: &'a str,
    pub pod_name: &'a str,
    pub pod_uid: &'a str,
}

/// What is answered to a claim, and to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody was here before: write it.
    Free,
    /// It is written already, by the same process: a reply was lost.
    Again,
    Refused(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Deleting,
    /// The fence is elsewhere.
    NotCurrent {
        asked: i32,
        current: i32,
    },
    Ended,
    Waits,
    Reported,
    /// Another process has it.
    Taken,
    Unclaimed,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deleting => f.write_str("the StepRun is being deleted"),
            Self::NotCurrent { asked, current } => write!(f, "attempt {asked} is not the current one, {current}"),
            Self::Ended => f.write_str("the step has ended"),
            Self::Waits => f.write_str("the step waits for a person"),
            Self::Reported => f.write_str("the attempt has reported its end"),
            Self::Taken => f.write_str("another shim has claimed this attempt"),
            Self::Unclaimed => f.write_str("the attempt is not claimed"),
        }
    }
}

/// A field that must have this value when the write lands; `Null` also means absent.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    pub path: &'static str,
    pub value: Value,
}

/// A claim.
pub fn admit(step_run: &StepRun, asker: &Asker<'_>) -> Answer {
    if let Err(why) = stands(step_run, asker.attempt) {
        return Answer::Refused(why);
    }
    let status = step_run.status.as_ref();
    if status.and_then(|s| report_of(s, asker.attempt)).is_some() {
        return Answer::Refused(Why::Reported);
    }
    match status.and_then(|s| claim_of(s, asker.attempt)) {
        None => Answer::Free,
        Some(claim) if is_askers(claim, asker) => Answer::Again,
        Some(_) if mutant::on(Mutant::ClaimTakenOver) => Answer::Free,
        Some(_) => Answer::Refused(Why::Taken),
    }
}

/// A report. One that is there answers for itself, whatever the fence did since.
pub fn accept(step_run: &StepRun, asker: &Asker<'_>) -> Answer {
    let status = step_run.status.as_ref();
    let there = status.and_then(|s| report_of(s, asker.attempt)).is_some();
    let verdict = if there { Ok(()) } else { stands(step_run, asker.attempt) };
    match verdict.and_then(|()| holds(step_run, asker)) {
        Err(why) => Answer::Refused(why),
        Ok(()) if there => Answer::Again,
        Ok(()) => Answer::Free,
    }
}

/// The fence: the attempt is the current one, and the step neither ended nor waits for a person.
pub fn stands(step_run: &StepRun, attempt: i32) -> Result<(), Why> {
    if step_run.metadata.deletion_timestamp.is_some() {
        return Err(Why::Deleting);
    }
    let unwritten = StepRunStatus::default();
    let status = step_run.status.as_ref().unwrap_or(&unwritten);
    if status.attempt != attempt && !mutant::on(Mutant::FenceNotAsked) {
        return Err(Why::NotCurrent { asked: attempt, current: status.attempt });
    }
    if status.completed_at.is_some() || status.phase.is_some_and(Phase::is_terminal) {
        return Err(Why::Ended);
    }
    let gate = status.gate.as_ref().is_some_and(|gate| gate.state == GateState::Waiting);
    let phase =
        matches!(status.phase, Some(Phase::WaitingForInput | Phase::WaitingForAcceptance | Phase::WaitingForDocuments));
    if gate || phase || status.waiting_for.is_some() {
        return Err(Why::Waits);
    }
    Ok(())
}

/// For every call after the claim.
pub fn holds(step_run: &StepRun, asker: &Asker<'_>) -> Result<(), Why> {
    match step_run.status.as_ref().and_then(|s| claim_of(s, asker.attempt)) {
        Some(claim) if is_askers(claim, asker) => Ok(()),
        Some(_) => Err(Why::Taken),
        None => Err(Why::Unclaimed),
    }
}

/// The claim of the current attempt.
pub fn current_claim(status: &StepRunStatus) -> Option<&Claim> {
    claim_of(status, status.attempt)
}

/// The report of the current attempt.
pub fn current_report(status: &StepRunStatus) -> Option<&Report> {
    report_of(status, status.attempt)
}

/// The claim of this attempt, if there is one; what an earlier attempt left does not count.
pub fn claim_of(status: &StepRunStatus, attempt: i32) -> Option<&Claim> {
    let claim = status.agent.as_ref()?.claim.as_ref()?;
    (claim.attempt == attempt).then_some(claim)
}

/// The report of this attempt, if there is one.
pub fn report_of(status: &StepRunStatus, attempt: i32) -> Option<&Report> {
    let report = status.agent.as_ref()?.report.as_ref()?;
    (report.attempt == attempt).then_some(report)
}

/// Same id, same pod.
fn is_askers(claim: &Claim, asker: &Asker<'_>) -> bool {
    (claim.id == asker.id || mutant::on(Mutant::ClaimIdNotCompared)) && claim.pod_uid == asker.pod_uid
}

/// What a claim writes as `status.agent`: what an earlier attempt left goes with it.
pub fn claimed(asker: &Asker<'_>, at: Time) -> AgentReport {
    AgentReport {
        claim: Some(Claim {
            attempt: asker.attempt,
            id: asker.id.to_owned(),
            pod_name: asker.pod_name.to_owned(),
            pod_uid: asker.pod_uid.to_owned(),
            at,
        }),
        ..AgentReport::default()
    }
}

/// On what a claim is written: nobody wrote anything since `step_run` was read.
pub fn free_still(step_run: &StepRun) -> Vec<Held> {
    let meta = &step_run.metadata;
    if mutant::on(Mutant::ClaimUnconditional) {
        return Vec::new();
    }
    vec![
        held("/metadata/uid", meta.uid.clone().unwrap_or_default()),
        held("/metadata/resourceVersion", meta.resource_version.clone().unwrap_or_default()),
    ]
}

/// On what the claim's holder writes: the fence and its claim are where they were, and it has not reported. Others may
/// have written beside it.
pub fn held_still(uid: &str, attempt: i32, id: &str) -> Vec<Held> {
    vec![
        held("/metadata/uid", uid),
        held("/status/attempt", attempt),
        held("/status/completedAt", Value::Null),
        held("/status/agent/claim/id", id),
        held("/status/agent/claim/attempt", attempt),
        held("/status/agent/report", Value::Null),
    ]
}

fn held(path: &'static str, value: impl Into<Value>) -> Held {
    Held { path, value: value.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::StepRunSpec;
    use serde_json::json;

    const ASKER: Asker<'static> = Asker { attempt: 2, id: "sha256:id", pod_name: "p", pod_uid: "pod" };
    const AT: &str = "2026-01-01T00:00:00Z";

    fn step_run(status: Value) -> StepRun {
        let mut step_run = StepRun::new("s", StepRunSpec::default());
        step_run.status = serde_json::from_value(status).expect("a status");
        step_run
    }

    fn claimed_by(attempt: i32, id: &str) -> Value {
        json!({"attempt": 2, "agent": {"claim": {"attempt": attempt, "id": id, "podName": "p", "podUID": "pod", "at": AT}}})
    }

    fn reported(mut status: Value, attempt: i32) -> Value {
        status["agent"]["report"] = json!({"attempt": attempt, "class": "Exited", "digest": "d", "at": AT});
        status
    }

    #[test]
    fn the_fence_stands_where_the_operator_put_it() {
        let gate = |state: &str| json!({"attempt": 2, "gate": {"state": state, "round": 1, "outputDigest": "d", "openedAt": AT, "policy": "p"}});
        let elsewhere = |current| Err(Why::NotCurrent { asked: 2, current });
        for (status, verdict) in [
            (json!({"attempt": 2}), Ok(())),
            (json!({"attempt": 2, "phase": "Running"}), Ok(())),
            (json!({"attempt": 2, "phase": "Pending"}), Ok(())),
            (gate("Rejected"), Ok(())),
            (json!(null), elsewhere(1)),
            (json!({}), elsewhere(1)),
            (json!({"attempt": 1}), elsewhere(1)),
            (json!({"attempt": 3}), elsewhere(3)),
            (json!({"attempt": 2, "completedAt": AT}), Err(Why::Ended)),
            (json!({"attempt": 2, "phase": "Cancelled"}), Err(Why::Ended)),
            (json!({"attempt": 2, "phase": "WaitingForInput"}), Err(Why::Waits)),
            (gate("Waiting"), Err(Why::Waits)),
            (
                json!({"attempt": 2, "waitingFor": {"id": "w", "kind": "RetriesSpent", "question": "?", "options": [],
                "since": AT}}),
                Err(Why::Waits),
            ),
        ] {
            assert_eq!(stands(&step_run(status.clone()), 2), verdict, "{status}");
        }
        let mut deleted = step_run(json!({"attempt": 2}));
        deleted.metadata.deletion_timestamp = serde_json::from_value(json!(AT)).expect("a time");
        assert_eq!(stands(&deleted, 2), Err(Why::Deleting));
    }

    #[test]
    fn an_attempt_is_given_to_one_process() {
        let (mine, theirs) = (claimed_by(2, "sha256:id"), claimed_by(2, "sha256:other"));
        for (status, answer) in [
            (json!({"attempt": 2}), Answer::Free),
            (claimed_by(1, "sha256:id"), Answer::Free),
            (reported(claimed_by(1, "sha256:id"), 1), Answer::Free),
            (mine.clone(), Answer::Again),
            (theirs, Answer::Refused(Why::Taken)),
            (reported(mine, 2), Answer::Refused(Why::Reported)),
            (json!({"attempt": 3}), Answer::Refused(Why::NotCurrent { asked: 2, current: 3 })),
        ] {
            assert_eq!(admit(&step_run(status.clone()), &ASKER), answer, "{status}");
        }
        let elsewhere = Asker { pod_uid: "other", ..ASKER };
        let state = step_run(claimed_by(2, "sha256:id"));
        assert_eq!(admit(&state, &elsewhere), Answer::Refused(Why::Taken));
        // Before the operator's first write, the first attempt is the current one.
        assert_eq!(admit(&step_run(json!(null)), &Asker { attempt: 1, ..ASKER }), Answer::Free);
    }

    #[test]
    fn only_who_claimed_reports_and_once() {
        let mine = claimed_by(2, "sha256:id");
        let mut ended = reported(mine.clone(), 2);
        ended["completedAt"] = json!(AT);
        let mut late = mine.clone();
        late["completedAt"] = json!(AT);
        for (status, answer) in [
            (mine.clone(), Answer::Free),
            (reported(mine.clone(), 2), Answer::Again),
            (ended, Answer::Again),
            (late, Answer::Refused(Why::Ended)),
            (claimed_by(2, "sha256:other"), Answer::Refused(Why::Taken)),
            (reported(claimed_by(2, "sha256:other"), 2), Answer::Refused(Why::Taken)),
            (claimed_by(1, "sha256:id"), Answer::Refused(Why::Unclaimed)),
            (json!({"attempt": 2}), Answer::Refused(Why::Unclaimed)),
            (json!({"attempt": 3}), Answer::Refused(Why::NotCurrent { asked: 2, current: 3 })),
        ] {
            assert_eq!(accept(&step_run(status.clone()), &ASKER), answer, "{status}");
        }
        let elsewhere = Asker { pod_uid: "other", ..ASKER };
        assert_eq!(accept(&step_run(mine), &elsewhere), Answer::Refused(Why::Taken));
    }

    #[test]
    fn writes_rest_on_what_was_read() {
        let mut read = step_run(json!({"attempt": 2}));
        (read.metadata.uid, read.metadata.resource_version) = (Some("u".to_owned()), Some("7".to_owned()));
        let told = |held: Vec<Held>| held.into_iter().map(|h| (h.path, h.value)).collect::<Vec<_>>();
        assert_eq!(told(free_still(&read)), [("/metadata/uid", json!("u")), ("/metadata/resourceVersion", json!("7"))]);
        assert_eq!(
            told(held_still("u", 2, "sha256:id")),
            [
                ("/metadata/uid", json!("u")),
                ("/status/attempt", json!(2)),
                ("/status/completedAt", json!(null)),
                ("/status/agent/claim/id", json!("sha256:id")),
                ("/status/agent/claim/attempt", json!(2)),
                ("/status/agent/report", json!(null)),
            ]
        );
    }
}
