//! May this process have the attempt, and may it report its end? The rules that hold an attempt to one start, as pure
//! functions of a StepRun. The gateway asks them about a copy that it just read, and writes only if what the answer
//! rested on still holds at the moment of writing: `claim_preconditions` and `report_preconditions` say what that is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::api::step_run::{
    AgentReport, ApprovalRequest, AttemptResult, Claim, GateState, Journal, JournalState, Progress, Report,
    ReportClass, StepRun, StepRunStatus,
};
use crate::api::workflow::Phase;

/// Who asks: one process in one pod, for one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
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
    Refused(Rejection),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
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

impl std::fmt::Display for Rejection {
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
pub struct Precondition {
    pub path: &'static str,
    pub value: Value,
}

/// A claim.
pub fn admit(step_run: &StepRun, claimant: &Claimant<'_>) -> Answer {
    if let Err(why) = stands(step_run, claimant.attempt) {
        return Answer::Refused(why);
    }
    let status = step_run.status.as_ref();
    if status.and_then(|s| report_of(s, claimant.attempt)).is_some() {
        return Answer::Refused(Rejection::Reported);
    }
    match status.and_then(|s| claim_of(s, claimant.attempt)) {
        None => Answer::Free,
        Some(claim) if is_claimants(claim, claimant) => Answer::Again,
        Some(_) => Answer::Refused(Rejection::Taken),
    }
}

/// A report. One that is there answers for itself, whatever the fence did since.
pub fn accept(step_run: &StepRun, claimant: &Claimant<'_>) -> Answer {
    let status = step_run.status.as_ref();
    let there = status.and_then(|s| report_of(s, claimant.attempt)).is_some();
    let verdict = if there { Ok(()) } else { stands(step_run, claimant.attempt) };
    match verdict.and_then(|()| holds(step_run, claimant)) {
        Err(why) => Answer::Refused(why),
        Ok(()) if there => Answer::Again,
        Ok(()) => Answer::Free,
    }
}

/// How the process ended of an attempt that was stopped from outside: its claim is the newest one, and it neither reported
/// nor said so before. It changes nothing any more, so the fence is not asked.
pub fn may_report_after_stop(step_run: &StepRun, claimant: &Claimant<'_>) -> bool {
    let agent = step_run.status.as_ref().and_then(|s| s.agent.as_ref());
    let said = agent.is_some_and(|a| a.stopped.is_some() || a.report.is_some());
    let ended = step_run.status.as_ref().is_some_and(|s| s.completed_at.is_some());
    !said && !ended && holds(step_run, claimant).is_ok()
}

/// The fence: the attempt is the current one, and the step neither ended nor waits for a person.
pub fn stands(step_run: &StepRun, attempt: i32) -> Result<(), Rejection> {
    if step_run.metadata.deletion_timestamp.is_some() {
        return Err(Rejection::Deleting);
    }
    let unwritten = StepRunStatus::default();
    let status = step_run.status.as_ref().unwrap_or(&unwritten);
    if status.attempt != attempt {
        return Err(Rejection::NotCurrent { asked: attempt, current: status.attempt });
    }
    if status.completed_at.is_some() || status.phase.is_some_and(Phase::is_terminal) {
        return Err(Rejection::Ended);
    }
    let gate = status.gate.as_ref().is_some_and(|gate| gate.state == GateState::Waiting);
    let phase =
        matches!(status.phase, Some(Phase::WaitingForInput | Phase::WaitingForAcceptance | Phase::WaitingForDocuments));
    let waits = (phase || status.waiting_for.is_some()) && !agent_waits(status);
    if gate || waits {
        return Err(Rejection::Waits);
    }
    Ok(())
}

/// Whether people are asked while the attempt goes on: its agent waits for them in its pod.
pub fn agent_waits(status: &StepRunStatus) -> bool {
    let question = status.waiting_for.as_ref().is_some_and(|wait| wait.agent_waits_until.is_some());
    let waits = |own: &ApprovalRequest| own.gate.state == GateState::Waiting && own.agent_waits_until.is_some();
    let approval = status.waiting_for.is_none() && status.approval_requests.iter().any(waits);
    (question || approval) && current_claim(status).is_some()
}

/// For every call after the claim.
pub fn holds(step_run: &StepRun, claimant: &Claimant<'_>) -> Result<(), Rejection> {
    match step_run.status.as_ref().and_then(|s| claim_of(s, claimant.attempt)) {
        Some(claim) if is_claimants(claim, claimant) => Ok(()),
        Some(_) => Err(Rejection::Taken),
        None => Err(Rejection::Unclaimed),
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
fn is_claimants(claim: &Claim, claimant: &Claimant<'_>) -> bool {
    claim.id == claimant.id && claim.pod_uid == claimant.pod_uid
}

/// What a claim writes as `status.agent`: what an earlier attempt left goes with it. The first progress is told with it,
/// whatever the agent says and when.
pub fn claimed(claimant: &Claimant<'_>, at: Time) -> AgentReport {
    AgentReport {
        journal: Some(Journal { attempt: claimant.attempt, state: JournalState::Busy, at: at.clone() }),
        progress: Some(Progress { percent: 0, message: "the agent starts".to_owned(), at: at.clone() }),
        claim: Some(Claim {
            attempt: claimant.attempt,
            id: claimant.id.to_owned(),
            pod_name: claimant.pod_name.to_owned(),
            pod_uid: claimant.pod_uid.to_owned(),
            at,
        }),
        ..AgentReport::default()
    }
}

/// What a report makes of the journal.
pub fn journalled(report: &Report) -> Journal {
    let state = match report.class {
        ReportClass::Succeeded => JournalState::Completed,
        // Its work goes on once people have answered.
        ReportClass::Asked => JournalState::Busy,
        _ => JournalState::Failed,
    };
    Journal { attempt: report.attempt, state, at: report.at.clone() }
}

/// Where the journal of the current attempt stands. What is lost with its pod says so nowhere but here.
pub fn journal(status: &StepRunStatus) -> JournalState {
    if let Some(report) = current_report(status) {
        return journalled(report).state;
    }
    let ended = status.attempts.iter().find(|attempt| attempt.number == status.attempt);
    match (ended, current_claim(status)) {
        (Some(ended), _) if ended.result == AttemptResult::Succeeded => JournalState::Completed,
        (Some(_), _) => JournalState::Failed,
        (None, Some(_)) => JournalState::Busy,
        (None, None) => JournalState::Initiated,
    }
}

/// On what a claim is written: nobody wrote anything since `step_run` was read.
pub fn claim_preconditions(step_run: &StepRun) -> Vec<Precondition> {
    let meta = &step_run.metadata;
    vec![
        precondition("/metadata/uid", meta.uid.clone().unwrap_or_default()),
        precondition("/metadata/resourceVersion", meta.resource_version.clone().unwrap_or_default()),
    ]
}

/// On what is written what `may_report_after_stop` allows.
pub fn log_preconditions(uid: &str, attempt: i32, id: &str) -> Vec<Precondition> {
    let mut held = report_preconditions(uid, attempt, id);
    held.retain(|held| held.path != "/status/attempt");
    held.push(self::precondition("/status/agent/stopped", Value::Null));
    held
}

/// On what the claim's holder writes: the fence and its claim are where they were, and it has not reported. Others may
/// have written beside it.
pub fn report_preconditions(uid: &str, attempt: i32, id: &str) -> Vec<Precondition> {
    vec![
        precondition("/metadata/uid", uid),
        precondition("/status/attempt", attempt),
        precondition("/status/completedAt", Value::Null),
        precondition("/status/agent/claim/id", id),
        precondition("/status/agent/claim/attempt", attempt),
        precondition("/status/agent/report", Value::Null),
    ]
}

fn precondition(path: &'static str, value: impl Into<Value>) -> Precondition {
    Precondition { path, value: value.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::StepRunSpec;
    use serde_json::json;

    const ASKER: Claimant<'static> = Claimant { attempt: 2, id: "sha256:id", pod_name: "p", pod_uid: "pod" };
    const AT: &str = "2026-01-01T00:00:00Z";

    fn step_run(status: Value) -> StepRun {
        let mut step_run = StepRun::new("s", StepRunSpec::default());
        step_run.status = serde_json::from_value(status).expect("a status");
        step_run
    }

    fn claimed_by(attempt: i32, id: &str) -> Value {
        json!({"attempt": 2, "agent": {"claim": {"attempt": attempt, "id": id, "podName": "p", "podUID": "pod", "at": AT}}})
    }

    fn waits(attempt: i32, until: &Value) -> Value {
        let mut status = claimed_by(attempt, "sha256:id");
        status["phase"] = json!("WaitingForInput");
        status["waitingFor"] = json!({"id": "w", "kind": "Question", "question": "?", "options": [], "since": AT,
            "agentWaitsUntil": until});
        status
    }

    fn reported(mut status: Value, attempt: i32) -> Value {
        status["agent"]["report"] = json!({"attempt": attempt, "class": "Exited", "digest": "d", "at": AT});
        status
    }

    #[test]
    fn the_fence_stands_where_the_operator_put_it() {
        let gate = |state: &str| json!({"attempt": 2, "gate": {"state": state, "round": 1, "outputDigest": "d", "openedAt": AT, "policy": "p"}});
        let elsewhere = |current| Err(Rejection::NotCurrent { asked: 2, current });
        for (status, verdict) in [
            (json!({"attempt": 2}), Ok(())),
            (json!({"attempt": 2, "phase": "Running"}), Ok(())),
            (json!({"attempt": 2, "phase": "Pending"}), Ok(())),
            (gate("Rejected"), Ok(())),
            (json!(null), elsewhere(1)),
            (json!({}), elsewhere(1)),
            (json!({"attempt": 1}), elsewhere(1)),
            (json!({"attempt": 3}), elsewhere(3)),
            (json!({"attempt": 2, "completedAt": AT}), Err(Rejection::Ended)),
            (json!({"attempt": 2, "phase": "Cancelled"}), Err(Rejection::Ended)),
            (json!({"attempt": 2, "phase": "WaitingForInput"}), Err(Rejection::Waits)),
            (gate("Waiting"), Err(Rejection::Waits)),
            (
                json!({"attempt": 2, "waitingFor": {"id": "w", "kind": "RetriesSpent", "question": "?", "options": [],
                "since": AT}}),
                Err(Rejection::Waits),
            ),
            // Its agent waits in its pod; after its end, and of another attempt, nobody does.
            (waits(2, &json!(AT)), Ok(())),
            (waits(1, &json!(AT)), Err(Rejection::Waits)),
            (waits(2, &json!(null)), Err(Rejection::Waits)),
        ] {
            assert_eq!(stands(&step_run(status.clone()), 2), verdict, "{status}");
        }
        let mut deleted = step_run(json!({"attempt": 2}));
        deleted.metadata.deletion_timestamp = serde_json::from_value(json!(AT)).expect("a time");
        assert_eq!(stands(&deleted, 2), Err(Rejection::Deleting));
    }

    #[test]
    fn an_attempt_is_given_to_one_process() {
        let (mine, theirs) = (claimed_by(2, "sha256:id"), claimed_by(2, "sha256:other"));
        for (status, answer) in [
            (json!({"attempt": 2}), Answer::Free),
            (claimed_by(1, "sha256:id"), Answer::Free),
            (reported(claimed_by(1, "sha256:id"), 1), Answer::Free),
            (mine.clone(), Answer::Again),
            (theirs, Answer::Refused(Rejection::Taken)),
            (reported(mine, 2), Answer::Refused(Rejection::Reported)),
            (json!({"attempt": 3}), Answer::Refused(Rejection::NotCurrent { asked: 2, current: 3 })),
        ] {
            assert_eq!(admit(&step_run(status.clone()), &ASKER), answer, "{status}");
        }
        let elsewhere = Claimant { pod_uid: "other", ..ASKER };
        let state = step_run(claimed_by(2, "sha256:id"));
        assert_eq!(admit(&state, &elsewhere), Answer::Refused(Rejection::Taken));
        // Before the operator's first write, the first attempt is the current one.
        assert_eq!(admit(&step_run(json!(null)), &Claimant { attempt: 1, ..ASKER }), Answer::Free);
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
            (late, Answer::Refused(Rejection::Ended)),
            (claimed_by(2, "sha256:other"), Answer::Refused(Rejection::Taken)),
            (reported(claimed_by(2, "sha256:other"), 2), Answer::Refused(Rejection::Taken)),
            (claimed_by(1, "sha256:id"), Answer::Refused(Rejection::Unclaimed)),
            (json!({"attempt": 2}), Answer::Refused(Rejection::Unclaimed)),
            (json!({"attempt": 3}), Answer::Refused(Rejection::NotCurrent { asked: 2, current: 3 })),
        ] {
            assert_eq!(accept(&step_run(status.clone()), &ASKER), answer, "{status}");
        }
        let elsewhere = Claimant { pod_uid: "other", ..ASKER };
        assert_eq!(accept(&step_run(mine), &elsewhere), Answer::Refused(Rejection::Taken));
    }

    #[test]
    fn who_was_stopped_may_say_how_it_ended_and_once() {
        let behind = |change: fn(&mut Value)| {
            let mut status = claimed_by(2, "sha256:id");
            status["attempt"] = json!(3);
            change(&mut status);
            status
        };
        for (what, status, may) in [
            ("the fence moved on", behind(|_| {}), true),
            ("it has said so", behind(|s| s["agent"]["stopped"] = json!({"attempt": 2, "at": AT})), false),
            ("it had reported", reported(behind(|_| {}), 2), false),
            ("the step has ended", behind(|s| s["completedAt"] = json!(AT)), false),
            ("another process has claimed", claimed_by(2, "sha256:other"), false),
            ("a later attempt has claimed", claimed_by(3, "sha256:id"), false),
            ("nobody has claimed", json!({"attempt": 3}), false),
        ] {
            assert_eq!(may_report_after_stop(&step_run(status), &ASKER), may, "{what}");
        }
        let rests: Vec<_> = log_preconditions("u", 2, "sha256:id").into_iter().map(|h| h.path).collect();
        assert!(!rests.contains(&"/status/attempt") && rests.contains(&"/status/agent/stopped"), "{rests:?}");
    }

    #[test]
    fn writes_rest_on_what_was_read() {
        let mut read = step_run(json!({"attempt": 2}));
        (read.metadata.uid, read.metadata.resource_version) = (Some("u".to_owned()), Some("7".to_owned()));
        let told = |held: Vec<Precondition>| held.into_iter().map(|h| (h.path, h.value)).collect::<Vec<_>>();
        assert_eq!(
            told(claim_preconditions(&read)),
            [("/metadata/uid", json!("u")), ("/metadata/resourceVersion", json!("7"))]
        );
        assert_eq!(
            told(report_preconditions("u", 2, "sha256:id")),
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

    #[test]
    fn the_journal_says_where_the_attempt_stands() {
        let ended = json!([{"number": 2, "round": 1, "result": "OutcomeUnknown", "completedAt": AT}]);
        let with = |mut status: Value, key: &str, value: Value| {
            status[key] = value;
            status
        };
        let report = |class: &str| {
            let mut status = claimed_by(2, "sha256:id");
            status["agent"]["report"] = json!({"attempt": 2, "class": class, "digest": "d", "at": AT});
            status
        };
        for (status, expected) in [
            (json!({"attempt": 2}), JournalState::Initiated),
            // What an earlier attempt left says nothing of this one.
            (claimed_by(1, "sha256:id"), JournalState::Initiated),
            (reported(json!({"attempt": 2}), 1), JournalState::Initiated),
            (claimed_by(2, "sha256:id"), JournalState::Busy),
            (with(claimed_by(2, "sha256:id"), "attempts", ended), JournalState::Failed),
            (report("Succeeded"), JournalState::Completed),
            (report("InvalidOutput"), JournalState::Failed),
            (report("Retryable"), JournalState::Failed),
            (report("Asked"), JournalState::Busy),
        ] {
            let status: StepRunStatus = serde_json::from_value(status).expect("a status");
            assert_eq!(journal(&status), expected, "{status:?}");
        }
        // The claim sets it and tells the first progress in the same write, whatever the agent does.
        let written = claimed(&ASKER, serde_json::from_value(json!(AT)).expect("a time"));
        assert_eq!(written.journal.map(|journal| (journal.attempt, journal.state)), Some((2, JournalState::Busy)));
        assert_eq!(written.progress.map(|progress| progress.percent), Some(0));
    }
}
