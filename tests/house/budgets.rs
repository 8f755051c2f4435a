//! Sizes that clippy does not know: files, binaries, enums. Those of functions are its own, see .clippy.toml.

use crate::source::{File, closing, files, rust, word_at};
use crate::{none, one, refused};

const FILE_LINES: usize = 500;
const BIN_LINES: usize = 60;
const EFFECTS: usize = 12;
const ERRORS: usize = 8;

/// Files over the budget: how many lines they may have, and why. A ceiling never rises; `ceilings_are_tight` lowers it.
const LONG_FILES: [(&str, usize, &str); 0] = [];

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

#[test]
fn files_keep_their_budget() {
    none(&lengths(&files(rust), &LONG_FILES));
}

#[test]
fn ceilings_are_tight() {
    none(&ceilings(&files(rust), &LONG_FILES));
}

#[test]
fn enums_keep_their_budget() {
    let source = files(rust);
    assert!(source.iter().any(|f| f.code.contains("enum Effect")), "there is no enum Effect: the check is vacuous");
    none(&enums(&source));
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
fn what_has_too_many_variants_is_refused() {
    let error = "#[derive(Error)] enum Fault { A, B(X, Y), C { d: D }, E, F, G, H, I }";
    refused(&enums(&one("src/x.rs", error)), "8 variants");
    let effect = "enum Effect { A, B, C, D, E, F, G, H, I, J, K, L }";
    refused(&enums(&one("src/x.rs", effect)), "12 variants");
    none(&enums(&one("src/x.rs", "enum Effect { A, B } enum Any { A, B, C, D, E, F, G, H, I }")));
}
