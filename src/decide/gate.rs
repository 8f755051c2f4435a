//! Gates: what a reviewer's mark on a StepRun is worth.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::condition::clip;
use crate::api::name::{self, COMMENT, DECIDED_BY, DECISION, REVIEW};
use crate::api::step_run::{Decision, GateState, GateStatus, StepRun};

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
pub struct Letter {
    pub accepted: bool,
    pub by: String,
    pub comment: Option<String>,
    pub review: Option<String>,
}

/// What lies in the mailbox: nothing, something worthless and why, or a decision.
pub fn letter(step_run: &StepRun) -> Option<Result<Letter, String>> {
    let annotations = step_run.metadata.annotations.as_ref()?;
    let decision = annotations.get(DECISION)?;
    let Some(by) = annotations.get(DECIDED_BY).filter(|by| !by.is_empty()) else {
        return Some(Err(format!("a decision without {DECIDED_BY} proves no identity")));
    };
    let accepted = match decision.as_str() {
        "accepted" => true,
        "rejected" => false,
        other => {
            return Some(Err(format!("{DECISION} must be accepted or rejected, not {other:?}")));
        }
    };
    Some(Ok(Letter {
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

/// Whether a decision may count for the open gate; the error says why not.
pub fn admissible(gate: &GateStatus, letter: &Letter, guard: &Guard) -> Result<(), String> {
    match guard {
        Guard::NotAsked => Err("the admission policies were not checked".to_owned()),
        Guard::Missing(why) => Err(format!("the admission policies do not stand: {why}")),
        Guard::Proven(stamp) if *stamp != gate.policy => {
            Err("the admission policies changed since the gate opened".to_owned())
        }
        Guard::Proven(_) if letter.review.as_ref().is_some_and(|r| *r != gate.output_digest) => {
            Err("the review names another output".to_owned())
        }
        Guard::Proven(_) => Ok(()),
    }
}

/// The gate with the decision in it: one rejection ends the round, one acceptance opens it.
pub fn decided(gate: &GateStatus, letter: &Letter, (document_type, scope_id): (&str, &str), now: &Time) -> GateStatus {
    let decision = Decision {
        document_type: document_type.to_owned(),
        scope_id: scope_id.to_owned(),
        accepted: letter.accepted,
        comment: letter.comment.clone(),
        decided_by: letter.by.clone(),
        decided_at: now.clone(),
        digest: gate.output_digest.clone(),
        round: gate.round,
    };
    let mut decided = gate.clone();
    if !decided.decisions.iter().any(|d| d.decided_by == letter.by && d.round == gate.round) {
        decided.decisions.push(decision);
    }
    decided.state = state(&decided.decisions, gate.round);
    decided
}

/// The state that the decisions of a round add up to.
pub fn state(decisions: &[Decision], round: i32) -> GateState {
    let mut this_round = decisions.iter().filter(|d| d.round == round).peekable();
    if this_round.peek().is_none() {
        return GateState::Waiting;
    }
    if this_round.all(|d| d.accepted) { GateState::Accepted } else { GateState::Rejected }
}

/// Whether what follows a document may go on: no gate, or its round accepted.
pub fn can_proceed(gate: Option<&GateStatus>) -> bool {
    gate.is_none_or(|gate| state(&gate.decisions, gate.round) == GateState::Accepted)
}

/// What a step of approval alone gives: how its gate was decided.
pub fn output(step_run: &StepRun) -> Option<serde_json::Value> {
    if !step_run.spec.agent_id.is_empty() || step_run.spec.ask.is_some() {
        return None;
    }
    let decision = step_run.status.as_ref()?.gate.as_ref()?.decisions.last()?;
    let fields: [(&str, serde_json::Value); 3] = [
        ("accepted", decision.accepted.into()),
        ("decidedBy", decision.decided_by.clone().into()),
        ("comment", decision.comment.clone().into()),
    ];
    Some(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
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
            policy: "p1".into(),
            decisions: Vec::new(),
        }
    }

    fn mark(accepted: bool, review: Option<&str>) -> Letter {
        Letter { accepted, by: "ann".into(), comment: None, review: review.map(Into::into) }
    }

    #[test]
    fn only_a_proven_decision_about_this_output_counts() {
        let proven = |stamp: &str| Guard::Proven(stamp.into());
        assert_eq!(admissible(&gate(), &mark(true, None), &proven("p1")), Ok(()));
        assert_eq!(admissible(&gate(), &mark(true, Some("d")), &proven("p1")), Ok(()));
        assert!(admissible(&gate(), &mark(true, Some("old")), &proven("p1")).is_err());
        assert!(admissible(&gate(), &mark(true, None), &proven("p2")).is_err());
        assert!(admissible(&gate(), &mark(true, None), &Guard::NotAsked).is_err());
        assert!(admissible(&gate(), &mark(true, None), &Guard::Missing("gone".into())).is_err());
    }

    #[test]
    fn a_gate_opens_only_by_an_acceptance_of_its_round() {
        assert!(can_proceed(None));
        assert!(!can_proceed(Some(&gate())));
        let now = Time(Timestamp::UNIX_EPOCH);
        let accepted = decided(&gate(), &mark(true, None), ("t", "s"), &now);
        assert_eq!((accepted.state, can_proceed(Some(&accepted))), (GateState::Accepted, true));
        let rejected = decided(&gate(), &mark(false, None), ("t", "s"), &now);
        assert_eq!((rejected.state, can_proceed(Some(&rejected))), (GateState::Rejected, false));
        let later = GateStatus { round: 2, ..accepted };
        assert!(!can_proceed(Some(&later)), "an acceptance of an earlier round is none");
    }

    #[test]
    fn a_mark_without_identity_is_worthless() {
        let with = |pairs: &[(&str, &str)]| {
            let mut run = StepRun::new("s", crate::api::step_run::StepRunSpec::default());
            run.metadata.annotations = Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
            run
        };
        assert_eq!(letter(&with(&[])), None);
        assert!(matches!(letter(&with(&[(DECISION, "accepted")])), Some(Err(_))));
        assert!(matches!(letter(&with(&[(DECISION, "accepted"), (DECIDED_BY, "")])), Some(Err(_))));
        assert!(matches!(letter(&with(&[(DECISION, "yes"), (DECIDED_BY, "ann")])), Some(Err(_))));
        assert!(matches!(
            letter(&with(&[(DECISION, "rejected"), (DECIDED_BY, "ann")])),
            Some(Ok(Letter { accepted: false, .. }))
        ));
    }
}
