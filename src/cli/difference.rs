//! What is different from the round before, line by line.

use std::fmt::Write as _;
use std::time::Duration;

use similar::{ChangeTag, TextDiff};

use super::line::RenderOptions;
use super::text::{Style, block, framed};

/// Equal lines around each change.
const AROUND: usize = 3;
/// After this time a worse difference will do: texts of agents may be made to be slow.
const PATIENCE: Duration = Duration::from_secs(2);

/// The lines that went and came, behind a margin that says which; none where nothing changed.
pub fn lines(before: &str, now: &str, options: RenderOptions) -> Option<String> {
    if before == now {
        return None;
    }
    let difference = TextDiff::configure().timeout(PATIENCE).diff_lines(before, now);
    let mut out = String::new();
    for (at, group) in difference.grouped_ops(AROUND).iter().enumerate() {
        if at > 0 {
            out.push_str("  ⋮\n");
        }
        for change in group.iter().flat_map(|op| difference.iter_changes(op)) {
            let (margin, style) = match change.tag() {
                ChangeTag::Delete => ("  - ", Style::Bad),
                ChangeTag::Insert => ("  + ", Style::Good),
                ChangeTag::Equal => ("  | ", Style::Plain),
            };
            let line = block(change.value().trim_end_matches(['\n', '\r']), usize::MAX);
            let text = if line.is_empty() { format!("{margin}\n") } else { framed(&line, margin, options.window) };
            for row in text.lines() {
                let row = options.paint(style, row);
                writeln!(out, "{row}").ok();
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_and_what_came_is_told() {
        let options = RenderOptions { window: Some(14), colours: false };
        let before = "# Plan\n\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n";
        let now = "# Plan\n\none\n2\nthree\nfour\nfive\nsix\nseven\neight\nnine\nten eleven twelve\n";
        let expected = "  | # Plan\n  | \n  | one\n  - two\n  + 2\n  | three\n  | four\n  | five\n  ⋮\n  | seven\n  | eight\n  | nine\n  + ten \n  + eleven \n  + twelve\n";
        assert_eq!(lines(before, now, options).as_deref(), Some(expected));
        assert_eq!(lines(now, now, options), None);
        let forged = lines("a\n", "a\n\u{1b}[1A- \u{202e}b\n", RenderOptions::default());
        assert_eq!(forged.as_deref(), Some("  | a\n  + \\u{1b}[1A- \\u{202e}b\n"));
    }

    #[test]
    fn hostile_texts_end_in_time() {
        let text = |from: u32| (from..from + 80_000).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
        assert!(lines(&text(0), &text(1_000_000), RenderOptions::default()).is_some());
    }
}
