//! The pinned definition of a run as it is stored: the data of the ControllerRevision that the run owns. What a run once
//! read stays as it was, whatever happens to the template. `definition::pinned` reads it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::step::{OnFailure, Order, Step};
use super::usage::Budget;

/// Everything of a run that its steps and agents may ask for later.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Definition {
    pub workflow: String,
    pub workflow_uid: String,
    /// The session's id; private ones are made from the run's name and UID.
    pub session: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    #[serde(default)]
    pub input: String,
    /// With the schema's defaults filled in.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    #[serde(default)]
    pub order: Order,
    #[serde(default)]
    pub on_failure: OnFailure,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    pub steps: Vec<Step>,
}

impl Definition {
    /// The step at `group/step`.
    pub fn step(&self, path: &str) -> Option<&Step> {
        let mut steps = &self.steps;
        let mut found = None;
        for name in path.split('/') {
            let step = steps.iter().find(|step| step.name == name)?;
            steps = &step.steps;
            found = Some(step);
        }
        found
    }
}
