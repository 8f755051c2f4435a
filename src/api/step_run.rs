//! StepRun: one execution of one step, for one item. Made by the operator only; attempts and reviews happen inside.
//! Its status has two writers with disjoint fields: `status.agent` is the gateway's, everything else the operator's.

mod agent;
mod approval;
mod asked;
mod attempt;
mod made;
mod people;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::notification::Notified;
use super::schema::free_value;
use super::step::Acceptors;
use super::usage::{Budget, Usage};
use super::workflow::{DefinitionRef, Phase};
pub use agent::{
    AgentReport, Asking, Claim, DocumentRead, Journal, JournalState, Progress, Report, ReportClass, Stopped,
};
pub use approval::{ApprovalRequest, ApprovalUse, RequestedApproval};
pub use asked::{AgentQuestion, AskedQuestion};
pub use attempt::{Attempt, AttemptCounts, AttemptResult, ResultRef, StepError};
pub use made::{Binding, Comparison, JobRef, Reuse, ReusedGate};
pub use people::{Act, Action, Answer, BudgetRaise, Decision, GateState, GateStatus, Guidance, WaitKind, WaitingFor};

/// What the step does and reads, with every expression resolved. It never changes.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "StepRun",
    namespaced,
    status = "StepRunStatus",
    shortname = "lsr",
    category = "lockstep",
    doc = "A StepRun is one execution of one step of a run, for one item of a forEach. Lockstep creates it and writes its status; people decide and answer by annotations on it.",
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
    printcolumn(name = "Output", type_ = "string", json_path = ".status.agent.report.output", priority = 1),
    printcolumn(name = "Journal", type_ = "string", json_path = ".status.agent.journal.state", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("the spec of a StepRun is immutable"))]
pub struct StepRunSpec {
    /// The run that the step belongs to.
    pub workflow: WorkflowIdentity,
    /// Where the definition of the run is stored.
    pub definition: DefinitionRef,
    /// The path of the step in the definition: its name, behind the names of the groups around it (`group/step`).
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
    /// The name of the Agent that does the step; absent for a question and for a manual approval.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 52))]
    pub agent_id: String,
    /// The question to a person, if the step is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<StepRunAsk>,
    /// The result of a finished run that is taken over (`spec.retryOf` of the run); nothing is run for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
    /// The item of the innermost forEach around the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<Item>,
    /// The run and the items around the step, outermost first, at most 4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub scope_chain: Vec<ScopeLink>,
    /// The parameters of the step as JSON text, at most 32 KiB.
    // Text, so that its bytes stay as they are.
    #[schemars(length(max = 32_768))]
    pub parameters: String,
    /// The documents that the step reads, by name and digest, the same for all attempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6000))]
    pub documents: Vec<DocumentRef>,
    /// The gate at which people accept or reject the output, if the step has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<StepRunGate>,
    /// How much the agent of the step may use, all attempts together, if the step limits it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// The gates at which the agent may request approvals of single actions, if the step declares any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub action_gates: Vec<StepRunGate>,
    /// The SHA-256 digest over agent, parameters, documents, question and the input of the run. A later run takes the result over
    /// only if this digest is the same.
    #[schemars(length(max = 80))]
    pub input_digest: String,
}

/// The run that a step belongs to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct WorkflowIdentity {
    /// The name of the Workflow.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The UID of the Workflow.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// The user name of whoever created the run, as the API server knows it; absent where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub creator: Option<String>,
    /// The W3C trace context of whoever asked for the run; absent where it began a trace of its own, whose id follows from the UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub traceparent: Option<String>,
}

/// An item of a forEach.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// The key of the item, which no other item of the list has.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// The place of the item in the list, from 0.
    pub index: i32,
    /// The item itself, any JSON value.
    #[schemars(schema_with = "free_value")]
    pub value: Value,
}

/// The run, or an item, around a step.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct ScopeLink {
    /// What it is: `workflow`, or the `as` name of a forEach.
    #[schemars(length(min = 1, max = 40))]
    pub scope: String,
    /// Which one it is: the UID of the run, then the keys of the items inwards, each after a `/`.
    // Objects of versions that spelt it `scopeID` have none, and must be read all the same: one that cannot be read keeps a
    // cache from filling.
    #[serde(default, rename = "scopeId")]
    #[schemars(length(max = 512))]
    pub scope_id: String,
    /// Of an item: its place in the list of the forEach, counted from 0; absent for the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub index: Option<i32>,
}

/// A document that a step reads.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct DocumentRef {
    /// The type of the document.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63))]
    pub document_type: String,
    /// Which run or item the document belongs to; absent for documents that people created.
    #[serde(default, rename = "scopeId", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub scope_id: Option<String>,
    /// The name of the Document.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The SHA-256 digest of its content. If the Document holds something else when it is read, the step fails with the class
    /// DocumentChanged.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// The UID of the Document; absent for the documents of all items (`TYPE/*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// The key of the item that made the document; present for the documents of all items (`TYPE/*`) only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub key: Option<String>,
    /// The place in its list of the item that made the document, counted from 0; present where `key` is. The documents of
    /// all items stand in the order of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub index: Option<i32>,
}

/// A question to a person, with its expressions resolved.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepRunAsk {
    /// The name of the question in RBAC: whoever has the verb `answer` on `inputs.lockstep.dev/NAME` may answer. It is the step's name.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// The question as it is shown.
    #[schemars(length(max = 4096))]
    pub question: String,
    /// After how many seconds without an answer the step fails, with the class Timeout. The default is to wait for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_seconds: Option<i64>,
}

/// The gate at which the output of a step waits, with its defaults filled in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepRunGate {
    /// The name of the gate in RBAC: whoever has the verb `approve` on `gates.lockstep.dev/NAME` may decide.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The people who may decide, among those who have the verb `approve`. The default is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptors: Option<Acceptors>,
    /// How many different people must accept: 1 to 16.
    #[serde(default = "first")]
    #[schemars(range(min = 1, max = 16))]
    pub approvals: i32,
    /// The user name of the person who may not decide, because they made the run (`fourEyes`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub not_by: Option<String>,
    /// Whether a decision must name the digest of what was reviewed in the first round, too. The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_review: bool,
    /// Whether a rejection must have a comment, with which the agent runs again (`onReject: Revise`). The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revise: bool,
    /// What the people who decide are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// How far the step has come, what it made, and what it waits for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepRunStatus {
    /// The `metadata.generation` that this status is about; -1 before Lockstep has looked at the StepRun.
    // Derived.
    #[serde(default = "super::condition::unseen")]
    pub observed_generation: i64,
    /// The number of the current attempt, from 1. Only the pod of this attempt can start the agent and report its end.
    // Latched, only grows: the fence. A claim counts for this attempt alone.
    #[serde(default = "first")]
    pub attempt: i32,
    /// The number of the current review round, from 1; it grows when a rejection asks for another output.
    // Latched, only grows.
    #[serde(default = "first")]
    pub round: i32,
    /// Where the step stands, in one word.
    // Derived; terminal phases are latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The conditions `Started` (if False, its reason says why the agent does not start), `GatePolicyInstalled` (False if the
    /// admission policies are not as installed: then a gate stays shut, and no answer counts), and `Reconciling` and `Stalled`, which
    /// kstatus reads: True while the step runs or waits, and after it failed or was cancelled.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Always absent. Lockstep tries, without storing anything, to write it, which the admission policies must refuse: that shows
    /// that they are in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub canary: Option<String>,
    /// The earliest time at which the current attempt starts, after a failed one.
    // Latched for the current attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// When the first attempt was started, or a person was first asked.
    // Latched: the first launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the Job of the current attempt was made; absent before that and after the attempt.
    // Latched after the Job was made, and cleared when the fence moves: a Job that is not there then was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched_at: Option<Time>,
    /// When the step was over: Completed, Failed or Cancelled.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// The attempts that have ended, the newest ten, oldest first.
    // Latched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub attempts: Vec<Attempt>,
    /// How many attempts have been used up since a person last answered.
    // Latched.
    #[serde(default)]
    pub counts: AttemptCounts,
    /// The Job of the newest attempt. Only a pod of this very Job can start the agent.
    // Latched with the launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobRef>,
    /// A part of the names of the Jobs that follow, present if somebody else's Job had the name of an attempt's Job.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub job_salt: Option<String>,
    /// What the step made: the output and document that are reviewed, published and read, by digest.
    // Latched: the verdict; commits the report's bytes by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultRef>,
    /// The gate of the step, once it was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateStatus>,
    /// What a person must answer before the step goes on; absent while nothing is asked.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// The answer to the step's question, if the step is one (`ask`).
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// The questions that the step's agent has asked (`lockstep ask`), at most 20, oldest first, each with its answer. The attempts
    /// that follow find them in their context.
    // Latched, append only; an answer is written once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub questions: Vec<AskedQuestion>,
    /// The approvals that the step's agent has requested for single actions (`lockstep request-approval`), at most 20, oldest first,
    /// each with what people decided and the one use that was made of it.
    // Latched, append only; a decision is appended, a use is written once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub approval_requests: Vec<ApprovalRequest>,
    /// What people said with their answers and rejections, the newest ten. The attempts that follow find it in their history.
    // Latched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub guidance: Vec<Guidance>,
    /// The retries, skips and failures that people ordered, the newest ten.
    // Latched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub actions: Vec<Action>,
    /// The newest failure; absent once the step has succeeded.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepError>,
    /// What the agents of all ended attempts said that they used, failed ones too; absent if none said anything.
    // Latched, only grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The budgets that people have raised here, the newest ten: of this step, and of the run.
    // Latched, append only: each holds all that was raised before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub budget_raises: Vec<BudgetRaise>,
    /// What receivers outside of the cluster have been told of this step.
    // Latched, only grows while it can be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["sink".into()]))]
    #[schemars(length(max = 16))]
    pub notified: Vec<Notified>,
    /// What the agent's pod said of its attempt.
    // The gateway's, all of it; everything else is the operator's.
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
            launched_at: None,
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
            questions: Vec::new(),
            approval_requests: Vec::new(),
            guidance: Vec::new(),
            actions: Vec::new(),
            error: None,
            usage: None,
            budget_raises: Vec::new(),
            notified: Vec::new(),
            agent: None,
        }
    }
}
