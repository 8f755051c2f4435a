//! Where objects are kept, and what happened to them. One commit is one change of one object, and one version.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::kind::Kind;
use super::object::{Key, Object};

/// The type of a change, as a watch names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeType {
    Added,
    Modified,
    Deleted,
}

#[derive(Clone, Debug)]
pub struct Change {
    pub change_type: ChangeType,
    /// The object with the version of this commit; a deleted one as it was last.
    pub object: Arc<Object>,
    /// The version before, except where it was added.
    pub before: Option<Arc<Object>>,
}

/// Whoever keeps objects elsewhere, on disk for example, implements this. The server calls it under its lock: one call at
/// a time, each short.
pub trait Store: Send {
    /// The version of the last commit, 0 before the first.
    fn version(&self) -> u64;

    fn find(&self, key: &Key) -> Option<Arc<Object>>;

    /// All objects of a kind, by namespace and name.
    fn list(&self, kind: Kind) -> Vec<Arc<Object>>;

    /// Keeps a change, whose object has the next version.
    fn commit(&mut self, change: Change);

    /// The changes after a version, oldest first; none where some of them are not kept any more.
    fn changes(&self, after: u64) -> Option<Vec<Change>>;
}

/// A store that keeps everything in memory, so that it ends with its process.
pub struct MemoryStore {
    objects: BTreeMap<Key, Arc<Object>>,
    version: u64,
    changes: VecDeque<Change>,
    /// Changes that are kept for watches; whoever is further behind lists again.
    kept: usize,
}

impl MemoryStore {
    /// An empty store that keeps at most this many changes for watches.
    pub fn keeping(kept: usize) -> Self {
        Self { objects: BTreeMap::new(), version: 0, changes: VecDeque::new(), kept }
    }

    /// A store with these objects, as of that version. Changes before it are not kept: watches that ask for them list again.
    pub fn restored(objects: impl IntoIterator<Item = Object>, version: u64, kept: usize) -> Self {
        let objects = objects.into_iter().map(|object| (object.key.clone(), Arc::new(object))).collect();
        Self { objects, version, changes: VecDeque::new(), kept }
    }
}

/// As many changes as a watch cache of Kubernetes holds at most by default, and no more memory than they need.
impl Default for MemoryStore {
    fn default() -> Self {
        Self::keeping(100 * 1024)
    }
}

impl Store for MemoryStore {
    fn version(&self) -> u64 {
        self.version
    }

    fn find(&self, key: &Key) -> Option<Arc<Object>> {
        self.objects.get(key).cloned()
    }

    fn list(&self, kind: Kind) -> Vec<Arc<Object>> {
        let from = Key { kind, namespace: String::new(), name: String::new() };
        self.objects
            .range(from..)
            .take_while(|(key, _)| key.kind == kind)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    fn commit(&mut self, change: Change) {
        self.version = change.object.version;
        match change.change_type {
            ChangeType::Deleted => drop(self.objects.remove(&change.object.key)),
            ChangeType::Added | ChangeType::Modified => {
                self.objects.insert(change.object.key.clone(), Arc::clone(&change.object));
            }
        }
        self.changes.push_back(change);
        if self.changes.len() > self.kept {
            self.changes.pop_front();
        }
    }

    fn changes(&self, after: u64) -> Option<Vec<Change>> {
        let oldest = self.version - self.changes.len() as u64;
        if after < oldest {
            return None;
        }
        let known = usize::try_from(after.min(self.version) - oldest).unwrap_or_default();
        Some(self.changes.range(known..).cloned().collect())
    }
}
