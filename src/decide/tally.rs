//! What adds up at one path, over all items, and how the status shows it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decisions;
use super::outcome::Outcome;
use crate::api::step_run::AttemptResult;
use crate::api::usage::Usage;
use crate::api::workflow::{AcceptanceDecision, Counts, Phase, StepStatus};

#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// What people are shown of a forEach.
    pub counts: Counts,
    /// StepRuns that are there.
    pub found: i32,
    pub open: OpenCounts,
    pub started_at: Option<Time>,
    pub completed_at: Option<Time>,
    pub extent: Extent,
    pub latched: Latched,
    /// How a step outside of any forEach ended.
    pub phase: Option<Phase>,
    /// Something of it ended because the run did.
    pub cancelled: bool,
    /// StepRuns that were begun and are gone.
    pub lost: i32,
    /// What its agents said that they used.
    pub usage: Usage,
    /// What was decided at gates that no longer wait; of the items that have ended, the newest.
    pub decisions: Vec<AcceptanceDecision>,
}

/// StepRuns that have not ended, and steps that wait for documents, by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenCounts {
    pub running: usize,
    /// Questions that wait for an answer.
    pub inputs: usize,
    pub gates: usize,
    pub suspended: usize,
    /// Those that wait for their Agent or a slot.
    pub held: usize,
    /// Steps without a StepRun yet.
    pub documents: usize,
}

/// How often a path has to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Inside or at a forEach.
    pub plural: bool,
    pub complete: usize,
    /// Unknown before the items around it are.
    pub wanted: Option<usize>,
}

/// What the status keeps for good, of a step outside of any forEach.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latched {
    pub step_run: Option<String>,
    pub when: Option<bool>,
    pub collection: Option<Collection>,
}

/// The list that a forEach goes over: its digest, and the documents that it was read from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collection {
    pub digest: String,
    pub documents: Vec<String>,
}

impl OpenCounts {
    /// How many StepRuns have not ended.
    pub fn step_runs(&self) -> usize {
        self.running + self.inputs + self.gates + self.suspended + self.held
    }

    pub fn add(&mut self, other: &Self) {
        self.running += other.running;
        self.inputs += other.inputs;
        self.gates += other.gates;
        self.suspended += other.suspended;
        self.held += other.held;
        self.documents += other.documents;
    }
}

impl Extent {
    pub fn expect(&mut self, times: usize) {
        self.wanted = Some(self.wanted.unwrap_or_default() + times);
    }

    fn is_complete(self) -> bool {
        self.wanted.is_some_and(|wanted| wanted <= self.complete)
    }

    fn add(&mut self, other: Self) {
        self.plural |= other.plural;
        self.complete += other.complete;
        if let Some(more) = other.wanted {
            self.expect(more);
        }
    }
}

impl Latched {
    /// What is known here counts before what is known elsewhere.
    pub fn or(&mut self, other: &Self) {
        self.step_run = self.step_run.take().or_else(|| other.step_run.clone());
        self.when = self.when.or(other.when);
        self.collection = self.collection.take().or_else(|| other.collection.clone());
    }
}

impl From<&StepStatus> for Latched {
    fn from(status: &StepStatus) -> Self {
        let documents = &status.collection_documents;
        let collection = |digest: &String| Collection { digest: digest.clone(), documents: documents.clone() };
        Self {
            step_run: status.step_run.clone(),
            when: status.when,
            collection: status.collection_digest.as_ref().map(collection),
        }
    }
}

impl Tally {
    /// Adds what another part of the run adds up to.
    pub fn add(&mut self, other: &Self) {
        self.counts.total += other.counts.total;
        self.counts.started += other.counts.started;
        self.counts.done += other.counts.done;
        self.counts.failed += other.counts.failed;
        self.counts.skipped += other.counts.skipped;
        self.found += other.found;
        self.open.add(&other.open);
        self.started_at = earliest(self.started_at.take(), other.started_at.clone());
        self.completed_at = latest(self.completed_at.take(), other.completed_at.clone());
        self.extent.add(other.extent);
        self.latched.or(&other.latched);
        self.phase = self.phase.or(other.phase);
        self.cancelled |= other.cancelled;
        self.lost += other.lost;
        self.usage.add(&other.usage);
        if !other.decisions.is_empty() {
            self.decisions.extend_from_slice(&other.decisions);
            self.decisions = decisions::newest(std::mem::take(&mut self.decisions));
        }
    }

    /// One more item, as the path of a forEach over a group counts it.
    pub fn count_item(&mut self, outcome: &Outcome) {
        let counts = &mut self.counts;
        counts.started += i32::from(!matches!(outcome, Outcome::Ahead));
        match outcome {
            Outcome::Done(ended) if ended.phase == Phase::Skipped => counts.skipped += 1,
            Outcome::Done(_) => counts.done += 1,
            // As of a step: it ended with the run, and is no failure of its own.
            Outcome::Failed(failure) if failure.class == AttemptResult::Cancelled => self.cancelled = true,
            Outcome::Failed(_) => counts.failed += 1,
            _ => {}
        }
    }

    /// The phase that its counts come to.
    fn standing(&self) -> Phase {
        let complete = self.extent.is_complete();
        let waits = [
            (self.open.running, Phase::Running),
            (self.open.inputs, Phase::WaitingForInput),
            (self.open.gates, Phase::WaitingForAcceptance),
            (self.open.documents, Phase::WaitingForDocuments),
            (self.open.suspended, Phase::Suspended),
        ];
        if complete && self.counts.skipped > 0 && self.counts.done + self.counts.failed == 0 {
            Phase::Skipped
        } else if complete && self.lost == 0 {
            self.phase.unwrap_or(Phase::Completed)
        } else if self.phase == Some(Phase::Failed) || self.counts.failed > 0 && self.open.running == 0 {
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

    pub fn status(self, path: &str) -> StepStatus {
        let phase = self.standing();
        let plural = self.extent.plural || self.latched.step_run.is_none() && self.counts.started > 1;
        let (digest, documents) = self.latched.collection.map(|c| (c.digest, c.documents)).unzip();
        StepStatus {
            path: path.to_owned(),
            phase,
            started_at: self.started_at,
            completed_at: self.completed_at.filter(|_| phase.is_terminal()),
            step_run: self.latched.step_run,
            when: self.latched.when,
            collection_digest: digest,
            collection_documents: documents.unwrap_or_default(),
            counts: plural.then_some(Counts { started: self.counts.started + self.lost, ..self.counts }),
            ..StepStatus::default()
        }
    }
}

fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    [a, b].into_iter().flatten().min_by_key(|t| t.0)
}

fn latest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    [a, b].into_iter().flatten().max_by_key(|t| t.0)
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
pub fn roll_up(steps: &mut [StepStatus]) {
    for index in 0..steps.len() {
        let moved = PRECEDENCE.into_iter().find(|phase| inside(steps, index).any(|s| s.phase == *phase));
        let begun = inside(steps, index).any(|s| s.phase == Phase::Completed).then_some(Phase::Running);
        let started = inside(steps, index).filter_map(|s| s.started_at.clone()).min_by_key(|t| t.0);
        let completed = inside(steps, index).filter_map(|s| s.completed_at.clone()).max_by_key(|t| t.0);
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
    // What a list of items left undone, in those that failed and were tolerated, is done by nobody.
    for index in 0..steps.len() {
        let (whole, at) = (steps[index].phase, steps[index].completed_at.clone());
        if whole == Phase::Completed {
            let end = index + 1 + inside(steps, index).count();
            close(&mut steps[index + 1..end], (whole, at.as_ref()));
        }
    }
}

/// The steps of a group, and those in its groups.
fn inside(steps: &[StepStatus], index: usize) -> impl Iterator<Item = &StepStatus> {
    let prefix = format!("{}/", steps[index].path);
    steps[index + 1..].iter().take_while(move |s| s.path.starts_with(&prefix))
}

/// What these belong to has ended, at that time: what never began was skipped, what was cut short ended with the whole.
pub fn close(steps: &mut [StepStatus], (whole, at): (Phase, Option<&Time>)) {
    let own = |s: &StepStatus| s.step_run.is_some() || s.counts.is_some_and(|c| c.started > 0);
    let begun: Vec<bool> = (0..steps.len()).map(|n| own(&steps[n]) || inside(steps, n).any(own)).collect();
    for (step, begun) in steps.iter_mut().zip(begun) {
        // Of a group inside of items only its steps are counted.
        let counted = step.counts.as_mut().filter(|c| c.started > 0 || !begun);
        if let Some(counts) = counted {
            counts.skipped = counts.skipped.max(counts.total - counts.started);
        }
        if step.phase.is_terminal() {
            continue;
        }
        step.phase = match (begun, step.counts.is_some_and(|c| c.failed > 0)) {
            (false, _) => Phase::Skipped,
            (true, true) => Phase::Failed,
            (true, false) if whole == Phase::Completed => Phase::Completed,
            (true, false) => Phase::Cancelled,
        };
        if begun && step.completed_at.is_none() {
            step.completed_at = at.cloned();
        }
    }
}
