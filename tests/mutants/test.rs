//! Each deliberate bug of this folder must be found: by a story, by the simulation or by the model of fence and claim. A bug
//! is a patch of the sources with a switch in it; `hack/mutants` makes a tree with all of them, in which this test runs:
//!
//!     make mutants
//!
//! LOCKSTEP_MUTANT=name tries one of them, LOCKSTEP_MUTANTS=2/5 every fifth from the third on.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::fn_params_excessive_bools,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "all of it is test; of the model this uses one part"
)]

#[path = "../shim/attempt.rs"]
mod attempt;
#[path = "../model/fence.rs"]
mod fence;
#[path = "../model/lease.rs"]
mod lease;
#[path = "../model/overtaken.rs"]
mod overtaken;
#[path = "../product/sim.rs"]
mod product;
#[path = "../simulation/sim.rs"]
mod sim;
#[path = "../scenarios/told.rs"]
mod stories;

use std::sync::atomic::{AtomicU64, Ordering};

use lockstep::mutant;

/// Seeds that a bug may hide from: in worlds of the mirror, and in those of the product, which take longer.
const SEEDS: u64 = 4_000;
const PRODUCT_SEEDS: u64 = 2_000;

/// What a world comes to, where it violates something.
type Tell = fn(u64) -> Option<String>;

/// The seed that showed it last, if it still does, else the first of so many.
fn search(last: Option<u64>, seeds: u64, tell: Tell) -> Option<(u64, String)> {
    if let Some((seed, words)) = last.and_then(|seed| Some((seed, tell(seed)?))) {
        return Some((seed, words));
    }
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

/// Where a bug shows, which its patch names: stories, where worlds that show it are rare; the model of fence and claim (no
/// world starts a shim twice in one pod), that of the lease, calls of the gateway that are overtaken, worlds of the mirror, which are quick, or worlds of the product.
/// The seed or the story, where there is one, and what was seen.
fn found_by(place: &str, last: Option<u64>) -> Option<(String, String)> {
    let seeded = |found: Option<(u64, String)>| found.map(|(seed, words)| (seed.to_string(), words));
    match place {
        "stories" => stories::find_difference(),
        "model" => fence::find_violation().map(|words| (String::new(), words)),
        "overtaken" => overtaken::find_violation().map(|words| (String::new(), words)),
        "lease" => lease::find_violation(2).map(|words| (String::new(), words)),
        "simulation" => seeded(search(last, SEEDS, |seed| sim::run::tell(seed, false).violation)),
        "product" => seeded(search(last, PRODUCT_SEEDS, |seed| product::run::tell(seed, false).violation)),
        _ => panic!("no bug is found by '{place}': stories, model, overtaken, lease, simulation or product"),
    }
}

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants")
}

/// Where it is found and by which seed it was last, as its patch says (`Found by: PLACE SEED`); or the place that
/// LOCKSTEP_MUTANTS_IN names, for all.
fn place_of(mutant: &str) -> (String, Option<u64>) {
    if let Ok(place) = std::env::var("LOCKSTEP_MUTANTS_IN") {
        return (place, None);
    }
    let patch = std::fs::read_to_string(folder().join(format!("{mutant}.patch"))).expect("its patch");
    let line = patch.lines().find_map(|line| line.strip_prefix("Found by: ")).expect("a line `Found by: PLACE`");
    let (place, seed) = line.split_once(' ').map_or((line, None), |(place, seed)| (place, Some(seed)));
    (place.to_owned(), seed.map(|seed| seed.parse().expect("a seed after the place")))
}

/// The names of the patches, in order.
fn all() -> Vec<String> {
    let files = std::fs::read_dir(folder()).expect("the folder of the patches");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("a name in UTF-8"));
    let mut names: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".patch")?.to_owned())).collect();
    names.sort();
    names
}

/// Those that are tried.
fn chosen(all: &[String]) -> Vec<&str> {
    let only = std::env::var("LOCKSTEP_MUTANT").ok();
    let share = std::env::var("LOCKSTEP_MUTANTS").unwrap_or_else(|_| "0/1".to_owned());
    let (first, step) = share.split_once('/').expect("LOCKSTEP_MUTANTS is like 2/5");
    let (first, step) = (first.parse().expect("a number"), step.parse().expect("a number"));
    let of_share = all.iter().map(String::as_str).skip(first).step_by(step);
    of_share.filter(|mutant| only.as_ref().is_none_or(|name| name == mutant)).collect()
}

#[test]
fn every_mutant_is_found() {
    assert_eq!(stories::find_difference(), None, "without any bug");
    std::panic::set_hook(Box::new(|_| {}));
    let all = all();
    let (chosen, mut missed) = (chosen(&all), Vec::new());
    println!("{} of {} mutants", chosen.len(), all.len());
    println!("{:<24} {:<12} {:>6}  what was seen", "mutant", "found by", "where");
    assert!(!chosen.is_empty(), "no mutant is chosen");
    for mutant in chosen {
        let (place, last) = place_of(mutant);
        mutant::switch(Some(mutant));
        let found = found_by(&place, last);
        mutant::switch(None);
        let (seed, words) = found.clone().unwrap_or_default();
        let words = if found.is_some() { words.as_str() } else { "NOT FOUND" };
        let short: String = words.chars().take(120).collect();
        println!("{mutant:<24} {place:<12} {seed:>6}  {}", short.lines().next().unwrap_or_default());
        if found.is_none() {
            missed.push(mutant);
        }
        if let (Some(last), Some((seed, _))) = (last, &found)
            && last.to_string() != *seed
        {
            println!("  seed {last} shows it no more: write `Found by: {place} {seed}` into tests/mutants/{mutant}.patch");
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
