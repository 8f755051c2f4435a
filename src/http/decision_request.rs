//! What people say through the API: the bodies of decisions and answers.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::api::step_run::Act;

/// The body of `POST .../decision`.
#[derive(Serialize, JsonSchema)]
pub struct DecisionRequest {
    /// Whether it is accepted; false rejects it.
    pub accepted: bool,
    /// What is said to it, at most 4096 bytes; required where a rejection leads to another round.
    #[schemars(length(max = 4096))]
    pub comment: Option<String>,
    /// The digest of what was reviewed, as the run tells it (`waiting[].review`); a few of its first characters are not enough.
    /// Required from the second round on, and where the gate asks for it. If the gate is about something else by now, nothing is
    /// decided.
    #[schemars(length(max = 80))]
    pub review: Option<String>,
}

/// The body of `POST .../answer`: an answer to a question, or an action for a step that could not go on.
#[derive(Serialize, JsonSchema)]
pub struct AnswerRequest {
    /// The answer, any JSON value that meets the schema of the question; at most 16 KiB.
    pub answer: Option<Value>,
    /// What becomes of the step, in the place of an answer.
    pub action: Option<Act>,
    /// Guidance that goes with `action`; the next attempt sees it.
    #[schemars(length(max = 4096))]
    pub comment: Option<String>,
    /// What is answered, as the run tells it (`waiting[].id`). If the step waits for something else by now, nothing is written: with
    /// it the request may safely be repeated.
    #[schemars(length(max = 80))]
    pub wait: Option<String>,
}
