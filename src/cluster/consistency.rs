//! Caches may be older than our own writes. What we wrote is remembered by UID; a pass over an older copy waits for the
//! watch, and is given a fresh copy if the watch does not bring it.

#![expect(clippy::disallowed_methods, reason = "how long an own write is waited for in the cache")]

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::core::ObjectMeta;
use tokio::time::Instant;

/// How long the watch may take before the API server is asked.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Writes remembered before those are looked for that nobody asks about any more: the object was deleted after the write.
const REMEMBERED: usize = 16_384;

#[derive(Default)]
pub struct Consistency {
    written: Mutex<HashMap<String, (u64, Instant)>>,
}

/// How a cached copy compares with what we wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh,
    /// Older than our write; wait for the watch.
    Behind,
    /// And for too long: ask.
    TooLong,
}

impl Consistency {
    /// Remembers a write.
    pub fn wrote(&self, meta: &ObjectMeta) {
        if let (Some(uid), Some(version)) = (&meta.uid, number(meta)) {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.insert(uid.clone(), (version, Instant::now()));
            if written.len() > REMEMBERED {
                // What is older than this is read from the API server anyway.
                written.retain(|_, (_, since)| since.elapsed() < PATIENCE);
            }
        }
    }

    /// Compares, and forgets what the cache has caught up with.
    pub fn freshness(&self, meta: &ObjectMeta) -> Freshness {
        let Some(uid) = &meta.uid else {
            return Freshness::Fresh;
        };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        match (written.get(uid), number(meta)) {
            (Some((version, since)), Some(seen)) if seen < *version => {
                if since.elapsed() < PATIENCE {
                    Freshness::Behind
                } else {
                    Freshness::TooLong
                }
            }
            _ => {
                written.remove(uid);
                Freshness::Fresh
            }
        }
    }
}

/// Versions of one kind are numbers that grow, officially so since Kubernetes 1.35 and in fact long before.
fn number(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_older_than_our_write_is_noticed_once() {
        let meta = |version: &str| ObjectMeta {
            uid: Some("u".into()),
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        };
        let consistency = Consistency::default();
        assert_eq!(consistency.freshness(&meta("5")), Freshness::Fresh);
        consistency.wrote(&meta("10"));
        assert_eq!(consistency.freshness(&meta("9")), Freshness::Behind);
        assert_eq!(consistency.freshness(&meta("10")), Freshness::Fresh);
        assert_eq!(consistency.freshness(&meta("9")), Freshness::Fresh);
    }
}
