//! Workflow: one run. The spec is the user's, the status the operator's alone and under 64 KiB.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::free_object;
use super::step::{Format, OnFailure, Order, Step, step_levels};

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
#[x_kube(validation = Rule::new("has(self.templateRef) == has(oldSelf.templateRef) && (!has(self.templateRef) || self.templateRef == oldSelf.templateRef) && has(self.order) == has(oldSelf.order) && (!has(self.order) || self.order == oldSelf.order) && has(self.steps) == has(oldSelf.steps) && (!has(self.steps) || self.steps == oldSelf.steps) && has(self.parametersSchema) == has(oldSelf.parametersSchema) && (!has(self.parametersSchema) || self.parametersSchema == oldSelf.parametersSchema) && has(self.parameters) == has(oldSelf.parameters) && (!has(self.parameters) || self.parameters == oldSelf.parameters) && has(self.input) == has(oldSelf.input) && (!has(self.input) || self.input == oldSelf.input) && has(self.session) == has(oldSelf.session) && (!has(self.session) || self.session == oldSelf.session) && has(self.project) == has(oldSelf.project) && (!has(self.project) || self.project == oldSelf.project) && has(self.documents) == has(oldSelf.documents) && (!has(self.documents) || self.documents == oldSelf.documents) && has(self.onFailure) == has(oldSelf.onFailure) && (!has(self.onFailure) || self.onFailure == oldSelf.onFailure) && has(self.output) == has(oldSelf.output) && (!has(self.output) || self.output == oldSelf.output) && has(self.timeoutSeconds) == has(oldSelf.timeoutSeconds) && (!has(self.timeoutSeconds) || self.timeoutSeconds == oldSelf.timeoutSeconds) && has(self.retryOf) == has(oldSelf.retryOf) && (!has(self.retryOf) || self.retryOf == oldSelf.retryOf)").message("the spec of a run is immutable but for suspend, cancel and ttlSecondsAfterFinished; to run something else, rename the run"))]
#[x_kube(validation = Rule::new("!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)").message("cancel cannot be taken back; to run it again, make another run"))]
#[x_kube(validation = Rule::new("!has(self.templateRef) || !(has(self.order) || has(self.output) || has(self.parametersSchema))").message("order, output and parametersSchema go with steps; with templateRef the template says them"))]
pub struct WorkflowSpec {
    /// The WorkflowTemplate to run, pinned at the first pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_ref: Option<TemplateRef>,
    /// How `steps` follow each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The definition in place, instead of `templateRef`.
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
    /// What a failure for good means where a step does not say; the template's unless told, else Wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// CEL that gives the run's output, where `steps` stand here; its last step's unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub output: Option<String>,
    /// Seconds from the start after which the run fails, waiting included; no limit unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub timeout_seconds: Option<i64>,
    /// Takes over what completed in a finished run, and starts at the first step that did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RetryOf>,
    /// May change: nothing new starts while it is true; running attempts finish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// May change from false to true: ends the run, its pods too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<bool>,
    /// May change: seconds after its end when StepRuns, Jobs and documents of the run are removed; never unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// The run that this one goes on from: of the same namespace, with that UID.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct RetryOf {
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Path of the first step to run again, even if it completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub from: Option<String>,
    /// Takes results over though the Agent's template or schemas are not those that they were made with.
    #[serde(default, rename = "keepResults", skip_serializing_if = "std::ops::Not::not")]
    pub keep_results: bool,
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
    Suspended,
    Completed,
    Failed,
    Cancelled,
    /// Of a step: its `when` was false, or it needs a step that was skipped.
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
    /// Latched in the first write: the project whose documents the run shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub project: Option<String>,
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
    /// Derived: the steps of the outermost list that have completed, in file order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), inner(length(max = 40)))]
    pub completed_steps: Vec<String>,
    /// Derived: how far each forEach has come that stands in no other, in file order, the first 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub iteration_progress: Vec<IterationProgress>,
    /// Derived: types of required documents that are missing, 20 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 65)))]
    pub pending_documents: Vec<String>,
    /// Derived: the gates that wait, 20 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub pending_acceptance: Vec<PendingAcceptance>,
    /// Derived: what was decided at gates that no longer wait, oldest first, the newest ten. Comments and digests stand in
    /// `status.gate` of the StepRuns, and so do all decisions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub acceptance_decisions: Vec<AcceptanceDecision>,
    /// Derived: how much waits for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Latched at the end: what the run gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<RunOutput>,
    /// Latched: the run that this one goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RetryOf>,
    /// One entry a step of the definition, in file order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    #[schemars(length(max = 200))]
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
            project: None,
            started_at: None,
            completed_at: None,
            current_step: None,
            active_steps: Vec::new(),
            completed_steps: Vec::new(),
            iteration_progress: Vec::new(),
            pending_documents: Vec::new(),
            pending_acceptance: Vec::new(),
            acceptance_decisions: Vec::new(),
            waiting: None,
            output: None,
            retry_of: None,
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

/// How far a forEach has come.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct IterationProgress {
    /// The step's path.
    #[schemars(length(max = 512))]
    pub path: String,
    /// Items of its list.
    pub total: i32,
    /// Items that completed.
    pub done: i32,
    /// Items that failed for good.
    pub failed: i32,
}

/// One person's decision at a gate.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AcceptanceDecision {
    #[schemars(length(max = 253))]
    pub step_run: String,
    /// Type of the document decided on; the step's path where it makes none.
    #[schemars(length(max = 512))]
    pub document_type: String,
    #[schemars(length(max = 512))]
    pub scope_id: String,
    pub accepted: bool,
    #[schemars(length(max = 512))]
    pub decided_by: String,
    pub decided_at: Time,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    pub gates: i32,
    pub questions: i32,
    /// For the column WAITING: `1 gate, 2 questions`.
    #[schemars(length(max = 64))]
    pub summary: String,
}

/// What a run gives: JSON text up to 4 KiB here, in an internal Document beyond.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunOutput {
    #[schemars(length(max = 80))]
    pub digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub document_name: Option<String>,
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
    /// Latched: what `when` gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<bool>,
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
    /// Derived: digest of what the step's one StepRun gave, output and document; of a question, that of its answer. Absent
    /// under forEach, and where the run has more than 100 steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub output_digest: Option<String>,
    /// Derived: what the step gave, in one line: its output, or the member `summary` of it. At most 120 bytes, shorter
    /// where there are more than 50 steps; absent where `outputDigest` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub summary: Option<String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub total: i32,
    pub started: i32,
    pub done: i32,
    pub failed: i32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}
