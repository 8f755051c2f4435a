//! What shim and gateway say to each other: JSON over HTTPS, `Authorization: Bearer` with the pod's attempt-bound token.
//! Knows neither a cluster nor a process.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of this protocol and of `context.json`.
pub const VERSION: u32 = 1;

/// Paths of the gateway's agent API.
pub const CLAIM: &str = "/v1/claim";
pub const DOCUMENT: &str = "/v1/document";
pub const CHECK: &str = "/v1/check";
pub const PROGRESS: &str = "/v1/progress";
pub const REPORT: &str = "/v1/report";

/// Environment that the operator sets in the agent container for the shim.
pub mod env {
    /// `https://host:port` of the gateway.
    pub const GATEWAY: &str = "LOCKSTEP_GATEWAY";
    /// PEM of the CA that signs the gateway's certificate.
    pub const GATEWAY_CA: &str = "LOCKSTEP_GATEWAY_CA";
    /// `namespace/name` of the StepRun.
    pub const STEP_RUN: &str = "LOCKSTEP_STEPRUN";
    pub const STEP_RUN_UID: &str = "LOCKSTEP_STEPRUN_UID";
    /// Names of variables that come from Secrets, comma-separated: their values are masked.
    pub const SECRET_NAMES: &str = "LOCKSTEP_SECRET_ENV";
    /// The attempt's number; agents see it as well.
    pub const ATTEMPT: &str = "ATTEMPT";
    /// Agents see these too.
    pub const URL: &str = "LOCKSTEP_URL";
    pub const IN: &str = "LOCKSTEP_IN";
    pub const OUT: &str = "LOCKSTEP_OUT";
    pub const WORK: &str = "LOCKSTEP_WORK";
    pub const SESSION_ID: &str = "SESSION_ID";
    pub const WORKFLOW: &str = "WORKFLOW";
    pub const STEP_ID: &str = "STEP_ID";
    pub const AGENT_ID: &str = "AGENT_ID";
    pub const IDEMPOTENCY_KEY: &str = "IDEMPOTENCY_KEY";
}

/// Where things lie in the pod.
pub mod path {
    /// An emptyDir shared by init container and agent.
    pub const ROOT: &str = "/lockstep";
    pub const SHIM: &str = "/lockstep/bin/lockstep";
    /// The projected, attempt-bound token.
    pub const TOKEN: &str = "/var/run/secrets/lockstep.dev/token";
    pub const TERMINATION_LOG: &str = "/dev/termination-log";
}

/// Lines of the termination log, in this order: proof of how far the shim came when its report is lost.
pub mod mark {
    pub const CLAIMED: &str = "claimed";
    pub const STARTED: &str = "started";
    pub const SUCCEEDED: &str = "succeeded";
}

/// Names the attempt in every call. `id` is 128 random bits as hex, made by the shim and kept in memory only.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttemptRef {
    pub namespace: String,
    pub step_run: String,
    pub uid: String,
    pub attempt: i32,
    pub id: String,
}

/// `POST /v1/claim`; the answer is a `Claimed`, the same for the same id, 409 for any other.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimRequest {
    pub attempt: AttemptRef,
    pub shim_version: String,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Claimed {
    /// `context.json`, ready to be written; paths in it are relative to `LOCKSTEP_IN`.
    pub context: Value,
    /// The files to fetch with `POST /v1/document` before the agent starts.
    pub documents: Vec<InputFile>,
    /// Environment for the agent, beside what the pod has.
    pub env: Vec<(String, String)>,
    /// The document that the agent is to write: its file name in `LOCKSTEP_OUT`, for example `discovery.md`.
    pub document_file: Option<String>,
    /// With format json and no document file, `result.json` is the document too.
    pub document_is_json: bool,
    /// Seconds until the shim ends the agent.
    pub timeout_seconds: i64,
    /// Seconds without any call of the agent after which the shim ends it.
    #[serde(default)]
    pub progress_timeout_seconds: Option<i64>,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct InputFile {
    /// Name of the Document object.
    pub name: String,
    /// Relative to `LOCKSTEP_IN`: `documents/<type>.<ext>`.
    pub path: String,
    pub digest: String,
}

/// `POST /v1/document`: the answer's body is the content.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct DocumentRequest {
    pub attempt: AttemptRef,
    pub name: String,
}

/// What the agent has made so far. Both are the files' text, unparsed: the gateway judges, the shim carries.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// `result.json`.
    pub result: Option<String>,
    /// The document file.
    pub document: Option<String>,
}

/// `POST /v1/check`: validates now, writes nothing.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    pub attempt: AttemptRef,
    pub output: Output,
}

/// The verdict on an output; no faults means valid.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub faults: Vec<Fault>,
}

/// One fault, at a JSON pointer (empty: the whole).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub pointer: String,
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pointer = if self.pointer.is_empty() { "/" } else { &self.pointer };
        write!(f, "{pointer}: {}", self.message)
    }
}

/// `POST /v1/progress`: 204.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ProgressRequest {
    pub attempt: AttemptRef,
    pub percent: i32,
    pub message: String,
}

/// `POST /v1/report`: the end of the attempt, the commit point. The answer is a `Checked`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReportRequest {
    pub attempt: AttemptRef,
    pub ending: Ending,
    pub output: Output,
    /// The end of stdout and stderr, secrets masked, at most 4 KiB.
    pub log_tail: String,
}

/// How the command ended.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Ending {
    /// It exited; a signal counts as 128 + its number.
    #[serde(rename_all = "camelCase")]
    Exited { code: i32 },
    /// `lockstep fail`.
    #[serde(rename_all = "camelCase")]
    Failed { retryable: bool, message: String, code: i32 },
    /// The shim ended it at `timeoutSeconds`.
    TimedOut,
    /// The shim ended it after so many seconds without a call (`progressTimeoutSeconds`).
    #[serde(rename_all = "camelCase")]
    Silent { seconds: i64 },
}

/// Every refusal of the gateway.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase, stable: `AlreadyClaimed`, `Fenced`, `Unauthenticated`, `WrongPod`, `NotFound`,
    /// `TooLarge`, `BadRequest`, `Unavailable`, `Internal`.
    pub reason: String,
    pub message: String,
}
