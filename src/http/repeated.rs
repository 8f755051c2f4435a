//! What somebody says again because its answer was lost: whether it is recorded already. Pure.

use super::decision_request::{AnswerRequest, DecisionRequest};
use crate::api::StepRun;
use crate::definition::digits;

/// A decision of this person, in the round that it names, or in the current one.
pub fn is_decided(step: &StepRun, user: &str, said: &DecisionRequest) -> bool {
    let Some(gate) = step.status.as_ref().and_then(|status| status.gate.as_ref()) else { return false };
    let own = gate.decisions.iter().rfind(|decision| decision.decided_by == user);
    own.is_some_and(|own| {
        let is_meant = match &said.review {
            Some(review) => *review == own.digest,
            None => own.round == gate.round,
        };
        is_meant && own.accepted == said.accepted && own.comment == said.comment
    })
}

/// An answer of this person, or the newest order, in the same words.
pub fn is_answered(step: &StepRun, user: &str, said: &AnswerRequest) -> bool {
    let Some(status) = &step.status else { return false };
    if let Some(value) = &said.answer {
        let answers = status.questions.iter().filter_map(|asked| asked.answer.as_ref()).chain(&status.answer);
        let is_same = |text: &str| digits::read(text).is_ok_and(|known| known == *value);
        return answers.filter(|answer| answer.by == user).any(|answer| is_same(&answer.value));
    }
    let last = status.actions.last();
    last.is_some_and(|last| last.by == user && Some(last.action) == said.action && last.comment == said.comment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::step_run::Act;
    use serde_json::{Value, json};

    const AT: &str = "2026-11-21T10:00:00Z";

    fn step(status: &Value) -> StepRun {
        let spec = json!({"workflow": {"name": "shop-1", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "plan", "agentId": "planner", "parameters": "{}", "inputDigest": "d"});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "shop-plan"}, "spec": spec, "status": status}))
        .expect("a step")
    }

    #[test]
    #[expect(clippy::large_stack_arrays, reason = "whole StepRuns in a table")]
    fn a_decision_is_known_by_who_and_what_and_of_which_round() {
        let of = |round: i32, accepted: bool| {
            json!({"documentType": "plan", "scopeId": "u", "accepted": accepted, "comment": "no", "decidedBy": "ann",
                "decidedAt": AT, "digest": format!("sha256:{round}"), "round": round})
        };
        let gate = |round: i32, decisions: Value| {
            step(&json!({"gate": {"state": "Waiting", "round": round, "outputDigest": format!("sha256:{round}"),
                "openedAt": AT, "policy": "p", "decisions": decisions}}))
        };
        let said = |accepted, review: Option<&str>| DecisionRequest {
            accepted,
            comment: Some("no".to_owned()),
            review: review.map(str::to_owned),
        };
        for (what, step, user, said, expected) in [
            ("the same", gate(1, json!([of(1, false)])), "ann", said(false, None), true),
            ("by name", gate(2, json!([of(1, false)])), "ann", said(false, Some("sha256:1")), true),
            ("of an earlier round, not named", gate(2, json!([of(1, false)])), "ann", said(false, None), false),
            ("of the next round", gate(2, json!([of(1, false)])), "ann", said(false, Some("sha256:2")), false),
            ("another", gate(1, json!([of(1, false)])), "ann", said(true, None), false),
            ("somebody else's", gate(1, json!([of(1, false)])), "bob", said(false, None), false),
            ("none", gate(1, json!([])), "ann", said(false, None), false),
        ] {
            assert_eq!(is_decided(&step, user, &said), expected, "{what}");
        }
    }

    #[test]
    fn an_answer_is_known_by_who_and_what() {
        let answer = |value: &str| json!({"value": value, "by": "ann", "at": AT});
        let asked = json!({"question": "How much?", "attempt": 1, "askedAt": AT, "answer": answer("{\"a\": 1}")});
        let order = json!({"action": "retry", "wait": "RetriesSpent", "attempt": 3, "by": "ann", "at": AT});
        let long =
            json!({"question": "Which?", "attempt": 1, "askedAt": AT, "answer": answer("12345678901234567890123")});
        let step = step(&json!({"answer": answer("5"), "questions": [asked, long], "actions": [order]}));
        let value = |value: Value| AnswerRequest { answer: Some(value), action: None, comment: None, wait: None };
        let act = |act| AnswerRequest { answer: None, action: Some(act), comment: None, wait: None };
        for (user, said, expected) in [
            ("ann", value(json!(5)), true),
            ("ann", value(json!({"a": 1})), true),
            ("ann", value(json!(6)), false),
            ("ann", value(json!("12345678901234567890123")), true),
            ("ann", value(json!(1.234_567_890_123_456_8e22)), false),
            ("bob", value(json!(5)), false),
            ("ann", act(Act::Retry), true),
            ("ann", act(Act::Fail), false),
            ("bob", act(Act::Retry), false),
        ] {
            assert_eq!(is_answered(&step, user, &said), expected, "{user}");
        }
    }
}
