//! When the mailbox of a StepRun was written to. No cache keeps `managedFields`: the API server is asked, where a person has decided or
//! answered, and before a deadline passes.

use kube::{Api, ResourceExt};

use super::Observer;
use crate::api::StepRun;
use crate::cluster::Error;
use crate::cluster::client::bounded;
use crate::cluster::stored::Stored;
use crate::decide::mail::{self, Mail};

impl Observer {
    /// Of the very version that is decided on: where there is another one by now, the watch brings it.
    pub(super) async fn mail(&self, step_run: &StepRun) -> Result<Mail, Error> {
        let api: Api<Stored<StepRun>> =
            Api::namespaced(self.client.clone(), &step_run.namespace().unwrap_or_default());
        let live = bounded("GET stepruns", api.get_opt(&step_run.name_any())).await?;
        let same = |live: &StepRun| {
            live.metadata.uid == step_run.metadata.uid
                && live.metadata.resource_version == step_run.metadata.resource_version
        };
        match live {
            Some(Stored(Ok(live))) if same(&live) => Ok(Mail::Read(mail::written(&live.metadata))),
            _ => Err(Error::Stale(step_run.name_any())),
        }
    }
}
