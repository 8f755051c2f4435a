//! The way of every request of the product to the API server, and of its answer back: time passes, answers are lost,
//! writes land late, watches lag and break, lists are old; and now and then the one who asks dies on the way.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes, to_bytes};
use futures::future::{BoxFuture, FutureExt, pending};
use futures::stream::{BoxStream, StreamExt, unfold};
use http::{Method, Request, Response, StatusCode};
use lockstep::apiserver::{ApiServer, Kind};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt};

use super::world::{Shared, Who, World, brief, enter};

/// Who asks, in which of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Operator(usize, u32),
    Gateway(u32),
}

impl Caller {
    pub fn who(self) -> Who {
        match self {
            Self::Operator(op, _) => Who::Operator(op),
            Self::Gateway(_) => Who::Gateway,
        }
    }
}

#[derive(Clone)]
pub struct Door {
    world: Shared,
    began: Instant,
    api: ApiServer,
    caller: Caller,
}

/// What becomes of a request.
#[derive(Debug, Default)]
struct Fate {
    /// Milliseconds until it reaches the server, and until its answer is back.
    there: i64,
    back: i64,
    ending: Ending,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    Answered,
    /// 500, and nothing was done.
    Refused,
    /// It was done, and the answer does not come: the connection breaks, or nothing is heard at all.
    Broken,
    Silent,
    /// It lands so many milliseconds after nobody waits for it any more.
    Late(i64),
    /// The caller dies before it is sent.
    Dies,
    /// Of a watch: what it asks for is not kept any more.
    Expired,
    /// Of a list: it is as many versions old.
    Old(u64),
}

impl Door {
    pub fn with(world: &Shared, began: Instant, api: ApiServer, caller: Caller) -> Self {
        Self { world: Shared::clone(world), began, api, caller }
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    async fn pass(self, request: Request<kube::client::Body>) -> Result<Response<Body>, BoxError> {
        let (head, body) = request.into_parts();
        let body = to_bytes(Body::new(body), usize::MAX).await?;
        let body = match self.caller {
            Caller::Gateway(_) => of_newer_gateway(&body).unwrap_or(body),
            Caller::Operator(..) => body,
        };
        let mut request = Request::from_parts(head, body);
        let about = About::of(&request);
        let fate = enter(&self.world).fate(self.caller, &request, &about);
        if fate.ending == Ending::Dies {
            enter(&self.world).die(self.caller);
            pending::<()>().await;
        }
        wait(fate.there).await;
        self.lives().await;
        match fate.ending {
            Ending::Refused => return Ok(refusal(500, "InternalError", "the server is out of order")),
            Ending::Expired => return Ok(expired()),
            Ending::Late(after) => {
                let late = self.clone();
                tokio::spawn(async move {
                    wait(after).await;
                    enter(&late.world).tell(|| format!("a write of {:?} lands late", late.caller.who()));
                    let _ = late.handled(request, &about).await;
                });
                return pending().await;
            }
            Ending::Old(versions) => make_old(&mut request, &self.world, versions),
            _ => {}
        }
        let response = self.handled(request, &about).await?;
        match fate.ending {
            Ending::Broken => return Err("the connection broke".into()),
            Ending::Silent => return pending().await,
            _ => {}
        }
        wait(fate.back).await;
        self.lives().await;
        Ok(if about.is_watch { self.watched(response, about.kind) } else { self.listed(response, &about).await })
    }

    /// The server's answer; what was written is judged, and heard of.
    async fn handled(&self, request: Request<Bytes>, about: &About) -> Result<Response<Body>, Infallible> {
        let line = enter(&self.world).story.is_some().then(|| About::told(&request));
        let response = self.api.clone().oneshot(request.map(Body::from)).await?;
        let mut world = enter(&self.world);
        let who = self.caller.who();
        if let Some(line) = line.filter(|_| about.is_write) {
            world.tell(|| format!("{who:?} {line} -> {}", response.status().as_u16()));
        }
        world.spread(who);
        Ok(response)
    }

    /// Whoever died meanwhile gets no answer any more.
    async fn lives(&self) {
        if !enter(&self.world).lives(self.caller) {
            pending::<()>().await;
        }
    }

    async fn listed(&self, response: Response<Body>, about: &About) -> Response<Body> {
        let (Caller::Operator(op, _), Some(kind), true) = (self.caller, about.kind, about.is_list) else {
            return response;
        };
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        if let Some(version) = version_in(&String::from_utf8_lossy(&body)) {
            enter(&self.world).hears(op, kind, version);
        }
        Response::from_parts(head, Body::from(body))
    }

    fn watched(self, response: Response<Body>, kind: Option<Kind>) -> Response<Body> {
        let (head, body) = response.into_parts();
        let chunks = body.into_data_stream().map(Result::unwrap_or_default).boxed();
        let watch = Watch { door: self, kind, chunks, lines: Vec::new() };
        let lines = unfold(watch, |mut watch| async move { watch.next().await.map(|line| (line, watch)) });
        Response::from_parts(head, Body::from_stream(lines.map(Ok::<_, Infallible>)))
    }
}

/// A watch on its way to the operator: line by line, with what lag there is, until it breaks.
struct Watch {
    door: Door,
    kind: Option<Kind>,
    chunks: BoxStream<'static, Bytes>,
    /// Lines that have come and are not told yet, the next one last.
    lines: Vec<String>,
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        if self.lines.is_empty() {
            let chunk = self.chunks.next().await?;
            let lines = String::from_utf8_lossy(&chunk).split_inclusive('\n').rev().map(str::to_owned).collect();
            self.lines = lines;
            let (lag, breaks) = enter(&self.door.world).lag(self.door.caller);
            wait(lag).await;
            if breaks {
                return None;
            }
        }
        // Some of them alone: the next ones come later.
        let some = enter(&self.door.world).how_many(self.lines.len());
        let now: Vec<String> = self.lines.split_off(self.lines.len() - some).into_iter().rev().collect();
        self.door.lives().await;
        if let (Caller::Operator(op, _), Some(kind)) = (self.door.caller, self.kind)
            && let Some(version) = now.last().and_then(|line| version_in(line))
        {
            enter(&self.door.world).hears(op, kind, version);
        }
        if !self.lines.is_empty() {
            wait(1).await;
        }
        Some(Bytes::from(now.concat()))
    }
}

impl Service<Request<kube::client::Body>> for Door {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        self.clone().pass(request).boxed()
    }
}

/// Gateways are of a newer version here than the operators: a claim holds a field that these do not know. They must leave it
/// (`judge_step_run`).
fn of_newer_gateway(body: &Bytes) -> Option<Bytes> {
    let mut operations: Value = serde_json::from_slice(body).ok()?;
    let claims = |operation: &&mut Value| operation["path"] == "/status/agent" && operation["value"].is_object();
    let claim = operations.as_array_mut()?.iter_mut().find(claims)?;
    claim["value"]["newer"] = json!({"kept": true});
    Some(Bytes::from(operations.to_string()))
}

/// What a request is about, as far as its fate depends on it.
pub struct About {
    pub kind: Option<Kind>,
    pub is_watch: bool,
    pub is_list: bool,
    /// It changes something, and may be lost.
    pub is_write: bool,
    pub creates: bool,
}

impl About {
    fn of(request: &Request<Bytes>) -> Self {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let kind = Kind::ALL.into_iter().find(|kind| {
            let plural = kind.plural();
            path.split('/').any(|part| part == plural) && *kind != Kind::Namespace
        });
        let is_get = request.method() == Method::GET;
        let ends_with_kind = kind.is_some_and(|kind| path.ends_with(kind.plural()));
        let is_aside = matches!(kind, Some(Kind::Event) | None);
        Self {
            kind,
            is_watch: query.contains("watch=true"),
            is_list: is_get && ends_with_kind && !query.contains("watch=true"),
            is_write: !is_get && !query.contains("dryRun") && !is_aside,
            creates: request.method() == Method::POST,
        }
    }

    fn told(request: &Request<Bytes>) -> String {
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let path = request.uri().path().rsplit("/namespaces/").next().unwrap_or_default();
        let what = match *request.method() {
            Method::POST => body["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            Method::PATCH if body["status"].is_object() => brief(&body["status"]),
            Method::PATCH => body.as_array().and_then(|o| o.last()).unwrap_or(&body).to_string(),
            _ => String::new(),
        };
        format!("{} {path} {what}", request.method())
    }
}

impl World {
    fn lives(&self, caller: Caller) -> bool {
        match caller {
            Caller::Operator(op, epoch) => self.operators[op].epoch == epoch,
            Caller::Gateway(epoch) => self.gateway.epoch == epoch,
        }
    }

    fn die(&mut self, caller: Caller) {
        match caller {
            _ if !self.lives(caller) => {}
            Caller::Operator(op, _) => self.crash(op),
            Caller::Gateway(_) => self.crash_gateway(),
        }
    }

    fn hears(&mut self, op: usize, kind: Kind, version: u64) {
        let now = self.now;
        self.operators[op].hears(kind, now, version);
    }

    fn fate(&mut self, caller: Caller, request: &Request<Bytes>, about: &About) -> Fate {
        let mut fate = Fate { there: self.chance.between(1, 3), back: self.chance.between(0, 3), ..Fate::default() };
        if about.is_watch {
            if self.chance.mille(self.faults.gap * 2) {
                fate.ending = Ending::Expired;
            }
        } else if about.is_list {
            // A list that names no version shows what is stored: Kubernetes promises it, and whether a StepRun is gone for good
            // is asked so, in its namespace. Those that fill a cache are treated worse than that.
            let fills_cache = !request.uri().path().contains("/namespaces/");
            if fills_cache && self.chance.mille(self.faults.gap * 2) {
                fate.ending = Ending::Old(self.chance.below(12));
            }
        } else if !about.is_write {
            if self.chance.mille(self.faults.lost_reply / 4) {
                fate.ending = Ending::Refused;
            }
        } else if about.kind != Some(Kind::Lease) {
            self.write_fate(caller, about, &mut fate);
        }
        if let Caller::Operator(op, _) = caller {
            self.judge_request(op, about);
            fate.there += (self.operators[op].stalled_until - self.now).max(0);
        }
        if fate.ending != Ending::Answered {
            self.tell(|| {
                format!("{:?} {} {}: {:?}", caller.who(), request.method(), request.uri().path(), fate.ending)
            });
        }
        fate
    }

    fn write_fate(&mut self, caller: Caller, about: &About, fate: &mut Fate) {
        if self.chance.mille(self.faults.stall) {
            let by = self.chance.between(1_000, 60_000);
            match caller {
                Caller::Operator(op, _) => self.operators[op].stalled_until = self.now + by,
                Caller::Gateway(_) => fate.there += by,
            }
            self.tell(|| format!("{:?} stands still for {} s", caller.who(), by / 1000));
        }
        let crash = self.faults.crash / if matches!(caller, Caller::Gateway(_)) { 4 } else { 1 };
        fate.ending = if self.chance.mille(crash) {
            Ending::Dies
        } else if self.chance.mille(self.faults.late) {
            Ending::Late(self.chance.between(1_000, 120_000))
        } else if self.chance.mille(self.faults.lost_reply) {
            *self.chance.pick(&[Ending::Broken, Ending::Broken, Ending::Silent, Ending::Refused])
        } else {
            Ending::Answered
        };
        let unknown = !matches!(fate.ending, Ending::Answered | Ending::Refused);
        self.judge.blind |= unknown && about.creates && about.kind == Some(Kind::Job);
    }

    /// How long news are on their way, and whether the watch breaks instead.
    fn lag(&mut self, caller: Caller) -> (i64, bool) {
        let most = if self.chance.mille(self.faults.lag) { 15_000 } else { 25 };
        let mut lag = self.chance.between(1, most);
        if let Caller::Operator(op, _) = caller {
            lag = lag.max(self.operators[op].stalled_until - self.now);
        }
        (lag, self.chance.mille(self.faults.gap))
    }

    fn how_many(&mut self, there: usize) -> usize {
        if there > 1 && self.chance.mille(self.faults.lag) { 1 } else { there }
    }
}

async fn wait(millis: i64) {
    if let Some(millis) = u64::try_from(millis).ok().filter(|m| *m > 0) {
        sleep(Duration::from_millis(millis)).await;
    }
}

/// The first version that stands in a text: that of the object or of the list.
fn version_in(text: &str) -> Option<u64> {
    let (_, behind) = text.split_once("\"resourceVersion\":\"")?;
    behind.split_once('"')?.0.parse().ok()
}

fn make_old(request: &mut Request<Bytes>, world: &Shared, versions: u64) {
    let now = enter(world).server.log.len() as u64;
    let version = now.saturating_sub(versions).max(1);
    let old = format!("{}&resourceVersion={version}&resourceVersionMatch=Exact", request.uri());
    if now > 0 && !request.uri().query().unwrap_or_default().contains("continue=") {
        *request.uri_mut() = old.parse().expect("a URI");
    }
}

fn refusal(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": message});
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).expect("a code");
    response
}

fn expired() -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
        "message": "too old resource version"});
    Response::new(Body::from(format!("{}\n", json!({"type": "ERROR", "object": status}))))
}
