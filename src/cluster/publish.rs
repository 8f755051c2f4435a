//! Writes what was decided where people and tools read it: status by compare-and-swap, once and only when it differs;
//! then Events, whose loss harms nothing.
//!
//! A status is patched and never replaced: this version may be the older one of two that work on the same objects, while one
//! takes the other's place or after it was taken back, and what it would put there is only what it can read.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::core::object::HasStatus;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Error;
use super::client::bounded;
use super::consistency::Consistency;
use super::merge_patch;
use super::stored::Stored;
use crate::api::name::{OPERATOR, digest_bytes};
use crate::api::unreadable::Unreadable;
use crate::decide::Notice;

/// Changes the status at the resourceVersion that was observed; of it only what differs, so that the part that is the
/// gateway's stays as it is stored, and so does what a newer version has written.
pub async fn status<K>(
    client: &Client,
    observed: &K,
    change: impl FnOnce(&mut K),
    consistency: &Consistency,
) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + HasStatus<Status: Serialize>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let mut object = observed.clone();
    change(&mut object);
    let status = merge_patch::between(&json_of(observed)?, &json_of(&object)?);
    let meta = object.meta();
    let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    let metadata = VersionedMeta { uid: meta.uid.as_deref(), resource_version: meta.resource_version.as_deref() };
    let patch = Patch::Merge(StatusPatch { metadata, status: &status });
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
    let written = bounded("PATCH status", api.patch_status(&name, &params, &patch)).await?;
    consistency.wrote(written.meta());
    Ok(())
}

fn json_of<K: HasStatus<Status: Serialize>>(object: &K) -> kube::Result<Value> {
    serde_json::to_value(object.status()).map_err(kube::Error::SerdeError)
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
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use kube::api::PostParams;
    use serde_json::json;

    use super::*;
    use crate::api::StepRun;
    use crate::api::step_run::{AttemptCounts, StepRunSpec};
    use crate::apiserver::{self, ApiServer, Key, Kind, Registry};

    /// An operator that was taken back works beside a newer gateway, on what a newer operator has left.
    #[tokio::test]
    async fn what_a_newer_version_has_written_stays() {
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let clock = Box::new(|| Timestamp::UNIX_EPOCH);
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "publish".to_owned());
        let server = ApiServer::new(registry, OPERATOR);
        let client = server.client("team");
        let api: Api<StepRun> = Api::namespaced(client.clone(), "team");
        let made = StepRun::new("s", StepRunSpec::default());
        api.create(&PostParams::default(), &made).await.expect("it is made");
        let progress = json!({"percent": 10, "message": "m", "at": "1970-01-01T00:00:00Z", "newer": 1});
        let stored = json!({
            "attempt": 2, "phase": "Running", "launchedAt": "1970-01-01T00:00:00Z", "newer": {"kept": [1]},
            "counts": {"retryable": 1, "newer": 1}, "agent": {"newer": {"kept": [2]}, "progress": progress}});
        let newer = Patch::Merge(json!({"status": stored}));
        let observed = api.patch_status("s", &PatchParams::default(), &newer).await.expect("it is written");

        let consistency = Consistency::default();
        let moved = |step_run: &mut StepRun| {
            let status = step_run.status.get_or_insert_default();
            (status.attempt, status.launched_at) = (3, None);
            status.not_before = Some(Time(Timestamp::UNIX_EPOCH));
            status.counts = AttemptCounts { retryable: 2, ..status.counts };
        };
        status(&client, &observed, moved, &consistency).await.expect("it is written");
        let now = server.with(|registry| registry.get(&Key::new(Kind::StepRun, "team", "s"))).expect("it is there");
        let now = &now.value["status"];
        assert_eq!(now["agent"], stored["agent"]);
        assert_eq!(now["newer"], stored["newer"]);
        assert_eq!((&now["counts"]["retryable"], &now["counts"]["newer"]), (&json!(2), &json!(1)));
        assert_eq!((&now["attempt"], &now["phase"]), (&json!(3), &json!("Running")));
        assert_eq!((&now["launchedAt"], &now["notBefore"]), (&Value::Null, &json!("1970-01-01T00:00:00Z")));

        // Nothing lands on a version that was not seen.
        let late = status(&client, &observed, moved, &consistency).await;
        assert!(late.is_err_and(|error| error.is_conflict()));
    }

    #[test]
    fn what_says_something_else_is_another_event() {
        let notice =
            |note: &str| Notice { warning: true, comes_first: false, reason: "AttemptFailed", note: note.to_owned() };
        assert_eq!(action(&notice("attempt 1")), action(&notice("attempt 1")));
        assert_ne!(action(&notice("attempt 1")), action(&notice("attempt 2")));
        assert_eq!(action(&notice("attempt 1")).len(), "AttemptFailed".len() + 9);
    }
}
