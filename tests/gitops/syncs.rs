//! Twenty syncs at random moments of a run with two gates, while things heal and are pruned: no approval lost, no child gone,
//! nothing run twice. LOCKSTEP_SYNC_SEED chooses the moments (1).

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::sync::watch;

use super::argo::Argo;
use super::flux::Flux;
use super::flux_stories::MERGE;
use super::ground::Ground;
use super::plane::PERSON;
use super::team::{self, config_map, run, template};

const SYNCS: u32 = 20;

/// The moments, and what goes on beside them.
struct Chance(fastrand::Rng);

impl Chance {
    fn new() -> Result<Self> {
        let seed = std::env::var("LOCKSTEP_SYNC_SEED").map_or(Ok(1), |text| text.parse())?;
        println!("LOCKSTEP_SYNC_SEED={seed}");
        Ok(Self(fastrand::Rng::with_seed(seed)))
    }

    async fn moment(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.0.u64(0..400))).await;
    }

    /// Somebody meddles with what Git holds.
    async fn meddle(&mut self, ground: &Ground) -> Result<()> {
        match self.0.u8(0..4) {
            0 => ground.delete(&ground.ours("workflowtemplates/release")).await,
            1 => {
                ground.merge(&ground.ours("agents/worker"), &json!({"spec": {"timeoutSeconds": 77}})).await.map(|_| ())
            }
            2 => ground
                .merge(&ground.ours("workflows/release-1"), &json!({"metadata": {"labels": {"by": "hand"}}}))
                .await
                .map(|_| ()),
            _ => Ok(()),
        }
    }
}

/// What Git holds beside the run: a template that changes, and a file that comes and goes.
fn beside(number: u32) -> Vec<(String, Option<String>)> {
    let mut files = vec![("definitions/release.yaml".to_owned(), Some(template(&format!("note-{number}"))))];
    if number > 0 {
        files.push((format!("definitions/note-{}.yaml", number - 1), None));
    }
    let note = format!("note-{number}");
    files.push((format!("definitions/{note}.yaml"), Some(config_map(&note, &note))));
    files
}

/// People accept each gate some time after they see it: the first after a third of the syncs or so, the second after two thirds.
async fn people(ground: &Ground, mut chance: Chance, mut done: watch::Receiver<u32>) -> Result<()> {
    for (gate, soonest) in [("draft", SYNCS / 4), ("review", SYNCS * 2 / 3)] {
        ground.gate("release-1", gate).await?;
        let enough = soonest + chance.0.u32(0..4);
        done.wait_for(|done| *done >= enough).await?;
        chance.moment().await;
        ground.approve("release-1", gate).await?;
    }
    Ok(())
}

/// Everything that ever was in the namespace.
async fn judged(ground: &Ground, uid: &serde_json::Value) -> Result<()> {
    let end = ground.phase("release-1", "Completed").await?;
    ensure!(end["metadata"]["uid"] == *uid, "it is another run");
    for (kind, number) in [
        ("Workflow", 1),
        ("StepRun", 3),
        ("Job", 3),
        ("Pod", 3),
        ("Document", 1),
        ("ControllerRevision", 1),
        ("Memory", 2),
    ] {
        let made = ground.record.made(kind);
        ensure!(
            made.len() == number && made.values().all(|uids| *uids == 1),
            "{kind}: {made:?}, expected {number}, each once"
        );
    }
    let gone = ground.record.gone();
    ensure!(gone.is_empty(), "gone: {gone:?}");
    let steps = ground.record.there("StepRun");
    for step in &steps {
        ensure!(step["status"]["attempt"] == 1 && step["status"]["phase"] == "Completed", "{step:#}");
    }
    let decisions = end["status"]["acceptanceDecisions"].as_array().cloned().unwrap_or_default();
    let by: Vec<_> = decisions.iter().map(|d| (&d["decidedBy"], &d["decision"])).collect();
    ensure!(decisions.len() == 2 && decisions.iter().all(|d| d["decidedBy"] == PERSON), "{by:?}: {:#}", end["status"]);
    Ok(())
}

fn borrowed(files: &[(String, Option<String>)]) -> Vec<(&str, Option<&str>)> {
    files.iter().map(|(file, text)| (file.as_str(), text.as_deref())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flux_syncs_at_random_moments() -> Result<()> {
    let ground = Ground::open("flux-syncs").await?;
    let flux = Flux::open(&ground).await?;
    let mut chance = Chance::new()?;
    let definitions = team::definitions(&ground);
    let all: Vec<_> = definitions.iter().map(|(f, text)| (f.as_str(), Some(text.as_str()))).collect();
    flux.commit("definitions", &all).await?;
    let mut files = beside(0);
    files.push(("runs/run.yaml".to_owned(), Some(run("release-1", "release", &[MERGE]))));
    flux.commit("a run", &borrowed(&files)).await?;
    flux.kustomize("definitions", json!({"wait": true})).await?;
    // The recipe that waits until the run has started, and for no person: a sync then ends while the run goes on.
    let exprs: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/charts/lockstep/gitops/flux/until-started.yaml"
    ))?)?;
    let named = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "name": "release-1", "namespace": ground.namespace});
    let recipe = json!({"wait": false, "timeout": "1m", "healthChecks": [named], "healthCheckExprs": exprs});
    flux.kustomize("runs", recipe).await?;
    let uid =
        ground.until("the run is there", async || Ok(ground.run("release-1").await.ok())).await?["metadata"]["uid"]
            .clone();
    let (done, seen) = watch::channel(0);
    let syncs = async {
        let mut commits = 0;
        for number in 1..=SYNCS {
            chance.moment().await;
            chance.meddle(&ground).await?;
            if chance.0.bool() {
                commits += 1;
                flux.commit("a note", &borrowed(&beside(commits))).await?;
            }
            let (definitions, runs) = (flux.sync("definitions").await?, flux.sync("runs").await?);
            ensure!(definitions["status"] == "True", "sync {number} of definitions: {definitions}");
            ensure!(runs["status"] == "True", "sync {number} of runs: {runs}");
            done.send_replace(number);
        }
        Ok::<u32, anyhow::Error>(commits)
    };
    let (commits, ()) = tokio::try_join!(syncs, people(&ground, Chance::new()?, seen))?;
    judged(&ground, &uid).await?;
    ensure!(ground.exists(&ground.core(&format!("configmaps/note-{commits}"))).await?);
    ensure!(!ground.exists(&ground.core("configmaps/note-0")).await? || commits == 0, "nothing was pruned");
    println!("{SYNCS} syncs of two Kustomizations, {commits} commits between them");
    flux.close().await?;
    ground.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_syncs_at_random_moments() -> Result<()> {
    let ground = Ground::open("argocd-syncs").await?;
    let argo = Argo::open(&ground).await?;
    let mut chance = Chance::new()?;
    let definitions = team::definitions(&ground);
    let all: Vec<_> = definitions.iter().map(|(f, text)| (f.as_str(), Some(text.as_str()))).collect();
    argo.repository.commit("definitions", &all)?;
    let mut files = beside(0);
    files.push(("runs/run.yaml".to_owned(), Some(run("release-1", "release", &[]))));
    argo.repository.commit("a run", &borrowed(&files))?;
    argo.application("definitions", json!({})).await?;
    argo.application("runs", json!({})).await?;
    let uid =
        ground.until("the run is there", async || Ok(ground.run("release-1").await.ok())).await?["metadata"]["uid"]
            .clone();
    let (done, seen) = watch::channel(0);
    let syncs = async {
        let mut commits = 0;
        for number in 1..=SYNCS {
            chance.moment().await;
            chance.meddle(&ground).await?;
            if chance.0.bool() {
                commits += 1;
                argo.repository.commit("a note", &borrowed(&beside(commits)))?;
            }
            // By hand, beside what it does by itself; one that is under way already counts as one.
            for name in ["definitions", "runs"] {
                argo.refresh(name).await?;
                argo.sync(name).await?;
            }
            argo.no_diff("runs").await?;
            done.send_replace(number);
        }
        Ok::<u32, anyhow::Error>(commits)
    };
    let (commits, ()) = tokio::try_join!(syncs, people(&ground, Chance::new()?, seen))?;
    judged(&ground, &uid).await?;
    ground
        .until("what left Git is pruned", async || {
            let last = ground.exists(&ground.core(&format!("configmaps/note-{commits}"))).await?;
            Ok((last && (commits == 0 || !ground.exists(&ground.core("configmaps/note-0")).await?)).then_some(()))
        })
        .await?;
    argo.no_diff("runs").await?;
    argo.no_diff("definitions").await?;
    println!("{SYNCS} syncs of two Applications, {commits} commits between them");
    argo.close().await?;
    ground.close().await
}
