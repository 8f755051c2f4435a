//! Text for a terminal: what agents wrote made harmless, times, columns, colours, widths.

pub use crate::decide::retry::elapsed;
use std::fmt::Write as _;
use std::io::IsTerminal;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use unicode_width::UnicodeWidthChar;

/// Text of others, made harmless and whole: what could move the cursor, colour, reorder or hide text is written out, as
/// `\u{202e}`; tabs become spaces. Line ends stay.
pub fn block(text: &str, max_bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    let mut before = '\n';
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if at >= max_bytes {
            write!(out, "\n… {} more bytes", text.len() - at).ok();
            break;
        }
        match c {
            '\r' if chars.peek().is_some_and(|(_, next)| *next == '\n') => {}
            '\n' => out.push(c),
            '\t' => out.push_str("    "),
            // Behind a sign they choose how it is drawn; behind anything else they carry hidden text.
            '\u{fe0e}' | '\u{fe0f}' if is_sign(before) => out.push(c),
            '\u{fe0e}' | '\u{fe0f}' => out.extend(c.escape_unicode()),
            c if is_unsafe(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
        before = c;
    }
    out
}

/// The same on one line, with single spaces.
pub fn inline(text: &str, max_bytes: usize) -> String {
    let clean = block(text, usize::MAX);
    let words: Vec<&str> = clean.split_whitespace().collect();
    crate::api::condition::clip(&words.join(" "), max_bytes)
}

/// Control characters, and whatever Unicode lets a terminal draw as nothing or use to reorder: bidirectional marks,
/// zero-width and tag characters, fillers, selectors of variants. The two selectors that emoji have stay.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0d}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d159}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// What an emoji's selector may follow.
fn is_sign(c: char) -> bool {
    !is_unsafe(c)
        && (c.is_ascii_digit()
            || matches!(c, '#' | '*' | '©' | '®' | '\u{203c}'..='\u{3299}' | '\u{1f000}'..='\u{1faff}'))
}

/// Columns that a character takes. The selector of a coloured variant may widen the sign before it.
fn columns(c: char) -> usize {
    if c == '\u{fe0f}' { 1 } else { c.width().unwrap_or(0) }
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
    std::io::stdout().is_terminal() && wants_colours()
}

/// Whether whoever reads on a terminal wants them.
pub fn wants_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

pub fn seconds_between(from: &Time, to: Timestamp) -> i64 {
    to.duration_since(from.0).as_secs().max(0)
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

/// Every line behind a margin, which lines keep that are too long for the reader's window: text of others never stands
/// where ours does.
pub fn framed(text: &str, margin: &str, window: Option<usize>) -> String {
    let Some(room) = window.map(|columns| columns.saturating_sub(width(margin)).max(8)) else {
        return indent(text, margin);
    };
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for line in text.lines() {
        let mut rest = line;
        loop {
            let piece = wrapped(rest, room);
            out.extend([margin, piece, "\n"]);
            rest = &rest[piece.len()..];
            if rest.is_empty() {
                break;
            }
        }
    }
    out
}

/// The same for a page of ours in which lines end with text of others: what does not fit goes on further in.
pub fn hanging(text: &str, window: Option<usize>) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let room = window.unwrap_or(usize::MAX).max(20);
        let first = wrapped(line, room);
        out.extend([first, "\n"]);
        let inner = line.len() - line.trim_start().len();
        let margin = " ".repeat(if inner == 0 { 4 } else { inner.min(8) });
        out.push_str(&framed(&line[first.len()..], &margin, window));
    }
    out
}

/// The part of a line that stands in one row: up to the last space that fits, else as much as fits, never nothing.
pub fn wrapped(line: &str, room: usize) -> &str {
    let fits = head(line, room);
    if fits.len() == line.len() {
        return line;
    }
    let at = fits.rfind(' ').map(|at| at + 1).filter(|at| !fits[..*at].trim().is_empty());
    match at {
        Some(at) => &fits[..at],
        None if fits.is_empty() => &line[..line.chars().next().map_or(0, char::len_utf8)],
        None => fits,
    }
}

/// Rows and columns of the window. `stty` knows them; asking the kernel ourselves would take unsafe code or a crate.
pub fn window() -> (usize, usize) {
    let told = std::fs::File::open("/dev/tty").ok().and_then(|tty| {
        let out = std::process::Command::new("stty")
            .arg("size")
            .stdin(tty)
            .stderr(std::process::Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(out.stdout).ok()?;
        let (rows, columns) = text.trim().split_once(' ')?;
        Some((rows.parse().ok()?, columns.parse().ok()?))
    });
    match told {
        Some((rows, columns)) if rows > 0 && columns > 0 => (rows, columns),
        _ => (24, 80),
    }
}

/// How wide the reader's window is; none where nobody reads.
pub fn reader() -> Option<usize> {
    std::io::stdout().is_terminal().then(|| window().1)
}

/// At most three names that may have been meant.
pub fn near(wanted: &str, known: &[String]) -> Vec<String> {
    let mut close: Vec<(usize, &String)> = known
        .iter()
        .map(|name| {
            let inside = wanted.len() >= 3 && (name.contains(wanted) || wanted.contains(name.as_str()));
            (if inside { 1 } else { distance(wanted, name) }, name)
        })
        .filter(|(far, _)| *far <= 1 + wanted.len() / 4)
        .collect();
    close.sort();
    close.into_iter().take(3).map(|(_, name)| inline(name, 300)).collect()
}

/// Edits between two texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(300).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(300).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let swap = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = swap.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agents_wrote_cannot_touch_the_terminal() {
        let table = [
            ("plain text", "plain text"),
            ("a\tb\r\nc", "a    b\nc"),
            ("\x1b[2Jgone", r"\u{1b}[2Jgone"),
            ("approve \u{202e}evorppa\u{202c}", r"approve \u{202e}evorppa\u{202c}"),
            ("isolate \u{2066}x\u{2069}\u{61c}", r"isolate \u{2066}x\u{2069}\u{61c}"),
            ("zero\u{200b}width\u{feff}\u{200d}", r"zero\u{200b}width\u{feff}\u{200d}"),
            ("soft\u{ad}hyphen\u{2060}", r"soft\u{ad}hyphen\u{2060}"),
            ("tags\u{e0041}\u{e007f}", r"tags\u{e0041}\u{e007f}"),
            ("variants\u{e0100}\u{fe00}", r"variants\u{e0100}\u{fe00}"),
            ("fillers\u{3164}\u{115f}\u{ffa0}\u{2800}", r"fillers\u{3164}\u{115f}\u{ffa0}\u{2800}"),
            ("lines\u{2028}and\u{2029}", r"lines\u{2028}and\u{2029}"),
            ("c1 \u{9b}31m \u{85}", r"c1 \u{9b}31m \u{85}"),
            ("bell\u{7} null\0 del\u{7f}", r"bell\u{7} null\u{0} del\u{7f}"),
            ("over\rwritten", r"over\u{d}written"),
            ("over\r\r\nwritten", "over\\u{d}\nwritten"),
            ("a sign ⚠\u{fe0f} and 1\u{fe0f}", "a sign ⚠\u{fe0f} and 1\u{fe0f}"),
            ("hidden a\u{fe0f}⚠\u{fe0f}\u{fe0f}\u{fe0e}", "hidden a\\u{fe0f}⚠\u{fe0f}\\u{fe0f}\\u{fe0e}"),
            ("héllo 世界", "héllo 世界"),
        ];
        for (raw, clean) in table {
            assert_eq!(block(raw, 1000), clean);
        }
        assert_eq!(block("abcdef", 3), "abc\n… 3 more bytes");
        // What is written out takes nothing of the room of what follows.
        assert_eq!(block("\u{1b}\u{1b}ab", 4), r"\u{1b}\u{1b}ab");
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
    fn lines_that_wrap_keep_their_margin() {
        let table = [
            ("short", Some(20), "| short\n"),
            ("", Some(20), ""),
            ("a\n\nb", Some(20), "| a\n| \n| b\n"),
            ("one two three four", Some(12), "| one two \n| three four\n"),
            ("0123456789abcdef", Some(10), "| 01234567\n| 89abcdef\n"),
            ("世界世界世界", Some(10), "| 世界世界\n| 世界\n"),
            ("⌚⌚⌚⌚⌚", Some(10), "| ⌚⌚⌚⌚\n| ⌚\n"),
            ("          deep", Some(10), "|         \n|   deep\n"),
            ("one two three four", None, "| one two three four\n"),
            ("GATE\n  review sha256:0", Some(5), "| GATE\n|   review\n|  sha256:\n| 0\n"),
        ];
        for (text, columns, expected) in table {
            assert_eq!(framed(text, "| ", columns), expected, "{text:?} {columns:?}");
        }
        let page = "Progress    50% half of it is done by now\n  review sha256:0123456789abcdef\nshort\n\n";
        let wrapped = "Progress    50% half \n    of it is done by \n    now\n  review \n  sha256:0123456789ab\n  cdef\nshort\n\n";
        assert_eq!(hanging(page, Some(21)), wrapped);
        assert_eq!(hanging(page, None), page);
        let long = framed(&"x ".repeat(100_000), "  | ", Some(80));
        assert!(long.lines().all(|line| line.starts_with("  | ") && width(line) <= 80));
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
    fn near_names_are_offered() {
        let known: Vec<String> = ["shop", "shop-2", "billing"].map(str::to_owned).into();
        assert_eq!(near("shpo", &known), ["shop"]);
        assert_eq!(near("shop1", &known), ["shop", "shop-2"]);
        assert_eq!(near("biling", &known), ["billing"]);
        assert_eq!(near("zzzzzz", &known), Vec::<String>::new());
    }
}
