//! Work for the evaluator: off the async threads, a few at a time, and patient with an answer that is still to come.

use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use super::refusal::{Reason, Refusal, Result};
use crate::definition::expression::{Evaluate, Unanswered};
use crate::protocol::AttemptRef;

/// How long a call waits, what it holds in memory, for a schema that takes long. Then it is to come again: the answer is
/// remembered meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// Works with the evaluator until an answer counts; each of so many schemas may take long once. A place is not held while an
/// answer of the evaluator is waited for.
pub async fn steadily<D, T>(
    gateway: &Gateway,
    who: &AttemptRef,
    schemas: usize,
    data: D,
    work: fn(&D, &dyn Evaluate) -> T,
) -> Result<T>
where
    D: Send + Sync + 'static,
    T: Send + 'static,
{
    let data = Arc::new(data);
    for _ in 0..=schemas {
        let evaluator = gateway.evaluator.for_namespace(&who.namespace);
        let permit = gateway.judges.acquire(&who.namespace).await?;
        let (asked, data) = (Arc::clone(&evaluator), Arc::clone(&data));
        let work = move || {
            // Held until the work ends, not until somebody stops waiting for it.
            let _permit = permit;
            work(&data, asked.as_ref())
        };
        if !gateway.evaluator.blocks() {
            return Ok(work());
        }
        let done = tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, stepRun = who.step_run, "an output could not be judged");
            Refusal::new(Reason::Internal, "the output could not be judged")
        })?;
        match evaluator.unanswered() {
            None => return Ok(done),
            Some(Unanswered::Broken(why)) => {
                tracing::warn!(why, stepRun = who.step_run, "an output could not be judged yet");
                break;
            }
            Some(Unanswered::Waits) if tokio::time::timeout(PATIENCE, evaluator.answered()).await.is_err() => break,
            Some(Unanswered::Waits) => {}
        }
    }
    Err(Refusal::unavailable("the schema could not be asked yet; try again"))
}
