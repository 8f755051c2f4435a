//! A real Git repository with what a team commits.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

pub struct Repository {
    pub path: PathBuf,
}

impl Repository {
    pub fn new(folder: &Path) -> Result<Self> {
        let new = Self { path: folder.join("repository") };
        std::fs::create_dir_all(&new.path)?;
        new.git(&["init", "--quiet", "--initial-branch", "main"])?;
        Ok(new)
    }

    /// Writes files, takes away those without text, and commits; gives the commit.
    pub fn commit(&self, message: &str, files: &[(&str, Option<&str>)]) -> Result<String> {
        for (file, text) in files {
            let path = self.path.join(file);
            match text {
                Some(text) => {
                    std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
                    std::fs::write(path, text)?;
                }
                None => std::fs::remove_file(path)?,
            }
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message])?;
        let commit = self.git(&["rev-parse", "HEAD"])?;
        Ok(String::from_utf8(commit)?.trim().to_owned())
    }

    /// Copies a folder into it, for the next commit.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let status = Command::new("cp").arg("-R").arg(from).arg(self.path.join(to)).status()?;
        ensure!(status.success(), "{} could not be copied", from.display());
        Ok(())
    }

    /// The tree of a commit, as source-controller packs it.
    pub fn archive(&self, commit: &str) -> Result<Vec<u8>> {
        self.git(&["archive", "--format", "tar.gz", commit])
    }

    fn git(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = Command::new("git")
            .args(["-c", "user.name=team", "-c", "user.email=team@localhost", "-c", "commit.gpgsign=false"])
            .args(arguments)
            .current_dir(&self.path)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .context("git is needed")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "git {}: {errors}", arguments.join(" "));
        Ok(output.stdout)
    }
}
