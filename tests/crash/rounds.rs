//! Which writes are met in what order, and the table of what came of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

use super::proxy::{Fault, POSITIONS, Position, Write};
use super::stage::Outcome;

/// Differences told of one round.
const SHOWN: usize = 20;

/// How often each is met.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Often {
    /// Each write at one position, in turn; kinds that are written less than three times at all.
    Once,
    /// Each write at all positions.
    Thrice,
}

/// One kind of write after the other, each kind's writes in an order that the seed gives: whatever time there is meets
/// all kinds at all positions first.
pub fn planned(writes: &[Write], often: Often, seed: u64) -> Vec<Fault> {
    let mut state = seed;
    let mut queues: Vec<Vec<Fault>> = Vec::new();
    for (kind, count) in kinds(writes) {
        let mut numbers: Vec<usize> = (1..=count).collect();
        for last in (1..numbers.len()).rev() {
            let other = usize::try_from(next(&mut state) % (last as u64 + 1)).unwrap_or_default();
            numbers.swap(last, other);
        }
        let fault = |number: usize, position| Fault { kind: kind.clone(), number, position };
        let turns = if often == Often::Thrice || count < POSITIONS.len() { POSITIONS.len() } else { 1 };
        let all = (0..turns).flat_map(|turn| numbers.iter().enumerate().map(move |(place, n)| (place + turn, *n)));
        queues.push(all.map(|(place, n)| fault(n, POSITIONS[place % POSITIONS.len()])).rev().collect());
    }
    let mut plan = Vec::new();
    while queues.iter().any(|queue| !queue.is_empty()) {
        plan.extend(queues.iter_mut().filter_map(Vec::pop));
    }
    plan
}

/// `POST jobs:3:Committed`
pub fn one(text: &str) -> Result<Fault> {
    let words: Vec<&str> = text.split(':').collect();
    let [kind, number, position] = words.as_slice() else { bail!("{text}: not like POST jobs:3:Committed") };
    let position = POSITIONS.into_iter().find(|p| format!("{p:?}") == *position).context("no such position")?;
    Ok(Fault { kind: (*kind).to_owned(), number: number.parse()?, position })
}

/// How many writes of each kind there are.
fn kinds(writes: &[Write]) -> BTreeMap<String, usize> {
    writes.iter().fold(BTreeMap::new(), |mut kinds, write| {
        *kinds.entry(write.kind()).or_insert(0) += 1;
        kinds
    })
}

/// splitmix64
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Default)]
pub struct Table {
    /// Rounds by what was met and where.
    rows: BTreeMap<(String, Position), usize>,
    missed: usize,
    seconds: Vec<f64>,
    failures: Vec<String>,
}

impl Table {
    pub fn enter(&mut self, fault: &Fault, outcome: Outcome) {
        let Outcome { hit, differences, seconds } = outcome;
        self.seconds.push(seconds);
        let met = hit.as_ref().map(Write::kind);
        if !differences.is_empty() {
            let place = hit
                .as_ref()
                .map_or_else(|| "was not reached".to_owned(), |w| format!("met {}/{}", w.namespace, w.name));
            let Fault { kind, number, position } = fault;
            let shown = differences.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("\n  ");
            let more = differences.len().saturating_sub(SHOWN);
            let text = format!("{kind}:{number}:{position:?} {place}\n  {shown}\n  and {more} more");
            println!("{text}");
            self.failures.push(text);
        }
        match met {
            Some(met) => *self.rows.entry((met, fault.position)).or_insert(0) += 1,
            None => self.missed += 1,
        }
    }

    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    pub fn hits(&self) -> usize {
        self.rows.values().sum()
    }

    pub fn text(&self, writes: &[Write], planned: usize, seed: u64) -> String {
        let mut kinds = kinds(writes);
        for (met, _) in self.rows.keys() {
            kinds.entry(met.clone()).or_insert(0);
        }
        let mut text = format!("{:34}{:>8}", "write", "a round");
        for position in POSITIONS {
            text.push_str(&format!("{:>12}", format!("{position:?}")));
        }
        for (kind, count) in &kinds {
            text.push_str(&format!("\n{kind:34}{count:>8}"));
            for position in POSITIONS {
                text.push_str(&format!("{:>12}", self.rows.get(&(kind.clone(), position)).unwrap_or(&0)));
            }
        }
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        let longest = sorted.last().copied().unwrap_or_default();
        text.push_str(&format!(
            "\n{} of {planned} planned rounds, seed {seed}; an undisturbed round has {} writes; {} rounds met one, {} ended before; \
             {} ended differently; a round took {median:.1} s (median), {longest:.1} s at most",
            self.seconds.len(), writes.len(), self.hits(), self.missed, self.failures.len(),
        ));
        text
    }
}
