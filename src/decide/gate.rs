//! Gates: what a reviewer's mark on a StepRun is worth.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::api::condition::clip;
use crate::api::name::{self, COMMENT, DECIDED_BY, DECISION, REVIEW};
use crate::api::step_run::{
    Comparison, Decision, GateState, GateStatus, Reuse, ReusedGate, StepRun, StepRunGate, StepRunStatus,
};

/// Decisions kept, the newest; the API server's audit log has them all.
const DECISIONS: usize = 64;

/// Whether the admission policies stand that prove who wrote into the mailbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// Nobody needed to know.
    #[default]
    NotAsked,
    /// They do: UIDs and generations.
    Proven(String),
    /// They do not, and why.
    Missing(String),
}

/// A decision in the mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    pub accepted: bool,
    pub by: String,
    pub comment: Option<String>,
    pub review: Option<String>,
}

/// What lies in the mailbox: nothing, something worthless and why, or a decision.
pub fn submission(step_run: &StepRun) -> Option<Result<Submission, String>> {
    let annotations = step_run.metadata.annotations.as_ref()?;
    let decision = annotations.get(DECISION)?;
    let Some(by) = annotations.get(DECIDED_BY).filter(|by| !by.is_empty()) else {
        return Some(Err(format!("the annotation {DECIDED_BY} is missing, which says who decides")));
    };
    let accepted = match decision.as_str() {
        "accepted" => true,
        "rejected" => false,
        other => {
            return Some(Err(format!("the annotation {DECISION} must be accepted or rejected, not {other:?}")));
        }
    };
    Some(Ok(Submission {
        accepted,
        by: clip(by, 512),
        comment: annotations.get(COMMENT).map(|c| clip(c, 4096)),
        review: annotations.get(REVIEW).cloned(),
    }))
}

/// What a decision binds: this StepRun, this round, these bytes.
pub fn review_digest(step_run: &StepRun, round: i32, report_digest: &str) -> String {
    let uid = step_run.metadata.uid.as_deref().unwrap_or_default();
    name::digest([uid.as_bytes(), round.to_string().as_bytes(), report_digest.as_bytes()])
}

/// Whether an agent makes the output; else a person does, or another run did.
pub fn has_agent(step_run: &StepRun) -> bool {
    let spec = &step_run.spec;
    spec.reuse.is_none() && spec.ask.is_none() && !spec.agent_id.is_empty()
}

/// Whether the step is an approval and nothing else.
pub fn is_approval_alone(step_run: &StepRun) -> bool {
    let spec = &step_run.spec;
    spec.gate.is_some() && spec.reuse.is_none() && spec.ask.is_none() && spec.agent_id.is_empty()
}

/// Digest of what a gate is about: the result, or the parameters of an approval alone.
pub fn reviewed(step_run: &StepRun, status: &StepRunStatus) -> Option<String> {
    if is_approval_alone(step_run) {
        return Some(name::digest_bytes(step_run.spec.parameters.as_bytes()));
    }
    status.result.as_ref().map(|r| r.digest.clone())
}

/// The output of a step that is an approval and nothing else, once it was accepted; of a status that may not be stored yet.
pub fn output_of(step_run: &StepRun, status: &StepRunStatus) -> Option<Value> {
    let gate = status.gate.as_ref().filter(|_| is_approval_alone(step_run))?;
    can_proceed(step_run.spec.gate.as_ref(), Some(gate)).then(|| told(gate))
}

/// What the history says of a step that is an approval alone: its output, or that it was rejected, and by whom.
pub fn verdict(step_run: &StepRun, status: &StepRunStatus) -> Option<Value> {
    let rejected = || status.gate.as_ref().filter(|g| is_approval_alone(step_run) && g.state == GateState::Rejected);
    output_of(step_run, status).or_else(|| rejected().map(told))
}

fn told(gate: &GateStatus) -> Value {
    let comments: Vec<&str> = deciding(gate).filter_map(|d| d.comment.as_deref()).collect();
    Value::from_iter([
        ("accepted", Value::Bool(gate.state != GateState::Rejected)),
        ("decidedBy", decided_by(gate).map_or(Value::Null, Value::from)),
        ("comment", if comments.is_empty() { Value::Null } else { comments.join("\n").into() }),
    ])
}

/// Who made the gate what it is, the same everywhere: in the order of their decisions, joined by a comma. Who accepted a
/// round that somebody else rejected has not decided it.
pub fn decided_by(gate: &GateStatus) -> Option<String> {
    let is_decided = matches!(gate.state, GateState::Accepted | GateState::Rejected);
    let names: Vec<&str> = deciding(gate).filter(|_| is_decided).map(|d| d.decided_by.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The decisions that count in the round that the gate is in.
fn deciding(gate: &GateStatus) -> impl Iterator<Item = &Decision> {
    let accepted = gate.state != GateState::Rejected;
    gate.decisions.iter().filter(move |d| d.round == gate.round && d.accepted == accepted)
}

/// Whether that person has decided this round.
pub fn has_decided(gate: &GateStatus, by: &str) -> bool {
    gate.decisions.iter().any(|d| d.decided_by == by && d.round == gate.round)
}

/// Whether a decision may count for the open gate; the error says why not. Admission has checked most of it before.
pub fn admissible(
    gate: &GateStatus,
    wanted: &StepRunGate,
    submission: &Submission,
    guard: &Guard,
) -> Result<(), String> {
    match guard {
        Guard::NotAsked => return Err("Lockstep's admission policies were not checked".to_owned()),
        Guard::Missing(why) => return Err(format!("Lockstep's admission policies are not in force: {why}")),
        Guard::Proven(stamp) if *stamp != gate.policy => {
            return Err("Lockstep's admission policies have changed since the gate opened".to_owned());
        }
        Guard::Proven(_) => {}
    }
    let said_why = submission.comment.as_deref().is_some_and(|c| !c.trim().is_empty());
    let fault = match &submission.review {
        Some(review) if *review != gate.output_digest => "the review is of another output than the one that waits",
        None if wanted.require_review => {
            "the gate has requireReview, and the decision does not say which output was reviewed"
        }
        _ if wanted.not_by.as_deref() == Some(&submission.by) => {
            "the gate has fourEyes, and whoever made the run may not decide"
        }
        _ if wanted.revise && !submission.accepted && !said_why => "a rejection must say in a comment what to change",
        _ => return Ok(()),
    };
    Err(fault.to_owned())
}

/// What a decision is about, and when it was made.
pub struct About<'a> {
    pub produced: &'a str,
    pub scope_id: &'a str,
    pub at: &'a Time,
}

/// The gate with the decision in it: one rejection ends the round, acceptances of enough people open it.
pub fn decided(gate: &GateStatus, approvals: i32, submission: &Submission, about: &About<'_>) -> GateStatus {
    let decision = Decision {
        document_type: about.produced.to_owned(),
        scope_id: about.scope_id.to_owned(),
        accepted: submission.accepted,
        comment: submission.comment.clone(),
        decided_by: submission.by.clone(),
        decided_at: about.at.clone(),
        digest: gate.output_digest.clone(),
        round: gate.round,
    };
    let mut decided = gate.clone();
    if !has_decided(gate, &submission.by) {
        decided.decisions.push(decision);
    }
    // A round has far fewer: what goes is of rounds long past.
    let surplus = decided.decisions.len().saturating_sub(DECISIONS);
    decided.decisions.drain(..surplus);
    decided.state = state(&decided.decisions, gate.round, approvals);
    decided
}

/// The decisions that another run's gate was accepted with, as far as they count at this one: it asks for the same, a
/// person counts once, and whoever made this run not at all. When they were made, and over what, stays as it was.
pub fn taken_over(wanted: Option<&StepRunGate>, reuse: &Reuse) -> Vec<Decision> {
    let Some(gate) = reuse.gate.as_ref().filter(|gate| gate.compares == Comparison::Same) else {
        return Vec::new();
    };
    let mut decisions: Vec<Decision> = Vec::new();
    let not_by = wanted.and_then(|g| g.not_by.as_ref());
    for d in gate.decisions.iter().filter(|d| d.accepted && Some(&d.decided_by) != not_by) {
        if decisions.iter().all(|known| known.decided_by != d.decided_by) {
            let there = format!("accepted in StepRun {} ({})", reuse.step_run, reuse.uid);
            let words = d.comment.as_deref().filter(|c| !c.starts_with("accepted in StepRun "));
            let comment = words.map_or_else(|| there.clone(), |words| format!("{there}: {words}"));
            decisions.push(Decision { comment: Some(clip(&comment, 4096)), round: 1, ..d.clone() });
        }
    }
    decisions
}

/// What of another gate a StepRun carries with it: the acceptances of its last round.
pub fn reused(gate: &GateStatus, compares: Comparison) -> ReusedGate {
    let accepted = gate.decisions.iter().filter(|d| d.accepted && d.round == gate.round).take(16);
    let brief = |d: &Decision| Decision { comment: d.comment.as_deref().map(|c| clip(c, 1024)), ..d.clone() };
    ReusedGate { compares, decisions: accepted.map(brief).collect() }
}

/// Whether what was decided there opens this gate, too.
pub fn still_opens(wanted: Option<&StepRunGate>, reuse: &Reuse) -> bool {
    state(&taken_over(wanted, reuse), 1, wanted.map_or(1, |g| g.approvals)) == GateState::Accepted
}

/// What is said of a result that is taken over.
pub fn describe_reuse(step_run: &StepRun, reuse: &Reuse) -> String {
    let from = format!("the result of StepRun {} ({})", reuse.step_run, reuse.uid);
    let Some(wanted) = &step_run.spec.gate else { return from };
    let then: Vec<String> = reuse
        .gate
        .iter()
        .flat_map(|g| &g.decisions)
        .map(|d| format!("{} at {}", d.decided_by, d.decided_at.0))
        .collect();
    let then =
        if then.is_empty() { "accepted by nobody".to_owned() } else { format!("accepted by {}", then.join(", ")) };
    let gate = match reuse.gate.as_ref().map(|g| g.compares) {
        Some(Comparison::Same) if still_opens(Some(wanted), reuse) => "which counts here: the gate asks for the same",
        Some(Comparison::Same) => "which is not enough for this run, so it is asked for anew",
        _ => "but the gate asks for something else here, so it is asked for anew",
    };
    clip(&format!("{from}; gate {}: it was {then} there, {gate}", wanted.name), 900)
}

/// The state that the decisions of a round add up to.
pub fn state(decisions: &[Decision], round: i32, approvals: i32) -> GateState {
    let this_round = || decisions.iter().filter(|d| d.round == round);
    if this_round().any(|d| !d.accepted) {
        return GateState::Rejected;
    }
    let people: BTreeSet<&str> = this_round().map(|d| d.decided_by.as_str()).collect();
    let enough = i32::try_from(people.len()).unwrap_or(i32::MAX) >= approvals.max(1);
    if enough { GateState::Accepted } else { GateState::Waiting }
}

/// Whether what follows may go on: no gate, one whose `when` was false, or enough acceptances of its round.
pub fn can_proceed(wanted: Option<&StepRunGate>, gate: Option<&GateStatus>) -> bool {
    match (wanted, gate) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(_), Some(gate)) if gate.state == GateState::NotRequired => true,
        (Some(wanted), Some(gate)) => state(&gate.decisions, gate.round, wanted.approvals) == GateState::Accepted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn gate() -> GateStatus {
        GateStatus {
            state: GateState::Waiting,
            round: 1,
            output_digest: "d".into(),
            opened_at: Time(Timestamp::UNIX_EPOCH),
            deadline: None,
            policy: "p1".into(),
            commands: Vec::new(),
            decisions: Vec::new(),
        }
    }

    #[expect(clippy::fn_params_excessive_bools, reason = "a column of the tables")]
    fn mark(accepted: bool, review: Option<&str>) -> Submission {
        Submission { accepted, by: "ann".into(), comment: None, review: review.map(Into::into) }
    }

    fn wanted(approvals: i32) -> StepRunGate {
        StepRunGate { name: "g".into(), approvals, ..StepRunGate::default() }
    }

    fn output(step_run: &StepRun) -> Option<Value> {
        output_of(step_run, step_run.status.as_ref()?)
    }

    fn decide(gate: &GateStatus, approvals: i32, submission: &Submission) -> GateStatus {
        decided(gate, approvals, submission, &About { produced: "t", scope_id: "s", at: &Time(Timestamp::UNIX_EPOCH) })
    }

    #[test]
    fn only_a_proven_decision_about_this_output_counts() {
        let proven = |stamp: &str| Guard::Proven(stamp.into());
        let check = |submission: &Submission, guard: &Guard| admissible(&gate(), &wanted(1), submission, guard);
        assert_eq!(check(&mark(true, None), &proven("p1")), Ok(()));
        assert_eq!(check(&mark(true, Some("d")), &proven("p1")), Ok(()));
        assert!(check(&mark(true, Some("old")), &proven("p1")).is_err());
        assert!(check(&mark(true, None), &proven("p2")).is_err());
        assert!(check(&mark(true, None), &Guard::NotAsked).is_err());
        assert!(check(&mark(true, None), &Guard::Missing("gone".into())).is_err());
    }

    #[test]
    fn what_the_gate_asks_for_is_asked_of_every_decision() {
        let comment = |submission: Submission, text: &str| Submission { comment: Some(text.into()), ..submission };
        let review = StepRunGate { require_review: true, ..wanted(1) };
        let eyes = |who: &str| StepRunGate { not_by: Some(who.into()), ..wanted(1) };
        let revise = StepRunGate { revise: true, ..wanted(1) };
        for (name, gate_wanted, submission, fine) in [
            ("review given", &review, mark(true, Some("d")), true),
            ("review missing", &review, mark(true, None), false),
            ("rejection without review", &review, mark(false, None), false),
            ("another's run", &eyes("bob"), mark(true, None), true),
            ("their own run", &eyes("ann"), mark(true, None), false),
            ("their own run, rejected", &eyes("ann"), mark(false, None), false),
            ("revise, accepted", &revise, mark(true, None), true),
            ("revise, why", &revise, comment(mark(false, None), "shorter"), true),
            ("revise, no why", &revise, mark(false, None), false),
            ("revise, blank", &revise, comment(mark(false, None), "  "), false),
        ] {
            let verdict = admissible(&gate(), gate_wanted, &submission, &Guard::Proven("p1".into()));
            assert_eq!(verdict.is_ok(), fine, "{name}: {verdict:?}");
        }
    }

    #[test]
    fn a_gate_opens_only_by_an_acceptance_of_its_round() {
        let one = wanted(1);
        assert!(can_proceed(None, None));
        assert!(!can_proceed(Some(&one), None));
        assert!(!can_proceed(Some(&one), Some(&gate())));
        let accepted = decide(&gate(), 1, &mark(true, None));
        assert_eq!((accepted.state, can_proceed(Some(&one), Some(&accepted))), (GateState::Accepted, true));
        let rejected = decide(&gate(), 1, &mark(false, None));
        assert_eq!((rejected.state, can_proceed(Some(&one), Some(&rejected))), (GateState::Rejected, false));
        let later = GateStatus { round: 2, ..accepted };
        assert!(!can_proceed(Some(&one), Some(&later)), "an acceptance of an earlier round is none");
        let free = GateStatus { state: GateState::NotRequired, ..gate() };
        assert!(can_proceed(Some(&one), Some(&free)));
    }

    #[test]
    fn approvals_are_counted_by_people_and_rounds() {
        let by = |by: &str, accepted, round| Decision {
            document_type: "t".into(),
            scope_id: "s".into(),
            accepted,
            comment: None,
            decided_by: by.into(),
            decided_at: Time(Timestamp::UNIX_EPOCH),
            digest: "d".into(),
            round,
        };
        for (decisions, approvals, expected) in [
            (vec![], 1, GateState::Waiting),
            (vec![by("ann", true, 1)], 0, GateState::Waiting),
            (vec![by("ann", true, 2)], 1, GateState::Accepted),
            (vec![by("ann", true, 2)], 2, GateState::Waiting),
            (vec![by("ann", true, 2), by("ann", true, 2)], 2, GateState::Waiting),
            (vec![by("ann", true, 2), by("bob", true, 2)], 2, GateState::Accepted),
            (vec![by("ann", true, 1), by("bob", true, 2)], 2, GateState::Waiting),
            (vec![by("ann", true, 2), by("bob", false, 2)], 2, GateState::Rejected),
            (vec![by("ann", true, 2), by("bob", true, 2), by("eve", false, 2)], 2, GateState::Rejected),
            (vec![by("ann", false, 1), by("bob", true, 2)], 1, GateState::Accepted),
        ] {
            assert_eq!(state(&decisions, 2, approvals), expected, "{approvals} of {decisions:?}");
        }
        let twice = decide(&decide(&gate(), 2, &mark(true, None)), 2, &mark(false, None));
        assert_eq!(twice.decisions.len(), 1, "a person decides a round once");
    }

    #[test]
    fn an_approval_alone_gives_who_accepted() {
        let mut run = StepRun::new("s", crate::api::step_run::StepRunSpec::default());
        run.spec.gate = Some(wanted(2));
        let first = decide(&gate(), 2, &Submission { comment: Some("fine".into()), ..mark(true, None) });
        let status = |gate: &GateStatus| Some(StepRunStatus { gate: Some(gate.clone()), ..StepRunStatus::default() });
        run.status = status(&first);
        assert_eq!(output(&run), None);
        run.status = status(&decide(&first, 2, &Submission { by: "bob".into(), ..mark(true, None) }));
        let found = output(&run).expect("an output");
        assert_eq!(found.to_string(), r#"{"accepted":true,"decidedBy":"ann, bob","comment":"fine"}"#);
        run.spec.agent_id = "writer".into();
        assert_eq!(output(&run), None, "the agent's output is the agent's");
    }

    #[test]
    fn a_mark_without_identity_is_worthless() {
        let with = |pairs: &[(&str, &str)]| {
            let mut run = StepRun::new("s", crate::api::step_run::StepRunSpec::default());
            run.metadata.annotations = Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
            run
        };
        assert_eq!(submission(&with(&[])), None);
        assert!(matches!(submission(&with(&[(DECISION, "accepted")])), Some(Err(_))));
        assert!(matches!(submission(&with(&[(DECISION, "accepted"), (DECIDED_BY, "")])), Some(Err(_))));
        assert!(matches!(submission(&with(&[(DECISION, "yes"), (DECIDED_BY, "ann")])), Some(Err(_))));
        assert!(matches!(
            submission(&with(&[(DECISION, "rejected"), (DECIDED_BY, "ann")])),
            Some(Ok(Submission { accepted: false, .. }))
        ));
    }
}
