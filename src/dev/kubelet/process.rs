//! One attempt as a process: started with what a pod has, ended as a kubelet ends it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::environment::{self, Find};
use super::now;
use crate::api::name::{self, LABEL_AGENT};
use crate::apiserver::Object;
use crate::decide::build::PROMPT;
use crate::definition::agent::{CA_FILE, CONTAINER};
use crate::dev::PROMPTS;
use crate::dev::command::Commands;
use crate::dev::folder::{Attempt, Folder};
use crate::dev::leash;
use crate::dev::tokens::Tokens;
use crate::protocol::{env, path};

/// Between SIGTERM and SIGKILL, as a pod has it.
const GRACE: Duration = Duration::from_secs(30);
/// What the shim is told by words of its own outside of a pod (`shim/settings.rs`).
const TERMINATION_LOG: &str = "LOCKSTEP_TERMINATION_LOG";
const TOKEN_FILE: &str = "LOCKSTEP_TOKEN_FILE";

/// What attempts are started with.
pub struct Machine {
    pub program: PathBuf,
    /// The folder in which agents find `lockstep`.
    pub calls: PathBuf,
    pub folder: Arc<Folder>,
    pub tokens: Tokens,
    pub commands: Commands,
    pub gateway: String,
}

impl Machine {
    /// Whether an attempt was begun there before.
    pub fn knows(&self, pod: &str) -> bool {
        self.folder.attempt(pod).folder().exists()
    }

    /// How far the shim of an attempt came that has ended with an earlier `dev`.
    pub fn outlived(&self, pod: &str) -> String {
        let attempt = self.folder.attempt(pod);
        // What cannot be locked is held by nobody.
        let _ = attempt.outlive();
        let marks = attempt.marks();
        attempt.disarm();
        marks
    }

    pub fn ended(&self, uid: &str) {
        self.tokens.revoke(uid);
    }

    /// Starts the shim of a pod; the error is what a kubelet would say.
    pub fn start(&self, pod: &Object, find: Find<'_>) -> Result<Running, String> {
        let typed = pod.typed::<Pod>().ok_or("its pod cannot be read")?;
        let containers = typed.spec.iter().flat_map(|spec| &spec.containers);
        let own = containers.into_iter().find(|c| c.name == CONTAINER).ok_or("it has no container agent")?;
        let mut variables = environment::of(own, &typed, find)?;
        let authorities = environment::authorities(&typed, find)?;
        let audience = audience(&variables);
        let attempt = self.folder.attempt(&pod.key.name);
        let failed = |error: std::io::Error| format!("{}: {error}", attempt.folder().display());
        attempt.make(&self.tokens.issue(&pod.key.name, &pod.uid, &audience)).map_err(failed)?;
        if let Some(pem) = authorities {
            attempt.trust(&pem).map_err(failed)?;
            variables.insert(CA_FILE.to_owned(), attempt.authorities().display().to_string());
        }
        let log = OpenOptions::new().create(true).append(true).open(attempt.log()).map_err(failed)?;
        let agent = pod.label(LABEL_AGENT).unwrap_or_default();
        let own = if is_prompt(own) { self.prompt() } else { words(own, &variables) };
        let here = self.commands.of(agent, own);
        let mut command = Command::new(&self.program);
        command.arg(leash::WORD).arg(attempt.alive()).args(["run", "--"]).args(&here.words);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("LOCKSTEP_")) {
                command.env_remove(name);
            }
        }
        command.envs(&variables);
        command
            .env(env::GATEWAY, &self.gateway)
            .env_remove(env::GATEWAY_CA)
            .env(env::IN, attempt.input())
            .env(env::OUT, attempt.output())
            .env(env::WORK, attempt.work())
            .env(TOKEN_FILE, attempt.token())
            .env(TERMINATION_LOG, attempt.termination_log())
            .env("PATH", self.search_path(variables.get("PATH")));
        command.current_dir(&here.folder).process_group(0).stdin(Stdio::piped());
        command.stdout(log.try_clone().map_err(failed)?).stderr(log);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", self.program.display()))?;
        let leash = child.stdin.take();
        let process = Process { id: child.id(), child: Mutex::new(Some(child)), ended: Ending::default() };
        Ok(Running { pod: pod.key.name.clone(), attempt, leash, process: Arc::new(process), is_disrupted: false })
    }

    /// What Lockstep's own image runs for a prompt: this program does as well.
    fn prompt(&self) -> Vec<String> {
        vec![self.program.display().to_string(), PROMPTS.to_owned()]
    }

    /// What an agent calls `lockstep` is found first: another program may have that name here.
    fn search_path(&self, said: Option<&String>) -> OsString {
        let given = said.map(OsString::from).or_else(|| std::env::var_os("PATH")).unwrap_or_default();
        let mut path = self.calls.clone().into_os_string();
        if !given.is_empty() {
            path.push(":");
            path.push(given);
        }
        path
    }
}

/// Whom the token of an attempt is for.
fn audience(variables: &BTreeMap<String, String>) -> String {
    let said = |name: &str| variables.get(name).map(String::as_str).unwrap_or_default();
    name::audience(said(env::STEP_RUN_UID), said(env::ATTEMPT).parse().unwrap_or_default())
}

fn is_prompt(own: &Container) -> bool {
    own.command.as_deref().is_some_and(|words| words == PROMPT)
}

/// The agent's own words, without the shim's before them.
fn words(own: &Container, variables: &BTreeMap<String, String>) -> Vec<String> {
    let command = own.command.iter().flatten().cloned().collect::<Vec<String>>();
    let behind = command.strip_prefix(&[path::SHIM.to_owned(), "run".to_owned(), "--".to_owned()]).unwrap_or(&command);
    let all = behind.iter().chain(own.args.iter().flatten());
    all.map(|word| environment::expanded(word, variables)).collect()
}

type Ending = (Mutex<bool>, Condvar);

/// A process that was started; whoever waits for it and whoever signals it share it.
pub struct Process {
    id: u32,
    child: Mutex<Option<Child>>,
    ended: Ending,
}

impl Process {
    /// Waits for its end, once; a signal counts as 128 + its number.
    pub fn wait(&self) -> i32 {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It keeps its number until it is reaped, and that is only when nobody signals it any more.
        if let Ok(id) = i32::try_from(self.id) {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(Pid::from_raw(id)), flags) == Err(Errno::EINTR) {}
        }
        *self.ended.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let status = child.and_then(|mut child| child.wait().ok());
        self.ended.1.notify_all();
        status.map_or(137, |status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(9)))
    }

    fn signal(&self, signal: Signal) {
        let ended = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !*ended && let Ok(id) = i32::try_from(self.id) {
            let _ = kill(Pid::from_raw(id), signal);
        }
    }

    /// Whether it ends within that time.
    fn ends_within(&self, time: Duration) -> bool {
        let ended = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.1.wait_timeout_while(ended, time, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The process of a pod.
pub struct Running {
    pod: String,
    attempt: Attempt,
    /// It ends, with all that it started, when this is dropped.
    leash: Option<ChildStdin>,
    process: Arc<Process>,
    is_disrupted: bool,
}

impl Running {
    pub fn pod(&self) -> &str {
        &self.pod
    }

    pub fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process)
    }

    pub fn is_disrupted(&self) -> bool {
        self.is_disrupted
    }

    pub fn marks(&self) -> String {
        self.attempt.marks()
    }

    /// What it worked with stays where it failed, to be looked at.
    pub fn clear(&self, code: i32) {
        if code == 0 { self.attempt.clear() } else { self.attempt.disarm() }
    }

    /// As a kubelet ends a pod that is deleted.
    pub fn end(&mut self) {
        let Some(leash) = self.leash.take() else { return };
        let process = Arc::clone(&self.process);
        process.signal(Signal::SIGTERM);
        std::thread::spawn(move || {
            if !process.ends_within(GRACE) {
                drop(leash);
            }
        });
    }

    /// As a node that is shut down ends it.
    pub fn disrupt(&mut self) {
        self.is_disrupted = true;
        self.process.signal(Signal::SIGTERM);
    }

    pub fn kill(&mut self) {
        self.leash = None;
    }
}

/// The status of a pod that was just started.
pub fn started(pod: &Object) -> Value {
    let running = json!({"running": {"startedAt": now()}});
    json!({"phase": "Running", "startTime": now(), "containerStatuses": container(pod, &running)})
}

/// The status of the agent's container, in a list.
pub fn container(pod: &Object, state: &Value) -> Value {
    let containers = pod.value["spec"]["containers"].as_array();
    let own = containers.into_iter().flatten().find(|container| container["name"] == CONTAINER);
    let image = own.map(|own| own["image"].clone()).unwrap_or_default();
    let is_running = !state["running"].is_null();
    json!([{"name": CONTAINER, "image": image, "imageID": "", "ready": is_running, "restartCount": 0, "state": state}])
}

/// That the pod is taken away, and does not end by itself.
pub fn disrupted() -> Value {
    json!({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
        "message": "dev was ended", "lastTransitionTime": now()})
}
