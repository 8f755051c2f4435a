//! What a StepRun made, bound to the Documents that hold it; what it takes over from another run.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::people::Decision;

/// What a Document was when it was made. Whoever reads it later compares: a Document of that name with another UID or
/// another content is another one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// UID of the Document; absent where it is named before it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// `sha256:...` of its content.
    #[schemars(length(max = 80))]
    pub digest: String,
}

/// The result of the StepRun of another run, taken over with its digest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Reuse {
    #[schemars(length(max = 253))]
    pub step_run: String,
    #[schemars(length(max = 64))]
    pub uid: String,
    #[schemars(length(max = 80))]
    pub digest: String,
    /// JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub output: Option<String>,
    /// This run's copy of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub document_name: Option<String>,
    /// What that document held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_binding: Option<Binding>,
    /// This run's copy of the internal Document that carries an output of more than 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub output_document: Option<String>,
    /// What that Document held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_binding: Option<Binding>,
    /// Who decided the gate then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 512)))]
    pub decided_by: Vec<String>,
    /// What was decided then, and whether it counts here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<ReusedGate>,
    /// Digest of the Agent that the result was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub agent_digest: Option<String>,
}

/// The gate of the StepRun that a result is taken over from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ReusedGate {
    /// How this run's gate compares with that one.
    pub compares: Comparison,
    /// The acceptances, as they were recorded then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub decisions: Vec<Decision>,
}

/// How a gate compares with the one that a result was accepted at.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Comparison {
    /// It asks for the same, in everything: what was accepted there may count here.
    Same,
    /// It asks for something else: it opens again over the result that is there.
    #[default]
    Differs,
}

/// The Job of one attempt.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct JobRef {
    pub attempt: i32,
    #[schemars(length(max = 253))]
    pub name: String,
    #[schemars(length(max = 64))]
    pub uid: String,
}
