//! A step of a definition, as it is written in a Workflow or a WorkflowTemplate. The Rust type is recursive; the CRDs
//! hold three generated levels of it (`levels`).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::{free_object, number_or_percent};

mod levels;

pub use levels::step_levels;

/// One step: an agent to run (`agentId`), a question to a person (`ask`), a manual approval (`gate` alone) or a group of
/// steps (`steps`).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Unique in the whole definition.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub name: String,
    /// Names of steps of the same list that must have ended before; only where `order` is Graph.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 40)))]
    pub needs: Vec<String>,
    /// CEL that gives a boolean, evaluated once when everything before has ended; false skips the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub when: Option<String>,
    /// Name of the Agent that runs this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 52))]
    pub agent_id: Option<String>,
    /// A question to a person; the answer is the output. No pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// Runs the step once for each item of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_each: Option<ForEach>,
    /// What the agent gets as `parameters`; strings may hold `${ CEL }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters: Option<Map<String, Value>>,
    /// Types of documents that must exist before the step starts, beside those its Agent requires. `type/*` gathers
    /// the documents of all items of a finished forEach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 65)))]
    pub documents: Vec<String>,
    /// The document that the step makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub produces: Option<Produces>,
    /// JSON Schema (2020-12) that the output must meet, beside the Agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub output_schema: Option<Map<String, Value>>,
    /// CEL that gives the output of a group, or of each item of a forEach over a group; its last step's unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub output: Option<String>,
    /// A person must accept the output before anything that follows may start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Overrides the Agent's retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Seconds from claim to exit of one attempt; overrides the Agent's. People's time never counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: Option<i64>,
    /// What a failure for good means; the run's `onFailure` unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// How the steps of a group follow each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The steps of a group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    pub steps: Vec<Step>,
}

/// How the steps of a list follow each other.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Each step follows the one written before it.
    #[default]
    Chain,
    /// `needs` says what a step waits for; none means at once.
    Graph,
}

/// What a failure for good means.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Where another attempt could help, a person is asked; else it fails.
    #[default]
    Wait,
    /// It fails, and the run with it.
    Fail,
    /// It fails, its output is null, and the run goes on. Never for a rejection.
    Continue,
}

/// A question to a person.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    /// Shown to whom is asked; may hold `${ CEL }`.
    #[schemars(length(min = 1, max = 1024))]
    pub question: String,
    /// JSON Schema (2020-12) of the answer; any text unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub schema: Option<Map<String, Value>>,
    /// Seconds after which the step fails unanswered; it waits for ever unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_seconds: Option<i64>,
}

/// One execution for each item of a list.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ForEach {
    /// CEL that gives the list, for example `documents.epic_backlog.epics`; evaluated once.
    #[serde(rename = "in")]
    #[schemars(length(min = 1, max = 1024))]
    pub items: String,
    /// Name of the item in expressions, and of its scope.
    #[serde(rename = "as")]
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub as_name: String,
    /// CEL that gives the item's key, for example `epic.id`; without it the index is the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub key: Option<String>,
    /// Items that may be queued or running at once; 10 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_parallel: Option<i32>,
    /// Items that may fail, as a number or `10%`; none unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_percent")]
    pub tolerate: Option<IntOrString>,
    /// CEL over the steps of an item, for what of it goes into the list that is the output; its output unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub collect: Option<String>,
}

/// The document that a step makes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Produces {
    /// Document type; the agent writes it to `<type>.md`, `.json` or `.txt`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub document_type: String,
    #[serde(default)]
    pub format: Format,
    /// How far the document can be seen: the item or the run that made it unless told; may be widened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<WiderScope>,
}

/// The scopes that `produces` may widen to.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum WiderScope {
    Session,
    Project,
}

/// How the content of a document is to be read.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Json,
    #[default]
    Markdown,
    Text,
    /// `{uri, sha256, bytes, mediaType}` as JSON: carries what is too big for a document.
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

/// Who must accept what a step made.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// Name in RBAC (`gates.lockstep.dev/NAME`, verb `approve`); the document type unless told, else the step's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub name: Option<String>,
    /// Who may decide, among those who hold the verb `approve`; everyone of them when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptors: Option<Acceptors>,
    /// How many different people must accept; 1 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub approvals: Option<i32>,
    /// Whoever made the run may not decide.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub four_eyes: bool,
    /// The run must have been made by a person: where a service account made it (GitOps, a pipeline), nobody may decide.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub created_by_person: bool,
    /// A decision must name the digest of what was reviewed, in the first round, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_review: bool,
    /// What a rejection means; Fail unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_reject: Option<OnReject>,
    /// Outputs that are reviewed at most, the first included (onReject Revise); 3 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 20))]
    pub max_rounds: Option<i32>,
    /// Seconds after which an undecided round counts as rejected; it waits for ever unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_seconds: Option<i64>,
    /// CEL that gives a boolean, evaluated once when the output is there (`output`); false needs no decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub when: Option<String>,
    /// Shown to the reviewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// What a rejection means.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReject {
    /// The step fails.
    #[default]
    Fail,
    /// The agent runs again, with the last document and all comments.
    Revise,
}

/// Users and groups by the names that the API server knows.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Acceptors {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub users: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub groups: Vec<String>,
}

/// How often, and how far apart, failed attempts are repeated.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Attempts since the last act of a person; 3 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<i32>,
    /// Seconds before the second attempt, doubled for each that follows; 10 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub initial_backoff_seconds: Option<i64>,
    /// Seconds at most between two attempts; 300 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub max_backoff_seconds: Option<i64>,
}
