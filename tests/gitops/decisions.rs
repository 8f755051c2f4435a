//! Who decides where a tool made the run, and what a run that failed holds back.

use anyhow::{Context as _, Result, ensure};
use http::Method;
use lockstep::api::name::{CREATED_BY, DECISION, REVIEW};
use serde_json::{Value, json};

use super::argo::Argo;
use super::flux::Flux;
use super::flux_stories::MERGE;
use super::ground::{Ground, condition};
use super::plane::{PERSON, ask, somebody};
use super::rights::service_account;
use super::team::{self, config_map, run};

/// A gate that wants a person behind the run.
const HUMAN: &str = "\
apiVersion: lockstep.dev/v1alpha1
kind: WorkflowTemplate
metadata: {name: human}
spec:
  steps:
  - {name: only, agentId: worker, gate: {createdByPerson: true}}
";

/// Steps that fail and ask people, and a gate.
const ASKS: &str = "\
apiVersion: lockstep.dev/v1alpha1
kind: WorkflowTemplate
metadata: {name: asks}
spec:
  order: Graph
  steps:
  - {name: tries, agentId: breaker, retry: {maxAttempts: 1}}
  - {name: good, agentId: worker, gate: {}}
  - {name: bad, agentId: worker, gate: {onReject: Revise}}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flux_makes_runs_that_people_decide() -> Result<()> {
    let ground = Ground::open("flux-eyes").await?;
    let flux = Flux::open(&ground).await?;
    let definitions = team::definitions(&ground);
    let mut files: Vec<_> = definitions.iter().map(|(file, text)| (file.as_str(), Some(text.as_str()))).collect();
    let runs = [run("release-1", "release", &[MERGE]), run("human-1", "human", &[MERGE])];
    files.extend([
        ("definitions/human.yaml", Some(HUMAN)),
        ("release/run.yaml", Some(runs[0].as_str())),
        ("human/run.yaml", Some(runs[1].as_str())),
    ]);
    let revision = flux.commit("two runs", &files).await?;
    flux.kustomize("definitions", json!({"wait": true})).await?;
    flux.kustomize("release", json!({"wait": true, "dependsOn": [{"name": "definitions"}]})).await?;
    flux.kustomize("human", json!({"wait": true, "dependsOn": [{"name": "definitions"}]})).await?;
    let bot = format!("system:serviceaccount:{}:gitops", ground.namespace);

    // Four eyes: not whoever made the run, which is the account of the tool.
    ground.approve("release-1", "draft").await?;
    let waiting = ground.gate("release-1", "review").await?;
    ensure!(waiting["spec"]["gate"]["notBy"] == bot.as_str(), "{:#}", waiting["spec"]);
    ensure!(ground.run("release-1").await?["metadata"]["annotations"][CREATED_BY] == bot.as_str());
    // It would have the permission, and is refused as a machine.
    let role = json!({"kind": "ClusterRole", "name": "lockstep-approver"});
    ground.bound(&ground.namespace, "bot", &service_account(&ground.namespace, "gitops"), &role).await?;
    let name = waiting["metadata"]["name"].as_str().unwrap_or_default();
    let decision =
        json!({"metadata": {"annotations": {DECISION: "accepted", REVIEW: waiting["status"]["gate"]["outputDigest"]}}});
    let path = ground.ours(&format!("stepruns/{name}"));
    let refused = ask(&somebody(&bot).await?, Method::PATCH, &path, Some(&decision)).await;
    let refused = refused.err().context("a machine decided")?.to_string();
    ensure!(refused.contains("only people decide"), "{refused}");
    let held = flux.get("release").await?;
    ensure!(condition(&held, "Ready")["status"] == "Unknown", "{:#}", held["status"]);
    ground.approve("release-1", "review").await?;
    let end = ground.phase("release-1", "Completed").await?;
    let decisions = end["status"]["acceptanceDecisions"].as_array().cloned().unwrap_or_default();
    ensure!(decisions.len() == 2 && decisions.iter().all(|d| d["decidedBy"] == PERSON), "{decisions:#?}");
    flux.applied("release", &revision).await?;

    // A gate that wants a person behind the run opens for none of a tool's, before the agent runs; for a person's it does.
    let end = ground.phase("human-1", "Failed").await?;
    ensure!(end["status"].to_string().contains("GateNotProven"), "{:#}", end["status"]);
    let message = flux.fails("human", "HealthCheckFailed").await?;
    ensure!(message.contains("human-1"), "{message}");
    let step = ground.step_run("human-1", "only").await?.context("no StepRun")?;
    ensure!(
        !ground
            .record
            .there("Job")
            .iter()
            .any(|job| job["metadata"]["ownerReferences"][0]["uid"] == step["metadata"]["uid"])
    );
    let by_hand: Value = serde_saphyr::from_str(&run("human-2", "human", &[]))?;
    ground.post(&ground.ours("workflows"), &by_hand).await?;
    ground.approve("human-2", "only").await?;
    ground.phase("human-2", "Completed").await?;
    flux.close().await?;
    ground.close().await
}

/// Sync waves: behind a run that failed nothing is applied, however often the sync is tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_stops_at_a_run_that_failed() -> Result<()> {
    let ground = Ground::open("argocd-fails").await?;
    let argo = Argo::open(&ground).await?;
    let definitions = team::definitions(&ground);
    let mut files: Vec<_> = definitions.iter().map(|(file, text)| (file.as_str(), Some(text.as_str()))).collect();
    let broken = run("broken-1", "broken", &["argocd.argoproj.io/sync-wave: '1'"]);
    let deployed = config_map("deployed", "1")
        .replace("{name: deployed}", "{name: deployed, annotations: {argocd.argoproj.io/sync-wave: '2'}}");
    files.extend([
        ("definitions/run.yaml", Some(broken.as_str())),
        ("definitions/deployed.yaml", Some(deployed.as_str())),
    ]);
    argo.repository.commit("a release that fails", &files)?;
    let retry = json!({"limit": 2, "refresh": true, "backoff": {"duration": "1s", "factor": 1, "maxDuration": "1s"}});
    argo.application(
        "definitions",
        json!({"syncPolicy": {"automated": {"prune": true, "selfHeal": true}, "retry": retry}}),
    )
    .await?;
    ground.phase("broken-1", "Failed").await?;
    argo.health("definitions", "Degraded").await?;
    let state = ground
        .until("Argo CD gives up after two more tries", async || {
            let state = argo.get("definitions").await?["status"]["operationState"].clone();
            Ok((state["phase"] == "Failed" && state["retryCount"] == 2).then_some(state))
        })
        .await?;
    ensure!(
        state["message"].as_str().is_some_and(|m| m.contains("completed unsuccessfully") || m.contains("failed")),
        "{state:#}"
    );
    let (health, message) = argo.resource("definitions", "Workflow", "broken-1").await?;
    ensure!(health == "Degraded" && !message.is_empty(), "{health}: {message}");
    ensure!(!ground.exists(&ground.core("configmaps/deployed")).await?, "deployed behind a run that failed");
    let runs = ground.record.made("Workflow");
    ensure!(runs.len() == 1 && runs["broken-1"] == 1 && ground.record.made("Job").len() == 1, "it ran again: {runs:?}");
    // Another run in its place goes by.
    let next = run("short-1", "short", &["argocd.argoproj.io/sync-wave: '1'"]);
    let commit = argo.repository.commit("a release that does not", &[("definitions/run.yaml", Some(&next))])?;
    argo.synced("definitions", &commit).await?;
    ensure!(ground.exists(&ground.core("configmaps/deployed")).await?);
    ground.phase("short-1", "Completed").await?;
    argo.close().await?;
    ground.close().await
}

/// Where Argo CD reaches the cluster under a name without `system:` its buttons decide, under that name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_decides_under_a_name_of_its_own() -> Result<()> {
    let ground = Ground::open("argocd-decides").await?;
    let argo = Argo::open(&ground).await?;
    let definitions = team::definitions(&ground);
    let mut files: Vec<_> = definitions.iter().map(|(file, text)| (file.as_str(), Some(text.as_str()))).collect();
    let asks = run("asks-1", "asks", &[]);
    files.extend([("definitions/asks.yaml", Some(ASKS)), ("runs/run.yaml", Some(asks.as_str()))]);
    let commit = argo.repository.commit("a run that asks", &files)?;
    argo.application("definitions", json!({})).await?;
    argo.synced("definitions", &commit).await?;
    argo.application("runs", json!({})).await?;
    let waits = async |path: &str, attempt: u64| {
        ground
            .until(&format!("{path} asks after attempt {attempt}"), async || {
                let found = ground.step_run("asks-1", path).await?;
                Ok(found.filter(|s| {
                    s["status"]["waitingFor"]["kind"] == "RetriesSpent" && s["status"]["attempt"] == attempt
                }))
            })
            .await
    };
    let name = |step: &Value| step["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let tries = name(&waits("tries", 1).await?);
    let (good, bad) = (name(&ground.gate("asks-1", "good").await?), name(&ground.gate("asks-1", "bad").await?));
    argo.health("runs", "Suspended").await?;
    // Under its ServiceAccount each is refused by the admission policy, in the words of the policy.
    for (action, step) in [("approve", &good), ("reject", &bad), ("retry", &tries)] {
        let refused = argo.action_with("runs", action, "StepRun", step, Some("why")).await?;
        ensure!(refused["message"].as_str().is_some_and(|m| m.contains("only people decide")), "{action}: {refused}");
    }

    argo.serve_as("argocd").await?;
    for (action, step) in [("approve", &good), ("reject", &bad), ("retry", &tries)] {
        let comment = (action != "approve").then_some("as it was clicked");
        let answer = argo.action_with("runs", action, "StepRun", step, comment).await?;
        ensure!(answer == json!({}), "{action}: {answer}");
    }
    // The one goes on, the other again, with what was said.
    let decided = async |path: &str, round: u64, phase: &str| {
        ground
            .until(&format!("{path} is {phase} in round {round}"), async || {
                let found = ground.step_run("asks-1", path).await?;
                Ok(found.filter(|s| s["status"]["phase"] == phase && s["status"]["gate"]["round"] == round))
            })
            .await
    };
    let (good_one, bad_one) =
        (decided("good", 1, "Completed").await?, decided("bad", 2, "WaitingForAcceptance").await?);
    for (step, accepted) in [(&good_one, true), (&bad_one, false)] {
        let decision = &step["status"]["gate"]["decisions"][0];
        ensure!(decision["decidedBy"] == "argocd" && decision["accepted"] == accepted, "{:#}", step["status"]["gate"]);
    }
    ensure!(
        bad_one["status"]["gate"]["decisions"][0]["comment"] == "as it was clicked",
        "{:#}",
        bad_one["status"]["gate"]
    );
    let again = waits("tries", 2).await?;
    ensure!(again["status"]["actions"][0]["by"] == "argocd", "{:#}", again["status"]["actions"]);
    // What is decided stays so, whoever asks Argo CD for more.
    let refused = argo.action_with("runs", "reject", "StepRun", &good, Some("after all")).await?;
    ensure!(
        refused["message"].as_str().is_some_and(|m| m.contains("a decision by argocd is already there")),
        "{refused}"
    );
    argo.close().await?;
    ground.close().await
}
