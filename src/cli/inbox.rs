//! `inbox`: what waits for people, with the command for each.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;

use super::actions;
use super::asked;
use super::connect::{Connection, Everywhere, Reach};
use super::fault::{Code, Fault};
use super::held;
use super::line::RenderOptions;
use super::list::beginning;
use super::print::{self, Format, put};
use super::rows::so_far;
use super::table::{Cell, table};
use super::target::{label, waits_at_own_gate, waits_for_answer};
use super::text::{Style, age, indent, inline, quote};
use super::wait::{self, Signature, Ways};
use crate::api::step_run::WaitKind;
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};

/// List what waits for a decision or an answer, with the command for each, and what cannot start
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Below what people are asked for stand runs and steps that cannot start until somebody mends something: an image, a Secret,
a quota, an Agent, a document. -o json, yaml and name list the StepRuns that people are asked about.

Examples:
  kubectl lockstep inbox
  kubectl lockstep inbox -A -o wide   # with the plain kubectl commands")]
pub struct Args {
    #[command(flatten)]
    everywhere: Everywhere,
}

pub async fn run(on: &Connection, args: Args) -> Result<Code, Fault> {
    let reach = args.everywhere.reach();
    let mut steps = Vec::new();
    for phase in [Phase::WaitingForAcceptance, Phase::WaitingForInput] {
        let params = ListParams::default().fields(&format!("status.phase={phase}"));
        steps.extend(on.list("list what waits", on.reaching::<StepRun>(reach), &params).await?.items);
    }
    steps.sort_by_key(since);
    if !on.output.is_text() {
        print::list(on.output, "StepRun", &steps)?;
        return Ok(Code::Done);
    }
    let mut stuck = beginning(on, reach).await;
    stuck.retain(held::is_stuck);
    let runs = waiting_runs(on, reach).await;
    if steps.is_empty() && stuck.is_empty() && runs.is_empty() {
        eprintln!("nothing waits for people");
        return Ok(Code::Done);
    }
    let signature = if on.output == Format::Wide { Some(Signature::probable(on).await) } else { None };
    let all = Waiting { steps, stuck, runs };
    put(&text(&all, signature, Timestamp::now(), RenderOptions::for_stdout()))?;
    Ok(Code::Done)
}

/// Runs that cannot start or lack documents, as far as they may be listed.
async fn waiting_runs(on: &Connection, reach: Reach) -> Vec<Workflow> {
    let mut runs = Vec::new();
    for phase in [Phase::Pending, Phase::WaitingForDocuments] {
        let params = ListParams::default().fields(&format!("status.phase={phase}"));
        let listed = on.list("list the runs that wait", on.reaching::<Workflow>(reach), &params).await;
        runs.extend(listed.map(|list| list.items).unwrap_or_default());
    }
    runs.retain(held::is_run_stuck);
    runs
}

/// All that waits.
#[derive(Default)]
pub struct Waiting {
    /// At gates, and for answers.
    pub steps: Vec<StepRun>,
    /// That cannot start.
    pub stuck: Vec<StepRun>,
    /// The same of whole runs.
    pub runs: Vec<Workflow>,
}

/// What people are asked for; with a signature also by plain kubectl. Then what cannot start.
pub fn text(all: &Waiting, signature: Option<Signature>, now: Timestamp, options: RenderOptions) -> String {
    let mut text = String::new();
    if let Some(signature) = signature {
        let ways = |step: &StepRun| Ways::Kubectl(Signature::told(step).unwrap_or(signature));
        let each: Vec<String> = all.steps.iter().map(|step| wait::text(step, ways(step), options)).collect();
        text.push_str(&each.join("\n"));
    } else if !all.steps.is_empty() {
        let each: Vec<StepRun> = all.steps.iter().flat_map(waits).collect();
        let rows: Vec<Vec<Cell>> = each.iter().map(|step| row(step, now)).collect();
        text.push_str(&table(&["NAMESPACE", "STEP", "WAITS FOR", "SINCE"], &rows, options));
        let commands: Vec<String> = each.iter().map(wait::command).collect();
        text.push('\n');
        text.push_str(&indent(&commands.join("\n"), "  "));
    }
    let held = held_up(all, now);
    if !held.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table(&["NAMESPACE", "CANNOT START", "WHY", "SINCE"], &held, options));
    }
    text
}

fn since(step: &StepRun) -> Option<Timestamp> {
    let status = step.status.as_ref()?;
    let gate = status.gate.as_ref().map(|gate| &gate.opened_at);
    let wait = status.waiting_for.as_ref().map(|wait| &wait.since);
    wait.or(gate).map(|at| at.0)
}

/// A step for each of its waits: the actions that its agent requested, and its own.
fn waits(step: &StepRun) -> Vec<StepRun> {
    let mut all = actions::waiting(step);
    if all.is_empty() || waits_at_own_gate(step) || waits_for_answer(step) {
        let mut own = step.clone();
        own.status.iter_mut().for_each(|status| status.approval_requests.clear());
        all.push(own);
    }
    all
}

fn row(step: &StepRun, now: Timestamp) -> Vec<Cell> {
    let target = format!("{}/{}", step.spec.workflow.name, label(step));
    let at = since(step).map(Time);
    vec![
        step.namespace().unwrap_or_default().into(),
        Cell::of(inline(&target, 300), Style::Bold),
        Cell::of(inline(&what(step), 200), Style::Wait),
        age(at.as_ref(), now).into(),
    ]
}

/// What it waits for, in words.
fn what(step: &StepRun) -> String {
    let status = step.status.clone().unwrap_or_default();
    if let Some(request) = actions::of_view(step) {
        let so_far = so_far(step).map_or_else(String::new, |so_far| format!(", {so_far} accepted"));
        return format!("a decision on an action at the gate {}{so_far}: {}", request.gate_name, request.action);
    }
    if waits_at_own_gate(step) {
        let gate = step.spec.gate.as_ref().map_or("", |gate| &gate.name);
        let so_far = so_far(step).map_or_else(String::new, |so_far| format!(", {so_far} accepted"));
        return format!("a decision at the gate {gate}, round {}{so_far}", status.round);
    }
    let Some(wait) = &status.waiting_for else { return String::new() };
    let word = match wait.kind {
        WaitKind::Question => "an answer",
        WaitKind::BudgetSpent => "a higher budget",
        WaitKind::OutcomeUnknown => "whether it may run again",
        WaitKind::RetriesSpent | WaitKind::InfrastructureSpent | WaitKind::RoundsSpent => "what becomes of it",
    };
    let taken = wait.schema.as_deref().map_or_else(String::new, |schema| format!(" ({})", asked::in_words(schema, 80)));
    format!("{word}: {}{taken}", wait.question)
}

fn held_up(all: &Waiting, now: Timestamp) -> Vec<Vec<Cell>> {
    let of_runs = all.runs.iter().filter_map(|run| {
        let why = held::beside(run, &all.stuck)?;
        Some(held_row(run.namespace(), &run.name_any(), &why, run.metadata.creation_timestamp.as_ref(), now))
    });
    let of_steps = all.stuck.iter().map(|step| {
        let status = step.status.clone().unwrap_or_default();
        let target = format!("{}/{}", step.spec.workflow.name, label(step));
        held_row(step.namespace(), &target, &held::step(&status).unwrap_or_default(), held::since(&status), now)
    });
    of_runs.chain(of_steps).collect()
}

fn held_row(namespace: Option<String>, target: &str, why: &str, at: Option<&Time>, now: Timestamp) -> Vec<Cell> {
    vec![
        namespace.unwrap_or_default().into(),
        Cell::of(quote(target), Style::Bold),
        Cell::of(why, Style::Bad),
        age(at, now).into(),
    ]
}
