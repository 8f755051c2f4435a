//! Files of the pod, some of them made by the agent: nothing in them may hang the shim or fill its memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};

/// Bytes read of an output file: more than any limit of the gateway, so that it says what is too large.
pub const OUTPUT_READ_BYTES: u64 = 600 * 1024;
/// As much of the termination log as a kubelet reads.
const MARKS_READ_BYTES: u64 = 4096;
/// Beyond the largest `context.json` that a claim can bring.
const CONTEXT_READ_BYTES: u64 = 16 * 1024 * 1024;

/// At most `limit` bytes of a regular file, `None` when there is none. Neither pipes nor devices are opened for
/// reading, links are not followed.
fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOFOLLOW | O_NOCTTY).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            return Err(io::Error::other("is a symbolic link"));
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The text of an agent's file, its first part when it is too large; then the size of the whole, too.
#[derive(Debug, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    pub bytes: Option<u64>,
}

/// What the agent wrote; `None` when there is no such file.
pub fn read_output(path: &Path) -> io::Result<Option<Text>> {
    let Some(mut bytes) = read(path, OUTPUT_READ_BYTES)? else {
        return Ok(None);
    };
    let cut = bytes.len() as u64 == OUTPUT_READ_BYTES;
    if cut {
        // The cut may go through a character.
        let partial = bytes.utf8_chunks().last().map(|last| last.invalid().len());
        if let Some(partial @ 1..=3) = partial {
            bytes.truncate(bytes.len() - partial);
        }
    }
    let whole = if cut { Some(fs::symlink_metadata(path)?.len()) } else { None };
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("is not UTF-8 text"))?;
    Ok(Some(Text { text, bytes: whole }))
}

pub fn read_context(path: &Path) -> io::Result<Vec<u8>> {
    read(path, CONTEXT_READ_BYTES)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A path from the gateway below `root`.
pub fn inside(root: &Path, relative: &str) -> Option<PathBuf> {
    let path = Path::new(relative);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !relative.is_empty()).then(|| root.join(path))
}

pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes)
}

/// Writes beside the target and renames: a pipe or a link in its place is replaced, not followed.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(&part)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Whether files can be made in a folder.
pub fn writable(folder: &Path) -> bool {
    let probe = folder.join(format!(".lockstep-probe-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).open(&probe).is_ok();
    made && fs::remove_file(&probe).is_ok()
}

/// Appends a line to the termination log.
pub fn mark(log: &Path, line: &str) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).open(log)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    // The kubelet reads it through the same kernel; the disk matters only for a node that crashes.
    let _ = file.sync_data();
    Ok(())
}

/// What stands in the termination log, which the agent may have written to as well.
pub fn marks(log: &Path) -> io::Result<String> {
    let bytes = read(log, MARKS_READ_BYTES)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// An empty folder of this test's own.
    pub fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("lockstep-shim-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn message(result: io::Result<Option<Text>>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn reads_text_and_nothing() {
        let dir = scratch("text");
        assert!(read_output(&dir.join("result.json")).unwrap().is_none());
        fs::write(dir.join("a"), "häh").unwrap();
        assert_eq!(read_output(&dir.join("a")).unwrap().unwrap().text, "häh");
        fs::write(dir.join("b"), [b'a', 0xff, b'b']).unwrap();
        assert_eq!(message(read_output(&dir.join("b"))), "is not UTF-8 text");
    }

    #[test]
    fn strange_files_neither_hang_nor_fill_memory() {
        let dir = scratch("strange");
        let fifo = dir.join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        assert_eq!(message(read_output(&fifo)), "is not a regular file");
        assert_eq!(message(read_output(&dir)), "is not a regular file");
        symlink("/dev/zero", dir.join("zero")).unwrap();
        assert_eq!(message(read_output(&dir.join("zero"))), "is a symbolic link");
        assert_eq!(message(read_output(Path::new("/dev/zero"))), "is not a regular file");
        let huge = dir.join("huge");
        File::create(&huge).unwrap().set_len(1 << 30).unwrap();
        let read = read_output(&huge).unwrap().unwrap();
        assert_eq!((read.text.len() as u64, read.bytes), (OUTPUT_READ_BYTES, Some(1 << 30)));
    }

    #[test]
    fn a_cut_goes_between_characters() {
        let dir = scratch("cut");
        for shift in 0..4 {
            let path = dir.join(shift.to_string());
            fs::write(&path, "a".repeat(shift) + &"€".repeat(300 * 1024)).unwrap();
            let read = read_output(&path).unwrap().unwrap();
            assert!(read.text.len() as u64 > OUTPUT_READ_BYTES - 4);
            assert_eq!(read.bytes, Some(shift as u64 + 3 * 300 * 1024), "of the whole");
        }
    }

    #[test]
    fn paths_stay_inside() {
        let root = Path::new("/lockstep/in");
        assert_eq!(inside(root, "documents/brief.md").unwrap(), root.join("documents/brief.md"));
        for path in ["", "../x", "a/../../x", "/etc/passwd", "..", "."] {
            assert!(inside(root, path).is_none(), "{path}");
        }
    }

    #[test]
    fn replace_follows_no_link() {
        let dir = scratch("replace");
        fs::write(dir.join("precious"), "kept").unwrap();
        symlink(dir.join("precious"), dir.join("result.json")).unwrap();
        replace(&dir.join("result.json"), b"{}").unwrap();
        assert_eq!(fs::read(dir.join("precious")).unwrap(), b"kept");
        assert_eq!(fs::read(dir.join("result.json")).unwrap(), b"{}");
    }

    #[test]
    fn marks_are_appended() {
        let log = scratch("marks").join("log");
        assert_eq!(marks(&log).unwrap(), "");
        mark(&log, "claimed").unwrap();
        mark(&log, "started").unwrap();
        assert_eq!(marks(&log).unwrap(), "claimed\nstarted\n");
    }
}
