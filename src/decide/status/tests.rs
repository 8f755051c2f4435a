use super::*;
use crate::api::step_run::AttemptResult;
use crate::api::workflow::SessionStatus;
use crate::decide::graph::Waits;
use crate::decide::outcome::Failure;
use crate::decide::tally::OpenCounts;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

const NOW: Time = Time(Timestamp::UNIX_EPOCH);

fn derived(progress: &RunProgress) -> WorkflowStatus {
    let mut status = WorkflowStatus { session: Some(SessionStatus::default()), ..WorkflowStatus::default() };
    derive(&mut status, progress, (End::Open, &NOW));
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
        let open = OpenCounts { running, inputs: questions, gates, ..OpenCounts::default() };
        let waits = Waits { documents, ..Waits::default() };
        let progress = RunProgress { open, waits, ..RunProgress::default() };
        let status = derived(&progress);
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
        let open = OpenCounts { running, held, gates, inputs: questions, ..OpenCounts::default() };
        let progress = RunProgress { open, failure: Some(failed()), ..RunProgress::default() };
        let status = derived(&progress);
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
        let open = OpenCounts { running: 1, gates, inputs: questions, ..OpenCounts::default() };
        let progress = RunProgress { open, ..RunProgress::default() };
        let status = derived(&progress);
        let summary = status.waiting.map(|w| w.summary);
        assert_eq!(summary.as_deref(), expected);
        let waiting = condition::get(&status.conditions, "Waiting").map(|c| c.status.as_str());
        let truth = if expected.is_some() { "True" } else { "False" };
        assert_eq!(waiting, Some(truth));
    }
}

#[test]
fn tools_read_the_end_from_conditions() {
    let one = OpenCounts { running: 1, ..OpenCounts::default() };
    let running = RunProgress { open: one, ..RunProgress::default() };
    let done = RunProgress { done: Some(Value::Null), ..RunProgress::default() };
    let failed = RunProgress { failure: Some(failed()), ..RunProgress::default() };
    for (progress, succeeded, reconciling, stalled) in
        [(running, "Unknown", true, false), (done, "True", false, false), (failed, "False", false, true)]
    {
        let status = derived(&progress);
        let of = |kind| condition::get(&status.conditions, kind).map(|c| c.status.as_str());
        assert_eq!(of("Succeeded"), Some(succeeded));
        assert_eq!(of("Reconciling").is_some(), reconciling);
        assert_eq!(of("Stalled").is_some(), stalled);
    }
}

#[test]
fn a_session_is_initiated_until_the_first_claim() {
    let progress = |busy, done: bool, failed: Option<Failure>| RunProgress {
        open: OpenCounts { running: usize::from(!done && failed.is_none()), ..OpenCounts::default() },
        busy,
        done: done.then_some(Value::Null),
        failure: failed,
        ..RunProgress::default()
    };
    for (progress, expected) in [
        (progress(false, false, None), SessionPhase::Initiated),
        (progress(true, false, None), SessionPhase::Busy),
        (progress(true, true, None), SessionPhase::Completed),
        (progress(true, false, Some(failed())), SessionPhase::Failed),
    ] {
        assert_eq!(derived(&progress).session.map(|s| s.phase), Some(expected));
    }
    // Nothing takes it back: not an attempt behind the fence, which no longer counts as claimed.
    let busy = SessionStatus { phase: SessionPhase::Busy, ..SessionStatus::default() };
    let mut status = WorkflowStatus { session: Some(busy), ..WorkflowStatus::default() };
    derive(&mut status, &progress(false, false, None), (End::Open, &NOW));
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
