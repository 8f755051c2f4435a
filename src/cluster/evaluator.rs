//! Expressions are evaluated by a process of their own: this program once more, as `lockstep evaluate`, with no
//! environment, no open file but its pipes, bounded memory and bounded time. A line of JSON asks, a line answers. It is
//! kept between questions; what ends it is told as a fault of the expression that did.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;
use crate::api::limits::{EXPRESSION_MEMORY_BYTES, EXPRESSION_SECONDS};
use crate::decide::expression::{Evaluate, InProcess};

/// The stack that evaluation has. It counts against the memory, but only what is touched is real.
const STACK_BYTES: usize = 64 << 20;
/// No question and no answer is longer, escapes included.
const LINE_BYTES: u64 = 1 << 20;
/// By the wall. Processor time is what an expression is judged by; this long only a starved node takes.
const PATIENCE: Duration = Duration::from_secs(20);
const READY: &str = "ready\n";

#[derive(Serialize, Deserialize)]
struct Question {
    source: String,
    variables: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Value(Value),
    Error(String),
}

/// Who evaluates the expressions of this process.
#[derive(Clone, Debug)]
pub enum Evaluator {
    /// For installations whose authors are all trusted.
    InProcess,
    Isolated(Arc<Helper>),
}

impl Evaluator {
    pub fn isolated() -> Self {
        Self::Isolated(Arc::new(Helper::of("/proc/self/exe")))
    }

    /// One for each decision: trouble of one is not that of another.
    pub fn for_decision(&self) -> Arc<dyn Evaluate> {
        match self {
            Self::InProcess => Arc::new(InProcess),
            Self::Isolated(helper) => Arc::new(Isolated { helper: Arc::clone(helper), trouble: OnceLock::new() }),
        }
    }
}

/// Refuses a decision whose expressions could not be evaluated, for no fault of theirs: the pass is tried again.
pub fn sound(evaluator: &Arc<dyn Evaluate>) -> Result<(), Error> {
    evaluator.trouble().map_or(Ok(()), |trouble| Err(Error::Unusable(trouble)))
}

#[derive(Debug)]
struct Isolated {
    helper: Arc<Helper>,
    trouble: OnceLock<String>,
}

impl Evaluate for Isolated {
    fn evaluate(&self, source: &str, variables: &Map<String, Value>) -> Result<Value, String> {
        if let Some(trouble) = self.trouble.get() {
            return Err(trouble.clone());
        }
        self.helper.ask(source, variables).unwrap_or_else(|trouble| {
            let words = format!("the process that evaluates expressions: {trouble}");
            Err(self.trouble.get_or_init(|| words).clone())
        })
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.get().cloned()
    }
}

/// The helper process, started when it is needed, one question at a time.
#[derive(Debug)]
pub struct Helper {
    program: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    complaints: ChildStderr,
}

/// How an exchange ended without an answer.
enum End {
    /// The expression did it.
    Fault(String),
    /// The node, or somebody on it.
    Trouble(String),
}

impl Helper {
    pub fn of(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), running: Mutex::default() }
    }

    /// The process that runs now, if one does.
    pub fn process(&self) -> Option<u32> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|running| running.child.id())
    }

    /// The expression's value or fault; an error is neither.
    pub fn ask(&self, source: &str, variables: &Map<String, Value>) -> io::Result<Result<Value, String>> {
        let question = Question { source: source.to_owned(), variables: variables.clone() };
        let mut line = serde_json::to_vec(&question)?;
        line.push(b'\n');
        if line.len() as u64 > LINE_BYTES {
            return Ok(Err(format!("reads {} bytes of JSON, at most {LINE_BYTES} are allowed", line.len())));
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // One that died since the last question gets a successor; one that was just started does not.
        let kept = running.take();
        let was_kept = kept.is_some();
        let mut helper = kept.map_or_else(|| self.start(), Ok)?;
        let mut end = helper.exchange(&line);
        if was_kept && matches!(end, Err(End::Trouble(_))) {
            helper = self.start()?;
            end = helper.exchange(&line);
        }
        match end {
            Ok(answer) => {
                *running = Some(helper);
                Ok(match serde_json::from_str(&answer)? {
                    Answer::Value(value) => Ok(value),
                    Answer::Error(fault) => Err(fault),
                })
            }
            Err(End::Fault(fault)) => Ok(Err(fault)),
            Err(End::Trouble(trouble)) => Err(io::Error::other(trouble)),
        }
    }

    fn start(&self) -> io::Result<Running> {
        let mut child = Command::new(&self.program)
            .arg("evaluate")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(to), Some(from), Some(complaints)) = pipes else {
            return Err(io::Error::other("it has no pipes"));
        };
        let mut running = Running { child, to, from: BufReader::new(from), complaints };
        // It says so only once its own bounds stand.
        match running.exchange(&[]) {
            Ok(ready) if ready == READY => Ok(running),
            Ok(other) => Err(io::Error::other(format!("it began with {other:?}"))),
            Err(End::Fault(words) | End::Trouble(words)) => Err(io::Error::other(format!("did not start: {words}"))),
        }
    }
}

impl Running {
    /// Sends a line and waits for one; who takes too long is killed.
    fn exchange(&mut self, line: &[u8]) -> Result<String, End> {
        let Self { child, to, from, .. } = self;
        let (done, waiting) = mpsc::channel::<()>();
        let trouble = |e: io::Error| End::Trouble(e.to_string());
        let (answer, late) = thread::scope(|scope| {
            let watch = thread::Builder::new().spawn_scoped(scope, move || {
                let late = waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
                if late {
                    let _ = child.kill();
                }
                late
            })?;
            let answer = to.write_all(line).and_then(|()| to.flush()).and_then(|()| bounded_line(from));
            drop(done);
            Ok((answer, watch.join().unwrap_or_default()))
        })
        .map_err(trouble)?;
        match answer {
            Ok(Some(line)) if !late => Ok(line),
            _ if late => Err(End::Trouble(format!("no answer within {PATIENCE:?}"))),
            _ => Err(self.obituary()),
        }
    }

    /// Why it ended, of itself or by the kernel. Whatever else is wrong with it, it is ended now.
    fn obituary(&mut self) -> End {
        let mut words = String::new();
        // It closed its output only by ending: it holds both pipes until then.
        let _ = (&mut self.complaints).take(4096).read_to_string(&mut words);
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return End::Trouble(error.to_string()),
        };
        let megabytes = EXPRESSION_MEMORY_BYTES >> 20;
        let signal = status.signal().and_then(|s| Signal::try_from(s).ok());
        match signal {
            Some(Signal::SIGXCPU) => End::Fault(format!(
                "took longer than {EXPRESSION_SECONDS} s of processor time; let it read less, or loop less"
            )),
            Some(Signal::SIGABRT | Signal::SIGSEGV) if words.contains("overflowed its stack") => {
                End::Fault("nests too deep to be evaluated; let a step before compute a part of it".to_owned())
            }
            Some(Signal::SIGABRT) => End::Fault(format!(
                "needed more than {megabytes} MB of memory; let it read less, or build fewer and smaller lists"
            )),
            _ => End::Trouble(format!("it ended: {status} {}", words.trim())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line, or nothing where the pipe was closed or the line has no end.
fn bounded_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    from.take(LINE_BYTES).read_line(&mut line)?;
    Ok(line.ends_with('\n').then_some(line))
}

// ---- the other end

/// `lockstep evaluate`: answers until its input ends. Bounds itself first, and says that it did.
pub fn serve() -> io::Result<()> {
    bound()?;
    // A panic is an answer; its text on a pipe that nobody reads before the end would fill it.
    std::panic::set_hook(Box::new(|_| {}));
    let answering = thread::Builder::new().stack_size(STACK_BYTES).spawn(answer_all)?;
    answering.join().map_err(|_| io::Error::other("it panicked"))?
}

fn bound() -> io::Result<()> {
    // What this program opens is closed by exec, what it was given itself is not.
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|file| *file > 2)
        .collect();
    for file in open {
        // One of them was the folder, which is closed already.
        let _ = nix::unistd::close(file);
    }
    setrlimit(Resource::RLIMIT_AS, EXPRESSION_MEMORY_BYTES, EXPRESSION_MEMORY_BYTES)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

/// The kernel ends this process if it is still busy then. Whole seconds are all that can be set, so the last may be long.
fn allow_seconds() -> io::Result<()> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let used = usage.user_time().tv_sec() + usage.system_time().tv_sec();
    let (_, most) = getrlimit(Resource::RLIMIT_CPU)?;
    let soft = u64::try_from(used).unwrap_or_default() + 1 + EXPRESSION_SECONDS;
    setrlimit(Resource::RLIMIT_CPU, soft.min(most), most)?;
    Ok(())
}

fn answer_all() -> io::Result<()> {
    let (mut from, mut to) = (io::stdin().lock(), io::stdout().lock());
    to.write_all(READY.as_bytes())?;
    to.flush()?;
    while let Some(line) = bounded_line(&mut from)? {
        let question: Question = serde_json::from_str(&line)?;
        allow_seconds()?;
        let evaluated = std::panic::catch_unwind(|| InProcess.evaluate(&question.source, &question.variables));
        let answer = match evaluated.unwrap_or_else(|_| Err("cannot be evaluated: it made CEL panic".to_owned())) {
            Ok(value) => Answer::Value(value),
            Err(fault) => Answer::Error(fault.chars().take(4096).collect()),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        to.write_all(&line)?;
        to.flush()?;
    }
    Ok(())
}
