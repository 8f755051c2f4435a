//! A step of a definition, as it is written in a Workflow or a WorkflowTemplate. The Rust type is recursive; the CRDs
//! hold three generated levels of it (`levels`).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::{free_object, number_or_percent, told};
use super::usage::Budget;

mod levels;

pub use levels::step_levels;

/// One step: an agent to run (`agentId`), a question to a person (`ask`), a manual approval (`gate` alone) or a group of
/// steps (`steps`).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The name of the step, unique in the whole definition: a small letter, then small letters, digits and `-`, at most 40
    /// characters. Expressions know the step by it (`steps.NAME`).
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub name: String,
    /// The names of the steps of the same list that must have ended before this one starts, at most 64; only where `order` is
    /// Graph. A step without it starts at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 40)))]
    pub needs: Vec<String>,
    /// A CEL expression that gives true or false, at most 1024 bytes, evaluated when everything before the step has ended. If it
    /// is false the step is skipped and its output is null; in a Graph the steps that need it are skipped with it, unless their own
    /// `when` asks about it. The default is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub when: Option<String>,
    /// The name of the Agent that does the step. Exactly one of `agentId`, `ask` and `steps` says what a step does; a step with
    /// none of them and a `gate` is a manual approval of its `parameters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 52))]
    pub agent_id: Option<String>,
    /// A question to a person. The answer is the output of the step, and no pod runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// Runs the step (or the group) once for each item of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_each: Option<ForEach>,
    /// What the agent gets as `parameters`, or what is approved in a manual approval. Strings may hold CEL expressions as
    /// `${ EXPRESSION }`; with them resolved it has at most 32 KiB. The default is no parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters: Option<Map<String, Value>>,
    /// The types of documents that the step reads, at most 32, beside those that its Agent requires. The step waits until they
    /// are published. `TYPE/*` stands for the documents of that type of all items of a finished forEach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 65)))]
    pub documents: Vec<String>,
    /// The document that the step makes beside its output. The default is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub produces: Option<Produces>,
    /// The JSON Schema (2020-12) that the output must meet, beside the Agent's own, at most 32 KiB of text. An output that does
    /// not meet it ends the attempt with the class InvalidOutput.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub output_schema: Option<Map<String, Value>>,
    /// The CEL expression that gives the output of a group (with `forEach`: of each item), at most 1024 bytes. The default is
    /// the output of the group's last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub output: Option<String>,
    /// Lets the step wait until people accept its output and document. Nothing that follows starts before, and no other step
    /// finds the document. An empty object (`gate: {}`) is a gate that one person opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// The gates of single actions in the middle of the agent's work, at most 16: at these, and at no others, the agent may request
    /// an approval (`lockstep request-approval`). The default is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub action_gates: Vec<ActionGate>,
    /// How much the agent of the step may use, all attempts together; with `forEach` for each item. When that is spent no further
    /// attempt starts, and a person is asked to raise it (reason BudgetSpent). The default is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// How often a failed attempt is repeated, and how far apart; it counts before the Agent's `retry`, field by field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How many seconds one attempt may take, from the start of the agent's command to its exit: 1 to 604800 (a week). An
    /// attempt that takes longer is ended with the class Timeout. Waiting for people does not count. The default is that of the
    /// Agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: Option<i64>,
    /// What happens when the step cannot go on by itself. The default is the `onFailure` of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// How the steps of a group follow each other. The default is Chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    // Described where the levels are written out (`levels`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    pub steps: Vec<Step>,
}

/// How the steps of a list follow each other.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum Order {
    /// Each step starts when the one written before it has ended.
    #[default]
    Chain,
    /// Each step starts when the steps that it `needs` have ended; without `needs` it starts at once.
    Graph,
}

/// What happens when a step cannot go on by itself.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum OnFailure {
    /// Where another attempt could help, a person is asked (phase WaitingForInput); else the step fails, and the run with it.
    #[default]
    Wait,
    /// The step fails, and the run with it; nobody is asked.
    Fail,
    /// The step fails, its output is null, and the run goes on. It is refused on a step with a gate: a rejection is never passed over.
    Continue,
}

/// A question to a person, whose answer is the output of the step.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    /// The question as it is shown, at most 1024 characters. It may hold CEL expressions as `${ EXPRESSION }`.
    #[schemars(length(min = 1, max = 1024))]
    pub question: String,
    /// The JSON Schema (2020-12) that the answer must meet, at most 32 KiB of text. An answer that does not meet it is refused and
    /// the question stays open. The default is any text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub schema: Option<Map<String, Value>>,
    /// After how many seconds without an answer the step fails, with the class Timeout: 1 to 31536000 (a year). The default is
    /// to wait for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_seconds: Option<i64>,
}

/// One execution for each item of a list.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ForEach {
    /// The CEL expression that gives the list, at most 1024 bytes, for example `documents.epic_backlog.epics`. It is evaluated
    /// when the step begins, and may give at most 5000 items. An empty list or null completes the step with the output `[]`.
    #[serde(rename = "in")]
    #[schemars(length(min = 1, max = 1024))]
    pub items: String,
    /// The name of the item in expressions: a small letter, then small letters, digits and `_`, at most 40 characters.
    #[serde(rename = "as")]
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub as_name: String,
    /// The CEL expression that gives the key of an item, at most 1024 bytes, for example `epic.id`: a string or a number of 1 to
    /// 63 letters, digits, `.`, `_` and `-`, no key twice. The default is the item's place in the list, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub key: Option<String>,
    /// How many items may be queued or running at once: 1 to 1000. Items that wait for people are not counted. The default is 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_parallel: Option<i32>,
    /// How many items may fail, as a number from 0 to 5000 or as a percentage of the list (`10%`, rounded down). One more, and the `onFailure`
    /// of the step says what happens. A rejected item is never tolerated. The default is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_percent")]
    pub tolerate: Option<IntOrString>,
    /// The CEL expression over the steps of an item, at most 1024 bytes, for what of the item goes into the list that is the
    /// output of the step. The default is the output of the item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub collect: Option<String>,
}

/// The document that a step makes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Produces {
    /// The type of the document: a small letter, then small letters, digits and `-`, at most 63 characters. The agent writes it to
    /// `$LOCKSTEP_OUT/TYPE.md`, `.txt` or `.json`, by its format.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub document_type: String,
    /// How the content of the document is to be read.
    #[serde(default)]
    pub format: Format,
    /// Lets other runs see the document. The default is the item of a forEach, or else the run, that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<WiderScope>,
}

/// The scopes that `produces` may widen to.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum WiderScope {
    /// All runs of the run's session.
    Session,
    /// All runs of the run's project.
    Project,
}

/// How the content of a document is to be read.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(transform = told)]
pub enum Format {
    /// JSON, which expressions read as a value.
    Json,
    /// Markdown, which expressions read as text.
    #[default]
    Markdown,
    /// Plain text.
    Text,
    /// The JSON object `{uri, sha256, bytes, mediaType}`, which says where something lies that is too large for a document.
    Link,
}

impl Format {
    /// The file ending that agents see.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Json | Self::Link => "json",
            Self::Markdown => "md",
            Self::Text => "txt",
        }
    }
}

/// Who must accept what a step made, and what a rejection means.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// The name of the gate in RBAC: whoever has the verb `approve` on `gates.lockstep.dev/NAME` may decide. At most 63 small
    /// letters, digits and `-`. The default is the type of the document that the step makes, or else the step's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub name: Option<String>,
    /// The people who may decide, among those who have the verb `approve`. The default is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptors: Option<Acceptors>,
    /// How many different people must accept: 1 to 16. One rejection ends the round, whoever has accepted. The default is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub approvals: Option<i32>,
    /// Whether the person who made the run is kept from deciding (four eyes). Where it is not known who made the run, nobody may
    /// decide, and the step fails with the class GateNotProven before its agent runs. The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub four_eyes: bool,
    /// Whether the run must have been made by a person. Where a service account made it (GitOps, a pipeline) nobody may decide,
    /// and the step fails with the class GateNotProven before its agent runs. The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub created_by_person: bool,
    /// Whether a decision must name the digest of what was reviewed (annotation `lockstep.dev/review`) in the first round, too;
    /// from the second round on it always must. The plugin always names it. The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_review: bool,
    /// What a rejection means. The default is Fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_reject: Option<OnReject>,
    /// How many outputs are reviewed at most, the first included: 1 to 20; only with `onReject: Revise`. When the last one is
    /// rejected a person is asked, or the step fails where `onFailure` is not Wait. The default is 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 20))]
    pub max_rounds: Option<i32>,
    /// After how many seconds an undecided round counts as rejected, which fails the step: 1 to 31536000 (a year), counted from
    /// the opening of the gate. The default is to wait for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_seconds: Option<i64>,
    /// A CEL expression that gives true or false, at most 1024 bytes, evaluated once when the output is there, which it reads as
    /// `output` (up to 16 KiB). If it is false, nobody needs to accept. The default is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub when: Option<String>,
    /// What the people who decide are asked, at most 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// Who may approve single actions of an agent.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ActionGate {
    /// The name of the gate, by which the agent names it, and in RBAC: whoever has the verb `approve` on `gates.lockstep.dev/NAME`
    /// may decide. At most 63 small letters, digits and `-`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub name: String,
    /// The people who may decide, among those who have the verb `approve`. The default is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptors: Option<Acceptors>,
    /// How many different people must approve: 1 to 16. One rejection denies the action, whoever has approved. The default is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub approvals: Option<i32>,
    /// Whether the person who made the run is kept from deciding (four eyes). Where it is not known who made the run, nobody may
    /// decide, and the step fails with the class GateNotProven before its agent runs. The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub four_eyes: bool,
    /// What the people who decide are asked, at most 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// What a rejection means.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum OnReject {
    /// The step fails, and the run with it.
    #[default]
    Fail,
    /// The agent runs again and gets the rejected document and all comments; a rejection must have a comment.
    Revise,
}

/// Users and groups by the names that the API server knows.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Acceptors {
    /// The names of users who may decide, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub users: Vec<String>,
    /// The names of groups whose members may decide, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub groups: Vec<String>,
}

/// How often failed attempts are repeated, and how far apart.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// How many attempts there are in all before a person is asked (or the step fails, where `onFailure` is not Wait): 1 to 100.
    /// Attempts that the cluster lost have a budget of their own, and the answer of a person begins a new count. The default is
    /// 3, and in a step that of the Agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<i32>,
    /// How many seconds pass before the second attempt: 1 to 3600. They double for each that follows, and are shortened by up to
    /// a quarter by chance. The default is 10, and in a step that of the Agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub initial_backoff_seconds: Option<i64>,
    /// How many seconds pass between two attempts at most: 1 to 86400 (a day). If it is less than `initialBackoffSeconds`, that
    /// counts. The default is 300, and in a step that of the Agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub max_backoff_seconds: Option<i64>,
}
