//! Figures of the HTTP API: its own process, with the real operator and the fake kubelet behind it, on a control plane without
//! nodes. `hack/measure --api` runs it, and counts in the audit log what each call asked of the API server: every sort of
//! call has an account of its own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use axum::body::BodyDataStream;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Method, Request};
use kube::client::Body;
use kube::{Client, Config};
use serde_json::{Value, json};

use super::operator::Operator;
use super::plane::{ask, until};
use super::{Place, pod};

const ACCOUNTS: [&str; 4] = ["poster", "reader", "streamer", "publisher"];
const AT_ONCE: usize = 10;
const READERS: usize = 32;
const READ_FOR: Duration = Duration::from_secs(5);
const STREAMS: usize = 500;
const PUBLISHERS: usize = 16;

/// The API as a process.
struct Api {
    child: Child,
    address: SocketAddr,
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Api {
    async fn start(binary: &Path, folder: &Path, namespace: &str) -> Result<Self> {
        let (address, health) = (crate::port::free()?, crate::port::free()?);
        let log = File::create(folder.join("api.log"))?;
        let streams = (2 * STREAMS).to_string();
        let child = Command::new(binary)
            .arg("api")
            .env("LOCKSTEP_LISTEN", address.to_string())
            .env("LOCKSTEP_HEALTH_LISTEN", health.to_string())
            .env("LOCKSTEP_DEFAULT_NAMESPACE", namespace)
            .env("LOCKSTEP_MAX_STREAMS", &streams)
            .env("LOCKSTEP_MAX_STREAMS_PER_USER", &streams)
            .env("LOCKSTEP_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let here = Self { child, address };
        let probe = Client::try_from(Config::new(format!("http://{health}").parse()?))?;
        let ready = || async { probe.request_text(get("/readyz").expect("a request")).await.is_ok() };
        until("the API is ready", ready).await.with_context(|| format!("see {}", folder.display()))?;
        Ok(here)
    }

    /// Whoever has that token.
    fn caller(&self, token: &Value) -> Result<Client> {
        let mut config = Config::new(format!("http://{}", self.address).parse()?);
        config.auth_info = serde_json::from_value(json!({"token": token}))?;
        Ok(Client::try_from(config)?)
    }

    /// Resident kilobytes.
    fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

fn get(path: &str) -> Result<Request<Vec<u8>>> {
    Ok(Request::get(path).body(Vec::new())?)
}

/// Median and 99th percentile, in milliseconds.
fn spread(mut times: Vec<Duration>) -> Value {
    times.sort();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1))).copied();
    let millis = |time: Option<Duration>| (time.unwrap_or_default().as_secs_f64() * 10_000.0).round() / 10.0;
    json!({"p50": millis(at(50)), "p99": millis(at(99)), "n": times.len()})
}

/// A run of an agent that ends at once, from the request to the result; and its name.
async fn posted(caller: &Client, story: &str) -> Result<(Duration, String)> {
    let body = json!({"input": "x", "story_id": story, "wait": 60});
    let began = Instant::now();
    let answer = ask(caller, Method::POST, "/run", Some(&body)).await?;
    ensure!(answer["result"] == 1, "{answer}");
    Ok((began.elapsed(), answer["run"].as_str().context("no name")?.to_owned()))
}

fn times(runs: Vec<(Duration, String)>) -> Vec<Duration> {
    runs.into_iter().map(|(took, _)| took).collect()
}

pub async fn measure(number: usize, binary: &Path) -> Result<()> {
    let place = Place::open("api").await?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let operator = Operator::new(binary, &folder, &place.plane.kubeconfig)?;
    operator.start()?;
    let tokens = prepared(&place).await?;
    let api = Api::start(binary, &folder, &place.namespace).await?;
    let callers: Vec<Client> = tokens.iter().map(|token| api.caller(token)).collect::<Result<_>>()?;
    let [poster, reader, streamer, publisher] = &callers[..] else { unreachable!("four accounts") };
    // The first of each account asks whose its token is, and what it may.
    posted(poster, "warm").await?;
    let idle = api.resident()?;

    let mut alone = Vec::new();
    for n in 0..number {
        alone.push(posted(poster, &format!("alone-{n}")).await?);
    }
    let many: Vec<String> = (0..number).map(|n| format!("many-{n}")).collect();
    let began = Instant::now();
    let together = stream::iter(&many).map(|story| posted(poster, story)).buffer_unordered(AT_ONCE);
    let together: Vec<(Duration, String)> = together.try_collect().await?;
    let runs_a_second = f64::from(u32::try_from(number)?) / began.elapsed().as_secs_f64();

    let (reads, read_times) = reads(reader).await?;
    let (rss, opened, told) = streams(&api, streamer).await?;
    let (events, event_times) = events(publisher, number).await?;
    let round = |figure: f64| (figure * 10.0).round() / 10.0;
    let slowest = alone.iter().max().map(|(_, run)| run.clone());
    println!(
        "{}",
        json!({"what": "api", "n": number, "namespace": place.namespace, "alone": spread(times(alone)), "slowest": slowest, "together": spread(times(together)),
            "atOnce": AT_ONCE, "runsASecond": round(runs_a_second), "readsASecond": round(reads.0), "reads": reads.1,
            "readTimes": read_times, "readers": READERS, "idle": idle, "streams": STREAMS, "streaming": rss,
            "openedASecond": round(opened), "toldAllMs": round(told), "eventsASecond": round(events), "eventTimes": event_times,
            "after": api.resident()?})
    );
    operator.lives()?;
    operator.end();
    drop(api);
    place.close().await
}

/// Agent, templates, a Trigger, and the tokens of those who call.
async fn prepared(place: &Place) -> Result<Vec<Value>> {
    let ours = format!("/apis/lockstep.dev/v1alpha1/namespaces/{}", place.namespace);
    let of = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    place.post(&format!("{ours}/agents"), &of("Agent", "nop", json!({"template": {"spec": pod()}}))).await?;
    let templates = format!("{ours}/workflowtemplates");
    let work = json!({"steps": [{"name": "work", "agentId": "nop"}]});
    place.post(&templates, &of("WorkflowTemplate", "default", work)).await?;
    let asks = json!({"steps": [{"name": "budget", "ask": {"question": "How much?"}}]});
    place.post(&templates, &of("WorkflowTemplate", "asks", asks)).await?;
    let trigger =
        json!({"event": {"type": "order"}, "run": {"templateRef": {"name": "default"}, "input": "${ event.id }"}});
    place.post(&format!("{ours}/triggers"), &of("Trigger", "orders", trigger)).await?;
    let (admin, path) = (&place.plane.admin, format!("{ours}/triggers/orders"));
    let seen = || async {
        ask(admin, Method::GET, &path, None).await.is_ok_and(|found| found["status"]["conditions"].is_array())
    };
    until("the operator has seen the Trigger", seen).await?;
    let core = format!("/api/v1/namespaces/{}", place.namespace);
    let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", place.namespace);
    let mut tokens = Vec::new();
    for account in ACCOUNTS {
        let meta = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
        place.post(&format!("{core}/serviceaccounts"), &meta).await?;
        for role in ["lockstep-edit", "lockstep-view"] {
            let subject = json!({"kind": "ServiceAccount", "name": account, "namespace": place.namespace});
            let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": format!("{account}-{role}")}, "subjects": [subject],
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}});
            place.post(&bindings, &binding).await?;
        }
        let wanted = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let path = format!("{core}/serviceaccounts/{account}/token");
        let answer = ask(admin, Method::POST, &path, Some(&wanted)).await?;
        tokens.push(answer["status"]["token"].clone());
    }
    Ok(tokens)
}

/// How many reads of one run are answered in a second, how many that were in all, and how long each took.
async fn reads(caller: &Client) -> Result<((f64, usize), Value)> {
    ask(caller, Method::GET, "/runs/warm", None).await?;
    let began = Instant::now();
    let one = |_| async move {
        let mut times = Vec::new();
        while began.elapsed() < READ_FOR {
            let asked = Instant::now();
            ask(caller, Method::GET, "/runs/warm", None).await?;
            times.push(asked.elapsed());
        }
        Ok::<_, anyhow::Error>(times)
    };
    let times: Vec<Vec<Duration>> = stream::iter(0..READERS).map(one).buffer_unordered(READERS).try_collect().await?;
    let times: Vec<Duration> = times.into_iter().flatten().collect();
    let number = times.len();
    Ok(((f64::from(u32::try_from(number)?) / began.elapsed().as_secs_f64(), number), spread(times)))
}

/// Resident kilobytes with all streams open, how many opened in a second, and how long it took until all were told the end.
async fn streams(api: &Api, caller: &Client) -> Result<(u64, f64, f64)> {
    let body = json!({"flow": "asks", "input": "x", "story_id": "streams", "wait": 60});
    ask(caller, Method::POST, "/run", Some(&body)).await?;
    let began = Instant::now();
    let open = |_| async {
        let request = Request::get("/runs/streams/events").body(Body::empty())?;
        let response = caller.send(request).await?;
        ensure!(response.status() == 200, "a stream is answered with {}", response.status());
        let mut body = axum::body::Body::new(response.into_body()).into_data_stream();
        // The first event is there: it is told what happened so far.
        body.next().await.context("a stream ended")??;
        Ok::<_, anyhow::Error>(body)
    };
    let all: Vec<BodyDataStream> = stream::iter(0..STREAMS).map(open).buffer_unordered(READERS).try_collect().await?;
    let opened = f64::from(u32::try_from(STREAMS)?) / began.elapsed().as_secs_f64();
    let resident = api.resident()?;
    let began = Instant::now();
    let ends = all.into_iter().map(|body| tokio::spawn(to_the_end(body)));
    let ends: Vec<_> = ends.collect();
    ask(caller, Method::POST, "/runs/streams/cancel", Some(&Value::Null)).await?;
    let mut told = Duration::ZERO;
    for end in ends {
        told = told.max(end.await??.duration_since(began));
    }
    Ok((resident, opened, told.as_secs_f64() * 1000.0))
}

/// When it ended.
async fn to_the_end(mut body: BodyDataStream) -> Result<Instant> {
    while let Some(piece) = body.next().await {
        piece?;
    }
    Ok(Instant::now())
}

/// Events that are taken in a second, each a run of its own.
async fn events(caller: &Client, number: usize) -> Result<(f64, Value)> {
    let one = |n: usize| async move {
        let event =
            json!({"specversion": "1.0", "id": format!("event-{n}"), "source": "/bench", "type": "order", "data": {}});
        let request = Request::post("/events")
            .header("content-type", "application/cloudevents+json")
            .body(event.to_string().into_bytes())?;
        let asked = Instant::now();
        let answer: Value = caller.request(request).await?;
        ensure!(answer["runs"][0]["duplicate"] == false, "{answer}");
        Ok::<_, anyhow::Error>(asked.elapsed())
    };
    one(number).await?;
    let began = Instant::now();
    let times: Vec<Duration> = stream::iter(0..number).map(one).buffer_unordered(PUBLISHERS).try_collect().await?;
    Ok((f64::from(u32::try_from(number)?) / began.elapsed().as_secs_f64(), spread(times)))
}
