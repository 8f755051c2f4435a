//! Workflow: one run. The spec is the user's, the status the operator's alone and under 64 KiB.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::notification::Notified;
use super::schema::free_object;
use super::step::{Format, OnFailure, Order, Step, step_levels};
use super::usage::{Budget, Usage};

mod parts;

pub use parts::{
    AcceptanceDecision, BudgetStatus, Counts, DefinitionRef, IterationProgress, PendingAcceptance, Phase, RunOutput,
    SessionPhase, SessionStatus, StepStatus, Waiting,
};

/// What to run, and with which parameters and documents. It never changes but for `suspend`, `cancel` and
/// `ttlSecondsAfterFinished`: to run something else, create another Workflow.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "Workflow",
    namespaced,
    status = "WorkflowStatus",
    shortname = "lwf",
    category = "lockstep",
    doc = "A Workflow is one run of steps: those of a WorkflowTemplate, or its own. It starts when it is created, and its status says how far it has come.",
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
#[x_kube(validation = Rule::new("has(self.templateRef) == has(oldSelf.templateRef) && (!has(self.templateRef) || self.templateRef == oldSelf.templateRef) && has(self.order) == has(oldSelf.order) && (!has(self.order) || self.order == oldSelf.order) && has(self.steps) == has(oldSelf.steps) && (!has(self.steps) || self.steps == oldSelf.steps) && has(self.parametersSchema) == has(oldSelf.parametersSchema) && (!has(self.parametersSchema) || self.parametersSchema == oldSelf.parametersSchema) && has(self.parameters) == has(oldSelf.parameters) && (!has(self.parameters) || self.parameters == oldSelf.parameters) && has(self.input) == has(oldSelf.input) && (!has(self.input) || self.input == oldSelf.input) && has(self.session) == has(oldSelf.session) && (!has(self.session) || self.session == oldSelf.session) && has(self.project) == has(oldSelf.project) && (!has(self.project) || self.project == oldSelf.project) && has(self.documents) == has(oldSelf.documents) && (!has(self.documents) || self.documents == oldSelf.documents) && has(self.onFailure) == has(oldSelf.onFailure) && (!has(self.onFailure) || self.onFailure == oldSelf.onFailure) && has(self.output) == has(oldSelf.output) && (!has(self.output) || self.output == oldSelf.output) && has(self.timeoutSeconds) == has(oldSelf.timeoutSeconds) && (!has(self.timeoutSeconds) || self.timeoutSeconds == oldSelf.timeoutSeconds) && has(self.budget) == has(oldSelf.budget) && (!has(self.budget) || self.budget == oldSelf.budget) && has(self.retryOf) == has(oldSelf.retryOf) && (!has(self.retryOf) || self.retryOf == oldSelf.retryOf) && has(self.notifications) == has(oldSelf.notifications) && (!has(self.notifications) || self.notifications == oldSelf.notifications)").message("the spec of a run is immutable but for suspend, cancel and ttlSecondsAfterFinished; to run something else, rename the run"))]
#[x_kube(validation = Rule::new("!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)").message("cancel cannot be taken back; to run it again, make another run"))]
#[x_kube(validation = Rule::new("!has(self.templateRef) || !(has(self.order) || has(self.output) || has(self.parametersSchema))").message("order, output and parametersSchema go with steps; with templateRef the template says them"))]
pub struct WorkflowSpec {
    /// The WorkflowTemplate to run. It is taken as it is when the run starts, and later changes do not touch the run. Exactly one
    /// of `templateRef` and `steps` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_ref: Option<TemplateRef>,
    /// How the `steps` follow each other; only with `steps`. The default is Chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The steps, where the run does not refer to a template: 1 to 200; with the steps of groups counted 200 in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "step_levels")]
    pub steps: Vec<Step>,
    /// The JSON Schema (2020-12) that `parameters` must meet, at most 32 KiB of text; only with `steps`. The `default`s of its
    /// first-level properties fill in what `parameters` leaves out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters_schema: Option<Map<String, Value>>,
    /// The parameters of the run, which expressions read as `parameters`. If they do not meet the schema of the template (or of
    /// the run) the run fails at once. The default is no parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters: Option<Map<String, Value>>,
    /// What is asked for, as text of at most 64 KiB. Agents find it in their context as `input`, expressions as `workflow.input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub input: Option<String>,
    /// The session of the run: runs of one session share its documents and what their agents remember. A letter or digit, then
    /// letters, digits, `.`, `_` and `-`, at most 63 characters. The default is a session of the run's own, which no other run
    /// can join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub session: Option<String>,
    /// The project of the run: runs of one project share its documents. A letter or digit, then letters, digits, `.`, `_` and
    /// `-`, at most 63 characters. The default is no project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub project: Option<String>,
    /// Documents that all steps of this run can read: at most 32, one of each type, with 64 KiB of content in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub documents: Vec<InlineDocument>,
    /// What happens when a step cannot go on by itself, for the steps that do not say it themselves. The default is the
    /// template's, or else Wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// The CEL expression that gives the output of the run, at most 1024 bytes; only with `steps`. The default is the output of
    /// the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub output: Option<String>,
    /// After how many seconds the run fails, counted from its start with all waiting: 1 to 31536000 (a year). Its pods are ended,
    /// and the reason is RunTimeout. The default is the template's, or else no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub timeout_seconds: Option<i64>,
    /// How much the agents of the run may use, all attempts together. When that is spent no further attempt starts, and a person is
    /// asked to raise it (reason BudgetSpent). The default is the template's, or else no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Takes over the results of a finished run, step by step, as long as the input of a step is the same; from the first step
    /// that differs or did not complete, everything runs. `kubectl lockstep retry` makes such a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RetryOf>,
    /// Whether the run holds still: while it is true no new attempt starts, running attempts finish, and people can still decide
    /// and answer. It may be changed at any time. The default is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Whether the run is cancelled: its pods are ended, and what waits for people is closed. It may be set to true at any time,
    /// and not taken back. The default is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<bool>,
    /// How many seconds after its end the StepRuns, Jobs and documents of the run are deleted: 0 to 315360000 (ten years). The
    /// Workflow itself is deleted with them only if it has the label `lockstep.dev/made-by`. It may be changed at any time. The
    /// default is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<i64>,
    /// The receivers outside of the cluster that are told when the run starts, waits for people, is decided on and ends: at most 8
    /// names out of those that the administrator has configured for this namespace (chart value `notifications.sinks`). The default
    /// is the receivers that are configured for all runs; an empty list is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    pub notifications: Option<Vec<String>>,
}

/// The finished run that this one goes on from; it must be in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct RetryOf {
    /// The name of the Workflow.
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
    /// The UID of the Workflow: another run of the same name is not meant, and this one fails with the reason RetryOfNotFound.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// The path (`group/step`) of the first step to run again, even if it completed. The default is the first that did not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub from: Option<String>,
    /// Whether results are taken over although the Agent's template or schemas have changed since they were made. Otherwise such
    /// a step runs again. The default is false.
    #[serde(default, rename = "keepResults", skip_serializing_if = "std::ops::Not::not")]
    pub keep_results: bool,
}

/// A WorkflowTemplate of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct TemplateRef {
    /// The name of the WorkflowTemplate. If it does not exist the run waits for it (phase Pending).
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
}

/// A document of the run, written in the run itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct InlineDocument {
    /// The type of the document: a small letter, then small letters, digits and `-`, at most 63 characters.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub document_type: String,
    /// How the content is to be read.
    #[serde(default)]
    pub format: Format,
    /// The document itself, at most 64 KiB of text.
    #[schemars(length(max = 65_536))]
    pub content: String,
}

/// How far the run has come, and what it waits for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowStatus {
    /// The `metadata.generation` that this status is about; -1 before Lockstep has looked at the run.
    // Derived.
    #[serde(default = "super::condition::unseen")]
    pub observed_generation: i64,
    /// Where the run stands, in one word. With several waits it is Running while anything runs, else WaitingForInput before
    /// WaitingForAcceptance before WaitingForDocuments.
    // Derived; terminal phases are latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The conditions `Succeeded` (Unknown while the run is not over), `Waiting` (True while people or documents are waited for),
    /// `Reconciling` and `Stalled` (which kstatus reads), `Failing` (it has failed, and some attempts still finish) and
    /// `GatePolicyInstalled` (False if the admission policies are not as installed). Their reasons say why.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The user name of whoever created the run, as the API server knows it; absent where it is not known.
    // Latched in the first write, from the annotation that admission proves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub creator: Option<String>,
    /// Where the definition is stored as it was when the run started.
    // Latched in the first write: the pinned definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<DefinitionRef>,
    /// The session of the run, and whether it is at work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionStatus>,
    /// The project whose documents the run shares.
    // Latched in the first write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub project: Option<String>,
    /// When the run started.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the run ended, whether it completed, failed or was cancelled.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// When the run's own time limit (`timeoutSeconds`) was seen to have passed; its pods are ended from then on.
    // Latched: what one clock has seen, another that is behind does not take back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timed_out_at: Option<Time>,
    /// The first step of the outermost list, in the order of the definition, that is not over.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub current_step: Option<String>,
    /// The steps that run or wait, with the keys of the items around them, at most 50.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(max = 512)))]
    pub active_steps: Vec<String>,
    /// The steps of the outermost list that have completed, in the order of the definition.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), inner(length(max = 40)))]
    pub completed_steps: Vec<String>,
    /// How far each forEach has come that is not inside of another, in the order of the definition, the first 20.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub iteration_progress: Vec<IterationProgress>,
    /// The types of the documents that are waited for, at most 20. The run goes on by itself when they are there.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 65)))]
    pub pending_documents: Vec<String>,
    /// The gates that wait for a decision, at most 20.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub pending_acceptance: Vec<PendingAcceptance>,
    /// What was decided at gates that no longer wait: the newest ten decisions, oldest first. All of them, with comments and
    /// digests, are in `status.gate` of the StepRuns.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub acceptance_decisions: Vec<AcceptanceDecision>,
    /// How much waits for people; absent while nothing does.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// What the agents of the run said that they used in all attempts that have ended, failed ones too; absent if none said
    /// anything.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// How much of the run's budget is left, if it has one.
    // Derived, but which step asks: that stays as long as it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetStatus>,
    /// The output of the run, once it is Completed; absent if it is null.
    // Latched at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<RunOutput>,
    /// The finished run that this one goes on from.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RetryOf>,
    /// What receivers outside of the cluster have been told of the run itself.
    // Latched, only grows while it can be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["sink".into()]))]
    #[schemars(length(max = 16))]
    pub notified: Vec<Notified>,
    /// Each step of the definition, the steps of groups too, in the order of the definition.
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
            timed_out_at: None,
            current_step: None,
            active_steps: Vec::new(),
            completed_steps: Vec::new(),
            iteration_progress: Vec::new(),
            pending_documents: Vec::new(),
            pending_acceptance: Vec::new(),
            acceptance_decisions: Vec::new(),
            waiting: None,
            usage: None,
            budget: None,
            output: None,
            retry_of: None,
            notified: Vec::new(),
            steps: Vec::new(),
        }
    }
}
