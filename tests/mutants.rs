//! Each deliberate bug of `src/mutant.rs` must be found, by the simulation or by the model of fence and claim:
//!
//!     cargo test --features mutants --test mutants -- --nocapture
//!
//! LOCKSTEP_MUTANT=Name tries one of them, LOCKSTEP_MUTANTS=2/5 every fifth from the third on.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::fn_params_excessive_bools,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "all of it is test; of the model this uses one part"
)]

#[path = "model/fence.rs"]
mod fence;
#[path = "product/sim.rs"]
mod product;
#[path = "simulation/sim.rs"]
mod sim;

use std::sync::atomic::{AtomicU64, Ordering};

use lockstep::mutant::{self, Mutant};

/// Seeds that a bug may hide from: in worlds of the mirror, and in those of the product, which take longer.
const SEEDS: u64 = 4_000;
const PRODUCT_SEEDS: u64 = 2_000;

/// Bugs of the claim itself are the model's: no seed of the simulation starts a shim twice in one pod.
const OF_THE_MODEL: [Mutant; 1] = [Mutant::ClaimIdNotCompared];

/// What a world comes to, where it violates something.
type Tell = fn(u64) -> Option<String>;

fn search(seeds: u64, tell: Tell) -> Option<(u64, String)> {
    let (next, bad) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while bad.load(Ordering::Relaxed) == u64::MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    if tell(seed).is_some() {
                        bad.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let seed = bad.load(Ordering::Relaxed);
    (seed < seeds).then(|| (seed, tell(seed).unwrap_or_default()))
}

/// LOCKSTEP_MUTANTS_IN=product looks in worlds of the product, else in those of the mirror.
fn by_simulation() -> Option<(u64, String)> {
    if std::env::var("LOCKSTEP_MUTANTS_IN").is_ok_and(|place| place == "product") {
        return search(PRODUCT_SEEDS, |seed| product::run::tell(seed, false).violation);
    }
    search(SEEDS, |seed| sim::run::tell(seed, false).violation)
}

/// Those that are tried.
fn chosen() -> Vec<Mutant> {
    let only = std::env::var("LOCKSTEP_MUTANT").ok();
    let share = std::env::var("LOCKSTEP_MUTANTS").unwrap_or_else(|_| "0/1".to_owned());
    let (first, step) = share.split_once('/').expect("LOCKSTEP_MUTANTS is like 2/5");
    let (first, step) = (first.parse().expect("a number"), step.parse().expect("a number"));
    let all = Mutant::ALL.into_iter().skip(first).step_by(step);
    all.filter(|m| only.as_ref().is_none_or(|name| format!("{m:?}") == *name)).collect()
}

#[test]
fn every_mutant_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let (chosen, mut missed) = (chosen(), Vec::new());
    println!("{} of {} mutants", chosen.len(), Mutant::ALL.len());
    println!("{:<22} {:<12} {:>6}  what was seen", "mutant", "found by", "seed");
    assert!(!chosen.is_empty(), "no mutant is chosen");
    for mutant in chosen {
        mutant::switch(Some(mutant));
        let (by, seed, words) = if OF_THE_MODEL.contains(&mutant) {
            ("model", String::new(), fence::find_violation())
        } else {
            let found = by_simulation();
            let seed = found.as_ref().map(|(seed, _)| seed.to_string()).unwrap_or_default();
            ("simulation", seed, found.map(|(_, words)| words))
        };
        mutant::switch(None);
        let short: String = words.as_deref().unwrap_or("NOT FOUND").chars().take(120).collect();
        println!("{:<22} {by:<12} {seed:>6}  {}", format!("{mutant:?}"), short.lines().next().unwrap_or_default());
        if words.is_none() {
            missed.push(mutant);
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
