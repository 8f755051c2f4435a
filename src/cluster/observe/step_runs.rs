//! The StepRuns of a run: from the cache, and from the API server where their absence would decide.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::api::ListParams;
use kube::core::ObjectMeta;
use kube::{Api, ResourceExt};

use super::Observer;
use crate::api::name::{self, LABEL_WORKFLOW};
use crate::api::{StepRun, Workflow};
use crate::cluster::Error;
use crate::cluster::cache::Table;
use crate::cluster::client::bounded;
use crate::cluster::stored::{self, Stored};
use crate::cluster::world::{controller_uid, run_key};
use crate::decide::seen;

impl Observer {
    /// Its StepRuns, and why others cannot be read.
    pub(super) async fn step_runs(
        &self,
        workflow: &Workflow,
        namespace: &str,
        uid: &str,
    ) -> Result<(Table<StepRun>, BTreeMap<String, String>), Error> {
        let ours = |meta: &ObjectMeta| controller_uid(meta, "Workflow").as_deref() == Some(uid);
        let mut found = self.world.step_runs.table(&run_key(namespace, uid));
        let mut unreadable = BTreeMap::new();
        for one in self.world.step_runs.unreadable_in(namespace) {
            if ours(&one.metadata) {
                unreadable.insert(one.place().1, one.fault.clone());
            }
        }
        if workflow.status.as_ref().is_some_and(|s| s.completed_at.is_some()) {
            return Ok((found, unreadable));
        }
        // A StepRun is called lost only if the API server, not a cache, says that it is gone.
        let latched = workflow.status.iter().flat_map(|s| &s.steps).filter_map(|s| s.step_run.as_ref());
        let known = |name: &&String| found.contains_key(*name) || unreadable.contains_key(*name);
        let unseen: Vec<String> = latched.filter(|name| !known(name)).cloned().collect();
        for name in unseen {
            let api: Api<Stored<StepRun>> = Api::namespaced(self.client.clone(), namespace);
            match bounded("GET stepruns", api.get_opt(&name)).await? {
                Some(Stored(Ok(live))) if ours(&live.metadata) => found.insert_mut(name, Arc::new(live)),
                Some(Stored(Err(one))) if ours(&one.metadata) => drop(unreadable.insert(name, one.fault)),
                _ => {}
            }
        }
        if found.size() + unreadable.len() < seen::begun(workflow) {
            let api: Api<StepRun> = Api::namespaced(self.client.clone(), namespace);
            let own = name::label_value(&workflow.name_any());
            let live = ListParams::default().labels(&format!("{LABEL_WORKFLOW}={own}"));
            let listed = bounded("LIST stepruns", stored::list(api, &live)).await?;
            for live in listed.items {
                if ours(&live.metadata) && !found.contains_key(&live.name_any()) {
                    found.insert_mut(live.name_any(), Arc::new(live));
                }
            }
            let own = listed.unreadable.into_iter().filter(|one| ours(&one.metadata));
            unreadable.extend(own.map(|one| (one.place().1, one.fault)));
        }
        Ok((found, unreadable))
    }
}
