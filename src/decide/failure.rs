//! How attempts end, and what then: the failure table as pure functions.

use std::time::Duration;

use crate::api::agent::Agent;
use crate::api::limits::INFRASTRUCTURE_BUDGET;
use crate::api::name;
use crate::api::step::OnFailure;
use crate::api::step_run::{AttemptCounts, AttemptResult, Report, ReportClass, WaitKind};
use crate::definition::policy::AttemptPolicy;
use crate::protocol::mark;

/// Back-off before the attempt that follows the n-th failure: doubling, then shortened by up to a quarter. The jitter
/// comes from the attempt's identity, so that the same pass decides the same.
pub fn backoff(policy: AttemptPolicy, failures: i32, identity: &str) -> Duration {
    let doublings = u32::try_from(failures.clamp(1, 32) - 1).unwrap_or_default();
    let seconds = policy.initial_backoff.saturating_mul(1_i64 << doublings).min(policy.max_backoff);
    let full = u64::try_from(seconds).unwrap_or_default() * 1000;
    let hash = name::digest_bytes(identity.as_bytes());
    let byte = u64::from_str_radix(&hash[hash.len() - 2..], 16).unwrap_or_default();
    Duration::from_millis(full - full / 4 * byte / 255)
}

/// What a report means under the Agent's exit codes.
pub fn verdict(report: &Report, agent: Option<&Agent>) -> AttemptResult {
    let unrecoverable =
        |code: i32| agent.and_then(|a| a.spec.exit_codes.as_ref()).is_some_and(|c| c.unrecoverable.contains(&code));
    match report.class {
        ReportClass::Succeeded => AttemptResult::Succeeded,
        // The cluster took its pod away before it was through: that is no failure of the agent.
        ReportClass::InvalidOutput | ReportClass::Exited if report.interrupted => AttemptResult::Infrastructure,
        ReportClass::InvalidOutput => AttemptResult::InvalidOutput,
        ReportClass::OutputTooLarge => AttemptResult::OutputTooLarge,
        ReportClass::Exited if report.exit_code.is_some_and(unrecoverable) => AttemptResult::Unrecoverable,
        ReportClass::Exited | ReportClass::Retryable => AttemptResult::Retryable,
        ReportClass::Unrecoverable => AttemptResult::Unrecoverable,
        ReportClass::Timeout => AttemptResult::Timeout,
        ReportClass::Asked => AttemptResult::Asked,
    }
}

/// What is known of a claimed attempt whose pod ended without a report, from its termination message.
pub fn lost(termination: &str) -> AttemptResult {
    let reached = |mark: &str| termination.lines().any(|line| line.trim() == mark);
    if reached(mark::SUCCEEDED) {
        AttemptResult::OutputLost
    } else if reached(mark::STARTED) || !reached(mark::CLAIMED) {
        // Without any mark the message is gone: it may have started.
        AttemptResult::OutcomeUnknown
    } else {
        AttemptResult::Infrastructure
    }
}

/// The same of a pod that the cluster took away: an agent that may simply run again does so, at no cost of its tries.
pub fn taken_away(termination: &str, policy: AttemptPolicy) -> AttemptResult {
    match lost(termination) {
        AttemptResult::OutcomeUnknown if policy.idempotent => AttemptResult::Infrastructure,
        other => other,
    }
}

/// What follows an attempt that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Again,
    Ask(WaitKind),
    Fail,
}

/// The counts with this failure in them, and what follows. Nobody is asked under `Fail` and `Continue`.
pub fn next(result: AttemptResult, counts: AttemptCounts, policy: AttemptPolicy) -> (AttemptCounts, Next) {
    match (by_class(result, counts, policy), policy.on_failure) {
        ((counts, Next::Ask(_)), OnFailure::Fail | OnFailure::Continue) => (counts, Next::Fail),
        (decided, _) => decided,
    }
}

/// What follows an attempt whose pod can never start, as its Agent is: no other attempt helps, so a person is asked at once.
pub fn next_of_never_started(counts: AttemptCounts, policy: AttemptPolicy) -> (AttemptCounts, Next) {
    let counts = AttemptCounts { infrastructure: counts.infrastructure + 1, ..counts };
    let next = match policy.on_failure {
        OnFailure::Wait => Next::Ask(WaitKind::InfrastructureSpent),
        OnFailure::Fail | OnFailure::Continue => Next::Fail,
    };
    (counts, next)
}

fn by_class(result: AttemptResult, counts: AttemptCounts, policy: AttemptPolicy) -> (AttemptCounts, Next) {
    use AttemptResult as R;
    match result {
        R::Infrastructure => {
            let counts = AttemptCounts { infrastructure: counts.infrastructure + 1, ..counts };
            let spent = counts.infrastructure > INFRASTRUCTURE_BUDGET;
            (counts, if spent { Next::Ask(WaitKind::InfrastructureSpent) } else { Next::Again })
        }
        R::OutcomeUnknown | R::OutputLost if !policy.idempotent => {
            (AttemptCounts { retryable: counts.retryable + 1, ..counts }, Next::Ask(WaitKind::OutcomeUnknown))
        }
        R::Retryable | R::InvalidOutput | R::Timeout | R::OutcomeUnknown | R::OutputLost => {
            let counts = AttemptCounts { retryable: counts.retryable + 1, ..counts };
            let spent = counts.retryable >= policy.max_attempts;
            (counts, if spent { Next::Ask(WaitKind::RetriesSpent) } else { Next::Again })
        }
        // Nothing ran: it takes another name, or the Agent as it is now.
        R::NameConflict | R::AgentChanged => (counts, Next::Again),
        // It is asked under every policy and costs nothing: `asking` does so, and never comes here.
        R::Asked => (counts, Next::Ask(WaitKind::Question)),
        R::Succeeded
        | R::Unrecoverable
        | R::Rejected
        | R::InvalidParameters
        | R::ExpressionError
        | R::OutputTooLarge
        | R::StepRunLost
        | R::DocumentChanged
        | R::GateNotProven
        | R::Cancelled => (counts, Next::Fail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: AttemptPolicy = AttemptPolicy {
        max_attempts: 3,
        initial_backoff: 10,
        max_backoff: 300,
        idempotent: false,
        on_failure: OnFailure::Wait,
        timeout: 3600,
        start_timeout: 600,
    };

    #[test]
    fn every_class_has_its_consequence() {
        use AttemptResult as R;
        let fresh = AttemptCounts::default();
        let check = |result, counts, policy, expected| {
            assert_eq!(next(result, counts, policy).1, expected, "{result} {counts:?}");
        };
        for class in [R::Retryable, R::InvalidOutput, R::Timeout] {
            check(class, fresh, POLICY, Next::Again);
            check(class, AttemptCounts { retryable: 2, ..fresh }, POLICY, Next::Ask(WaitKind::RetriesSpent));
        }
        check(R::Infrastructure, AttemptCounts { infrastructure: 4, ..fresh }, POLICY, Next::Again);
        check(
            R::Infrastructure,
            AttemptCounts { infrastructure: 5, ..fresh },
            POLICY,
            Next::Ask(WaitKind::InfrastructureSpent),
        );
        check(R::NameConflict, AttemptCounts { retryable: 2, infrastructure: 5, answers: 0 }, POLICY, Next::Again);
        check(R::OutcomeUnknown, fresh, POLICY, Next::Ask(WaitKind::OutcomeUnknown));
        check(R::OutputLost, fresh, POLICY, Next::Ask(WaitKind::OutcomeUnknown));
        let idempotent = AttemptPolicy { idempotent: true, ..POLICY };
        check(R::OutcomeUnknown, fresh, idempotent, Next::Again);
        check(R::OutputLost, AttemptCounts { retryable: 2, ..fresh }, idempotent, Next::Ask(WaitKind::RetriesSpent));
        for class in [
            R::Unrecoverable,
            R::Rejected,
            R::InvalidParameters,
            R::ExpressionError,
            R::OutputTooLarge,
            R::StepRunLost,
            R::DocumentChanged,
            R::GateNotProven,
            R::Cancelled,
        ] {
            check(class, fresh, POLICY, Next::Fail);
        }
    }

    #[test]
    fn nobody_is_asked_unless_the_policy_says_wait() {
        use AttemptResult as R;
        let spent = AttemptCounts { retryable: 2, infrastructure: 5, answers: 0 };
        for on_failure in [OnFailure::Fail, OnFailure::Continue] {
            let policy = AttemptPolicy { on_failure, ..POLICY };
            for class in
                [R::Retryable, R::InvalidOutput, R::Timeout, R::Infrastructure, R::OutcomeUnknown, R::OutputLost]
            {
                assert_eq!(next(class, spent, policy).1, Next::Fail, "{class} {on_failure:?}");
                assert!(matches!(next(class, spent, POLICY).1, Next::Ask(_)), "{class}");
                let asked = next(class, AttemptCounts::default(), POLICY).1;
                let instead = if matches!(asked, Next::Ask(_)) { Next::Fail } else { Next::Again };
                assert_eq!(next(class, AttemptCounts::default(), policy).1, instead, "{class} {on_failure:?}");
            }
        }
    }

    #[test]
    fn attempts_lost_to_the_cluster_do_not_count_as_retries() {
        assert_eq!(
            next(AttemptResult::Infrastructure, AttemptCounts::default(), POLICY).0,
            AttemptCounts { infrastructure: 1, ..AttemptCounts::default() }
        );
    }

    #[test]
    fn the_termination_message_tells_how_far_it_came() {
        use AttemptResult as R;
        for (text, expected, taken_away) in [
            ("claimed\n", R::Infrastructure, R::Infrastructure),
            ("claimed\nstarted\n", R::OutcomeUnknown, R::Infrastructure),
            ("claimed\nstarted\nsucceeded\n", R::OutputLost, R::OutputLost),
            ("", R::OutcomeUnknown, R::Infrastructure),
            ("restarted\n", R::OutcomeUnknown, R::Infrastructure),
        ] {
            assert_eq!(lost(text), expected, "{text:?}");
            assert_eq!(super::taken_away(text, POLICY), expected, "{text:?}");
            let idempotent = AttemptPolicy { idempotent: true, ..POLICY };
            assert_eq!(super::taken_away(text, idempotent), taken_away, "{text:?}, of an idempotent agent");
        }
    }

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        for (failures, full) in [(1, 10), (2, 20), (3, 40), (6, 300), (1000, 300)] {
            let wait = backoff(POLICY, failures, "id").as_secs_f64();
            assert!(wait <= f64::from(full) && wait >= 0.74 * f64::from(full), "{failures}: {wait}");
        }
        assert_eq!(backoff(POLICY, 1, "id"), backoff(POLICY, 1, "id"));
    }
}
