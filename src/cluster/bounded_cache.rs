//! A cache of values that cost a request to get and never change. It is bounded in bytes, and in entries by what each
//! costs beside its value. Several callers may miss the same key at once and all insert what they got: it counts once.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// Bytes that an entry costs beside its value, so that many small ones are bounded, too.
const ENTRY_BYTES: usize = 1024;

/// A value, and how many bytes of the bound it takes.
struct CacheEntry<V> {
    value: Arc<V>,
    bytes: usize,
}

// By hand: no value is copied.
impl<V> Clone for CacheEntry<V> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), bytes: self.bytes }
    }
}

#[derive(Clone)]
struct Bytes;

impl<V> Weighter<String, CacheEntry<V>> for Bytes {
    fn weight(&self, key: &String, entry: &CacheEntry<V>) -> u64 {
        (key.len() + entry.bytes + ENTRY_BYTES) as u64
    }
}

/// A cache of a fixed size in bytes; the values that were used least are evicted first.
pub struct BoundedCache<V>(Cache<String, CacheEntry<V>, Bytes>);

impl<V: Send + Sync> BoundedCache<V> {
    /// A cache of at most that many bytes, `ENTRY_BYTES` for each entry included.
    pub fn new(bytes: usize) -> Self {
        Self(Cache::with_weighter(bytes / (8 * ENTRY_BYTES), bytes as u64, Bytes))
    }

    pub fn get(&self, key: &str) -> Option<Arc<V>> {
        self.0.get(key).map(|entry| entry.value)
    }

    /// Keeps a value of that many bytes; one that is larger than the whole cache is not kept.
    pub fn insert(&self, key: String, value: Arc<V>, bytes: usize) {
        self.0.insert(key, CacheEntry { value, bytes });
    }

    /// The bytes that all entries take.
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

    fn insert(store: &BoundedCache<String>, key: &str, bytes: usize) {
        store.insert(key.to_owned(), Arc::new(key.to_owned()), bytes);
    }

    #[test]
    fn what_several_missed_at_once_counts_once() {
        let store: BoundedCache<String> = BoundedCache::new(BYTES);
        for _ in 0..100 {
            insert(&store, "a", 10_000);
        }
        assert_eq!((store.entries(), store.bytes()), (1, 1 + 10_000 + ENTRY_BYTES as u64));
        // It is written over by a larger one, and the bound knows.
        insert(&store, "a", 20_000);
        assert_eq!((store.entries(), store.bytes()), (1, 1 + 20_000 + ENTRY_BYTES as u64));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|n| insert(&store, &format!("key-{}", n % 10), 1_000)));
            }
        });
        assert!(store.entries() <= 11 && store.bytes() <= BYTES as u64, "{} {}", store.entries(), store.bytes());
        assert!(store.get("key-3").is_some_and(|v| *v == "key-3"));
    }

    #[test]
    fn neither_bytes_nor_entries_grow_without_end() {
        let store: BoundedCache<String> = BoundedCache::new(BYTES);
        for n in 0..100_000 {
            insert(&store, &format!("small-{n}"), 0);
        }
        assert!(store.entries() <= BYTES / ENTRY_BYTES, "{}", store.entries());
        for n in 0..1_000 {
            insert(&store, &format!("large-{n}"), 50_000);
            assert!(store.bytes() <= BYTES as u64, "{}", store.bytes());
        }
        insert(&store, "whale", 2 * BYTES);
        assert!(store.get("whale").is_none() && store.bytes() <= BYTES as u64);
        insert(&store, "last", 1);
        assert!(store.get("last").is_some(), "it goes on keeping");
    }
}
