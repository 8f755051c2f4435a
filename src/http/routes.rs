//! One way for every call to be read, authenticated, bounded and answered.

#![expect(clippy::disallowed_methods, reason = "measures a call")]

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, RawPathParams, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, any, get, on};
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;

use super::call::Call;
use super::fields::is_namespace;
use super::metrics::{RequestLabels, ResponseLabels};
use super::operations::{IN_NAMESPACE, OPERATIONS, Operation};
use super::problem::{Problem, Result};
use super::senders::{self, Proof};
use super::{Http, docs, events, openapi, steps};
use crate::server::{Peer, body};

/// From the request's head to that of its answer: the longest wait for a result, and what lies around it.
const REQUEST: Duration = Duration::from_secs(100);
/// All calls, with and without a namespace in the path.
pub fn calls(http: &Arc<Http>) -> Router {
    let mut router = Router::new();
    for prefix in ["", IN_NAMESPACE] {
        let mut paths: Vec<&str> = OPERATIONS.iter().map(|operation| operation.path).collect();
        paths.dedup();
        for path in paths.into_iter().filter(|path| !path.contains(steps::STEP)) {
            let own = OPERATIONS.iter().filter(|operation| operation.path == path);
            let methods = own.fold(MethodRouter::new(), |methods, operation| {
                methods.merge(on(filter(operation.method), move |State(http), request: Request| {
                    serve(http, operation, request)
                }))
            });
            router = router.route(&format!("{prefix}{path}"), methods.fallback(not_allowed));
        }
        // A step has slashes in its name, so it cannot stand in the middle of a route.
        router = router.route(&format!("{prefix}{}", steps::ROUTE), any(step));
    }
    router
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(docs::page))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is no such call; see /docs") })
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(http))
}

async fn not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method; see /docs")
}

fn filter(method: &str) -> MethodFilter {
    match method {
        "POST" => MethodFilter::POST,
        "PUT" => MethodFilter::PUT,
        _ => MethodFilter::GET,
    }
}

/// Finds the call by the end of the path.
async fn step(State(http): State<Arc<Http>>, request: Request) -> Response {
    let path = request.uri().path();
    let suffix = path.rsplit('/').next().unwrap_or_default();
    let ends = |operation: &&Operation| {
        operation.path.contains(steps::STEP) && operation.path.ends_with(&format!("/{suffix}"))
    };
    let own: Vec<&'static Operation> = OPERATIONS.iter().filter(ends).collect();
    // `HEAD` is a `GET` without its body, as for all other paths.
    let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
    match own.iter().find(|operation| operation.method == method) {
        Some(operation) => serve(http, operation, request).await,
        None if own.is_empty() => {
            Problem::new(StatusCode::NOT_FOUND, "after a step comes /logs, /decision or /answer; see /docs")
                .into_response()
        }
        None => {
            let methods = own.iter().map(|operation| operation.method);
            let heads = own.iter().filter(|operation| operation.method == "GET").map(|_| "HEAD");
            let mut response = not_allowed().await.into_response();
            if let Ok(allow) = HeaderValue::from_str(&methods.chain(heads).collect::<Vec<_>>().join(",")) {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            response
        }
    }
}

pub fn health(http: &Arc<Http>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(http))
}

async fn ready(State(http): State<Arc<Http>>) -> Response {
    if http.ready.load(Ordering::Relaxed) {
        "ok".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the caches are not filled yet").into_response()
    }
}

async fn metrics(State(http): State<Arc<Http>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    http.metrics.streams.set(gauge(http.streams.in_use()));
    http.metrics.held.set(gauge(http.requests.held()));
    http.metrics.waiting.set(gauge(http.requests.waiting()));
    match http.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Answers one call, whatever becomes of it: in time, counted, and with a panic kept to itself. Whoever has not proven
/// who they are is answered and sent away.
async fn serve(http: Arc<Http>, operation: &'static Operation, request: Request) -> Response {
    let begun = Instant::now();
    let peer = Peer::of(request.extensions());
    let work = async {
        let call = admit(&http, &peer, operation, request).await?;
        (operation.handler)(Arc::clone(&http), call).await
    };
    let bounded = tokio::time::timeout(REQUEST, work);
    let mut response = match AssertUnwindSafe(bounded).catch_unwind().await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(problem))) => problem.into_response(),
        Ok(Err(_)) => Problem::unavailable("the call took too long").into_response(),
        Err(_) => {
            tracing::error!(call = operation.id, "a call panicked");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the API failed at this").into_response()
        }
    };
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !peer.is_proven() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        peer.dismiss();
    }
    let code = response.status().as_u16();
    http.metrics.calls.get_or_create(&ResponseLabels { call: operation.id, code }).inc();
    http.metrics.seconds.get_or_create(&RequestLabels { call: operation.id }).observe(begun.elapsed().as_secs_f64());
    tracing::debug!(call = operation.id, code, "answered");
    response
}

/// Who calls is known by the request's head alone. Only then it takes a place, and its body is read.
async fn admit(http: &Arc<Http>, peer: &Peer, operation: &Operation, request: Request) -> Result<Call> {
    let request = if operation.id == events::TO_TRIGGER {
        match by_secret(http, peer, operation, request).await? {
            Ok(call) => return Ok(call),
            Err(request) => request,
        }
    } else {
        request
    };
    let caller = http.callers.of(request.headers()).await?;
    peer.prove();
    let (mut head, body) = request.into_parts();
    let (namespace, path) = place(http, &mut head).await?;
    let query = head.uri.query().unwrap_or_default();
    let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let place = http.requests.acquire(&format!("{namespace} {}", caller.user)).await?;
    let headers = head.headers.clone();
    let body = read(Request::from_parts(head, body), operation).await?;
    Ok(Call { caller, namespace, path, query, headers, body, peer: peer.clone(), place: Some(place), trigger: None })
}

/// The namespace, and what stands in the path.
async fn place(http: &Http, head: &mut Parts) -> Result<(String, HashMap<String, String>)> {
    let found = RawPathParams::from_request_parts(head, &()).await;
    let found = found.map_err(|_| Problem::bad_request("the path is not UTF-8"))?;
    let path: HashMap<String, String> = found.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let namespace = path.get("namespace").cloned().unwrap_or_else(|| http.settings.default_namespace.clone());
    if !is_namespace(&namespace) {
        return Err(Problem::not_found("there is no namespace of that name"));
    }
    Ok((namespace, path))
}

async fn read(request: Request, operation: &Operation) -> Result<Vec<u8>> {
    let most = operation.body_bytes;
    body::read(request, most).await.map_err(|why| Problem::unread(why, most))
}

/// The call of somebody who has the secret of the Trigger that they send to, and no token; the request itself where
/// they have not.
async fn by_secret(
    http: &Arc<Http>,
    peer: &Peer,
    operation: &Operation,
    request: Request,
) -> Result<std::result::Result<Call, Request>> {
    let (mut head, body) = request.into_parts();
    let (namespace, path) = place(http, &mut head).await?;
    let name = path.get("trigger").map_or("", String::as_str);
    let key = format!("{namespace} trigger {name}");
    let request = Request::from_parts(head, body);
    let Some(trigger) = http.watches.world.triggers.get(&namespace, name) else { return Ok(Err(request)) };
    let (headers, body, place) = match senders::prove(http, &trigger, request, operation.body_bytes).await? {
        Proof::None(request) => return Ok(Err(request)),
        Proof::Secret(request) => {
            peer.prove();
            let place = http.requests.acquire(&key).await?;
            (request.headers().clone(), read(request, operation).await?, place)
        }
        Proof::Signed(headers, body) => {
            peer.prove();
            (headers, body, http.requests.acquire(&key).await?)
        }
    };
    let caller = http.callers.own(&http.own).await?;
    let (query, peer, place) = (BTreeMap::new(), peer.clone(), Some(place));
    Ok(Ok(Call { caller, namespace, path, query, headers, body, peer, place, trigger: Some(trigger) }))
}
