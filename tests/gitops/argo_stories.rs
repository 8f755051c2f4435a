//! What docs/gitops.md says of Argo CD, with its controllers.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::argo::Argo;
use super::ground::Ground;
use super::team::{self, config_map, run, template};

/// Commits the definitions and these files, and has two Applications sync them.
async fn committed(argo: &Argo<'_>, ground: &Ground, runs: &[(&str, &str)]) -> Result<String> {
    let definitions = team::definitions(ground);
    let mut files: Vec<(&str, Option<&str>)> =
        definitions.iter().map(|(f, text)| (f.as_str(), Some(text.as_str()))).collect();
    files.extend(runs.iter().map(|(file, text)| (*file, Some(*text))));
    let commit = argo.repository.commit("definitions and runs", &files)?;
    argo.application("definitions", json!({})).await?;
    argo.synced("definitions", &commit).await?;
    argo.health("definitions", "Healthy").await?;
    argo.application("runs", json!({})).await?;
    argo.synced("runs", &commit).await?;
    Ok(commit)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_shows_every_phase() -> Result<()> {
    let ground = Ground::open("argocd-phases").await?;
    let argo = Argo::open(&ground).await?;
    committed(&argo, &ground, &[("runs/run.yaml", &run("release-1", "release", &[]))]).await?;
    ground.gate("release-1", "draft").await?;
    argo.health("runs", "Suspended").await?;
    let (health, message) = argo.resource("runs", "Workflow", "release-1").await?;
    ensure!(health == "Suspended" && message.contains("kubectl lockstep inbox"), "{health}: {message}");
    argo.no_diff("runs").await?;

    // What Lockstep made stands below the run, and the waiting step says by which command it is decided.
    let tree = argo.tree("runs").await?;
    let step = tree.iter().find(|node| node["kind"] == "StepRun").context("no StepRun in the tree")?;
    ensure!(step["health"]["status"] == "Suspended", "{step}");
    ensure!(
        step["health"]["message"]
            .as_str()
            .is_some_and(|m| m.contains("kubectl") && m.contains("lockstep.dev/decision=accepted")),
        "{step}"
    );
    for kind in ["Job", "Pod", "Document"] {
        ensure!(tree.iter().any(|node| node["kind"] == kind), "no {kind} in the tree: {tree:#?}");
    }
    // Argo CD acts as its ServiceAccount, and people decide.
    let name = step["name"].as_str().unwrap_or_default();
    let refused = argo.action("runs", "approve", "StepRun", name).await?;
    ensure!(refused["message"].as_str().is_some_and(|m| m.contains("only people decide")), "{refused}");

    ground.approve("release-1", "draft").await?;
    ground.gate("release-1", "review").await?;
    argo.health("runs", "Suspended").await?;
    ground.approve("release-1", "review").await?;
    ground.phase("release-1", "Completed").await?;
    argo.health("runs", "Healthy").await?;
    argo.no_diff("runs").await?;

    // A run that fails, by another commit, and is tried again by a click.
    let commit =
        argo.repository.commit("a run that fails", &[("runs/broken.yaml", Some(&run("broken-1", "broken", &[])))])?;
    argo.synced("runs", &commit).await?;
    argo.health("runs", "Degraded").await?;
    let (health, message) = argo.resource("runs", "Workflow", "broken-1").await?;
    ensure!(health == "Degraded" && !message.is_empty(), "{health}: {message}");
    let (health, _) = argo.resource("runs", "Workflow", "release-1").await?;
    ensure!(health == "Healthy", "{health}");
    let answer = argo.action("runs", "retry", "Workflow", "broken-1").await?;
    ensure!(answer == json!({}), "{answer}");
    let again = ground.phase("broken-1-r2", "Failed").await?;
    ensure!(again["spec"]["retryOf"]["name"] == "broken-1", "{again:#}");
    argo.sync("runs").await?;
    ensure!(
        ground.exists(&ground.ours("workflows/broken-1-r2")).await?,
        "it belongs to no application, and was pruned"
    );
    argo.no_diff("runs").await?;
    argo.close().await?;
    ground.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_leaves_to_people_what_they_own() -> Result<()> {
    let ground = Ground::open("argocd-people").await?;
    let argo = Argo::open(&ground).await?;
    let runs = ["held", "ended", "brief"];
    let texts = runs.map(|name| run(name, if name == "brief" { "short" } else { "release" }, &[]));
    committed(
        &argo,
        &ground,
        &[("runs/held.yaml", &texts[0]), ("runs/ended.yaml", &texts[1]), ("runs/brief.yaml", &texts[2])],
    )
    .await?;
    ground.gate("held", "draft").await?;
    ground.gate("ended", "draft").await?;
    ground.phase("brief", "Completed").await?;
    // By the actions of the user interface, and by kubectl.
    for (action, name) in [("suspend", "held"), ("cancel", "ended")] {
        let answer = argo.action("runs", action, "Workflow", name).await?;
        ensure!(answer == json!({}), "{action}: {answer}");
    }
    let brief = ground.ours("workflows/brief");
    ground.merge(&brief, &json!({"spec": {"ttlSecondsAfterFinished": 0}})).await?;
    ground.phase("ended", "Cancelled").await?;
    for _ in 0..2 {
        argo.sync("runs").await?;
        argo.no_diff("runs").await?;
    }
    ensure!(ground.run("held").await?["spec"]["suspend"] == true);
    argo.health("runs", "Degraded").await?;
    ground
        .until("what the run brief made is gone", async || {
            Ok(ground.step_run("brief", "only").await?.is_none().then_some(()))
        })
        .await?;
    argo.sync("runs").await?;
    ensure!(ground.run("brief").await?["status"]["phase"] == "Completed");
    ensure!(ground.step_run("brief", "only").await?.is_none(), "it ran again");
    // Held, it is decided all the same, and goes on where a person says so.
    ground.approve("held", "draft").await?;
    argo.sync("runs").await?;
    let answer = argo.action("runs", "resume", "Workflow", "held").await?;
    ensure!(answer == json!({}), "{answer}");
    ground.approve("held", "review").await?;
    ground.phase("held", "Completed").await?;
    argo.no_diff("runs").await?;
    argo.close().await?;
    ground.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_heals_prunes_and_renames() -> Result<()> {
    let ground = Ground::open("argocd-heals").await?;
    let argo = Argo::open(&ground).await?;
    let keep = ["argocd.argoproj.io/sync-options: Prune=false", "argocd.argoproj.io/compare-options: IgnoreExtraneous"];
    let kept = run("kept", "short", &keep);
    committed(&argo, &ground, &[("runs/run.yaml", &run("nightly-1", "release", &[])), ("runs/kept.yaml", &kept)])
        .await?;
    ground.gate("nightly-1", "draft").await?;
    ground.phase("kept", "Completed").await?;
    let pinned = ground.run("nightly-1").await?["status"]["definition"]["digest"].clone();
    ensure!(pinned.is_string());

    // It heals by itself.
    ground.delete(&ground.ours("workflowtemplates/release")).await?;
    ground.merge(&ground.ours("agents/worker"), &json!({"spec": {"timeoutSeconds": 7}})).await?;
    ground
        .until("Argo CD heals", async || {
            let template = ground.exists(&ground.ours("workflowtemplates/release")).await?;
            let agent = ground.get(&ground.ours("agents/worker")).await?;
            Ok((template && agent["spec"]["timeoutSeconds"] == 60).then_some(()))
        })
        .await?;

    let changes: [(&str, Option<&str>); 2] = [
        ("definitions/release.yaml", Some(&template("second"))),
        ("runs/run.yaml", Some(&run("nightly-2", "release", &[]))),
    ];
    let commit = argo.repository.commit("the next night", &changes)?;
    argo.synced("definitions", &commit).await?;
    argo.synced("runs", &commit).await?;
    ground
        .until("all of the old run is gone", async || {
            let gone = !ground.exists(&ground.ours("workflows/nightly-1")).await?;
            Ok((gone && ground.step_run("nightly-1", "draft").await?.is_none()).then_some(()))
        })
        .await?;
    ground.gate("nightly-2", "draft").await?;
    let next = ground.run("nightly-2").await?;
    let found = [&next["status"]["definition"]["digest"], &pinned];
    ensure!(found.iter().all(|digest| digest.is_string()) && found[0] != found[1], "{found:?}");

    // A run that leaves Git stays where it is to be kept.
    let commit = argo.repository.commit("the run is over", &[("runs/kept.yaml", None)])?;
    argo.refresh("runs").await?;
    ground
        .until("the Application is as Git is, without it", async || {
            let sync = argo.get("runs").await?["status"]["sync"].clone();
            Ok((sync["revision"] == commit.as_str() && sync["status"] == "Synced").then_some(()))
        })
        .await?;
    ensure!(ground.run("kept").await?["status"]["phase"] == "Completed");
    ensure!(ground.step_run("kept", "only").await?.is_some(), "its history went");

    // A run that is there cannot be changed: the sync fails and says so, and the run goes on.
    let edited = format!("{}  timeoutSeconds: 99\n", run("nightly-2", "release", &[]));
    argo.repository.commit("a change of a run", &[("runs/run.yaml", Some(&edited))])?;
    argo.refused("runs", "rename the run").await?;
    // With retry.refresh the next try takes the commit that is there then.
    let commit = argo.repository.commit("taken back", &[("runs/run.yaml", Some(&run("nightly-2", "release", &[])))])?;
    argo.synced("runs", &commit).await?;
    ensure!(ground.run("nightly-2").await?["metadata"]["uid"] == next["metadata"]["uid"]);
    argo.close().await?;
    ground.close().await
}

/// Sync waves: what stands behind a run in the same Application waits for its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_goes_on_after_the_approval_only() -> Result<()> {
    let ground = Ground::open("argocd-waves").await?;
    let argo = Argo::open(&ground).await?;
    let definitions = team::definitions(&ground);
    let mut files: Vec<(&str, Option<&str>)> =
        definitions.iter().map(|(f, text)| (f.as_str(), Some(text.as_str()))).collect();
    let first = run("release-1", "release", &["argocd.argoproj.io/sync-wave: '1'"]);
    let deployed = config_map("deployed", "1")
        .replace("{name: deployed}", "{name: deployed, annotations: {argocd.argoproj.io/sync-wave: '2'}}");
    files.extend([
        ("definitions/run.yaml", Some(first.as_str())),
        ("definitions/deployed.yaml", Some(deployed.as_str())),
    ]);
    argo.repository.commit("a release in one", &files)?;
    argo.application("definitions", json!({})).await?;
    ground.approve("release-1", "draft").await?;
    ground.gate("release-1", "review").await?;
    argo.refresh("definitions").await?;
    argo.health("definitions", "Suspended").await?;
    ensure!(!ground.exists(&ground.core("configmaps/deployed")).await?, "deployed before the approval");
    ground.approve("release-1", "review").await?;
    ground.phase("release-1", "Completed").await?;
    ground
        .until("deployed", async || Ok(ground.exists(&ground.core("configmaps/deployed")).await?.then_some(())))
        .await?;
    argo.close().await?;
    ground.close().await
}
