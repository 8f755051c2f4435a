//! Contents of Documents and pinned definitions: immutable, fetched when needed, kept within a byte bound.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{Api, Client};

use super::Error;
use super::client::bounded;
use crate::api::Document;
use crate::api::definition::Definition;
use crate::decide::settled::Settled;

const BYTES: usize = 32 * 1024 * 1024;
const DEFINITIONS: usize = 256;

/// Bounded stores, the oldest goes first. Keyed by UID: what a UID once held never changes.
#[derive(Default)]
pub struct Contents {
    texts: Mutex<Texts>,
    definitions: Mutex<Definitions>,
}

#[derive(Default)]
struct Texts {
    by_uid: HashMap<String, Arc<str>>,
    order: VecDeque<String>,
    bytes: usize,
}

#[derive(Default)]
struct Definitions {
    by_uid: HashMap<String, Arc<Definition>>,
    order: VecDeque<String>,
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
    /// The content of a Document, none if it is gone.
    pub async fn text(&self, client: &Client, document: &Document) -> Result<Option<Arc<str>>, Error> {
        let meta = &document.metadata;
        let (Some(uid), Some(name), Some(namespace)) = (&meta.uid, &meta.name, &meta.namespace) else {
            return Ok(None);
        };
        if let Some(found) = self.texts.lock().unwrap_or_else(PoisonError::into_inner).by_uid.get(uid) {
            return Ok(Some(Arc::clone(found)));
        }
        let api: Api<Document> = Api::namespaced(client.clone(), namespace);
        let found = bounded("GET documents", api.get_opt(name)).await?.filter(|d| d.metadata.uid.as_ref() == Some(uid));
        let Some(found) = found else { return Ok(None) };
        let text: Arc<str> = found.spec.content.into();
        self.texts.lock().unwrap_or_else(PoisonError::into_inner).keep(uid, &text);
        Ok(Some(text))
    }

    /// The definition that a run pinned: owned by it, none if it is gone or another's.
    pub async fn definition(
        &self,
        client: &Client,
        namespace: &str,
        revision: &str,
        workflow_uid: &str,
    ) -> Result<Option<Arc<Definition>>, Error> {
        if let Some(found) = self.definitions.lock().unwrap_or_else(PoisonError::into_inner).by_uid.get(workflow_uid) {
            return Ok(Some(Arc::clone(found)));
        }
        let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        let Some(found) = bounded("GET controllerrevisions", api.get_opt(revision)).await? else {
            return Ok(None);
        };
        let ours = found
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.controller == Some(true) && o.uid == workflow_uid);
        let definition = found.data.filter(|_| ours).and_then(|data| serde_json::from_value::<Definition>(data.0).ok());
        let Some(definition) = definition else {
            return Ok(None);
        };
        let definition = Arc::new(definition);
        self.definitions.lock().unwrap_or_else(PoisonError::into_inner).keep(workflow_uid, &definition);
        Ok(Some(definition))
    }
}

impl Texts {
    fn keep(&mut self, uid: &str, text: &Arc<str>) {
        self.bytes += text.len();
        self.order.push_back(uid.to_owned());
        self.by_uid.insert(uid.to_owned(), Arc::clone(text));
        while self.bytes > BYTES {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some(gone) = self.by_uid.remove(&oldest) {
                self.bytes -= gone.len();
            }
        }
    }
}

impl Definitions {
    fn keep(&mut self, uid: &str, definition: &Arc<Definition>) {
        self.order.push_back(uid.to_owned());
        self.by_uid.insert(uid.to_owned(), Arc::clone(definition));
        if self.order.len() > DEFINITIONS
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_uid.remove(&oldest);
        }
    }
}
