//! What a run looks like, one row a step or item: the model behind `watch` and `show`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::fmt::Write as _;

use super::actions;
use super::held;
use super::target::{keys, label};
use super::text::inline;
use crate::api::step_run::{Act, Decision, GateState, GateStatus, WaitKind, WaitingFor};
use crate::api::workflow::{Counts, Phase, StepStatus};
use crate::api::{StepRun, Workflow};
use crate::decide::history::{StepInstance, step_instances};

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
    pub attempt: i32,
    /// Without anything that changes by the clock.
    pub detail: String,
    /// The same where what is asked stands below, with the commands.
    pub brief: Option<String>,
}

impl Row {
    /// The detail as it stands above what people are asked, and which attempt it is where it is not the first.
    pub fn told(&self) -> String {
        match (self.attempt, self.brief.as_ref().unwrap_or(&self.detail).as_str()) {
            (..=1, detail) => detail.to_owned(),
            (attempt, "") => format!("attempt {attempt}"),
            (attempt, detail) => format!("attempt {attempt}; {detail}"),
        }
    }
}

/// The steps of a run in file order, under each the items of its forEach. A StepRun is seen before the status that
/// lists its step, and never hidden.
pub fn rows(run: &Workflow, steps: &[StepRun]) -> Vec<Row> {
    let end = run.status.as_ref().and_then(|s| s.phase).filter(|phase| phase.is_terminal());
    step_instances(run, steps).iter().filter_map(|instance| row(instance, end)).collect()
}

fn row(instance: &StepInstance<'_>, end: Option<Phase>) -> Option<Row> {
    match (instance.listed, instance.step_run) {
        (Some(listed), own) => Some(listed_row(listed, own, end)),
        (None, own) => own.map(step_row),
    }
}

/// `end` is the phase in which the run has ended.
fn listed_row(step: &StepStatus, own: Option<&StepRun>, end: Option<Phase>) -> Row {
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
            attempt: 0,
            detail: String::new(),
            brief: None,
        },
    };
    if step.phase.is_terminal() {
        row.phase = step.phase;
    }
    row.started = row.started.or_else(|| step.started_at.clone());
    row.completed = row.completed.or_else(|| step.completed_at.clone());
    let waits = matches!(row.phase, Phase::Pending | Phase::WaitingForDocuments | Phase::Suspended);
    if waits && own.is_none() && end.is_some() && step.counts.is_none() {
        row.phase = Phase::Skipped;
    }
    if let Some(counts) = step.counts {
        row.detail = progress(counts, row.phase);
        row.attempt = 0;
    } else if row.phase == Phase::Skipped {
        row.detail = skipped(step, end);
    }
    row
}

/// Why a step was passed by: for its own sake, or because the run had ended before its turn.
fn skipped(step: &StepStatus, end: Option<Phase>) -> String {
    let why = match (step.when, end) {
        (Some(false), _) => "its when was false",
        (_, Some(Phase::Failed)) => "not started: the run failed before",
        (_, Some(Phase::Cancelled)) => "not started: the run was cancelled before",
        _ => "it needs a step that was skipped",
    };
    why.to_owned()
}

/// How far a forEach has come: `12/40 done, 1 failed, 2 skipped, 10 under way, 15 queued`.
fn progress(counts: Counts, phase: Phase) -> String {
    let mut text = format!("{}/{} done", counts.done, counts.total);
    let running = counts.started - counts.done - counts.failed;
    let queued = counts.total - counts.started.max(counts.done + counts.failed) - counts.skipped;
    let open = !phase.is_terminal();
    for (number, word, shown) in [
        (counts.failed, "failed", true),
        (counts.skipped, "skipped", true),
        (running, "under way", open),
        (queued, "queued", open),
    ] {
        if number > 0 && shown {
            write!(text, ", {number} {word}").ok();
        }
    }
    text
}

/// One StepRun.
pub fn step_row(step: &StepRun) -> Row {
    let path = step.spec.path.as_str();
    let keys = keys(step);
    let status = step.status.clone().unwrap_or_default();
    Row {
        label: inline(&label(step), 1024),
        name: if keys.is_empty() { last(path) } else { inline(&keys.join("/"), 300) },
        depth: path.matches('/').count() + usize::from(!keys.is_empty()),
        phase: status.phase.unwrap_or_default(),
        detail: detail(step, asked_in_full),
        brief: status.waiting_for.as_ref().map(|_| detail(step, asked_in_brief)),
        started: status.started_at,
        completed: status.completed_at,
        not_before: status.not_before,
        attempt: status.attempt,
    }
}

fn last(path: &str) -> String {
    inline(path.rsplit('/').next().unwrap_or(path), 253)
}

fn asked_in_full(wait: &WaitingFor) -> String {
    format!("{:?}: {}", wait.kind, wait.question)
}

fn asked_in_brief(wait: &WaitingFor) -> String {
    let text = match wait.kind {
        WaitKind::Question => "a question",
        WaitKind::BudgetSpent => "its budget is spent",
        WaitKind::RetriesSpent => "its retries are spent",
        WaitKind::InfrastructureSpent => "the cluster lost it too often",
        WaitKind::RoundsSpent => "its review rounds are spent",
        WaitKind::OutcomeUnknown => "it is not known whether it had its effects",
    };
    text.to_owned()
}

fn detail(step: &StepRun, asked: impl Fn(&WaitingFor) -> String) -> String {
    let Some(status) = &step.status else {
        return String::new();
    };
    let phase = status.phase.unwrap_or_default();
    let mut parts = Vec::new();
    if let Some(reuse) = &step.spec.reuse {
        parts.push(inline(&format!("taken over from {}", reuse.step_run), 200));
    }
    // A failure names whoever ordered it.
    if let Some(last) = status.actions.last().filter(|last| last.action != Act::Fail) {
        let comment = last.comment.as_deref().map_or_else(String::new, |c| format!(": {c}"));
        parts.push(inline(&format!("{} by {}{comment}", last.action.past(), last.by), 200));
    }
    if let Some(gate) = &status.gate {
        match gate.state {
            GateState::Waiting if !phase.is_terminal() => parts.push(gate_waits(step)),
            GateState::NotRequired => parts.push("no decision needed".to_owned()),
            GateState::Waiting | GateState::Closed => {}
            GateState::Accepted | GateState::Rejected => {
                parts.push(decided(gate));
            }
        }
    }
    for request in actions::waiting(step).iter().filter_map(actions::of_view) {
        parts.push(inline(&format!("gate {}: {}", request.gate_name, request.action), 200));
    }
    match (phase, &status.waiting_for, &status.error) {
        (Phase::WaitingForInput, Some(wait), _) => {
            parts.push(inline(&asked(wait), 200));
        }
        // Why it does not start says more than what ended the attempt before.
        _ if held::step(status).is_some() => parts.extend(held::step(status)),
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

/// Who made the gate what it is, each with what they said: `accepted by ann: good; bob`.
fn decided(gate: &GateStatus) -> String {
    let accepted = gate.state == GateState::Accepted;
    let word = if accepted { "accepted" } else { "rejected" };
    let one = |d: &Decision| {
        let comment = d.comment.as_deref().filter(|c| !c.trim().is_empty());
        comment.map_or_else(|| d.decided_by.clone(), |c| format!("{}: {c}", d.decided_by))
    };
    let all: Vec<String> =
        gate.decisions.iter().filter(|d| d.round == gate.round && d.accepted == accepted).map(one).collect();
    let by = if all.is_empty() { "nobody: its time ran out".to_owned() } else { all.join("; ") };
    let round = if gate.round > 1 { format!(" in round {}", gate.round) } else { String::new() };
    inline(&format!("{word}{round} by {by}"), 200)
}

fn gate_waits(step: &StepRun) -> String {
    let name = step.spec.gate.as_ref().map_or("", |g| g.name.as_str());
    let Some(gate) = step.status.as_ref().and_then(|s| s.gate.as_ref()) else {
        return String::new();
    };
    let so_far = so_far(step).map_or_else(String::new, |so_far| format!(", {so_far} accepted"));
    inline(&format!("gate {name}, round {}{so_far}", gate.round), 200)
}

/// `1 of 2`, where more than one must accept.
pub fn so_far(step: &StepRun) -> Option<String> {
    let wanted = step.spec.gate.as_ref().map_or(1, |gate| gate.approvals);
    let accepted = crate::decide::target::accepted(step);
    (wanted > 1 || accepted > 1).then(|| format!("{accepted} of {wanted}"))
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "objects are built in place")]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn step(spec: &[(&str, Value)], status: Value) -> StepRun {
        let mut all = json!({"workflow": {"name": "w", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "a", "parameters": "{}", "inputDigest": "d"});
        for (key, value) in spec {
            all[*key] = value.clone();
        }
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "s"}, "spec": all, "status": status}))
        .expect("a step")
    }

    const AT: &str = "2026-11-21T10:00:00Z";

    fn decision(by: &str, round: i32) -> Value {
        json!({"documentType": "a", "scopeId": "u", "accepted": true, "decidedBy": by, "decidedAt": AT, "digest": "d", "round": round})
    }

    #[test]
    fn details_say_what_holds_a_step() {
        let gate = ("gate", json!({"name": "a", "approvals": 2}));
        let open = |round: i32, decisions: Value| {
            json!({"phase": "WaitingForAcceptance", "gate": {"state": "Waiting",
            "round": round, "outputDigest": "d", "openedAt": AT, "policy": "p", "decisions": decisions}})
        };
        let one = json!([decision("ann", 1)]);
        let held = |phase: &str| {
            json!({"phase": phase, "attempt": 2, "error": {"class": "Retryable", "message": "x", "attempt": 1},
            "conditions": [{"type": "Started", "status": "False", "reason": "NoSlot", "message": "Agent a runs 2 of 2",
            "lastTransitionTime": AT}]})
        };
        let question = json!({"phase": "WaitingForInput", "waitingFor": {"id": "1", "kind": "Question",
            "question": "How many?", "options": [], "since": AT}});
        let reuse = json!({"stepRun": "old-a", "uid": "u", "digest": "d"});
        let action = |word: &str| json!({"action": word, "wait": "RetriesSpent", "attempt": 3, "by": "ann", "at": AT, "comment": "enough"});
        let accepted = json!({"phase": "Completed", "gate": {"state": "Accepted", "round": 2, "outputDigest": "d",
            "openedAt": AT, "policy": "p", "decisions": [decision("eve", 1), decision("ann", 2), decision("bob", 2)]}});
        for (step, expected) in vec![
            (step(std::slice::from_ref(&gate), open(1, one.clone())), "gate a, round 1, 1 of 2 accepted"),
            (step(std::slice::from_ref(&gate), open(2, one)), "gate a, round 2, 0 of 2 accepted"),
            (step(&[], held("Pending")), "attempt 2; NoSlot: Agent a runs 2 of 2"),
            (step(&[], held("Running")), "attempt 2; NoSlot: Agent a runs 2 of 2"),
            (step(&[("ask", json!({"name": "a", "question": "How many?"}))], question.clone()), "a question"),
            (step(&[("reuse", reuse)], json!({"phase": "Completed"})), "taken over from old-a"),
            (step(&[], json!({"phase": "Completed", "actions": [action("skip")]})), "skipped by ann: enough"),
            (
                step(&[], json!({"phase": "Running", "attempt": 4, "actions": [action("retry")]})),
                "attempt 4; retried by ann: enough",
            ),
            (
                step(
                    &[],
                    json!({"phase": "Failed", "actions": [action("fail")], "error": {"class": "Retryable",
                "message": "ann answered that the step fails", "attempt": 3}}),
                ),
                "Retryable: ann answered that the step fails",
            ),
            (step(std::slice::from_ref(&gate), accepted), "accepted in round 2 by ann; bob"),
        ] {
            assert_eq!(step_row(&step).told(), expected);
        }
        assert_eq!(step_row(&step(&[], question)).detail, "Question: How many?");
    }

    #[test]
    fn counts_and_skips_are_told() {
        let counts = |total, started, done, failed, skipped| Counts { total, started, done, failed, skipped };
        for (counts, phase, expected) in [
            (counts(40, 23, 12, 1, 2), Phase::Running, "12/40 done, 1 failed, 2 skipped, 10 under way, 15 queued"),
            (counts(3, 2, 1, 1, 0), Phase::Failed, "1/3 done, 1 failed"),
            (counts(3, 3, 3, 0, 0), Phase::Completed, "3/3 done"),
        ] {
            assert_eq!(progress(counts, phase), expected);
        }
        let listed = |phase, when| StepStatus { path: "g/a".into(), phase, when, ..StepStatus::default() };
        for (phase, when, end, expected) in [
            (Phase::Skipped, Some(false), None, (Phase::Skipped, "its when was false")),
            (Phase::Skipped, Some(false), Some(Phase::Failed), (Phase::Skipped, "its when was false")),
            (Phase::Skipped, None, None, (Phase::Skipped, "it needs a step that was skipped")),
            (Phase::Skipped, None, Some(Phase::Completed), (Phase::Skipped, "it needs a step that was skipped")),
            (Phase::Skipped, None, Some(Phase::Failed), (Phase::Skipped, "not started: the run failed before")),
            // As operators wrote it that came before.
            (Phase::Pending, None, Some(Phase::Failed), (Phase::Skipped, "not started: the run failed before")),
            (
                Phase::Pending,
                None,
                Some(Phase::Cancelled),
                (Phase::Skipped, "not started: the run was cancelled before"),
            ),
            (Phase::Pending, None, None, (Phase::Pending, "")),
        ] {
            let row = listed_row(&listed(phase, when), None, end);
            assert_eq!((row.phase, row.detail.as_str()), expected, "{phase} {when:?} {end:?}");
        }
    }
}
