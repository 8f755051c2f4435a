//! Text for a terminal: what agents wrote made harmless, times, columns, colours, widths.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::fault::{Code, Fault};

/// Characters that could move the cursor, colour, reorder or hide text are replaced by the replacement mark; tabs by
/// spaces. Line ends stay.
pub fn block(text: &str, max_bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    for c in text.replace("\r\n", "\n").chars() {
        if out.len() >= max_bytes {
            let rest = text.len().saturating_sub(out.len());
            write!(out, "\n… {rest} more bytes").ok();
            break;
        }
        match c {
            '\n' => out.push(c),
            '\t' => out.push_str("    "),
            c if is_unsafe(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The same on one line, with single spaces.
pub fn inline(text: &str, max_bytes: usize) -> String {
    let clean = block(text, usize::MAX);
    let words: Vec<&str> = clean.split_whitespace().collect();
    crate::api::condition::clip(&words.join(" "), max_bytes)
}

/// Control characters, bidirectional marks and overrides, zero-width and tag characters.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Columns that a character takes.
fn columns(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

pub fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// Filled with spaces to a width.
pub fn pad(text: &str, to: usize) -> String {
    format!("{text}{}", " ".repeat(to.saturating_sub(width(text))))
}

/// The part of a text that fits a width.
pub fn head(text: &str, to: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += columns(c);
        if used > to {
            return &text[..at];
        }
    }
    text
}

/// Cut to a width, the cut marked.
pub fn cut(text: &str, to: usize) -> String {
    if width(text) <= to {
        return text.to_owned();
    }
    format!("{}…", head(text, to.saturating_sub(1)))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Busy,
    Wait,
}

impl Style {
    pub fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Busy => "36",
            Self::Wait => "33",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Whether standard output shows colours.
pub fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

pub fn seconds_between(from: &Time, to: Timestamp) -> i64 {
    to.duration_since(from.0).as_secs().max(0)
}

/// `5s`, `2m03s`, `1h05m`, `3d4h`.
pub fn elapsed(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{}s", seconds.max(0)),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

pub fn age(created: Option<&Time>, now: Timestamp) -> String {
    created.map_or_else(|| "-".to_owned(), |at| elapsed(seconds_between(at, now)))
}

/// To the second, UTC.
pub fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A digest, short enough to read out.
pub fn short_digest(digest: &str) -> String {
    let (algorithm, hex) = digest.split_once(':').unwrap_or(("", digest));
    let head: String = hex.chars().take(12).collect();
    if algorithm.is_empty() { head } else { format!("{algorithm}:{head}") }
}

/// Rows under headings, columns as wide as they need.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heads.iter().map(|h| width(h)).collect();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if let Some(w) = widths.get_mut(at) {
                *w = (*w).max(width(cell));
            }
        }
    }
    let heads: Vec<String> = heads.iter().map(|h| (*h).to_owned()).collect();
    let mut out = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| pad(cell, *w)).collect();
        out.push_str(line.join("   ").trim_end());
        out.push('\n');
    }
    out
}

/// As one word of a shell.
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._:=@%+,-".contains(c);
    let text = inline(text, 4096);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Every line further in.
pub fn indent(text: &str, by: &str) -> String {
    text.lines().flat_map(|line| [by, line, "\n"]).collect()
}

/// Writes to standard output; a reader that went away (`| head`) ends the program without noise.
pub fn put(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|wrong| match wrong.kind() {
        std::io::ErrorKind::BrokenPipe => Fault::new(Code::Done, ""),
        _ => Fault::new(Code::Api, format!("cannot write the output: {wrong}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agents_wrote_cannot_touch_the_terminal() {
        let table = [
            ("plain text", "plain text"),
            ("a\tb\r\nc", "a    b\nc"),
            ("\x1b[2Jgone", "\u{fffd}[2Jgone"),
            ("approve \u{202e}evorppa\u{202c}", "approve \u{fffd}evorppa\u{fffd}"),
            ("zero\u{200b}width\u{feff}", "zero\u{fffd}width\u{fffd}"),
            ("c1 \u{9b}31m", "c1 \u{fffd}31m"),
            ("over\rwritten", "over\u{fffd}written"),
            ("héllo 世界", "héllo 世界"),
        ];
        for (raw, clean) in table {
            assert_eq!(block(raw, 1000), clean);
        }
        assert_eq!(block("abcdef", 3), "abc\n… 3 more bytes");
        assert_eq!(inline(" a\n\n b\tc ", 100), "a b c");
        assert_eq!(inline("abcdefgh", 6), "abc…");
    }

    #[test]
    fn widths_are_those_of_the_terminal() {
        let table = [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("世界", 4, "世界"),
            ("世界", 3, "世…"),
            ("e\u{301}e", 2, "e\u{301}e"),
        ];
        for (text, to, expected) in table {
            assert_eq!(cut(text, to), expected);
        }
    }

    #[test]
    fn times_are_short() {
        let table = [(-4, "0s"), (59, "59s"), (63, "1m03s"), (3900, "1h05m"), (273_700, "3d4h")];
        for (seconds, expected) in table {
            assert_eq!(elapsed(seconds), expected);
        }
        assert_eq!(short_digest("sha256:0123456789abcdef"), "sha256:0123456789ab");
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        let table = [
            ("shop/arch/E1", "shop/arch/E1"),
            ("a b", "'a b'"),
            ("$(x)", "'$(x)'"),
            ("it's", "'it'\\''s'"),
            ("", "''"),
        ];
        for (raw, quoted) in table {
            assert_eq!(quote(raw), quoted);
        }
    }

    #[test]
    fn columns_align() {
        assert_eq!(
            table(&["NAME", "PHASE"], &[vec!["shop".into(), "Running".into()], vec!["世界世".into(), String::new()]]),
            "NAME     PHASE\nshop     Running\n世界世\n"
        );
    }
}
