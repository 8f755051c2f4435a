//! The status of a run, derived from where it stands. Phase is for people; the conditions are what tools read: kstatus
//! (`Reconciling`, `Stalled`), `kubectl wait` (`Succeeded`), the health script of Argo CD (`Waiting`).

mod overview;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::graph::RunProgress;
use super::step_run::POLICIES;
use super::tally;
use crate::api::condition::{self, Truth};
use crate::api::usage::Usage;
use crate::api::workflow::{Phase, SessionPhase, Waiting, WorkflowStatus};
pub use overview::show_outputs;

/// Set while a run that failed still has attempts that finish.
pub const FAILING: &str = "Failing";
pub const NEVER_BEGUN: &str = "cancelled before anything of it began";

/// Whether the two differ by nothing but the progress of a fan-out: such a write may wait for the next.
pub fn differs_by_progress_only(before: &WorkflowStatus, after: &WorkflowStatus) -> bool {
    let settled = |status: &WorkflowStatus| {
        let mut status = status.clone();
        status.active_steps.clear();
        status.pending_acceptance.clear();
        status.acceptance_decisions.clear();
        status.iteration_progress.clear();
        status.waiting = None;
        status.usage = None;
        status.conditions.clear();
        for step in &mut status.steps {
            step.counts = None;
            step.completed_at = None;
        }
        status
    };
    settled(before) == settled(after)
}

type At<'a> = (&'a Time, i64);

/// Nothing runs yet, for this reason.
pub fn pending(status: &mut WorkflowStatus, reason: &str, message: &str, at: At<'_>) {
    status.observed_generation = at.1;
    status.phase = Some(Phase::Pending);
    conditions(status, reason, message, at);
}

/// It can never run: the spec is immutable, so this is the end.
pub fn invalid(status: &mut WorkflowStatus, reason: &str, message: &str, at: At<'_>) {
    end_at_once(status, Phase::Failed, (reason, message), at);
}

/// It was cancelled while it waited for what it needs to begin.
pub fn never_begun(status: &mut WorkflowStatus, at: At<'_>) {
    end_at_once(status, Phase::Cancelled, ("Cancelled", NEVER_BEGUN), at);
}

fn end_at_once(status: &mut WorkflowStatus, phase: Phase, (reason, message): (&str, &str), at: At<'_>) {
    status.observed_generation = at.1;
    status.phase = Some(phase);
    status.completed_at = Some(at.0.clone());
    status.active_steps.clear();
    if let Some(session) = &mut status.session {
        session.phase = SessionPhase::Failed;
    }
    tally::close(&mut status.steps, (phase, Some(at.0)));
    conditions(status, reason, message, at);
}

/// The same, said of a newer generation; none where this one is known. What was true of the end stays true.
pub fn still(status: &WorkflowStatus, generation: Option<i64>) -> Option<WorkflowStatus> {
    let generation = generation.filter(|newest| *newest != status.observed_generation)?;
    let mut status = status.clone();
    status.observed_generation = generation;
    for condition in &mut status.conditions {
        condition.observed_generation = Some(generation);
    }
    Some(status)
}

/// What was asked of a run, or has come over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    Suspended,
    Cancelled,
    TimedOut,
}

/// Why a run is failing whose own time limit has passed: its pods end, too.
pub const RUN_TIMEOUT: &str = "RunTimeout";

/// The status that follows from where the run stands.
pub fn derive(status: &mut WorkflowStatus, progress: &RunProgress, (end, now): (End, &Time)) {
    let at = (now, status.observed_generation);
    if !progress.steps.is_empty() {
        status.steps.clone_from(&progress.steps);
    }
    status.current_step =
        status.steps.iter().find(|s| !is_over(s.phase, progress) && !s.path.contains('/')).map(|s| s.path.clone());
    status.active_steps.clone_from(&progress.active);
    status.pending_documents.clone_from(&progress.waits.documents);
    status.pending_acceptance.clone_from(&progress.waits.acceptance);
    status.acceptance_decisions.clone_from(&progress.decisions);
    overview::progress(status);
    status.waiting = waiting(progress);
    status.usage = Some(progress.usage.clone()).filter(Usage::is_some);
    let phase = phase(progress, end);
    status.phase = Some(phase);
    if end == End::TimedOut {
        status.timed_out_at.get_or_insert_with(|| now.clone());
    }
    if phase.is_terminal() {
        status.completed_at = Some(now.clone());
        status.active_steps.clear();
        status.pending_documents.clear();
        tally::close(&mut status.steps, (phase, Some(now)));
    }
    if let Some(session) = &mut status.session {
        session.phase = match phase {
            Phase::Completed => SessionPhase::Completed,
            Phase::Failed | Phase::Cancelled => SessionPhase::Failed,
            _ if progress.busy => SessionPhase::Busy,
            _ => session.phase,
        };
    }
    let (reason, message) = reason((phase, end), progress);
    conditions(status, &reason, &message, at);
    match &progress.waits.unproven {
        Some(missing) if !phase.is_terminal() => {
            condition::set(&mut status.conditions, POLICIES, Truth::False, "PolicyMissing", missing, at);
        }
        _ => condition::clear(&mut status.conditions, POLICIES),
    }
    match &progress.failure {
        Some(failure) if !phase.is_terminal() => {
            let message = format!("{}: {}", failure.place, failure.message);
            let class = if end == End::TimedOut { RUN_TIMEOUT.to_owned() } else { failure.class.to_string() };
            condition::set(&mut status.conditions, FAILING, Truth::True, &class, &message, at);
        }
        _ => condition::clear(&mut status.conditions, FAILING),
    }
}

/// Whether a step's turn is over for `currentStep`; the one that fails a run stays its current one.
fn is_over(phase: Phase, progress: &RunProgress) -> bool {
    matches!(phase, Phase::Completed | Phase::Skipped) || phase == Phase::Failed && progress.failure.is_none()
}

/// Running while anything runs; else input before acceptance before documents.
fn phase(progress: &RunProgress, end: End) -> Phase {
    if progress.done.is_some() && progress.failure.is_none() {
        return Phase::Completed;
    }
    if end == End::Cancelled {
        let runs = progress.open.step_runs() > 0 || progress.pods_ending > 0;
        return if runs { Phase::Running } else { Phase::Cancelled };
    }
    if progress.failure.is_some() {
        return if progress.open.step_runs() > 0 { Phase::Running } else { Phase::Failed };
    }
    if progress.open.running > 0 {
        Phase::Running
    } else if end == End::Suspended {
        Phase::Suspended
    } else if progress.open.inputs > 0 {
        Phase::WaitingForInput
    } else if progress.open.gates > 0 {
        Phase::WaitingForAcceptance
    } else if !progress.waits.documents.is_empty() {
        Phase::WaitingForDocuments
    } else {
        Phase::Pending
    }
}

fn reason((phase, end): (Phase, End), progress: &RunProgress) -> (String, String) {
    if end == End::Cancelled && phase != Phase::Completed {
        let ended = phase == Phase::Cancelled;
        let (word, message) = if ended {
            ("Cancelled", "spec.cancel was set to true")
        } else {
            ("Cancelling", "spec.cancel is true; the run is Cancelled when its pods have ended")
        };
        return (word.to_owned(), message.to_owned());
    }
    if let Some(failure) = &progress.failure {
        let class = if end == End::TimedOut { RUN_TIMEOUT.to_owned() } else { failure.class.to_string() };
        return (class, format!("{}: {}", failure.place, failure.message));
    }
    let message = match phase {
        Phase::WaitingForDocuments => missing(&progress.waits.documents),
        Phase::WaitingForAcceptance | Phase::WaitingForInput => {
            waiting(progress).map(|w| format!("people must decide: {}", w.summary)).unwrap_or_default()
        }
        Phase::Pending => {
            let held = &progress.waits.pending;
            let reason = held.first().map_or_else(|| phase.to_string(), |first| first.reason.clone());
            return (reason, held.iter().map(|h| h.message.as_str()).collect::<Vec<_>>().join("; "));
        }
        Phase::Suspended => "spec.suspend is true; nothing new starts before it is false".to_owned(),
        _ => String::new(),
    };
    (phase.to_string(), message)
}

/// What is said of documents that are waited for.
pub fn missing(types: &[String]) -> String {
    let (are, they) = if types.len() == 1 { ("a document is", "it exists") } else { ("documents are", "they exist") };
    format!("{are} missing: {}; the run goes on when {they} (kubectl apply, kind: Document)", types.join(", "))
}

fn waiting(progress: &RunProgress) -> Option<Waiting> {
    let words = |n: usize, word: &str| (n > 0).then(|| format!("{n} {word}{}", if n == 1 { "" } else { "s" }));
    let summary: Vec<String> =
        [words(progress.open.gates, "gate"), words(progress.open.inputs, "question")].into_iter().flatten().collect();
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    (!summary.is_empty()).then(|| Waiting {
        gates: count(progress.open.gates),
        questions: count(progress.open.inputs),
        summary: summary.join(", "),
    })
}

fn conditions(status: &mut WorkflowStatus, reason: &str, message: &str, at: At<'_>) {
    let phase = status.phase.unwrap_or_default();
    let (succeeded, reconciling, stalled) = match phase {
        Phase::Completed => (Truth::True, false, false),
        Phase::Failed | Phase::Cancelled => (Truth::False, false, true),
        _ => (Truth::Unknown, true, false),
    };
    let waits = matches!(phase, Phase::WaitingForAcceptance | Phase::WaitingForInput | Phase::WaitingForDocuments)
        || status.waiting.is_some();
    let list = &mut status.conditions;
    condition::set(list, "Succeeded", succeeded, reason, message, at);
    let summary = status.waiting.as_ref().map_or(message, |w| w.summary.as_str());
    condition::set(
        list,
        "Waiting",
        if waits { Truth::True } else { Truth::False },
        if waits { reason } else { "NothingWaits" },
        if waits { summary } else { "" },
        at,
    );
    for (kind, on) in [(condition::RECONCILING, reconciling), (condition::STALLED, stalled)] {
        if on {
            condition::set(list, kind, Truth::True, reason, message, at);
        } else {
            condition::clear(list, kind);
        }
    }
}

#[cfg(test)]
mod tests;
