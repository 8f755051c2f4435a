//! What the status of a run is made of.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::schema::told;
use crate::api::usage::Budget;

/// Where a run or a step stands.
// For people: nothing branches on it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum Phase {
    /// It has not started; the conditions say what it waits for.
    #[default]
    Pending,
    /// An attempt runs, or is about to.
    Running,
    /// A person must answer; no pod runs for it.
    WaitingForInput,
    /// People must accept or reject at a gate; no pod runs for it.
    WaitingForAcceptance,
    /// Documents are missing.
    WaitingForDocuments,
    /// Nothing new starts, because `spec.suspend` of the run is true.
    Suspended,
    /// It is over and has its output.
    Completed,
    /// It is over and did not succeed.
    Failed,
    /// It was ended, by `spec.cancel` or together with its run.
    Cancelled,
    /// The step did not run: its `when` was false, it needs a step that was skipped, or the run ended before its turn came.
    Skipped,
}

impl Phase {
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::Skipped)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// Where the definition of a run is stored.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DefinitionRef {
    /// The name of the ControllerRevision that holds the definition.
    #[schemars(length(max = 253))]
    pub revision_name: String,
    /// The SHA-256 digest of the definition; it is compared wherever the definition is read.
    #[schemars(length(max = 80))]
    pub digest: String,
}

/// The session of a run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// The name of the session: that of `spec.session`, or `_NAME-` and eight characters of the run's UID.
    // Latched.
    #[schemars(length(max = 80))]
    pub id: String,
    /// Whether the session of the run is at work.
    // Derived.
    pub phase: SessionPhase,
    /// When the session of the run began.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
}

/// Whether the session of a run is at work.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum SessionPhase {
    /// No agent has started yet.
    #[default]
    Initiated,
    /// An agent has started.
    Busy,
    /// The run is Completed.
    Completed,
    /// The run is Failed or Cancelled.
    Failed,
}

/// A gate that waits for a decision.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PendingAcceptance {
    /// The name of the StepRun, which is to be annotated.
    #[schemars(length(max = 253))]
    pub step_run: String,
    /// The path (`group/step`) of the step.
    #[schemars(length(max = 512))]
    pub path: String,
    /// The name of the gate in RBAC.
    #[schemars(length(max = 63))]
    pub gate: String,
}

/// How far a forEach has come.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct IterationProgress {
    /// The path (`group/step`) of the step.
    #[schemars(length(max = 512))]
    pub path: String,
    /// How many items its list has.
    pub total: i32,
    /// How many items have completed.
    pub done: i32,
    /// How many items have failed.
    pub failed: i32,
}

/// One person's decision at a gate.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AcceptanceDecision {
    /// The name of the StepRun that was decided on.
    #[schemars(length(max = 253))]
    pub step_run: String,
    /// The type of the document that was decided on; the step's path where it makes none.
    #[schemars(length(max = 512))]
    pub document_type: String,
    /// Which run and which item the step belongs to: the UID of the run, then the keys of the items around it, each after a `/`.
    #[schemars(length(max = 512))]
    pub scope_id: String,
    /// Whether it was accepted; false is a rejection.
    pub accepted: bool,
    /// The user name of the person who decided, as the API server proved it.
    #[schemars(length(max = 512))]
    pub decided_by: String,
    /// When the person decided: the time that the API server gave the request, to the second.
    pub decided_at: Time,
}

/// How much of a run waits for people.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    /// How many gates wait for a decision.
    pub gates: i32,
    /// How many steps wait for an answer.
    pub questions: i32,
    /// Both in words, for the column WAITING: `1 gate, 2 questions`.
    #[schemars(length(max = 64))]
    pub summary: String,
}

/// The output of a run: up to 4 KiB in the status, a larger one in a Document.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunOutput {
    /// The SHA-256 digest of the output's JSON text.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// The output as JSON text, if it has at most 4 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,
    /// The name of the Document (type `lockstep-output`) that holds the output, if it has more than 4 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub document_name: Option<String>,
}

/// Where one step of the definition stands.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// The path (`group/step`) of the step.
    #[schemars(length(max = 512))]
    pub path: String,
    /// Where the step stands, in one word; of a forEach all items together.
    // Derived.
    pub phase: Phase,
    /// When the first attempt of the step started, or a person was first asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the step was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// The name of the StepRun of the step; absent inside of a forEach, where there is one for each item.
    // Latched when it was made; a StepRun named here that is gone is lost, never made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub step_run: Option<String>,
    /// What the step's `when` gave; absent until it was evaluated.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<bool>,
    /// The SHA-256 digest of the list that the forEach goes over.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub collection_digest: Option<String>,
    /// The names of the Documents that the list was read from, at most 16.
    // Latched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub collection_documents: Vec<String>,
    /// How many items of a forEach there are, and how far they have come.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// The SHA-256 digest of what the step gave, output and document; of a question, that of its answer. Absent inside of a
    /// forEach, and in a run of more than 100 steps.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub output_digest: Option<String>,
    /// What the step gave, in one line: the member `summary` of its output, or else the beginning of the output. At most 120
    /// bytes, shorter in a run of more than 50 steps; absent where `outputDigest` is.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub summary: Option<String>,
}

/// How far the items of a forEach have come.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many items the list has.
    pub total: i32,
    /// How many items were started.
    pub started: i32,
    /// How many items have completed.
    pub done: i32,
    /// How many items have failed.
    pub failed: i32,
    /// How many items were skipped, because a `when` was false, or because the run ended before their turn came.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// How much of a run's budget is left.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// What the run may use, with what people have raised.
    pub limit: Budget,
    /// Whether it is spent: then no further attempt starts.
    pub spent: bool,
    /// The StepRun that asks people to raise it, once one would start: one asks for the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub step_run: Option<String>,
}
