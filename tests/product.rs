//! T2: the product itself in many small worlds in which everything goes wrong, see `product/sim.rs`.
//! LOCKSTEP_PRODUCT_SEEDS=N runs that many, LOCKSTEP_PRODUCT_SEED=n one, with its whole story.

#![allow(
    clippy::expect_used,
    clippy::fn_params_excessive_bools,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "all of it is test"
)]

#[path = "product/sim.rs"]
mod sim;

use sim::judge::course::FEATURES;
use sim::search::Suite;
use sim::{run, talk};

#[test]
fn whatever_happens_to_the_product_the_promises_hold() {
    let features = FEATURES.into_iter().chain(talk::FEATURES).collect();
    // What two free cores do in a minute and a half.
    Suite { name: "product", prefix: "LOCKSTEP_PRODUCT", seeds: 150, enough: 1_000, features, tell: run::tell }.run();
}

/// A failing seed can be looked at again: its story is always the same, byte for byte.
#[test]
fn the_same_seed_tells_the_same_story() {
    let mut lines = 0;
    for seed in 0..8 {
        let (one, other) = (run::tell(seed, true).story, run::tell(seed, true).story);
        let differs = one.iter().zip(&other).position(|(a, b)| a != b);
        assert!(differs.is_none(), "seed {seed}: {:?} and {:?}", one[differs.unwrap()], other[differs.unwrap()]);
        assert_eq!(one.len(), other.len(), "seed {seed}");
        lines += one.len();
    }
    assert!(lines > 500, "these seeds have no story: {lines} lines");
}
