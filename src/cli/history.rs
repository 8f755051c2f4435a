//! `history`: what every step of a run got and gave, and what people decided. Also of runs that are over.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::{Map, Value};

use super::connect::Connection;
use super::control;
use super::fault::{Code, Fault};
use super::print::{self, Format, put};
use super::text::{clock, cut, hanging, inline, reader, short_digest, table};
use crate::decide::history::{self, Acted, Entry, Guided, Place, Said, Tried};

/// Show every step of a run with its input and output, or all decisions
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The table cuts inputs and outputs short, -o json has them whole; -o wide adds the attempts of each step. An output that
stands in a Document alone is told by the document's name and digest.

Examples:
  kubectl lockstep history shop
  kubectl lockstep history shop -o json | jq '.steps[] | {StepId, Output}'
  kubectl lockstep history shop --decisions")]
pub struct Args {
    /// The run
    run: String,
    /// What people decided and answered instead of the steps
    #[arg(long)]
    decisions: bool,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let run = control::run_of(on, &args.run, "history").await?;
    let steps = on.step_runs(&run.name_any()).await?;
    let places = history::places(&run, &steps);
    let text = on.output.is_text();
    if args.decisions {
        let said = history::said(&places);
        if text {
            put(&hanging(&decisions(&said), reader()))?;
        } else {
            print::plain(on.output, &value(&said)?)?;
        }
    } else if text {
        put(&lines(&places, on.output))?;
    } else {
        let mut all = Map::new();
        all.insert("run".to_owned(), Value::String(run.name_any()));
        all.insert("namespace".to_owned(), Value::String(run.namespace().unwrap_or_default()));
        all.insert("steps".to_owned(), value(&history::entries(&places))?);
        all.insert("attempts".to_owned(), value(&history::attempts(&places))?);
        print::plain(on.output, &Value::Object(all))?;
    }
    Ok(Code::Done)
}

fn value(of: &impl serde::Serialize) -> Result<Value, Fault> {
    serde_json::to_value(of).map_err(|wrong| Fault::new(Code::Api, format!("cannot print the history: {wrong}")))
}

fn lines(places: &[Place<'_>], format: Format) -> String {
    let tried = history::attempts(places);
    let mut rows = Vec::new();
    for entry in history::entries(places) {
        let of_step = tried.iter().filter(|t| format == Format::Wide && t.step_id == entry.step_id);
        rows.push(row(&entry));
        rows.extend(of_step.map(attempt));
    }
    table(&["STEPID", "STARTEDAT", "COMPLETEDAT", "STATUS", "INPUT", "OUTPUT"], &rows)
}

fn row(entry: &Entry) -> Vec<String> {
    vec![
        inline(&entry.step_id, 300),
        time(entry.started_at.as_ref()),
        time(entry.completed_at.as_ref()),
        entry.status.to_string(),
        short(&entry.input),
        short(&entry.output),
    ]
}

fn attempt(tried: &Tried) -> Vec<String> {
    let a = &tried.attempt;
    let exit = a.exit_code.map_or_else(String::new, |code| format!(" (exit {code})"));
    vec![
        format!("  attempt {}, round {}", a.number, a.round),
        time(a.started_at.as_ref()),
        time(Some(&a.completed_at)),
        format!("{}{exit}", a.result),
        String::new(),
        cut(&inline(a.message.as_deref().unwrap_or_default(), 400), 60),
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

fn decisions(said: &Said) -> String {
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
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, row)| row).chain(guided).chain(taken).collect();
    if rows.is_empty() {
        return "nobody has decided anything in this run\n".to_owned();
    }
    table(&["STEPID", "ROUND", "WHAT", "BY", "AT", "DOCUMENT", "DIGEST", "SCOPE", "COMMENT"], &rows)
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
        let places = history::places(&run, &steps);
        let first = |text: &str| -> Vec<String> {
            text.lines().map(|l| l.split("   ").next().unwrap_or_default().to_owned()).collect()
        };
        let table = lines(&places, Format::Table);
        let ids =
            ["STEPID", "discovery", "backlog", "architecture", "architecture/E1", "architecture/E2", "report", "extra"];
        assert_eq!(first(&table), ids);
        assert!(table.contains("2026-11-21T10:00:00Z   2026-11-21T10:02:00Z   Completed"), "{table}");
        let wide = lines(&places, Format::Wide);
        assert!(wide.contains("  attempt 1, round 1"), "{wide}");
        let said = decisions(&history::said(&places));
        assert!(said.contains("accepted   alice"), "{said}");
        let action = serde_json::json!({"action": "skip", "wait": "RetriesSpent", "attempt": 1, "by": "eve",
            "at": "2026-11-21T10:05:00Z", "comment": "not needed"});
        let guidance = serde_json::json!({"attempt": 1, "by": "eve", "text": "not needed"});
        for status in steps.iter_mut().filter_map(|s| s.status.as_mut()).filter(|s| s.error.is_some()) {
            status.actions.extend(serde_json::from_value(action.clone()));
            status.guidance.extend(serde_json::from_value(guidance.clone()));
        }
        let told = decisions(&history::said(&history::places(&run, &steps)));
        let rows: Vec<&str> = told.lines().filter(|l| l.contains("not needed")).collect();
        assert!(
            matches!(rows[..], [row] if row.contains("skipped") && row.contains("eve") && row.contains("2026-11-21T10:05:00Z")),
            "{told}"
        );
        assert!(!said.contains('\u{1b}'));
    }
}
