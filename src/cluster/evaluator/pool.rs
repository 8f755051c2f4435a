//! The processes, and who gets one. A question has a moment on a quick process first; one that takes longer ends that
//! process and goes to the thorough one, which gives each its whole time and starts afresh each time, so that what ends it
//! there is its own fault. A spare process stands ready in place of one that was ended. All queues are fair between
//! namespaces. Nobody waits for a thorough answer in a pass: it is remembered, and whoever asked is told.
//!
//! A namespace whose last question was answered quickly is proven: it has the processes that are kept. Others come one at
//! a time, each with a process of its own, so that however many they are, a proven one waits for one of them at most.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::memory::{Begun, Digest, Memory, Recalled};
use super::process::{Bound, End, Running};
use super::wire::{Answer, QUESTION_BYTES, Question, line};
use super::{Asker, Subject};
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
/// More than are ever underway: `memory` bounds them.
const UNDERWAY: usize = 256;

#[derive(Debug)]
pub struct Pool {
    program: PathBuf,
    quick: Fair,
    /// What needs a process that has answered nothing yet.
    unproven: Fair,
    thorough: Fair,
    /// Namespaces whose last question was answered quickly.
    proven: Mutex<HashSet<Arc<str>>>,
    idle: Mutex<Vec<Running>>,
    places: usize,
    spare: Mutex<Option<mpsc::Receiver<io::Result<Running>>>>,
    memory: Mutex<Memory>,
    /// Who waits for an answer that has come.
    told: Mutex<HashSet<Subject>>,
    tells: Notify,
    started: Arc<AtomicUsize>,
}

/// What comes of a question.
#[derive(Debug)]
pub enum Reply {
    Answer(Answer),
    /// It is being worked out; closed at the end.
    Later(watch::Receiver<()>),
    Trouble(String),
}

impl Pool {
    /// So many processes at once, two at least, and a spare one.
    pub fn of(program: PathBuf, processes: u16) -> Self {
        let places = usize::from(processes.saturating_sub(1).max(1));
        Self {
            program,
            quick: Fair::new(places, WAITING),
            unproven: Fair::new(1, WAITING),
            thorough: Fair::new(1, UNDERWAY),
            proven: Mutex::default(),
            idle: Mutex::default(),
            places,
            spare: Mutex::default(),
            memory: Mutex::default(),
            told: Mutex::default(),
            tells: Notify::new(),
            started: Arc::default(),
        }
    }

    /// Blocks for a moment: for threads that may, never for those that run async tasks.
    pub fn ask(self: &Arc<Self>, asker: &Asker, question: &Question<'_>) -> Reply {
        let text = match serde_json::to_vec(question) {
            Ok(text) if text.len() <= QUESTION_BYTES => Arc::new(text),
            Ok(text) => {
                let long = format!("reads {} bytes of JSON, at most {QUESTION_BYTES} are allowed", text.len());
                return Reply::Answer(Answer::Error(long));
            }
            Err(error) => return Reply::Trouble(error.to_string()),
        };
        let Ok(runtime) = Handle::try_current() else {
            return Reply::Trouble("asked outside of the runtime".to_owned());
        };
        let digest: Digest = Sha256::digest(text.as_slice()).into();
        let (namespace, subject) = (asker.namespace.as_ref(), asker.subject.as_ref());
        let work = Work { of: of(question), text, digest };
        match lock(&self.memory).recall(namespace, &digest, subject) {
            Recalled::Answer(answer) => return Reply::Answer(answer),
            Recalled::Underway(ends) => return Reply::Later(ends),
            Recalled::Slow => return self.defer(&runtime, asker, work),
            Recalled::Unknown => {}
        }
        let end = match runtime.block_on(self.quickly(&asker.namespace, &work)) {
            Ok(end) => end,
            Err(Full) => return Reply::Trouble(format!("too many passes of {namespace} wait for it already")),
        };
        self.prove(&asker.namespace, &end);
        match end {
            Ok(answer) => {
                // What a schema is worth is asked at every pass.
                if matches!(question, Question::Check { .. }) {
                    lock(&self.memory).keep(namespace, digest, &answer);
                }
                Reply::Answer(answer)
            }
            Err(End::Killed(_)) => self.defer(&runtime, asker, work),
            Err(End::Trouble(words)) => Reply::Trouble(words),
        }
    }

    /// On a kept process where there is one for it, else on a fresh one. It blocks its thread as `ask` does.
    async fn quickly(&self, namespace: &Arc<str>, work: &Work) -> Result<Result<Answer, End>, Full> {
        if let Some(end) = self.kept(namespace, work).await? {
            return Ok(end);
        }
        let _turn = self.unproven.acquire(namespace).await?;
        // Another one may have proven it meanwhile.
        if let Some(end) = self.kept(namespace, work).await? {
            return Ok(end);
        }
        // No place is held while a process starts.
        let process = match self.fresh() {
            Ok(process) => process,
            Err(end) => return Ok(Err(end)),
        };
        let _place = self.quick.acquire(namespace).await?;
        Ok(self.answered(process, work))
    }

    /// For a proven namespace only.
    async fn kept(&self, namespace: &Arc<str>, work: &Work) -> Result<Option<Result<Answer, End>>, Full> {
        if !lock(&self.proven).contains(namespace) {
            return Ok(None);
        }
        let _place = self.quick.acquire(namespace).await?;
        let process = lock(&self.idle).pop();
        Ok(process.map(|process| self.answered(process, work)))
    }

    fn answered(&self, process: Running, work: &Work) -> Result<Answer, End> {
        let more = u64::try_from(work.text.len() / QUICK_BYTES).unwrap_or_default();
        let (process, answer) = self.exchange(process, &line(QUICK + more, &work.text))?;
        let mut idle = lock(&self.idle);
        if idle.len() < self.places {
            idle.push(process);
        }
        Ok(answer)
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
            Err(End::Trouble(_)) => {}
        }
    }

    /// From the beginning, with all the time that there is.
    fn thoroughly(&self, work: &Work) -> Result<Answer, End> {
        let line = line(EXPRESSION_SECONDS * 1000, &work.text);
        match self.exchange(self.fresh()?, &line) {
            Ok((_, answer)) => Ok(answer),
            Err(End::Killed(bound)) => Ok(Answer::Error(words(bound, work.of))),
            Err(trouble) => Err(trouble),
        }
    }

    /// One that died while it stood ready gets a successor; one that was just started does not.
    fn exchange(&self, mut process: Running, line: &[u8]) -> Result<(Running, Answer), End> {
        let mut answer = process.exchange(line);
        if matches!(answer, Err(End::Trouble(_))) {
            process = self.start()?;
            answer = process.exchange(line);
        }
        let read = |text: String| serde_json::from_str(&text).map_err(|e| End::Trouble(format!("it answered: {e}")));
        Ok((process, read(answer?)?))
    }

    /// Works a question out at length, beside the passes.
    fn defer(self: &Arc<Self>, runtime: &Handle, asker: &Asker, work: Work) -> Reply {
        let (namespace, subject) = (Arc::clone(&asker.namespace), asker.subject.as_ref());
        let (ended, ends) = match lock(&self.memory).begin(&namespace, &work.digest, subject) {
            Begun::Yours(ended, ends) => (ended, ends),
            Begun::Another(ends) => return Reply::Later(ends),
            Begun::Full => return Reply::Trouble(format!("too much of {namespace} takes long already")),
        };
        let pool = Arc::clone(self);
        runtime.spawn(async move {
            let place = pool.thorough.acquire(&namespace).await;
            let (own, digest) = (Arc::clone(&pool), work.digest);
            let answer = tokio::task::spawn_blocking(move || own.thoroughly(&work)).await;
            drop(place);
            let answer = match answer {
                Ok(Ok(answer)) => Some(answer),
                failed => {
                    tracing::warn!(?failed, %namespace, "a question could not be worked out");
                    None
                }
            };
            let waiting = lock(&pool.memory).end(&namespace, &digest, answer.as_ref());
            drop(ended);
            lock(&pool.told).extend(waiting);
            pool.tells.notify_one();
        });
        Reply::Later(ends)
    }

    /// Objects whose answers have come since the last call; waits for the first.
    pub async fn told(&self) -> Vec<Subject> {
        loop {
            let come = std::mem::take(&mut *lock(&self.told));
            if !come.is_empty() {
                return come.into_iter().collect();
            }
            self.tells.notified().await;
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
