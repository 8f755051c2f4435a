//! What the kubelet runs in the agent's container by itself, probes with `exec` and `preStop`: nothing of the agent's as long as
//! its command does not run. So a pod that does not get the attempt does nothing of it, and the shim is not ended for a
//! command that is not there while it waits for the claim or reports the end.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use clap::ValueEnum;

use super::{Stop, exit, files, say, settings};
use crate::protocol::{hook, mark};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hook {
    #[value(name = hook::STARTUP_PROBE)]
    StartupProbe,
    #[value(name = hook::LIVENESS_PROBE)]
    LivenessProbe,
    #[value(name = hook::READINESS_PROBE)]
    ReadinessProbe,
    #[value(name = hook::PRE_STOP)]
    PreStop,
}

/// How far the agent's command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The attempt is not claimed, or its input is not there yet.
    Before,
    Running,
    Over,
}

/// Becomes the command, or answers in its place.
pub fn hook(kind: Hook, words: &[OsString]) -> Result<u8, Stop> {
    let get = |name: &str| std::env::var_os(name);
    let log = settings::termination_log(&get);
    let stage = stage(&log).map_err(|error| Stop::new(exit::INTERNAL, format!("{}: {error}", log.display())))?;
    let Some(code) = instead(kind, stage) else { return Err(replaced_by(words)) };
    if code != 0 {
        // It becomes the message of the kubelet's Event.
        let so_far = if stage == Stage::Before { "has not started yet" } else { "has ended" };
        say(&format!("the agent's command {so_far}"));
    }
    Ok(code)
}

fn stage(log: &Path) -> io::Result<Stage> {
    let marks = files::marks(log)?;
    let reached = |mark: &str| marks.lines().any(|line| line == mark);
    Ok(if !reached(mark::STARTED) {
        Stage::Before
    } else if reached(mark::ENDED) {
        Stage::Over
    } else {
        Stage::Running
    })
}

/// The answer where the command does not run; nothing where it does. The success of a startup probe sets off the others, so it waits
/// for the start. A liveness probe asks whether to end the container, and the shim in it works.
fn instead(kind: Hook, stage: Stage) -> Option<u8> {
    match (kind, stage) {
        (_, Stage::Running) => None,
        (Hook::LivenessProbe | Hook::PreStop, _) | (Hook::StartupProbe, Stage::Over) => Some(0),
        (Hook::StartupProbe, Stage::Before) | (Hook::ReadinessProbe, _) => Some(1),
    }
}

/// Comes back only where the command cannot be run. It takes the place of this process, so that the kubelet's timeout ends it.
fn replaced_by(words: &[OsString]) -> Stop {
    let mut command = settings::command_beside(words, |name| std::env::var_os(name));
    let error = command.exec();
    let code = if error.kind() == ErrorKind::NotFound { exit::NOT_FOUND } else { exit::NOT_EXECUTABLE };
    Stop::new(code, format!("{}: {error}", command.get_program().display()))
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::scratch;
    use super::*;

    #[test]
    fn hooks_of_a_command_that_does_not_run_are_answered_in_its_place() {
        let log = scratch("hook").join("log");
        assert_eq!(stage(&log).unwrap(), Stage::Before, "no file");
        for (written, expected, answers) in [
            ("", Stage::Before, [Some(1), Some(0), Some(1), Some(0)]),
            ("claimed\n", Stage::Before, [Some(1), Some(0), Some(1), Some(0)]),
            ("restarted\nnot started\n", Stage::Before, [Some(1), Some(0), Some(1), Some(0)]),
            ("claimed\nstarted\n", Stage::Running, [None; 4]),
            ("claimed\nstarted\nsaid by the agent\n", Stage::Running, [None; 4]),
            ("claimed\nstarted\nended\n", Stage::Over, [Some(0), Some(0), Some(1), Some(0)]),
            ("claimed\nstarted\nended\nsucceeded\n", Stage::Over, [Some(0), Some(0), Some(1), Some(0)]),
        ] {
            std::fs::write(&log, written).unwrap();
            let found = stage(&log).unwrap();
            assert_eq!(found, expected, "{written:?}");
            let kinds = [Hook::StartupProbe, Hook::LivenessProbe, Hook::ReadinessProbe, Hook::PreStop];
            assert_eq!(kinds.map(|kind| instead(kind, found)), answers, "{written:?}");
        }
    }
}
