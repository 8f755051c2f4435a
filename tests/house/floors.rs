//! Who imports whom: a floor imports only lower floors, and rooms of one floor never import each other. And what a room
//! never does, which a lint, being for the whole crate, cannot say.

use std::path::Path;

use crate::source::{File, closing, files, room, rust, word_at};
use crate::{none, one, refused};

/// Room and floor. `cluster` reads what `decide` has decided, and `telemetry` may be used by all of floor 4: both edges
/// go down.
const FLOORS: [(&str, u8); 16] = [
    ("api", 0),
    ("protocol", 0),
    ("apiserver", 1),
    ("definition", 1),
    ("server", 1),
    ("decide", 2),
    ("cluster", 3),
    ("telemetry", 3),
    ("controllers", 4),
    ("gateway", 4),
    ("http", 4),
    ("cli", 4),
    ("prompt", 4),
    ("shim", 4),
    ("dev", 5),
    ("bin", 6),
];

/// Names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 8] = ["utils", "util", "helpers", "common", "manager", "service", "misc", "lib_"];

/// Nothing that could make the same input decide otherwise, or wait.
const IMPURE: [&str; 13] = [
    "async",
    "await",
    "tokio",
    "std::env",
    "env::var",
    "std::fs",
    "std::net",
    "std::process",
    "thread",
    "Client",
    "Api",
    "static mut",
    "Mutex",
];

/// In `definition` and `decide` nothing impure. In `api` and `protocol` no client.
const NEVER: [(&str, &[&str]); 4] = [
    ("definition", &IMPURE),
    ("decide", &IMPURE),
    ("api", &["async", "tokio", "Client", "Api"]),
    ("protocol", &["async", "tokio", "kube", "k8s_openapi", "std::process", "std::fs"]),
];

fn floor(room: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

fn edges(files: &[File]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files {
        let Some(from) = room(&file.path) else {
            continue;
        };
        let Some(own) = floor(from) else {
            refusals.push(format!(
                "{}:1: the room {from} has no floor; give it one in tests/house/floors.rs and in src/ARCHITECTURE.md",
                file.path
            ));
            continue;
        };
        for (at, to) in imports(file) {
            let allowed = to == from || floor(&to).is_some_and(|floor| floor < own);
            if !allowed {
                refusals.push(format!(
                    "{}: {from} (floor {own}) imports {to}{}; move what both need to a lower floor",
                    file.place(at),
                    floor(&to).map_or_else(String::new, |floor| format!(" (floor {floor})"))
                ));
            }
        }
    }
    refusals
}

/// The rooms that a file names, as `crate::ROOM`, `lockstep::ROOM` (bins), or enough `super::`.
fn imports(file: &File) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for prefix in ["crate::", "lockstep::"] {
        for (at, _) in file.code.match_indices(prefix) {
            let before = file.code[..at].chars().next_back();
            // `$crate::` is a macro's own, `x_crate::` another name.
            if before.is_none_or(|c| !crate::source::is_word(c)) {
                found.extend(named(&file.code, at + prefix.len()).into_iter().map(|to| (at, to)));
            }
        }
    }
    let depth = file.path.matches('/').count();
    for (at, chain) in supers(&file.code) {
        // A file's module is as deep as its path; modules in braces are deeper.
        if chain >= depth + inline_depth(&file.code, at) {
            let end = at + chain * "super::".len();
            found.extend(named(&file.code, end).into_iter().map(|to| (at, to)));
        }
    }
    found
}

/// The first names behind a path's prefix: one, or those of a `{ }` list.
fn named(code: &str, at: usize) -> Vec<String> {
    if !code[at..].starts_with('{') {
        let word = word_at(code, at);
        return vec![if word.is_empty() { "everything".to_owned() } else { word.to_owned() }];
    }
    let list = &code[at + 1..closing(code, at) - 1];
    let mut depth = 0_i32;
    let mut names = vec![String::new()];
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(String::new()),
            c if depth == 0 => names.last_mut().expect("never empty").push(c),
            _ => {}
        }
    }
    let heads = names.iter().filter_map(|n| n.trim().split(':').next());
    heads.filter(|n| !n.is_empty()).map(|n| word_at(n, 0).to_owned()).collect()
}

/// Runs of `super::`, and how long they are.
fn supers(code: &str) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, word) in code.match_indices("super::") {
        match runs.last_mut() {
            Some((from, count)) if *from + *count * word.len() == at => *count += 1,
            _ => runs.push((at, 1)),
        }
    }
    runs
}

/// How many `mod x { }` stand around a place.
fn inline_depth(code: &str, place: usize) -> usize {
    let around = |(at, _): &(usize, &str)| {
        let open = code[*at..].find(['{', ';']).map_or(code.len(), |n| at + n);
        code[open..].starts_with('{') && (open..closing(code, open)).contains(&place)
    };
    code.match_indices("mod ").filter(around).count()
}

fn names(paths: &[String]) -> Vec<String> {
    let mut refusals = Vec::new();
    for path in paths.iter().filter(|p| rust(p)) {
        if path.ends_with("/mod.rs") {
            refusals.push(format!("{path}:1: mod.rs; name the file as its folder, beside it"));
        }
        for part in path.split('/').map(|part| part.trim_end_matches(".rs")) {
            if EMPTY_NAMES.contains(&part) {
                refusals.push(format!(
                    "{path}:1: {part} says nothing of what is inside; name it by what it does, or move its parts home"
                ));
            }
        }
    }
    refusals
}

fn never(files: &[File]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files {
        let own = room(&file.path);
        for (room, words) in NEVER.iter().filter(|(room, _)| own == Some(room)) {
            for word in *words {
                let found = file.words(word).into_iter();
                refusals.extend(found.map(|at| {
                    format!("{}: {word} in {room}; a higher floor does it and hands the value down", file.place(at))
                }));
            }
        }
    }
    refusals
}

/// Files of `src` that no other declares: they are not compiled, whatever they say.
fn undeclared(files: &[File]) -> Vec<String> {
    let declares = |parent: &str, name: &str| {
        let declaration = format!("mod {name};");
        files.iter().any(|f| f.path == parent && f.code.contains(&declaration))
    };
    let modules = files.iter().filter(|f| f.path != "src/lib.rs" && !f.path.starts_with("src/bin/"));
    let orphans = modules.filter(|file| {
        let module = file.path.trim_end_matches(".rs");
        let Some((folder, name)) = module.rsplit_once('/') else { return true };
        let parent = if folder == "src" { "src/lib.rs".to_owned() } else { format!("{folder}.rs") };
        !declares(&parent, name)
    });
    orphans
        .map(|f| format!("{}: no `mod` declares it, so it is not compiled; declare it or delete it", f.path))
        .collect()
}

#[test]
fn every_file_is_compiled() {
    none(&undeclared(&files(rust)));
}

#[test]
fn a_file_that_nobody_declares_is_refused() {
    let mut files = one("src/lib.rs", "pub mod a;");
    files.extend(one("src/a.rs", "mod b; // mod c;"));
    files.extend(one("src/a/b.rs", ""));
    none(&undeclared(&files));
    files.extend(one("src/a/c.rs", ""));
    refused(&undeclared(&files), "src/a/c.rs: no `mod` declares it");
}

#[test]
fn floors_import_downwards_only() {
    none(&edges(&files(rust)));
}

#[test]
fn lower_floors_are_pure() {
    none(&never(&files(rust)));
}

/// Tests wait on conditions. No lint says so of tests alone, and what ships has reasons to sleep.
#[test]
fn tests_do_not_sleep() {
    let tests = files(|p| p.starts_with("tests/") && Path::new(p).extension().is_some_and(|e| e == "rs"));
    let sleeping = tests.iter().flat_map(|f| f.words("thread::sleep").into_iter().map(|at| f.place(at)));
    none(&sleeping.map(|place| format!("{place}: thread::sleep; wait on a condition")).collect::<Vec<_>>());
}

#[test]
fn rooms_have_telling_names() {
    none(&names(crate::source::paths()));
}

#[test]
fn wrong_edges_are_refused() {
    for (path, text, words) in [
        ("src/api/x.rs", "use crate::decide::Plan;", "api (floor 0) imports decide"),
        ("src/decide/x.rs", "use crate::{api::a::{B, C}, cluster::D};", "imports cluster"),
        ("src/gateway/x.rs", "fn f() { crate::controllers::run() }", "imports controllers"),
        ("src/decide/x.rs", "use super::super::cluster::D;", "imports cluster"),
        ("src/shim.rs", "use super::{gateway::x};", "imports gateway"),
        ("src/decide/x.rs", "mod tests { use super::super::super::cli::X; }", "imports cli"),
        ("src/decide/x.rs", "use crate::*;", "imports everything"),
        ("src/definition/x.rs", "use crate::decide::Plan;", "definition (floor 1) imports decide"),
        ("src/decide/x.rs", "use crate::new_room::X;", "imports new_room"),
        ("src/cellar/x.rs", "", "has no floor"),
        ("src/cluster/x.rs", "use crate::telemetry::Metrics;", "imports telemetry"),
    ] {
        refused(&edges(&one(path, text)), words);
    }
    let fine = "use crate::api::{a::B, c}; use super::super::api::X; use super::plan::Y; mod tests { use super::super::plan; }";
    none(&edges(&one("src/decide/x.rs", fine)));
}

#[test]
fn empty_names_are_refused() {
    let paths = |path: &str| names(&[path.to_owned()]);
    refused(&paths("src/decide/utils.rs"), "says nothing");
    refused(&paths("src/common/x.rs"), "says nothing");
    refused(&paths("src/decide/mod.rs"), "mod.rs");
    none(&paths("src/decide/gate.rs"));
}

#[test]
fn what_a_room_never_does_is_refused() {
    refused(&never(&one("src/decide/x.rs", "async fn f() {}")), "async in decide");
    refused(&never(&one("src/definition/x.rs", "async fn f() {}")), "async in definition");
    refused(&never(&one("src/decide/x.rs", "fn f() { std::env::var(n) }")), "std::env");
    refused(&never(&one("src/api/x.rs", "use kube::Client;")), "Client in api");
    refused(&never(&one("src/protocol.rs", "use kube::Api;")), "kube in protocol");
    none(&never(&one(
        "src/decide/x.rs",
        "// async\nuse crate::protocol::env; #[cfg(test)] mod tests { async fn f() {} }",
    )));
}
