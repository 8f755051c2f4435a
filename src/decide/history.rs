//! The history of a run, from its objects alone: what each step got and gave and when, every attempt, and what people
//! decided. Pure, so that the plugin, the archive of a finished run and an API tell the same.

pub mod record;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::{Map, Value};

use super::output::{self, StoredOutput};
use super::{content, gate};
use crate::api::condition::clip;
use crate::api::step_run::{Action, Attempt, Decision, StepRun, StepRunStatus};
use crate::api::workflow::{Phase, StepStatus, Workflow};
use crate::definition::digits;

/// A step of the run, or one item of it: its entry in the run's status, and its StepRun.
#[derive(Clone, Copy, Debug)]
pub struct StepInstance<'a> {
    /// Absent for items, and for a StepRun that is in the cache before the status that lists its step.
    pub listed: Option<&'a StepStatus>,
    pub step_run: Option<&'a StepRun>,
}

/// One line of a history, with the names that users ask for.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "PascalCase")]
pub struct Entry {
    /// `group/step`, and behind it the keys of the items.
    pub step_id: String,
    pub started_at: Option<Time>,
    pub completed_at: Option<Time>,
    pub status: Phase,
    /// The resolved parameters; of a question, the question.
    pub input: Value,
    pub output: Value,
}

/// An attempt with the id of its step.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct AttemptRecord {
    #[serde(rename = "StepId")]
    pub step_id: String,
    #[serde(flatten)]
    pub attempt: Attempt,
}

/// The attempts that a pass recorded and of which no report tells: what lost them stands in no other log.
pub fn lost_attempts<'a>(before: Option<&StepRunStatus>, next: &'a StepRunStatus) -> Vec<&'a Attempt> {
    let known = |a: &Attempt| before.is_some_and(|b| b.attempts.iter().any(|old| old.number == a.number));
    let reported = next.agent.as_ref().and_then(|a| a.report.as_ref()).map(|r| r.attempt);
    next.attempts.iter().filter(|a| !known(a) && reported != Some(a.number)).collect()
}

/// All that people decided, answered and ordered in a run.
#[derive(Serialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HumanInput {
    pub decisions: Vec<Decided>,
    pub answers: Vec<Answered>,
    pub guidance: Vec<Guided>,
    pub actions: Vec<Acted>,
    pub taken_over: Vec<TakenOver>,
}

/// A decision at a gate.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Decided {
    #[serde(rename = "StepId")]
    pub step_id: String,
    #[serde(flatten)]
    pub decision: Decision,
}

/// The answer to a question.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Answered {
    #[serde(rename = "StepId")]
    pub step_id: String,
    pub question: String,
    pub value: Value,
    pub by: String,
    pub at: Time,
}

/// What somebody said for the attempts that follow.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Guided {
    #[serde(rename = "StepId")]
    pub step_id: String,
    pub attempt: i32,
    pub by: String,
    pub text: String,
}

/// A retry, a skip or a failure that somebody ordered.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Acted {
    #[serde(rename = "StepId")]
    pub step_id: String,
    #[serde(flatten)]
    pub action: Action,
}

/// Decided in the run that this one goes on from.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TakenOver {
    #[serde(rename = "StepId")]
    pub step_id: String,
    pub step_run: String,
    pub decided_by: Vec<String>,
    /// Whether it counts here; else the gate opens again.
    pub counts: bool,
}

/// Keys of the items around a step, from the run inwards.
pub fn keys(step: &StepRun) -> Vec<&str> {
    let Some(item) = &step.spec.item else {
        return Vec::new();
    };
    let outer = step
        .spec
        .scope_chain
        .last()
        .and_then(|link| link.scope_id.strip_prefix(&step.spec.workflow.uid))
        .and_then(|keys| keys.strip_prefix('/'))
        .and_then(|keys| keys.strip_suffix(item.key.as_str()))
        .and_then(|keys| keys.strip_suffix('/'));
    outer.into_iter().flat_map(|keys| keys.split('/')).chain([item.key.as_str()]).collect()
}

/// `group/step/key`, as a target names it.
pub fn label(step: &StepRun) -> String {
    std::iter::once(step.spec.path.as_str()).chain(keys(step)).collect::<Vec<_>>().join("/")
}

/// The steps of a run in file order, under each the items of its forEach. StepRuns of another run of the same name are
/// left out.
pub fn step_instances<'a>(run: &'a Workflow, steps: impl IntoIterator<Item = &'a StepRun>) -> Vec<StepInstance<'a>> {
    let uid = run.metadata.uid.as_deref().unwrap_or_default();
    let mut own: Vec<&StepRun> =
        steps.into_iter().filter(|step| uid.is_empty() || step.spec.workflow.uid == uid).collect();
    own.sort_by_cached_key(|step| {
        let index = step.spec.item.as_ref().map_or(-1, |item| item.index);
        (index, keys(step).len(), step.metadata.name.clone())
    });
    let listed = run.status.as_ref().map_or(&[][..], |s| &s.steps);
    let mut instances = Vec::new();
    for step in listed {
        let (items, single): (Vec<&StepRun>, Vec<&StepRun>) =
            own.iter().filter(|s| s.spec.path == step.path).partition(|s| s.spec.item.is_some());
        instances.push(StepInstance { listed: Some(step), step_run: single.first().copied() });
        instances.extend(items.into_iter().map(|item| StepInstance { listed: None, step_run: Some(item) }));
    }
    let unlisted = own.iter().filter(|step| !listed.iter().any(|l| l.path == step.spec.path));
    instances.extend(unlisted.map(|step| StepInstance { listed: None, step_run: Some(step) }));
    instances
}

impl StepInstance<'_> {
    /// `group/step`, and behind it the keys of the items.
    pub fn step_id(&self) -> String {
        match (self.step_run, self.listed) {
            (Some(step), _) => label(step),
            (None, listed) => listed.map(|l| l.path.clone()).unwrap_or_default(),
        }
    }

    /// The phase that the run's status gives once it is terminal, else that of the StepRun: the run knows of skips and losses
    /// of which no StepRun says anything.
    pub fn phase(&self) -> Phase {
        let own = self.status().and_then(|s| s.phase);
        match self.listed {
            Some(listed) if listed.phase.is_terminal() || self.step_run.is_none() => listed.phase,
            _ => own.unwrap_or_default(),
        }
    }

    pub fn started_at(&self) -> Option<Time> {
        let own = self.status().and_then(|s| s.started_at.clone());
        own.or_else(|| self.listed.and_then(|l| l.started_at.clone()))
    }

    pub fn completed_at(&self) -> Option<Time> {
        let own = self.status().and_then(|s| s.completed_at.clone());
        own.or_else(|| self.listed.and_then(|l| l.completed_at.clone()))
    }

    fn status(&self) -> Option<&StepRunStatus> {
        self.step_run.and_then(|step| step.status.as_ref())
    }
}

/// The lines of the history.
pub fn entries(instances: &[StepInstance<'_>]) -> Vec<Entry> {
    let entry = |instance: &StepInstance<'_>| Entry {
        step_id: instance.step_id(),
        started_at: instance.started_at(),
        completed_at: instance.completed_at(),
        status: instance.phase(),
        input: instance.step_run.map(input).unwrap_or_default(),
        output: instance.step_run.map(output).unwrap_or_default(),
    };
    instances.iter().map(entry).collect()
}

/// All attempts that the StepRuns keep, in the order of their steps.
pub fn attempts(instances: &[StepInstance<'_>]) -> Vec<AttemptRecord> {
    let of = |instance: &StepInstance<'_>| {
        let step_id = instance.step_id();
        let all = instance.status().map(|s| s.attempts.clone()).unwrap_or_default();
        all.into_iter().map(move |attempt| AttemptRecord { step_id: step_id.clone(), attempt })
    };
    instances.iter().flat_map(of).collect()
}

/// What people decided, answered and ordered, in the order of the steps.
pub fn human_input(instances: &[StepInstance<'_>]) -> HumanInput {
    let mut said = HumanInput::default();
    for step in instances.iter().filter_map(|instance| instance.step_run) {
        let id = label(step);
        if let Some(reuse) = step.spec.reuse.as_ref().filter(|r| !r.decided_by.is_empty()) {
            let (step_run, decided_by) = (reuse.step_run.clone(), reuse.decided_by.clone());
            // Older versions took over whatever was decided.
            let counts = reuse.gate.is_none() || gate::still_opens(step.spec.gate.as_ref(), reuse);
            said.taken_over.push(TakenOver { step_id: id.clone(), step_run, decided_by, counts });
        }
        let Some(status) = &step.status else { continue };
        let decisions = status.gate.iter().flat_map(|gate| gate.decisions.clone());
        said.decisions.extend(decisions.map(|decision| Decided { step_id: id.clone(), decision }));
        said.answers.extend(status.answer.iter().map(|answer| Answered {
            step_id: id.clone(),
            question: step.spec.ask.as_ref().map(|ask| ask.question.clone()).unwrap_or_default(),
            value: json(&answer.value),
            by: answer.by.clone(),
            at: answer.at.clone(),
        }));
        said.answers.extend(status.questions.iter().filter_map(|asked| {
            let answer = asked.answer.as_ref()?;
            Some(Answered {
                step_id: id.clone(),
                question: asked.question.clone(),
                value: json(&answer.value),
                by: answer.by.clone(),
                at: answer.at.clone(),
            })
        }));
        said.guidance.extend(status.guidance.iter().map(|g| Guided {
            step_id: id.clone(),
            attempt: g.attempt,
            by: g.by.clone(),
            text: g.text.clone(),
        }));
        said.actions.extend(status.actions.iter().map(|a| Acted { step_id: id.clone(), action: a.clone() }));
    }
    said
}

/// JSON text as its value; a text that is none, as a string.
fn json(text: &str) -> Value {
    digits::read(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Object(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

fn input(step: &StepRun) -> Value {
    if let Some(ask) = &step.spec.ask {
        return object([("question", Value::String(ask.question.clone()))]);
    }
    if step.spec.parameters.trim().is_empty() { Value::Null } else { json(&step.spec.parameters) }
}

/// What the step gave, once there is a verdict; where a Document carries it, its name and digest. Of a manual approval that
/// was rejected, by whom and why.
pub fn output(step: &StepRun) -> Value {
    match output::of(step) {
        StoredOutput::Inline(text) => json(&text),
        StoredOutput::Document(pin) => {
            let digest = content::made(step).map(|made| made.digest).unwrap_or_default();
            object([("documentName", Value::String(pin.name)), ("digest", Value::String(digest))])
        }
        StoredOutput::Nowhere => step.status.as_ref().and_then(|s| gate::verdict(step, s)).unwrap_or_default(),
    }
}

/// What a step gave in one line: the member `summary` of its output, or else the beginning of it.
pub fn summary(output: &Value, bytes: usize) -> Option<String> {
    let said = output.get("summary").unwrap_or(output);
    let text = match said {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let line = one_line(&text, bytes);
    (!line.is_empty()).then_some(line)
}

/// The beginning of a text, with all white space as single blanks.
pub fn one_line(text: &str, bytes: usize) -> String {
    clip(&text.split_whitespace().collect::<Vec<_>>().join(" "), bytes)
}

#[cfg(test)]
mod tests;
