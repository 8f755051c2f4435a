//! `retry`: a new run that goes on from a finished one.

use kube::ResourceExt;

use super::connect::Connection;
use super::control;
use super::fault::{Code, Fault};
use super::run::{Naming, Then, made, start};
use super::text::near;
use crate::api::limits::NAME_CHARS;
use crate::api::workflow::{Phase, RetryOf};
use crate::api::{Workflow, WorkflowSpec};

/// Run again what did not complete in a finished run, as a new run
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Outputs and documents of what completed are taken over; the first step that did not complete starts. So are decisions,
where the gate asks for the same as then; else it opens again over what is there. A step whose Agent has another template
or other schemas by now runs again, unless --keep-results. The finished run stays as it is.

Examples:
  kubectl lockstep retry shop
  kubectl lockstep retry shop --from architecture --name shop-again -w")]
pub struct Args {
    /// The finished run
    run: String,
    /// Step to start from, even if it completed
    #[arg(long, value_name = "STEP")]
    from: Option<String>,
    /// Take results over though their Agent's template or schemas were changed since
    #[arg(long)]
    keep_results: bool,
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
    if phase == Phase::Completed && args.from.is_none() {
        return Err(Fault::new(
            Code::Failed,
            format!("{name} completed, nothing is left to retry; name the first step to run again with --from STEP"),
        ));
    }
    let from = args.from.as_deref().map(|step| path_of(&old, step)).transpose()?;
    let mut wanted = again(&old, from);
    if let Some(of) = &mut wanted.spec.retry_of {
        of.keep_results = args.keep_results;
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

/// The step's path in the finished run.
fn path_of(old: &Workflow, wanted: &str) -> Result<String, Fault> {
    let paths: Vec<String> =
        old.status.as_ref().map(|s| s.steps.iter().map(|s| s.path.clone()).collect()).unwrap_or_default();
    let bare = |path: &&String| *path == wanted || path.rsplit('/').next() == Some(wanted);
    if let Some(path) = paths.iter().find(bare) {
        return Ok(path.clone());
    }
    let name = old.name_any();
    let remedy = match near(wanted, &paths).as_slice() {
        [] if paths.is_empty() => "it never came to its steps; leave --from out".to_owned(),
        [] => format!("it has {}", super::text::inline(&paths.join(", "), 600)),
        close => format!("did you mean {}?", close.join(" or ")),
    };
    Err(Fault::missing(format!("--from: the run {name} has no step {wanted}; {remedy}")))
}

/// The same wish once more: what was said of the old run's course is left out.
fn again(old: &Workflow, from: Option<String>) -> Workflow {
    let retry_of = RetryOf { name: old.name_any(), uid: old.uid().unwrap_or_default(), from, keep_results: false };
    Workflow::new("", WorkflowSpec { retry_of: Some(retry_of), suspend: None, cancel: None, ..old.spec.clone() })
}

/// `shop-r3` as `shop` and 3.
fn number_of(name: &str) -> Option<(&str, u32)> {
    let (head, digits) = name.rsplit_once("-r")?;
    Some((head, digits.parse().ok()?)).filter(|(head, _)| !head.is_empty())
}

fn numbered(name: &str, number: u32) -> String {
    let head = number_of(name).map_or(name, |(head, _)| head);
    let tail = format!("-r{number}");
    let head: String = head.chars().take(NAME_CHARS - tail.len()).collect();
    format!("{}{tail}", head.trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::workflow::{StepStatus, TemplateRef, WorkflowStatus};

    fn old() -> Workflow {
        let spec = WorkflowSpec {
            template_ref: Some(TemplateRef { name: "default".into() }),
            input: Some("bikes".into()),
            session: Some("s".into()),
            timeout_seconds: Some(5),
            cancel: Some(true),
            suspend: Some(true),
            ..WorkflowSpec::default()
        };
        let mut run = Workflow::new("shop", spec);
        run.metadata.uid = Some("uid".into());
        let step = |path: &str| StepStatus { path: path.into(), ..StepStatus::default() };
        run.status = Some(WorkflowStatus { steps: vec![step("a"), step("g/b")], ..WorkflowStatus::default() });
        run
    }

    #[test]
    fn a_retry_wishes_the_same_and_names_what_it_goes_on_from() {
        let old = old();
        let new = again(&old, Some("g/b".into()));
        let retry_of =
            RetryOf { name: "shop".into(), uid: "uid".into(), from: Some("g/b".into()), keep_results: false };
        assert_eq!(
            new.spec,
            WorkflowSpec { retry_of: Some(retry_of), cancel: None, suspend: None, ..old.spec.clone() }
        );
        assert!(new.status.is_none());
    }

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

    #[test]
    fn names_are_numbered_and_fit() {
        let long = "x".repeat(52);
        let cut = format!("{}-r10", "x".repeat(48));
        for (name, number, expected) in
            [("shop", 2, "shop-r2"), ("shop-r2", 3, "shop-r3"), ("my-run", 2, "my-run-r2"), (&long, 10, &cut)]
        {
            assert_eq!(numbered(name, number), expected);
        }
        assert_eq!((number_of("shop-r7"), number_of("shop"), number_of("-r7")), (Some(("shop", 7)), None, None));
    }
}
