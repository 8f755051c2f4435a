//! What every reconcile has at hand, and what becomes of its errors.

#![expect(clippy::disallowed_methods, reason = "measures a pass")]

use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use kube::core::object::HasStatus;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::decision::Decision;
use crate::api::condition::clip;
use crate::api::step_run::JobRef;
use crate::api::trigger::TriggerStatus;
use crate::api::workflow::WorkflowStatus;
use crate::api::{Trigger, Workflow};
use crate::cluster::cache::Watched;
use crate::cluster::client::CALL_TIMEOUT;
use crate::cluster::consistency::PATIENCE;
use crate::cluster::observe::Observer;
use crate::cluster::sinks::Sinks;
use crate::cluster::ttl_cache::TtlCache;
use crate::cluster::{Error, apply, evaluator, publish};
use crate::decide::status::differs_by_progress_only;
use crate::decide::trigger::differs_by_runs_only;
use crate::decide::{self, DeletableKind, Effect, Notice, Plan};
use crate::definition::expression::Evaluate;
use crate::telemetry::Metrics;
use crate::telemetry::traces::Traces;

/// Reason of the Event that tells why passes over an object fail.
const PASS_FAILED: &str = "PassFailed";
/// Objects that nothing wakes are looked at again after this: deletes may be lost in a watch.
const RESYNC: Duration = Duration::from_secs(300);
/// Progress of a run is written at most this often.
const PACE: Duration = Duration::from_millis(500);
/// Objects of which something is remembered from pass to pass. Of more than these nothing is: they are written and tried sooner.
const REMEMBERED: usize = 65_536;
/// What is read may name more to be read; deeper than this no definition goes.
const ROUNDS: usize = 256;
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// More than there are passes at once, of all kinds together.
const PASSES: u32 = 1 << 20;
/// When it is told again what stops the passes over an object.
const REMINDED: Duration = Duration::from_secs(3600);
/// How long the end of the passes is waited for. A pass that was given up ends at its next wait; one that computes, when
/// its expressions have reached their own bound.
const QUIET: Duration = Duration::from_secs(5);

pub struct Context {
    pub observer: Observer,
    pub recorder: Recorder,
    metrics: Arc<Metrics>,
    pub traces: Traces,
    pub sinks: Sinks,
    events: EventQueue,
    /// How often passes failed, one after the other, by UID.
    failures: TtlCache<u32>,
    /// What was told of objects that passes fail over, by UID.
    told: TtlCache<String>,
    /// Every pass that runs holds one place.
    passes: Arc<Semaphore>,
    /// When the status of a run or a Trigger was last written, by UID.
    paces: TtlCache<Instant>,
}

/// The Events that are on their way: so many changes may wait to be told, and so many are told at once.
struct EventQueue {
    waiting: Arc<Semaphore>,
    posting: Arc<Semaphore>,
}

impl Default for EventQueue {
    fn default() -> Self {
        Self { waiting: Arc::new(Semaphore::new(4096)), posting: Arc::new(Semaphore::new(4)) }
    }
}

/// What is new in a status that is about to be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StatusChange {
    /// Nothing but progress, which is written at most once in `PACE`.
    Progress,
    News,
    /// The object has ended: this is its last status.
    End,
}

impl Context {
    pub fn new(observer: Observer, recorder: Recorder, metrics: Arc<Metrics>) -> Self {
        let passes = Arc::new(Semaphore::new(PASSES as usize));
        let (traces, sinks) = (Traces::default(), Sinks::default());
        let failures = TtlCache::new(LONGEST_BACKOFF * 2 + CALL_TIMEOUT * 2, REMEMBERED);
        let told = TtlCache::new(REMINDED, REMEMBERED);
        let (events, paces) = (EventQueue::default(), TtlCache::new(PACE, REMEMBERED));
        Self { observer, recorder, metrics, traces, sinks, events, failures, told, passes, paces }
    }

    /// With traces of what has ended.
    #[must_use]
    pub fn with_traces(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    /// With receivers outside of the cluster.
    #[must_use]
    pub fn with_sinks(self, sinks: Sinks) -> Self {
        Self { sinks, ..self }
    }

    /// Counts what became of a notification.
    pub fn notified(&self, sink: &str, outcome: &'static str) {
        self.metrics.notified(sink, outcome);
    }

    /// Decides, gets what the decision lacks, and decides again until it lacks nothing.
    pub async fn decided<O: Decision>(&self, mut observed: O) -> Result<(O, Plan<O::Status>), Error> {
        for _ in 0..ROUNDS {
            let decided;
            (observed, decided) = self.elsewhere(move || observed.decide()).await?;
            if !evaluator::is_conclusive(observed.evaluator())? {
                return Ok((observed, Plan::default()));
            }
            observed.keep(&self.observer);
            match decided {
                Ok(plan) => return Ok((observed, plan)),
                Err(lack) => observed.get(&self.observer, lack).await?,
            }
        }
        Err(Error::Stale(observed.uid()))
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
        let (observed, evaluator) = observed;
        let decided = move || {
            let plan = decide(&observed, evaluator.as_ref());
            (observed, evaluator, plan)
        };
        let (observed, evaluator, plan) = self.elsewhere(decided).await?;
        let is_conclusive = evaluator::is_conclusive(evaluator.as_ref())?;
        Ok((observed, if is_conclusive { plan } else { Plan::default() }))
    }

    /// Decides on a thread that may block, if expressions and schemas wait for processes that evaluate them.
    async fn elsewhere<T: Send + 'static>(&self, decide: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        if !self.observer.evaluator.blocks() {
            return Ok(decide());
        }
        tokio::task::spawn_blocking(decide).await.map_err(|e| Error::Panic(e.to_string()))
    }

    /// From now on this process writes.
    pub fn leads(&self) {
        self.metrics.leading();
    }

    /// Leaves a status out that says nothing but progress, if one was written a moment ago.
    pub fn paced(&self, workflow: &Workflow, plan: Plan<WorkflowStatus>) -> Plan<WorkflowStatus> {
        let (before, next) = (workflow.status.as_ref(), plan.status.as_ref());
        let change = match before.zip(next) {
            _ if next.is_some_and(|status| status.completed_at.is_some()) => StatusChange::End,
            Some((before, next)) if differs_by_progress_only(before, next) => StatusChange::Progress,
            _ => StatusChange::News,
        };
        self.in_pace(workflow.metadata.uid.as_ref(), plan, change)
    }

    /// The same of a status that tells of other runs alone.
    pub fn paced_trigger(&self, trigger: &Trigger, plan: Plan<TriggerStatus>) -> Plan<TriggerStatus> {
        let (before, next) = (trigger.status.as_ref(), plan.status.as_ref());
        let change = match before.zip(next) {
            Some((before, next)) if differs_by_runs_only(before, next) => StatusChange::Progress,
            _ => StatusChange::News,
        };
        self.in_pace(trigger.metadata.uid.as_ref(), plan, change)
    }

    fn in_pace<S>(&self, uid: Option<&String>, mut plan: Plan<S>, change: StatusChange) -> Plan<S> {
        let Some(uid) = uid.filter(|_| plan.status.is_some()) else { return plan };
        let written = self.paces.get(uid).filter(|_| change == StatusChange::Progress);
        let now = Instant::now();
        if let Some(at) = written {
            plan.status = None;
            plan.look_again(PACE.saturating_sub(now.duration_since(at)));
        } else if change != StatusChange::End {
            self.paces.insert(uid.clone(), now, now);
        }
        plan
    }

    /// Carries a plan out: effects, then status, then notices; before them what is said of something that an effect takes away.
    pub async fn carry_out<K, S>(
        &self,
        observed: &K,
        plan: Plan<S>,
        set: impl FnOnce(&mut K, S, Option<JobRef>),
    ) -> Result<Action, Error>
    where
        K: Watched + HasStatus<Status: serde::Serialize> + Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let cluster = &self.observer;
        let namespace = observed.meta().namespace.clone().unwrap_or_default();
        log_plan(observed, &plan);
        let (first, notices): (Vec<_>, Vec<_>) = plan.notices.into_iter().partition(|notice| notice.comes_first);
        log_notices(observed, &first);
        publish::notices(&self.recorder, &observed.object_ref(&()), first).await;
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
        self.tell(observed, notices);
        Ok(Action::requeue(plan.requeue.unwrap_or(RESYNC).min(RESYNC)))
    }

    /// What becomes of a run whose first write the API server refuses, once it has refused it often enough.
    pub fn session_refused(&self, workflow: &Workflow, error: &Error) -> Option<Plan<WorkflowStatus>> {
        let why = error.refusal().filter(|_| decide::workflow::has_no_session(workflow))?;
        let meta = &workflow.metadata;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let times = self.observer.refusals.remember(&text(&meta.namespace), &text(&meta.uid), why);
        decide::workflow::session_refused(workflow, why, times, &self.observer.clock.now())
    }

    /// Events go out beside the work: nothing waits for them, and they take few of the places of its calls.
    fn tell<K: Watched>(&self, about: &K, notices: Vec<Notice>) {
        log_notices(about, &notices);
        if notices.is_empty() {
            return;
        }
        let Ok(place) = Arc::clone(&self.events.waiting).try_acquire_owned() else {
            tracing::warn!(count = notices.len(), "Events were lost: too many wait for the API server");
            return;
        };
        let (recorder, about, posting) =
            (self.recorder.clone(), about.object_ref(&()), Arc::clone(&self.events.posting));
        tokio::spawn(async move {
            let _turn = posting.acquire().await;
            publish::notices(&recorder, &about, notices).await;
            drop(place);
        });
    }

    /// Whoever looks at the object alone hears what stops it: nobody else can tell them.
    fn tell_once<K: Watched>(&self, about: &K, why: &str) {
        let uid = about.meta().uid.clone().unwrap_or_default();
        if self.told.get(&uid).as_deref() == Some(why) {
            return;
        }
        self.told.insert(uid, why.to_owned(), Instant::now());
        let notice = Notice { warning: true, comes_first: false, reason: PASS_FAILED, note: clip(why, 900) };
        self.tell(about, vec![notice]);
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
        if let Error::Unusable(why) = error {
            self.tell_once(object, why);
        }
        let uid = meta.uid.clone().unwrap_or_default();
        let failures = self.failures.get(&uid).unwrap_or_default().saturating_add(1);
        self.failures.insert(uid, failures, Instant::now());
        let wait = Duration::from_millis(200).saturating_mul(1 << failures.min(12)).min(LONGEST_BACKOFF);
        self.metrics.failed(kind, if matches!(error, Error::Panic(_)) { "panic" } else { "api" });
        tracing::warn!(kind, namespace = meta.namespace.as_deref().unwrap_or_default(), name = meta.name.as_deref().unwrap_or_default(), %error, failures, again_in = ?wait, "a pass failed");
        Action::requeue(wait)
    }

    fn succeeded(&self, uid: Option<&String>) {
        if let Some(uid) = uid {
            self.failures.remove(uid);
            self.told.remove(uid);
        }
    }
}

fn log_notices<K: Watched>(about: &K, notices: &[Notice]) {
    let meta = about.meta();
    for notice in notices {
        tracing::info!(kind = %K::kind(&()), namespace = meta.namespace.as_deref().unwrap_or_default(), name = meta.name.as_deref().unwrap_or_default(), reason = notice.reason, note = notice.note, "notice");
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
        Effect::CreateMemory(object) => object.metadata.name.as_ref(),
        Effect::CreateNetworkPolicy(object) => object.metadata.name.as_ref(),
        Effect::StartRun { run, .. } => run.metadata.name.as_ref(),
        Effect::Delete { name, .. } | Effect::SetDocumentStatus { name, .. } | Effect::UseMemory { name, .. } => {
            Some(name)
        }
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
        Effect::CreateMemory(_) => "create_memory",
        Effect::CreateNetworkPolicy(_) => "create_networkpolicy",
        Effect::UseMemory { .. } => "use_memory",
        Effect::StartRun { .. } => "create_workflow",
        Effect::Delete { what, .. } => match what {
            DeletableKind::Job => "delete_job",
            DeletableKind::StepRun => "delete_steprun",
            DeletableKind::Document => "delete_document",
            DeletableKind::Memory => "delete_memory",
            DeletableKind::Workflow => "delete_workflow",
            DeletableKind::ControllerRevision => "delete_revision",
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
    use k8s_openapi::jiff::Timestamp;
    use kube::runtime::events::Reporter;
    use serde_json::json;

    use super::*;
    use crate::apiserver::{self, ApiServer, Registry};
    use crate::cluster::observe::tests::observer;

    #[tokio::test]
    async fn what_stops_an_object_is_told_once_on_the_object() {
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let clock = Box::new(|| Timestamp::UNIX_EPOCH);
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "passes".to_owned());
        let server = ApiServer::new(registry, "operator");
        let client = server.client("team");
        let reporter = Reporter { controller: "lockstep-operator".to_owned(), instance: None };
        let recorder = Recorder::new(client.clone(), reporter);
        let context = Context::new(observer(client), recorder, Arc::new(Metrics::default()));
        let run = json!({"metadata": {"name": "shop", "namespace": "team", "uid": "u"}, "spec": {}});
        let run: Workflow = serde_json::from_value(run).expect("a run");
        for why in ["Document a cannot be read", "Document a cannot be read", "Document b cannot be read"] {
            context.after_error("Workflow", &run, &Error::Unusable(why.to_owned()));
        }
        context.after_error("Workflow", &run, &Error::Stale("shop".to_owned()));
        // Each Event holds a place until it has been sent.
        let places = u32::try_from(context.events.waiting.available_permits()).expect("a number");
        drop(context.events.waiting.acquire_many(places + 2).await.expect("all have been sent"));
        let kept = server.with(|registry| registry.store().list(apiserver::Kind::Event));
        let mut told: Vec<String> = kept.iter().map(|event| event.value["note"].to_string()).collect();
        told.sort();
        assert_eq!(told, [r#""Document a cannot be read""#, r#""Document b cannot be read""#]);
        assert!(
            kept.iter().all(|event| event.value["reason"] == PASS_FAILED && event.value["regarding"]["uid"] == "u")
        );
    }

    #[tokio::test]
    async fn a_pass_ends_before_leadership_is_given_away() {
        let passes = Arc::new(Semaphore::new(PASSES as usize));
        let place = Arc::clone(&passes).try_acquire_owned().expect("there is room");
        let (change, mut ended) = tokio::sync::oneshot::channel::<()>();
        let pass = Running::start(place, async move {
            let _told = change;
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
