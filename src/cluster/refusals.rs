//! Jobs that the API server refused to take: quota, admission policy; or whose name somebody else holds. Kept by name
//! until the next pass makes an attempt that failed of it; bounded, the oldest goes first and is then simply refused again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

const KEPT: usize = 1024;

#[derive(Default)]
pub struct Refusals {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_name: HashMap<(String, String), String>,
    order: VecDeque<(String, String)>,
}

impl Refusals {
    pub fn remember(&self, namespace: &str, job: &str, message: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), job.to_owned());
        if inner.by_name.insert(key.clone(), message.to_owned()).is_none() {
            inner.order.push_back(key);
        }
        if inner.order.len() > KEPT
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.by_name.remove(&oldest);
        }
    }

    pub fn of(&self, namespace: &str, job: &str) -> Option<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.by_name.get(&(namespace.to_owned(), job.to_owned())).cloned()
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
        refusals.remember("team", "job-1", "quota again");
        assert_eq!(refusals.of("team", "job-0"), None);
        assert_eq!(refusals.of("team", "job-1").as_deref(), Some("quota again"));
        assert_eq!(refusals.of("other", "job-1"), None);
    }
}
