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

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use sim::judge::course::FEATURES;
use sim::run;

const SEEDS: u64 = 20_000;
/// So many worlds have everything at work that there is.
const ENOUGH: u64 = 20_000;
const THREADS: usize = 2;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn whatever_happens_the_promises_hold() {
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = number("LOCKSTEP_SEED") {
        let told = run::tell(seed, true);
        println!("{}", told.story.join("\n"));
        assert!(told.violation.is_none(), "seed {seed}: {}", told.violation.unwrap_or_default());
        return;
    }
    let (first, count) = (number("LOCKSTEP_FIRST_SEED").unwrap_or(0), number("LOCKSTEP_SEEDS").unwrap_or(SEEDS));
    let (next, bad) = (AtomicU64::new(first), AtomicU64::new(u64::MAX));
    let (writes, starts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let had: Mutex<BTreeMap<&str, usize>> = Mutex::new(FEATURES.into_iter().map(|f| (f, 0)).collect());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while bad.load(Ordering::Relaxed) == u64::MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let told = run::tell(seed, false);
                    writes.fetch_add(told.writes, Ordering::Relaxed);
                    starts.fetch_add(told.started, Ordering::Relaxed);
                    let mut had = had.lock().unwrap();
                    told.had.iter().for_each(|feature| *had.entry(feature).or_default() += 1);
                    drop(had);
                    if told.violation.is_some() {
                        bad.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let bad = bad.load(Ordering::Relaxed);
    if bad == u64::MAX {
        let (writes, starts) = (writes.load(Ordering::Relaxed), starts.load(Ordering::Relaxed));
        println!("{count} seeds, {writes} writes, {starts} commands started, {:.0?}", began.elapsed());
        let had = had.into_inner().unwrap();
        let counts: Vec<String> = had.iter().map(|(feature, worlds)| format!("{feature} {worlds}")).collect();
        println!("worlds that had it at work: {}", counts.join(", "));
        let absent: Vec<&&str> = had.iter().filter(|(_, worlds)| **worlds == 0).map(|(feature, _)| feature).collect();
        assert!(count < ENOUGH || absent.is_empty(), "no world had {absent:?}");
        return;
    }
    let told = run::tell(bad, true);
    println!("{}", told.story.join("\n"));
    println!("\nagain: LOCKSTEP_SEED={bad} cargo test --test simulation -- --nocapture");
    panic!("seed {bad}: {}", told.violation.unwrap_or_else(|| "it held the second time: not the same story".into()));
}
