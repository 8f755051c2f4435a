//! What `cancel`, `suspend` and `resume` share: one field of a run, and the wait until the run has ended.

#![expect(clippy::disallowed_macros, reason = "the merge patches of suspend and cancel")]

use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::print;
use super::print::put;
use super::target::Target;
use super::text::{clock, inline, quote};
use super::watch::watch_fault;
use crate::api::Workflow;
use crate::api::name::CLI;
use crate::api::workflow::Phase;

/// Between two words of progress, and before the first.
const PROGRESS: Duration = Duration::from_secs(2);

/// What is wished of a run that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Cancel,
    Suspend,
    Resume,
}

impl Wish {
    pub fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }

    fn is_granted(self, run: &Workflow) -> bool {
        match self {
            Self::Cancel => run.spec.cancel == Some(true),
            Self::Suspend => run.spec.suspend == Some(true),
            Self::Resume => run.spec.suspend != Some(true),
        }
    }

    fn patch(self) -> Value {
        match self {
            Self::Cancel => json!({"cancel": true}),
            Self::Suspend => json!({"suspend": true}),
            Self::Resume => json!({"suspend": false}),
        }
    }

    /// What is said once it is written, or was before.
    fn done(self, name: &str, before: Before) -> String {
        let word = match (self, before) {
            (Self::Cancel, Before::Same) => "is being cancelled already",
            (Self::Cancel, Before::Other) => "is being cancelled: its pods are ended, nothing new starts",
            (Self::Suspend, Before::Same) => "is suspended already",
            (Self::Suspend, Before::Other) => {
                "is suspended: nothing new starts, running attempts finish, decisions are still taken"
            }
            (Self::Resume, Before::Same) => "is not suspended",
            (Self::Resume, Before::Other) => "goes on",
        };
        format!("{name} {word}")
    }
}

/// Whether the wish was granted before it was made.
#[derive(Clone, Copy)]
enum Before {
    Same,
    Other,
}

/// The run that a word names; steps are refused.
pub async fn run_of(on: &Connection, text: &str, verb: &str) -> Result<Workflow, Fault> {
    match Target::parse(text)? {
        Target::Name(name) => on.workflow(&name).await,
        Target::Step(name, _) => {
            Err(Fault::usage(format!("{verb} takes a whole run; write kubectl lockstep {verb} {}", quote(&name))))
        }
    }
}

/// The phase in which a run has ended, and when.
pub fn over(run: &Workflow) -> Option<(Phase, String)> {
    let status = run.status.as_ref()?;
    let at = status.completed_at.as_ref()?;
    Some((status.phase.unwrap_or_default(), clock(at.0)))
}

/// Writes the wish into the run, unless it stands there already.
pub async fn wish(on: &Connection, target: &str, wish: Wish) -> Result<Workflow, Fault> {
    let run = run_of(on, target, wish.word()).await?;
    let name = run.name_any();
    if let Some((phase, at)) = over(&run) {
        return Err(Fault::new(Code::Failed, too_late(&name, wish, phase, &at)));
    }
    let (now, before) = if wish.is_granted(&run) {
        (run, Before::Same)
    } else {
        let patch = json!({"metadata": {"uid": run.uid()}, "spec": wish.patch()});
        let params = PatchParams { field_manager: Some(CLI.to_owned()), ..PatchParams::default() };
        let what = format!("{} the run {name}", wish.word());
        (on.call(&what, on.api::<Workflow>().patch(&name, &params, &Patch::Merge(&patch))).await?, Before::Other)
    };
    if on.output.is_text() {
        put(&format!("{}\n", wish.done(&name, before)))?;
    } else {
        print::object(on.output, "Workflow", &now)?;
    }
    Ok(now)
}

fn too_late(name: &str, wish: Wish, phase: Phase, at: &str) -> String {
    let remedy = match (wish, phase) {
        (Wish::Cancel, _) => "there is nothing to cancel".to_owned(),
        (_, Phase::Completed) => format!("there is nothing to {}", wish.word()),
        _ => format!("to run what did not complete again: kubectl lockstep retry {}", quote(name)),
    };
    format!("{name} is over ({phase} at {at}); {remedy}")
}

/// Waits until the run is over; says on standard error what it still waits for.
pub async fn ended(on: &Connection, run: &Workflow) -> Result<Workflow, Fault> {
    let name = run.name_any();
    let fields = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(on.api::<Workflow>(), fields).default_backoff().boxed();
    let mut tick = tokio::time::interval(PROGRESS);
    tick.reset();
    let (mut seconds, mut active, mut said) = (0, Vec::new(), String::new());
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Apply(now) | Event::InitApply(now))) if now.uid() == run.uid() => {
                    if over(&now).is_some() {
                        return Ok(now);
                    }
                    active = now.status.map(|s| s.active_steps).unwrap_or_default();
                }
                Some(Ok(Event::Delete(_) | Event::Apply(_))) => {
                    return Err(Fault::missing(format!("the run {name} was deleted")));
                }
                Some(Ok(_)) => {}
                Some(Err(wrong)) => {
                    if let Some(fault) = watch_fault("see the end of the run", &wrong) {
                        return Err(fault);
                    }
                }
                None => return Err(Fault::new(Code::Api, format!("the watch ended; see {}", on.hint("show", &name)))),
            },
            _ = tick.tick() => {
                seconds += PROGRESS.as_secs();
                let line = waiting(&active);
                if line != said || seconds % 10 == 0 {
                    eprintln!("{seconds}s: {line}");
                    said = line;
                }
            }
        }
    }
}

fn waiting(active: &[String]) -> String {
    match active {
        [] => "waiting for the operator to close the run".to_owned(),
        some => format!("waiting for the end of {}", inline(&some[..some.len().min(5)].join(", "), 300)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::WorkflowSpec;

    #[test]
    fn a_wish_that_is_granted_is_not_written_again() {
        let run = |suspend: Option<bool>, cancel: Option<bool>| {
            Workflow::new("shop", WorkflowSpec { suspend, cancel, ..WorkflowSpec::default() })
        };
        for (wish, suspend, cancel, granted) in [
            (Wish::Cancel, None, None, false),
            (Wish::Cancel, None, Some(false), false),
            (Wish::Cancel, None, Some(true), true),
            (Wish::Suspend, None, None, false),
            (Wish::Suspend, Some(true), None, true),
            (Wish::Resume, None, None, true),
            (Wish::Resume, Some(false), None, true),
            (Wish::Resume, Some(true), None, false),
        ] {
            assert_eq!(wish.is_granted(&run(suspend, cancel)), granted, "{wish:?} {suspend:?} {cancel:?}");
        }
    }

    #[test]
    fn too_late_says_what_helps() {
        let text = |wish, phase| too_late("shop", wish, phase, "T");
        assert_eq!(text(Wish::Cancel, Phase::Failed), "shop is over (Failed at T); there is nothing to cancel");
        assert_eq!(text(Wish::Suspend, Phase::Completed), "shop is over (Completed at T); there is nothing to suspend");
        assert!(text(Wish::Resume, Phase::Cancelled).ends_with("kubectl lockstep retry shop"));
    }
}
