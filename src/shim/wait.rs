//! Calls in which the agent waits for people in its pod: how long they may take, and how many there are at once.

#![expect(clippy::disallowed_methods, reason = "how long an agent waits")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::gateway::{CallError, Gateway};
use crate::api::limits::LONGEST_WAIT;
use crate::protocol::{self, AwaitReply, AwaitRequest, HOLD_SECONDS};

const PATIENCE: Duration = Duration::from_secs(30);
/// Before the end of the attempt's time: so long its end takes, which is to be that it asked, not that it took too long.
const MARGIN: Duration = Duration::from_secs(5);
/// Calls of one agent that wait at once: each has a thread.
pub const AT_ONCE: usize = 16;

/// `90`, `90s`, `5m` or `2h`, as seconds.
pub fn seconds(text: &str) -> Result<i64, String> {
    let wrong = || format!("must be a number of seconds, or as 90s, 5m or 2h, from 1 s to {LONGEST_WAIT} s");
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60),
        Some(number) if text.ends_with('h') => (number, 3600),
        Some(number) => (number, 1),
        None => (text, 1),
    };
    let number = number.parse::<u32>().map_err(|_| wrong())?;
    let seconds = i64::from(number) * unit;
    if (1..=LONGEST_WAIT).contains(&seconds) { Ok(seconds) } else { Err(wrong()) }
}

/// Until when a call waits.
#[derive(Clone, Copy, Debug)]
pub struct Until(Option<Instant>);

impl Until {
    /// For so many seconds, and no longer than the attempt may take.
    pub fn of(seconds: Option<i64>, deadline: Instant) -> Self {
        let wanted = seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
        Self(wanted.and_then(|seconds| {
            let end = Instant::now().checked_add(Duration::from_secs(seconds))?;
            Some(end.min(deadline.checked_sub(MARGIN)?))
        }))
    }

    /// Whole seconds that are left; nothing at the end, and where nobody waits.
    pub fn left(self) -> Option<i64> {
        let left = self.0?.saturating_duration_since(Instant::now()).as_secs();
        i64::try_from(left).ok().filter(|left| *left > 0)
    }
}

/// Waits until people have said it, for a while. Whatever becomes of it, the caller looks anew; an error is that the attempt is
/// over.
pub fn hold(gateway: &Gateway, wanted: AwaitRequest, pause: impl Fn(Duration) -> bool) -> Result<(), CallError> {
    let request = AwaitRequest { seconds: wanted.seconds.min(HOLD_SECONDS), ..wanted };
    let answer = gateway
        .call(protocol::AWAIT, &request, PATIENCE, &pause)
        .map(|answer| serde_json::from_slice::<AwaitReply>(&answer).unwrap_or_default());
    match answer {
        Ok(_) => Ok(()),
        Err(error @ CallError::NotOurs(_)) => Err(error),
        // Nothing that goes wrong again and again may be asked again and again without a pause.
        Err(_) => {
            pause(Duration::from_secs(1));
            Ok(())
        }
    }
}

/// Counts the calls that wait for people, `AT_ONCE` at most.
#[derive(Default)]
pub struct WaitLimiter(AtomicUsize);

impl WaitLimiter {
    /// Counts one more; false where as many wait already.
    pub fn try_acquire(&self) -> bool {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < AT_ONCE).then_some(n + 1));
        taken.is_ok()
    }

    pub fn release(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_written_as_people_write_it() {
        for (text, expected) in [
            ("90", Some(90)),
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("2h", Some(7200)),
            ("168h", Some(LONGEST_WAIT)),
            ("169h", None),
            ("0", None),
            ("-5", None),
            ("5 m", None),
            ("m", None),
            ("", None),
            ("1.5m", None),
            ("99999999999", None),
        ] {
            assert_eq!(seconds(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn nobody_waits_beyond_the_time_of_the_attempt() {
        let now = Instant::now();
        let hour = now + Duration::from_secs(3600);
        assert!((58..=60).contains(&Until::of(Some(60), hour).left().expect("a wait")));
        assert!((3593..=3595).contains(&Until::of(Some(100_000), hour).left().expect("a wait")));
        assert_eq!(Until::of(Some(60), now + Duration::from_secs(4)).left(), None);
        assert_eq!(Until::of(Some(0), hour).left(), None);
        assert_eq!(Until::of(None, hour).left(), None);
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let limiter = WaitLimiter::default();
        assert!((0..AT_ONCE).all(|_| limiter.try_acquire()) && !limiter.try_acquire());
        limiter.release();
        assert!(limiter.try_acquire());
    }
}
