//! T2: many small worlds in which everything goes wrong, see `simulation/sim.rs`. LOCKSTEP_SEEDS=N runs that many,
//! LOCKSTEP_SEED=n one, with its whole story.

#![allow(
    clippy::expect_used,
    clippy::fn_params_excessive_bools,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "all of it is test"
)]

#[path = "simulation/sim.rs"]
mod sim;

use sim::judge::course::FEATURES;
use sim::run;
use sim::search::Suite;

#[test]
fn whatever_happens_the_promises_hold() {
    let features = FEATURES.to_vec();
    Suite { name: "simulation", prefix: "LOCKSTEP", seeds: 20_000, enough: 20_000, features, tell: run::tell }.run();
}
