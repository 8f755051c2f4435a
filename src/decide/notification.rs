//! What is told to receivers outside of the cluster, and what of it is still to be told. Pure. What can be told are facts of
//! `timeline`, so that whoever tells one again, another process included, tells it by the same id.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use super::content::{self, Content, Pin};
use super::timeline::{self, EventPayload, Fact, GATE, REQUEST, WAIT};
use crate::api::condition::clip;
use crate::api::notification::{NotificationEvent, Notified};
use crate::api::step_run::{GateState, GateStatus};
use crate::api::workflow::Phase;
use crate::api::{StepRun, StepRunStatus, Workflow};

/// What cannot be delivered for so long after it happened is given up.
pub const GIVEN_UP_AFTER: SignedDuration = SignedDuration::from_hours(1);
/// A receiver that failed once or twice may only have been started anew.
const SEVERAL: u32 = 5;
/// What is shown of a document: lines, and bytes.
const LINES: usize = 10;
const EXCERPT_BYTES: usize = 2048;
/// In the marks of an object: that a receiver is not known was said.
const UNKNOWN: &str = "unknown";
/// Before the name of a wait in the marks: that nobody could be told of it for an hour was said.
const LATE: &str = "late.";
/// What the marks of one receiver may hold; the oldest go. No object can tell so much.
const MARKS: usize = 256;

/// A receiver, as the administrator named it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Sink {
    pub name: String,
    /// What it is told of; all, where nothing stands here.
    #[serde(default)]
    pub events: Vec<NotificationEvent>,
    /// Whether it is told of runs that name no receiver.
    #[serde(default)]
    pub default: bool,
    /// The namespaces whose runs may name it; all, where nothing stands here.
    #[serde(default)]
    pub namespaces: Vec<String>,
}

impl Sink {
    fn may_hear_of(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|own| own == namespace)
    }

    fn wants(&self, event: NotificationEvent) -> bool {
        self.events.is_empty() || self.events.contains(&event)
    }
}

/// The receivers of a run, and the names that it gives of which there is none for its namespace.
pub fn receivers<'s>(sinks: impl Iterator<Item = &'s Sink>, run: &Workflow) -> (Vec<&'s Sink>, Vec<String>) {
    let namespace = run.metadata.namespace.as_deref().unwrap_or_default();
    let open: Vec<&Sink> = sinks.filter(|sink| sink.may_hear_of(namespace)).collect();
    let Some(named) = &run.spec.notifications else {
        return (open.into_iter().filter(|sink| sink.default).collect(), Vec::new());
    };
    let unknown = named.iter().filter(|name| !open.iter().any(|sink| sink.name == **name)).cloned().collect();
    (open.into_iter().filter(|sink| named.contains(&sink.name)).collect(), unknown)
}

/// A fact of which receivers can be notified.
#[derive(Clone, Debug, PartialEq)]
pub struct Notification {
    pub event: NotificationEvent,
    /// Its name among all that happens to the same object.
    pub what: String,
    pub at: Time,
    payload: EventPayload,
}

impl Notification {
    /// The id of its CloudEvent.
    pub fn id(&self) -> &str {
        &self.payload.id
    }
}

fn of_fact(fact: Fact) -> Option<Notification> {
    let event = match (fact.payload.event, fact.payload.phase) {
        ("run.started", _) => NotificationEvent::Started,
        ("step.waiting" | "run.waiting", _) => NotificationEvent::Waiting,
        ("step.decided" | "step.answered", _) => NotificationEvent::Decided,
        ("run.ended", Some(Phase::Completed)) => NotificationEvent::Completed,
        ("run.ended", Some(Phase::Cancelled)) => NotificationEvent::Cancelled,
        ("run.ended", _) => NotificationEvent::Failed,
        _ => return None,
    };
    let at = fact.payload.at.clone()?;
    Some(Notification { event, what: fact.key.what().to_owned(), at, payload: fact.payload })
}

pub fn of_run(run: &Workflow) -> Vec<Notification> {
    timeline::of_run(run).into_iter().chain(timeline::missing_documents(run)).filter_map(of_fact).collect()
}

/// Waits that are over are not told any more: nobody need do anything.
pub fn of_step(step: &StepRun) -> Vec<Notification> {
    let over = step.status.as_ref().is_some_and(|status| status.completed_at.is_some());
    let told = timeline::of_step(step).into_iter().filter_map(of_fact);
    told.filter(|one| one.event != NotificationEvent::Waiting || !over && is_open(step, &one.what)).collect()
}

/// The gate that a wait of this name is at: the step's own, or that of a requested action.
fn gate<'s>(status: &'s StepRunStatus, what: &str) -> Option<&'s GateStatus> {
    match what.strip_prefix(REQUEST) {
        Some(number) => Some(&status.approval_requests.get(number.parse::<usize>().ok()?)?.gate),
        None => status.gate.as_ref().filter(|_| what.starts_with(GATE)),
    }
}

fn is_open(step: &StepRun, what: &str) -> bool {
    let Some(status) = &step.status else { return false };
    // An answer is waited for as long as it is told at all.
    what.starts_with(WAIT) || gate(status, what).is_some_and(|gate| gate.state == GateState::Waiting)
}

fn marks_of<'m>(sink: &Sink, marks: &'m [Notified]) -> &'m [String] {
    marks.iter().find(|mark| mark.sink == sink.name).map(|mark| mark.told.as_slice()).unwrap_or_default()
}

/// What a receiver is still to be told, in the order in which it happened; what it has not taken for an hour comes last.
pub fn due<'n>(all: &'n [Notification], sink: &Sink, marks: &[Notified]) -> Vec<&'n Notification> {
    let told = marks_of(sink, marks);
    let mut due: Vec<_> = all.iter().filter(|one| sink.wants(one.event) && !told.contains(&one.what)).collect();
    due.sort_by_key(|one| (is_said_late(one, sink, marks), one.at.0));
    due
}

/// Whether the receiver has been told of the run before, so that it missed what it was not told.
pub fn knows_of(sink: &Sink, run: &Workflow, marks: &[Notified]) -> bool {
    let of_run = run.status.as_ref().map(|status| status.notified.as_slice()).unwrap_or_default();
    marks_of(sink, marks).iter().chain(marks_of(sink, of_run)).any(|told| told != UNKNOWN)
}

/// Whether it happened long before this process began to tell: a receiver that is new is told no history, but of people who are
/// waited for still.
pub fn is_history(one: &Notification, since: &Time) -> bool {
    one.event != NotificationEvent::Waiting && since.0.duration_since(one.at.0) > GIVEN_UP_AFTER
}

/// How it goes with a receiver or with what it is to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Since the first failure that this process knows of.
    pub lasts: SignedDuration,
    pub failures: u32,
}

/// Whether it could not be told for too long. An operator that was away longer than that has only begun to try.
pub fn is_overdue(one: &Notification, now: &Time, trouble: Trouble) -> bool {
    trouble.failures >= SEVERAL && trouble.lasts.min(now.0.duration_since(one.at.0)) > GIVEN_UP_AFTER
}

/// Whether it is not tried any more when it is overdue. People are still needed where they are waited for.
pub fn may_be_given_up(one: &Notification) -> bool {
    one.event != NotificationEvent::Waiting
}

/// Whether it was said that nobody could be told of it.
pub fn is_said_late(one: &Notification, sink: &Sink, marks: &[Notified]) -> bool {
    marks_of(sink, marks).iter().any(|told| told.strip_prefix(LATE) == Some(one.what.as_str()))
}

/// That it was said that nobody could be told of it.
pub fn said_late(one: &Notification, sink: &Sink) -> (String, String) {
    (sink.name.clone(), format!("{LATE}{}", one.what))
}

/// The names of receivers that nobody was told yet are not known.
pub fn unknown<'u>(unknown: &'u [String], marks: &[Notified]) -> Vec<&'u String> {
    unknown.iter().filter(|name| !marks.iter().any(|mark| mark.sink == **name)).collect()
}

/// That it was said that a receiver is not known.
pub fn said_unknown(name: &str) -> (String, String) {
    (name.to_owned(), UNKNOWN.to_owned())
}

/// The marks with what was told now, by receiver and name. Those of receivers that `is_there` does not know are dropped: an object
/// has room for few.
pub fn marked(marks: &[Notified], told: &[(String, String)], is_there: impl Fn(&str) -> bool) -> Vec<Notified> {
    let is_said = |mark: &Notified| mark.told.iter().any(|what| what == UNKNOWN);
    let mut marks: Vec<_> = marks.iter().filter(|mark| is_there(&mark.sink) || is_said(mark)).cloned().collect();
    for (sink, what) in told {
        let known = marks.iter().position(|mark| mark.sink == *sink);
        let place = known.unwrap_or_else(|| {
            marks.push(Notified { sink: sink.clone(), told: Vec::new() });
            marks.len() - 1
        });
        if let Some(mark) = marks.get_mut(place).filter(|mark| !mark.told.contains(what)) {
            mark.told.push(what.clone());
            let over = mark.told.len().saturating_sub(MARKS);
            mark.told.drain(..over);
        }
    }
    marks
}

/// The Document whose beginning is shown with it: what is to be reviewed at the step's own gate.
pub fn document(one: &Notification, step: &StepRun) -> Option<Pin> {
    let reviewed = one.event == NotificationEvent::Waiting && one.what.starts_with(GATE);
    let result = step.status.as_ref()?.result.as_ref().filter(|_| reviewed)?;
    content::document_of(result)
}

/// The beginning of a Document.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Excerpt {
    #[serde(rename = "type")]
    document_type: String,
    name: String,
    digest: String,
    first_lines: String,
}

impl Excerpt {
    fn of(content: &Content) -> Self {
        let lines: Vec<&str> = content.text().lines().take(LINES).collect();
        Self {
            document_type: content.document().spec.document_type.clone(),
            name: content.document().name_any(),
            digest: content.digest().to_owned(),
            first_lines: clip(&lines.join("\n"), EXCERPT_BYTES),
        }
    }
}

/// What a notification says besides what every stream of a run says.
#[derive(Serialize, Clone, Debug, PartialEq)]
struct Data {
    namespace: String,
    #[serde(flatten)]
    payload: EventPayload,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Excerpt>,
    /// Of the run, at the HTTP API.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

/// CloudEvents 1.0, in structured mode.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct CloudEvent {
    specversion: &'static str,
    pub id: String,
    source: String,
    #[serde(rename = "type")]
    event_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    time: Time,
    datacontenttype: &'static str,
    data: Data,
}

/// How a person goes on.
fn commands(one: &Notification, step: &StepRun) -> Vec<String> {
    let Some(status) = step.status.as_ref().filter(|_| one.event == NotificationEvent::Waiting) else {
        return Vec::new();
    };
    let answer = status.waiting_for.as_ref().filter(|_| one.what.starts_with(WAIT)).map(|wait| &wait.commands);
    answer.or_else(|| Some(&gate(status, &one.what)?.commands)).cloned().unwrap_or_default()
}

/// `api` is where the HTTP API is reached, empty where there is none.
pub fn cloud_event(
    one: &Notification,
    (run, step): (&Workflow, Option<&StepRun>),
    content: Option<&Content>,
    api: &str,
) -> CloudEvent {
    let (namespace, name) = (run.namespace().unwrap_or_default(), run.name_any());
    let base = Some(api.trim_end_matches('/')).filter(|base| !base.is_empty());
    let at_gate = step.filter(|_| one.what.starts_with(GATE));
    let data = Data {
        session: run.status.as_ref().and_then(|status| Some(status.session.as_ref()?.id.clone())),
        flow: run.spec.template_ref.as_ref().map(|template| template.name.clone()),
        gate: at_gate.and_then(|step| Some(step.spec.gate.as_ref()?.name.clone())),
        commands: step.map(|step| commands(one, step)).unwrap_or_default(),
        document: content.map(Excerpt::of),
        url: base.map(|base| format!("{base}/namespaces/{namespace}/runs/{name}")),
        payload: one.payload.clone(),
        namespace: namespace.clone(),
    };
    CloudEvent {
        specversion: "1.0",
        id: one.payload.id.clone(),
        source: format!("/namespaces/{namespace}/workflows/{name}"),
        event_type: one.event.event_type(),
        subject: one.payload.step.clone(),
        time: one.at.clone(),
        datacontenttype: "application/json",
        data,
    }
}

#[cfg(test)]
mod tests;
