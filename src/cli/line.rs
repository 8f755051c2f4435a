//! One line of a page: coloured pieces, cut to the reader's window.

use super::text::{self, Style};

/// What the reader's window can take.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub colours: bool,
}

/// Pieces of one line, and whether it may be cut.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pieces: Vec<(String, Style)>,
    whole: bool,
}

impl Line {
    pub fn of(pieces: Vec<(String, Style)>) -> Self {
        Self { pieces, whole: false }
    }

    pub fn plain(text: String) -> Self {
        Self::of(vec![(text, Style::Plain)])
    }

    /// To be copied: never cut.
    pub fn whole(text: String, style: Style) -> Self {
        Self { pieces: vec![(text, style)], whole: true }
    }

    pub fn text(&self, view: View) -> String {
        let filled = self.pieces.iter().rposition(|(piece, _)| !piece.trim().is_empty());
        let pieces = &self.pieces[..filled.map_or(0, |at| at + 1)];
        let total = self.width();
        let mut left = match view.width {
            Some(width) if !self.whole && total > width => width.saturating_sub(1),
            _ => usize::MAX,
        };
        let is_cut = left < usize::MAX;
        let mut out = String::new();
        for (at, (piece, style)) in pieces.iter().enumerate() {
            let piece = if at + 1 == pieces.len() { piece.trim_end() } else { piece };
            let piece = text::head(piece, left);
            left = left.saturating_sub(text::width(piece));
            if view.colours && !piece.is_empty() {
                out.push_str(&style.paint(piece));
            } else {
                out.push_str(piece);
            }
        }
        if is_cut {
            out.push('…');
        }
        out
    }

    fn width(&self) -> usize {
        self.pieces.iter().map(|(piece, _)| text::width(piece)).sum()
    }

    /// Whether it must be wrapped to be read whole.
    pub fn is_wider(&self, window: usize) -> bool {
        !self.whole && self.width() > window
    }

    /// Rows of the window that it takes.
    pub fn rows(&self, view: View) -> usize {
        let width = self.width();
        match view.width {
            Some(columns) if self.whole && columns > 0 => width.div_ceil(columns).max(1),
            _ => 1,
        }
    }
}
