//! What agents remember, as far as the operator has to do with it: only the metadata is ever fetched, and nothing is
//! watched.

#![expect(clippy::disallowed_macros, reason = "the merge patch that writes a use down")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::Error;
use super::client::bounded;
use super::world::{World, controller_uid};
use crate::api::name::{self, LABEL_AGENT, LABEL_SESSION, LABEL_WORKFLOW, LAST_USED};
use crate::api::{Memory, Workflow};
use crate::decide::memory::{self, MemorySeen, Retention, Use};
use crate::decide::step_run;

/// Objects of one page of a list.
const PAGE: u32 = 500;

/// The Memory that the attempt of this step is to have.
pub async fn of_step(client: &Client, o: &step_run::Observed) -> Result<MemorySeen, Error> {
    let Some(session) = o.definition.as_deref().map(|d| d.run.session.as_str()) else {
        return Ok(MemorySeen::NotAsked);
    };
    let wanted = memory::initial(&o.step_run, session, &o.now).metadata;
    let api: Api<Memory> = Api::namespaced(client.clone(), &o.step_run.namespace().unwrap_or_default());
    let name = wanted.name.clone().unwrap_or_default();
    let found = bounded("GET memories", api.get_metadata_opt(&name)).await?;
    Ok(memory::seen(found.as_ref().map(|found| &found.metadata), &wanted))
}

/// Those that the run owns.
pub async fn of_run(client: &Client, run: &Workflow) -> Result<Vec<ObjectMeta>, Error> {
    let namespace = run.namespace().unwrap_or_default();
    let labels = format!("{LABEL_WORKFLOW}={}", name::label_value(&run.name_any()));
    let mut found = listed(client, &namespace, &labels).await?;
    found.retain(|meta| controller_uid(meta, "Workflow") == run.uid());
    Ok(found)
}

/// Page by page.
async fn listed(client: &Client, namespace: &str, labels: &str) -> Result<Vec<ObjectMeta>, Error> {
    let api: Api<Memory> = Api::namespaced(client.clone(), namespace);
    let mut params = ListParams::default().labels(labels).limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = bounded("LIST memories", api.list_metadata(&params)).await?;
        let next = page.metadata.continue_.clone().filter(|next| !next.is_empty());
        found.extend(page.items.into_iter().map(|object| object.metadata));
        match next {
            Some(next) => params.continue_token = Some(next),
            None => return Ok(found),
        }
    }
}

/// Writes down that it is used; one that is gone is decided on anew.
pub async fn used(client: &Client, namespace: &str, (name, uid): (&str, &str), at: &Time) -> Result<(), Error> {
    let api: Api<Memory> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(json!({"metadata": {"uid": uid, "annotations": {LAST_USED: at.0.to_string()}}}));
    let params = PatchParams { field_manager: Some(name::OPERATOR.to_owned()), ..PatchParams::default() };
    match bounded("PATCH memories", api.patch_metadata(name, &params, &patch)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Err(Error::Stale(name.to_owned())),
        Err(error) => Err(error),
    }
}

/// Takes away what was not used for as long as its Agent says, and writes down what is in use. Gives the names of what went.
pub async fn sweep(client: &Client, world: &World, now: &Time) -> Result<Vec<String>, Error> {
    let mut gone = Vec::new();
    for agent in world.agents.all() {
        let Some(ttl) = agent.spec.memory.as_ref().and_then(|memory| memory.ttl_seconds_after_last_use) else {
            continue;
        };
        let place = (agent.namespace().unwrap_or_default(), agent.name_any());
        let open = world.step_runs.under(&format!("agent {}/{}", place.0, place.1));
        let sessions: Vec<&String> = open.iter().filter_map(|s| s.labels().get(LABEL_SESSION)).collect();
        match sweep_of(client, (&place.0, &place.1), (ttl, &sessions), now).await {
            Ok(names) => gone.extend(names),
            // What is refused in one namespace is nobody else's business.
            Err(error) if error.refusal().is_some() => {
                tracing::warn!(namespace = place.0.as_str(), agent = place.1.as_str(), %error, "the Memories of an Agent could not be looked for");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// The same for one agent of a namespace: how long its memories are kept, and the sessions in which steps of it are open.
async fn sweep_of(
    client: &Client,
    (namespace, agent): (&str, &str),
    (ttl, sessions): (i64, &[&String]),
    now: &Time,
) -> Result<Vec<String>, Error> {
    let mut gone = Vec::new();
    let labels = format!("{LABEL_AGENT}={},!{LABEL_WORKFLOW}", name::label_value(agent));
    for meta in listed(client, namespace, &labels).await? {
        let session = meta.labels.as_ref().and_then(|labels| labels.get(LABEL_SESSION));
        let is_open = session.is_some_and(|session| sessions.contains(&session));
        let (name, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
        let went = match memory::fate(&meta, ttl, if is_open { Use::Open } else { Use::Over }, now) {
            Retention::Used => used(client, namespace, (&name, &uid), now).await.map(|()| false),
            Retention::Goes => remove(client, namespace, &meta).await,
            Retention::Stays => Ok(false),
        };
        match went {
            Ok(true) => gone.push(format!("{namespace}/{name}")),
            // What changed meanwhile is looked at the next time.
            Ok(false) | Err(Error::Stale(_)) => {}
            // One that a policy or a quota of somebody else holds must not keep all behind it for ever.
            Err(error) if error.refusal().is_some() => {
                tracing::warn!(namespace, memory = name.as_str(), %error, "a Memory could not be looked after");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// At the version that was decided on: an attempt that began meanwhile has written down that it uses it.
async fn remove(client: &Client, namespace: &str, meta: &ObjectMeta) -> Result<bool, Error> {
    let api: Api<Memory> = Api::namespaced(client.clone(), namespace);
    let preconditions = Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    match bounded("DELETE memories", api.delete(meta.name.as_deref().unwrap_or_default(), &params)).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::response::IntoResponse;
    use http::{Method, Request, StatusCode};
    use k8s_openapi::jiff::Timestamp;
    use kube::api::PostParams;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::api::StepRun;
    use crate::api::step_run::StepRunSpec;
    use crate::apiserver::{self, ApiServer, Registry};

    fn at(seconds: i64) -> Time {
        Time(Timestamp::from_second(seconds).expect("a time"))
    }

    fn server() -> ApiServer {
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let clock = Box::new(|| Timestamp::UNIX_EPOCH);
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "memories".to_owned());
        ApiServer::new(registry, "operator")
    }

    /// A client whose patches of that object somebody's policy refuses.
    fn refused(server: &ApiServer, name: &str) -> Client {
        let (server, end) = (server.clone(), format!("/{name}"));
        let door = service_fn(move |request: Request<kube::client::Body>| {
            let is_refused = request.method() == Method::PATCH && request.uri().path().ends_with(&end);
            let server = server.clone();
            async move {
                if is_refused {
                    let status =
                        r#"{"kind":"Status","status":"Failure","message":"no","reason":"Forbidden","code":403}"#;
                    return Ok::<_, Infallible>((StatusCode::FORBIDDEN, status).into_response());
                }
                server.oneshot(request).await
            }
        });
        Client::new(door, "team")
    }

    async fn make(client: &Client, agent: &str, session: &str, used_at: i64) -> String {
        let mut spec = StepRunSpec { agent_id: agent.to_owned(), ..StepRunSpec::default() };
        (spec.workflow.name, spec.workflow.uid) = ("shop".to_owned(), "run".to_owned());
        let memory = memory::initial(&StepRun::new("s", spec), session, &at(used_at));
        let made = Api::namespaced(client.clone(), "team").create(&PostParams::default(), &memory).await;
        made.expect("a Memory").name_any()
    }

    #[tokio::test]
    async fn what_nobody_used_for_its_time_is_deleted_and_nothing_else() {
        let client = server().client("team");
        let old = make(&client, "writer", "old", 0).await;
        let fresh = make(&client, "writer", "fresh", 60).await;
        let open = make(&client, "writer", "open", 0).await;
        let private = make(&client, "writer", "_shop-12345678", 0).await;
        let others = make(&client, "planner", "old", 0).await;
        let session = "open".to_owned();
        let gone = sweep_of(&client, ("team", "writer"), (100, &[&session]), &at(100)).await.expect("a look");
        assert_eq!(gone, [format!("team/{old}")]);
        let api: Api<Memory> = Api::namespaced(client.clone(), "team");
        for (name, used_at) in [(&fresh, 60), (&open, 100), (&private, 0), (&others, 0)] {
            let meta = api.get(name).await.expect("it is there").metadata;
            let told = meta.annotations.unwrap_or_default().get(LAST_USED).cloned();
            assert_eq!(told, Some(at(used_at).0.to_string()), "{name}");
        }
        assert!(api.get_opt(&old).await.expect("an answer").is_none());
        // Once more nothing is left to do, and what is gone cannot be used.
        let again = sweep_of(&client, ("team", "writer"), (100, &[&session]), &at(100)).await.expect("a look");
        assert!(again.is_empty());
        assert!(matches!(used(&client, "team", (&old, "u"), &at(1)).await, Err(Error::Stale(_))));
    }

    #[tokio::test]
    async fn one_that_somebodys_policy_holds_hides_no_other() {
        let server = server();
        let client = server.client("team");
        let held = make(&client, "writer", "a", 0).await;
        let old = make(&client, "writer", "b", 0).await;
        assert!(held < old, "the one that is refused comes first");
        let session = "a".to_owned();
        let door = refused(&server, &held);
        let gone = sweep_of(&door, ("team", "writer"), (100, &[&session]), &at(100)).await.expect("a look");
        assert_eq!(gone, [format!("team/{old}")]);
    }
}
