//! An endpoint for chat completions in this process: what it is asked is kept, what it answers was said beforehand.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::{StreamExt, stream};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// One answer. All but `Whole` and `Fails` come in parts.
#[derive(Clone, Debug)]
pub enum Answer {
    Says(&'static str),
    /// Names of tools, and their arguments.
    Calls(Vec<(&'static str, Value)>),
    Whole(&'static str),
    Refuses(&'static str),
    /// What is said comes with this reason for its end.
    Ends(&'static str, &'static str),
    /// A status, `Retry-After`, and the body.
    Fails(u16, Option<&'static str>, &'static str),
    /// Says it, and comes to no end before it is told to (`Model::release`).
    Lingers(&'static str),
    /// In the middle of a word.
    CutOff,
    /// With a part that is no JSON.
    Garbled,
    /// With an error in the middle.
    Breaks,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub body: Value,
    pub bearer: Option<String>,
    pub at: Instant,
}

#[derive(Default)]
struct Book {
    script: BTreeMap<String, VecDeque<Answer>>,
    asked: BTreeMap<String, Vec<Asked>>,
    /// Command lines of processes that held a key while the model was asked.
    shown: Vec<String>,
}

pub struct Model {
    scheme: &'static str,
    port: u16,
    book: Arc<Mutex<Book>>,
    released: Arc<AtomicBool>,
}

type Shelf = (Arc<Mutex<Book>>, Arc<AtomicBool>);

impl Model {
    /// For each case its answers; the last of them is given from then on.
    pub fn start(address: &str, script: &[(&str, Vec<Answer>)]) -> Self {
        Self::serve(address, script, None)
    }

    /// The same behind TLS.
    pub fn start_tls(address: &str, script: &[(&str, Vec<Answer>)], tls: ServerConfig) -> Self {
        Self::serve(address, script, Some(TlsAcceptor::from(Arc::new(tls))))
    }

    fn serve(address: &str, script: &[(&str, Vec<Answer>)], tls: Option<TlsAcceptor>) -> Self {
        let script = script.iter().map(|(case, answers)| ((*case).to_owned(), answers.clone().into())).collect();
        let book = Arc::new(Mutex::new(Book { script, ..Book::default() }));
        let listener = std::net::TcpListener::bind((address, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        listener.set_nonblocking(true).expect("it does not block");
        let released = Arc::new(AtomicBool::new(false));
        let state: Shelf = (Arc::clone(&book), Arc::clone(&released));
        let scheme = if tls.is_some() { "https" } else { "http" };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let routes = Router::new().route("/{case}/v1/chat/completions", post(answer)).with_state(state);
                match tls {
                    None => axum::serve(listener, routes).await.expect("it serves"),
                    Some(acceptor) => axum::serve(Tls { listener, acceptor }, routes).await.expect("it serves"),
                }
            });
        });
        Self { scheme, port, book, released }
    }

    /// Answers that linger come to their end.
    pub fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// What a prompt names as `baseURL`.
    pub fn url(&self, host: &str, case: &str) -> String {
        format!("{}://{host}:{}/{case}/v1", self.scheme, self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn asked(&self, case: &str) -> Vec<Asked> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).asked.get(case).cloned().unwrap_or_default()
    }

    /// Where a key was seen in a list of processes.
    pub fn shown(&self) -> Vec<String> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).shown.clone()
    }
}

/// Whoever does not like the certificate goes away again.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

async fn answer(
    State((book, released)): State<Shelf>,
    Path(case): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = authorization.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let body = serde_json::from_str(&body).expect("JSON");
    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(key) = &bearer {
        let seen: Vec<String> = command_lines().into_iter().filter(|line| line.contains(key.as_str())).collect();
        book.shown.extend(seen);
    }
    let Some(answers) = book.script.get_mut(&case) else { return StatusCode::NOT_FOUND.into_response() };
    let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
    book.asked.entry(case).or_default().push(Asked { body, bearer, at: Instant::now() });
    next.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |answer| given(answer, released))
}

/// Something is said all the time, and nothing new.
fn lingering(said: &str, released: Arc<AtomicBool>) -> Body {
    let first = stream::iter([delta(&json!({"content": said}))]);
    let pause = Duration::from_millis(50);
    let then = stream::unfold(Some(released), move |released| async move {
        let released = released?;
        tokio::time::sleep(pause).await;
        if released.load(Ordering::Relaxed) {
            return Some((end("stop").concat(), None));
        }
        Some((delta(&json!({"content": " "})), Some(released)))
    });
    Body::from_stream(first.chain(then).map(Ok::<_, std::io::Error>))
}

/// Of all processes that can be seen here.
fn command_lines() -> Vec<String> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}

fn given(answer: Answer, released: Arc<AtomicBool>) -> Response {
    let text = |text: &str| {
        // In two parts: somebody has to put them together.
        let middle = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        vec![delta(&json!({"content": text[..middle]})), delta(&json!({"content": text[middle..]}))]
    };
    let mut parts = vec![delta(&json!({"role": "assistant", "content": ""}))];
    match answer {
        Answer::Fails(status, after, body) => {
            let status = StatusCode::from_u16(status).expect("a status");
            let mut answer = (status, body).into_response();
            if let Some(after) = after {
                answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(after));
            }
            return answer;
        }
        Answer::Whole(said) => {
            let choice =
                json!({"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"});
            let usage = json!({"prompt_tokens": 100, "completion_tokens": 10});
            return axum::Json(json!({"object": "chat.completion", "choices": [choice], "usage": usage}))
                .into_response();
        }
        Answer::Says(said) => {
            parts.extend(text(said));
            parts.extend(end("stop"));
        }
        Answer::Ends(said, reason) => {
            parts.extend(text(said));
            parts.extend(end(reason));
        }
        Answer::Refuses(why) => {
            parts.push(delta(&json!({"refusal": why})));
            parts.extend(end("stop"));
        }
        Answer::Calls(calls) => {
            for (index, (name, arguments)) in calls.iter().enumerate() {
                let arguments = arguments.to_string();
                let (first, second) = arguments.split_at(1);
                let call = json!({"index": index, "id": format!("call-{index}"), "type": "function",
                    "function": {"name": name, "arguments": first}});
                parts.push(delta(&json!({"tool_calls": [call]})));
                parts.push(delta(&json!({"tool_calls": [{"index": index, "function": {"arguments": second}}]})));
            }
            parts.extend(end("tool_calls"));
        }
        Answer::Lingers(said) => {
            return ([(header::CONTENT_TYPE, "text/event-stream")], lingering(said, released)).into_response();
        }
        Answer::CutOff => {
            parts.extend(text("{\"parts\":"));
            let cut = stream::iter([Ok(parts.concat()), Err(std::io::Error::other("the line is cut"))]);
            return ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(cut)).into_response();
        }
        Answer::Garbled => {
            parts.push("data: {\"choices\": [{\n\n".to_owned());
            parts.extend(end("stop"));
        }
        Answer::Breaks => {
            parts.push(format!("data: {}\n\n", json!({"error": {"message": "out of memory", "code": 500}})));
        }
    }
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], parts.concat()).into_response()
}

fn delta(delta: &Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": null});
    format!("data: {}\n\n", json!({"id": "c", "object": "chat.completion.chunk", "choices": [choice], "usage": null}))
}

fn end(reason: &str) -> [String; 3] {
    let choice = json!({"index": 0, "delta": {}, "finish_reason": reason});
    let usage = json!({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110});
    [
        format!("data: {}\n\n", json!({"choices": [choice]})),
        format!("data: {}\n\n", json!({"choices": [], "usage": usage})),
        "data: [DONE]\n\n".to_owned(),
    ]
}
