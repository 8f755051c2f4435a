//! The texts for people are true: the README's structure, the commands and links, the map of criteria; nothing is left
//! to do by nobody, and nothing of the machine that the project was written on is in them.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::source::{File, files, paths, room, root, rust};
use crate::{none, one, refused};

/// The criteria by number: prefix and last, and the few with letters.
const CRITERIA: [(&str, u32); 11] = [
    ("S0.", 17),
    ("S1.", 16),
    ("S2.", 21),
    ("S3.1.", 5),
    ("S3.2.", 2),
    ("S3.3.", 6),
    ("S3.4.", 5),
    ("S3.5.", 5),
    ("S3.6.", 4),
    ("S3.7.", 5),
    ("S3.8.", 4),
];
const LETTERED: [&str; 4] = ["S1.3a", "S1.3b", "S1.4a", "S3.N"];
/// Where a kind of test lives, and what stands before its name there; or that its names are files.
const KINDS: [(&str, &str, &str); 14] = [
    ("unit", "src", "fn"),
    ("crds", "tests/crds.rs", "fn"),
    ("house", "tests/house", "fn"),
    ("simulation", "tests/simulation.rs", "fn"),
    ("model", "tests/model/test.rs", "fn"),
    ("shim", "tests/shim.rs", "fn"),
    ("dev", "tests/dev", "fn"),
    ("mutants", "tests/mutants/test.rs", "fn"),
    ("chart", "hack/chart-check", "def"),
    ("apiserver", "tests/apiserver", "fn"),
    ("crash", "tests/crash", "fn"),
    ("http", "tests/http", "fn"),
    ("e2e", "tests/e2e", "fn"),
    ("scenario", "tests/scenarios", "txt"),
];

fn markdown(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|e| e == "md")
}

/// The lines of the fenced block that follows a heading.
fn block<'a>(text: &'a str, heading: &str) -> Vec<&'a str> {
    let behind = text.lines().skip_while(|l| *l != heading).skip_while(|l| !l.starts_with("```")).skip(1);
    behind.take_while(|l| !l.starts_with("```")).collect()
}

/// The README's structure against the tree: each top-level entry and each room of `src` has a line, and nothing else has.
fn structure(readme: &str, paths: &[String]) -> Vec<String> {
    let mut there = BTreeSet::new();
    for path in paths {
        there.insert(path.split_once('/').map_or_else(|| path.clone(), |(top, _)| format!("{top}/")));
        if let (true, Some(room)) = (rust(path), room(path)) {
            there.insert(format!("src/{room}"));
        }
    }
    let lines = block(readme, "## Project structure");
    let told: BTreeSet<String> = lines.iter().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect();
    let silent =
        there.difference(&told).map(|p| format!("README.md: Project structure has no line for {p}; say what it is"));
    let gone = told
        .difference(&there)
        .map(|p| format!("README.md: Project structure names {p}, which is not there; strike it"));
    let bare = lines
        .iter()
        .filter(|l| l.split_whitespace().count() == 1)
        .map(|l| format!("README.md: {l} is named and not explained; say what it is"));
    silent.chain(gone).chain(bare).collect()
}

/// `make X` in code, of papers, against the targets that there are.
fn commands(papers: &[File], makefiles: &[File]) -> Vec<String> {
    let targets: BTreeSet<&str> = makefiles
        .iter()
        .flat_map(|f| f.text.lines())
        .filter_map(|l| l.split_once(':'))
        .flat_map(|(names, _)| names.split(' '))
        .collect();
    let mut refusals = Vec::new();
    for (place, code) in papers.iter().flat_map(code) {
        let words: Vec<&str> = code.split_whitespace().collect();
        for pair in words.windows(2).filter(|pair| pair[0] == "make") {
            let target = pair[1].trim_end_matches([';', ')']);
            if target.starts_with(|c: char| c.is_ascii_lowercase())
                && !target.contains('=')
                && !targets.contains(target)
            {
                refusals.push(format!("{place}: make {target} is no target; see make help"));
            }
        }
    }
    refusals
}

/// Lines of fenced blocks and inline code, with their places.
fn code(file: &File) -> Vec<(String, &str)> {
    let mut fenced = false;
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let place = format!("{}:{}", file.path, number + 1);
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push((place, line.split(" # ").next().unwrap_or(line)));
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(|code| (place.clone(), code)));
        }
    }
    found
}

/// Links into the repository lead to files that there are, and to headings in them.
fn links(papers: &[File], exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in papers {
        for (at, _) in file.text.match_indices("](") {
            let rest = &file.text[at + 2..];
            let target = rest[..rest.find(')').unwrap_or(0)].split_whitespace().next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let whole = if path.is_empty() {
                PathBuf::from(&file.path)
            } else {
                normal(&Path::new(&file.path).with_file_name(path))
            };
            if !exists(&whole) {
                refusals.push(format!("{}: the link to {target} leads nowhere; mend or strike it", file.place(at)));
            } else if !anchor.is_empty()
                && papers.iter().any(|f| Path::new(&f.path) == whole && !headings(&f.text).contains(anchor))
            {
                refusals.push(format!("{}: {} has no heading #{anchor}", file.place(at), whole.display()));
            }
        }
    }
    refusals
}

fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean
}

/// Headings as GitHub names them.
fn headings(text: &str) -> BTreeSet<String> {
    let slug = |line: &str| -> String {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        kept.chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    text.lines().filter(|l| l.starts_with('#')).map(slug).collect()
}

/// Hosts of registries and paths of a machine: whoever builds elsewhere has others.
fn traces(files: &[File]) -> Vec<String> {
    let words = [
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["/tmp/", "wt"],
        ["crates", ".io"],
        ["proxy.golang", ".org"],
        ["sum.golang", ".org"],
        ["deb.debian", ".org"],
        ["docker", ".io/"],
        ["ghcr", ".io"],
        ["quay", ".io"],
    ]
    .map(|halves| halves.concat());
    let mut refusals = Vec::new();
    for file in files {
        for word in &words {
            for (at, _) in file.text.match_indices(word.as_str()) {
                // `/lockstep/work/` is not the folder at the root.
                let inner = word.starts_with('/')
                    && file.text[..at]
                        .ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '}' | ')' | '_' | '-'));
                if !inner {
                    refusals.push(format!(
                        "{}: {word} is of one machine or one registry; leave it to the client's own configuration",
                        file.place(at)
                    ));
                }
            }
        }
    }
    refusals
}

/// Something left to do needs somebody to do it.
fn left_to_do(files: &[File]) -> Vec<String> {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut refusals = Vec::new();
    for file in files {
        for mark in &marks {
            for (at, _) in file.text.match_indices(mark.as_str()) {
                let rest = &file.text[at + mark.len()..];
                let alone = !rest.starts_with(|c: char| c.is_alphanumeric())
                    && !file.text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.');
                if alone && !rest.starts_with('(') {
                    refusals.push(format!("{}: {mark} without an owner; write {mark}(name), or do it", file.place(at)));
                }
            }
        }
    }
    refusals
}

fn ids() -> BTreeSet<String> {
    let numbered = CRITERIA.iter().flat_map(|(prefix, last)| (1..=*last).map(move |n| format!("{prefix}{n}")));
    numbered.chain(LETTERED.map(str::to_owned)).collect()
}

/// The map of criteria: each id once, in two words or more, and every test that it names exists.
fn criteria(text: &str, exists: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut refusals = Vec::new();
    let mut seen = BTreeSet::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#')) {
        let place = format!("tests/criteria.txt:{}", number + 1);
        let (id, tests) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if !ids().contains(id) {
            refusals.push(format!("{place}: {id} is no criterion"));
        }
        if !seen.insert(id.to_owned()) {
            refusals.push(format!("{place}: {id} stands twice; join the lines"));
        }
        let (tests, missing) = tests.split_once(" -- ").unwrap_or((tests, ""));
        let tests: Vec<&str> = tests.split(',').map(str::trim).collect();
        if tests.contains(&"open") && tests.len() > 1 && missing.is_empty() {
            refusals.push(format!("{place}: {id} is open in part; say what is missing, ` -- what`"));
        }
        for test in tests.into_iter().filter(|t| *t != "open") {
            match test.split_once(':') {
                Some((kind, name)) if exists(kind, name) => {}
                Some(_) => refusals.push(format!(
                    "{place}: {test} does not exist; name a test that fails without the feature, or write open"
                )),
                None => refusals.push(format!("{place}: {test:?} is not kind:test; write open where there is none")),
            }
        }
    }
    refusals.extend(
        ids()
            .difference(&seen)
            .map(|id| format!("tests/criteria.txt: {id} is missing; write `{id} open` where no test covers it")),
    );
    refusals
}

/// Whether a test exists. A kind whose folder is not there yet cannot be looked at; `make check` runs it by name.
fn test_exists(kind: &str, name: &str) -> bool {
    let Some((_, place, how)) = KINDS.iter().find(|(known, ..)| *known == kind) else {
        return false;
    };
    let inside: Vec<&String> = paths().iter().filter(|p| p.starts_with(place)).collect();
    match *how {
        _ if inside.is_empty() => true,
        "txt" => inside.iter().any(|p| **p == format!("{place}/{name}.txt")),
        _ => inside.iter().any(|p| read(p).contains(&format!("{how} {name}("))),
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_default()
}

#[test]
fn the_readme_tells_the_structure() {
    none(&structure(&read("README.md"), paths()));
}

#[test]
fn commands_are_targets() {
    none(&commands(
        &files(markdown),
        &files(|p| p == "Makefile" || Path::new(p).extension().is_some_and(|e| e == "mk")),
    ));
}

/// Programs that people start by hand and that do not answer `--help`.
fn mute(of: &[File]) -> Vec<String> {
    let silent = of.iter().filter(|file| file.text.starts_with("#!") && !file.text.contains("--help"));
    silent.map(|file| format!("{}: does not know --help; print the comment at its head", file.path)).collect()
}

#[test]
fn programs_answer_help() {
    none(&mute(&files(|path| path.starts_with("hack/") && !markdown(path))));
    refused(&mute(&one("hack/new", "#!/usr/bin/env bash\n# What it is for.\nrm -r x\n")), "does not know --help");
}

#[test]
fn links_resolve() {
    none(&links(&files(markdown), |path| root().join(path).exists()));
}

#[test]
fn no_machine_left_a_trace() {
    // Lock files are written by their clients, and hold what those need.
    none(&traces(&files(|p| {
        !matches!(Path::new(p).file_name().and_then(|n| n.to_str()), Some("Cargo.lock" | "go.sum"))
    })));
}

#[test]
fn nothing_is_left_to_nobody() {
    none(&left_to_do(&files(|_| true)));
}

#[test]
fn criteria_are_mapped() {
    none(&criteria(&read("tests/criteria.txt"), test_exists));
}

#[test]
fn untrue_papers_are_refused() {
    let readme = "## Project structure\n\n```\nsrc/      code\nsrc/decide  pure\nold/  gone\nbare/\n```\n";
    let paths = ["src/decide/x.rs", "src/api.rs", "bare/x", "LICENSE"].map(str::to_owned);
    refused(&structure(readme, &paths), "no line for src/api");
    refused(&structure(readme, &paths), "no line for LICENSE");
    refused(&structure(readme, &paths), "names old/");
    refused(&structure(readme, &paths), "bare/ is named and not explained");
    let makefile = one("Makefile", "test: build\n\techo\n");
    refused(&commands(&one("a.md", "run `AUTO=1 make demo` now"), &makefile), "make demo");
    refused(&commands(&one("a.md", "```\nmake tset\n```"), &makefile), "a.md:2");
    none(&commands(&one("a.md", "make sure, `make test`, `make test A=b`"), &makefile));
    refused(&links(&one("docs/a.md", "[x](../b.md)"), |_| false), "docs/a.md:1");
    refused(&links(&one("docs/a.md", "# One thing\n[x](#other)"), |_| true), "#other");
    none(&links(&one("docs/a.md", "# One thing\n[x](#one-thing) [y](../b.md)"), |p| p != Path::new("docs/b.md")));
    refused(&traces(&one("a.sh", &["cd /wo", "rk/x"].concat())), "a.sh:1");
    refused(&traces(&one("a.sh", &["https://static.crates", ".io"].concat())), "one registry");
    none(&traces(&one("a.md", "/lockstep/work/ and $HOME/x")));
    let mark = ["TO", "DO"].concat();
    refused(&left_to_do(&one("a.md", &format!("x\n{mark}: this"))), "a.md:2");
    none(&left_to_do(&one("a.md", &format!("{mark}(anna): this"))));
}

#[test]
fn untrue_criteria_are_refused() {
    let all = ids().into_iter().collect::<Vec<_>>().join(" open\n") + " open\n";
    none(&criteria(&all, |_, _| false));
    refused(&criteria(&all.replace("S0.1 open", "S0.1 unit:nothing"), |_, _| false), "does not exist");
    refused(&criteria(&all.replace("S0.1 open", "S0.1"), |_, _| true), "is not kind:test");
    refused(&criteria(&all.replace("S0.1 open", "S0.1 unit:a, open"), |_, _| true), "say what is missing");
    none(&criteria(&all.replace("S0.1 open", "S0.1 unit:a, open -- b, and c"), |_, _| true));
    refused(&criteria(&all.replace("S0.1 open\n", ""), |_, _| true), "S0.1 is missing");
    refused(&criteria(&(all.clone() + "S0.1 open"), |_, _| true), "stands twice");
    refused(&criteria(&(all + "S9.9 open"), |_, _| true), "no criterion");
    assert!(test_exists("chart", "optional_parts_are_off"));
    assert!(test_exists("unit", "back_off_doubles_up_to_its_limit") && !test_exists("unit", "nothing_of_the_kind"));
    assert!(!test_exists("hearsay", "x"));
}
