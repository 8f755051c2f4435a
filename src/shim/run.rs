//! One attempt from claim to report.

#![expect(
    clippy::disallowed_methods,
    reason = "the attempt's deadline; back-off of the report, which nothing may interrupt"
)]

mod attend;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cgroup_memory::CgroupMemory;
use super::gateway::{CALL, CallError, Gateway, random_hex};
use super::journal::Journal;
use super::local::{Calls, Latest, OutputFiles};
use super::mask::{Tail, first_bytes};
use super::process::{Halt, Reaper, Running, lock, watch_signals};
use super::remember::Remembered;
use super::repair::Repairs;
use super::serve::serve;
use super::settings::Settings;
use super::supervise::{Event, Supervision};
use super::usage::Used;
use super::wait::WaitLimiter;
use super::{Stop, exit, files, say};
use crate::api::limits::{LOG_TAIL_BYTES, MESSAGE_BYTES};
use crate::api::name::digest_bytes;
use crate::protocol::{
    self, Checked, ClaimRequest, Claimed, DocumentRequest, Ending, Fault, InputFile, Output, ReportRequest, mark,
};

pub use attend::{attend, attended};

/// How long to wait for a gateway that is away.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5 * 60);
const DOCUMENT_PATIENCE: Duration = Duration::from_secs(3 * 60);
const CHECK_PATIENCE: Duration = Duration::from_secs(30);
const LOG_PATIENCE: Duration = Duration::from_secs(5);
const REPORT_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Once the pod was told to end: the longest time of a try, and between two.
const HURRIED_CALL: Duration = Duration::from_secs(10);
const HURRIED_DELAY: Duration = Duration::from_secs(1);
/// For the last output after the command's exit.
const DRAIN: Duration = Duration::from_secs(2);
/// Where the faults lie that are to be mended, in the input folder.
const FAULTS_FILE: &str = "faults.json";
/// A deadline beyond this is none.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What one attempt holds together.
struct Attempt {
    settings: Settings,
    gateway: Arc<Gateway>,
    halt: Arc<Halt>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    /// What the agent says that it uses.
    used: Arc<Used>,
    reaper: Reaper,
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
        Err(Lost { code, message }) => {
            attempt.send_log(code, &tail);
            return Err(Stop::new(exit::NOT_OURS, format!("the attempt is over, its end is not reported: {message}")));
        }
    };
    attempt.report(ending, &output, &tail)
}

/// The attempt was lost while its command ran.
struct Lost {
    code: i32,
    message: String,
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
        })?
        .within(std::env::var(protocol::env::TRACEPARENT).ok());
        let (events, inbox) = channel();
        let halt = Arc::new(Halt::default());
        watch_signals(Arc::clone(&halt), events.clone())
            .map_err(|error| Stop::new(exit::INTERNAL, format!("signals: {error}")))?;
        Ok(Self {
            settings,
            gateway: Arc::new(gateway),
            halt,
            events,
            inbox,
            used: Arc::default(),
            reaper: Reaper::default(),
        })
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

    /// Runs the command to its end.
    fn execute(
        &self,
        words: &[OsString],
        claimed: &Claimed,
        output: &OutputFiles,
        tail: &Arc<Mutex<Tail>>,
        deadline: Instant,
    ) -> Result<Result<Ending, Lost>, Stop> {
        let segment = random_hex().ok_or_else(|| Stop::new(exit::INTERNAL, "no random numbers here"))?;
        let calls = Calls {
            gateway: Arc::clone(&self.gateway),
            mask: self.settings.mask.clone(),
            files: output.clone(),
            events: self.events.clone(),
            progress: Latest::default(),
            memory: Remembered::default(),
            used: Arc::clone(&self.used),
            journal: Journal::default(),
            deadline,
            waiting: WaitLimiter::default(),
        };
        let url =
            serve(calls, &segment).map_err(|error| Stop::new(exit::INTERNAL, format!("local server: {error}")))?;
        let command = |words: &[OsString]| self.settings.command(words, &url, &claimed.env);
        if let Some(signal) = self.halt.signal() {
            let message = format!("stopped by signal {signal}, nothing was started");
            return Err(Stop::new(signal_code(signal), message));
        }
        self.mark(mark::STARTED)?;
        let memory = CgroupMemory::watched();
        let silence = claimed.progress_timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let silence = silence.map(|seconds| Duration::from_secs(seconds).min(LONGEST));
        let mut supervision = Supervision::new(deadline).listening(silence, Instant::now());
        let mut code = self.run_to_its_end(command(words), tail, &mut supervision);
        let mut repairs = Repairs::new(claimed.repair.clone());
        while code == 0 && supervision.goes_on() && repairs.are_left() {
            let Some(faults) = self.faults(output) else { break };
            let Some(repair_call) = repairs.next(&faults) else { break };
            note(tail, &repair_call.log_line);
            self.put(FAULTS_FILE, &repair_call.faults)?;
            let mut command = command(&repair_call.command);
            command.env(protocol::env::FAULTS, self.settings.input.join(FAULTS_FILE));
            // Its agent has something to do again.
            supervision.on(Event::Called, Instant::now());
            code = self.run_to_its_end(command, tail, &mut supervision);
        }
        if self.mark(mark::ENDED).is_err() {
            // Probes only go on asking for a command that is gone.
            say("the termination log cannot be written");
        }
        let ended = supervision.ending(code).map_err(|message| Lost { code, message });
        Ok(ended.map(|ending| with_cause(ending, &memory)))
    }

    /// The command's exit code, or what says that it cannot be run.
    fn run_to_its_end(&self, command: Command, tail: &Arc<Mutex<Tail>>, supervision: &mut Supervision) -> i32 {
        let name = command.get_program().display().to_string();
        match Running::start(command, tail, self.events.clone(), &self.reaper) {
            Ok(running) => {
                let code = self.supervise(&running, supervision);
                running.drain(DRAIN);
                code
            }
            Err(error) => {
                note(tail, &format!("{name}: {error}"));
                let code = if error.kind() == ErrorKind::NotFound { exit::NOT_FOUND } else { exit::NOT_EXECUTABLE };
                code.into()
            }
        }
    }

    /// What is wrong with the output; none where nothing is, or nobody can say: then the report is judged.
    fn faults(&self, files: &OutputFiles) -> Option<Vec<Fault>> {
        let fault = |message: String| Some(vec![Fault { pointer: String::new(), message }]);
        let output = match files.read(&self.settings.mask) {
            Ok(output) => output,
            Err(message) => return fault(message),
        };
        let pause = |delay| self.halt.pause(delay);
        match self.gateway.check(output, CHECK_PATIENCE, pause) {
            Ok(answer) => serde_json::from_slice::<Checked>(&answer).ok().map(|checked| checked.faults),
            Err(CallError::TooLarge(message)) => fault(message),
            Err(_) => None,
        }
        .filter(|faults| !faults.is_empty())
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
        let read = match ending {
            // What it has made so far is for the attempt that follows.
            Ending::Asked { .. } => Ok(Output::default()),
            _ => files.read(&self.settings.mask),
        };
        let (ending, output) = judge(ending, read, tail);
        let mut request = ReportRequest { ending, output, log_tail: lock(tail).text(), usage: self.used.sum() };
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
        let succeeded = matches!(request.ending, Ending::Exited { .. }) && code == 0;
        if succeeded && self.mark(mark::SUCCEEDED).is_err() {
            // The report stands; the mark would only repeat it.
            say("the termination log cannot be written");
        }
        Ok(code)
    }

    /// The last of the log, for people: the pod goes, and its log with it. Nothing rests on it.
    fn send_log(&self, code: i32, tail: &Mutex<Tail>) {
        let (ending, log_tail) = (Ending::exited(code), lock(tail).text());
        let request = ReportRequest { ending, output: Output::default(), log_tail, usage: None };
        let _ = self.gateway.call(protocol::REPORT, &request, LOG_PATIENCE, |delay| {
            std::thread::sleep(delay);
            true
        });
    }

    /// A gateway of an earlier version knows neither usage nor that something was masked, and the end of the attempt counts for more.
    fn send(&self, request: &ReportRequest) -> Result<Vec<u8>, CallError> {
        let mut request = request.clone();
        loop {
            match self.send_once(&request) {
                Err(CallError::Refused(why)) if request.output.masked => {
                    say(&format!("the report is sent again without saying that something was masked: {why}"));
                    request.output.masked = false;
                }
                Err(CallError::Refused(why)) if request.usage.is_some() => {
                    say(&format!("the report is sent again without usage: {why}"));
                    request.usage = None;
                }
                answer => return answer,
            }
        }
    }

    fn send_once(&self, request: &ReportRequest) -> Result<Vec<u8>, CallError> {
        self.call_to_the_last(protocol::REPORT, request)
    }

    /// What tells how the attempt ended. Not even a signal ends that, only the pod's grace period does; once one came, a gateway
    /// that is away for some of those 30 s must not cost the report.
    fn call_to_the_last(&self, path: &str, request: &impl Serialize) -> Result<Vec<u8>, CallError> {
        let timeout = || if self.halt.signal().is_some() { HURRIED_CALL } else { CALL };
        self.gateway.call_within(timeout, path, request, REPORT_PATIENCE, |delay| {
            if !self.halt.pause(delay) {
                std::thread::sleep(delay.min(HURRIED_DELAY));
            }
            true
        })
    }
}

/// A failure, with what the node did to it.
fn with_cause(ending: Ending, memory: &CgroupMemory) -> Ending {
    match ending {
        Ending::Exited { code, signal, cause: None } if code != 0 => {
            Ending::Exited { code, signal, cause: memory.shortage() }
        }
        other => other,
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
        Ending::Exited { code: 0, .. } => Ending::Failed {
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
        Ending::TimedOut { .. } | Ending::Silent { .. } => exit::TIMED_OUT,
        Ending::Asked { .. } | Ending::Attended { .. } => 0,
        Ending::Exited { code: 0, .. } if checked.faults.is_empty() => 0,
        Ending::Exited { code: 0, .. } => exit::INVALID_OUTPUT,
        Ending::Failed { code: 0, .. } => 1,
        Ending::Exited { code, .. } | Ending::Failed { code, .. } => u8::try_from(*code).unwrap_or(u8::MAX),
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
        assert_eq!(code_of(&Ending::exited(0), &valid), 0);
        assert_eq!(code_of(&Ending::exited(0), &invalid), 65);
        assert_eq!(code_of(&Ending::exited(143), &invalid), 143);
        assert_eq!(code_of(&Ending::TimedOut { code: Some(0) }, &valid), 124);
        assert_eq!(code_of(&Ending::Asked { questions: Vec::new() }, &valid), 0);
        assert_eq!(code_of(&Ending::Silent { seconds: 5, code: None }, &valid), 124);
        let failed = |code| Ending::Failed { retryable: false, message: String::new(), code };
        assert_eq!(code_of(&failed(0), &valid), 1);
        assert_eq!(code_of(&failed(3), &valid), 3);
    }

    #[test]
    fn an_unreadable_output_turns_success_into_failure_only() {
        let tail = Mutex::new(Tail::new(Mask::default(), 100));
        let unreadable = || Err("result.json is not UTF-8 text".to_owned());
        let (ending, _) = judge(Ending::exited(0), unreadable(), &tail);
        assert!(matches!(ending, Ending::Failed { retryable: true, code: 65, .. }));
        assert!(lock(&tail).text().contains("not UTF-8"));
        let (ending, _) = judge(Ending::exited(3), unreadable(), &tail);
        assert_eq!(ending, Ending::exited(3));
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
            repair: None,
        };
        assert!(document_file(&claimed("discovery.md")).is_ok());
        for name in ["../x", "a/b", "", "/etc/x", ".."] {
            assert!(document_file(&claimed(name)).is_err(), "{name}");
        }
    }
}
