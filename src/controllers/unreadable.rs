//! What cannot be read is told on the object itself: by a condition, and by an Event.

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
use crate::cluster::{Error, publish};
use crate::decide::unreadable::{StatusForm, told};

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
    let mut is_told = true;
    // The faults that an Event was sent of, by UID.
    let mut sent = BTreeMap::new();
    // Those that were there before, by UID: only what is new wakes others.
    let mut before: BTreeMap<String, Arc<Unreadable>> = BTreeMap::new();
    loop {
        let news = cache.unreadable_changed();
        if is_told {
            news.await;
        } else {
            // News or none, it is tried again.
            timeout(AGAIN, news).await.unwrap_or_default();
        }
        is_told = true;
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
                is_told = false;
                let (namespace, name) = one.place();
                tracing::warn!(kind = %K::kind(&()), namespace, name, %error, "what cannot be read could not be told on the object");
            }
        }
        sent.retain(|uid, _| now.contains_key(uid));
        before = now;
    }
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
