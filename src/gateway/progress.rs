//! Progress: for people's eyes only, so it is written seldom. What comes too soon is refused and not dropped: the shim comes
//! again with the newest, so that an agent's last word before a silence is written, too.

#![expect(clippy::disallowed_methods, reason = "progress is written at a bounded pace")]

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::Asked;
use super::auth::Caller;
use super::cluster::{add, patch_status, test};
use super::judge::line;
use super::refusal::{Refusal, Result};
use super::{Gateway, attempt};
use crate::api::step_run::Progress;
use crate::decide::claim;
use crate::protocol::{AttemptRef, ProgressRequest};

const APART: Duration = Duration::from_secs(2);
const KEPT: usize = 16_384;
const MESSAGE_CHARS: usize = 256;
/// Writes of progress of a gateway in a second, and at once after a pause.
const WRITES: u32 = 50;
/// Of those at once, what is for attempts that have said nothing yet: their first word waits for no talkative ones.
const FOR_FIRST: u32 = 25;

/// When each attempt's progress, or its usage, was last written by this gateway; by the pod that speaks for it, so that another
/// one, whose word is refused in the end, keeps nothing waiting.
pub struct Pace {
    state: Mutex<State>,
    /// Whether all attempts together are bounded, too.
    is_shared: bool,
}

#[derive(Default)]
struct State {
    last: HashMap<(String, i32, String), Instant>,
    /// A bucket: until when what was written is paid for, no more than its depth ahead of now.
    paid_until: Option<Instant>,
}

impl State {
    /// Takes one of the writes of all attempts, if one is left of so many at once.
    fn take(&mut self, depth: u32, now: Instant) -> bool {
        let price = Duration::from_secs(1) / WRITES;
        let from = self.paid_until.map_or(now, |until| until.max(now));
        let is_left = from.duration_since(now) <= price * (depth - 1);
        if is_left {
            self.paid_until = Some(from + price);
        }
        is_left
    }
}

impl Pace {
    /// Each attempt for itself.
    pub fn of_each() -> Self {
        Self { state: Mutex::default(), is_shared: false }
    }

    /// Each attempt, and all of them together.
    pub fn of_all() -> Self {
        Self { state: Mutex::default(), is_shared: true }
    }

    /// Whether it is time to write, counted from now if so.
    pub fn due(&self, who: &AttemptRef, pod: &str, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (who.uid.clone(), who.attempt, pod.to_owned());
        let last = state.last.get(&key).copied();
        if last.is_some_and(|at| now.duration_since(at) < APART) {
            return false;
        }
        if state.last.len() >= KEPT {
            state.last.retain(|_, at| now.duration_since(*at) < APART);
        }
        let depth = if last.is_none() { WRITES } else { WRITES - FOR_FIRST };
        if state.last.len() >= KEPT || self.is_shared && !state.take(depth, now) {
            return false;
        }
        state.last.insert(key, now);
        true
    }
}

pub async fn progress(gateway: &Gateway, caller: &Caller, request: Asked<ProgressRequest>) -> Result<()> {
    let (who, request) = (&request.attempt, &request.body);
    if !(0..=100).contains(&request.percent) {
        return Err(Refusal::bad_request("percent: must be 0 to 100"));
    }
    if !gateway.pace.due(who, &caller.pod_uid, Instant::now()) {
        return Err(Refusal::unavailable(
            "progress is written every 2 s at most, and 50 times a second for all; try again",
        ));
    }
    let progress =
        Progress { percent: request.percent, message: line(&request.message, MESSAGE_CHARS), at: gateway.clock.now() };
    // No read before the write: the tests are the check.
    let mut operations = attempt::tests(claim::report_preconditions(&who.uid, who.attempt, &attempt::id_digest(who)));
    operations.push(test("/status/agent/claim/podUID", caller.pod_uid.as_str()));
    operations.push(add("/status/agent/progress", &progress));
    match patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await {
        Ok(()) => Ok(()),
        // The attempt may be over, or the API server could not place the patch among other writes: only a read tells. Progress
        // may be lost; an agent that is told that its attempt is over stops.
        Err(failure) if failure.is_outrun() => {
            gateway.metrics.conflicts.inc();
            attempt::works(&attempt::read(gateway, who).await?, who, caller)?;
            Err(Refusal::unavailable("the StepRun is being written to; try again"))
        }
        Err(failure) if failure.is_not_found() => Err(Refusal::fenced("the attempt is not the running one")),
        Err(failure) => Err(failure.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(uid: &str, attempt: i32) -> AttemptRef {
        AttemptRef {
            namespace: String::new(),
            step_run: String::new(),
            uid: uid.to_owned(),
            attempt,
            id: String::new(),
        }
    }

    #[test]
    fn an_attempt_writes_every_two_seconds_at_most() {
        for pace in [Pace::of_each(), Pace::of_all()] {
            let begun = Instant::now();
            let later = |millis: u64| begun + Duration::from_millis(millis);
            assert!(pace.due(&who("a", 1), "pod", later(0)));
            assert!(!pace.due(&who("a", 1), "pod", later(1999)));
            assert!(pace.due(&who("a", 2), "pod", later(1999)));
            assert!(pace.due(&who("b", 1), "pod", later(1999)));
            assert!(pace.due(&who("a", 1), "pod", later(2000)));
            assert!(pace.due(&who("a", 1), "another pod", later(2001)));
        }
    }

    /// How many of so many attempts may write at that moment.
    fn granted(pace: &Pace, of: std::ops::Range<i32>, now: Instant) -> usize {
        of.filter(|number| pace.due(&who("a", *number), "pod", now)).count()
    }

    #[test]
    fn a_gateway_writes_fifty_times_a_second_and_first_words_do_not_wait_for_others() {
        let pace = Pace::of_all();
        let begun = Instant::now();
        let later = |millis: u64| begun + Duration::from_millis(millis);
        assert_eq!(granted(&pace, 0..200, later(0)), 50, "at once");
        assert_eq!(granted(&pace, 0..200, later(0)), 0, "and no more");
        assert_eq!(granted(&pace, 50..200, later(1000)), 50, "those that were told to come again");
        assert_eq!(granted(&pace, 100..200, later(2000)), 50);
        // All of them have spoken, and come again whenever they may: half of the bucket stays for who has not.
        assert_eq!(granted(&pace, 0..150, later(60_000)), 25);
        assert_eq!(granted(&pace, 200..300, later(60_000)), 25, "first words");
        let (mut again, mut first) = (0, 0);
        for tick in 1..=1000 {
            let now = later(60_000 + tick * 10);
            again += granted(&pace, 0..150, now);
            if tick % 10 == 0 {
                let number = 1000 + i32::try_from(tick).expect("few");
                first += usize::from(pace.due(&who("a", number), "pod", now));
            }
        }
        assert_eq!(first, 100, "each at once");
        assert!((370..=400).contains(&again), "{again} in 10 s beside {first}");
        let each = Pace::of_each();
        assert_eq!(granted(&each, 0..200, later(0)), 200, "usage, which is read before it is written");
    }
}
