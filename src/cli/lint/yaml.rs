//! YAML as JSON values, with the line of every member: faults name paths, editors want lines.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::cli::text::inline;

/// One document of a file.
#[derive(Debug, Default)]
pub struct Page {
    pub value: Value,
    /// By path: `spec.steps[0].name`.
    lines: BTreeMap<String, u64>,
}

/// A text that is not YAML, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub line: Option<u64>,
    pub why: String,
}

impl Page {
    /// The line of a path, else of what is around it.
    pub fn line(&self, path: &str) -> Option<u64> {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = path.rfind(['.', '[']).map_or("", |at| &path[..at]);
            if path.is_empty() {
                return self.lines.get("").copied();
            }
        }
    }

    /// A part of the page, with paths of its own.
    pub fn part(&self, path: &str, value: Value) -> Self {
        let own = |(at, line): (&String, &u64)| {
            let rest = at.strip_prefix(path)?;
            (rest.is_empty() || rest.starts_with('.')).then(|| (rest.trim_start_matches('.').to_owned(), *line))
        };
        Self { value, lines: self.lines.iter().filter_map(own).collect() }
    }
}

/// The documents of a text, in order; empty ones are left out.
pub fn pages(text: &str) -> Vec<Result<Page, Unreadable>> {
    let mut bytes = text.as_bytes();
    let options = serde_saphyr::options! { with_snippet: false };
    let found = serde_saphyr::read_with_options::<_, Spanned<Node>>(&mut bytes, options);
    found.map(|one| one.map(page).map_err(|wrong| unreadable(&wrong))).collect()
}

fn unreadable(wrong: &serde_saphyr::Error) -> Unreadable {
    let line = wrong.location().map(|at| at.line()).filter(|line| *line > 0);
    // Advice to the programmer is none to the reader.
    let why = wrong.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    Unreadable { line, why: format!("is not valid YAML: {}", inline(&why, 400)) }
}

fn page(root: Spanned<Node>) -> Page {
    let mut page = Page::default();
    page.lines.insert(String::new(), root.referenced.line());
    page.value = lay_out(root.value, "", &mut page.lines);
    page
}

fn lay_out(node: Node, path: &str, lines: &mut BTreeMap<String, u64>) -> Value {
    match node {
        Node::Leaf(value) => value,
        Node::List(items) => {
            let mut list = Vec::new();
            for (index, item) in items.into_iter().enumerate() {
                let path = format!("{path}[{index}]");
                lines.insert(path.clone(), item.referenced.line());
                list.push(lay_out(item.value, &path, lines));
            }
            Value::Array(list)
        }
        Node::Map(members) => {
            let mut map = Map::new();
            for (key, member) in members {
                let path = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                lines.insert(path.clone(), key.referenced.line());
                map.insert(key.value, lay_out(member.value, &path, lines));
            }
            Value::Object(map)
        }
    }
}

enum Node {
    Leaf(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Bool(value)))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(Value::from(value)))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(Value::from(value)))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that JSON cannot hold"))?;
        Ok(Node::Leaf(Value::Number(number)))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(Value::String(value.to_owned())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(member) = members.next_entry()? {
            map.push(member);
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_member_has_its_line() {
        let text = "# a\na: 1\nb:\n- x\n- y: {z: true}\n  1: no-number\n---\n\n---\nc: ~\n";
        let pages: Vec<Page> = pages(text).into_iter().map(|p| p.expect("YAML")).collect();
        assert_eq!(pages.len(), 2);
        assert_eq!(pages[0].value, json!({"a": 1, "b": ["x", {"y": {"z": true}, "1": "no-number"}]}));
        for (path, line) in
            [("a", 2), ("b", 3), ("b[0]", 4), ("b[1].y.z", 5), ("b[1].1", 6), ("b[1].new.x", 5), ("z", 2)]
        {
            assert_eq!(pages[0].line(path), Some(line), "{path}");
        }
        assert_eq!((&pages[1].value, pages[1].line("c")), (&json!({"c": null}), Some(10)));
        let part = pages[0].part("b[1]", json!({}));
        assert_eq!((part.line("y"), part.line("")), (Some(5), Some(5)));
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        for (text, line) in [("a: 1\nb: [1\n", 3), ("a: 1\na: 2\n", 2), ("a: b\n c: d\n", 2)] {
            let wrong = pages(text).into_iter().find_map(Result::err).expect(text);
            assert!(wrong.line.is_some_and(|at| at.abs_diff(line) <= 1), "{text:?}: {wrong:?}");
        }
    }
}
