//! Workflow: one run. The spec is the user's, the status the operator's alone and under 64 KiB.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::{free_object, step_levels};
use super::step::{Format, Step};

#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "Workflow",
    namespaced,
    status = "WorkflowStatus",
    shortname = "lwf",
    category = "lockstep",
    doc = "One run of a definition.",
    derive = "PartialEq",
    selectable = ".spec.session",
    selectable = ".status.phase",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name must be at most 52 characters, because names of StepRuns and Jobs are derived from it"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.currentStep"),
    printcolumn(name = "Waiting", type_ = "string", json_path = ".status.waiting.summary"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.templateRef.name", priority = 1),
    printcolumn(name = "Session", type_ = "string", json_path = ".status.session.id", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].reason", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.templateRef) != has(self.steps)").message("exactly one of templateRef and steps says what to run"))]
#[x_kube(validation = Rule::new("self == oldSelf").message("the spec of a run is immutable; to run something else, rename the run"))]
pub struct WorkflowSpec {
    /// The WorkflowTemplate to run, pinned at the first pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_ref: Option<TemplateRef>,
    /// The definition in place, instead of `templateRef`: one step after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "step_levels")]
    pub steps: Vec<Step>,
    /// JSON Schema (2020-12) of `parameters`, where `steps` stand here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters_schema: Option<Map<String, Value>>,
    /// Seen by expressions as `parameters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters: Option<Map<String, Value>>,
    /// What the user asks for, at most 64 KiB; agents get it as data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub input: Option<String>,
    /// Runs of one session share its documents; private to the run unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub session: Option<String>,
    /// Runs of one project share its documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub project: Option<String>,
    /// Documents of this run, 64 KiB in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub documents: Vec<InlineDocument>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct TemplateRef {
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
}

/// A document of run scope, written in the run itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct InlineDocument {
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub document_type: String,
    #[serde(default)]
    pub format: Format,
    #[schemars(length(max = 65_536))]
    pub content: String,
}

/// Where a run or a step stands, for people: nothing branches on it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    WaitingForInput,
    WaitingForAcceptance,
    WaitingForDocuments,
    Completed,
    Failed,
    Cancelled,
}

impl Phase {
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowStatus {
    /// Derived: the generation that this status speaks of; -1 before the first look.
    #[serde(default = "super::condition::unseen")]
    pub observed_generation: i64,
    /// Derived; terminal phases are latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Derived: `Succeeded`, `Waiting`, `Reconciling`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Latched in the first write: who created the run, as admission stamped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub creator: Option<String>,
    /// Latched in the first write: the pinned definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<DefinitionRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionStatus>,
    /// Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Derived: the first unfinished step in file order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub current_step: Option<String>,
    /// Derived: all steps that run or wait, 50 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(max = 512)))]
    pub active_steps: Vec<String>,
    /// Derived: types of required documents that are missing, 20 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 65)))]
    pub pending_documents: Vec<String>,
    /// Derived: the gates that wait, 20 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub pending_acceptance: Vec<PendingAcceptance>,
    /// Derived: how much waits for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// One entry a step of the definition, in file order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    #[schemars(length(max = 1000))]
    pub steps: Vec<StepStatus>,
}

impl Default for WorkflowStatus {
    fn default() -> Self {
        Self {
            observed_generation: super::condition::unseen(),
            phase: None,
            conditions: Vec::new(),
            creator: None,
            definition: None,
            session: None,
            started_at: None,
            completed_at: None,
            current_step: None,
            active_steps: Vec::new(),
            pending_documents: Vec::new(),
            pending_acceptance: Vec::new(),
            waiting: None,
            steps: Vec::new(),
        }
    }
}

/// The ControllerRevision that holds a pinned definition.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DefinitionRef {
    #[schemars(length(max = 253))]
    pub revision_name: String,
    #[schemars(length(max = 80))]
    pub digest: String,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Latched.
    #[schemars(length(max = 80))]
    pub id: String,
    /// Derived: Initiated before any Job, Busy from the first claim.
    pub phase: SessionPhase,
    /// Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionPhase {
    #[default]
    Initiated,
    Busy,
    Completed,
    Failed,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PendingAcceptance {
    #[schemars(length(max = 253))]
    pub step_run: String,
    #[schemars(length(max = 512))]
    pub path: String,
    #[schemars(length(max = 63))]
    pub gate: String,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    pub gates: i32,
    pub questions: i32,
    /// For the column WAITING: `1 gate, 2 questions`.
    #[schemars(length(max = 64))]
    pub summary: String,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// `group/step`.
    #[schemars(length(max = 512))]
    pub path: String,
    /// Derived.
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Latched when it was made; a StepRun named here that is gone is lost, never made again. Absent under forEach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub step_run: Option<String>,
    /// Digest of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub output_digest: Option<String>,
    /// Latched: digest of the list that a forEach goes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub collection_digest: Option<String>,
    /// Latched: the documents that the list was read from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub collection_documents: Vec<String>,
    /// Derived: progress of a forEach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub total: i32,
    pub started: i32,
    pub done: i32,
    pub failed: i32,
}
