//! What of a run can no longer change: items of a forEach that ended, values that were computed from pinned inputs. Kept
//! in memory between passes, so that a pass costs as much as what is open, not as much as there is. A pass without it
//! comes to the same findings.

use std::collections::BTreeMap;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde_json::Value;

use super::graph::{Failure, Tally};
use super::scope::{Item, Seen};

#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// By path of the forEach and the keys of the items around it.
    pub lists: BTreeMap<String, Arc<List>>,
    /// Outputs of groups outside of any forEach, by place.
    pub values: BTreeMap<String, Arc<Value>>,
    /// StepRuns there were, and the names of those that had not ended.
    pub step_runs: usize,
    pub open: Vec<String>,
    /// Those that have ended, and whose documents the cache did not show yet.
    pub late: Vec<String>,
}

impl Settled {
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty() && self.values.is_empty()
    }
}

/// The items of one forEach.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub items: Arc<Vec<(String, Arc<Value>)>>,
    /// Digest of the list, and the documents that it was read from.
    pub digest: String,
    pub documents: Vec<String>,
    /// How each ended; nothing for those that are open or ahead.
    pub ended: RedBlackTreeMapSync<usize, Ended>,
    /// Begun and not ended, with the StepRuns in them that have not.
    pub open: BTreeMap<usize, Vec<String>>,
    /// All before it were begun.
    pub frontier: usize,
    /// What the ended ones add up to, by path.
    pub sums: BTreeMap<String, Tally>,
    /// StepRuns of the ended ones.
    pub step_runs: usize,
    /// How many failed; the first of them, and the first that nothing passes over.
    pub failed: usize,
    pub first: Option<Failure>,
    pub fatal: Option<Failure>,
    /// The first that ended because the run did.
    pub cancelled: Option<Failure>,
    /// Once all have ended.
    pub output: Option<Arc<Vec<Item>>>,
}

impl List {
    /// Whether an item was begun, or has ended without.
    pub fn is_begun(&self, index: usize) -> bool {
        self.open.contains_key(&index) || self.ended.contains_key(&index)
    }
}

#[derive(Clone, Debug)]
pub enum Ended {
    Done(Seen),
    Failed,
}
