//! The HTTP API over the API server in memory: with the real operator and the real gateway behind it, agents that are
//! functions, and virtual time (`town`). Every answer is held against the OpenAPI document. Rights are a table here; those of
//! a real API server are in tests/apiserver, real pods in tests/e2e.

#![allow(clippy::unchecked_time_subtraction, reason = "later moments less earlier ones")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends by panicking, and a table is as long as its cases"
)]

mod acts;
mod bounds;
mod carry;
mod egress;
mod events;
mod flows;
mod lost;
mod notifications;
mod operator;
mod reads;
mod receiver;
mod sessions;
mod streams;
mod town;
mod traces;
mod unreadable;
