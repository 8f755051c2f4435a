//! WorkflowTemplate: a reusable definition. A run pins what it reads here, so later edits never touch it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::free_object;
use super::step::{OnFailure, Order, Step, step_levels};
use super::usage::Budget;

/// The definition. A run takes it as it is when the run starts; later changes count for later runs only.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "WorkflowTemplate",
    namespaced,
    status = "WorkflowTemplateStatus",
    shortname = "lwt",
    category = "lockstep",
    doc = "A WorkflowTemplate is a definition of steps that any number of runs (Workflows) refer to by name.",
    derive = "PartialEq",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name must be at most 52 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowTemplateSpec {
    /// The JSON Schema (2020-12) that the `parameters` of a run must meet, at most 32 KiB of text. The `default`s of its
    /// first-level properties fill in what the run leaves out. Without a schema all parameters are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters_schema: Option<Map<String, Value>>,
    /// What becomes of the run when a step cannot go on, for the steps that do not say it themselves. The run's own `onFailure`
    /// counts before this one. The default is Wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// The CEL expression that gives the output of the run, at most 1024 bytes, for example `steps.report.output`. The default
    /// is the output of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub output: Option<String>,
    /// After how many seconds a run fails, counted from its start with all waiting: 1 to 31536000 (a year). Its pods are ended,
    /// and the reason is RunTimeout. The run's own `timeoutSeconds` counts before this one. The default is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub timeout_seconds: Option<i64>,
    /// How much the agents of a run may use, all attempts together. When that is spent no further attempt starts, and a person is
    /// asked to raise it (reason BudgetSpent). The run's own `budget` counts before this one. The default is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// How the steps follow each other. The default is Chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The steps, 1 to 200; with the steps of groups counted 200 in all.
    #[schemars(schema_with = "step_levels")]
    pub steps: Vec<Step>,
}

/// What Lockstep found when it looked at the template.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowTemplateStatus {
    /// The `metadata.generation` that the conditions are about; -1 before Lockstep has looked at the template.
    // Derived.
    #[serde(default = "super::condition::unseen")]
    pub observed_generation: i64,
    /// The condition `Ready`: True if runs can use the template; if False, its message lists every fault with its path,
    /// and `Stalled`, which kstatus reads, is True.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}
