//! Shims as the gateways meet them, over an API server in memory, some of whose answers are lost.

#![allow(clippy::expect_used, clippy::panic, reason = "a test ends by panicking")]

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::IntoResponse;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};
use tower::Service;

use super::*;
use crate::api::StepRun;
use crate::api::definition::Definition;
use crate::api::step_run::StepRunSpec;
use crate::apiserver::{self, ApiServer, Registry};
use crate::cluster::clock::Clock;
use crate::cluster::evaluator::Evaluator;
use crate::definition::pinned;
use crate::gateway::Bounds;
use crate::telemetry::traces::Traces;

const RUN: &str = "00000000-0000-0000-0000-00000000000a";

/// The API server, every n-th of whose answers to a patch is lost after it was carried out.
#[derive(Clone)]
struct Lossy {
    server: ApiServer,
    every: u32,
    patches: Arc<AtomicU32>,
    reads: Arc<AtomicU32>,
}

impl Service<Request<kube::client::Body>> for Lossy {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let is_patch = request.method() == Method::PATCH;
        if request.method() == Method::GET && request.uri().path().contains("/memories/") {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        let answered = self.server.call(request);
        let is_lost =
            is_patch && self.every > 0 && self.patches.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.every);
        Box::pin(async move {
            // Whoever asks at the same time comes in between.
            tokio::task::yield_now().await;
            let answer = answered.await?;
            tokio::task::yield_now().await;
            if !is_lost {
                return Ok(answer);
            }
            let status = r#"{"kind":"Status","status":"Failure","reason":"InternalError","code":500}"#;
            Ok((StatusCode::INTERNAL_SERVER_ERROR, status).into_response())
        })
    }
}

struct Cluster {
    server: ApiServer,
    door: Lossy,
    gateways: Vec<Arc<Gateway>>,
}

impl Cluster {
    fn new(gateways: usize, every: u32) -> Self {
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let clock = Box::new(|| Timestamp::UNIX_EPOCH);
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "memory".to_owned());
        let server = ApiServer::new(registry, "admin");
        let door = Lossy { server: server.clone(), every, patches: Arc::default(), reads: Arc::default() };
        let gateways = (0..gateways).map(|_| Arc::new(gateway(&door))).collect();
        Self { server, door, gateways }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.server.client("team"), "team")
    }

    /// A StepRun of an agent in a session, whose first attempt has claimed; its shim.
    async fn shim(&self, agent: &str, session: &str, number: u32) -> Shim {
        let definition: Definition = serde_json::from_value(json!({"workflow": "shop", "workflowUid": RUN,
            "session": session, "steps": [{"name": "plan", "agentId": agent}]}))
        .expect("a definition");
        let revision = ControllerRevision {
            metadata: kube::core::ObjectMeta {
                name: Some(format!("shop-{agent}-{session}")),
                owner_references: Some(vec![OwnerReference { uid: RUN.to_owned(), ..OwnerReference::default() }]),
                ..kube::core::ObjectMeta::default()
            },
            data: Some(RawExtension(serde_json::to_value(&definition).expect("JSON"))),
            revision: 1,
        };
        let post = PostParams::default();
        // There may be one already.
        let _ = self.api::<ControllerRevision>().create(&post, &revision).await;
        let spec: StepRunSpec = serde_json::from_value(json!({
            "workflow": {"name": "shop", "uid": RUN}, "path": "plan", "agentId": agent, "parameters": "{}",
            "definition": {"revisionName": revision.name_any(), "digest": pinned::digest(&definition)},
            "inputDigest": "i", "scopeChain": []}))
        .expect("a spec");
        let step_run = StepRun::new(&format!("shop-plan-{agent}-{number}"), spec);
        let step_run = self.api::<StepRun>().create(&post, &step_run).await.expect("a StepRun");
        let memory = rules::initial(&step_run, session, &Time(Timestamp::UNIX_EPOCH));
        let _ = self.api::<Memory>().create(&post, &memory).await;
        let shim = Shim {
            who: AttemptRef {
                namespace: "team".to_owned(),
                step_run: step_run.name_any(),
                uid: step_run.uid().expect("a UID"),
                attempt: 1,
                id: format!("{number:032x}"),
            },
            caller: Caller { pod_name: format!("pod-{number}"), pod_uid: format!("pod-uid-{number}") },
            gateway: Arc::clone(&self.gateways[number as usize % self.gateways.len()]),
            memory: rules::initial(&step_run, session, &Time(Timestamp::UNIX_EPOCH)).name_any(),
            heard: std::sync::Mutex::default(),
            writes: Mutex::new(0),
        };
        self.set_status(&shim, shim.claimed()).await;
        shim
    }

    async fn set_status(&self, shim: &Shim, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        let done = self.api::<StepRun>().patch_status(&shim.who.step_run, &PatchParams::default(), &patch).await;
        done.expect("a status");
    }

    async fn stored(&self, shim: &Shim) -> Memory {
        self.api().get(&shim.memory).await.expect("a Memory")
    }
}

fn gateway(door: &Lossy) -> Gateway {
    let bounds = Bounds {
        max_connections: 64,
        max_connections_per_address: 64,
        max_handshakes_per_address: 64,
        max_inputs: 16,
        max_outputs: 16,
    };
    Gateway::new(
        kube::Client::new(door.clone(), "team"),
        &bounds,
        Evaluator::here(),
        Clock::default(),
        Traces::default(),
    )
}

/// What a shim does: one write at a time has a number, and what it has heard goes with each call.
struct Shim {
    who: AttemptRef,
    caller: Caller,
    gateway: Arc<Gateway>,
    memory: String,
    heard: std::sync::Mutex<Option<u64>>,
    writes: Mutex<i64>,
}

impl Shim {
    fn claimed(&self) -> Value {
        json!({"attempt": self.who.attempt, "round": 1, "phase": "Running", "agent": {"claim": {
            "attempt": self.who.attempt, "id": attempt::id_digest(&self.who), "podName": self.caller.pod_name,
            "podUID": self.caller.pod_uid, "at": "2026-01-01T00:00:00Z"}}})
    }

    async fn ask_at(&self, gateway: &Gateway, operation: Operation) -> Result<Outcome> {
        let at_least = *self.heard.lock().expect("a lock");
        let body = MemoryRequest { operation, at_least };
        let answer = memory(gateway, &self.caller, Asked { attempt: self.who.clone(), body }).await?;
        let mut heard = self.heard.lock().expect("a lock");
        *heard = (*heard).max(answer.resource_version);
        Ok(answer.outcome)
    }

    async fn get(&self, key: &str) -> Result<Outcome> {
        self.ask_at(&self.gateway, Operation::Get { key: key.to_owned() }).await
    }

    async fn set(&self, key: &str, value: &str, if_revision: Option<i64>) -> Result<Outcome> {
        let mut writes = self.writes.lock().await;
        *writes += 1;
        let (key, value) = (key.to_owned(), value.to_owned());
        self.ask_at(&self.gateway, Operation::Set { key, value, if_revision, sequence: *writes }).await
    }

    async fn delete(&self, key: &str, if_revision: Option<i64>) -> Result<Outcome> {
        let mut writes = self.writes.lock().await;
        *writes += 1;
        let key = key.to_owned();
        self.ask_at(&self.gateway, Operation::Delete { key, if_revision, sequence: *writes }).await
    }

    /// As an agent does it: read, and write if nobody else has.
    async fn increment(&self) {
        for _ in 0..10_000 {
            let (count, revision) = match self.get("count").await.expect("an answer") {
                Outcome::Found { value, revision } => (value.parse::<i64>().expect("a number"), revision),
                _ => (0, 0),
            };
            match self.set("count", &(count + 1).to_string(), Some(revision)).await {
                Ok(Outcome::Done { .. }) => return,
                Ok(Outcome::Conflict { .. }) => {}
                Err(refusal) if refusal.reason == Reason::Unavailable => {}
                other => panic!("{other:?}"),
            }
        }
        panic!("never its turn");
    }
}

fn found(value: &str, revision: i64) -> Outcome {
    Outcome::Found { value: value.to_owned(), revision }
}

/// Eight attempts of one agent in one session, through three gateways, every fifth answer lost.
#[tokio::test(start_paused = true)]
async fn two_hundred_increments_at_once_lose_none() {
    let cluster = Cluster::new(3, 5);
    let mut shims = Vec::new();
    for number in 0..8 {
        shims.push(Arc::new(cluster.shim("counter", "spring", number).await));
    }
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let shim = Arc::clone(&shims[number % shims.len()]);
        tasks.spawn(async move { shim.increment().await });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("an increment");
    }
    let stored = cluster.stored(&shims[0]).await;
    assert_eq!(stored.spec.entries["count"].value, "200");
    assert_eq!(stored.spec.revision, 201, "each was written once, whatever answers were lost");
    assert!(cluster.door.patches.load(Ordering::Relaxed) > 240, "answers were lost");
}

#[tokio::test(start_paused = true)]
async fn a_memory_is_read_and_written_key_by_key() {
    let cluster = Cluster::new(1, 0);
    let shim = cluster.shim("planner", "spring", 1).await;
    assert_eq!(shim.get("status").await, Ok(found("\"initialized\"", 1)));
    assert_eq!(shim.get("story_id").await, Ok(found("\"spring\"", 1)));
    assert_eq!(shim.get("none").await, Ok(Outcome::Absent));
    assert_eq!(shim.set("a", "{\"x\":[1,null]}", Some(0)).await, Ok(Outcome::Done { revision: Some(2) }));
    assert_eq!(shim.get("a").await, Ok(found("{\"x\":[1,null]}", 2)));
    assert_eq!(shim.set("a", "2", Some(0)).await, Ok(Outcome::Conflict { revision: 2 }));
    assert_eq!(shim.set("a", "2", Some(2)).await, Ok(Outcome::Done { revision: Some(3) }));
    assert_eq!(shim.delete("a", Some(2)).await, Ok(Outcome::Conflict { revision: 3 }));
    assert_eq!(shim.delete("a", None).await, Ok(Outcome::Done { revision: None }));
    assert_eq!(shim.delete("a", None).await, Ok(Outcome::Done { revision: None }));
    let list = shim.ask_at(&shim.gateway, Operation::List {}).await.expect("a list");
    let Outcome::Listed { entries, .. } = list else { panic!("{list:?}") };
    assert_eq!(entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["agent_id", "status", "story_id"]);
    let used = cluster.stored(&shim).await.metadata.annotations.unwrap_or_default()[LAST_USED].clone();
    assert!(used.starts_with("20"), "its use is written down: {used}");
    // Whoever emptied it by hand has taken the map away.
    for key in ["agent_id", "status", "story_id"] {
        shim.delete(key, None).await.expect("deleted");
    }
    assert_eq!(shim.set("b", "1", None).await, Ok(Outcome::Done { revision: Some(8) }));
}

#[tokio::test(start_paused = true)]
async fn reads_come_from_a_copy_and_never_lie_behind_own_writes() {
    let cluster = Cluster::new(2, 0);
    let shim = cluster.shim("planner", "spring", 0).await;
    let (here, elsewhere) = (&cluster.gateways[0], &cluster.gateways[1]);
    let get = || Operation::Get { key: "a".to_owned() };
    for gateway in [here, elsewhere] {
        assert_eq!(shim.ask_at(gateway, get()).await, Ok(Outcome::Absent));
    }
    let reads = cluster.door.reads.load(Ordering::Relaxed);
    for _ in 0..50 {
        assert_eq!(shim.ask_at(here, get()).await, Ok(Outcome::Absent));
    }
    assert_eq!(cluster.door.reads.load(Ordering::Relaxed), reads, "no request for any of them");
    shim.set("a", "1", None).await.expect("written");
    assert_eq!(shim.ask_at(elsewhere, get()).await, Ok(found("1", 2)), "through the gateway that has an old copy");
    // What others wrote is heard of within the time that a copy may be old.
    let other = cluster.shim("planner", "spring", 2).await;
    other.set("a", "2", None).await.expect("written");
    tokio::time::sleep(FRESH).await;
    assert_eq!(shim.ask_at(elsewhere, get()).await, Ok(found("2", 3)));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_reaches_its_own_memory_and_no_other() {
    let cluster = Cluster::new(1, 0);
    let mine = cluster.shim("planner", "spring", 1).await;
    let other_session = cluster.shim("planner", "summer", 2).await;
    let other_agent = cluster.shim("writer", "spring", 3).await;
    mine.set("secret", "1", None).await.expect("written");
    for other in [&other_session, &other_agent] {
        assert_eq!(other.get("secret").await, Ok(Outcome::Absent));
        assert_ne!(other.memory, mine.memory);
    }
    // Another process, another pod, another attempt: nothing of this is the one that has claimed.
    let with = |id: &str, pod: &str, attempt: i32| Shim {
        who: AttemptRef { id: id.to_owned(), attempt, ..mine.who.clone() },
        caller: Caller { pod_uid: pod.to_owned(), ..mine.caller.clone() },
        gateway: Arc::clone(&mine.gateway),
        memory: mine.memory.clone(),
        heard: std::sync::Mutex::default(),
        writes: Mutex::new(100),
    };
    let (id, pod) = (mine.who.id.as_str(), mine.caller.pod_uid.as_str());
    let stranger = "ffffffffffffffffffffffffffffffff";
    for (thief, reason) in [
        (with(stranger, pod, 1), Reason::AlreadyClaimed),
        (with(id, "another-pod", 1), Reason::AlreadyClaimed),
        (with(id, pod, 2), Reason::Fenced),
    ] {
        assert_eq!(thief.get("secret").await.expect_err("refused").reason, reason);
        assert_eq!(thief.set("secret", "2", None).await.expect_err("refused").reason, reason);
        assert_eq!(thief.delete("secret", None).await.expect_err("refused").reason, reason);
    }
    assert_eq!(mine.get("secret").await, Ok(found("1", 2)));
}

#[tokio::test(start_paused = true)]
async fn who_is_fenced_neither_writes_nor_reads_on() {
    let cluster = Cluster::new(1, 0);
    for (number, (change, reason)) in [
        (json!({"attempt": 2}), Reason::Fenced),
        (json!({"completedAt": "2026-01-01T00:00:00Z", "phase": "Failed"}), Reason::Fenced),
        (json!({"phase": "WaitingForInput"}), Reason::Fenced),
        (json!({"agent": {"report": {"attempt": 1, "class": "Succeeded", "digest": "d", "at": "2026-01-01T00:00:00Z"}}}), Reason::Fenced),
        (json!({"agent": null}), Reason::Fenced),
    ]
    .into_iter()
    .enumerate()
    {
        let shim = cluster.shim("planner", "spring", 10 + u32::try_from(number).expect("small")).await;
        shim.set("a", "1", None).await.expect("it holds its claim");
        cluster.set_status(&shim, change.clone()).await;
        assert_eq!(shim.set("a", "2", None).await.expect_err("refused").reason, reason, "{change}");
        tokio::time::sleep(STANDS).await;
        assert_eq!(shim.get("a").await.expect_err("refused").reason, reason, "{change}");
        assert_eq!(cluster.stored(&shim).await.spec.entries["a"].value, "1", "{change}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_late_or_twice_changes_nothing() {
    let cluster = Cluster::new(2, 0);
    let shim = cluster.shim("planner", "spring", 0).await;
    let other = cluster.shim("planner", "spring", 1).await;
    let first = Operation::Set { key: "a".to_owned(), value: "1".to_owned(), if_revision: None, sequence: 1 };
    assert_eq!(shim.ask_at(&cluster.gateways[0], first.clone()).await, Ok(Outcome::Done { revision: Some(2) }));
    other.set("a", "2", None).await.expect("written");
    // The reply was lost, and another gateway is asked.
    assert_eq!(shim.ask_at(&cluster.gateways[1], first.clone()).await, Ok(Outcome::Done { revision: Some(2) }));
    assert_eq!(shim.get("a").await, Ok(found("2", 3)));
    let second = Operation::Delete { key: "a".to_owned(), if_revision: None, sequence: 2 };
    shim.ask_at(&cluster.gateways[0], second).await.expect("deleted");
    assert_eq!(shim.ask_at(&cluster.gateways[1], first).await.expect_err("late").reason, Reason::Fenced);
    assert_eq!(shim.get("a").await, Ok(Outcome::Absent));
}

#[tokio::test(start_paused = true)]
async fn refusals_name_the_field_and_its_bound() {
    let cluster = Cluster::new(1, 0);
    let shim = cluster.shim("planner", "spring", 1).await;
    let long = format!("\"{}\"", "x".repeat(64 * 1024));
    for (key, value, if_revision, words) in [
        ("a/b", "1", None, "key: must be"),
        ("", "1", None, "key: must be"),
        ("k", long.as_str(), None, "value: has 65538 bytes, at most 65536"),
        ("k", "{", None, "value: is not JSON"),
        ("k", "1", Some(-1), "ifRevision: "),
    ] {
        let refused = shim.set(key, value, if_revision).await.expect_err("refused");
        assert!(refused.reason == Reason::BadRequest && refused.message.starts_with(words), "{refused:?}");
    }
    let big = format!("\"{}\"", "x".repeat(64 * 1024 - 2));
    for n in 0..3 {
        shim.set(&format!("k{n}"), &big, None).await.expect("it fits");
    }
    let refused = shim.set("k3", &big, None).await.expect_err("too much");
    assert!(refused.message.contains("at most 262144"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn who_writes_without_end_comes_again_and_nobody_else_waits() {
    let cluster = Cluster::new(1, 0);
    let (hasty, quiet) = (cluster.shim("planner", "spring", 1).await, cluster.shim("writer", "spring", 2).await);
    let big = format!("\"{}\"", "x".repeat(64 * 1024 - 2));
    let mut written = 0;
    let refused = loop {
        match hasty.set("a", &big, None).await {
            Ok(_) => written += 1,
            Err(refusal) => break refusal,
        }
        assert!(written < 200, "a bound in bytes");
    };
    assert!(refused.reason == Reason::Unavailable && refused.message.starts_with("memory: too much"), "{refused:?}");
    assert!((55..70).contains(&written), "about 4 MiB at once: {written}");
    assert_eq!(hasty.get("a").await, Ok(found(&big, written + 1)), "what was refused is not stored, and reads go on");
    assert_eq!(quiet.set("a", "1", None).await, Ok(Outcome::Done { revision: Some(2) }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(hasty.set("a", "1", None).await, Ok(Outcome::Done { revision: Some(written + 2) }));
}

#[tokio::test(start_paused = true)]
async fn a_memory_that_is_gone_or_anothers_is_told() {
    let cluster = Cluster::new(1, 0);
    let shim = cluster.shim("planner", "spring", 1).await;
    shim.get("a").await.expect("it is there");
    cluster.api::<Memory>().delete(&shim.memory, &DeleteParams::default()).await.expect("deleted");
    for told in [shim.set("a", "1", None).await.expect_err("gone"), {
        tokio::time::sleep(FRESH).await;
        shim.get("a").await.expect_err("gone")
    }] {
        assert!(told.reason == Reason::NotFound && told.message.contains("the next attempt"), "{told:?}");
    }
    // Two short digests that are the same.
    let mut foreign = Memory::new(&shim.memory, crate::api::MemorySpec::default());
    (foreign.spec.agent_id, foreign.spec.session) = ("other".to_owned(), "spring".to_owned());
    cluster.api::<Memory>().create(&PostParams::default(), &foreign).await.expect("made");
    assert_eq!(shim.get("a").await.expect_err("not its own").reason, Reason::NotFound);
    assert_eq!(shim.set("a", "1", None).await.expect_err("not its own").reason, Reason::NotFound);
}
