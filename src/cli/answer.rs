//! `answer`: ends a wait for input: the answer to a step's question, or what becomes of a step that could not go on.

#![expect(clippy::disallowed_types, reason = "on the machine of whoever answers")]

use std::path::Path;

use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Map, Value};

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::mailbox::{self, Letter, Refusals};
use super::print::put;
use super::run::read;
use super::target::{self, Named, Target, label, waits_for_answer};
use super::text::inline;
use super::{print, wait};
use crate::api::StepRun;
use crate::api::limits::OUTPUT_INLINE_BYTES;
use crate::api::name::{ACTION, ANSWER, COMMENT};
use crate::api::step_run::WaitingFor;
use crate::definition::expression::{Evaluate, InProcess};
use crate::definition::pinned;

/// Answer a step's question, or retry, skip or fail a step that waits for input
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The answer to a question (a step with ask) is JSON where it is valid JSON, else text, at most 16 KiB; the run goes on with
it as the step's output. Any other wait takes one of retry, skip and fail. The step must be named; nothing is asked back.

Exit codes: 0 taken up; 1 nothing is asked, or the operator refused it; 2 it does not fit, or the step was not named; 4 not
found, or more than one fits; 5 the API server refused.

Examples:
  kubectl lockstep answer shop/budget 20000
  kubectl lockstep answer shop/scope '{\"pages\": 3, \"shop\": true}'
  kubectl lockstep answer shop/scope @scope.json
  kubectl lockstep answer shop/architecture/E1 retry -m 'use the v2 interface'
  kubectl lockstep answer shop/architecture/E1 skip")]
pub struct Args {
    /// RUN/STEP, RUN/STEP/KEY or the name of a StepRun
    target: String,
    /// The answer; @FILE reads a file, @- standard input. Or retry, skip, fail
    #[arg(value_name = "TEXT|@FILE|retry|skip|fail", allow_hyphen_values = true)]
    answer: String,
    /// Guidance with retry, skip and fail; the next attempt sees it
    #[arg(short = 'm', long = "comment", value_name = "TEXT")]
    comment: Option<String>,
}

/// What goes into the mailbox.
struct Said {
    key: &'static str,
    value: String,
    /// As it is told back.
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
    let said = if wait::is_question(&step) { answer(on, args, &step).await? } else { action(args, &wait, &name)? };
    if let Some(other) = mailbox::taken(&step, said.key) {
        return Err(Fault::new(
            Code::Failed,
            format!("an answer by {other} is there already and not taken up yet; try again in a moment"),
        ));
    }
    let entries = vec![(said.key, Some(said.value)), (COMMENT, args.comment.clone())];
    let letter = Letter::new(on, entries).await?;
    let id = |step: &StepRun| step.status.as_ref().and_then(|s| Some(s.waiting_for.as_ref()?.id.clone()));
    let same = |now: &StepRun| match mailbox::taken(now, said.key) {
        _ if id(now).as_ref() != Some(&wait.id) => Err("it does not ask this any more".to_owned()),
        Some(other) => Err(format!("an answer by {other} was faster")),
        None => Ok(()),
    };
    let refusals = Refusals::before(on, &step, said.key, "AnswerRefused").await;
    mailbox::post(on, &step, &letter, same).await?;
    let now = mailbox::latched(on, &step, &refusals, |now| id(now).as_ref() != Some(&wait.id)).await?;
    if on.output.is_text() {
        let phase = now.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
        let by = letter.by.as_deref().unwrap_or("you");
        put(&format!("{} by {}; {name} is now {phase}\n", said.word, inline(by, 256)))?;
    } else {
        print::object(on.output, "StepRun", &now)?;
    }
    Ok(Code::Done)
}

/// What becomes of a step that could not go on.
fn action(args: &Args, wait: &WaitingFor, name: &str) -> Result<Said, Fault> {
    let known = ["retry", "skip", "fail"].map(str::to_owned);
    let options = if wait.options.is_empty() { &known[..] } else { &wait.options };
    if !options.contains(&args.answer) {
        return Err(Fault::usage(format!(
            "{name} cannot be answered with {}; it takes {}",
            inline(&args.answer, 80),
            inline(&options.join(", "), 300)
        )));
    }
    Ok(Said { key: ACTION, value: args.answer.clone(), word: args.answer.clone() })
}

/// The answer to a question, held against its schema where that can be read.
async fn answer(on: &Connection, args: &Args, step: &StepRun) -> Result<Said, Fault> {
    let value = match args.answer.strip_prefix('@') {
        Some(file) => read(Path::new(file))?.trim_end().to_owned(),
        None => args.answer.clone(),
    };
    if args.comment.is_some() {
        return Err(Fault::usage("-m goes with retry, skip and fail; a question takes the answer alone"));
    }
    if value.len() > OUTPUT_INLINE_BYTES {
        return Err(Fault::usage(format!(
            "the answer has {} bytes, at most {OUTPUT_INLINE_BYTES} are allowed; put a Document and answer with its name",
            value.len()
        )));
    }
    if let Some(wanted) = schema_of(on, step).await {
        let faults = faults(&wanted, &value);
        if !faults.is_empty() {
            return Err(Fault::usage(format!("the answer does not fit, nothing was sent: {}", faults.join("; "))));
        }
    }
    Ok(Said { key: ANSWER, value, word: "answered".to_owned() })
}

/// The question's schema in the pinned definition; none where it says none, or may not be read. The operator judges anyway.
async fn schema_of(on: &Connection, step: &StepRun) -> Option<Map<String, Value>> {
    let api = on.api::<ControllerRevision>();
    let revision = on.call("read the definition", api.get_opt(&step.spec.definition.revision_name)).await.ok()??;
    let program = pinned::read(revision.data?.0, &step.spec.definition.digest).ok()?;
    Some(program.step(&step.spec.path)?.ask()?.schema.as_ref()?.as_object().clone())
}

/// As JSON, and as the text that it is: one must fit.
fn faults(schema: &Map<String, Value>, value: &str) -> Vec<String> {
    let text = Value::String(value.to_owned());
    let json = serde_json::from_str(value).unwrap_or_else(|_| text.clone());
    let found = InProcess.faults(schema, &json).unwrap_or_default();
    if found.is_empty() || InProcess.faults(schema, &text).is_ok_and(|found| found.is_empty()) {
        return Vec::new();
    }
    let shown = |fault: &crate::protocol::Fault| format!("{} {}", fault.pointer, fault.message).trim().to_owned();
    found.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_fits_as_json_or_as_text() {
        let schema = |value: Value| value.as_object().cloned().unwrap_or_default();
        for (wanted, value, fits) in [
            (json!({"type": "integer"}), "5", true),
            (json!({"type": "integer"}), "five", false),
            (json!({"type": "string"}), "5", true),
            (json!({"enum": ["yes", "no"]}), "yes", true),
            (json!({"enum": ["yes", "no"]}), "maybe", false),
            (json!({"type": "object", "required": ["n"]}), "{\"n\": 1}", true),
            (json!({"type": "object", "required": ["n"]}), "{}", false),
        ] {
            assert_eq!(faults(&schema(wanted.clone()), value).is_empty(), fits, "{wanted} {value}");
        }
    }
}
