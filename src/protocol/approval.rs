//! `lockstep request-approval`: an agent's request to do one action, which people decide while its attempt goes on, or after it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Path of the gateway's call.
pub const APPROVAL: &str = "/v1/approval";

/// `POST /v1/approval`: the answer is an `ApprovalReply`; 400 where it cannot be requested. A permission that people gave is used
/// with this call; the same call again, by its id, is told the same.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalCall {
    /// The name of one of the step's action gates; not needed where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// What is to be done, in words.
    pub action: String,
    /// What it is about: JSON, or any text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// 128 random bits as hex, by which the call is known again if its answer is lost.
    pub id: String,
    /// For so many seconds the agent waits in its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<i64>,
}

/// The request as it stands.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalReply {
    pub decision: Verdict,
    /// What a decision about it names.
    pub digest: String,
    /// Who decided so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Decided>,
    /// What was decided on, as canonical JSON: what the agent does is to be this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may be done, once.
    Allowed,
    Denied,
    /// People have not decided yet.
    Waiting,
}

/// What one person decided.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub accepted: bool,
    pub by: String,
    pub at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}
