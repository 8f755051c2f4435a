//! What every reconcile has at hand, and what becomes of its errors.

#![expect(clippy::disallowed_methods, reason = "measures a pass")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Resource;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::api::Workflow;
use crate::api::step_run::JobRef;
use crate::api::workflow::WorkflowStatus;
use crate::cluster::cache::Watched;
use crate::cluster::consistency::PATIENCE;
use crate::cluster::observe::Observer;
use crate::cluster::{Error, apply, evaluator, publish};
use crate::decide::status::differs_by_progress_only;
use crate::decide::{Effect, Kept, Notice, Plan, workflow};
use crate::definition::expression::Evaluate;
use crate::telemetry::Metrics;

/// Objects that nothing wakes are looked at again after this: deletes may be lost in a watch.
const RESYNC: Duration = Duration::from_secs(300);
/// Progress of a run is written at most this often.
const PACE: Duration = Duration::from_millis(500);
/// What is read may name more to be read; deeper than this no definition goes.
const READS: usize = 256;
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// More than there are passes at once, of all kinds together.
const PASSES: u32 = 1 << 20;
/// How long the end of the passes is waited for. A pass that was given up ends at its next wait; one that computes, when
/// its expressions have reached their own bound.
const QUIET: Duration = Duration::from_secs(5);

pub struct Context {
    pub observer: Observer,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    failures: Mutex<HashMap<String, u32>>,
    /// Every pass that runs holds one place.
    passes: Arc<Semaphore>,
    /// When a run's status was last written, by UID.
    paces: Mutex<HashMap<String, Instant>>,
}

impl Context {
    pub fn new(observer: Observer, recorder: Recorder, metrics: Arc<Metrics>) -> Self {
        let passes = Arc::new(Semaphore::new(PASSES as usize));
        Self { observer, recorder, metrics, failures: Mutex::default(), passes, paces: Mutex::default() }
    }

    /// Decides about a run, and fetches contents of documents as far as the decision asks for them.
    pub async fn decided(
        &self,
        mut observed: workflow::Observed,
    ) -> Result<(workflow::Observed, Plan<WorkflowStatus>), Error> {
        let uid = observed.workflow.metadata.uid.clone().unwrap_or_default();
        for _ in 0..READS {
            let decided;
            (observed, decided) = self.elsewhere(observed, workflow::decide).await?;
            if !evaluator::sound(observed.evaluator.as_ref())? {
                return Ok((observed, Plan::default()));
            }
            self.observer.settled.keep(&uid, &decided.settled);
            if decided.unread.is_empty() {
                return Ok((observed, decided.plan));
            }
            self.observer.read(&mut observed, &decided.unread).await?;
        }
        Err(Error::Stale(uid))
    }

    /// Waits until no pass runs any more, those included that nobody waits for; from then on none begins.
    pub async fn quiet(&self) {
        if tokio::time::timeout(QUIET, quiet(&self.passes)).await.is_err() {
            tracing::warn!(waited = ?QUIET, "a pass is still at work; the lease is given back all the same");
        }
    }

    /// Decides about anything else. While an answer of the evaluator is still to come nothing is to be done.
    pub async fn decided_with<O, S>(
        &self,
        observed: (O, Arc<dyn Evaluate>),
        decide: impl FnOnce(&O, &dyn Evaluate) -> Plan<S> + Send + 'static,
    ) -> Result<(O, Plan<S>), Error>
    where
        O: Send + 'static,
        S: Send + 'static,
    {
        let ((observed, evaluator), plan) =
            self.elsewhere(observed, |(observed, evaluator)| decide(observed, evaluator.as_ref())).await?;
        let sound = evaluator::sound(evaluator.as_ref())?;
        Ok((observed, if sound { plan } else { Plan::default() }))
    }

    /// Decides on a thread that may block, if expressions and schemas wait for processes that evaluate them.
    async fn elsewhere<O, D>(&self, observed: O, decide: impl FnOnce(&O) -> D + Send + 'static) -> Result<(O, D), Error>
    where
        O: Send + 'static,
        D: Send + 'static,
    {
        if !self.observer.evaluator.blocks() {
            let decided = decide(&observed);
            return Ok((observed, decided));
        }
        let deciding = tokio::task::spawn_blocking(move || {
            let decided = decide(&observed);
            (observed, decided)
        });
        deciding.await.map_err(|e| Error::Panic(e.to_string()))
    }

    /// From now on this process writes.
    pub fn leads(&self) {
        self.metrics.leading();
    }

    /// Leaves a status out that says nothing but progress, if one was written a moment ago.
    pub fn paced(&self, workflow: &Workflow, mut plan: Plan<WorkflowStatus>) -> Plan<WorkflowStatus> {
        let (Some(uid), Some(status)) = (workflow.metadata.uid.as_ref(), plan.status.as_ref()) else { return plan };
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = workflow.status.as_ref().is_some_and(|before| differs_by_progress_only(before, status));
        let since = paces.get(uid).map(Instant::elapsed).filter(|since| progress && *since < PACE);
        if let Some(since) = since {
            plan.status = None;
            plan.look_again(PACE.saturating_sub(since));
        } else if status.completed_at.is_some() {
            paces.remove(uid);
        } else {
            paces.insert(uid.clone(), Instant::now());
        }
        plan
    }

    /// Carries a plan out: effects, then status, then notices.
    pub async fn carry_out<K, S>(
        &self,
        observed: &K,
        plan: Plan<S>,
        set: impl FnOnce(&mut K, S, Option<JobRef>),
    ) -> Result<Action, Error>
    where
        K: Watched + serde::Serialize + Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let cluster = &self.observer;
        let namespace = observed.meta().namespace.clone().unwrap_or_default();
        log_plan(observed, &plan);
        plan.effects.iter().for_each(|effect| self.metrics.wrote(label(effect)));
        let applied = match apply::apply(&cluster.client, &namespace, &plan.effects, &cluster.consistency).await {
            Ok(applied) => applied,
            Err(Error::JobRefused { name, message }) => {
                tracing::warn!(namespace, job = name, message, "the API server refused a Job");
                cluster.refusals.remember(&namespace, &name, &message);
                // The next pass sees it, and ends the attempt.
                return Ok(Action::requeue(Duration::ZERO));
            }
            Err(Error::NotOurs { kind: "Job", name, holder }) => {
                tracing::warn!(namespace, job = name, holder, "somebody else holds the name of a Job");
                cluster.taken.remember(&namespace, &name, &holder);
                return Ok(Action::requeue(Duration::ZERO));
            }
            Err(error) => return Err(error),
        };
        if let Some(status) = plan.status {
            self.metrics.wrote("status");
            // An effect on the object itself moved its version, by compare-and-swap: nobody wrote in between.
            let write = |object: &mut K| {
                object.meta_mut().resource_version = applied.version.or(object.meta_mut().resource_version.take());
                set(object, status, applied.job);
            };
            publish::status(&cluster.client, observed, write, &cluster.consistency).await?;
        }
        self.tell(observed, plan.notices);
        Ok(Action::requeue(plan.requeue.unwrap_or(RESYNC).min(RESYNC)))
    }

    /// Events go out beside the work: nothing waits for them.
    fn tell<K: Watched>(&self, about: &K, notices: Vec<Notice>) {
        let meta = about.meta();
        for notice in &notices {
            tracing::info!(kind = %K::kind(&()), namespace = meta.namespace.as_deref().unwrap_or_default(), name = meta.name.as_deref().unwrap_or_default(), reason = notice.reason, note = notice.note, "notice");
        }
        if !notices.is_empty() {
            let (recorder, about) = (self.recorder.clone(), about.clone());
            tokio::spawn(async move { publish::notices(&recorder, &about, notices).await });
        }
    }

    /// When to try again.
    pub fn after_error<K: Watched>(&self, kind: &'static str, object: &K, error: &Error) -> Action {
        let meta = object.meta();
        if error.is_conflict() {
            self.metrics.failed(kind, "conflict");
            return Action::requeue(Duration::from_millis(500));
        }
        if matches!(error, Error::Stale(_)) {
            self.metrics.failed(kind, "stale");
            return Action::requeue(PATIENCE + Duration::from_millis(50));
        }
        let failures = {
            let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            let count = all.entry(meta.uid.clone().unwrap_or_default()).or_insert(0);
            *count = count.saturating_add(1);
            *count
        };
        let wait = Duration::from_millis(200).saturating_mul(1 << failures.min(12)).min(LONGEST_BACKOFF);
        self.metrics.failed(kind, if matches!(error, Error::Panic(_)) { "panic" } else { "api" });
        tracing::warn!(kind, namespace = meta.namespace.as_deref().unwrap_or_default(), name = meta.name.as_deref().unwrap_or_default(), %error, failures, again_in = ?wait, "a pass failed");
        Action::requeue(wait)
    }

    fn succeeded(&self, uid: Option<&String>) {
        if let Some(uid) = uid {
            self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        }
    }
}

/// What a pass is about to do, before it does it: what it saw, and each effect with the name that it is about.
fn log_plan<K: Watched, S>(observed: &K, plan: &Plan<S>) {
    if tracing::enabled!(target: "lockstep::plan", tracing::Level::DEBUG) {
        let meta = observed.meta();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let effects: Vec<String> = plan.effects.iter().map(|e| format!("{} {}", label(e), target(e))).collect();
        let notices: Vec<&str> = plan.notices.iter().map(|notice| notice.reason).collect();
        tracing::debug!(
            target: "lockstep::plan",
            kind = %K::kind(&()),
            namespace = text(&meta.namespace),
            name = text(&meta.name),
            uid = text(&meta.uid),
            resourceVersion = text(&meta.resource_version),
            status = plan.status.is_some(),
            effects = effects.join(", "),
            notices = notices.join(", "),
            "decided"
        );
    }
}

/// Name of the object that an effect is about.
fn target(effect: &Effect) -> &str {
    let name = match effect {
        Effect::CreateRevision(object) => object.metadata.name.as_ref(),
        Effect::CreateDocument(object) => object.metadata.name.as_ref(),
        Effect::CreateStepRun(object) => object.metadata.name.as_ref(),
        Effect::CreateJob(object) => object.metadata.name.as_ref(),
        Effect::Delete { name, .. } | Effect::SetDocumentStatus { name, .. } => Some(name),
        Effect::EmptyMailbox { step_run, .. } => Some(step_run),
    };
    name.map_or("", String::as_str)
}

fn label(effect: &Effect) -> &'static str {
    match effect {
        Effect::CreateRevision(_) => "create_revision",
        Effect::CreateDocument(_) => "create_document",
        Effect::CreateStepRun(_) => "create_steprun",
        Effect::CreateJob(_) => "create_job",
        Effect::Delete { what, .. } => match what {
            Kept::Job => "delete_job",
            Kept::StepRun => "delete_steprun",
            Kept::Document => "delete_document",
            Kept::Workflow => "delete_workflow",
        },
        Effect::SetDocumentStatus { .. } => "document_status",
        Effect::EmptyMailbox { .. } => "empty_mailbox",
    }
}

/// One pass, a task of its own: timed, and a panic in it harms this object alone.
pub async fn guarded<F>(
    kind: &'static str,
    uid: Option<String>,
    context: Arc<Context>,
    pass: F,
) -> Result<Action, Error>
where
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let began = Instant::now();
    let Ok(place) = Arc::clone(&context.passes).try_acquire_owned() else {
        return Ok(Action::await_change());
    };
    let outcome = Running::start(place, pass).await;
    context.metrics.passed(kind, began.elapsed());
    let outcome = outcome.unwrap_or_else(|lost| Err(Error::Panic(lost.to_string())));
    if outcome.is_ok() {
        context.succeeded(uid.as_ref());
    }
    outcome
}

async fn quiet(passes: &Semaphore) {
    if let Ok(all) = passes.acquire_many(PASSES).await {
        all.forget();
    }
}

/// A task that ends with whoever waits for it: a pass that goes on alone would write after leadership was given away.
struct Running<T>(JoinHandle<T>);

impl<T: Send + 'static> Running<T> {
    /// The place is held until the task has ended, not until somebody stops waiting for it.
    async fn start(
        place: OwnedSemaphorePermit,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        let task = tokio::spawn(async move {
            let _place = place;
            work.await
        });
        let mut running = Self(task);
        (&mut running.0).await
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_pass_ends_before_leadership_is_given_away() {
        let passes = Arc::new(Semaphore::new(PASSES as usize));
        let place = Arc::clone(&passes).try_acquire_owned().expect("there is room");
        let (told, mut ended) = tokio::sync::oneshot::channel::<()>();
        let pass = Running::start(place, async move {
            let _told = told;
            pending::<()>().await;
        });
        let mut pass = Box::pin(pass);
        assert!(pass.as_mut().now_or_never().is_none(), "it runs");
        tokio::task::yield_now().await;
        assert!(quiet(&passes).now_or_never().is_none(), "quiet waits for it");
        drop(pass);
        quiet(&passes).await;
        assert!(
            ended.try_recv().is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Closed),
            "it has ended"
        );
        assert!(passes.try_acquire().is_err(), "no other begins");
    }
}
