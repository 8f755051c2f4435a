//! The command as a process group: start, streams, signals, reaping.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::mask::{Lines, Tail};
use super::supervise::{Act, Event};

/// Bytes read from a stream at once.
const CHUNK: usize = 16 * 1024;

/// A poisoned lock guards plain data here.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers that the shim was told to stop, and wakes who waits.
#[derive(Default)]
pub struct Halt {
    signal: Mutex<Option<i32>>,
    changed: Condvar,
}

impl Halt {
    pub fn signal(&self) -> Option<i32> {
        *lock(&self.signal)
    }

    /// Sleeps, not through a signal; whether to go on.
    pub fn pause(&self, time: Duration) -> bool {
        let (signal, _) = self
            .changed
            .wait_timeout_while(lock(&self.signal), time, |signal| signal.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        signal.is_none()
    }
}

/// Turns signals into events from now on.
pub fn watch_signals(halt: Arc<Halt>, events: Sender<Event>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal != SIGHUP {
                *lock(&halt.signal) = Some(signal);
                halt.changed.notify_all();
            }
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// A started command.
pub struct Running {
    group: Pid,
    streams: Receiver<()>,
}

impl Running {
    /// The command's end comes as an event; orphans that fall to process 1 are reaped too.
    pub fn start(mut command: Command, tail: &Arc<Mutex<Tail>>, events: Sender<Event>) -> std::io::Result<Self> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let group = i32::try_from(child.id()).map(Pid::from_raw).map_err(std::io::Error::other)?;
        let (open, streams) = channel();
        if let Some(out) = child.stdout.take() {
            carry(out, std::io::stdout(), Arc::clone(tail), open.clone());
        }
        if let Some(err) = child.stderr.take() {
            carry(err, std::io::stderr(), Arc::clone(tail), open);
        }
        std::thread::spawn(move || reap(group, &events));
        Ok(Self { group, streams })
    }

    pub fn act(&self, act: Act) {
        let signal = match act {
            Act::Forward(number) => Signal::try_from(number).unwrap_or(Signal::SIGTERM),
            Act::Terminate => Signal::SIGTERM,
            Act::Kill => Signal::SIGKILL,
        };
        // It may be gone already.
        let _ = killpg(self.group, signal);
    }

    /// Ends what the command left behind, and waits a moment for the last of its output.
    pub fn drain(&self, patience: Duration) {
        self.act(Act::Kill);
        // Nothing is ever sent: it returns when both threads are through, or in time.
        let _ = self.streams.recv_timeout(patience);
    }
}

/// Copies a stream to ours and into the tail. `open` is dropped at its end.
fn carry(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    tail: Arc<Mutex<Tail>>,
    open: Sender<()>,
) {
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        let mut lines = Lines::default();
        loop {
            match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    // Where nobody reads our log, the command goes on all the same.
                    let _ = to.write_all(&chunk[..count]).and_then(|()| to.flush());
                    lines.push(&chunk[..count], &mut lock(&tail));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        lines.finish(&mut lock(&tail));
        drop(open);
    });
}

fn reap(command: Pid, events: &Sender<Event>) {
    loop {
        let (pid, code) = match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        if pid == command && events.send(Event::Exited(code)).is_err() {
            return;
        }
    }
}
