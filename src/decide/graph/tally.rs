//! What adds up at one path, over all items, and how the status shows it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Outcome, Phase, StepStatus, decisions};
use crate::api::workflow::{AcceptanceDecision, Counts};

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub counts: Counts,
    /// StepRuns that are there.
    pub found: i32,
    /// Inside or at a forEach.
    pub plural: bool,
    pub running: usize,
    pub inputs: usize,
    pub gates: usize,
    pub documents: usize,
    pub suspended: usize,
    pub started_at: Option<Time>,
    pub completed_at: Option<Time>,
    pub step_run: Option<String>,
    pub when: Option<bool>,
    /// How a step outside of any forEach ended.
    pub phase: Option<Phase>,
    pub collection_digest: Option<String>,
    pub collection_documents: Vec<String>,
    pub cancelled: bool,
    /// StepRuns that were begun and are gone.
    pub lost: i32,
    /// How often this path is done, and how often it has to be; unknown before the items around it are.
    pub complete: usize,
    pub wanted: Option<usize>,
    /// What was decided at gates that no longer wait; of the items that have ended, the newest.
    pub decisions: Vec<AcceptanceDecision>,
}

/// One more item, as the path of a forEach over a group counts it.
pub(super) fn item(counts: &mut Counts, outcome: &Outcome) {
    counts.started += i32::from(!matches!(outcome, Outcome::Ahead));
    match outcome {
        Outcome::Done(seen) if seen.phase == Phase::Skipped => counts.skipped += 1,
        Outcome::Done(_) => counts.done += 1,
        Outcome::Failed(_) => counts.failed += 1,
        _ => {}
    }
}

pub(super) fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    [a, b].into_iter().flatten().min_by_key(|t| t.0)
}

pub(super) fn latest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    [a, b].into_iter().flatten().max_by_key(|t| t.0)
}

impl Tally {
    /// Adds what an item adds up to.
    pub(super) fn add(&mut self, other: &Self) {
        self.counts.total += other.counts.total;
        self.counts.started += other.counts.started;
        self.counts.done += other.counts.done;
        self.counts.failed += other.counts.failed;
        self.counts.skipped += other.counts.skipped;
        self.found += other.found;
        self.plural |= other.plural;
        self.running += other.running;
        self.inputs += other.inputs;
        self.gates += other.gates;
        self.documents += other.documents;
        self.suspended += other.suspended;
        self.started_at = earliest(self.started_at.take(), other.started_at.clone());
        self.completed_at = latest(self.completed_at.take(), other.completed_at.clone());
        self.cancelled |= other.cancelled;
        self.complete += other.complete;
        if let Some(more) = other.wanted {
            self.wanted = Some(self.wanted.unwrap_or_default() + more);
        }
        if !other.decisions.is_empty() {
            self.decisions.extend_from_slice(&other.decisions);
            self.decisions = decisions::newest(std::mem::take(&mut self.decisions));
        }
    }

    fn standing(&self) -> Phase {
        let complete = self.wanted.is_some_and(|wanted| wanted <= self.complete);
        let waits = [
            (self.running, Phase::Running),
            (self.inputs, Phase::WaitingForInput),
            (self.gates, Phase::WaitingForAcceptance),
            (self.documents, Phase::WaitingForDocuments),
            (self.suspended, Phase::Suspended),
        ];
        if complete && self.counts.skipped > 0 && self.counts.done + self.counts.failed == 0 {
            Phase::Skipped
        } else if complete && self.lost == 0 {
            self.phase.unwrap_or(Phase::Completed)
        } else if self.phase == Some(Phase::Failed) || self.counts.failed > 0 && self.running == 0 {
            Phase::Failed
        } else if let Some((_, phase)) = waits.into_iter().find(|(n, _)| *n > 0) {
            phase
        } else if self.cancelled {
            Phase::Cancelled
        } else if self.counts.done + self.counts.skipped > 0 {
            Phase::Running
        } else {
            Phase::Pending
        }
    }

    pub(super) fn status(self, path: &str) -> StepStatus {
        let phase = self.standing();
        let plural = self.plural || self.step_run.is_none() && self.counts.started > 1;
        StepStatus {
            path: path.to_owned(),
            phase,
            started_at: self.started_at,
            completed_at: self.completed_at.filter(|_| phase.is_terminal()),
            step_run: self.step_run,
            when: self.when,
            collection_digest: self.collection_digest,
            collection_documents: self.collection_documents,
            counts: plural.then_some(Counts { started: self.counts.started + self.lost, ..self.counts }),
            ..StepStatus::default()
        }
    }
}

/// Of the phases inside a group, the one that is the group's.
const PRECEDENCE: [Phase; 7] = [
    Phase::Failed,
    Phase::Running,
    Phase::WaitingForInput,
    Phase::WaitingForAcceptance,
    Phase::WaitingForDocuments,
    Phase::Suspended,
    Phase::Cancelled,
];

/// A group that is not complete stands where its steps stand. In file order: a group's steps follow it.
pub(super) fn roll_up(steps: &mut [StepStatus]) {
    for index in 0..steps.len() {
        let prefix = format!("{}/", steps[index].path);
        let inside = steps[index + 1..].iter().take_while(|s| s.path.starts_with(&prefix));
        let moved = PRECEDENCE.into_iter().find(|phase| inside.clone().any(|s| s.phase == *phase));
        let begun = inside.clone().any(|s| s.phase == Phase::Completed).then_some(Phase::Running);
        let started = inside.clone().filter_map(|s| s.started_at.clone()).min_by_key(|t| t.0);
        let completed = inside.filter_map(|s| s.completed_at.clone()).max_by_key(|t| t.0);
        let own = &mut steps[index];
        if own.phase == Phase::Pending {
            own.phase = moved.or(begun).unwrap_or(Phase::Pending);
        }
        if own.started_at.is_none() {
            own.started_at = started;
        }
        if own.phase.is_terminal() && own.completed_at.is_none() {
            own.completed_at = completed;
        }
    }
}
