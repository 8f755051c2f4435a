//! The verbs that an agent calls: they talk to the shim over `LOCKSTEP_URL`, or read `LOCKSTEP_IN`.

#![expect(clippy::disallowed_macros, reason = "bodies of the agent's calls")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::{FailKind, Stop, Strings, exit, files};
use crate::protocol::{self, Checked, env, path};

/// The call itself went wrong, the verb has no answer.
pub const TROUBLE: u8 = 2;
/// Longer than the shim tries to reach the gateway for a check.
const PATIENCE: Duration = Duration::from_secs(90);

pub fn progress(percent: i32, text: &str) -> Result<u8, Stop> {
    let (status, answer) = post("progress", &json!({"percent": percent, "message": text}))?;
    expect(status, 202, &answer)
}

pub fn result(file: Option<&Path>) -> Result<u8, Stop> {
    let target = folder(env::OUT, "out").join("result.json");
    if let Some(file) = file {
        copy(file, &target)?;
    }
    let (status, answer) = post("result", &Value::Null)?;
    let checked = match status {
        200 | 422 => {
            serde_json::from_str::<Checked>(&answer).map_err(|error| Stop::new(TROUBLE, format!("result: {error}")))?
        }
        _ => return expect(status, 200, &answer),
    };
    for fault in &checked.faults {
        print(&format!("{fault}\n"))?;
    }
    Ok(u8::from(!checked.faults.is_empty()))
}

fn copy(file: &Path, target: &Path) -> Result<(), Stop> {
    let same = match (file.canonicalize(), target.canonicalize()) {
        (Ok(file), Ok(target)) => file == target,
        _ => false,
    };
    if same {
        return Ok(());
    }
    let fault = |error| Stop::new(TROUBLE, format!("{}: {error}", file.display()));
    let file_text =
        files::read_output(file).map_err(fault)?.ok_or_else(|| fault(std::io::ErrorKind::NotFound.into()))?;
    files::replace(target, file_text.text.as_bytes())
        .map_err(|error| Stop::new(TROUBLE, format!("{}: {error}", target.display())))
}

pub fn fail(kind: &FailKind, message: &str) -> Result<u8, Stop> {
    let (status, answer) = post("fail", &json!({"retryable": kind.retryable, "message": message}))?;
    expect(status, 202, &answer)?;
    park()
}

/// The shim ends the whole group; a script must not go on meanwhile.
pub fn park() -> ! {
    loop {
        std::thread::park();
    }
}

pub fn context(pointer: &str, strings: Strings) -> Result<u8, Stop> {
    alive();
    let file = folder(env::IN, "in").join("context.json");
    let fault = |error: String| Stop::new(TROUBLE, format!("{}: {error}", file.display()));
    let bytes = files::read_context(&file).map_err(|error| fault(error.to_string()))?;
    let context: Value = serde_json::from_slice(&bytes).map_err(|error| fault(error.to_string()))?;
    if !pointer.is_empty() && !pointer.starts_with('/') {
        return Err(Stop::new(TROUBLE, format!("'{pointer}' is no JSON pointer: it begins with / or is empty")));
    }
    match context.pointer(pointer) {
        None => Ok(1),
        Some(Value::String(text)) if strings == Strings::Raw => print(&format!("{text}\n")),
        Some(value) => print(&format!("{value}\n")),
    }
}

pub fn version() -> Result<u8, Stop> {
    alive();
    print(&format!("lockstep {} protocol {}\n", env!("CARGO_PKG_VERSION"), protocol::VERSION))
}

/// These verbs need no shim, but are calls too: whoever counts the agent's silence hears of them.
fn alive() {
    if std::env::var_os(env::URL).is_some() {
        let _ = post("alive", &Value::Null);
    }
}

pub fn print(text: &str) -> Result<u8, Stop> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map(|()| 0)
        .map_err(|error| Stop::new(TROUBLE, format!("stdout: {error}")))
}

fn folder(name: &str, default: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| Path::new(path::ROOT).join(default), PathBuf::from)
}

pub fn expect(status: u16, good: u16, answer: &str) -> Result<u8, Stop> {
    if status == good { Ok(0) } else { Err(Stop::new(TROUBLE, format!("{status} {}", answer.trim()))) }
}

pub fn post(call: &str, body: &Value) -> Result<(u16, String), Stop> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let post = agent().post(format!("{}/{call}", url()?)).header("Content-Type", "application/json");
    answer(call, post.send(body))
}

/// As `post`, for a call in which the agent may wait for so many seconds.
pub fn post_waiting(call: &str, body: &Value, seconds: Option<i64>) -> Result<(u16, String), Stop> {
    let wait = Duration::from_secs(seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default());
    let post = agent_for(PATIENCE + wait).post(format!("{}/{call}", url()?)).header("Content-Type", "application/json");
    answer(call, post.send(body.to_string()))
}

pub fn get(call: &str, query: Option<(&str, &str)>) -> Result<(u16, String), Stop> {
    let mut get = agent().get(format!("{}/{call}", url()?));
    if let Some((name, value)) = query {
        get = get.query(name, value);
    }
    answer(call, get.call())
}

pub fn url() -> Result<String, Stop> {
    std::env::var(env::URL).map_err(|_| {
        let message = format!("{} is not set: not in an agent's container", env::URL);
        Stop::new(exit::UNAVAILABLE, message)
    })
}

fn agent() -> ureq::Agent {
    agent_for(PATIENCE)
}

fn agent_for(patience: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_global(Some(patience))
        .build()
        .new_agent()
}

fn answer(call: &str, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(u16, String), Stop> {
    let fault = |error: ureq::Error| Stop::new(exit::UNAVAILABLE, format!("{call}: {error}"));
    let mut response = response.map_err(fault)?;
    let status = response.status().as_u16();
    let answer = response.body_mut().read_to_string().map_err(fault)?;
    Ok((status, answer))
}
