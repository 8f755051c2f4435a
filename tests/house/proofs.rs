//! Who may say that a decision is proven. In a cluster that is the guard that looks at the admission policies; on a laptop the
//! local person, whom no file that a cluster runs can make: `dev` lies above operator and gateway, and the field is private.

use crate::source::{File, files, rust};
use crate::{none, one, refused};

/// Files that may say so.
const PROVERS: [&str; 2] = ["src/cluster/guard.rs", "src/dev/person.rs"];
/// Files in which the local person is made and handed on.
const LOCAL: &str = "src/dev";

/// A verdict that is made, not looked at: it stands behind `Ok(`.
fn verdicts(files: &[File]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files.iter().filter(|file| !PROVERS.contains(&file.path.as_str())) {
        for (words, what) in [("Ok(Guard::Proven(", "makes a proof"), ("Proves for", "proves who decides")] {
            let found = file.code.match_indices(words).filter(|(at, _)| !file.in_tests(*at));
            refusals.extend(found.map(|(at, _)| {
                format!("{}: {what}; only {} may, hand theirs down", file.place(at), PROVERS.join(" and "))
            }));
        }
        if !file.path.starts_with(LOCAL) {
            let found = file.words("LocalPerson").into_iter();
            refusals.extend(found.map(|at| format!("{}: LocalPerson is of {LOCAL} alone", file.place(at))));
        }
    }
    refusals
}

/// Files that read what a Document holds by its field; all others get a `Content`, which is of what was pinned.
const READERS: [(&str, &str); 10] = [
    ("src/decide/content.rs", "makes it"),
    ("src/decide/document.rs", "says what a new one is"),
    ("src/gateway/document.rs", "makes the one that was reported"),
    ("src/cluster/world.rs", "leaves it out of the cache"),
    ("src/cluster/observe.rs", "leaves it out of what is observed"),
    ("src/cli/doc.rs", "shows it, compared, and drafts as they are"),
    ("src/cli/subject.rs", "what is under review, compared"),
    ("src/cli/step_page.rs", "shows the subject"),
    ("src/cli/review.rs", "the difference to the round before, a help for the eye"),
    ("src/dev/ending.rs", "writes what was published on a laptop"),
];

/// A Document is worth nothing by its name: who reads the field reads what lies there now.
fn readers(files: &[File]) -> Vec<String> {
    let may = |file: &File| READERS.iter().any(|(path, _)| *path == file.path) || !file.path.starts_with("src/");
    let mut refusals = Vec::new();
    for file in files.iter().filter(|file| !may(file)) {
        let found = file.code.match_indices("spec.content").filter(|(at, _)| !file.in_tests(*at));
        refusals.extend(found.map(|(at, _)| {
            format!(
                "{}: reads what a Document holds; get it from decide::content::Content, or write down why",
                file.place(at)
            )
        }));
    }
    refusals
}

#[test]
fn what_a_document_holds_is_had_only_of_what_was_pinned() {
    let source = files(rust);
    for (reader, _) in READERS {
        let file = source.iter().find(|file| file.path == reader).expect("a reader");
        let reads = file.code.match_indices("spec.content").any(|(at, _)| !file.in_tests(at));
        assert!(reads, "{reader} reads no content: strike it from the list");
    }
    none(&readers(&source));
    refused(&readers(&one("src/http/x.rs", "fn f() { document.spec.content.len() }")), "reads what a Document holds");
    none(&readers(&one("src/http/x.rs", "fn f() { content.text() }")));
}

#[test]
fn a_decision_is_proven_by_the_policies_or_on_a_laptop() {
    let source = files(rust);
    for prover in PROVERS {
        let file = source.iter().find(|file| file.path == prover).expect("a prover");
        assert!(file.code.contains("Ok(Guard::Proven("), "{prover} proves nothing: the check is vacuous");
    }
    none(&verdicts(&source));
}

#[test]
fn other_proofs_are_refused() {
    refused(&verdicts(&one("src/controllers/x.rs", "fn f() { Ok(Guard::Proven(s)) }")), "makes a proof");
    refused(&verdicts(&one("src/cluster/x.rs", "impl Proves for Anybody {}")), "proves who decides");
    refused(&verdicts(&one("src/cli/x.rs", "use crate::dev::person::LocalPerson;")), "LocalPerson is of src/dev alone");
    none(&verdicts(&one("src/decide/x.rs", "fn f() { match g { Guard::Proven(s) => s } }")));
}
