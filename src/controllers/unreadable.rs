//! What cannot be read is told on the object itself: by a condition, and by an Event. A run that is over goes when its time has
//! passed, as others do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use tokio::time::timeout;

use super::context::Context;
use super::wakes::Wakes;
use crate::api::unreadable::Unreadable;
use crate::cluster::cache::{Cache, Watched};
use crate::cluster::stored::Stored;
use crate::cluster::{Error, apply, publish};
use crate::decide::unreadable::{StatusForm, left, told};
use crate::decide::{DeletableKind, Effect};

/// When it is tried again where the API server did not take it.
const AGAIN: Duration = Duration::from_secs(60);

/// Tells it for ever, of every kind.
pub async fn tell(context: &Context, wakes: &Wakes) {
    let world = &context.observer.world;
    futures::join!(
        of_kind(context, &world.agents, StatusForm::Ready, wakes),
        of_kind(context, &world.templates, StatusForm::Ready, wakes),
        of_kind(context, &world.triggers, StatusForm::Ready, wakes),
        of_kind(context, &world.workflows, StatusForm::Run, wakes),
        of_kind(context, &world.step_runs, StatusForm::StepRun, wakes),
        of_kind(context, &world.documents, StatusForm::Event, wakes),
    );
}

async fn of_kind<K: Watched>(context: &Context, cache: &Cache<K>, form: StatusForm, wakes: &Wakes) {
    let mut again: Option<Duration> = None;
    // The faults that an Event was sent of, by UID.
    let mut sent = BTreeMap::new();
    // Those that were there before, by UID: only what is new wakes others.
    let mut before: BTreeMap<String, Arc<Unreadable>> = BTreeMap::new();
    loop {
        let news = cache.unreadable_changed();
        match again.take() {
            None => news.await,
            // News or none, it is tried again.
            Some(wait) => timeout(wait, news).await.unwrap_or_default(),
        }
        let now: BTreeMap<String, Arc<Unreadable>> =
            cache.unreadable().into_iter().map(|one| (one.metadata.uid.clone().unwrap_or_default(), one)).collect();
        let version = |all: &BTreeMap<String, Arc<Unreadable>>, uid: &String| {
            all.get(uid).map(|one| one.metadata.resource_version.clone())
        };
        let uids: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        for uid in uids.into_iter().filter(|uid| version(&before, uid) != version(&now, uid)) {
            if let Some(one) = now.get(uid).or_else(|| before.get(uid)) {
                wakes.unreadable(&context.observer.world, &K::kind(&()), &one.metadata).await;
            }
        }
        for one in now.values() {
            if let Err(error) = say::<K>(context, one, form, &mut sent).await {
                again = Some(AGAIN);
                let (namespace, name) = one.place();
                tracing::warn!(kind = %K::kind(&()), namespace, name, %error, "what cannot be read could not be told on the object");
            }
        }
        if form == StatusForm::Run {
            again = again.into_iter().chain(remove_due(context, now.values()).await).min();
        }
        sent.retain(|uid, _| now.contains_key(uid));
        before = now;
    }
}

/// Takes the runs away whose time has passed; gives when to look again.
async fn remove_due(context: &Context, runs: impl Iterator<Item = &Arc<Unreadable>>) -> Option<Duration> {
    let (observer, mut again) = (&context.observer, None::<Duration>);
    for run in runs {
        let Some(mut wait) = left(run, &observer.clock.now()) else { continue };
        if wait.is_zero() {
            wait = AGAIN;
            let (namespace, name) = run.place();
            let uid = run.metadata.uid.clone().unwrap_or_default();
            let gone = Effect::Delete { what: DeletableKind::Workflow, name: name.clone(), uid };
            if let Err(error) = apply::apply(&observer.client, &namespace, &[gone], &observer.consistency).await {
                tracing::warn!(namespace, name, %error, "a run that cannot be read could not be deleted");
            }
        }
        again = Some(again.map_or(wait, |soonest| soonest.min(wait)));
    }
    again
}

async fn say<K: Watched>(
    context: &Context,
    one: &Unreadable,
    form: StatusForm,
    sent: &mut BTreeMap<String, String>,
) -> Result<(), Error> {
    let Some(told) = told(form, one, &context.observer.clock.now()) else { return Ok(()) };
    // Where the status is refused the Event still tells it.
    let written = match &told.status {
        Some(status) => publish::status_of_unreadable::<K>(&context.observer.client, one, status).await,
        None => Ok(()),
    };
    let uid = one.metadata.uid.clone().unwrap_or_default();
    if sent.insert(uid, one.fault.clone()).as_ref() != Some(&one.fault) {
        let about = Stored::<K>(Err(Box::new(one.clone())));
        publish::notices(&context.recorder, &about.object_ref(&()), vec![told.notice]).await;
    }
    written
}
