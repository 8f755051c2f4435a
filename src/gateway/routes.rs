//! The agent API: one way for every call to be read, authenticated, bounded and answered.

#![expect(clippy::disallowed_methods, reason = "measures a call")]

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::attempt::Asked;
use super::auth::{self, Caller};
use super::metrics::{CallLabels, PathLabels};
use super::refusal::{Reason, Refusal, Result};
use super::refused::Who;
use super::{
    Gateway, answer, approval, ask, attended, claim, document, documents, history, memory, progress, report, usage,
    wait,
};
use crate::cluster::fair::Permit;
use crate::decide::trace;
use crate::protocol::memory::MemoryRequest;
use crate::protocol::{
    self, ApprovalCall, AskRequest, AttemptRef, AwaitRequest, CheckRequest, ClaimRequest, DocumentRequest,
    DocumentsRequest, EndedRequest, HistoryRequest, ProgressRequest, ReportRequest,
};
use crate::server::Peer;
use crate::server::body::{self, Unread};

/// From the request's head to the answer, its body included.
const REQUEST: Duration = Duration::from_secs(30);
const SMALL: usize = 16 * 1024;
/// A document and an output at their limits, written as JSON strings.
const LARGE: usize = 1_250_000;
/// More than the largest value, so that one beyond it hears the bound itself.
const MEDIUM: usize = 512 * 1024;

/// What sort of call it is.
#[derive(Clone, Copy)]
struct Sort {
    name: &'static str,
    /// Bytes of its body.
    limit: usize,
    pool: Pool,
}

/// Whose places it takes.
#[derive(Clone, Copy)]
enum Pool {
    Inputs,
    Outputs,
    Memories,
    /// Nobody's: it holds next to nothing.
    None,
}

impl Pool {
    /// A place among those of the namespace, which waits its turn: so memory has a bound, and no namespace has all of it.
    async fn place(self, gateway: &Gateway, namespace: &str) -> Result<Option<Permit>> {
        let places = match self {
            Self::Inputs => &gateway.inputs,
            Self::Outputs => &gateway.outputs,
            Self::Memories => &gateway.memories.places,
            Self::None => return Ok(None),
        };
        Ok(Some(places.acquire(namespace).await?))
    }
}

pub fn agents(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route(protocol::CLAIM, post(claim))
        .route(protocol::DOCUMENT, post(document))
        .route(protocol::CHECK, post(check))
        .route(protocol::PROGRESS, post(progress))
        .route(protocol::REPORT, post(report))
        .route(protocol::ENDED, post(ended))
        .route(protocol::ASK, post(asked))
        .route(protocol::APPROVAL, post(approval))
        .route(protocol::AWAIT, post(awaited))
        .route(protocol::memory::PATH, post(remember))
        .route(protocol::HISTORY, post(history))
        .route(protocol::USAGE, post(usage))
        .route(protocol::DOCUMENTS, post(documents))
        .fallback(|| async { Refusal::new(Reason::NotFound, "there is no such call") })
        .layer(DefaultBodyLimit::disable())
        .with_state(gateway)
}

pub fn health(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(gateway)
}

async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    if gateway.is_ready() {
        "ok".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not serving").into_response()
    }
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    gateway.metrics.places("inputs", &gateway.inputs);
    gateway.metrics.places("outputs", &gateway.outputs);
    gateway.metrics.places("judges", &gateway.judges);
    gateway.metrics.places("memories", &gateway.memories.places);
    match gateway.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn claim(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "claim", limit: SMALL, pool: Pool::Inputs };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<ClaimRequest>| async move {
        let claimed = claim::claim(&gateway, &caller, asked).await?;
        Ok(axum::Json(claimed).into_response())
    })
    .await
}

async fn document(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "document", limit: SMALL, pool: Pool::Inputs };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<DocumentRequest>| async move {
        document::read(&gateway, &caller, asked).await
    })
    .await
}

async fn check(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "check", limit: LARGE, pool: Pool::Outputs };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<CheckRequest>| async move {
        let checked = report::check(&gateway, &caller, asked).await?;
        Ok(axum::Json(checked).into_response())
    })
    .await
}

async fn progress(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "progress", limit: SMALL, pool: Pool::None };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<ProgressRequest>| async move {
        progress::progress(&gateway, &caller, asked).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

async fn asked(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "ask", limit: MEDIUM, pool: Pool::Outputs };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<AskRequest>| async move {
        let reply = ask::ask(&gateway, &caller, asked).await?;
        Ok(axum::Json(reply).into_response())
    })
    .await
}

async fn approval(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "approval", limit: MEDIUM, pool: Pool::Outputs };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<ApprovalCall>| async move {
        let reply = approval::request(&gateway, &caller, asked).await?;
        Ok(axum::Json(reply).into_response())
    })
    .await
}

/// It holds nothing but its answer, so it takes no place while it waits.
async fn awaited(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "await", limit: SMALL, pool: Pool::None };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<AwaitRequest>| async move {
        let reply = wait::wait(&gateway, &caller, asked).await?;
        Ok(axum::Json(reply).into_response())
    })
    .await
}

async fn history(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "history", limit: SMALL, pool: Pool::Inputs };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<HistoryRequest>| async move {
        let page = history::page(&gateway, &caller, asked).await?;
        Ok(axum::Json(page).into_response())
    })
    .await
}

async fn documents(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "documents", limit: SMALL, pool: Pool::Inputs };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<DocumentsRequest>| async move {
        let found = Box::pin(documents::look_up(&gateway, &caller, asked)).await?;
        Ok(axum::Json(found).into_response())
    })
    .await
}

async fn usage(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "usage", limit: SMALL, pool: Pool::None };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<protocol::Usage>| async move {
        usage::usage(&gateway, &caller, asked).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

async fn report(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "report", limit: LARGE, pool: Pool::Outputs };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<ReportRequest>| async move {
        let checked = report::report(&gateway, &caller, asked).await?;
        Ok(axum::Json(checked).into_response())
    })
    .await
}

async fn ended(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "ended", limit: SMALL, pool: Pool::None };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<EndedRequest>| async move {
        let left = attended::left(&gateway, &caller, asked).await?;
        Ok(axum::Json(left).into_response())
    })
    .await
}

async fn remember(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let sort = Sort { name: "memory", limit: MEDIUM, pool: Pool::Memories };
    serve(gateway, request, sort, |gateway, caller, asked: Asked<MemoryRequest>| async move {
        let remembered = memory::memory(&gateway, &caller, asked).await?;
        Ok(axum::Json(remembered).into_response())
    })
    .await
}

/// Answers one call, whatever becomes of it: in time, counted, and with a panic kept to itself. Whoever has not proven who
/// they are is answered and sent away.
async fn serve<T, F, Fut>(gateway: Arc<Gateway>, request: Request, sort: Sort, act: F) -> Response
where
    T: DeserializeOwned,
    F: FnOnce(Arc<Gateway>, Caller, Asked<T>) -> Fut,
    Fut: Future<Output = Result<Response>>,
{
    let begun = Instant::now();
    let call = sort.name;
    let peer = Peer::of(request.extensions());
    let traced = Traced::of(&gateway, request.headers());
    let who = Box::new(Who::of(request.headers()));
    let work = async {
        let (caller, asked, place) = admit(&gateway, &peer, &who, request, sort).await?;
        answer::hold(act(gateway.clone(), caller, asked).await?, place).await
    };
    let bounded = tokio::time::timeout(REQUEST, work);
    let ended = AssertUnwindSafe(bounded).catch_unwind().await;
    let refuse = |refusal: Refusal| {
        gateway.refused.tell(call, peer.address(), &who, &refusal);
        refusal.into_response()
    };
    let mut response = match ended {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(refusal))) => refuse(refusal),
        Ok(Err(_)) => refuse(Refusal::unavailable("the call took too long")),
        Err(_) => {
            tracing::error!(call, "a call panicked");
            Refusal::new(Reason::Internal, "the gateway failed at this").into_response()
        }
    };
    if !peer.is_proven() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        peer.dismiss();
    }
    let path = PathLabels { call: call.to_owned() };
    let counted = CallLabels { call: call.to_owned(), code: response.status().as_u16() };
    gateway.metrics.calls.get_or_create(&counted).inc();
    let seconds = begun.elapsed().as_secs_f64();
    gateway.metrics.seconds.get_or_create(&path).observe(seconds);
    if let Some(traced) = traced.filter(|_| peer.is_proven()) {
        traced.tell(&gateway, call, response.status().as_u16());
    }
    response
}

/// What a call's span is made of at its end, where traces are sent and the pod has named one.
struct Traced {
    traceparent: String,
    attempt: AttemptRef,
    began: Time,
}

impl Traced {
    fn of(gateway: &Gateway, headers: &HeaderMap) -> Option<Self> {
        let traceparent = headers.get(protocol::TRACEPARENT).filter(|_| gateway.traces.is_on())?;
        let (traceparent, attempt) = (traceparent.to_str().ok()?.to_owned(), auth::attempt(headers).ok()?);
        Some(Self { traceparent, attempt, began: gateway.clock.now() })
    }

    fn tell(self, gateway: &Gateway, call: &str, code: u16) {
        let attempt = (self.attempt.uid.as_str(), self.attempt.attempt);
        let times = (self.began, gateway.clock.now());
        let span = trace::of_call(call, &self.traceparent, attempt, code, times);
        gateway.traces.send(span.into_iter().collect());
    }
}

/// Who calls is proven by the request's head alone. Only then its body takes a place, and is read.
async fn admit<T: DeserializeOwned>(
    gateway: &Gateway,
    peer: &Peer,
    who: &Who,
    request: Request,
    sort: Sort,
) -> Result<(Caller, Asked<T>, Option<Permit>)> {
    let token = auth::bearer(request.headers())?;
    let attempt = auth::attempt(request.headers())?;
    let caller = auth::caller(gateway, peer.address(), token, &attempt).await?;
    peer.prove();
    who.is_pod(&caller.pod_name);
    let place = sort.pool.place(gateway, &attempt.namespace).await?;
    let body = body::read(request, sort.limit).await.map_err(|why| unread(why, sort.limit))?;
    let body = serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(format!("the body: {error}")))?;
    Ok((caller, Asked { attempt, body }, place))
}

fn unread(why: Unread, limit: usize) -> Refusal {
    match why {
        Unread::TooLarge => Refusal::new(Reason::TooLarge, format!("the body has more than {limit} bytes")),
        Unread::Slow => Refusal::unavailable("the body came too slowly"),
        Unread::Broken => Refusal::bad_request("the body broke off"),
    }
}
