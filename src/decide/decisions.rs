//! The newest decisions at the gates of a run, for its status. All of them stand in its StepRuns.

use crate::api::limits::DECISIONS_SHOWN;
use crate::api::step_run::{GateState, StepRun};
use crate::api::workflow::AcceptanceDecision;

/// What was decided at a StepRun's gate, in the rounds that are over.
pub fn of(step_run: &StepRun) -> Vec<AcceptanceDecision> {
    let Some(gate) = step_run.status.as_ref().and_then(|s| s.gate.as_ref()) else { return Vec::new() };
    let over = gate.decisions.iter().filter(|d| gate.state != GateState::Waiting || d.round < gate.round);
    let told = over.map(|d| AcceptanceDecision {
        step_run: step_run.metadata.name.clone().unwrap_or_default(),
        document_type: d.document_type.clone(),
        scope_id: d.scope_id.clone(),
        accepted: d.accepted,
        decided_by: d.decided_by.clone(),
        decided_at: d.decided_at.clone(),
    });
    told.collect()
}

/// The newest of them, oldest first. Those of one StepRun stay in the order in which they were recorded.
pub fn newest(mut decisions: Vec<AcceptanceDecision>) -> Vec<AcceptanceDecision> {
    decisions.sort_by_cached_key(|d| (d.decided_at.0, d.step_run.clone()));
    decisions.drain(..decisions.len().saturating_sub(DECISIONS_SHOWN));
    decisions
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn decided(state: &str, round: i32, decisions: &Value) -> Vec<String> {
        let mut made = StepRun::new("s", crate::api::StepRunSpec::default());
        let gate = json!({"state": state, "round": round, "outputDigest": "o", "openedAt": "1970-01-01T00:00:00Z",
            "policy": "p", "decisions": decisions});
        made.status = serde_json::from_value(json!({"gate": gate})).expect("a status");
        of(&made).into_iter().map(|d| format!("{} {}", d.decided_by, d.accepted)).collect()
    }

    fn decision(by: &str, round: i32, second: usize) -> Value {
        json!({"documentType": "plan", "scopeId": "u", "accepted": round > 1, "decidedBy": by, "comment": "x",
            "decidedAt": format!("1970-01-01T00:00:{second:02}Z"), "digest": "o", "round": round})
    }

    #[test]
    fn only_what_a_gate_no_longer_waits_for_is_told() {
        let both = json!([decision("ann", 1, 0), decision("bob", 2, 1)]);
        assert_eq!(decided("Waiting", 2, &both), ["ann false"]);
        assert_eq!(decided("Accepted", 2, &both), ["ann false", "bob true"]);
        assert_eq!(decided("Waiting", 1, &json!([])), [""; 0]);
        assert!(of(&StepRun::new("s", crate::api::StepRunSpec::default())).is_empty());
    }

    #[test]
    fn the_newest_stay_in_their_order() {
        let mut made = StepRun::new("s", crate::api::StepRunSpec::default());
        let all: Vec<Value> = (0..30).rev().map(|n| decision(&format!("p{n}"), 2, n)).collect();
        let gate = json!({"state": "Accepted", "round": 2, "outputDigest": "o", "openedAt": "1970-01-01T00:00:00Z",
            "policy": "p", "decisions": all});
        made.status = serde_json::from_value(json!({"gate": gate})).expect("a status");
        let kept: Vec<String> = newest(of(&made)).into_iter().map(|d| d.decided_by).collect();
        assert_eq!(kept, (20..30).map(|n| format!("p{n}")).collect::<Vec<_>>());
    }
}
