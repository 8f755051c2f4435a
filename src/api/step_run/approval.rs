//! Approvals of single actions in the middle of an agent's work.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::people::GateStatus;

/// A request of the step's agent to do one action (`lockstep request-approval`), and what people decided.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalRequest {
    /// The name of the action gate, one of `spec.actionGates`: whoever has the verb `approve` on `gates.lockstep.dev/NAME` may decide.
    #[schemars(length(min = 1, max = 63))]
    pub gate_name: String,
    /// What the agent wants to do, in its own words, at most 1024 bytes.
    #[schemars(length(max = 1024))]
    pub action: String,
    /// What the action is about, as canonical JSON text of at most 8 KiB (keys in order, no spaces); absent if the agent gave nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub payload: Option<String>,
    /// How many times the same was requested before, and either used or withdrawn.
    #[serde(default)]
    #[schemars(range(min = 0, max = 20))]
    pub repeats: i32,
    /// The number of the attempt that requested it.
    pub attempt: i32,
    /// When it was requested.
    pub requested_at: Time,
    /// Until when the agent waits for the decision in its pod, while its attempt goes on; absent once that attempt has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_waits_until: Option<Time>,
    /// Where the decision stands. Its `outputDigest` binds StepRun, gate, action, payload and repetition; a decision must name it
    /// (annotation `lockstep.dev/review`).
    pub gate: GateStatus,
    /// The use that was made of the permission; absent until the agent was told that it may. It may do it once.
    // Write-once; what the gateway wrote, latched before the fence moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<ApprovalUse>,
}

/// The one use of a permission.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalUse {
    /// The `outputDigest` of the request.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// The number of the attempt that was told.
    pub attempt: i32,
    /// The id of the call that was told: only the same call, made again, is told once more.
    #[schemars(length(max = 64))]
    pub call: String,
    /// When it was told.
    pub at: Time,
}

/// What an agent requests, as the gateway writes it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RequestedApproval {
    /// The number of the attempt.
    pub attempt: i32,
    /// The name of the action gate, one of `spec.actionGates`.
    #[schemars(length(min = 1, max = 63))]
    pub gate_name: String,
    /// What the agent wants to do, in its own words, at most 1024 bytes.
    #[schemars(length(max = 1024))]
    pub action: String,
    /// What the action is about, as canonical JSON text of at most 8 KiB; absent if the agent gave nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub payload: Option<String>,
    /// How many times the same was requested before, and either used or withdrawn.
    #[serde(default)]
    #[schemars(range(min = 0, max = 20))]
    pub repeats: i32,
    /// When it was requested.
    pub at: Time,
    /// Until when the agent waits for the decision. After that its attempt ends.
    pub until: Time,
}
