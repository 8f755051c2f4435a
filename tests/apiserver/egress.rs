//! What an Agent may connect to, with the real API server: which values it keeps, that it takes the NetworkPolicies that follow
//! from them, as the operator and with the operator's rights, and that they come back as they were made.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Api, ResourceExt};
use lockstep::api::Agent;
use lockstep::cluster::Error;
use lockstep::cluster::apply::apply;
use lockstep::cluster::consistency::Consistency;
use lockstep::cluster::egress::sweep;
use lockstep::cluster::world::World;
use lockstep::decide::Effect;
use lockstep::decide::egress::{self, Network, PolicySeen, rules_of, to_service};
use lockstep::definition::agent::{Block, pod_faults};
use serde_json::{Value, json};

use crate::support::{Ask, GATEWAY, Team, Who, policies_whole};

/// What the chart gives the operator, and more.
async fn network(team: &Team) -> Result<Network> {
    let gateway = team.admin.gets(&Ask::get("/api/v1/namespaces/lockstep-system/services/lockstep-gateway")).await?;
    let gateway = to_service(&serde_json::from_value(gateway)?);
    let kube_dns = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}});
    let dns = json!([{"to": [kube_dns, {"ipBlock": {"cidr": "169.254.20.10/32"}}], "ports": [{"protocol": "UDP", "port": 53}, {"port": 53}]},
        {"to": [{"namespaceSelector": {}}], "ports": []}]);
    let dns = rules_of(&dns.to_string()).map_err(anyhow::Error::msg)?;
    let private = ["203.0.112.0/24", "2001:db8:1::/48"].map(|block| Block::parse(block).map_err(anyhow::Error::msg));
    let private = private.into_iter().collect::<Result<_>>()?;
    Ok(Network { always: std::iter::once(gateway).chain(dns).collect(), private })
}

#[tokio::test]
async fn an_agents_egress_becomes_a_network_policy_that_comes_back_as_it_was_made() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("egress").await?;
    let network = network(&team).await?;
    let client = team.operator.client();
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), &team.namespace);
    let template = json!({"spec": {"containers": [{"name": "agent", "image": "none", "command": ["run"]}]}});
    let list = json!([{"cidr": "10.1.0.0/16", "ports": [443, 8443]}, {"cidr": "2001:db8::/32"}, {"cidr": "0.0.0.0/0"}]);
    let mut names = BTreeSet::new();
    for (name, egress) in [("shut", json!("None")), ("web", json!("Internet")), ("some", list)] {
        let object = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name},
            "spec": {"template": template, "egress": egress}});
        let kept = team.admin.gets(&Ask::post(team.all("agents"), object)).await?;
        ensure!(kept["spec"]["egress"] == egress, "{kept}");
        let agent: Agent = serde_json::from_value(kept)?;
        let wanted = egress::policy(&agent, &team.namespace, &network).expect("a NetworkPolicy");
        let effects = [Effect::CreateNetworkPolicy(Box::new(wanted.clone()))];
        // Twice, as after a lost reply.
        for _ in 0..2 {
            apply(&client, &team.namespace, &effects, &Consistency::default()).await?;
        }
        let found = policies.get(&wanted.name_any()).await?;
        ensure!(
            egress::seen(Some(&found), &wanted) == PolicySeen::There,
            "{name}: {:?} is not {:?}",
            found.spec,
            wanted.spec
        );
        names.insert(wanted.name_any());
    }
    ensure!(names.len() == 3, "{names:?}");
    // Somebody opened one: it is not taken for what was made.
    let opened = names.first().cloned().unwrap_or_default();
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies", team.namespace);
    let open = json!({"spec": {"egress": [{}]}});
    team.admin.gets(&Ask::patch(format!("{path}/{opened}"), open)).await?;
    let mut wanted = None;
    for agent in ["shut", "web", "some"] {
        let agent: Agent = serde_json::from_value(team.admin.gets(&Ask::get(team.one("agents", agent))).await?)?;
        wanted =
            wanted.or(egress::policy(&agent, &team.namespace, &network).filter(|policy| policy.name_any() == opened));
    }
    let effects = [Effect::CreateNetworkPolicy(Box::new(wanted.expect("one of them")))];
    let taken = apply(&client, &team.namespace, &effects, &Consistency::default()).await;
    ensure!(matches!(taken, Err(Error::NotOurs { kind: "NetworkPolicy", .. })), "{taken:?}");
    // The gateway may not: what agents speak to opens nothing for them.
    let by_gateway = Who::user(GATEWAY, &["system:authenticated"]).await?;
    let mut forged = serde_json::to_value(policies.get(&opened).await?)?;
    forged["metadata"] = json!({"name": "forged"});
    by_gateway.is_refused(&Ask::post(path, forged), 403, "networkpolicies").await?;
    // What nothing needs goes, by the operator's rights: no Agent is in the caches of this process.
    let mut before = BTreeSet::new();
    let (world, mut gone) = (World::default(), Vec::new());
    for _ in 0..2 {
        gone = sweep(&client, &world, &network, &mut before).await?;
    }
    let own: BTreeSet<String> =
        gone.iter().filter_map(|gone| gone.strip_prefix(&format!("{}/", team.namespace)).map(str::to_owned)).collect();
    ensure!(own == names, "{gone:?}");
    team.close().await
}

#[tokio::test]
async fn what_is_no_egress_is_kept_and_told_as_a_fault() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("egress-wrong").await?;
    let template = json!({"spec": {"containers": [{"name": "agent", "image": "none", "command": ["run"]}]}});
    for (name, egress, fault) in [
        ("word", json!("internet"), "spec.egress: must be None, Internet"),
        ("number", json!(7), "spec.egress: must be None, Internet"),
        ("cidr", json!([{"cidr": "10.0.0.1/8", "ports": [0], "why": {"deep": [1]}}]), "write 10.0.0.0/8"),
    ] {
        let object = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name},
            "spec": {"template": template, "egress": egress}});
        let kept: Value = team.admin.gets(&Ask::post(team.all("agents"), object)).await?;
        // A watch of the operator must be able to read it, whatever it is.
        let agent: Agent = serde_json::from_value(kept)?;
        let faults = pod_faults(&agent).join("; ");
        ensure!(faults.contains(fault), "{name}: {faults}");
        ensure!(egress::policy(&agent, &team.namespace, &Network::default()).is_none(), "{name}");
    }
    team.close().await
}
