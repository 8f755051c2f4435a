//! `answer`: ends a wait for input.

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::mailbox::{self, Letter};
use super::print;
use super::rows::waits_for_answer;
use super::target::{self, Target, label};
use super::text::{inline, put};
use crate::api::StepRun;
use crate::api::name::{ACTION, COMMENT};

/// Answer a step that waits for input: retry it, skip it or let it fail
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kubectl lockstep answer shop/architecture/E1 retry -m 'use the v2 interface'
  kubectl lockstep answer shop/architecture/E1 skip")]
pub struct Args {
    /// RUN/STEP, RUN/STEP/KEY or the name of a StepRun
    target: String,
    #[arg(value_enum)]
    action: Action,
    /// Guidance; the next attempt sees it
    #[arg(short = 'm', long = "comment", value_name = "TEXT")]
    comment: Option<String>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Action {
    Retry,
    Skip,
    Fail,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Skip => "skip",
            Self::Fail => "fail",
        }
    }
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let target = Target::parse(&args.target)?;
    let step = target::find(on, &target, waits_for_answer).await?;
    let name = format!("{}/{}", step.spec.workflow.name, label(&step));
    let wait = step.status.as_ref().and_then(|s| s.waiting_for.clone()).filter(|_| waits_for_answer(&step));
    let Some(wait) = wait else {
        return Err(Fault::new(Code::Failed, format!("{name} asks nothing; see {}", on.hint("show", &name))));
    };
    let word = args.action.word();
    if !wait.options.is_empty() && !wait.options.iter().any(|o| o == word) {
        return Err(Fault::usage(format!(
            "{name} cannot be answered with {word}; it takes {}",
            inline(&wait.options.join(", "), 300)
        )));
    }
    if let Some(other) = mailbox::taken(&step, ACTION) {
        return Err(Fault::new(
            Code::Failed,
            format!("an answer by {other} is there already and not taken up yet; try again in a moment"),
        ));
    }
    let entries = vec![(ACTION, Some(word.to_owned())), (COMMENT, args.comment.clone())];
    let letter = Letter::new(on, entries).await?;
    let id = |step: &StepRun| step.status.as_ref().and_then(|s| Some(s.waiting_for.as_ref()?.id.clone()));
    let same = |now: &StepRun| id(now).as_ref() == Some(&wait.id) && mailbox::taken(now, ACTION).is_none();
    mailbox::post(on, &step, &letter, same).await?;
    let now = mailbox::latched(on, &step, |now| id(now).as_ref() != Some(&wait.id)).await?;
    if on.output.is_text() {
        let phase = now.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
        let by = letter.by.as_deref().unwrap_or("you");
        put(&format!("{word} by {}; {name} is now {phase}\n", inline(by, 256)))?;
    } else {
        print::object(on.output, "StepRun", &now)?;
    }
    Ok(Code::Done)
}
