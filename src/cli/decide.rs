//! What `approve` and `reject` share: one decision at one gate, about what was shown and nothing else.

use super::actions;
use super::connect::Connection;
use super::fault::{Code, Fault};
use super::line::RenderOptions;
use super::mailbox::{self, Refusals, Submission};
use super::print::put;
use super::review::under_review;
use super::rows::so_far;
use super::subject::{self, Subject};
use super::target::{self, Named, Target, label, waits_at_gate, waits_at_own_gate};
use super::text::{inline, quote, short_digest};
use super::{pager, print};
use crate::api::StepRun;
use crate::api::name::{COMMENT, DECISION, REVIEW};
use crate::api::step_run::{GateState, GateStatus};
use crate::decide::gate;

/// What the help of both verbs says.
pub const HELP: &str = "\
On a terminal the whole output and document are shown first, through $PAGER (else less), from the second round on also
what changed since the round before; then you are asked. Elsewhere, or to be asked nothing, say what you have read with
--review DIGEST, as `show` prints it, or --yes. A RUN without its step is asked about too, if one gate is all that waits;
--yes does not go with it. What an agent requests in the middle of its work is decided in the same way; where several of its
actions wait, --review says which.

What is decided is what was shown: its digest is sent along, and if the gate is about something else by now, nothing is
sent. What is shown is held against what the step reported; if it was exchanged, that is an error.

Exit codes: 0 decided; 1 you said no, the gate is not open, or it is about another output now; 2 nobody can be asked and
neither --review nor --yes is there; 4 not found, or several wait; 5 the API server refused; 6 the output or the document
is not what the step reported.
";

/// A decision at a gate, as `approve` and `reject` take it.
pub struct GateDecision<'a> {
    pub target: &'a str,
    pub accepted: bool,
    pub comment: Option<&'a str>,
    pub consent: &'a Consent,
}

impl GateDecision<'_> {
    fn word(&self) -> &'static str {
        if self.accepted { "accepted" } else { "rejected" }
    }
}

/// How somebody says that they know what they decide on.
#[derive(clap::Args, Debug, Default)]
pub struct Consent {
    /// Digest of what was read (its first 8 characters or more), as `show` prints it; refused if the gate is about
    /// something else now
    #[arg(long, value_name = "sha256:...")]
    review: Option<String>,
    /// Decide without being shown anything or asked
    #[arg(short = 'y', long)]
    yes: bool,
}

/// Whether the reader is still to be shown it and asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    ToDo,
    Done,
}

/// Whether somebody can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attendance {
    AtTerminal,
    Nobody,
}

impl Consent {
    /// To what has that digest.
    pub fn to(review: Option<String>) -> Self {
        Self { review, yes: false }
    }

    fn reading(&self, named: Named, reader: Attendance, show: &str) -> Result<Reading, Fault> {
        match (self.review.is_some(), self.yes, named, reader) {
            (true, ..) | (false, true, Named::Step, _) => Ok(Reading::Done),
            (false, true, Named::Led, _) => Err(Fault::usage(format!(
                "--yes decides nothing that was not named: name the step, or say what you have read with --review DIGEST; first look: {show}"
            ))),
            (false, false, _, Attendance::AtTerminal) => Ok(Reading::ToDo),
            (false, false, _, Attendance::Nobody) => Err(Fault::usage(format!(
                "nobody can be asked here: say what you have read with --review DIGEST, or --yes; first look: {show}; nothing was decided"
            ))),
        }
    }
}

pub async fn decide(on: &Connection, verdict: GateDecision<'_>) -> Result<Code, Fault> {
    let target = Target::parse(verdict.target)?;
    let (step, named) = target::find_named(on, &target, waits_at_gate).await?;
    let name = format!("{}/{}", step.spec.workflow.name, label(&step));
    let step = actions::chosen(step, &name, verdict.consent.review.as_deref())?;
    let gate = open_gate(&step)?;
    let reader = if on.output.is_text() && pager::is_attended() { Attendance::AtTerminal } else { Attendance::Nobody };
    let reading = verdict.consent.reading(named, reader, &on.hint("show", &name))?;
    reviewed(verdict.consent.review.as_deref(), &gate.output_digest)?;
    if let Some(other) = mailbox::taken(&step, DECISION) {
        return Err(Fault::new(
            Code::Failed,
            format!("a decision by {other} is there already and not taken up yet; try again in a moment"),
        ));
    }
    let subject = subject::load(on, &step).await?;
    if let Some(trouble) = &subject.trouble {
        return Err(trouble.fault());
    }
    let submission = Submission::new(
        on,
        vec![
            (DECISION, Some(verdict.word().to_owned())),
            (COMMENT, verdict.comment.map(str::to_owned)),
            (REVIEW, Some(gate.output_digest.clone())),
        ],
    )
    .await?;
    read(on, &step, &subject, reading).await?;
    let about = (name.as_str(), actions::of_view(&step).map(|request| request.action.as_str()));
    if reading == Reading::ToDo && !pager::is_confirmed(&question(&verdict, about, &gate, submission.by.as_deref()))? {
        return Err(Fault::new(Code::Failed, "not confirmed; nothing was decided"));
    }
    send(on, &step, &gate, &submission).await
}

/// Shows what is decided on: whole where somebody reads, else what it is.
async fn read(on: &Connection, step: &StepRun, subject: &Subject, reading: Reading) -> Result<(), Fault> {
    match reading {
        Reading::ToDo => {
            let before = match &subject.document {
                Some(now) => subject::before(on, step, now).await,
                None => None,
            };
            pager::page(&under_review(step, subject, before.as_ref(), RenderOptions::for_stdout()))
        }
        Reading::Done if on.output.is_text() => {
            let gate = gate_of(step);
            let (round, digest) = (gate.map_or(1, |g| g.round), gate.map_or("", |g| &g.output_digest));
            let (run, step) = (inline(&step.spec.workflow.name, 253), inline(&label(step), 1024));
            put(&format!("{run}/{step}, round {round}, {}\n", inline(digest, 80)))
        }
        Reading::Done => Ok(()),
    }
}

fn question(
    verdict: &GateDecision<'_>,
    (name, action): (&str, Option<&str>),
    gate: &GateStatus,
    by: Option<&str>,
) -> String {
    let word = if verdict.accepted { "Accept" } else { "Reject" };
    let by = by.map_or_else(String::new, |by| format!(" as {}", inline(by, 256)));
    let digest = short_digest(&inline(&gate.output_digest, 80));
    if let Some(what) = action {
        return format!("{word} the action of {}: {}, {digest}{by}?", inline(name, 1024), inline(what, 1024));
    }
    format!("{word} {}, round {}, {digest}{by}?", inline(name, 1024), gate.round)
}

/// For the gate exactly as it was shown.
async fn send(on: &Connection, step: &StepRun, gate: &GateStatus, submission: &Submission) -> Result<Code, Fault> {
    let refusals = Refusals::before(on, step, DECISION, "DecisionRefused").await;
    mailbox::post(on, step, submission, |now| unchanged(now, gate)).await?;
    let by = submission.by.as_deref();
    let before = gate.decisions.len();
    let now = mailbox::latched(on, step, &refusals, |now| {
        let now = actions::gate(now, &gate.output_digest);
        now.is_none_or(|g| g.state != GateState::Waiting || mine(&g, by, before).is_some())
    })
    .await?;
    if !on.output.is_text() {
        print::object(on.output, "StepRun", &now)?;
    }
    outcome(on, &actions::at(&now, &gate.output_digest), by, before)
}

/// Why a gate that changed since it was shown is not the one that was shown.
fn unchanged(now: &StepRun, shown: &GateStatus) -> Result<(), String> {
    let seen = actions::at(now, &shown.output_digest);
    let gate = gate_of(&seen).filter(|_| waits_at_own_gate(&seen)).ok_or("its gate is not open any more")?;
    if gate.output_digest != shown.output_digest || gate.round != shown.round {
        return Err(format!(
            "its gate is now about another output, {}, than the one that you were shown",
            inline(&gate.output_digest, 80)
        ));
    }
    match mailbox::taken(now, DECISION) {
        Some(other) => Err(format!("a decision by {other} was faster")),
        None => Ok(()),
    }
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
            quote(&step.spec.workflow.name)
        )),
        Some(gate) if waits_at_own_gate(step) => Ok(gate.clone()),
        Some(gate) => {
            let by = gate::decided_by(gate).map_or_else(String::new, |by| format!(" by {}", inline(&by, 1024)));
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
        GateState::Accepted if actions::of_view(step).is_some() => format!("{count}; the agent may do it, once"),
        GateState::Rejected if actions::of_view(step).is_some() => "the agent may not do it".to_owned(),
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
    use serde_json::json;

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

    #[test]
    fn nothing_is_decided_that_was_neither_read_nor_named() {
        let review = || Some("01234567".to_owned());
        for (review, yes, named, reader, expected) in [
            (None, false, Named::Step, Attendance::AtTerminal, Some(Reading::ToDo)),
            (None, false, Named::Led, Attendance::AtTerminal, Some(Reading::ToDo)),
            (None, false, Named::Step, Attendance::Nobody, None),
            (None, false, Named::Led, Attendance::Nobody, None),
            (None, true, Named::Step, Attendance::AtTerminal, Some(Reading::Done)),
            (None, true, Named::Step, Attendance::Nobody, Some(Reading::Done)),
            (None, true, Named::Led, Attendance::AtTerminal, None),
            (None, true, Named::Led, Attendance::Nobody, None),
            (review(), false, Named::Step, Attendance::Nobody, Some(Reading::Done)),
            (review(), false, Named::Led, Attendance::Nobody, Some(Reading::Done)),
            (review(), true, Named::Led, Attendance::AtTerminal, Some(Reading::Done)),
        ] {
            let consent = Consent { review, yes };
            let found = consent.reading(named, reader, "kubectl lockstep show shop/a");
            assert_eq!(found.as_ref().ok().copied(), expected, "{consent:?} {named:?} {reader:?}");
            assert!(found.err().is_none_or(|f| f.code == Code::Usage && f.text.contains("show shop/a")));
        }
    }

    #[test]
    fn a_gate_that_is_not_the_one_that_was_shown_gets_no_decision() {
        let at = "2026-01-01T00:00:00Z";
        let step = |state: &str, round: i32, digest: &str, notes: serde_json::Value| -> StepRun {
            let spec = json!({"workflow": {"name": "w", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
                "path": "a", "parameters": "{}", "inputDigest": "d", "gate": {"name": "a"}});
            let gate = json!({"state": state, "round": round, "outputDigest": digest, "openedAt": at, "policy": "p"});
            serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
                "metadata": {"name": "s", "annotations": notes}, "spec": spec,
                "status": {"phase": "WaitingForAcceptance", "gate": gate}}))
            .expect("a step")
        };
        let shown = open_gate(&step("Waiting", 1, "sha256:a", json!({}))).expect("it is open");
        let taken = json!({"lockstep.dev/decision": "rejected", "lockstep.dev/decided-by": "bob"});
        for (now, why) in [
            (step("Waiting", 1, "sha256:a", json!({"other": "x"})), None),
            (step("Waiting", 1, "sha256:b", json!({})), Some("another output, sha256:b")),
            (step("Waiting", 2, "sha256:a", json!({})), Some("another output")),
            (step("Closed", 1, "sha256:a", json!({})), Some("not open any more")),
            (step("Waiting", 1, "sha256:a", taken), Some("by bob was faster")),
        ] {
            match (unchanged(&now, &shown), why) {
                (Ok(()), None) => {}
                (Err(found), Some(why)) => assert!(found.contains(why), "{found}"),
                (found, why) => panic!("{found:?}, not {why:?}"),
            }
        }
    }
}
