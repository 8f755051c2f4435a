//! Which writes are met in what order, and the table of what came of it.

use std::collections::BTreeMap;

use super::proxy::{Fault, POSITIONS, Position, Write};
use super::stage::Outcome;

/// All writes at these positions; without positions each write at one, in turn. In an order that the seed gives, so that
/// whatever time there is meets writes of all kinds.
pub fn planned(writes: usize, positions: &[Position], seed: u64) -> Vec<Fault> {
    let turn = |write: usize| POSITIONS[write % POSITIONS.len()];
    let mut plan: Vec<Fault> = if positions.is_empty() {
        (1..=writes).map(|write| Fault { write, position: turn(write) }).collect()
    } else {
        positions.iter().flat_map(|p| (1..=writes).map(|write| Fault { write, position: *p })).collect()
    };
    let mut state = seed;
    for last in (1..plan.len()).rev() {
        let other = usize::try_from(next(&mut state) % (last as u64 + 1)).unwrap_or_default();
        plan.swap(last, other);
    }
    plan
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
    pub fn enter(&mut self, fault: Fault, outcome: Outcome) {
        let Outcome { hit, differences, seconds } = outcome;
        self.seconds.push(seconds);
        let met = hit.as_ref().map(|w| format!("{} {}", w.verb, w.what));
        if !differences.is_empty() {
            let met = hit
                .as_ref()
                .map_or("nothing".to_owned(), |w| format!("{} {} {}/{}", w.verb, w.what, w.namespace, w.name));
            let Fault { write, position } = fault;
            let text = format!("write {write}, {position:?}, met {met}:\n  {}", differences.join("\n  "));
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
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for write in writes {
            *kinds.entry(format!("{} {}", write.verb, write.what)).or_insert(0) += 1;
        }
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
