//! How attempts end, and what they come to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::agent::DocumentRead;
use super::made::Binding;
use crate::api::schema::told;
use crate::api::usage::Usage;

/// How an attempt ended, or of which class a failure is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum AttemptResult {
    /// The agent ended with code 0 and a valid output.
    Succeeded,
    /// The agent ended with another code, ran out of memory, or asked for another attempt.
    Retryable,
    /// The output is missing or does not meet a schema.
    InvalidOutput,
    /// The time was over: of an attempt, of silence, of a question, or of the run.
    Timeout,
    /// The cluster did not start the attempt, or lost it before the agent started, or took its pod away.
    Infrastructure,
    /// The pod ended after the agent had started, and nothing was reported.
    OutcomeUnknown,
    /// The agent succeeded, and its output was lost with the pod.
    OutputLost,
    /// No further attempt can help: by an exit code, by the agent's word, or by a person's.
    Unrecoverable,
    /// The gate rejected the output.
    Rejected,
    /// The parameters do not meet the Agent's schema, or are too large.
    InvalidParameters,
    /// An expression cannot be evaluated.
    ExpressionError,
    /// The output, the document, or the list of the outputs of all items is larger than 512 KiB, or the output nests deeper than 64 levels.
    OutputTooLarge,
    /// Somebody else's Job had the name of the attempt's Job, and nothing ran.
    NameConflict,
    /// The StepRun was deleted, or cannot be read, and is never made again.
    StepRunLost,
    /// Nobody may decide at the gate, because who made the run is not known or is no person.
    GateNotProven,
    /// A Document was deleted, or is not what was reported, read or accepted.
    DocumentChanged,
    /// The Agent was changed while the attempt waited for its pod; nothing ran, and another attempt takes the Agent as it is now.
    AgentChanged,
    /// It was ended together with its run.
    Cancelled,
    /// The agent asked people, which costs none of its attempts; another attempt goes on once they have answered.
    Asked,
}

impl std::fmt::Display for AttemptResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// One attempt that has ended.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// The number of the attempt, from 1.
    pub number: i32,
    /// The review round that the attempt was made for, from 1.
    pub round: i32,
    /// How the attempt ended.
    pub result: AttemptResult,
    /// The exit code of the agent's command (128 and its number for a signal); absent if it was not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The `metadata.generation` of the Agent when the attempt was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_generation: Option<i64>,
    /// The UID of the attempt's Job, by which its pods are known.
    #[serde(default, rename = "jobUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub job_uid: Option<String>,
    /// The UID of the Agent when the attempt was started.
    #[serde(default, rename = "agentUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_uid: Option<String>,
    /// The SHA-256 digest of the Agent's template and schemas when the attempt was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub agent_digest: Option<String>,
    /// The digest of the image that the agent's container ran, as its node names it; absent where the attempt had
    /// ended before its node told it, or its node names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub image_digest: Option<String>,
    /// The document that the attempt made, by UID and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_binding: Option<Binding>,
    /// What the agent said that it used; absent if it said nothing. Of an attempt that was lost or stopped, what was known by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The documents that the agent read by the call `document get`. Of an attempt that was lost or stopped, what was known by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub documents_read: Vec<DocumentRead>,
    /// When the agent started; absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the attempt ended.
    pub completed_at: Time,
    /// Why the attempt did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// How many attempts have been used up.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptCounts {
    /// How many attempts have failed since a person last answered, without those that the cluster lost. At `retry.maxAttempts` a
    /// person is asked, or the step fails.
    #[serde(default)]
    pub retryable: i32,
    /// How many attempts the cluster has lost since a person last answered. Five are repeated; after the sixth a person is asked, or
    /// the step fails.
    #[serde(default)]
    pub infrastructure: i32,
    /// How many times a person has answered, or a rejection has begun another round.
    // Part of the id of a wait.
    #[serde(default)]
    pub answers: i32,
}

/// What a step made, by name and digest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResultRef {
    /// The number of the attempt that made it.
    pub attempt: i32,
    /// The SHA-256 digest over output and document.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// The name of the Document that the step made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub document_name: Option<String>,
    /// What that Document was when it was reported; if it is deleted or exchanged, the step fails with the class DocumentChanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_binding: Option<Binding>,
    /// The name of the Document (type `lockstep-output`) that holds the output, if it has more than 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub output_document: Option<String>,
    /// What the Document that holds the output was when it was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_binding: Option<Binding>,
}

/// The newest failure of a step.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepError {
    /// The class of the failure, which says what happens next.
    pub class: AttemptResult,
    /// What went wrong, and where.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The number of the attempt that failed.
    pub attempt: i32,
    /// The exit code of the agent's command (128 and its number for a signal); absent if it was not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The last 4 KiB of what the agent wrote to stdout and stderr, with the values of Secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub log_tail: Option<String>,
    /// The id of the run's trace, 32 hexadecimal digits: where traces are exported, the attempt is found by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub trace_id: Option<String>,
}
