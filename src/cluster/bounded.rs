//! A store of what costs a request to get and never changes: bounded in bytes and in entries. Several may miss the same
//! key at once and all keep what they got: it counts once.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// Bytes that an entry costs beside its value, so that many small ones are bounded, too.
const ENTRY_BYTES: usize = 1024;

/// What is kept, and how much of the bound it takes.
struct Kept<V> {
    value: Arc<V>,
    bytes: usize,
}

// By hand: no value is copied.
impl<V> Clone for Kept<V> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), bytes: self.bytes }
    }
}

#[derive(Clone)]
struct Bytes;

impl<V> Weighter<String, Kept<V>> for Bytes {
    fn weight(&self, key: &String, kept: &Kept<V>) -> u64 {
        (key.len() + kept.bytes + ENTRY_BYTES) as u64
    }
}

/// The store; what was used least goes first.
pub struct Bounded<V>(Cache<String, Kept<V>, Bytes>);

impl<V: Send + Sync> Bounded<V> {
    /// Of at most that many bytes, `ENTRY_BYTES` for each entry included.
    pub fn new(bytes: usize) -> Self {
        Self(Cache::with_weighter(bytes / (8 * ENTRY_BYTES), bytes as u64, Bytes))
    }

    pub fn get(&self, key: &str) -> Option<Arc<V>> {
        self.0.get(key).map(|kept| kept.value)
    }

    /// Keeps a value of that many bytes; one that is larger than the store is not kept.
    pub fn keep(&self, key: String, value: Arc<V>, bytes: usize) {
        self.0.insert(key, Kept { value, bytes });
    }

    /// Bytes that are taken.
    pub fn bytes(&self) -> u64 {
        self.0.weight()
    }

    pub fn entries(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 1 << 20;

    fn kept(store: &Bounded<String>, key: &str, bytes: usize) {
        store.keep(key.to_owned(), Arc::new(key.to_owned()), bytes);
    }

    #[test]
    fn what_several_missed_at_once_counts_once() {
        let store: Bounded<String> = Bounded::new(BYTES);
        for _ in 0..100 {
            kept(&store, "a", 10_000);
        }
        assert_eq!((store.entries(), store.bytes()), (1, 1 + 10_000 + ENTRY_BYTES as u64));
        // It is written over by a larger one, and the bound knows.
        kept(&store, "a", 20_000);
        assert_eq!((store.entries(), store.bytes()), (1, 1 + 20_000 + ENTRY_BYTES as u64));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|n| kept(&store, &format!("key-{}", n % 10), 1_000)));
            }
        });
        assert!(store.entries() <= 11 && store.bytes() <= BYTES as u64, "{} {}", store.entries(), store.bytes());
        assert!(store.get("key-3").is_some_and(|v| *v == "key-3"));
    }

    #[test]
    fn neither_bytes_nor_entries_grow_without_end() {
        let store: Bounded<String> = Bounded::new(BYTES);
        for n in 0..100_000 {
            kept(&store, &format!("small-{n}"), 0);
        }
        assert!(store.entries() <= BYTES / ENTRY_BYTES, "{}", store.entries());
        for n in 0..1_000 {
            kept(&store, &format!("large-{n}"), 50_000);
            assert!(store.bytes() <= BYTES as u64, "{}", store.bytes());
        }
        kept(&store, "whale", 2 * BYTES);
        assert!(store.get("whale").is_none() && store.bytes() <= BYTES as u64);
        kept(&store, "last", 1);
        assert!(store.get("last").is_some(), "it goes on keeping");
    }
}
