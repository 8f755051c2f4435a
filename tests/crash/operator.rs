//! The operator: the real binary as a child process, which can be struck at any moment and started again.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::Notify;

pub struct Operator {
    binary: PathBuf,
    folder: PathBuf,
    child: Mutex<Option<Child>>,
    /// Told when the operator was struck.
    pub struck: Notify,
}

impl Operator {
    /// Not started yet; its kubeconfig and log lie in the folder.
    pub fn new(binary: &Path, folder: &Path, kubeconfig: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("kubeconfig"), kubeconfig)?;
        File::create(folder.join("operator.log"))?;
        let (binary, folder) = (binary.to_owned(), folder.to_owned());
        Ok(Self { binary, folder, child: Mutex::default(), struck: Notify::new() })
    }

    pub fn start(&self) -> Result<()> {
        self.start_listening(([127, 0, 0, 1], 0).into())
    }

    /// With its probes at that address.
    pub fn start_listening(&self, probes: std::net::SocketAddr) -> Result<()> {
        let log = OpenOptions::new().append(true).open(self.log())?;
        let child = Command::new(&self.binary)
            .arg("operator")
            .env("KUBECONFIG", self.folder.join("kubeconfig"))
            .env("LOCKSTEP_IMAGE", "lockstep:nobody-pulls-it")
            // One alone, as the chart has it: a Lease would be held by the dead one for its 15 s.
            .env("LOCKSTEP_LEADER_ELECT", "false")
            .env("LOCKSTEP_METRICS_LISTEN", probes.to_string())
            .env("LOCKSTEP_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// `kill -9`; gone when this returns.
    pub fn strike(&self) {
        self.end();
        self.struck.notify_one();
    }

    pub fn end(&self) {
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Fails if it went by itself; gives its process, none while it is struck.
    pub fn lives(&self) -> Result<Option<u32>> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = child.as_mut() else { return Ok(None) };
        let ended = child.try_wait()?;
        ensure!(ended.is_none(), "the operator ended by itself: {ended:?}; see {}", self.log().display());
        Ok(Some(child.id()))
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("operator.log")
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.end();
    }
}
