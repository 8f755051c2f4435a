//! Where agents run: runtime classes, several containers, sidecars, roots that are only read, any user; and what they may
//! connect to.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use lockstep::api::name::LABEL_EGRESS;
use lockstep::api::step_run::AttemptResult;
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Space, ask, label, pod_template};

/// The handler that containerd and CRI-O have under this name everywhere.
const RUNTIME: &str = "lockstep-e2e-runc";

fn one_step(agent: &str) -> Value {
    json!({"onFailure": "Fail", "steps": [{"name": "only", "agentId": agent}]})
}

/// The agent of a row, as its container is wrapped (`Shim`), or left as it is (`None`).
fn row(change: impl Fn(&mut Value), script: &str, protocol: &str) -> Value {
    let ends = match protocol {
        "None" => "printf '{\"n\": 1}' > /dev/termination-log",
        _ => "lockstep progress 50 half\nlockstep memory set n 1\necho '{\"n\": 1}' > $LOCKSTEP_OUT/result.json",
    };
    let script = format!("set -e\n{script}\n{ends}");
    let mut template = pod_template(&script);
    change(&mut template["spec"]);
    json!({"template": template, "protocol": protocol, "retry": {"maxAttempts": 1},
        "outputSchema": {"required": ["n"]}})
}

fn add(pod: &mut Value, list: &str, container: Value) {
    let mut all = pod[list].as_array().cloned().unwrap_or_default();
    all.push(container);
    pod[list] = json!(all);
}

/// A container that waits for a file in the folder that all share, and says that it is there.
fn beside(pod: &Value, name: &str, script: &str, more: &Value) -> Value {
    let mut container = pod["containers"][0].clone();
    container["name"] = json!(name);
    container["command"] = json!(["sh", "-c", script]);
    container["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    container
        .as_object_mut()
        .into_iter()
        .for_each(|fields| fields.extend(more.as_object().cloned().unwrap_or_default()));
    container
}

fn shares(pod: &mut Value) {
    pod["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    pod["containers"][0]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    pod["terminationGracePeriodSeconds"] = json!(2);
}

fn as_user(pod: &mut Value, context: &Value) {
    pod["securityContext"] = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    for (field, value) in context.as_object().into_iter().flatten() {
        pod["containers"][0]["securityContext"][field] = value.clone();
    }
}

type Change = fn(&mut Value);

/// What is changed in the pod, what the agent looks at, and whether a container that is left as it is can have it, too.
fn matrix() -> Vec<(&'static str, Change, &'static str, bool)> {
    let there = "i=0; until [ -e /shared/$F ]; do i=$((i+1)); [ $i -lt 300 ]; sleep 0.1; done";
    let both: &'static str = Box::leak(format!("F=second; {there}").into_boxed_str());
    let proxy: &'static str = Box::leak(format!("F=proxy; {there}; [ -e /shared/first ]").into_boxed_str());
    vec![
        ("runtime", |pod| pod["runtimeClassName"] = json!(RUNTIME), "true", true),
        (
            "several",
            |pod| {
                shares(pod);
                add(pod, "containers", beside(pod, "second", "touch /shared/second; sleep 3600", &json!({})));
                add(pod, "containers", beside(pod, "third", "sleep 3600", &json!({})));
            },
            both,
            false,
        ),
        (
            "sidecars",
            |pod| {
                shares(pod);
                // What a container that is left as it is gave is reported within it.
                pod["terminationGracePeriodSeconds"] = json!(30);
                add(pod, "initContainers", beside(pod, "first", "touch /shared/first", &json!({})));
                let proxy = "trap 'exit 0' TERM; touch /shared/proxy; sleep 3600 & wait";
                add(pod, "initContainers", beside(pod, "proxy", proxy, &json!({"restartPolicy": "Always"})));
                add(
                    pod,
                    "initContainers",
                    beside(pod, "mesh", "trap 'exit 0' TERM; sleep 3600 & wait", &json!({"restartPolicy": "Always"})),
                );
            },
            proxy,
            true,
        ),
        ("read-only", |_| {}, "if touch /x 2>/dev/null; then exit 9; fi", true),
        // As OpenShift gives them: a user of the namespace, of group 0, who stands in no passwd.
        (
            "any-user",
            |pod| as_user(pod, &json!({"runAsUser": 1_000_680_000, "runAsGroup": 0})),
            "id -u | grep -qx 1000680000",
            true,
        ),
        (
            "a-user",
            |pod| as_user(pod, &json!({"runAsUser": 1, "runAsGroup": 1234})),
            "id -u | grep -qx 1; id -g | grep -qx 1234",
            true,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_run_wherever_their_containers_would() -> Result<()> {
    let space = Space::open("places").await?;
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": RUNTIME}, "handler": "runc"});
    let classes = "/apis/node.k8s.io/v1/runtimeclasses";
    // One that an earlier run has left is as good.
    let _ = ask(&space.admin, Method::POST, classes, Some(&class)).await;
    let mut runs = Vec::new();
    for (name, change, script, as_it_is) in matrix() {
        for bare in [false, true].into_iter().filter(|bare| !bare || as_it_is) {
            let run = if bare { format!("{name}-bare") } else { name.to_owned() };
            // Home and temporary files are there although the root is only read.
            let script = if bare {
                script.to_owned()
            } else {
                format!("{script}\ntouch $HOME/h ${{TMPDIR:-/tmp}}/t $LOCKSTEP_WORK/w")
            };
            let protocol = if bare { "None" } else { "Shim" };
            space.agent(&run, "", &row(change, &script, protocol)).await?;
            space.run(&run, &one_step(&run)).await?;
            runs.push(run);
        }
    }
    for run in &runs {
        space.phase(run, Phase::Completed).await.with_context(|| run.clone())?;
        let status = space.step_run(run, "only").await?.and_then(|s| s.status).context("no StepRun")?;
        ensure!(
            status.attempts.len() == 1 && status.attempts[0].result == AttemptResult::Succeeded,
            "{run}: {:?}",
            status.attempts
        );
    }
    for run in ["runtime", "runtime-bare"] {
        let pod = space.pods(run).await?.pop().context("no pod")?;
        ensure!(pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()) == Some(RUNTIME), "{run}");
    }
    let _ = ask(&space.admin, Method::DELETE, &format!("{classes}/{RUNTIME}"), None).await;
    space.close().await
}

fn policies(space: &Space) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies", space.namespace)
}

/// Whether it holds is up to the cluster's network; that it is there, and before the pod, is up to the operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_may_connect_to_is_a_network_policy_before_its_pod() -> Result<()> {
    let space = Space::open("egress").await?;
    for (agent, egress) in [("free", Value::Null), ("shut", json!("None")), ("web", json!("Internet"))] {
        let mut spec = row(|_| {}, "true", "Shim");
        if !egress.is_null() {
            spec["egress"] = egress;
        }
        space.agent(agent, "", &spec).await?;
    }
    for (run, agent) in [("free", "free"), ("shut", "shut"), ("again", "shut"), ("web", "web")] {
        space.run(run, &one_step(agent)).await?;
        // The gateway is reached in any case.
        space.phase(run, Phase::Completed).await?;
    }
    let all = space.get(&policies(&space)).await?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    ensure!(all.len() == 2, "one for each that says something else: {all:?}");
    let mut seen = BTreeSet::new();
    for run in ["shut", "again", "web"] {
        let pod: Pod = space.pods(run).await?.pop().context("no pod")?;
        let wanted = label(&pod.metadata, "egress");
        let policy = all.iter().find(|policy| policy["spec"]["podSelector"]["matchLabels"][LABEL_EGRESS] == wanted);
        let policy = policy.with_context(|| format!("{run}: no policy for {wanted}"))?;
        let made = policy["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        let born = pod.metadata.creation_timestamp.as_ref().map(|at| at.0.to_string()).unwrap_or_default();
        ensure!(made <= born, "{run}: the policy was made at {made}, the pod at {born}");
        seen.insert(wanted.to_owned());
    }
    ensure!(seen.len() == 2, "{seen:?}");
    let free = space.pods("free").await?.pop().context("no pod")?;
    ensure!(label(&free.metadata, "egress").is_empty(), "{:?}", free.metadata.labels);
    space.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster whose network enforces NetworkPolicies, which the development cluster's does not"]
async fn an_agent_connects_to_nothing_else() -> Result<()> {
    let space = Space::open("enforced").await?;
    // Somebody of another namespace's sort: not an attempt, and nothing limits it.
    let script = "while :; do echo hello | nc -l -p 8080; done";
    let mut pod = pod_template(script);
    (pod["apiVersion"], pod["kind"], pod["metadata"]) = (json!("v1"), json!("Pod"), json!({"name": "somebody"}));
    space.post(&space.core("pods"), &pod).await?;
    let path = space.core("pods/somebody");
    let address = space
        .until("somebody listens", PATIENCE, None, async || {
            let status = space.get(&path).await?["status"].clone();
            Ok((status["phase"] == "Running").then(|| status["podIP"].as_str().unwrap_or_default().to_owned()))
        })
        .await?;
    let block = format!("{address}/{}", if address.contains(':') { 128 } else { 32 });
    let to = |ports: Value| json!([{"cidr": block, "ports": ports}]);
    for (agent, egress, reaches) in [
        ("free", Value::Null, true),
        ("shut", json!("None"), false),
        ("web", json!("Internet"), false),
        ("named", to(json!([8080])), true),
        ("other-port", to(json!([8081])), false),
    ] {
        let wanted = if reaches { "0" } else { "1" };
        let script =
            format!("code=0; nc -w 5 {address} 8080 </dev/null | grep -q hello || code=1; [ $code = {wanted} ]");
        let mut spec = row(|_| {}, &script, "Shim");
        if !egress.is_null() {
            spec["egress"] = egress;
        }
        space.agent(agent, "", &spec).await?;
        space.run(agent, &one_step(agent)).await?;
        space.phase(agent, Phase::Completed).await.with_context(|| format!("{agent}: it was to connect: {reaches}"))?;
    }
    space.close().await
}
