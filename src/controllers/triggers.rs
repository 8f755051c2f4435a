//! Who must look again when something changed. A queue a kind, bounded; being woken twice is the same as once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;

use crate::api::name::{LABEL_STEP_RUN, LABEL_WORKFLOW};
use crate::api::workflow::Phase;
use crate::api::{Agent, Document, StepRun, Workflow, WorkflowTemplate};
use crate::cluster::cache::Watched;
use crate::cluster::evaluator::{Evaluator, Kind};
use crate::cluster::slots::Slots;
use crate::cluster::world::{World, run_key};
use crate::decide::document;
use crate::decide::step_run::{Hold, hold};

/// Wake-ups that wait for the controller of a kind. A watch that finds the queue full waits: the controller takes
/// wake-ups out at once and merges those of one object, so it is full only for moments.
const CAPACITY: usize = 1024;

pub struct Triggers {
    workflows: mpsc::Sender<ObjectRef<Workflow>>,
    step_runs: mpsc::Sender<ObjectRef<StepRun>>,
    agents: mpsc::Sender<ObjectRef<Agent>>,
    templates: mpsc::Sender<ObjectRef<WorkflowTemplate>>,
    documents: mpsc::Sender<ObjectRef<Document>>,
    /// UIDs of the runs that are suspended, so that their StepRuns hear of it when that ends.
    suspended: Mutex<HashSet<String>>,
}

pub struct Queues {
    pub workflows: mpsc::Receiver<ObjectRef<Workflow>>,
    pub step_runs: mpsc::Receiver<ObjectRef<StepRun>>,
    pub agents: mpsc::Receiver<ObjectRef<Agent>>,
    pub templates: mpsc::Receiver<ObjectRef<WorkflowTemplate>>,
    pub documents: mpsc::Receiver<ObjectRef<Document>>,
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
            one(&mut self.documents),
        );
    }
}

impl Triggers {
    pub fn new() -> (Self, Queues) {
        let (workflows, workflows_in) = mpsc::channel(CAPACITY);
        let (step_runs, step_runs_in) = mpsc::channel(CAPACITY);
        let (agents, agents_in) = mpsc::channel(CAPACITY);
        let (templates, templates_in) = mpsc::channel(CAPACITY);
        let (documents, documents_in) = mpsc::channel(CAPACITY);
        let queues = Queues {
            workflows: workflows_in,
            step_runs: step_runs_in,
            agents: agents_in,
            templates: templates_in,
            documents: documents_in,
        };
        (Self { workflows, step_runs, agents, templates, documents, suspended: Mutex::default() }, queues)
    }

    pub async fn workflow(&self, world: &World, workflow: &Workflow) {
        send(&self.workflows, ObjectRef::from_obj(workflow)).await;
        if self.concerns_steps(world, workflow) {
            for step_run in world
                .step_runs
                .under(&run_key(&workflow.namespace().unwrap_or_default(), &workflow.uid().unwrap_or_default()))
            {
                send(&self.step_runs, ObjectRef::from_obj(step_run.as_ref())).await;
            }
        }
    }

    /// Whether the run says something new to all its StepRuns, or something that they must not miss.
    fn concerns_steps(&self, world: &World, workflow: &Workflow) -> bool {
        let uid = workflow.uid().unwrap_or_default();
        let there = world.workflows.get(&workflow.namespace().unwrap_or_default(), &workflow.name_any());
        let there = there.is_some_and(|w| w.uid().as_ref() == Some(&uid));
        let mut suspended = self.suspended.lock().unwrap_or_else(PoisonError::into_inner);
        match hold(workflow) {
            Hold::Suspended if there => suspended.insert(uid),
            Hold::No => suspended.remove(&uid),
            Hold::Suspended | Hold::Closing | Hold::Stopping => {
                suspended.remove(&uid);
                true
            }
        }
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
            for of in evaluator.told().await {
                match of.kind {
                    Kind::Workflow => send(&self.workflows, ObjectRef::new(&of.name).within(&of.namespace)).await,
                    Kind::StepRun => send(&self.step_runs, ObjectRef::new(&of.name).within(&of.namespace)).await,
                    Kind::Agent => send(&self.agents, ObjectRef::new(&of.name).within(&of.namespace)).await,
                    Kind::WorkflowTemplate => {
                        send(&self.templates, ObjectRef::new(&of.name).within(&of.namespace)).await;
                    }
                }
            }
        }
    }

    pub async fn step_run(&self, step_run: &StepRun) {
        send(&self.step_runs, ObjectRef::from_obj(step_run)).await;
        send(
            &self.workflows,
            ObjectRef::new(&step_run.spec.workflow.name).within(&step_run.namespace().unwrap_or_default()),
        )
        .await;
    }

    /// For Jobs and Pods.
    pub async fn labelled_step_run(&self, child: &impl ResourceExt) {
        if let (Some(name), Some(namespace)) = (child.labels().get(LABEL_STEP_RUN), child.namespace()) {
            send(&self.step_runs, ObjectRef::new(name).within(&namespace)).await;
        }
    }

    pub async fn agent(&self, world: &World, agent: &Agent) {
        send(&self.agents, ObjectRef::from_obj(agent)).await;
        let namespace = agent.namespace().unwrap_or_default();
        for step_run in world.step_runs.under(&format!("agent {namespace}/{}", agent.name_any())) {
            send(&self.step_runs, ObjectRef::from_obj(step_run.as_ref())).await;
        }
        self.expecting(world, &namespace).await;
    }

    pub async fn template(&self, world: &World, template: &WorkflowTemplate) {
        send(&self.templates, ObjectRef::from_obj(template)).await;
        self.expecting(world, &template.namespace().unwrap_or_default()).await;
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

    use super::*;

    #[test]
    fn a_full_queue_makes_the_watch_wait() {
        let (triggers, mut queues) = Triggers::new();
        let wake = || send(&triggers.documents, ObjectRef::new("d").within("n"));
        for n in 0..CAPACITY {
            assert!(wake().now_or_never().is_some(), "wake-up {n} of {CAPACITY} has room");
        }
        assert!(wake().now_or_never().is_none(), "one more would grow without bound");
        assert!(queues.documents.try_recv().is_ok());
        assert!(wake().now_or_never().is_some(), "there is room again");
    }
}
