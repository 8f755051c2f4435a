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
    /// The agent called, whatever it said.
    Called,
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
    Silent(Duration),
    Fenced(String),
}

/// How long the agent may be silent, and since when it is.
#[derive(Clone, Copy, Debug)]
struct Silence {
    limit: Duration,
    since: Instant,
}

impl Silence {
    fn over(self) -> Instant {
        self.since + self.limit
    }
}

#[derive(Debug)]
pub struct Supervision {
    deadline: Instant,
    silence: Option<Silence>,
    kill_at: Option<Instant>,
    cause: Option<Cause>,
}

impl Supervision {
    pub fn new(deadline: Instant) -> Self {
        Self { deadline, silence: None, kill_at: None, cause: None }
    }

    /// Ends the command after so long without a call, counted from `now`.
    pub fn listening(self, limit: Option<Duration>, now: Instant) -> Self {
        Self { silence: limit.map(|limit| Silence { limit, since: now }), ..self }
    }

    /// When `due` has something to say, without another event.
    pub fn wake(&self) -> Instant {
        let silent = self.silence.map_or(self.deadline, Silence::over);
        self.kill_at.unwrap_or(self.deadline.min(silent))
    }

    pub fn due(&mut self, now: Instant) -> Option<Act> {
        if self.kill_at.is_some_and(|at| now >= at) {
            // Again until it is gone: it may have forked meanwhile.
            self.kill_at = Some(now + Duration::from_secs(1));
            return Some(Act::Kill);
        }
        if self.kill_at.is_some() {
            return None;
        }
        if now >= self.deadline {
            return self.end(Cause::TimedOut, now);
        }
        let silence = self.silence.filter(|silence| now >= silence.over())?;
        self.end(Cause::Silent(silence.limit), now)
    }

    pub fn on(&mut self, event: Event, now: Instant) -> Option<Act> {
        match event {
            Event::Exited(_) => None,
            Event::Signal(signal) => Some(Act::Forward(signal)),
            Event::Fail { retryable, message } => self.end(Cause::Failed { retryable, message }, now),
            Event::Fenced(message) => self.end(Cause::Fenced(message), now),
            Event::Called => {
                if let Some(silence) = &mut self.silence {
                    silence.since = now;
                }
                None
            }
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
            Some(Cause::Silent(limit)) => {
                Ok(Ending::Silent { seconds: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX) })
            }
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
    fn silence_terminates_and_every_call_ends_it() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 60 * SECOND).listening(Some(5 * SECOND), start);
        assert_eq!(supervision.wake(), start + 5 * SECOND);
        assert_eq!(supervision.on(Event::Called, start + 4 * SECOND), None);
        assert_eq!(supervision.wake(), start + 9 * SECOND);
        assert_eq!(supervision.due(start + 8 * SECOND), None);
        assert_eq!(supervision.due(start + 9 * SECOND), Some(Act::Terminate));
        // A call comes too late, and the kill is not put off by it.
        assert_eq!(supervision.on(Event::Called, start + 10 * SECOND), None);
        assert_eq!(supervision.wake(), start + 19 * SECOND);
        assert_eq!(supervision.due(start + 19 * SECOND), Some(Act::Kill));
        assert_eq!(supervision.ending(137), Ok(Ending::Silent { seconds: 5 }));
    }

    #[test]
    fn the_deadline_counts_for_an_agent_that_calls() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 8 * SECOND).listening(Some(5 * SECOND), start);
        supervision.on(Event::Called, start + 4 * SECOND);
        assert_eq!(supervision.wake(), start + 8 * SECOND);
        assert_eq!(supervision.due(start + 8 * SECOND), Some(Act::Terminate));
        assert_eq!(supervision.ending(143), Ok(Ending::TimedOut));
        let mut patient = Supervision::new(start + 60 * SECOND).listening(None, start);
        assert_eq!(patient.due(start + 59 * SECOND), None);
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
