//! The repository of examples/gitops/team by each tool, as its files say: definitions, a Document and a Trigger, and a run that waits
//! for people. The nights of the Trigger are minutes here.

use std::path::Path;

use anyhow::{Result, ensure};
use lockstep::api::name::{CREATED_BY, LABEL_TRIGGER};
use serde_json::{Value, json};

use super::argo::Argo;
use super::flux::Flux;
use super::ground::Ground;
use super::plane::PERSON;
use super::rights::{documents, moved, user};
use super::team;

const EXAMPLE: &str = "examples/gitops/team";
const NIGHTLY: &str = "definitions/nightly.yaml";
const STYLE: &str = "definitions/style.yaml";
const RELEASE: &str = "release-1-4-0";
/// Of a template that the tool's account may not run.
const FORBIDDEN: &str = "\
apiVersion: lockstep.dev/v1alpha1
kind: Trigger
metadata: {name: forbidden}
spec:
  schedule: {cron: '@yearly'}
  run: {templateRef: {name: somebody-elses}}
";

/// A file of the example, for this place.
fn text(ground: &Ground, file: &str) -> Result<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLE).join(file))?;
    let text = text.replace("cron: 30 2 * * *", "cron: '* * * * *'");
    // Without nodes no scheduler is told of the pods.
    let there = "    spec:\n      securityContext:";
    Ok(if ground.has_pods() {
        text
    } else {
        text.replace(there, "    spec:\n      schedulerName: nobody\n      securityContext:")
    })
}

/// The files of the example, and these beside them.
fn files(ground: &Ground, more: &[&str]) -> Result<Vec<(String, Option<String>)>> {
    let all = ["definitions/agent.yaml", STYLE, "definitions/template.yaml", NIGHTLY, "runs/release-1-4-0.yaml"];
    all.iter().chain(more).map(|file| Ok(((*file).to_owned(), Some(text(ground, file)?)))).collect()
}

/// The example's people are a group; here one of them.
async fn people(ground: &Ground) -> Result<()> {
    let role = json!({"kind": "ClusterRole", "name": "lockstep-approver"});
    ground.bound(&ground.namespace, PERSON, &user(PERSON), &role).await
}

/// The first run of the Trigger, when it is over: Lockstep made it, and it bears no mark of the tool.
async fn night(ground: &Ground) -> Result<Value> {
    let found = ground
        .until("a night's run is there", async || {
            let all = ground.get(&ground.ours("workflows")).await?;
            let all = all["items"].as_array().cloned().unwrap_or_default();
            Ok(all.into_iter().find(|run| run["metadata"]["labels"][LABEL_TRIGGER] == "nightly-notes"))
        })
        .await?;
    let name = found["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    ensure!(
        found["metadata"]["annotations"][CREATED_BY] == "system:serviceaccount:lockstep-system:lockstep-operator",
        "{found:#}"
    );
    let marks = found["metadata"].to_string();
    ensure!(!marks.contains("fluxcd.io/name") && !marks.contains("tracking-id"), "{marks}");
    ground.phase(&name, "Completed").await
}

/// Nothing that Lockstep made was taken away, and nothing was made twice.
fn nothing_lost(ground: &Ground) -> Result<()> {
    let made_by_lockstep = ["Workflow", "StepRun", "Job", "Pod", "ControllerRevision", "Memory"];
    let gone: Vec<_> = ground.record.gone().into_iter().filter(|(kind, _)| made_by_lockstep.contains(kind)).collect();
    ensure!(gone.is_empty(), "gone: {gone:?}");
    for kind in made_by_lockstep {
        let made = ground.record.made(kind);
        ensure!(!made.is_empty() && made.values().all(|uids| *uids == 1), "{kind}: {made:?}");
    }
    Ok(())
}

/// A person changes the Trigger and deletes the Document.
async fn meddle(ground: &Ground) -> Result<()> {
    ground
        .merge(&ground.ours("triggers/nightly-notes"), &json!({"spec": {"schedule": {"timeZone": "Asia/Tokyo"}}}))
        .await?;
    ground.delete(&ground.ours("documents/style-1")).await
}

async fn healed(ground: &Ground) -> Result<Option<()>> {
    let trigger = ground.get(&ground.ours("triggers/nightly-notes")).await?;
    let document = ground.exists(&ground.ours("documents/style-1")).await?;
    Ok((document && trigger["spec"]["schedule"]["timeZone"] == "Europe/Berlin").then_some(()))
}

/// After the Trigger left Git: it is gone, and its runs are there with all that they made.
async fn history(ground: &Ground, night: &Value) -> Result<()> {
    let name = night["metadata"]["name"].as_str().unwrap_or_default();
    ensure!(!ground.exists(&ground.ours("triggers/nightly-notes")).await?);
    let run = ground.run(name).await?;
    ensure!(run["metadata"]["uid"] == night["metadata"]["uid"] && run["status"]["phase"] == "Completed", "{run:#}");
    ensure!(ground.step_run(name, "notes").await?.is_some(), "its history went");
    nothing_lost(ground)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flux_runs_what_the_example_holds() -> Result<()> {
    let ground = Ground::open("flux-example").await?;
    let flux = Flux::open(&ground).await?;
    people(&ground).await?;
    let files = files(&ground, &["definitions/kustomization.yaml", "runs/kustomization.yaml"])?;
    let all: Vec<_> = files.iter().map(|(file, text)| (file.as_str(), text.as_deref())).collect();
    let revision = flux.commit("the example", &all).await?;
    for mut kustomization in documents("examples/gitops/team/flux.yaml")? {
        moved(&mut kustomization, &[("team", &ground.namespace)]);
        // The lists of the files name the namespace `team`.
        kustomization["spec"]["targetNamespace"] = json!(ground.namespace);
        ground.give(&kustomization).await?;
    }
    flux.applied("definitions", &revision).await?;
    ground.gate(RELEASE, "notes").await?;
    let night = night(&ground).await?;
    let before = ground.get(&ground.ours("triggers/nightly-notes")).await?;
    for _ in 0..3 {
        ensure!(flux.sync("definitions").await?["status"] == "True");
    }
    let after = ground.get(&ground.ours("triggers/nightly-notes")).await?;
    ensure!(after["metadata"]["generation"] == before["metadata"]["generation"], "a sync changed it: {after:#}");
    ground.approve(RELEASE, "notes").await?;
    ground.phase(RELEASE, "Completed").await?;
    flux.applied("runs", &revision).await?;
    nothing_lost(&ground)?;

    meddle(&ground).await?;
    flux.sync("definitions").await?;
    ensure!(healed(&ground).await?.is_some(), "the Trigger was not healed, or the Document is not back");

    // A Document never changes; under another name it is another one, and the old one goes.
    let style = text(&ground, STYLE)?;
    let other = style.replace("in the words of those who use it", "in a few words");
    flux.commit("a changed document", &[(STYLE, Some(&other))]).await?;
    let message = flux.fails("definitions", "ReconciliationFailed").await?;
    ensure!(message.contains("immutable"), "{message}");
    let named = other.replace("name: style-1", "name: style-2");
    let revision = flux.commit("another document", &[(STYLE, Some(&named))]).await?;
    // The condition is False until then.
    ground
        .until("the sync is well again", async || {
            let found = flux.get("definitions").await?;
            Ok((found["status"]["lastAppliedRevision"] == revision.as_str()).then_some(()))
        })
        .await?;
    ensure!(
        !ground.exists(&ground.ours("documents/style-1")).await?
            && ground.exists(&ground.ours("documents/style-2")).await?
    );

    // What the account may not run, no Trigger of its starts.
    let list = text(&ground, "definitions/kustomization.yaml")?;
    let with = list.replace("nightly.yaml", "nightly.yaml, forbidden.yaml");
    flux.commit(
        "a forbidden Trigger",
        &[("definitions/forbidden.yaml", Some(FORBIDDEN)), ("definitions/kustomization.yaml", Some(&with))],
    )
    .await?;
    let message = flux.fails("definitions", "ReconciliationFailed").await?;
    ensure!(
        message.contains("lacks the permission run") && message.contains(&format!("{}:gitops", ground.namespace)),
        "{message}"
    );

    // Without the Trigger its runs are there.
    let without = list.replace(", nightly.yaml", "");
    let revision = flux
        .commit(
            "no more nights",
            &[
                ("definitions/forbidden.yaml", None),
                (NIGHTLY, None),
                ("definitions/kustomization.yaml", Some(&without)),
            ],
        )
        .await?;
    ground
        .until("the sync is well again", async || {
            let found = flux.get("definitions").await?;
            Ok((found["status"]["lastAppliedRevision"] == revision.as_str()).then_some(()))
        })
        .await?;
    history(&ground, &night).await?;
    flux.close().await?;
    ground.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_runs_what_the_example_holds() -> Result<()> {
    let ground = Ground::open("argocd-example").await?;
    let argo = Argo::open(&ground).await?;
    people(&ground).await?;
    // Without the lists for kustomize: Argo CD would call that program.
    let files = files(&ground, &[])?;
    let all: Vec<_> = files.iter().map(|(file, text)| (file.as_str(), text.as_deref())).collect();
    let commit = argo.repository.commit("the example", &all)?;
    argo.application("definitions", json!({})).await?;
    argo.synced("definitions", &commit).await?;
    argo.health("definitions", "Healthy").await?;
    argo.application("runs", json!({})).await?;
    ground.gate(RELEASE, "notes").await?;
    argo.health("runs", "Suspended").await?;
    let night = night(&ground).await?;
    for name in ["definitions", "runs", "definitions"] {
        argo.sync(name).await?;
        argo.no_diff(name).await?;
    }
    ground.approve(RELEASE, "notes").await?;
    ground.phase(RELEASE, "Completed").await?;
    argo.health("runs", "Healthy").await?;
    nothing_lost(&ground)?;
    // The schedule is stopped and goes on by a click; what Git does not say stays.
    for action in ["suspend", "resume"] {
        let answer = argo.action("definitions", action, "Trigger", "nightly-notes").await?;
        ensure!(answer == json!({}), "{action}: {answer}");
        argo.sync("definitions").await?;
        let trigger = ground.get(&ground.ours("triggers/nightly-notes")).await?;
        ensure!(trigger["spec"]["schedule"]["suspend"] == (action == "suspend"), "after {action}: {trigger:#}");
        argo.no_diff("definitions").await?;
    }

    meddle(&ground).await?;
    ground.until("Argo CD heals", async || healed(&ground).await).await?;

    let style = text(&ground, STYLE)?;
    let other = style.replace("in the words of those who use it", "in a few words");
    argo.repository.commit("a changed document", &[(STYLE, Some(&other))])?;
    argo.refused("definitions", "immutable").await?;
    let named = other.replace("name: style-1", "name: style-2");
    let commit = argo.repository.commit("another document", &[(STYLE, Some(&named))])?;
    argo.synced("definitions", &commit).await?;
    ensure!(
        !ground.exists(&ground.ours("documents/style-1")).await?
            && ground.exists(&ground.ours("documents/style-2")).await?
    );

    argo.repository.commit("a forbidden Trigger", &[("definitions/forbidden.yaml", Some(FORBIDDEN))])?;
    argo.refused("definitions", "lacks the permission run").await?;
    let commit = argo.repository.commit("no more nights", &[("definitions/forbidden.yaml", None), (NIGHTLY, None)])?;
    argo.synced("definitions", &commit).await?;
    history(&ground, &night).await?;
    argo.close().await?;
    ground.close().await
}

/// A chart of one run, whose name a generator completes.
const CHART: &str = "apiVersion: v2\nname: review\nversion: 1.0.0\n";
const RUN: &str = "\
apiVersion: lockstep.dev/v1alpha1
kind: Workflow
metadata:
  name: review-{{ .Values.number }}
spec:
  templateRef: {name: short}
";

/// An ApplicationSet: a run for each element, such as a pull request, and none twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argocd_makes_a_run_of_each_element() -> Result<()> {
    let ground = Ground::open("argocd-set").await?;
    let argo = Argo::open(&ground).await?;
    let definitions = team::definitions(&ground);
    let mut files: Vec<_> = definitions.iter().map(|(file, text)| (file.as_str(), Some(text.as_str()))).collect();
    files.extend([("review/Chart.yaml", Some(CHART)), ("review/templates/run.yaml", Some(RUN))]);
    let commit = argo.repository.commit("a chart of a run", &files)?;
    argo.application("definitions", json!({})).await?;
    argo.synced("definitions", &commit).await?;
    let generators = |numbers: [u8; 2]| {
        let elements = numbers.map(|number| json!({"number": number.to_string()}));
        json!([{"list": {"elements": elements}}])
    };
    let parameter = json!({"name": "number", "value": "{{ .number }}", "forceString": true});
    let source =
        json!({"repoURL": argo.url(), "targetRevision": "main", "path": "review", "helm": {"parameters": [parameter]}});
    let spec = json!({"goTemplate": true, "goTemplateOptions": ["missingkey=error"], "generators": generators([7, 8]),
        "syncPolicy": {"preserveResourcesOnDeletion": true},
        "template": {"metadata": {"name": "review-{{ .number }}"}, "spec": {"project": "team", "source": source,
            "destination": {"server": "https://kubernetes.default.svc", "namespace": ground.namespace},
            "syncPolicy": {"automated": {"prune": true, "selfHeal": true}}}}});
    argo.set("reviews", &spec).await?;
    let completed = async |name: &str| {
        ground.until(&format!("{name} is there"), async || Ok(ground.run(name).await.ok())).await?;
        ground.phase(name, "Completed").await
    };
    completed("review-7").await?;
    completed("review-8").await?;
    argo.health("review-8", "Healthy").await?;
    // One element goes, another comes; what ran is kept, and runs no second time.
    argo.change_set("reviews", &json!({"spec": {"generators": generators([8, 9])}})).await?;
    completed("review-9").await?;
    ground
        .until("the Application of the element that went is gone", async || {
            Ok((!argo.has("review-7").await?).then_some(()))
        })
        .await?;
    ensure!(ground.step_run("review-7", "only").await?.is_some(), "its history went");
    let made = ground.record.made("Workflow");
    ensure!(made.len() == 3 && made.values().all(|uids| *uids == 1) && ground.record.gone().is_empty(), "{made:?}");
    argo.close().await?;
    ground.close().await
}
