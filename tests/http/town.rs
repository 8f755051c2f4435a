//! A small world: the API server in memory, operator, gateway, the API under test, and nodes whose agents are functions.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Method, Request, Response, header};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, ResourceExt};
use lockstep::api::StepRun;
use lockstep::api::name::{self, CANARY, DECISION};
use lockstep::apiserver::access::{Access, Attributes, Operation};
use lockstep::apiserver::{ApiServer, Key, Kind, MemoryStore, Part, Registry, Writer};
use lockstep::cluster::clock::Clock;
use lockstep::cluster::evaluator::Evaluator;
use lockstep::cluster::guard::FILES;
use lockstep::cluster::sinks::Sinks;
use lockstep::decide::mail;
use lockstep::gateway;
use lockstep::http::{Bounds, Service, Settings};
use lockstep::protocol::{self, AttemptRef, ClaimRequest, Claimed, Ending, Output, ProgressRequest, ReportRequest};
use lockstep::telemetry::traces::Traces;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

use super::operator::{GATEWAY, OPERATOR, operator};

pub const NAMESPACE: &str = "team";
pub const OWN: &str = "system:serviceaccount:lockstep-system:lockstep-api";
pub const BEGAN: &str = "2026-11-21T10:00:00Z";

/// What an agent does in one attempt.
#[derive(Clone, Debug, Default)]
pub struct Deed {
    pub seconds: f64,
    /// At which second it says how far it is.
    pub progress: Vec<(f64, i32)>,
    pub output: Value,
    pub document: Option<String>,
    pub code: i32,
}

pub type Script = Arc<dyn Fn(&Value) -> Deed + Send + Sync>;

/// Rights that somebody does not have: user, verb, resource, name (empty: any).
type Denied = (String, String, String, String);

/// What rights there are, and who holds which token: `token-NAME`, and those of pods.
#[derive(Clone, Default)]
struct Rules {
    denied: Arc<Mutex<HashSet<Denied>>>,
    revoked: Arc<Mutex<HashSet<String>>>,
    /// Sessions of which the first record is refused, and how often it was.
    walled: Arc<Mutex<HashMap<String, usize>>>,
}

impl Rules {
    /// As a policy of somebody else's would.
    fn keeps_out(&self, write: &Attributes<'_>) -> Result<(), String> {
        let new = write.new.filter(|_| write.kind == Kind::Workflow && write.part == Part::Status);
        let session = new.and_then(|new| new["status"]["session"]["id"].as_str());
        match session.and_then(|session| lock(&self.walled).get_mut(session).map(|times| *times += 1)) {
            Some(()) => Err("no-sessions/v1: nobody begins here".to_owned()),
            None => Ok(()),
        }
    }
}

impl Access for Rules {
    fn admit(&self, write: &Attributes<'_>) -> Result<(), String> {
        self.keeps_out(write)?;
        if write.kind != Kind::StepRun || write.operation != Operation::Update {
            return Ok(());
        }
        let Some(new) = write.new else { return Ok(()) };
        let notes = &new["metadata"]["annotations"];
        let probes = match write.part {
            Part::Main => !notes[CANARY].is_null(),
            Part::Status => !new["status"]["canary"].is_null(),
        };
        if probes {
            let policy = if write.part == Part::Main { "lockstep-gate" } else { "lockstep-status" };
            return Err(format!("{policy}/v1: canary ok"));
        }
        let had = write.old.is_some_and(|old| !old.value["metadata"]["annotations"][DECISION].is_null());
        if !notes[DECISION].is_null() && !had && write.user.starts_with("system:") {
            return Err(format!("lockstep-gate/v1: only people decide; {} is a machine identity", write.user));
        }
        let before =
            write.old.and_then(lockstep::apiserver::Object::typed::<StepRun>).filter(|_| write.part == Part::Main);
        let after = serde_json::from_value::<ObjectMeta>(new["metadata"].clone()).ok();
        if before.zip(after).is_some_and(|(before, after)| mail::comes_late(&before, &after)) {
            return Err("lockstep-gate/v1: too late, the deadline had passed".to_owned());
        }
        Ok(())
    }

    fn authenticate(&self, token: &str, audiences: &[String]) -> Option<(UserInfo, Vec<String>)> {
        if audiences.is_empty() {
            let user = token.strip_prefix("token-")?;
            let known = !lock(&self.revoked).contains(user);
            return known.then(|| (UserInfo { username: Some(user.to_owned()), ..UserInfo::default() }, Vec::new()));
        }
        let mut parts = token.splitn(3, '|');
        let (pod, uid, audience) = (parts.next()?, parts.next()?, parts.next()?);
        let extra = |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        let user = UserInfo {
            username: Some(format!("system:serviceaccount:{NAMESPACE}:default")),
            extra: Some([extra("pod-name", pod), extra("pod-uid", uid)].into()),
            ..UserInfo::default()
        };
        audiences.iter().any(|a| a == audience).then(|| (user, vec![audience.to_owned()]))
    }

    fn authorize(&self, user: &str, wanted: &ResourceAttributes) -> bool {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let (verb, resource, name) = (text(&wanted.verb), text(&wanted.resource), text(&wanted.name));
        let denied = lock(&self.denied);
        let is = |name: &str| denied.contains(&(user.to_owned(), verb.clone(), resource.clone(), name.to_owned()));
        // Who lacks it for one may have no right to all of them.
        let some = denied.iter().any(|(u, v, r, _)| *u == user && *v == verb && *r == resource);
        !(is("") || is(&name) || name.is_empty() && some)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way from the API under test to the API server, or that of operator and gateway: requests are counted, held up, and
/// cut off.
#[derive(Clone)]
pub struct Door {
    api: ApiServer,
    /// Method and path without names, by how often.
    pub asked: Arc<Mutex<BTreeMap<String, usize>>>,
    /// Closed while somebody holds it.
    pub open: Arc<tokio::sync::RwLock<()>>,
    /// After so many more requests none comes back.
    pub left: Arc<AtomicUsize>,
    /// Told when the first of them does not.
    pub dies: Arc<Notify>,
    /// Draws how long each request is on its way, and its answer.
    pace: Arc<Mutex<Option<fastrand::Rng>>>,
    most: Arc<AtomicU64>,
}

impl Door {
    fn new(api: ApiServer) -> Self {
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        Self {
            api,
            asked: Arc::default(),
            open: Arc::default(),
            left,
            dies: Arc::default(),
            pace: Arc::default(),
            most: Arc::default(),
        }
    }

    /// From now on each request and each answer takes up to that many milliseconds.
    pub fn takes(&self, milliseconds: u64, seed: u64) {
        self.most.store(milliseconds, Ordering::SeqCst);
        *lock(&self.pace) = Some(fastrand::Rng::with_seed(seed));
    }

    async fn way(&self) {
        let most = self.most.load(Ordering::SeqCst);
        let took = lock(&self.pace).as_mut().map(|pace| pace.u64(0..=most));
        if let Some(milliseconds) = took {
            sleep(Duration::from_millis(milliseconds)).await;
        }
    }

    /// How often it was asked for objects of that kind.
    pub fn asked_for(&self, kind: Kind) -> usize {
        let line = format!(" {}", kind.plural());
        lock(&self.asked).iter().filter(|(asked, _)| asked.ends_with(&line)).map(|(_, times)| times).sum()
    }
}

impl tower::Service<Request<kube::client::Body>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let door = self.clone();
        async move {
            let path = request.uri().path().to_owned();
            let kind = Kind::ALL.into_iter().find(|kind| path.split('/').any(|part| part == kind.plural()));
            let kind = kind.filter(|kind| *kind != Kind::Namespace).map(Kind::plural);
            let kind = kind.unwrap_or_else(|| path.rsplit('/').next().unwrap_or_default());
            let line = format!("{} {kind}", request.method());
            *lock(&door.asked).entry(line).or_default() += 1;
            drop(door.open.read().await);
            door.way().await;
            let take = |left: usize| (left > 0 && left != usize::MAX).then(|| left - 1);
            if door.left.load(Ordering::SeqCst) == 0 {
                door.dies.notify_one();
                std::future::pending::<()>().await;
            }
            let answer = door.api.clone().oneshot(request).await;
            door.way().await;
            if door.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) == Ok(1) {
                // It was done, and nobody hears of it.
                door.dies.notify_one();
                std::future::pending::<()>().await;
            }
            answer
        }
        .boxed()
    }
}

pub struct Town {
    pub api: ApiServer,
    pub door: Door,
    /// Those of operator and gateway.
    pub inside: [Door; 2],
    pub service: Service,
    rules: Rules,
    began: Instant,
    bounds: Bounds,
    settings: Settings,
    scripts: Arc<Mutex<HashMap<String, Script>>>,
    /// Contexts that agents were given, with the environment of their process, by agent.
    pub given: Arc<Mutex<Vec<(String, Value)>>>,
    operator: (kube::Client, AbortHandle),
    tasks: JoinSet<()>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Town {
    pub async fn open() -> Self {
        Self::with(Bounds::default()).await
    }

    pub async fn with(bounds: Bounds) -> Self {
        Self::traced(bounds, Traces::default()).await
    }

    /// Operator and gateway tell of what has ended.
    pub async fn traced(bounds: Bounds, traces: Traces) -> Self {
        Self::built(bounds, traces, Sinks::default()).await
    }

    /// Receivers outside of the cluster are told what happens.
    pub async fn telling(sinks: Sinks) -> Self {
        Self::built(Bounds::default(), Traces::default(), sinks).await
    }

    async fn built(bounds: Bounds, traces: Traces, sinks: Sinks) -> Self {
        let began = Instant::now();
        let rules = Rules::default();
        let clock = move || now(began);
        let registry =
            Registry::new(Box::<MemoryStore>::default(), Box::new(rules.clone()), Box::new(clock), "town".to_owned());
        let api = ApiServer::new(registry, "admin");
        place_policies(&api);
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let api = api.clone();
            async move { api.collect_garbage().await }
        });
        let inside = [OPERATOR, GATEWAY].map(|account| Door::new(api.as_user(account)));
        let [for_operator, for_gateway] = inside.clone().map(|door| kube::Client::new(door, NAMESPACE));
        let working = tasks.spawn(operator(for_operator.clone(), Clock::of(clock), (traces.clone(), sinks)));
        let scripts: Arc<Mutex<HashMap<String, Script>>> = Arc::default();
        let given: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        tasks.spawn(nodes((api.clone(), for_gateway, traces.clone()), began, Arc::clone(&scripts), Arc::clone(&given)));
        let door = Door::new(api.as_user("system:anonymous"));
        let settings = Settings { default_namespace: NAMESPACE.to_owned(), run_permission: true };
        let service = served(&api, &door, (&settings, &bounds), began).await;
        let operator = (for_operator, working);
        Self { api, door, inside, service, rules, began, bounds, settings, scripts, given, operator, tasks }
    }

    /// The operator dies, and another one, which remembers nothing, works in its place.
    pub fn replace_operator(&mut self, sinks: Sinks) {
        self.operator.1.abort();
        let began = self.began;
        let clock = Clock::of(move || now(began));
        let next = operator(self.operator.0.clone(), clock, (Traces::default(), sinks));
        self.operator.1 = self.tasks.spawn(next);
    }

    /// The pod of the API is gone, with all that it had under way; another one is there.
    pub async fn restart(&mut self) {
        self.service.watching.abort_all();
        self.door.left.store(usize::MAX, Ordering::SeqCst);
        self.service = served(&self.api, &self.door, (&self.settings, &self.bounds), self.began).await;
    }

    pub fn deny(&self, user: &str, verb: &str, resource: &str, name: &str) {
        let denied = [user, verb, resource, name].map(str::to_owned);
        let [user, verb, resource, name] = denied;
        lock(&self.rules.denied).insert((user, verb, resource, name));
    }

    /// No run of that session gets its record.
    pub fn wall(&self, session: &str) {
        lock(&self.rules.walled).insert(session.to_owned(), 0);
    }

    /// How often it was refused.
    pub fn walled(&self, session: &str) -> usize {
        lock(&self.rules.walled).get(session).copied().unwrap_or_default()
    }

    pub fn revoke(&self, user: &str) {
        lock(&self.rules.revoked).insert(user.to_owned());
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    // ---- what there is

    pub fn make(&self, kind: Kind, name: &str, spec: &Value) {
        let object =
            json!({"apiVersion": kind.api_version(), "kind": kind.name(), "metadata": {"name": name}, "spec": spec});
        let key = Key::new(kind, NAMESPACE, name);
        let by = Writer { user: "admin", is_dry_run: false };
        self.api.with(|registry| registry.create(&key, object, by)).expect("it is made");
    }

    pub fn objects(&self, kind: Kind) -> Vec<Value> {
        self.api.with(|registry| registry.store().list(kind).iter().map(|object| object.value.clone()).collect())
    }

    /// An Agent that does this; `more` is laid over its spec.
    pub fn agent(&self, name: &str, more: &Value, script: impl Fn(&Value) -> Deed + Send + Sync + 'static) {
        let mut spec = json!({"template": {"spec": {"containers": [{"name": "agent", "image": "x", "command": ["x"]}]}},
            "retry": {"maxAttempts": 1}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        lock(&self.scripts).insert(name.to_owned(), Arc::new(script));
        self.make(Kind::Agent, name, &spec);
    }

    /// A flow of one step by the agent of its name.
    pub fn flow(&self, name: &str, more: &Value) {
        let mut step = json!({"name": "work", "agentId": name});
        for (key, value) in more.as_object().into_iter().flatten() {
            step[key] = value.clone();
        }
        self.make(Kind::WorkflowTemplate, name, &json!({"steps": [step], "onFailure": "Fail"}));
    }

    /// A flow whose one agent gives the input back at once.
    pub fn echo(&self, name: &str) {
        self.agent(name, &json!({}), |context| Deed { output: context["input"].clone(), ..Deed::default() });
        self.flow(name, &json!({}));
    }

    // ---- requests

    pub fn request(user: &str, method: &str, path: &str, body: &Value) -> Request<Body> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let builder =
            Request::builder().method(method).uri(path).header(header::AUTHORIZATION, format!("Bearer token-{user}"));
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        builder.body(body).expect("a request")
    }

    pub async fn ask(&self, user: &str, method: &str, path: &str, body: Value) -> Reply {
        self.send(Self::request(user, method, path, &body)).await
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        send(self.service.router.clone(), request).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.ask("ann", "GET", path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.ask("ann", "POST", path, body).await
    }

    /// Opens a stream.
    pub async fn stream(&self, user: &str, path: &str, last_id: Option<&str>) -> Events {
        let mut request = Self::request(user, "GET", path, &Value::Null);
        if let Some(id) = last_id {
            request.headers_mut().insert("last-event-id", id.parse().expect("a header"));
        }
        let response = self.service.router.clone().oneshot(request).await.expect("never fails");
        assert_eq!(response.status().as_u16(), 200, "the stream opens");
        Events::of(response)
    }

    /// Follows the run to its end; the last event.
    pub async fn end(&self, run: &str) -> Event {
        let events = self.stream("ann", &format!("/runs/{run}/events"), None).await.all().await;
        events.last().cloned().expect("an end")
    }

    /// Waits until the check is content.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        for _ in 0..6_000 {
            if let Some(found) = look() {
                return found;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("not within ten minutes: {what}");
    }
}

pub async fn send(router: Router, request: Request<Body>) -> Reply {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = router.oneshot(request).await.expect("never fails");
    let (head, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.expect("a body");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let reply = Reply {
        code: head.status.as_u16(),
        headers: head.headers,
        body: serde_json::from_str(&text).unwrap_or_default(),
        text,
    };
    documented(&method, &path, &reply);
    reply
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    #[track_caller]
    pub fn is(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }
}

static OPENAPI: LazyLock<Value> = LazyLock::new(lockstep::http::openapi);

/// Every answer is one that the OpenAPI document knows, in its code and in its body.
fn documented(method: &Method, path: &str, reply: &Reply) {
    let fits = |template: &str| {
        let (parts, wanted): (Vec<&str>, Vec<&str>) = (path.split('/').collect(), template.split('/').collect());
        let step = wanted.iter().position(|part| *part == "{step}");
        let (parts, wanted) = match step {
            // A step may have slashes.
            Some(at) if parts.len() >= wanted.len() => {
                let tail = parts.len() - (wanted.len() - at - 1);
                ([&parts[..at], &["x"][..], &parts[tail..]].concat(), wanted)
            }
            _ => (parts, wanted),
        };
        parts.len() == wanted.len()
            && parts.iter().zip(&wanted).all(|(part, wanted)| part == wanted || wanted.starts_with('{'))
    };
    let paths = OPENAPI["paths"].as_object().expect("paths");
    let best =
        paths.iter().filter(|(template, _)| fits(template)).min_by_key(|(template, _)| template.matches('{').count());
    let Some((template, methods)) = best else {
        assert!(matches!(reply.code, 200 | 404), "{method} {path}: {}", reply.code);
        return;
    };
    let operation = &methods[method.as_str().to_ascii_lowercase()];
    if operation.is_null() {
        assert_eq!(reply.code, 405, "{method} {path}");
        return;
    }
    let said = &operation["responses"][reply.code.to_string()];
    assert!(said.is_object(), "{method} {template} answers {}, which is not documented: {}", reply.code, reply.text);
    let schema = &said["content"]["application/json"]["schema"];
    if schema.is_object() && reply.header("content-type") == "application/json" {
        let mut whole = schema.clone();
        whole["components"] = OPENAPI["components"].clone();
        let validator = jsonschema::validator_for(&whole).expect("a schema");
        // 409 is a refusal of the call, or a run that was cancelled.
        let faults: Vec<String> = validator.iter_errors(&reply.body).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{method} {template} {}: {faults:?} in {}", reply.code, reply.text);
    }
}

/// Server-sent events as they come.
pub struct Events {
    chunks: BoxStream<'static, Bytes>,
    text: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

impl Events {
    pub fn of(response: Response<Body>) -> Self {
        let kind =
            response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!(kind, "text/event-stream");
        let chunks = response.into_body().into_data_stream().map(|chunk| chunk.expect("a chunk")).boxed();
        Self { chunks, text: String::new() }
    }

    /// The next event; none at the end. Comments are passed over.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((one, rest)) = self.text.split_once("\n\n") {
                let (one, rest) = (one.to_owned(), rest.to_owned());
                self.text = rest;
                let mut event = Event::default();
                for line in one.lines() {
                    match line.split_once(": ") {
                        Some(("event", name)) => name.clone_into(&mut event.name),
                        Some(("id", id)) => event.id = Some(id.to_owned()),
                        Some(("data", data)) => event.data = serde_json::from_str(data).expect("JSON"),
                        _ => {}
                    }
                }
                if !event.name.is_empty() {
                    return Some(event);
                }
                continue;
            }
            let chunk = self.chunks.next().await?;
            self.text.push_str(&String::from_utf8_lossy(&chunk));
        }
    }

    pub async fn all(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The names of the facts that were told.
pub fn ids(events: &[Event]) -> BTreeSet<String> {
    events.iter().filter_map(|event| event.data["id"].as_str().map(str::to_owned)).collect()
}

async fn served(api: &ApiServer, door: &Door, (settings, bounds): (&Settings, &Bounds), began: Instant) -> Service {
    // What the pod asks in its own name is lost with the rest, but nobody counts its watches.
    let own = Door {
        api: api.as_user(OWN),
        asked: Arc::default(),
        open: Arc::default(),
        left: Arc::clone(&door.left),
        dies: Arc::clone(&door.dies),
        pace: Arc::default(),
        most: Arc::default(),
    };
    let own = kube::Client::new(own, "lockstep-system");
    let door = kube::Client::new(door.clone(), "default");
    let around = (Evaluator::here(), Clock::of(move || now(began)));
    let service = Service::new((&own, door), around, settings.clone(), bounds);
    service.filled().await;
    service
}

fn now(began: Instant) -> Timestamp {
    let start: Timestamp = BEGAN.parse().expect("a time");
    start + SignedDuration::try_from(began.elapsed()).expect("it fits")
}

/// The objects that the operator looks for before a gate opens.
fn place_policies(api: &ApiServer) {
    let by = Writer { user: "admin", is_dry_run: false };
    for file in FILES {
        for object in serde_saphyr::from_multiple::<Value>(file).expect("the chart's YAML") {
            let is = |kind: &Kind| object["kind"] == kind.name();
            let Some(kind) = Kind::ALL.into_iter().find(is) else { continue };
            let key = Key::new(kind, "", object["metadata"]["name"].as_str().expect("a name"));
            api.with(|registry| registry.create(&key, object.clone(), by)).expect("it is made");
        }
    }
}

/// Job controller, kubelet and shim in one: each Job gets its pod, each pod claims, works and reports.
async fn nodes(
    (api, gateway, traces): (ApiServer, kube::Client, Traces),
    began: Instant,
    scripts: Arc<Mutex<HashMap<String, Script>>>,
    given: Arc<Mutex<Vec<(String, Value)>>>,
) {
    let bounds = gateway::Bounds {
        max_connections: 64,
        max_connections_per_address: 64,
        max_handshakes_per_address: 64,
        max_inputs: 16,
        max_outputs: 16,
    };
    let clock = Clock::of(move || now(began));
    let gateway = gateway::calls(gateway, &bounds, Evaluator::here(), clock, traces);
    let jobs: Api<Job> = Api::all(api.client(NAMESPACE));
    let mut seen = HashSet::new();
    let mut events = watcher(jobs, watcher::Config::default()).boxed();
    let mut pods = JoinSet::new();
    while let Some(event) = events.next().await {
        let Ok(watcher::Event::Apply(job) | watcher::Event::InitApply(job)) = event else { continue };
        if seen.insert(job.uid()) {
            let (api, gateway, scripts, given) =
                (api.clone(), gateway.clone(), Arc::clone(&scripts), Arc::clone(&given));
            pods.spawn(async move { pod(&api, gateway, &job, &scripts, &given).await });
        }
    }
}

async fn pod(
    api: &ApiServer,
    gateway: Router,
    job: &Job,
    scripts: &Mutex<HashMap<String, Script>>,
    given: &Mutex<Vec<(String, Value)>>,
) -> Option<()> {
    let client = api.client(NAMESPACE);
    let label = |key: &str| job.labels().get(key).cloned().unwrap_or_default();
    let (step_run, attempt) = (label(name::LABEL_STEP_RUN), label(name::LABEL_ATTEMPT));
    let step_uid = job.owner_references().first()?.uid.clone();
    let pod_name = format!("{}-pod", job.name_any());
    let annotations = job.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()?.annotations.clone());
    let made = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name, "namespace": NAMESPACE, "labels": job.labels(), "annotations": annotations,
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job.name_any(), "uid": job.uid(), "controller": true}]},
        "spec": {"containers": []}});
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let made =
        pods.create(&kube::api::PostParams::default(), &serde_json::from_value(made).expect("a pod")).await.ok()?;
    let attempt = AttemptRef {
        namespace: NAMESPACE.to_owned(),
        step_run,
        uid: step_uid.clone(),
        attempt: attempt.parse().ok()?,
        id: format!("{:032x}", fastrand::u128(..)),
    };
    let audience = name::audience(&step_uid, attempt.attempt);
    let token = format!("{pod_name}|{}|{audience}", made.uid()?);
    let shim = Shim { gateway, attempt, token, traceparent: environment(job, protocol::env::TRACEPARENT)? };
    let claim = serde_json::to_value(ClaimRequest { shim_version: "0".to_owned() }).expect("JSON");
    let claimed: Claimed = loop {
        let (code, body) = shim.call(protocol::CLAIM, &claim).await;
        match code {
            200 => break serde_json::from_slice(&body).expect("a claim"),
            401 | 403 | 503 => sleep(Duration::from_millis(50)).await,
            _ => return None,
        }
    };
    let agent = label(name::LABEL_AGENT);
    let mut told = claimed.context.clone();
    told["env"] = claimed.env.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    lock(given).push((agent.clone(), told));
    let script = lock(scripts).get(&agent).cloned()?;
    let deed = script(&claimed.context);
    let mut at = 0.0;
    for (second, percent) in &deed.progress {
        sleep(Duration::from_secs_f64(second - at)).await;
        at = *second;
        let said = ProgressRequest { percent: *percent, message: format!("at {second}") };
        shim.call(protocol::PROGRESS, &serde_json::to_value(said).expect("JSON")).await;
    }
    sleep(Duration::from_secs_f64((deed.seconds - at).max(0.0))).await;
    let output = Output { result: Some(deed.output.to_string()), document: deed.document, ..Output::default() };
    let report =
        ReportRequest { ending: Ending::exited(deed.code), output, log_tail: "the end".to_owned(), usage: None };
    shim.call(protocol::REPORT, &serde_json::to_value(report).expect("JSON")).await;
    let phase = if deed.code == 0 { "Succeeded" } else { "Failed" };
    let key = Key::new(Kind::Pod, NAMESPACE, &pod_name);
    let by = Writer { user: "admin", is_dry_run: false };
    let patch = json!({"status": {"phase": phase}});
    let _ = api.with(|registry| registry.patch(&key, Part::Status, (lockstep::apiserver::Format::Merge, &patch), by));
    Some(())
}

/// What the agent's container of the pod is told under that name.
fn environment(job: &Job, name: &str) -> Option<String> {
    let pod = job.spec.as_ref()?.template.spec.as_ref()?;
    let own = pod.containers.iter().find(|container| container.name == "agent")?;
    own.env.iter().flatten().find(|variable| variable.name == name)?.value.clone()
}

struct Shim {
    gateway: Router,
    attempt: AttemptRef,
    token: String,
    traceparent: String,
}

impl Shim {
    async fn call(&self, path: &str, body: &Value) -> (u16, Bytes) {
        let mut request = Request::post(path).header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        for (name, value) in self.attempt.headers() {
            request = request.header(name, value);
        }
        let request = request.header(protocol::TRACEPARENT, &self.traceparent);
        let request = request.body(Body::from(body.to_string())).expect("a request");
        let response = self.gateway.clone().oneshot(request).await.expect("never fails");
        let code = response.status().as_u16();
        (code, to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default())
    }
}
