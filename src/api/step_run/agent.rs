//! What an agent's pod said of the current attempt: the one part of the status that the gateway writes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::approval::{ApprovalUse, RequestedApproval};
use super::asked::AgentQuestion;
use super::made::Binding;
use crate::api::document::Scope;
use crate::api::schema::told;
use crate::api::usage::Usage;

/// What an agent's pod said of its attempt.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentReport {
    /// Which pod does the attempt; absent until one has started the agent.
    // Write-once for an attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// How far the agent says it has come. It is written every 2 s at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The journal of the attempt; absent, which means Initiated, until a pod has started the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
    /// What the agent says that it has used so far. It is written every 2 s at most, and at the end.
    // A sum that only grows, for an attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The documents that the agent has read by the call `document get`, in the order in which it asked for them first.
    // Only grows, for an attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub documents_read: Vec<DocumentRead>,
    /// What the agent asks people while its attempt goes on (`lockstep ask --wait`); absent if it asked nothing so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asking: Option<Asking>,
    /// The approvals that the agent has requested in this attempt (`lockstep request-approval`), at most 20.
    // Append only, for an attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub approval_requests: Vec<RequestedApproval>,
    /// The permissions that the agent has used in this attempt, at most 20.
    // Append only, for an attempt: written before the agent is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub used_approvals: Vec<ApprovalUse>,
    /// How the attempt ended; absent while it runs.
    // Write-once for an attempt: the commit point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// How an attempt ended that was stopped from outside, by a cancel or the run's timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// What an agent asks people while its attempt goes on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Asking {
    /// The number of the attempt.
    pub attempt: i32,
    /// The questions, at most 20, in the order in which they are put.
    // Append only, for an attempt.
    #[schemars(length(max = 20))]
    pub questions: Vec<AgentQuestion>,
    /// When the newest of them was asked.
    pub at: Time,
    /// Until when the agent waits. After that its attempt ends with what is not answered.
    pub until: Time,
}

/// The pod that does an attempt.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The number of the attempt.
    pub attempt: i32,
    /// The SHA-256 digest of a random id that only the process in the pod knows. One process gets an attempt, and starts the
    /// agent once.
    // Knowing the status is not enough to speak for the attempt.
    #[schemars(length(max = 80))]
    pub id: String,
    /// The name of the pod.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// The UID of the pod.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// When the pod got the attempt.
    pub at: Time,
}

/// The journal of an attempt.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Journal {
    /// The number of the attempt.
    pub attempt: i32,
    /// Where the attempt stands.
    pub state: JournalState,
    /// Since when.
    pub at: Time,
}

/// Where an attempt stands in its journal. It never goes back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum JournalState {
    /// The attempt was made, and no pod has started the agent.
    Initiated,
    /// A pod has the attempt, and its agent works, or has asked people and waits for their answer. An attempt that is lost with its pod stays so; `attempts` says how it ended.
    Busy,
    /// The agent has ended with code 0 and a valid output.
    Completed,
    /// The agent has ended otherwise.
    Failed,
}

/// A document that an agent has read by the call `document get`, beyond those that its step names.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DocumentRead {
    /// The type of the document.
    #[serde(rename = "type")]
    #[schemars(length(max = 63))]
    pub document_type: String,
    /// How far the document can be seen.
    pub scope: Scope,
    /// The name of the Document.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The UID of the Document.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// The SHA-256 digest of the content that the agent was given.
    #[schemars(length(max = 80))]
    pub digest: String,
}

/// How far an agent says it has come.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Progress {
    /// How much of the work is done, in percent: 0 to 100.
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
    /// What the agent does, in its own words.
    #[schemars(length(max = 256))]
    pub message: String,
    /// When it was said.
    pub at: Time,
}

/// How an attempt ended, and what it made.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The number of the attempt.
    pub attempt: i32,
    /// The exit code of the agent's command (128 and its number for a signal); absent if it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How the command ended, before the Agent's `exitCodes` and `retry` say what follows.
    pub class: ReportClass,
    /// The SHA-256 digest over the bytes of output and document.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// The output as JSON text, if it has at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub output: Option<String>,
    /// The name of the Document (type `lockstep-output`) that holds the output, if it has more than 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub output_document: Option<String>,
    /// What the Document that holds the output was when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_binding: Option<Binding>,
    /// The name of the Document that the attempt made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub document_name: Option<String>,
    /// What the Document of the attempt was when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_binding: Option<Binding>,
    /// What the agent asks people, if the class is Asked; at most 20 questions, which are put one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub questions: Vec<AgentQuestion>,
    /// Why the attempt did not succeed: the agent's own words, or the faults of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// The last 4 KiB of what the agent wrote to stdout and stderr, with the values of Secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub log_tail: Option<String>,
    /// Whether the cluster was taking the pod away when the agent was told to stop. Then its end costs the agent none of its tries.
    /// The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// When the attempt ended.
    pub at: Time,
}

/// The end of an attempt that was stopped from outside. It changes nothing any more.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Stopped {
    /// The number of the attempt that was stopped.
    pub attempt: i32,
    /// The exit code of the agent's command (128 and its number for a signal); absent if it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The last 4 KiB of what the agent wrote to stdout and stderr, with the values of Secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub log_tail: Option<String>,
    /// When it was reported.
    pub at: Time,
}

/// How an agent's command ended, before any policy.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum ReportClass {
    /// The command ended with code 0 and a valid output.
    Succeeded,
    /// The command ended with code 0, and the output is missing or does not meet a schema.
    InvalidOutput,
    /// The output or the document is larger than 512 KiB, or the output nests deeper than 64 levels.
    OutputTooLarge,
    /// The command ended with another code; the Agent's `exitCodes` say what it means.
    Exited,
    /// The agent called `lockstep fail --retryable`.
    Retryable,
    /// The agent called `lockstep fail --unrecoverable`.
    Unrecoverable,
    /// The command was ended after `timeoutSeconds`, or after `progressTimeoutSeconds` of silence.
    Timeout,
    /// The agent called `lockstep ask`: it asks people, and another attempt goes on once they have answered.
    Asked,
}
