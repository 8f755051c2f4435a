//! What starts runs: which Trigger an event means, which run it is, when a schedule's next one starts, what becomes of
//! those that are over, and where a Trigger stands.
//!
//! A run's name follows from its Trigger and its event, or its time: to start it twice is to find it. Only a run of
//! such a name is its Trigger's, whatever its labels say: labels can be written by whoever may change runs, a name is
//! given once. But names can be foreseen: who made a run is proven at admission, and a run that somebody else put under
//! the name of one costs the name alone.

mod schedule;

pub use schedule::on_the_way;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use kube::core::ObjectMeta;
use serde_json::Value;

use super::build::Installation;
use super::event::CloudEvent;
use super::plan::{DeletableKind, Effect, Plan};
use super::trace::TraceContext;
use crate::api::condition::{self, STALLED, Truth, clip};
use crate::api::name::{
    self, CREATED_BY, EVENT_ID, EVENT_SOURCE, EVENT_TYPE, LABEL_MADE_BY, LABEL_TRIGGER, NAME_SALT, SCHEDULED_TIME,
    TRACEPARENT,
};
use crate::api::trigger::{HISTORY_LIMIT, LastEvent, LastRun, Trigger, TriggerRuns, TriggerSpec, TriggerStatus};
use crate::api::workflow::{Phase, TemplateRef, Workflow, WorkflowSpec};
use crate::definition::expression::Evaluate;
use crate::definition::pinned::canonical_digest;
use crate::definition::trigger::{Program, RunArguments};

/// So long a repeated event is known by its run, even if that is over and its time is up.
pub const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);
/// Deletes of one pass at most.
const AT_ONCE: usize = 100;

/// All that the decision about a Trigger needs.
#[derive(Clone, Debug)]
pub struct Observed {
    pub trigger: Arc<Trigger>,
    /// Those of the namespace that are labelled as its own.
    pub runs: Vec<Arc<Workflow>>,
    /// What lies under the names of the run that is due, in the order in which they are tried (`on_the_way`).
    pub on_the_way: Vec<Arc<Workflow>>,
    pub template_exists: bool,
    /// Why it cannot be read, where that is so.
    pub template_fault: Option<String>,
    pub installation: Arc<Installation>,
    pub evaluator: Arc<dyn Evaluate>,
    pub now: Time,
}

/// Whether source and type are those that a Trigger means; its filter is asked apart.
pub fn means(spec: &TriggerSpec, event: &CloudEvent) -> bool {
    let Some(filter) = &spec.event else { return false };
    filter.event_type() == event.event_type && filter.source.as_ref().is_none_or(|source| *source == event.source)
}

/// Names that others may have taken before no run is made: each that is taken is the salt of the next.
pub const PLACES: usize = 16;

/// Who made a run. Nobody can write another name than their own, and what the operator latched of it nobody else can.
pub fn maker(run: &Workflow) -> Option<&str> {
    let latched = run.status.as_ref().and_then(|status| status.creator.as_deref());
    latched.or_else(|| Some(run.metadata.annotations.as_ref()?.get(CREATED_BY)?.as_str()))
}

/// Whether a run is the one of an event that is to be made: by its name, and because its maker is the one who sends the event
/// now, or because it does the same.
pub fn is_of_event(trigger: &str, there: &Workflow, wanted: &Workflow) -> bool {
    let runs = |run: &Workflow| {
        // What people do to a run later makes no other of it.
        let spec = WorkflowSpec { suspend: None, cancel: None, ttl_seconds_after_finished: None, ..run.spec.clone() };
        canonical_digest(&serde_json::to_value(spec).unwrap_or_default())
    };
    let by_sender = maker(there).is_some() && maker(there) == maker(wanted);
    event_of(trigger, there).is_some() && (by_sender || runs(there) == runs(wanted))
}

/// The run that an event starts.
pub fn event_run(trigger: &Trigger, event: &CloudEvent, arguments: RunArguments, salt: &str) -> Workflow {
    let own = trigger.metadata.name.as_deref().unwrap_or_default();
    let session = arguments.session.as_deref().map_or_else(|| event.session(), name::session);
    let mut run = run(trigger, arguments, Some(session));
    run.metadata.name = Some(name::event_run(own, &event.source, &event.id, salt));
    let notes = [(EVENT_ID, &event.id), (EVENT_SOURCE, &event.source), (EVENT_TYPE, &event.event_type)];
    let mut notes: BTreeMap<String, String> = notes.map(|(key, text)| (key.to_owned(), text.clone())).into();
    // The extension of CloudEvents for traces.
    let traceparent = event.value.get("traceparent").and_then(Value::as_str);
    let traceparent = traceparent.filter(|text| TraceContext::parse(text).is_some());
    notes.extend(traceparent.map(|text| (TRACEPARENT.to_owned(), text.to_owned())));
    notes.extend(salted(salt));
    run.metadata.annotations = Some(notes);
    run
}

/// What says of a run which salt its name has.
fn salted(salt: &str) -> Option<(String, String)> {
    (!salt.is_empty()).then(|| (NAME_SALT.to_owned(), salt.to_owned()))
}

fn salt(run: &Workflow) -> &str {
    run.metadata.annotations.as_ref().and_then(|notes| notes.get(NAME_SALT)).map_or("", String::as_str)
}

fn run(trigger: &Trigger, arguments: RunArguments, session: Option<String>) -> Workflow {
    let spec = WorkflowSpec {
        template_ref: Some(TemplateRef { name: trigger.spec.run.template_ref.name.clone() }),
        input: arguments.input,
        parameters: arguments.parameters,
        session,
        ttl_seconds_after_finished: trigger.spec.run.ttl_seconds_after_finished,
        ..WorkflowSpec::default()
    };
    let mut run = Workflow::new("", spec);
    let own = trigger.metadata.name.clone().unwrap_or_default();
    run.metadata.namespace.clone_from(&trigger.metadata.namespace);
    run.metadata.labels =
        Some([(LABEL_MADE_BY.to_owned(), "trigger".to_owned()), (LABEL_TRIGGER.to_owned(), own)].into());
    run
}

/// The event that a run was started for, by id, source and type; none where its name does not say the same.
pub fn event_of(trigger: &str, run: &Workflow) -> Option<LastEvent> {
    let note = |key: &str| run.metadata.annotations.as_ref()?.get(key).cloned();
    let (id, source) = (note(EVENT_ID)?, note(EVENT_SOURCE)?);
    let is_own = run.metadata.name.as_deref() == Some(&name::event_run(trigger, &source, &id, salt(run)));
    let event_type = note(EVENT_TYPE).unwrap_or_default();
    is_own.then(|| LastEvent { id: clip(&id, 256), source: clip(&source, 512), event_type: clip(&event_type, 256) })
}

/// Whether a run is of that Trigger: by its name; of a schedule only if the operator made it.
fn is_own((trigger, operator): (&str, &str), run: &Workflow) -> bool {
    let scheduled = || {
        let note = run.metadata.annotations.as_ref()?.get(SCHEDULED_TIME)?;
        let at: k8s_openapi::jiff::Timestamp = note.parse().ok()?;
        (run.metadata.name.as_deref() == Some(&name::scheduled_run(trigger, at.as_second(), salt(run)))).then_some(())
    };
    event_of(trigger, run).is_some() || maker(run) == Some(operator) && scheduled().is_some()
}

/// How long a run of an event stays, so that the event is known if it comes again.
pub fn remembered(run: &Workflow, now: &Time) -> Option<Duration> {
    remembered_by(&run.metadata, now)
}

/// The same of one of which no more is known.
pub fn remembered_by(meta: &ObjectMeta, now: &Time) -> Option<Duration> {
    let is_of_event = meta.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_TRIGGER))
        && meta.annotations.as_ref().is_some_and(|notes| notes.contains_key(EVENT_ID));
    let until = meta.creation_timestamp.as_ref().filter(|_| is_of_event)?.0.checked_add(REMEMBERED).ok()?;
    Duration::try_from(until.duration_since(now.0)).ok().filter(|left| !left.is_zero())
}

/// What to do about a Trigger now.
pub fn trigger(o: &Observed) -> Plan<TriggerStatus> {
    let mut plan = Plan::default();
    let meta = &o.trigger.metadata;
    if meta.deletion_timestamp.is_some() {
        return plan;
    }
    let own = meta.name.as_deref().unwrap_or_default();
    let by = (own, o.installation.account.as_str());
    let mut runs: Vec<&Arc<Workflow>> = o.runs.iter().filter(|run| is_own(by, run)).collect();
    runs.sort_by_cached_key(|run| age(run));
    let mut status = o.trigger.status.clone().unwrap_or_default();
    status.observed_generation = meta.generation.unwrap_or_default();
    told(o, &runs, &mut status);
    match Program::compile(&o.trigger.spec) {
        Ok(program) => {
            ready(o, &mut status);
            match &program.schedule {
                Some(times) => schedule::schedule(o, (&program, times), &runs, (&mut status, &mut plan)),
                None => status.next_schedule_time = None,
            }
        }
        Err(faults) => {
            status.next_schedule_time = None;
            let at = (&o.now, status.observed_generation);
            let faults = faults.join("; ");
            condition::set(&mut status.conditions, "Ready", Truth::False, "Invalid", &faults, at);
            condition::set(&mut status.conditions, STALLED, Truth::True, "Invalid", &faults, at);
        }
    }
    forget(o, &runs, &mut plan);
    plan.status = Some(status).filter(|status| o.trigger.status.as_ref() != Some(status));
    plan
}

/// A missing template may come: runs that are started meanwhile wait for it.
fn ready(o: &Observed, status: &mut TriggerStatus) {
    let at = (&o.now, status.observed_generation);
    condition::clear(&mut status.conditions, STALLED);
    if o.template_exists {
        condition::set(&mut status.conditions, "Ready", Truth::True, "Valid", "", at);
    } else if let Some(fault) = &o.template_fault {
        let template = &o.trigger.spec.run.template_ref.name;
        let words = format!("spec.run.templateRef.name: WorkflowTemplate {template} cannot be read: {fault}");
        condition::set(&mut status.conditions, "Ready", Truth::False, "TemplateInvalid", &words, at);
    } else {
        let template = &o.trigger.spec.run.template_ref.name;
        let words =
            format!("spec.run.templateRef.name: there is no WorkflowTemplate {template} in this namespace (yet)");
        condition::set(&mut status.conditions, "Ready", Truth::False, "TemplateNotFound", &words, at);
    }
}

/// By age, then by name.
fn age(run: &Workflow) -> (i64, String) {
    let made = run.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |at| at.0.as_second());
    (made, run.metadata.name.clone().unwrap_or_default())
}

fn phase(run: &Workflow) -> Phase {
    run.status.as_ref().and_then(|status| status.phase).unwrap_or_default()
}

fn is_over(run: &Workflow) -> bool {
    run.status.as_ref().is_some_and(|status| status.completed_at.is_some())
}

/// What the runs that are there tell.
fn told(o: &Observed, runs: &[&Arc<Workflow>], status: &mut TriggerStatus) {
    let meta = &o.trigger.metadata;
    let (own, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
    let base = o.installation.api_url.trim_end_matches('/');
    let has_url = o.trigger.spec.event.is_some() && !base.is_empty();
    status.url = has_url.then(|| format!("{base}/namespaces/{namespace}/events/{own}"));
    let mut counts = TriggerRuns::default();
    for run in runs {
        let count = match phase(run) {
            Phase::Completed => &mut counts.completed,
            Phase::Failed => &mut counts.failed,
            Phase::Cancelled => &mut counts.cancelled,
            _ => &mut counts.active,
        };
        *count += 1;
    }
    status.runs = Some(counts);
    // Runs go, and what is known of the newest stays.
    let Some(newest) = runs.last() else { return };
    let Some(created_at) = newest.metadata.creation_timestamp.clone() else { return };
    if status.last_run.as_ref().is_none_or(|last| last.created_at.0 <= created_at.0) {
        status.last_run = Some(LastRun { name: newest.metadata.name.clone().unwrap_or_default(), created_at });
        status.last_event = event_of(own, newest).or(status.last_event.take());
    }
}

/// Finished runs beyond the limit go, the oldest first; those by which a repeated event is known stay their time.
fn forget(o: &Observed, runs: &[&Arc<Workflow>], plan: &mut Plan<TriggerStatus>) {
    let limit = usize::try_from(o.trigger.spec.history_limit.unwrap_or(HISTORY_LIMIT)).unwrap_or_default();
    let over: Vec<&&Arc<Workflow>> = runs.iter().filter(|run| is_over(run)).collect();
    let beyond = over.len().saturating_sub(limit);
    let (mut gone, mut waits): (Vec<Effect>, Option<Duration>) = (Vec::new(), None);
    for run in &over[..beyond] {
        match remembered(run, &o.now) {
            Some(left) => waits = Some(waits.map_or(left, |soonest| soonest.min(left))),
            None if run.metadata.deletion_timestamp.is_none() => gone.push(Effect::Delete {
                what: DeletableKind::Workflow,
                name: run.metadata.name.clone().unwrap_or_default(),
                uid: run.metadata.uid.clone().unwrap_or_default(),
            }),
            None => {}
        }
    }
    if gone.len() > AT_ONCE {
        gone.truncate(AT_ONCE);
        waits = Some(Duration::from_secs(1));
    }
    plan.effects.append(&mut gone);
    if let Some(waits) = waits {
        plan.look_again(waits);
    }
}

/// Whether a status tells of other runs alone: so much may wait a moment.
pub fn differs_by_runs_only(before: &TriggerStatus, now: &TriggerStatus) -> bool {
    let without =
        |status: &TriggerStatus| TriggerStatus { runs: None, last_run: None, last_event: None, ..status.clone() };
    without(before) == without(now)
}

#[cfg(test)]
mod tests;
