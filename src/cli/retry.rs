//! `retry`: a new run that goes on from a finished one.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::ResourceExt;
use kube::api::ListParams;

use super::complete;
use super::connect::Connection;
use super::control;
use super::fault::{Code, Fault};
use super::line::RenderOptions;
use super::mailbox::whoami;
use super::retry_plan::{self, RetryInput};
use super::run::{Naming, Then, made, start};
use super::table::{Cell, table};
use super::text::{Style, hanging, indent, inline, near};
use crate::api::definition::Definition;
use crate::api::workflow::{Phase, RetryOf};
use crate::api::{Agent, StepRun, Workflow, WorkflowTemplate};
use crate::decide::retry::{again, nothing_left, number_of, numbered, path_of as found};
use crate::definition::pinned;

/// Run again what did not complete in a finished run, as a new run
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Outputs and documents of what completed are taken over; the first step that did not complete starts. So are decisions,
where the gate asks for the same as then; else it opens again over what is there. A step whose Agent has another template
or other schemas by now runs again, unless --keep-results. The finished run stays as it is. Before the new run starts, standard
error says what is taken over, what runs again, and why.

Where the StepRuns of the finished run are gone (ttlSecondsAfterFinished) nothing can be taken over; --all runs all of it again.

Examples:
  kubectl lockstep retry shop
  kubectl lockstep retry shop --from architecture --name shop-again -w
  kubectl lockstep retry shop --all")]
pub struct Args {
    /// The finished run
    #[arg(add = complete::by(complete::runs))]
    run: String,
    /// Step to start from, even if it completed
    #[arg(long, value_name = "STEP")]
    from: Option<String>,
    /// Take results over though their Agent's template or schemas were changed since
    #[arg(long)]
    keep_results: bool,
    /// Take nothing over: run every step again, with the same parameters, input and documents
    #[arg(long, conflicts_with_all = ["from", "keep_results"])]
    all: bool,
    /// Name of the new run; RUN-r2, RUN-r3 ... unless told
    #[arg(long)]
    name: Option<String>,
    /// Watch the new run to its end; the exit code is then the run's
    #[arg(short, long)]
    watch: bool,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let old = control::run_of(on, &args.run, "retry").await?;
    let name = old.name_any();
    let Some((phase, _)) = control::over(&old) else {
        let phase = old.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
        return Err(Fault::new(
            Code::Failed,
            format!("{name} is not over ({phase}); to end it first: {} --wait", on.hint("cancel", &name)),
        ));
    };
    if phase == Phase::Completed && args.from.is_none() && !args.all {
        return Err(Fault::new(
            Code::Failed,
            format!(
                "{name} completed, nothing is left to retry; name the first step to run again with --from STEP, or run all of it again with --all"
            ),
        ));
    }
    let mut steps = on.step_runs(&name).await?;
    steps.retain(|step| old.metadata.uid.as_deref() == Some(&step.spec.workflow.uid));
    if let Some(why) = nothing_left(&old, &steps).filter(|_| !args.all) {
        return Err(Fault::usage(format!(
            "{why}; nothing can be taken over, every step would run again: to do that, say --all; nothing was started"
        )));
    }
    let from = args.from.as_deref().map(|step| path_of(&old, step)).transpose()?;
    let mut wanted = again(&old, from);
    if args.all {
        wanted.spec.retry_of = None;
        eprintln!("every step of {name} runs again, nothing is taken over");
    }
    if let Some(of) = &mut wanted.spec.retry_of {
        of.keep_results = args.keep_results;
        tell(on, &old, &steps, of).await?;
    }
    let mut number = number_of(&name).map_or(1, |(_, n)| n);
    let naming = match &args.name {
        Some(own) => Naming::Given(own.clone()),
        None => Naming::Tried(Box::new(move || {
            number += 1;
            numbered(&name, number)
        })),
    };
    let new = start(on, wanted, naming).await?;
    made(on, new, if args.watch { Then::Watch } else { Then::Leave }).await
}

/// Prints on standard error which results the new run takes over and what runs again.
async fn tell(on: &Connection, old: &Workflow, steps: &[StepRun], of: &RetryOf) -> Result<(), Fault> {
    let then = kept(on, old).await;
    let template = match &old.spec.template_ref {
        Some(template) => on.read::<WorkflowTemplate>("read the template", &template.name).await,
        None => Ok(None),
    };
    // Who may not read the template is told by what the old run kept of it.
    let (list, order) = match (&old.spec.template_ref, template.ok().flatten(), &then) {
        (None, ..) => (old.spec.steps.clone(), old.spec.order),
        (Some(_), Some(now), _) => (now.spec.steps, now.spec.order),
        (Some(_), None, Some(then)) => (then.steps.clone(), Some(then.order)),
        (Some(_), None, None) => return Ok(()),
    };
    let agents = on.list("list the Agents", on.api::<Agent>(), &ListParams::default()).await.ok();
    let agents: Option<BTreeMap<String, Agent>> =
        agents.map(|list| list.items.into_iter().map(|agent| (agent.name_any(), agent)).collect());
    let by = whoami(on).await?;
    let plan = retry_plan::plan(&RetryInput {
        old,
        step_runs: steps,
        steps: &list,
        order: order.unwrap_or_default(),
        then: then.as_ref(),
        agents: agents.as_ref(),
        from: of.from.as_deref(),
        keep_results: of.keep_results,
        by: by.as_deref(),
    });
    eprint!("{}", text(&old.name_any(), &plan, RenderOptions::for_stderr()));
    Ok(())
}

/// The plan of a retry as a table, for people.
pub fn text(old: &str, plan: &[(String, String)], options: RenderOptions) -> String {
    let rows: Vec<Vec<Cell>> = plan
        .iter()
        .map(|(path, action)| {
            let style = if action.contains("again") { Style::Busy } else { Style::Good };
            vec![inline(path, 300).into(), Cell::of(inline(action, 1024), style)]
        })
        .collect();
    let table = table(&["STEP", "WHAT BECOMES OF IT"], &rows, options.within(2));
    let last = "Where a document, a template or a parameter gives a step something else than then, it runs again, too.";
    format!("{old} is retried:\n{}{}", indent(&table, "  "), hanging(last, options.window))
}

/// The definition that a run keeps; none where it may not be read.
async fn kept(on: &Connection, run: &Workflow) -> Option<Definition> {
    let kept = run.status.as_ref()?.definition.as_ref()?;
    let read = on.call("read the definition", on.api::<ControllerRevision>().get_opt(&kept.revision_name)).await;
    pinned::compared(read.ok()??.data?.0, &kept.digest).ok()
}

/// The step's path in the finished run.
fn path_of(old: &Workflow, wanted: &str) -> Result<String, Fault> {
    if let Some(path) = found(old, wanted) {
        return Ok(path);
    }
    let paths: Vec<String> =
        old.status.as_ref().map(|s| s.steps.iter().map(|s| s.path.clone()).collect()).unwrap_or_default();
    let name = old.name_any();
    let remedy = match near(wanted, &paths).as_slice() {
        [] if paths.is_empty() => "it never came to its steps; leave --from out".to_owned(),
        [] => format!("it has {}", super::text::inline(&paths.join(", "), 600)),
        close => format!("did you mean {}?", close.join(" or ")),
    };
    Err(Fault::missing(format!("--from: the run {name} has no step {wanted}; {remedy}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::retry::tests::old;

    #[test]
    fn the_first_step_is_one_of_the_run() {
        let table = [("a", Ok("a")), ("g/b", Ok("g/b")), ("b", Ok("g/b")), ("zzz", Err("it has a, g/b"))];
        for (wanted, expected) in table {
            match (path_of(&old(), wanted), expected) {
                (Ok(path), Ok(expected)) => assert_eq!(path, expected),
                (Err(fault), Err(part)) => assert!(fault.text.contains(part), "{}", fault.text),
                (other, _) => panic!("{wanted}: {other:?}"),
            }
        }
    }
}
