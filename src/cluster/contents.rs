//! Contents of Documents and pinned definitions: immutable, fetched when needed, kept within a byte bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt};

use super::Error;
use super::bounded_cache::BoundedCache;
use super::stored;
use crate::api::workflow::DefinitionRef;
use crate::api::{Document, Workflow, name};
use crate::decide::content::{Changed, Content, Loaded, Pin};
use crate::decide::seen;
use crate::decide::settled::Settled;
use crate::definition::pinned;
use crate::definition::program::{self, Program};

const CONTENT_BYTES: usize = 32 * 1024 * 1024;
const DEFINITION_BYTES: usize = 16 * 1024 * 1024;

/// What was fetched, with its digest. Contents by the UID of their Document, definitions by that of their run and by the
/// digest that they were compared with: what a UID once held never changes, and what is kept was verified.
pub struct Contents {
    texts: BoundedCache<Loaded>,
    definitions: BoundedCache<Program>,
}

impl Default for Contents {
    fn default() -> Self {
        Self { texts: BoundedCache::new(CONTENT_BYTES), definitions: BoundedCache::new(DEFINITION_BYTES) }
    }
}

/// What of each run is settled, by the run's UID: kept between passes. Of more than `RUNS` runs the one whose last pass was
/// longest ago is forgotten; its next pass finds it out anew.
#[derive(Default)]
pub struct SettledRuns {
    runs: Mutex<RecentRuns>,
}

#[derive(Default)]
struct RecentRuns {
    /// With the number of the run's last pass.
    by_uid: HashMap<String, (Arc<Settled>, u64)>,
    passes: u64,
}

const RUNS: usize = 1024;

impl SettledRuns {
    pub fn of(&self, uid: &str) -> Arc<Settled> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.by_uid.get(uid).map(|(settled, _)| Arc::clone(settled)).unwrap_or_default()
    }

    pub fn keep(&self, uid: &str, settled: &Arc<Settled>) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.passes += 1;
        let at = runs.passes;
        if settled.is_empty() {
            runs.by_uid.remove(uid);
            return;
        }
        runs.by_uid.insert(uid.to_owned(), (Arc::clone(settled), at));
        if runs.by_uid.len() > RUNS
            && let Some(oldest) = runs.by_uid.iter().min_by_key(|(_, (_, at))| *at).map(|(uid, _)| uid.clone())
        {
            runs.by_uid.remove(&oldest);
        }
    }
}

/// What an older version pinned and the garbage collector cannot leave behind, where a run is deleted without what it owns.
pub async fn plain_revision(client: &Client, namespace: &str, run: &Workflow) -> Result<Option<ObjectMeta>, Error> {
    if !seen::goes_alone(run) {
        return Ok(None);
    }
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
    let name = name::revision(&run.name_any(), &run.uid().unwrap_or_default());
    let found = stored::read("GET controllerrevisions", &api, &name).await?;
    Ok(seen::plain_revision(run, found))
}

impl Contents {
    /// The content of the Document that is meant; the error says what is there instead.
    pub async fn content(
        &self,
        client: &Client,
        namespace: &str,
        pin: &Pin,
    ) -> Result<std::result::Result<Content, Changed>, Error> {
        let kept = pin.uid.as_ref().and_then(|uid| self.texts.get(uid));
        if let Some(Ok(content)) = kept.map(|kept| Content::of(pin, Some(&kept))) {
            return Ok(Ok(content));
        }
        let api: Api<Document> = Api::namespaced(client.clone(), namespace);
        let found = stored::read("GET documents", &api, &pin.name).await?;
        let loaded = found.map(|document| Loaded::new(Arc::new(document)));
        let content = Content::of(pin, loaded.as_ref());
        if let (Ok(_), Some(loaded)) = (&content, loaded)
            && let Some(uid) = loaded.document().metadata.uid.clone()
        {
            let bytes = loaded.bytes();
            self.texts.insert(uid, Arc::new(loaded), bytes);
        }
        Ok(content)
    }

    /// The definition that a run pinned, compiled: owned by it and with the pinned digest; none if it is gone or another.
    pub async fn definition(
        &self,
        client: &Client,
        namespace: &str,
        wanted: &DefinitionRef,
        workflow_uid: &str,
    ) -> Result<Option<Arc<Program>>, Error> {
        let key = format!("{namespace}/{workflow_uid}/{}", wanted.digest);
        if let Some(found) = self.definitions.get(&key) {
            return Ok(Some(found));
        }
        let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        let Some(found) = stored::read("GET controllerrevisions", &api, &wanted.revision_name).await? else {
            return Ok(None);
        };
        let ours = found
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.controller == Some(true) && o.uid == workflow_uid);
        let Some(data) = found.data.filter(|_| ours).map(|data| data.0) else {
            return Ok(None);
        };
        let bytes = program::bytes(&data);
        match pinned::read(data, &wanted.digest) {
            Ok(program) => {
                let program = Arc::new(program);
                self.definitions.insert(key, Arc::clone(&program), bytes);
                Ok(Some(program))
            }
            Err(why) => {
                tracing::error!(namespace, revision = wanted.revision_name, %why, "a definition is not the pinned one");
                Ok(None)
            }
        }
    }
}
