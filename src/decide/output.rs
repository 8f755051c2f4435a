//! The output of a StepRun, and where it is stored. Expressions, gates, histories, later runs and reviewers all ask here.

use serde_json::Value;

use super::content::{self, Pin};
use super::gate;
use crate::api::step_run::{Report, StepRun, StepRunStatus};

/// Where an output is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredOutput {
    /// There is none, or none yet.
    Nowhere,
    /// In the StepRun itself, as JSON text.
    Inline(String),
    /// In the Document that carries it.
    Document(Pin),
}

/// Of a StepRun, with a status that may not be stored yet: the answer of a person, what a manual approval came to, what the
/// verdict took of an agent's report, or what was taken over from another run.
pub fn stored(step_run: &StepRun, status: &StepRunStatus) -> StoredOutput {
    let answer = status.answer.as_ref().map(|answer| answer.value.clone());
    let approval = || gate::output_of(step_run, status).map(|given| given.to_string());
    let reported = || committed_report(status)?.output.clone();
    let taken_over = || step_run.spec.reuse.as_ref()?.output.clone();
    if let Some(text) = answer.or_else(approval).or_else(reported).or_else(taken_over) {
        return StoredOutput::Inline(text);
    }
    content::carrier(step_run, status).map_or(StoredOutput::Nowhere, StoredOutput::Document)
}

/// The same, as it is stored.
pub fn of(step_run: &StepRun) -> StoredOutput {
    match &step_run.status {
        Some(status) => stored(step_run, status),
        None => stored(step_run, &StepRunStatus::default()),
    }
}

/// The report that the verdict took: that of its attempt, with its digest.
pub fn committed_report(status: &StepRunStatus) -> Option<&Report> {
    let verdict = status.result.as_ref()?;
    let report = status.agent.as_ref()?.report.as_ref()?;
    (verdict.attempt == report.attempt && verdict.digest == report.digest).then_some(report)
}

/// The value of an output that is stored as text; null where it is no JSON.
pub fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}
