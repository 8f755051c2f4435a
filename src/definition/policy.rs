//! How an attempt may fail and how long it may take: the step's word before the Agent's, and a default where neither says.

use super::program::Step;
use crate::api::agent::Agent;
use crate::api::limits::{
    INITIAL_BACKOFF_SECONDS, MAX_ATTEMPTS, MAX_BACKOFF_SECONDS, START_TIMEOUT_SECONDS, TIMEOUT_SECONDS,
};
use crate::api::step::{OnFailure, Retry};

/// What holds for the attempts of a step, every default filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptPolicy {
    /// Attempts since the last act of a person.
    pub max_attempts: i32,
    /// Seconds before the second attempt.
    pub initial_backoff: i64,
    /// Seconds between two attempts at most.
    pub max_backoff: i64,
    /// Whether an attempt whose outcome is unknown may simply be repeated.
    pub idempotent: bool,
    /// Whether a person is asked where another attempt could help.
    pub on_failure: OnFailure,
    /// Seconds from claim to exit.
    pub timeout: i64,
    /// Seconds from the making of the Job to the claim.
    pub start_timeout: i64,
}

impl AttemptPolicy {
    /// Of a step whose definition is gone, or that no agent does, the Agent's and the defaults.
    pub fn of(step: Option<&Step>, agent: Option<&Agent>) -> Self {
        let own = step.and_then(Step::agent);
        let spec = agent.map(|agent| &agent.spec);
        let retries = [own.and_then(|s| s.retry.as_ref()), spec.and_then(|s| s.retry.as_ref())];
        let initial = first(retries, |r| r.initial_backoff_seconds).unwrap_or(INITIAL_BACKOFF_SECONDS);
        let timeout = own.and_then(|s| s.timeout_seconds).or(spec.and_then(|s| s.timeout_seconds));
        Self {
            max_attempts: first(retries, |r| r.max_attempts).unwrap_or(MAX_ATTEMPTS),
            initial_backoff: initial,
            max_backoff: first(retries, |r| r.max_backoff_seconds).unwrap_or(MAX_BACKOFF_SECONDS).max(initial),
            idempotent: spec.is_some_and(|s| s.idempotent),
            on_failure: step.map(|s| s.on_failure).unwrap_or_default(),
            timeout: timeout.unwrap_or(TIMEOUT_SECONDS),
            start_timeout: spec.and_then(|s| s.start_timeout_seconds).unwrap_or(START_TIMEOUT_SECONDS),
        }
    }
}

fn first<T>(sources: [Option<&Retry>; 2], field: impl Fn(&Retry) -> Option<T>) -> Option<T> {
    sources.into_iter().flatten().find_map(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::agent::AgentSpec;
    use crate::api::definition::Definition;
    use crate::definition::program::Program;
    use serde_json::{Value, json};

    fn program(step: &Value, on_failure: OnFailure) -> Program {
        let steps = serde_json::from_value(json!([step])).expect("steps");
        Program::compile(&Definition { on_failure, steps, ..Definition::default() }).expect("a program")
    }

    #[test]
    fn the_step_says_what_a_failure_means_before_the_run_does() {
        for (own, gate, of_the_run, expected) in [
            (json!(null), json!(null), OnFailure::Wait, OnFailure::Wait),
            (json!(null), json!(null), OnFailure::Fail, OnFailure::Fail),
            (json!("Continue"), json!(null), OnFailure::Fail, OnFailure::Continue),
            (json!("Wait"), json!(null), OnFailure::Fail, OnFailure::Wait),
            // A rejection is never passed over.
            (json!(null), json!({}), OnFailure::Continue, OnFailure::Fail),
        ] {
            let step = json!({"name": "a", "agentId": "x", "onFailure": own, "gate": gate});
            let program = program(&step, of_the_run);
            let policy = AttemptPolicy::of(program.step("a"), None);
            assert_eq!(policy.on_failure, expected, "{own:?} {gate} {of_the_run:?}");
        }
    }

    #[test]
    fn the_step_says_how_long_and_how_often_before_the_agent_does() {
        let spec = |value: Value| serde_json::from_value::<AgentSpec>(value).expect("a spec");
        let agent = Agent::new(
            "x",
            spec(json!({"template": {}, "timeoutSeconds": 60, "startTimeoutSeconds": 5, "idempotent": true,
                "retry": {"maxAttempts": 7, "initialBackoffSeconds": 400}})),
        );
        let plain = program(&json!({"name": "a", "agentId": "x"}), OnFailure::Wait);
        let own = json!({"name": "a", "agentId": "x", "timeoutSeconds": 9, "retry": {"maxAttempts": 2}});
        let own = program(&own, OnFailure::Wait);
        let told = |p: AttemptPolicy| (p.timeout, p.start_timeout, p.max_attempts, p.initial_backoff, p.max_backoff);
        for (program, agent, expected) in [
            (&plain, None, (3600, 600, 3, 10, 300)),
            (&plain, Some(&agent), (60, 5, 7, 400, 400)),
            (&own, Some(&agent), (9, 5, 2, 400, 400)),
            (&own, None, (9, 600, 2, 10, 300)),
        ] {
            assert_eq!(told(AttemptPolicy::of(program.step("a"), agent)), expected);
        }
    }
}
