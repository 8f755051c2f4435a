//! What a run looks like, one row a step or item: the model behind `watch` and `show`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::fmt::Write as _;

use super::target::{keys, label};
use super::text::inline;
use crate::api::condition;
use crate::api::step_run::{Act, GateState};
use crate::api::workflow::{Counts, Phase, StepStatus};
use crate::api::{StepRun, StepRunStatus, Workflow};
use crate::decide::gate;
use crate::decide::history::{Place, places};

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

/// The steps of a run in file order, under each the items of its forEach. A StepRun is seen before the status that
/// lists its step, and never hidden.
pub fn rows(run: &Workflow, steps: &[StepRun]) -> Vec<Row> {
    places(run, steps).iter().filter_map(row).collect()
}

fn row(place: &Place<'_>) -> Option<Row> {
    match (place.listed, place.step_run) {
        (Some(listed), own) => Some(listed_row(listed, own)),
        (None, own) => own.map(step_row),
    }
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
        row.detail = progress(counts, row.phase);
    } else if row.phase == Phase::Skipped {
        let why = if step.when == Some(false) { "when is false" } else { "it needs a step that was skipped" };
        why.clone_into(&mut row.detail);
    }
    row
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
    if let Some(reuse) = &step.spec.reuse {
        parts.push(inline(&format!("taken over from {}", reuse.step_run), 200));
    }
    if status.attempt > 1 {
        parts.push(format!("attempt {}", status.attempt));
    }
    // A failure names whoever ordered it.
    if let Some(last) = status.actions.last().filter(|last| last.action != Act::Fail) {
        let comment = last.comment.as_deref().map_or_else(String::new, |c| format!(": {c}"));
        parts.push(inline(&format!("{} by {}{comment}", last.action.past(), last.by), 200));
    }
    if let Some(gate) = &status.gate {
        let last = gate.decisions.last().filter(|d| d.round == gate.round);
        match gate.state {
            GateState::Waiting if !phase.is_terminal() => parts.push(gate_waits(step)),
            GateState::NotRequired => parts.push("no decision needed".to_owned()),
            GateState::Waiting | GateState::Closed => {}
            GateState::Accepted | GateState::Rejected => {
                let word = if gate.state == GateState::Accepted { "accepted" } else { "rejected" };
                let by = gate::decided_by(gate).unwrap_or_else(|| "nobody".to_owned());
                let comment = last
                    .and_then(|d| d.comment.as_deref())
                    .filter(|c| !c.trim().is_empty())
                    .map_or_else(String::new, |c| format!(": {c}"));
                let round = if gate.round > 1 { format!(" in round {}", gate.round) } else { String::new() };
                parts.push(inline(&format!("{word} by {by}{round}{comment}"), 200));
            }
        }
    }
    match (phase, &status.waiting_for, &status.error) {
        (Phase::WaitingForInput, Some(wait), _) => {
            parts.push(inline(&format!("{:?}: {}", wait.kind, wait.question), 200));
        }
        // Why it does not start says more than what ended the attempt before.
        (Phase::Pending, _, _) if held(status).is_some() => parts.extend(held(status)),
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

/// Why a step that could start does not: no Agent, no slot, a pod that cannot be placed.
fn held(status: &StepRunStatus) -> Option<String> {
    let started = condition::get(&status.conditions, "Started").filter(|c| c.status == "False")?;
    Some(inline(&format!("{}: {}", started.reason, started.message), 200))
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
    let accepted = accepted(step);
    (wanted > 1 || accepted > 1).then(|| format!("{accepted} of {wanted}"))
}

/// Acceptances of the round that the gate is in.
fn accepted(step: &StepRun) -> usize {
    let gate = step.status.as_ref().and_then(|s| s.gate.as_ref());
    gate.map_or(0, |gate| gate.decisions.iter().filter(|d| d.accepted && d.round == gate.round).count())
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
        let held = json!({"phase": "Pending", "attempt": 2, "error": {"class": "Retryable", "message": "x", "attempt": 1},
            "conditions": [{"type": "Started", "status": "False", "reason": "NoSlot", "message": "Agent a runs 2 of 2",
            "lastTransitionTime": AT}]});
        let question = json!({"phase": "WaitingForInput", "waitingFor": {"id": "1", "kind": "Question",
            "question": "How many?", "options": [], "since": AT}});
        let reuse = json!({"stepRun": "old-a", "uid": "u", "digest": "d"});
        let action = |word: &str| json!({"action": word, "wait": "RetriesSpent", "attempt": 3, "by": "ann", "at": AT, "comment": "enough"});
        let accepted = json!({"phase": "Completed", "gate": {"state": "Accepted", "round": 2, "outputDigest": "d",
            "openedAt": AT, "policy": "p", "decisions": [decision("eve", 1), decision("ann", 2), decision("bob", 2)]}});
        for (step, expected) in vec![
            (step(std::slice::from_ref(&gate), open(1, one.clone())), "gate a, round 1, 1 of 2 accepted"),
            (step(std::slice::from_ref(&gate), open(2, one)), "gate a, round 2, 0 of 2 accepted"),
            (step(&[], held), "attempt 2; NoSlot: Agent a runs 2 of 2"),
            (step(&[("ask", json!({"name": "a", "question": "How many?"}))], question), "Question: How many?"),
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
            (step(std::slice::from_ref(&gate), accepted), "accepted by ann, bob in round 2"),
        ] {
            assert_eq!(detail(&step), expected);
        }
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
        let skipped = |when| StepStatus { path: "g/a".into(), phase: Phase::Skipped, when, ..StepStatus::default() };
        assert_eq!(listed_row(&skipped(Some(false)), None).detail, "when is false");
        assert_eq!(listed_row(&skipped(None), None).detail, "it needs a step that was skipped");
    }
}
