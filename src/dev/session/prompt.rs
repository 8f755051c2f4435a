//! A wait on the terminal: what it is about is shown, and whoever sits there is asked.

use kube::ResourceExt;
use tokio::signal::unix::{SignalKind, signal};

use super::{Done, PresetDecision, Session};
use crate::api::StepRun;
use crate::cli::connect::Connection;
use crate::cli::fault::{Code, Fault};
use crate::cli::line::RenderOptions;
use crate::cli::print::put;
use crate::cli::review::under_review;
use crate::cli::target::waits_at_gate;
use crate::cli::wait::is_question;
use crate::cli::{answer, pager, subject};

pub async fn ask(session: &Session, on: &Connection, step: &StepRun) -> Result<Done, Fault> {
    if waits_at_gate(step) { Box::pin(at_gate(session, on, step)).await } else { for_answer(on, step).await }
}

async fn at_gate(session: &Session, on: &Connection, step: &StepRun) -> Result<Done, Fault> {
    let subject = subject::load(on, step).await?;
    if let Some(trouble) = &subject.trouble {
        return Err(trouble.fault());
    }
    let before = match &subject.document {
        Some(now) => subject::before(on, step, now).await,
        None => None,
    };
    pager::page(&under_review(step, &subject, before.as_ref(), RenderOptions::for_stdout()))?;
    let act = loop {
        let Some(word) = line("\naccept (y), reject (n), later (l), quit (q)? ").await? else {
            return Ok(Done::Leaves);
        };
        match word.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" | "accept" => break PresetDecision::Accept,
            "n" | "no" | "reject" => match line("why? ").await? {
                Some(why) => break PresetDecision::Reject(why.trim().to_owned()),
                None => return Ok(Done::Leaves),
            },
            "l" | "later" => return Ok(Done::Left),
            "q" | "quit" => return Ok(Done::Leaves),
            _ => {}
        }
    };
    told(session.act(step, &act).await)
}

async fn for_answer(on: &Connection, step: &StepRun) -> Result<Done, Fault> {
    let wait = step.status.as_ref().and_then(|status| status.waiting_for.as_ref());
    let options = wait.map(|wait| wait.options.join(", ")).unwrap_or_default();
    let question = if is_question(step) {
        "\nanswer (empty: later)? ".to_owned()
    } else {
        format!("\n{options} (empty: later)? ")
    };
    let Some(word) = line(&question).await? else { return Ok(Done::Leaves) };
    let word = word.trim().to_owned();
    if word.is_empty() {
        return Ok(Done::Left);
    }
    let comment = if is_question(step) {
        None
    } else {
        let Some(said) = line("what to do better, or why (may be empty)? ").await? else { return Ok(Done::Leaves) };
        Some(said.trim().to_owned()).filter(|said| !said.is_empty())
    };
    let args = answer::Args { target: step.name_any(), answer: Some(word), skip: false, fail: false, comment };
    told(answer::run(on, &args).await.map(drop))
}

/// What does not fit is said, and asked again.
fn told(done: Result<(), Fault>) -> Result<Done, Fault> {
    match done {
        Err(fault) if matches!(fault.code, Code::Usage | Code::Failed) => {
            eprintln!("error: {}", fault.text);
            Ok(Done::Said)
        }
        done => done.map(|()| Done::Said),
    }
}

/// A line that is typed; none at the end of what is typed, or at Ctrl-C.
async fn line(question: &str) -> Result<Option<String>, Fault> {
    put(question)?;
    let unsure = |wrong| Fault::new(Code::Api, format!("cannot take signals: {wrong}"));
    let mut interrupted = signal(SignalKind::interrupt()).map_err(unsure)?;
    let typed = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|count| (count > 0).then_some(line))
    });
    tokio::select! {
        typed = typed => match typed {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(wrong)) => Err(Fault::new(Code::Usage, format!("cannot read the answer: {wrong}"))),
            Err(_) => Ok(None),
        },
        _ = interrupted.recv() => Ok(None),
    }
}
