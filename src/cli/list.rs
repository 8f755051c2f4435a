//! `list`: the runs.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;

use super::complete;
use super::connect::{Connection, Everywhere, Reach};
use super::fault::{Code, Fault};
use super::held;
use super::line::RenderOptions;
use super::print::{self, Format, put};
use super::table::{Cell, table};
use super::text::{Style, age, inline};
use super::tree;
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow, condition};

/// List runs with phase, step and what they wait for
#[derive(clap::Args, Debug)]
#[command(
    visible_alias = "ls",
    after_help = "\
WAITING says what people are asked for, or why a run or one of its steps cannot start. -o wide adds template, session, and
reason and message of the condition Succeeded.

Examples:
  kubectl lockstep list
  kubectl lockstep list -A -o wide"
)]
pub struct Args {
    #[command(flatten)]
    everywhere: Everywhere,
    /// Only runs of this session
    #[arg(long, add = complete::by(complete::sessions))]
    session: Option<String>,
}

pub async fn run(on: &Connection, args: Args) -> Result<Code, Fault> {
    let reach = args.everywhere.reach();
    let mut params = ListParams::default();
    if let Some(session) = &args.session {
        params = params.fields(&format!("spec.session={session}"));
    }
    let mut runs = on.list("list the runs", on.reaching::<Workflow>(reach), &params).await?.items;
    runs.sort_by_key(|run| (run.namespace(), run.creation_timestamp(), run.name_any()));
    if !on.output.is_text() {
        print::list(on.output, "Workflow", &runs)?;
        return Ok(Code::Done);
    }
    if runs.is_empty() {
        eprintln!("no runs; start one with kubectl lockstep run TEMPLATE");
        return Ok(Code::Done);
    }
    let steps = if runs.iter().any(is_open) { beginning(on, reach).await } else { Vec::new() };
    let which = Which { namespaces: reach == Reach::Cluster, wide: on.output == Format::Wide };
    put(&text(&runs, &steps, which, Timestamp::now(), RenderOptions::for_stdout()))?;
    Ok(Code::Done)
}

fn is_open(run: &Workflow) -> bool {
    !run.status.as_ref().and_then(|s| s.phase).is_some_and(Phase::is_terminal)
}

/// StepRuns that have begun and may be held. Who may not list them is told what the runs say.
pub async fn beginning(on: &Connection, reach: Reach) -> Vec<StepRun> {
    let mut steps = Vec::new();
    for phase in [Phase::Pending, Phase::Running] {
        let params = ListParams::default().fields(&format!("status.phase={phase}"));
        let listed = on.list("list the steps that begin", on.reaching::<StepRun>(reach), &params).await;
        steps.extend(listed.map(|list| list.items).unwrap_or_default());
    }
    steps
}

/// Which columns there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Which {
    pub namespaces: bool,
    pub wide: bool,
}

pub fn text(runs: &[Workflow], steps: &[StepRun], which: Which, now: Timestamp, options: RenderOptions) -> String {
    let mut heads = vec!["NAME", "PHASE", "STEP", "WAITING", "AGE"];
    if which.namespaces {
        heads.insert(0, "NAMESPACE");
    }
    if which.wide {
        heads.extend(["TEMPLATE", "SESSION", "REASON", "MESSAGE"]);
    }
    let rows: Vec<Vec<Cell>> = runs.iter().map(|run| row(run, steps, which, now)).collect();
    table(&heads, &rows, options)
}

fn row(run: &Workflow, steps: &[StepRun], which: Which, now: Timestamp) -> Vec<Cell> {
    let status = run.status.clone().unwrap_or_default();
    let mut cells: Vec<Cell> = Vec::new();
    if which.namespaces {
        cells.push(run.namespace().unwrap_or_default().into());
    }
    let phase = status.phase.unwrap_or_default();
    cells.extend([
        Cell::of(run.name_any(), Style::Bold),
        Cell::phase(phase),
        inline(&status.current_step.clone().unwrap_or_default(), 60).into(),
        waiting(run, steps, which).into(),
        age(run.metadata.creation_timestamp.as_ref(), now).into(),
    ]);
    if which.wide {
        let succeeded = condition::get(&status.conditions, "Succeeded");
        let session = status.session.as_ref().map(|s| s.id.clone()).unwrap_or_default();
        cells.extend([
            run.spec.template_ref.as_ref().map_or_else(|| "-".to_owned(), |t| t.name.clone()).into(),
            inline(&session, 80).into(),
            succeeded.map_or_else(String::new, |c| inline(&c.reason, 80)).into(),
            succeeded.map_or_else(String::new, |c| inline(&c.message, 200)).into(),
        ]);
    }
    cells
}

/// What people are asked for, and why nothing starts.
fn waiting(run: &Workflow, steps: &[StepRun], which: Which) -> String {
    let Some(status) = run.status.as_ref().filter(|_| is_open(run)) else { return String::new() };
    let own = |step: &&StepRun| {
        step.namespace() == run.namespace() && run.metadata.uid.as_deref() == Some(&step.spec.workflow.uid)
    };
    let steps: Vec<&StepRun> = steps.iter().filter(own).collect();
    let mut parts: Vec<String> = status.waiting.iter().map(|waiting| inline(&waiting.summary, 64)).collect();
    match held::all(run, &steps) {
        // The last column says it.
        Some(_) if which.wide && held::run(run).is_some() => {}
        Some(why) => parts.push(why),
        None if !status.pending_documents.is_empty() => parts.push(tree::documents(&status.pending_documents)),
        None => {}
    }
    parts.retain(|part| !part.is_empty());
    parts.join("; ")
}
