//! Every reason of a condition that the operator writes is told in docs/operations.md, so that whoever reads one can look it up.

use crate::source::{File, closing, files, is_word, root};
use crate::{none, one, refused};

const PAGE: &str = "docs/operations.md";
/// The calls that set a condition, with its reason among their arguments, and what a reason is handed on in.
const CALLS: [&str; 9] = [
    "condition::set(",
    ".condition(",
    ".pend(",
    ".launched(",
    "status::invalid(",
    "status::pending(",
    "WaitReason {",
    "Err((",
    "return (",
];
/// The conditions themselves, which have rows of their own.
const KINDS: [&str; 7] = ["Succeeded", "Waiting", "Reconciling", "Stalled", "Failing", "Started", "Ready"];

/// A word such as `AgentNotFound`.
fn is_reason(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.len() > 4
        && text.chars().all(|c| c.is_ascii_alphanumeric())
        && text.chars().any(|c| c.is_ascii_lowercase())
        && !KINDS.contains(&text)
}

/// What `const NAME: &str = "Value";` says anywhere in these files.
fn constants(sources: &[File]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for file in sources {
        for (at, _) in file.code.match_indices("const ") {
            let line = file.text[at + 6..].lines().next().unwrap_or_default();
            if let Some((name, value)) =
                line.split_once(": &str = \"").and_then(|(n, v)| Some((n, v.split_once('"')?.0)))
            {
                found.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    found
}

fn untold(sources: &[File], page: &str) -> Vec<String> {
    let constants = constants(sources);
    let mut refusals = Vec::new();
    for file in sources {
        for call in CALLS {
            for (at, _) in file.code.match_indices(call).filter(|(at, _)| !file.in_tests(*at)) {
                let open = at + call.len() - 1;
                let end = closing(&file.code, open);
                let written = file.text[open..end].split('"').skip(1).step_by(2).map(str::to_owned);
                let words = file.code[open..end].split(|c: char| !is_word(c));
                let named = words.flat_map(|word| constants.iter().filter(move |(name, _)| name == word));
                for reason in written.chain(named.map(|(_, value)| value.clone())).filter(|text| is_reason(text)) {
                    if !page.contains(&format!("`{reason}`")) {
                        refusals.push(format!(
                            "{}: the reason {reason} of a condition is not in {PAGE}; add it there",
                            file.place(at)
                        ));
                    }
                }
            }
        }
    }
    refusals
}

#[test]
fn every_reason_is_told() {
    let page = std::fs::read_to_string(root().join(PAGE)).expect("the page");
    let sources = files(|path| path.starts_with("src/decide"));
    assert!(untold(&sources, "").len() > 20, "the check is vacuous");
    none(&untold(&sources, &page));
}

#[test]
fn an_untold_reason_is_refused() {
    let page = "`Launched`";
    for (text, reason) in [
        ("fn f() { self.pend(\"GoneAstray\", &why); }", "GoneAstray"),
        ("const LOST: &str = \"GoneAstray\";\nfn f() { self.pend(LOST, &why); }", "GoneAstray"),
        ("fn f() { condition::set(\nlist, \"Ready\", Truth::False, \"GoneAstray\", \"\", at); }", "GoneAstray"),
        ("fn f() { return Err((\n\"GoneAstray\", format!(\"a (b\"))); }", "GoneAstray"),
        ("fn f() { push(WaitReason { reason: \"GoneAstray\".to_owned(), message }); }", "GoneAstray"),
    ] {
        refused(&untold(&one("src/decide/x.rs", text), page), reason);
    }
    none(&untold(&one("src/decide/x.rs", "fn f() { self.launched(Truth::True, \"Launched\", \"\"); }"), page));
}
