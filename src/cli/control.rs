//! What `cancel`, `suspend` and `resume` share: one field of a run, and the wait until the run has ended.

#![expect(clippy::disallowed_macros, reason = "the merge patches of suspend and cancel")]

use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::{Value, json};

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::print;
use super::print::put;
use super::target::Target;
use super::text::{clock, inline, quote};
use super::tree;
use super::watch::{Scene, watch_fault};
use crate::api::Workflow;
use crate::api::name::CLI;
use crate::api::workflow::Phase;

/// Between two words of progress, and before the first.
const PROGRESS: Duration = Duration::from_secs(2);

/// What a run that is under way is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlVerb {
    Cancel,
    Suspend,
    Resume,
}

impl ControlVerb {
    pub fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }

    fn is_set(self, run: &Workflow) -> bool {
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

    /// The line that is printed once the field is set.
    fn done(self, name: &str, outcome: WriteOutcome) -> String {
        let word = match (self, outcome) {
            (Self::Cancel, WriteOutcome::Unchanged) => "is being cancelled already",
            (Self::Cancel, WriteOutcome::Written) => "is being cancelled: its pods are ended, nothing new starts",
            (Self::Suspend, WriteOutcome::Unchanged) => "is suspended already",
            (Self::Suspend, WriteOutcome::Written) => {
                "is suspended: nothing new starts, running attempts finish, decisions are still taken"
            }
            (Self::Resume, WriteOutcome::Unchanged) => "is not suspended",
            (Self::Resume, WriteOutcome::Written) => "goes on",
        };
        format!("{name} {word}")
    }
}

/// Whether the field had to be written.
#[derive(Clone, Copy)]
enum WriteOutcome {
    Unchanged,
    Written,
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

/// Sets the field of the run that the verb stands for, unless it is set already.
pub async fn apply(on: &Connection, target: &str, verb: ControlVerb) -> Result<Workflow, Fault> {
    let run = run_of(on, target, verb.word()).await?;
    let name = run.name_any();
    if let Some((phase, at)) = over(&run) {
        return Err(Fault::new(Code::Failed, too_late(&name, verb, phase, &at)));
    }
    let (now, outcome) = if verb.is_set(&run) {
        (run, WriteOutcome::Unchanged)
    } else {
        let patch = json!({"metadata": {"uid": run.uid()}, "spec": verb.patch()});
        let params = PatchParams { field_manager: Some(CLI.to_owned()), ..PatchParams::default() };
        let what = format!("{} the run {name}", verb.word());
        (
            on.call(&what, on.api::<Workflow>().patch(&name, &params, &Patch::Merge(&patch))).await?,
            WriteOutcome::Written,
        )
    };
    if on.output.is_text() {
        put(&format!("{}\n", verb.done(&name, outcome)))?;
    } else {
        print::object(on.output, "Workflow", &now)?;
    }
    Ok(now)
}

fn too_late(name: &str, verb: ControlVerb, phase: Phase, at: &str) -> String {
    let remedy = match (verb, phase) {
        (ControlVerb::Cancel, _) => "there is nothing to cancel".to_owned(),
        (_, Phase::Completed) => format!("there is nothing to {}", verb.word()),
        _ => format!("to run what did not complete again: kubectl lockstep retry {}", quote(name)),
    };
    format!("{name} is over ({phase} at {at}); {remedy}")
}

/// Waits until the run is over; says on standard error what it still waits for.
pub async fn ended(on: &Connection, run: &Workflow) -> Result<Workflow, Fault> {
    let name = run.name_any();
    let fields = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = on.watch::<Workflow>(fields);
    let mut tick = tokio::time::interval(PROGRESS);
    tick.reset();
    let mut scene = Scene::new(run.clone());
    let (mut seconds, mut said) = (0, String::new());
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => {
                    if let Err(gone) = scene.see_run(event) {
                        // One that cannot be read is left out of the watch, and is there.
                        on.read::<Workflow>("see the end of the run", &name).await?;
                        return Err(gone);
                    }
                    if over(&scene.run).is_some() {
                        return Ok(scene.run);
                    }
                }
                Some(Err(wrong)) => {
                    if let Some(fault) = watch_fault("see the end of the run", &wrong) {
                        return Err(fault);
                    }
                }
                None => return Err(Fault::new(Code::Api, format!("the watch ended; see {}", on.hint("show", &name)))),
            },
            _ = tick.tick() => {
                seconds += PROGRESS.as_secs();
                let line = waiting(&scene.run);
                if line != said || seconds % 10 == 0 {
                    eprintln!("{seconds}s: {line}");
                    said = line;
                }
            }
        }
    }
}

fn waiting(run: &Workflow) -> String {
    let Some(status) = &run.status else { return "waiting for the operator to begin the run".to_owned() };
    if let Some(people) = status.waiting.as_ref().filter(|waiting| !waiting.summary.is_empty()) {
        return format!("waiting for people: {}; see kubectl lockstep inbox", inline(&people.summary, 64));
    }
    if !status.pending_documents.is_empty() {
        return format!("{}; put them with kubectl lockstep doc put", tree::documents(&status.pending_documents));
    }
    match status.active_steps.as_slice() {
        [] => "waiting for the operator to go on with the run".to_owned(),
        some => format!("waiting for the end of {}", inline(&some[..some.len().min(5)].join(", "), 300)),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use kube::api::PostParams;

    use super::*;
    use crate::api::WorkflowSpec;
    use crate::apiserver::{ApiServer, MemoryStore, Registry, access};

    #[test]
    fn a_wish_that_is_granted_is_not_written_again() {
        let run = |suspend: Option<bool>, cancel: Option<bool>| {
            Workflow::new("shop", WorkflowSpec { suspend, cancel, ..WorkflowSpec::default() })
        };
        for (verb, suspend, cancel, granted) in [
            (ControlVerb::Cancel, None, None, false),
            (ControlVerb::Cancel, None, Some(false), false),
            (ControlVerb::Cancel, None, Some(true), true),
            (ControlVerb::Suspend, None, None, false),
            (ControlVerb::Suspend, Some(true), None, true),
            (ControlVerb::Resume, None, None, true),
            (ControlVerb::Resume, Some(false), None, true),
            (ControlVerb::Resume, Some(true), None, false),
        ] {
            assert_eq!(verb.is_set(&run(suspend, cancel)), granted, "{verb:?} {suspend:?} {cancel:?}");
        }
    }

    /// Deleted before the watch begins there is no event of it, and the next run may have its name by then.
    #[tokio::test(start_paused = true)]
    async fn a_run_that_is_gone_is_not_waited_for() {
        let (store, clock) = (Box::new(MemoryStore::keeping(10)), Box::new(|| Timestamp::UNIX_EPOCH));
        let registry = Registry::new(store, Box::new(access::Open), clock, "plugin".to_owned());
        let client = ApiServer::new(registry, "ann").client("team");
        let (namespace, timeout) = ("team".to_owned(), Duration::from_secs(1));
        let on = Connection { client, namespace, output: print::Format::Json, timeout, is_reached: true };
        let mut run = Workflow::new("shop", WorkflowSpec::default());
        let next = run.clone();
        run.metadata.uid = Some("before".to_owned());
        for made in [None, Some(next)] {
            if let Some(next) = &made {
                on.api::<Workflow>().create(&PostParams::default(), next).await.expect("made");
            }
            let end = tokio::time::timeout(Duration::from_secs(60), ended(&on, &run)).await;
            let fault = end.expect("it does not wait").expect_err("a fault").text;
            assert!(fault.contains("shop was deleted"), "{fault}");
        }
    }

    #[test]
    fn whoever_waits_is_told_for_what() {
        for (status, expected) in [
            (json!(null), "waiting for the operator to begin the run"),
            (json!({"activeSteps": ["plan"]}), "waiting for the end of plan"),
            (
                json!({"activeSteps": ["plan"], "waiting": {"gates": 1, "questions": 0, "summary": "1 gate"}}),
                "waiting for people: 1 gate; see kubectl lockstep inbox",
            ),
            (json!({"pendingDocuments": ["brief"]}), "put them with kubectl lockstep doc put"),
            (json!({}), "waiting for the operator to go on with the run"),
        ] {
            let run = Workflow {
                status: serde_json::from_value(status).expect("a status"),
                ..Workflow::new("shop", WorkflowSpec::default())
            };
            let told = waiting(&run);
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn too_late_says_what_helps() {
        let text = |verb, phase| too_late("shop", verb, phase, "T");
        assert_eq!(text(ControlVerb::Cancel, Phase::Failed), "shop is over (Failed at T); there is nothing to cancel");
        assert_eq!(
            text(ControlVerb::Suspend, Phase::Completed),
            "shop is over (Completed at T); there is nothing to suspend"
        );
        assert!(text(ControlVerb::Resume, Phase::Cancelled).ends_with("kubectl lockstep retry shop"));
    }
}
