//! `ask`: the verb that an agent calls, and what the shim makes of the call. What is answered already is given at once; else
//! the command is ended, and the report puts the questions to people.

#![expect(clippy::disallowed_macros, reason = "bodies of the agent's calls")]

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::calls::{TROUBLE, expect, park, post_waiting, print};
use super::gateway::{CallError, Gateway};
use super::mask::Mask;
use super::wait::Until;
use super::{Stop, files, wait};
use crate::api::name::digest_bytes;
use crate::protocol::{self, AskReply, AskRequest, AwaitRequest, Question};

const PATIENCE: Duration = Duration::from_secs(30);

pub const HELP: &str = "\
An answer that a person gave before, to the same key, is printed at once: a text as it is, anything else as JSON. Else the
attempt ends here: the command gets SIGTERM, after 10 s SIGKILL, and its exit code is ignored. A person answers, and another
attempt starts, which finds the answer by the same call and in `answers` of context.json. No retry is used up.

With --wait people are asked at once, while the command runs on and waits: an answer that comes in time is printed, and the
attempt goes on. What is not answered by then ends the attempt as above. The wait counts to the attempt's timeoutSeconds, and
ends 5 s before that is over.

Exit codes: 0 answered; 2 it cannot be asked (the reason is on stderr), and the attempt goes on.

Examples:
  shop=$(lockstep ask 'Which shop?' --choices north,south --wait 5m)
  budget=$(lockstep ask 'What is the budget?' --key budget --schema budget.schema.json)
  shop=$(lockstep ask 'Which shop?' --choices north,south)";

#[derive(clap::Args)]
pub struct Args {
    /// The question as people read it
    question: String,
    /// The texts that may be answered, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "A,B", conflicts_with = "schema")]
    choices: Option<Vec<String>>,
    /// A file with the JSON Schema of the answer
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// By what the answer is found again; without it, by the text of the question
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Wait so long for the answer before the attempt ends: 90s, 5m, 2h
    #[arg(long, value_name = "DURATION", value_parser = wait::seconds)]
    wait: Option<i64>,
}

/// The verb.
pub fn ask(args: &Args) -> Result<u8, Stop> {
    let question = Question {
        question: args.question.clone(),
        choices: args.choices.clone(),
        schema: args.schema.as_deref().map(schema).transpose()?,
        key: args.key.clone(),
    };
    let name = question.key.clone().unwrap_or_else(|| question.question.clone());
    let request = AskRequest { questions: vec![question], wait_seconds: args.wait };
    let (status, answer) = post_waiting("ask", &json!(request), args.wait)?;
    if status == 202 {
        park();
    }
    expect(status, 200, &answer)?;
    let reply: Value = serde_json::from_str(&answer).map_err(|error| Stop::new(TROUBLE, format!("ask: {error}")))?;
    let answers = reply.get("answers").and_then(Value::as_object);
    // The key may have been cleaned or masked: one question has one answer.
    match answers.and_then(|all| all.get(&name).or_else(|| all.values().next())) {
        Some(Value::String(text)) => print(&format!("{text}\n")),
        Some(value) => print(&format!("{value}\n")),
        None => Err(Stop::new(TROUBLE, "ask: there is no answer in the answer")),
    }
}

fn schema(file: &std::path::Path) -> Result<Map<String, Value>, Stop> {
    let fault = |error: String| Stop::new(TROUBLE, format!("{}: {error}", file.display()));
    let bytes = files::read_context(file).map_err(|error| fault(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| fault(format!("is no JSON Schema as an object: {error}")))
}

/// How a call that waits for people ends for the agent.
#[derive(Debug, PartialEq)]
pub enum CallOutcome {
    /// The agent goes on with this answer: status and JSON.
    Answer(u16, Value),
    /// The command is to end with these questions; the JSON is for whoever hears it.
    Ends(Vec<Question>, Value),
    /// The gateway is away, or says that the attempt is over.
    Lost(CallError),
}

/// Asks the gateway, and waits for people until the given time; `pause` sleeps and says whether to go on.
pub fn call(
    gateway: &Gateway,
    mask: &Mask,
    request: &AskRequest,
    until: Until,
    pause: impl Fn(Duration) -> bool,
) -> CallOutcome {
    // People read it, in a status that more may read than the agent's log.
    let text = mask.json(&json!(request).to_string());
    let request: AskRequest = match serde_json::from_str(&text) {
        Ok(request) => request,
        Err(error) => return CallOutcome::Answer(400, json!({"error": format!("with its secrets masked: {error}")})),
    };
    loop {
        let wait_seconds = until.left();
        let asked = AskRequest { wait_seconds, ..request.clone() };
        let reply = gateway.call(protocol::ASK, &asked, PATIENCE, &pause).and_then(|answer| {
            serde_json::from_slice::<AskReply>(&answer).map_err(|error| CallError::Unreachable(error.to_string()))
        });
        let reply = match reply {
            Ok(reply) if reply.open.is_empty() => return CallOutcome::Answer(200, json!({"answers": reply.answers})),
            Ok(reply) => reply,
            Err(CallError::Refused(message) | CallError::TooLarge(message)) => {
                return CallOutcome::Answer(422, json!({"error": message}));
            }
            Err(CallError::Unreachable(_)) if wait_seconds.is_some() => continue,
            Err(error) => return CallOutcome::Lost(error),
        };
        let Some(seconds) = wait_seconds else { return CallOutcome::Ends(request.questions, json!(reply)) };
        let questions = reply.open.iter().map(|name| digest_bytes(name.as_bytes())).collect();
        if let Err(error) = wait::hold(gateway, AwaitRequest { questions, seconds, ..AwaitRequest::default() }, &pause)
        {
            return CallOutcome::Lost(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::gateway::tests::with_answers;

    /// What becomes of the call, and what the gateway heard, if that answers so.
    fn asked(status: u16, answer: &Value) -> (CallOutcome, Value) {
        let mask = Mask::new([b"hunter2".to_vec()]);
        let questions = vec![Question { question: "Is hunter2 right?".to_owned(), ..Question::default() }];
        let request = AskRequest { questions, wait_seconds: None };
        let until = Until::of(None, std::time::Instant::now());
        let answers = [(status, answer.clone())];
        let (outcome, heard) = with_answers(&answers, |gateway| call(gateway, &mask, &request, until, |_| true));
        (outcome, heard[0].1.clone())
    }

    #[test]
    fn what_is_answered_is_given_and_what_is_open_ends_the_command() {
        let (outcome, heard) = asked(200, &json!({"answers": {"Is *** right?": "no"}, "open": []}));
        assert_eq!(outcome, CallOutcome::Answer(200, json!({"answers": {"Is *** right?": "no"}})));
        assert_eq!(heard, json!({"questions": [{"question": "Is *** right?"}]}), "secrets stay here");

        let open = json!({"answers": {}, "open": ["Is *** right?"]});
        let (outcome, _) = asked(200, &open);
        let masked = Question { question: "Is *** right?".to_owned(), ..Question::default() };
        assert_eq!(outcome, CallOutcome::Ends(vec![masked], open));
    }

    /// What becomes of a call that waits, and the calls that the gateway heard, if that answers them so one after the other.
    fn waited(answers: &[(u16, Value)], seconds: i64) -> (CallOutcome, Vec<(String, Value)>) {
        let questions = vec![Question { question: "Who?".to_owned(), ..Question::default() }];
        let deadline = std::time::Instant::now() + Duration::from_secs(100);
        let until = Until::of(Some(seconds), deadline);
        let request = AskRequest { questions, wait_seconds: Some(seconds) };
        with_answers(answers, |gateway| call(gateway, &Mask::new([]), &request, until, |_| true))
    }

    #[test]
    fn an_answer_that_comes_in_time_is_given_to_the_agent_that_waits() {
        let open = (200, json!({"answers": {}, "open": ["Who?"]}));
        let held = |done: bool| (200, json!({"done": done}));
        let answered = (200, json!({"answers": {"Who?": "ann"}, "open": []}));
        let (outcome, heard) = waited(&[open.clone(), held(false), open.clone(), held(true), answered], 60);
        assert_eq!(outcome, CallOutcome::Answer(200, json!({"answers": {"Who?": "ann"}})));
        let paths: Vec<&str> = heard.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, [protocol::ASK, protocol::AWAIT, protocol::ASK, protocol::AWAIT, protocol::ASK]);
        let seconds = heard[0].1["waitSeconds"].as_i64().expect("a wait");
        assert!((58..=60).contains(&seconds), "{seconds}");
        assert_eq!(heard[1].1, json!({"questions": [digest_bytes(b"Who?")], "seconds": 20}));
        // Where the attempt is over in between, the command ends.
        let (outcome, _) = waited(&[open.clone(), (409, json!({"reason": "Fenced", "message": "attempt 2 runs"}))], 60);
        assert!(matches!(outcome, CallOutcome::Lost(CallError::NotOurs(_))), "{outcome:?}");
        // At the end of the wait it looks once more, and does not ask to wait.
        let (outcome, heard) = waited(std::slice::from_ref(&open), 0);
        assert!(matches!(outcome, CallOutcome::Ends(..)), "{outcome:?}");
        assert_eq!(heard[0].1, json!({"questions": [{"question": "Who?"}]}));
    }

    #[test]
    fn what_cannot_be_asked_ends_nothing() {
        let (outcome, _) = asked(400, &json!({"reason": "BadRequest", "message": "a step may ask 20 questions"}));
        let CallOutcome::Answer(422, words) = outcome else { panic!("{outcome:?}") };
        assert!(words["error"].as_str().is_some_and(|e| e.contains("a step may ask 20 questions")), "{words}");
        // The attempt is over: that ends the command, as with every call.
        let (outcome, _) = asked(409, &json!({"reason": "Fenced", "message": "attempt 2 runs"}));
        assert!(matches!(outcome, CallOutcome::Lost(CallError::NotOurs(_))), "{outcome:?}");
    }
}
