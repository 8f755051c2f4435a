//! The processes, and who gets one. A question has a moment on a quick process first; one that takes longer ends that
//! process and goes to the thorough one, which gives each its whole time and starts afresh each time, so that what ends it
//! there is its own fault. A spare process stands ready in place of one that was ended. All queues are fair between
//! namespaces.
//!
//! A namespace whose last question was answered quickly is proven: its passes wait for an answer of the processes that are
//! kept. Nobody else's pass waits at all: the question is worked out beside the passes, one of a new namespace at a time on
//! a process of its own, the answer is remembered, and whoever asked is told. So however many hostile namespaces there are,
//! they hold neither a pass nor a kept process.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::answer_cache::{AnswerCache, Begun, Digest, Pace, Recalled};
use super::process::{Bound, End, Running};
use super::wire::{Answer, QUESTION_BYTES, Question, line};
use super::{Requester, Subject};
use crate::api::limits::{EXPRESSION_MEMORY_BYTES, EXPRESSION_SECONDS};
use crate::cluster::fair::{Fair, Full};

/// Milliseconds of processor time that a question has while others wait for the same process, and bytes of it that give
/// it one more. Ordinary ones take one or two; without optimization everything takes longer.
const QUICK: u64 = if cfg!(debug_assertions) { 100 } else { 20 };
const QUICK_BYTES: usize = 16 << 10;
/// Passes of one namespace that wait for a quick process at once. Below the passes that run at once, so that one
/// namespace cannot hold all of them.
const WAITING: usize = 14;
/// Namespaces that are known to ask what is answered quickly.
const PROVEN: usize = 4096;
/// More than are ever underway: `answers` bounds them.
const UNDERWAY: usize = 256;

#[derive(Debug)]
pub struct Pool {
    program: PathBuf,
    quick: Fair,
    /// First questions of namespaces that are not proven.
    unproven: Fair,
    thorough: Fair,
    /// Namespaces whose last question was answered quickly.
    proven: Mutex<HashSet<Arc<str>>>,
    idle: Mutex<Vec<Running>>,
    places: usize,
    spare: Mutex<Option<mpsc::Receiver<io::Result<Running>>>>,
    answers: Mutex<AnswerCache>,
    /// Who waits for an answer that has come.
    to_wake: Mutex<HashSet<Subject>>,
    wakes: Notify,
    started: Arc<AtomicUsize>,
    interrupted: AtomicUsize,
}

/// What comes of a question.
#[derive(Debug)]
pub enum Reply {
    Answer(Answer),
    /// It is being worked out; closed at the end.
    Later(watch::Receiver<()>),
    Unanswered(String),
}

impl Pool {
    /// So many processes at once, two at least, and a spare one.
    pub fn of(program: PathBuf, processes: u16) -> Self {
        let places = usize::from(processes.saturating_sub(1).max(1));
        Self {
            program,
            quick: Fair::new(places, WAITING),
            unproven: Fair::new(1, UNDERWAY),
            thorough: Fair::new(1, UNDERWAY),
            proven: Mutex::default(),
            idle: Mutex::default(),
            places,
            spare: Mutex::default(),
            answers: Mutex::default(),
            to_wake: Mutex::default(),
            wakes: Notify::new(),
            started: Arc::default(),
            interrupted: AtomicUsize::new(0),
        }
    }

    /// Blocks for a moment: for threads that may, never for those that run async tasks.
    pub fn ask(self: &Arc<Self>, requester: &Requester, question: &Question<'_>) -> Reply {
        let text = match serde_json::to_vec(question) {
            Ok(text) if text.len() <= QUESTION_BYTES => Arc::new(text),
            Ok(text) => {
                let long = format!("reads {} bytes of JSON, at most {QUESTION_BYTES} are allowed", text.len());
                return Reply::Answer(Answer::Error(long));
            }
            Err(error) => return Reply::Unanswered(error.to_string()),
        };
        let Ok(runtime) = Handle::try_current() else {
            return Reply::Unanswered("asked outside of the runtime".to_owned());
        };
        let digest: Digest = Sha256::digest(text.as_slice()).into();
        let (namespace, subject) = (requester.namespace.as_ref(), requester.subject.as_ref());
        let work = Work { of: of(question), text, digest };
        match lock(&self.answers).recall(namespace, &digest, subject) {
            Recalled::Answer(answer) => return Reply::Answer(answer),
            Recalled::Failed(words) => return Reply::Unanswered(words),
            Recalled::Underway(ends) => return Reply::Later(ends),
            Recalled::Slow => return self.defer(&runtime, requester, work, Pace::Slow),
            Recalled::Unknown => {}
        }
        if !self.is_proven(namespace) {
            return self.defer(&runtime, requester, work, Pace::Unknown);
        }
        let end = match runtime.block_on(self.quick.acquire(namespace)) {
            // Another one of the namespace took too long while this one waited: it costs the others one moment, not one each.
            Ok(_place) if !self.is_proven(namespace) => return self.defer(&runtime, requester, work, Pace::Unknown),
            Ok(_place) => {
                let end = self.quickly(&work);
                // Before the place is given on.
                self.prove(&requester.namespace, &end);
                end
            }
            Err(Full) => return Reply::Unanswered(format!("too many passes of {namespace} wait for it already")),
        };
        match end {
            Ok(answer) => {
                // What a schema is worth is asked at every pass.
                if matches!(question, Question::Check { .. }) {
                    lock(&self.answers).keep(namespace, digest, &answer);
                }
                Reply::Answer(answer)
            }
            Err(End::Killed(_)) => {
                self.interrupted.fetch_add(1, Ordering::Relaxed);
                self.defer(&runtime, requester, work, Pace::Slow)
            }
            Err(End::Unanswered(words)) => Reply::Unanswered(words),
        }
    }

    /// On a process that is kept, for a proven namespace.
    fn quickly(&self, work: &Work) -> Result<Answer, End> {
        let kept = lock(&self.idle).pop();
        let process = kept.map_or_else(|| self.fresh(), Ok)?;
        let (process, answer) = self.exchange(process, &work.quick_line())?;
        let mut idle = lock(&self.idle);
        if idle.len() < self.places {
            idle.push(process);
        }
        Ok(answer)
    }

    fn is_proven(&self, namespace: &str) -> bool {
        lock(&self.proven).contains(namespace)
    }

    fn prove(&self, namespace: &Arc<str>, end: &Result<Answer, End>) {
        let mut proven = lock(&self.proven);
        match end {
            Ok(_) => {
                // Forgetting costs a namespace one start of a process.
                if proven.len() >= PROVEN {
                    proven.clear();
                }
                proven.insert(Arc::clone(namespace));
            }
            Err(End::Killed(_)) => {
                proven.remove(namespace);
            }
            Err(End::Unanswered(_)) => {}
        }
    }

    /// From the beginning, on a process of its own, with as much time as its pace needs.
    fn alone(&self, work: &Work, pace: Pace) -> Result<Answer, End> {
        let line = match pace {
            Pace::Unknown => work.quick_line(),
            Pace::Slow => line(EXPRESSION_SECONDS * 1000, &work.text),
        };
        let process = self.fresh()?;
        process.yield_to_others();
        match (self.exchange(process, &line), pace) {
            // The process is not kept: whoever was in it first is not known.
            (Ok((_, answer)), _) => Ok(answer),
            (Err(End::Killed(bound)), Pace::Slow) => Ok(Answer::Error(words(bound, work.of))),
            (Err(end), _) => Err(end),
        }
    }

    /// One that died while it stood ready gets a successor; one that was just started does not.
    fn exchange(&self, mut process: Running, line: &[u8]) -> Result<(Running, Answer), End> {
        let mut answer = process.exchange(line);
        if matches!(answer, Err(End::Unanswered(_))) {
            process = self.start()?;
            answer = process.exchange(line);
        }
        let read = |text: String| serde_json::from_str(&text).map_err(|e| End::Unanswered(format!("it answered: {e}")));
        Ok((process, read(answer?)?))
    }

    /// Works a question out beside the passes.
    fn defer(self: &Arc<Self>, runtime: &Handle, requester: &Requester, work: Work, pace: Pace) -> Reply {
        let (namespace, subject) = (Arc::clone(&requester.namespace), requester.subject.as_ref());
        let (ended, ends) = match lock(&self.answers).begin(&namespace, &work.digest, subject, pace) {
            Begun::Yours(ended, ends) => (ended, ends),
            Begun::Another(ends) => return Reply::Later(ends),
            Begun::Full => return Reply::Unanswered(format!("too many questions of {namespace} wait already")),
        };
        let (pool, work) = (Arc::clone(self), Arc::new(work));
        runtime.spawn(async move {
            let answer = pool.beside(&namespace, &work, pace).await.map_err(|end| match end {
                End::Killed(bound) => words(bound, work.of),
                End::Unanswered(words) => words,
            });
            if let Err(failed) = &answer {
                tracing::warn!(failed, %namespace, "a question could not be worked out");
            }
            let waiting = lock(&pool.answers).end(&namespace, &work.digest, answer.as_ref().map_err(Clone::clone));
            drop(ended);
            lock(&pool.to_wake).extend(waiting);
            pool.wakes.notify_one();
        });
        Reply::Later(ends)
    }

    /// A moment where it may be enough, then all the time that there is.
    async fn beside(self: &Arc<Self>, namespace: &Arc<str>, work: &Arc<Work>, pace: Pace) -> Result<Answer, End> {
        if pace == Pace::Unknown {
            let end = self.in_turn(&self.unproven, namespace, work, pace).await;
            self.prove(namespace, &end);
            if !matches!(end, Err(End::Killed(_))) {
                return end;
            }
        }
        self.in_turn(&self.thorough, namespace, work, Pace::Slow).await
    }

    async fn in_turn(
        self: &Arc<Self>,
        turns: &Fair,
        namespace: &str,
        work: &Arc<Work>,
        pace: Pace,
    ) -> Result<Answer, End> {
        let _place = turns.acquire(namespace).await.map_err(|full| End::Unanswered(full.to_string()))?;
        let (pool, work) = (Arc::clone(self), Arc::clone(work));
        let answer = tokio::task::spawn_blocking(move || pool.alone(&work, pace)).await;
        answer.unwrap_or_else(|lost| Err(End::Unanswered(lost.to_string())))
    }

    /// Objects whose answers have come since the last call; waits for the first.
    pub async fn subjects_to_wake(&self) -> Vec<Subject> {
        loop {
            let come = std::mem::take(&mut *lock(&self.to_wake));
            if !come.is_empty() {
                return come.into_iter().collect();
            }
            self.wakes.notified().await;
        }
    }

    /// A process that has answered nothing yet: the spare one, and the next spare is started meanwhile.
    fn fresh(&self) -> Result<Running, End> {
        let mut spare = lock(&self.spare);
        let ready = spare.get_or_insert_with(|| self.spares()).recv();
        match ready {
            Ok(Ok(process)) => Ok(process),
            // What it says may be of long ago.
            Ok(Err(_)) => self.start(),
            Err(_) => {
                *spare = None;
                self.start()
            }
        }
    }

    /// Starts one after the other, and always has one to hand over; ends with the pool.
    fn spares(&self) -> mpsc::Receiver<io::Result<Running>> {
        let (hand, take) = mpsc::sync_channel(0);
        let (program, started) = (self.program.clone(), Arc::clone(&self.started));
        let starting = move || {
            loop {
                started.fetch_add(1, Ordering::Relaxed);
                if hand.send(Running::start(&program)).is_err() {
                    return;
                }
            }
        };
        // Without the thread the other end is closed, and processes are started when they are needed.
        let _ = thread::Builder::new().spawn(starting);
        take
    }

    fn start(&self) -> Result<Running, End> {
        self.started.fetch_add(1, Ordering::Relaxed);
        Ok(Running::start(&self.program)?)
    }

    /// How many processes were started in all.
    pub fn started(&self) -> usize {
        self.started.load(Ordering::Relaxed)
    }

    /// How many questions took too long while a pass waited for them.
    pub fn interrupted(&self) -> usize {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Those that wait for a question and have answered one.
    pub fn idle(&self) -> Vec<u32> {
        lock(&self.idle).iter().map(Running::id).collect()
    }
}

/// A question on its way.
struct Work {
    of: Of,
    text: Arc<Vec<u8>>,
    digest: Digest,
}

impl Work {
    fn quick_line(&self) -> Vec<u8> {
        let more = u64::try_from(self.text.len() / QUICK_BYTES).unwrap_or_default();
        line(QUICK + more, &self.text)
    }
}

#[derive(Clone, Copy)]
enum Of {
    Expression,
    Schema,
    Instance,
}

fn of(question: &Question<'_>) -> Of {
    match question {
        Question::Evaluate { .. } => Of::Expression,
        Question::Check { .. } => Of::Schema,
        Question::Faults { .. } => Of::Instance,
    }
}

/// What is said of a question that was ended.
fn words(bound: Bound, of: Of) -> String {
    let (seconds, megabytes) = (EXPRESSION_SECONDS, EXPRESSION_MEMORY_BYTES >> 20);
    let (limit, remedy) = match (bound, of) {
        (Bound::Time, Of::Expression) => {
            (format!("took longer than {seconds} s of processor time"), "let it read less, or loop less")
        }
        (Bound::Memory, Of::Expression) => {
            (format!("needed more than {megabytes} MB of memory"), "let it read less, or build fewer and smaller lists")
        }
        (Bound::Stack, Of::Expression) => {
            ("nests too deep to be evaluated".to_owned(), "let a step before compute a part of it")
        }
        (Bound::Time, Of::Schema) => {
            (format!("took longer than {seconds} s of processor time to compile"), "make the schema smaller")
        }
        (Bound::Memory, Of::Schema) => {
            (format!("needed more than {megabytes} MB of memory to compile"), "make the schema smaller")
        }
        (Bound::Time, Of::Instance) => (
            format!("took longer than {seconds} s of processor time to check"),
            "make the schema simpler, or give it less to check",
        ),
        (Bound::Memory, Of::Instance) => (
            format!("needed more than {megabytes} MB of memory to check"),
            "make the schema simpler, or give it less to check",
        ),
        (Bound::Stack, Of::Schema | Of::Instance) => ("nests too deep".to_owned(), "make the schema flatter"),
    };
    format!("{limit}; {remedy}")
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
