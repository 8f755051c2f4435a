//! Who may launch an attempt where Agents or namespaces limit how many run at once: an exact ledger in memory, filled from
//! what runs when the operator starts. The oldest run comes first; who waits for a full Agent does not hold up others.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::Notify;

use crate::api::Agent;
use crate::decide::step_run::Slot;

/// Where a StepRun stands in the queue for a slot: the oldest run first, within a run the oldest StepRun. Name and UID
/// make the order total, since creation times are whole seconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueuePosition {
    pub run_created: Option<Time>,
    pub run: String,
    pub created: Option<Time>,
    pub name: String,
    pub uid: String,
}

/// How many StepRuns of an Agent may run at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// The Agent is not known, for now or any more. What was known of its limit counts; where nothing was, nobody begins.
    #[default]
    Unknown,
    None,
    At(usize),
}

impl Limit {
    /// The Agent's `maxConcurrent`.
    pub fn of(agent: Option<&Agent>) -> Self {
        let Some(agent) = agent else { return Self::Unknown };
        agent.spec.max_concurrent.and_then(|most| usize::try_from(most).ok()).map_or(Self::None, Self::At)
    }
}

/// A StepRun that waits for a slot or holds one.
#[derive(Clone, Debug)]
pub struct Applicant {
    pub namespace: String,
    pub agent: String,
    pub limit: Limit,
    pub position: QueuePosition,
}

/// The ledger, shared by all passes.
pub struct Slots {
    ledger: Mutex<Ledger>,
    granted: Notify,
}

impl Slots {
    /// `per_namespace` is 0 for no limit.
    pub fn new(per_namespace: usize) -> Self {
        Self { ledger: Mutex::new(Ledger { per_namespace, ..Ledger::default() }), granted: Notify::new() }
    }

    pub fn ask(&self, who: &Applicant) -> Slot {
        self.change(|ledger| ledger.ask(who))
    }

    /// It runs already, whatever the limit says.
    pub fn hold(&self, who: &Applicant) {
        self.change(|ledger| ledger.hold(who));
    }

    /// It runs no more, or does not wait any longer.
    pub fn release(&self, uid: &str) {
        self.change(|ledger| ledger.release(uid));
    }

    /// Namespaces and names of StepRuns whose turn has come since the last call; waits for the first.
    pub async fn granted(&self) -> Vec<(String, String)> {
        loop {
            let come = self.change(|ledger| std::mem::take(&mut ledger.granted));
            if !come.is_empty() {
                return come;
            }
            self.granted.notified().await;
        }
    }

    fn change<T>(&self, act: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = act(&mut ledger);
        if !ledger.granted.is_empty() {
            self.granted.notify_one();
        }
        answer
    }
}

#[derive(Default)]
struct Ledger {
    per_namespace: usize,
    namespaces: HashMap<String, Namespace>,
    /// By UID.
    known: HashMap<String, (Applicant, State)>,
    granted: Vec<(String, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Holds,
    Waits,
}

#[derive(Default)]
struct Namespace {
    holders: usize,
    agents: HashMap<String, Queue>,
}

#[derive(Default)]
struct Queue {
    limit: Limit,
    holders: usize,
    waiting: BTreeSet<QueuePosition>,
}

impl Queue {
    fn is_free(&self) -> bool {
        match self.limit {
            Limit::Unknown => false,
            Limit::None => true,
            Limit::At(limit) => self.holders < limit,
        }
    }
}

impl Ledger {
    fn queue(&mut self, who: &Applicant) -> &mut Queue {
        let namespace = self.namespaces.entry(who.namespace.clone()).or_default();
        let queue = namespace.agents.entry(who.agent.clone()).or_default();
        if who.limit != Limit::Unknown {
            queue.limit = who.limit;
        }
        queue
    }

    fn ask(&mut self, who: &Applicant) -> Slot {
        let uid = who.position.uid.as_str();
        let asked = self.known.contains_key(uid);
        let queue = self.queue(who);
        if !asked {
            queue.waiting.insert(who.position.clone());
            self.known.insert(uid.to_owned(), (who.clone(), State::Waits));
        }
        self.dispatch(&who.namespace);
        match self.known.get(uid) {
            Some((_, State::Holds)) => {
                // Whoever asks needs no waking.
                self.granted.retain(|(namespace, name)| *namespace != who.namespace || *name != who.position.name);
                Slot::Yours
            }
            _ => Slot::Wait { ahead: self.queue(who).waiting.range(..who.position.clone()).count() },
        }
    }

    fn hold(&mut self, who: &Applicant) {
        self.queue(who);
        match self.known.get(&who.position.uid) {
            Some((_, State::Holds)) => {}
            _ => self.take(who),
        }
        self.dispatch(&who.namespace);
    }

    fn take(&mut self, who: &Applicant) {
        let queue = self.queue(who);
        queue.waiting.remove(&who.position);
        queue.holders += 1;
        if let Some(namespace) = self.namespaces.get_mut(&who.namespace) {
            namespace.holders += 1;
        }
        self.known.insert(who.position.uid.clone(), (who.clone(), State::Holds));
    }

    fn release(&mut self, uid: &str) {
        let Some((who, state)) = self.known.remove(uid) else {
            return;
        };
        let Some(namespace) = self.namespaces.get_mut(&who.namespace) else {
            return;
        };
        if let Some(queue) = namespace.agents.get_mut(&who.agent) {
            queue.waiting.remove(&who.position);
            if state == State::Holds {
                queue.holders -= 1;
                namespace.holders -= 1;
            }
            if queue.holders == 0 && queue.waiting.is_empty() {
                namespace.agents.remove(&who.agent);
            }
        }
        if namespace.agents.is_empty() {
            self.namespaces.remove(&who.namespace);
            return;
        }
        self.dispatch(&who.namespace);
    }

    /// Gives what is free to those who wait longest, of the Agents that are not full.
    fn dispatch(&mut self, name: &str) {
        while let Some(namespace) = self.namespaces.get(name) {
            if self.per_namespace > 0 && namespace.holders >= self.per_namespace {
                return;
            }
            let free = namespace.agents.values().filter(|q| q.is_free());
            let Some(next) = free.filter_map(|q| q.waiting.first()).min() else { return };
            let Some((who, _)) = self.known.get(&next.uid).cloned() else { return };
            let limit = namespace.agents.get(&who.agent).map_or(Limit::Unknown, |q| q.limit);
            self.take(&Applicant { limit, ..who.clone() });
            self.granted.push((who.namespace, who.position.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn who(agent: &str, age: i64, uid: &str, limit: Option<usize>) -> Applicant {
        let created = Timestamp::from_second(age).ok().map(Time);
        Applicant {
            namespace: "team".into(),
            agent: agent.into(),
            limit: limit.map_or(Limit::None, Limit::At),
            position: QueuePosition {
                run_created: created.clone(),
                run: format!("run-{age}"),
                created,
                name: uid.into(),
                uid: uid.into(),
            },
        }
    }

    fn ledger(per_namespace: usize) -> Ledger {
        Ledger { per_namespace, ..Ledger::default() }
    }

    fn woken(ledger: &mut Ledger) -> Vec<String> {
        std::mem::take(&mut ledger.granted).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn the_oldest_run_comes_first() {
        let mut l = ledger(0);
        assert_eq!(l.ask(&who("a", 1, "x", Some(1))), Slot::Yours);
        assert_eq!(l.ask(&who("a", 9, "young", Some(1))), Slot::Wait { ahead: 0 });
        assert_eq!(l.ask(&who("a", 2, "old", Some(1))), Slot::Wait { ahead: 0 });
        assert_eq!(l.ask(&who("a", 9, "young", Some(1))), Slot::Wait { ahead: 1 });
        assert_eq!(l.ask(&who("a", 1, "x", Some(1))), Slot::Yours, "asking again changes nothing");
        assert!(woken(&mut l).is_empty());
        l.release("x");
        assert_eq!(woken(&mut l), ["old"]);
        assert_eq!(l.ask(&who("a", 9, "young", Some(1))), Slot::Wait { ahead: 0 });
        assert_eq!(l.ask(&who("a", 2, "old", Some(1))), Slot::Yours);
        l.release("old");
        l.release("old");
        assert_eq!(woken(&mut l), ["young"]);
        l.release("young");
        assert!(l.namespaces.is_empty() && l.known.is_empty(), "nothing is kept of those that are gone");
    }

    #[test]
    fn a_full_agent_does_not_hold_up_the_namespace() {
        let mut l = ledger(2);
        assert_eq!(l.ask(&who("a", 1, "a1", Some(1))), Slot::Yours);
        assert_eq!(l.ask(&who("a", 2, "a2", Some(1))), Slot::Wait { ahead: 0 });
        assert_eq!(l.ask(&who("b", 3, "b1", None)), Slot::Yours);
        assert_eq!(l.ask(&who("b", 4, "b2", None)), Slot::Wait { ahead: 0 }, "the namespace is full");
        l.release("b1");
        assert_eq!(woken(&mut l), ["b2"], "a2 is older, but its Agent is full");
        l.release("a1");
        assert_eq!(woken(&mut l), ["a2"]);
    }

    #[test]
    fn what_runs_already_counts_and_limits_may_change() {
        let mut l = ledger(0);
        for uid in ["x", "y", "z"] {
            l.hold(&who("a", 1, uid, Some(2)));
        }
        assert_eq!(l.ask(&who("a", 2, "w", Some(2))), Slot::Wait { ahead: 0 });
        l.release("x");
        assert!(woken(&mut l).is_empty(), "still two");
        assert_eq!(l.ask(&who("a", 2, "w", Some(3))), Slot::Yours, "the limit was raised");
        assert_eq!(l.ask(&who("a", 3, "v", Some(3))), Slot::Wait { ahead: 0 });
        assert_eq!(l.ask(&who("a", 3, "v", None)), Slot::Yours, "and taken away");
        // One that waits is found running, as after a lost reply.
        let mut l = ledger(1);
        l.ask(&who("a", 1, "x", None));
        l.ask(&who("a", 2, "y", None));
        l.hold(&who("a", 2, "y", None));
        l.release("x");
        assert_eq!(l.ask(&who("a", 3, "z", None)), Slot::Wait { ahead: 0 });
        l.release("y");
        assert_eq!(woken(&mut l), ["z"]);
    }

    /// `kubectl replace --force` of an Agent: for a moment there is none.
    #[test]
    fn an_agent_that_is_not_known_is_no_agent_without_a_limit() {
        let gone = |age, uid| Applicant { limit: Limit::Unknown, ..who("a", age, uid, None) };
        let mut l = ledger(0);
        assert_eq!(l.ask(&who("a", 1, "x", Some(1))), Slot::Yours);
        assert_eq!(l.ask(&who("a", 2, "y", Some(1))), Slot::Wait { ahead: 0 });
        l.hold(&gone(1, "x"));
        assert_eq!(l.ask(&gone(3, "z")), Slot::Wait { ahead: 1 });
        assert!(woken(&mut l).is_empty(), "its limit stays");
        l.release("x");
        assert_eq!(woken(&mut l), ["y"], "one after the other, as before");
        // An operator that begins meanwhile has never seen the Agent.
        let mut l = ledger(0);
        l.hold(&gone(1, "x"));
        l.release("x");
        assert_eq!(l.ask(&gone(2, "y")), Slot::Wait { ahead: 0 });
        assert_eq!(l.ask(&who("a", 3, "z", Some(1))), Slot::Wait { ahead: 0 });
        assert_eq!(woken(&mut l), ["y"], "the Agent is back");
    }

    #[derive(Clone, Debug)]
    enum Act {
        Ask(usize),
        Release(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![(0..24_usize).prop_map(Act::Ask), (0..24_usize).prop_map(Act::Release)];
        proptest::collection::vec(act, 0..200)
    }

    proptest! {
        #[test]
        fn never_more_than_the_limits_and_nobody_starves(acts in acts(), per_namespace in 0..5_usize, limit in 0..4_usize) {
            let mut l = ledger(per_namespace);
            let limit = Some(limit).filter(|l| *l > 0);
            let everyone: Vec<Applicant> = (0..24_i64)
                .map(|n| who(["a", "b", "c"][usize::try_from(n % 3).unwrap_or_default()], n * 7 % 24, &format!("u{n:02}"), limit))
                .collect();
            let holds = |l: &Ledger, n: usize| matches!(l.known.get(&everyone[n].position.uid), Some((_, State::Holds)));
            let check = |l: &Ledger| {
                let held: Vec<usize> = (0..24).filter(|n| holds(l, *n)).collect();
                assert!(per_namespace == 0 || held.len() <= per_namespace, "{} hold", held.len());
                for agent in ["a", "b", "c"] {
                    let of_agent = held.iter().filter(|n| everyone[**n].agent == agent).count();
                    assert!(limit.is_none_or(|l| of_agent <= l));
                }
                // Nothing stays free while somebody could have it.
                for (waiting, _) in l.known.values().filter(|(_, state)| *state == State::Waits) {
                    let of_agent = held.iter().filter(|n| everyone[**n].agent == waiting.agent).count();
                    let full = limit.is_some_and(|l| of_agent >= l);
                    assert!(full || (per_namespace > 0 && held.len() >= per_namespace), "a slot lies idle");
                }
            };
            for act in &acts {
                match act {
                    Act::Ask(n) => {
                        let answer = l.ask(&everyone[*n]);
                        assert_eq!(answer == Slot::Yours, holds(&l, *n));
                    }
                    Act::Release(n) => l.release(&everyone[*n].position.uid),
                }
                check(&l);
            }
            // Everyone gets a turn, and within one Agent the older before the younger.
            let mut order: Vec<QueuePosition> = Vec::new();
            woken(&mut l);
            let mut waiting = l.known.values().filter(|(_, state)| *state == State::Waits).count();
            while waiting > 0 {
                let Some(first) = (0..24).find(|n| holds(&l, *n)) else { panic!("nobody holds, {waiting} wait") };
                l.release(&everyone[first].position.uid);
                for name in woken(&mut l) {
                    order.extend(everyone.iter().find(|w| w.position.name == name).map(|w| w.position.clone()));
                    waiting -= 1;
                }
                check(&l);
            }
            for agent in ["a", "b", "c"] {
                let of_agent: Vec<&QueuePosition> =
                    order.iter().filter(|t| everyone.iter().any(|w| w.position == **t && w.agent == agent)).collect();
                assert!(of_agent.is_sorted(), "{of_agent:?}");
            }
        }
    }
}
