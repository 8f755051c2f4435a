//! Files do not import each other in a circle: whoever reads one must not have to know it to understand it. A file and the
//! parts in its folder are one thing: what they import of each other is not counted.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{File, closing, files, is_word, rust, word_at};
use crate::{none, one, refused};

type Edges = BTreeMap<String, BTreeSet<String>>;

/// `src/decide/gate.rs` is `decide/gate`.
fn module(path: &str) -> String {
    path.trim_start_matches("src/").trim_end_matches(".rs").to_owned()
}

fn edges(files: &[File]) -> Edges {
    let modules: BTreeSet<String> = files.iter().map(|f| module(&f.path)).collect();
    let imported = |file: &File| {
        let own = module(&file.path);
        let found = paths(file).into_iter().filter_map(|path| resolved(&own, &path, &modules));
        found.filter(|to| *to != own && !is_part(to, &own) && !is_part(&own, to)).collect()
    };
    files.iter().map(|file| (module(&file.path), imported(file))).collect()
}

fn is_part(part: &str, of: &str) -> bool {
    part.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'))
}

/// Every path outside tests that has a `::` in it, lists in braces written out.
fn paths(file: &File) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut behind = 0;
    for (at, _) in file.code.match_indices("::") {
        let head = file.code[..at].rfind(|c| !is_word(c)).map_or(0, |n| n + 1);
        if at >= behind && head < at && !file.in_tests(head) {
            behind = written_out(&file.code, head, &[], &mut found);
        }
    }
    found
}

/// Adds the paths that begin here, behind what stands before a brace; gives where they end.
fn written_out(code: &str, at: usize, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    let mut at = at;
    loop {
        if code[at..].starts_with('{') {
            let end = closing(code, at);
            let mut inner = at + 1;
            while inner < end {
                let Some(next) = code[inner..end].find(|c| is_word(c) || c == '{') else { break };
                inner = written_out(code, inner + next, &path, found);
                // ` as name` is of the same item.
                inner = code[inner..end].find([',', '}']).map_or(end, |n| inner + n);
            }
            return end;
        }
        let word = word_at(code, at);
        path.push(word.to_owned());
        at += word.len();
        match code[at..].strip_prefix("::") {
            Some(rest) if rest.starts_with(|c| is_word(c) || c == '{') => at += 2,
            _ => {
                found.push(path);
                return at;
            }
        }
    }
}

/// The module in which a path ends, seen from another.
fn resolved(own: &str, path: &[String], modules: &BTreeSet<String>) -> Option<String> {
    let mut base: Vec<&str> = own.split('/').collect();
    let mut rest = path.iter().map(String::as_str).peekable();
    match rest.peek().copied()? {
        "crate" => {
            base.clear();
            rest.next();
        }
        "self" => drop(rest.next()),
        "super" => {
            while rest.next_if(|part| *part == "super").is_some() {
                base.pop();
            }
        }
        // A part of one's own, or of another crate.
        _ => {}
    }
    for part in rest {
        base.push(part);
        if !modules.contains(&base.join("/")) {
            base.pop();
            break;
        }
    }
    Some(base.join("/")).filter(|to| modules.contains(to))
}

/// The files that import each other, directly or by others.
fn circles(edges: &Edges) -> Vec<Vec<&str>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|from| (from.as_str(), reach(edges, from))).collect();
    let mut found: Vec<Vec<&str>> = Vec::new();
    for (from, there) in &reached {
        let mut circle: Vec<&str> = there.iter().copied().filter(|to| reached[to].contains(from)).collect();
        circle.sort_unstable();
        if circle.len() > 1 && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

fn reach<'a>(edges: &'a Edges, from: &str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&str> = edges[from].iter().map(String::as_str).collect();
    while let Some(module) = next.pop() {
        if seen.insert(module) {
            next.extend(edges[module].iter().map(String::as_str));
        }
    }
    seen
}

fn refusals(files: &[File], admitted: &[&[&str]]) -> Vec<String> {
    let edges = edges(files);
    let found = circles(&edges);
    let fresh = found.iter().filter(|circle| !admitted.contains(&circle.as_slice())).map(|circle| {
        format!("{} import each other in a circle; move what they share to a file of its own", circle.join(", "))
    });
    let gone = admitted
        .iter()
        .filter(|circle| !found.iter().any(|f| f == *circle))
        .map(|circle| format!("tests/house/circles.rs: {} is no circle any more; strike its line", circle.join(", ")));
    fresh.chain(gone).collect()
}

#[test]
fn files_form_no_circle() {
    none(&refusals(&files(rust), &[]));
}

#[test]
fn circles_are_refused() {
    let three = |last: &str| {
        let mut files = one("src/decide.rs", "mod a;");
        files.extend(one("src/decide/a.rs", "use super::b::{self, c::D};"));
        files.extend(one("src/decide/b.rs", "mod c; fn f() { crate::decide::e::g() }"));
        files.extend(one("src/decide/b/c.rs", "use super::X as Y; use crate::decide::b;"));
        files.extend(one("src/decide/e.rs", last));
        files
    };
    let circle = "decide/a, decide/b, decide/e import each other";
    refused(&refusals(&three("use crate::{api::A, decide::{a::F}};"), &[]), circle);
    refused(&refusals(&three("fn g() { super::a::h() }"), &[]), circle);
    let listed: &[&str] = &["decide/a", "decide/b", "decide/e"];
    none(&refusals(&three("use super::a;"), &[listed]));
    refused(&refusals(&three(""), &[listed]), "no circle any more");
    none(&refusals(&three("// super::a::h\n#[cfg(test)]\nmod tests { use super::super::a; }"), &[]));
}
