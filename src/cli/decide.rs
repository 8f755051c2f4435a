//! What `approve` and `reject` share: one decision at one gate.

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::mailbox::{self, Letter, Refusals};
use super::print;
use super::rows::{so_far, waits_at_gate};
use super::step_page;
use super::target::{self, Target, label};
use super::text::{indent, inline, put};
use crate::api::StepRun;
use crate::api::name::{COMMENT, DECISION, REVIEW};
use crate::api::step_run::{GateState, GateStatus};
use std::fmt::Write as _;

pub struct Verdict<'a> {
    pub target: &'a str,
    pub accepted: bool,
    pub comment: Option<&'a str>,
    pub review: Option<&'a str>,
}

impl Verdict<'_> {
    fn word(&self) -> &'static str {
        if self.accepted { "accepted" } else { "rejected" }
    }
}

pub async fn decide(on: &Connection, verdict: Verdict<'_>) -> Result<Code, Fault> {
    let target = Target::parse(verdict.target)?;
    let step = target::find(on, &target, waits_at_gate).await?;
    let gate = open_gate(&step)?;
    reviewed(verdict.review, &gate.output_digest)?;
    if let Some(other) = mailbox::taken(&step, DECISION) {
        return Err(Fault::new(
            Code::Failed,
            format!("a decision by {other} is there already and not taken up yet; try again in a moment"),
        ));
    }
    if on.output.is_text() {
        put(&preview(on, &step, &gate).await?)?;
    }
    let letter = Letter::new(
        on,
        vec![
            (DECISION, Some(verdict.word().to_owned())),
            (COMMENT, verdict.comment.map(str::to_owned)),
            (REVIEW, Some(gate.output_digest.clone())),
        ],
    )
    .await?;
    let same = |now: &StepRun| {
        waits_at_gate(now)
            && gate_of(now).is_some_and(|g| g.output_digest == gate.output_digest && g.round == gate.round)
            && mailbox::taken(now, DECISION).is_none()
    };
    let refusals = Refusals::before(on, &step, DECISION, "DecisionRefused").await;
    mailbox::post(on, &step, &letter, same).await?;
    let by = letter.by.as_deref();
    let before = gate.decisions.len();
    let now = mailbox::latched(on, &step, &refusals, |now| {
        gate_of(now).is_none_or(|g| g.state != GateState::Waiting || mine(g, by, before).is_some())
    })
    .await?;
    if !on.output.is_text() {
        print::object(on.output, "StepRun", &now)?;
    }
    outcome(on, &now, by, before)
}

fn gate_of(step: &StepRun) -> Option<&GateStatus> {
    step.status.as_ref()?.gate.as_ref()
}

/// My decision among those that came after.
fn mine<'a>(gate: &'a GateStatus, by: Option<&str>, before: usize) -> Option<&'a crate::api::step_run::Decision> {
    gate.decisions.iter().skip(before).find(|d| by.is_none_or(|by| by == d.decided_by))
}

fn open_gate(step: &StepRun) -> Result<GateStatus, Fault> {
    let name = format!("{}/{}", step.spec.workflow.name, label(step));
    let closed = |why: String| Err(Fault::new(Code::Failed, why));
    match gate_of(step) {
        None if step.spec.gate.is_none() => closed(format!("{name} has no gate; nothing is to be decided")),
        None => closed(format!(
            "the gate of {name} is not open yet, its output is not there; see kubectl lockstep watch {}",
            step.spec.workflow.name
        )),
        Some(gate) if waits_at_gate(step) => Ok(gate.clone()),
        Some(gate) => {
            let by = gate.decisions.last().map_or_else(String::new, |d| format!(" by {}", inline(&d.decided_by, 256)));
            let state = match gate.state {
                GateState::Accepted => format!("was accepted{by}"),
                GateState::Rejected => format!("was rejected{by}"),
                GateState::NotRequired => "needs no decision".to_owned(),
                GateState::Waiting | GateState::Closed => "is closed, its step is over".to_owned(),
            };
            closed(format!("the gate of {name} {state}; nothing is left to decide"))
        }
    }
}

/// A review that was given must be of what is there now. Its head is enough.
fn reviewed(given: Option<&str>, now: &str) -> Result<(), Fault> {
    let Some(given) = given else {
        return Ok(());
    };
    let hex = given.strip_prefix("sha256:").unwrap_or(given);
    if hex.len() >= 8 && now.strip_prefix("sha256:").unwrap_or(now).starts_with(hex) {
        return Ok(());
    }
    Err(Fault::new(
        Code::Failed,
        format!("stale review: the output is now {now}; look again with kubectl lockstep show, nothing was decided"),
    ))
}

async fn preview(on: &Connection, step: &StepRun, gate: &GateStatus) -> Result<String, Fault> {
    let content = step_page::produced(on, step).await?;
    let mut text =
        format!("{}/{}, round {}, {}\n", step.spec.workflow.name, label(step), gate.round, gate.output_digest);
    let lines: Vec<&str> = content.lines().collect();
    text.push_str(&indent(&lines[..lines.len().min(10)].join("\n"), "  | "));
    if lines.len() > 10 {
        writeln!(
            text,
            "  … {} more lines: {}",
            lines.len() - 10,
            on.hint("show", &format!("{}/{}", step.spec.workflow.name, label(step)))
        )
        .ok();
    }
    Ok(text)
}

fn outcome(on: &Connection, step: &StepRun, by: Option<&str>, before: usize) -> Result<Code, Fault> {
    let Some(gate) = gate_of(step) else {
        return Err(Fault::new(Code::Failed, "the gate was taken away; see kubectl lockstep show"));
    };
    let Some(own) = mine(gate, by, before) else {
        return open_gate(step).map(|_| Code::Done);
    };
    let word = if own.accepted { "accepted" } else { "rejected" };
    let count = so_far(step).unwrap_or_else(|| "1 of 1".to_owned());
    let run = &step.spec.workflow.name;
    let rest = match gate.state {
        GateState::Accepted => format!("{count}; the run goes on"),
        GateState::Waiting => format!("{count}; the gate waits for more"),
        GateState::Rejected => format!("the round is over; see {}", on.hint("watch", run)),
        GateState::Closed | GateState::NotRequired => "but the gate is closed".to_owned(),
    };
    if on.output.is_text() {
        put(&format!("{word} by {}; {rest}\n", inline(&own.decided_by, 256)))?;
    }
    Ok(Code::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_is_of_what_is_there_now() {
        let now = "sha256:0123456789abcdef";
        let table = [
            (None, true),
            (Some("sha256:0123456789abcdef"), true),
            (Some("sha256:0123456789ab"), true),
            (Some("01234567"), true),
            (Some("sha256:0123"), false),
            (Some("sha256:"), false),
            (Some("sha256:ffff56789abcdef0"), false),
        ];
        for (given, fits) in table {
            assert_eq!(reviewed(given, now).is_ok(), fits, "{given:?}");
        }
    }
}
