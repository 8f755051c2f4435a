//! One attempt from claim to report.

#![expect(
    clippy::disallowed_methods,
    reason = "the attempt's deadline; back-off of the report, which nothing may interrupt"
)]

use std::ffi::OsString;
use std::io::ErrorKind;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::gateway::{CallError, Gateway, random_hex};
use super::local::{Calls, Latest, OutputFiles, serve};
use super::mask::{Tail, first_bytes};
use super::process::{Halt, Running, lock, watch_signals};
use super::settings::Settings;
use super::supervise::{Event, Supervision};
use super::{Stop, exit, files, say};
use crate::api::limits::{LOG_TAIL_BYTES, MESSAGE_BYTES};
use crate::api::name::digest_bytes;
use crate::protocol::{
    self, Checked, ClaimRequest, Claimed, DocumentRequest, Ending, InputFile, Output, ReportRequest, mark,
};

/// How long to wait for a gateway that is away.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5 * 60);
const DOCUMENT_PATIENCE: Duration = Duration::from_secs(3 * 60);
const REPORT_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// For the last output after the command's exit.
const DRAIN: Duration = Duration::from_secs(2);
/// A deadline beyond this is none.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What one attempt holds together.
struct Attempt {
    settings: Settings,
    gateway: Arc<Gateway>,
    halt: Arc<Halt>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
}

pub fn run(words: &[OsString]) -> Result<u8, Stop> {
    let attempt = Attempt::prepare()?;
    let (claimed, deadline) = attempt.claim()?;
    attempt.lay_out(&claimed)?;
    let output = OutputFiles { folder: attempt.settings.output.clone(), document: document_file(&claimed)? };
    let tail = Arc::new(Mutex::new(Tail::new(attempt.settings.mask.clone(), LOG_TAIL_BYTES)));
    let end = attempt.execute(words, &claimed, &output, &tail, deadline)?;
    let ending = match end {
        Ok(ending) => ending,
        Err(message) => {
            return Err(Stop::new(exit::NOT_OURS, format!("the attempt is over, its end is not reported: {message}")));
        }
    };
    attempt.report(ending, &output, &tail)
}

fn document_file(claimed: &Claimed) -> Result<Option<String>, Stop> {
    match &claimed.document_file {
        Some(name) if name.contains('/') || files::inside("".as_ref(), name).is_none() => {
            let message = format!("'{name}' is no file name for a document");
            Err(Stop::new(exit::INTERNAL, message))
        }
        name => Ok(name.clone()),
    }
}

impl Attempt {
    fn prepare() -> Result<Self, Stop> {
        let id = random_hex().ok_or_else(|| Stop::new(exit::INTERNAL, "no random numbers here"))?;
        let settings =
            Settings::read(|name| std::env::var_os(name), id).map_err(|message| Stop::new(exit::INTERNAL, message))?;
        let gateway = Gateway::new(
            &settings.gateway,
            settings.gateway_ca.as_deref(),
            settings.token.clone(),
            settings.attempt.clone(),
        )
        .map_err(|message| {
            let message = format!("gateway {}: {message}", settings.gateway);
            Stop::new(exit::INTERNAL, message)
        })?;
        let (events, inbox) = channel();
        let halt = Arc::new(Halt::default());
        watch_signals(Arc::clone(&halt), events.clone())
            .map_err(|error| Stop::new(exit::INTERNAL, format!("signals: {error}")))?;
        Ok(Self { settings, gateway: Arc::new(gateway), halt, events, inbox })
    }

    /// The input, and when the attempt's time is over.
    fn claim(&self) -> Result<(Claimed, Instant), Stop> {
        let request = ClaimRequest { shim_version: env!("CARGO_PKG_VERSION").to_owned() };
        let answer = self
            .gateway
            .call(protocol::CLAIM, &request, CLAIM_PATIENCE, |delay| self.halt.pause(delay))
            .map_err(|error| self.not_started("claim", &error))?;
        let now = Instant::now();
        let claimed: Claimed = serde_json::from_slice(&answer).map_err(|error| {
            let message = format!("the gateway's answer to the claim: {error}");
            Stop::new(exit::INTERNAL, message)
        })?;
        self.mark(mark::CLAIMED)?;
        let time = Duration::from_secs(u64::try_from(claimed.timeout_seconds).unwrap_or(0));
        say(&format!(
            "claimed {}/{} attempt {}, {} s",
            self.settings.attempt.namespace,
            self.settings.attempt.step_run,
            self.settings.attempt.attempt,
            time.as_secs()
        ));
        Ok((claimed, now + time.min(LONGEST)))
    }

    fn not_started(&self, what: &str, error: &CallError) -> Stop {
        if let Some(signal) = self.halt.signal() {
            return Stop::new(signal_code(signal), format!("{what}: stopped by signal {signal}, nothing was started"));
        }
        let code = match error {
            CallError::NotOurs(_) => exit::NOT_OURS,
            _ => exit::UNAVAILABLE,
        };
        Stop::new(code, format!("{what}: {error}; nothing was started"))
    }

    /// Without this proof a lost pod could not be judged, so nothing goes on.
    fn mark(&self, line: &str) -> Result<(), Stop> {
        let log = &self.settings.termination_log;
        files::mark(log, line).map_err(|error| Stop::new(exit::INTERNAL, format!("{}: {error}", log.display())))
    }

    fn lay_out(&self, claimed: &Claimed) -> Result<(), Stop> {
        for folder in [&self.settings.output, &self.settings.work] {
            std::fs::create_dir_all(folder)
                .map_err(|error| Stop::new(exit::INTERNAL, format!("{}: {error}", folder.display())))?;
        }
        for document in &claimed.documents {
            self.fetch(document)?;
        }
        let context = serde_json::to_vec_pretty(&claimed.context)
            .map_err(|error| Stop::new(exit::INTERNAL, error.to_string()))?;
        self.put("context.json", &context)
    }

    fn fetch(&self, document: &InputFile) -> Result<(), Stop> {
        let request = DocumentRequest { name: document.name.clone() };
        let bytes = self
            .gateway
            .call(protocol::DOCUMENT, &request, DOCUMENT_PATIENCE, |delay| self.halt.pause(delay))
            .map_err(|error| self.not_started(&document.path, &error))?;
        let digest = digest_bytes(&bytes);
        if digest != document.digest {
            let message =
                format!("{}: its digest is {digest}, not {}; nothing was started", document.path, document.digest);
            return Err(Stop::new(exit::INTERNAL, message));
        }
        self.put(&document.path, &bytes)
    }

    fn put(&self, relative: &str, bytes: &[u8]) -> Result<(), Stop> {
        let path = files::inside(&self.settings.input, relative).ok_or_else(|| {
            let message = format!("'{relative}' leaves the input folder; nothing was started");
            Stop::new(exit::INTERNAL, message)
        })?;
        files::write(&path, bytes).map_err(|error| Stop::new(exit::INTERNAL, format!("{}: {error}", path.display())))
    }

    /// Runs the command to its end. The inner error: the attempt was lost meanwhile.
    fn execute(
        &self,
        words: &[OsString],
        claimed: &Claimed,
        output: &OutputFiles,
        tail: &Arc<Mutex<Tail>>,
        deadline: Instant,
    ) -> Result<Result<Ending, String>, Stop> {
        let segment = random_hex().ok_or_else(|| Stop::new(exit::INTERNAL, "no random numbers here"))?;
        let calls = Calls {
            gateway: Arc::clone(&self.gateway),
            mask: self.settings.mask.clone(),
            files: output.clone(),
            events: self.events.clone(),
            progress: Latest::default(),
        };
        let url =
            serve(calls, &segment).map_err(|error| Stop::new(exit::INTERNAL, format!("local server: {error}")))?;
        let command = self.settings.command(words, &url, &claimed.env);
        if let Some(signal) = self.halt.signal() {
            let message = format!("stopped by signal {signal}, nothing was started");
            return Err(Stop::new(signal_code(signal), message));
        }
        self.mark(mark::STARTED)?;
        let running = match Running::start(command, tail, self.events.clone()) {
            Ok(running) => running,
            Err(error) => {
                let name = words.first().cloned().unwrap_or_default();
                note(tail, &format!("{}: {error}", name.display()));
                let code = match error.kind() {
                    ErrorKind::NotFound => exit::NOT_FOUND,
                    _ => exit::NOT_EXECUTABLE,
                };
                return Ok(Ok(Ending::Exited { code: code.into() }));
            }
        };
        let silence = claimed.progress_timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let silence = silence.map(|seconds| Duration::from_secs(seconds).min(LONGEST));
        let mut supervision = Supervision::new(deadline).listening(silence, Instant::now());
        let code = self.supervise(&running, &mut supervision);
        running.drain(DRAIN);
        Ok(supervision.ending(code))
    }

    fn supervise(&self, running: &Running, supervision: &mut Supervision) -> i32 {
        loop {
            let now = Instant::now();
            if let Some(act) = supervision.due(now) {
                running.act(act);
            }
            let wait = supervision.wake().saturating_duration_since(now);
            match self.inbox.recv_timeout(wait) {
                Ok(Event::Exited(code)) => return code,
                Ok(event) => {
                    if let Some(act) = supervision.on(event, Instant::now()) {
                        running.act(act);
                    }
                }
                // `self.events` keeps the channel open.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    fn report(&self, ending: Ending, files: &OutputFiles, tail: &Mutex<Tail>) -> Result<u8, Stop> {
        let (ending, output) = judge(ending, files.read(&self.settings.mask), tail);
        let mut request = ReportRequest { ending, output, log_tail: lock(tail).text() };
        let mut answer = self.send(&request);
        if let Err(CallError::TooLarge(message)) = &answer {
            request.ending = made_invalid(request.ending, message);
            request.output = Output::default();
            answer = self.send(&request);
        }
        let answer = answer.map_err(|error| {
            let code = match error {
                CallError::NotOurs(_) => exit::NOT_OURS,
                _ => exit::UNAVAILABLE,
            };
            Stop::new(code, format!("{:?} was not accepted: {error}", request.ending))
        })?;
        let checked: Checked = serde_json::from_slice(&answer).map_err(|error| {
            let message = format!("the gateway's answer to the report: {error}");
            Stop::new(exit::UNAVAILABLE, message)
        })?;
        for fault in &checked.faults {
            say(&format!("the output is refused: {fault}"));
        }
        let code = code_of(&request.ending, &checked);
        if code == 0 && self.mark(mark::SUCCEEDED).is_err() {
            // The report stands; the mark would only repeat it.
            say("the termination log cannot be written");
        }
        Ok(code)
    }

    fn send(&self, request: &ReportRequest) -> Result<Vec<u8>, CallError> {
        self.gateway.call(protocol::REPORT, request, REPORT_PATIENCE, |delay| {
            // Not even a signal ends this: the pod's grace period does.
            std::thread::sleep(delay);
            true
        })
    }
}

/// A line of the shim's own, in the log and in its tail.
fn note(tail: &Mutex<Tail>, message: &str) {
    say(message);
    lock(tail).push(format!("lockstep: {message}\n").as_bytes());
}

/// An output that cannot be read is no success.
fn judge(ending: Ending, output: Result<Output, String>, tail: &Mutex<Tail>) -> (Ending, Output) {
    match output {
        Ok(output) => (ending, output),
        Err(message) => {
            note(tail, &message);
            (made_invalid(ending, &message), Output::default())
        }
    }
}

fn made_invalid(ending: Ending, message: &str) -> Ending {
    match ending {
        Ending::Exited { code: 0 } => Ending::Failed {
            retryable: true,
            message: first_bytes(message, MESSAGE_BYTES).to_owned(),
            code: exit::INVALID_OUTPUT.into(),
        },
        other => other,
    }
}

fn signal_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(exit::INTERNAL)
}

/// The shim's own exit code.
fn code_of(ending: &Ending, checked: &Checked) -> u8 {
    match ending {
        Ending::TimedOut | Ending::Silent { .. } => exit::TIMED_OUT,
        Ending::Exited { code: 0 } if checked.faults.is_empty() => 0,
        Ending::Exited { code: 0 } => exit::INVALID_OUTPUT,
        Ending::Failed { code: 0, .. } => 1,
        Ending::Exited { code } | Ending::Failed { code, .. } => u8::try_from(*code).unwrap_or(u8::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::super::mask::Mask;
    use super::*;

    #[test]
    fn exit_codes_read_naturally() {
        let valid = Checked::default();
        let fault = protocol::Fault { pointer: String::new(), message: "no result.json".into() };
        let invalid = Checked { faults: vec![fault] };
        assert_eq!(code_of(&Ending::Exited { code: 0 }, &valid), 0);
        assert_eq!(code_of(&Ending::Exited { code: 0 }, &invalid), 65);
        assert_eq!(code_of(&Ending::Exited { code: 143 }, &invalid), 143);
        assert_eq!(code_of(&Ending::TimedOut, &valid), 124);
        assert_eq!(code_of(&Ending::Silent { seconds: 5 }, &valid), 124);
        let failed = |code| Ending::Failed { retryable: false, message: String::new(), code };
        assert_eq!(code_of(&failed(0), &valid), 1);
        assert_eq!(code_of(&failed(3), &valid), 3);
    }

    #[test]
    fn an_unreadable_output_turns_success_into_failure_only() {
        let tail = Mutex::new(Tail::new(Mask::default(), 100));
        let unreadable = || Err("result.json is not UTF-8 text".to_owned());
        let (ending, _) = judge(Ending::Exited { code: 0 }, unreadable(), &tail);
        assert!(matches!(ending, Ending::Failed { retryable: true, code: 65, .. }));
        assert!(lock(&tail).text().contains("not UTF-8"));
        let (ending, _) = judge(Ending::Exited { code: 3 }, unreadable(), &tail);
        assert_eq!(ending, Ending::Exited { code: 3 });
    }

    #[test]
    fn a_documents_name_is_one_file() {
        let claimed = |name: &str| Claimed {
            context: serde_json::Value::Null,
            documents: Vec::new(),
            env: Vec::new(),
            document_file: Some(name.to_owned()),
            document_is_json: false,
            timeout_seconds: 1,
            progress_timeout_seconds: None,
        };
        assert!(document_file(&claimed("discovery.md")).is_ok());
        for name in ["../x", "a/b", "", "/etc/x", ".."] {
            assert!(document_file(&claimed(name)).is_err(), "{name}");
        }
    }
}
