//! How a step, an item or a list of a run ended, as those after it see it.

use std::sync::Arc;

use serde_json::Value;

use crate::api::step_run::{AttemptResult, StepRun};
use crate::api::workflow::Phase;

/// The output of a step, not yet read.
#[derive(Clone, Debug)]
pub enum Output {
    Null,
    Of(Arc<StepRun>),
    Value(Arc<Value>),
    List(Arc<Vec<Item>>),
}

/// How an item of a forEach ended.
#[derive(Clone, Debug)]
pub struct Item {
    pub key: String,
    pub phase: Phase,
    pub output: Output,
}

/// A step that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub phase: Phase,
    pub output: Output,
    /// It ran in this run: what needs it cannot be taken over from another.
    pub fresh: bool,
}

/// A failure for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `path/key`.
    pub place: String,
    pub class: AttemptResult,
    pub message: String,
}

impl Failure {
    /// Whether it can be passed over at all, by `onFailure: Continue` or a tolerance.
    pub fn may_pass(&self) -> bool {
        use AttemptResult::{Cancelled, DocumentChanged, Rejected, StepRunLost};
        !matches!(self.class, Rejected | Cancelled | StepRunLost | DocumentChanged)
    }
}

/// How far a step, an item or a list has come.
#[derive(Clone, Debug)]
pub enum Outcome {
    Done(Ended),
    /// Begun, or waiting for something.
    Open,
    /// Not begun.
    Ahead,
    /// It will fail: parts of it still run.
    Failing(Failure),
    Failed(Failure),
}
