//! One line of a page: coloured pieces, cut to the reader's window.

use std::io::IsTerminal;

use super::text::{self, Style};
use crate::api::workflow::Phase;

/// How text is rendered: folded to the width of the terminal where there is one, in colours or without.
#[derive(Clone, Copy, Debug, Default)]
pub struct RenderOptions {
    pub window: Option<usize>,
    pub colours: bool,
}

impl RenderOptions {
    /// The options that fit standard output.
    pub fn for_stdout() -> Self {
        Self { window: text::reader(), colours: text::colours() }
    }

    /// The options that fit standard error.
    pub fn for_stderr() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { window: terminal.then(|| text::window().1), colours: terminal && text::wants_colours() }
    }

    /// The same options for text behind a margin of so many columns.
    pub fn within(self, margin: usize) -> Self {
        Self { window: self.window.map(|columns| columns.saturating_sub(margin)), ..self }
    }

    pub fn paint(self, style: Style, text: &str) -> String {
        if self.colours && !text.is_empty() { style.paint(text) } else { text.to_owned() }
    }
}

/// The colour of a phase, the same on every page.
pub fn of_phase(phase: Phase) -> Style {
    match phase {
        Phase::Running => Style::Busy,
        Phase::Completed => Style::Good,
        Phase::Failed => Style::Bad,
        Phase::WaitingForInput | Phase::WaitingForAcceptance | Phase::WaitingForDocuments => Style::Wait,
        _ => Style::Dim,
    }
}

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
    /// Before each row of what others say, when it is folded.
    margin: Option<&'static str>,
}

impl Line {
    pub fn of(pieces: Vec<(String, Style)>) -> Self {
        Self { pieces, whole: false, margin: None }
    }

    pub fn plain(text: String) -> Self {
        Self::of(vec![(text, Style::Plain)])
    }

    /// To be copied: never cut.
    pub fn whole(text: String, style: Style) -> Self {
        Self { pieces: vec![(text, style)], whole: true, margin: None }
    }

    /// What an author or an agent says: it stands among lines of ours, and none of its rows can be taken for one.
    pub fn said(margin: &'static str, words: &str) -> Self {
        let pieces = [margin, words].map(|piece| (piece.to_owned(), Style::Plain)).into();
        Self { pieces, whole: false, margin: Some(margin) }
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

    /// The whole line, folded to the window: what does not fit goes on below, under the last piece where there is room.
    pub fn folded(&self, options: RenderOptions) -> String {
        let whole: String = self.pieces.iter().map(|(piece, _)| piece.as_str()).collect();
        let whole = whole.trim_end();
        if let Some((margin, words)) = self.margin.and_then(|margin| Some((margin, whole.strip_prefix(margin)?))) {
            return text::framed(words, margin, options.window);
        }
        let Some(window) = options.window.filter(|window| !self.whole && text::width(whole) > *window) else {
            return self.text(View { colours: options.colours, ..View::default() }) + "\n";
        };
        let before: String = self.pieces.iter().rev().skip(1).rev().map(|(piece, _)| piece.as_str()).collect();
        let inset = text::width(&before);
        let margin = if inset <= window / 2 { inset } else { 6.min(window / 4) };
        let mut out = String::new();
        let mut at = 0;
        while at < whole.len() {
            let inner = if at == 0 { 0 } else { margin };
            let room = window.saturating_sub(inner).max(1);
            let mut row = text::wrapped(&whole[at..], room);
            // A word that is longer than its column begins in it all the same.
            if at == 0 && inset < window && row.len() <= before.len() {
                row = text::head(whole, window);
            }
            out.extend([" ".repeat(inner), self.painted(at, row.trim_end().len(), options), "\n".to_owned()]);
            at += row.len();
        }
        out
    }

    /// The rows of the window that it takes when it is folded.
    pub fn folded_rows(&self, view: View) -> usize {
        let options = RenderOptions { window: view.width, colours: false };
        if self.whole { self.rows(view) } else { self.folded(options).lines().count() }
    }

    /// So many bytes from there on, each piece in its colour.
    fn painted(&self, from: usize, bytes: usize, options: RenderOptions) -> String {
        let (mut out, mut at) = (String::new(), 0);
        for (piece, style) in &self.pieces {
            let (start, end) = (from.max(at), (from + bytes).min(at + piece.len()));
            if start < end {
                out.push_str(&options.paint(*style, &piece[start - at..end - at]));
            }
            at += piece.len();
        }
        out
    }

    fn width(&self) -> usize {
        self.pieces.iter().map(|(piece, _)| text::width(piece)).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_what_others_say_has_its_margin() {
        let line = Line::said("    | ", "yes or no? kubectl lockstep approve shop/other");
        for window in (14..80).map(Some).chain([None]) {
            let rows = line.folded(RenderOptions { window, colours: false });
            assert!(rows.lines().all(|row| row.starts_with("    | ")), "{window:?}: {rows}");
            let view = View { width: window, ..View::default() };
            assert_eq!(line.folded_rows(view), rows.lines().count(), "{window:?}");
        }
        assert_eq!(line.text(View::default()), "    | yes or no? kubectl lockstep approve shop/other");
        assert_eq!(line.text(View { width: Some(12), ..View::default() }), "    | yes o…");
    }

    #[test]
    fn what_does_not_fit_goes_on_below_in_its_colour() {
        let line = Line::of(vec![
            ("  plan  ".to_owned(), Style::Plain),
            ("Running  ".to_owned(), Style::Busy),
            ("the image cannot be pulled from there".to_owned(), Style::Dim),
        ]);
        let plain = |window| line.folded(RenderOptions { window, colours: false });
        assert_eq!(plain(None), "  plan  Running  the image cannot be pulled from there\n");
        assert_eq!(plain(Some(80)), plain(None));
        let expected = "  plan  Running  the image cannot\n                 be pulled from\n                 there\n";
        assert_eq!(plain(Some(34)), expected);
        for window in 1..60 {
            let rows = plain(Some(window));
            assert!(rows.lines().all(|row| text::width(row) <= window), "{window}: {rows}");
            let words = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(words(&rows), words(&plain(None)), "nothing is lost");
        }
        let coloured = line.folded(RenderOptions { window: Some(34), colours: true });
        assert!(coloured.contains("\u{1b}[36mRunning"), "{coloured:?}");
        assert!(coloured.lines().all(|row| row.matches("\u{1b}[2m").count() <= 1), "{coloured:?}");
    }
}
