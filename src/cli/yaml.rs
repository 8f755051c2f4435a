//! YAML as JSON values, with the line of every member: faults name paths, editors want lines. What kubectl, which reads
//! YAML 1.1, would take for something else is told, so that one file never makes two runs.

mod depth;
mod scalar;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::thread;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

use crate::api::limits::FREE_VALUE_LEVELS;
use crate::cli::text::inline;
use scalar::Scalar;

/// How deep a file may nest: around a free value lies an object, or a list of them.
const LEVELS: usize = FREE_VALUE_LEVELS + 32;
/// Our reader recurses, and takes up to 40 KiB a level where nothing is optimized.
const STACK_BYTES: usize = 16 << 20;

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

    /// Reads a plain word as kubectl does, or tells where that is not what stands there.
    fn compare(&mut self, leaf: &mut Spanned<Node>, source: &Source<'_>) {
        let at = leaf.referenced;
        if source.escapes_a_slash(at) {
            let why = "kubectl does not know the escape \\/; write / alone".to_owned();
            self.unlike.push(Unlike { line: at.line(), why });
        }
        let Node::Leaf(value) = &mut leaf.value else { return };
        if source.tag(at) == Some("!!null") && source.text(at) != Some("") {
            self.unlike.push(Unlike { line: at.line(), why: "kubectl refuses this null, which is none".to_owned() });
        }
        let Some(word) = source.plain(at) else { return };
        // What begins a line is the text of a block, or cannot be told from it.
        if matches!(value, Value::String(text) if text != word || source.begins_line(at)) {
            return;
        }
        match scalar::resolved(word) {
            Scalar::Text if !value.is_string() => *value = Value::String(word.to_owned()),
            other if is_same(other, value) => {}
            other => self.unlike.push(Unlike { line: at.line(), why: unlike_value(word, other) }),
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
    let parts = match stream::parts(text) {
        Ok(parts) => parts,
        Err(refused) => return vec![Err(Unreadable { line: Some(refused.line), why: refused.why })],
    };
    let read_all = || parts.iter().flat_map(|part| read(part, text)).collect();
    let found = thread::scope(|scope| {
        let reading = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, read_all).ok()?;
        reading.join().ok()
    });
    found.unwrap_or_else(|| vec![Err(Unreadable { line: None, why: "cannot be read on this machine now".to_owned() })])
}

/// The documents of a part.
fn read(part: &str, whole: &str) -> Vec<Result<Page, Unreadable>> {
    if let Some(deep) = depth::too_deep(part, LEVELS) {
        let why = format!(
            "{}: nests more than {LEVELS} levels of lists and objects; make it flatter, or put what is deeper into a text",
            deep.path
        );
        return vec![Err(Unreadable { line: Some(deep.line), why })];
    }
    // Aliases may nest deeper than what is written: the reader counts them, too.
    let options = serde_saphyr::options! { with_snippet: false, budget: serde_saphyr::budget! { max_depth: LEVELS } };
    let mut bytes = part.as_bytes();
    let source = Source { lines: part.lines().collect(), is_json: stream::is_json(whole) };
    let read = serde_saphyr::read_with_options::<_, Spanned<Node>>(&mut bytes, options);
    read.map(|one| one.map(|root| page(root, &source)).map_err(|wrong| unreadable(&wrong))).collect()
}

fn unreadable(wrong: &serde_saphyr::Error) -> Unreadable {
    let line = wrong.location().map(|at| at.line()).filter(|line| *line > 0);
    // Advice to the programmer is none to the reader.
    if wrong.to_string().contains("cannot deserialize null into string") {
        return Unreadable { line, why: "a key is null, which no object can hold; put it in quotes".to_owned() };
    }
    let why = wrong.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    Unreadable { line, why: format!("is not valid YAML: {}", inline(&why, 400)) }
}

fn page(root: Spanned<Node>, source: &Source<'_>) -> Page {
    let mut page = Page::default();
    page.lines.insert(String::new(), root.referenced.line());
    page.value = lay_out(root.value, "", source, &mut page);
    page
}

/// The text that was read, for what its reader does not tell.
struct Source<'a> {
    lines: Vec<&'a str>,
    is_json: bool,
}

impl<'a> Source<'a> {
    /// What stands before a place in its line, and from there on.
    fn at(&self, at: Location) -> Option<(&'a str, &'a str)> {
        let line = self.lines.get(usize::try_from(at.line()).ok()?.checked_sub(1)?)?;
        let (start, _) = line.char_indices().nth(usize::try_from(at.column()).ok()?.checked_sub(1)?)?;
        Some(line.split_at(start))
    }

    /// The tag of a place: at it, or before it.
    fn tag(&self, at: Location) -> Option<&'a str> {
        let (before, behind) = self.at(at)?;
        let first = behind.split_whitespace().next().filter(|word| word.starts_with('!'));
        first.or_else(|| before.split_whitespace().next_back().filter(|word| word.starts_with('!')))
    }

    /// What stands there without its tag.
    fn text(&self, at: Location) -> Option<&'a str> {
        let (_, behind) = self.at(at)?;
        let behind = if behind.starts_with('!') { behind.split_once(' ').map_or("", |(_, text)| text) } else { behind };
        Some(behind.split(" #").next().unwrap_or(behind).trim())
    }

    /// The word at a place, as far as it is written without quotes and tags.
    fn plain(&self, at: Location) -> Option<&'a str> {
        let (_, behind) = self.at(at)?;
        let word = behind.split([',', ']', '}', ' ', '\t', '\r']).next()?;
        let word = word.strip_suffix(':').unwrap_or(word);
        let starts = word.starts_with(|c: char| c.is_ascii_alphanumeric() || "+-~.".contains(c));
        (starts && self.tag(at).is_none() && !self.is_json).then_some(word)
    }

    fn begins_line(&self, at: Location) -> bool {
        self.at(at).is_none_or(|(before, _)| before.trim().is_empty())
    }

    /// Whether a text in double quotes has an escape that YAML 1.1 does not know.
    fn escapes_a_slash(&self, at: Location) -> bool {
        let Some((_, behind)) = self.at(at).filter(|(_, behind)| behind.starts_with('"') && !self.is_json) else {
            return false;
        };
        let index = usize::try_from(at.line()).unwrap_or_default();
        let rest = std::iter::once(&behind[1..]).chain(self.lines.iter().skip(index).copied());
        let mut escaped = false;
        for c in rest.flat_map(|line| line.chars().chain(['\n'])) {
            match c {
                '/' if escaped => return true,
                '"' if !escaped => return false,
                _ => escaped = c == '\\' && !escaped,
            }
        }
        false
    }
}

fn is_same(theirs: Scalar, ours: &Value) -> bool {
    match (theirs, ours) {
        (Scalar::Null, Value::Null) | (Scalar::Text, Value::String(_)) => true,
        (Scalar::Bool(theirs), Value::Bool(ours)) => theirs == *ours,
        (Scalar::Whole(theirs), Value::Number(ours)) => {
            let whole = ours.as_i64().map(i128::from).or_else(|| ours.as_u64().map(i128::from));
            whole.map_or_else(|| ours.as_f64() == theirs.to_string().parse().ok(), |ours| ours == theirs)
        }
        (Scalar::Double(theirs), Value::Number(ours)) => ours.as_f64() == Some(theirs),
        _ => false,
    }
}

/// What kubectl makes of a key that it takes for something else than a text.
fn unlike_key(word: &str) -> Option<String> {
    let other = match scalar::resolved(word) {
        // A key that is null is none to our reader either.
        Scalar::Text | Scalar::Endless | Scalar::Null => return None,
        Scalar::Bool(value) => value.to_string(),
        Scalar::Whole(number) => number.to_string(),
        Scalar::Double(number) => number.to_string(),
    };
    (other != word).then(|| format!("the key {word} is \"{other}\" to kubectl, which reads YAML 1.1; put it in quotes"))
}

/// What kubectl makes of a value.
fn unlike_value(word: &str, theirs: Scalar) -> String {
    let digits = word.trim_start_matches(['+', '-']);
    let octal = digits.len() > 1 && digits.starts_with('0') && digits.chars().all(|c| c.is_ascii_digit() || c == '_');
    let other = match theirs {
        Scalar::Null => "null".to_owned(),
        Scalar::Bool(value) => value.to_string(),
        Scalar::Whole(number) if octal => format!("the number {number} (a leading zero makes it octal)"),
        Scalar::Whole(number) => format!("the number {number}"),
        Scalar::Double(number) => format!("the number {number}"),
        Scalar::Endless => "a number that JSON cannot hold".to_owned(),
        Scalar::Text => "a text".to_owned(),
    };
    format!("{word} is {other} to kubectl, which reads YAML 1.1; put it in quotes, or write it in another way")
}

fn lay_out(node: Node, path: &str, source: &Source<'_>, page: &mut Page) -> Value {
    match node {
        Node::Leaf(value) => value,
        Node::List(items) => {
            let mut list = Vec::new();
            for (index, mut item) in items.into_iter().enumerate() {
                let path = format!("{path}[{index}]");
                page.lines.insert(path.clone(), item.referenced.line());
                page.compare(&mut item, source);
                list.push(lay_out(item.value, &path, source, page));
            }
            Value::Array(list)
        }
        Node::Map(members) => {
            let mut map = Map::new();
            for (key, mut member) in members {
                let path = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                page.lines.insert(path.clone(), key.referenced.line());
                let at = key.referenced;
                if let Some(why) = source.plain(at).filter(|word| *word == key.value).and_then(unlike_key) {
                    page.unlike.push(Unlike { line: at.line(), why });
                }
                page.compare(&mut member, source);
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
    fn what_nests_deep_is_read_or_told_by_its_path() {
        let flow = |levels: usize| format!("spec: {{parameters: {}1{}}}", "[".repeat(levels), "]".repeat(levels));
        let object = |levels: usize| format!("{{\"spec\": {}1{}}}", "{\"a\": ".repeat(levels), "}".repeat(levels));
        let block = |levels: usize| -> String {
            (0..levels)
                .map(|level| format!("{}a:\n", " ".repeat(level)))
                .chain([format!("{}b", " ".repeat(levels))])
                .collect()
        };
        let alias = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!("a: &a {open}1{close}\nb: {open}*a{close}\n")
        };
        for text in [flow(LEVELS - 2), object(LEVELS - 1), block(LEVELS), alias(LEVELS / 2 - 1)] {
            assert!(pages(&text).iter().all(Result::is_ok), "{:?}", pages(&text));
        }
        for (text, words) in [
            (flow(LEVELS - 1), "spec.parameters[0][0]"),
            (flow(100_000), "spec.parameters[0][0]"),
            (object(LEVELS), "spec.a.a"),
            (object(100_000), "spec.a.a"),
            (block(LEVELS + 1), "a.a.a"),
            (alias(LEVELS / 2 + 1), "is not valid YAML"),
        ] {
            let told: Vec<String> = pages(&text).into_iter().filter_map(Result::err).map(|wrong| wrong.why).collect();
            assert!(told.len() == 1 && told[0].starts_with(words), "{words}: {told:?}");
        }
    }

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
            ("mode: 0644", Some("0644 is the number 420 (a leading zero makes it octal) to kubectl")),
            ("mode: '0644'", None),
            ("mode: 0", None),
            // The same number to both.
            ("a: [1_000]", None),
            ("1e3: x", Some("the key 1e3 is \"1000\" to kubectl")),
            ("a: 1_0.5", Some("1_0.5 is the number 10.5 to kubectl")),
            ("a: \"\\/\"", Some("the escape \\/")),
            ("a: 0x1F", None),
            ("a: 007-b", None),
            ("a: |\n  007\n", None),
            ("a: |-\n  007\n", None),
            ("b:\n- 007\n", None),
            ("b:\n- 017\n", Some("017 is the number 15 (a leading zero makes it octal)")),
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

    /// `kubectl annotate --local -f FILE x=y -o json` of version 1.32 gave these values, or refused the file (null).
    #[test]
    fn files_are_read_as_kubectl_reads_them_or_told() {
        let cases: Vec<(String, Value)> = serde_json::from_str(include_str!("yaml/kubectl.json")).expect("the cases");
        assert!(cases.len() > 200);
        for (text, theirs) in cases {
            let found = pages(&text);
            if found.iter().any(|page| page.as_ref().map_or(true, |page| !page.unlike.is_empty())) {
                continue;
            }
            assert!(!theirs.is_null(), "kubectl refuses {text:?}");
            let mut ours = found.into_iter().find_map(Result::ok).map(|page| page.value).unwrap_or_default();
            let object = ours.as_object_mut().expect("an object");
            object.retain(|key, _| !["apiVersion", "kind", "metadata"].contains(&key.as_str()));
            let spelt = crate::definition::pinned::canonical_digest;
            assert_eq!(spelt(&ours), spelt(&theirs), "{text:?}: {ours}, not {theirs}");
        }
    }

    #[test]
    fn what_kubectl_reads_alike_is_not_told() {
        for text in
            ["a: no", "a: 08", "a: 00", "a: 12:30:00", "a: 0x1F", "a: 2024-01-01", "a: 1e3", "a: !!str 5", "a: x # no"]
        {
            let page = pages(text).remove(0).expect("YAML");
            assert_eq!(page.unlike, [], "{text}");
        }
        let table =
            [("a: oFF", json!({"a": "oFF"})), ("a: tRUE", json!({"a": "tRUE"})), ("a: nUll", json!({"a": "nUll"}))];
        for (text, value) in table {
            assert_eq!(pages(text).remove(0).map(|page| page.value), Ok(value));
        }
    }

    #[test]
    fn documents_follow_each_other_as_kubectl_takes_them() {
        let lines = |text: &str| -> Vec<Option<u64>> {
            pages(text).into_iter().map(|page| page.ok().and_then(|page| page.line("b"))).collect()
        };
        assert_eq!(lines("--- # c\na: 1\nb: 2\n---\n# only a comment\n---\nb: 1\n"), [Some(3), Some(7)]);
        assert_eq!(lines("{\"a\": 1,\n\"b\": 2}\n{\"a\": 1,\n\"b\": 2}\n"), [Some(2), Some(4)]);
        assert_eq!(lines("a: 1\r\nb: 2\r\n---\r\nb: 1\r\n"), [Some(2), Some(4)]);
        for (text, line, words) in [
            ("a: 1\n--- b: 2\n", 2, "nothing but a comment behind ---"),
            ("a: 1\n...\nb: 2\n", 3, "does not read what follows ..."),
            ("%YAML 1.2\n---\na: 1\n", 1, "takes no directives"),
            ("{a: 1}\n", 1, "JSON to kubectl"),
            ("~: 1\n", 1, "a key is null"),
        ] {
            let wrong = pages(text).into_iter().find_map(Result::err).expect(text);
            assert!(wrong.line == Some(line) && wrong.why.contains(words), "{text:?}: {wrong:?}");
        }
        assert_eq!(lines("a: 1\n...\n# c\n---\nb: 1\n"), [Some(1), Some(5)]);
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        for (text, line) in [("a: 1\nb: [1\n", 3), ("a: 1\na: 2\n", 2), ("a: b\n c: d\n", 2)] {
            let wrong = pages(text).into_iter().find_map(Result::err).expect(text);
            assert!(wrong.line.is_some_and(|at| at.abs_diff(line) <= 1), "{text:?}: {wrong:?}");
        }
    }
}
