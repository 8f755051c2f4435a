//! Expressions of Triggers: asked of the processes that evaluate, off the async threads, and patient with an answer
//! that is still to come.

#![expect(clippy::disallowed_methods, reason = "how long an answer is waited for")]

use std::sync::Arc;
use std::time::Duration;

use super::Http;
use super::problem::{Problem, Result};
use crate::definition::expression::{Evaluate, Unanswered};

/// How long a call waits for expressions that take long, in all: senders of webhooks give up after 10 seconds. Then it is
/// to come again: the answers are remembered meanwhile.
const PATIENCE: Duration = Duration::from_secs(8);

/// Works with the evaluator until its answers count; each of so many expressions may take long once.
pub async fn steadily<T: Send + 'static>(
    http: &Http,
    namespace: &str,
    expressions: usize,
    work: impl Fn(&Arc<dyn Evaluate>) -> T + Send + Sync + 'static,
) -> Result<T> {
    let work = Arc::new(work);
    let end = tokio::time::Instant::now() + PATIENCE;
    for _ in 0..=expressions {
        let asked = http.evaluator.for_namespace(namespace);
        let evaluator: Arc<dyn Evaluate> = Arc::clone(&asked) as Arc<dyn Evaluate>;
        if !http.evaluator.blocks() {
            return Ok(work(&evaluator));
        }
        let work = Arc::clone(&work);
        let done = tokio::task::spawn_blocking(move || work(&evaluator)).await.map_err(|error| {
            tracing::error!(%error, namespace, "the expressions of a Trigger could not be evaluated");
            Problem::unavailable("the expressions of a Trigger could not be evaluated")
        })?;
        match asked.unanswered() {
            None => return Ok(done),
            Some(Unanswered::Broken(why)) => {
                tracing::warn!(why, namespace, "the expressions of a Trigger could not be evaluated yet");
                break;
            }
            Some(Unanswered::Waits) if tokio::time::timeout_at(end, asked.answered()).await.is_err() => break,
            Some(Unanswered::Waits) => {}
        }
    }
    Err(Problem::unavailable("the expressions of a Trigger take long; try again"))
}
