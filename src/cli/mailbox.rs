//! The mailbox on a StepRun: annotations that carry what a person says, and the wait until the operator took it.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
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
async fn whoami(on: &Connection) -> Result<Option<String>, Fault> {
    let api: Api<SelfSubjectReview> = Api::all(on.client.clone());
    let ask = SelfSubjectReview::default();
    let told = on.within("ask who you are", api.create(&PostParams::default(), &ask)).await?;
    match told {
        Ok(me) => Ok(me.status.and_then(|s| s.user_info).and_then(|u| u.username)),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(None),
        Err(wrong) => Err(Fault::call("ask who you are", &wrong)),
    }
}

/// Puts the letter in, for the step exactly as it was read. `still` tells whether a step that changed in between (its
/// progress, say) is still the one that was meant.
pub async fn post(
    on: &Connection,
    step: &StepRun,
    letter: &Letter,
    still: impl Fn(&StepRun) -> bool,
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
                if !still(&known) {
                    return Err(Fault::new(
                        Code::Failed,
                        format!(
                            "{} changed in between, nothing was decided; look again: {}",
                            label(&known),
                            on.hint("show", &format!("{}/{}", known.spec.workflow.name, label(&known)))
                        ),
                    ));
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

/// Waits until the operator latched it.
pub async fn latched(on: &Connection, step: &StepRun, done: impl Fn(&StepRun) -> bool) -> Result<StepRun, Fault> {
    let name = step.name_any();
    let fields = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(on.api::<StepRun>(), fields).default_backoff().boxed();
    let watch = async {
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(now) | Event::InitApply(now)) if done(&now) => return Ok(now),
                Ok(Event::Delete(_)) => {
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
    tokio::time::timeout(PATIENCE, watch).await.unwrap_or_else(|_| {
        Err(Fault::new(
            Code::Api,
            format!(
                "it is written, but no operator has taken it up within {} s; it stays valid; is the operator running? see kubectl lockstep version",
                PATIENCE.as_secs()
            ),
        ))
    })
}
