//! What a run looks like, one row a step or item: the model behind `watch` and `show`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use std::fmt::Write as _;

use super::target::{keys, label};
use super::text::inline;
use crate::api::step_run::GateState;
use crate::api::workflow::{Phase, StepStatus};
use crate::api::{StepRun, Workflow};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// As a target names it, without the run.
    pub label: String,
    /// The last part of the label, as it stands in the tree.
    pub name: String,
    pub depth: usize,
    pub phase: Phase,
    pub started: Option<Time>,
    pub completed: Option<Time>,
    pub not_before: Option<Time>,
    /// Without anything that changes by the clock.
    pub detail: String,
}

/// The steps of a run in file order, under each the items of its forEach.
pub fn rows(run: &Workflow, steps: &[StepRun]) -> Vec<Row> {
    let uid = run.uid().unwrap_or_default();
    let mut own: Vec<&StepRun> = steps.iter().filter(|step| uid.is_empty() || step.spec.workflow.uid == uid).collect();
    own.sort_by_key(|step| (indices(step), step.name_any()));
    let listed = run.status.as_ref().map_or(&[][..], |s| &s.steps);
    let mut rows = Vec::new();
    for step in listed {
        let (items, single): (Vec<&StepRun>, Vec<&StepRun>) =
            own.iter().filter(|s| s.spec.path == step.path).partition(|s| s.spec.item.is_some());
        rows.push(listed_row(step, single.first().copied()));
        rows.extend(items.into_iter().map(step_row));
    }
    // A StepRun is seen before the status that lists its step, and never hidden.
    let unlisted = |step: &&&StepRun| !listed.iter().any(|l| l.path == step.spec.path);
    rows.extend(own.iter().filter(unlisted).map(|step| step_row(step)));
    rows
}

fn indices(step: &StepRun) -> (i32, usize) {
    let index = step.spec.item.as_ref().map_or(-1, |item| item.index);
    (index, keys(step).len())
}

fn listed_row(step: &StepStatus, own: Option<&StepRun>) -> Row {
    let mut row = match own {
        Some(own) => step_row(own),
        None => Row {
            label: inline(&step.path, 512),
            name: last(&step.path),
            depth: step.path.matches('/').count(),
            phase: step.phase,
            started: None,
            completed: None,
            not_before: None,
            detail: String::new(),
        },
    };
    if step.phase.is_terminal() {
        row.phase = step.phase;
    }
    row.started = row.started.or_else(|| step.started_at.clone());
    row.completed = row.completed.or_else(|| step.completed_at.clone());
    if let Some(counts) = step.counts {
        let mut text = format!("{}/{} done", counts.done, counts.total);
        if counts.failed > 0 {
            write!(text, ", {} failed", counts.failed).ok();
        }
        let running = counts.started - counts.done - counts.failed;
        if running > 0 && !row.phase.is_terminal() {
            write!(text, ", {running} under way").ok();
        }
        row.detail = text;
    }
    row
}

fn step_row(step: &StepRun) -> Row {
    let path = step.spec.path.as_str();
    let keys = keys(step);
    let status = step.status.clone().unwrap_or_default();
    Row {
        label: inline(&label(step), 1024),
        name: if keys.is_empty() { last(path) } else { inline(&keys.join("/"), 300) },
        depth: path.matches('/').count() + usize::from(!keys.is_empty()),
        phase: status.phase.unwrap_or_default(),
        detail: detail(step),
        started: status.started_at,
        completed: status.completed_at,
        not_before: status.not_before,
    }
}

fn last(path: &str) -> String {
    inline(path.rsplit('/').next().unwrap_or(path), 253)
}

fn detail(step: &StepRun) -> String {
    let Some(status) = &step.status else {
        return String::new();
    };
    let phase = status.phase.unwrap_or_default();
    let mut parts = Vec::new();
    if status.attempt > 1 {
        parts.push(format!("attempt {}", status.attempt));
    }
    if let Some(gate) = &status.gate {
        let last = gate.decisions.last();
        match gate.state {
            GateState::Waiting if !phase.is_terminal() => parts.push(gate_waits(step)),
            GateState::Waiting | GateState::Closed | GateState::NotRequired => {}
            GateState::Accepted | GateState::Rejected => {
                let word = if gate.state == GateState::Accepted { "accepted" } else { "rejected" };
                let by = last.map_or("nobody", |d| d.decided_by.as_str());
                let comment = last
                    .and_then(|d| d.comment.as_deref())
                    .filter(|c| !c.trim().is_empty())
                    .map_or_else(String::new, |c| format!(": {c}"));
                parts.push(inline(&format!("{word} by {by}{comment}"), 200));
            }
        }
    }
    match (phase, &status.waiting_for, &status.error) {
        (Phase::WaitingForInput, Some(wait), _) => {
            parts.push(inline(&format!("{:?}: {}", wait.kind, wait.question), 200));
        }
        (Phase::Failed | Phase::Pending, _, Some(error)) => {
            let code = error.exit_code.map_or_else(String::new, |code| format!(" (exit {code})"));
            parts.push(inline(&format!("{}{code}: {}", error.class, error.message), 200));
        }
        (Phase::Running, _, _) => {
            let progress = status.agent.as_ref().and_then(|a| a.progress.as_ref());
            parts.extend(progress.map(|p| inline(&format!("{}% {}", p.percent, p.message), 200)));
        }
        _ => {}
    }
    parts.join("; ")
}

fn gate_waits(step: &StepRun) -> String {
    let name = step.spec.gate.as_ref().map_or("", |g| g.name.as_str());
    let Some(gate) = step.status.as_ref().and_then(|s| s.gate.as_ref()) else {
        return String::new();
    };
    let accepted = accepted(step);
    let so_far = if accepted > 0 { format!(", {accepted} accepted so far") } else { String::new() };
    inline(&format!("gate {name}, round {}{so_far}", gate.round), 200)
}

/// Acceptances of the round that the gate is in.
pub fn accepted(step: &StepRun) -> usize {
    let gate = step.status.as_ref().and_then(|s| s.gate.as_ref());
    gate.map_or(0, |gate| gate.decisions.iter().filter(|d| d.accepted && d.round == gate.round).count())
}

fn is_open(step: &StepRun) -> bool {
    let phase = step.status.as_ref().and_then(|s| s.phase);
    !phase.is_some_and(Phase::is_terminal)
}

/// Whether its gate waits for a decision.
pub fn waits_at_gate(step: &StepRun) -> bool {
    let gate = step.status.as_ref().and_then(|s| s.gate.as_ref());
    is_open(step) && gate.is_some_and(|gate| gate.state == GateState::Waiting)
}

/// Whether it waits for an answer.
pub fn waits_for_answer(step: &StepRun) -> bool {
    is_open(step)
        && step.status.as_ref().is_some_and(|s| s.waiting_for.is_some() && s.phase == Some(Phase::WaitingForInput))
}
