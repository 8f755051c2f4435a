//! What docs/gitops.md says of Flux, with its controller.

use anyhow::{Result, ensure};
use serde_json::json;

use super::flux::Flux;
use super::ground::{Ground, condition};
use super::team::{self, config_map, run, template};

/// On runs, by docs/gitops.md.
pub const MERGE: &str = "kustomize.toolkit.fluxcd.io/ssa: Merge";

/// A repository with the definitions and these files beside them, synced from the folders.
async fn committed(flux: &Flux<'_>, ground: &Ground, more: &[(&str, &str)]) -> Result<String> {
    let definitions = team::definitions(ground);
    let mut files: Vec<(&str, Option<&str>)> =
        definitions.iter().map(|(f, text)| (f.as_str(), Some(text.as_str()))).collect();
    files.extend(more.iter().map(|(file, text)| (*file, Some(*text))));
    flux.commit("definitions and runs", &files).await
}

fn after(name: &str) -> serde_json::Value {
    json!({"dependsOn": [{"name": name}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flux_goes_on_after_the_approval_only() -> Result<()> {
    let ground = Ground::open("flux-waits").await?;
    let flux = Flux::open(&ground).await?;
    let release = run("release-1-4-0", "release", &[MERGE]);
    let revision = committed(
        &flux,
        &ground,
        &[("release/run.yaml", &release), ("deploy/deployed.yaml", &config_map("deployed", "1.4.0"))],
    )
    .await?;
    flux.kustomize("definitions", json!({"wait": true})).await?;
    flux.kustomize("release", json!({"wait": true, "dependsOn": [{"name": "definitions"}]})).await?;
    flux.kustomize("deploy", after("release")).await?;
    flux.applied("definitions", &revision).await?;

    ground.gate("release-1-4-0", "draft").await?;
    let message = flux.fails("deploy", "DependencyNotReady").await?;
    ensure!(message.contains("release' is not ready"), "{message}");
    // A controller that is replaced meanwhile begins anew, and must wait again.
    let applies = flux.applies("release")?;
    flux.restart()?;
    ground
        .until("the next controller applies the release", async || {
            Ok((flux.applies("release")? > applies).then_some(()))
        })
        .await?;
    let deploy = flux.sync("deploy").await?;
    ensure!(deploy["reason"] == "DependencyNotReady", "before the approval: {deploy}");
    let held = flux.get("release").await?;
    ensure!(condition(&held, "Ready")["status"] == "Unknown", "the release waits: {}", condition(&held, "Ready"));

    ground.approve("release-1-4-0", "draft").await?;
    ground.gate("release-1-4-0", "review").await?;
    let deploy = flux.sync("deploy").await?;
    ensure!(deploy["reason"] == "DependencyNotReady", "between the approvals: {deploy}");
    ensure!(!ground.exists(&ground.core("configmaps/deployed")).await?);
    ground.approve("release-1-4-0", "review").await?;
    ground.phase("release-1-4-0", "Completed").await?;
    flux.applied("release", &revision).await?;
    flux.applied("deploy", &revision).await?;
    ensure!(ground.exists(&ground.core("configmaps/deployed")).await?);

    // Synced again, nothing of it changes.
    let before = ground.run("release-1-4-0").await?;
    flux.sync("release").await?;
    flux.sync("definitions").await?;
    let later = ground.run("release-1-4-0").await?;
    ensure!(later["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], "{later:#}");
    ensure!(ground.record.made("StepRun").len() == 3 && ground.record.made("Job").len() == 3);
    flux.close().await?;
    ground.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flux_stops_at_a_run_that_failed() -> Result<()> {
    let ground = Ground::open("flux-fails").await?;
    let flux = Flux::open(&ground).await?;
    let revision = committed(
        &flux,
        &ground,
        &[
            ("broken/run.yaml", &run("broken-1", "broken", &[MERGE])),
            ("deploy/deployed.yaml", &config_map("deployed", "1")),
            ("once/run.yaml", &run("once-1", "broken", &["kustomize.toolkit.fluxcd.io/ssa: IfNotPresent"])),
        ],
    )
    .await?;
    flux.kustomize("definitions", json!({"wait": true})).await?;
    flux.kustomize("broken", json!({"wait": true, "dependsOn": [{"name": "definitions"}]})).await?;
    flux.kustomize("deploy", after("broken")).await?;
    ground.phase("broken-1", "Failed").await?;
    let message = flux.fails("broken", "HealthCheckFailed").await?;
    ensure!(message.contains("Workflow") && message.contains("broken-1"), "{message}");
    // Every second it tries again, and it stays so.
    for _ in 0..3 {
        let broken = flux.sync("broken").await?;
        ensure!(broken["reason"] == "HealthCheckFailed", "{broken}");
        let deploy = flux.sync("deploy").await?;
        ensure!(deploy["reason"] == "DependencyNotReady", "{deploy}");
    }
    ensure!(!ground.exists(&ground.core("configmaps/deployed")).await?);

    // Why docs/gitops.md does not advise IfNotPresent: what is skipped is not asked for its health, so the second try passes.
    flux.kustomize("once", json!({"wait": true, "dependsOn": [{"name": "definitions"}]})).await?;
    ground.phase("once-1", "Failed").await?;
    ground
        .until("the Kustomization of the skipped run is ready", async || {
            let once = flux.get("once").await?;
            let ready = condition(&once, "Ready")["status"] == "True";
            Ok((ready && once["status"]["lastAppliedRevision"] == revision.as_str()).then_some(()))
        })
        .await?;
    flux.close().await?;
    ground.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flux_leaves_to_people_what_they_own() -> Result<()> {
    let ground = Ground::open("flux-people").await?;
    let flux = Flux::open(&ground).await?;
    let runs = ["held", "ended", "brief"];
    let texts = runs.map(|name| run(name, if name == "brief" { "short" } else { "release" }, &[MERGE]));
    committed(
        &flux,
        &ground,
        &[("runs/held.yaml", &texts[0]), ("runs/ended.yaml", &texts[1]), ("runs/brief.yaml", &texts[2])],
    )
    .await?;
    flux.kustomize("definitions", json!({"wait": true})).await?;
    flux.kustomize("runs", after("definitions")).await?;
    let path = |name: &str| ground.ours(&format!("workflows/{name}"));
    ground.gate("held", "draft").await?;
    ground.gate("ended", "draft").await?;
    ground.phase("brief", "Completed").await?;

    // By kubectl patch, as who has no plugin does it.
    ground.merge(&path("held"), &json!({"spec": {"suspend": true}})).await?;
    ground.merge(&path("ended"), &json!({"spec": {"cancel": true}})).await?;
    ground.merge(&path("brief"), &json!({"spec": {"ttlSecondsAfterFinished": 0}})).await?;
    for _ in 0..2 {
        let runs = flux.sync("runs").await?;
        ensure!(runs["status"] == "True", "{runs}");
    }
    ensure!(ground.run("held").await?["spec"]["suspend"] == true);
    ground.phase("ended", "Cancelled").await?;
    ground
        .until("what the run brief made is gone", async || {
            let left = ground.step_run("brief", "only").await?;
            Ok(left.is_none().then_some(()))
        })
        .await?;
    ensure!(flux.sync("runs").await?["status"] == "True");
    let brief = ground.run("brief").await?;
    ensure!(brief["status"]["phase"] == "Completed" && brief["spec"]["ttlSecondsAfterFinished"] == 0, "{brief:#}");
    ensure!(ground.step_run("brief", "only").await?.is_none(), "it ran again");
    // The person lets it go on; the gate that was decided meanwhile holds.
    ground.approve("held", "draft").await?;
    flux.sync("runs").await?;
    ground.merge(&path("held"), &json!({"spec": {"suspend": null}})).await?;
    ground.approve("held", "review").await?;
    ground.phase("held", "Completed").await?;
    flux.close().await?;
    ground.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flux_heals_prunes_and_renames() -> Result<()> {
    let ground = Ground::open("flux-heals").await?;
    let flux = Flux::open(&ground).await?;
    let kept = run("kept", "short", &[MERGE, "kustomize.toolkit.fluxcd.io/prune: disabled"]);
    let files = [
        ("runs/run.yaml", run("nightly-1", "release", &[MERGE])),
        ("runs/kept.yaml", kept),
        ("definitions/cluster.yaml", config_map("cluster", "${cluster}")),
    ];
    committed(&flux, &ground, &files.each_ref().map(|(file, text)| (*file, text.as_str()))).await?;
    // Flux puts its variables in; the template says that it is to be left alone.
    flux.kustomize("definitions", json!({"wait": true, "postBuild": {"substitute": {"cluster": "north"}}})).await?;
    flux.kustomize("runs", after("definitions")).await?;
    ground.gate("nightly-1", "draft").await?;
    ground.phase("kept", "Completed").await?;
    let pinned = ground.run("nightly-1").await?["status"]["definition"]["digest"].clone();
    ensure!(pinned.is_string());
    ensure!(ground.get(&ground.core("configmaps/cluster")).await?["data"]["value"] == "north");
    let draft = ground.step_run("nightly-1", "draft").await?.unwrap_or_default();
    ensure!(draft["spec"]["parameters"].as_str().is_some_and(|text| text.contains("first")), "{draft:#}");

    // Somebody deletes the template, and somebody changes an Agent by hand: healed, and the run does not mind.
    ground.delete(&ground.ours("workflowtemplates/release")).await?;
    ground.merge(&ground.ours("agents/worker"), &json!({"spec": {"timeoutSeconds": 7}})).await?;
    flux.sync("definitions").await?;
    ensure!(ground.exists(&ground.ours("workflowtemplates/release")).await?);
    ensure!(ground.get(&ground.ours("agents/worker")).await?["spec"]["timeoutSeconds"] == 60);

    // Another template counts for later runs; a renamed run is another run, and the old one goes with all that it made.
    let revision = flux
        .commit(
            "the next night",
            &[
                ("definitions/release.yaml", Some(&template("second"))),
                ("runs/run.yaml", Some(&run("nightly-2", "release", &[MERGE]))),
            ],
        )
        .await?;
    flux.applied("runs", &revision).await?;
    ground
        .until("all of the old run is gone", async || {
            let gone = !ground.exists(&ground.ours("workflows/nightly-1")).await?;
            Ok((gone && ground.step_run("nightly-1", "draft").await?.is_none()).then_some(()))
        })
        .await?;
    ground.gate("nightly-2", "draft").await?;
    let next = ground.run("nightly-2").await?;
    ensure!(next["status"]["definition"]["digest"].is_string() && next["status"]["definition"]["digest"] != pinned);
    let draft = ground.step_run("nightly-2", "draft").await?.unwrap_or_default();
    ensure!(draft["spec"]["parameters"].as_str().is_some_and(|text| text.contains("second")), "{draft:#}");

    // A run that leaves Git stays where it is to be kept.
    flux.commit("the run is over", &[("runs/kept.yaml", None)]).await?;
    flux.sync("runs").await?;
    ensure!(ground.run("kept").await?["status"]["phase"] == "Completed");
    ensure!(ground.step_run("kept", "only").await?.is_some(), "its history went");

    // A run that is there cannot be changed: the sync says so until the file is as it was, and the run goes on.
    let changed = format!("{}  timeoutSeconds: 99\n", run("nightly-2", "release", &[MERGE]));
    flux.commit("a change of a run", &[("runs/run.yaml", Some(&changed))]).await?;
    let message = flux.fails("runs", "ReconciliationFailed").await?;
    ensure!(message.contains("rename the run"), "{message}");
    let revision =
        flux.commit("taken back", &[("runs/run.yaml", Some(&run("nightly-2", "release", &[MERGE])))]).await?;
    ground
        .until("the sync is well again", async || {
            let runs = flux.get("runs").await?;
            let well = condition(&runs, "Ready")["status"] == "True"
                && runs["status"]["lastAppliedRevision"] == revision.as_str();
            Ok(well.then_some(()))
        })
        .await?;
    ensure!(ground.run("nightly-2").await?["metadata"]["uid"] == next["metadata"]["uid"]);
    flux.close().await?;
    ground.close().await
}
