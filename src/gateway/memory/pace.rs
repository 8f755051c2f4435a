//! How much agents write to their memories. Each write stores a whole Memory anew, and the API server's database keeps all that
//! was written in its last minutes: an agent that writes without end would fill it for everybody. What comes too soon is refused
//! for the moment, and the shim comes again with it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes that are stored in a second: for one step, for those of a namespace, for all that write through this gateway.
const BYTES_PER_SECOND: [u64; 3] = [256 << 10, 1 << 20, 2 << 20];
/// So much of it may be stored at once after a pause.
const AHEAD: Duration = Duration::from_secs(16);
/// Bytes of an object beside its keys and values.
const OBJECT_BYTES: usize = 2 << 10;
/// Steps that are remembered. Whoever wrote nothing lately is forgotten; beyond it a stranger waits.
const KEPT: usize = 16_384;

/// Until when what each of them wrote is paid for, at its rate.
#[derive(Default)]
pub struct WritePace(Mutex<HashMap<(Level, String), Instant>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Level {
    Step,
    Namespace,
    All,
}

impl WritePace {
    /// Whether the step may store a Memory with so many bytes in keys and values now; it is counted if so.
    pub fn take(&self, namespace: &str, step_run_uid: &str, bytes: usize, now: Instant) -> bool {
        let mut paid_until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if paid_until.len() >= KEPT {
            paid_until.retain(|_, until| *until > now);
        }
        let levels = [(Level::Step, step_run_uid), (Level::Namespace, namespace), (Level::All, "")];
        let keys = levels.map(|(level, name)| (level, name.to_owned()));
        let from = keys.each_ref().map(|key| paid_until.get(key).copied().unwrap_or(now).max(now));
        let is_room = paid_until.len() < KEPT || paid_until.contains_key(&keys[0]);
        if !is_room || from.iter().any(|from| from.duration_since(now) > AHEAD) {
            return false;
        }
        let bytes = (bytes + OBJECT_BYTES) as u64;
        for ((key, from), rate) in keys.into_iter().zip(from).zip(BYTES_PER_SECOND) {
            paid_until.insert(key, from + Duration::from_micros(bytes * 1_000_000 / rate));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: usize = 256 << 10;

    /// How many full Memories are stored of those that a step tries to write one after the other.
    fn stored(pace: &WritePace, (namespace, step): (&str, &str), now: Instant) -> usize {
        (0..1000).take_while(|_| pace.take(namespace, step, FULL, now)).count()
    }

    #[test]
    fn a_step_stores_what_its_rate_allows_and_leaves_the_others_theirs() {
        let pace = WritePace::default();
        let begun = Instant::now();
        let later = |seconds: u64| begun + Duration::from_secs(seconds);
        assert_eq!(stored(&pace, ("team", "a"), begun), 16, "4 MiB at once");
        assert_eq!(stored(&pace, ("team", "a"), begun), 0);
        assert_eq!(stored(&pace, ("team", "b"), begun), 16, "another step of the namespace");
        assert!((9..=11).contains(&stored(&pace, ("team", "a"), later(10))), "one a second from then on");
        assert_eq!(stored(&pace, ("team", "a"), later(3600)), 16, "an hour of peace gives that back, and no more");
    }

    #[test]
    fn neither_a_namespace_nor_all_of_them_store_without_end() {
        let pace = WritePace::default();
        let now = Instant::now();
        let of = |namespace: &str| -> usize {
            (0..100).map(|step| stored(&pace, (namespace, &format!("{namespace}-{step}")), now)).sum()
        };
        assert!((60..=70).contains(&of("one")), "16 MiB of a namespace at once");
        assert!((60..=70).contains(&of("two")), "and of the next");
        assert!(of("three") <= 2, "32 MiB of all");
    }

    #[test]
    fn steps_are_bounded_and_forgotten() {
        let pace = WritePace::default();
        let now = Instant::now();
        let takes = |n: &usize| pace.take(&format!("team-{}", n % 4), &format!("step-{n}"), 0, now);
        assert_eq!((0..KEPT + 1000).filter(takes).count(), KEPT - 5, "beside four namespaces, and all together");
        assert!(!takes(&KEPT) && takes(&0), "no room for one more, and those that are known write on");
        assert!(pace.take("team-0", "another", 0, now + AHEAD * 3));
        assert_eq!(pace.0.lock().expect("a lock").len(), 3);
    }
}
