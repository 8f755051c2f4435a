//! The wire between operator and API server: passes everything on in the operator's name, writes the operator's writes
//! down, and strikes the operator at one of them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use axum::serve::ListenerExt as _;
use futures::stream;
use http::{Method, StatusCode, header};
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::operator::Operator;

/// Where in a write the operator dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Position {
    /// The API server never hears of it.
    Before,
    /// It is committed, and the operator does not know.
    Committed,
    /// The operator knows, and nothing follows.
    Replied,
}

pub const POSITIONS: [Position; 3] = [Position::Before, Position::Committed, Position::Replied];

#[derive(Clone, Debug)]
pub struct Fault {
    /// `POST jobs`
    pub kind: String,
    /// The how manieth of its kind in a round, from 1.
    pub number: usize,
    pub position: Position,
}

/// One write of the operator.
#[derive(Clone, Debug, Default)]
pub struct Write {
    pub verb: String,
    /// `stepruns/status`
    pub what: String,
    pub namespace: String,
    pub name: String,
    /// Of the answer; 0 while there is none.
    pub code: u16,
}

impl Write {
    pub fn kind(&self) -> String {
        format!("{} {}", self.verb, self.what)
    }
}

#[derive(Default)]
struct Ledger {
    /// Only writes in namespaces that begin so count.
    prefix: String,
    writes: Vec<Write>,
    last: Option<Instant>,
    fault: Option<Fault>,
    /// What the fault met.
    hit: Option<Write>,
    /// All that should not have been: refusals, writes elsewhere.
    strange: Vec<String>,
}

pub struct Proxy {
    api_server: Client,
    pub operator: OnceLock<Arc<Operator>>,
    ledger: Mutex<Ledger>,
}

/// What a request is about.
struct Act {
    write: Write,
    counts: bool,
}

impl Proxy {
    /// Listens on a port of its own, which it gives.
    pub async fn open(api_server: Client) -> Result<(Arc<Self>, u16)> {
        let proxy = Arc::new(Self { api_server, operator: OnceLock::new(), ledger: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        // Small writes would wait 40 ms for each other's acknowledgement.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let router = Router::new().fallback(pass).with_state(Arc::clone(&proxy));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((proxy, port))
    }

    /// Writes in namespaces that begin with the prefix count from here on.
    pub fn begin(&self, prefix: &str, fault: Option<Fault>) {
        let strange = std::mem::take(&mut self.book().strange);
        *self.book() = Ledger { prefix: prefix.to_owned(), fault, strange, ..Ledger::default() };
    }

    pub fn writes(&self) -> Vec<Write> {
        self.book().writes.clone()
    }

    /// How long nothing was written.
    pub fn quiet(&self) -> Duration {
        self.book().last.map_or(Duration::ZERO, |last| last.elapsed())
    }

    /// The write that the fault met; none if it was not reached.
    pub fn hit(&self) -> Option<Write> {
        self.book().hit.clone()
    }

    pub fn strange(&self) -> Vec<String> {
        self.book().strange.clone()
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strike(&self) {
        if let Some(operator) = self.operator.get() {
            operator.strike();
        }
    }

    /// Enters a write; gives its place in the ledger, and where the operator dies of it.
    fn enter(&self, act: &Act) -> Option<(usize, Option<Position>)> {
        let mut book = self.book();
        if !act.counts {
            return None;
        }
        if !act.write.namespace.starts_with(&book.prefix) {
            if act.write.what != "secrets" {
                let what = format!("{} {} {}/{}", act.write.verb, act.write.what, act.write.namespace, act.write.name);
                book.strange.push(format!("a write outside of the round: {what}"));
            }
            return None;
        }
        book.writes.push(act.write.clone());
        book.last = Some(Instant::now());
        let kind = act.write.kind();
        let number = book.writes.iter().filter(|write| write.kind() == kind).count();
        let position = book.fault.as_ref().filter(|f| f.kind == kind && f.number == number).map(|f| f.position);
        if position.is_some() {
            book.hit = Some(act.write.clone());
        }
        Some((book.writes.len() - 1, position))
    }

    fn answered(&self, act: &Act, place: Option<usize>, code: StatusCode) {
        let mut book = self.book();
        if let Some(write) = place.and_then(|place| book.writes.get_mut(place)) {
            write.code = code.as_u16();
        }
        let forbidden = [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED, StatusCode::UNPROCESSABLE_ENTITY];
        if act.counts && forbidden.contains(&code) {
            let Write { verb, what, namespace, name, .. } = &act.write;
            book.strange.push(format!("{verb} {what} {namespace}/{name}: {code}"));
        }
    }
}

async fn pass(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let act = act(&request);
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else { return bad_gateway() };
    let entered = proxy.enter(&act);
    let (place, position) = (entered.map(|e| e.0), entered.and_then(|e| e.1));
    if position == Some(Position::Before) {
        proxy.strike();
        return bad_gateway();
    }
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut onward = http::Request::builder().method(parts.method.clone()).uri(path);
    for (name, value) in parts.headers.iter().filter(|(name, _)| **name != header::HOST) {
        onward = onward.header(name, value);
    }
    let Ok(onward) = onward.body(kube::client::Body::from(body)) else { return bad_gateway() };
    if parts.method == Method::GET {
        // Watches stream; they end with whoever asked.
        let answer = proxy.api_server.send(onward).await;
        return answer.map_or_else(|_| bad_gateway(), |answer| answer.map(Body::new));
    }
    // A write that is under way is committed, whether or not the operator lives to hear of it.
    let working = tokio::spawn(async move {
        let (mut head, body) = proxy.api_server.send(onward).await.ok()?.into_parts();
        // Of that hop: this one knows the length.
        head.headers.remove(header::TRANSFER_ENCODING);
        let body = to_bytes(Body::new(body), usize::MAX).await.ok()?;
        proxy.answered(&act, place, head.status);
        if position == Some(Position::Committed) {
            proxy.strike();
        }
        Some((proxy, head, body))
    });
    let Ok(Some((proxy, head, body))) = working.await else { return bad_gateway() };
    let body = if position == Some(Position::Replied) { and_then_strike(proxy, body) } else { Body::from(body) };
    Response::from_parts(head, body)
}

/// The body, and the end of the operator when it has been handed over.
fn and_then_strike(proxy: Arc<Proxy>, body: Bytes) -> Body {
    let (sent, handed_over) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let _ = handed_over.await;
        // From here it is the kernel's; the operator reads it within the millisecond, or it does not.
        tokio::time::sleep(Duration::from_millis(1)).await;
        proxy.strike();
    });
    // The stream is dropped when its last byte was taken; `sent` goes with it.
    Body::from_stream(stream::unfold((Some(body), sent), |(body, sent)| async move {
        Some((Ok::<_, std::convert::Infallible>(body?), (None, sent)))
    }))
}

fn bad_gateway() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

/// Reads method and path: `/apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL/NAME/SUB`.
fn act(request: &Request) -> Act {
    let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    let rest = if path.first() == Some(&"api") { path.get(2..) } else { path.get(3..) }.unwrap_or_default();
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let what = match rest {
        [plural, _, sub, ..] => format!("{plural}/{sub}"),
        [plural, ..] => (*plural).to_owned(),
        [] => String::new(),
    };
    let dry_run = request.uri().query().is_some_and(|query| query.contains("dryRun"));
    let counts = request.method() != Method::GET && !dry_run && what != "events";
    let name = rest.get(1).map(|name| (*name).to_owned()).unwrap_or_default();
    let verb = request.method().as_str().to_owned();
    Act { write: Write { verb, what, namespace: namespace.to_owned(), name, code: 0 }, counts }
}
