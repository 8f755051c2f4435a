//! The numbers of documents. Of two that are published at once in one place both read a cache that shows neither: what
//! this process has given is remembered until the cache shows it, and no number is given twice.

#![expect(clippy::disallowed_methods, reason = "how long a number is remembered that no cache shows")]

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;

use super::cache::Cache;
use crate::api::Document;
use crate::decide::document;

/// Longer than a write takes that is under way, and a watch that is broken for a while.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// Places remembered before those are looked for in which nobody publishes any more.
const REMEMBERED: usize = 4096;

/// The numbers that this process has given.
#[derive(Default)]
pub struct Revisions {
    given: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    by_place: HashMap<String, Numbers>,
    /// From so many on they are looked through; it doubles with those that stay.
    limit: usize,
}

/// Those of one place, by UID of the document, and when each was given.
type Numbers = HashMap<String, (i64, Instant)>;

impl Revisions {
    /// The number under which a document is published: after all that its place shows, and all that were given there to others. It
    /// is asked for only by a pass that publishes the document; asked for again, it is the same one unless others came after.
    pub fn next(&self, document: &Document, cache: &Cache<Document>) -> i64 {
        let (namespace, uid) = (document.namespace().unwrap_or_default(), document.uid().unwrap_or_default());
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let Places { by_place, limit } = &mut *given;
        if by_place.len() >= REMEMBERED.max(*limit) {
            by_place.retain(|_, numbers| numbers.values().any(|(_, at)| at.elapsed() < KEPT));
            *limit = 2 * by_place.len();
        }
        // Read only now: nobody else forgets in between what this copy does not show yet.
        let siblings = document::siblings(&cache.table(&namespace), document);
        let numbers = by_place.entry(format!("{namespace}/{}", document::place_of(document))).or_default();
        let shown: HashSet<&str> =
            siblings.iter().filter(|d| document::has_standing(d)).filter_map(|d| d.metadata.uid.as_deref()).collect();
        numbers.retain(|of, (_, at)| at.elapsed() < KEPT && !shown.contains(of.as_str()));
        let last = numbers.iter().filter(|(of, _)| **of != uid).map(|(_, (number, _))| *number).max();
        let next = document::next_revision(document, &siblings).max(last.unwrap_or_default() + 1);
        numbers.insert(uid, (next, Instant::now()));
        next
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;
    use crate::cluster::world::World;

    fn document(name: &str, session: &str, revision: Option<i64>) -> Document {
        let status = revision.map(|revision| json!({"phase": "Published", "revision": revision}));
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "namespace": "team"}, "status": status,
            "spec": {"type": "plan", "scope": "Session", "session": session, "content": ""}}))
        .expect("a document")
    }

    #[test]
    fn no_number_is_given_twice_while_the_cache_is_behind() {
        let (revisions, cache) = (Revisions::default(), World::default().documents);
        let next = |name: &str| revisions.next(&document(name, "s", None), &cache);
        assert_eq!(["a", "b", "c"].map(next), [1, 2, 3], "side by side");
        assert_eq!(revisions.next(&document("d", "other", None), &cache), 1, "each place has its own");
        // A write that failed is repeated: with its number where no other came after, else with the next.
        assert_eq!(["c", "b"].map(next), [3, 4]);
        cache.take(Event::Apply(document("a", "s", Some(1))));
        cache.take(Event::Apply(document("b", "s", Some(7))));
        assert_eq!(["e", "c"].map(next), [8, 9], "another operator has come further");
    }
}
