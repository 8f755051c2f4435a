//! Every Event that the operator writes is told in docs/operations.md, so that the night shift can look it up.

use crate::source::{File, files, root};
use crate::{none, one, refused};

const PAGE: &str = "docs/operations.md";

/// Reasons in `.notice("Reason", ...)`, `.warn("Reason", ...)` and `.refuse("Reason", ...)` that the page does not name.
fn untold(sources: &[File], page: &str) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in sources {
        for call in [".notice(", ".warn(", ".refuse("] {
            let calls = file.code.match_indices(call).filter(|(at, _)| !file.in_tests(*at));
            for (at, _) in calls {
                let argument = file.text[at + call.len()..].trim_start();
                let Some(reason) = argument.strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
                if !page.contains(&format!("`{reason}`")) {
                    refusals.push(format!("{}: the Event {reason} is not in {PAGE}; add it there", file.place(at)));
                }
            }
        }
    }
    refusals
}

#[test]
fn every_event_is_told() {
    let page = std::fs::read_to_string(root().join(PAGE)).expect("the page");
    none(&untold(&files(|path| path.starts_with("src/decide")), &page));
}

#[test]
fn an_untold_event_is_refused() {
    refused(&untold(&one("src/decide/x.rs", "fn f() { plan.warn(\n\"GoneAstray\", x); }"), "`Started`"), "GoneAstray");
}
