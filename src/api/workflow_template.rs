//! WorkflowTemplate: a reusable definition. A run pins what it reads here, so later edits never touch it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::free_object;
use super::step::{OnFailure, Order, Step, step_levels};

#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "WorkflowTemplate",
    namespaced,
    status = "WorkflowTemplateStatus",
    shortname = "lwt",
    category = "lockstep",
    doc = "A definition that Workflows refer to by name.",
    derive = "PartialEq",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name must be at most 52 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowTemplateSpec {
    /// JSON Schema (2020-12) of the parameters that a run may give; its `default`s fill what the run leaves out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters_schema: Option<Map<String, Value>>,
    /// What a failure for good means where neither run nor step says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// CEL that gives the run's output; its last step's unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub output: Option<String>,
    /// Seconds from the start after which a run fails where it does not say itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub timeout_seconds: Option<i64>,
    /// How the steps follow each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    #[schemars(schema_with = "step_levels")]
    pub steps: Vec<Step>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowTemplateStatus {
    /// Derived: the generation that the conditions speak of; -1 before the first look.
    #[serde(default = "super::condition::unseen")]
    pub observed_generation: i64,
    /// Derived: `Ready`, with every fault and its path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}
