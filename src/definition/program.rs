//! A definition, compiled: what an author wrote, with everything parsed, every default filled in and every reference
//! resolved, so that whoever acts on it has no wrong value to expect. `compile` makes it, once for each pinned revision.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use serde_json::{Map, Value};

use super::expression::{Expression, Room, Scope, Template, TextTemplate, underscored};
use super::schema::Schema;
use crate::api::agent::Agent;
use crate::api::document::OUTPUT_TYPE;
use crate::api::step::{Acceptors, OnFailure, Order, Produces, Retry};
use crate::api::usage::Budget;

/// Items of a forEach that run at once where it does not say.
pub const MAX_PARALLEL: usize = 10;
/// Outputs that are reviewed at most, the first included, where a gate with `onReject: Revise` does not say.
pub const MAX_ROUNDS: i32 = 3;

/// The pinned definition of a run.
#[derive(Clone, Debug)]
pub struct Program {
    pub run: RunContext,
    pub steps: StepList,
    /// Seconds from the start after which the run fails; no limit without.
    pub timeout_seconds: Option<i64>,
    /// What its agents may use; no limit without.
    pub budget: Option<Budget>,
}

/// Bytes of memory that the program of a definition takes, near enough: a parsed value takes a few times its text.
pub fn bytes(definition: &Value) -> usize {
    4 * definition.to_string().len()
}

/// What steps and agents may ask of the run that a definition was pinned for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunContext {
    pub name: String,
    pub uid: String,
    pub session: String,
    pub project: Option<String>,
    pub input: String,
    /// With the schema's defaults filled in.
    pub parameters: Map<String, Value>,
}

/// Steps that belong together: those of the run, or of a group.
#[derive(Clone, Debug, Default)]
pub struct StepList {
    pub steps: Vec<Step>,
    pub order: Order,
    /// Indexes of all steps, each behind what it needs, otherwise as they are written.
    pub sequence: Vec<usize>,
    /// What the list gives; the output of its last step without.
    pub output: Option<Expression>,
}

#[derive(Clone, Debug)]
pub struct Step {
    /// Unique in the whole definition.
    pub name: String,
    pub path: StepPath,
    /// Indexes of the steps of the same list that must have ended before.
    pub needs: Vec<usize>,
    pub when: Option<Expression>,
    pub for_each: Option<ForEach>,
    /// The run's where the step does not say; never `Continue` where a person must accept the output: a rejection is never
    /// passed over.
    pub on_failure: OnFailure,
    pub kind: StepKind,
}

/// Who does a step.
#[derive(Clone, Debug)]
pub enum StepKind {
    Agent(Box<AgentStep>),
    Ask(Box<AskStep>),
    Approval(Box<ApprovalStep>),
    Group(Box<StepList>),
}

/// A step that an agent does in a pod.
#[derive(Clone, Debug)]
pub struct AgentStep {
    /// Name of the Agent.
    pub agent: String,
    pub parameters: Parameters,
    /// Beside those that the Agent requires.
    pub documents: Vec<DocumentSelector>,
    pub produces: Option<Produces>,
    /// Beside the Agent's own.
    pub output_schema: Option<Schema>,
    pub gate: Option<Gate>,
    /// At which its agent may request approvals of single actions.
    pub action_gates: Vec<Gate>,
    /// What its agent may use; no limit without.
    pub budget: Option<Budget>,
    /// What of the Agent's retries the step overrides; `AttemptPolicy` resolves it.
    pub retry: Option<Retry>,
    /// The same of its timeout.
    pub timeout_seconds: Option<i64>,
}

/// A question to a person.
#[derive(Clone, Debug, PartialEq)]
pub struct AskStep {
    pub question: TextTemplate,
    /// Of the answer; any text without.
    pub schema: Option<Schema>,
    /// Seconds after which the step fails unanswered; it waits for ever without.
    pub deadline_seconds: Option<i64>,
}

/// An approval by people, of parameters alone.
#[derive(Clone, Debug)]
pub struct ApprovalStep {
    pub parameters: Parameters,
    pub gate: Gate,
}

/// What a step is given; strings may hold expressions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(pub(super) Vec<(String, Template)>);

/// One execution for each item of a list.
#[derive(Clone, Debug)]
pub struct ForEach {
    pub items: Expression,
    /// The name of the item in expressions.
    pub as_name: String,
    /// Gives an item's key; its index without.
    pub key: Option<Expression>,
    pub max_parallel: usize,
    pub tolerate: Tolerance,
    /// What of an item goes into the list that is the output; its own output without.
    pub collect: Option<Expression>,
}

/// How many items may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    Items(usize),
    Percent(usize),
}

/// Which documents of a type a step reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentSelector {
    /// The newest that can be seen from the step.
    Newest(String),
    /// Those of all items of a forEach that has ended: `type/*`.
    OfAllItems(String),
}

/// Who must accept what a step made. Two that are equal ask for the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// The name that RBAC knows.
    pub name: String,
    pub acceptors: Option<Acceptors>,
    /// How many different people must accept.
    pub approvals: i32,
    pub four_eyes: bool,
    pub created_by_person: bool,
    pub require_review: bool,
    pub on_reject: OnReject,
    /// Seconds after which an undecided round counts as rejected; it waits for ever without.
    pub deadline_seconds: Option<i64>,
    /// Gives whether a decision is needed at all.
    pub when: Option<Expression>,
    pub message: Option<String>,
}

/// What a rejection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReject {
    Fail,
    /// The agent runs again, so often that at most so many outputs are reviewed.
    Revise {
        max_rounds: i32,
    },
}

/// `group/step`: what a step is called in a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepPath(String);

impl StepPath {
    /// That of a step in this group; of the run itself without.
    pub(super) fn new(group: Option<&Self>, name: &str) -> Self {
        Self(group.map_or_else(|| name.to_owned(), |group| format!("{group}/{name}")))
    }
}

impl Deref for StepPath {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StepPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Program {
    /// The step at `group/step`.
    pub fn step(&self, path: &str) -> Option<&Step> {
        let mut list = Some(&self.steps);
        let mut found = None;
        for name in path.split('/') {
            found = list?.steps.iter().find(|step| step.name == name);
            list = found?.group();
        }
        found
    }

    /// All steps as they are written, each group before its steps.
    pub fn all(&self) -> Vec<&Step> {
        let mut found = Vec::new();
        self.steps.collect(&mut found);
        found
    }

    /// Names of all Agents that steps name.
    pub fn agents(&self) -> BTreeSet<String> {
        self.all().into_iter().filter_map(Step::agent).map(|step| step.agent.clone()).collect()
    }
}

impl RunContext {
    /// What expressions know as `workflow`.
    pub fn variable(&self) -> Value {
        Value::from_iter([
            ("name", self.name.clone().into()),
            ("session", self.session.clone().into()),
            ("project", self.project.clone().map_or(Value::Null, Value::from)),
            ("input", self.input.clone().into()),
            ("parameters", Value::Object(self.parameters.clone())),
        ])
    }
}

impl StepList {
    fn collect<'a>(&'a self, found: &mut Vec<&'a Step>) {
        for step in &self.steps {
            found.push(step);
            if let Some(group) = step.group() {
                group.collect(found);
            }
        }
    }
}

impl Step {
    pub fn agent(&self) -> Option<&AgentStep> {
        match &self.kind {
            StepKind::Agent(step) => Some(step),
            _ => None,
        }
    }

    pub fn ask(&self) -> Option<&AskStep> {
        match &self.kind {
            StepKind::Ask(step) => Some(step),
            _ => None,
        }
    }

    pub fn group(&self) -> Option<&StepList> {
        match &self.kind {
            StepKind::Group(list) => Some(list),
            _ => None,
        }
    }

    pub fn gate(&self) -> Option<&Gate> {
        match &self.kind {
            StepKind::Agent(step) => step.gate.as_ref(),
            StepKind::Approval(step) => Some(&step.gate),
            StepKind::Ask(_) | StepKind::Group(_) => None,
        }
    }

    /// Of a question and a group there are none.
    pub fn parameters(&self) -> Option<&Parameters> {
        match &self.kind {
            StepKind::Agent(step) => Some(&step.parameters),
            StepKind::Approval(step) => Some(&step.parameters),
            StepKind::Ask(_) | StepKind::Group(_) => None,
        }
    }

    /// The expressions that it begins with: those of its parameters, or of its question.
    pub fn expressions(&self) -> Vec<&Expression> {
        let mut found = self.parameters().map(Parameters::expressions).unwrap_or_default();
        found.extend(self.ask().into_iter().flat_map(|ask| ask.question.expressions()));
        found
    }

    /// The document that it makes.
    pub fn produces(&self) -> Option<&Produces> {
        self.agent()?.produces.as_ref()
    }

    /// Whether its `when` names that step: then it decides what that step's being skipped means.
    pub fn asks_about(&self, name: &str) -> bool {
        let names = |when: &Expression| when.members("steps").iter().any(|m| m == name || *m == underscored(name));
        self.when.as_ref().is_some_and(names)
    }
}

impl AgentStep {
    /// The documents that an attempt reads, those that the Agent requires first.
    pub fn reads(&self, agent: &Agent) -> Vec<DocumentSelector> {
        let required = agent.spec.required_documents.iter().map(|text| DocumentSelector::of(text));
        required.chain(self.documents.iter().cloned()).collect()
    }
}

impl Parameters {
    pub fn expand(&self, scope: &Scope, room: &mut Room) -> Result<Map<String, Value>, String> {
        let expanded = self.0.iter().map(|(key, member)| {
            let value = member.expand(scope, room).map_err(|e| format!("parameters.{key}: {e}"))?;
            Ok((key.clone(), value))
        });
        expanded.collect()
    }

    pub fn expressions(&self) -> Vec<&Expression> {
        let mut found = Vec::new();
        self.0.iter().for_each(|(_, member)| member.each_expression(&mut found));
        found
    }
}

impl DocumentSelector {
    /// As it is written: `type`, or `type/*`.
    pub fn of(text: &str) -> Self {
        match text.strip_suffix("/*") {
            Some(document_type) => Self::OfAllItems(document_type.to_owned()),
            None => Self::Newest(text.to_owned()),
        }
    }

    /// None where it names no document type; Lockstep's own is none that anybody may ask for.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let selector = Self::of(text);
        let (Self::Newest(own) | Self::OfAllItems(own)) = &selector;
        let legal = own.len() <= 63
            && own.starts_with(|c: char| c.is_ascii_lowercase())
            && own.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && own != OUTPUT_TYPE;
        legal.then_some(selector)
    }
}

impl Tolerance {
    /// How many of so many.
    pub fn of(self, items: usize) -> usize {
        match self {
            Self::Items(number) => number,
            Self::Percent(percent) => items * percent / 100,
        }
    }
}

impl Gate {
    /// How many outputs are reviewed at most.
    pub fn max_rounds(&self) -> i32 {
        match self.on_reject {
            OnReject::Fail => MAX_ROUNDS,
            OnReject::Revise { max_rounds } => max_rounds,
        }
    }
}
