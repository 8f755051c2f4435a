//! A cache of the answers that took long, by a digest of the question, so that nothing is evaluated twice. It is bounded
//! for each namespace and in all; a namespace that asks much evicts its own answers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use super::Subject;
use super::wire::Answer;

/// Entries, and bytes of answers, of one namespace and of all.
const ENTRIES: (usize, usize) = (256, 4096);
const BYTES: (usize, usize) = (1 << 20, 16 << 20);
/// Questions that are being worked out at length, of one namespace and of all.
const UNDERWAY: (usize, usize) = (8, 256);
/// Objects that wait for a question of another one, because their own cannot begin yet.
const FOLLOWERS: usize = 32;
/// A key and what is kept beside an answer.
const ENTRY_BYTES: usize = 128;

pub type Digest = [u8; 32];

/// The answers of all namespaces, and the questions that are being worked out.
#[derive(Debug, Default)]
pub struct AnswerCache {
    namespaces: HashMap<Arc<str>, NamespaceAnswers>,
    entries: usize,
    bytes: usize,
    underway: usize,
}

#[derive(Debug, Default)]
struct NamespaceAnswers {
    known: HashMap<Digest, CachedAnswer>,
    /// The keys of `known`, the oldest in front.
    order: VecDeque<Digest>,
    bytes: usize,
    underway: HashMap<Digest, Underway>,
}

/// What is known of a question that was asked before.
#[derive(Debug)]
enum CachedAnswer {
    /// It takes long, and has no answer yet.
    Slow,
    /// As JSON text.
    Answer(String),
    /// It could not be worked out, for no fault of its author: whoever asks next is told, and comes again after a while.
    Failed(String),
}

#[derive(Debug)]
struct Underway {
    /// Closed at the end.
    ends: watch::Receiver<()>,
    asked_by: HashSet<Subject>,
}

/// What is known of how long a question takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Unknown,
    /// Longer than a quick process gives it.
    Slow,
}

#[derive(Debug)]
pub enum Recalled {
    Unknown,
    Slow,
    Underway(watch::Receiver<()>),
    Answer(Answer),
    Failed(String),
}

/// Whoever has the sender is to work it out, and drops it at the end.
#[derive(Debug)]
pub enum Begun {
    Yours(watch::Sender<()>, watch::Receiver<()>),
    Another(watch::Receiver<()>),
    /// As many are underway as may be.
    Full,
}

impl AnswerCache {
    /// Whoever asks while it is being worked out is told of the end.
    pub fn recall(&mut self, namespace: &str, digest: &Digest, asked_by: Option<&Subject>) -> Recalled {
        let Some(own) = self.namespaces.get_mut(namespace) else { return Recalled::Unknown };
        if let Some(ends) = own.join(digest, asked_by) {
            return Recalled::Underway(ends);
        }
        match own.known.get(digest) {
            None => Recalled::Unknown,
            Some(CachedAnswer::Slow) => Recalled::Slow,
            Some(CachedAnswer::Answer(text)) => serde_json::from_str(text).map_or(Recalled::Unknown, Recalled::Answer),
            Some(CachedAnswer::Failed(words)) => {
                let failed = Recalled::Failed(words.clone());
                self.remove(namespace, digest);
                failed
            }
        }
    }

    /// Where as many are underway as may be, an object follows one of its namespace: it is told when there is room again.
    pub fn begin(&mut self, namespace: &str, digest: &Digest, asked_by: Option<&Subject>, pace: Pace) -> Begun {
        let own = self.namespaces.entry(namespace.into()).or_default();
        if let Some(ends) = own.join(digest, asked_by) {
            return Begun::Another(ends);
        }
        if own.underway.len() >= UNDERWAY.0 || self.underway >= UNDERWAY.1 {
            let begun = own.follow(asked_by).map_or(Begun::Full, Begun::Another);
            match pace {
                Pace::Slow => self.insert(namespace, *digest, CachedAnswer::Slow),
                Pace::Unknown => self.sweep(namespace),
            }
            return begun;
        }
        let (work, ends) = watch::channel(());
        let asked_by = asked_by.into_iter().cloned().collect();
        own.underway.insert(*digest, Underway { ends: ends.clone(), asked_by });
        self.underway += 1;
        Begun::Yours(work, ends)
    }

    /// It has ended, with an answer or with what went wrong; gives whoever waits.
    pub fn end(&mut self, namespace: &str, digest: &Digest, answer: Result<&Answer, String>) -> Vec<Subject> {
        let ended = self.namespaces.get_mut(namespace).and_then(|own| own.underway.remove(digest));
        self.underway -= usize::from(ended.is_some());
        match answer {
            Ok(answer) => self.keep(namespace, *digest, answer),
            Err(words) => self.insert(namespace, *digest, CachedAnswer::Failed(words)),
        }
        ended.map(|underway| underway.asked_by.into_iter().collect()).unwrap_or_default()
    }

    pub fn keep(&mut self, namespace: &str, digest: Digest, answer: &Answer) {
        if let Ok(text) = serde_json::to_string(answer) {
            self.insert(namespace, digest, CachedAnswer::Answer(text));
        }
    }

    fn insert(&mut self, namespace: &str, digest: Digest, known: CachedAnswer) {
        self.remove(namespace, &digest);
        let own = self.namespaces.entry(namespace.into()).or_default();
        let bytes = known.bytes();
        own.known.insert(digest, known);
        own.order.push_back(digest);
        own.bytes += bytes;
        self.bytes += bytes;
        self.entries += 1;
        while self.namespaces.get(namespace).is_some_and(|s| s.order.len() > ENTRIES.0 || s.bytes > BYTES.0) {
            self.forget_oldest(namespace);
        }
        while self.entries > ENTRIES.1 || self.bytes > BYTES.1 {
            let largest = self.namespaces.iter().max_by_key(|(_, own)| own.bytes).map(|(name, _)| Arc::clone(name));
            let Some(largest) = largest else { break };
            self.forget_oldest(&largest);
        }
    }

    fn forget_oldest(&mut self, namespace: &str) {
        let oldest = self.namespaces.get(namespace).and_then(|own| own.order.front().copied());
        if let Some(oldest) = oldest {
            self.remove(namespace, &oldest);
        }
    }

    fn remove(&mut self, namespace: &str, digest: &Digest) {
        if let Some(own) = self.namespaces.get_mut(namespace)
            && let Some(known) = own.known.remove(digest)
        {
            own.order.retain(|other| other != digest);
            own.bytes -= known.bytes();
            self.bytes -= known.bytes();
            self.entries -= 1;
        }
        self.sweep(namespace);
    }

    /// A namespace of which nothing is known takes no memory.
    fn sweep(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(|own| own.known.is_empty() && own.underway.is_empty()) {
            self.namespaces.remove(namespace);
        }
    }
}

impl NamespaceAnswers {
    fn join(&mut self, digest: &Digest, asked_by: Option<&Subject>) -> Option<watch::Receiver<()>> {
        let underway = self.underway.get_mut(digest)?;
        underway.asked_by.extend(asked_by.cloned());
        Some(underway.ends.clone())
    }

    /// The question with the fewest that wait for it, if there is one with few enough.
    fn follow(&mut self, asked_by: Option<&Subject>) -> Option<watch::Receiver<()>> {
        let fewest = self.underway.values_mut().min_by_key(|underway| underway.asked_by.len())?;
        if fewest.asked_by.len() > FOLLOWERS {
            return None;
        }
        fewest.asked_by.extend(asked_by.cloned());
        Some(fewest.ends.clone())
    }
}

impl CachedAnswer {
    fn bytes(&self) -> usize {
        match self {
            Self::Slow => ENTRY_BYTES,
            Self::Answer(text) | Self::Failed(text) => ENTRY_BYTES + text.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::evaluator::Kind;

    fn digest(n: usize) -> Digest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&n.to_le_bytes());
        digest
    }

    fn subject(name: &str) -> Subject {
        Subject { kind: Kind::Workflow, namespace: "a".to_owned(), name: name.to_owned() }
    }

    fn answer(answers: &mut AnswerCache, namespace: &str, n: usize) -> Option<Answer> {
        match answers.recall(namespace, &digest(n), None) {
            Recalled::Answer(answer) => Some(answer),
            _ => None,
        }
    }

    #[test]
    fn a_namespace_pushes_out_its_own_only() {
        let mut answers = AnswerCache::default();
        answers.keep("honest", digest(1), &Answer::Fine);
        for n in 0..ENTRIES.0 + 5 {
            answers.keep("hostile", digest(n), &Answer::Fine);
        }
        assert_eq!(answers.entries, ENTRIES.0 + 1);
        assert_eq!(answer(&mut answers, "honest", 1), Some(Answer::Fine));
        assert_eq!(answer(&mut answers, "hostile", 4), None, "the oldest are gone");
        assert_eq!(answer(&mut answers, "hostile", 5), Some(Answer::Fine));
        let long = Answer::Error("x".repeat(60_000));
        for n in 0..40 {
            answers.keep("hostile", digest(1000 + n), &long);
        }
        assert!(answers.namespaces["hostile"].bytes <= BYTES.0);
        // Many namespaces together: the largest one loses.
        for namespace in 0..ENTRIES.1 + 10 {
            answers.keep(&format!("n{namespace}"), digest(0), &Answer::Fine);
        }
        assert!(answers.entries <= ENTRIES.1 && answers.bytes <= BYTES.1);
        assert_eq!(answer(&mut answers, "honest", 1), Some(Answer::Fine));
    }

    #[test]
    fn the_same_answer_counts_once() {
        let mut answers = AnswerCache::default();
        for _ in 0..10 {
            answers.keep("a", digest(1), &Answer::Fine);
        }
        assert_eq!((answers.entries, answers.namespaces["a"].order.len()), (1, 1));
        answers.remove("a", &digest(1));
        assert_eq!((answers.entries, answers.bytes, answers.namespaces.len()), (0, 0, 0));
    }

    #[test]
    fn what_is_underway_is_begun_once_and_tells_all_who_asked() {
        let mut answers = AnswerCache::default();
        let Begun::Yours(work, ends) = answers.begin("a", &digest(1), Some(&subject("x")), Pace::Slow) else {
            panic!("mine")
        };
        assert!(matches!(answers.begin("a", &digest(1), Some(&subject("y")), Pace::Slow), Begun::Another(_)));
        assert!(matches!(answers.recall("a", &digest(1), Some(&subject("x"))), Recalled::Underway(_)));
        assert!(matches!(answers.recall("b", &digest(1), None), Recalled::Unknown), "of another namespace");
        let mut told = answers.end("a", &digest(1), Ok(&Answer::Fine));
        told.sort_by(|x, y| x.name.cmp(&y.name));
        assert_eq!(told, [subject("x"), subject("y")]);
        drop(work);
        assert!(ends.has_changed().is_err(), "it is closed");
        assert_eq!(answer(&mut answers, "a", 1), Some(Answer::Fine));
        assert_eq!(answers.underway, 0);
    }

    #[test]
    fn what_is_underway_is_bounded_and_known_to_be_slow() {
        let mut answers = AnswerCache::default();
        let mut begun = Vec::new();
        for n in 0..UNDERWAY.0 {
            begun.push(answers.begin("a", &digest(n), None, Pace::Slow));
        }
        assert!(begun.iter().all(|b| matches!(b, Begun::Yours(..))));
        // Who follows another question is told when there is room; the bound holds for followers, too.
        for n in 0..UNDERWAY.0 * (FOLLOWERS + 1) {
            let begun = answers.begin("a", &digest(98), Some(&subject(&n.to_string())), Pace::Unknown);
            assert!(matches!(begun, Begun::Another(_)), "{n}");
        }
        assert!(matches!(answers.begin("a", &digest(98), Some(&subject("late")), Pace::Unknown), Begun::Full));
        assert!(matches!(answers.recall("a", &digest(98), None), Recalled::Unknown), "nothing says that it is slow");
        assert!(matches!(answers.begin("a", &digest(99), None, Pace::Slow), Begun::Full));
        assert!(matches!(answers.recall("a", &digest(99), None), Recalled::Slow));
        let mut others = 0;
        while let Begun::Yours(..) =
            answers.begin(&format!("n{}", others / UNDERWAY.0), &digest(others), None, Pace::Slow)
        {
            others += 1;
        }
        assert_eq!(others + UNDERWAY.0, UNDERWAY.1);
        // One that ends without an answer says so once, and leaves nothing behind.
        assert_eq!(answers.end("a", &digest(0), Err("starved".to_owned())).len(), FOLLOWERS + 1);
        assert!(matches!(answers.recall("a", &digest(0), None), Recalled::Failed(words) if words == "starved"));
        assert!(matches!(answers.recall("a", &digest(0), None), Recalled::Unknown));
        assert!(matches!(answers.begin("a", &digest(99), None, Pace::Slow), Begun::Yours(..)));
    }
}
