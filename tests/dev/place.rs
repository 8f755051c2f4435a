//! A folder with files, and `dev` in it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_kubectl-lockstep");
const PATIENCE: Duration = Duration::from_secs(150);

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub struct Place {
    pub folder: PathBuf,
}

/// How it ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Panics with all that was said where it did not end so.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self
    }
}

impl Place {
    pub fn new(purpose: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("lockstep-dev-{purpose}-{}", std::process::id()));
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir_all(&folder).expect("a folder");
        Self { folder }
    }

    pub fn write(&self, file: &str, text: &str) {
        std::fs::write(self.folder.join(file), text).expect("written");
    }

    pub fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }

    /// Each line of a command is a word, or several without quotes.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("dev").args(words).current_dir(&self.folder).env("HERE", &self.folder).env("USER", "ann");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, words: &[&str]) -> Ran {
        self.start(words).ended()
    }

    pub fn start(&self, words: &[&str]) -> Started {
        let mut child = self.command(words).spawn().expect("it starts");
        let (out, mut err) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        let (tell, errors) = channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            err.read_to_string(&mut text).ok();
            let _ = tell.send(text);
        });
        Started { child, lines, errors, seen: String::new() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// A `dev` that runs.
pub struct Started {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
    seen: String,
}

impl Started {
    /// Waits for a line with these words; none where it ended without one.
    pub fn until(&mut self, words: &str) -> Option<String> {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push_str(&line);
            self.seen.push('\n');
            if line.contains(words) {
                return Some(line);
            }
        }
        None
    }

    /// Waits until something is so that it does not say itself; false where it ended before.
    pub fn until_that(&mut self, so: impl Fn() -> bool) -> bool {
        loop {
            let line = self.lines.recv_timeout(Duration::from_millis(10));
            self.seen.extend(line.iter().flat_map(|line| [line.as_str(), "\n"]));
            if so() {
                return true;
            }
            if line == Err(RecvTimeoutError::Disconnected) {
                return false;
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("it lives");
    }

    pub fn ended(mut self) -> Ran {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push_str(&line);
            self.seen.push('\n');
        }
        let code = self.child.wait().expect("its end").code();
        let err = self.errors.recv_timeout(PATIENCE).expect("its errors");
        Ran { code, out: std::mem::take(&mut self.seen), err }
    }
}

/// An Agent whose command is a script.
pub fn agent(name: &str, more: &str, script: &str) -> String {
    let script = script.lines().map(|line| format!("          {}\n", line.trim())).collect::<Vec<_>>().concat();
    format!(
        "apiVersion: lockstep.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {name}}}\nspec:\n{more}  template:\n    spec:\n      containers:\n      - name: agent\n        image: none\n        command: [sh, -ec]\n        args:\n        - |\n{script}---\n"
    )
}

/// A run of these steps.
pub fn run(name: &str, steps: &str) -> String {
    let steps = steps.lines().map(|line| format!("  {}\n", line.trim_start_matches("    ")));
    let steps = steps.collect::<Vec<_>>().concat();
    format!(
        "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {{name: {name}}}\nspec:\n  steps:\n{steps}---\n"
    )
}
