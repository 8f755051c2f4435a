//! `answer`: ends a wait for input: the answer to a step's question, or what becomes of a step that could not go on.

#![expect(clippy::disallowed_types, reason = "on the machine of whoever answers")]

use std::path::Path;

use super::asked::{self, Answers};
use super::complete;
use super::connect::Connection;
use super::fault::{Code, Fault};
use super::file::read;
use super::mailbox::{self, Refusals, Submission};
use super::print::put;
use super::target::{self, Named, Target, label, waits_for_answer};
use super::text::{inline, quote};
use super::{print, value, wait};
use crate::api::StepRun;
use crate::api::limits::OUTPUT_INLINE_BYTES;
use crate::api::name::{ACTION, ANSWER, COMMENT};
use crate::api::step_run::WaitingFor;
use crate::definition::expression::{Evaluate, InProcess};

/// Answer a step's question, or retry, skip or fail a step that waits for input
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The answer to a question (a step with ask) takes the type that the question's schema gives it: a text stays as it was typed
(3.10, 007). Without a schema it is JSON where it is valid JSON and no digit is lost, else text. At most 16 KiB; the run goes
on with it as the step's output. A question of an agent (lockstep ask) takes its answer in the same way, and then its next attempt
starts; --skip and --fail end the step in the place of an answer. So does a budget that is spent: its answer is a higher one,
as JSON with tokens, cost, or both. Any other wait takes one of retry, skip and fail. The step must
be named; nothing is asked back.

Exit codes: 0 taken up; 1 nothing is asked, or the operator refused it; 2 it does not fit, or the step was not named; 4 not
found, or more than one fits; 5 the API server refused.

Examples:
  kubectl lockstep answer shop/budget 20000
  kubectl lockstep answer shop/scope '{\"pages\": 3, \"shop\": true}'
  kubectl lockstep answer shop/scope @scope.json
  kubectl lockstep answer shop/plan '{\"tokens\": 500000}'
  kubectl lockstep answer shop/plan --skip
  kubectl lockstep answer shop/architecture/E1 retry -m 'use the v2 interface'
  kubectl lockstep answer shop/architecture/E1 skip")]
pub struct Args {
    /// RUN/STEP, RUN/STEP/KEY or the name of a StepRun
    #[arg(add = complete::by(complete::waits_for_answer))]
    pub target: String,
    /// The answer; @FILE reads a file, @- standard input. Or retry, skip, fail
    #[arg(
        value_name = "TEXT|@FILE|retry|skip|fail",
        required_unless_present_any = ["skip", "fail"],
        conflicts_with_all = ["skip", "fail"],
        allow_hyphen_values = true
    )]
    pub answer: Option<String>,
    /// Do not answer, and complete the step with the output null
    #[arg(long, conflicts_with = "fail")]
    pub skip: bool,
    /// Do not answer, and fail the step
    #[arg(long)]
    pub fail: bool,
    /// Guidance with retry, skip and fail; the next attempt sees it
    #[arg(short = 'm', long = "comment", value_name = "TEXT")]
    pub comment: Option<String>,
}

impl Args {
    fn text(&self) -> &str {
        self.answer.as_deref().unwrap_or_default()
    }

    /// What becomes of the step in the place of an answer.
    fn act(&self) -> Option<&'static str> {
        self.skip.then_some("skip").or_else(|| self.fail.then_some("fail"))
    }
}

/// The annotation that is put into the mailbox.
struct MailboxEntry {
    key: &'static str,
    value: String,
    /// What was done, for the line that is printed.
    word: String,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let target = Target::parse(&args.target)?;
    let (step, named) = target::find_named(on, &target, waits_for_answer).await?;
    let name = inline(&format!("{}/{}", step.spec.workflow.name, label(&step)), 1300);
    let wait = step.status.as_ref().and_then(|s| s.waiting_for.clone()).filter(|_| waits_for_answer(&step));
    let Some(wait) = wait else {
        return Err(Fault::new(Code::Failed, format!("{name} asks nothing; see {}", on.hint("show", &name))));
    };
    if named == Named::Led {
        return Err(Fault::usage(format!(
            "an answer is for a step that was named: {name} asks {}; answer it as {name}",
            inline(&wait.question, 400)
        )));
    }
    let entry = match args.act() {
        None if wait::is_question(&step) => answer(on, args, &step).await?,
        act => action(act.unwrap_or(args.text()), &step, &wait, &name)?,
    };
    if let Some(other) = mailbox::taken(&step, entry.key) {
        return Err(Fault::new(
            Code::Failed,
            format!("an answer by {other} is there already and not taken up yet; try again in a moment"),
        ));
    }
    let entries = vec![(entry.key, Some(entry.value)), (COMMENT, args.comment.clone())];
    let submission = Submission::new(on, entries).await?;
    let id = |step: &StepRun| step.status.as_ref().and_then(|s| Some(s.waiting_for.as_ref()?.id.clone()));
    let same = |now: &StepRun| match mailbox::taken(now, entry.key) {
        _ if id(now).as_ref() != Some(&wait.id) => Err("it does not ask this any more".to_owned()),
        Some(other) => Err(format!("an answer by {other} was faster")),
        None => Ok(()),
    };
    let refusals = Refusals::before(on, &step, entry.key, "AnswerRefused").await;
    mailbox::post(on, &step, &submission, same).await?;
    let now = mailbox::latched(on, &step, &refusals, |now| id(now).as_ref() != Some(&wait.id)).await?;
    if on.output.is_text() {
        let phase = now.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
        let by = submission.by.as_deref().unwrap_or("you");
        put(&format!("{} by {}; {name} is now {phase}\n", entry.word, inline(by, 256)))?;
    } else {
        print::object(on.output, "StepRun", &now)?;
    }
    Ok(Code::Done)
}

/// What becomes of a step that could not go on.
fn action(act: &str, step: &StepRun, wait: &WaitingFor, name: &str) -> Result<MailboxEntry, Fault> {
    let known: &[&str] = if step.spec.ask.is_some() { &["fail"] } else { &["retry", "skip", "fail"] };
    let known: Vec<String> = known.iter().map(|word| (*word).to_owned()).collect();
    let options = if wait.options.is_empty() { &known } else { &wait.options };
    if !options.iter().any(|option| option == act) {
        return Err(Fault::usage(format!(
            "{name} cannot be answered with {}; it takes {}",
            inline(act, 80),
            inline(&options.join(", "), 300)
        )));
    }
    Ok(MailboxEntry { key: ACTION, value: act.to_owned(), word: act.to_owned() })
}

/// The answer to a question, held against its schema where that can be read.
async fn answer(on: &Connection, args: &Args, step: &StepRun) -> Result<MailboxEntry, Fault> {
    let typed = match args.text().strip_prefix('@') {
        Some(file) => read(Path::new(file))?.trim_end().to_owned(),
        None => args.text().to_owned(),
    };
    if args.comment.is_some() {
        return Err(Fault::usage("-m goes with retry, skip and fail; a question takes the answer alone"));
    }
    let value = written(&asked::of(on, step).await, &typed)?;
    if value.len() > OUTPUT_INLINE_BYTES {
        return Err(Fault::usage(format!(
            "the answer has {} bytes, at most {OUTPUT_INLINE_BYTES} are allowed; put a Document and answer with its name",
            value.len()
        )));
    }
    Ok(MailboxEntry { key: ANSWER, value, word: "answered".to_owned() })
}

/// The text that the operator reads as what was meant: of the type that the question's schema gives, with all its digits.
/// Where the schema is not known for sure, the words as they are: the operator knows it.
fn written(answers: &Answers, typed: &str) -> Result<String, Fault> {
    let schema = match answers {
        Answers::Unknown | Answers::Perhaps(_) => return Ok(typed.to_owned()),
        Answers::Free => None,
        Answers::Of(schema) => Some(schema),
    };
    let nothing = |why: String| Fault::usage(format!("the answer does not fit, nothing was sent: {why}"));
    let value = value::typed(typed, schema).map_err(nothing)?;
    if schema.is_none() && value::is_spared(typed, &value) {
        eprintln!("note: the answer is the text {value}: as a number it would lose digits");
    }
    let Some(schema) = schema else { return Ok(value::spelt(&value, typed)) };
    let found = InProcess.faults(schema, &value).unwrap_or_default();
    if found.is_empty() {
        return Ok(value::spelt(&value, typed));
    }
    let shown = |fault: &crate::protocol::Fault| format!("{} {}", fault.pointer, fault.message).trim().to_owned();
    let mut faults: Vec<String> = found.iter().map(shown).collect();
    let choices: Vec<String> = asked::choices(schema).iter().map(|choice| quote(choice)).collect();
    if !choices.is_empty() {
        faults.push(format!("it takes one of {}", choices.join(", ")));
    }
    Err(nothing(faults.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn an_answer_takes_the_type_that_the_schema_gives() {
        let of = |schema: Value| Answers::Of(schema.as_object().cloned().unwrap_or_default());
        let number = json!({"type": "integer"});
        let either = json!({"anyOf": [{"type": "string"}, {"type": "number"}]});
        for (answers, typed, sent) in [
            (of(number.clone()), "5", Ok("5")),
            (of(number.clone()), "five", Err("is not of type")),
            (of(number), "12345678901234567890", Err("more digits than the API server keeps")),
            (of(json!({"type": "string"})), "5", Ok("\"5\"")),
            (of(json!({"type": "string"})), "007", Ok("007")),
            (of(json!({"type": "string"})), "12345678901234567890", Ok("\"12345678901234567890\"")),
            (of(either.clone()), "3.10", Ok("\"3.10\"")),
            (of(either), "12345678901234567890", Ok("\"12345678901234567890\"")),
            (of(json!({"enum": ["yes", "no"]})), "yes", Ok("yes")),
            (of(json!({"enum": ["yes", "no way"]})), "maybe", Err("it takes one of yes, 'no way'")),
            (of(json!({"type": "object", "required": ["n"]})), "{\"n\": 1}", Ok("{\"n\": 1}")),
            (of(json!({"type": "object", "required": ["n"]})), "{}", Err("\"n\" is a required property")),
            (Answers::Free, "20000", Ok("20000")),
            (Answers::Free, "two words", Ok("two words")),
            (Answers::Free, "12345678901234567890", Ok("\"12345678901234567890\"")),
            (Answers::Free, "3.10", Ok("\"3.10\"")),
            (Answers::Free, "{\"id\": 12345678901234567890}", Err("at /id")),
            (Answers::Unknown, "12345678901234567890", Ok("12345678901234567890")),
            (Answers::Unknown, "5", Ok("5")),
        ] {
            match (written(&answers, typed), sent) {
                (Ok(found), Ok(sent)) => assert_eq!(found, sent, "{answers:?} {typed}"),
                (Err(fault), Err(words)) => assert!(fault.text.contains(words), "{}", fault.text),
                (found, sent) => panic!("{answers:?} {typed}: {found:?}, not {sent:?}"),
            }
        }
    }
}
