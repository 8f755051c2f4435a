//! Which of the deliberate bugs is switched on: at most one, of the whole process. `hack/mutants` puts this file beside the
//! sources that it makes; the product has nothing of it.

use std::sync::atomic::{AtomicU64, Ordering};

static ON: AtomicU64 = AtomicU64::new(0);

/// FNV-1a: a name as a number that one atomic variable holds.
fn number(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

pub fn on(name: &str) -> bool {
    let on = ON.load(Ordering::Relaxed);
    on != 0 && on == number(name)
}

pub fn switch(name: Option<&str>) {
    ON.store(name.map_or(0, number), Ordering::Relaxed);
}
