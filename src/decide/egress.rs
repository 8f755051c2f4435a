//! Where the pods of attempts may connect to, as a NetworkPolicy. Its name follows from what it lets through, so one serves
//! all attempts of a namespace that may reach the same, and none is ever changed. Nobody owns it: one that went with its run
//! would be gone while the run's last pods end.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::Agent;
use crate::api::name::LABEL_EGRESS;
use crate::definition::agent::{Block, Destination, Egress, egress_of};
use crate::definition::pinned::canonical_digest;

/// What is not the Internet: addresses that are private, of the host or its link (the metadata services of clouds among them),
/// shared, for documentation, multicast or reserved, and those behind which IPv4 addresses lie.
const NOT_INTERNET: [&str; 24] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001:db8::/32",
    "2002::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];
const DESCRIPTION: &str = "What the pods of attempts with this label may connect to, as the egress of their Agent says. Lockstep makes it, and deletes it when no Agent, Job or pod of the namespace needs it any more.";

/// What the installation knows of the network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// What every attempt reaches: the gateway and DNS.
    pub always: Vec<NetworkPolicyEgressRule>,
    /// Addresses of this cluster that are no part of the Internet either.
    pub private: Vec<Block>,
}

/// What there is under the name of the NetworkPolicy that an attempt needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PolicySeen {
    #[default]
    NotAsked,
    Absent,
    There,
    /// One that lets through something else.
    Other,
}

/// How pods reach a Service: its pods, on the ports that they listen on; its address where it has no selector.
pub fn to_service(service: &Service) -> NetworkPolicyEgressRule {
    let spec = service.spec.clone().unwrap_or_default();
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let selector = spec.selector.filter(|selector| !selector.is_empty());
    let is_selected = selector.is_some();
    let ports = spec.ports.unwrap_or_default().into_iter().map(|port| NetworkPolicyPort {
        port: Some(port.target_port.filter(|_| is_selected).unwrap_or(IntOrString::Int(port.port))),
        protocol: Some(port.protocol.unwrap_or_else(|| "TCP".to_owned())),
        end_port: None,
    });
    let peer = match (selector, spec.cluster_ip) {
        (Some(selector), _) => NetworkPolicyPeer {
            namespace_selector: Some(labelled([("kubernetes.io/metadata.name".to_owned(), namespace)])),
            pod_selector: Some(labelled(selector)),
            ip_block: None,
        },
        (None, address) => {
            let address = address.unwrap_or_default();
            to(&format!("{address}/{}", if address.contains(':') { 128 } else { 32 }), Vec::new())
        }
    };
    NetworkPolicyEgressRule { to: Some(vec![peer]), ports: Some(ports.collect()) }
}

/// The value of the label of the pods of this Agent's attempts; nothing where it does not say what they may reach.
pub fn label(agent: &Agent, network: &Network) -> Option<String> {
    Some(identity(&rules(&egress_of(agent)?, network)))
}

/// The NetworkPolicy for the pods of this Agent's attempts; nothing where it does not say what they may reach.
pub fn policy(agent: &Agent, namespace: &str, network: &Network) -> Option<NetworkPolicy> {
    let rules = rules(&egress_of(agent)?, network);
    let identity = identity(&rules);
    let label = [(LABEL_EGRESS.to_owned(), identity.clone())];
    Some(NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(policy_name(&identity)),
            namespace: Some(namespace.to_owned()),
            labels: Some(label.clone().into()),
            annotations: Some([("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(labelled(label)),
            policy_types: Some(vec!["Egress".to_owned()]),
            egress: Some(rules).filter(|rules| !rules.is_empty()),
            ingress: None,
        }),
    })
}

/// By the value of the label.
pub fn policy_name(label: &str) -> String {
    format!("lockstep-egress-{label}")
}

/// Whether what lies there is what was to be made. Whoever may write NetworkPolicies may open more by another one: this
/// keeps mistakes away, not them.
pub fn seen(found: Option<&NetworkPolicy>, wanted: &NetworkPolicy) -> PolicySeen {
    match found {
        None => PolicySeen::Absent,
        Some(found) if found.spec == wanted.spec && found.metadata.deletion_timestamp.is_none() => PolicySeen::There,
        Some(_) => PolicySeen::Other,
    }
}

/// NetworkPolicies that nothing needs, and that nothing needed the last time either: an attempt whose launch began before
/// has its Job by then. `labels` are those in use, by namespace; `before` are the UIDs of the last look, and becomes those
/// of this one.
pub fn unused(
    all: Vec<ObjectMeta>,
    labels: &BTreeSet<(String, String)>,
    before: &mut BTreeSet<String>,
) -> Vec<ObjectMeta> {
    let label = |meta: &ObjectMeta| meta.labels.as_ref().and_then(|labels| labels.get(LABEL_EGRESS)).cloned();
    let is_ours = |meta: &ObjectMeta| label(meta).is_some_and(|of| meta.name == Some(policy_name(&of)));
    let in_use = |meta: &ObjectMeta| {
        labels.contains(&(meta.namespace.clone().unwrap_or_default(), label(meta).unwrap_or_default()))
    };
    let idle: Vec<ObjectMeta> = all.into_iter().filter(|meta| is_ours(meta) && !in_use(meta)).collect();
    let uid = |meta: &ObjectMeta| meta.uid.clone().unwrap_or_default();
    let uids = idle.iter().map(uid).collect();
    let last = std::mem::replace(before, uids);
    idle.into_iter().filter(|meta| last.contains(&uid(meta))).collect()
}

fn identity(rules: &[NetworkPolicyEgressRule]) -> String {
    let digest = canonical_digest(&serde_json::to_value(rules).unwrap_or_default());
    digest.trim_start_matches("sha256:").chars().take(16).collect()
}

fn rules(egress: &Egress, network: &Network) -> Vec<NetworkPolicyEgressRule> {
    let own = match egress {
        Egress::Nothing => Vec::new(),
        Egress::Internet => vec![NetworkPolicyEgressRule { to: Some(internet(&network.private)), ports: None }],
        Egress::Only(list) => list.iter().map(only).collect(),
    };
    let mut all: Vec<_> = network.always.iter().cloned().chain(own).collect();
    // As the API server states it, so that what lies there can be compared.
    for port in all.iter_mut().flat_map(|rule| rule.ports.iter_mut().flatten()) {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
    }
    all
}

fn only(destination: &Destination) -> NetworkPolicyEgressRule {
    let port = |port: &u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(*port))),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    };
    let ports: Vec<_> = destination.ports.iter().map(port).collect();
    NetworkPolicyEgressRule {
        to: Some(vec![to(&destination.block.to_string(), Vec::new())]),
        ports: Some(ports).filter(|ports| !ports.is_empty()),
    }
}

/// All addresses of both families without those that are none of it.
fn internet(private: &[Block]) -> Vec<NetworkPolicyPeer> {
    let known = NOT_INTERNET.iter().filter_map(|text| Block::parse(text).ok());
    let all: BTreeSet<Block> = known.chain(private.iter().copied().filter(|block| !block.is_all())).collect();
    let of = |is_ipv4: bool| all.iter().filter(|b| b.is_ipv4() == is_ipv4).map(ToString::to_string).collect();
    vec![to("0.0.0.0/0", of(true)), to("::/0", of(false))]
}

fn to(cidr: &str, except: Vec<String>) -> NetworkPolicyPeer {
    let except = Some(except).filter(|except| !except.is_empty());
    NetworkPolicyPeer { ip_block: Some(IPBlock { cidr: cidr.to_owned(), except }), ..NetworkPolicyPeer::default() }
}

fn labelled(labels: impl IntoIterator<Item = (String, String)>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels.into_iter().collect::<BTreeMap<_, _>>()), match_expressions: None }
}

/// What the chart says of DNS: rules as in `egress` of a NetworkPolicy. An error says what is wrong with the text.
pub fn rules_of(text: &str) -> Result<Vec<NetworkPolicyEgressRule>, String> {
    let text = if text.trim().is_empty() { "[]" } else { text };
    let read: Vec<NetworkPolicyEgressRule> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let is_open = |rule: &NetworkPolicyEgressRule| rule.to.as_ref().is_none_or(Vec::is_empty);
    if let Some(n) = read.iter().position(is_open) {
        return Err(format!("[{n}].to: is required; without it every address could be reached"));
    }
    // An empty list is not stored: what lies there would differ.
    let without = |rule: NetworkPolicyEgressRule| NetworkPolicyEgressRule {
        ports: rule.ports.filter(|ports| !ports.is_empty()),
        to: rule.to,
    };
    Ok(read.into_iter().map(without).collect())
}

/// What to add to the message of an attempt that ran out of time: what it waited for in vain may lie behind the policy.
pub fn told(agent: Option<&Agent>) -> &'static str {
    match agent.and_then(egress_of) {
        Some(Egress::Nothing) => "; the Agent's egress is None, so that it reaches nothing but the gateway and DNS",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn agent(egress: &Value) -> Agent {
        let template = json!({"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}});
        Agent::new("writer", serde_json::from_value(json!({"template": template, "egress": egress})).expect("a spec"))
    }

    fn network() -> Network {
        let service = json!({"metadata": {"name": "lockstep-gateway", "namespace": "lockstep-system"}, "spec": {
            "clusterIP": "10.96.0.9", "selector": {"app.kubernetes.io/name": "lockstep-gateway"},
            "ports": [{"port": 443, "targetPort": 8443, "protocol": "TCP"}]}});
        let gateway = to_service(&serde_json::from_value(service).expect("a Service"));
        let dns = json!([{"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
            "ports": [{"protocol": "UDP", "port": 53}, {"port": 53}]}]);
        let dns = rules_of(&dns.to_string()).expect("rules");
        Network { always: std::iter::once(gateway).chain(dns).collect(), private: Vec::new() }
    }

    fn spec_of(egress: &Value, network: &Network) -> Value {
        let policy = policy(&agent(egress), "team", network).expect("a NetworkPolicy");
        serde_json::to_value(policy.spec).expect("JSON")
    }

    #[test]
    fn gateway_and_dns_are_always_reached_and_the_rest_is_what_the_agent_says() {
        let always = json!([
            {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "lockstep-system"}},
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "lockstep-gateway"}}}],
                "ports": [{"protocol": "TCP", "port": 8443}]},
            {"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
                "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}]);
        let with = |more: &[Value]| -> Value { always.as_array().into_iter().flatten().chain(more).cloned().collect() };
        let none = spec_of(&json!("None"), &network());
        assert_eq!(none["egress"], with(&[]));
        assert_eq!(none["policyTypes"], json!(["Egress"]));
        let list = json!([{"cidr": "10.1.0.0/16", "ports": [443]}, {"cidr": "2001:db8::/32"}]);
        assert_eq!(
            spec_of(&list, &network())["egress"],
            with(&[
                json!({"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 443}]}),
                json!({"to": [{"ipBlock": {"cidr": "2001:db8::/32"}}]})
            ])
        );
        let mut around = network();
        around.private =
            ["203.0.112.0/24", "2001:db8:1::/48", "0.0.0.0/0"].map(|b| Block::parse(b).expect("a block")).into();
        let internet = spec_of(&json!("Internet"), &around);
        let [four, six] = [0, 1].map(|n| internet["egress"][2]["to"][n]["ipBlock"].clone());
        assert_eq!((four["cidr"].as_str(), six["cidr"].as_str()), (Some("0.0.0.0/0"), Some("::/0")));
        let has = |block: &Value, wanted: &str| block["except"].as_array().is_some_and(|e| e.contains(&json!(wanted)));
        for private in ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"] {
            assert!(has(&four, private), "{private}: {four}");
        }
        assert!(has(&six, "fc00::/7") && has(&six, "fe80::/10") && has(&four, "203.0.112.0/24"), "{four} {six}");
        assert!(!has(&four, "0.0.0.0/0"), "an exception that is everything is none that the API server takes");
        assert_eq!(policy(&agent(&Value::Null), "team", &network()), None);
        assert_eq!(label(&agent(&Value::Null), &network()), None);
    }

    #[test]
    fn one_serves_all_that_may_reach_the_same_and_no_other() {
        let name = |egress: &Value, network: &Network| {
            let found = policy(&agent(egress), "team", network).expect("a NetworkPolicy");
            let label = label(&agent(egress), network).expect("a label");
            let selected = found.spec.as_ref().and_then(|s| s.pod_selector.as_ref()?.match_labels.clone());
            assert_eq!(selected, Some([(LABEL_EGRESS.to_owned(), label.clone())].into()));
            assert_eq!(found.metadata.name, Some(policy_name(&label)));
            label
        };
        let list = |port: u16| json!([{"cidr": "10.1.0.0/16", "ports": [port]}]);
        assert_eq!(name(&list(443), &network()), name(&list(443), &network()));
        let all = [json!("None"), json!("Internet"), list(443), list(444)];
        let mut names: BTreeSet<String> = all.iter().map(|egress| name(egress, &network())).collect();
        names.insert(name(&json!("None"), &Network::default()));
        assert_eq!(names.len(), 5, "{names:?}");
    }

    #[test]
    fn what_lets_through_something_else_is_not_what_was_to_be_made() {
        let wanted = policy(&agent(&json!("None")), "team", &network()).expect("a NetworkPolicy");
        let mut found = wanted.clone();
        found.metadata.uid = Some("u".to_owned());
        assert_eq!(seen(None, &wanted), PolicySeen::Absent);
        assert_eq!(seen(Some(&found), &wanted), PolicySeen::There);
        let mut going = found.clone();
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
        assert_eq!(seen(Some(&going), &wanted), PolicySeen::Other);
        if let Some(spec) = &mut found.spec {
            spec.egress.get_or_insert_default().push(NetworkPolicyEgressRule::default());
        }
        assert_eq!(seen(Some(&found), &wanted), PolicySeen::Other);
    }

    #[test]
    fn a_service_without_pods_of_its_own_is_reached_by_its_address() {
        let service = |address: &str| {
            let service = json!({"metadata": {"name": "g", "namespace": "n"},
                "spec": {"clusterIP": address, "ports": [{"port": 443, "targetPort": 8443}]}});
            serde_json::to_value(to_service(&serde_json::from_value(service).expect("a Service"))).expect("JSON")
        };
        let rule =
            |cidr: &str| json!({"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"protocol": "TCP", "port": 443}]});
        assert_eq!(service("10.96.0.9"), rule("10.96.0.9/32"));
        assert_eq!(service("fd00::9"), rule("fd00::9/128"));
    }

    #[test]
    fn rules_of_the_chart_open_nothing_by_mistake() {
        assert_eq!(rules_of(""), Ok(Vec::new()));
        assert!(rules_of("{}").is_err());
        assert!(rules_of(r#"[{"ports": [{"port": 53}]}]"#).is_err_and(|e| e.contains("[0].to: is required")));
        assert!(rules_of(r#"[{"to": []}]"#).is_err_and(|e| e.contains("[0].to")));
        let read = rules_of(r#"[{"to": [{"podSelector": {}}], "ports": []}]"#).expect("rules");
        assert_eq!(read[0].ports, None);
    }

    #[test]
    fn one_goes_when_two_looks_in_a_row_find_nothing_that_needs_it() {
        let meta = |namespace: &str, label: &str| ObjectMeta {
            name: Some(policy_name(label)),
            namespace: Some(namespace.to_owned()),
            uid: Some(format!("{namespace}/{label}")),
            labels: Some([(LABEL_EGRESS.to_owned(), label.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let strange = ObjectMeta { name: Some("somebody-elses".to_owned()), ..meta("team", "aa") };
        let all = || vec![meta("team", "aa"), meta("team", "bb"), meta("other", "aa"), strange.clone()];
        let used: BTreeSet<_> = [("team".to_owned(), "aa".to_owned())].into();
        let mut before = BTreeSet::new();
        let mut look = |used: &BTreeSet<(String, String)>| -> Vec<String> {
            unused(all(), used, &mut before).into_iter().filter_map(|meta| meta.uid).collect()
        };
        assert_eq!(look(&used), Vec::<String>::new(), "the first look");
        assert_eq!(look(&used), ["team/bb", "other/aa"]);
        // What was needed in between has to be idle twice again.
        assert_eq!(look(&[("team".to_owned(), "bb".to_owned())].into()), ["other/aa"]);
        assert_eq!(look(&BTreeSet::new()), ["team/aa", "other/aa"]);
    }
}
