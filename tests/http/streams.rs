//! Streams over real connections, in real time: many of them, and readers that do not read.

use std::sync::Arc;
use std::time::Duration;

use lockstep::apiserver::{Format, Key, Kind, Part, Writer};
use lockstep::http::Bounds;
use lockstep::server::rate::Rate;
use lockstep::server::{Limits, Security, Server, Stats};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::town::{BEGAN, Deed, NAMESPACE, Town};

const STREAMS: usize = 500;

fn memory_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// The service behind a port, until the first of the two says so.
fn served(town: &Town, many: usize) -> (std::net::SocketAddr, watch::Sender<bool>, JoinHandle<()>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    // What a reader does not take waits here, and not in the kernel.
    socket.set_send_buffer_size(16 * 1024).expect("a small buffer");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let listener = socket.listen(1024).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let limits = Limits {
        connections: 2 * many,
        per_address: 2 * many,
        handshakes_per_address: many,
        rate: Rate { burst: 5_000, per_second: 5_000 },
        // Much shorter than the test: a stream is no idle connection.
        idle: Duration::from_secs(1),
        proof: Some(Duration::from_secs(10)),
    };
    let (stop, stopped) = watch::channel(false);
    let server =
        Server { limits, security: Security::Plain, stats: Stats::default(), router: town.service.router.clone() };
    (address, stop, tokio::spawn(server.serve(listener, stopped)))
}

/// The kernel takes that many bytes for the reader, if it is told how many.
async fn open(address: std::net::SocketAddr, bytes: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(bytes) = bytes {
        socket.set_recv_buffer_size(bytes).expect("a small buffer");
    }
    let mut stream = socket.connect(address).await.expect("a connection");
    let request = "GET /runs/s/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token-ann\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    stream
}

/// Reads until these words have come.
async fn read_until(stream: &mut TcpStream, words: &str) -> String {
    let mut text = String::new();
    let mut piece = vec![0_u8; 64 * 1024];
    let mut behind = 0;
    while !text.as_bytes()[behind..].windows(words.len()).any(|found| found == words.as_bytes()) {
        behind = text.len().saturating_sub(words.len());
        let n = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut piece))
            .await
            .expect("in time")
            .expect("open");
        assert!(n > 0, "it ended: {text}");
        text.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    text
}

#[tokio::test]
async fn five_hundred_streams_are_told_everything_within_a_hundred_megabytes() {
    let bounds = Bounds { max_streams: STREAMS, max_streams_per_user: STREAMS, ..Bounds::default() };
    let town = Town::with(bounds).await;
    let (go, gate) = watch::channel(false);
    let gate = Arc::new(gate);
    town.agent("default", &json!({}), move |_| Deed {
        seconds: if *gate.borrow() { 0.0 } else { 600.0 },
        ..Deed::default()
    });
    town.flow("default", &json!({}));
    town.post("/run", json!({"input": "x", "story_id": "s", "wait": 0})).await.is(202);
    let (address, stop, serving) = served(&town, STREAMS);
    let before = memory_kib();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = open(address, None).await;
        // Half of the readers take only what tells that they were let in.
        let words = if streams.len() % 2 == 0 { "run.phase" } else { "200 OK" };
        read_until(&mut stream, words).await;
        streams.push(stream);
    }
    assert_eq!(town.service.streams(), STREAMS);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let held = memory_kib().saturating_sub(before) / 1024;
    println!("{STREAMS} streams: {held} MiB, clients and server together");
    assert!(held < 100, "{held} MiB");
    go.send_replace(true);
    town.post("/runs/s/cancel", serde_json::Value::Null).await.is(200);
    for stream in streams.iter_mut().step_by(2) {
        read_until(stream, "event: failure").await;
    }
    drop(streams);
    town.until("all places are free again", || (town.service.streams() == 0).then_some(())).await;
    stop.send_replace(true);
    serving.await.expect("it ends");
}

/// A run that is over, of so many steps with two attempts each, as the cluster stores it.
fn large_run(town: &Town, steps: usize) {
    let by = Writer { user: "admin", is_dry_run: false };
    let make = |kind: Kind, name: &str, mut object: Value, status: &Value| {
        let key = Key::new(kind, NAMESPACE, name);
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.name());
        object["metadata"]["name"] = json!(name);
        let status = json!({"status": status});
        town.api.with(|registry| {
            let made = registry.create(&key, object, by).expect("it is made").value.clone();
            registry.patch(&key, Part::Status, (Format::Merge, &status), by).expect("it is written");
            made
        })
    };
    let spec = json!({"spec": {"session": "s", "input": "x", "steps": [{"name": "work", "agentId": "a"}]}});
    let status = json!({"phase": "Completed", "startedAt": BEGAN, "completedAt": BEGAN,
        "session": {"id": "s", "phase": "Completed", "startTime": BEGAN}});
    let run = make(Kind::Workflow, "large", spec, &status);
    let uid = &run["metadata"]["uid"];
    let owner = json!([{"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "name": "large", "uid": uid, "controller": true}]);
    let attempt = |number: usize| {
        json!({"number": number, "round": 1, "result": "Retryable", "startedAt": BEGAN, "completedAt": BEGAN,
            "message": "x".repeat(1_000)})
    };
    let status = json!({"phase": "Completed", "startedAt": BEGAN, "completedAt": BEGAN, "attempt": 2, "round": 1,
        "attempts": [attempt(1), attempt(2)], "result": {"attempt": 2, "digest": "sha256:1"}});
    for number in 0..steps {
        let spec = json!({"workflow": {"name": "large", "uid": uid}, "definition": {"revisionName": "r", "digest": "d"},
            "path": format!("step-{number}"), "agentId": "a", "parameters": "{}", "inputDigest": "d"});
        let object = json!({"metadata": {"ownerReferences": owner}, "spec": spec});
        make(Kind::StepRun, &format!("large-step-{number}"), object, &status);
    }
}

#[tokio::test]
async fn readers_that_do_not_read_hold_little_and_are_sent_away() {
    const READERS: usize = 100;
    const STEPS: usize = 1_000;
    let bounds = Bounds { max_streams: 2 * READERS, max_streams_per_user: 2 * READERS, ..Bounds::default() };
    let town = Town::with(bounds).await;
    large_run(&town, STEPS);
    town.until("all of it is known", || (town.objects(Kind::StepRun).len() == STEPS).then_some(())).await;
    town.get("/runs/s").await.is(200);
    let (address, stop, serving) = served(&town, 2 * READERS);
    let before = memory_kib();
    let mut slow = Vec::new();
    for _ in 0..READERS {
        let mut stream = open(address, Some(4_096)).await;
        read_until(&mut stream, "200 OK").await;
        slow.push(stream);
    }
    // Whoever reads is told all of it meanwhile, in pieces that fit.
    let mut quick = open(address, None).await;
    let text = read_until(&mut quick, "event: result").await;
    for (event, times) in [("attempt.ended", 2 * STEPS), ("step.ended", STEPS), ("run.ended", 1)] {
        assert_eq!(text.matches(&format!("event: {event}\n")).count(), times, "{event}");
    }
    drop(quick);
    town.until("they alone are left", || (town.service.streams() == READERS).then_some(())).await;
    let held = memory_kib().saturating_sub(before) / 1024;
    println!("{READERS} slow readers of {} KiB each: {held} MiB", text.len() / 1024);
    assert!(held < 64, "{held} MiB");
    // Nothing but time passes.
    tokio::time::pause();
    let began = town.elapsed();
    town.until("they are sent away", || (town.service.streams() == 0).then_some(())).await;
    let took = (town.elapsed() - began).as_secs();
    assert!((60..=180).contains(&took), "{took} s");
    for mut stream in slow {
        let mut rest = Vec::new();
        // What the kernel still had, then the end; it may be a hard one.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(!String::from_utf8_lossy(&rest).contains("event: result"), "it was told the end");
    }
    stop.send_replace(true);
    serving.await.expect("it ends");
}
