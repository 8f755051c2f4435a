//! Carries effects out, in order, up to the first failure. Doing it twice is the same as once: names come from identity,
//! AlreadyExists under our owner is success, NotFound on delete is success.

#![expect(clippy::disallowed_macros, reason = "the merge patches of effects")]

use std::collections::HashMap;
use std::fmt::Debug;

use futures::stream::{self, TryStreamExt};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::ObjectMeta;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::Error;
use super::client::{bounded, post};
use super::consistency::Consistency;
use super::egress;
use super::memories;
use super::stored::{self, Stored};
use crate::api::document::DocumentStatus;
use crate::api::name::{CREATED_BY, LABEL_STEP_RUN, LABEL_TRIGGER, OPERATOR};
use crate::api::step_run::JobRef;
use crate::api::{Document, Memory, StepRun, Workflow};
use crate::decide::build::NewJob;
use crate::decide::plan::ObjectVersion;
use crate::decide::{DeletableKind, Effect, document, seen};

/// Creates of one pass that are under way at a time.
const AT_ONCE: usize = 16;

/// What the status that follows must know of the effects.
#[derive(Debug, Default)]
pub struct Applied {
    /// The resourceVersion that the observed object has after them, where one of them changed it.
    pub version: Option<String>,
    /// The Job that was made, or that was there already and is ours.
    pub job: Option<JobRef>,
}

/// All effects of a plan within one namespace.
pub async fn apply(
    client: &Client,
    namespace: &str,
    effects: &[Effect],
    consistency: &Consistency,
) -> Result<Applied, Error> {
    let mut applied = Applied::default();
    // Documents that this plan made, as the API server gave them back.
    let mut made: HashMap<String, Document> = HashMap::new();
    let step_runs = |a: &Effect, b: &Effect| matches!((a, b), (Effect::CreateStepRun(_), Effect::CreateStepRun(_)));
    for alike in effects.chunk_by(step_runs) {
        if let [Effect::CreateDocument(object)] = alike {
            let there = create(client, namespace, "Document", object.as_ref()).await?;
            made.insert(there.name_any(), there);
            continue;
        }
        if let [Effect::SetDocumentStatus { name, seen, status }] = alike {
            let at = match (seen, made.get(name)) {
                (Some(seen), _) => Some(seen.clone()),
                // An earlier pass came further than its status write: it stands as it was published then.
                (None, Some(there)) if document::has_standing(there) => None,
                (None, Some(there)) => Some(ObjectVersion {
                    uid: there.uid().unwrap_or_default(),
                    resource_version: there.resource_version().unwrap_or_default(),
                }),
                (None, None) => None,
            };
            if let Some(at) = at {
                set_document_status(client, namespace, (name, &at), status).await?;
            }
            continue;
        }
        if let [effect] = alike {
            let one = one(client, namespace, effect, consistency).await?;
            applied = Applied { version: one.version.or(applied.version), job: one.job.or(applied.job) };
            continue;
        }
        // StepRuns of one pass do not need each other: the items of a forEach are made side by side.
        let made = stream::iter(alike.iter().map(Ok));
        made.try_for_each_concurrent(AT_ONCE, |effect| async move {
            one(client, namespace, effect, consistency).await.map(|_| ())
        })
        .await?;
    }
    Ok(applied)
}

async fn one(client: &Client, namespace: &str, effect: &Effect, consistency: &Consistency) -> Result<Applied, Error> {
    match effect {
        Effect::CreateRevision(object) => {
            create(client, namespace, "ControllerRevision", object.as_ref()).await?;
        }
        // In order, by `apply`: the second is about what the first gave.
        Effect::CreateDocument(_) | Effect::SetDocumentStatus { .. } => {}
        Effect::CreateStepRun(object) => {
            create(client, namespace, "StepRun", object.as_ref()).await?;
        }
        Effect::CreateJob(object) => {
            let job = create_job(client, namespace, object).await?;
            return Ok(Applied { job: Some(seen::job_ref(&job)), version: None });
        }
        Effect::CreateMemory(object) => {
            create(client, namespace, "Memory", object.as_ref()).await?;
        }
        Effect::CreateNetworkPolicy(object) => egress::create(client, namespace, object).await?,
        Effect::StartRun { run, replaced } => {
            for run in replaced {
                cancel(client, namespace, run).await?;
            }
            create(client, namespace, "Workflow", run.as_ref()).await?;
        }
        Effect::UseMemory { name, uid, at } => memories::used(client, namespace, (name, uid), at).await?,
        Effect::Delete { what, name, uid } => match what {
            DeletableKind::Job => delete::<Job>(client, namespace, name, uid).await?,
            DeletableKind::StepRun => delete::<StepRun>(client, namespace, name, uid).await?,
            DeletableKind::Document => delete::<Document>(client, namespace, name, uid).await?,
            DeletableKind::Memory => delete::<Memory>(client, namespace, name, uid).await?,
            DeletableKind::Workflow => delete::<Workflow>(client, namespace, name, uid).await?,
            DeletableKind::ControllerRevision => delete::<ControllerRevision>(client, namespace, name, uid).await?,
        },
        Effect::EmptyMailbox { step_run, resource_version, keys } => {
            let emptied = empty_mailbox(client, namespace, step_run, resource_version, keys).await?;
            consistency.wrote(&emptied.metadata);
            return Ok(Applied { version: emptied.metadata.resource_version, job: None });
        }
    }
    Ok(Applied::default())
}

/// What is there then.
async fn create<K>(client: &Client, namespace: &str, kind: &'static str, object: &K) -> Result<K, Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let post = |params| async move { api.create(&params, object).await };
    there_or_made(client, namespace, kind, object, post).await
}

async fn there_or_made<K, F>(
    client: &Client,
    namespace: &str,
    kind: &'static str,
    object: &K,
    post: impl FnOnce(PostParams) -> F,
) -> Result<K, Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    F: Future<Output = Result<K, kube::Error>>,
{
    let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
    let answer = bounded("POST", post(params)).await;
    let error = match answer {
        Ok(made) => return Ok(made),
        Err(error) => error,
    };
    if !error.is_already_exists() {
        return Err(error);
    }
    let name = object.meta().name.clone().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let Some(Stored(existing)) = bounded("GET", stored::get_opt(&api, &name)).await? else {
        return Err(Error::Stale(name));
    };
    let holder = match existing {
        // Never by its content: an Agent edited after a lost reply is no conflict.
        Ok(existing) if is_same(existing.meta(), object.meta()) => return Ok(existing),
        Ok(existing) => seen::holder(existing.meta()),
        Err(one) if bears_our_marks(&one.metadata, object.meta()) => {
            return Err(Error::Unusable(format!("{kind} {name} is there and cannot be read: {}", one.fault)));
        }
        Err(one) => seen::holder(&one.metadata),
    };
    Err(Error::NotOurs { kind, name, holder })
}

/// An owner can be claimed by anybody; on a Job, by policy, the label can be set by the operator only, and on a run nobody can
/// write that another made it.
fn is_same(existing: &ObjectMeta, ours: &ObjectMeta) -> bool {
    let maker = |meta: &ObjectMeta| meta.annotations.as_ref()?.get(CREATED_BY).cloned();
    if maker(ours).is_some_and(|by| maker(existing) != Some(by)) {
        return false;
    }
    bears_our_marks(existing, ours)
}

/// What of that is known of an object that cannot be read, too.
fn bears_our_marks(existing: &ObjectMeta, ours: &ObjectMeta) -> bool {
    let label = |meta: &ObjectMeta, key: &str| meta.labels.as_ref().and_then(|l| l.get(key)).cloned();
    let alike = |key: &str| label(existing, key) == label(ours, key);
    owner(existing) == owner(ours) && alike(LABEL_STEP_RUN) && alike(LABEL_TRIGGER)
}

/// A refusal is an outcome of the attempt, not of the pass: trying the same again would not help.
async fn create_job(client: &Client, namespace: &str, job: &NewJob) -> Result<Job, Error> {
    let body = job.body.to_string().into_bytes();
    let post = |params| post(client, namespace, body, params, "");
    there_or_made(client, namespace, "Job", &job.job, post).await.map_err(|error| match error.refusal() {
        Some(message) => {
            Error::JobRefused { name: job.metadata.name.clone().unwrap_or_default(), message: message.to_owned() }
        }
        None => error,
    })
}

fn owner(meta: &ObjectMeta) -> Option<&str> {
    meta.owner_references.as_ref()?.iter().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str())
}

async fn delete<K>(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    // A bare DELETE of a Job orphans its pods.
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::background()
    };
    match bounded("DELETE", api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A run that is gone, or is another one by now, has nothing to be cancelled.
async fn cancel(client: &Client, namespace: &str, (name, uid): &(String, String)) -> Result<(), Error> {
    let api: Api<Workflow> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "spec": {"cancel": true}}));
    match bounded("PATCH workflows", api.patch(name, &PatchParams::default(), &patch)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// By compare-and-swap: what was deleted, made again or written to since is decided on anew.
async fn set_document_status(
    client: &Client,
    namespace: &str,
    (name, at): (&str, &ObjectVersion),
    status: &DocumentStatus,
) -> Result<(), Error> {
    let api: Api<Document> = Api::namespaced(client.clone(), namespace);
    let patch =
        Patch::Merge(json!({"metadata": {"uid": at.uid, "resourceVersion": at.resource_version}, "status": status}));
    match bounded("PATCH documents/status", api.patch_status(name, &PatchParams::default(), &patch)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Err(Error::Stale(name.to_owned())),
        Err(error) => Err(error),
    }
}

async fn empty_mailbox(
    client: &Client,
    namespace: &str,
    name: &str,
    resource_version: &str,
    keys: &[&str],
) -> Result<StepRun, Error> {
    let api: Api<StepRun> = Api::namespaced(client.clone(), namespace);
    let nulls: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
    let patch = Patch::Merge(json!({"metadata": {"resourceVersion": resource_version, "annotations": nulls}}));
    bounded("PATCH stepruns", api.patch(name, &PatchParams::default(), &patch)).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::apiserver::{self, ApiServer, Key, Registry, Writer};

    /// As after a lost reply, or after a downgrade.
    #[tokio::test]
    async fn what_lies_under_our_name_and_cannot_be_read_is_named_with_the_reason() {
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let clock = Box::new(|| Timestamp::UNIX_EPOCH);
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "apply".to_owned());
        let server = ApiServer::new(registry, "operator");
        let owner = |uid: &str| json!([{"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "name": "shop", "uid": uid, "controller": true}]);
        for (name, uid) in [("ours", "run-uid"), ("theirs", "another-uid")] {
            let object = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Document",
                "metadata": {"name": name, "namespace": "team", "ownerReferences": owner(uid)},
                "spec": {"type": "plan", "scope": "Workflow", "format": "text", "content": "x", "attempt": 3_000_000_000_u32}});
            let (key, by) =
                (Key::new(apiserver::Kind::Document, "team", name), Writer { user: "operator", is_dry_run: false });
            server.with(|registry| registry.create(&key, object, by)).expect("it is made");
            let wanted = json!({"metadata": {"name": name, "namespace": "team", "ownerReferences": owner("run-uid")},
                "spec": {"type": "plan", "scope": "Workflow", "format": "text", "content": "x"}});
            let wanted: Document = serde_json::from_value(wanted).expect("a document");
            let answer = create(&server.client("team"), "team", "Document", &wanted).await;
            let told = answer.expect_err("it cannot be taken for ours").to_string();
            let expected = match name {
                "ours" => "Document ours is there and cannot be read: spec.attempt: ",
                _ => "Document theirs is there and is not Lockstep's: uid ",
            };
            assert!(told.starts_with(expected), "{told}");
        }
    }

    /// Names can be foreseen, and all but what admission proves can be written by whoever takes one.
    #[test]
    fn what_is_there_under_our_name_is_ours_only_if_nobody_else_could_have_made_it() {
        let meta = |value: Value| serde_json::from_value::<ObjectMeta>(value).expect("metadata");
        let by = |by: &str| json!({"labels": {LABEL_TRIGGER: "nightly"}, "annotations": {CREATED_BY: by}});
        let unsigned = json!({"labels": {LABEL_TRIGGER: "nightly"}});
        let owned = |uid: &str, labels: Value| {
            let owner = json!({"apiVersion": "v1", "kind": "StepRun", "name": "s", "uid": uid, "controller": true});
            json!({"ownerReferences": [owner], "labels": labels})
        };
        let ours = json!({LABEL_STEP_RUN: "s"});
        for (what, existing, wanted, expected) in [
            ("the same run", by("operator"), by("operator"), true),
            ("a person's", by("mallory"), by("operator"), false),
            ("nobody's who is known", unsigned, by("operator"), false),
            ("of another Trigger", json!({"annotations": {CREATED_BY: "operator"}}), by("operator"), false),
            ("the same Job", owned("u", ours.clone()), owned("u", ours.clone()), true),
            ("a Job that claims our owner", owned("u", json!({})), owned("u", ours.clone()), false),
            ("a Job of another owner", owned("v", ours.clone()), owned("u", ours), false),
        ] {
            assert_eq!(is_same(&meta(existing), &meta(wanted)), expected, "{what}");
        }
    }
}
