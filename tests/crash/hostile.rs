//! Runs that would hold an operator up for good, beside honest ones: each costs itself only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use http::Method;
use serde_json::{Value, json};

use super::operator::Operator;
use super::plane::{Plane, ask, until};
use super::workloads::run;

/// With four of these in `gate.when` an operator that evaluates them itself is out of service.
const HOSTILE: &str = "lists.range(1000000).exists(a, lists.range(1000000).exists(b, a < 0 && b < 0))";
/// Of the same shape, and worth nothing.
const INNOCENT: &str = "lists.range(10).exists(a, a < 0)";
const NAMESPACES: usize = 10;
const RUNS: usize = 5;
/// Steps of the honest chain: approvals that none needs, so that no pod is needed either.
const STEPS: usize = 8;

struct Place {
    plane: Plane,
    operator: Operator,
    listens: SocketAddr,
    prefix: String,
}

impl Place {
    async fn open() -> Result<Self> {
        let plane = Plane::find().await?;
        let prefix = format!("hostile-{}-", std::process::id());
        let listens = crate::port::free()?;
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
        let operator = Operator::new(env!("CARGO_BIN_EXE_lockstep").as_ref(), &folder, &plane.kubeconfig)?;
        operator.start_listening(listens)?;
        let here = Self { plane, operator, listens, prefix };
        until("the operator is ready", || async { here.is_ready() }).await?;
        let spaces = (0..NAMESPACES).map(|n| here.space(n)).chain([here.honest()]);
        let plane = &here.plane;
        try_join_all(spaces.map(|space| async move { plane.namespace(&space).await })).await?;
        Ok(here)
    }

    fn space(&self, n: usize) -> String {
        format!("{}{n}", self.prefix)
    }

    fn honest(&self) -> String {
        format!("{}honest", self.prefix)
    }

    /// What the kubelet would ask.
    fn is_ready(&self) -> bool {
        let asked = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.listens, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        asked().is_ok_and(|answer| answer.contains(" 200 "))
    }

    async fn make(&self, namespace: &str, name: &str, spec: &Value) -> Result<()> {
        let path = format!("/apis/lockstep.dev/v1alpha1/namespaces/{namespace}/workflows");
        ask(&self.plane.admin, Method::POST, &path, Some(&run(name, spec))).await?;
        Ok(())
    }

    async fn list(&self, namespace: &str, plural: &str) -> Vec<Value> {
        let path = format!("/apis/lockstep.dev/v1alpha1/namespaces/{namespace}/{plural}");
        let found = ask(&self.plane.admin, Method::GET, &path, None).await.unwrap_or_default();
        found["items"].as_array().cloned().unwrap_or_default()
    }

    /// From its creation to its end.
    async fn honest_chain(&self, name: &str) -> Result<Duration> {
        let step = |n: usize| {
            json!({"name": format!("s{n}"), "gate": {"when": "parameters.n > 100"},
            "parameters": {"n": format!("${{ parameters.n + {n} }}")}})
        };
        let spec = json!({"parameters": {"n": 1}, "steps": (0..STEPS).map(step).collect::<Vec<_>>()});
        let (began, space) = (Instant::now(), self.honest());
        self.make(&space, name, &spec).await?;
        let path = format!("/apis/lockstep.dev/v1alpha1/namespaces/{space}/workflows/{name}");
        let completed = || async {
            let found = ask(&self.plane.admin, Method::GET, &path, None).await.unwrap_or_default();
            found["status"]["phase"] == "Completed"
        };
        until("an honest chain is through", completed).await?;
        Ok(began.elapsed())
    }

    /// Runs of one approval each, all at once, some in each namespace.
    async fn make_all(&self, name: &str, when: &str) -> Result<()> {
        let spec = json!({"steps": [{"name": "approve", "gate": {"when": when}}]});
        let runs = (0..NAMESPACES * RUNS).map(|n| (self.space(n % NAMESPACES), format!("{name}-{n}")));
        let spec = &spec;
        try_join_all(runs.map(|(space, name)| async move { self.make(&space, &name, spec).await })).await?;
        Ok(())
    }

    /// How many runs of that name are through.
    async fn completed(&self, name: &str) -> usize {
        let mut completed = 0;
        for n in 0..NAMESPACES {
            let all = self.list(&self.space(n), "workflows").await;
            let through = |w: &&Value| w["metadata"]["name"].as_str().is_some_and(|own| own.starts_with(name));
            completed += all.iter().filter(through).filter(|w| w["status"]["phase"] == "Completed").count();
        }
        completed
    }

    /// Errors of the steps that have ended so far.
    async fn ended(&self) -> Vec<Value> {
        let mut ended = Vec::new();
        for n in 0..NAMESPACES {
            let all = self.list(&self.space(n), "stepruns").await;
            ended.extend(all.iter().map(|s| s["status"]["error"].clone()).filter(|error| !error.is_null()));
        }
        ended
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_expression_costs_its_own_run_only() -> Result<()> {
    let _alone = super::ALONE.lock().await;
    let here = Place::open().await?;
    let mut before = Vec::new();
    for n in 0..3 {
        before.push(here.honest_chain(&format!("before-{n}")).await?);
    }
    // As many runs that harm nobody, of the same shape: what their number alone costs.
    here.make_all("innocent", INNOCENT).await?;
    let innocent = here.honest_chain("beside-innocent").await?;
    until("innocent runs end", || async { here.completed("innocent").await == NAMESPACES * RUNS }).await?;
    here.make_all("hostile", HOSTILE).await?;
    let mut during = Vec::new();
    for n in 0..3 {
        during.push(here.honest_chain(&format!("during-{n}")).await?);
        ensure!(here.is_ready(), "the operator is not ready beside hostile runs");
    }
    let ended = here.ended().await.len();
    println!(
        "honest chain of {STEPS} steps: {before:?} alone, {innocent:?} beside {0} innocent runs that begin, {during:?} beside {0} hostile ones that begin, {ended} of which had ended then",
        NAMESPACES * RUNS
    );
    ensure!(ended < NAMESPACES * RUNS, "the honest chains waited for all {ended} hostile runs");
    // They end, each with the reason.
    until("hostile runs end", || async { here.ended().await.len() > NAMESPACES / 2 }).await?;
    for error in here.ended().await {
        let message = error["message"].as_str().context("a message")?;
        // Which bound it meets first depends on the machine.
        let bound = ["took longer than 1 s", "needed more than 256 MB of memory"];
        let told = bound.iter().any(|words| message.contains(&format!("gate.when: {words}")));
        ensure!(error["class"] == "ExpressionError" && told, "{error}");
    }
    ensure!(here.is_ready() && here.operator.lives()?.is_some(), "the operator went");
    here.operator.end();
    for n in 0..NAMESPACES {
        here.plane.leave(&here.space(n)).await?;
    }
    here.plane.leave(&here.honest()).await
}
