use super::*;
use crate::api::step_run::AttemptResult;
use crate::api::workflow::SessionStatus;
use crate::decide::graph::Failure;
use k8s_openapi::jiff::Timestamp;

const NOW: Time = Time(Timestamp::UNIX_EPOCH);

fn derived(stand: &Stand) -> WorkflowStatus {
    let mut status = WorkflowStatus { session: Some(SessionStatus::default()), ..WorkflowStatus::default() };
    derive(&mut status, stand, (End::Open, &NOW));
    status
}

fn failed() -> Failure {
    Failure { place: "draft".into(), class: AttemptResult::Unrecoverable, message: "no".into() }
}

#[test]
fn running_stands_before_input_before_acceptance_before_documents() {
    let missing = || vec!["brief".to_owned()];
    for (running, questions, gates, documents, expected) in [
        (1, 1, 1, missing(), Phase::Running),
        (0, 1, 1, missing(), Phase::WaitingForInput),
        (0, 0, 1, missing(), Phase::WaitingForAcceptance),
        (0, 0, 0, missing(), Phase::WaitingForDocuments),
        (0, 0, 0, Vec::new(), Phase::Pending),
    ] {
        let stand = Stand { running, questions, gates, missing_documents: documents, ..Stand::default() };
        let status = derived(&stand);
        assert_eq!(status.phase, Some(expected));
        assert_eq!(status.completed_at, None);
    }
}

#[test]
fn a_failed_run_ends_when_nothing_of_it_is_left() {
    for (running, held, gates, questions, expected) in [
        (1, 0, 0, 0, Phase::Running),
        (0, 1, 0, 0, Phase::Running),
        (0, 0, 1, 0, Phase::Running),
        (0, 0, 0, 1, Phase::Running),
        (0, 0, 0, 0, Phase::Failed),
    ] {
        let stand = Stand { running, held, gates, questions, failure: Some(failed()), ..Stand::default() };
        let status = derived(&stand);
        assert_eq!(status.phase, Some(expected));
        let failing = condition::get(&status.conditions, FAILING).is_some();
        assert_eq!(failing, expected == Phase::Running);
    }
}

#[test]
fn how_much_waits_is_told_whatever_the_phase() {
    for (gates, questions, expected) in
        [(0, 0, None), (1, 0, Some("1 gate")), (0, 1, Some("1 question")), (2, 3, Some("2 gates, 3 questions"))]
    {
        let stand = Stand { running: 1, gates, questions, ..Stand::default() };
        let status = derived(&stand);
        let summary = status.waiting.map(|w| w.summary);
        assert_eq!(summary.as_deref(), expected);
        let waiting = condition::get(&status.conditions, "Waiting").map(|c| c.status.as_str());
        let truth = if expected.is_some() { "True" } else { "False" };
        assert_eq!(waiting, Some(truth));
    }
}

#[test]
fn tools_read_the_end_from_conditions() {
    let running = Stand { running: 1, ..Stand::default() };
    let done = Stand { done: Some(crate::decide::scope::Output::Null), ..Stand::default() };
    let failed = Stand { failure: Some(failed()), ..Stand::default() };
    for (stand, succeeded, reconciling, stalled) in
        [(running, "Unknown", true, false), (done, "True", false, false), (failed, "False", false, true)]
    {
        let status = derived(&stand);
        let of = |kind| condition::get(&status.conditions, kind).map(|c| c.status.as_str());
        assert_eq!(of("Succeeded"), Some(succeeded));
        assert_eq!(of("Reconciling").is_some(), reconciling);
        assert_eq!(of("Stalled").is_some(), stalled);
    }
}

#[test]
fn a_session_is_initiated_until_the_first_claim() {
    let stand = |busy, done: bool, failed: Option<Failure>| Stand {
        running: usize::from(!done && failed.is_none()),
        busy,
        done: done.then_some(crate::decide::scope::Output::Null),
        failure: failed,
        ..Stand::default()
    };
    for (stand, expected) in [
        (stand(false, false, None), SessionPhase::Initiated),
        (stand(true, false, None), SessionPhase::Busy),
        (stand(true, true, None), SessionPhase::Completed),
        (stand(true, false, Some(failed())), SessionPhase::Failed),
    ] {
        assert_eq!(derived(&stand).session.map(|s| s.phase), Some(expected));
    }
    // Nothing takes it back: not an attempt behind the fence, which no longer counts as claimed.
    let busy = SessionStatus { phase: SessionPhase::Busy, ..SessionStatus::default() };
    let mut status = WorkflowStatus { session: Some(busy), ..WorkflowStatus::default() };
    derive(&mut status, &stand(false, false, None), (End::Open, &NOW));
    assert_eq!(status.session.map(|s| s.phase), Some(SessionPhase::Busy));
}

#[test]
fn only_progress_may_wait_to_be_written() {
    use crate::api::workflow::{Counts, StepStatus};
    let before = WorkflowStatus {
        phase: Some(Phase::Running),
        steps: vec![StepStatus { path: "a".into(), phase: Phase::Running, ..StepStatus::default() }],
        ..WorkflowStatus::default()
    };
    let counted = |change: fn(&mut WorkflowStatus)| {
        let mut after = before.clone();
        change(&mut after);
        differs_by_progress_only(&before, &after)
    };
    assert!(counted(|s| s.steps[0].counts = Some(Counts { total: 9, started: 3, done: 1, ..Counts::default() })));
    assert!(counted(|s| s.active_steps.push("a/1".into())));
    assert!(counted(|s| s.iteration_progress.push(crate::api::workflow::IterationProgress::default())));
    assert!(!counted(|s| s.phase = Some(Phase::Completed)));
    assert!(!counted(|s| s.steps[0].phase = Phase::Completed));
    assert!(!counted(|s| s.steps[0].step_run = Some("latched".into())));
    assert!(!counted(|s| s.steps[0].collection_digest = Some("latched".into())));
}
