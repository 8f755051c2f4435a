//! What of a run can no longer change: items of a forEach that ended, values that were computed from pinned inputs. Kept
//! in memory between passes, so that a pass costs as much as what is open, not as much as there is. A pass without it
//! comes to the same findings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde_json::Value;

use super::outcome::{Ended, Failure, Item};
use super::tally::{Collection, Tally};
use crate::api::Document;
use crate::api::step_run::AttemptResult;

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
    /// Documents that the run and its steps have put, and of which the API server has said that they are there no more: it is
    /// asked once.
    pub gone: Arc<BTreeSet<String>>,
    /// Those that the API server has shown, and the cache has not, without their contents.
    pub shown: Arc<BTreeMap<String, Arc<Document>>>,
}

impl Settled {
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty() && self.values.is_empty() && self.gone.is_empty() && self.shown.is_empty()
    }
}

/// What the ended items of a forEach add up to, by path.
pub type Sums = BTreeMap<String, Tally>;

/// The items of one forEach.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub items: Arc<Vec<(String, Arc<Value>)>>,
    pub collection: Collection,
    /// How each ended; nothing for those that are open or ahead.
    pub ended: RedBlackTreeMapSync<usize, EndedItem>,
    /// Begun and not ended, with the StepRuns in them that have not.
    pub open: BTreeMap<usize, Vec<String>>,
    /// All before it were begun.
    pub frontier: usize,
    pub sums: Sums,
    /// StepRuns of the ended ones.
    pub step_runs: usize,
    pub failures: Failures,
    /// Bytes that the outputs of the ended ones have at least; what is past the bound of a list is counted, and not kept.
    pub bytes: usize,
    /// Once all have ended.
    pub output: Option<Arc<Vec<Item>>>,
}

/// The items of a forEach that failed.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    pub count: usize,
    pub first: Option<Failure>,
    /// The first that nothing passes over.
    pub fatal: Option<Failure>,
    /// The first that ended because the run did.
    pub cancelled: Option<Failure>,
}

impl List {
    /// Whether an item was begun, or has ended without.
    pub fn is_begun(&self, index: usize) -> bool {
        self.open.contains_key(&index) || self.ended.contains_key(&index)
    }
}

impl Failures {
    pub fn add(&mut self, failure: Failure) {
        self.count += 1;
        if failure.class == AttemptResult::Cancelled {
            self.cancelled.get_or_insert(failure);
            return;
        }
        if !failure.may_pass() {
            self.fatal.get_or_insert(failure.clone());
        }
        self.first.get_or_insert(failure);
    }
}

#[derive(Clone, Debug)]
pub enum EndedItem {
    Done(Ended),
    Failed,
}
