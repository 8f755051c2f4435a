//! The result of walking over a part of a run. Each part gives its own, and the caller adds it to that of the other parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::NewStepRun;
use crate::api::limits::PENDING;
use crate::api::workflow::PendingAcceptance;
use crate::decide::outcome::Outcome;
use crate::decide::settled::{List, Sums};
use crate::decide::tally::Tally;

/// The outcome of a part of the run, and what the walk over it found.
pub struct Visited {
    pub outcome: Outcome,
    pub found: WalkResult,
}

/// What a walk found, summed over all parts that were visited.
#[derive(Default)]
pub struct WalkResult {
    /// By path. What is to be made is not counted before it is sure.
    pub tallies: Sums,
    /// What is open, and what is to be made, in the order of the walk.
    pub active: Vec<Active>,
    pub waits: Waits,
    /// StepRuns that were met.
    pub step_runs: usize,
    /// Items of forEach that were looked at.
    pub looked: usize,
    /// Some attempt was claimed.
    pub busy: bool,
    /// What is to be remembered: lists of forEach, and outputs of groups.
    pub lists: BTreeMap<String, Arc<List>>,
    pub values: BTreeMap<String, Arc<Value>>,
}

/// A place in the run at which something is open or begins.
pub struct Active {
    /// `path/key`.
    pub place: String,
    pub state: ActiveState,
}

pub enum ActiveState {
    /// It waits for something before its StepRun can be made.
    Waits,
    /// A StepRun of that name, which has not ended.
    Open(String),
    /// A StepRun of that name that is to be made.
    Begins(String, Box<NewStepRun>),
}

/// What is waited for, for people.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    pub acceptance: Vec<PendingAcceptance>,
    pub documents: Vec<String>,
    /// What waits for something that is not there.
    pub pending: Vec<WaitReason>,
    /// The first that waits for the admission policies, and what is missing.
    pub unproven: Option<String>,
}

/// Why a step does not start, as a condition says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitReason {
    /// One word in CamelCase, for tools.
    pub reason: String,
    /// The step, and what it waits for.
    pub message: String,
}

impl Active {
    /// Its StepRun, which is open or will be.
    pub fn step_run(&self) -> Option<&String> {
        match &self.state {
            ActiveState::Waits => None,
            ActiveState::Open(name) | ActiveState::Begins(name, _) => Some(name),
        }
    }

    fn begins(&self) -> bool {
        matches!(self.state, ActiveState::Begins(..))
    }
}

impl WalkResult {
    pub fn tally(&mut self, path: &str) -> &mut Tally {
        self.tallies.entry(path.to_owned()).or_default()
    }

    /// Adds what another part of the run found, further on in the walk.
    pub fn add(&mut self, other: Self) {
        self.add_sums(&other.tallies);
        self.active.extend(other.active);
        self.waits.add(other.waits);
        self.step_runs += other.step_runs;
        self.looked += other.looked;
        self.busy |= other.busy;
        self.lists.extend(other.lists);
        self.values.extend(other.values);
    }

    pub fn add_sums(&mut self, sums: &Sums) {
        for (path, sum) in sums {
            self.tally(path).add(sum);
        }
    }

    /// Whether a StepRun is to be made.
    pub fn begins(&self) -> bool {
        self.active.iter().any(Active::begins)
    }

    /// Whether a StepRun that is there has not ended.
    pub fn runs(&self) -> bool {
        self.active.iter().any(|active| matches!(active.state, ActiveState::Open(_)))
    }

    /// Names of StepRuns that are open or will be.
    pub fn unfinished(&self) -> Vec<String> {
        self.active.iter().filter_map(Active::step_run).cloned().collect()
    }

    /// Once something failed, what was to begin beside it does not.
    pub fn hold_back(&mut self) {
        self.active.retain(|active| !active.begins());
    }

    /// It goes no further, and nothing begins in it.
    pub fn visited(self, outcome: Outcome) -> Visited {
        Visited { outcome, found: self }
    }
}

impl Waits {
    fn add(&mut self, other: Self) {
        self.acceptance.extend(other.acceptance);
        self.acceptance.truncate(PENDING);
        other.documents.into_iter().for_each(|kind| self.document(kind));
        self.pending.extend(other.pending);
        self.pending.truncate(PENDING);
        self.unproven = self.unproven.take().or(other.unproven);
    }

    /// A document of that type is missing.
    pub fn document(&mut self, kind: String) {
        if self.documents.len() < PENDING && !self.documents.contains(&kind) {
            self.documents.push(kind);
        }
    }
}
