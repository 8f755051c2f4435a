//! The chart as each tool applies it over what is installed, its kinds with it and apart, and that it does not drift while runs go on.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::argo::Argo;
use super::flux::Flux;
use super::flux_stories::MERGE;
use super::ground::Ground;
use super::plane::SYSTEM;
use super::team::{self, run};

/// After that much time nothing may have changed.
const LATER: SignedDuration = SignedDuration::from_secs(60);
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn output(command: &mut Command) -> Result<String> {
    let done = command.current_dir(ROOT).output().with_context(|| format!("{command:?}"))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

/// The values with which the chart is installed.
fn values() -> Result<Value> {
    let text =
        output(Command::new("helm").args(["get", "values", "lockstep", "--namespace", SYSTEM, "--output", "json"]))?;
    let found: Value = serde_json::from_str(&text)?;
    Ok(if found.is_null() { json!({}) } else { found })
}

/// What docs/gitops.md has people render, with this value.
fn rendered(value: &str) -> Result<String> {
    output(Command::new("hack/gitops/render").args([SYSTEM, "--set", value]))
}

/// The kinds of Lockstep that the cluster has, and none of them on its way out.
async fn kinds(ground: &Ground) -> Result<usize> {
    let all = ground.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").await?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    let ours: Vec<_> = all.iter().filter(|kind| kind["spec"]["group"] == "lockstep.dev").collect();
    ensure!(ours.iter().all(|kind| kind["metadata"]["deletionTimestamp"].is_null()), "kinds are being deleted");
    Ok(ours.len())
}

/// How many objects a text holds, and how many of them are kinds that a tool is told to keep.
fn counted(text: &str) -> Result<(usize, usize)> {
    let objects = text.lines().filter(|line| line.starts_with("kind: ")).count();
    let kept = text
        .split("\n---\n")
        .filter(|part| part.contains("\nkind: CustomResourceDefinition"))
        .map(|part| {
            let tools = ["kustomize.toolkit.fluxcd.io/prune: disabled", "argocd.argoproj.io/sync-options: Prune=false"];
            ensure!(
                tools.iter().all(|tool| part.contains(tool)),
                "a kind may be pruned: {}",
                &part[..part.len().min(400)]
            );
            Ok(())
        })
        .collect::<Result<Vec<()>>>()?;
    Ok((objects, kept.len()))
}

/// Every apply after the first that held this many objects changed nothing, the last of them a minute or more after it.
fn quiet(applies: &[(Timestamp, BTreeMap<String, String>)], objects: usize) -> Result<bool> {
    let mut same = applies.iter().skip_while(|(_, became)| became.len() != objects);
    let Some((first, _)) = same.next() else { return Ok(false) };
    let mut last = first;
    for (at, became) in same {
        let changed: Vec<_> = became.iter().filter(|(_, action)| *action != "unchanged").collect();
        ensure!(changed.is_empty() && became.len() == objects, "at {at}, of {} objects: {changed:?}", became.len());
        last = at;
    }
    Ok(last.duration_since(*first) >= LATER)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flux_applies_the_chart() -> Result<()> {
    let ground = Ground::open("flux-chart").await?;
    let flux = Flux::open(&ground).await?;
    ground.installer(&flux.controller()).await?;
    let (whole, apart) = (rendered("crds.install=true")?, rendered("crds.install=false")?);
    let (objects, kept) = counted(&whole)?;
    ensure!(
        objects > 40 && kept == kinds(&ground).await? && counted(&apart)? == (objects - kept, 0),
        "{objects}, {kept}"
    );
    let definitions = team::definitions(&ground);
    let mut files: Vec<_> = definitions.iter().map(|(file, text)| (file.as_str(), Some(text.as_str()))).collect();
    let first = run("release-1", "release", &[MERGE]);
    files.extend([("runs/run.yaml", Some(first.as_str())), ("chart/lockstep.yaml", Some(whole.as_str()))]);
    flux.commit("the chart, and a run", &files).await?;
    // What is missing is made: here a role that somebody deleted.
    let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/lockstep-runner";
    ground.delete(role).await?;
    // It stays when this test is over. Deployments are ready where there are nodes.
    let platform = |more: Value| {
        let mut all = json!({"serviceAccountName": "installer", "targetNamespace": null, "deletionPolicy": "Orphan",
            "interval": "20s", "timeout": "2m", "wait": ground.has_pods()});
        if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
            all.extend(more);
        }
        all
    };
    flux.kustomize("chart", platform(json!({}))).await?;
    ground.until("Flux has applied the chart", async || Ok((flux.applies("chart")? > 0).then_some(()))).await?;
    ensure!(ground.exists(role).await?, "what was deleted did not come back");
    // What kustomize makes of it is what Helm renders, to the letter: the operator compares the policies so.
    println!("{}", output(&mut Command::new("hack/gitops/drift"))?.trim());

    // A run goes on meanwhile, with its gates held by the policies that Flux applied.
    flux.kustomize("definitions", json!({"wait": true})).await?;
    flux.kustomize("runs", json!({"dependsOn": [{"name": "definitions"}]})).await?;
    ground.approve("release-1", "draft").await?;
    ground.gate("release-1", "review").await?;
    ground
        .until("the controller has applied the chart again, a minute later", async || {
            Ok(quiet(&flux.applied_so_far("chart")?, objects)?.then_some(()))
        })
        .await?;
    ground.approve("release-1", "review").await?;
    ground.phase("release-1", "Completed").await?;
    flux.sync("chart").await?;
    let applies = flux.applied_so_far("chart")?;
    ensure!(quiet(&applies, objects)?, "{applies:?}");
    println!("{objects} objects, applied {} times: unchanged but for the first", applies.len());

    // The kinds leave what Flux applies, and stay, with all runs; then they have a path of their own.
    flux.commit("the kinds apart", &[("chart/lockstep.yaml", Some(apart.as_str()))]).await?;
    flux.sync("chart").await?;
    ensure!(kinds(&ground).await? == kept && ground.run("release-1").await?["status"]["phase"] == "Completed");
    flux.repository.copy(&Path::new(ROOT).join("crds"), "crds")?;
    flux.commit("the kinds", &[]).await?;
    flux.kustomize("crds", platform(json!({"prune": false, "wait": true}))).await?;
    for _ in 0..3 {
        let (crds, chart) = (flux.sync("crds").await?, flux.sync("chart").await?);
        ensure!(crds["status"] == "True", "{crds}");
        ensure!(!ground.has_pods() || chart["status"] == "True", "{chart}");
    }
    for (name, number) in [("crds", kept), ("chart", objects - kept)] {
        let applies = flux.applied_so_far(name)?;
        let last = applies.last().map(|(_, became)| became).context("not applied")?;
        ensure!(last.len() == number && last.values().all(|action| action == "unchanged"), "{name}: {last:?}");
    }
    ensure!(kinds(&ground).await? == kept);
    flux.close().await?;
    ground.close().await
}

/// The objects of a text by kind and name, without the marks by which Argo CD knows its own.
fn objects(text: &str) -> Result<BTreeMap<String, Value>> {
    let text = format!("\n{text}");
    let parts = text.split("\n---\n").filter(|part| part.lines().any(|line| line.starts_with("kind: ")));
    parts
        .map(|part| {
            let mut object: Value = serde_saphyr::from_str(part)?;
            let metadata = object["metadata"].as_object_mut().context("no metadata")?;
            if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
                annotations.remove("argocd.argoproj.io/tracking-id");
                annotations.remove("argocd.argoproj.io/installation-id");
            }
            if metadata.get("annotations").is_some_and(|all| *all == json!({})) {
                metadata.remove("annotations");
            }
            Ok((format!("{} {}", object["kind"], object["metadata"]["name"]), object))
        })
        .collect()
}

/// Nothing may have changed a minute after the sync.
async fn later(ground: &Ground, argo: &Argo<'_>, name: &str) -> Result<()> {
    let at = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let looks = std::cell::Cell::new(0);
    ground
        .until(&format!("Argo CD compares {name} again, a minute later"), async || {
            looks.set(looks.get() + 1);
            if looks.get() % 20 == 0 {
                argo.refresh(name).await?;
            }
            let status = argo.get(name).await?["status"].clone();
            ensure!(status["sync"]["status"] == "Synced", "{}", status["sync"]);
            let (synced, compared) = (at(&status["operationState"]["finishedAt"]), at(&status["reconciledAt"]));
            let (synced, compared) = synced.zip(compared).context("neither synced nor compared")?;
            Ok((compared.duration_since(synced) >= LATER).then_some(()))
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_applies_the_chart() -> Result<()> {
    let ground = Ground::open("argocd-chart").await?;
    let argo = Argo::open(&ground).await?;
    ground.installer(&argo.controller()).await?;
    // The platform's, beside the team's: what goes to the namespace of Lockstep an account with all rights applies.
    let account = format!("{}:installer", ground.namespace);
    ground
        .give(&json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "AppProject",
            "metadata": {"name": "platform", "namespace": argo.namespace}, "spec": {"sourceRepos": [argo.url()],
                "destinations": [{"server": "*", "namespace": SYSTEM}], "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
                "destinationServiceAccounts": [{"server": "*", "namespace": SYSTEM, "defaultServiceAccount": account}]}}))
        .await?;
    argo.repository.copy(&Path::new(ROOT).join("charts/lockstep"), "chart")?;
    argo.repository.copy(&Path::new(ROOT).join("crds"), "crds")?;
    let definitions = team::definitions(&ground);
    let mut files: Vec<_> = definitions.iter().map(|(file, text)| (file.as_str(), Some(text.as_str()))).collect();
    let first = run("release-1", "release", &[]);
    files.push(("runs/run.yaml", Some(first.as_str())));
    let commit = argo.repository.commit("the chart, and a run", &files)?;
    argo.application("definitions", json!({})).await?;
    argo.synced("definitions", &commit).await?;
    argo.application("runs", json!({})).await?;
    // By hand, so that it can be seen what it would change; what is there is Helm's.
    let of = |path: &str, helm: Value| {
        let mut source = json!({"repoURL": argo.url(), "targetRevision": "main", "path": path});
        if !helm.is_null() {
            source["helm"] = helm;
        }
        json!({"project": "platform", "source": source, "syncPolicy": {"syncOptions": ["ServerSideApply=true"]},
            "destination": {"server": "https://kubernetes.default.svc", "namespace": SYSTEM}})
    };
    let helm = |kinds: bool| {
        let install = json!([{"name": "crds.install", "value": kinds.to_string()}]);
        Ok::<Value, anyhow::Error>(json!({"releaseName": "lockstep", "valuesObject": values()?, "parameters": install}))
    };
    let there = kinds(&ground).await?;
    let brought = async |name: &str| {
        argo.refresh(name).await?;
        ground
            .until(&format!("Argo CD has rendered {name}"), async || {
                Ok((argo.get(name).await?["status"]["sync"]["revision"] == commit.as_str()).then_some(()))
            })
            .await?;
        argo.sync(name).await?;
        ground
            .until(&format!("{name} is synced"), async || {
                Ok((argo.get(name).await?["status"]["sync"]["status"] == "Synced").then_some(()))
            })
            .await?;
        argo.no_diff(name).await
    };
    argo.application("chart", of("chart", helm(true)?)).await?;
    brought("chart").await?;
    // What Argo CD renders is what Helm has installed.
    let (code, theirs) = argo.cli(&["app", "manifests", "chart", "--source", "git"]).await?;
    ensure!(code == 0, "{theirs}");
    let stored = output(Command::new("helm").args(["get", "manifest", "lockstep", "--namespace", SYSTEM]))?;
    let (theirs, stored) = (objects(&theirs)?, objects(&stored)?);
    ensure!(theirs.keys().eq(stored.keys()), "{:?} and {:?}", theirs.keys(), stored.keys());
    for (name, object) in &stored {
        ensure!(theirs[name] == *object, "{name}: Argo CD renders {:#}\nand Helm {object:#}", theirs[name]);
    }
    // Policies among it: the gate opens, and the decision counts.
    ground.approve("release-1", "draft").await?;
    argo.no_diff("chart").await?;
    later(&ground, &argo, "chart").await?;
    ground.approve("release-1", "review").await?;
    ground.phase("release-1", "Completed").await?;
    let (code, text) = argo.cli(&["app", "diff", "chart", "--exit-code", "--hard-refresh"]).await?;
    ensure!(code == 0, "after a run: {text}");
    let number = argo.get("chart").await?["status"]["resources"].as_array().map_or(0, Vec::len);
    ensure!(number > 40, "{number} objects");

    // The kinds as an Application of their own.
    argo.application("crds", of("crds", Value::Null)).await?;
    brought("crds").await?;
    argo.change("chart", &json!({"spec": {"source": {"helm": helm(false)?}}})).await?;
    brought("chart").await?;
    argo.no_diff("crds").await?;
    for (name, expected) in [("crds", there), ("chart", number - there)] {
        let found = argo.get(name).await?["status"]["resources"].as_array().map_or(0, Vec::len);
        ensure!(found == expected, "{name}: {found} objects, expected {expected}");
    }
    ensure!(kinds(&ground).await? == there && ground.run("release-1").await?["status"]["phase"] == "Completed");
    println!("{number} objects, {there} of them kinds");
    argo.close().await?;
    ground.close().await
}
