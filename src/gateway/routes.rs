//! The agent API: one way for every call to be read, authenticated, bounded and answered.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::BodyDataStream;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::{FutureExt, StreamExt};
use http::{StatusCode, header};
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use super::auth::{self, Caller};
use super::metrics::{Call, Path};
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, claim, document, progress, report};
use crate::protocol::{self, AttemptRef, CheckRequest, ClaimRequest, DocumentRequest, ProgressRequest, ReportRequest};

/// From the request's head to the answer, its body included.
const REQUEST: Duration = Duration::from_secs(30);
/// A slow sender must not keep the place of others for long.
const BODY: Duration = Duration::from_secs(10);
const SMALL: usize = 16 * 1024;
/// A document and an output at their limits, written as JSON strings.
const LARGE: usize = 1_250_000;
/// Bytes of a body beyond its limit that are read, so that its sender can hear the refusal.
const DISCARDED: usize = 8 << 20;

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
    match gateway.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn claim(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let of = |asked: &ClaimRequest| asked.attempt.clone();
    serve(gateway, request, ("claim", SMALL), of, |gateway, caller, asked| async move {
        let claimed = claim::claim(&gateway, &caller, asked).await?;
        Ok(axum::Json(claimed).into_response())
    })
    .await
}

async fn document(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let of = |asked: &DocumentRequest| asked.attempt.clone();
    serve(gateway, request, ("document", SMALL), of, |gateway, caller, asked| async move {
        document::read(&gateway, &caller, asked).await
    })
    .await
}

async fn check(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let of = |asked: &CheckRequest| asked.attempt.clone();
    serve(gateway, request, ("check", LARGE), of, |gateway, caller, asked| async move {
        let checked = report::check(&gateway, &caller, asked).await?;
        Ok(axum::Json(checked).into_response())
    })
    .await
}

async fn progress(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let of = |asked: &ProgressRequest| asked.attempt.clone();
    serve(gateway, request, ("progress", SMALL), of, |gateway, _, asked| async move {
        progress::progress(&gateway, asked).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    })
    .await
}

async fn report(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let of = |asked: &ReportRequest| asked.attempt.clone();
    serve(gateway, request, ("report", LARGE), of, |gateway, caller, asked| async move {
        let checked = report::report(&gateway, &caller, asked).await?;
        Ok(axum::Json(checked).into_response())
    })
    .await
}

/// Answers one call, whatever becomes of it: in time, counted, and with a panic kept to itself.
async fn serve<T, F, Fut>(
    gateway: Arc<Gateway>,
    request: Request,
    (call, limit): (&'static str, usize),
    of: fn(&T) -> AttemptRef,
    act: F,
) -> Response
where
    T: DeserializeOwned,
    F: FnOnce(Arc<Gateway>, Caller, T) -> Fut,
    Fut: Future<Output = Result<Response>>,
{
    let begun = Instant::now();
    let work = async {
        let (caller, asked, _permit) = admit(&gateway, request, limit, of).await?;
        act(gateway.clone(), caller, asked).await
    };
    let bounded = tokio::time::timeout(REQUEST, work);
    let response = match AssertUnwindSafe(bounded).catch_unwind().await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(refusal))) => refuse(call, refusal),
        Ok(Err(_)) => refuse(call, Refusal::unavailable("the call took too long")),
        Err(_) => {
            tracing::error!(call, "a call panicked");
            Refusal::new(Reason::Internal, "the gateway failed at this").into_response()
        }
    };
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

/// Reads and authenticates. The audience is in the body, so nothing is known of the caller before it is read: what can
/// be refused by the head alone is refused first.
async fn admit<T: DeserializeOwned>(
    gateway: &Gateway,
    request: Request,
    limit: usize,
    of: fn(&T) -> AttemptRef,
) -> Result<(Caller, T, Option<OwnedSemaphorePermit>)> {
    let token = auth::bearer(request.headers())?.to_owned();
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<usize>().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(too_large(request.into_body().into_data_stream(), limit).await);
    }
    // Outputs wait their turn until the call is over, so that memory has a bound.
    let permit = if limit > SMALL { gateway.large.clone().acquire_owned().await.ok() } else { None };
    let body = tokio::time::timeout(BODY, read(request, limit))
        .await
        .map_err(|_| Refusal::bad_request("the body came too slowly"))??;
    let asked: T = serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(format!("the body: {error}")))?;
    drop(body);
    let attempt = of(&asked);
    auth::well_formed(&attempt)?;
    let caller = auth::caller(&gateway.client, &gateway.verdicts, &token, &attempt).await?;
    Ok((caller, asked, permit))
}

async fn read(request: Request, limit: usize) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Refusal::bad_request("the body broke off"))?;
        if body.len() + chunk.len() > limit {
            return Err(too_large(chunks, limit).await);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads on for a while and keeps nothing: a client in the middle of sending sees a broken connection, not an answer.
async fn too_large(mut rest: BodyDataStream, limit: usize) -> Refusal {
    let mut read = 0;
    while let Some(Ok(chunk)) = rest.next().await {
        read += chunk.len();
        if read > DISCARDED {
            break;
        }
    }
    Refusal::new(Reason::TooLarge, format!("the body has more than {limit} bytes"))
}
