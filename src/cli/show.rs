//! `show`: a run or a step, once, in full.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::complete;
use super::connect::Connection;
use super::fault::{Code, Fault};
use super::line::{Line, RenderOptions};
use super::print::{Format, put};
use super::resolve::{self, ResolvedStep};
use super::table::{Cell, table};
use super::target::Target;
use super::text::{Style, inline};
use super::wait::{self, Ways};
use super::{print, step_page, tree};
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow, condition};

/// Show a run, or one step of it with its output and what it waits for
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Text of others is shown as it is, except that what a terminal would obey or hide is written out, as \\u{202e}.
Output and document are held against what the step reported: if they were exchanged they are not shown, and the exit code
is 6; so it is where the document that is to be decided on is gone.

A step of a forEach is shown as a table of its items, a group as its steps. -o wide shows all conditions of a run, too.

Examples:
  kubectl lockstep show shop
  kubectl lockstep show shop/discovery
  kubectl lockstep show shop/architecture
  kubectl lockstep show shop/architecture/E1 -o yaml")]
pub struct Args {
    /// RUN, RUN/STEP, RUN/GROUP, RUN/STEP/KEY or the name of a StepRun
    #[arg(add = complete::by(complete::targets))]
    target: String,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let (run, wanted) = match Target::parse(&args.target)? {
        Target::Name(name) => return Box::pin(by_name(on, &name)).await,
        Target::Step(run, wanted) => (on.workflow(&run).await?, wanted),
    };
    let mut steps = on.step_runs(&run.name_any()).await?;
    steps.retain(|step| run.metadata.uid.as_deref() == Some(&step.spec.workflow.uid));
    let found = match resolve::find(&run, &steps, &wanted)? {
        ResolvedStep::Step(step) => return step_page::show(on, step).await,
        other => other,
    };
    if !on.output.is_text() {
        print::list(on.output, "StepRun", &found.step_runs(&run, &steps)?)?;
        return Ok(Code::Done);
    }
    put(&resolve::page(&run, &steps, &found, Timestamp::now(), RenderOptions::for_stdout()))?;
    Ok(Code::Done)
}

async fn by_name(on: &Connection, name: &str) -> Result<Code, Fault> {
    if let Some(run) = on.read::<Workflow>(&format!("read the run {name}"), name).await? {
        let steps = on.step_runs(name).await?;
        if on.output.is_text() {
            put(&text(&run, &steps, on.output, Timestamp::now(), RenderOptions::for_stdout()))?;
        } else {
            print::object(on.output, "Workflow", &run)?;
        }
        return Ok(Code::Done);
    }
    match on.read::<StepRun>(&format!("read the step {name}"), name).await? {
        Some(step) => step_page::show(on, &step).await,
        None => Err(on.unknown::<Workflow>("run or step", name).await),
    }
}

/// The page of a run: its steps, what waits for people with the commands, and what else is known.
pub fn text(run: &Workflow, steps: &[StepRun], format: Format, now: Timestamp, options: RenderOptions) -> String {
    let mut text = tree::page(run, steps, now, options);
    for step in wait::open(run, steps) {
        text.push('\n');
        text.push_str(&wait::text(step, Ways::Asked, options));
    }
    let facts = facts(run, options);
    if !facts.is_empty() {
        text.push('\n');
        text.push_str(&facts);
    }
    let conditions = conditions(run, format, options);
    if !conditions.is_empty() {
        text.push('\n');
        text.push_str(&conditions);
    }
    text
}

fn facts(run: &Workflow, options: RenderOptions) -> String {
    let status = run.status.clone().unwrap_or_default();
    let mut text = String::new();
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            let name = (format!("{name:<12}"), Style::Bold);
            text.push_str(&Line::of(vec![name, (inline(&value, 1024), Style::Plain)]).folded(options));
        }
    };
    fact("Template", run.spec.template_ref.as_ref().map(|t| t.name.clone()));
    fact("Session", status.session.map(|s| format!("{} ({:?})", s.id, s.phase)));
    fact("Created by", status.creator);
    let old = run.spec.retry_of.as_ref();
    fact("Retry of", old.map(|o| o.from.as_ref().map_or(o.name.clone(), |from| format!("{}, from {from}", o.name))));
    fact("Project", run.spec.project.clone());
    fact("Used", status.usage.map(|usage| usage.to_string()));
    fact("Output", status.output.map(|o| o.value.or(o.document_name).unwrap_or(o.digest)));
    fact("Input", run.spec.input.clone());
    text
}

/// The conditions that say something that does not stand on the page yet; with `-o wide` all of them.
fn conditions(run: &Workflow, format: Format, options: RenderOptions) -> String {
    let Some(status) = &run.status else { return String::new() };
    // The first line of the page says these.
    let mut told: Vec<&str> = vec!["", "cancelled"];
    told.extend(status.waiting.as_ref().map(|waiting| waiting.summary.as_str()));
    let phase = status.phase.unwrap_or_default();
    if phase.is_terminal() || matches!(phase, Phase::Pending | Phase::WaitingForDocuments | Phase::Suspended) {
        told.extend(condition::get(&status.conditions, "Succeeded").map(|c| c.message.as_str()));
    }
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for c in &status.conditions {
        let is_new = !told.contains(&c.message.as_str());
        if is_new || format == Format::Wide {
            let message = if is_new { inline(&c.message, 1024) } else { String::new() };
            rows.push(vec![
                inline(&c.type_, 64).into(),
                inline(&c.status, 16).into(),
                inline(&c.reason, 64).into(),
                message.into(),
            ]);
        }
        told.push(&c.message);
    }
    if rows.is_empty() { String::new() } else { table(&["CONDITION", "STATUS", "REASON", "MESSAGE"], &rows, options) }
}
