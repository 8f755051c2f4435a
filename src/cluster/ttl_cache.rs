//! A cache of answers of the API server that are valid for a fixed time. It is bounded in entries: what finds no room is not
//! kept, and is asked for again each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Values by key, each valid for the same time after it was asked for.
pub struct TtlCache<V> {
    ttl: Duration,
    capacity: usize,
    answers: Mutex<HashMap<String, (Instant, V)>>,
}

impl<V: Clone> TtlCache<V> {
    /// A cache of at most `capacity` entries, each valid for `ttl`.
    pub fn new(ttl: Duration, capacity: usize) -> Self {
        Self { ttl, capacity, answers: Mutex::default() }
    }

    /// The value under this key, unless its time is over.
    pub fn get(&self, key: &str) -> Option<V> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).filter(|(at, _)| at.elapsed() < self.ttl).map(|(_, answer)| answer.clone())
    }

    /// Forgets the value under this key.
    pub fn remove(&self, key: &str) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// The number of entries, those included whose time is over.
    pub fn entries(&self) -> usize {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Keeps a value whose time began when it was asked for. A full cache drops what is over; if it is full still, it keeps
    /// nothing.
    pub fn insert(&self, key: String, answer: V, asked_at: Instant) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= self.capacity {
            answers.retain(|_, (at, _)| at.elapsed() < self.ttl);
        }
        if answers.len() < self.capacity || answers.contains_key(&key) {
            answers.insert(key, (asked_at, answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_its_time_and_there_are_not_too_many() {
        let cache: TtlCache<u32> = TtlCache::new(Duration::from_secs(10), 2);
        let now = Instant::now();
        for (key, answer) in [("a", 1), ("b", 2), ("c", 3)] {
            cache.insert(key.to_owned(), answer, now);
        }
        assert_eq!((cache.get("a"), cache.get("b"), cache.get("c")), (Some(1), Some(2), None));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(cache.get("a"), None);
        cache.insert("c".to_owned(), 3, Instant::now());
        assert_eq!(cache.get("c"), Some(3), "what is over makes room");
        cache.remove("c");
        assert_eq!((cache.get("c"), cache.entries()), (None, 0));
    }
}
