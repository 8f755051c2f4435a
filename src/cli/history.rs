//! `history`: what every step of a run got and gave, and what people decided. Also of runs that are over.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::{Map, Value};

use super::complete;
use super::connect::Connection;
use super::control;
use super::fault::{Code, Fault};
use super::line::RenderOptions;
use super::print::{self, Format, put};
use super::table::{Cell, table};
use super::text::{clock, cut, inline, short_digest};
use crate::api::Workflow;
use crate::api::workflow::Phase;
use crate::decide::history::{self, Acted, AttemptRecord, Entry, Guided, HumanInput, StepInstance};

/// Show every step of a run with its input and output, or all decisions
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The table cuts inputs and outputs short, -o json has them whole; -o wide adds the attempts of each step, and what they used. An output that
stands in a Document alone is told by the document's name and digest.

Examples:
  kubectl lockstep history shop
  kubectl lockstep history shop -o json | jq '.steps[] | {StepId, Output}'
  kubectl lockstep history shop --decisions")]
pub struct Args {
    /// The run
    #[arg(add = complete::by(complete::runs))]
    run: String,
    /// What people decided and answered instead of the steps
    #[arg(long)]
    decisions: bool,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let run = control::run_of(on, &args.run, "history").await?;
    let steps = on.step_runs(&run.name_any()).await?;
    let instances = history::step_instances(&run, &steps);
    let part = if args.decisions { Part::Decisions } else { Part::Steps };
    put(&text(&run, &instances, part, on.output, RenderOptions::for_stdout())?)?;
    Ok(Code::Done)
}

/// Which part of a history is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Steps,
    Decisions,
}

pub fn text(
    run: &Workflow,
    instances: &[StepInstance<'_>],
    part: Part,
    format: Format,
    options: RenderOptions,
) -> Result<String, Fault> {
    match (part, format.is_text()) {
        (Part::Decisions, true) => Ok(decisions(&history::human_input(instances), options)),
        (Part::Decisions, false) => print::plain_text(format, &value(&history::human_input(instances))?),
        (Part::Steps, true) => Ok(lines(run, instances, format, options)),
        (Part::Steps, false) => {
            let mut all = Map::new();
            all.insert("run".to_owned(), Value::String(run.name_any()));
            all.insert("namespace".to_owned(), Value::String(run.namespace().unwrap_or_default()));
            all.insert("steps".to_owned(), value(&entries(run, instances))?);
            all.insert("attempts".to_owned(), value(&history::attempts(instances))?);
            print::plain_text(format, &Value::Object(all))
        }
    }
}

fn value(of: &impl serde::Serialize) -> Result<Value, Fault> {
    serde_json::to_value(of).map_err(|wrong| Fault::new(Code::Api, format!("cannot print the history: {wrong}")))
}

/// As the run has ended: what never began is no longer to come.
fn entries(run: &Workflow, instances: &[StepInstance<'_>]) -> Vec<Entry> {
    let mut entries = history::entries(instances);
    for entry in entries.iter_mut().filter(|entry| control::over(run).is_some() && entry.status == Phase::Pending) {
        entry.status = Phase::Skipped;
    }
    entries
}

fn lines(run: &Workflow, instances: &[StepInstance<'_>], format: Format, options: RenderOptions) -> String {
    let tried = history::attempts(instances);
    let mut rows = Vec::new();
    for entry in entries(run, instances) {
        let of_step = tried.iter().filter(|t| format == Format::Wide && t.step_id == entry.step_id);
        rows.push(row(&entry));
        rows.extend(of_step.map(attempt));
    }
    table(&["STEPID", "STARTEDAT", "COMPLETEDAT", "STATUS", "INPUT", "OUTPUT"], &rows, options)
}

fn row(entry: &Entry) -> Vec<Cell> {
    vec![
        inline(&entry.step_id, 300).into(),
        time(entry.started_at.as_ref()).into(),
        time(entry.completed_at.as_ref()).into(),
        Cell::phase(entry.status),
        short(&entry.input).into(),
        short(&entry.output).into(),
    ]
}

fn attempt(tried: &AttemptRecord) -> Vec<Cell> {
    let a = &tried.attempt;
    let exit = a.exit_code.map_or_else(String::new, |code| format!(" (exit {code})"));
    vec![
        format!("  attempt {}, round {}", a.number, a.round).into(),
        time(a.started_at.as_ref()).into(),
        time(Some(&a.completed_at)).into(),
        format!("{}{exit}", a.result).into(),
        inline(&a.usage.as_ref().map(ToString::to_string).unwrap_or_default(), 200).into(),
        cut(&inline(a.message.as_deref().unwrap_or_default(), 400), 60).into(),
    ]
}

fn time(at: Option<&Time>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| clock(at.0))
}

fn short(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => cut(&inline(text, 400), 40),
        other => cut(&inline(&other.to_string(), 400), 40),
    }
}

fn decisions(said: &HumanInput, options: RenderOptions) -> String {
    let mut rows: Vec<(Option<Time>, Vec<String>)> = Vec::new();
    for d in &said.decisions {
        let one = &d.decision;
        let word = if one.accepted { "accepted" } else { "rejected" };
        rows.push((
            Some(one.decided_at.clone()),
            vec![
                inline(&d.step_id, 300),
                one.round.to_string(),
                word.to_owned(),
                inline(&one.decided_by, 256),
                clock(one.decided_at.0),
                inline(&one.document_type, 100),
                short_digest(&inline(&one.digest, 80)),
                inline(&one.scope_id, 300),
                inline(one.comment.as_deref().unwrap_or_default(), 1024),
            ],
        ));
    }
    let other = |step: &str, word: &str, by: &str, text: &str| {
        let mut row = vec![inline(step, 300), "-".to_owned(), word.to_owned(), inline(by, 256)];
        row.extend(["-", "-", "-", "-"].map(str::to_owned));
        row.push(inline(text, 1024));
        row
    };
    for a in &said.answers {
        let mut row = other(&a.step_id, "answered", &a.by, &a.value.to_string());
        row[4] = clock(a.at.0);
        rows.push((Some(a.at.clone()), row));
    }
    for a in &said.actions {
        let one = &a.action;
        let mut row = other(&a.step_id, one.action.past(), &one.by, one.comment.as_deref().unwrap_or_default());
        row[4] = clock(one.at.0);
        rows.push((Some(one.at.clone()), row));
    }
    rows.sort_by(|(a, _), (b, _)| a.cmp(b));
    // What was said along with an order stands in its row.
    let is_told = |g: &&Guided| {
        let told = |a: &Acted| (&a.step_id, a.action.attempt, &a.action.by) == (&g.step_id, g.attempt, &g.by);
        !said.actions.iter().any(|a| told(a) && a.action.comment.as_ref() == Some(&g.text))
    };
    let guided = said
        .guidance
        .iter()
        .filter(is_told)
        .map(|g| other(&g.step_id, &format!("said after attempt {}", g.attempt), &g.by, &g.text));
    let taken = said.taken_over.iter().map(|t| {
        let word = if t.counts { "taken over" } else { "accepted before" };
        other(&t.step_id, word, &t.decided_by.join(", "), &t.step_run)
    });
    let rows = rows.into_iter().map(|(_, row)| row).chain(guided).chain(taken);
    let rows: Vec<Vec<Cell>> = rows.map(|row| row.into_iter().map(Cell::from).collect()).collect();
    if rows.is_empty() {
        return "nobody has decided anything in this run\n".to_owned();
    }
    table(&["STEPID", "ROUND", "WHAT", "BY", "AT", "DOCUMENT", "DIGEST", "SCOPE", "COMMENT"], &rows, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_step_and_wide_its_attempts() {
        let (mut run, mut steps) = crate::cli::tree::sample::shop();
        if let Some(status) = &mut run.status {
            status.steps.push(crate::api::workflow::StepStatus { path: "extra".into(), ..Default::default() });
        }
        for status in steps.iter_mut().filter_map(|s| s.status.as_mut()).filter(|s| s.error.is_some()) {
            let a = serde_json::json!({"number": 1, "round": 1, "result": "Unrecoverable", "exitCode": 3, "completedAt": "2026-11-21T10:04:00Z"});
            status.attempts.extend(serde_json::from_value(a));
        }
        let instances = history::step_instances(&run, &steps);
        let first = |text: &str| -> Vec<String> {
            text.lines().map(|l| l.split("   ").next().unwrap_or_default().to_owned()).collect()
        };
        let table = lines(&run, &instances, Format::Table, RenderOptions::default());
        let ids =
            ["STEPID", "discovery", "backlog", "architecture", "architecture/E1", "architecture/E2", "report", "extra"];
        assert_eq!(first(&table), ids);
        assert!(table.contains("2026-11-21T10:00:00Z   2026-11-21T10:02:00Z   Completed"), "{table}");
        let wide = lines(&run, &instances, Format::Wide, RenderOptions::default());
        assert!(wide.contains("  attempt 1, round 1"), "{wide}");
        let said = decisions(&history::human_input(&instances), RenderOptions::default());
        assert!(said.contains("accepted   alice"), "{said}");
        let action = serde_json::json!({"action": "skip", "wait": "RetriesSpent", "attempt": 1, "by": "eve",
            "at": "2026-11-21T10:05:00Z", "comment": "not needed"});
        let guidance = serde_json::json!({"attempt": 1, "by": "eve", "text": "not needed"});
        for status in steps.iter_mut().filter_map(|s| s.status.as_mut()).filter(|s| s.error.is_some()) {
            status.actions.extend(serde_json::from_value(action.clone()));
            status.guidance.extend(serde_json::from_value(guidance.clone()));
        }
        let told = decisions(&history::human_input(&history::step_instances(&run, &steps)), RenderOptions::default());
        let rows: Vec<&str> = told.lines().filter(|l| l.contains("not needed")).collect();
        assert!(
            matches!(rows[..], [row] if row.contains("skipped") && row.contains("eve") && row.contains("2026-11-21T10:05:00Z")),
            "{told}"
        );
        assert!(!said.contains('\u{1b}'));
    }
}
