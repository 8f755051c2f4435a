//! The status of a run, derived from where it stands. Phase is for people; the conditions are what tools read: kstatus
//! (`Reconciling`, `Stalled`), `kubectl wait` (`Succeeded`), the health script of Argo CD (`Waiting`).

mod overview;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::graph::RunProgress;
use super::step_run::POLICIES;
use crate::api::condition::{self, Truth};
use crate::api::workflow::{Phase, SessionPhase, Waiting, WorkflowStatus};
pub use overview::show_outputs;

/// Set while a run that failed still has attempts that finish.
pub const FAILING: &str = "Failing";

/// Whether the two differ by nothing but the progress of a fan-out: such a write may wait for the next.
pub fn differs_by_progress_only(before: &WorkflowStatus, after: &WorkflowStatus) -> bool {
    let settled = |status: &WorkflowStatus| {
        let mut status = status.clone();
        status.active_steps.clear();
        status.pending_acceptance.clear();
        status.acceptance_decisions.clear();
        status.iteration_progress.clear();
        status.waiting = None;
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
    status.observed_generation = at.1;
    status.phase = Some(Phase::Failed);
    status.completed_at = Some(at.0.clone());
    if let Some(session) = &mut status.session {
        session.phase = SessionPhase::Failed;
    }
    conditions(status, reason, message, at);
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
    let phase = phase(progress, end);
    status.phase = Some(phase);
    if phase.is_terminal() {
        status.completed_at = Some(now.clone());
        status.active_steps.clear();
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
        return if progress.open.step_runs() > 0 { Phase::Running } else { Phase::Cancelled };
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
        let (word, message) =
            if ended { ("Cancelled", "cancelled") } else { ("Cancelling", "its pods are being ended") };
        return (word.to_owned(), message.to_owned());
    }
    if let Some(failure) = &progress.failure {
        let class = if end == End::TimedOut { RUN_TIMEOUT.to_owned() } else { failure.class.to_string() };
        return (class, format!("{}: {}", failure.place, failure.message));
    }
    let message = match phase {
        Phase::WaitingForDocuments => {
            format!("missing: {}; put them with kubectl apply (kind Document)", progress.waits.documents.join(", "))
        }
        Phase::WaitingForAcceptance | Phase::WaitingForInput => {
            waiting(progress).map(|w| w.summary).unwrap_or_default()
        }
        Phase::Pending => progress.waits.pending.join("; "),
        Phase::Suspended => "spec.suspend is true".to_owned(),
        _ => String::new(),
    };
    (phase.to_string(), message)
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
    for (kind, on) in [("Reconciling", reconciling), ("Stalled", stalled)] {
        if on {
            condition::set(list, kind, Truth::True, reason, message, at);
        } else {
            condition::clear(list, kind);
        }
    }
}

#[cfg(test)]
mod tests;
