//! Sizes: files, parameters, enums, binaries; and that clippy counts the lines of functions.

use crate::source::{File, closing, files, is_word, root, rust, word_at};
use crate::{none, one, refused};

const FILE_LINES: usize = 500;
const BIN_LINES: usize = 60;
const PARAMETERS: usize = 5;
const EFFECTS: usize = 12;
const ERRORS: usize = 8;

/// Files over the budget: how many lines they may have, and why. A ceiling never rises; `ceilings_are_tight` lowers it.
const LONG_FILES: [(&str, usize, &str); 0] = [];

/// Functions with a bool or a sixth parameter, `path fn`, and why.
const SIGNATURES: [(&str, &str); 15] = [
    ("src/gateway/judge.rs visit_bool", "the signature is serde's"),
    ("src/cli/yaml.rs visit_bool", "the signature is serde's"),
    ("src/decide/build.rs owner", "it is the field `controller` of an owner reference"),
    ("src/shim/calls.rs fail", "it is the field `retryable` of the call"),
    ("src/shim/calls.rs context", "it is the option --json"),
    ("src/cli/watch.rs end", "it is the option --until-wait"),
    ("src/cli/watch.rs ended", "it is the option --until-wait"),
    ("src/cli/watch.rs follow", "it is the option --until-wait"),
    ("src/cli/watch.rs show", "debt: `last` wants a name of its own"),
    ("src/cluster/observe.rs pod", "debt: `done` wants an enum"),
    ("src/decide/failure.rs lost", "debt: `claimed` wants the claim itself"),
    ("src/definition/schema.rs new", "debt: `expand` wants an enum"),
    ("src/gateway/judge.rs result_faults", "debt: `has_file` wants the file itself"),
    ("src/shim/run.rs code_of", "debt: `valid` wants an enum"),
    (
        "src/api/condition.rs set",
        "a condition has that many parts; all callers give them in the order of kubectl describe",
    ),
];

fn lengths(files: &[File], long: &[(&str, usize, &str)]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files {
        let (lines, code) = (file.lines(), file.code_lines());
        let ceiling = long.iter().find(|(path, ..)| *path == file.path).map_or(FILE_LINES, |(_, lines, _)| *lines);
        if lines > ceiling {
            refusals.push(format!(
                "{}:{ceiling}: {lines} lines without tests, at most {ceiling}; split it by what it does",
                file.path
            ));
        }
        if file.path.starts_with("src/bin/") && code >= BIN_LINES {
            refusals.push(format!(
                "{}:{BIN_LINES}: {code} lines of code in a binary, under {BIN_LINES}; logic belongs in a room",
                file.path
            ));
        }
    }
    refusals
}

fn ceilings(files: &[File], long: &[(&str, usize, &str)]) -> Vec<String> {
    let mut refusals = Vec::new();
    for (path, ceiling, reason) in long {
        let lines = files.iter().find(|f| f.path == *path).map_or(0, File::lines);
        if lines <= FILE_LINES || lines + 25 < *ceiling || reason.is_empty() {
            refusals.push(format!(
                "tests/house/budgets.rs: {path} has {lines} lines now; lower its ceiling of {ceiling}, or strike it"
            ));
        }
    }
    refusals
}

fn signatures(files: &[File], waived: &[(&str, &str)]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files {
        for at in file.words("fn") {
            let name_at = at + 3;
            let name = file.code.get(name_at..).map_or("", |_| word_at(&file.code, name_at));
            let place = format!("{} {name}", file.path);
            if name.is_empty() || waived.iter().any(|(p, reason)| *p == place && !reason.is_empty()) {
                continue;
            }
            let parameters = parameters(&file.code, name_at + name.len());
            if parameters.len() > PARAMETERS {
                refusals.push(format!(
                    "{}: fn {name} has {} parameters, at most {PARAMETERS}; make a struct of those that go together",
                    file.place(at),
                    parameters.len()
                ));
            }
            for parameter in parameters.iter().filter(|p| p.rsplit(':').next().is_some_and(|t| t.trim() == "bool")) {
                refusals.push(format!(
                    "{}: fn {name} takes {}; make an enum of it, or two functions",
                    file.place(at),
                    parameter.trim()
                ));
            }
        }
    }
    refusals
}

/// The parameters of the signature that follows a function's name, its receiver left out.
fn parameters(code: &str, after_name: usize) -> Vec<String> {
    let Some(open) = list_of(code, after_name) else {
        return Vec::new();
    };
    let list = &code[open + 1..closing(code, open) - 1];
    let mut depth = 0_i32;
    let mut parts = vec![String::new()];
    let mut before = ' ';
    for c in list.chars() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if before == '-' || before == '=' => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                before = c;
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("never empty").push(c);
        before = c;
    }
    let is_receiver = |p: &str| p.split(|c| !is_word(c)).any(|w| w == "self") && !p.contains(':');
    parts.into_iter().filter(|p| !p.trim().is_empty() && !is_receiver(p)).collect()
}

/// The parenthesis that opens the parameters: behind the generics, if there are any.
fn list_of(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    let mut before = ' ';
    for (at, c) in code[from..].char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            '(' if depth == 0 => return Some(from + at),
            ';' | '{' if depth == 0 => return None,
            _ => {}
        }
        before = c;
    }
    None
}

fn enums(files: &[File]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files {
        for at in file.words("enum") {
            let name = word_at(&file.code, at + 5);
            let derives = file.code[..at].rfind("derive(").map_or("", |from| &file.code[from..at]);
            let is_error = name.ends_with("Error")
                || name.ends_with("Failure")
                || (derives.contains("Error") && !derives.contains('}'));
            let limit = match name {
                "Effect" => EFFECTS,
                _ if is_error => ERRORS,
                _ => continue,
            };
            let count = variants(&file.code, at);
            if count >= limit {
                refusals.push(format!(
                    "{}: enum {name} has {count} variants, under {limit}; what is data and not an error or an act?",
                    file.place(at)
                ));
            }
        }
    }
    refusals
}

fn variants(code: &str, at: usize) -> usize {
    let Some(open) = code[at..].find('{').map(|n| at + n) else {
        return 0;
    };
    let mut depth = 0_i32;
    let mut count = 0;
    let mut fresh = true;
    for c in code[open + 1..closing(code, open) - 1].chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if depth == 0 && fresh && c.is_uppercase() => {
                count += 1;
                fresh = false;
            }
            _ => {}
        }
    }
    count
}

/// Lines that Cargo.toml and clippy.toml must have.
fn lints(cargo: &str, clippy: &str) -> Vec<String> {
    let mut refusals = Vec::new();
    for (file, text, wanted) in [
        ("Cargo.toml", cargo, "unsafe_code = \"forbid\""),
        ("Cargo.toml", cargo, "pedantic = { level = \"warn\", priority = -1 }"),
        ("Cargo.toml", cargo, "unwrap_used = \"warn\""),
        ("Cargo.toml", cargo, "expect_used = \"warn\""),
        ("Cargo.toml", cargo, "panic = \"warn\""),
        ("Cargo.toml", cargo, "too_many_lines = \"warn\""),
        ("clippy.toml", clippy, "too-many-lines-threshold = 70"),
    ] {
        if !text.lines().any(|line| line.trim() == wanted) {
            refusals.push(format!("{file}: the line `{wanted}` is missing; put it back"));
        }
    }
    refusals
}

/// Waivers say why, and go when nothing is to be waived: `expect`, never `allow`.
fn waivers(files: &[File]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files {
        let allows = file.code.match_indices("allow(").filter(|(at, _)| !file.in_tests(*at));
        for (at, _) in allows {
            if file.code[..at].ends_with("#[") || file.code[..at].ends_with("#![") {
                refusals.push(format!("{}: allow; write #[expect(..., reason = \"...\")]", file.place(at)));
            }
        }
        for (at, _) in file.code.match_indices("#[expect(") {
            if !file.code[at..closing(&file.code, at + 1)].contains("reason") {
                refusals.push(format!("{}: a waiver without a reason; add reason = \"...\"", file.place(at)));
            }
        }
    }
    refusals
}

#[test]
fn files_keep_their_budget() {
    none(&lengths(&files(rust), &LONG_FILES));
}

/// A waiver that waives nothing is struck.
fn idle_waivers(files: &[File], waived: &[(&str, &str)]) -> Vec<String> {
    let all = signatures(files, &[]);
    let idle = waived.iter().filter(|(place, _)| {
        let (path, name) = place.split_once(' ').unwrap_or((place, ""));
        !all.iter().any(|r| r.starts_with(&format!("{path}:")) && r.contains(&format!("fn {name} ")))
    });
    idle.map(|(place, _)| format!("tests/house/budgets.rs: {place} needs no waiver any more; strike it")).collect()
}

#[test]
fn waivers_of_signatures_are_needed() {
    none(&idle_waivers(&files(rust), &SIGNATURES));
}

#[test]
fn ceilings_are_tight() {
    none(&ceilings(&files(rust), &LONG_FILES));
}

#[test]
fn signatures_keep_their_budget() {
    none(&signatures(&files(rust), &SIGNATURES));
}

#[test]
fn enums_keep_their_budget() {
    let source = files(rust);
    assert!(source.iter().any(|f| f.code.contains("enum Effect")), "there is no enum Effect: the check is vacuous");
    none(&enums(&source));
}

#[test]
fn clippy_counts_lines() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap_or_default();
    none(&lints(&read("Cargo.toml"), &read("clippy.toml")));
}

#[test]
fn waivers_have_reasons() {
    none(&waivers(&files(rust)));
}

#[test]
fn what_is_too_large_is_refused() {
    let lines = |n: usize| "fn f() {}\n".repeat(n);
    refused(&lengths(&one("src/x/y.rs", &lines(501)), &[]), "501 lines");
    refused(&lengths(&one("src/x/y.rs", &lines(551)), &[("src/x/y.rs", 550, "why")]), "at most 550");
    refused(&lengths(&one("src/bin/x.rs", &lines(60)), &[]), "60 lines of code");
    none(&lengths(&one("src/x/y.rs", &(lines(500) + "#[cfg(test)]\nmod tests {\n" + &lines(100) + "}\n")), &[]));
    refused(&ceilings(&one("src/x/y.rs", &lines(510)), &[("src/x/y.rs", 600, "why")]), "lower its ceiling");
    refused(&ceilings(&one("src/x/y.rs", &lines(510)), &[("src/x/y.rs", 510, "")]), "src/x/y.rs");
}

#[test]
fn what_takes_too_much_is_refused() {
    let six = "fn f<T: Fn(A) -> B>(a: A, b: B<C, D>, (c, d): (E, F), g: [G; 2], h: &dyn Fn(X, Y) -> Z, i: I) {}";
    refused(&signatures(&one("src/x.rs", six), &[]), "6 parameters");
    refused(&signatures(&one("src/x.rs", "pub fn f(&self, deep: bool) {}"), &[]), "takes deep: bool");
    let waived = [("src/x.rs f", "a reason")];
    none(&signatures(&one("src/x.rs", "fn f(deep: bool) {}"), &waived));
    none(&idle_waivers(&one("src/x.rs", "fn f(deep: bool) {}"), &waived));
    refused(&idle_waivers(&one("src/x.rs", "fn f(deep: Depth) {}"), &waived), "strike it");
    none(&signatures(&one("src/x.rs", "fn f(&mut self, a: A, b: B, c: C, d: D, e: Option<bool>) -> bool {}"), &[]));
    let error = "#[derive(Error)] enum Fault { A, B(X, Y), C { d: D }, E, F, G, H, I }";
    refused(&enums(&one("src/x.rs", error)), "8 variants");
    let effect = "enum Effect { A, B, C, D, E, F, G, H, I, J, K, L }";
    refused(&enums(&one("src/x.rs", effect)), "12 variants");
    none(&enums(&one("src/x.rs", "enum Effect { A, B } enum Any { A, B, C, D, E, F, G, H, I }")));
}

#[test]
fn missing_lints_and_bare_waivers_are_refused() {
    refused(&lints("", ""), "too-many-lines-threshold");
    refused(&waivers(&one("src/x.rs", "#[allow(dead_code)] fn f() {}")), "allow");
    refused(&waivers(&one("src/x.rs", "#[expect(dead_code)] fn f() {}")), "without a reason");
    none(&waivers(&one("src/x.rs", "#[expect(dead_code, reason = \"why\")] fn f() {}")));
}
