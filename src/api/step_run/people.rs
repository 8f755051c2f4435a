//! What people have to do with a StepRun: gates and their decisions, questions and their answers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::schema::told;
use crate::api::usage::Budget;

/// Where a gate stands.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum GateState {
    /// It waits for decisions.
    #[default]
    Waiting,
    /// Enough people have accepted, and what follows may start.
    Accepted,
    /// Somebody has rejected, or nobody decided in time.
    Rejected,
    /// It was closed undecided, because the run ended or what was to be reviewed is gone.
    Closed,
    /// Nobody needs to decide: its `when` was false.
    NotRequired,
}

/// The gate of a step: what is reviewed, and who has decided.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// Where the gate stands.
    pub state: GateState,
    /// The number of the review round, from 1.
    pub round: i32,
    /// The SHA-256 digest that a decision is about: it binds StepRun, round, output and document. It is what the annotation
    /// `lockstep.dev/review` names.
    #[schemars(length(max = 80))]
    pub output_digest: String,
    /// When the gate was opened for this round; `deadlineSeconds` counts from then.
    pub opened_at: Time,
    /// By when this round must be decided: `openedAt` and the seconds of `gate.deadlineSeconds`. The API server refuses a decision
    /// that comes later, by its own clock. The default is to wait for ever.
    // Latched when the gate opens, with `openedAt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// The UIDs and generations of the admission policies that were in force when the gate was opened. If they change, a
    /// decision made before does not count and must be made again.
    #[schemars(length(max = 512))]
    pub policy: String,
    /// The commands that accept, with kubectl and with the plugin; only while the gate waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 512)))]
    pub commands: Vec<String>,
    /// The decisions of all rounds, the newest 64, oldest first.
    // Latched, append only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub decisions: Vec<Decision>,
}

/// One person's decision at a gate.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The type of the document that was decided on; the step's path where it makes none.
    #[schemars(length(max = 512))]
    pub document_type: String,
    /// Which run and which item the step belongs to: the UID of the run, then the keys of the items around it, each after a `/`.
    // Absent in objects of versions that spelt it otherwise, as in `ScopeLink`.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub scope_id: String,
    /// Whether it was accepted; false is a rejection.
    pub accepted: bool,
    /// What the person said, at most 4096 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub comment: Option<String>,
    /// The user name of the person who decided, as the API server proved it.
    // Proven by admission, never taken from the request.
    #[schemars(length(max = 512))]
    pub decided_by: String,
    /// When the person decided: the time that the API server gave the request, to the second.
    pub decided_at: Time,
    /// The `outputDigest` of the gate that was decided on.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// The number of the review round.
    pub round: i32,
}

/// What a person must answer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct WaitingFor {
    /// The name of this wait: an answer counts for it, and for no other.
    #[schemars(length(max = 80))]
    pub id: String,
    /// Why a person is asked.
    pub kind: WaitKind,
    /// The question, in words.
    #[schemars(length(max = 4096))]
    pub question: String,
    /// The words that the annotation `lockstep.dev/action` may have; empty for a step that is a question. A question of an agent
    /// takes an answer in their place.
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub options: Vec<String>,
    /// The JSON Schema that the answer to a question of an agent must meet, as JSON text. The default is to take any answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub schema: Option<String>,
    /// When it was asked; `deadlineSeconds` counts from then.
    pub since: Time,
    /// By when it must be answered: `since` and the seconds of `ask.deadlineSeconds`. The API server refuses an answer that comes
    /// later, by its own clock. The default is to wait for ever.
    // Latched when it is asked, with `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// The commands that answer, with kubectl and with the plugin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 512)))]
    pub commands: Vec<String>,
    /// The UIDs and generations of the admission policies that prove who answers. No answer counts while it is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub policy: String,
    /// Whether the budget of the run is spent, and not that of the step. The default is false.
    #[serde(default, rename = "ofRun", skip_serializing_if = "std::ops::Not::not")]
    pub of_run: bool,
    /// Until when the agent waits for the answer in its pod, while its attempt goes on (`lockstep ask --wait`). Absent where no
    /// pod waits: then the answer starts another attempt.
    #[serde(default, rename = "agentWaitsUntil", skip_serializing_if = "Option::is_none")]
    pub agent_waits_until: Option<Time>,
}

/// Why a person is asked.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum WaitKind {
    /// All attempts that `retry.maxAttempts` allows have failed.
    RetriesSpent,
    /// An attempt ended, and it cannot be known whether it had its effects.
    OutcomeUnknown,
    /// The cluster has lost more than five attempts, or the pod can never start as the Agent has it: the name of its image is malformed.
    InfrastructureSpent,
    /// The output of the last review round (`gate.maxRounds`) was rejected.
    RoundsSpent,
    /// The budget of the step, or of its run, is spent. An answer with a higher one lets it go on.
    BudgetSpent,
    /// The step is a question (`ask`), or its agent has one (`lockstep ask`).
    Question,
}

/// The answer to a question.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Answer {
    /// The answer as JSON text, at most 16 KiB.
    #[schemars(length(max = 16_384))]
    pub value: String,
    /// The user name of the person who answered, as the API server proved it.
    #[schemars(length(max = 512))]
    pub by: String,
    /// When the person answered: the time that the API server gave the request, to the second.
    pub at: Time,
}

/// A budget that a person has raised.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BudgetRaise {
    /// Whether it is the budget of the run; else it is that of the step. The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_run: bool,
    /// What may be used from then on, all that was used before included.
    pub budget: Budget,
    /// The user name of the person who raised it, as the API server proved it.
    #[schemars(length(max = 512))]
    pub by: String,
    /// When the person answered: the time that the API server gave the request, to the second.
    pub at: Time,
}

/// What a person said with an answer or a rejection.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Guidance {
    /// The number of the attempt that it is about.
    pub attempt: i32,
    /// The user name of the person who said it.
    #[schemars(length(max = 512))]
    pub by: String,
    /// What was said, at most 4096 bytes.
    #[schemars(length(max = 4096))]
    pub text: String,
    /// When it was said; absent in what earlier versions recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// What a person ordered for a step that could not go on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Action {
    /// What was ordered.
    pub action: Act,
    /// Why the person was asked.
    pub wait: WaitKind,
    /// The number of the attempt that it is about.
    pub attempt: i32,
    /// The user name of the person who ordered it, as the API server proved it.
    #[schemars(length(max = 512))]
    pub by: String,
    /// When the person ordered it: the time that the API server gave the request, to the second.
    pub at: Time,
    /// What the person said, at most 4096 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub comment: Option<String>,
}

/// What a person orders by the annotation `lockstep.dev/action`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(transform = told)]
pub enum Act {
    /// The step is tried again, with all attempts that `retry` allows.
    Retry,
    /// The step is Completed with the output null; not possible where it has a gate.
    Skip,
    /// The step is Failed.
    Fail,
}

impl Act {
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Retry, Self::Skip, Self::Fail].into_iter().find(|act| act.word() == word)
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Skip => "skip",
            Self::Fail => "fail",
        }
    }

    /// As it is told: `skipped by ann`.
    pub fn past(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Skip => "skipped",
            Self::Fail => "failed",
        }
    }
}
