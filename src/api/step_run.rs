//! StepRun: one execution of one step, for one item. Made by the operator only; attempts and reviews happen inside.
//! Its status has two writers with disjoint fields: `status.agent` is the gateway's, everything else the operator's.

mod made;
mod people;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema::free_value;
use super::step::Acceptors;
use super::workflow::{DefinitionRef, Phase};
pub use made::{Binding, Comparison, JobRef, Reuse, ReusedGate};
pub use people::{Act, Action, Answer, Decision, GateState, GateStatus, Guidance, WaitKind, WaitingFor};

#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "StepRun",
    namespaced,
    status = "StepRunStatus",
    shortname = "lsr",
    category = "lockstep",
    doc = "One execution of one step.",
    derive = "PartialEq",
    selectable = ".spec.workflow.name",
    selectable = ".spec.agentId",
    selectable = ".status.phase",
    printcolumn(name = "Workflow", type_ = "string", json_path = ".spec.workflow.name"),
    printcolumn(name = "Step", type_ = "string", json_path = ".spec.path"),
    printcolumn(name = "Key", type_ = "string", json_path = ".spec.item.key"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt"),
    printcolumn(name = "Gate", type_ = "string", json_path = ".status.gate.state"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.agent.progress.message", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.error.class", priority = 1),
    printcolumn(name = "StepId", type_ = "string", json_path = ".spec.path", priority = 1),
    printcolumn(name = "StartedAt", type_ = "string", json_path = ".status.startedAt", priority = 1),
    printcolumn(name = "CompletedAt", type_ = "string", json_path = ".status.completedAt", priority = 1),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase", priority = 1),
    printcolumn(name = "Input", type_ = "string", json_path = ".spec.parameters", priority = 1),
    printcolumn(name = "Output", type_ = "string", json_path = ".status.agent.report.output", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("the spec of a StepRun is immutable"))]
pub struct StepRunSpec {
    pub workflow: WorkflowIdentity,
    pub definition: DefinitionRef,
    /// `group/step`.
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
    /// Absent where a person does the step: a question, or an approval alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 52))]
    pub agent_id: String,
    /// The question to a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<StepRunAsk>,
    /// What a finished run had completed already; nothing runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
    /// The innermost item of forEach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<Item>,
    /// From the run inwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub scope_chain: Vec<ScopeLink>,
    /// JSON text, so that its bytes stay as they are.
    #[schemars(length(max = 32_768))]
    pub parameters: String,
    /// The documents that the step reads, pinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6000))]
    pub documents: Vec<DocumentRef>,
    /// The gate that guards the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<StepRunGate>,
    /// Digest over agent, parameters, documents and input.
    #[schemars(length(max = 80))]
    pub input_digest: String,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct WorkflowIdentity {
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub creator: Option<String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Item {
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    pub index: i32,
    #[schemars(schema_with = "free_value")]
    pub value: Value,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct ScopeLink {
    /// `workflow`, or the `as` name of a forEach.
    #[schemars(length(min = 1, max = 40))]
    pub scope: String,
    /// Identity of the scope: the run's UID, then the keys of the items inwards.
    // Objects of versions that spelt it `scopeID` have none, and must be read all the same: one that cannot be read keeps a
    // cache from filling.
    #[serde(default, rename = "scopeId")]
    #[schemars(length(max = 512))]
    pub scope_id: String,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct DocumentRef {
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63))]
    pub document_type: String,
    #[serde(default, rename = "scopeId", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub scope_id: Option<String>,
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    #[schemars(length(max = 80))]
    pub digest: String,
    /// UID of the Document; absent for the members of a fan-in, whose digests say enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// Set for the members of a fan-in (`type/*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub key: Option<String>,
}

/// A question, with its expressions resolved.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepRunAsk {
    /// The name that RBAC knows (`inputs.lockstep.dev/NAME`): the step's.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    #[schemars(length(max = 4096))]
    pub question: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_seconds: Option<i64>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepRunGate {
    /// The name that RBAC knows (`gates.lockstep.dev/NAME`).
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptors: Option<Acceptors>,
    /// How many people must accept.
    #[serde(default = "first")]
    #[schemars(range(min = 1, max = 16))]
    pub approvals: i32,
    /// Who may not decide: the run's creator, under `fourEyes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub not_by: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_review: bool,
    /// A rejection must say why, and the agent runs again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revise: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepRunStatus {
    /// Derived.
    #[serde(default = "super::condition::unseen")]
    pub observed_generation: i64,
    /// Latched, only grows: the fence. A claim counts for this attempt alone.
    #[serde(default = "first")]
    pub attempt: i32,
    /// Latched, only grows: review rounds.
    #[serde(default = "first")]
    pub round: i32,
    /// Derived; terminal phases are latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Always empty: the operator probes with it that the policies stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub canary: Option<String>,
    /// Latched for the current attempt: it does not start earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// Latched: the first launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Latched: Completed, Failed or Cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Latched: the newest ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub attempts: Vec<Attempt>,
    /// Latched: what the budgets have used.
    #[serde(default)]
    pub counts: AttemptCounts,
    /// Latched with the launch: the newest Job. A pod may claim its attempt only if that very Job owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobRef>,
    /// Latched where somebody else's Job had the name that an attempt's was to have: part of the names that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub job_salt: Option<String>,
    /// Latched: the verdict; commits the report's bytes by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateStatus>,
    /// Latched: what a person must answer, with the commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// Latched: the answer to the step's question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Latched: what people said with their answers and rejections, for the attempts that follow; the newest ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub guidance: Vec<Guidance>,
    /// Latched: retries, skips and failures that people ordered; the newest ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub actions: Vec<Action>,
    /// Latched: the newest failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepError>,
    /// The gateway's: written for the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentReport>,
}

fn first() -> i32 {
    1
}

impl Default for StepRunStatus {
    fn default() -> Self {
        Self {
            observed_generation: super::condition::unseen(),
            attempt: 1,
            round: 1,
            phase: None,
            conditions: Vec::new(),
            canary: None,
            not_before: None,
            started_at: None,
            completed_at: None,
            attempts: Vec::new(),
            counts: AttemptCounts::default(),
            job: None,
            job_salt: None,
            result: None,
            gate: None,
            waiting_for: None,
            answer: None,
            guidance: Vec::new(),
            actions: Vec::new(),
            error: None,
            agent: None,
        }
    }
}

/// How an attempt ended, or what its class of failure is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    Succeeded,
    Retryable,
    InvalidOutput,
    Timeout,
    Infrastructure,
    OutcomeUnknown,
    OutputLost,
    Unrecoverable,
    Rejected,
    InvalidParameters,
    ExpressionError,
    OutputTooLarge,
    NameConflict,
    StepRunLost,
    GateNotProven,
    /// A Document is not what it was when it was reported, pinned or accepted, or it is gone.
    DocumentChanged,
    /// Ended because the run was.
    Cancelled,
}

impl std::fmt::Display for AttemptResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    pub number: i32,
    pub round: i32,
    pub result: AttemptResult,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Generation of the Agent at the launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_generation: Option<i64>,
    /// UID of its Job, by which its pods are known.
    #[serde(default, rename = "jobUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub job_uid: Option<String>,
    /// UID of the Agent at the launch.
    #[serde(default, rename = "agentUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_uid: Option<String>,
    /// `sha256:...` of what shapes the Agent's work, at the launch: its template and schemas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub agent_digest: Option<String>,
    /// `sha256:...` of the image that the agent's container ran, as its node names it. Absent where the attempt ended before
    /// its node had named it (up to a second after the start), the pod was gone before its end was seen, or its node names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub image_digest: Option<String>,
    /// The document that the attempt made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_binding: Option<Binding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    pub completed_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptCounts {
    /// Attempts since the last act of a person, those lost to the cluster left out.
    #[serde(default)]
    pub retryable: i32,
    /// Attempts lost to the cluster since the last act of a person.
    #[serde(default)]
    pub infrastructure: i32,
    /// Acts of a person so far; part of the id of a wait.
    #[serde(default)]
    pub answers: i32,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResultRef {
    pub attempt: i32,
    #[schemars(length(max = 80))]
    pub digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub document_name: Option<String>,
    /// What the document was when it was reported: nothing else is reviewed, accepted, published or read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_binding: Option<Binding>,
    /// The internal Document that carries an output of more than 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub output_document: Option<String>,
    /// What that Document was when it was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_binding: Option<Binding>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepError {
    pub class: AttemptResult,
    #[schemars(length(max = 1024))]
    pub message: String,
    pub attempt: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The end of the agent's log, secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub log_tail: Option<String>,
}

/// The gateway's part of the status.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct AgentReport {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

/// Write-once for an attempt: who runs it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    pub attempt: i32,
    /// Digest of the id that the shim keeps in memory: knowing the status is not enough to speak for the attempt.
    #[schemars(length(max = 80))]
    pub id: String,
    #[schemars(length(max = 253))]
    pub pod_name: String,
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    pub at: Time,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Progress {
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
    #[schemars(length(max = 256))]
    pub message: String,
    pub at: Time,
}

/// Write-once for an attempt, the commit point: what the agent said when it ended.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub attempt: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub class: ReportClass,
    /// `sha256:...` over the bytes of the output and of the document.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// JSON text, at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub output: Option<String>,
    /// The internal Document that carries an output of more than 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub output_document: Option<String>,
    /// What that Document was when the gateway made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_binding: Option<Binding>,
    /// The Document that the gateway made before it wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub document_name: Option<String>,
    /// What that Document was when the gateway made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_binding: Option<Binding>,
    /// Why it failed: the agent's words, or the faults of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub log_tail: Option<String>,
    pub at: Time,
}

/// What the shim saw, before any policy.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportClass {
    /// Exit 0 and a valid result.
    Succeeded,
    /// Exit 0 and no or a wrong result.
    InvalidOutput,
    /// A valid result that is larger than 512 KiB.
    OutputTooLarge,
    /// A non-zero exit; the Agent's `exitCodes` say what it means.
    Exited,
    /// `lockstep fail --retryable`.
    Retryable,
    /// `lockstep fail --unrecoverable`.
    Unrecoverable,
    /// Ended by the shim at `timeoutSeconds`.
    Timeout,
}
