//! The mailbox on a StepRun: annotations that carry what a person says, and the wait until the operator took it.

#![expect(clippy::disallowed_macros, reason = "the merge patch of the mailbox")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use serde_json::{Map, Value, json};

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::target::label;
use super::watch::watch_fault;
use crate::api::StepRun;
use crate::api::name::{CLI, DECIDED_BY};

/// How long the operator may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is written; its author goes in by itself.
pub struct Submission {
    pub annotations: Map<String, Value>,
    /// The author, as the API server knows them.
    pub by: Option<String>,
}

impl Submission {
    pub async fn new(on: &Connection, entries: Vec<(&str, Option<String>)>) -> Result<Self, Fault> {
        let by = whoami(on).await?;
        let author = (DECIDED_BY, by.clone());
        let annotations = entries
            .into_iter()
            .chain([author])
            .filter_map(|(key, value)| Some((key.to_owned(), json!(value?))))
            .collect();
        Ok(Self { annotations, by })
    }
}

/// The user name; none where the cluster does not tell.
pub async fn whoami(on: &Connection) -> Result<Option<String>, Fault> {
    let api: Api<SelfSubjectReview> = Api::all(on.client.clone());
    let ask = SelfSubjectReview::default();
    let told = on.within("ask who you are", api.create(&PostParams::default(), &ask)).await?;
    match told {
        Ok(me) => Ok(me.status.and_then(|s| s.user_info).and_then(|u| u.username)),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(None),
        Err(wrong) => Err(Fault::call("ask who you are", &wrong)),
    }
}

/// Puts a submission into the mailbox of a step, exactly as it was read. Where the step has changed in between, `still` says
/// why it is not the one that was meant any more, or that only its progress, say, is another one.
pub async fn post(
    on: &Connection,
    step: &StepRun,
    submission: &Submission,
    still: impl Fn(&StepRun) -> Result<(), String>,
) -> Result<StepRun, Fault> {
    let api = on.api::<StepRun>();
    let name = step.name_any();
    let params = PatchParams { field_manager: Some(CLI.to_owned()), ..PatchParams::default() };
    let mut known = step.clone();
    for _ in 0..5 {
        let patch = json!({"metadata": {
            "uid": known.uid(),
            "resourceVersion": known.resource_version(),
            "annotations": submission.annotations,
        }});
        let answer = on.within("write the decision", api.patch(&name, &params, &Patch::Merge(&patch))).await?;
        match answer {
            Ok(written) => return Ok(written),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                known = on.read_known("read the step again", &name).await?;
                if let Err(why) = still(&known) {
                    let name = format!("{}/{}", known.spec.workflow.name, label(&known));
                    let again = on.hint("show", &name);
                    let text = format!("{name} changed in between: {why}; nothing was sent; look again: {again}");
                    return Err(Fault::new(Code::Failed, text));
                }
            }
            Err(wrong) => return Err(Fault::call("write the decision", &wrong)),
        }
    }
    Err(Fault::new(Code::Api, format!("the step {name} changes all the time; try again")))
}

/// Who has a submission under this key in the mailbox already, if anybody has.
pub fn taken(step: &StepRun, key: &str) -> Option<String> {
    let notes = step.annotations();
    notes.get(key)?;
    Some(notes.get(DECIDED_BY).map_or_else(|| "somebody".to_owned(), |by| super::text::inline(by, 256)))
}

/// The Events of a reason by which a submission is refused, as they were before it was posted: a newer one is its refusal.
pub struct Refusals {
    key: &'static str,
    reason: &'static str,
    before: BTreeMap<String, Option<String>>,
}

impl Refusals {
    /// Reads them before the submission is posted. A user who may not read Events only misses the reason of a refusal.
    pub async fn before(on: &Connection, step: &StepRun, key: &'static str, reason: &'static str) -> Self {
        let params = ListParams::default().fields(&about(step, reason));
        let list = on.call("read the events", on.api::<Event>().list(&params)).await;
        let events = list.map(|list| list.items).unwrap_or_default();
        let before = events.into_iter().map(|e| (e.name_any(), e.resource_version())).collect();
        Self { key, reason, before }
    }

    /// The operator's words. Its Events follow its writes, so they are waited for a moment.
    async fn fault(&self, on: &Connection, step: &StepRun) -> Fault {
        let fields = watcher::Config::default().fields(&about(step, self.reason));
        let mut events = watcher(on.api::<Event>(), fields).boxed();
        let told = async {
            while let Some(Ok(event)) = events.next().await {
                if let watcher::Event::Apply(event) | watcher::Event::InitApply(event) = event
                    && self.before.get(&event.name_any()) != Some(&event.resource_version())
                {
                    return event.message;
                }
            }
            None
        };
        let words = tokio::time::timeout(Duration::from_secs(3), told).await.ok().flatten();
        let why = words.map_or_else(
            || format!("the operator did not take it; see kubectl describe steprun {}", step.name_any()),
            |words| super::text::inline(&words, 1024),
        );
        Fault::new(Code::Failed, format!("{}: {why}", label(step)))
    }
}

/// Why the newest decision or answer that was refused was refused, and when. Who may not read Events is told nothing.
pub async fn last_refusal(on: &Connection, step: &StepRun) -> Option<String> {
    let mut events = Vec::new();
    for reason in ["DecisionRefused", "AnswerRefused"] {
        let params = ListParams::default().fields(&about(step, reason));
        let read = on.call("read the events", on.api::<Event>().list(&params)).await;
        events.extend(read.map(|list| list.items).unwrap_or_default());
    }
    newest(&events)
}

fn newest(events: &[Event]) -> Option<String> {
    let at = |event: &Event| {
        let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|at| at.0);
        let once = event.event_time.as_ref().map(|at| at.0);
        let last = event.last_timestamp.as_ref().map(|at| at.0);
        series.into_iter().chain(once).chain(last).max()
    };
    let last = events.iter().max_by_key(|event| at(event))?;
    let when = at(last).map_or_else(String::new, |at| format!("{}: ", super::text::clock(at)));
    let why = super::text::inline(last.message.as_deref().unwrap_or_default(), 1024);
    (!why.is_empty()).then(|| format!("{when}{why}"))
}

fn about(step: &StepRun, reason: &str) -> String {
    format!("involvedObject.uid={},reason={reason}", step.uid().unwrap_or_default())
}

/// Waits until the operator has latched the submission, or has emptied the mailbox without.
pub async fn latched(
    on: &Connection,
    step: &StepRun,
    refusals: &Refusals,
    done: impl Fn(&StepRun) -> bool,
) -> Result<StepRun, Fault> {
    let name = step.name_any();
    let fields = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = on.watch::<StepRun>(fields);
    let watch = async {
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(now) | watcher::Event::InitApply(now)) if done(&now) => return Ok(Some(now)),
                // What is taken up is in the status before it leaves the mailbox.
                Ok(watcher::Event::Apply(now) | watcher::Event::InitApply(now))
                    if !now.annotations().contains_key(refusals.key) =>
                {
                    return Ok(None);
                }
                Ok(watcher::Event::Delete(_)) => {
                    return Err(Fault::missing(format!("the step {name} was deleted")));
                }
                Ok(_) => {}
                Err(wrong) => {
                    if let Some(fault) = watch_fault("see the outcome", &wrong) {
                        return Err(fault);
                    }
                }
            }
        }
        Err(Fault::new(Code::Api, "the watch ended; see kubectl lockstep show"))
    };
    match tokio::time::timeout(PATIENCE, watch).await {
        Ok(Ok(Some(now))) => Ok(now),
        Ok(Ok(None)) => Err(refusals.fault(on, step).await),
        Ok(Err(fault)) => Err(fault),
        Err(_) => Err(Fault::new(
            Code::Api,
            format!(
                "it is written, but no operator has taken it up within {} s; it stays valid; is the operator running? see kubectl lockstep version",
                PATIENCE.as_secs()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_refusal_is_told() {
        let event = |message: &str, at: Value| -> Event {
            let mut event = json!({"metadata": {"name": message}, "involvedObject": {}, "message": message});
            event.as_object_mut().expect("an object").extend(at.as_object().cloned().expect("times"));
            serde_json::from_value(event).expect("an event")
        };
        let once = event("first", json!({"eventTime": "2026-11-21T10:00:00.000000Z"}));
        let often = event(
            "it is less than 1",
            json!({"eventTime": "2026-11-21T09:00:00.000000Z", "series": {"count": 2, "lastObservedTime": "2026-11-21T10:00:05.000000Z"}}),
        );
        let old = event("old", json!({"lastTimestamp": "2026-11-21T08:00:00Z"}));
        assert_eq!(newest(&[once, often, old]).as_deref(), Some("2026-11-21T10:00:05Z: it is less than 1"));
        assert_eq!(newest(&[]), None);
    }
}
