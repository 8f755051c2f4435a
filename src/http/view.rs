//! Runs as the API shows them. The fields of the kinds keep their names.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::api::condition;
use crate::api::step_run::WaitKind;
use crate::api::usage::Usage;
use crate::api::workflow::{IterationProgress, Phase, SessionPhase};
use crate::api::{StepRun, Workflow};
use crate::decide::history::label;
use crate::decide::target::{accepted, waits_at_gate, waits_for_answer};

/// A run.
#[derive(Serialize, JsonSchema, Clone, Debug)]
#[schemars(rename = "Run")]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// The name of the Workflow.
    pub run: String,
    pub namespace: String,
    /// The UID of the Workflow: another run of the same name has another one.
    pub uid: String,
    /// The WorkflowTemplate that is run; absent where the steps stand in the Workflow itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// The session of the run: the `story_id` that it was started with, or one of its own, which begins with an underscore.
    pub session_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_phase: Option<SessionPhase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The user name of whoever started the run, as the API server knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creator: Option<String>,
    pub phase: Phase,
    /// Why the run stands where it stands, as one word.
    pub reason: String,
    /// The same in words; empty where there is nothing to say.
    pub message: String,
    pub created_at: Option<Time>,
    pub started_at: Option<Time>,
    pub completed_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_step: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub active_steps: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub completed_steps: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub iteration_progress: Vec<IterationProgress>,
    /// The types of the documents that are waited for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pending_documents: Vec<String>,
    /// What people must decide or answer, the first 20; empty in lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Wait>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Something that waits for a person.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// The step, with the keys of the items around it: `group/step/key`. It stands in the path of the request that ends the wait.
    pub step: String,
    /// The name of the StepRun.
    pub step_run: String,
    /// What ends the wait: `POST .../steps/STEP/decision`, or `POST .../steps/STEP/answer`.
    pub by: WaitBy,
    /// Names what is asked: `wait` of an answer; absent at a gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Why an answer is waited for; absent at a gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<WaitKind>,
    /// What is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The words that `action` may have in an answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// The JSON Schema of the answer, as JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// The digest of what is to be reviewed: `review` of a decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub review: Option<String>,
    /// Who may end it: whoever has this permission of RBAC, such as `approve on gates.lockstep.dev/plan`.
    pub permission: String,
    /// Of those only these users and groups, where the gate names some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Not this user, who started the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_by: Option<String>,
    /// How many must accept, and how many have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Approvals>,
    pub since: Option<Time>,
}

/// What ends a wait.
#[derive(Serialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum WaitBy {
    Decision,
    Answer,
}

/// How far a gate is.
#[derive(Serialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Approvals {
    /// How many people must accept.
    pub needed: i32,
    /// How many have accepted in this round.
    pub accepted: i32,
}

/// Waits that are shown.
const WAITS: usize = 20;

/// The session that a run has, or will have.
pub fn session_of(run: &Workflow) -> String {
    let latched = run.status.as_ref().and_then(|status| status.session.as_ref()).map(|session| session.id.clone());
    latched.or_else(|| run.spec.session.clone()).unwrap_or_default()
}

/// A run, with what its steps wait for where they are given.
pub fn run<'a>(of: &Workflow, steps: impl IntoIterator<Item = &'a StepRun>) -> Shown {
    let status = of.status.clone().unwrap_or_default();
    let succeeded = condition::get(&status.conditions, "Succeeded");
    Shown {
        run: of.name_any(),
        namespace: of.namespace().unwrap_or_default(),
        uid: of.uid().unwrap_or_default(),
        flow: of.spec.template_ref.as_ref().map(|template| template.name.clone()),
        session_id: session_of(of),
        session_phase: status.session.as_ref().map(|session| session.phase),
        project: of.spec.project.clone(),
        creator: status.creator.clone(),
        phase: status.phase.unwrap_or_default(),
        reason: succeeded.map(|c| c.reason.clone()).unwrap_or_default(),
        message: succeeded.map(|c| c.message.clone()).unwrap_or_default(),
        created_at: of.metadata.creation_timestamp.clone(),
        started_at: status.started_at,
        completed_at: status.completed_at,
        current_step: status.current_step,
        active_steps: status.active_steps,
        completed_steps: status.completed_steps,
        iteration_progress: status.iteration_progress,
        pending_documents: status.pending_documents,
        waiting: steps.into_iter().filter_map(wait).take(WAITS).collect(),
        usage: status.usage,
    }
}

/// What a step waits for, if it does.
pub fn wait(step: &StepRun) -> Option<Wait> {
    let status = step.status.as_ref()?;
    let (name, place) = (step.name_any(), label(step));
    if waits_at_gate(step) {
        let (gate, open) = (step.spec.gate.as_ref()?, status.gate.as_ref()?);
        let acceptors = gate.acceptors.clone().unwrap_or_default();
        return Some(Wait {
            step: place,
            step_run: name,
            by: WaitBy::Decision,
            id: None,
            kind: None,
            question: gate.message.clone(),
            options: Vec::new(),
            schema: None,
            review: Some(open.output_digest.clone()),
            permission: format!("approve on gates.lockstep.dev/{}", gate.name),
            users: acceptors.users,
            groups: acceptors.groups,
            not_by: gate.not_by.clone().filter(|user| !user.is_empty()),
            approvals: Some(Approvals {
                needed: gate.approvals,
                accepted: i32::try_from(accepted(step)).unwrap_or(i32::MAX),
            }),
            since: Some(open.opened_at.clone()),
        });
    }
    let asked = status.waiting_for.as_ref().filter(|_| waits_for_answer(step))?;
    let input = step.spec.ask.as_ref().map_or(&step.spec.agent_id, |ask| &ask.name);
    Some(Wait {
        step: place,
        step_run: name,
        by: WaitBy::Answer,
        id: Some(asked.id.clone()),
        kind: Some(asked.kind),
        question: Some(asked.question.clone()),
        options: asked.options.clone(),
        schema: asked.schema.clone(),
        review: None,
        permission: format!("answer on inputs.lockstep.dev/{input}"),
        users: Vec::new(),
        groups: Vec::new(),
        not_by: None,
        approvals: None,
        since: Some(asked.since.clone()),
    })
}

/// When a run began, seen from a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    Now,
    /// By another request: this one has joined it.
    Before,
}

/// What `POST /run` answers, and the result of a run.
#[derive(Serialize, JsonSchema, Clone, Debug)]
pub struct Answer {
    /// The output of the run, any JSON value; null while there is none.
    #[schemars(with = "Value")]
    pub result: Value,
    /// The types of the documents that are missing; null where none is waited for. Put them (`POST /documents`, with the
    /// session), then ask again.
    pub pending_docs: Option<Vec<String>>,
    /// The name of the run.
    pub run: String,
    pub namespace: String,
    /// The session: the `story_id`.
    pub session_id: String,
    pub phase: Phase,
    #[serde(rename = "createdAt")]
    pub created_at: Option<Time>,
    /// Whether the run was there already: it was started by an earlier request of the same story, or with the same
    /// `Idempotency-Key`.
    pub joined: bool,
    /// What people must decide or answer before the run goes on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Wait>,
    /// Where the course of the run can be followed, as server-sent events.
    pub events: String,
    /// Where a result is that is too large for the last event of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_url: Option<String>,
}

/// A run that failed. It has no results, not even in part.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Failure {
    /// `Flow execution failed: ` and why; of a run that was cancelled, that it was.
    pub detail: String,
    /// Why, in words.
    pub error: String,
    /// The step that failed, with the keys of the items around it; null where no single step did.
    pub step: Option<String>,
    /// The class of the failure, such as InvalidOutput or Timeout.
    pub class: String,
    pub run: String,
    pub namespace: String,
    pub session_id: String,
    #[serde(rename = "createdAt")]
    pub created_at: Option<Time>,
}
