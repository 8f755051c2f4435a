//! The NetworkPolicy of an Agent that limits what it connects to, with the operator itself: when it is made, how often, and
//! when it goes.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use lockstep::api::name::LABEL_EGRESS;
use lockstep::apiserver::{Key, Kind, Writer};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::town::{Deed, NAMESPACE, Town};

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok()).expect("a version")
}

fn delete(town: &Town, kind: Kind, name: &str) {
    let by = Writer { user: "admin", is_dry_run: false };
    let key = Key::new(kind, NAMESPACE, name);
    town.api.with(|registry| registry.delete(&key, &DeleteOptions::default(), by)).expect("it is deleted");
}

#[tokio::test(start_paused = true)]
async fn one_policy_is_there_before_the_first_pod_and_serves_all() {
    let town = Town::open().await;
    for (agent, egress) in
        [("free", Value::Null), ("shut", json!("None")), ("too", json!("None")), ("web", json!("Internet"))]
    {
        town.agent(agent, &json!({"egress": egress}), |_| Deed { output: json!(1), ..Deed::default() });
        town.flow(agent, &json!({}));
    }
    let run = async |agent: &str, story: &str| {
        let reply = town.post("/run", json!({"flow": agent, "story_id": story, "input": "x"})).await.is(200);
        assert_eq!(reply.body["result"], 1, "{}", reply.text);
    };
    run("free", "a").await;
    assert!(town.objects(Kind::NetworkPolicy).is_empty(), "where nothing is said nothing is made");
    run("shut", "b").await;
    let [policy] = &town.objects(Kind::NetworkPolicy)[..] else { panic!("one policy") };
    let label = &policy["metadata"]["labels"][LABEL_EGRESS];
    let jobs = town.objects(Kind::Job);
    let limited: Vec<&Value> = jobs.iter().filter(|job| job["metadata"]["labels"][LABEL_EGRESS] == *label).collect();
    assert_eq!((jobs.len(), limited.len()), (2, 1));
    assert!(version(policy) < version(limited[0]), "the policy was there before the Job");
    // Another run, another Agent that says the same: not one write more.
    run("shut", "c").await;
    run("too", "d").await;
    assert_eq!(town.objects(Kind::NetworkPolicy), std::slice::from_ref(policy));
    run("web", "e").await;
    assert_eq!(town.objects(Kind::NetworkPolicy).len(), 2);

    // They stay as long as an Agent may need them, and after that as long as there are pods.
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(town.objects(Kind::NetworkPolicy).len(), 2);
    delete(&town, Kind::Agent, "web");
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(town.objects(Kind::NetworkPolicy).len(), 2, "the Job is there");
    for run in town.objects(Kind::Workflow) {
        delete(&town, Kind::Workflow, run["metadata"]["name"].as_str().expect("a name"));
    }
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(town.objects(Kind::NetworkPolicy), std::slice::from_ref(policy));
}
