//! The page of one step.

use kube::ResourceExt;
use serde_json::Value;
use std::fmt::Write as _;
use std::sync::Arc;

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::line::View;
use super::print;
use super::rows::{so_far, waits_at_gate, waits_for_answer};
use super::target::label;
use super::text::{age, block, clock, colours, elapsed, indent, inline, put, seconds_between, short_digest, table};
use super::wait;
use crate::api::limits::DOCUMENT_BYTES;
use crate::api::step_run::{Attempt, Decision, Report};
use crate::api::{Document, StepRun, StepRunStatus};
use crate::decide::content::{self, Content, Loaded};

pub async fn show(on: &Connection, step: &StepRun) -> Result<Code, Fault> {
    if !on.output.is_text() {
        print::object(on.output, "StepRun", step)?;
        return Ok(Code::Done);
    }
    let document = document(on, step).await?;
    put(&page(step, document.as_ref().map(|d| d.as_ref())))?;
    Ok(Code::Done)
}

/// The report that the operator took as the result; none while there is no verdict.
fn result(step: &StepRun) -> Option<&Report> {
    let status = step.status.as_ref()?;
    let report = status.agent.as_ref()?.report.as_ref()?;
    let verdict = status.result.as_ref()?;
    (verdict.attempt == report.attempt && verdict.digest == report.digest).then_some(report)
}

/// The document that the step made; why not, where it should be there.
async fn document(on: &Connection, step: &StepRun) -> Result<Option<Result<Document, String>>, Fault> {
    let Some(pin) = step.status.as_ref().and_then(|s| s.result.as_ref()).and_then(content::document_of) else {
        return Ok(None);
    };
    let read = on.within("read the document", on.api::<Document>().get_opt(&pin.name)).await?;
    Ok(Some(match read {
        Ok(found) => {
            let found = found.map(|document| Loaded::new(Arc::new(document)));
            let content = Content::of(&pin, found.as_ref()).map_err(|changed| changed.to_string());
            content.map(|content| content.document().as_ref().clone())
        }
        Err(wrong) => Err(Fault::call("read the document", &wrong).text),
    }))
}

/// What a reviewer decides on: the document, else the output; harmless text.
pub async fn produced(on: &Connection, step: &StepRun) -> Result<String, Fault> {
    match document(on, step).await? {
        Some(Ok(document)) => Ok(block(&document.spec.content, DOCUMENT_BYTES)),
        Some(Err(why)) => Ok(format!("({why})")),
        // An approval alone is about what it was given.
        None if step.spec.agent_id.is_empty() => Ok(pretty(&step.spec.parameters)),
        None => Ok(result(step).and_then(|r| r.output.as_deref()).map_or_else(|| "(no output)".to_owned(), pretty)),
    }
}

/// JSON text, indented; as it is where it is none.
fn pretty(text: &str) -> String {
    let value: Option<Value> = serde_json::from_str(text).ok();
    let text = value.and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| text.to_owned());
    block(&text, DOCUMENT_BYTES)
}

fn page(step: &StepRun, document: Option<Result<&Document, &String>>) -> String {
    let status = step.status.clone().unwrap_or_default();
    let mut text = head(step, &status);
    let question = step.spec.ask.as_ref().map(|ask| block(&ask.question, 4096));
    section(&mut text, "QUESTION", &indent(&question.unwrap_or_default(), "  "));
    let answer =
        status.answer.as_ref().map(|a| format!("{}\nby {} at {}", pretty(&a.value), inline(&a.by, 256), clock(a.at.0)));
    section(&mut text, "ANSWER", &indent(&answer.unwrap_or_default(), "  "));
    section(&mut text, "PARAMETERS", &parameters(step));
    section(&mut text, "DOCUMENTS READ", &documents(step));
    section(&mut text, "ATTEMPTS", &attempts(&status.attempts));
    if let Some(output) = result(step).and_then(|r| r.output.as_deref()) {
        section(&mut text, "OUTPUT", &indent(&pretty(output), "  "));
    }
    match document {
        Some(Ok(document)) => {
            let digest = document.status.as_ref().and_then(|s| s.digest.as_deref());
            let title = format!(
                "DOCUMENT {} ({}, {}{})",
                inline(&document.spec.document_type, 63),
                document.name_any(),
                document.status.as_ref().and_then(|s| s.phase).map_or_else(|| "new".to_owned(), |p| format!("{p:?}")),
                digest.map_or_else(String::new, |d| format!(", {}", short_digest(d)))
            );
            let content = block(&document.spec.content, DOCUMENT_BYTES);
            section(&mut text, &title, &indent(&content, "  | "));
        }
        Some(Err(why)) => section(&mut text, "DOCUMENT", &format!("  {}\n", inline(why, 400))),
        None => {}
    }
    section(&mut text, "GATE", &gate(step, &status));
    section(&mut text, "ERROR", &error(&status));
    if waits_at_gate(step) || waits_for_answer(step) {
        let view = View { colours: colours(), ..View::default() };
        section(&mut text, "WAITS FOR YOU", &wait::text(step, view));
    }
    text
}

fn section(text: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        write!(text, "\n{title}\n{body}").ok();
    }
}

fn head(step: &StepRun, status: &StepRunStatus) -> String {
    let took = match (&status.started_at, &status.completed_at) {
        (Some(from), Some(to)) => format!(" after {}", elapsed(seconds_between(from, to.0))),
        (Some(from), None) => format!(" for {}", age(Some(from), k8s_openapi::jiff::Timestamp::now())),
        _ => String::new(),
    };
    let mut text = format!(
        "{}/{}  {}{took}\n\n",
        step.spec.workflow.name,
        inline(&label(step), 1024),
        status.phase.unwrap_or_default()
    );
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            writeln!(text, "{name:<12}{}", inline(&value, 600)).ok();
        }
    };
    fact("StepRun", Some(step.name_any()));
    let people = if step.spec.ask.is_some() { "nobody but who answers" } else { "nobody but who accepts" };
    let runs = !step.spec.agent_id.is_empty();
    fact("Agent", Some(if runs { step.spec.agent_id.clone() } else { people.to_owned() }));
    fact("Taken over", step.spec.reuse.as_ref().map(|r| r.step_run.clone()));
    fact("Attempt", Some(status.attempt.to_string()).filter(|_| runs));
    fact("Round", Some(status.round.to_string()).filter(|_| status.round > 1));
    let agent = status.agent.clone().unwrap_or_default();
    let claim = agent.claim.filter(|c| c.attempt == status.attempt);
    fact("Pod", claim.map(|c| c.pod_name));
    let progress = agent.progress.filter(|_| status.completed_at.is_none());
    fact("Progress", progress.map(|p| format!("{}% {} (at {})", p.percent, p.message, clock(p.at.0))));
    text
}

fn parameters(step: &StepRun) -> String {
    match step.spec.parameters.trim() {
        "" | "{}" | "null" => String::new(),
        text => indent(&pretty(text), "  "),
    }
}

fn documents(step: &StepRun) -> String {
    if step.spec.documents.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = step
        .spec
        .documents
        .iter()
        .take(100)
        .map(|d| {
            let key = d.key.as_deref().map_or_else(String::new, |k| format!(" ({k})"));
            vec![
                inline(&format!("{}{key}", d.document_type), 300),
                inline(&d.name, 253),
                short_digest(&inline(&d.digest, 80)),
            ]
        })
        .collect();
    let mut text = indent(&table(&["TYPE", "NAME", "DIGEST"], &rows), "  ");
    if step.spec.documents.len() > 100 {
        writeln!(text, "  … {} more", step.spec.documents.len() - 100).ok();
    }
    text
}

fn attempts(all: &[Attempt]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|a| {
            vec![
                a.number.to_string(),
                a.result.to_string(),
                a.exit_code.map_or_else(|| "-".to_owned(), |c| c.to_string()),
                a.started_at.as_ref().map_or_else(|| "-".to_owned(), |t| clock(t.0)),
                a.started_at.as_ref().map_or_else(|| "-".to_owned(), |t| elapsed(seconds_between(t, a.completed_at.0))),
                inline(a.message.as_deref().unwrap_or_default(), 400),
            ]
        })
        .collect();
    let heads = ["NO", "RESULT", "EXIT", "STARTED", "TOOK", "MESSAGE"];
    indent(&table(&heads, &rows), "  ")
}

fn gate(step: &StepRun, status: &StepRunStatus) -> String {
    let Some(spec) = &step.spec.gate else {
        return String::new();
    };
    let Some(gate) = &status.gate else {
        return format!("  {}: not open yet\n", inline(&spec.name, 63));
    };
    let so_far = so_far(step).map_or_else(String::new, |so_far| format!(", {so_far} accepted"));
    let mut text = format!(
        "  {}: {:?}, round {}{so_far}, since {}\n  review {}\n",
        inline(&spec.name, 63),
        gate.state,
        gate.round,
        clock(gate.opened_at.0),
        inline(&gate.output_digest, 80)
    );
    text.extend(gate.decisions.iter().map(decision));
    text
}

fn decision(one: &Decision) -> String {
    let word = if one.accepted { "accepted" } else { "rejected" };
    let comment = one
        .comment
        .as_deref()
        .filter(|c| !c.trim().is_empty())
        .map_or_else(String::new, |c| format!(": {}", inline(c, 4096)));
    format!(
        "  {word} by {} at {}, round {}{comment}\n",
        inline(&one.decided_by, 256),
        clock(one.decided_at.0),
        one.round
    )
}

fn error(status: &StepRunStatus) -> String {
    let Some(error) = &status.error else {
        return String::new();
    };
    let code = error.exit_code.map_or_else(String::new, |c| format!(", exit {c}"));
    let mut text = format!("  {} in attempt {}{code}: {}\n", error.class, error.attempt, inline(&error.message, 1024));
    if let Some(tail) = &error.log_tail {
        text.push_str(&indent(&block(tail, 8192), "  | "));
    }
    text
}
