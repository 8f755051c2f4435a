//! Tells receivers outside of the cluster what happens to runs. Passes of their own, so that no run waits for a receiver; what
//! was told is latched in the status of the run or the step, what was not is told by whoever works next.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt;
use kube::core::object::HasStatus;
use kube::runtime::controller::Action;

use super::context::Context;
use crate::api::notification::Notified;
use crate::api::{StepRun, Workflow};
use crate::cluster::Error;
use crate::cluster::cache::Watched;
use crate::cluster::sinks::Undelivered;
use crate::decide::notification::{self, CloudEvent, Notification, Sink};
use crate::decide::{Notice, Plan};

/// How long the run of a step is waited for that this copy does not show yet.
const RUN_COMES: Duration = Duration::from_secs(5);
/// The age of a step whose run comes no more.
const RUN_IS_GONE: SignedDuration = SignedDuration::from_mins(10);

/// What one pass has told, and when the next one is due.
#[derive(Default)]
struct Outcome {
    told: Vec<(String, String)>,
    notices: Vec<Notice>,
    again_in: Option<Duration>,
    /// What kept it from telling the rest.
    error: Option<Error>,
}

impl Outcome {
    fn comes_again_in(&mut self, pause: impl IntoIterator<Item = Duration>) {
        self.again_in = self.again_in.into_iter().chain(pause).min();
    }
}

pub async fn run(context: Arc<Context>, run: Arc<Workflow>) -> Result<Action, Error> {
    let run = context.observer.fresh(run).await?;
    let marks = run.status.as_ref().map(|status| status.notified.as_slice()).unwrap_or_default();
    let (sinks, unknown) = notification::receivers(context.sinks.all(), &run);
    let mut outcome = tell(&context, (&run, None), &notification::of_run(&run), (&sinks, marks)).await;
    for name in notification::unknown(&unknown, marks).into_iter().filter(|_| run.status.is_some()) {
        let known: Vec<&str> = context.sinks.all().map(|sink| sink.name.as_str()).collect();
        let known = if known.is_empty() {
            "none is configured".to_owned()
        } else {
            format!("configured are {}", known.join(", "))
        };
        outcome.notices.push(warning(
            "NotificationSinkUnknown",
            format!("spec.notifications: there is no receiver {name} for this namespace; {known} (chart value notifications.sinks)"),
        ));
        outcome.told.push(notification::said_unknown(name));
    }
    let status = marked(&context, run.status.as_ref(), (marks, &outcome.told), |status, marks| status.notified = marks);
    let set = |run: &mut Workflow, status, _| run.status = Some(status);
    Box::pin(finish(&context, run.as_ref(), status, outcome, set)).await
}

pub async fn step_run(context: Arc<Context>, step_run: Arc<StepRun>) -> Result<Action, Error> {
    let step = context.observer.fresh(step_run).await?;
    let namespace = step.namespace().unwrap_or_default();
    let run = context.observer.world.workflows.get(&namespace, &step.spec.workflow.name);
    let Some(run) = run.filter(|run| run.metadata.uid.as_ref() == Some(&step.spec.workflow.uid)) else {
        // One whose run is gone is deleted by Kubernetes in time.
        let age = step.metadata.creation_timestamp.as_ref();
        let age = age.map(|made| context.observer.clock.now().0.duration_since(made.0)).unwrap_or_default();
        let may_come = age < RUN_IS_GONE;
        return Ok(if may_come { Action::requeue(RUN_COMES) } else { Action::await_change() });
    };
    let marks = step.status.as_ref().map(|status| status.notified.as_slice()).unwrap_or_default();
    let (sinks, _) = notification::receivers(context.sinks.all(), &run);
    let outcome = tell(&context, (&run, Some(&step)), &notification::of_step(&step), (&sinks, marks)).await;
    let status =
        marked(&context, step.status.as_ref(), (marks, &outcome.told), |status, marks| status.notified = marks);
    let set = |step: &mut StepRun, status, _| step.status = Some(status);
    Box::pin(finish(&context, step.as_ref(), status, outcome, set)).await
}

/// Receivers beside each other, what one is told after each other. An error keeps nothing from being latched that others were told.
async fn tell(
    context: &Context,
    about: (&Workflow, Option<&StepRun>),
    all: &[Notification],
    (sinks, marks): (&[&Sink], &[Notified]),
) -> Outcome {
    let each = sinks.iter().map(|sink| {
        let mut due = notification::due(all, sink, marks);
        if !notification::knows_of(sink, about.0, marks) {
            let now = context.observer.clock.now();
            due.retain(|one| !notification::is_history(one, context.sinks.since(&now)));
        }
        Box::pin(tell_one(context, about, due, (sink, marks)))
    });
    let mut outcome = Outcome::default();
    for one in join_all(each).await {
        outcome.told.extend(one.told);
        outcome.notices.extend(one.notices);
        outcome.comes_again_in(one.again_in);
        outcome.error = outcome.error.or(one.error);
    }
    outcome
}

async fn tell_one(
    context: &Context,
    (run, step): (&Workflow, Option<&StepRun>),
    all: Vec<&Notification>,
    (sink, marks): (&Sink, &[Notified]),
) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(receiver) = context.sinks.get(&sink.name) else { return outcome };
    // Whoever comes after what the receiver did not take is not tried, but may be overdue, too.
    let mut halted: Option<Undelivered> = None;
    for one in all {
        let now = context.observer.clock.now();
        let mark = (sink.name.clone(), one.what.clone());
        let sent = match &halted {
            Some(before) => Err(before.clone()),
            None => match event(context, one, (run, step)).await {
                Ok(event) => receiver.deliver(&event, now.0.as_second()).await,
                Err(error) => return Outcome { error: Some(error), ..outcome },
            },
        };
        let Err(failed) = sent else {
            context.notified(&sink.name, "delivered");
            outcome.told.push(mark);
            continue;
        };
        if failed.was_tried {
            context.notified(&sink.name, "failed");
            tracing::warn!(
                sink = sink.name,
                namespace = run.namespace(),
                run = run.name_any(),
                id = one.id(),
                why = failed.why,
                said = failed.said,
                again_in = ?failed.again_in,
                "a notification was not delivered"
            );
        }
        let is_overdue = notification::is_overdue(one, &now, failed.trouble);
        if is_overdue && notification::may_be_given_up(one) {
            context.notified(&sink.name, "given_up");
            outcome.notices.push(warning(
                "NotificationLost",
                format!("{} was not told of {} and will not be: {}", sink.name, one.id(), failed.why),
            ));
            outcome.told.push(mark);
        } else {
            if is_overdue && !notification::is_said_late(one, sink, marks) {
                outcome.notices.push(warning(
                    "NotificationLate",
                    format!(
                        "{} could not be told of {} for an hour, and is tried on: {}",
                        sink.name,
                        one.id(),
                        failed.why
                    ),
                ));
                outcome.told.push(notification::said_late(one, sink));
            }
            outcome.comes_again_in([failed.again_in]);
        }
        if !failed.is_of_this_alone {
            halted.get_or_insert(Undelivered { was_tried: false, ..failed });
        }
    }
    outcome
}

async fn event(
    context: &Context,
    one: &Notification,
    (run, step): (&Workflow, Option<&StepRun>),
) -> Result<CloudEvent, Error> {
    let observer = &context.observer;
    let shown = match step.and_then(|step| notification::document(one, step)) {
        Some(pin) => {
            let namespace = run.namespace().unwrap_or_default();
            // One that was exchanged or is gone is not shown; the gate itself says so.
            observer.contents.content(&observer.client, &namespace, &pin).await?.ok()
        }
        None => None,
    };
    Ok(notification::cloud_event(one, (run, step), shown.as_ref(), &observer.installation.api_url))
}

fn warning(reason: &'static str, note: String) -> Notice {
    Notice { warning: true, comes_first: false, reason, note }
}

/// The status with what was told now; nothing where nothing was.
fn marked<S: Clone>(
    context: &Context,
    status: Option<&S>,
    (marks, told): (&[Notified], &[(String, String)]),
    set: impl FnOnce(&mut S, Vec<Notified>),
) -> Option<S> {
    let mut status = status.filter(|_| !told.is_empty())?.clone();
    set(&mut status, notification::marked(marks, told, |name| context.sinks.get(name).is_some()));
    Some(status)
}

async fn finish<K, S>(
    context: &Context,
    object: &K,
    status: Option<S>,
    outcome: Outcome,
    set: impl FnOnce(&mut K, S, Option<crate::api::step_run::JobRef>),
) -> Result<Action, Error>
where
    K: Watched + HasStatus<Status: serde::Serialize> + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
{
    let plan = Plan { status, notices: outcome.notices, requeue: outcome.again_in, ..Plan::default() };
    let action = if plan.status.is_none() && plan.notices.is_empty() {
        // Nothing but a change, or the end of a pause, gives it anything to tell.
        plan.requeue.map_or_else(Action::await_change, Action::requeue)
    } else {
        context.carry_out(object, plan, set).await?
    };
    outcome.error.map_or(Ok(action), Err)
}
