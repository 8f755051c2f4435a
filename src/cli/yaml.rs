//! YAML as JSON values, with the line of every member: faults name paths, editors want lines. What kubectl, which reads
//! YAML 1.1, would take for something else is told, so that one file never makes two runs.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

use crate::cli::text::inline;

/// One document of a file.
#[derive(Debug, Default)]
pub struct Page {
    pub value: Value,
    /// By path: `spec.steps[0].name`.
    lines: BTreeMap<String, u64>,
    /// What kubectl reads otherwise.
    pub unlike: Vec<Unlike>,
}

/// A word that means one thing here and another to kubectl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlike {
    pub line: u64,
    pub why: String,
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

    fn compare(&mut self, leaf: &Spanned<Node>, source: &[&str]) {
        let at = leaf.referenced;
        let word = plain(at, source).filter(|word| match &leaf.value {
            // What begins a line is the text of a block, or cannot be told from it.
            Node::Leaf(Value::String(text)) => text == word && !begins_line(at, source),
            Node::Leaf(_) => true,
            Node::List(_) | Node::Map(_) => false,
        });
        if let Some(why) = word.and_then(unlike_value) {
            self.unlike.push(Unlike { line: at.line(), why });
        }
    }

    /// A part of the page, with paths of its own.
    pub fn part(&self, path: &str, value: Value) -> Self {
        let own = |(at, line): (&String, &u64)| {
            let rest = at.strip_prefix(path)?;
            (rest.is_empty() || rest.starts_with('.')).then(|| (rest.trim_start_matches('.').to_owned(), *line))
        };
        let lines: BTreeMap<String, u64> = self.lines.iter().filter_map(own).collect();
        let (first, last) = (lines.values().min().copied(), lines.values().max().copied());
        let within = |unlike: &&Unlike| first <= Some(unlike.line) && Some(unlike.line) <= last;
        let unlike = self.unlike.iter().filter(within).cloned().collect();
        Self { value, lines, unlike }
    }
}

/// The documents of a text, in order; empty ones are left out.
pub fn pages(text: &str) -> Vec<Result<Page, Unreadable>> {
    let mut bytes = text.as_bytes();
    let options = serde_saphyr::options! { with_snippet: false };
    let found = serde_saphyr::read_with_options::<_, Spanned<Node>>(&mut bytes, options);
    let source: Vec<&str> = text.lines().collect();
    found.map(|one| one.map(|root| page(root, &source)).map_err(|wrong| unreadable(&wrong))).collect()
}

fn unreadable(wrong: &serde_saphyr::Error) -> Unreadable {
    let line = wrong.location().map(|at| at.line()).filter(|line| *line > 0);
    // Advice to the programmer is none to the reader.
    let why = wrong.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    Unreadable { line, why: format!("is not valid YAML: {}", inline(&why, 400)) }
}

fn page(root: Spanned<Node>, source: &[&str]) -> Page {
    let mut page = Page::default();
    page.lines.insert(String::new(), root.referenced.line());
    page.value = lay_out(root.value, "", source, &mut page);
    page
}

/// The word at a place, as far as it is written without quotes.
fn plain<'a>(at: Location, source: &[&'a str]) -> Option<&'a str> {
    let line = source.get(usize::try_from(at.line()).ok()?.checked_sub(1)?)?;
    let (start, _) = line.char_indices().nth(usize::try_from(at.column()).ok()?.checked_sub(1)?)?;
    let word = line[start..].split([',', ']', '}', ' ', '\t', '\r']).next()?;
    let word = word.strip_suffix(':').unwrap_or(word);
    word.starts_with(|c: char| c.is_ascii_alphanumeric() || "+-~".contains(c)).then_some(word)
}

fn begins_line(at: Location, source: &[&str]) -> bool {
    let line = usize::try_from(at.line()).ok().and_then(|line| source.get(line.checked_sub(1)?));
    let before = usize::try_from(at.column()).unwrap_or(1).saturating_sub(1);
    line.is_none_or(|line| line.chars().take(before).all(char::is_whitespace))
}

/// What kubectl makes of a key that it takes for a boolean or for nothing.
fn unlike_key(word: &str) -> Option<String> {
    let other = match word {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "True" | "TRUE" => "true",
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "False" | "FALSE" => "false",
        "~" | "null" | "Null" | "NULL" => "null",
        _ => return None,
    };
    Some(format!("the key {word} is \"{other}\" to kubectl, which reads YAML 1.1; put it in quotes"))
}

/// A number with a leading zero, or with underscores, is none in YAML 1.2.
fn unlike_value(word: &str) -> Option<String> {
    let digits = word.trim_start_matches(['+', '-']);
    let all =
        |allowed: fn(char) -> bool| digits.starts_with(|c: char| c.is_ascii_digit()) && digits.chars().all(allowed);
    let octal = digits.len() > 1 && digits.starts_with('0') && all(|c| c.is_ascii_digit());
    let grouped = digits.contains('_') && all(|c| c.is_ascii_digit() || c == '_');
    (octal || grouped).then(|| {
        let why = if octal { "a leading zero makes it octal there" } else { "underscores are left out there" };
        format!(
            "{word} is another number to kubectl, which reads YAML 1.1 ({why}); put it in quotes, or write it without"
        )
    })
}

fn lay_out(node: Node, path: &str, source: &[&str], page: &mut Page) -> Value {
    match node {
        Node::Leaf(value) => value,
        Node::List(items) => {
            let mut list = Vec::new();
            for (index, item) in items.into_iter().enumerate() {
                let path = format!("{path}[{index}]");
                page.lines.insert(path.clone(), item.referenced.line());
                page.compare(&item, source);
                list.push(lay_out(item.value, &path, source, page));
            }
            Value::Array(list)
        }
        Node::Map(members) => {
            let mut map = Map::new();
            for (key, member) in members {
                let path = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                page.lines.insert(path.clone(), key.referenced.line());
                let at = key.referenced;
                if let Some(why) = plain(at, source).filter(|word| *word == key.value).and_then(unlike_key) {
                    page.unlike.push(Unlike { line: at.line(), why });
                }
                page.compare(&member, source);
                map.insert(key.value, lay_out(member.value, &path, source, page));
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
    fn what_kubectl_reads_otherwise_is_told() {
        let table = [
            ("n: 3", Some("the key n is \"false\" to kubectl")),
            ("a: {on: 1}", Some("the key on is \"true\"")),
            ("\"n\": 3", None),
            ("true: 3", None),
            ("name: no", None),
            ("mode: 0644", Some("0644 is another number to kubectl")),
            ("mode: '0644'", None),
            ("mode: 0", None),
            ("a: [1_000]", Some("1_000 is another number")),
            ("a: 0x1F", None),
            ("a: 007-b", None),
            ("a: |\n  007\n", None),
            ("a: |-\n  007\n", None),
            ("b:\n- 007\n", Some("007 is another number")),
            ("text: n 007", None),
        ];
        for (text, words) in table {
            let page = pages(text).remove(0).expect("YAML");
            match words {
                Some(words) => {
                    assert!(page.unlike.len() == 1 && page.unlike[0].why.contains(words), "{text}: {page:?}");
                }
                None => assert_eq!(page.unlike, [], "{text}"),
            }
        }
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        for (text, line) in [("a: 1\nb: [1\n", 3), ("a: 1\na: 2\n", 2), ("a: b\n c: d\n", 2)] {
            let wrong = pages(text).into_iter().find_map(Result::err).expect(text);
            assert!(wrong.line.is_some_and(|at| at.abs_diff(line) <= 1), "{text:?}: {wrong:?}");
        }
    }
}
