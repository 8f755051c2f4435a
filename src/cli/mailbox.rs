//! The mailbox on a StepRun: annotations that carry what a person says, and the wait until the operator took it.

#![expect(clippy::disallowed_macros, reason = "the merge patch of the mailbox")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
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
pub struct Letter {
    pub annotations: Map<String, Value>,
    /// The author, as the API server knows them.
    pub by: Option<String>,
}

impl Letter {
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

/// Puts the letter in, for the step exactly as it was read. `still` tells why a step that changed in between is not the
/// one that was meant any more; its progress, say, may have changed.
pub async fn post(
    on: &Connection,
    step: &StepRun,
    letter: &Letter,
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
            "annotations": letter.annotations,
        }});
        let answer = on.within("write the decision", api.patch(&name, &params, &Patch::Merge(&patch))).await?;
        match answer {
            Ok(written) => return Ok(written),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                known = on.call("read the step again", api.get(&name)).await?;
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

/// Whether somebody's letter lies there already.
pub fn taken(step: &StepRun, key: &str) -> Option<String> {
    let notes = step.annotations();
    notes.get(key)?;
    Some(notes.get(DECIDED_BY).map_or_else(|| "somebody".to_owned(), |by| super::text::inline(by, 256)))
}

/// What tells that a letter was refused: the Events of that reason, as they were before.
pub struct Refusals {
    key: &'static str,
    reason: &'static str,
    before: BTreeMap<String, Option<String>>,
}

impl Refusals {
    /// Taken before the letter is posted. Who may not read Events gets no reason, nothing else.
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

fn about(step: &StepRun, reason: &str) -> String {
    format!("involvedObject.uid={},reason={reason}", step.uid().unwrap_or_default())
}

/// Waits until the operator latched the letter, or emptied the mailbox without.
pub async fn latched(
    on: &Connection,
    step: &StepRun,
    refusals: &Refusals,
    done: impl Fn(&StepRun) -> bool,
) -> Result<StepRun, Fault> {
    let name = step.name_any();
    let fields = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(on.api::<StepRun>(), fields).default_backoff().boxed();
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
