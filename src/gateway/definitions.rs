//! Pinned definitions, compiled: fetched when needed, never watched, kept because they never change.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Api;

use super::cluster;
use super::refusal::{Reason, Refusal, Result};
use crate::api::StepRunSpec;
use crate::cluster::bounded_cache::BoundedCache;
use crate::definition::pinned;
use crate::definition::program::{self, AgentStep, Program, Step};

const BYTES: usize = 16 * 1024 * 1024;

/// By namespace, UID of the run, name of the revision and pinned digest.
pub struct Definitions(BoundedCache<Program>);

impl Default for Definitions {
    fn default() -> Self {
        Self(BoundedCache::new(BYTES))
    }
}

impl Definitions {
    pub async fn get(&self, client: &kube::Client, namespace: &str, spec: &StepRunSpec) -> Result<Arc<Program>> {
        let wanted = &spec.definition;
        let key = [namespace, &spec.workflow.uid, &wanted.revision_name, &wanted.digest].join("/");
        if let Some(found) = self.0.get(&key) {
            return Ok(found);
        }
        let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        let revision = cluster::find(|| api.get(&wanted.revision_name))
            .await?
            .ok_or_else(|| Refusal::new(Reason::NotFound, "the pinned definition of the run is gone"))?;
        let (program, bytes) = read(revision, spec)?;
        let program = Arc::new(program);
        self.0.insert(key, Arc::clone(&program), bytes);
        Ok(program)
    }
}

/// The definition, if it is the one that the StepRun was made from, and how many bytes it has.
fn read(revision: ControllerRevision, spec: &StepRunSpec) -> Result<(Program, usize)> {
    let refuse = |why: &str| Refusal::new(Reason::NotFound, why);
    let run = &spec.workflow.uid;
    let owned = revision.metadata.owner_references.iter().flatten().any(|owner| owner.uid == *run);
    let data = revision.data.filter(|_| owned).ok_or_else(|| refuse("the pinned definition is not the run's own"))?.0;
    let bytes = program::bytes(&data);
    let program = pinned::read(data, &spec.definition.digest).map_err(|why| {
        tracing::error!(revision = spec.definition.revision_name, %why, "a definition is not the pinned one");
        refuse(&format!("the pinned definition: {why}"))
    })?;
    if program.run.uid == *run { Ok((program, bytes)) } else { Err(refuse("the pinned definition is of another run")) }
}

/// The step of a StepRun, and what its agent is to do.
pub fn step<'a>(definition: &'a Program, spec: &StepRunSpec) -> Result<(&'a Step, &'a AgentStep)> {
    let step = definition.step(&spec.path);
    let own = step.and_then(|step| Some((step, step.agent()?)));
    own.ok_or_else(|| Refusal::new(Reason::NotFound, "the pinned definition has no such step"))
}
