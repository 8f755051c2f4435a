//! The shim beside a container that it leaves as it is: it claims before that starts, and on SIGTERM, which comes when that has
//! ended, sends what it has left. How it ended the gateway reads from the pod.

use std::path::{Path, PathBuf};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::super::gateway::CallError;
use super::{Attempt, Event, Stop, exit, files, say};
use crate::protocol::{self, Checked, ContainerEnded, EndedRequest, Ending, Output, ReportRequest, env, mark, path};

/// There once the attempt is claimed: in a folder that the agent's container does not mount.
const CLAIMED: &str = "attended";

/// The sidecar's command.
pub fn attend() -> Result<u8, Stop> {
    let attempt = Attempt::prepare()?;
    attempt.claim()?;
    // The agent starts with the next look of the probe, and nobody here sees it.
    attempt.mark(mark::STARTED)?;
    let claimed = place();
    files::write(&claimed, b"")
        .map_err(|error| Stop::new(exit::INTERNAL, format!("{}: {error}", claimed.display())))?;
    while let Ok(event) = attempt.inbox.recv() {
        if matches!(event, Event::Signal(SIGTERM | SIGINT)) {
            break;
        }
    }
    let file = std::env::var_os(env::RESULT_PATH).map(PathBuf::from);
    let (output, fault) = match file.as_deref().map(left) {
        None => (attempt.message()?, None),
        Some(Ok(None)) => (Output::default(), None),
        Some(Ok(Some(read))) => (Output { result_bytes: read.bytes, ..attempt.masked(&read.text) }, None),
        Some(Err(error)) => {
            let name = file.as_deref().unwrap_or(Path::new("")).display().to_string();
            (Output::default(), Some(format!("{name} {error}")))
        }
    };
    let ending = Ending::Attended { has_file: file.is_some(), fault };
    let request = ReportRequest { ending, output, log_tail: String::new(), usage: None };
    let answer = attempt.send(&request).map_err(|error| Stop::new(exit::UNAVAILABLE, format!("report: {error}")))?;
    for fault in serde_json::from_slice::<Checked>(&answer).unwrap_or_default().faults {
        say(&format!("the output is refused: {fault}"));
    }
    Ok(0)
}

impl Attempt {
    /// The container's termination message, masked; nothing where there is nothing to mask: the gateway reads it itself.
    fn message(&self) -> Result<Output, Stop> {
        if self.settings.mask.is_empty() {
            return Ok(Output::default());
        }
        let answer = match self.call_to_the_last(protocol::ENDED, &EndedRequest::default()) {
            Ok(answer) => answer,
            Err(CallError::Refused(why)) => {
                say(&format!("the termination message cannot be masked, the gateway is of an earlier version: {why}"));
                return Ok(Output::default());
            }
            Err(error) => return Err(Stop::new(exit::UNAVAILABLE, format!("the container's end: {error}"))),
        };
        let ended: ContainerEnded = serde_json::from_slice(&answer).unwrap_or_default();
        Ok(ended.message.map(|message| self.masked(&message)).unwrap_or_default())
    }

    fn masked(&self, text: &str) -> Output {
        let result = self.settings.mask.json(text);
        Output { masked: result != text, result: Some(result), ..Output::default() }
    }
}

/// What lies in the file. Nothing is followed out of the volume: this container has what the agent's has not.
fn left(file: &Path) -> std::io::Result<Option<files::Text>> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    match std::fs::canonicalize(folder) {
        Ok(real) if real == folder => files::read_output(file),
        Ok(_) => Err(std::io::Error::other("lies behind a symbolic link")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The probe: 0 once the attempt is claimed.
pub fn attended() -> u8 {
    u8::from(!place().exists())
}

fn place() -> PathBuf {
    let work = std::env::var_os(env::WORK).map_or_else(|| Path::new(path::ROOT).to_owned(), PathBuf::from);
    work.join(CLAIMED)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::files::tests::scratch;
    use super::*;

    #[test]
    fn a_file_is_read_where_it_lies_and_nowhere_else() {
        let volume = std::fs::canonicalize(scratch("attend")).expect("a folder");
        let secret = std::fs::canonicalize(scratch("attend-secret")).expect("a folder");
        std::fs::write(secret.join("token"), "secret").expect("a file");
        std::fs::write(volume.join("result.json"), "1").expect("a file");
        symlink(&secret, volume.join("way")).expect("a link");
        symlink(secret.join("token"), volume.join("link")).expect("a link");
        let read =
            |path: &str| left(&volume.join(path)).map(|text| text.map(|text| text.text)).map_err(|e| e.to_string());
        assert_eq!(read("result.json"), Ok(Some("1".to_owned())));
        assert_eq!(read("./result.json"), Ok(Some("1".to_owned())));
        assert_eq!((read("none"), read("none/at/all")), (Ok(None), Ok(None)));
        assert_eq!(read("link"), Err("is a symbolic link".to_owned()));
        assert_eq!(read("way/token"), Err("lies behind a symbolic link".to_owned()));
    }
}
