//! What the API server refused to take: Jobs, by quota or an admission policy, or because somebody else holds the name; and
//! the first write of a run. Kept by name (of a run by UID) until a pass makes an end of it; bounded, the oldest goes first and
//! is then simply refused again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

const KEPT: usize = 1024;

#[derive(Default)]
pub struct Refusals {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// What was said, and how often it was refused.
    by_name: HashMap<(String, String), (String, u32)>,
    order: VecDeque<(String, String)>,
}

impl Refusals {
    /// Gives how often it was refused by now.
    pub fn remember(&self, namespace: &str, job: &str, message: &str) -> u32 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), job.to_owned());
        let times = inner.by_name.get(&key).map_or(0, |(_, times)| *times).saturating_add(1);
        if inner.by_name.insert(key.clone(), (message.to_owned(), times)).is_none() {
            inner.order.push_back(key);
        }
        if inner.order.len() > KEPT
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.by_name.remove(&oldest);
        }
        times
    }

    pub fn of(&self, namespace: &str, job: &str) -> Option<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.by_name.get(&(namespace.to_owned(), job.to_owned())).map(|(message, _)| message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept() {
        let refusals = Refusals::default();
        for n in 0..=KEPT {
            refusals.remember("team", &format!("job-{n}"), "quota");
        }
        assert_eq!(refusals.remember("team", "job-1", "quota again"), 2);
        assert_eq!(refusals.of("team", "job-0"), None);
        assert_eq!(refusals.of("team", "job-1").as_deref(), Some("quota again"));
        assert_eq!(refusals.of("other", "job-1"), None);
    }
}
