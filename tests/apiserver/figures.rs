//! Figures of a gateway that many shims are connected to, beside what the API server alone takes for the same. `hack/measure
//! --shims N` runs it; it says nothing on a machine that does something else.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use lockstep::api::{StepRun, name};
use lockstep::decide::memory::initial;
use lockstep::protocol::{self, AttemptRef, memory};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::gateway::{Begun, Gateway, attempt_of, begun, token, whole, whole_call};
use crate::support::{Ask, Team, policies_whole};

const AT_ONCE: usize = 16;
/// Shims of one address: a gateway takes 64.
const OF_ONE_ADDRESS: usize = 50;
/// So long each of them says now and then how far it is.
const WATCHED: Duration = Duration::from_secs(80);
const EVERY: Duration = Duration::from_secs(20);

/// A shim: its attempt, its token, its connection, which the gateway ends where no call comes for 20 s.
struct Shim {
    who: AttemptRef,
    token: String,
    gateway: Arc<Gateway>,
    from: Ipv4Addr,
    stream: TlsStream<TcpStream>,
}

impl Shim {
    async fn open(team: &Team, gateway: &Arc<Gateway>, of: &Begun, number: usize) -> Result<Self> {
        let (mut who, pod) = Box::pin(attempt_of(team, of, &[number.to_string()])).await?;
        who.id = format!("{number:032x}");
        let token = token(team, Some(&name::audience(&who.uid, 1)), Some(&pod)).await?;
        let part = u8::try_from(number / OF_ONE_ADDRESS)?;
        let from = Ipv4Addr::new(127, 0, 1, part);
        let stream = gateway.shake(from).await?;
        let mut shim = Self { who, token, gateway: Arc::clone(gateway), from, stream };
        shim.call(protocol::CLAIM, &json!({"shimVersion": "0"})).await?;
        Ok(shim)
    }

    async fn call(&mut self, path: &str, body: &Value) -> Result<Duration> {
        let begun = Instant::now();
        let mut tries = 0;
        let text = loop {
            match self.once(path, body).await {
                Ok(text) => break text,
                Err(wrong) if tries == 20 => return Err(wrong),
                // The connection had ended, or too many of its address came at once.
                Err(_) if tries > 0 => tokio::time::sleep(Duration::from_millis(250) * tries.min(8)).await,
                Err(_) => {}
            }
            tries += 1;
            if let Ok(stream) = self.gateway.shake(self.from).await {
                self.stream = stream;
            }
        };
        ensure!(text.starts_with("HTTP/1.1 2"), "{path}: {text}");
        Ok(begun.elapsed())
    }

    /// As a shim does: the gateway takes one of each attempt in 2 s and 50 of all in a second, and whoever is not among them
    /// comes again.
    async fn say(&mut self, body: &Value) -> Result<()> {
        let mut pause = Duration::from_millis(250);
        let give_up = Instant::now() + EVERY;
        loop {
            match self.call(protocol::PROGRESS, body).await {
                Err(wrong) if wrong.to_string().contains(" 503 ") && Instant::now() < give_up => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(15));
                }
                Err(wrong) if !wrong.to_string().contains(" 503 ") => return Err(wrong),
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }

    async fn once(&mut self, path: &str, body: &Value) -> Result<String> {
        self.stream.write_all(whole_call(path, &self.token, &self.who, body).as_bytes()).await?;
        let mut text = Vec::new();
        let mut some = vec![0; 16 * 1024];
        while !whole(&text) {
            let read = self.stream.read(&mut some).await?;
            ensure!(read > 0, "{path}: the connection ended");
            text.extend_from_slice(&some[..read]);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Median and 99th percentile, in milliseconds.
fn spread(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1))).copied();
    let millis = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64() * 1000.0;
    (millis(at(50)), millis(at(99)))
}

fn tell(what: &str, times: Vec<Duration>, raw: Option<(f64, f64)>) -> (f64, f64) {
    let number = times.len();
    let (middle, most) = spread(times);
    let beside = raw.map_or(String::new(), |(raw, _)| format!(", {:.1} times the API server's own", middle / raw));
    println!("{what}: p50 {middle:.1} ms, p99 {most:.1} ms ({number}{beside})");
    (middle, most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "hack/measure --shims runs it, alone on its machine"]
async fn many_shims_are_connected() -> Result<()> {
    let many: usize = std::env::var("LOCKSTEP_SHIMS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let _whole = policies_whole().await;
    let team = Team::open("figures").await?;
    let gateway = Arc::new(Gateway::start(&team).await?);
    let idle = gateway.resident()?;
    let of = begun(&team).await?;
    let made: Vec<usize> = (0..many).collect();
    let opened = stream::iter(made).map(|number| Shim::open(&team, &gateway, &of, number)).buffered(AT_ONCE);
    let mut shims: Vec<Shim> = opened.try_collect().await?;
    println!("gateway: {idle} kB without shims, {} kB with {many} that have claimed", gateway.resident()?);
    round_trips(&team, &mut shims).await?;
    let (delays, calls, writes) = progress(&team, &gateway, &mut shims).await?;
    tell(&format!("progress of {many} shims, each every {EVERY:?}, from the call to a watch"), delays, None);
    println!("writes a call of progress: {:.2}", writes / calls);
    println!("gateway: {} kB after that", gateway.resident()?);
    let busiest = waiting(&gateway, &mut shims).await?;
    println!("gateway: {busiest} kB while {many} shims wait for people");
    team.close().await
}

/// One after the other, beside the same write and the same read without a gateway.
async fn round_trips(team: &Team, shims: &mut [Shim]) -> Result<()> {
    let step_run: StepRun =
        serde_json::from_value(team.admin.gets(&Ask::get(team.one("stepruns", &shims[0].who.step_run))).await?)?;
    let made = initial(&step_run, "s", &Time(Timestamp::UNIX_EPOCH));
    team.operator.gets(&Ask::post(team.all("memories"), serde_json::to_value(&made)?)).await?;
    let path = team.one("memories", &made.name_any());
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for number in 0..200 {
        let begun = Instant::now();
        team.admin.gets(&Ask::get(path.clone())).await?;
        reads.push(begun.elapsed());
        let begun = Instant::now();
        team.admin.gets(&Ask::annotate(path.clone(), json!({"figures": number.to_string()}))).await?;
        writes.push(begun.elapsed());
    }
    let read = tell("API server, a read", reads, None);
    let write = tell("API server, a write", writes, None);
    let (mut sets, mut gets, mut asks) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..200 {
        let operation =
            json!({"kind": "set", "key": "n", "value": number.to_string(), "ifRevision": null, "sequence": number + 1});
        sets.push(shims[0].call(memory::PATH, &json!({"operation": operation})).await?);
        gets.push(shims[0].call(memory::PATH, &json!({"operation": {"kind": "get", "key": "n"}})).await?);
    }
    for shim in shims.iter_mut().take(200) {
        let body = json!({"questions": [{"question": "How much?"}], "waitSeconds": 600});
        asks.push(shim.call(protocol::ASK, &body).await?);
    }
    tell("memory set", sets, Some(write));
    tell("memory get", gets, Some(read));
    tell("ask, until it is stored", asks, Some(write));
    Ok(())
}

type Sent = Arc<Mutex<HashMap<String, Vec<(i64, Instant)>>>>;

/// How old news is when a watch hears of it, of all that was said; how many calls that were, and how many writes.
async fn progress(team: &Team, gateway: &Gateway, shims: &mut [Shim]) -> Result<(Vec<Duration>, f64, f64)> {
    let sent: Sent = Arc::default();
    let delays: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let api: Api<StepRun> = Api::namespaced(team.admin.client(), &team.namespace);
    let version = async |team: &Team| -> Result<f64> {
        let list = team.admin.gets(&Ask::get(format!("{}?limit=1", team.all("stepruns")))).await?;
        Ok(list["metadata"]["resourceVersion"].as_str().context("no version")?.parse()?)
    };
    let watching = tokio::spawn({
        let (sent, delays) = (Arc::clone(&sent), Arc::clone(&delays));
        async move {
            let mut events = watcher(api, watcher::Config::default()).default_backoff().applied_objects().boxed();
            while let Some(event) = events.next().await {
                let Ok(step_run) = event else { continue };
                let now = Instant::now();
                let Some(percent) = step_run
                    .status
                    .as_ref()
                    .and_then(|s| s.agent.as_ref()?.progress.as_ref().map(|progress| progress.message.clone()))
                else {
                    continue;
                };
                let Ok(seen) = percent.parse::<i64>() else { continue };
                let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                let said = sent.entry(step_run.name_any()).or_default();
                // What was overtaken by something newer is as old as that made it.
                let (told, open): (Vec<_>, Vec<_>) = said.drain(..).partition(|(number, _)| *number <= seen);
                *said = open;
                delays.lock().unwrap_or_else(PoisonError::into_inner).extend(told.iter().map(|(_, at)| now - *at));
            }
        }
    });
    let (begun, before) = (Instant::now(), version(team).await?);
    let calls = gateway.metric("lockstep_gateway_calls_total{call=\"progress\"").await?;
    let number = u32::try_from(shims.len())?;
    let talking = (0..number).zip(shims.iter_mut()).map(|(n, shim)| {
        let sent = Arc::clone(&sent);
        async move {
            let first = EVERY * n / number;
            let mut due = tokio::time::interval_at(tokio::time::Instant::now() + first, EVERY);
            for percent in 1.. {
                due.tick().await;
                if begun.elapsed() > WATCHED {
                    break;
                }
                let said = (percent, Instant::now());
                sent.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(shim.who.step_run.clone())
                    .or_default()
                    .push(said);
                let body = json!({"percent": percent % 100, "message": percent.to_string()});
                shim.say(&body).await?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(talking).await?;
    let writes = version(team).await? - before;
    let calls = gateway.metric("lockstep_gateway_calls_total{call=\"progress\"").await? - calls;
    watching.abort();
    let open: usize = sent.lock().unwrap_or_else(PoisonError::into_inner).values().map(Vec::len).sum();
    println!("progress: {calls} calls, {open} of them not heard of at the end");
    let delays = std::mem::take(&mut *delays.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((delays, calls, writes))
}

/// Memory while each has a call that waits for people.
async fn waiting(gateway: &Gateway, shims: &mut [Shim]) -> Result<u64> {
    let body = json!({"questions": [name::digest_bytes(b"How much?")], "seconds": 15});
    let all = futures::future::join_all(shims.iter_mut().map(|shim| shim.call(protocol::AWAIT, &body)));
    let looking = async {
        let mut most = 0;
        let mut due = tokio::time::interval(Duration::from_millis(500));
        for _ in 0..24 {
            due.tick().await;
            most = most.max(gateway.resident()?);
        }
        anyhow::Ok(most)
    };
    let (ended, most) = tokio::join!(all, looking);
    let failed = ended.iter().filter(|ended| ended.is_err()).count();
    if failed > 0 {
        println!(
            "{failed} of {} waits were refused: {:?}",
            ended.len(),
            ended.iter().find_map(|ended| ended.as_ref().err())
        );
    }
    most
}
