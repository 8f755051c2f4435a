//! The NetworkPolicies that limit what attempts may connect to. Nothing watches them: one is looked up at each launch that
//! needs one, and what nothing needs any more is looked for now and then.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt};

use super::Error;
use super::client::bounded;
use super::world::World;
use crate::api::name::{LABEL_EGRESS, OPERATOR};
use crate::decide::egress::{self, Network, PolicySeen};
use crate::decide::step_run;

/// Objects of one page of a list.
const PAGE: u32 = 500;

/// The NetworkPolicy that the attempt of this step is to have.
pub async fn of_step(client: &Client, o: &step_run::Observed) -> Result<PolicySeen, Error> {
    let namespace = o.step_run.namespace().unwrap_or_default();
    let wanted = o.agent.as_deref().and_then(|agent| egress::policy(agent, &namespace, &o.installation.network));
    let Some(wanted) = wanted else { return Ok(PolicySeen::NotAsked) };
    let found = get(client, &namespace, &wanted.name_any()).await?;
    Ok(egress::seen(found.as_ref(), &wanted))
}

async fn get(client: &Client, namespace: &str, name: &str) -> Result<Option<NetworkPolicy>, Error> {
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
    bounded("GET networkpolicies", api.get_opt(name)).await
}

/// Makes it, or finds that it is there as it should be.
pub async fn create(client: &Client, namespace: &str, wanted: &NetworkPolicy) -> Result<(), Error> {
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
    let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
    match bounded("POST networkpolicies", api.create(&params, wanted)).await {
        Ok(_) => return Ok(()),
        Err(error) if error.is_already_exists() => {}
        Err(error) => return Err(error),
    }
    let name = wanted.name_any();
    match egress::seen(get(client, namespace, &name).await?.as_ref(), wanted) {
        PolicySeen::There => Ok(()),
        PolicySeen::Absent | PolicySeen::NotAsked => Err(Error::Stale(name)),
        PolicySeen::Other => {
            let holder = "it lets through something else than the Agent's egress".to_owned();
            Err(Error::NotOurs { kind: "NetworkPolicy", name, holder })
        }
    }
}

/// Takes away what nothing needs, twice in a row. Gives the names of what went.
pub async fn sweep(
    client: &Client,
    world: &World,
    network: &Network,
    before: &mut BTreeSet<String>,
) -> Result<Vec<String>, Error> {
    let found = all(client).await?;
    if found.is_empty() {
        before.clear();
        return Ok(Vec::new());
    }
    let mut gone = Vec::new();
    for meta in egress::unused(found, &in_use(world, network), before) {
        let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
        let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), &namespace);
        let preconditions = Some(Preconditions { uid: meta.uid, resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        match bounded("DELETE networkpolicies", api.delete(&name, &params)).await {
            Ok(_) => gone.push(format!("{namespace}/{name}")),
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// Page by page.
async fn all(client: &Client) -> Result<Vec<ObjectMeta>, Error> {
    let api: Api<NetworkPolicy> = Api::all(client.clone());
    let mut params = ListParams::default().labels(LABEL_EGRESS).limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = bounded("LIST networkpolicies", api.list_metadata(&params)).await?;
        let next = page.metadata.continue_.clone().filter(|next| !next.is_empty());
        found.extend(page.items.into_iter().map(|object| object.metadata));
        match next {
            Some(next) => params.continue_token = Some(next),
            None => return Ok(found),
        }
    }
}

/// The labels of Agents, Jobs and pods, by namespace.
fn in_use(world: &World, network: &Network) -> BTreeSet<(String, String)> {
    let agents =
        world.agents.all().into_iter().filter_map(|agent| Some((agent.namespace(), egress::label(&agent, network)?)));
    let jobs =
        world.jobs.all().into_iter().filter_map(|job| Some((job.namespace(), job.labels().get(LABEL_EGRESS)?.clone())));
    let pods =
        world.pods.all().into_iter().filter_map(|pod| Some((pod.namespace(), pod.labels().get(LABEL_EGRESS)?.clone())));
    agents.chain(jobs).chain(pods).map(|(namespace, label)| (namespace.unwrap_or_default(), label)).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::NetworkPolicyEgressRule;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::api::Agent;
    use crate::apiserver::{self, ApiServer, Registry};

    fn client() -> Client {
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let clock = Box::new(|| Timestamp::UNIX_EPOCH);
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "egress".to_owned());
        ApiServer::new(registry, "operator").client("team")
    }

    fn wanted(egress: &str) -> NetworkPolicy {
        let mut agent = Agent::new("writer", crate::api::AgentSpec::default());
        agent.spec.egress = Some(egress.into());
        egress::policy(&agent, "team", &Network::default()).expect("a NetworkPolicy")
    }

    #[tokio::test]
    async fn one_is_made_once_and_another_under_its_name_is_not_taken_for_it() {
        let client = client();
        let policy = wanted("None");
        create(&client, "team", &policy).await.expect("made");
        create(&client, "team", &policy).await.expect("as after a lost reply");
        let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), "team");
        let mut open = api.get(&policy.name_any()).await.expect("it is there");
        if let Some(spec) = &mut open.spec {
            spec.egress = Some(vec![NetworkPolicyEgressRule::default()]);
        }
        api.replace(&policy.name_any(), &PostParams::default(), &open).await.expect("somebody opens it");
        let found = create(&client, "team", &policy).await;
        assert!(matches!(&found, Err(Error::NotOurs { kind: "NetworkPolicy", .. })), "{found:?}");
    }

    #[tokio::test]
    async fn what_nothing_needs_goes_and_what_is_not_ours_stays() {
        let client = client();
        let policy = wanted("None");
        create(&client, "team", &policy).await.expect("made");
        let mut other = wanted("Internet");
        other.metadata.name = Some("of-people".to_owned());
        create(&client, "team", &other).await.expect("made");
        let (world, network, mut before) = (World::default(), Network::default(), BTreeSet::new());
        let look = sweep(&client, &world, &network, &mut before).await.expect("a look");
        assert_eq!(look, Vec::<String>::new());
        let look = sweep(&client, &world, &network, &mut before).await.expect("a look");
        assert_eq!(look, [format!("team/{}", policy.name_any())]);
        let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), "team");
        let left: Vec<String> =
            api.list(&ListParams::default()).await.expect("a list").iter().map(ResourceExt::name_any).collect();
        assert_eq!(left, ["of-people"]);
    }
}
