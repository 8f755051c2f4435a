//! The operator and the gateway may die at any moment, and there may be too many of them: every attempt starts once.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use lockstep::api::workflow::Phase;
use lockstep::api::{StepRun, name};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::support::{APPROVER, HELD, PATIENCE, SYSTEM, Space, ask, component};

/// Held by tests that kill things.
pub static KILLING: Mutex<()> = Mutex::const_new(());

/// Steps of a run: a gate, a fan-out over three items, an end.
const STEPS: usize = 5;

/// They begin with `work`.
async fn agents(space: &Space, work: &str) -> Result<()> {
    let items = r#"{"items":[{"id":"a"},{"id":"b"},{"id":"c"}]}"#;
    let list = format!("{work}; echo '{items}' > $LOCKSTEP_OUT/list.json");
    space.agent("lister", &list, &json!({})).await?;
    space.agent("worker", work, &json!({})).await?;
    space.agent("last", "true", &json!({})).await
}

fn chain() -> Value {
    json!({"steps": [
        {"name": "list", "agentId": "lister", "produces": {"type": "list", "format": "json"}, "gate": {}},
        {"name": "each", "agentId": "worker",
            "forEach": {"in": "documents.list.items", "as": "item", "key": "item.id", "maxParallel": 2}},
        {"name": "end", "agentId": "last"},
    ]})
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Created,
    StepRunMade,
    JobMade,
    Claimed,
    AtTheGate,
    Decided,
    InTheFanOut,
}

const MOMENTS: [Moment; 7] = [
    Moment::Created,
    Moment::StepRunMade,
    Moment::JobMade,
    Moment::Claimed,
    Moment::AtTheGate,
    Moment::Decided,
    Moment::InTheFanOut,
];

#[tokio::test]
async fn state_survives_restart() -> Result<()> {
    let _lock = KILLING.lock().await;
    let space = Space::open("restart").await?;
    agents(&space, HELD).await?;
    for moment in MOMENTS {
        let run = format!("{moment:?}").to_lowercase();
        space.run(&run, &chain()).await?;
        Box::pin(survives(&space, &run, moment)).await.with_context(|| format!("killed at {moment:?}"))?;
    }
    space.close().await
}

/// The agents wait to be released, so that nothing passes before its moment has come.
async fn survives(space: &Space, run: &str, moment: Moment) -> Result<()> {
    let at = async |now: Moment| if now == moment { kill_both(space).await } else { Ok(()) };
    at(Moment::Created).await?;
    space.step(run, "list", "made", |_| true).await?;
    at(Moment::StepRunMade).await?;
    space.until("a Job", PATIENCE, Some(run), async || Ok(space.jobs(run).await?.pop())).await?;
    at(Moment::JobMade).await?;
    let list = space.claimed(run, "list").await?;
    at(Moment::Claimed).await?;
    space.release(&list).await?;
    space.gate(run, "list").await?;
    at(Moment::AtTheGate).await?;
    space.decide(run, "list", "accepted").await?;
    at(Moment::Decided).await?;
    space.release(&space.claimed(run, "each/a").await?).await?;
    space
        .until("one item done", PATIENCE, Some(run), async || {
            let status = space.status(run).await?;
            let done = status.steps.iter().filter_map(|s| s.counts).any(|c| c.done > 0 && c.done < c.total);
            Ok(done.then_some(()))
        })
        .await?;
    at(Moment::InTheFanOut).await?;
    for item in ["each/b", "each/c"] {
        space.release(&space.claimed(run, item).await?).await?;
    }
    space.phase(run, Phase::Completed).await?;
    space.assert_exactly_once(run, STEPS).await
}

async fn kill_both(space: &Space) -> Result<()> {
    for name in ["operator", "gateway"] {
        kill(space, name).await?;
    }
    Ok(())
}

/// SIGKILL, without a warning. The pod is then removed, so that another comes at once instead of after a back-off.
async fn kill(space: &Space, name: &str) -> Result<()> {
    let victim = space
        .until(&format!("the {name} runs"), PATIENCE, None, async || {
            let found = component(&space.admin, name).await?;
            Ok(found.into_iter().find(runs))
        })
        .await?;
    if std::env::var("CLUSTER").map_or(true, |c| c == "embedded") {
        let uid = victim.metadata.uid.as_deref().context("no UID")?;
        let pid = process(name, uid)?
            .with_context(|| format!("no process of the {name}'s pod {uid} on this machine: CLUSTER=current?"))?;
        let killed = Command::new("kill").args(["-9", &pid]).status()?;
        ensure!(killed.success(), "kill -9 {pid}: {killed}");
    }
    let pod = victim.metadata.name.as_deref().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}");
    let at_once = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    match ask(&space.admin, Method::DELETE, &path, Some(&at_once)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        answer => Ok(answer.map(|_| ())?),
    }
}

fn runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.is_some_and(|list| list.iter().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())))
}

/// The process of a pod's container: by its command line, and by the pod's UID in its control group.
fn process(name: &str, uid: &str) -> Result<Option<String>> {
    let wanted = format!("/lockstep\0{name}\0");
    let spellings = [uid.to_owned(), uid.replace('-', "_")];
    for entry in std::fs::read_dir("/proc").context("/proc")? {
        let path = entry?.path();
        let read = |file: &str| std::fs::read_to_string(Path::new(&path).join(file));
        // Processes end while we look.
        let (Ok(command), Ok(groups)) = (read("cmdline"), read("cgroup")) else {
            continue;
        };
        if command.starts_with(&wanted) && spellings.iter().any(|s| groups.contains(s)) {
            return Ok(path.file_name().map(|n| n.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// A second operator as a zombie or a wrong rollout would leave it: the same program, account and settings.
#[tokio::test]
async fn two_operators_are_harmless() -> Result<()> {
    let _lock = KILLING.lock().await;
    let space = Space::open("two").await?;
    agents(&space, "sleep 1").await?;
    let all = format!("/apis/apps/v1/namespaces/{SYSTEM}/deployments");
    let name = format!("{}-operator", space.namespace);
    let one = format!("{all}/{name}");
    let mut second = space.get(&format!("{all}/lockstep-operator")).await?;
    second["metadata"] = json!({"name": name});
    second["status"] = Value::Null;
    // Labels of its own, so that neither Deployment takes the other's pods.
    let labels = json!({"app": name});
    second["spec"]["selector"] = json!({"matchLabels": labels});
    second["spec"]["template"]["metadata"] = json!({"labels": labels});
    space.post(&all, &second).await?;
    let outcome = beside(&space, &one).await;
    ask(&space.admin, Method::DELETE, &one, None).await?;
    outcome?;
    space.close().await
}

/// Calls of every kind that writes, through two gateways that are replaced one after the other, twice, while they come.
#[tokio::test]
async fn a_rolling_restart_of_two_gateways_loses_nothing() -> Result<()> {
    let _lock = KILLING.lock().await;
    let space = Space::open("rolling").await?;
    let calls = "set -e; key=$(lockstep context /item/key)
        for n in 1 2 3 4 5 6; do
            lockstep progress $n; lockstep memory set $key-$n $n; lockstep usage --tokens-in 10 --model m; sleep 1
        done
        echo \"{\\\"key\\\": \\\"$key\\\"}\" > $LOCKSTEP_OUT/result.json";
    space.agent("caller", calls, &json!({})).await?;
    let keys: Vec<String> = (0..12).map(|n| format!("i{n}")).collect();
    let each = json!({"in": "parameters.keys", "as": "key", "key": "key", "maxParallel": 4});
    let steps = json!([{"name": "each", "agentId": "caller", "forEach": each}]);
    let scaled = |replicas: u8| format!("-n {SYSTEM} scale deployment/lockstep-gateway --replicas={replicas}");
    let settled = format!("-n {SYSTEM} rollout status deployment/lockstep-gateway --timeout=150s");
    space.kubectl(&scaled(2)).await?;
    let outcome = async {
        space.kubectl(&settled).await?;
        space.run("run", &json!({"session": "rolling", "parameters": {"keys": keys}, "steps": steps})).await?;
        let calls =
            |s: &StepRun| s.status.as_ref().is_some_and(|s| s.agent.as_ref().is_some_and(|a| a.progress.is_some()));
        space
            .until("calls come", PATIENCE, Some("run"), async || {
                Ok(space.step_runs("run").await?.iter().any(calls).then_some(()))
            })
            .await?;
        for _ in 0..2 {
            space.kubectl(&format!("-n {SYSTEM} rollout restart deployment/lockstep-gateway")).await?;
            space.kubectl(&settled).await?;
        }
        space.phase("run", Phase::Completed).await?;
        space.assert_exactly_once("run", keys.len()).await
    }
    .await;
    space.kubectl(&scaled(1)).await?;
    outcome?;
    let memory = space.get(&space.ours(&format!("memories/{}", name::memory("caller", "rolling")))).await?;
    for key in &keys {
        for n in 1..=6 {
            let value = &memory["spec"]["entries"][format!("{key}-{n}")]["value"];
            ensure!(value.as_str() == Some(&n.to_string()), "{key}-{n}: {value}");
        }
    }
    let used = space.status("run").await?.usage.map(|usage| usage.tokens_in);
    ensure!(used == Some(12 * 60), "{used:?}");
    space.close().await
}

async fn beside(space: &Space, deployment: &str) -> Result<()> {
    space
        .until("the second operator is ready", PATIENCE, None, async || {
            let found = space.get(deployment).await?;
            Ok((found["status"]["readyReplicas"] == 1).then_some(()))
        })
        .await?;
    let runs = ["one", "two", "three"];
    for run in runs {
        space.run(run, &chain()).await?;
    }
    for run in runs {
        let waiting = space.gate(run, "list").await?;
        let accepted = json!({"lockstep.dev/decision": "accepted"});
        space.annotate(APPROVER, &waiting, &accepted).await?;
    }
    for run in runs {
        space.phase(run, Phase::Completed).await?;
        space.assert_exactly_once(run, STEPS).await?;
        let gate = space.step_run(run, "list").await?;
        let gate = gate.and_then(|s| s.status).and_then(|s| s.gate);
        ensure!(gate.is_some_and(|g| g.decisions.len() == 1), "{run}: not one decision");
    }
    Ok(())
}
