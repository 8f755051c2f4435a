//! What an agent's pod can do with what it holds: claim its attempt once, and nothing at the API server.

use std::sync::{Arc, Barrier};

use anyhow::{Context as _, Result, anyhow, ensure};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use lockstep::api::StepRun;
use lockstep::api::name::audience;
use lockstep::api::step_run::StepRunStatus;
use lockstep::api::workflow::Phase;
use lockstep::protocol::{self, AttemptRef, ClaimRequest, Refusal, env};
use serde_json::{Value, json};
use ureq::tls::{PemItem, RootCerts, TlsConfig};

use crate::support::{PATIENCE, Space, ask, label, pod_template};

const RACES: usize = 60;

/// Races, at the real gateway, two shims for one attempt: for each of 60 StepRuns made by the operator, two claims with
/// ids of their own and tokens of their own leave two threads at once. Both tokens are bound to the one pod that the
/// attempt's Job made (which never runs, as no node takes it, so that no real shim takes part): a Job of ours never has
/// two pods, so the second stands for a container that was restarted. The host must reach the gateway at the address
/// that pods are given, as it does in the embedded cluster.
#[tokio::test]
async fn two_pods_one_claim() -> Result<()> {
    // A shim waits for a gateway that was killed; this test speaks to it directly, and does not.
    let _lock = crate::restart::KILLING.lock().await;
    let space = Space::open("claims").await?;
    let mut nowhere = pod_template("true");
    nowhere["spec"]["nodeSelector"] = json!({"lockstep.dev/e2e": "nowhere"});
    space.agent("idle", "", &json!({"template": nowhere})).await?;
    let items: Vec<usize> = (0..RACES).collect();
    let each = json!({"in": "parameters.items", "as": "item", "maxParallel": RACES});
    let spec = json!({"parameters": {"items": items}, "steps": [{"name": "race", "agentId": "idle", "forEach": each}]});
    space.run("races", &spec).await?;
    let pods = space
        .until("a pod for every attempt", PATIENCE, None, async || {
            let pods = space.pods("races").await?;
            Ok((pods.len() == RACES).then_some(pods))
        })
        .await?;
    let gateway = gateway(&pods[0])?;
    let mut winners = std::collections::BTreeMap::new();
    for step_run in space.step_runs("races").await? {
        let name = step_run.metadata.name.clone().unwrap_or_default();
        let pod = pods.iter().find(|p| label(&p.metadata, "steprun") == name);
        let winner = race(&space, &gateway, &step_run, pod.context("no pod")?).await.with_context(|| name.clone())?;
        winners.insert(name, winner);
    }
    ensure!(winners.len() == RACES);
    // What the StepRuns say is what the gateway told.
    for step_run in space.step_runs("races").await? {
        let claim = step_run.status.and_then(|s| s.agent).and_then(|a| a.claim);
        let name = step_run.metadata.name.unwrap_or_default();
        let claim = claim.with_context(|| format!("{name}: no claim"))?;
        ensure!(claim.attempt == 1 && Some(&claim.pod_uid) == winners.get(&name));
    }
    space.close().await
}

pub struct Gateway {
    pub url: String,
    pub agent: ureq::Agent,
}

/// The gateway as the shim of a pod knows it.
pub fn gateway(pod: &Pod) -> Result<Gateway> {
    let spec = pod.spec.clone().unwrap_or_default();
    let containers: Vec<_> = spec.init_containers.into_iter().flatten().chain(spec.containers).collect();
    let variable = |name: &str| {
        let mut all = containers.iter().flat_map(|container| container.env.iter().flatten());
        all.find(|v| v.name == name)?.value.clone()
    };
    let url = variable(env::GATEWAY).context("no address of the gateway")?;
    let pem = variable(env::GATEWAY_CA).context("no CA of the gateway")?;
    let roots = ureq::tls::parse_pem(pem.as_bytes()).filter_map(|item| match item {
        Ok(PemItem::Certificate(found)) => Some(found),
        _ => None,
    });
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(RootCerts::new_with_certs(&roots.collect::<Vec<_>>()))
        .build();
    let agent = ureq::Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .http_status_as_error(false)
        .timeout_global(Some(std::time::Duration::from_secs(30)))
        .build()
        .new_agent();
    Ok(Gateway { url, agent })
}

/// One winner, one loser; the winner's claim may be repeated, as after a lost reply. Gives the winner's pod.
async fn race(space: &Space, gateway: &Gateway, step_run: &StepRun, pod: &Pod) -> Result<String> {
    let uid = step_run.metadata.uid.clone().context("no UID")?;
    let start = Arc::new(Barrier::new(2));
    let mut runners = Vec::new();
    let mut claims = Vec::new();
    for id in ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"] {
        let attempt = AttemptRef {
            namespace: space.namespace.clone(),
            step_run: step_run.metadata.name.clone().unwrap_or_default(),
            uid: uid.clone(),
            attempt: 1,
            id: id.to_owned(),
        };
        claims.push((token(space, pod, &audience(&uid, 1)).await?, attempt));
    }
    for (token, claim) in claims.clone() {
        let (start, agent) = (start.clone(), gateway.agent.clone());
        let url = format!("{}{}", gateway.url, protocol::CLAIM);
        runners.push(tokio::task::spawn_blocking(move || {
            start.wait();
            send(&agent, &url, &token, &claim)
        }));
    }
    let mut statuses = Vec::new();
    for runner in runners {
        statuses.push(runner.await??);
    }
    let won = statuses.iter().position(|s| s.0 == 200);
    let won = won.with_context(|| format!("nobody won: {statuses:?}"))?;
    let (status, body) = &statuses[1 - won];
    ensure!(*status == 409, "the other got {status}: {body}");
    let refusal: Refusal = serde_json::from_str(body)?;
    ensure!(refusal.reason == "AlreadyClaimed", "{refusal:?}");
    let url = format!("{}{}", gateway.url, protocol::CLAIM);
    let (token, claim) = claims.swap_remove(won);
    let agent = gateway.agent.clone();
    let again = tokio::task::spawn_blocking(move || send(&agent, &url, &token, &claim)).await??;
    ensure!(again.0 == 200, "the winner's repetition got {again:?}");
    pod.metadata.uid.clone().context("no UID")
}

/// Claims; what is answered.
pub async fn claim(gateway: &Gateway, token: &str, attempt: &AttemptRef) -> Result<(u16, String)> {
    let (agent, url) = (gateway.agent.clone(), format!("{}{}", gateway.url, protocol::CLAIM));
    let (token, attempt) = (token.to_owned(), attempt.clone());
    tokio::task::spawn_blocking(move || send(&agent, &url, &token, &attempt)).await?
}

fn send(agent: &ureq::Agent, url: &str, token: &str, attempt: &AttemptRef) -> Result<(u16, String)> {
    let mut call = agent.post(url).header("Authorization", format!("Bearer {token}"));
    for (name, value) in attempt.headers() {
        call = call.header(name, value);
    }
    let mut answer =
        call.send_json(ClaimRequest { shim_version: "e2e".to_owned() }).map_err(|e| anyhow!("{url}: {e}"))?;
    let status = answer.status().as_u16();
    Ok((status, answer.body_mut().read_to_string()?))
}

/// As the kubelet asks for it.
pub async fn token(space: &Space, pod: &Pod, audience: &str) -> Result<String> {
    let meta = &pod.metadata;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": meta.name, "uid": meta.uid});
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [audience], "boundObjectRef": bound, "expirationSeconds": 600}});
    let path = space.core("serviceaccounts/default/token");
    let made = space.post(&path, &request).await?;
    let token = made["status"]["token"].as_str();
    Ok(token.context("no token")?.to_owned())
}

/// The kubelet runs them through the shim. That nothing of them runs before the claim is shown in tests/shim.rs.
#[tokio::test]
async fn probes_and_pre_stop_run_beside_the_agent() -> Result<()> {
    let space = Space::open("hooks").await?;
    // The pod is deleted, and what preStop has left is the output.
    let script = r#"trap '' TERM; cd $LOCKSTEP_WORK
        until [ -e up ] && [ -e well ] && [ -e ready ]; do sleep 0.2; done
        lockstep progress 50 probed
        until [ -e saved ]; do sleep 0.2; done
        printf '{"saved": true}' > $LOCKSTEP_OUT/result.json"#;
    let exec = |file: &str| json!({"command": ["sh", "-c", format!("touch $LOCKSTEP_WORK/{file}")]});
    let mut template = pod_template(script);
    template["spec"]["terminationGracePeriodSeconds"] = json!(90);
    let own = &mut template["spec"]["containers"][0];
    for (field, file) in [("startupProbe", "up"), ("livenessProbe", "well"), ("readinessProbe", "ready")] {
        own[field] = json!({"exec": exec(file), "periodSeconds": 1, "timeoutSeconds": 30, "failureThreshold": 60});
    }
    own["lifecycle"] = json!({"preStop": {"exec": exec("saved")}});
    space.agent("probed", "", &json!({"template": template})).await?;
    space.run("probed", &json!({"steps": [{"name": "work", "agentId": "probed"}]})).await?;
    let is_probed = |status: &StepRunStatus| {
        status.agent.as_ref().and_then(|agent| agent.progress.as_ref()).is_some_and(|progress| progress.percent == 50)
    };
    let step = space.step("probed", "work", "its probes ran", is_probed).await?;
    let pod = step.status.and_then(|status| status.agent?.claim).context("no claim")?.pod_name;
    ask(&space.admin, Method::DELETE, &space.core(&format!("pods/{pod}")), None).await?;
    space.phase("probed", Phase::Completed).await?;
    let status = space.step_run("probed", "work").await?.and_then(|step| step.status).context("no status")?;
    let output = status.agent.and_then(|agent| agent.report?.output);
    ensure!(status.attempts.len() == 1, "{:?}", status.attempts);
    ensure!(output.as_deref() == Some(r#"{"saved": true}"#), "{output:?}");
    space.close().await
}

#[tokio::test]
async fn agents_have_no_api_credentials() -> Result<()> {
    let space = Space::open("credentials").await?;
    let script =
        "[ -e /var/run/secrets/kubernetes.io ] && echo HAS-CREDENTIALS; ls -R /var/run/secrets; env; echo LOOKED";
    space.agent("curious", script, &json!({})).await?;
    let spec = json!({"steps": [{"name": "look", "agentId": "curious"}]});
    space.run("curious", &spec).await?;
    space.phase("curious", Phase::Completed).await?;
    let pod = space.pods("curious").await?.pop().context("no pod")?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let log = space.says(&name, "LOOKED").await?;
    ensure!(!log.contains("HAS-CREDENTIALS") && !log.contains("kubernetes.io"), "{log}");
    ensure!(log.contains("STARTED look 1"), "{log}");
    let spec = pod.spec.as_ref().context("no spec")?;
    ensure!(spec.automount_service_account_token == Some(false));
    // The one token that the pod has is of an audience that the API server does not take.
    let uid = space.step_run("curious", "look").await?;
    let uid = uid.and_then(|s| s.metadata.uid).context("no UID")?;
    let review = |token: &str| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let foreign = token(&space, &pod, &audience(&uid, 1)).await?;
    let verdict: Value = space.post(path, &review(&foreign)).await?;
    ensure!(verdict["status"]["authenticated"] != true, "{verdict}");
    space.close().await
}
