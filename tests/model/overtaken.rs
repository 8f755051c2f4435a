//! Whatever a gateway reads of an attempt may be over when it writes: right before each request that a call makes to the API
//! server, the operator moves the fence. From then on nothing of the attempt is written, in whatever call.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use futures::future::BoxFuture;
use http::{Request, Response, header};
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

/// The way of a gateway to the API server, on which the fence moves.
#[derive(Clone)]
struct Way {
    api: ApiServer,
    step_run: String,
    /// Requests that come before that.
    left: Arc<AtomicUsize>,
    /// What stood in `status.agent` right after it, once it has moved.
    after: Arc<Mutex<Option<Value>>>,
}

impl Way {
    fn status(&self) -> Value {
        attempt::stored(&self.api, &self.step_run)["status"].clone()
    }

    fn move_fence(&self) {
        let moved = json!({"attempt": 2, "job": {"attempt": 2, "name": "next", "uid": "next"}});
        attempt::set_status(&self.api, Kind::StepRun, &self.step_run, &moved);
        *self.after.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.status()["agent"].clone());
    }
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
        if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) == Err(0)
            && self.after.lock().unwrap_or_else(PoisonError::into_inner).is_none()
        {
            self.move_fence();
        }
        Box::pin(async move { way.api.oneshot(request).await })
    }
}

/// A first attempt with its pod, and the gateway that it speaks to.
struct Scene {
    way: Way,
    who: AttemptRef,
    token: String,
}

impl Scene {
    /// Nothing moves yet.
    fn new() -> Self {
        let attempt = Attempt::new(&json!({}));
        let (step_run, uid) = (attempt.own(), attempt.uid());
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let way = Way { api: attempt.api, step_run: step_run.clone(), left, after: Arc::default() };
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

/// What was written after the fence had moved.
async fn written(path: &str, body: &Value) -> Option<String> {
    for before in 0.. {
        let scene = Scene::new();
        if path != protocol::CLAIM {
            assert_eq!(scene.call(protocol::CLAIM, &json!({"shimVersion": "0"})).await, 200, "it claims");
        }
        scene.way.left.store(before, Ordering::SeqCst);
        let code = scene.call(path, body).await;
        let after = scene.way.after.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(after) = after else {
            // It asks for no more than that.
            assert!(before > 0 && (200..300).contains(&code), "{path}: {code} after {before} requests");
            return None;
        };
        let mut now = scene.way.status()["agent"].clone();
        // What was stopped keeps its exit code and its last words, with the number of the attempt: that decides nothing.
        if let Some(now) = now.as_object_mut() {
            now.remove("stopped");
        }
        if now != after {
            return Some(format!(
                "{path}: the fence moved before request {before}, and {now} was written over {after}"
            ));
        }
    }
    None
}

/// What a gateway writes of an attempt that is over.
pub fn find_violation() -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for (path, body) in writing() {
            if let Some(found) = written(path, &body).await {
                return Some(found);
            }
        }
        None
    })
}
