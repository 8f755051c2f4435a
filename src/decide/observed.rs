//! All that the decision about a run needs, in one value. Tables are persistent maps: taking one costs nothing, however
//! many StepRuns or documents there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;
use rpds::RedBlackTreeMapSync;

use super::budget::RunBudget;
use super::content::Contents;
use super::document::Documents;
use super::settled::Settled;
use crate::api::agent::Agent;
use crate::api::step_run::StepRun;
use crate::api::workflow::Workflow;
use crate::api::workflow_template::WorkflowTemplate;
use crate::definition::expression::Evaluate;
use crate::definition::program::Program;

/// StepRuns of one run, by name.
pub type StepRuns = RedBlackTreeMapSync<String, Arc<StepRun>>;

#[derive(Clone, Debug)]
pub struct Observed {
    pub workflow: Arc<Workflow>,
    pub template: Option<Arc<WorkflowTemplate>>,
    /// The pinned one, compiled, once there is one.
    pub definition: Option<Arc<Program>>,
    /// Those that exist of the agents that the steps name.
    pub agents: BTreeMap<String, Arc<Agent>>,
    /// Those that this run's UID owns.
    pub step_runs: StepRuns,
    pub unreadable: UnreadableObjects,
    /// Of the namespace, contents left out.
    pub documents: Documents,
    /// Pods of its StepRuns that have completed, as long as they end; looked for where the run is cancelled.
    pub pods_ending: usize,
    /// Memories that this run's UID owns; looked for once they are to go.
    pub memories: Vec<ObjectMeta>,
    /// Its definition as older versions pinned it; looked for where the run goes and leaves what it owns.
    pub plain_revision: Option<ObjectMeta>,
    /// What is left of its budget, as its StepRuns say.
    pub budget: RunBudget,
    /// Contents of documents that were asked for (`Decided::unread`).
    pub contents: Contents,
    /// The run that this one goes on from, if it is in this namespace and has the UID that is named.
    pub previous: Option<Previous>,
    /// What was found to be settled in earlier passes; losing it costs time only.
    pub settled: Arc<Settled>,
    pub evaluator: Arc<dyn Evaluate>,
    pub now: Time,
}

/// Objects that are there and cannot be read, and why.
#[derive(Clone, Debug, Default)]
pub struct UnreadableObjects {
    pub template: Option<String>,
    /// Of the agents that the steps name.
    pub agents: BTreeMap<String, String>,
    /// Those that this run's UID owns, by name.
    pub step_runs: BTreeMap<String, String>,
    /// The run that this one goes on from.
    pub previous: Option<String>,
}

/// A run that another goes on from.
#[derive(Clone, Debug, Default)]
pub struct Previous {
    pub step_runs: StepRuns,
    /// What it had pinned; without it neither decisions nor answers are taken over.
    pub definition: Option<Arc<Program>>,
}
