//! `kubectl lockstep dev` as its own process, with agents that are processes: whole runs, one agent, a folder that is taken up
//! again after every kind of end, the examples, and the commands of the pages. No cluster.

#![allow(clippy::expect_used, clippy::panic, clippy::too_many_lines, reason = "a test ends by panicking")]

mod agents;
mod authority;
mod flows;
mod kills;
mod large;
#[allow(dead_code, reason = "tests/e2e tells its port")]
mod model;
mod papers;
mod place;
mod prompt;
mod prompt_trust;
mod terminal;
