//! Contents of Documents and pinned definitions: immutable, fetched when needed, kept within a byte bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{Api, Client};

use super::Error;
use super::bounded::Bounded;
use super::client::bounded;
use crate::api::Document;
use crate::api::workflow::DefinitionRef;
use crate::decide::content::{Changed, Content, Loaded, Pin};
use crate::decide::settled::Settled;
use crate::definition::pinned;
use crate::definition::program::{self, Program};

const CONTENT_BYTES: usize = 32 * 1024 * 1024;
const DEFINITION_BYTES: usize = 16 * 1024 * 1024;

/// What was fetched, with its digest. Contents by the UID of their Document, definitions by that of their run and by the
/// digest that they were compared with: what a UID once held never changes, and what is kept was verified.
pub struct Contents {
    texts: Bounded<Loaded>,
    definitions: Bounded<Program>,
}

impl Default for Contents {
    fn default() -> Self {
        Self { texts: Bounded::new(CONTENT_BYTES), definitions: Bounded::new(DEFINITION_BYTES) }
    }
}

/// What passes found to be settled, by the run's UID; the run that was looked at longest ago goes first.
#[derive(Default)]
pub struct Memory {
    runs: Mutex<Runs>,
}

#[derive(Default)]
struct Runs {
    /// With the number of the look.
    by_uid: HashMap<String, (Arc<Settled>, u64)>,
    looks: u64,
}

const RUNS: usize = 1024;

impl Memory {
    pub fn of(&self, uid: &str) -> Arc<Settled> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.by_uid.get(uid).map(|(settled, _)| Arc::clone(settled)).unwrap_or_default()
    }

    pub fn keep(&self, uid: &str, settled: &Arc<Settled>) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.looks += 1;
        let at = runs.looks;
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
        let found = bounded("GET documents", api.get_opt(&pin.name)).await?;
        let loaded = found.map(|document| Loaded::new(Arc::new(document)));
        let content = Content::of(pin, loaded.as_ref());
        if let (Ok(_), Some(loaded)) = (&content, loaded)
            && let Some(uid) = loaded.document().metadata.uid.clone()
        {
            let bytes = loaded.bytes();
            self.texts.keep(uid, Arc::new(loaded), bytes);
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
        let Some(found) = bounded("GET controllerrevisions", api.get_opt(&wanted.revision_name)).await? else {
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
                self.definitions.keep(key, Arc::clone(&program), bytes);
                Ok(Some(program))
            }
            Err(why) => {
                tracing::error!(namespace, revision = wanted.revision_name, %why, "a definition is not the pinned one");
                Ok(None)
            }
        }
    }
}
