//! The brain: pure and total. Given what was observed and the time, it says what to do; it never does it.
//! No async, client, clock, randomness or environment in here.
//!
//! Reading order: `plan` (what may come out), `observed` (what goes in), `workflow` and `step_run` (the two decisions), `graph` (where a run
//! stands), `failure` and `gate` (how attempts and reviews end), then the small rooms they use.

pub mod agent;
pub mod build;
pub mod claim;
pub mod content;
pub mod decisions;
pub mod document;
pub mod failure;
pub mod gate;
pub mod graph;
pub mod history;
pub mod observed;
pub mod outcome;
pub mod output;
pub mod plan;
pub mod scope;
pub mod seen;
pub mod settled;
pub mod status;
pub mod step_run;
pub mod tally;
pub mod workflow;

pub use plan::{Effect, Kept, Notice, Plan};
