//! What people decide and answer. It is written into the mailbox of the StepRun with the caller's own token: the API server
//! proves at admission who it is and what they may, and refuses service accounts.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use kube::api::Patch;
use kube::{Api, ResourceExt};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::act::patch;
use super::call::Call;
use super::caller::within;
use super::decision_request::{AnswerRequest, DecisionRequest};
use super::fields::Fields;
use super::problem::{Problem, Result};
use super::repeated::{is_answered, is_decided};
use super::{Http, steps};
use crate::api::StepRun;
use crate::api::limits::OUTPUT_INLINE_BYTES;
use crate::api::name::{ACTION, ANSWER, COMMENT, DECIDED_BY, DECISION, REVIEW};
use crate::api::step_run::{Act, GateState};
use crate::api::workflow::Phase;
use crate::decide::history::label;
use crate::decide::target::{waits_at_own_gate, waits_for_answer};
use crate::definition::free_value;

const COMMENT_BYTES: usize = 4096;
/// How long the operator may take before the answer is 202.
const PATIENCE: Duration = Duration::from_secs(10);
/// Writes that came in between are looked at so often.
const TRIES: usize = 5;

/// What came of it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Taken {
    pub run: String,
    pub step: String,
    pub step_run: String,
    /// Where the step stands now.
    pub phase: Phase,
    /// Where its gate stands now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateState>,
    /// Who has said it, as the API server knows them.
    pub by: String,
    /// Whether the operator has recorded it; false (202) where it is written, and no operator has taken it up yet.
    pub recorded: bool,
}

/// Annotations on one StepRun, exactly as it was read.
#[derive(Serialize, Debug)]
struct Submission {
    metadata: Addressed,
}

#[derive(Serialize, Debug)]
struct Addressed {
    uid: Option<String>,
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    annotations: Map<String, Value>,
}

/// `POST /runs/{run}/steps/{step}/decision`
pub async fn decision(http: Arc<Http>, call: Call) -> Result<Response> {
    let mut fields = Fields::read(&call.body)?;
    let accepted = fields.flag("accepted");
    let (comment, review) = (fields.text("comment", COMMENT_BYTES), fields.text("review", 80));
    if accepted.is_none() {
        fields.fault("accepted", "is required");
    }
    fields.end()?;
    let said = DecisionRequest { accepted: accepted == Some(true), comment, review };
    let (_, step) = steps::known(&http, &call).await?;
    let step = steps::fresh(&call, &step).await?;
    if is_decided(&step, &call.caller.user, &said) {
        return Ok(told(&call, &step, StatusCode::OK));
    }
    let DecisionRequest { accepted, comment, review } = said;
    let place = format!("{}/{}", step.spec.workflow.name, label(&step));
    let gate = step.status.as_ref().and_then(|status| status.gate.clone()).filter(|_| waits_at_own_gate(&step));
    let Some(gate) = gate else {
        return Err(Problem::conflict(format!("the gate of {place} does not wait for a decision")));
    };
    if review.as_ref().is_some_and(|review| *review != gate.output_digest) {
        return Err(Problem::conflict(format!("stale review: {place} is now about {}", gate.output_digest)));
    }
    let word = if accepted { "accepted" } else { "rejected" };
    let entries = [(DECISION, Some(word.to_owned())), (COMMENT, comment), (REVIEW, review)];
    let (round, digest, before) = (gate.round, gate.output_digest.clone(), gate.decisions.len());
    let same = |now: &StepRun| {
        let open = now.status.as_ref().and_then(|status| status.gate.as_ref()).filter(|_| waits_at_own_gate(now));
        open.is_some_and(|open| open.round == round && open.output_digest == digest)
    };
    let written = send(&call, &step, entries, DECISION, same).await?;
    let user = call.caller.user.to_string();
    let done = move |now: &StepRun| {
        let gate = now.status.as_ref().and_then(|status| status.gate.as_ref());
        gate.is_some_and(|gate| gate.decisions.iter().skip(before).any(|decision| decision.decided_by == user))
    };
    taken(&http, call, &written, DECISION, done).await
}

/// `POST /runs/{run}/steps/{step}/answer`
pub async fn answer(http: Arc<Http>, call: Call) -> Result<Response> {
    let mut fields = Fields::read(&call.body)?;
    let value = fields.value("answer");
    let answer = value.as_ref().map(ToString::to_string);
    let action = fields.text("action", 16);
    let (comment, wait) = (fields.text("comment", COMMENT_BYTES), fields.text("wait", 80));
    if let Some(action) = action.as_deref().filter(|action| Act::parse(action).is_none()) {
        fields.fault("action", format!("must be retry, skip or fail, not {action:?}"));
    }
    match (&answer, &action) {
        (None, None) => fields.fault("answer", "is required, or action in its place"),
        (Some(_), Some(_)) => fields.fault("action", "stands in the place of an answer: leave one of them out"),
        (Some(answer), None) if answer.len() > OUTPUT_INLINE_BYTES => {
            fields.fault("answer", format!("has {} bytes as JSON, at most {OUTPUT_INLINE_BYTES}", answer.len()));
        }
        _ => {}
    }
    if let Some(fault) = value.as_ref().and_then(free_value::nesting) {
        fields.fault("answer", fault);
    }
    if answer.is_some() && comment.is_some() {
        fields.fault("comment", "goes with action; a question takes the answer alone");
    }
    fields.end()?;
    let (_, step) = steps::known(&http, &call).await?;
    let step = steps::fresh(&call, &step).await?;
    let id = |step: &StepRun| step.status.as_ref().and_then(|status| Some(status.waiting_for.as_ref()?.id.clone()));
    let open = id(&step).filter(|_| waits_for_answer(&step));
    let wanted = AnswerRequest { answer: value, action: action.as_deref().and_then(Act::parse), comment, wait };
    let Some(wait) = open.clone().filter(|open| wanted.wait.as_ref().is_none_or(|wanted| wanted == open)) else {
        if is_answered(&step, &call.caller.user, &wanted) {
            return Ok(told(&call, &step, StatusCode::OK));
        }
        let place = format!("{}/{}", step.spec.workflow.name, label(&step));
        return Err(Problem::conflict(match open {
            None => format!("{place} asks nothing"),
            Some(open) => format!("{place} waits for something else by now ({open}); look at it again"),
        }));
    };
    let comment = wanted.comment;
    let key = if answer.is_some() { ANSWER } else { ACTION };
    let entries = [(key, answer.or(action)), (COMMENT, comment)];
    let written = send(&call, &step, entries, key, |now| id(now).as_ref() == Some(&wait)).await?;
    taken(&http, call, &written, key, move |now| id(now).as_ref() != Some(&wait)).await
}

/// Writes the submission, for the step exactly as it was read, as long as it is the `same` in what counts.
async fn send<const N: usize>(
    call: &Call,
    step: &StepRun,
    entries: [(&str, Option<String>); N],
    key: &str,
    same: impl Fn(&StepRun) -> bool,
) -> Result<StepRun> {
    let author = (DECIDED_BY, Some(call.caller.user.to_string()));
    let entries = entries.into_iter().chain([author]);
    let annotations: Map<String, Value> =
        entries.filter_map(|(key, value)| Some((key.to_owned(), Value::String(value?)))).collect();
    let api: Api<StepRun> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let mut known = step.clone();
    for _ in 0..TRIES {
        if known.annotations().contains_key(key) {
            let is_ours =
                |(key, value): (&String, &Value)| known.annotations().get(key).map(String::as_str) == value.as_str();
            if annotations.iter().all(is_ours) {
                // Of an earlier request, whose answer was lost.
                return Ok(known);
            }
            let by = known.annotations().get(DECIDED_BY).map_or("somebody", String::as_str);
            return Err(Problem::conflict(format!(
                "what {by} said is there already and not taken up yet; try again in a moment"
            ))
            .again_after(1));
        }
        let metadata = Addressed {
            uid: known.uid(),
            resource_version: known.resource_version(),
            annotations: annotations.clone(),
        };
        match within(api.patch(&known.name_any(), &patch(), &Patch::Merge(&Submission { metadata }))).await {
            Ok(written) => return Ok(written),
            Err(problem) if problem.status == StatusCode::CONFLICT => {}
            Err(problem) => return Err(problem),
        }
        known = steps::fresh(call, step).await?;
        if !same(&known) {
            return Err(Problem::conflict("the step changed in between; nothing was written; look at it again"));
        }
    }
    Err(Problem::unavailable("the step changes all the time; try again"))
}

/// Waits until the operator has recorded it, or has emptied the mailbox without.
async fn taken(
    http: &Arc<Http>,
    mut call: Call,
    step: &StepRun,
    key: &str,
    done: impl Fn(&StepRun) -> bool,
) -> Result<Response> {
    call.place = None;
    let mut following = http.watches.follow(&call.namespace, &step.spec.workflow.name);
    let name = step.name_any();
    let known = || http.watches.world.step_runs.get(&call.namespace, &name).filter(|now| now.uid() == step.uid());
    let version = |step: &StepRun| step.resource_version().and_then(|v| v.parse::<u64>().ok()).unwrap_or_default();
    let recorded = async {
        loop {
            if let Some(now) = known() {
                if done(&now) {
                    return Some(now);
                }
                // What is taken up is in the status before it leaves the mailbox.
                if version(&now) > version(step) && !now.annotations().contains_key(key) {
                    return None;
                }
            }
            following.changed().await;
        }
    };
    let (now, code) = match tokio::time::timeout(PATIENCE, recorded).await {
        Ok(Some(now)) => (now, StatusCode::OK),
        Ok(None) => {
            return Err(Problem::conflict(format!(
                "the operator did not take it; the Events of the StepRun say why: kubectl -n {} describe steprun {name}",
                call.namespace
            )));
        }
        Err(_) => (known().unwrap_or_else(|| Arc::new(step.clone())), StatusCode::ACCEPTED),
    };
    Ok(told(&call, &now, code))
}

/// OK if it is recorded.
fn told(call: &Call, now: &StepRun, code: StatusCode) -> Response {
    let status = now.status.as_ref();
    let said = Taken {
        run: now.spec.workflow.name.clone(),
        step: label(now),
        step_run: now.name_any(),
        phase: status.and_then(|status| status.phase).unwrap_or_default(),
        gate: status.and_then(|status| Some(status.gate.as_ref()?.state)),
        by: call.caller.user.to_string(),
        recorded: code == StatusCode::OK,
    };
    (code, axum::Json(said)).into_response()
}
