//! Bounds the streams that are open at once, in all and by user. Nobody waits: a stream beyond a bound is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts the open streams; clones count together.
#[derive(Clone)]
pub struct StreamLimiter(Arc<Shared>);

struct Shared {
    max: usize,
    max_per_user: usize,
    held: Mutex<HashMap<Arc<str>, usize>>,
}

/// Counts one stream until it is dropped.
pub struct StreamPermit {
    of: Arc<Shared>,
    user: Arc<str>,
}

impl StreamLimiter {
    /// At most `max` streams in all, and `max_per_user` of one user.
    pub fn new(max: usize, max_per_user: usize) -> Self {
        Self(Arc::new(Shared { max, max_per_user, held: Mutex::default() }))
    }

    /// Counts one more stream of this user; none where a bound is reached.
    pub fn try_acquire(&self, user: &Arc<str>) -> Option<StreamPermit> {
        let mut held = self.0.lock();
        let own = held.get(user).copied().unwrap_or_default();
        if own >= self.0.max_per_user || held.values().sum::<usize>() >= self.0.max {
            return None;
        }
        held.insert(Arc::clone(user), own + 1);
        Some(StreamPermit { of: Arc::clone(&self.0), user: Arc::clone(user) })
    }

    /// The streams that are open now.
    pub fn in_use(&self) -> usize {
        self.0.lock().values().sum()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut held = self.of.lock();
        if let Some(own) = held.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_all_together_nor_one_user_has_more_than_its_bound() {
        let streams = StreamLimiter::new(3, 2);
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let one = streams.try_acquire(&ann).expect("free");
        let _two = streams.try_acquire(&ann).expect("free");
        assert!(streams.try_acquire(&ann).is_none(), "ann has her share");
        let _three = streams.try_acquire(&bob).expect("free");
        assert!(streams.try_acquire(&bob).is_none(), "all are taken");
        drop(one);
        assert!(streams.try_acquire(&bob).is_some());
        assert_eq!(streams.in_use(), 2);
    }
}
