//! Reading and answering on a terminal: a pager for what is long, and a question that takes y or n.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::fault::{Code, Fault};
use super::print::put;

/// What a shell says of a command that it does not find or may not run.
const NOT_RUN: [i32; 2] = [126, 127];

/// Whether somebody sits there who can read and answer.
pub fn is_attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Shows a text: through `$PAGER`, else through less, else plainly.
pub fn page(text: &str) -> Result<(), Fault> {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let wanted = std::env::var("PAGER").ok();
    // Ctrl-C belongs to the pager while one runs.
    let ours = Arc::new(AtomicBool::new(false));
    let held = flag::register_conditional_default(SIGINT, Arc::clone(&ours));
    let shown = held.is_ok() && !dumb && commands(wanted.as_deref()).iter().any(|pager| is_shown(pager, text));
    ours.store(true, Ordering::SeqCst);
    if shown { Ok(()) } else { put(text) }
}

/// The pagers to try. An empty `$PAGER` wants none.
fn commands(wanted: Option<&str>) -> Vec<&str> {
    match wanted.map(str::trim) {
        Some("") => Vec::new(),
        Some(own) => vec![own, "less"],
        None => vec!["less"],
    }
}

/// Whether the pager has shown it.
fn is_shown(pager: &str, text: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", pager]).stdin(Stdio::piped());
    if std::env::var_os("LESS").is_none() {
        // Leaves at once where all fits, and leaves the text on the screen.
        command.env("LESS", "FRX");
    }
    let Ok(mut child) = command.spawn() else {
        return false;
    };
    // Who leaves the pager early closes the pipe.
    child.stdin.take().map(|mut pipe| pipe.write_all(text.as_bytes())).transpose().ok();
    child.wait().is_ok_and(|end| !end.code().is_some_and(|code| NOT_RUN.contains(&code)))
}

/// Whether the reader says yes. Nothing is typed, or the terminal went away: no.
pub fn is_confirmed(question: &str) -> Result<bool, Fault> {
    put(&format!("{question} [y/N] "))?;
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    let count = read.map_err(|wrong| Fault::new(Code::Usage, format!("cannot read the answer: {wrong}")))?;
    if count == 0 {
        put("\n")?;
    }
    Ok(means_yes(&line))
}

fn means_yes(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_y_and_yes_mean_yes() {
        for (line, yes) in [("y\n", true), ("Yes\n", true), (" y ", true), ("\n", false), ("", false), ("n", false)] {
            assert_eq!(means_yes(line), yes, "{line:?}");
        }
        for line in ["yy", "yes please", "ja", "1", "\u{1b}y"] {
            assert!(!means_yes(line), "{line:?}");
        }
    }

    #[test]
    fn a_pager_that_is_not_there_is_passed_over() {
        assert_eq!(commands(Some("more -e")), ["more -e", "less"]);
        assert_eq!(commands(None), ["less"]);
        assert!(commands(Some(" ")).is_empty());
        assert!(!is_shown("no-such-pager-anywhere 2> /dev/null", "text"));
        assert!(is_shown("cat > /dev/null", &"text\n".repeat(100_000)));
        // Left early: the pipe is closed before all is written.
        assert!(is_shown("true", &"text\n".repeat(100_000)));
        assert!(is_shown("exit 1", "text"), "it ran");
    }
}
