//! `ask`: what an agent asks people, held against what was asked and answered before. It is written with the report, or before
//! it where the agent waits in its pod: the same write again writes nothing, so that a lost reply or a gateway that dies asks
//! nobody twice.

#![expect(clippy::disallowed_macros, reason = "a schema is JSON")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use serde_json::{Map, Value, json};

use super::attempt::Asked;
use super::auth::Caller;
use super::cluster::{Failure, add, patch_status};
use super::judge::clean;
use super::refusal::{Refusal, Result};
use super::{Gateway, attempt, evaluate};
use crate::api::condition::clip;
use crate::api::limits::{LONGEST_WAIT, QUESTION_KEY_BYTES};
use crate::api::step_run::{AgentQuestion, AskedQuestion, StepRun, StepRunStatus};
use crate::decide::question::{self, Sorted};
use crate::decide::{approval, claim};
use crate::definition::digits;
use crate::protocol::context::GivenAnswer;
use crate::protocol::{AskReply, AskRequest, AttemptRef, Question};

/// Decisions on a StepRun that others keep writing to.
const ROUNDS: usize = 6;

/// What was answered before, and whether the rest may be asked. Where the agent waits in its pod, the rest is put to people.
pub async fn ask(gateway: &Gateway, caller: &Caller, request: Asked<AskRequest>) -> Result<AskReply> {
    let (who, body) = (&request.attempt, &request.body);
    if body.wait_seconds.is_some_and(|seconds| !(1..=LONGEST_WAIT).contains(&seconds)) {
        return Err(Refusal::bad_request(format!("waitSeconds: must be 1 to {LONGEST_WAIT}")));
    }
    for _ in 0..ROUNDS {
        let step_run = attempt::read(gateway, who).await?;
        attempt::stands(&step_run, who)?;
        attempt::holds(&step_run, who, caller)?;
        let status = attempt::status(&step_run);
        let sorted = sorted(gateway, who, &status, &body.questions).await?;
        if let Some(seconds) = body.wait_seconds
            && let Err(failure) = put(gateway, who, &step_run, &sorted.open, seconds).await
        {
            if !failure.is_outrun() {
                return Err(failure.into());
            }
            gateway.metrics.conflicts.inc();
            continue;
        }
        let known = |(name, text): (String, String)| (name, value(&text));
        let open = sorted.open.iter().map(|question| question.name().to_owned()).collect();
        return Ok(AskReply { answers: sorted.answered.into_iter().map(known).collect(), open });
    }
    Err(Refusal::unavailable("the StepRun is being written to"))
}

/// Writes down what the attempt waits for; nothing where that is there.
async fn put(
    gateway: &Gateway,
    who: &AttemptRef,
    step_run: &StepRun,
    open: &[AgentQuestion],
    seconds: i64,
) -> std::result::Result<(), Failure> {
    let now = gateway.clock.now();
    let until = Time(now.0.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now.0));
    let Some(asking) = question::wait_for(&attempt::status(step_run), open, &now, &until) else { return Ok(()) };
    // It says all that is asked, so nobody may have written in between.
    let mut operations = attempt::tests(claim::report_preconditions(&who.uid, who.attempt, &attempt::id_digest(who)));
    operations.extend(attempt::tests(claim::claim_preconditions(step_run)));
    operations.push(add("/status/agent/asking", &asking));
    patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await
}

/// What the report is to put to people; nothing where the agent has requested approvals alone. What they answered while it was on its way is in it all the same, if the attempt waited
/// for it: then another attempt goes on at once.
pub async fn open(
    gateway: &Gateway,
    who: &AttemptRef,
    step_run: &StepRun,
    questions: &[Question],
) -> Result<Vec<AgentQuestion>> {
    if questions.is_empty() && approval::has_requested(step_run, who.attempt) {
        return Ok(Vec::new());
    }
    let status = &attempt::status(step_run);
    let open = sorted(gateway, who, status, questions).await?.open;
    let waited = status.questions.iter().any(|asked| asked.attempt == who.attempt);
    if open.is_empty() && !waited {
        return Err(Refusal::bad_request("questions: all of them are answered already"));
    }
    Ok(open)
}

async fn sorted(gateway: &Gateway, who: &AttemptRef, status: &StepRunStatus, questions: &[Question]) -> Result<Sorted> {
    let asked: std::result::Result<Vec<AgentQuestion>, String> = questions.iter().enumerate().map(asked).collect();
    let sorted = asked.and_then(|asked| question::sort(status, asked)).map_err(Refusal::bad_request)?;
    let schema = |asked: &AgentQuestion| Some((asked.name().to_owned(), schema(asked.schema.as_deref()?)?));
    let schemas: Vec<(String, Map<String, Value>)> = sorted.open.iter().filter_map(schema).collect();
    let rounds = schemas.len();
    let checked = evaluate::steadily(gateway, who, rounds, schemas, |schemas, evaluator| {
        let fault = |name: &str, fault: &str| format!("the schema of {:?}: {fault}", clip(name, QUESTION_KEY_BYTES));
        schemas.iter().try_for_each(|(name, schema)| evaluator.check(schema).map_err(|why| fault(name, &why)))
    });
    checked.await?.map_err(Refusal::bad_request)?;
    Ok(sorted)
}

/// As it is stored; an error where it cannot be meant.
fn asked((index, question): (usize, &Question)) -> std::result::Result<AgentQuestion, String> {
    let fault = |words: &str| Err(format!("questions[{index}].{words}"));
    let schema = match (&question.choices, &question.schema) {
        (Some(_), Some(_)) => return fault("choices: with a schema the choices are its enum; give one of both"),
        (Some(choices), None) if choices.is_empty() => return fault("choices: there is none"),
        (Some(choices), None) => Some(json!({"enum": choices}).to_string()),
        (None, schema) => schema.as_ref().map(|schema| Value::Object(schema.clone()).to_string()),
    };
    Ok(AgentQuestion {
        key: question.key.as_deref().map(|key| clean(key, usize::MAX)),
        question: clean(&question.question, usize::MAX),
        schema,
    })
}

fn schema(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

/// JSON text as its value; a text that is none, as a string.
fn value(text: &str) -> Value {
    digits::read(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// `answers` of context.json: all that people have answered to this step's agent, oldest first.
pub fn answers(status: &StepRunStatus) -> Vec<GivenAnswer> {
    let told = |asked: &AskedQuestion| {
        let answer = asked.answer.as_ref()?;
        Some(GivenAnswer {
            key: asked.name().to_owned(),
            question: asked.question.clone(),
            answer: value(&answer.value),
            by: answer.by.clone(),
            at: answer.at.0.to_string(),
            attempt: asked.attempt,
        })
    };
    status.questions.iter().filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: Value) -> Question {
        serde_json::from_value(text).expect("a question")
    }

    #[test]
    fn choices_are_stored_as_a_schema() {
        let stored = asked((0, &question(json!({"question": "Which\u{7}?", "choices": ["a", "b"], "key": "which"}))));
        let expected = AgentQuestion {
            key: Some("which".to_owned()),
            question: "Which?".to_owned(),
            schema: Some(r#"{"enum":["a","b"]}"#.to_owned()),
        };
        assert_eq!(stored, Ok(expected));
        for (text, words) in [
            (json!({"question": "Which?", "choices": []}), "questions[1].choices: there is none"),
            (json!({"question": "Which?", "choices": ["a"], "schema": {}}), "questions[1].choices: with a schema"),
        ] {
            let fault = asked((1, &question(text.clone()))).expect_err("refused");
            assert!(fault.starts_with(words), "{text}: {fault}");
        }
    }

    #[test]
    fn the_context_has_what_people_answered() {
        let at = "2026-01-01T00:00:00Z";
        let status: StepRunStatus = serde_json::from_value(json!({"questions": [
            {"key": "budget", "question": "How much?", "attempt": 1, "askedAt": at,
                "answer": {"value": "20000", "by": "ann", "at": at}},
            {"question": "Which?", "attempt": 1, "askedAt": at,
                "answer": {"value": "{\"order\": 12345678901234567890123}", "by": "ann", "at": at}},
            {"question": "Who?", "attempt": 2, "askedAt": at, "answer": {"value": "\"bob\"", "by": "cy", "at": at}},
            {"question": "When?", "attempt": 3, "askedAt": at}]}))
        .expect("a status");
        assert_eq!(
            json!(answers(&status)),
            json!([
                {"key": "budget", "question": "How much?", "answer": 20000, "by": "ann", "at": at, "attempt": 1},
                {"key": "Which?", "question": "Which?", "answer": {"order": "12345678901234567890123"}, "by": "ann",
                    "at": at, "attempt": 1},
                {"key": "Who?", "question": "Who?", "answer": "bob", "by": "cy", "at": at, "attempt": 2}])
        );
    }
}
