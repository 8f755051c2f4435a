//! What people have to do with a StepRun: gates and their decisions, questions and their answers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GateState {
    #[default]
    Waiting,
    Accepted,
    Rejected,
    Closed,
    /// Its `when` was false.
    NotRequired,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    pub state: GateState,
    pub round: i32,
    /// What a decision binds: StepRun, round, output and document.
    #[schemars(length(max = 80))]
    pub output_digest: String,
    pub opened_at: Time,
    /// UIDs and generations of the admission policies that stood when the gate opened.
    #[schemars(length(max = 512))]
    pub policy: String,
    /// Ready to paste, while it waits: to accept by kubectl, and by the plugin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 512)))]
    pub commands: Vec<String>,
    /// Latched, append only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub decisions: Vec<Decision>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Type of the document decided on; the step's path where it makes none.
    #[schemars(length(max = 512))]
    pub document_type: String,
    /// Identity of the scope that the step runs in: the run's UID, then the keys of the items inwards.
    // Absent in objects of versions that spelt it otherwise, as in `ScopeLink`.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub scope_id: String,
    pub accepted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub comment: Option<String>,
    /// Proven by admission, never taken from the request.
    #[schemars(length(max = 512))]
    pub decided_by: String,
    pub decided_at: Time,
    #[schemars(length(max = 80))]
    pub digest: String,
    pub round: i32,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct WaitingFor {
    /// An answer is for this wait only.
    #[schemars(length(max = 80))]
    pub id: String,
    pub kind: WaitKind,
    #[schemars(length(max = 4096))]
    pub question: String,
    /// What may be answered.
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub options: Vec<String>,
    pub since: Time,
    /// Ready to paste.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 512)))]
    pub commands: Vec<String>,
    /// UIDs and generations of the admission policies that prove who answers; none counts while it is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub policy: String,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitKind {
    /// The retries are spent.
    RetriesSpent,
    /// It cannot be known whether the attempt had its effects.
    OutcomeUnknown,
    /// The cluster kept losing the attempts.
    InfrastructureSpent,
    /// The last round of a review was rejected.
    RoundsSpent,
    /// The step is a question.
    Question,
}

/// The answer to a step's question.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Answer {
    /// JSON text.
    #[schemars(length(max = 16_384))]
    pub value: String,
    /// Proven by admission.
    #[schemars(length(max = 512))]
    pub by: String,
    pub at: Time,
}

/// What a person said with an answer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Guidance {
    /// The attempt that it is about.
    pub attempt: i32,
    #[schemars(length(max = 512))]
    pub by: String,
    #[schemars(length(max = 4096))]
    pub text: String,
}

/// What a person ordered for a step that could not go on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Action {
    pub action: Act,
    /// What was waited for.
    pub wait: WaitKind,
    /// The attempt that it is about.
    pub attempt: i32,
    /// Proven by admission.
    #[schemars(length(max = 512))]
    pub by: String,
    pub at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub comment: Option<String>,
}

/// The words of the annotation `lockstep.dev/action`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    Retry,
    Skip,
    Fail,
}

impl Act {
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Retry, Self::Skip, Self::Fail].into_iter().find(|act| act.word() == word)
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Skip => "skip",
            Self::Fail => "fail",
        }
    }

    /// As it is told: `skipped by ann`.
    pub fn past(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Skip => "skipped",
            Self::Fail => "failed",
        }
    }
}
