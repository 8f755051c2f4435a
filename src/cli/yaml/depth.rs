//! How deep a text nests, found without recursion: its reader, which recurses, takes only what is flat enough.

use granit_parser::{Event, Parser};

use crate::cli::text::inline;

/// What nests too deep, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct TooDeep {
    pub line: u64,
    /// The path of it, clipped.
    pub path: String,
}

/// Bytes of a path.
const PATH_BYTES: usize = 160;

/// A list or an object around a place.
enum Around {
    /// With the index of the item that comes.
    List(usize),
    /// With the key whose value comes.
    Object(Option<String>),
}

/// The first list or object with that many levels around it. A text that is no YAML is told by its reader.
pub fn too_deep(text: &str, levels: usize) -> Option<TooDeep> {
    // The scanner looks ahead by 1024 characters, which may all be brackets.
    let options = granit_parser::options! { flow_nesting_limit: 2048 };
    let mut around = Vec::new();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.ok()?;
        match event {
            Event::DocumentStart(..) => around.clear(),
            Event::SequenceStart(..) | Event::MappingStart(..) if around.len() >= levels => {
                let line = u64::try_from(span.start.line()).unwrap_or_default();
                return Some(TooDeep { line, path: inline(&path(&around), PATH_BYTES) });
            }
            Event::SequenceStart(..) => around.push(Around::List(0)),
            Event::MappingStart(..) => around.push(Around::Object(None)),
            Event::SequenceEnd | Event::MappingEnd => {
                around.pop();
                pass(&mut around, "?");
            }
            Event::Scalar(word, ..) => pass(&mut around, &word),
            Event::Alias(_) => pass(&mut around, "?"),
            _ => {}
        }
    }
    None
}

/// Goes on behind an item, a key or a value.
fn pass(around: &mut [Around], word: &str) {
    match around.last_mut() {
        Some(Around::List(index)) => *index += 1,
        Some(Around::Object(key)) => *key = if key.is_none() { Some(word.to_owned()) } else { None },
        None => {}
    }
}

fn path(around: &[Around]) -> String {
    let mut path = String::new();
    for one in around {
        match one {
            Around::List(index) => path.push_str(&format!("[{index}]")),
            Around::Object(key) => {
                path.push_str(if path.is_empty() { "" } else { "." });
                path.push_str(key.as_deref().unwrap_or("?"));
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_nests_too_deep_is_named() {
        for (text, expected) in [
            ("a: {b: [1, [2]]}", None),
            ("a: {b: [1, [[2]]]}", Some((1, "a.b[1][0]"))),
            ("x: [[[1]]]\na:\n  b:\n  - c: 1\n    d: {e: {}}\n", Some((5, "a.b[0].d"))),
            ("a: [[[1]]]\n---\n- - - - - 1\n", Some((3, "[0][0][0][0]"))),
            ("{\"a\": {\"b\": {\"c\": {\"d\": []}}}}", Some((1, "a.b.c.d"))),
            ("? [[[1]]]\n: {a: {b: {c: {}}}}\n", Some((2, "?.a.b.c"))),
            ("a: [[[[[1]]]]]", Some((1, "a[0][0][0]"))),
            ("a: [[[[[", None),
            ("a: &b [1]\nc: [*b, {d: [[1]]}]\n", Some((2, "c[1].d[0]"))),
            ("", None),
        ] {
            let found = too_deep(text, 4).map(|found| (found.line, found.path));
            assert_eq!(found, expected.map(|(line, path)| (line, path.to_owned())), "{text}");
        }
    }
}
