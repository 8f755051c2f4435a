//! The house rules of src/ARCHITECTURE.md as tests over the source's text. Each check is a pure function from texts to
//! refusals (`file:line: what; remedy`), used twice: on the repository, which must yield none, and on a crafted text,
//! which must yield one, so that no check can be vacuous.
//!
//! Only what no lint can say: what clippy knows (lines and parameters of functions, clocks, sleeping, randomness, `json!`,
//! waivers without a reason) stands in Cargo.toml and .clippy.toml. `source` reads and masks Rust, `floors` and `circles`
//! look at who imports whom, `budgets` at sizes, `papers` at the texts for people, `events` at what the night shift can
//! look up, `proofs` at who may prove a decision, `alone` at how lists are read.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends by panicking, and a table is as long as its cases"
)]
#![expect(clippy::expect_used, reason = "a check that cannot look must fail")]

mod alone;
mod budgets;
mod circles;
mod conditions;
mod events;
mod floors;
mod papers;
mod proofs;
mod source;

use source::File;

/// Fails with every refusal, one a line.
fn none(refusals: &[String]) {
    assert!(refusals.is_empty(), "\n{}\n", refusals.join("\n"));
}

/// The crafted text must be refused for these words.
fn refused(refusals: &[String], words: &str) {
    assert!(refusals.iter().any(|r| r.contains(words)), "nothing was refused for {words:?}: {refusals:?}");
}

fn one(path: &str, text: &str) -> Vec<File> {
    vec![File::new(path, text)]
}
