//! Writes what was decided where people and tools read it: status by compare-and-swap, once and only when it differs;
//! then Events, whose loss harms nothing.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Error;
use super::client::bounded;
use super::consistency::Consistency;
use super::stored::Stored;
use crate::api::name::{OPERATOR, digest_bytes};
use crate::api::unreadable::Unreadable;
use crate::decide::Notice;

/// Replaces the status at the resourceVersion that was observed.
pub async fn status<K>(
    client: &Client,
    observed: &K,
    change: impl FnOnce(&mut K),
    consistency: &Consistency,
) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Serialize + DeserializeOwned + Debug,
{
    let meta = observed.meta();
    let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    let mut object = observed.clone();
    change(&mut object);
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
    let written = bounded("PUT status", api.replace_status(&name, &params, &object)).await?;
    consistency.wrote(written.meta());
    Ok(())
}

/// A part of a status, of the object at that version.
#[derive(Serialize, Debug)]
struct StatusPatch<'a> {
    metadata: VersionedMeta<'a>,
    status: &'a Value,
}

#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct VersionedMeta<'a> {
    uid: Option<&'a str>,
    resource_version: Option<&'a str>,
}

/// Patches the status of an object that cannot be read. Where somebody else wrote first the watch brings the news.
pub async fn status_of_unreadable<K>(client: &Client, one: &Unreadable, status: &Value) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let (namespace, name) = one.place();
    let (uid, resource_version) = (one.metadata.uid.as_deref(), one.metadata.resource_version.as_deref());
    let patch = Patch::Merge(StatusPatch { metadata: VersionedMeta { uid, resource_version }, status });
    let api: Api<Stored<K>> = Api::namespaced(client.clone(), &namespace);
    match bounded("PATCH status", api.patch_status(&name, &PatchParams::default(), &patch)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The recorder counts events that differ in their note alone as one, and shows the first note: the second attempt's
/// failure would not be told. The action tells them apart.
fn action(notice: &Notice) -> String {
    let digest = digest_bytes(notice.note.as_bytes());
    format!("{}-{}", notice.reason, &digest[digest.len() - 8..])
}

/// Tells people.
pub async fn notices(recorder: &Recorder, about: &ObjectReference, notices: Vec<Notice>) {
    for notice in notices {
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.to_owned(),
            action: action(&notice),
            note: Some(notice.note),
            secondary: None,
        };
        if let Err(error) = bounded("POST event", recorder.publish(&event, about)).await {
            tracing::warn!(%error, reason = notice.reason, "an Event was lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_something_else_is_another_event() {
        let notice =
            |note: &str| Notice { warning: true, comes_first: false, reason: "AttemptFailed", note: note.to_owned() };
        assert_eq!(action(&notice("attempt 1")), action(&notice("attempt 1")));
        assert_ne!(action(&notice("attempt 1")), action(&notice("attempt 2")));
        assert_eq!(action(&notice("attempt 1")).len(), "AttemptFailed".len() + 9);
    }
}
