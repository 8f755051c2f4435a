//! What the run as a whole says of its steps: go on, start nothing new, close, stop. A stop moves the fence before
//! anything is deleted, and is over when nothing of the step runs any more.

use super::{AttemptResult, GateState, JobSeen, Pass, Phase, StepError, StepRunStatus, Truth, condition};
use crate::api::workflow::Workflow;
use crate::decide::status::FAILING;

/// Seconds between looks at what is stopping; the watch of its pods is what wakes it.
const STOPPING_AGAIN: i64 = 10;

/// How much a StepRun may still do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    #[default]
    No,
    /// Nothing new starts; what runs finishes, and people still decide and answer.
    Suspended,
    /// The run fails: what runs finishes, nothing new starts, waits close.
    Closing,
    /// The run was cancelled, has ended or goes away: what runs is ended.
    Stopping,
}

/// What the run says.
pub fn hold(run: &Workflow) -> Hold {
    let status = run.status.as_ref();
    let ended = status.is_some_and(|s| s.completed_at.is_some());
    let failing = status.and_then(|s| condition::get(&s.conditions, FAILING)).filter(|c| c.status == "True");
    let timed_out = status.is_some_and(|s| s.timed_out_at.is_some());
    let cancelled = run.spec.cancel == Some(true);
    if cancelled || run.metadata.deletion_timestamp.is_some() || ended || timed_out {
        Hold::Stopping
    } else if failing.is_some() {
        Hold::Closing
    } else if run.spec.suspend == Some(true) {
        Hold::Suspended
    } else {
        Hold::No
    }
}

/// Whether its last attempt was ended with the run: none follows, whatever a copy of the run that is behind says.
pub(super) fn was_stopped(status: &StepRunStatus) -> bool {
    status.attempts.last().is_some_and(|a| a.result == AttemptResult::Cancelled)
}

impl Pass<'_> {
    /// The copy of the run at hand does not say yet what another has acted on.
    pub(super) fn stay_stopped(&mut self) {
        self.wake_in(STOPPING_AGAIN);
    }

    /// Nothing new starts, and nobody is asked any more.
    pub(super) fn closing(&self) -> bool {
        matches!(self.o.hold, Hold::Closing | Hold::Stopping)
    }

    /// The fence first: from the next write on the attempt can neither claim nor report. Its Job goes in the next pass.
    pub(super) fn stop(&mut self) {
        let begun = self.was_launched()
            || self.claim().is_some()
            || matches!(self.o.job, JobSeen::Present { ended: false, .. });
        if !begun {
            return self.cancel();
        }
        self.record(AttemptResult::Cancelled, None, Some("ended because the run was"));
        condition::clear(&mut self.status.conditions, "Started");
        self.next_attempt(None);
    }

    /// Closes what waits; the end itself is written when nothing runs any more.
    pub(super) fn cancel(&mut self) {
        if let Some(gate) = &mut self.status.gate
            && gate.state == GateState::Waiting
        {
            gate.state = GateState::Closed;
        }
        if self.o.hold == Hold::Stopping && (self.o.pods_alive > 0 || !self.o.unfinished.is_empty()) {
            self.status.phase = Some(Phase::Running);
            self.condition("Started", Truth::False, "Stopping", "it is cancelled when its pods have ended");
            return self.wake_in(STOPPING_AGAIN);
        }
        self.status.waiting_for = None;
        self.keep_log_of_stopped();
        self.conclude(Phase::Cancelled);
    }

    /// How the attempt ended that was stopped: its pod is gone, and its log with it.
    fn keep_log_of_stopped(&mut self) {
        let stopped = self.status.agent.as_ref().and_then(|agent| agent.stopped.clone());
        let last = self.status.attempts.last_mut().filter(|a| a.result == AttemptResult::Cancelled);
        let (Some(stopped), Some(last)) = (stopped, last) else { return };
        if stopped.attempt != last.number {
            return;
        }
        last.exit_code = stopped.exit_code;
        self.status.error = Some(StepError {
            class: AttemptResult::Cancelled,
            message: last.message.clone().unwrap_or_default(),
            attempt: last.number,
            exit_code: stopped.exit_code,
            log_tail: stopped.log_tail,
            trace_id: Some(self.trace_id()),
        });
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::api::workflow::{WorkflowSpec, WorkflowStatus};

    fn run(change: impl Fn(&mut Workflow)) -> Workflow {
        let mut run = Workflow::new("w", WorkflowSpec::default());
        change(&mut run);
        run
    }

    fn failing(reason: &'static str) -> impl Fn(&mut Workflow) {
        move |w| {
            let conditions = &mut w.status.get_or_insert_with(WorkflowStatus::default).conditions;
            condition::set(conditions, FAILING, Truth::True, reason, "", (&Time(Timestamp::UNIX_EPOCH), 1));
        }
    }

    #[test]
    fn the_run_says_how_much_a_step_may_still_do() {
        let now = || Some(Time(Timestamp::UNIX_EPOCH));
        let timed_out = |w: &mut Workflow| w.status.get_or_insert_with(WorkflowStatus::default).timed_out_at = now();
        let ended = |w: &mut Workflow| w.status.get_or_insert_with(WorkflowStatus::default).completed_at = now();
        let table = vec![
            ("new", run(|_| {}), Hold::No),
            ("suspend false", run(|w| w.spec.suspend = Some(false)), Hold::No),
            ("cancel false", run(|w| w.spec.cancel = Some(false)), Hold::No),
            ("suspend", run(|w| w.spec.suspend = Some(true)), Hold::Suspended),
            ("failing", run(failing("Rejected")), Hold::Closing),
            ("a step that timed out", run(failing("Timeout")), Hold::Closing),
            ("run timeout", run(timed_out), Hold::Stopping),
            ("cancel", run(|w| w.spec.cancel = Some(true)), Hold::Stopping),
            ("deleted", run(|w| w.metadata.deletion_timestamp = now()), Hold::Stopping),
            ("ended", run(ended), Hold::Stopping),
        ];
        for (name, run, expected) in table {
            assert_eq!(hold(&run), expected, "{name}");
        }
        let both = run(|w| {
            w.spec.suspend = Some(true);
            failing("Rejected")(w);
        });
        assert_eq!(hold(&both), Hold::Closing, "a failure is not put off by a suspension");
        let both = run(|w| {
            w.spec.suspend = Some(true);
            w.spec.cancel = Some(true);
        });
        assert_eq!(hold(&both), Hold::Stopping, "nor is a cancel");
    }
}
