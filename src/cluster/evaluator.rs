//! What authors of workflows wrote is evaluated by processes of their own: expressions, and JSON Schemas, compiled and
//! checked against. `process` is one of them, `pool` shares them out, `answer_cache` knows what took long, `wire` is what is
//! said, and `serve` the other end. Operator and gateway only look at sizes themselves (`schema::bounded`).

#![expect(clippy::disallowed_types, reason = "where all authors are trusted")]

mod answer_cache;
mod pool;
mod process;
mod serve;
mod wire;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokio::sync::watch;

pub use serve::serve;

use super::Error;
use crate::definition::expression::{Evaluate, InProcess, Unanswered};
use crate::definition::schema;
use crate::protocol::Fault;
use pool::{Pool, Reply};
use wire::{Answer, Question};

/// The processes that evaluate for this one. They are started when they are needed first. Without any this very thread
/// evaluates.
#[derive(Clone, Debug)]
pub struct Evaluator(Option<Arc<Pool>>);

/// An object that a pass is about, to be woken when an answer comes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Workflow,
    StepRun,
    Agent,
    WorkflowTemplate,
    Trigger,
}

/// Who asks a question: the namespace whose share of the processes it uses, and the object to wake when the answer comes.
#[derive(Clone, Debug)]
struct Requester {
    namespace: Arc<str>,
    subject: Option<Subject>,
}

impl Evaluator {
    /// This very program, so many times at once, and a spare one.
    pub fn new(processes: u16) -> Self {
        Self::of("/proc/self/exe", processes)
    }

    pub fn of(program: impl Into<PathBuf>, processes: u16) -> Self {
        Self(Some(Arc::new(Pool::of(program.into(), processes))))
    }

    /// On the caller's own stack, without a bound of time or memory: only where all authors are trusted, as in tests.
    pub fn here() -> Self {
        Self(None)
    }

    /// Whether whoever asks must be a thread that may block.
    pub fn blocks(&self) -> bool {
        self.0.is_some()
    }

    /// One for each pass: trouble of one is not that of another.
    pub fn for_pass(&self, kind: Kind, namespace: &str, name: &str) -> Arc<dyn Evaluate> {
        let subject = Subject { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        Arc::new(self.isolated(namespace, Some(subject)))
    }

    /// For whoever waits for the answer itself.
    pub fn for_namespace(&self, namespace: &str) -> Arc<Isolated> {
        Arc::new(self.isolated(namespace, None))
    }

    fn isolated(&self, namespace: &str, subject: Option<Subject>) -> Isolated {
        let requester = Requester { namespace: namespace.into(), subject };
        Isolated { pool: self.0.clone(), requester, trouble: OnceLock::new(), later: OnceLock::new() }
    }

    /// Objects whose answers have come since the last call; waits for the first.
    pub async fn subjects_to_wake(&self) -> Vec<Subject> {
        match &self.0 {
            Some(pool) => pool.subjects_to_wake().await,
            None => std::future::pending().await,
        }
    }

    /// How many processes were started in all.
    pub fn started(&self) -> usize {
        self.0.as_ref().map_or(0, |pool| pool.started())
    }

    /// How many questions took too long while a pass waited for them.
    pub fn interrupted(&self) -> usize {
        self.0.as_ref().map_or(0, |pool| pool.interrupted())
    }

    /// The processes that have answered and wait for more.
    pub fn idle(&self) -> Vec<u32> {
        self.0.as_ref().map(|pool| pool.idle()).unwrap_or_default()
    }
}

/// Whether what was decided counts: not while an answer is still to come, which wakes whoever asked. An error where
/// there is none for no fault of an author.
pub fn is_conclusive(evaluator: &dyn Evaluate) -> Result<bool, Error> {
    match evaluator.unanswered() {
        None => Ok(true),
        Some(Unanswered::Waits) => Ok(false),
        Some(Unanswered::Broken(words)) => Err(Error::Unusable(words)),
    }
}

/// Asks the processes, where there are any. Its callers are threads that may block then.
#[derive(Debug)]
pub struct Isolated {
    pool: Option<Arc<Pool>>,
    requester: Requester,
    trouble: OnceLock<Unanswered>,
    later: OnceLock<watch::Receiver<()>>,
}

impl Isolated {
    /// Waits for the answer that was missing.
    pub async fn answered(&self) {
        if let Some(ends) = self.later.get() {
            // It is closed, never written.
            let _ = ends.clone().changed().await;
        }
    }

    fn ask(&self, pool: &Arc<Pool>, question: &Question<'_>) -> Result<Answer, String> {
        // What follows is void anyway.
        if self.trouble.get().is_none() {
            match pool.ask(&self.requester, question) {
                Reply::Answer(Answer::Error(fault)) => return Err(fault),
                Reply::Answer(answer) => return Ok(answer),
                Reply::Later(ends) => {
                    self.later.get_or_init(|| ends);
                    self.trouble.get_or_init(|| Unanswered::Waits);
                }
                Reply::Unanswered(words) => {
                    self.trouble.get_or_init(|| Unanswered::Broken(format!("the process that evaluates: {words}")));
                }
            }
        }
        Err("is not evaluated yet".to_owned())
    }

    fn strange<T>(&self, answer: &Answer) -> Result<T, String> {
        self.trouble.get_or_init(|| Unanswered::Broken(format!("the process that evaluates answered {answer:?}")));
        Err("is not evaluated".to_owned())
    }
}

impl Evaluate for Isolated {
    fn evaluate(&self, source: &str, variables: &Map<String, Value>) -> Result<Value, String> {
        let Some(pool) = &self.pool else { return InProcess.evaluate(source, variables) };
        match self.ask(pool, &Question::Evaluate { source, variables })? {
            Answer::Value(value) => Ok(value),
            other => self.strange(&other),
        }
    }

    fn check(&self, schema: &Map<String, Value>) -> Result<(), String> {
        schema::bounded(schema)?;
        let Some(pool) = &self.pool else { return InProcess.check(schema) };
        match self.ask(pool, &Question::Check { schema })? {
            Answer::Fine => Ok(()),
            other => self.strange(&other),
        }
    }

    fn faults(&self, schema: &Map<String, Value>, instance: &Value) -> Result<Vec<Fault>, String> {
        schema::bounded(schema)?;
        let Some(pool) = &self.pool else { return InProcess.faults(schema, instance) };
        match self.ask(pool, &Question::Faults { schema, instance })? {
            Answer::Faults(faults) => Ok(faults),
            other => self.strange(&other),
        }
    }

    fn unanswered(&self) -> Option<Unanswered> {
        self.trouble.get().cloned()
    }
}
