//! Progress: for people's eyes only, so it is written seldom and may be lost.

#![expect(clippy::disallowed_methods, reason = "progress is written at a bounded pace")]

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::Asked;
use super::cluster::{add, patch_status};
use super::judge::line;
use super::refusal::{Refusal, Result};
use super::{Gateway, attempt};
use crate::api::step_run::Progress;
use crate::decide::claim;
use crate::protocol::{AttemptRef, ProgressRequest};

const APART: Duration = Duration::from_secs(2);
const KEPT: usize = 16_384;
const MESSAGE_CHARS: usize = 256;

/// When each attempt's progress was last written by this gateway.
#[derive(Default)]
pub struct Pace(Mutex<HashMap<(String, i32), Instant>>);

impl Pace {
    /// Whether it is time to write, counted from now if so.
    fn due(&self, who: &AttemptRef, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (who.uid.clone(), who.attempt);
        if last.get(&key).is_some_and(|at| now.duration_since(*at) < APART) {
            return false;
        }
        if last.len() >= KEPT {
            last.retain(|_, at| now.duration_since(*at) < APART);
        }
        if last.len() >= KEPT {
            return false;
        }
        last.insert(key, now);
        true
    }
}

pub async fn progress(gateway: &Gateway, request: Asked<ProgressRequest>) -> Result<()> {
    let (who, request) = (&request.attempt, &request.body);
    if !(0..=100).contains(&request.percent) {
        return Err(Refusal::bad_request("percent: must be 0 to 100"));
    }
    if !gateway.pace.due(who, Instant::now()) {
        return Ok(());
    }
    let progress =
        Progress { percent: request.percent, message: line(&request.message, MESSAGE_CHARS), at: gateway.clock.now() };
    // No read before the write: the tests are the check. The token already proved pod and attempt.
    let mut operations = attempt::tests(claim::held_still(&who.uid, who.attempt, &attempt::id_digest(who)));
    operations.push(add("/status/agent/progress", &progress));
    match patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await {
        Ok(()) => Ok(()),
        Err(failure) if failure.is_outrun() || failure.is_not_found() => {
            Err(Refusal::fenced("the attempt is not the running one"))
        }
        Err(failure) => Err(failure.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_writes_every_two_seconds_at_most() {
        let pace = Pace::default();
        let who = |uid: &str, attempt: i32| AttemptRef {
            namespace: String::new(),
            step_run: String::new(),
            uid: uid.to_owned(),
            attempt,
            id: String::new(),
        };
        let begun = Instant::now();
        let later = |millis: u64| begun + Duration::from_millis(millis);
        assert!(pace.due(&who("a", 1), later(0)));
        assert!(!pace.due(&who("a", 1), later(1999)));
        assert!(pace.due(&who("a", 2), later(1999)));
        assert!(pace.due(&who("b", 1), later(1999)));
        assert!(pace.due(&who("a", 1), later(2000)));
    }
}
