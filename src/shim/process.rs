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
use super::supervise::{Event, SignalToSend};

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

/// Processes that may end between the start of a command and the moment at which its number is known.
const ENDED: usize = 1024;

/// Which process is the command now, and which ended before that was known.
#[derive(Default)]
struct Watched {
    command: Option<Pid>,
    ended: Vec<(Pid, i32)>,
}

/// Reaps all processes that fall to the shim, and tells of the command's end.
#[derive(Clone, Default)]
pub struct Reaper(Arc<Mutex<Watched>>);

impl Reaper {
    /// What ended before a command is started is none of it, whatever number that gets.
    fn forget(&self) {
        lock(&self.0).ended.clear();
    }

    /// Waits for the end of this process from now on; its code, if it is there already.
    fn watch(&self, command: Pid) -> Option<i32> {
        let mut watched = lock(&self.0);
        let ended = std::mem::take(&mut watched.ended).into_iter().find(|(pid, _)| *pid == command);
        watched.command = Some(command).filter(|_| ended.is_none());
        ended.map(|(_, code)| code)
    }

    /// Whether this was the command.
    fn ended(&self, pid: Pid, code: i32) -> bool {
        let mut watched = lock(&self.0);
        if watched.command == Some(pid) {
            watched.command = None;
            return true;
        }
        if watched.command.is_none() && watched.ended.len() < ENDED {
            // It may be the one that is being started.
            watched.ended.push((pid, code));
        }
        false
    }
}

/// A started command.
pub struct Running {
    group: Pid,
    streams: Receiver<()>,
}

impl Running {
    /// The command's end comes as an event; orphans that fall to process 1 are reaped too. One command runs at a time.
    pub fn start(
        mut command: Command,
        tail: &Arc<Mutex<Tail>>,
        events: Sender<Event>,
        reaper: &Reaper,
    ) -> std::io::Result<Self> {
        reaper.forget();
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
        if let Some(code) = reaper.watch(group) {
            // Whoever waits for it holds the other end.
            let _ = events.send(Event::Exited(code));
        }
        let reaper = reaper.clone();
        std::thread::spawn(move || reap(&reaper, &events));
        Ok(Self { group, streams })
    }

    pub fn act(&self, act: SignalToSend) {
        let signal = match act {
            SignalToSend::Forward(number) => Signal::try_from(number).unwrap_or(Signal::SIGTERM),
            SignalToSend::Terminate => Signal::SIGTERM,
            SignalToSend::Kill => Signal::SIGKILL,
        };
        // It may be gone already.
        let _ = killpg(self.group, signal);
    }

    /// Ends what the command left behind, and waits a moment for the last of its output.
    pub fn drain(&self, patience: Duration) {
        self.act(SignalToSend::Kill);
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

/// Until no process is left.
fn reap(reaper: &Reaper, events: &Sender<Event>) {
    loop {
        let (pid, code) = match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        if reaper.ended(pid, code) && events.send(Event::Exited(code)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_each_command_is_told_once_however_soon_it_comes() {
        let reaper = Reaper::default();
        let (first, orphan, second) = (Pid::from_raw(7), Pid::from_raw(8), Pid::from_raw(9));
        assert_eq!(reaper.watch(first), None);
        assert!(!reaper.ended(orphan, 1), "somebody else's");
        assert!(reaper.ended(first, 0));
        // Before anybody knew that it was started; and an orphan of the first, with it.
        assert!(!reaper.ended(orphan, 2) && !reaper.ended(second, 3));
        assert_eq!(reaper.watch(second), Some(3));
        assert!(!reaper.ended(second, 3), "it was told already");
        // Its number is given to another process.
        assert_eq!(reaper.watch(first), None);
        assert!(reaper.ended(first, 4));
    }
}
