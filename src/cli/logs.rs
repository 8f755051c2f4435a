//! `logs`: what agents wrote, from their pods by the caller's own rights; once a pod is gone, the end of it that its StepRun keeps.

mod pods;

use std::collections::BTreeSet;

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use tokio::signal::unix::{SignalKind, signal};

use super::complete;
use super::connect::Connection;
use super::fault::{Code, Fault};
use super::print::put;
use super::resolve::{self, ResolvedStep};
use super::target::{Target, label};
use super::text::{block, inline};
use super::watch::{RunEvent, run_events, watch_fault};
use crate::api::step_run::StepRunStatus;
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};
use crate::decide::claim;
use pods::{Mode, Pods};

/// Print what agents wrote to stdout and stderr
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Of each step it is the newest attempt, and with --previous the one before. The log comes from the attempt's pod, which takes the
permission get on pods/log (Kubernetes' role view has it); when the pod is gone, or you may not, the last 4 KiB that the
StepRun keeps are printed, with the values of Secrets masked, and stderr says so. Lines of several steps begin with the step.

With -f a log that breaks off, because a connection or the API server fails, is taken up again without a line twice.

What a terminal would obey or hide is written out, as \\u{202e}.

Examples:
  kubectl lockstep logs shop/discovery
  kubectl lockstep logs shop/architecture/E1 --previous
  kubectl lockstep logs shop -f")]
pub struct Args {
    /// RUN, RUN/STEP, RUN/GROUP, RUN/STEP/KEY or the name of a StepRun
    #[arg(add = complete::by(complete::targets))]
    target: String,
    /// Go on until the run has ended, with every attempt that starts
    #[arg(short, long, conflicts_with = "previous")]
    follow: bool,
    /// The attempt before the newest
    #[arg(short, long)]
    previous: bool,
    /// Of each attempt only the last N lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    tail: Option<i64>,
}

/// Which attempt of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Newest,
    Previous,
}

/// The log of one attempt: in its pod, or what is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// `STEP/KEY`.
    pub label: String,
    step_run: String,
    pub attempt: i32,
    /// The pod that has the attempt, where that is known.
    pod: Option<String>,
    kept: Option<String>,
}

/// Why the log of a pod cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogUnavailable {
    Gone,
    /// Its container has not started.
    Waiting,
    /// The caller may not; in the API server's words.
    Forbidden(String),
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    if !on.output.is_text() {
        return Err(Fault::usage("logs prints text only; the StepRun (show -o json) has the end of the log"));
    }
    let (run, wanted) = Box::pin(meant(on, &Target::parse(&args.target)?)).await?;
    if args.follow {
        return Box::pin(follow(on, run, wanted, args.tail)).await;
    }
    let steps = steps(on, &run).await?;
    let meant = chosen(&run, &steps, wanted.as_deref())?;
    let which = if args.previous { Which::Previous } else { Which::Newest };
    let sources: Vec<Source> = meant.iter().filter_map(|step| source(step, which)).collect();
    if sources.is_empty() {
        return Err(none(&args.target, which));
    }
    let prefix = if wanted.is_none() || meant.len() > 1 { Prefix::Step } else { Prefix::Nothing };
    let pods = Pods { api: on.api(), run: run.name_any(), tail: args.tail };
    for source in sources {
        let mut output = pods.clone().read(source, Mode::Once);
        while let Some(output) = output.next().await {
            tell(&output, prefix)?;
        }
    }
    Ok(Code::Done)
}

/// The run, and what of it.
async fn meant(on: &Connection, target: &Target) -> Result<(Workflow, Option<String>), Fault> {
    let name = match target {
        Target::Step(run, wanted) => return Ok((on.workflow(run).await?, Some(wanted.clone()))),
        Target::Name(name) => name,
    };
    if let Some(run) = on.read::<Workflow>(&format!("read the run {name}"), name).await? {
        return Ok((run, None));
    }
    match on.read::<StepRun>(&format!("read the step {name}"), name).await? {
        Some(step) => Ok((on.workflow(&step.spec.workflow.name).await?, Some(label(&step)))),
        None => Err(on.unknown::<Workflow>("run or step", name).await),
    }
}

async fn steps(on: &Connection, run: &Workflow) -> Result<Vec<StepRun>, Fault> {
    let mut steps = on.step_runs(&run.name_any()).await?;
    steps.retain(|step| run.metadata.uid.as_deref() == Some(&step.spec.workflow.uid));
    steps.sort_by_key(|step| step.metadata.creation_timestamp.as_ref().map(|at| at.0));
    Ok(steps)
}

/// The StepRuns that are meant, in the order of their making; none of a step that has not begun.
fn chosen<'a>(run: &'a Workflow, steps: &'a [StepRun], wanted: Option<&str>) -> Result<Vec<&'a StepRun>, Fault> {
    match wanted.map(|wanted| resolve::find(run, steps, wanted)).transpose()? {
        None => Ok(steps.iter().collect()),
        Some(ResolvedStep::NotBegun(_)) => Ok(Vec::new()),
        Some(found) => found.step_runs(run, steps),
    }
}

fn none(target: &str, which: Which) -> Fault {
    let target = inline(target, 300);
    Fault::missing(match which {
        Which::Newest => format!("no agent of {target} has started yet; with -f it is waited for"),
        Which::Previous => format!("{target} has no attempt before the newest"),
    })
}

/// Where the log of a step's attempt is; nothing where no agent has run it.
pub fn source(step: &StepRun, which: Which) -> Option<Source> {
    let status = step.status.as_ref()?;
    let attempt = match which {
        Which::Newest => status.attempt,
        Which::Previous => status.attempt - 1,
    };
    let has_run = claim::claim_of(status, attempt).is_some() || status.attempts.iter().any(|a| a.number == attempt);
    if step.spec.agent_id.is_empty() || step.spec.reuse.is_some() || !has_run {
        // Between two attempts the newest that has run is the one before.
        let is_between = which == Which::Newest && attempt > 1 && !has_run && !step.spec.agent_id.is_empty();
        return if is_between { source(step, Which::Previous) } else { None };
    }
    Some(Source {
        label: label(step),
        step_run: step.name_any(),
        attempt,
        pod: claim::claim_of(status, attempt).map(|claim| claim.pod_name.clone()),
        kept: kept(status, attempt),
    })
}

/// The end of an attempt's log, as its StepRun keeps it.
fn kept(status: &StepRunStatus, attempt: i32) -> Option<String> {
    let report = claim::report_of(status, attempt).and_then(|report| report.log_tail.clone());
    let stopped = || {
        let stopped = status.agent.as_ref()?.stopped.as_ref().filter(|stopped| stopped.attempt == attempt)?;
        stopped.log_tail.clone()
    };
    let failed = || status.error.as_ref().filter(|error| error.attempt == attempt)?.log_tail.clone();
    report.or_else(stopped).or_else(failed)
}

// ---- what is printed

/// What stands before each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    Nothing,
    Step,
}

/// A part of a log, or a note about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Of the step with this label.
    Line(String, String),
    /// For standard error.
    Note(String),
}

fn tell(output: &LogOutput, prefix: Prefix) -> Result<(), Fault> {
    match output {
        LogOutput::Line(label, line) => put(&printed(label, line, prefix)),
        LogOutput::Note(word) => {
            eprintln!("{}", block(word, usize::MAX));
            Ok(())
        }
    }
}

/// A line of a log, made harmless; what it breaks into keeps the prefix.
pub fn printed(label: &str, line: &str, prefix: Prefix) -> String {
    let line = block(line, usize::MAX);
    let prefix = if prefix == Prefix::Step { format!("[{}] ", inline(label, 300)) } else { String::new() };
    if line.is_empty() {
        return format!("{}\n", prefix.trim_end());
    }
    line.lines().fold(String::new(), |text, line| text + &prefix + line + "\n")
}

/// What is printed where the log of a pod cannot be read: the end of it that the StepRun keeps, and a note.
pub fn instead(run: &str, source: &Source, why: &LogUnavailable, tail: Option<i64>) -> Vec<LogOutput> {
    let of = format!("{run}/{} attempt {}", source.label, source.attempt);
    let why = match why {
        LogUnavailable::Gone => "its pod is gone".to_owned(),
        LogUnavailable::Waiting => "its container has not started".to_owned(),
        LogUnavailable::Forbidden(words) => format!("you may not read the logs of pods here ({})", inline(words, 300)),
    };
    let Some(kept) = source.kept.as_deref() else {
        return vec![LogOutput::Note(format!("{of}: {why}, and nothing of its log is kept"))];
    };
    let lines: Vec<&str> = kept.lines().collect();
    let most = tail.and_then(|tail| usize::try_from(tail).ok()).unwrap_or(usize::MAX);
    let lines = lines[lines.len().saturating_sub(most)..].iter();
    let word = LogOutput::Note(format!("{of}: {why}; this is the end of its log, as it is kept"));
    std::iter::once(word).chain(lines.map(|line| LogOutput::Line(source.label.clone(), (*line).to_owned()))).collect()
}

// ---- following

/// Follows the logs of a run: its state, and the attempts whose logs are read already.
struct LogFollower {
    run: Workflow,
    wanted: Option<String>,
    steps: Vec<StepRun>,
    is_complete: bool,
    begun: BTreeSet<(String, i32)>,
    prefix: Prefix,
}

impl LogFollower {
    fn see(&mut self, step: Event<StepRun>) {
        match step {
            Event::Init => {}
            Event::InitDone => self.is_complete = true,
            Event::Delete(step) => self.steps.retain(|known| known.metadata.uid != step.metadata.uid),
            Event::InitApply(step) | Event::Apply(step) => {
                let own = self.run.metadata.uid.as_deref() == Some(&step.spec.workflow.uid);
                match self.steps.iter_mut().find(|known| known.metadata.uid == step.metadata.uid) {
                    Some(known) => *known = step,
                    None if own => self.steps.push(step),
                    None => {}
                }
            }
        }
    }

    fn meant(&self) -> Result<Vec<&StepRun>, Fault> {
        chosen(&self.run, &self.steps, self.wanted.as_deref())
    }

    /// Logs that are not read yet.
    fn fresh(&mut self) -> Result<Vec<Source>, Fault> {
        let known = |source: &Source| self.begun.contains(&(source.step_run.clone(), source.attempt));
        let sources = self.meant()?.into_iter().filter_map(|step| source(step, Which::Newest));
        let fresh: Vec<Source> = sources.filter(|source| !known(source)).collect();
        self.begun.extend(fresh.iter().map(|source| (source.step_run.clone(), source.attempt)));
        if !fresh.is_empty() {
            let wanted = self.wanted.as_deref();
            let is_one = |wanted| matches!(resolve::find(&self.run, &self.steps, wanted), Ok(ResolvedStep::Step(_)));
            self.prefix = if wanted.is_some_and(is_one) { Prefix::Nothing } else { Prefix::Step };
        }
        Ok(fresh)
    }

    /// Whether nothing more can start.
    fn is_over(&self) -> Result<bool, Fault> {
        let is_terminal = |phase: Option<Phase>| phase.is_some_and(Phase::is_terminal);
        if is_terminal(self.run.status.as_ref().and_then(|s| s.phase)) {
            return Ok(true);
        }
        let meant = self.meant()?;
        let of_a_part = self.wanted.is_some() && !meant.is_empty();
        let all = meant.iter().all(|step| is_terminal(step.status.as_ref().and_then(|s| s.phase)));
        // A list may still grow.
        Ok(of_a_part && all && meant.iter().all(|step| step.spec.item.is_none()))
    }
}

async fn follow(on: &Connection, run: Workflow, wanted: Option<String>, tail: Option<i64>) -> Result<Code, Fault> {
    let name = run.name_any();
    let pods = Pods { api: on.api(), run: name.clone(), tail };
    let mut follower = LogFollower {
        run,
        wanted,
        steps: Vec::new(),
        is_complete: false,
        begun: BTreeSet::new(),
        prefix: Prefix::Step,
    };
    let mut events = run_events(on, &name);
    let mut logs: SelectAll<BoxStream<'static, LogOutput>> = SelectAll::new();
    let unsure = |wrong| Fault::new(Code::Api, format!("cannot take signals: {wrong}"));
    let mut interrupted = signal(SignalKind::interrupt()).map_err(unsure)?;
    loop {
        tokio::select! {
            one = events.next() => {
                let Some(one) = one else { return Err(Fault::new(Code::Api, "the watch ended; run the command again")) };
                take(&mut follower, one)?;
                if follower.is_complete {
                    logs.extend(follower.fresh()?.into_iter().map(|source| pods.clone().read(source, Mode::Follow)));
                }
            }
            output = logs.next(), if !logs.is_empty() => {
                if let Some(output) = output {
                    tell(&output, follower.prefix)?;
                }
            }
            _ = interrupted.recv() => return Ok(Code::Interrupted),
        }
        if follower.is_complete && logs.is_empty() && follower.is_over()? {
            return if follower.begun.is_empty() { Err(none(&name, Which::Newest)) } else { Ok(Code::Done) };
        }
    }
}

fn take(follower: &mut LogFollower, one: RunEvent) -> Result<(), Fault> {
    let wrong = match one {
        RunEvent::Run(run) => match *run {
            Ok(Event::Apply(run) | Event::InitApply(run)) if run.metadata.uid == follower.run.metadata.uid => {
                follower.run = run;
                return Ok(());
            }
            Ok(Event::Delete(_)) => {
                return Err(Fault::missing(format!(
                    "the run {} was deleted while it was followed",
                    follower.run.name_any()
                )));
            }
            Ok(_) => return Ok(()),
            Err(wrong) => wrong,
        },
        RunEvent::Step(step) => match *step {
            Ok(event) => {
                follower.see(event);
                return Ok(());
            }
            Err(wrong) => wrong,
        },
    };
    watch_fault("watch the run", &wrong).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn step(status: &Value) -> StepRun {
        let spec = json!({"workflow": {"name": "shop", "uid": "shop"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "plan", "agentId": "planner", "parameters": "{}", "inputDigest": "d"});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "shop-plan", "namespace": "team"}, "spec": spec, "status": status}))
        .expect("a step")
    }

    fn claimed(attempt: i32) -> Value {
        json!({"attempt": attempt, "id": "i", "podName": format!("pod-{attempt}"), "podUID": "u", "at": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn the_log_of_an_attempt_is_where_it_ran() {
        let at = "2026-01-01T00:00:00Z";
        let ended = |number: i32| json!({"number": number, "round": 1, "result": "Retryable", "completedAt": at});
        let error = json!({"class": "Retryable", "message": "no", "attempt": 1, "logTail": "first\n"});
        let report = json!({"attempt": 2, "class": "Succeeded", "digest": "d", "logTail": "second\n", "at": at});
        let stopped = json!({"attempt": 2, "logTail": "stopped\n", "at": at});
        for (what, status, which, expected) in [
            ("not started", json!({"attempt": 1}), Which::Newest, None),
            (
                "runs",
                json!({"attempt": 1, "agent": {"claim": claimed(1)}}),
                Which::Newest,
                Some((1, Some("pod-1"), None)),
            ),
            ("nothing before it", json!({"attempt": 1, "agent": {"claim": claimed(1)}}), Which::Previous, None),
            (
                "between two attempts",
                json!({"attempt": 2, "agent": {"claim": claimed(1)}, "attempts": [ended(1)], "error": error}),
                Which::Newest,
                Some((1, Some("pod-1"), Some("first\n"))),
            ),
            (
                "done",
                json!({"attempt": 2, "agent": {"claim": claimed(2), "report": report}, "attempts": [ended(1), ended(2)], "error": error}),
                Which::Newest,
                Some((2, Some("pod-2"), Some("second\n"))),
            ),
            (
                "the one before",
                json!({"attempt": 2, "agent": {"claim": claimed(2), "report": report}, "attempts": [ended(1), ended(2)], "error": error}),
                Which::Previous,
                Some((1, None, Some("first\n"))),
            ),
            (
                "stopped",
                json!({"attempt": 2, "agent": {"claim": claimed(2), "stopped": stopped}, "attempts": [ended(1)]}),
                Which::Newest,
                Some((2, Some("pod-2"), Some("stopped\n"))),
            ),
        ] {
            let found = source(&step(&status), which);
            let found = found.as_ref().map(|s| (s.attempt, s.pod.as_deref(), s.kept.as_deref()));
            assert_eq!(found, expected, "{what}");
        }
        let mut question = step(&json!({"attempt": 1, "agent": {"claim": claimed(1)}}));
        question.spec.agent_id.clear();
        assert_eq!(source(&question, Which::Newest), None, "nobody's");
    }

    #[test]
    fn lines_keep_their_prefix_and_command_no_terminal() {
        assert_eq!(printed("plan", "ready", Prefix::Nothing), "ready\n");
        assert_eq!(printed("plan/E1", "ready", Prefix::Step), "[plan/E1] ready\n");
        assert_eq!(printed("plan", "", Prefix::Step), "[plan]\n");
        assert_eq!(printed("plan", "\u{1b}[2Jgone\rover", Prefix::Step), "[plan] \\u{1b}[2Jgone\\u{d}over\n");
    }
}
