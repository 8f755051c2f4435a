//! A finished run as one bounded record: what stays of it when its objects are gone. Inputs and outputs by digest;
//! of a forEach the counts and the first items that failed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::Value;

use super::{StepInstance, keys, step_instances};
use crate::api::condition::{self, clip};
use crate::api::step_run::{Act, AttemptResult, GateState, StepRun};
use crate::api::usage::Usage;
use crate::api::workflow::{Counts, Phase, RetryOf, Workflow};
use crate::decide::gate;

/// Bytes of a record as JSON text.
pub const RECORD_BYTES: usize = 64 * 1024;
/// Items that failed, of one step.
const FAILED_ITEMS: usize = 5;
/// Acts of people, of one step and all its items.
const ACTIONS: usize = 10;
const KEY_BYTES: usize = 80;
const MESSAGE_BYTES: usize = 400;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    run: &'a str,
    namespace: &'a str,
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_of: Option<&'a RetryOf>,
    phase: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    started_at: Option<&'a Time>,
    completed_at: Option<&'a Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a Usage>,
    #[serde(skip_serializing_if = "is_zero")]
    steps_left_out: usize,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    #[serde(rename = "StepId")]
    id: String,
    #[serde(rename = "StartedAt")]
    started_at: Option<Time>,
    #[serde(rename = "CompletedAt")]
    completed_at: Option<Time>,
    #[serde(rename = "Status")]
    status: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<AttemptResult>,
    /// Digests.
    #[serde(rename = "Input", skip_serializing_if = "Option::is_none")]
    input: Option<String>,
    #[serde(rename = "Output", skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
    #[serde(rename = "failedItems", skip_serializing_if = "Vec::is_empty")]
    failed_items: Vec<FailedItem>,
    /// Of items the StepRuns tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<GateState>,
    /// Who made the gate what it is.
    #[serde(rename = "decidedBy", skip_serializing_if = "Option::is_none")]
    decided_by: Option<String>,
    /// What people ordered for the step and its items.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    actions: Vec<Acted>,
    #[serde(rename = "actionsLeftOut", skip_serializing_if = "is_zero")]
    actions_left_out: usize,
}

#[derive(Serialize)]
struct Acted {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    action: Act,
    attempt: i32,
    by: String,
    at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

#[derive(Serialize)]
struct FailedItem {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<AttemptResult>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The record of a run that has ended, its final status in it; at most `RECORD_BYTES`.
pub fn record<'a>(run: &'a Workflow, step_runs: impl IntoIterator<Item = &'a StepRun>) -> Value {
    let meta = &run.metadata;
    let status = run.status.as_ref();
    let succeeded = status.and_then(|s| condition::get(&s.conditions, "Succeeded"));
    let (started_at, completed_at) =
        (status.and_then(|s| s.started_at.as_ref()), status.and_then(|s| s.completed_at.as_ref()));
    let took = started_at.zip(completed_at).map(|(from, to)| to.0.duration_since(from.0).as_secs_f64().max(0.0));
    let mut record = Record {
        run: meta.name.as_deref().unwrap_or_default(),
        namespace: meta.namespace.as_deref().unwrap_or_default(),
        uid: meta.uid.as_deref().unwrap_or_default(),
        template: run.spec.template_ref.as_ref().map(|t| t.name.as_str()),
        session: status.and_then(|s| s.session.as_ref()).map(|s| s.id.as_str()),
        creator: status.and_then(|s| s.creator.as_deref()),
        retry_of: run.spec.retry_of.as_ref(),
        phase: status.and_then(|s| s.phase).unwrap_or_default(),
        reason: succeeded.map(|c| c.reason.as_str()),
        message: succeeded.map(|c| clip(&c.message, MESSAGE_BYTES)).filter(|m| !m.is_empty()),
        started_at,
        completed_at,
        duration_seconds: took,
        output: status.and_then(|s| s.output.as_ref()).map(|o| o.digest.as_str()),
        usage: status.and_then(|s| s.usage.as_ref()),
        steps_left_out: 0,
        steps: steps(&step_instances(run, step_runs)),
    };
    bound(&mut record);
    serde_json::to_value(&record).unwrap_or_default()
}

/// Leaves steps out from behind until the text is short enough.
fn bound(record: &mut Record<'_>) {
    let all = std::mem::take(&mut record.steps);
    let count = all.len();
    // Room for the field that says how many are left out.
    let mut used = bytes(record) + 32;
    for step in all {
        used += bytes(&step) + 1;
        if used > RECORD_BYTES {
            break;
        }
        record.steps.push(step);
    }
    record.steps_left_out = count - record.steps.len();
}

fn bytes(part: &impl Serialize) -> usize {
    serde_json::to_vec(part).map_or(RECORD_BYTES, |text| text.len())
}

/// One a step of the definition: items are counted, and the first that failed are named.
fn steps(instances: &[StepInstance<'_>]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut counts: Option<usize> = None;
    for instance in instances {
        let item = instance.step_run.filter(|s| s.spec.item.is_some());
        if let (None, Some(item), Some(at)) = (instance.listed, item, counts) {
            let failed = instance.phase() == Phase::Failed;
            if let Some(step) = steps.get_mut(at) {
                if failed && step.failed_items.len() < FAILED_ITEMS {
                    step.failed_items.push(failed_item(item));
                }
                step.acts_of(item);
            }
        } else {
            let mut step = step(instance);
            instance.step_run.into_iter().for_each(|own| step.acts_of(own));
            steps.push(step);
            counts = instance.listed.map(|_| steps.len() - 1);
        }
    }
    steps
}

impl Step {
    fn acts_of(&mut self, step_run: &StepRun) {
        let keys = keys(step_run).join("/");
        for action in step_run.status.iter().flat_map(|s| &s.actions) {
            if self.actions.len() == ACTIONS {
                self.actions_left_out += 1;
                continue;
            }
            self.actions.push(Acted {
                key: Some(clip(&keys, KEY_BYTES)).filter(|key| !key.is_empty()),
                action: action.action,
                attempt: action.attempt,
                by: action.by.clone(),
                at: action.at.clone(),
                comment: action.comment.as_deref().map(|c| clip(c, MESSAGE_BYTES)),
            });
        }
    }
}

fn failed_item(item: &StepRun) -> FailedItem {
    FailedItem { key: clip(&keys(item).join("/"), KEY_BYTES), error: class(item) }
}

fn class(step: &StepRun) -> Option<AttemptResult> {
    step.status.as_ref()?.error.as_ref().map(|error| error.class)
}

fn step(instance: &StepInstance<'_>) -> Step {
    let own = instance.step_run;
    let status = own.and_then(|s| s.status.as_ref());
    let reused = own.and_then(|s| s.spec.reuse.as_ref()).map(|r| r.digest.clone());
    let runs = own.filter(|s| !s.spec.agent_id.is_empty() && s.spec.reuse.is_none());
    Step {
        id: instance.step_id(),
        started_at: instance.started_at(),
        completed_at: instance.completed_at(),
        status: instance.phase(),
        attempts: runs.and(status).map(|s| s.attempt),
        error: own.and_then(class),
        input: own.map(|s| s.spec.input_digest.clone()).filter(|d| !d.is_empty()),
        output: reused.or_else(|| status.and_then(|s| s.result.as_ref()).map(|r| r.digest.clone())),
        usage: status.and_then(|s| s.usage.clone()),
        counts: instance.listed.and_then(|l| l.counts),
        failed_items: Vec::new(),
        gate: status.and_then(|s| s.gate.as_ref()).map(|g| g.state),
        decided_by: status.and_then(|s| s.gate.as_ref()).and_then(gate::decided_by),
        actions: Vec::new(),
        actions_left_out: 0,
    }
}
