//! Places that callers share by key, a namespace usually: bounded, and fair. No key can take the last quarter of the
//! places, so that a newcomer finds one at once; and when a place becomes free and several keys wait, it goes to the one
//! that holds the fewest, in turns among equals. What a key cannot get it waits for, in a queue of bounded length.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Keys that wait at once. Beyond it nobody new may wait.
const KEYS: usize = 1024;

/// The key's queue is full: whoever asked should come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many wait already")]
pub struct Full;

/// Clones share the places.
#[derive(Clone, Debug)]
pub struct Fair(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The most that one key can hold.
    share: usize,
    queued_per_key: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    held: HashMap<Arc<str>, usize>,
    /// By key, the one whose turn comes first in front. No key is in it twice, and none without a waiter.
    queues: VecDeque<(Arc<str>, VecDeque<Waiter>)>,
}

type Waiter = oneshot::Sender<Permit>;

/// A place. It is free again when this is dropped.
#[derive(Debug)]
pub struct Permit {
    of: Arc<Shared>,
    /// None once the place was given back.
    key: Option<Arc<str>>,
}

impl Fair {
    /// So many places, and so many waiting for each key; at least one place.
    pub fn new(places: usize, queued_per_key: usize) -> Self {
        let places = places.max(1);
        Self(Arc::new(Shared {
            share: (places - places.div_ceil(4)).max(1),
            queued_per_key,
            state: Mutex::new(State { free: places, held: HashMap::new(), queues: VecDeque::new() }),
        }))
    }

    /// Waits for a place. Whoever gives up waiting leaves the queue.
    pub async fn acquire(&self, key: &str) -> Result<Permit, Full> {
        let granted = {
            let key: Arc<str> = key.into();
            let mut state = self.0.lock();
            // Whoever could have a place has it already, so nobody is overtaken here.
            if state.may_take(&key, self.0.share) {
                state.take(&key);
                return Ok(Permit { of: self.0.clone(), key: Some(key) });
            }
            state.wait(key, self.0.queued_per_key)?
        };
        granted.await.map_err(|_| Full)
    }

    /// How many wait now, for metrics.
    pub fn waiting(&self) -> usize {
        let mut state = self.0.lock();
        state.leave();
        state.queues.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// How many places are held now, for metrics.
    pub fn held(&self) -> usize {
        self.0.lock().held.values().sum()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place back and says who gets it; one freed place is for one waiter at most.
    fn pass_on(&self, key: &str) -> Option<(Arc<str>, Waiter)> {
        let mut state = self.lock();
        state.give_back(key);
        state.next(self.share)
    }
}

impl State {
    fn queue(&mut self, key: &str) -> Option<&mut VecDeque<Waiter>> {
        self.queues.iter_mut().find(|(of, _)| &**of == key).map(|(_, queue)| queue)
    }

    fn held(&self, key: &str) -> usize {
        self.held.get(key).copied().unwrap_or_default()
    }

    fn may_take(&self, key: &str, share: usize) -> bool {
        self.free > 0 && self.held(key) < share
    }

    fn take(&mut self, key: &Arc<str>) {
        self.free -= 1;
        *self.held.entry(key.clone()).or_default() += 1;
    }

    fn give_back(&mut self, key: &str) {
        self.free += 1;
        if let Some(held) = self.held.get_mut(key) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(key);
            }
        }
    }

    fn wait(&mut self, key: Arc<str>, most: usize) -> Result<oneshot::Receiver<Permit>, Full> {
        if self.is_full(&key, most) {
            self.leave();
            if self.is_full(&key, most) {
                return Err(Full);
            }
        }
        let (grant, granted) = oneshot::channel();
        match self.queue(&key) {
            Some(queue) => queue.push_back(grant),
            None => self.queues.push_back((key, [grant].into())),
        }
        Ok(granted)
    }

    fn is_full(&mut self, key: &str, most: usize) -> bool {
        let keys = self.queues.len();
        self.queue(key).map_or(most == 0 || keys >= KEYS, |queue| queue.len() >= most)
    }

    /// Takes out of the queues whoever gave up.
    fn leave(&mut self) {
        for (_, queue) in &mut self.queues {
            queue.retain(|waiter| !waiter.is_closed());
        }
        self.queues.retain(|(_, queue)| !queue.is_empty());
    }

    /// The next to get a place, if there is one for it. Its key goes to the end of the turns.
    fn next(&mut self, share: usize) -> Option<(Arc<str>, Waiter)> {
        loop {
            let able = self.queues.iter().enumerate().filter(|(_, (key, _))| self.may_take(key, share));
            // Of equals the first one.
            let (at, _) = able.min_by_key(|(_, (key, _))| self.held(key))?;
            let (key, mut queue) = self.queues.remove(at)?;
            while queue.front().is_some_and(Waiter::is_closed) {
                queue.pop_front();
            }
            let Some(waiter) = queue.pop_front() else { continue };
            if !queue.is_empty() {
                self.queues.push_back((key.clone(), queue));
            }
            self.take(&key);
            return Some((key, waiter));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut freed = self.key.take();
        while let Some(key) = freed {
            let Some((next, waiter)) = self.of.pass_on(&key) else { return };
            // A grant that nobody waits for any more comes back; the lock is not held, so it could be dropped as well.
            let granted = waiter.send(Self { of: self.of.clone(), key: Some(next) });
            freed = granted.err().and_then(|mut unseen| unseen.key.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Asking = Pin<Box<dyn Future<Output = Result<Permit, Full>>>>;

    fn asking(fair: &Fair, key: impl Into<String>) -> Asking {
        let (fair, key) = (fair.clone(), key.into());
        Box::pin(async move { fair.acquire(&key).await })
    }

    /// Looks once whether there is an answer.
    fn look(asking: &mut Asking) -> Option<Result<Permit, Full>> {
        match asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }

    fn held(fair: &Fair, key: &str) -> Permit {
        look(&mut asking(fair, key)).expect("a place at once").expect("a place")
    }

    fn waits(fair: &Fair, key: impl Into<String>) -> Asking {
        let mut asking = asking(fair, key);
        assert!(look(&mut asking).is_none(), "no place yet");
        asking
    }

    #[test]
    fn one_key_leaves_a_quarter_to_others() {
        for (places, share) in [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6), (128, 96)] {
            let fair = Fair::new(places, 1);
            let greedy: Vec<Permit> = (0..share).map(|_| held(&fair, "greedy")).collect();
            let more = waits(&fair, "greedy");
            assert_eq!((fair.held(), fair.waiting()), (share, 1));
            if places > 1 {
                drop(held(&fair, "newcomer"));
                assert_eq!(fair.held(), share, "the place of another is no place for whoever has its share");
            }
            drop(greedy);
            drop(more);
            assert_eq!((fair.held(), fair.waiting()), (0, 0));
        }
    }

    #[test]
    fn a_freed_place_goes_to_whoever_holds_the_fewest_in_turns() {
        let fair = Fair::new(4, 8);
        let mut first: Vec<Permit> = (0..3).map(|_| held(&fair, "a")).collect();
        let fourth = held(&fair, "b");
        let mut waiting: Vec<(&str, Asking)> =
            ["a", "a", "b", "c", "d", "c"].into_iter().map(|key| (key, waits(&fair, key))).collect();
        let mut kept = Vec::new();
        let mut served = Vec::new();
        let mut round = |waiting: &mut Vec<(&'static str, Asking)>| {
            let at = waiting.iter_mut().position(|(_, asking)| {
                let Some(granted) = look(asking) else { return false };
                kept.push(granted.expect("a place"));
                true
            });
            served.push(at.map(|at| waiting.remove(at).0));
        };
        // a holds 3, b 1, c and d none: c is before d. Then a and b have given up what they held.
        drop(first.pop());
        round(&mut waiting);
        drop(first.pop());
        round(&mut waiting);
        drop(first.pop());
        round(&mut waiting);
        drop(fourth);
        round(&mut waiting);
        assert_eq!(served, [Some("c"), Some("d"), Some("a"), Some("b")]);
        assert_eq!(fair.held(), 4);
    }

    #[test]
    fn a_queue_is_bounded_by_key_and_in_all() {
        let fair = Fair::new(2, 2);
        let _held = (held(&fair, "a"), held(&fair, "b"));
        let _waiting = (waits(&fair, "a"), waits(&fair, "a"));
        assert!(matches!(look(&mut asking(&fair, "a")), Some(Err(Full))));
        let others: Vec<Asking> = (1..KEYS).map(|key| waits(&fair, format!("key {key}"))).collect();
        assert!(matches!(look(&mut asking(&fair, "one too many")), Some(Err(Full))));
        drop(others);
        let _newcomer = waits(&fair, "one too many");
        assert_eq!(fair.waiting(), 3, "whoever gave up is gone");
    }

    #[test]
    fn whoever_gives_up_loses_no_place() {
        let fair = Fair::new(1, 4);
        let only = held(&fair, "a");
        let gone = waits(&fair, "b");
        let mut stays = waits(&fair, "c");
        drop(gone);
        drop(only);
        let granted = look(&mut stays).expect("granted").expect("a place");
        // Granted, and given up before it was taken.
        let unseen = waits(&fair, "d");
        drop(granted);
        drop(unseen);
        assert_eq!((fair.held(), fair.waiting()), (0, 0));
        drop(held(&fair, "e"));
    }

    #[test]
    fn a_newcomer_of_a_waiting_key_does_not_overtake() {
        let fair = Fair::new(4, 4);
        let mut first: Vec<Permit> = (0..3).map(|_| held(&fair, "a")).collect();
        let mut early = waits(&fair, "a");
        drop(first.pop());
        let mut late = waits(&fair, "a");
        let granted = look(&mut early);
        assert!(granted.is_some() && look(&mut late).is_none());
        drop(granted);
        assert!(look(&mut late).is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_at_once_never_hold_more_than_there_is() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NOW: AtomicUsize = AtomicUsize::new(0);
        let fair = Fair::new(3, 1000);
        let tasks: Vec<_> = (0..600)
            .map(|n| {
                let fair = fair.clone();
                tokio::spawn(async move {
                    let asking = fair.acquire(["a", "b", "c"][n % 3]);
                    // A third gives up after a moment.
                    let permit = if n % 3 == 2 {
                        tokio::select! { biased; permit = asking => permit.ok(), () = tokio::task::yield_now() => None }
                    } else {
                        asking.await.ok()
                    };
                    if permit.is_some() {
                        assert!(NOW.fetch_add(1, Ordering::SeqCst) < 3);
                        tokio::task::yield_now().await;
                        NOW.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no task fails");
        }
        assert_eq!((fair.held(), fair.waiting()), (0, 0));
    }
}
