//! JSON text for people: a member a line, and every byte of it.

use super::text::block;
use crate::api::limits::DOCUMENT_BYTES;

/// JSON text, a member a line, as it is where it is none. Nothing of it is read and written anew: a name that stands
/// twice is shown twice.
pub fn pretty(text: &str) -> String {
    let lines = serde_json::from_str::<serde::de::IgnoredAny>(text).ok().and_then(|_| spread(text));
    block(lines.as_deref().unwrap_or(text), usize::MAX)
}

/// Valid JSON with its line ends; none where indenting would make it far too long.
fn spread(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    let mut chars = text.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = chars.next() {
        if out.len() > 4 * DOCUMENT_BYTES {
            return None;
        }
        if quoted {
            out.push(c);
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            ' ' | '\n' | '\r' | '\t' => {}
            '"' => {
                quoted = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = chars.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_spread_and_nothing_of_it_lost() {
        for (text, expected) in [
            (r#"{"a":1,"a":[2,{}],"b":[ ]}"#, "{\n  \"a\": 1,\n  \"a\": [\n    2,\n    {}\n  ],\n  \"b\": []\n}"),
            (
                r#"{"a, {b":"\",[","n":12345678901234567890123}"#,
                "{\n  \"a, {b\": \"\\\",[\",\n  \"n\": 12345678901234567890123\n}",
            ),
            ("not JSON, {", "not JSON, {"),
            ("\"\u{202e}x\"", "\"\\u{202e}x\""),
            ("7", "7"),
        ] {
            assert_eq!(pretty(text), expected);
        }
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(pretty(&deep).lines().count() > 100);
        let wide = format!("{}{}{}", "[".repeat(100), vec!["1"; 200_000].join(","), "]".repeat(100));
        assert_eq!(pretty(&wide), wide, "indented it would be a hundred times as long");
    }
}
