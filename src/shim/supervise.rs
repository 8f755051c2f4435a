//! Decides what happens to the running command; reads no clock and sends no signal.

use std::time::{Duration, Instant};

use crate::protocol::{Ending, Question};

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
    /// `lockstep ask`, with what nobody has answered yet.
    Ask(Vec<Question>),
    /// The gateway says that the attempt is over.
    Fenced(String),
    /// The agent called, whatever it said.
    Called,
    /// A call begins to wait for people, or has ended.
    Waits(bool),
}

/// The signal that the command is to get: one that the shim got itself, SIGTERM or SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalToSend {
    Forward(i32),
    Terminate,
    Kill,
}

/// Why the shim ends the command. The first one stays, except that a lost attempt beats all.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    Failed { retryable: bool, message: String },
    Asked(Vec<Question>),
    TimedOut,
    Silent(Duration),
    Fenced(String),
}

/// How long the agent may be silent, and since when it is.
#[derive(Clone, Copy, Debug)]
struct Silence {
    limit: Duration,
    since: Instant,
    /// Calls that wait for people: meanwhile the agent is not silent.
    waits: u32,
}

impl Silence {
    /// Nothing while the agent waits for people.
    fn over(self) -> Option<Instant> {
        (self.waits == 0).then(|| self.since + self.limit)
    }
}

#[derive(Debug)]
pub struct Supervision {
    deadline: Instant,
    silence: Option<Silence>,
    kill_at: Option<Instant>,
    cause: Option<Cause>,
    /// The first one that the shim got.
    signal: Option<i32>,
}

impl Supervision {
    pub fn new(deadline: Instant) -> Self {
        Self { deadline, silence: None, kill_at: None, cause: None, signal: None }
    }

    /// Ends the command after so long without a call, counted from `now`.
    pub fn listening(self, limit: Option<Duration>, now: Instant) -> Self {
        Self { silence: limit.map(|limit| Silence { limit, since: now, waits: 0 }), ..self }
    }

    /// When `due` has something to say, without another event.
    pub fn wake(&self) -> Instant {
        let silent = self.silence.and_then(Silence::over).unwrap_or(self.deadline);
        self.kill_at.unwrap_or(self.deadline.min(silent))
    }

    pub fn due(&mut self, now: Instant) -> Option<SignalToSend> {
        if self.kill_at.is_some_and(|at| now >= at) {
            // Again until it is gone: it may have forked meanwhile.
            self.kill_at = Some(now + Duration::from_secs(1));
            return Some(SignalToSend::Kill);
        }
        if self.kill_at.is_some() {
            return None;
        }
        if now >= self.deadline {
            return self.end(Cause::TimedOut, now);
        }
        let silence = self.silence.filter(|silence| silence.over().is_some_and(|over| now >= over))?;
        self.end(Cause::Silent(silence.limit), now)
    }

    pub fn on(&mut self, event: Event, now: Instant) -> Option<SignalToSend> {
        match event {
            Event::Exited(_) => None,
            Event::Signal(signal) => {
                self.signal.get_or_insert(signal);
                Some(SignalToSend::Forward(signal))
            }
            Event::Fail { retryable, message } => self.end(Cause::Failed { retryable, message }, now),
            Event::Ask(questions) => self.end(Cause::Asked(questions), now),
            Event::Fenced(message) => self.end(Cause::Fenced(message), now),
            Event::Called => {
                if let Some(silence) = &mut self.silence {
                    silence.since = now;
                }
                None
            }
            Event::Waits(begins) => {
                if let Some(silence) = &mut self.silence {
                    silence.since = now;
                    silence.waits = if begins { silence.waits + 1 } else { silence.waits.saturating_sub(1) };
                }
                None
            }
        }
    }

    fn end(&mut self, cause: Cause, now: Instant) -> Option<SignalToSend> {
        let begun = self.cause.is_some();
        if !begun || matches!(cause, Cause::Fenced(_)) {
            self.cause = Some(cause);
        }
        if begun {
            return None;
        }
        self.kill_at = Some(now + GRACE);
        Some(SignalToSend::Terminate)
    }

    /// Whether nobody has ended the attempt: neither the shim, nor the agent by a call, nor a signal.
    pub fn goes_on(&self) -> bool {
        self.cause.is_none() && self.signal.is_none()
    }

    /// What to report, or why there is nothing to report.
    pub fn ending(self, code: i32) -> Result<Ending, String> {
        match self.cause {
            None => Ok(Ending::Exited { code, signal: self.signal, cause: None }),
            Some(Cause::Failed { retryable, message }) => Ok(Ending::Failed { retryable, message, code }),
            Some(Cause::Asked(questions)) => Ok(Ending::Asked { questions }),
            Some(Cause::TimedOut) => Ok(Ending::TimedOut { code: Some(code) }),
            Some(Cause::Silent(limit)) => {
                let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
                Ok(Ending::Silent { seconds, code: Some(code) })
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
        assert_eq!(supervision.due(start + 60 * SECOND), Some(SignalToSend::Terminate));
        assert_eq!(supervision.wake(), start + 70 * SECOND);
        assert_eq!(supervision.due(start + 69 * SECOND), None);
        assert_eq!(supervision.due(start + 70 * SECOND), Some(SignalToSend::Kill));
        assert_eq!(supervision.due(start + 71 * SECOND), Some(SignalToSend::Kill));
        assert_eq!(supervision.ending(137), Ok(Ending::TimedOut { code: Some(137) }));
    }

    #[test]
    fn silence_terminates_and_every_call_ends_it() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 60 * SECOND).listening(Some(5 * SECOND), start);
        assert_eq!(supervision.wake(), start + 5 * SECOND);
        assert_eq!(supervision.on(Event::Called, start + 4 * SECOND), None);
        assert_eq!(supervision.wake(), start + 9 * SECOND);
        assert_eq!(supervision.due(start + 8 * SECOND), None);
        assert_eq!(supervision.due(start + 9 * SECOND), Some(SignalToSend::Terminate));
        // A call comes too late, and the kill is not put off by it.
        assert_eq!(supervision.on(Event::Called, start + 10 * SECOND), None);
        assert_eq!(supervision.wake(), start + 19 * SECOND);
        assert_eq!(supervision.due(start + 19 * SECOND), Some(SignalToSend::Kill));
        assert_eq!(supervision.ending(137), Ok(Ending::Silent { seconds: 5, code: Some(137) }));
    }

    #[test]
    fn an_agent_that_waits_for_people_is_not_silent() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 60 * SECOND).listening(Some(5 * SECOND), start);
        for begins in [true, true, false] {
            supervision.on(Event::Waits(begins), start + SECOND);
        }
        assert_eq!(supervision.wake(), start + 60 * SECOND);
        assert_eq!(supervision.due(start + 50 * SECOND), None);
        supervision.on(Event::Waits(false), start + 51 * SECOND);
        assert_eq!(supervision.wake(), start + 56 * SECOND);
        assert_eq!(supervision.due(start + 56 * SECOND), Some(SignalToSend::Terminate));
        assert_eq!(supervision.ending(143), Ok(Ending::Silent { seconds: 5, code: Some(143) }));
    }

    #[test]
    fn the_deadline_counts_for_an_agent_that_calls() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 8 * SECOND).listening(Some(5 * SECOND), start);
        supervision.on(Event::Called, start + 4 * SECOND);
        assert_eq!(supervision.wake(), start + 8 * SECOND);
        assert_eq!(supervision.due(start + 8 * SECOND), Some(SignalToSend::Terminate));
        assert_eq!(supervision.ending(143), Ok(Ending::TimedOut { code: Some(143) }));
        let mut patient = Supervision::new(start + 60 * SECOND).listening(None, start);
        assert_eq!(patient.due(start + 59 * SECOND), None);
    }

    #[test]
    fn the_first_failure_is_latched() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 5 * SECOND);
        assert_eq!(supervision.on(fail("a"), start), Some(SignalToSend::Terminate));
        assert_eq!(supervision.on(fail("b"), start + SECOND), None);
        assert_eq!(supervision.due(start + 6 * SECOND), None);
        assert_eq!(supervision.due(start + 10 * SECOND), Some(SignalToSend::Kill));
        let ending = Ending::Failed { retryable: true, message: "a".to_owned(), code: 143 };
        assert_eq!(supervision.ending(143), Ok(ending));
    }

    #[test]
    fn an_agent_that_asked_is_ended_and_its_exit_code_ignored() {
        let start = Instant::now();
        let asked = vec![Question { question: "How much?".to_owned(), ..Question::default() }];
        let mut supervision = Supervision::new(start + 5 * SECOND);
        assert_eq!(supervision.on(Event::Ask(asked.clone()), start), Some(SignalToSend::Terminate));
        // What it says afterwards changes nothing, nor does its time that ends.
        assert_eq!(supervision.on(fail("late"), start + SECOND), None);
        assert_eq!(supervision.on(Event::Ask(Vec::new()), start + SECOND), None);
        assert_eq!(supervision.due(start + 6 * SECOND), None);
        assert_eq!(supervision.due(start + 10 * SECOND), Some(SignalToSend::Kill));
        assert_eq!(supervision.ending(137), Ok(Ending::Asked { questions: asked }));
    }

    #[test]
    fn a_lost_attempt_reports_nothing() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 60 * SECOND);
        assert!(supervision.goes_on());
        supervision.on(fail("a"), start);
        assert!(!supervision.goes_on());
        assert_eq!(supervision.on(Event::Fenced("gone".to_owned()), start), None);
        assert_eq!(supervision.ending(0), Err("gone".to_owned()));
    }

    #[test]
    fn signals_are_forwarded_and_told() {
        let start = Instant::now();
        let mut supervision = Supervision::new(start + 60 * SECOND);
        assert_eq!(supervision.on(Event::Signal(15), start), Some(SignalToSend::Forward(15)));
        assert!(!supervision.goes_on());
        assert_eq!(supervision.ending(143), Ok(Ending::Exited { code: 143, signal: Some(15), cause: None }));
    }
}
