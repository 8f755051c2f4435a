//! `show`: a run or a step, once, in full.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use std::fmt::Write as _;

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::line::View;
use super::print::put;
use super::target::{self, Target, waits_at_gate, waits_for_answer};
use super::text::{colours, hanging, inline, reader, table};
use super::{print, step_page, tree};
use crate::api::{StepRun, Workflow};

/// Show a run, or one step of it with its output and what it waits for
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Text of others is shown as it is, except that what a terminal would obey or hide is written out, as \\u{202e}.
Output and document are held against what the step reported: if they were exchanged they are not shown, and the exit code
is 6; so it is where the document that is to be decided on is gone.

Examples:
  kubectl lockstep show shop
  kubectl lockstep show shop/discovery
  kubectl lockstep show shop/architecture/E1 -o yaml")]
pub struct Args {
    /// RUN, RUN/STEP, RUN/STEP/KEY or the name of a StepRun
    target: String,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let target = Target::parse(&args.target)?;
    if let Target::Name(name) = &target {
        let what = format!("read the run {name}");
        if let Some(run) = on.call(&what, on.api::<Workflow>().get_opt(name)).await? {
            return page(on, &run).await;
        }
        let what = format!("read the step {name}");
        let step = on.call(&what, on.api::<StepRun>().get_opt(name)).await?;
        return match step {
            Some(step) => step_page::show(on, &step).await,
            None => Err(on.unknown::<Workflow>("run or step", name).await),
        };
    }
    let waiting = |step: &StepRun| waits_at_gate(step) || waits_for_answer(step);
    let step = target::find(on, &target, waiting).await?;
    step_page::show(on, &step).await
}

async fn page(on: &Connection, run: &Workflow) -> Result<Code, Fault> {
    let steps = on.step_runs(&run.name_any()).await?;
    if !on.output.is_text() {
        print::object(on.output, "Workflow", run)?;
        return Ok(Code::Done);
    }
    let view = View { colours: colours(), width: reader(), ..View::default() };
    let drawn = tree::draw(run, &steps, Timestamp::now(), view);
    put(&format!("{}\n{}", drawn.lines.join("\n"), hanging(&facts(run), reader())))?;
    Ok(Code::Done)
}

fn facts(run: &Workflow) -> String {
    let status = run.status.clone().unwrap_or_default();
    let mut text = String::from("\n");
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            writeln!(text, "{name:<20}{}", inline(&value, 1024)).ok();
        }
    };
    fact("Template", run.spec.template_ref.as_ref().map(|t| t.name.clone()));
    fact("Session", status.session.map(|s| format!("{} ({:?})", s.id, s.phase)));
    fact("Created by", status.creator);
    let old = run.spec.retry_of.as_ref();
    fact("Retry of", old.map(|o| o.from.as_ref().map_or(o.name.clone(), |from| format!("{}, from {from}", o.name))));
    fact("Project", run.spec.project.clone());
    fact("Output", status.output.map(|o| o.value.or(o.document_name).unwrap_or(o.digest)));
    fact("Input", run.spec.input.clone());
    fact("Pending documents", Some(status.pending_documents.join(", ")));
    if !status.conditions.is_empty() {
        let rows: Vec<Vec<String>> = status
            .conditions
            .iter()
            .map(|c| vec![inline(&c.type_, 64), inline(&c.status, 16), inline(&c.reason, 64), inline(&c.message, 1024)])
            .collect();
        text.push('\n');
        text.push_str(&table(&["CONDITION", "STATUS", "REASON", "MESSAGE"], &rows));
    }
    text
}
