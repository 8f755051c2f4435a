//! The shim on a leash: it and all that it started end with whoever started it. `dev` holds the other end of its standard input,
//! which the system closes when `dev` ends, however that happens.

#![expect(clippy::disallowed_methods, reason = "between two looks at processes that are about to end")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shim;

/// The word that stands before what the shim is told.
pub const WORD: &str = "__shim";
/// What it exits with when the leash was let go: as killed by SIGKILL.
const LET_GO: i32 = 137;
/// Between two looks whether all are gone.
const LOOK: Duration = Duration::from_millis(5);
/// Looks before those that do not go are left to the system.
const LOOKS: usize = 2000;

/// Runs the shim with these words: a file to hold locked while anything lives, and then its own.
pub fn main(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let held = words.next().map(|file| {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
        file.lock().map(|()| file)
    });
    // Whatever loses its parent comes to this process, so that nothing of the agent is out of its reach.
    let adopts = nix::sys::prctl::set_child_subreaper(true);
    let Some((Ok(held), Ok(()))) = held.map(|held| (held, adopts)) else {
        eprintln!("lockstep: cannot hold on to the processes of the agent");
        return ExitCode::from(shim::exit::INTERNAL);
    };
    std::thread::spawn(|| {
        // Nothing is ever sent: this ends when the other end is gone.
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        end_all();
        std::process::exit(LET_GO);
    });
    let ended = shim::called(std::iter::once(OsString::from("lockstep")).chain(words));
    // As in a container, nothing outlives the first process.
    end_all();
    drop(held);
    ended
}

/// Kills all below this process, again and again until none is left: some may be about to start others.
fn end_all() {
    for _ in 0..LOOKS {
        let below = descendants(std::process::id());
        if below.is_empty() {
            return;
        }
        for process in below {
            if let Ok(pid) = i32::try_from(process) {
                // It may be gone already.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// All processes below one that have not ended.
fn descendants(of: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let parent = std::fs::read_to_string(entry.path().join("stat")).ok().and_then(|stat| parent(&stat));
        if let Some((id, parent)) = id.zip(parent) {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![of];
    while let Some(process) = next.pop() {
        let own = children.remove(&process).unwrap_or_default();
        found.extend(&own);
        next.extend(own);
    }
    found
}

/// The parent of a process, by its line in `/proc`; none of one that has ended and waits to be reaped.
fn parent(stat: &str) -> Option<u32> {
    // The name stands in parentheses, and may have some itself.
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.next()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_whatever_the_name() {
        assert_eq!(parent("12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (a) (b) S) R 8 1"), Some(8));
        assert_eq!(parent("12 (sh) Z 7 12"), None);
        assert_eq!(parent("12 sh"), None);
        assert!(descendants(1).contains(&std::process::id()) || std::process::id() == 1 || !descendants(0).is_empty());
    }
}
