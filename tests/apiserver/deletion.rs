//! How a run goes that has pinned its definition: its children with it, before it, or left behind.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use lockstep::api::Workflow;
use lockstep::api::definition::Definition;
use lockstep::cluster::apply::apply;
use lockstep::cluster::consistency::Consistency;
use lockstep::cluster::sinks::Sinks;
use lockstep::decide::{Effect, build};
use lockstep::definition::pinned;
use serde_json::{Value, json};

use crate::support::{Ask, Team, object, policies_whole, until, workflow};
use crate::working::Working;

/// Keeps what bears it, once it is deleted.
const HOLD: &str = "example.com/hold";
/// What Go and Rust spell in ways of their own.
const RULE: &str = "a > 1 && b < 2 \u{2028}";

/// A run of one agent, whose pod waits for a node; with the operator that made all of it.
struct Begun {
    team: Team,
    operator: Working,
    /// Path of the attempt's pod.
    pod: String,
}

impl Begun {
    async fn open(purpose: &str) -> Result<Self> {
        let team = Team::open(purpose).await?;
        let container = json!({"name": "agent", "image": "none", "command": ["run"]});
        let agent = object("Agent", "writer", &json!({"template": {"spec": {"containers": [container]}}}));
        team.admin.gets(&Ask::post(team.all("agents"), agent)).await?;
        let operator = work(&team);
        team.bob.gets(&Ask::post(team.all("workflows"), shop())).await?;
        let pod = pod(&team, None).await?;
        Ok(Self { team, operator, pod })
    }

    async fn close(self) -> Result<()> {
        self.operator.dies().await?;
        self.team.close().await
    }

    fn run(&self) -> String {
        self.team.one("workflows", "shop")
    }
}

fn work(team: &Team) -> Working {
    Working::start(team, &Arc::new(AtomicBool::new(false)), Sinks::default())
}

fn shop() -> Value {
    let steps = json!([{"name": "plan", "agentId": "writer", "parameters": {"rule": RULE}}]);
    workflow("shop", &json!({"templateRef": null, "steps": steps, "parameters": {"z": [1e21, 1.0], "a": RULE}}))
}

fn revisions(team: &Team) -> String {
    format!("/apis/apps/v1/namespaces/{}/controllerrevisions", team.namespace)
}

async fn items(team: &Team, path: &str) -> Result<Vec<Value>> {
    let list = team.admin.gets(&Ask::get(path)).await?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// The path of a pod of an attempt, another one than that.
async fn pod(team: &Team, other: Option<&str>) -> Result<String> {
    let pods = team.core("pods");
    until("the attempt has a pod", || async {
        let found = items(team, &pods).await?;
        let mut paths = found.iter().filter_map(|pod| Some(format!("{pods}/{}", pod["metadata"]["name"].as_str()?)));
        Ok(paths.find(|path| Some(path.as_str()) != other))
    })
    .await
}

async fn is_gone(team: &Team, path: &str) -> bool {
    team.admin.asks(&Ask::get(path)).await.is_err_and(|refusal| refusal.code == 404)
}

async fn gone(team: &Team, path: &str) -> Result<()> {
    until(&format!("{path} is gone"), || async { Ok(is_gone(team, path).await.then_some(())) }).await
}

/// Nothing of any run is there any more, but what the test itself put there.
async fn nothing_left(team: &Team) -> Result<()> {
    let ours = ["workflows", "stepruns", "memories"].map(|plural| team.all(plural));
    for path in ours.into_iter().chain([team.jobs(), team.core("pods"), revisions(team)]) {
        until(&format!("nothing is left of {path}"), || async {
            let left = items(team, &path).await?;
            Ok(left.iter().all(|object| object["metadata"]["name"] == "canary").then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// The garbage collector takes an owner away with a patch, and the data of a ControllerRevision may not change by a byte
/// then: a run whose definition is spelt in another way can never be deleted without its children.
#[tokio::test]
async fn a_run_can_be_deleted_without_what_it_pinned() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("orphan").await?;
    let run = team.admin.gets(&Ask::post(team.all("workflows"), workflow("shop", &json!({})))).await?;
    let run: Workflow = serde_json::from_value(run)?;
    let definition = awkward(&run)?;
    let revision = build::revision(&run, &definition);
    let path = format!("{}/{}", revisions(&team), revision.name_any());
    let effects = [Effect::CreateRevision(Box::new(revision))];
    apply(&team.operator.client(), &team.namespace, &effects, &Consistency::default()).await?;
    team.admin.gets(&Ask::orphan(team.one("workflows", "shop"))).await?;
    gone(&team, &team.one("workflows", "shop")).await?;
    let left = team.admin.gets(&Ask::get(path)).await?;
    ensure!(left["metadata"]["ownerReferences"].is_null(), "{left}");
    ensure!(pinned::read(left["data"].clone(), &pinned::digest(&definition)).is_ok(), "it is what was pinned: {left}");
    team.close().await
}

fn awkward(run: &Workflow) -> Result<Definition> {
    let parameters = json!({"z": "<b> & \u{2028}", "a": [1, -1, 1.0, 0.1, 1e16, 1e21, 1e-7, u64::MAX, i64::MIN],
        "m": {"y": null, "n": {}}, "when": RULE});
    Ok(Definition {
        workflow: "shop".into(),
        workflow_uid: run.uid().context("a UID")?,
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        ..Definition::default()
    })
}

/// As JSON the garbage collector cannot leave it behind.
#[tokio::test]
async fn what_an_older_version_pinned_does_not_keep_its_run() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("older").await?;
    let run = team.admin.gets(&Ask::post(team.all("workflows"), workflow("shop", &json!({})))).await?;
    let run: Workflow = serde_json::from_value(run)?;
    let definition = awkward(&run)?;
    let mut revision = serde_json::to_value(build::revision(&run, &definition))?;
    revision["data"] = serde_json::to_value(&definition)?;
    team.operator.gets(&Ask::post(revisions(&team), revision)).await?;
    team.admin.gets(&Ask::orphan(team.one("workflows", "shop"))).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(!is_gone(&team, &team.one("workflows", "shop")).await, "this API server would not need our care");
    let operator = work(&team);
    gone(&team, &team.one("workflows", "shop")).await?;
    nothing_left(&team).await?;
    operator.dies().await?;
    team.close().await
}

#[tokio::test]
async fn what_an_orphaned_run_leaves_is_ended_and_stays() -> Result<()> {
    let _whole = policies_whole().await;
    let begun = Begun::open("orphaned").await?;
    let team = &begun.team;
    let kept = team.admin.gets(&Ask::get(begun.run())).await?["status"]["definition"].clone();
    team.bob.gets(&Ask::orphan(begun.run())).await?;
    gone(team, &begun.run()).await?;
    gone(team, &begun.pod).await?;
    let steps = until("its StepRun is cancelled", || async {
        let mut found = items(team, &team.all("stepruns")).await?;
        found.retain(|step| step["metadata"]["name"] != "canary");
        Ok(found.iter().all(|step| step["status"]["phase"] == "Cancelled").then_some(found))
    })
    .await?;
    ensure!(steps.len() == 1 && steps[0]["metadata"]["ownerReferences"].is_null(), "{steps:?}");
    let name = kept["revisionName"].as_str().context("a name")?;
    let left = team.admin.gets(&Ask::get(format!("{}/{name}", revisions(team)))).await?;
    ensure!(left["metadata"]["ownerReferences"].is_null(), "{left}");
    let digest = kept["digest"].as_str().context("a digest")?;
    ensure!(pinned::read(left["data"].clone(), digest).is_ok(), "{left}");
    begun.close().await
}

/// Whoever deletes in the foreground, as Argo CD does, sees the run until its last pod is gone.
#[tokio::test]
async fn a_run_that_is_deleted_in_the_foreground_goes_after_its_last_pod() -> Result<()> {
    let _whole = policies_whole().await;
    let begun = Begun::open("foreground").await?;
    let team = &begun.team;
    let hold = json!([{"op": "add", "path": "/metadata/finalizers/-", "value": HOLD}]);
    team.admin.gets(&Ask::edit(&begun.pod, hold)).await?;
    team.bob.gets(&Ask::foreground(begun.run())).await?;
    until("its pod is told to go", || async {
        let pod = team.admin.gets(&Ask::get(&begun.pod)).await?;
        Ok((!pod["metadata"]["deletionTimestamp"].is_null()).then_some(()))
    })
    .await?;
    // Long enough for the garbage collector to come to everything.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for path in [begun.run(), team.all("stepruns"), team.jobs()] {
        let there =
            team.admin.gets(&Ask::get(&path)).await.with_context(|| format!("{path} is gone before the pod"))?;
        let all = there["items"].as_array().cloned().unwrap_or_else(|| vec![there.clone()]);
        let goes = |o: &&Value| !o["metadata"]["deletionTimestamp"].is_null();
        ensure!(all.iter().filter(goes).count() == 1, "{path} does not wait for the pod: {there}");
    }
    until("the pod may go", || async {
        let pod = team.admin.gets(&Ask::get(&begun.pod)).await?;
        let all = pod["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let at = all.iter().position(|finalizer| finalizer == HOLD).context("nothing holds it")?;
        let path = format!("/metadata/finalizers/{at}");
        let free = json!([{"op": "test", "path": path, "value": HOLD}, {"op": "remove", "path": path}]);
        Ok(team.admin.asks(&Ask::edit(&begun.pod, free)).await.ok())
    })
    .await?;
    nothing_left(team).await?;
    begun.close().await
}

#[tokio::test]
async fn a_run_that_is_deleted_takes_all_of_it_with_it() -> Result<()> {
    let _whole = policies_whole().await;
    let begun = Begun::open("background").await?;
    begun.team.bob.gets(&Ask::delete(begun.run())).await?;
    nothing_left(&begun.team).await?;
    begun.close().await
}

/// As `kubectl replace --force`: the same name at once, while what the first run made still goes.
#[tokio::test]
async fn a_run_that_is_replaced_begins_anew() -> Result<()> {
    let _whole = policies_whole().await;
    let begun = Begun::open("replaced").await?;
    let team = &begun.team;
    let first = team.admin.gets(&Ask::get(begun.run())).await?;
    team.bob.gets(&Ask::delete(begun.run())).await?;
    until("the name is free", || async { Ok(team.bob.asks(&Ask::post(team.all("workflows"), shop())).await.ok()) })
        .await?;
    gone(team, &begun.pod).await?;
    pod(team, Some(&begun.pod)).await?;
    let second = until("the definition is pinned", || async {
        let run = team.admin.gets(&Ask::get(begun.run())).await?;
        Ok((!run["status"]["definition"].is_null()).then_some(run))
    })
    .await?;
    ensure!(first["metadata"]["uid"] != second["metadata"]["uid"], "it is the first run");
    for path in [revisions(team), team.all("stepruns")] {
        until(&format!("{path} are the second run's only"), || async {
            let mut all = items(team, &path).await?;
            all.retain(|object| object["metadata"]["name"] != "canary");
            let own = |o: &Value| o["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"];
            Ok((all.len() == 1 && all.iter().all(own)).then_some(()))
        })
        .await?;
    }
    begun.close().await
}

#[tokio::test]
async fn a_namespace_ends_with_its_runs() -> Result<()> {
    let _whole = policies_whole().await;
    let begun = Begun::open("ending").await?;
    let path = format!("/api/v1/namespaces/{}", begun.team.namespace);
    begun.team.admin.gets(&Ask::delete(&path)).await?;
    gone(&begun.team, &path).await?;
    begun.operator.dies().await
}
