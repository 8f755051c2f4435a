//! Pinned definitions: fetched when needed, never watched, kept because they never change.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Api;

use super::cluster;
use super::refusal::{Reason, Refusal, Result};
use crate::api::StepRunSpec;
use crate::api::definition::Definition;

const KEPT: usize = 64;

type Key = (String, String, String);

/// The most recently used ones, newest last.
#[derive(Default)]
pub struct Definitions(Mutex<Vec<(Key, Arc<Definition>)>>);

impl Definitions {
    pub async fn get(&self, client: &kube::Client, namespace: &str, spec: &StepRunSpec) -> Result<Arc<Definition>> {
        let key = (namespace.to_owned(), spec.workflow.uid.clone(), spec.definition.revision_name.clone());
        if let Some(found) = self.recall(&key) {
            return Ok(found);
        }
        let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        let revision = cluster::find(|| api.get(&spec.definition.revision_name))
            .await?
            .ok_or_else(|| Refusal::new(Reason::NotFound, "the pinned definition of the run is gone"))?;
        let definition = Arc::new(read(revision, &spec.workflow.uid)?);
        self.keep(key, definition.clone());
        Ok(definition)
    }

    fn recall(&self, key: &Key) -> Option<Arc<Definition>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(other, _)| other == key)?;
        let entry = kept.remove(at);
        let found = entry.1.clone();
        kept.push(entry);
        Some(found)
    }

    fn keep(&self, key: Key, definition: Arc<Definition>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, _)| other != &key);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, definition));
    }
}

fn read(revision: ControllerRevision, workflow_uid: &str) -> Result<Definition> {
    let refuse = |why: &str| Refusal::new(Reason::NotFound, why);
    let owned = revision.metadata.owner_references.iter().flatten().any(|owner| owner.uid == workflow_uid);
    let data = revision.data.filter(|_| owned).ok_or_else(|| refuse("the pinned definition is not the run's own"))?;
    let definition: Definition =
        serde_json::from_value(data.0).map_err(|_| refuse("the pinned definition cannot be read by this version"))?;
    if definition.workflow_uid == workflow_uid {
        Ok(definition)
    } else {
        Err(refuse("the pinned definition is of another run"))
    }
}
