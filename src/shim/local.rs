//! What the calls of the agent do: `POST LOCKSTEP_URL/progress`, `/result`, `/fail` and others. `serve` brings them.

#![expect(clippy::disallowed_methods, reason = "the pace of progress, and back-off")]
#![expect(clippy::disallowed_macros, reason = "answers to the agent's calls")]

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::approve::{self, ApprovalRequest};
use super::ask::{self, CallOutcome};
use super::documents;
use super::files;
use super::gateway::{CallError, Gateway};
use super::journal::{Journal, ReportedState};
use super::mask::{Mask, first_bytes};
use super::process::lock;
use super::remember::Remembered;
use super::supervise::Event;
use super::usage::{UsageCall, Used};
use super::wait::{Until, WaitLimiter};
use crate::api::limits::MESSAGE_BYTES;
use crate::definition::{digits, free_value};
use crate::protocol::{self, AskRequest, Checked, Fault, HistoryRequest, Output, ProgressRequest};

const CHECK_PATIENCE: Duration = Duration::from_secs(30);
const PROGRESS_PATIENCE: Duration = Duration::from_secs(10);
const HISTORY_PATIENCE: Duration = Duration::from_secs(30);
/// Between two sums of what was used; the last one goes with the report.
const USAGE_INTERVAL: Duration = Duration::from_secs(5);
/// Between two reports of progress, as the gateway takes them; the last one counts.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Where the agent leaves what it makes.
#[derive(Clone, Debug)]
pub struct OutputFiles {
    pub folder: PathBuf,
    pub document: Option<String>,
}

impl OutputFiles {
    /// Masked. An error names the file.
    pub fn read(&self, mask: &Mask) -> Result<Output, String> {
        let mut masked = false;
        let mut one = |name: &str| -> Result<(Option<String>, Option<u64>), String> {
            let read = files::read_output(&self.folder.join(name)).map_err(|error| format!("{name} {error}"))?;
            let Some(file) = read else { return Ok((None, None)) };
            let is_json = Path::new(name).extension().is_some_and(|ending| ending == "json");
            let text = if is_json { mask.json(&file.text) } else { mask.text(&file.text) };
            masked |= text != file.text;
            Ok((Some(text), file.bytes))
        };
        let (result, result_bytes) = one("result.json")?;
        if let Some(fault) = result.as_deref().and_then(free_value::nesting_of_text) {
            return Err(format!("result.json {fault}"));
        }
        let (document, document_bytes) = self.document.as_deref().map_or(Ok((None, None)), one)?;
        Ok(Output { result, document, result_bytes, document_bytes, masked })
    }
}

/// What the calls need.
pub struct Calls {
    pub gateway: Arc<Gateway>,
    pub mask: Mask,
    pub files: OutputFiles,
    pub events: Sender<Event>,
    pub progress: Latest,
    pub memory: Remembered,
    pub used: Arc<Used>,
    pub journal: Journal,
    /// When the attempt's time is over.
    pub deadline: Instant,
    pub waiting: WaitLimiter,
}

/// The newest progress that the gateway has not taken yet.
#[derive(Default)]
pub struct Latest {
    slot: Mutex<Option<ProgressRequest>>,
    changed: Condvar,
}

impl Latest {
    fn put(&self, percent: i32, message: String) {
        *lock(&self.slot) = Some(ProgressRequest { percent, message });
        self.changed.notify_one();
    }

    /// What was not taken is said again, unless something newer is there.
    fn put_back(&self, progress: ProgressRequest) {
        lock(&self.slot).get_or_insert(progress);
    }

    fn newer(&self) -> Option<ProgressRequest> {
        lock(&self.slot).take()
    }

    fn take(&self) -> ProgressRequest {
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
struct JournalCall {
    state: ReportedState,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct FailCall {
    retryable: bool,
    message: String,
}

/// Status and JSON.
pub type Answer = (u16, serde_json::Value);

/// Starts what is sent on at a pace of its own.
pub fn pass_on(calls: &Arc<Calls>) {
    let (progressing, using) = (Arc::clone(calls), Arc::clone(calls));
    std::thread::spawn(move || pass_progress_on(&progressing));
    std::thread::spawn(move || pass_usage_on(&using));
}

fn bad(error: &impl std::fmt::Display) -> Answer {
    (400, json!({"error": error.to_string()}))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    digits::read_bytes(body).map_err(|error| bad(&error))
}

impl Calls {
    /// Takes one call, whoever brings it. Those in which the agent may wait for people have places of their own: all others
    /// must be heard meanwhile.
    pub fn take(&self, call: &str, body: &[u8]) -> Answer {
        let may_wait = matches!(call, "ask" | "request-approval");
        if may_wait && !self.waiting.try_acquire() {
            return (429, json!({"error": "too many calls wait for people already; wait for one of them"}));
        }
        // Before and after: a check may take a while.
        self.heard();
        let answered = self.answer(call, body);
        self.heard();
        if may_wait {
            self.waiting.release();
        }
        answered
    }

    /// Answers one call, which stands in the path below `LOCKSTEP_URL`.
    fn answer(&self, call: &str, body: &[u8]) -> Answer {
        let answer = match call {
            "progress" => parse(body).map(|call| self.progress(&call)),
            "fail" => parse(body).map(|call| self.fail(&call)),
            "journal" => parse(body).map(|call| self.journal(&call)),
            "usage" => parse(body).map(|call| self.usage(call)),
            "history" => parse(body).map(|call| self.page(&call)),
            "result" => Ok(self.result(body)),
            "ask" => parse(body).map(|call| self.ask(&call)),
            "request-approval" => parse(body).map(|call| self.request_approval(&call)),
            // The verbs that need no answer of ours say that the agent is there.
            "alive" => Ok((202, json!({}))),
            _ => match call.split_once('/') {
                Some(("memory", call)) => Ok(self.memory(call, body)),
                Some(("document", call)) => Ok(self.refused(documents::call(&self.gateway, call, body))),
                _ => Ok((404, json!({"error": "no such call"}))),
            },
        };
        answer.unwrap_or_else(|fault| fault)
    }

    /// The agent is there, for who counts its silence.
    pub fn heard(&self) {
        // Nobody listens any more once the command has ended.
        let _ = self.events.send(Event::Called);
    }

    fn message(&self, message: &str) -> String {
        first_bytes(&self.mask.text(message), MESSAGE_BYTES).to_owned()
    }

    fn progress(&self, call: &ProgressCall) -> Answer {
        if !(0..=100).contains(&call.percent) {
            return bad(&"percent: must be 0 to 100");
        }
        self.progress.put(call.percent, self.message(&call.message));
        (202, json!({}))
    }

    fn usage(&self, call: UsageCall) -> Answer {
        match self.used.add(call) {
            Ok(sum) => (200, sum),
            Err(fault) => bad(&fault),
        }
    }

    fn journal(&self, call: &JournalCall) -> Answer {
        match self.journal.advance(call.state) {
            Err(fault) => (409, json!({"error": fault})),
            Ok(false) => (202, json!({})),
            Ok(true) if call.state == ReportedState::Failed => {
                self.fail(&FailCall { retryable: true, message: call.message.clone() })
            }
            Ok(true) => {
                if !call.message.is_empty() {
                    self.progress.put(100, self.message(&call.message));
                }
                (202, json!({}))
            }
        }
    }

    /// `GET`: the entries before the cursor that the query names, or the newest.
    pub fn history(&self, query: &str) -> Answer {
        let mut asked = form_urlencoded::parse(query.as_bytes());
        let before = asked.find(|(name, _)| name == "before").map(|(_, cursor)| cursor.into_owned());
        self.page(&HistoryRequest { before: before.filter(|cursor| !cursor.is_empty()) })
    }

    fn page(&self, request: &HistoryRequest) -> Answer {
        let page = self.gateway.call(protocol::HISTORY, request, HISTORY_PATIENCE, go_on).and_then(|answer| {
            serde_json::from_slice(&answer).map_err(|error| CallError::Unreachable(error.to_string()))
        });
        match page {
            Ok(page) => (200, page),
            Err(CallError::Refused(why)) => bad(&why),
            Err(error) => {
                self.lost(&error);
                (503, json!({"error": error.to_string()}))
            }
        }
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
        let checked = self.gateway.check(output, CHECK_PATIENCE, go_on).and_then(|answer| {
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

    fn memory(&self, call: &str, body: &[u8]) -> Answer {
        self.refused(self.memory.call(&self.gateway, &self.mask, call, body))
    }

    /// What the agent hears of a refusal.
    fn refused(&self, answered: Result<Answer, CallError>) -> Answer {
        match answered {
            Ok(answer) => answer,
            Err(error) => {
                self.lost(&error);
                let status = match &error {
                    CallError::TooLarge(_) => 413,
                    CallError::Refused(_) => 400,
                    CallError::NotOurs(_) | CallError::Unreachable(_) => 503,
                };
                (status, json!({"error": error.to_string()}))
            }
        }
    }

    fn ask(&self, call: &AskRequest) -> Answer {
        let until = Until::of(call.wait_seconds, self.deadline);
        self.call_outcome(|| ask::call(&self.gateway, &self.mask, call, until, go_on))
    }

    fn request_approval(&self, call: &ApprovalRequest) -> Answer {
        let until = Until::of(call.wait_seconds, self.deadline);
        self.call_outcome(|| approve::call(&self.gateway, &self.mask, call, until, go_on))
    }

    /// An agent that waits for people is not silent.
    fn call_outcome(&self, call: impl FnOnce() -> CallOutcome) -> Answer {
        let _ = self.events.send(Event::Waits(true));
        let outcome = call();
        let _ = self.events.send(Event::Waits(false));
        match outcome {
            CallOutcome::Answer(status, answer) => (status, answer),
            CallOutcome::Ends(questions, answer) => match self.events.send(Event::Ask(questions)) {
                Ok(()) => (202, answer),
                Err(_) => (503, json!({"error": "the command has ended"})),
            },
            CallOutcome::Lost(error) => {
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

/// What is refused is said again with the report; a gateway of an earlier version knows neither.
fn pass_usage_on(calls: &Calls) {
    loop {
        let sum = calls.used.next();
        let sent = calls.gateway.call(protocol::USAGE, &sum, PROGRESS_PATIENCE, go_on);
        if let Err(error) = sent {
            super::say(&format!("usage is not kept yet: {error}"));
            calls.lost(&error);
        }
        std::thread::sleep(USAGE_INTERVAL);
    }
}

fn pass_progress_on(calls: &Calls) {
    loop {
        let mut said = calls.progress.take();
        let newest = || {
            if let Some(newer) = calls.progress.newer() {
                said = newer;
            }
            said.clone()
        };
        match calls.gateway.call_newest(protocol::PROGRESS, newest, PROGRESS_PATIENCE, go_on) {
            Ok(_) => {}
            // An agent may be silent from now on: its last word must not be the one that is lost.
            Err(CallError::Unreachable(why)) => {
                super::say(&format!("progress {} is not kept yet: {why}", said.percent));
                calls.progress.put_back(said);
            }
            Err(error) => {
                super::say(&format!("progress {} is lost: {error}", said.percent));
                calls.lost(&error);
            }
        }
        std::thread::sleep(PROGRESS_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::super::serve::serve;
    use super::*;
    use crate::protocol::AttemptRef;

    /// A server whose gateway is away, and what its supervisor hears.
    fn served() -> (String, std::sync::mpsc::Receiver<Event>, Arc<Used>) {
        let attempt = AttemptRef {
            namespace: "n".to_owned(),
            step_run: "s".to_owned(),
            uid: "u".to_owned(),
            attempt: 1,
            id: "i".to_owned(),
        };
        let gateway = Gateway::new("http://127.0.0.1:9", None, PathBuf::from("/none"), attempt).expect("a gateway");
        let (events, heard) = std::sync::mpsc::channel();
        let used = Arc::new(Used::default());
        let calls = Calls {
            gateway: Arc::new(gateway),
            mask: Mask::default(),
            files: OutputFiles { folder: PathBuf::from("/none"), document: None },
            events,
            progress: Latest::default(),
            memory: Remembered::default(),
            used: Arc::clone(&used),
            journal: Journal::default(),
            deadline: Instant::now(),
            waiting: WaitLimiter::default(),
        };
        (serve(calls, "segment").expect("a server"), heard, used)
    }

    fn post(url: &str, call: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let agent = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).build().new_agent();
        let mut response = agent.post(format!("{url}/{call}")).send(body.to_string()).expect("an answer");
        (response.status().as_u16(), response.body_mut().read_json().expect("JSON"))
    }

    #[test]
    fn an_agent_keeps_its_journal_and_adds_up_what_it_uses() {
        let (url, heard, used) = served();
        for (call, body, code) in [
            ("journal", json!({"state": "busy"}), 202),
            ("journal", json!({"state": "busy"}), 202),
            ("journal", json!({"state": "initiated"}), 400),
            ("usage", json!({"tokensIn": 900, "tokensOut": 80, "cost": 0.01, "model": "small"}), 200),
            ("usage", json!({"tokensIn": -1}), 400),
            ("usage", json!({"tokens": 1}), 400),
            ("usage", json!({"tokensIn": 100, "cost": "0.02"}), 200),
            ("journal", json!({"state": "completed", "message": "all is written"}), 202),
            ("journal", json!({"state": "completed"}), 202),
            ("journal", json!({"state": "busy"}), 409),
            ("nonsense", json!({}), 404),
            ("journal", json!({"state": "failed", "message": "no luck"}), 202),
        ] {
            let (answered, answer) = post(&url, call, &body);
            assert_eq!(answered, code, "{call} {body}: {answer}");
        }
        let sum = used.sum().expect("a sum");
        assert_eq!((sum.tokens_in, sum.tokens_out, sum.cost.as_deref()), (1000, 80, Some("0.03")));
        // The agent is heard with each call, and `failed` is the way of `fail`.
        let heard: Vec<Event> = heard.try_iter().collect();
        assert!(heard.contains(&Event::Fail { retryable: true, message: "no luck".to_owned() }), "{heard:?}");
        assert!(heard.iter().filter(|event| **event == Event::Called).count() >= 12);
        let agent = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).build().new_agent();
        for (path, code) in [("segment/progress", 405), ("segment/usage", 405), ("other/history", 404)] {
            let base = url.trim_end_matches("segment");
            let response = agent.get(format!("{base}{path}")).call().expect("an answer");
            assert_eq!(response.status().as_u16(), code, "{path}");
        }
    }

    #[test]
    fn an_output_that_nests_too_deep_is_refused_here() {
        let folder = std::env::temp_dir().join(format!("lockstep-deep-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let files = OutputFiles { folder: folder.clone(), document: None };
        let read = |levels: usize| {
            let text = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
            std::fs::write(folder.join("result.json"), &text).expect("it is written");
            files.read(&Mask::default()).map(|output| output.result == Some(text))
        };
        assert_eq!(read(64), Ok(true));
        assert!(read(100_000).is_err_and(|fault| fault.starts_with("result.json nests 100000 levels")));
        std::fs::remove_dir_all(folder).expect("it goes");
    }

    #[test]
    fn progress_that_was_not_taken_gives_way_to_a_newer_one_only() {
        let latest = Latest::default();
        let progress = |percent: i32| ProgressRequest { percent, message: String::new() };
        latest.put(10, String::new());
        assert_eq!((latest.take().percent, latest.newer().is_none()), (10, true));
        latest.put_back(progress(10));
        assert_eq!(latest.take().percent, 10, "said again");
        latest.put(20, String::new());
        latest.put_back(progress(10));
        assert_eq!((latest.take().percent, latest.newer().is_none()), (20, true));
    }

    /// One request of the MCP protocol, as a client of 2025 sends it.
    fn mcp(url: &str, request: &serde_json::Value, origin: Option<&str>) -> (u16, String) {
        let agent = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).build().new_agent();
        let mut post = agent
            .post(format!("{url}/mcp"))
            .header("Content-Type", "application/json")
            .header("Accept", "application/json, text/event-stream")
            .header("MCP-Protocol-Version", "2025-06-18");
        if let Some(origin) = origin {
            post = post.header("Origin", origin);
        }
        let mut response = post.send(request.to_string()).expect("an answer");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
    }

    #[test]
    fn an_agents_calls_are_tools() {
        let (url, heard, used) = served();
        let ask = |method: &str, params: serde_json::Value| {
            let (status, text) =
                mcp(&url, &json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}), None);
            assert_eq!(status, 200, "{method}: {text}");
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["result"].clone()
        };
        let hello =
            json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let server = ask("initialize", hello);
        assert_eq!((&server["serverInfo"]["name"], &server["capabilities"]["tools"]), (&json!("lockstep"), &json!({})));
        let tools = ask("tools/list", json!({}));
        let names: Vec<&str> =
            tools["tools"].as_array().into_iter().flatten().filter_map(|tool| tool["name"].as_str()).collect();
        for name in ["progress", "journal", "usage", "history", "memory_get", "document_get", "result", "ask", "fail"] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        let call =
            |name: &str, arguments: serde_json::Value| ask("tools/call", json!({"name": name, "arguments": arguments}));
        let told = call("usage", json!({"tokensIn": 9, "model": "m"}));
        assert_eq!((&told["isError"], &told["structuredContent"]["tokensIn"]), (&json!(false), &json!(9)), "{told}");
        assert_eq!(used.sum().map(|sum| sum.tokens_in), Some(9));
        let refused = call("progress", json!({"percent": 101}));
        assert_eq!(refused["isError"], true, "{refused}");
        assert!(refused["content"][0]["text"].as_str().is_some_and(|text| text.contains("0 to 100")), "{refused}");
        let told = call("fail", json!({"retryable": false, "message": "no luck"}));
        assert!(told["structuredContent"]["message"].as_str().is_some_and(|text| text.contains("ends now")), "{told}");
        let heard: Vec<Event> = heard.try_iter().collect();
        assert!(heard.contains(&Event::Fail { retryable: false, message: "no luck".to_owned() }), "{heard:?}");
        assert!(heard.iter().filter(|event| **event == Event::Called).count() >= 6, "each is a call: {heard:?}");

        // A page in a browser, an unknown tool, a stranger's path.
        let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}});
        assert_eq!(mcp(&url, &list, Some("http://evil.example")).0, 403);
        let (_, unknown) =
            mcp(&url, &json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "rm"}}), None);
        assert!(unknown.contains("there is no tool rm"), "{unknown}");
        assert_eq!(mcp(url.trim_end_matches("segment").trim_end_matches('/'), &list, None).0, 404);
    }
}
