//! The folder that keeps a run: one process works in it at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::cli::fault::{Code, Fault};

/// Bytes of a termination log, as a kubelet reads them.
const TERMINATION_BYTES: u64 = 4096;

#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// Held until this process ends.
    _lock: File,
}

/// What opening the folder does with a run that is kept in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    Keep,
    Reset,
}

/// What is made of it for git.
const IGNORED: &str = "*\n";

impl Folder {
    /// Makes it, or takes it up where nobody else works in it.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self, Fault> {
        let failed = |error: io::Error| {
            Fault::new(Code::Api, format!("cannot use the folder {}: {error}; choose another --state", path.display()))
        };
        // Secrets are kept in it, and what agents print.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let root = path.canonicalize().map_err(failed)?;
        let lock = root.join("lock");
        let mut held =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(lock).map_err(failed)?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut by = String::new();
                held.take(32).read_to_string(&mut by).ok();
                return Err(Fault::new(
                    Code::Api,
                    format!(
                        "another kubectl lockstep dev (process {}) works in {}; end it, or choose another --state",
                        by.trim(),
                        path.display()
                    ),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let own = Self { root, _lock: held.try_clone().map_err(failed)? };
        let note = |held: &mut File| {
            held.set_len(0)?;
            held.rewind()?;
            writeln!(held, "{}", std::process::id())
        };
        note(&mut held).map_err(failed)?;
        if mode == OpenMode::Reset {
            own.forget().map_err(failed)?;
        }
        fs::write(own.root.join(".gitignore"), IGNORED).map_err(failed)?;
        Ok(own)
    }

    fn forget(&self) -> io::Result<()> {
        for folder in ["attempts", "documents"] {
            gone(fs::remove_dir_all(self.root.join(folder)))?;
        }
        for file in ["state.redb", "told", "output.json"] {
            gone(fs::remove_file(self.root.join(file)))?;
        }
        Ok(())
    }

    pub fn state(&self) -> PathBuf {
        self.root.join("state.redb")
    }

    pub fn documents(&self) -> PathBuf {
        self.root.join("documents")
    }

    pub fn output(&self) -> PathBuf {
        self.root.join("output.json")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("dev.log")
    }

    /// A folder with the program that agents call `lockstep`.
    pub fn calls(&self, program: &Path) -> io::Result<PathBuf> {
        let folder = self.root.join("bin");
        fs::create_dir_all(&folder)?;
        let link = folder.join("lockstep");
        gone(fs::remove_file(&link))?;
        symlink(program, link)?;
        Ok(folder)
    }

    /// The UID of the run whose end was shown to the user.
    pub fn shown_run(&self) -> Option<String> {
        fs::read_to_string(self.root.join("told")).ok()
    }

    /// Notes that the end of this run was shown.
    pub fn note_shown_run(&self, uid: &str) -> io::Result<()> {
        fs::write(self.root.join("told"), uid)
    }

    /// Attempts of a run that is over.
    pub fn forget_attempts(&self) {
        fs::remove_dir_all(self.root.join("attempts")).ok();
    }

    /// Where the attempt of a pod lies.
    pub fn attempt(&self, pod: &str) -> Attempt {
        Attempt { folder: self.root.join("attempts").join(pod) }
    }
}

/// One pod a Job, ever: its name follows from the Job.
pub fn pod_name(job: &str, uid: &str) -> String {
    format!("{job}-{}", uid.get(..5).unwrap_or_default())
}

/// What is gone already is as good.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The folder of one attempt: what a pod has in its volumes.
#[derive(Clone, Debug)]
pub struct Attempt {
    folder: PathBuf,
}

impl Attempt {
    pub fn make(&self, token: &str) -> io::Result<()> {
        for folder in [self.input(), self.output(), self.work()] {
            fs::create_dir_all(folder)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(self.token())?;
        file.write_all(token.as_bytes())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn input(&self) -> PathBuf {
        self.folder.join("in")
    }

    pub fn output(&self) -> PathBuf {
        self.folder.join("out")
    }

    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    pub fn token(&self) -> PathBuf {
        self.folder.join("token")
    }

    /// What a prompt trusts.
    pub fn authorities(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub fn trust(&self, pem: &str) -> io::Result<()> {
        fs::write(self.authorities(), pem)
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub fn termination_log(&self) -> PathBuf {
        self.folder.join("termination-log")
    }

    /// Locked by the attempt's process as long as it, or anything that it started, lives.
    pub fn alive(&self) -> PathBuf {
        self.folder.join("alive")
    }

    /// How far the shim came.
    pub fn marks(&self) -> String {
        let mut marks = Vec::new();
        if let Ok(file) = File::open(self.termination_log()) {
            file.take(TERMINATION_BYTES).read_to_end(&mut marks).ok();
        }
        String::from_utf8_lossy(&marks).into_owned()
    }

    /// What the attempt worked with goes with it; its log stays.
    pub fn clear(&self) {
        for folder in [self.input(), self.output(), self.work()] {
            fs::remove_dir_all(folder).ok();
        }
        fs::remove_file(self.authorities()).ok();
        self.disarm();
    }

    /// A token is good for nothing once its pod has ended.
    pub fn disarm(&self) {
        for file in [self.token(), self.termination_log(), self.alive()] {
            fs::remove_file(file).ok();
        }
    }

    /// Waits until nothing of the attempt lives any more.
    pub fn outlive(&self) -> io::Result<()> {
        match File::open(self.alive()) {
            Ok(file) => file.lock(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_of_one_process_and_is_forgotten_when_told_so() {
        let path = std::env::temp_dir().join(format!("lockstep-folder-{}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        let first = Folder::open(&path, OpenMode::Keep).expect("it opens");
        let second = Folder::open(&path, OpenMode::Keep).expect_err("it is taken");
        let by = format!("process {}", std::process::id());
        assert!(second.code == Code::Api && second.text.contains(&by), "{}", second.text);
        first.note_shown_run("uid").expect("written");
        let attempt = first.attempt("pod");
        attempt.make("token").expect("made");
        fs::write(attempt.termination_log(), "claimed\n").expect("written");
        assert_eq!(attempt.marks(), "claimed\n");
        attempt.outlive().expect("nothing lives");
        drop(first);
        let again = Folder::open(&path, OpenMode::Keep).expect("it opens");
        assert_eq!(again.shown_run().as_deref(), Some("uid"));
        drop(again);
        let fresh = Folder::open(&path, OpenMode::Reset).expect("it opens");
        assert!(fresh.shown_run().is_none() && !attempt.folder().exists());
        fs::remove_dir_all(&path).expect("removed");
    }
}
