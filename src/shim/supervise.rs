//! Decides what happens to the running command; reads no clock and sends no signal.

use std::time::{Duration, Instant};

use crate::protocol::Ending;

/// Between SIGTERM and SIGKILL, when the shim ends the command.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The command ended; a signal counts as 128 + its number.
    Exited(i32),
    /// The shim got a signal.
    Signal(i32),
    /// `lockstep fail`.
    Fail { retryable: bool, message: String },
    /// The gateway says that the attempt is over.
    Fenced(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Forward(i32),
    Terminate,
    Kill,
}

/// Why the shim ends the command. The first one stays, except that a lost attempt beats all.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    Failed { retryable: bool, message: String },
    TimedOut,
    Fenced(String),
}

#[derive(Debug)]
pub struct Supervision {
    deadline: Instant,
    kill_at: Option<Instant>,
    cause: Option<Cause>,
}

impl Supervision {
    pub fn new(deadline: Instant) -> Self {
        Self { deadline, kill_at: None, cause: None }
    }

    /// When `due` has something to say, without another event.
    pub fn wake(&self) -> Instant {
        self.kill_at.unwrap_or(self.deadline)
    }

    pub fn due(&mut self, now: Instant) -> Option<Act> {
        if self.kill_at.is_some_and(|at| now >= at) {
            // Again until it is gone: it may have forked meanwhile.
            self.kill_at = Some(now + Duration::from_secs(1));
            return Some(Act::Kill);
        }
        if self.kill_at.is_none() && now >= self.deadline {
            return self.end(Cause::TimedOut, now);
        }
        None
    }

    pub fn on(&mut self, event: Event, now: Instant) -> Option<Act> {
        match event {
            Event::Exited(_) => None,
            Event::Signal(signal) => Some(Act::Forward(signal)),
            Event::Fail { retryable, message } => self.end(Cause::Failed { retryable, message }, now),
            Event::Fenced(message) => self.end(Cause::Fenced(message), now),
        }
    }

    fn end(&mut self, cause: Cause, now: Instant) -> Option<Act> {
        let begun = self.cause.is_some();
        if !begun || matches!(cause, Cause::Fenced(_)) {
            self.cause = Some(cause);
        }
        if begun {
            return None;
        }
        self.kill_at = Some(now + GRACE);
        Some(Act::Terminate)
    }

    /// What to report, or why there is nothing to report.
    pub fn ending(self, code: i32) -> Result<Ending, String> {
        match self.cause {
            None => Ok(Ending::Exited { code }),
            Some(Cause::Failed { retryable, message }) => Ok(Ending::Failed { retryable, message, code }),
            Some(Cause::TimedOut) => Ok(Ending::TimedOut),
            Some(Cause::Fenced(message)) => Err(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail(message: &str) -> Event {
        Event::Fail { retryable: true, message: message.to_owned() }
    }

    #[test]
    fn the_deadline_terminates_then_kills() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 60 * SECOND);
        assert_eq!(supervision.wake(), start + 60 * SECOND);
        assert_eq!(supervision.due(start + 59 * SECOND), None);
        assert_eq!(supervision.due(start + 60 * SECOND), Some(Act::Terminate));
        assert_eq!(supervision.wake(), start + 70 * SECOND);
        assert_eq!(supervision.due(start + 69 * SECOND), None);
        assert_eq!(supervision.due(start + 70 * SECOND), Some(Act::Kill));
        assert_eq!(supervision.due(start + 71 * SECOND), Some(Act::Kill));
        assert_eq!(supervision.ending(137), Ok(Ending::TimedOut));
    }

    #[test]
    fn the_first_failure_is_latched() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 5 * SECOND);
        assert_eq!(supervision.on(fail("a"), start), Some(Act::Terminate));
        assert_eq!(supervision.on(fail("b"), start + SECOND), None);
        assert_eq!(supervision.due(start + 6 * SECOND), None);
        assert_eq!(supervision.due(start + 10 * SECOND), Some(Act::Kill));
        let ending = Ending::Failed { retryable: true, message: "a".to_owned(), code: 143 };
        assert_eq!(supervision.ending(143), Ok(ending));
    }

    #[test]
    fn a_lost_attempt_reports_nothing() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 60 * SECOND);
        supervision.on(fail("a"), start);
        assert_eq!(supervision.on(Event::Fenced("gone".to_owned()), start), None);
        assert_eq!(supervision.ending(0), Err("gone".to_owned()));
    }

    #[test]
    fn signals_are_forwarded_and_decide_nothing() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 60 * SECOND);
        assert_eq!(supervision.on(Event::Signal(15), start), Some(Act::Forward(15)));
        assert_eq!(supervision.ending(143), Ok(Ending::Exited { code: 143 }));
    }
}
