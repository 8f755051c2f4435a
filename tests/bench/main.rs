//! Fan-out beside the ceiling: as many bare Jobs as a forEach has items, both on a control plane without nodes, with the
//! fake kubelet of the crash tests ending every pod at once. `hack/measure --fan-out` runs it and says what it means.
//!
//!     bench jobs N                        N bare Jobs, from the first request to the last Job's completion
//!     bench workflow N OPERATOR           one Workflow over N items, run by that binary of the operator
//!     bench api N LOCKSTEP                N runs by the HTTP API, one after the other and ten at once; reads, streams, events
//!     bench digests N                     the check of N documents of the largest size, as it is done wherever one is loaded
//!
//! One line of JSON each; what was made goes before it ends. LOCKSTEP_BENCH_PIDS=NAME=PID,... adds the processor seconds that
//! these processes took meanwhile: on a busy machine they say more than the time.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "a tool for the developers, and the crash tests use the rest of these files"
)]

mod api;
#[path = "../crash/kubelet.rs"]
mod kubelet;
#[path = "../crash/operator.rs"]
mod operator;
#[path = "../crash/plane.rs"]
mod plane;
#[path = "../crash/port.rs"]
mod port;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use http::Method;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use lockstep::api::step_run::Binding;
use lockstep::api::{Document, DocumentSpec, StepRun, Workflow, name};
use lockstep::decide::content::{Content, Loaded, Pin};
use serde_json::{Value, json};
use tokio::sync::watch;

use kubelet::{Deed, Kubelet, Runs};
use operator::Operator;
use plane::{Plane, ask, until};

const REQUESTS_AT_ONCE: usize = 64;
const PODS_AT_ONCE: usize = 64;
/// Longer than any run that is worth its name.
const LIMIT: Duration = Duration::from_secs(3600);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match words.as_slice() {
        ["jobs", number] => runtime.block_on(jobs(number.parse()?)),
        ["workflow", number, binary] => runtime.block_on(workflow(number.parse()?, binary.as_ref())),
        ["digests", number] => digests(number.parse()?),
        ["api", number, binary] => runtime.block_on(api::measure(number.parse()?, binary.as_ref())),
        _ => {
            println!(
                "bench jobs N | bench workflow N OPERATOR | bench api N LOCKSTEP | bench digests N: see hack/measure --help"
            );
            Ok(())
        }
    }
}

/// Milliseconds that each check took.
fn digests(number: usize) -> Result<()> {
    let content = "x".repeat(512 * 1024);
    let wanted = name::digest_bytes(content.as_bytes());
    let mut took = Vec::with_capacity(number);
    for _ in 0..number {
        let mut document = Document::new("d", DocumentSpec { content: content.clone(), ..DocumentSpec::default() });
        document.metadata.uid = Some("u".to_owned());
        let begun = Instant::now();
        let loaded = Loaded::new(Arc::new(document));
        let pin = Pin::new("d", Some(&Binding { uid: Some("u".to_owned()), digest: wanted.clone() }));
        ensure!(Content::of(&pin, Some(&loaded)).is_ok(), "it is the one that was meant");
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    println!("{}", json!({"what": "digests", "milliseconds": took}));
    Ok(())
}

/// A namespace with a kubelet for it, and how many of its Jobs and Workflows have ended.
struct Place {
    plane: Plane,
    namespace: String,
    kubelet: Arc<Kubelet>,
    ended: watch::Receiver<usize>,
    /// Bytes of the largest Workflow and of its status.
    largest: Arc<(AtomicUsize, AtomicUsize)>,
}

impl Place {
    async fn open(what: &str) -> Result<Self> {
        let plane = Plane::find().await?;
        let nodes = ask(&plane.admin, Method::GET, "/api/v1/nodes", None).await?;
        ensure!(nodes["items"].as_array().is_some_and(Vec::is_empty), "a control plane without nodes is needed");
        let namespace = format!("bench-{what}-{}", std::process::id());
        plane.namespace(&namespace).await?;
        let agents =
            Box::new(|_: &StepRun, _| Deed { output: json!(1), document: None, fails: false, takes: Duration::ZERO });
        let kubelet = Kubelet::new(&plane, agents, Runs::Untold, PODS_AT_ONCE);
        let (ended_now, ended) = watch::channel(0);
        let here = Self { namespace, kubelet: Arc::clone(&kubelet), ended, plane, largest: Arc::default() };
        let pods: Api<Pod> = Api::namespaced(here.plane.admin.clone(), &here.namespace);
        watched(pods, move |pod| kubelet.saw(pod));
        if what == "jobs" {
            let jobs: Api<Job> = Api::namespaced(here.plane.admin.clone(), &here.namespace);
            let mut done = std::collections::HashSet::new();
            watched(jobs, move |job| {
                if job.status.is_some_and(|status| status.completion_time.is_some()) && done.insert(job.metadata.uid) {
                    ended_now.send_replace(done.len());
                }
            });
        } else {
            let runs: Api<Workflow> = Api::namespaced(here.plane.admin.clone(), &here.namespace);
            let largest = Arc::clone(&here.largest);
            watched(runs, move |run| {
                largest.0.fetch_max(bytes(&run), Ordering::Relaxed);
                let status = run.status.unwrap_or_default();
                largest.1.fetch_max(bytes(&status), Ordering::Relaxed);
                if status.completed_at.is_some() {
                    ended_now.send_replace(1);
                }
            });
        }
        Ok(here)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<()> {
        ask(&self.plane.admin, Method::POST, path, Some(body)).await.with_context(|| format!("POST {path}"))?;
        Ok(())
    }

    async fn wait(&mut self, number: usize) -> Result<()> {
        let all = self.ended.wait_for(|ended| *ended >= number);
        let ended = tokio::time::timeout(LIMIT, all).await.with_context(|| format!("not within {LIMIT:?}"))?.is_ok();
        ensure!(ended, "a watch ended");
        let failures = self.kubelet.failures();
        if let Some(first) = failures.first() {
            bail!("{} failures of the kubelet, the first: {first}", failures.len());
        }
        Ok(())
    }

    /// The next measurement starts on an empty control plane.
    async fn close(self) -> Result<()> {
        self.plane.leave(&self.namespace).await?;
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        let admin = &self.plane.admin;
        let gone = || until("the namespace is gone", || async { ask(admin, Method::GET, &path, None).await.is_err() });
        let began = Instant::now();
        while gone().await.is_err() {
            ensure!(began.elapsed() < LIMIT, "the namespace does not go");
        }
        Ok(())
    }
}

fn watched<K>(api: Api<K>, mut seen: impl FnMut(K) + Send + 'static)
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    tokio::spawn(async move {
        let mut events = watcher(api, Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            if let Ok(Event::Apply(object) | Event::InitApply(object)) = event {
                seen(object);
            }
        }
    });
}

async fn jobs(number: usize) -> Result<()> {
    let mut place = Place::open("jobs").await?;
    let others = Others::now()?;
    let path = format!("/apis/batch/v1/namespaces/{}/jobs", place.namespace);
    let began = Instant::now();
    let all = stream::iter(0..number).map(|n| {
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": format!("job-{n}")},
            "spec": {"backoffLimit": 0, "template": {"spec": pod()}}});
        let (place, path) = (&place, &path);
        async move { place.post(path, &job).await }
    });
    all.buffer_unordered(REQUESTS_AT_ONCE).try_collect::<()>().await?;
    let created = began.elapsed().as_secs_f64();
    place.wait(number).await?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"what": "jobs", "n": number, "seconds": seconds, "created": created, "namespace": place.namespace, "others": others.since()?})
    );
    place.close().await
}

async fn workflow(number: usize, binary: &Path) -> Result<()> {
    let mut place = Place::open("workflow").await?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let operator = Operator::new(binary, &folder, &place.plane.kubeconfig)?;
    operator.start()?;
    let ours = format!("/apis/lockstep.dev/v1alpha1/namespaces/{}", place.namespace);
    let agent = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "nop"},
        "spec": {"template": {"spec": pod()}}});
    place.post(&format!("{ours}/agents"), &agent).await?;
    let path = format!("{ours}/agents/nop");
    let admin = place.plane.admin.clone();
    // Then the operator has started.
    until("the agent is looked at", || async {
        ask(&admin, Method::GET, &path, None).await.is_ok_and(|agent| agent["status"]["conditions"].is_array())
    })
    .await?;
    let process = operator.lives()?.context("the operator does not run")?;
    let before = used(process)?;
    let items: Vec<String> = (0..number).map(|n| format!("item-{n}")).collect();
    let step = json!({"name": "work", "agentId": "nop",
        "forEach": {"in": "parameters.items", "as": "one", "maxParallel": number.min(1000)}});
    let run = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "metadata": {"name": "fan-out"},
        "spec": {"parameters": {"items": items}, "steps": [step]}});
    let others = Others::now()?;
    let began = Instant::now();
    place.post(&format!("{ours}/workflows"), &run).await?;
    place.wait(1).await?;
    let seconds = began.elapsed().as_secs_f64();
    let others = others.since()?;
    operator.lives()?;
    let after = used(process)?;
    let starts = place.kubelet.starts();
    ensure!(starts.len() == number && starts.values().all(|n| *n == 1), "{} attempts started", starts.len());
    println!(
        "{}",
        json!({"what": "workflow", "n": number, "seconds": seconds, "namespace": place.namespace,
        "cpu": after.cpu - before.cpu, "rssBefore": before.rss, "rss": after.rss,
        "bytes": place.largest.0.load(Ordering::Relaxed), "statusBytes": place.largest.1.load(Ordering::Relaxed), "others": others})
    );
    operator.end();
    place.close().await
}

fn bytes(object: &impl serde::Serialize) -> usize {
    serde_json::to_string(object).map_or(0, |text| text.len())
}

fn pod() -> Value {
    json!({"restartPolicy": "Never", "schedulerName": "nobody", "containers": [{"name": "agent", "image": "none", "command": ["true"]}]})
}

/// Processor seconds of the processes that LOCKSTEP_BENCH_PIDS names.
struct Others(Vec<(String, u32, f64)>);

impl Others {
    fn now() -> Result<Self> {
        let named = std::env::var("LOCKSTEP_BENCH_PIDS").unwrap_or_default();
        let pairs = named.split(',').filter(|pair| !pair.is_empty());
        let of = |pair: &str| {
            let (name, process) = pair.split_once('=').context("LOCKSTEP_BENCH_PIDS=NAME=PID,...")?;
            let process = process.parse()?;
            Ok((name.to_owned(), process, used(process)?.cpu))
        };
        Ok(Self(pairs.map(of).collect::<Result<_>>()?))
    }

    fn since(&self) -> Result<Value> {
        let one = |(name, process, before): &(String, u32, f64)| {
            Ok((name.clone(), json!((used(*process)?.cpu - before).mul_add(100.0, 0.5).floor() / 100.0)))
        };
        Ok(Value::Object(self.0.iter().map(one).collect::<Result<_>>()?))
    }
}

/// Processor seconds and the peak of resident kilobytes so far.
struct Used {
    cpu: f64,
    rss: u64,
}

fn used(process: u32) -> Result<Used> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let behind_name: Vec<&str> = stat.rsplit(") ").next().context("stat")?.split(' ').collect();
    let ticks = |place: usize| behind_name.get(place).and_then(|word| word.parse::<u32>().ok()).unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let rss = peak.trim().trim_end_matches(" kB").parse()?;
    // utime and stime, 100 ticks a second on every Linux that this runs on.
    Ok(Used { cpu: f64::from(ticks(11) + ticks(12)) / 100.0, rss })
}
