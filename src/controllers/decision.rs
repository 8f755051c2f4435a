//! How a decision says what it lacks, and who gets that: the same for runs and StepRuns.

use kube::ResourceExt;

use crate::api::step_run::StepRunStatus;
use crate::api::workflow::WorkflowStatus;
use crate::cluster::Error;
use crate::cluster::observe::Observer;
use crate::decide::Plan;
use crate::decide::step_run::{self, Lack};
use crate::decide::workflow::{self, Unread};
use crate::definition::expression::Evaluate;

/// All that was seen of an object, on which is decided.
pub trait Decision: Sized + Send + 'static {
    type Status: Send + 'static;
    type Lack: Send + 'static;

    /// On a thread that may block, if expressions and schemas wait for processes.
    fn decide(self) -> (Self, Result<Plan<Self::Status>, Self::Lack>);
    fn get(&mut self, observer: &Observer, lack: Self::Lack) -> impl Future<Output = Result<(), Error>> + Send;
    /// What the next pass need not find out again.
    fn keep(&self, observer: &Observer);
    fn evaluator(&self) -> &dyn Evaluate;
    fn uid(&self) -> String;
}

impl Decision for workflow::Observed {
    type Status = WorkflowStatus;
    type Lack = Unread;

    fn decide(mut self) -> (Self, Result<Plan<WorkflowStatus>, Unread>) {
        let decided = workflow::decide(&self);
        self.settled = decided.settled;
        (self, decided.plan)
    }

    async fn get(&mut self, observer: &Observer, lack: Unread) -> Result<(), Error> {
        observer.workflow_lack(self, lack).await
    }

    fn keep(&self, observer: &Observer) {
        observer.settled.keep(&Decision::uid(self), &self.settled);
    }

    fn evaluator(&self) -> &dyn Evaluate {
        self.evaluator.as_ref()
    }

    fn uid(&self) -> String {
        self.workflow.uid().unwrap_or_default()
    }
}

impl Decision for step_run::Observed {
    type Status = StepRunStatus;
    type Lack = Lack;

    fn decide(self) -> (Self, Result<Plan<StepRunStatus>, Lack>) {
        let decided = step_run::decide(&self);
        (self, decided)
    }

    async fn get(&mut self, observer: &Observer, lack: Lack) -> Result<(), Error> {
        observer.step_run_lack(self, lack).await
    }

    fn keep(&self, _: &Observer) {}

    fn evaluator(&self) -> &dyn Evaluate {
        self.evaluator.as_ref()
    }

    fn uid(&self) -> String {
        self.step_run.uid().unwrap_or_default()
    }
}
