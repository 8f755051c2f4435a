//! The course of a run as facts, each with an id that follows from what is latched in status: whoever asks again, of this
//! process or of its successor, gets the same ids. Pure.

#![expect(clippy::disallowed_macros, reason = "what the derive of a schema writes")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use schemars::JsonSchema;
use serde::Serialize;

use super::history::label;
use super::target::{waits_at_gate, waits_for_answer};
use crate::api::name;
use crate::api::step_run::{AttemptResult, WaitKind};
use crate::api::usage::Usage;
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};

/// Something that happened, and stays so.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    pub key: FactKey,
    pub payload: EventPayload,
}

/// Orders the facts of a run, and names each: facts of the same second stand in the order in which they usually happen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FactKey {
    seconds: i64,
    rank: u8,
    whose: String,
    what: String,
}

impl FactKey {
    /// `SECONDS.RANK.WHOSE.WHAT`
    pub fn id(&self) -> String {
        format!("{}.{}.{}.{}", self.seconds, self.rank, self.whose, self.what)
    }

    pub fn parse(id: &str) -> Option<Self> {
        let mut parts = id.splitn(4, '.');
        Some(Self {
            seconds: parts.next()?.parse().ok()?,
            rank: parts.next()?.parse().ok()?,
            whose: parts.next()?.to_owned(),
            what: parts.next()?.to_owned(),
        })
    }

    /// What happened, among all that happens to the same object.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// When it happened.
    pub fn seconds(&self) -> i64 {
        self.seconds
    }

    /// Whether somebody who has seen that one has surely seen this one. Times come from several clocks, and some are written
    /// down later than it happened: ten minutes cover it. Nothing follows the end of the run.
    pub fn is_long_before(&self, seen: &Self) -> bool {
        usize::from(seen.rank) >= RANKS.len() || self.seconds < seen.seconds.saturating_sub(OVERLAP_SECONDS)
    }
}

/// In the order in which they usually happen.
const RANKS: [&str; 9] = [
    "run.created",
    "run.started",
    "step.started",
    "step.claimed",
    "attempt.ended",
    "step.waiting",
    "step.decided",
    "step.answered",
    "step.ended",
];

/// How the names of waits begin: at the gate of a round, for the decision on an action, for an answer.
pub const GATE: &str = "gate";
pub const REQUEST: &str = "request";
pub const WAIT: &str = "wait-";

/// What is told of it. What does not belong to the event is absent.
#[derive(Serialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EventPayload {
    /// What happened; the name of the event.
    pub event: &'static str,
    /// Names the fact, by whatever stream it is told; absent where only the newest counts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub run: String,
    /// The step, with the keys of the items around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_run: Option<String>,
    pub at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round: Option<i32>,
    /// How an attempt ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<AttemptResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<WaitKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<bool>,
    /// Who decided or answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
    /// What models have read and written for the attempt, as far as the agent has said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<i64>,
    /// What is said or asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Makes the facts of one object: of the run itself, or of one of its steps.
struct FactBuilder {
    /// A short digest of its UID.
    whose: String,
    base: EventPayload,
}

impl FactBuilder {
    fn fact(&self, event: &'static str, what: &str, at: &Time, tell: impl FnOnce(&mut EventPayload)) -> Fact {
        let rank = RANKS.iter().position(|known| *known == event).unwrap_or(RANKS.len());
        let key = FactKey {
            seconds: at.0.as_second(),
            rank: u8::try_from(rank).unwrap_or_default(),
            whose: self.whose.clone(),
            what: what.to_owned(),
        };
        let mut payload = EventPayload { event, id: key.id(), at: Some(at.clone()), ..self.base.clone() };
        tell(&mut payload);
        Fact { key, payload }
    }
}

fn short(uid: Option<&String>) -> String {
    name::digest_bytes(uid.map_or("", String::as_str).as_bytes())[7..19].to_owned()
}

/// Of the run itself.
pub fn of_run(run: &Workflow) -> Vec<Fact> {
    let base = EventPayload { run: run.name_any(), ..EventPayload::default() };
    let builder = FactBuilder { whose: short(run.metadata.uid.as_ref()), base };
    let mut facts = Vec::new();
    facts.extend(run.metadata.creation_timestamp.as_ref().map(|at| builder.fact("run.created", "created", at, |_| {})));
    let Some(status) = &run.status else { return facts };
    facts.extend(status.started_at.as_ref().map(|at| builder.fact("run.started", "started", at, |_| {})));
    facts.extend(status.completed_at.as_ref().map(|at| {
        let succeeded = crate::api::condition::get(&status.conditions, "Succeeded");
        builder.fact("run.ended", "ended", at, |payload| {
            payload.phase = status.phase;
            payload.message = succeeded.map(|c| c.message.clone()).filter(|message| !message.is_empty());
        })
    }));
    facts
}

/// That the run waits for documents, as long as it does: by their types, so that each that are missing are told once. It stands in
/// no stream, which tells it by the phase of the run.
pub fn missing_documents(run: &Workflow) -> Option<Fact> {
    let status = run.status.as_ref().filter(|status| status.completed_at.is_none())?;
    let message = missing(&status.pending_documents)?;
    let waits = crate::api::condition::get(&status.conditions, "Waiting").filter(|waits| waits.status == "True")?;
    let base = EventPayload { run: run.name_any(), ..EventPayload::default() };
    let builder = FactBuilder { whose: short(run.metadata.uid.as_ref()), base };
    let what = format!("documents-{}", short(Some(&message)));
    let since = &waits.last_transition_time;
    Some(builder.fact("run.waiting", &what, since, |payload| payload.message = Some(message)))
}

fn missing(types: &[String]) -> Option<String> {
    (!types.is_empty()).then(|| format!("documents are missing: {}", types.join(", ")))
}

/// Of one step.
pub fn of_step(step: &StepRun) -> Vec<Fact> {
    let builder = builder_of(step);
    let Some(status) = &step.status else { return Vec::new() };
    let mut facts = Vec::new();
    facts.extend(status.started_at.as_ref().map(|at| builder.fact("step.started", "started", at, |_| {})));
    let claims = status.attempts.iter().filter_map(|a| Some((a.number, a.started_at.as_ref()?)));
    let claim = status.agent.as_ref().and_then(|agent| agent.claim.as_ref()).map(|claim| (claim.attempt, &claim.at));
    for (number, at) in claims.chain(claim) {
        let claimed =
            builder.fact("step.claimed", &format!("claimed{number}"), at, |payload| payload.attempt = Some(number));
        if facts.last() != Some(&claimed) && !facts.contains(&claimed) {
            facts.push(claimed);
        }
    }
    for attempt in &status.attempts {
        facts.push(builder.fact(
            "attempt.ended",
            &format!("attempt{}", attempt.number),
            &attempt.completed_at,
            |payload| {
                payload.attempt = Some(attempt.number);
                payload.round = Some(attempt.round);
                payload.result = Some(attempt.result);
                payload.message.clone_from(&attempt.message);
            },
        ));
    }
    waits(step, &builder, &mut facts);
    decisions_and_answers(step, &builder, &mut facts);
    facts.extend(status.completed_at.as_ref().map(|at| {
        builder.fact("step.ended", "ended", at, |payload| {
            payload.phase = status.phase;
            payload.message = status.error.as_ref().map(|error| error.message.clone());
        })
    }));
    facts
}

fn builder_of(step: &StepRun) -> FactBuilder {
    let base = EventPayload {
        run: step.spec.workflow.name.clone(),
        step: Some(label(step)),
        step_run: Some(step.name_any()),
        ..EventPayload::default()
    };
    FactBuilder { whose: short(step.metadata.uid.as_ref()), base }
}

/// The waits of a step: gates that are open or were decided, requests for approval, and the open question.
fn waits(step: &StepRun, builder: &FactBuilder, facts: &mut Vec<Fact>) {
    let Some(status) = &step.status else { return };
    if let Some(gate) = status.gate.as_ref().filter(|gate| waits_at_gate(step) || !gate.decisions.is_empty()) {
        facts.push(builder.fact("step.waiting", &format!("{GATE}{}", gate.round), &gate.opened_at, |payload| {
            payload.round = Some(gate.round);
            payload.message = step.spec.gate.as_ref().and_then(|gate| gate.message.clone());
        }));
    }
    // They are kept as they were asked for, so that the place of one in the list is its name.
    for (number, request) in status.approval_requests.iter().enumerate() {
        facts.push(builder.fact("step.waiting", &format!("{REQUEST}{number}"), &request.gate.opened_at, |payload| {
            payload.attempt = Some(request.attempt);
            payload.message = Some(request.action.clone());
        }));
    }
    if let Some(wait) = status.waiting_for.as_ref().filter(|_| waits_for_answer(step)) {
        facts.push(builder.fact("step.waiting", &format!("{WAIT}{}", wait.id), &wait.since, |payload| {
            payload.kind = Some(wait.kind);
            payload.message = Some(wait.question.clone());
        }));
    }
}

/// What people decided and answered in a step.
fn decisions_and_answers(step: &StepRun, builder: &FactBuilder, facts: &mut Vec<Fact>) {
    let Some(status) = &step.status else { return };
    for decision in status.gate.iter().flat_map(|gate| &gate.decisions) {
        // One person decides once in a round.
        let who = short(Some(&decision.decided_by));
        let what = format!("decided{}-{who}", decision.round);
        facts.push(builder.fact("step.decided", &what, &decision.decided_at, |payload| {
            payload.round = Some(decision.round);
            payload.accepted = Some(decision.accepted);
            payload.by = Some(decision.decided_by.clone());
            payload.message.clone_from(&decision.comment);
        }));
    }
    for (number, request) in status.approval_requests.iter().enumerate() {
        for decision in &request.gate.decisions {
            let what = format!("{REQUEST}{number}-{}", short(Some(&decision.decided_by)));
            facts.push(builder.fact("step.decided", &what, &decision.decided_at, |payload| {
                payload.attempt = Some(request.attempt);
                payload.accepted = Some(decision.accepted);
                payload.by = Some(decision.decided_by.clone());
                payload.message.clone_from(&decision.comment);
            }));
        }
    }
    let asked = status.questions.iter().enumerate();
    let answers = asked.filter_map(|(number, asked)| Some((format!("answer{number}"), asked.answer.as_ref()?)));
    let own = status.answer.iter().map(|answer| ("answer".to_owned(), answer));
    for (what, answer) in own.chain(answers) {
        facts.push(builder.fact("step.answered", &what, &answer.at, |payload| payload.by = Some(answer.by.clone())));
    }
    for action in &status.actions {
        facts.push(builder.fact("step.answered", &format!("action{}", action.attempt), &action.at, |payload| {
            payload.by = Some(action.by.clone());
            payload.attempt = Some(action.attempt);
            payload.message = Some(action.action.past().to_owned());
        }));
    }
}

/// How far the agent says it has come: only the newest counts, so it has no id.
pub fn progress(step: &StepRun) -> Option<EventPayload> {
    let status = step.status.as_ref().filter(|status| status.completed_at.is_none())?;
    let agent = status.agent.as_ref()?;
    let progress = agent.progress.as_ref()?;
    Some(EventPayload {
        event: "step.progress",
        at: Some(progress.at.clone()),
        percent: Some(progress.percent),
        tokens: agent.usage.as_ref().map(Usage::tokens),
        message: Some(progress.message.clone()),
        attempt: Some(status.attempt),
        ..builder_of(step).base
    })
}

/// Where the run stands: only the newest counts.
pub fn phase(run: &Workflow) -> EventPayload {
    let status = run.status.as_ref();
    let waiting = status.and_then(|status| status.waiting.as_ref()).map(|waiting| waiting.summary.clone());
    EventPayload {
        event: "run.phase",
        run: run.name_any(),
        phase: Some(status.and_then(|status| status.phase).unwrap_or_default()),
        message: waiting.or_else(|| missing(&status?.pending_documents)),
        ..EventPayload::default()
    }
}

const OVERLAP_SECONDS: i64 = 600;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(second: u32) -> String {
        format!("2026-11-21T10:00:{second:02}Z")
    }

    fn step(status: &Value) -> StepRun {
        let spec = json!({"workflow": {"name": "shop", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "plan", "agentId": "planner", "parameters": "{}", "inputDigest": "d", "gate": {"name": "plan"}});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "shop-plan", "uid": "s"}, "spec": spec, "status": status}))
        .expect("a step")
    }

    fn claim(number: i32, second: u32) -> Value {
        json!({"attempt": number, "id": "x", "podName": "p", "podUID": "q", "at": at(second)})
    }

    fn ids(status: &Value) -> Vec<String> {
        of_step(&step(status)).into_iter().map(|fact| fact.payload.id).collect()
    }

    /// Whatever was told once is told again of every later status, with the same id.
    #[test]
    fn a_fact_keeps_its_id_through_all_that_follows() {
        let attempt = json!({"number": 1, "round": 1, "result": "Retryable", "startedAt": at(2), "completedAt": at(4)});
        let second = json!({"number": 2, "round": 1, "result": "Succeeded", "startedAt": at(6), "completedAt": at(8)});
        let gate = |decisions: Value, state: &str| {
            json!({"state": state, "round": 1, "outputDigest": "sha256:a",
            "openedAt": at(9), "policy": "p", "decisions": decisions})
        };
        let decision = json!([{"documentType": "plan", "scopeId": "u", "accepted": true, "decidedBy": "ann", "decidedAt": at(12),
            "digest": "sha256:a", "round": 1}]);
        let course = [
            json!({"phase": "Running", "startedAt": at(1)}),
            json!({"phase": "Running", "startedAt": at(1), "agent": {"claim": claim(1, 2)}}),
            json!({"phase": "Running", "startedAt": at(1), "attempt": 2, "attempts": [attempt], "agent": {"claim": claim(1, 2)}}),
            json!({"phase": "Running", "startedAt": at(1), "attempt": 2, "attempts": [attempt], "agent": {"claim": claim(2, 6)}}),
            json!({"phase": "WaitingForAcceptance", "startedAt": at(1), "attempt": 2, "attempts": [attempt, second],
                "agent": {"claim": claim(2, 6)}, "gate": gate(json!([]), "Waiting")}),
            json!({"phase": "Completed", "startedAt": at(1), "attempt": 2, "attempts": [attempt, second], "completedAt": at(12),
                "agent": {"claim": claim(2, 6)}, "gate": gate(decision, "Accepted")}),
        ];
        let mut before: Vec<String> = Vec::new();
        for status in &course {
            let now = ids(status);
            assert!(before.iter().all(|id| now.contains(id)), "{before:?} then {now:?}");
            let mut unique = now.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), now.len(), "an id stands twice: {now:?}");
            before = now;
        }
        let names: Vec<&str> = of_step(&step(&course[5])).iter().map(|fact| fact.payload.event).collect();
        assert_eq!(
            names,
            [
                "step.started",
                "step.claimed",
                "step.claimed",
                "attempt.ended",
                "attempt.ended",
                "step.waiting",
                "step.decided",
                "step.ended"
            ]
        );
    }

    #[test]
    fn progress_is_told_while_the_step_runs() {
        let said = json!({"percent": 40, "message": "half way", "at": at(3)});
        let found = progress(&step(&json!({"phase": "Running", "agent": {"progress": said}}))).expect("progress");
        assert_eq!(
            (found.percent, found.message.as_deref(), found.step.as_deref()),
            (Some(40), Some("half way"), Some("plan"))
        );
        assert_eq!(found.tokens, None, "the agent says nothing of it");
        let used = json!({"tokensIn": 900, "tokensOut": 80});
        let running = json!({"phase": "Running", "agent": {"progress": said, "usage": used}});
        assert_eq!(progress(&step(&running)).and_then(|payload| payload.tokens), Some(980));
        assert_eq!(
            progress(&step(&json!({"phase": "Failed", "completedAt": at(4), "agent": {"progress": said}}))),
            None
        );
    }

    #[test]
    fn an_id_says_what_was_surely_seen() {
        let facts =
            of_step(&step(&json!({"startedAt": at(1), "agent": {"claim": claim(1, 1)}, "completedAt": at(30)})));
        let keys: Vec<FactKey> = facts.iter().map(|fact| fact.key.clone()).collect();
        assert!(keys.is_sorted(), "{keys:?}");
        for (fact, key) in facts.iter().zip(&keys) {
            assert_eq!(FactKey::parse(&fact.payload.id).as_ref(), Some(key));
        }
        let later = FactKey { seconds: keys[0].seconds + OVERLAP_SECONDS + 1, ..keys[0].clone() };
        assert!(keys[0].is_long_before(&later) && !keys[2].is_long_before(&later) && !later.is_long_before(&keys[0]));
        for other in ["", "x", "1.2.3", "x.1.a.b", "1.x.a.b", "99999999999999999999.1.a.b", "1.300.a.b"] {
            assert_eq!(FactKey::parse(other), None, "{other}");
        }
    }
}
