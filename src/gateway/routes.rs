//! The agent API: one way for every call to be read, authenticated, bounded and answered.

#![expect(clippy::disallowed_methods, reason = "measures a call")]

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::attempt::Asked;
use super::auth::{self, Caller};
use super::metrics::{Call, Path};
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, answer, claim, document, progress, report};
use crate::cluster::fair::Permit;
use crate::protocol::{self, CheckRequest, ClaimRequest, DocumentRequest, ProgressRequest, ReportRequest};
use crate::server::Peer;

/// From the request's head to the answer, its body included.
const REQUEST: Duration = Duration::from_secs(30);
/// A slow sender must not keep the place of others: a body has so long, and a second more for so many bytes that came.
const GRACE: Duration = Duration::from_secs(3);
const BYTES_A_SECOND: u64 = 100_000;
const SMALL: usize = 16 * 1024;
/// A document and an output at their limits, written as JSON strings.
const LARGE: usize = 1_250_000;
/// Bytes of a caller's body beyond its limit that are read, so that its sender can hear the refusal.
const DISCARDED: usize = 8 << 20;

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
    /// Nobody's: it holds next to nothing.
    None,
}

impl Pool {
    /// A place among those of the namespace, which waits its turn: so memory has a bound, and no namespace has all of it.
    async fn place(self, gateway: &Gateway, namespace: &str) -> Result<Option<Permit>> {
        let places = match self {
            Self::Inputs => &gateway.inputs,
            Self::Outputs => &gateway.outputs,
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
    serve(gateway, request, sort, |gateway, _, asked: Asked<ProgressRequest>| async move {
        progress::progress(&gateway, asked).await?;
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
    let work = async {
        let (caller, asked, place) = admit(&gateway, &peer, request, sort).await?;
        answer::hold(act(gateway.clone(), caller, asked).await?, place).await
    };
    let bounded = tokio::time::timeout(REQUEST, work);
    let mut response = match AssertUnwindSafe(bounded).catch_unwind().await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(refusal))) => refuse(call, refusal),
        Ok(Err(_)) => refuse(call, Refusal::unavailable("the call took too long")),
        Err(_) => {
            tracing::error!(call, "a call panicked");
            Refusal::new(Reason::Internal, "the gateway failed at this").into_response()
        }
    };
    if !peer.is_proven() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        peer.dismiss();
    }
    let path = Path { call: call.to_owned() };
    let counted = Call { call: call.to_owned(), code: response.status().as_u16() };
    gateway.metrics.calls.get_or_create(&counted).inc();
    let seconds = begun.elapsed().as_secs_f64();
    gateway.metrics.seconds.get_or_create(&path).observe(seconds);
    response
}

fn refuse(call: &str, refusal: Refusal) -> Response {
    tracing::debug!(call, reason = ?refusal.reason, why = refusal.message, "refused");
    refusal.into_response()
}

/// Who calls is proven by the request's head alone. Only then its body takes a place, and is read.
async fn admit<T: DeserializeOwned>(
    gateway: &Gateway,
    peer: &Peer,
    request: Request,
    sort: Sort,
) -> Result<(Caller, Asked<T>, Option<Permit>)> {
    let token = auth::bearer(request.headers())?;
    let attempt = auth::attempt(request.headers())?;
    let caller = auth::caller(gateway, peer.address(), token, &attempt).await?;
    peer.prove();
    let place = sort.pool.place(gateway, &attempt.namespace).await?;
    let body = read(request, sort.limit).await?;
    let body = serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(format!("the body: {error}")))?;
    Ok((caller, Asked { attempt, body }, place))
}

async fn read(request: Request, limit: usize) -> Result<Vec<u8>> {
    let declared = declared(request.headers());
    let mut incoming = Incoming::of(request.into_body());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(too_large(incoming, limit).await);
    }
    let mut body = Vec::with_capacity(declared.unwrap_or_default());
    while let Some(chunk) = incoming.next().await? {
        if body.len() + chunk.len() > limit {
            return Err(too_large(incoming, limit).await);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn declared(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads on for a while and keeps nothing: a client in the middle of sending sees a broken connection, not an answer.
async fn too_large(mut rest: Incoming, limit: usize) -> Refusal {
    let mut read = 0;
    while let Ok(Some(chunk)) = rest.next().await {
        read += chunk.len();
        if read > DISCARDED {
            break;
        }
    }
    Refusal::new(Reason::TooLarge, format!("the body has more than {limit} bytes"))
}

/// A body that must come at a certain pace.
struct Incoming {
    chunks: BodyDataStream,
    begun: Instant,
    received: u64,
}

impl Incoming {
    fn of(body: Body) -> Self {
        Self { chunks: body.into_data_stream(), begun: Instant::now(), received: 0 }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let until = self.begun
            + GRACE
            + Duration::from_secs(1) * u32::try_from(self.received / BYTES_A_SECOND).unwrap_or(u32::MAX);
        let slow = |_| Refusal::unavailable("the body came too slowly");
        let chunk = tokio::time::timeout_at(until, self.chunks.next()).await.map_err(slow)?;
        let chunk = chunk.transpose().map_err(|_| Refusal::bad_request("the body broke off"))?;
        self.received += chunk.as_ref().map_or(0, Bytes::len) as u64;
        Ok(chunk)
    }
}
