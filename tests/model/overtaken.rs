//! Whatever a gateway reads of an attempt may be over when it writes: right before each request that a call makes to the API
//! server, the operator moves the fence. From then on nothing of the attempt is written, in whatever call.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use k8s_openapi::jiff::Timestamp;
use lockstep::apiserver::{ApiServer, Kind};
use lockstep::cluster::clock::Clock;
use lockstep::cluster::evaluator::Evaluator;
use lockstep::gateway::calls;
use lockstep::protocol::{self, AttemptRef};
use lockstep::telemetry::traces::Traces;
use serde_json::{Value, json};
use tower::{Service, ServiceExt};

use super::attempt::{self, Attempt, BOUNDS, TEAM};

/// What happens on the way to the API server.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    /// The operator moves the fence before a request.
    FenceMoves,
    /// The API server does not place a patch among other writes, and says so.
    PatchConflicts,
}

/// The way of a gateway to the API server.
#[derive(Clone)]
struct Way {
    api: ApiServer,
    step_run: String,
    trouble: Trouble,
    /// Requests that come before that: patches, where it is a patch that meets it.
    left: Arc<AtomicUsize>,
    /// What stood in `status.agent` right after it, once it has happened.
    after: Arc<Mutex<Option<Value>>>,
}

impl Way {
    fn status(&self) -> Value {
        attempt::stored(&self.api, &self.step_run)["status"].clone()
    }

    fn move_fence(&self) {
        let moved = json!({"attempt": 2, "job": {"attempt": 2, "name": "next", "uid": "next"}});
        attempt::set_status(&self.api, Kind::StepRun, &self.step_run, &moved);
    }

    /// Whether it happens to this request; it happens once.
    fn is_met_by(&self, request: &Request<kube::client::Body>) -> bool {
        if self.trouble == Trouble::PatchConflicts && request.method() != Method::PATCH {
            return false;
        }
        let turn = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        turn == Err(0) && self.after().is_none()
    }

    fn after(&self) -> Option<Value> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn conflict() -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409,
        "message": "Operation cannot be fulfilled: the object has been modified"});
    let response = Response::builder().status(StatusCode::CONFLICT).header(header::CONTENT_TYPE, "application/json");
    response.body(Body::from(status.to_string())).expect("a response")
}

impl Service<Request<kube::client::Body>> for Way {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let way = self.clone();
        let is_met = self.is_met_by(&request);
        if is_met {
            if self.trouble == Trouble::FenceMoves {
                self.move_fence();
            }
            *self.after.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.status()["agent"].clone());
        }
        let is_refused = is_met && self.trouble == Trouble::PatchConflicts;
        Box::pin(async move { if is_refused { Ok(conflict()) } else { way.api.oneshot(request).await } })
    }
}

/// A first attempt with its pod, and the gateway that it speaks to.
struct Scene {
    way: Way,
    who: AttemptRef,
    token: String,
}

impl Scene {
    /// Nothing happens yet.
    fn new(trouble: Trouble) -> Self {
        let attempt = Attempt::new(&json!({}));
        let (step_run, uid) = (attempt.own(), attempt.uid());
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let way = Way { api: attempt.api, step_run: step_run.clone(), trouble, left, after: Arc::default() };
        let who = AttemptRef { namespace: TEAM.to_owned(), step_run, uid, attempt: 1, id: "0".repeat(32) };
        Self { way, who, token: attempt.token }
    }

    async fn call(&self, path: &str, body: &Value) -> u16 {
        let client = kube::Client::new(self.way.clone(), TEAM);
        let clock = Clock::of(|| Timestamp::UNIX_EPOCH);
        let router = calls(client, &BOUNDS, Evaluator::here(), clock, Traces::default());
        let mut request = Request::post(path).header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        for (name, value) in self.who.headers() {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body.to_string())).expect("a request");
        let Ok(response) = router.oneshot(request).await;
        response.status().as_u16()
    }
}

/// Each call that writes to the StepRun; before all but the first, the attempt is claimed.
fn writing() -> [(&'static str, Value); 5] {
    let report = json!({"ending": {"kind": "exited", "code": 0}, "output": {"result": "1", "document": null}, "logTail": "",
        "usage": {"tokensIn": 7, "tokensOut": 1, "models": []}});
    [
        (protocol::CLAIM, json!({"shimVersion": "0"})),
        (protocol::PROGRESS, json!({"percent": 50, "message": "half"})),
        (protocol::USAGE, json!({"tokensIn": 10, "tokensOut": 2, "models": []})),
        (protocol::ASK, json!({"questions": [{"question": "How much?"}], "waitSeconds": 300})),
        (protocol::REPORT, report),
    ]
}

/// Calls at that path, each with the trouble one request later; `wrong` says what of an answer and of `status.agent` right after the
/// trouble is wrong.
async fn each(
    trouble: Trouble,
    (path, body): (&str, &Value),
    wrong: impl Fn(&Scene, u16, &Value) -> Option<String>,
) -> Option<String> {
    for before in 0.. {
        let scene = Scene::new(trouble);
        if path != protocol::CLAIM {
            assert_eq!(scene.call(protocol::CLAIM, &json!({"shimVersion": "0"})).await, 200, "it claims");
        }
        scene.way.left.store(before, Ordering::SeqCst);
        let code = scene.call(path, body).await;
        let Some(after) = scene.way.after() else {
            // It asks for no more than that.
            assert!(before > 0 && (200..300).contains(&code), "{path}: {code} after {before} requests");
            return None;
        };
        if let Some(wrong) = wrong(&scene, code, &after) {
            return Some(format!("{path}, request {before}: {wrong}"));
        }
    }
    None
}

fn written(scene: &Scene, _: u16, after: &Value) -> Option<String> {
    let mut now = scene.way.status()["agent"].clone();
    // What was stopped keeps its exit code and its last words, with the number of the attempt: that decides nothing.
    if let Some(now) = now.as_object_mut() {
        now.remove("stopped");
    }
    (now != *after).then(|| format!("the fence moved before it, and {now} was written over {after}"))
}

async fn find(trouble: Trouble, wrong: impl Fn(&Scene, u16, &Value) -> Option<String>) -> Option<String> {
    for (path, body) in writing() {
        let found = each(trouble, (path, &body), &wrong).await;
        if found.is_some() {
            return found;
        }
    }
    None
}

fn run(search: impl Future<Output = Option<String>>) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(search)
}

/// What a gateway writes of an attempt that is over.
pub fn find_violation() -> Option<String> {
    run(find(Trouble::FenceMoves, written))
}

/// A call by which an attempt is told that it is over, though only a patch met other writes. 409 is what ends a shim.
pub fn find_lost_attempt() -> Option<String> {
    let ended = |_: &Scene, code: u16, _: &Value| (code == 409).then(|| "a conflict ended the attempt".to_owned());
    run(find(Trouble::PatchConflicts, ended))
}
