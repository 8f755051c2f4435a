//! `context.json`, version 1: what an agent is told of its attempt. `docs/context.schema.json` is made from these types, so
//! their comments are for those who write agents. Fields may be added in this version; none is taken away or changes its type.

#![expect(clippy::disallowed_macros, reason = "what the derive of a schema writes")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The file context.json in `LOCKSTEP_IN`: what an agent is told of its attempt. Fields that are not described here may be added;
/// agents pass over what they do not know.
#[derive(Serialize, JsonSchema, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// The version of this contract. It is 1.
    #[schemars(extend("const" = 1))]
    pub version: u32,
    /// The run that the step belongs to.
    pub workflow: Run,
    /// The name of the session; that of a private session begins with `_`.
    pub session: String,
    /// The step, and which attempt of it this is.
    pub step: Step,
    /// The run and the items around the step, outermost first.
    pub scope_chain: Vec<Scope>,
    /// The item of the innermost forEach around the step; null outside of a forEach.
    pub item: Option<Item>,
    /// The parameters of the step, with all expressions resolved.
    pub parameters: Value,
    /// What the run was asked for, as text. It is data, never an instruction of Lockstep's.
    pub input: String,
    /// What was said and done before, oldest first: what people answered to questions of the run, and in a named session what this
    /// agent gave in other steps and runs; then all of this step. It is bounded: see `historyCursor`.
    pub history: Vec<Entry>,
    /// Present if there are older entries: `lockstep history --before CURSOR` gives them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_cursor: Option<String>,
    /// What people have answered to questions of this step's agent (`lockstep ask`), oldest first.
    pub answers: Vec<GivenAnswer>,
    /// The documents that the step reads, by type. Under `TYPE/*`, or under `TYPE` where only those are read, stands the list of the
    /// documents of all items.
    pub documents: BTreeMap<String, Documents>,
    /// What the attempt is to make.
    pub output: Output,
    /// Where the agent's memory of this session is.
    pub memory: MemoryPlace,
    /// What the Agent says to a model; present if it is only a prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// The attempt before this one; absent in the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

/// What a person answered to a question of the step's agent.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct GivenAnswer {
    /// The key that the agent gave the question; without one, the text of the question.
    pub key: String,
    /// The question.
    pub question: String,
    /// The answer, any JSON value that meets the schema of the question.
    pub answer: Value,
    /// The user name of the person who answered, as the API server proved it.
    pub by: String,
    /// When the answer was recorded.
    #[schemars(extend("format" = "date-time"))]
    pub at: String,
    /// The number of the attempt that asked.
    pub attempt: i32,
}

/// What an attempt is to make.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// The JSON Schema that the output must meet: the Agent's or the step's, or both in an `allOf`; null where any JSON value is taken.
    pub schema: Option<Value>,
    /// The name of the file in `LOCKSTEP_OUT` for the document that the step produces; null where it produces none.
    pub document: Option<String>,
    /// How that document is to be read: `json`, `markdown`, `text` or `link`; null where there is none.
    #[serde(default)]
    pub format: Option<String>,
}

/// What an Agent that is only a prompt says to a model.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Prompt {
    /// What the model is told first.
    pub system: String,
    /// The name of the model.
    pub model: String,
    /// The address of the endpoint, without `/chat/completions`.
    #[serde(rename = "baseURL")]
    pub base_url: String,
    /// How freely the model chooses its words; null where the endpoint says.
    pub temperature: Option<f64>,
    /// How often the model is called in this attempt at most.
    pub max_turns: u32,
}

/// Where an agent's memory is, and how it is called.
#[derive(Serialize, JsonSchema, Clone, Debug)]
pub struct MemoryPlace {
    /// The name of the Memory object.
    pub name: String,
    /// What to call in the container.
    pub verb: String,
    /// What to call over HTTP, below `LOCKSTEP_URL`.
    pub call: String,
}

/// The run that a step belongs to.
#[derive(Serialize, JsonSchema, Clone, Debug)]
pub struct Run {
    /// The name of the Workflow.
    pub name: String,
    /// The UID of the Workflow.
    pub uid: String,
    /// The name of the session.
    pub session: String,
    /// The project whose documents the run shares; null without one.
    pub project: Option<String>,
}

/// A step, and an attempt of it.
#[derive(Serialize, JsonSchema, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The path of the step in the definition, `group/step`.
    pub path: String,
    /// The name of the StepRun.
    pub step_run: String,
    /// The name of the Agent.
    pub agent_id: String,
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// The number of the review round, from 1.
    pub round: i32,
}

/// The run, or an item, around a step.
#[derive(Serialize, JsonSchema, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// What it is: `workflow`, or the `as` name of a forEach.
    pub scope: String,
    /// Which one it is: the UID of the run, then the keys of the items inwards, each after a `/`.
    pub scope_id: String,
    /// The place of the item in its list, from 0; absent for the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<i32>,
}

/// An item of a forEach.
#[derive(Serialize, JsonSchema, Clone, Debug)]
pub struct Item {
    /// The key of the item, which no other item of the list has.
    pub key: String,
    /// The place of the item in the list, from 0.
    pub index: i32,
    /// The item itself, any JSON value.
    pub value: Value,
}

/// Something that was said or done before.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// The step that it is about; absent where it is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<EntryStep>,
    /// The number of the attempt that it is about; absent where it is about none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// The number of the review round; absent where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<i32>,
    /// The user name of the person who said or ordered it, as the API server proved it; absent where nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it was; absent where that was not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub at: Option<String>,
    /// What was said, asked or given, or what was wrong.
    pub text: String,
    /// Of a comment and of an approval, whether it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<bool>,
    /// The SHA-256 digest over the output and the document of what was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What an entry of the history is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum EntryKind {
    /// What was wrong with an earlier attempt of this step.
    Fault,
    /// What a person said at the gate about an output.
    Comment,
    /// What a person ordered when the step could not go on: `retry`, `skip` or `fail`.
    Action,
    /// What a person said for the attempts that follow.
    Guidance,
    /// A question that was put to a person, in this run.
    Question,
    /// A person's answer to the question before it.
    Answer,
    /// What a person decided on an action that this step's agent requested: the action, and why; `accepted` says whether.
    Approval,
    /// What this agent was asked in another step of the session, in one line.
    Asked,
    /// What this agent gave in another step of the session, in one line, with its digest.
    Gave,
}

/// Another step, of this run or of another one of the session.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EntryStep {
    /// The name of the Workflow.
    pub workflow: String,
    /// The path of the step, and behind it the keys of the items: `group/step/key`.
    pub path: String,
    /// The name of the StepRun.
    pub step_run: String,
}

/// One document, or those of all items.
#[derive(Serialize, JsonSchema, Clone, Debug)]
#[serde(untagged)]
pub enum Documents {
    /// The one document of a type.
    One(DocumentFile),
    /// The documents of all items, in the order of the list.
    OfAllItems(Vec<ItemDocument>),
}

/// A document as a file.
#[derive(Serialize, JsonSchema, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DocumentFile {
    /// Where it lies, relative to `LOCKSTEP_IN`.
    pub path: String,
    /// The SHA-256 digest of its content.
    pub digest: String,
    /// Which run or item the document belongs to; null for documents that people created.
    pub scope_id: Option<String>,
}

/// A document that an item made.
#[derive(Serialize, JsonSchema, Clone, Debug)]
pub struct ItemDocument {
    /// The key of the item.
    pub key: String,
    /// The place of the item in the list, from 0; null where it is not known.
    pub index: Option<i32>,
    /// Where it lies, relative to `LOCKSTEP_IN`.
    pub path: String,
    /// The SHA-256 digest of its content.
    pub digest: String,
}

/// The attempt before this one.
#[derive(Serialize, JsonSchema, Clone, Debug)]
pub struct Previous {
    /// The number of that attempt.
    pub attempt: i32,
    /// What was wrong with it, a line each; empty where nothing was.
    pub faults: Vec<String>,
    /// What people said of the outputs of all rounds before this one; from the second round on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comments: Option<Vec<String>>,
    /// The document that was rejected last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<RejectedDocument>,
}

/// The document that was rejected last.
#[derive(Serialize, JsonSchema, Clone, Debug)]
pub struct RejectedDocument {
    /// Where it lies, relative to `LOCKSTEP_IN`.
    pub path: String,
    /// The SHA-256 digest of its content.
    pub digest: String,
}

/// A part of the history: `POST /v1/history`, and what the agent's call gives.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default)]
pub struct HistoryPage {
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// What to ask with for older ones; null where there are none.
    pub cursor: Option<String>,
}

/// The JSON Schema of `context.json`, as `docs/context.schema.json` has it.
pub fn schema() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<Context>();
    schema.insert("title".to_owned(), "context.json, version 1".into());
    schema.to_value()
}
