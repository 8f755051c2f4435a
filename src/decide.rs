//! The brain: pure and total. Given what was observed and the time, it says what to do; it never does it.
//! No async, client, clock, randomness or environment in here.
//!
//! Reading order: `plan` (what may come out), `observed` (what goes in), `workflow` and `step_run` (the two decisions), `graph` (where a run
//! stands), `failure` and `gate` (how attempts and reviews end), `trigger` and `event` (what starts runs), then the small rooms they use.

pub mod agent;
pub mod approval;
pub mod budget;
pub mod build;
pub mod claim;
pub mod content;
pub mod decisions;
pub mod document;
pub mod egress;
pub mod event;
pub mod failure;
pub mod gate;
pub mod graph;
pub mod history;
pub mod mail;
pub mod memory;
pub mod notification;
pub mod observed;
pub mod outcome;
pub mod output;
pub mod plan;
pub mod question;
pub mod retry;
pub mod scope;
pub mod seen;
pub mod settled;
pub mod status;
pub mod step_run;
pub mod tally;
pub mod target;
pub mod terms;
pub mod timeline;
pub mod trace;
pub mod trigger;
pub mod unreadable;
pub mod workflow;

pub use plan::{DeletableKind, Effect, Notice, Plan};
