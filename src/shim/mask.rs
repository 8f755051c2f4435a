//! Secret values out of everything that leaves the pod, and the bounded end of a log.

use std::collections::VecDeque;
use std::ops::Range;

use serde::de::IgnoredAny;

use crate::protocol::MASK;

/// Shorter values would mask ordinary words.
const SHORTEST: usize = 4;
/// Long enough, and ordinary words all the same: as the value of a Secret they tell nobody anything.
const WORDS: [&[u8]; 3] = [b"true", b"false", b"null"];
/// A line of a multi-line value (a key in PEM form) is masked by itself from this length on.
const SHORTEST_LINE: usize = 16;

/// Masks secret values.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// Longest first.
    needles: Vec<Vec<u8>>,
}

impl Mask {
    pub fn new(values: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut needles = Vec::new();
        for value in values {
            let trimmed = value.trim_ascii();
            if WORDS.contains(&trimmed) {
                continue;
            }
            needles.push(json_form(trimmed));
            needles.extend(
                trimmed
                    .split(|byte| *byte == b'\n')
                    .map(|line| line.trim_ascii().to_vec())
                    .filter(|line| line.len() >= SHORTEST_LINE && line.len() < trimmed.len()),
            );
            needles.push(trimmed.to_vec());
            needles.push(value);
        }
        needles.retain(|needle| needle.len() >= SHORTEST);
        needles.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Self { needles }
    }

    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    /// Length of the longest masked value.
    fn reach(&self) -> usize {
        self.needles.first().map_or(0, Vec::len)
    }

    pub fn text(&self, text: &str) -> String {
        if self.needles.is_empty() {
            return text.to_owned();
        }
        String::from_utf8_lossy(&self.bytes(text.as_bytes(), 0)).into_owned()
    }

    /// JSON, masked within its strings: keys, numbers and all else stay as they are spelt, and it stays JSON. What is none is masked
    /// as a text.
    pub fn json(&self, text: &str) -> String {
        if self.needles.is_empty() {
            return text.to_owned();
        }
        self.strings(text).unwrap_or_else(|| self.text(text))
    }

    fn strings(&self, text: &str) -> Option<String> {
        serde_json::from_str::<IgnoredAny>(text).ok()?;
        let mut masked = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find('"') {
            let end = start + string_end(&rest[start..])?;
            let (string, after) = (&rest[start..end], &rest[end..]);
            masked.push_str(&rest[..start]);
            let is_key = after.trim_start().starts_with(':');
            // However it is spelt: an agent may escape what needs no escape.
            let plain: String = serde_json::from_str(string).ok()?;
            let shown = if is_key { plain.clone() } else { self.text(&plain) };
            let spelt = if shown == plain { string.to_owned() } else { serde_json::to_string(&shown).ok()? };
            masked.push_str(&spelt);
            rest = after;
        }
        masked.push_str(rest);
        Some(masked)
    }

    /// Masks, and leaves out what lies before `from`, together with a value that begins there.
    fn bytes(&self, bytes: &[u8], from: usize) -> Vec<u8> {
        let mut masked = Vec::with_capacity(bytes.len());
        let mut at = from.min(bytes.len());
        for found in self.find(bytes) {
            if found.end <= at {
                continue;
            }
            if found.start >= at {
                masked.extend_from_slice(&bytes[at..found.start]);
            }
            masked.extend_from_slice(MASK.as_bytes());
            at = found.end;
        }
        masked.extend_from_slice(&bytes[at..]);
        masked
    }

    /// Where values lie, in order, overlapping ones joined.
    fn find(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        for needle in &self.needles {
            let first = needle[0];
            let mut at = 0;
            while let Some(skip) = bytes[at..].iter().position(|byte| *byte == first) {
                let start = at + skip;
                if bytes[start..].starts_with(needle) {
                    found.push(start..start + needle.len());
                }
                at = start + 1;
            }
        }
        found.sort_by_key(|range| (range.start, range.end));
        found.into_iter().fold(Vec::new(), |mut joined, range| {
            match joined.last_mut() {
                Some(last) if range.start < last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
            joined
        })
    }
}

/// Where the string of JSON ends that the text begins with.
fn string_end(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The value as it stands inside a JSON string.
fn json_form(value: &[u8]) -> Vec<u8> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| serde_json::to_string(text).ok())
        .map(|quoted| quoted.as_bytes()[1..quoted.len() - 1].to_vec())
        .unwrap_or_default()
}

/// The end of a log. Keeps more than it gives, so that a value cut at the front is never seen.
#[derive(Debug)]
pub struct Tail {
    mask: Mask,
    limit: usize,
    kept: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    pub fn new(mask: Mask, limit: usize) -> Self {
        Self { mask, limit, kept: VecDeque::new(), cut: false }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.limit + self.mask.reach();
        let skip = bytes.len().saturating_sub(room);
        self.kept.extend(&bytes[skip..]);
        let over = self.kept.len().saturating_sub(room);
        self.kept.drain(..over);
        self.cut |= skip + over > 0;
    }

    /// At most `limit` bytes.
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        let from = if self.cut { self.mask.reach().saturating_sub(1) } else { 0 };
        let masked = self.mask.bytes(&bytes, from);
        last_bytes(&String::from_utf8_lossy(&masked), self.limit).to_owned()
    }
}

/// Collects one stream into lines, so that two streams meet in a `Tail` only between lines.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
}

/// A longer line is passed on in pieces.
const LONGEST_LINE: usize = 256 * 1024;

impl Lines {
    pub fn push(&mut self, bytes: &[u8], tail: &mut Tail) {
        self.pending.extend_from_slice(bytes);
        let whole = match self.pending.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if self.pending.len() > LONGEST_LINE => self.pending.len(),
            None => 0,
        };
        tail.push(&self.pending[..whole]);
        self.pending.drain(..whole);
    }

    pub fn finish(&mut self, tail: &mut Tail) {
        tail.push(&self.pending);
        self.pending.clear();
    }
}

/// The first bytes of a text, whole characters only.
pub fn first_bytes(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn last_bytes(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: &[&str]) -> Mask {
        Mask::new(values.iter().map(|value| value.as_bytes().to_vec()))
    }

    #[test]
    fn masks_values_in_plain_and_in_json() {
        let mask = mask(&["s3cr\"et", "abc", "hunter22\n"]);
        assert_eq!(mask.text("x s3cr\"et y"), "x *** y");
        assert_eq!(mask.text(r#"{"a":"s3cr\"et"}"#), r#"{"a":"***"}"#);
        assert_eq!(mask.text("abc hunter22."), "abc ***.");
    }

    #[test]
    fn json_is_masked_within_its_strings_alone() {
        let mask = mask(&["12345678", "true", "null\n", "newpass", "pässword", "s3cr\"et", "name"]);
        for (output, expected) in [
            (r#"{"z":12345678,"a":1.50,"b":0.1234567812345678,"m":12345678901234567890}"#, None),
            (r#"{"ok":true,"no":null,"text":"true or null"}"#, None),
            (
                r#"{"12345678":1,"name" : "name\u0073","s3cr\"et":[]}"#,
                Some(r#"{"12345678":1,"name" : "***s","s3cr\"et":[]}"#),
            ),
            (r#"["pin 12345678", 12345678 , "x\"y"]"#, Some(r#"["pin ***", 12345678 , "x\"y"]"#)),
            // In the text it begins with the n of an escape.
            (r#""\newpass""#, None),
            (r#"["p\u00e4ssword","\/s3cr\"et"]"#, Some(r#"["***","/***"]"#)),
            (r#"{"inside":"{\"a\":\"s3cr\\\"et\"}"}"#, Some(r#"{"inside":"{\"a\":\"***\"}"}"#)),
            (r#""12345678""#, Some(r#""***""#)),
            // No JSON: nothing is to be kept whole.
            (r#"{"a": 12345678"#, Some(r#"{"a": ***"#)),
            ("\"a\": 12345678", Some("\"a\": ***")),
            ("", None),
        ] {
            assert_eq!(mask.json(output), expected.unwrap_or(output), "{output}");
        }
        assert_eq!(mask.text("true, null"), "true, null");
        let deep = "[".repeat(200) + "\"12345678\"" + &"]".repeat(200);
        assert!(!mask.json(&deep).contains("12345678"));
    }

    #[test]
    fn masks_overlapping_values_and_the_lines_of_a_key() {
        assert_eq!(mask(&["abcd", "cdef", "abcdXX"]).text("-abcdef-"), "-***-");
        let key = "-----BEGIN-----\nMIIEvQIBADANBgkqhkiG9w0\nAAAA\n-----END-----";
        assert_eq!(mask(&[key]).text("key MIIEvQIBADANBgkqhkiG9w0"), "key ***");
    }

    #[test]
    fn masks_across_chunks() {
        let mut tail = Tail::new(mask(&["secret-value"]), 64);
        let mut lines = Lines::default();
        for chunk in ["one secr", "et-va", "lue two\nthree sec", "ret-value"] {
            lines.push(chunk.as_bytes(), &mut tail);
        }
        lines.finish(&mut tail);
        assert_eq!(tail.text(), "one *** two\nthree ***");
    }

    #[test]
    fn streams_meet_between_lines_only() {
        let mut tail = Tail::new(mask(&["secret-value"]), 64);
        let (mut out, mut err) = (Lines::default(), Lines::default());
        out.push(b"secret-", &mut tail);
        err.push(b"oops\n", &mut tail);
        out.push(b"value\n", &mut tail);
        assert_eq!(tail.text(), "oops\n***\n");
    }

    #[test]
    fn a_tail_is_bounded_and_shows_no_end_of_a_cut_value() {
        for filler in 0..40 {
            let mut tail = Tail::new(mask(&["0123456789"]), 20);
            tail.push(b"0123456789");
            tail.push("z".repeat(filler).as_bytes());
            let text = tail.text();
            assert!(text.len() <= 20);
            assert!(!text.contains('9'), "{filler}: {text}");
        }
        let mut tail = Tail::new(Mask::default(), 8);
        tail.push(&[0xff; 100]);
        assert!(tail.text().len() <= 8);
        tail.push("ääääää".as_bytes());
        assert_eq!(tail.text(), "ääää");
    }

    #[test]
    fn a_line_without_end_stays_bounded() {
        let mut tail = Tail::new(Mask::default(), 8);
        let mut lines = Lines::default();
        for _ in 0..100 {
            lines.push(&[b'a'; 8192], &mut tail);
            assert!(lines.pending.len() <= LONGEST_LINE + 8192);
        }
        assert_eq!(tail.text(), "aaaaaaaa");
    }
}
