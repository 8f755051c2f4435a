//! What the log says of calls that were refused for who made them: an attempt whose agent tries what it may not leaves a line,
//! and whoever tries again and again leaves no flood of them.

#![expect(clippy::disallowed_methods, reason = "how many lines an address leaves")]

use std::net::IpAddr;
use std::sync::{Mutex, OnceLock, PoisonError};

use http::HeaderMap;
use tokio::time::Instant;

use super::auth;
use super::refusal::{Reason, Refusal};
use crate::protocol::AttemptRef;
use crate::server::rate::{Rate, Rates};

/// Lines of one address.
const LINES: Rate = Rate { burst: 32, per_second: 1 };

/// What is known of who calls: what the head of the request says, and what the token proves.
pub struct Who {
    attempt: Option<AttemptRef>,
    pod: OnceLock<String>,
}

impl Who {
    pub fn of(headers: &HeaderMap) -> Self {
        Self { attempt: auth::attempt(headers).ok(), pod: OnceLock::new() }
    }

    /// The token is this pod's.
    pub fn is_pod(&self, name: &str) {
        self.pod.get_or_init(|| name.to_owned());
    }
}

/// Who may still write a line.
pub struct Lines(Mutex<Rates>);

impl Default for Lines {
    fn default() -> Self {
        Self(Mutex::new(Rates::new(LINES)))
    }
}

impl Lines {
    pub fn tell(&self, call: &str, from: IpAddr, who: &Who, refusal: &Refusal) {
        let (reason, why) = (refusal.reason, refusal.message.as_str());
        if !self.may(reason, from, Instant::now()) {
            tracing::debug!(call, ?reason, why, "refused");
            return;
        }
        // Neither the token nor the id of the claim: whoever reads the log could speak for the attempt.
        let attempt = who.attempt.as_ref();
        tracing::warn!(
            call,
            ?reason,
            why,
            namespace = attempt.map(|attempt| attempt.namespace.as_str()),
            stepRun = attempt.map(|attempt| attempt.step_run.as_str()),
            attempt = attempt.map(|attempt| attempt.attempt),
            pod = who.pod.get().map(String::as_str),
            address = %from,
            "refused"
        );
    }

    fn may(&self, reason: Reason, from: IpAddr, now: Instant) -> bool {
        let is_of_caller =
            matches!(reason, Reason::Unauthenticated | Reason::WrongPod | Reason::AlreadyClaimed | Reason::Fenced);
        is_of_caller && self.0.lock().unwrap_or_else(PoisonError::into_inner).take(from, now.into_std())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_address_leaves_so_many_lines_and_no_other_one_is_silenced() {
        let lines = Lines::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let now = Instant::now();
        let left = |at: Instant| (0..1000).filter(|_| lines.may(Reason::Unauthenticated, one, at)).count();
        assert_eq!((left(now), left(now + Duration::from_secs(10))), (32, 10));
        for reason in [Reason::Unauthenticated, Reason::WrongPod, Reason::AlreadyClaimed, Reason::Fenced] {
            assert!(lines.may(reason, other, now), "{reason:?}");
        }
        for reason in [Reason::BadRequest, Reason::NotFound, Reason::TooLarge, Reason::Internal, Reason::Unavailable] {
            assert!(!lines.may(reason, other, now), "{reason:?}");
        }
    }
}
