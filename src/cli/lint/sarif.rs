//! What `lint` found in the form that code scanning reads: SARIF 2.1.0 of OASIS. GitHub, GitLab and editors show it beside the
//! lines of a change.

#![expect(clippy::disallowed_macros, reason = "another standard's JSON")]

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::{Finding, Level, Report};

/// Findings that GitHub takes of one upload; more would be refused altogether.
const RESULTS: usize = 5000;
/// What does not stand for itself in the path of a URI.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub fn log(report: &Report) -> Value {
    let rule = |level: Level, meaning: &str| {
        json!({"id": format!("lockstep-{}", level.word()), "shortDescription": {"text": meaning},
            "defaultConfiguration": {"level": level.word()}})
    };
    let rules = [
        rule(Level::Error, "The API server or the operator would refuse it."),
        rule(Level::Warning, "It would be taken, and most likely is not what was meant."),
    ];
    // A note says that an object is of another kind, which is nothing to show in a review.
    let told = report.findings.iter().filter(|finding| finding.level != Level::Note);
    let results: Vec<Value> = told.take(RESULTS).map(result).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "kubectl-lockstep-lint", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn result(finding: &Finding) -> Value {
    let level = finding.level.word();
    let object = if finding.object.is_empty() { String::new() } else { format!("{}: ", finding.object) };
    // A file is named from where lint ran, which is the root of the repository in a pipeline.
    let file = finding.file.strip_prefix("./").unwrap_or(&finding.file);
    let uri = utf8_percent_encode(file, PATH).to_string();
    json!({
        "ruleId": format!("lockstep-{level}"),
        "level": level,
        "message": {"text": format!("{object}{}", finding.message)},
        "locations": [{"physicalLocation": {
            "artifactLocation": {"uri": uri},
            "region": {"startLine": finding.line.unwrap_or(1).max(1)},
        }}],
    })
}
