//! The server inside the container: `POST LOCKSTEP_URL/progress`, `/result` and `/fail`. Its address holds a random
//! segment, so that a fetch tool of the agent cannot guess it.

#![expect(clippy::disallowed_methods, reason = "the pace of progress, and back-off")]
#![expect(clippy::disallowed_macros, reason = "answers to the agent's calls")]

use std::io::{Cursor, Read as _};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tiny_http::{Header, Method, Request, Response, Server};

use super::files::{self, OUTPUT_READ_BYTES};
use super::gateway::{CallError, Gateway};
use super::mask::{Mask, first_bytes};
use super::process::lock;
use super::supervise::Event;
use crate::api::limits::MESSAGE_BYTES;
use crate::protocol::{self, CheckRequest, Checked, Fault, Output, ProgressRequest};

const WORKERS: usize = 4;
const CHECK_PATIENCE: Duration = Duration::from_secs(30);
const PROGRESS_PATIENCE: Duration = Duration::from_secs(10);
/// Between two reports of progress; the last one counts.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Where the agent leaves what it makes.
#[derive(Clone, Debug)]
pub struct OutputFiles {
    pub folder: PathBuf,
    pub document: Option<String>,
}

impl OutputFiles {
    /// Masked. An error names the file.
    pub fn read(&self, mask: &Mask) -> Result<Output, String> {
        let one = |name: &str| {
            files::read_output(&self.folder.join(name))
                .map(|text| text.map(|text| mask.text(&text)))
                .map_err(|error| format!("{name} {error}"))
        };
        Ok(Output { result: one("result.json")?, document: self.document.as_deref().map_or(Ok(None), one)? })
    }
}

/// What the calls need.
pub struct Calls {
    pub gateway: Arc<Gateway>,
    pub mask: Mask,
    pub files: OutputFiles,
    pub events: Sender<Event>,
    pub progress: Latest,
}

/// The newest progress that was not sent yet.
#[derive(Default)]
pub struct Latest {
    slot: Mutex<Option<(i32, String)>>,
    changed: Condvar,
}

impl Latest {
    fn put(&self, percent: i32, message: String) {
        *lock(&self.slot) = Some((percent, message));
        self.changed.notify_one();
    }

    fn take(&self) -> (i32, String) {
        let mut slot = lock(&self.slot);
        loop {
            if let Some(progress) = slot.take() {
                return progress;
            }
            slot = self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[derive(Deserialize)]
struct ProgressCall {
    percent: i32,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct FailCall {
    retryable: bool,
    message: String,
}

/// Status and JSON.
type Answer = (u16, serde_json::Value);

/// Starts the server; its address.
pub fn serve(calls: Calls, segment: &str) -> Result<String, String> {
    let server = Server::http("127.0.0.1:0").map_err(|error| error.to_string())?;
    let port = server.server_addr().to_ip().map(|address| address.port()).ok_or("the local server has no port")?;
    let server = Arc::new(server);
    let calls = Arc::new(calls);
    let prefix: Arc<str> = format!("/{segment}/").into();
    for _ in 0..WORKERS {
        let (server, calls, prefix) = (Arc::clone(&server), Arc::clone(&calls), Arc::clone(&prefix));
        std::thread::spawn(move || {
            while let Ok(request) = server.recv() {
                handle(&calls, &prefix, request);
            }
        });
    }
    std::thread::spawn(move || pass_progress_on(&calls));
    Ok(format!("http://127.0.0.1:{port}/{segment}"))
}

fn handle(calls: &Calls, prefix: &str, mut request: Request) {
    let call = request.url().strip_prefix(prefix).map(str::to_owned);
    let (status, body) = match (call, request.method()) {
        (None, _) => (404, json!({"error": "not found"})),
        (Some(_), method) if *method != Method::Post => (405, json!({"error": "only POST"})),
        (Some(call), _) => {
            // Before and after: a check may take a while.
            calls.heard();
            let mut bytes = Vec::new();
            let read = request.as_reader().take(OUTPUT_READ_BYTES + 1).read_to_end(&mut bytes);
            match read {
                Ok(count) if count as u64 > OUTPUT_READ_BYTES => (413, json!({"error": "the body is too large"})),
                Ok(_) => calls.answer(&call, &bytes),
                Err(error) => bad(&error),
            }
        }
    };
    let mut response = Response::new(status.into(), Vec::new(), Cursor::new(body.to_string().into_bytes()), None, None);
    calls.heard();
    if let Ok(header) = Header::from_bytes("Content-Type", "application/json") {
        response.add_header(header);
    }
    // The caller may be gone.
    let _ = request.respond(response);
}

fn bad(error: &impl std::fmt::Display) -> Answer {
    (400, json!({"error": error.to_string()}))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    serde_json::from_slice(body).map_err(|error| bad(&error))
}

impl Calls {
    fn answer(&self, call: &str, body: &[u8]) -> Answer {
        let answer = match call {
            "progress" => parse(body).map(|call| self.progress(&call)),
            "fail" => parse(body).map(|call| self.fail(&call)),
            "result" => Ok(self.result(body)),
            // The verbs that need no answer of ours say that the agent is there.
            "alive" => Ok((202, json!({}))),
            _ => Ok((404, json!({"error": "no such call"}))),
        };
        answer.unwrap_or_else(|fault| fault)
    }

    /// The agent is there, for who counts its silence.
    fn heard(&self) {
        // Nobody listens any more once the command has ended.
        let _ = self.events.send(Event::Called);
    }

    fn message(&self, message: &str) -> String {
        first_bytes(&self.mask.text(message), MESSAGE_BYTES).to_owned()
    }

    fn progress(&self, call: &ProgressCall) -> Answer {
        if !(0..=100).contains(&call.percent) {
            return bad(&"percent is 0 to 100");
        }
        self.progress.put(call.percent, self.message(&call.message));
        (202, json!({}))
    }

    fn fail(&self, call: &FailCall) -> Answer {
        let failed = Event::Fail { retryable: call.retryable, message: self.message(&call.message) };
        match self.events.send(failed) {
            Ok(()) => (202, json!({})),
            Err(_) => (503, json!({"error": "the command has ended"})),
        }
    }

    fn result(&self, body: &[u8]) -> Answer {
        if !body.is_empty()
            && let Err(error) = files::replace(&self.files.folder.join("result.json"), body)
        {
            return (500, json!({"error": format!("result.json: {error}")}));
        }
        let output = match self.files.read(&self.mask) {
            Ok(output) => output,
            Err(message) => {
                let pointer = String::new();
                return (422, json!({"faults": [Fault { pointer, message }]}));
            }
        };
        let request = CheckRequest { output };
        let checked = self.gateway.call(protocol::CHECK, &request, CHECK_PATIENCE, go_on).and_then(|answer| {
            serde_json::from_slice::<Checked>(&answer).map_err(|error| CallError::Unreachable(error.to_string()))
        });
        match checked {
            Ok(checked) if checked.faults.is_empty() => (200, json!(checked)),
            Ok(checked) => (422, json!(checked)),
            Err(CallError::TooLarge(message)) => {
                let pointer = String::new();
                (422, json!({"faults": [Fault { pointer, message }]}))
            }
            Err(error) => {
                self.lost(&error);
                (503, json!({"error": error.to_string()}))
            }
        }
    }

    /// A refusal that says that the attempt is over ends the command.
    fn lost(&self, error: &CallError) {
        if let CallError::NotOurs(_) = error {
            let _ = self.events.send(Event::Fenced(error.to_string()));
        }
    }
}

fn go_on(delay: Duration) -> bool {
    std::thread::sleep(delay);
    true
}

fn pass_progress_on(calls: &Calls) {
    loop {
        let (percent, message) = calls.progress.take();
        let request = ProgressRequest { percent, message };
        let sent = calls.gateway.call(protocol::PROGRESS, &request, PROGRESS_PATIENCE, go_on);
        if let Err(error) = sent {
            super::say(&format!("progress {percent} is lost: {error}"));
            calls.lost(&error);
        }
        std::thread::sleep(PROGRESS_INTERVAL);
    }
}
