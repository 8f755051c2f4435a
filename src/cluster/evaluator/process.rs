//! One process that evaluates: this program once more, as `lockstep evaluate`, with no environment and no open file but
//! its pipes. It bounds its own memory before it says that it is ready, and its processor time for each question.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::wire::{ANSWER_BYTES, READY};

/// By the wall. Processor time is what a question is judged by; this long only a starved node takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The niceness of one that nobody's pass waits for: it has a tenth of a core where everybody else wants the same one.
const NICENESS: i32 = 10;

#[derive(Debug)]
pub struct Running {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    complaints: ChildStderr,
}

/// How an exchange ended without an answer.
#[derive(Debug)]
pub enum End {
    /// The question did it.
    Killed(Bound),
    /// The node, or somebody on it.
    Unanswered(String),
}

/// What a question went beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Time,
    Memory,
    Stack,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Unanswered(error.to_string())
    }
}

impl Running {
    pub fn start(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg("evaluate")
            .env_clear()
            // Its thread would reserve 128 MB for a heap of its own, half of the address space that it has; where that is not to be
            // had, each allocation becomes a call of the kernel.
            .env("MALLOC_ARENA_MAX", "1")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(to), Some(from), Some(complaints)) = pipes else {
            return Err(io::Error::other("it has no pipes"));
        };
        let mut running = Self { child, to, from: BufReader::new(from), complaints };
        match running.exchange(&[]) {
            Ok(ready) if ready == READY => Ok(running),
            Ok(other) => Err(io::Error::other(format!("it began with {other:?}"))),
            Err(end) => Err(io::Error::other(format!("did not start: {end:?}"))),
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// From now on it yields the processor to whoever asks, and to the processes that passes wait for.
    pub fn yield_to_others(&self) {
        // Where that is refused it competes as an equal, bounded as before.
        let _ = rustix::process::setpriority_process(Some(rustix::process::Pid::from_child(&self.child)), NICENESS);
    }

    /// Sends a line and waits for one; who takes too long is killed.
    pub fn exchange(&mut self, line: &[u8]) -> Result<String, End> {
        let Self { child, to, from, .. } = self;
        let (done, waiting) = mpsc::channel::<()>();
        let (answer, late) = thread::scope(|scope| {
            let watch = thread::Builder::new().spawn_scoped(scope, move || {
                let late = waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
                if late {
                    let _ = child.kill();
                }
                late
            })?;
            let answer = to.write_all(line).and_then(|()| to.flush()).and_then(|()| bounded_line(from, ANSWER_BYTES));
            drop(done);
            io::Result::Ok((answer, watch.join().unwrap_or_default()))
        })?;
        match answer {
            Ok(Some(line)) if !late => Ok(line),
            _ if late => Err(End::Unanswered(format!("no answer within {PATIENCE:?}"))),
            _ => Err(self.exit_reason()),
        }
    }

    /// Why it ended, of itself or by the kernel. Whatever else is wrong with it, it is ended now.
    fn exit_reason(&mut self) -> End {
        let mut words = String::new();
        // It closed its output only by ending: it holds both pipes until then.
        let _ = (&mut self.complaints).take(4096).read_to_string(&mut words);
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return End::Unanswered(error.to_string()),
        };
        match status.signal().and_then(|s| Signal::try_from(s).ok()) {
            Some(Signal::SIGXCPU) => End::Killed(Bound::Time),
            Some(Signal::SIGABRT | Signal::SIGSEGV) if words.contains("overflowed its stack") => {
                End::Killed(Bound::Stack)
            }
            Some(Signal::SIGABRT) => End::Killed(Bound::Memory),
            _ => End::Unanswered(format!("it ended: {status} {}", words.trim())),
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
pub fn bounded_line(from: &mut impl BufRead, bytes: usize) -> io::Result<Option<String>> {
    let mut line = String::new();
    from.take(u64::try_from(bytes).unwrap_or(u64::MAX)).read_line(&mut line)?;
    Ok(line.ends_with('\n').then_some(line))
}
