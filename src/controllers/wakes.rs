//! Who must look again when something changed. A queue a kind, bounded; being woken twice is the same as once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::ObjectMeta;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;

use crate::api::name::{LABEL_STEP_RUN, LABEL_TRIGGER, LABEL_WORKFLOW};
use crate::api::workflow::{BudgetStatus, Phase};
use crate::api::{Agent, Document, StepRun, Trigger, Workflow, WorkflowTemplate};
use crate::cluster::cache::Watched;
use crate::cluster::evaluator::{Evaluator, Kind};
use crate::cluster::slots::Slots;
use crate::cluster::world::World;
use crate::decide::document;
use crate::decide::step_run::{Hold, hold};

/// Wake-ups that wait for the controller of a kind. A watch that finds the queue full waits: the controller takes
/// wake-ups out at once and merges those of one object, so it is full only for moments.
const CAPACITY: usize = 1024;

pub struct Wakes {
    workflows: mpsc::Sender<ObjectRef<Workflow>>,
    step_runs: mpsc::Sender<ObjectRef<StepRun>>,
    agents: mpsc::Sender<ObjectRef<Agent>>,
    templates: mpsc::Sender<ObjectRef<WorkflowTemplate>>,
    triggers: mpsc::Sender<ObjectRef<Trigger>>,
    documents: mpsc::Sender<ObjectRef<Document>>,
    notified_runs: mpsc::Sender<ObjectRef<Workflow>>,
    notified_steps: mpsc::Sender<ObjectRef<StepRun>>,
    propagated: Mutex<PropagatedState>,
}

/// What of their run the StepRuns were already woken for, by the run's UID.
#[derive(Default)]
struct PropagatedState {
    /// Suspended runs: their StepRuns are woken when that ends.
    suspended: HashSet<String>,
    /// Runs that have ended: no later write to the run wakes their StepRuns.
    ended: HashSet<String>,
    /// What is left of each run's budget, and which StepRun asks for more.
    budgets: HashMap<String, BudgetStatus>,
}

pub struct Queues {
    pub workflows: mpsc::Receiver<ObjectRef<Workflow>>,
    pub step_runs: mpsc::Receiver<ObjectRef<StepRun>>,
    pub agents: mpsc::Receiver<ObjectRef<Agent>>,
    pub templates: mpsc::Receiver<ObjectRef<WorkflowTemplate>>,
    pub triggers: mpsc::Receiver<ObjectRef<Trigger>>,
    pub documents: mpsc::Receiver<ObjectRef<Document>>,
    /// Runs and StepRuns of which receivers outside of the cluster may have to be notified.
    pub notified_runs: mpsc::Receiver<ObjectRef<Workflow>>,
    pub notified_steps: mpsc::Receiver<ObjectRef<StepRun>>,
}

impl Queues {
    /// Throws away what comes, for ever.
    pub async fn discard(&mut self) {
        async fn one<K: Watched>(queue: &mut mpsc::Receiver<ObjectRef<K>>) {
            while queue.recv().await.is_some() {}
        }
        futures::join!(
            one(&mut self.workflows),
            one(&mut self.step_runs),
            one(&mut self.agents),
            one(&mut self.templates),
            one(&mut self.triggers),
            one(&mut self.documents),
            one(&mut self.notified_runs),
            one(&mut self.notified_steps),
        );
    }
}

impl Wakes {
    pub fn new() -> (Self, Queues) {
        let (workflows, workflows_in) = mpsc::channel(CAPACITY);
        let (step_runs, step_runs_in) = mpsc::channel(CAPACITY);
        let (agents, agents_in) = mpsc::channel(CAPACITY);
        let (templates, templates_in) = mpsc::channel(CAPACITY);
        let (triggers, triggers_in) = mpsc::channel(CAPACITY);
        let (documents, documents_in) = mpsc::channel(CAPACITY);
        let (notified_runs, notified_runs_in) = mpsc::channel(CAPACITY);
        let (notified_steps, notified_steps_in) = mpsc::channel(CAPACITY);
        let queues = Queues {
            workflows: workflows_in,
            step_runs: step_runs_in,
            agents: agents_in,
            templates: templates_in,
            triggers: triggers_in,
            documents: documents_in,
            notified_runs: notified_runs_in,
            notified_steps: notified_steps_in,
        };
        let propagated = Mutex::default();
        let wakes = Self {
            workflows,
            step_runs,
            agents,
            templates,
            triggers,
            documents,
            notified_runs,
            notified_steps,
            propagated,
        };
        (wakes, queues)
    }

    pub async fn workflow(&self, world: &World, workflow: &Workflow) {
        send(&self.workflows, ObjectRef::from_obj(workflow)).await;
        if let (Some(trigger), Some(namespace)) = (workflow.labels().get(LABEL_TRIGGER), workflow.namespace()) {
            send(&self.triggers, ObjectRef::new(trigger).within(&namespace)).await;
        }
        let there = world.workflows.get(&workflow.namespace().unwrap_or_default(), &workflow.name_any());
        if self.concerns_steps(workflow, there.as_deref()) {
            // What a run says is about what may still go on. One that has ended publishes and cleans up whatever the run says,
            // and its own changes and those of its Jobs, pods and documents wake it for that.
            for step_run in world.open_step_runs(workflow) {
                send(&self.step_runs, ObjectRef::from_obj(step_run.as_ref())).await;
            }
        }
    }

    /// Whether the run says something new to its open StepRuns, or something that they must not miss.
    fn concerns_steps(&self, workflow: &Workflow, cached: Option<&Workflow>) -> bool {
        let uid = workflow.uid().unwrap_or_default();
        let there = cached.is_some_and(|w| w.uid().as_ref() == Some(&uid));
        let goes = !there || workflow.metadata.deletion_timestamp.is_some();
        let ended = workflow.status.as_ref().is_some_and(|s| s.completed_at.is_some());
        let mut propagated = self.propagated.lock().unwrap_or_else(PoisonError::into_inner);
        if goes {
            propagated.ended.remove(&uid);
        }
        let budget = workflow.status.as_ref().and_then(|s| s.budget.clone()).filter(|_| !goes && !ended);
        let is_news = budget != propagated.budgets.get(&uid).cloned();
        match budget {
            Some(budget) => drop(propagated.budgets.insert(uid.clone(), budget)),
            None => drop(propagated.budgets.remove(&uid)),
        }
        let held = match hold(workflow) {
            Hold::Suspended if there => propagated.suspended.insert(uid),
            Hold::No => propagated.suspended.remove(&uid),
            Hold::Suspended | Hold::Closing | Hold::Stopping => {
                propagated.suspended.remove(&uid);
                goes || !ended || propagated.ended.insert(uid)
            }
        };
        held || is_news
    }

    /// Those whose turn has come, for ever.
    pub async fn turns(&self, slots: &Slots) {
        loop {
            for (namespace, name) in slots.granted().await {
                send(&self.step_runs, ObjectRef::new(&name).within(&namespace)).await;
            }
        }
    }

    /// Those whose answers have come from the processes that evaluate, for ever.
    pub async fn answers(&self, evaluator: &Evaluator) {
        loop {
            for of in evaluator.subjects_to_wake().await {
                match of.kind {
                    Kind::Workflow => send(&self.workflows, ObjectRef::new(&of.name).within(&of.namespace)).await,
                    Kind::StepRun => send(&self.step_runs, ObjectRef::new(&of.name).within(&of.namespace)).await,
                    Kind::Agent => send(&self.agents, ObjectRef::new(&of.name).within(&of.namespace)).await,
                    Kind::Trigger => send(&self.triggers, ObjectRef::new(&of.name).within(&of.namespace)).await,
                    Kind::WorkflowTemplate => {
                        send(&self.templates, ObjectRef::new(&of.name).within(&of.namespace)).await;
                    }
                }
            }
        }
    }

    /// For receivers outside of the cluster, who may have to be notified of the run.
    pub async fn notify_of_run(&self, workflow: &Workflow) {
        send(&self.notified_runs, ObjectRef::from_obj(workflow)).await;
    }

    pub async fn notify_of_step(&self, step_run: &StepRun) {
        send(&self.notified_steps, ObjectRef::from_obj(step_run)).await;
    }

    pub async fn step_run(&self, step_run: &StepRun) {
        send(&self.step_runs, ObjectRef::from_obj(step_run)).await;
        send(
            &self.workflows,
            ObjectRef::new(&step_run.spec.workflow.name).within(&step_run.namespace().unwrap_or_default()),
        )
        .await;
    }

    /// For an object that cannot be read: the run that owns it must hear of it, and so must all that refer to it.
    pub async fn unreadable(&self, world: &World, kind: &str, of: &ObjectMeta) {
        let (namespace, name) = (of.namespace.as_deref().unwrap_or_default(), of.name.as_deref().unwrap_or_default());
        match kind {
            "Agent" => self.referring_to_agent(world, namespace, name).await,
            "WorkflowTemplate" => self.referring_to_template(world, namespace, name).await,
            _ => {}
        }
        let owners = of.owner_references.as_deref().unwrap_or_default();
        for run in owners.iter().filter(|owner| owner.controller == Some(true) && owner.kind == "Workflow") {
            send(&self.workflows, ObjectRef::new(&run.name).within(namespace)).await;
        }
    }

    /// For Jobs and Pods.
    pub async fn labelled_step_run(&self, child: &impl ResourceExt) {
        if let (Some(name), Some(namespace)) = (child.labels().get(LABEL_STEP_RUN), child.namespace()) {
            send(&self.step_runs, ObjectRef::new(name).within(&namespace)).await;
        }
    }

    /// For a pod: a cancelled run waits for those of what has completed.
    pub async fn pod(&self, world: &World, pod: &Pod) {
        self.labelled_step_run(pod).await;
        if let (Some(name), Some(namespace)) = (pod.labels().get(LABEL_WORKFLOW), pod.namespace())
            && world.workflows.get(&namespace, name).is_some_and(|run| run.spec.cancel == Some(true))
        {
            send(&self.workflows, ObjectRef::new(name).within(&namespace)).await;
        }
    }

    /// For what an Event tells of a Job or a pod. One that is not there yet wakes its StepRun when it comes.
    pub async fn pod_event(&self, world: &World, (namespace, name): (&str, &str)) {
        if let Some(job) = world.jobs.get(namespace, name) {
            self.labelled_step_run(job.as_ref()).await;
        }
        if let Some(pod) = world.pods.get(namespace, name) {
            self.labelled_step_run(pod.as_ref()).await;
        }
    }

    pub async fn agent(&self, world: &World, agent: &Agent) {
        send(&self.agents, ObjectRef::from_obj(agent)).await;
        self.referring_to_agent(world, &agent.namespace().unwrap_or_default(), &agent.name_any()).await;
    }

    async fn referring_to_agent(&self, world: &World, namespace: &str, name: &str) {
        for step_run in world.step_runs.under(&format!("agent {namespace}/{name}")) {
            send(&self.step_runs, ObjectRef::from_obj(step_run.as_ref())).await;
        }
        self.expecting(world, namespace).await;
    }

    pub async fn template(&self, world: &World, template: &WorkflowTemplate) {
        send(&self.templates, ObjectRef::from_obj(template)).await;
        self.referring_to_template(world, &template.namespace().unwrap_or_default(), &template.name_any()).await;
    }

    async fn referring_to_template(&self, world: &World, namespace: &str, name: &str) {
        for trigger in world.triggers.under(namespace).iter().filter(|t| t.spec.run.template_ref.name == name) {
            self.trigger(trigger).await;
        }
        self.expecting(world, namespace).await;
    }

    pub async fn trigger(&self, trigger: &Trigger) {
        send(&self.triggers, ObjectRef::from_obj(trigger)).await;
    }

    pub async fn document(&self, world: &World, document: &Document) {
        send(&self.documents, ObjectRef::from_obj(document)).await;
        // A newer revision puts those before it out of date.
        for other in document::siblings(&world.documents.table(&document.namespace().unwrap_or_default()), document) {
            if other.uid() != document.uid() {
                send(&self.documents, ObjectRef::from_obj(other.as_ref())).await;
            }
        }
        let namespace = document.namespace().unwrap_or_default();
        if let Some(run) = document.spec.workflow.as_ref().filter(|_| document.labels().contains_key(LABEL_WORKFLOW)) {
            send(&self.workflows, ObjectRef::new(run).within(&namespace)).await;
        }
        // It may be under review: whoever decides then must not do so on what lies there since.
        let there = world.documents.get(&namespace, &document.name_any());
        let is_gone = there.is_none_or(|there| there.uid() != document.uid());
        if let Some(maker) = document::maker(document).filter(|_| is_gone) {
            send(&self.step_runs, ObjectRef::new(&maker).within(&namespace)).await;
        }
        self.expecting(world, &namespace).await;
    }

    /// Runs of a namespace that wait for something to appear.
    async fn expecting(&self, world: &World, namespace: &str) {
        let expects = |w: &Arc<Workflow>| {
            let status = w.status.as_ref();
            let phase = status.and_then(|s| s.phase).unwrap_or_default();
            matches!(phase, Phase::Pending | Phase::WaitingForDocuments)
                || status.is_some_and(|s| !s.pending_documents.is_empty())
        };
        for workflow in world.workflows.under(&format!("open {namespace}")).iter().filter(|w| expects(w)) {
            send(&self.workflows, ObjectRef::from_obj(workflow.as_ref())).await;
        }
    }
}

async fn send<K: Watched>(queue: &mpsc::Sender<ObjectRef<K>>, who: ObjectRef<K>) {
    // A closed queue means that the process is ending.
    let _ = queue.send(who).await;
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use k8s_openapi::jiff::Timestamp;
    use kube::runtime::watcher::Config;
    use serde_json::json;

    use super::*;
    use crate::api::WorkflowSpec;
    use crate::api::workflow::WorkflowStatus;
    use crate::apiserver::{self, ApiServer, Format, Key, MemoryStore, Part, Registry, Writer};
    use crate::cluster::cache::ready;

    #[test]
    fn steps_hear_of_the_end_of_their_run_once() {
        let (wakes, _queues) = Wakes::new();
        let hear = |run: &Workflow| wakes.concerns_steps(run, Some(run));
        let mut run = Workflow::new("shop", WorkflowSpec::default());
        run.metadata.uid = Some("u".into());
        assert!(!hear(&run), "nothing new");
        run.spec.suspend = Some(true);
        assert!(hear(&run), "suspended");
        assert!(!hear(&run), "still");
        run.spec.suspend = None;
        assert!(hear(&run), "it goes on");
        let budget = |spent: bool| BudgetStatus { spent, ..BudgetStatus::default() };
        let status = |budget: BudgetStatus| Some(WorkflowStatus { budget: Some(budget), ..WorkflowStatus::default() });
        run.status = status(budget(false));
        assert!(hear(&run) && !hear(&run), "it has a budget");
        run.status = status(budget(true));
        assert!(hear(&run) && !hear(&run), "that is spent");
        run.status = None;
        assert!(hear(&run), "and no more");
        run.spec.cancel = Some(true);
        assert!(hear(&run) && hear(&run), "not to be missed");
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        run.status = Some(WorkflowStatus { completed_at: Some(at.clone()), ..WorkflowStatus::default() });
        assert!(hear(&run), "it has ended");
        run.spec.ttl_seconds_after_finished = Some(1);
        assert!(!hear(&run), "a change after the end is the run's alone");
        run.metadata.deletion_timestamp = Some(at);
        assert!(hear(&run) && wakes.concerns_steps(&run, None), "it goes away");
    }

    /// A run with thousands of ended steps writes its status often while the last ones end.
    #[tokio::test]
    async fn what_has_ended_is_not_woken_by_its_run() {
        const ADMIN: Writer<'static> = Writer { user: "admin", is_dry_run: false };
        let (store, clock) = (Box::new(MemoryStore::default()), Box::new(|| Timestamp::UNIX_EPOCH));
        let server =
            ApiServer::new(Registry::new(store, Box::new(apiserver::access::Open), clock, "wakes".to_owned()), "a");
        for (name, run, status) in [
            ("ended", "u", json!({"completedAt": "1970-01-01T00:00:00Z"})),
            ("new", "u", json!(null)),
            ("other", "v", json!(null)),
            ("runs", "u", json!({"phase": "Running"})),
        ] {
            let key = Key::new(apiserver::Kind::StepRun, "team", name);
            let owner = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "name": "shop", "uid": run,
                "controller": true});
            let spec = json!({"workflow": {"name": "shop", "uid": run}, "definition": {"revisionName": "r", "digest": "d"},
                "path": "a", "parameters": "{}", "inputDigest": ""});
            let made = json!({"metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec});
            let patch = json!({"status": status});
            server.with(|registry| {
                registry.create(&key, made, ADMIN).expect("it is made");
                registry.patch(&key, Part::Status, (Format::Merge, &patch), ADMIN).expect("its status is written");
            });
        }
        let (wakes, mut queues) = Wakes::new();
        let world = World::default();
        let api = kube::Api::all(server.client("team"));
        tokio::select! {
            () = Arc::clone(&world.step_runs).run(api, Config::default(), |_| std::future::ready(())) => {}
            is_filled = ready(&world.step_runs) => assert!(is_filled, "the cache has its list"),
        }
        let mut run = Workflow::new("shop", WorkflowSpec { cancel: Some(true), ..WorkflowSpec::default() });
        (run.metadata.namespace, run.metadata.uid) = (Some("team".into()), Some("u".into()));
        for what in ["it closes", "and tells how far it is"] {
            assert!(wakes.workflow(&world, &run).now_or_never().is_some());
            let mut woken = Vec::new();
            while let Ok(step_run) = queues.step_runs.try_recv() {
                woken.push(step_run.name);
            }
            assert_eq!(woken, ["new", "runs"], "{what}");
        }
        assert_eq!(world.step_runs.under("team/u").len(), 3, "the run itself still sees all");
    }

    /// A pass is then about it at once, not when something else wakes the step.
    #[test]
    fn the_step_whose_document_goes_hears_of_it() {
        let (wakes, mut queues) = Wakes::new();
        let world = World::default();
        let made = |spec: serde_json::Value| {
            let mut made = Document::new("plan-1", serde_json::from_value(spec).expect("a spec"));
            (made.metadata.namespace, made.metadata.uid) = (Some("team".into()), Some("d".into()));
            made
        };
        let spec = |scope_id: &str| {
            serde_json::json!({"type": "plan", "scope": "Session", "session": "s", "content": "", "workflow": "shop",
                "path": "each/plan", "scopeId": scope_id})
        };
        for (scope_id, keys) in [("u-1", vec![]), ("u-1/a/b", vec!["a".to_owned(), "b".to_owned()])] {
            assert!(wakes.document(&world, &made(spec(scope_id))).now_or_never().is_some());
            let woken = queues.step_runs.try_recv().expect("its step");
            assert_eq!(
                woken,
                ObjectRef::new(&crate::api::name::step_run("shop", "u-1", "each/plan", &keys)).within("team")
            );
        }
        let a_persons = made(serde_json::json!({"type": "plan", "scope": "Namespace", "content": ""}));
        assert!(wakes.document(&world, &a_persons).now_or_never().is_some());
        assert!(queues.step_runs.try_recv().is_err(), "a person's has none");
    }

    #[test]
    fn a_full_queue_makes_the_watch_wait() {
        let (wakes, mut queues) = Wakes::new();
        let wake = || send(&wakes.documents, ObjectRef::new("d").within("n"));
        for n in 0..CAPACITY {
            assert!(wake().now_or_never().is_some(), "wake-up {n} of {CAPACITY} has room");
        }
        assert!(wake().now_or_never().is_none(), "one more would grow without bound");
        assert!(queues.documents.try_recv().is_ok());
        assert!(wake().now_or_never().is_some(), "there is room again");
    }
}
