//! The run of a StepRun, and the one that a retry goes on from: from the cache, and from the API server where their absence
//! would decide.

use std::sync::Arc;

use kube::Api;

use super::Observer;
use crate::api::Workflow;
use crate::api::step_run::WorkflowIdentity;
use crate::cluster::Error;
use crate::cluster::client::bounded;
use crate::cluster::stored::Stored;
use crate::cluster::world::run_key;
use crate::decide::workflow::Previous;

/// What lies under the name of a run.
enum Found {
    /// Nothing, or another run.
    Gone,
    /// It, and why it cannot be read.
    Unreadable(String),
    There(Arc<Workflow>),
}

impl Observer {
    /// The run that this one goes on from, or why it cannot be read. That it is not there is the fault of a run that begins:
    /// only the API server says so. Later it may go, and takes what it had with it.
    pub(super) async fn previous(
        &self,
        workflow: &Workflow,
        namespace: &str,
    ) -> Result<(Option<Previous>, Option<String>), Error> {
        let status = workflow.status.as_ref();
        let Some(of) = workflow.spec.retry_of.as_ref().filter(|_| status.is_none_or(|s| s.completed_at.is_none()))
        else {
            return Ok((None, None));
        };
        let identity = WorkflowIdentity { name: of.name.clone(), uid: of.uid.clone(), ..WorkflowIdentity::default() };
        let (run, fault) = match self.find_run(namespace, &identity).await? {
            Found::There(run) => (Some(run), None),
            // Of what cannot be read nothing is taken over.
            Found::Unreadable(fault) => (None, Some(fault)),
            Found::Gone => (None, None),
        };
        if run.is_none() && status.is_none_or(|s| s.definition.is_none()) {
            return Ok((None, fault));
        }
        let pinned = run.as_ref().and_then(|run| run.status.as_ref()?.definition.as_ref());
        let definition = match pinned {
            Some(pinned) => self.contents.definition(&self.client, namespace, pinned, &of.uid).await?,
            None => None,
        };
        let step_runs = self.world.step_runs.table(&run_key(namespace, &of.uid));
        Ok((Some(Previous { step_runs, definition }), fault))
    }

    /// The run of a StepRun.
    pub(super) async fn run_of(
        &self,
        namespace: &str,
        identity: &WorkflowIdentity,
    ) -> Result<Option<Arc<Workflow>>, Error> {
        match self.find_run(namespace, identity).await? {
            Found::There(run) => Ok(Some(run)),
            Found::Unreadable(fault) => {
                Err(Error::Unusable(format!("the run {} cannot be read: {fault}", identity.name)))
            }
            Found::Gone => Ok(None),
        }
    }

    /// That it is gone ends a StepRun for good: only the API server says so, not a cache.
    async fn find_run(&self, namespace: &str, identity: &WorkflowIdentity) -> Result<Found, Error> {
        let same = |uid: Option<&str>| uid == Some(identity.uid.as_str());
        if let Some(cached) = self.world.workflows.get(namespace, &identity.name)
            && same(cached.metadata.uid.as_deref())
        {
            return Ok(Found::There(cached));
        }
        // Each of its open StepRuns would ask for it.
        if let Some(one) = self.world.workflows.unreadable_named(namespace, &identity.name)
            && same(one.metadata.uid.as_deref())
        {
            return Ok(Found::Unreadable(one.fault.clone()));
        }
        let api: Api<Stored<Workflow>> = Api::namespaced(self.client.clone(), namespace);
        Ok(match bounded("GET workflows", api.get_opt(&identity.name)).await? {
            Some(Stored(Ok(run))) if same(run.metadata.uid.as_deref()) => Found::There(Arc::new(run)),
            Some(Stored(Err(one))) if same(one.metadata.uid.as_deref()) => Found::Unreadable(one.fault),
            _ => Found::Gone,
        })
    }
}
