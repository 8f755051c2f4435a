//! What a StepRun made, bound to the Documents that hold it; what it takes over from another run.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::people::Decision;
use crate::api::schema::told;

/// What a Document was when it was made. It is compared whenever the Document is read: one of the same name with another UID
/// or another content is another one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// The UID of the Document; absent where it was named before it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// The SHA-256 digest of its content.
    #[schemars(length(max = 80))]
    pub digest: String,
}

/// The result of a step of another run, which is taken over.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Reuse {
    /// The name of the StepRun that made the result.
    #[schemars(length(max = 253))]
    pub step_run: String,
    /// The UID of that StepRun.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// The SHA-256 digest over output and document.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// The output as JSON text, if it has at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub output: Option<String>,
    /// The name of this run's copy of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub document_name: Option<String>,
    /// What that Document held when it was taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_binding: Option<Binding>,
    /// The name of this run's copy of the Document that holds the output, if it has more than 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub output_document: Option<String>,
    /// What the Document that holds the output held when it was taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_binding: Option<Binding>,
    /// The user names of the people who accepted it then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 512)))]
    pub decided_by: Vec<String>,
    /// What was decided at the gate then, and whether it counts here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<ReusedGate>,
    /// The SHA-256 digest of the template and schemas of the Agent that made the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub agent_digest: Option<String>,
}

/// What was decided at the gate of the step whose result is taken over.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ReusedGate {
    /// Whether the gate of this run asks for the same as that one.
    pub compares: Comparison,
    /// The acceptances as they were recorded then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub decisions: Vec<Decision>,
}

/// Whether a gate asks for the same as the one at which a result was accepted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum Comparison {
    /// It asks for the same in everything, and what was accepted there may count here.
    Same,
    /// It asks for something else, and is opened again over the result that is there.
    #[default]
    Differs,
}

/// The Job of one attempt.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct JobRef {
    /// The number of the attempt.
    pub attempt: i32,
    /// The name of the Job.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The UID of the Job.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// The SHA-256 digest of what the Agent said when the attempt was launched: its `outputSchema`, `repair` and time limits. They go with the
    /// pod (annotation `lockstep.dev/terms`), and the attempt is judged by them. Absent where the pod has no room for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub terms: Option<String>,
}
