//! The server inside the container: it listens for this container alone, and hands each call to `local`. Its address holds a
//! random segment, so that a fetch tool of the agent cannot guess it.

#![expect(clippy::disallowed_macros, reason = "answers to the agent's calls")]

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Builder;

use super::files::OUTPUT_READ_BYTES;
use super::local::{Answer, Calls, pass_on};
use super::mcp::{self, Reach};
use super::wait;

/// Calls that are answered at once, beside those that wait for people; the rest waits its turn.
const AT_ONCE: usize = 16;
/// Bytes of a body beyond its limit that are read, so that its sender can hear the refusal.
const DISCARDED: u64 = 64 << 20;

/// Who answers, and below which path.
struct Local {
    calls: Arc<Calls>,
    prefix: String,
}

/// Starts the server; its address.
pub fn serve(calls: Calls, segment: &str) -> Result<String, String> {
    let calls = Arc::new(calls);
    let failed = |error: std::io::Error| error.to_string();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(AT_ONCE + wait::AT_ONCE)
        .build()
        .map_err(failed)?;
    let local = Local { calls: Arc::clone(&calls), prefix: format!("/{segment}/") };
    let router = Router::new()
        .route_service(&format!("/{segment}/mcp"), mcp::service(Arc::clone(&calls) as Arc<dyn Reach>))
        .fallback(handle)
        .with_state(Arc::new(local));
    std::thread::spawn(move || {
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, router).await
        });
        if let Err(error) = served {
            super::say(&format!("the agent's calls are not answered any more: {error}"));
        }
    });
    pass_on(&calls);
    Ok(format!("http://127.0.0.1:{port}/{segment}"))
}

async fn handle(State(local): State<Arc<Local>>, request: Request) -> Response {
    let asked = request.uri().path().strip_prefix(&local.prefix).map(str::to_owned);
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (status, body) = match (asked, request.method()) {
        (None, _) => (404, json!({"error": "not found"})),
        (Some(call), &Method::GET) if call == "history" => {
            let page = move |calls: &Calls| {
                calls.heard();
                calls.history(&query)
            };
            blocking(&local, page).await
        }
        (Some(_), method) if method != Method::POST => (405, json!({"error": "only POST"})),
        (Some(call), _) => match read(request.into_body()).await {
            Ok(body) => blocking(&local, move |calls| calls.take(&call, &body)).await,
            Err(refused) => refused,
        },
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(body)).into_response()
}

/// Calls wait for the gateway, on threads that may.
async fn blocking(local: &Local, answer: impl FnOnce(&Calls) -> Answer + Send + 'static) -> Answer {
    let calls = Arc::clone(&local.calls);
    let answered = tokio::task::spawn_blocking(move || answer(&calls));
    answered.await.unwrap_or_else(|error| (500, json!({"error": error.to_string()})))
}

async fn read(body: Body) -> Result<Vec<u8>, Answer> {
    let (mut bytes, mut count) = (Vec::new(), 0_u64);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| (400, json!({"error": error.to_string()})))?;
        count += chunk.len() as u64;
        if count <= OUTPUT_READ_BYTES {
            bytes.extend_from_slice(&chunk);
        } else if count > DISCARDED {
            break;
        }
    }
    if count > OUTPUT_READ_BYTES {
        return Err((413, json!({"error": "the body is too large"})));
    }
    Ok(bytes)
}

impl Reach for Calls {
    fn call(&self, call: &str, body: &Value) -> Result<(u16, Value), String> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        Ok(self.take(call, &body))
    }
}
