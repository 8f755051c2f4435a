//! What the agent of a step asks people: which questions are answered already, and which may be put. Pure, so that the
//! gateway refuses what the operator would not take.

use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::limits::{QUESTION_BYTES, QUESTION_KEY_BYTES, QUESTION_SCHEMA_BYTES, QUESTIONS};
use crate::api::name;
use crate::api::step_run::{AgentQuestion, AskedQuestion, Asking, StepRunStatus};
use crate::decide::claim;
use crate::definition::free_value;

/// What was asked, by whether a person has answered it before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sorted {
    /// The name of the question, and its answer as JSON text.
    pub answered: Vec<(String, String)>,
    /// What people must be asked.
    pub open: Vec<AgentQuestion>,
}

/// Sorts what an attempt asks; an error says what cannot be asked, and why.
pub fn sort(status: &StepRunStatus, asked: Vec<AgentQuestion>) -> Result<Sorted, String> {
    if asked.is_empty() {
        return Err("questions: there is none".to_owned());
    }
    let mut names = HashSet::new();
    let mut sorted = Sorted::default();
    for (index, question) in asked.into_iter().enumerate() {
        bounded(&question).map_err(|fault| format!("questions[{index}].{fault}"))?;
        if !names.insert(question.name().to_owned()) {
            return Err(format!("questions[{index}]: the call asks this twice; give each question a key of its own"));
        }
        match answer(status, question.name()) {
            Some(value) => sorted.answered.push((question.name().to_owned(), value.to_owned())),
            None => sorted.open.push(question),
        }
    }
    let asked: HashSet<&str> = status.questions.iter().map(AskedQuestion::name).chain(waited_for(status)).collect();
    let more = sorted.open.iter().filter(|question| !asked.contains(question.name())).count();
    let before = asked.len();
    if before + more > QUESTIONS {
        return Err(format!(
            "a step may ask {QUESTIONS} questions, and this one has asked {before}: go on without an answer, or end the attempt with `lockstep fail`"
        ));
    }
    Ok(sorted)
}

fn bounded(question: &AgentQuestion) -> Result<(), String> {
    let schema = question.schema.as_deref().unwrap_or_default();
    let parts = [
        ("question", question.question.as_str(), QUESTION_BYTES),
        ("key", question.key.as_deref().unwrap_or("-"), QUESTION_KEY_BYTES),
    ];
    for (part, text, most) in parts {
        if text.trim().is_empty() {
            return Err(format!("{part}: is empty"));
        }
        if text.len() > most {
            return Err(format!("{part}: has {} bytes, at most {most} are allowed", text.len()));
        }
    }
    if schema.len() > QUESTION_SCHEMA_BYTES {
        let bytes = schema.len();
        return Err(format!(
            "schema: has {bytes} bytes, at most {QUESTION_SCHEMA_BYTES} are allowed; ask for less at once"
        ));
    }
    free_value::nesting_of_text(schema).map_or(Ok(()), |fault| Err(format!("schema: {fault}")))
}

/// The answer that stands to a question of this name, as JSON text.
fn answer<'a>(status: &'a StepRunStatus, name: &str) -> Option<&'a str> {
    let known = status.questions.iter().find(|known| known.name() == name)?;
    known.answer.as_ref().map(|answer| answer.value.as_str())
}

/// What the agent of the current attempt asks while it goes on.
pub fn asking(status: &StepRunStatus) -> Option<&Asking> {
    let asking = status.agent.as_ref()?.asking.as_ref()?;
    (asking.attempt == status.attempt && claim::current_claim(status).is_some()).then_some(asking)
}

/// The names of it.
fn waited_for(status: &StepRunStatus) -> impl Iterator<Item = &str> {
    asking(status).into_iter().flat_map(|asking| asking.questions.iter().map(AgentQuestion::name))
}

/// What the gateway writes where an attempt is to wait for these; nothing where it waits for all of them already.
pub fn wait_for(status: &StepRunStatus, open: &[AgentQuestion], at: &Time, until: &Time) -> Option<Asking> {
    let known: HashSet<&str> = waited_for(status).collect();
    let more: Vec<AgentQuestion> = open.iter().filter(|question| !known.contains(question.name())).cloned().collect();
    if more.is_empty() {
        return None;
    }
    let before = asking(status);
    let mut questions = before.map(|asking| asking.questions.clone()).unwrap_or_default();
    questions.extend(more);
    let until = before.map_or(until, |asking| if asking.until.0 > until.0 { &asking.until } else { until });
    Some(Asking { attempt: status.attempt, questions, at: at.clone(), until: until.clone() })
}

/// Whether all questions of these names, by their digests, are answered.
pub fn are_answered(status: &StepRunStatus, digests: &[String]) -> bool {
    let answered = |digest: &String| {
        let named = |asked: &&AskedQuestion| name_digest(asked.name()) == *digest;
        status.questions.iter().find(named).is_some_and(|asked| asked.answer.is_some())
    };
    digests.iter().all(answered)
}

/// By what a question is waited for: its name may be long.
pub fn name_digest(question: &str) -> String {
    name::digest_bytes(question.as_bytes())
}

/// The question that people are to answer now: one after the other.
pub fn open(status: &StepRunStatus) -> Option<&AskedQuestion> {
    status.questions.iter().find(|question| question.answer.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn status(questions: &Value) -> StepRunStatus {
        serde_json::from_value(json!({"questions": questions})).expect("a status")
    }

    fn asked(question: &str, key: Option<&str>) -> AgentQuestion {
        AgentQuestion { question: question.to_owned(), key: key.map(str::to_owned), schema: None }
    }

    fn known(question: &str, key: Option<&str>, answer: Option<&str>) -> Value {
        let at = "2026-01-01T00:00:00Z";
        let answer = answer.map(|value| json!({"value": value, "by": "ann", "at": at}));
        json!({"question": question, "key": key, "attempt": 1, "askedAt": at, "answer": answer})
    }

    #[test]
    fn what_was_answered_is_not_asked_again() {
        let before = status(&json!([
            known("How much?", Some("budget"), Some("5")),
            known("Who?", None, Some("\"ann\"")),
            known("When?", None, None)
        ]));
        let all = vec![asked("How much may it cost?", Some("budget")), asked("Who?", None), asked("Which?", None)];
        let sorted = sort(&before, all).expect("it may ask");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(sorted.answered, [pair("budget", "5"), pair("Who?", "\"ann\"")]);
        assert_eq!(sorted.open, [asked("Which?", None)]);
        assert_eq!(open(&before).map(AskedQuestion::name), Some("When?"));
        // Another key is another question, whatever the words.
        assert_eq!(sort(&before, vec![asked("Who?", Some("who"))]).expect("it may").open.len(), 1);
    }

    #[test]
    fn what_an_attempt_waits_for_is_written_once() {
        let (at, later) = (time("2026-01-01T00:00:00Z"), time("2026-01-01T00:05:00Z"));
        let claim = json!({"attempt": 2, "id": "i", "podName": "p", "podUID": "u", "at": "2026-01-01T00:00:00Z"});
        let with = |asking: Option<&Asking>| -> StepRunStatus {
            let agent = json!({"claim": claim, "asking": asking});
            serde_json::from_value(json!({"attempt": 2, "agent": agent})).expect("a status")
        };
        let first = wait_for(&with(None), &[asked("a?", None)], &at, &later).expect("it is new");
        assert_eq!((first.attempt, first.questions.len(), &first.until), (2, 1, &later));
        assert_eq!(wait_for(&with(Some(&first)), &[asked("a?", None)], &at, &later), None);
        assert_eq!(wait_for(&with(None), &[], &at, &later), None);
        // Another one joins it, and the longer wait counts.
        let both = wait_for(&with(Some(&first)), &[asked("a?", None), asked("b?", Some("b"))], &at, &at).expect("more");
        assert_eq!((both.questions.len(), &both.until), (2, &later));
        // What an earlier attempt waited for is not what this one does.
        let old = Asking { attempt: 1, ..first.clone() };
        assert_eq!(wait_for(&with(Some(&old)), &[asked("a?", None)], &at, &later), Some(first.clone()));
        // It counts to what a step may ask, and not twice once the operator has it.
        let many: Vec<AgentQuestion> = (0..20).map(|n| asked(&format!("{n}?"), None)).collect();
        let mut full = with(Some(&Asking { questions: many.clone(), ..first }));
        assert!(sort(&full, many.clone()).is_ok() && sort(&full, vec![asked("one more?", None)]).is_err());
        full.questions = status(&json!([known("0?", None, None)])).questions;
        assert!(sort(&full, many).is_ok());
    }

    #[test]
    fn a_wait_is_over_when_all_of_it_is_answered() {
        let before = status(&json!([known("How much?", Some("budget"), Some("5")), known("Who?", None, None)]));
        for (names, done) in
            [(vec![], true), (vec!["budget"], true), (vec!["budget", "Who?"], false), (vec!["When?"], false)]
        {
            let digests: Vec<String> = names.iter().map(|name| name_digest(name)).collect();
            assert_eq!(are_answered(&before, &digests), done, "{names:?}");
        }
    }

    fn time(text: &str) -> Time {
        Time(text.parse().expect("a time"))
    }

    #[test]
    fn what_cannot_be_asked_is_told_with_its_place() {
        let many: Vec<Value> = (0..19).map(|n| known(&format!("{n}?"), None, Some("1"))).collect();
        let before = status(&json!(many));
        let long = |n: usize| "x".repeat(n);
        let schema = AgentQuestion { schema: Some(long(4097)), ..asked("What?", None) };
        for (questions, words) in [
            (vec![], "there is none"),
            (vec![asked(" ", None)], "questions[0].question: is empty"),
            (vec![asked("a?", None), asked(&long(4097), None)], "questions[1].question: has 4097 bytes, at most 4096"),
            (vec![asked("a?", Some(""))], "questions[0].key: is empty"),
            (vec![asked("a?", Some(&long(129)))], "questions[0].key: has 129 bytes, at most 128"),
            (vec![schema], "questions[0].schema: has 4097 bytes, at most 4096"),
            (vec![asked("a?", None), asked("a?", None)], "questions[1]: the call asks this twice"),
            (vec![asked("a?", Some("k")), asked("b?", Some("k"))], "questions[1]: the call asks this twice"),
            (vec![asked("a?", None), asked("b?", None)], "a step may ask 20 questions, and this one has asked 19"),
        ] {
            let fault = sort(&before, questions.clone()).expect_err("refused");
            assert!(fault.contains(words), "{questions:?}: {fault}");
        }
        assert!(sort(&before, vec![asked("20?", None), asked("3?", None)]).is_ok(), "the twentieth");
    }
}
