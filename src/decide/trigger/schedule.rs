//! When a schedule starts its next run, as a CronJob does.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Observed, PLACES, is_over, maker, run, salted};
use crate::api::condition::{self, Truth, clip};
use crate::api::name::{self, CREATED_BY, SCHEDULED_TIME};
use crate::api::trigger::{ConcurrencyPolicy, Trigger, TriggerStatus};
use crate::api::workflow::Workflow;
use crate::decide::plan::{Effect, Plan};
use crate::decide::seen;
use crate::definition::schedule::Schedule;
use crate::definition::trigger::{Program, SCHEDULED_TIME as VARIABLE};

/// Starts what is due, and says when to look again. Of the times that passed since the last run only the newest counts.
pub(super) fn schedule(
    o: &Observed,
    (program, times): (&Program, &Schedule),
    runs: &[&Arc<Workflow>],
    (status, plan): (&mut TriggerStatus, &mut Plan<TriggerStatus>),
) {
    let Some(spec) = &o.trigger.spec.schedule else { return };
    status.next_schedule_time = None;
    if spec.suspend {
        return;
    }
    if let Some(next) = times.next(o.now.0) {
        status.next_schedule_time = Some(Time(next));
        plan.look_again(Duration::try_from(next.duration_since(o.now.0)).unwrap_or(Duration::ZERO));
    }
    let Some(due) = times.newest(since(&o.trigger, &o.now, status), o.now.0) else { return };
    let own = o.trigger.metadata.name.as_deref().unwrap_or_default();
    let time = times.told(due);
    let there = |name: &str| {
        let mut known = o.on_the_way.iter().chain(runs.iter().copied());
        known.find(|run| run.metadata.name.as_deref() == Some(name)).cloned()
    };
    let (lookup, taken) = find_name((own, due), &o.installation.account, there);
    let told = taken.iter().map(|run| format!("Workflow {} ({})", identity(run).0, seen::holder(&run.metadata)));
    let taken = told.collect::<Vec<_>>().join(", ");
    let (name, salt) = match lookup {
        // It was started by a pass that came no further.
        NameLookup::Exists => {
            status.last_schedule_time = Some(Time(due));
            return;
        }
        NameLookup::Free { name, salt } => (name, salt),
        NameLookup::AllTaken => {
            let words = clip(&format!("no run for {time}: its names are taken by others; delete {taken}"), 900);
            let at = (&o.now, status.observed_generation);
            condition::set(&mut status.conditions, "Ready", Truth::False, "NameTaken", &words, at);
            plan.warn("RunNotStarted", words);
            plan.look_again(TAKEN);
            return;
        }
    };
    let active: Vec<&&Arc<Workflow>> = runs.iter().filter(|run| !is_over(run)).collect();
    let policy = spec.concurrency_policy.unwrap_or_default();
    if policy == ConcurrencyPolicy::Forbid && !active.is_empty() {
        // The end of the earlier run wakes the Trigger.
        return;
    }
    status.last_schedule_time = Some(Time(due));
    match program.run_arguments(VARIABLE, time.clone().into(), &o.evaluator) {
        Ok(arguments) => {
            let is_open = |run: &&&Arc<Workflow>| policy == ConcurrencyPolicy::Replace && run.spec.cancel != Some(true);
            let replaced = active.into_iter().filter(is_open).map(|run| identity(run)).collect();
            let session = arguments.session.as_deref().map(name::session);
            let mut made = run(&o.trigger, arguments, session);
            let notes = [(SCHEDULED_TIME, &time), (CREATED_BY, &o.installation.account)];
            let notes = notes.map(|(key, text)| (key.to_owned(), text.clone()));
            made.metadata.annotations = Some(notes.into_iter().chain(salted(&salt)).collect());
            if !taken.is_empty() {
                let words = format!("the name of the run for {time} is taken by {taken}; it is started as {name}");
                plan.warn("NameTaken", clip(&words, 900));
            }
            plan.notice("RunStarted", format!("run {name} for {time}"));
            made.metadata.name = Some(name);
            plan.effects.push(Effect::StartRun { run: Box::new(made), replaced });
        }
        Err(fault) => plan.warn("RunNotStarted", clip(&format!("no run for {time}: {fault}"), 900)),
    }
}

/// When names that others took are looked at again.
const TAKEN: Duration = Duration::from_secs(60);

/// What was found under the names that the run of a scheduled time may have.
enum NameLookup {
    /// The run itself: the operator has made it.
    Exists,
    /// The first name that is free, and the salt in it.
    Free { name: String, salt: String },
    /// Others have all of them.
    AllTaken,
}

/// Looks the names up in their order; gives also the runs of others that have the ones before. A run counts as the schedule's
/// only if the operator made it: its name, and all else of it, anybody could have written.
fn find_name(
    (own, due): (&str, Timestamp),
    operator: &str,
    there: impl Fn(&str) -> Option<Arc<Workflow>>,
) -> (NameLookup, Vec<Arc<Workflow>>) {
    let (mut taken, mut salt) = (Vec::new(), String::new());
    while taken.len() < PLACES {
        let name = name::scheduled_run(own, due.as_second(), &salt);
        match there(&name) {
            None => return (NameLookup::Free { name, salt }, taken),
            Some(run) if maker(&run) == Some(operator) => return (NameLookup::Exists, taken),
            Some(run) => {
                salt = run.metadata.uid.clone().unwrap_or_default();
                taken.push(run);
            }
        }
    }
    (NameLookup::AllTaken, taken)
}

/// The runs under the names of the run that is due, for `Observed`.
pub fn on_the_way(
    trigger: &Trigger,
    (operator, now): (&str, &Time),
    there: impl Fn(&str) -> Option<Arc<Workflow>>,
) -> Vec<Arc<Workflow>> {
    let own = trigger.metadata.name.as_deref().unwrap_or_default();
    let times = trigger.spec.schedule.as_ref().and_then(|spec| Schedule::parse(spec).ok());
    let status = trigger.status.clone().unwrap_or_default();
    let Some(due) = times.and_then(|times| times.newest(since(trigger, now, &status), now.0)) else {
        return Vec::new();
    };
    let met = RefCell::new(Vec::new());
    let seen = |name: &str| there(name).inspect(|run| met.borrow_mut().push(Arc::clone(run)));
    find_name((own, due), operator, seen);
    met.into_inner()
}

/// Times up to this one are past: started, before the Trigger was made, or too late.
fn since(trigger: &Trigger, now: &Time, status: &TriggerStatus) -> Timestamp {
    let made = trigger.metadata.creation_timestamp.as_ref().map_or(now.0, |at| at.0);
    let last = status.last_schedule_time.as_ref().map_or(made, |at| at.0.max(made));
    let deadline = trigger.spec.schedule.as_ref().and_then(|spec| spec.starting_deadline_seconds);
    let late = deadline.and_then(|seconds| now.0.checked_sub(SignedDuration::from_secs(seconds)).ok());
    late.map_or(last, |late| last.max(late))
}

/// Name and UID.
fn identity(run: &Workflow) -> (String, String) {
    (run.metadata.name.clone().unwrap_or_default(), run.metadata.uid.clone().unwrap_or_default())
}
