//! Tables: columns as wide as they need and no wider than the reader's window. Nothing is cut: what does not fit its column
//! goes on below in it, and where the window is too narrow for columns, each row is a block of lines.

use super::line::{RenderOptions, of_phase};
use super::text::{self, Style};
use crate::api::workflow::Phase;

const GAP: usize = 3;
/// A column is not folded to less than its longest word or its heading, as far as these are no longer than this.
const NARROWEST: usize = 20;

/// What stands in one place of a table.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub fn of(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }

    pub fn phase(phase: Phase) -> Self {
        Self::of(phase.to_string(), of_phase(phase))
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::of(text, Style::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::of(text, Style::Plain)
    }
}

/// Rows under headings.
pub fn table(heads: &[&str], rows: &[Vec<Cell>], options: RenderOptions) -> String {
    match fitted(heads, rows, options.window) {
        Some(widths) => {
            let heads: Vec<Cell> = heads.iter().map(|head| Cell::of(*head, Style::Bold)).collect();
            std::iter::once(&heads).chain(rows).map(|row| columns(row, &widths, options)).collect()
        }
        None => rows.iter().map(|row| lines(heads, row, options)).collect::<Vec<_>>().join("\n"),
    }
}

/// The widths of the columns; none where even the narrowest do not fit.
fn fitted(heads: &[&str], rows: &[Vec<Cell>], window: Option<usize>) -> Option<Vec<usize>> {
    let wanted = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| text::width(&cell.text));
        cells.max().unwrap_or(0).max(text::width(heads[at]))
    };
    let mut widths: Vec<usize> = (0..heads.len()).map(wanted).collect();
    let Some(window) = window else { return Some(widths) };
    let longest = |at: usize| {
        let words = rows.iter().filter_map(|row| row.get(at)).flat_map(|cell| cell.text.split(' '));
        words.chain([heads[at]]).map(text::width).max().unwrap_or(0).min(NARROWEST)
    };
    let least: Vec<usize> = (0..heads.len()).map(longest).collect();
    let room = window.saturating_sub(GAP * heads.len().saturating_sub(1));
    // The widest gives way first.
    while widths.iter().sum::<usize>() > room {
        let widest = (0..widths.len()).filter(|at| widths[*at] > least[*at]).max_by_key(|at| widths[*at])?;
        widths[widest] -= 1;
    }
    Some(widths)
}

/// One row, as many lines high as its highest cell.
fn columns(row: &[Cell], widths: &[usize], options: RenderOptions) -> String {
    let folded: Vec<Vec<&str>> = row.iter().zip(widths).map(|(cell, width)| fold(&cell.text, *width)).collect();
    let height = folded.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let mut out = String::new();
    for line in 0..height {
        let piece = |at: usize| folded[at].get(line).copied().unwrap_or_default();
        let last = (0..folded.len()).rev().find(|at| !piece(*at).is_empty());
        for at in 0..last.map_or(0, |last| last + 1) {
            out.push_str(&options.paint(row[at].style, piece(at)));
            if Some(at) != last {
                out.push_str(&" ".repeat((widths[at] + GAP).saturating_sub(text::width(piece(at)))));
            }
        }
        out.push('\n');
    }
    out
}

/// One row as lines, each behind its heading.
fn lines(heads: &[&str], row: &[Cell], options: RenderOptions) -> String {
    let margin = heads.iter().map(|head| text::width(head)).max().unwrap_or(0) + 2;
    let room = options.window.map_or(usize::MAX, |columns| columns.saturating_sub(margin).max(8));
    let mut out = String::new();
    for (head, cell) in heads.iter().zip(row).filter(|(_, cell)| !cell.text.is_empty()) {
        for (at, piece) in fold(&cell.text, room).into_iter().enumerate() {
            let head = text::pad(if at == 0 { head } else { "" }, margin);
            out.extend([options.paint(Style::Bold, &head), options.paint(cell.style, piece), "\n".to_owned()]);
        }
    }
    out
}

/// A text in pieces of at most this width, between its words where it has some.
fn fold(text: &str, width: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let piece = text::wrapped(rest, width.max(1));
        pieces.push(piece.trim_end());
        rest = &rest[piece.len()..];
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        let row = |name: &str, phase: Phase, why: &str| vec![name.into(), Cell::phase(phase), why.into()];
        vec![
            row("shop", Phase::Running, "PodNotReady: the image example/agent:1 cannot be pulled"),
            row("世界世", Phase::Completed, ""),
        ]
    }

    const HEADS: [&str; 3] = ["NAME", "PHASE", "WHY"];

    #[test]
    fn columns_align() {
        let wide = table(&HEADS, &rows(), RenderOptions::default());
        let expected = "NAME     PHASE       WHY\nshop     Running     PodNotReady: the image example/agent:1 cannot be pulled\n世界世   Completed\n";
        assert_eq!(wide, expected);
        assert_eq!(table(&HEADS, &rows(), RenderOptions { window: Some(80), colours: false }), expected);
        assert_eq!(table(&HEADS, &[], RenderOptions::default()), "NAME   PHASE   WHY\n");
    }

    #[test]
    fn a_narrow_window_folds_the_widest_column() {
        let narrow = table(&HEADS, &rows(), RenderOptions { window: Some(44), colours: false });
        let expected = "NAME     PHASE       WHY\nshop     Running     PodNotReady: the image\n                     example/agent:1 cannot\n                     be pulled\n世界世   Completed\n";
        assert_eq!(narrow, expected);
        let least = table(&HEADS, &rows(), RenderOptions { window: Some(20), colours: false });
        assert!(least.starts_with("NAME   shop\nPHASE  Running\nWHY    PodNotReady:\n"), "{least}");
    }

    #[test]
    fn no_window_is_too_narrow_and_nothing_is_lost() {
        let words = |text: &str| text.split_whitespace().collect::<String>();
        let all = words(&rows().iter().flatten().map(|cell| cell.text.as_str()).collect::<String>());
        for window in 18..100 {
            let text = table(&HEADS, &rows(), RenderOptions { window: Some(window), colours: false });
            assert!(text.lines().all(|line| text::width(line) <= window), "{window}\n{text}");
            for word in ["shop", "世界世", "Completed"] {
                assert!(words(&text).contains(word), "{window}\n{text}");
            }
            assert!(words(&text).len() >= all.len(), "{window}\n{text}");
        }
    }

    #[test]
    fn colours_take_no_columns() {
        let options = RenderOptions { window: Some(44), colours: true };
        let coloured = table(&HEADS, &rows(), options);
        assert!(coloured.contains("\u{1b}[36mRunning\u{1b}[0m     "), "{coloured:?}");
        let mut bare = coloured;
        for code in ["1", "36", "32", "0"] {
            bare = bare.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(bare, table(&HEADS, &rows(), RenderOptions { colours: false, ..options }));
    }
}
