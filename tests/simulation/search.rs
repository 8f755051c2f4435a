//! Which worlds are run, on two threads: first those that once failed (`tests/seeds.txt`), then a range of seeds, the same every
//! time, or, for `make explore`, one seed after the other until the time is up. The first that fails is told whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const THREADS: usize = 2;

/// What a seed came to.
pub struct Told {
    pub violation: Option<String>,
    pub story: Vec<String>,
    pub writes: usize,
    pub started: usize,
    /// Features that were seen at work.
    pub had: BTreeSet<&'static str>,
}

pub struct Suite {
    /// In `tests/seeds.txt`, and of the test.
    pub name: &'static str,
    /// How its variables begin: PREFIX_SEED=n tells one world, PREFIX_FIRST_SEED and PREFIX_SEEDS choose a range.
    pub prefix: &'static str,
    /// How many worlds are run unless a variable says otherwise.
    pub seeds: u64,
    /// So many worlds have every feature at work.
    pub enough: u64,
    pub features: Vec<&'static str>,
    pub tell: fn(u64, bool) -> Told,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The seeds of a suite that ever failed, in whatever version.
fn failed_once(suite: &str) -> Vec<u64> {
    let text = include_str!("../seeds.txt");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let of_suite = lines.filter_map(|line| line.strip_prefix(suite)?.strip_prefix(' '));
    of_suite
        .map(|line| {
            let seed = line.split_whitespace().next().unwrap_or_default();
            seed.parse().unwrap_or_else(|_| panic!("tests/seeds.txt: {suite} {line}: the second word is no seed"))
        })
        .collect()
}

impl Suite {
    fn setting(&self, name: &str) -> Option<u64> {
        number(&format!("{}_{name}", self.prefix))
    }

    /// Panics where a world breaks a promise, and says how to tell it again.
    pub fn run(&self) {
        // Worlds break on purpose, thousands of times; what breaks the test is said at its end.
        std::panic::set_hook(Box::new(|_| {}));
        let outcome = self.setting("SEED").map_or_else(|| self.search(), |seed| self.aloud(seed, None));
        let _ = std::panic::take_hook();
        if let Err(fault) = outcome {
            panic!("{fault}");
        }
    }

    fn aloud(&self, seed: u64, before: Option<&str>) -> Result<(), String> {
        let told = (self.tell)(seed, true);
        println!("{}", told.story.join("\n"));
        let (name, prefix) = (self.name, self.prefix);
        println!("\nagain: {prefix}_SEED={seed} cargo test --test {name} -- --nocapture");
        println!("once it is mended, a line for tests/seeds.txt: {name} {seed} WHAT IT SHOWED");
        match (told.violation, before) {
            (Some(violation), _) => Err(format!("seed {seed}: {violation}")),
            (None, Some(before)) => {
                Err(format!("seed {seed}: it held the second time, so it is not the same story: {before}"))
            }
            (None, None) => Ok(()),
        }
    }

    fn search(&self) -> Result<(), String> {
        let known = failed_once(self.name);
        let seconds = number("LOCKSTEP_EXPLORE_SECONDS");
        let first = self.setting("FIRST_SEED").unwrap_or(0);
        let count = self.setting("SEEDS").unwrap_or(self.seeds);
        let began = Instant::now();
        let over = |at: usize| match seconds {
            Some(seconds) => began.elapsed() >= Duration::from_secs(seconds),
            None => at >= known.len() + usize::try_from(count).unwrap_or(usize::MAX),
        };
        let (next, bad) = (AtomicUsize::new(0), AtomicU64::new(u64::MAX));
        let (worlds, writes, starts) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let had: Mutex<BTreeMap<&str, usize>> = Mutex::new(self.features.iter().map(|f| (*f, 0)).collect());
        let violations: Mutex<BTreeMap<u64, String>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while bad.load(Ordering::Relaxed) == u64::MAX {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if over(at) {
                            break;
                        }
                        let seed = known.get(at).copied().unwrap_or_else(|| first + (at - known.len()) as u64);
                        let told = (self.tell)(seed, false);
                        worlds.fetch_add(1, Ordering::Relaxed);
                        writes.fetch_add(told.writes, Ordering::Relaxed);
                        starts.fetch_add(told.started, Ordering::Relaxed);
                        let mut had = had.lock().unwrap();
                        told.had.iter().for_each(|feature| *had.entry(feature).or_default() += 1);
                        drop(had);
                        if let Some(violation) = told.violation {
                            bad.fetch_min(seed, Ordering::Relaxed);
                            violations.lock().unwrap().insert(seed, violation);
                        }
                    }
                });
            }
        });
        let (worlds, writes, starts) = (worlds.into_inner(), writes.into_inner(), starts.into_inner());
        println!("{worlds} seeds, {writes} writes, {starts} commands started, {:.0?}", began.elapsed());
        let bad = bad.into_inner();
        if bad < u64::MAX {
            let before = violations.into_inner().unwrap().remove(&bad).unwrap_or_default();
            return self.aloud(bad, Some(&before));
        }
        let had = had.into_inner().unwrap();
        let counts: Vec<String> = had.iter().map(|(feature, worlds)| format!("{feature} {worlds}")).collect();
        println!("worlds that had it at work: {}", counts.join(", "));
        let absent: Vec<&&str> = had.iter().filter(|(_, worlds)| **worlds == 0).map(|(feature, _)| feature).collect();
        if worlds as u64 >= self.enough && !absent.is_empty() {
            return Err(format!("no world had {absent:?}"));
        }
        Ok(())
    }
}
