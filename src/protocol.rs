//! What shim and gateway say to each other: JSON over HTTPS. Who speaks stands in the head of every call, so that it is
//! proven before a body is read: `Authorization: Bearer` with the pod's attempt-bound token, and the headers of `AttemptRef`.
//! Knows neither a cluster nor a process.

mod approval;
mod ask;
pub mod context;
mod documents;
mod file_names;
pub mod memory;
pub mod trust;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use approval::{APPROVAL, ApprovalCall, ApprovalReply, Decided, Verdict};
pub use ask::{ASK, AWAIT, AskReply, AskRequest, AwaitReply, AwaitRequest, HOLD_SECONDS, Question};
pub use documents::{DOCUMENTS, DocumentsAnswer, DocumentsRequest, FoundDocument, ListedDocuments, VisibleDocument};
pub use file_names::{FileNames, file_name};

/// Version of this protocol and of `context.json`.
pub const VERSION: u32 = 1;

/// Paths of the gateway's agent API.
pub const CLAIM: &str = "/v1/claim";
pub const DOCUMENT: &str = "/v1/document";
pub const CHECK: &str = "/v1/check";
pub const PROGRESS: &str = "/v1/progress";
pub const REPORT: &str = "/v1/report";
pub const HISTORY: &str = "/v1/history";
pub const USAGE: &str = "/v1/usage";
pub const ENDED: &str = "/v1/ended";

/// The header in which the shim gives the trace context of its attempt back.
pub const TRACEPARENT: &str = "traceparent";

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
    /// Of the Agent's repair command alone: the file with the faults.
    pub const FAULTS: &str = "LOCKSTEP_FAULTS";
    /// Of the sidecar that attends a container alone: the file with its output.
    pub const RESULT_PATH: &str = "LOCKSTEP_RESULT_PATH";
    pub const SESSION_ID: &str = "SESSION_ID";
    pub const WORKFLOW: &str = "WORKFLOW";
    pub const STEP_ID: &str = "STEP_ID";
    pub const AGENT_ID: &str = "AGENT_ID";
    pub const IDEMPOTENCY_KEY: &str = "IDEMPOTENCY_KEY";
    /// The W3C trace context of the attempt, below which what the agent does stands.
    pub const TRACEPARENT: &str = "TRACEPARENT";
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

/// What the kubelet runs in the agent's container, as the shim's verb `hook` calls it.
pub mod hook {
    pub const STARTUP_PROBE: &str = "startup-probe";
    pub const LIVENESS_PROBE: &str = "liveness-probe";
    pub const READINESS_PROBE: &str = "readiness-probe";
    pub const PRE_STOP: &str = "pre-stop";
}

/// Lines of the termination log, in this order: proof of how far the shim came when its report is lost.
pub mod mark {
    pub const CLAIMED: &str = "claimed";
    pub const STARTED: &str = "started";
    /// The command has ended, and no repair follows; tells the shim's hooks, and nobody else.
    pub const ENDED: &str = "ended";
    pub const SUCCEEDED: &str = "succeeded";
}

/// Headers of every call, beside `Authorization`.
pub mod header {
    /// `NAMESPACE/STEPRUN/UID/ATTEMPT`.
    pub const ATTEMPT: &str = "lockstep-attempt";
    /// The claim's id.
    pub const CLAIM: &str = "lockstep-claim";
}

/// Names the attempt in the head of every call. `id` is 128 random bits as hex, made by the shim and kept in memory only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRef {
    pub namespace: String,
    pub step_run: String,
    pub uid: String,
    pub attempt: i32,
    pub id: String,
}

impl AttemptRef {
    /// The headers that name it.
    pub fn headers(&self) -> [(&'static str, String); 2] {
        let Self { namespace, step_run, uid, attempt, id } = self;
        [(header::ATTEMPT, format!("{namespace}/{step_run}/{uid}/{attempt}")), (header::CLAIM, id.clone())]
    }

    /// Reads them back; an error says what cannot be what it should be: the parts become parts of paths and digests.
    pub fn read(attempt: Option<&str>, claim: Option<&str>) -> Result<Self, String> {
        let (Some(attempt), Some(id)) = (attempt, claim) else {
            let missing = if attempt.is_none() { header::ATTEMPT } else { header::CLAIM };
            return Err(format!("the header {missing} is required; is the shim of another version than the gateway?"));
        };
        let mut parts = attempt.splitn(5, '/');
        let (Some(namespace), Some(step_run), Some(uid), Some(number), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format!("the header {} is not NAMESPACE/STEPRUN/UID/ATTEMPT", header::ATTEMPT));
        };
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        let digits = number.len() <= 10 && number.bytes().all(|b| b.is_ascii_digit());
        let number = number.parse().ok().filter(|number| digits && *number >= 1);
        let fault = |part: &str, of: &str| Err(format!("{part} in the header {of} is not well-formed"));
        match number {
            _ if !is_dns(namespace, 63) => fault("the namespace", header::ATTEMPT),
            _ if !is_dns(step_run, 253) => fault("the StepRun", header::ATTEMPT),
            _ if !(1..=64).contains(&uid.len()) || !hex(uid) => fault("the UID", header::ATTEMPT),
            None => fault("the attempt", header::ATTEMPT),
            _ if id.len() != 32 || !hex(id) => fault("the id", header::CLAIM),
            Some(attempt) => Ok(Self {
                namespace: namespace.to_owned(),
                step_run: step_run.to_owned(),
                uid: uid.to_owned(),
                attempt,
                id: id.to_owned(),
            }),
        }
    }
}

/// Whether it can be the name of an object.
fn is_dns(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// `POST /v1/claim`; the answer is a `Claimed`, the same for the same id, 409 for any other.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimRequest {
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
    /// What mends a wrong output, where the Agent names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
}

/// How the shim has a wrong output mended.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    pub command: Vec<String>,
    /// Times in one attempt.
    pub most: u32,
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
    /// Bytes of `result.json`, where only its first part is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_bytes: Option<u64>,
    /// Bytes of the document file, where only its first part is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_bytes: Option<u64>,
    /// Whether the value of a Secret was masked in one of them. A gateway of an earlier version refuses it, see `shim/run.rs`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masked: bool,
}

/// What stands in the place of a Secret's value.
pub const MASK: &str = "***";

/// `POST /v1/check`: validates now, writes nothing.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
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

/// `POST /v1/progress`: 204, or 503 where it comes too soon: the newest is then said again.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ProgressRequest {
    pub percent: i32,
    pub message: String,
}

/// `POST /v1/history`: what was said before; the answer is a `context::HistoryPage`.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct HistoryRequest {
    /// The cursor of the page before; the newest entries without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// `POST /v1/usage`: 204. All that the attempt has used so far, not what it used since the last call: however often it
/// arrives, it counts once.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Usage {
    pub tokens_in: i64,
    pub tokens_out: i64,
    /// A decimal number as text, `0.0125`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
}

/// `POST /v1/report`: the end of the attempt, the commit point. The answer is a `Checked`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReportRequest {
    pub ending: Ending,
    pub output: Output,
    /// The end of stdout and stderr, secrets masked, at most 4 KiB.
    pub log_tail: String,
    /// All that the attempt has used, where it said so. A gateway of an earlier version refuses it, see `shim/run.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// How the command ended.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Ending {
    /// It exited; a signal counts as 128 + its number.
    #[serde(rename_all = "camelCase")]
    Exited {
        code: i32,
        /// The shim was told to stop before: the signal that it got.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// What the node did to it: "out of memory, limit 64Mi".
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
    /// `lockstep fail`.
    #[serde(rename_all = "camelCase")]
    Failed { retryable: bool, message: String, code: i32 },
    /// The shim ended it at `timeoutSeconds`, and it exited with this code; shims of earlier versions do not say so.
    #[serde(rename_all = "camelCase")]
    TimedOut {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
    },
    /// The shim ended it after so many seconds without a call (`progressTimeoutSeconds`).
    #[serde(rename_all = "camelCase")]
    Silent {
        seconds: i64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
    },
    /// The agent's container was left as it is, and has ended: how, the gateway reads from the pod.
    #[serde(rename_all = "camelCase")]
    Attended {
        /// Whether the output is in the request; else it is the termination message, as the request has it, or the pod.
        has_file: bool,
        /// Why the file cannot be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fault: Option<String>,
    },
    /// `lockstep ask`: the shim ended it, and what it exited with is of no interest.
    Asked { questions: Vec<Question> },
}

/// `POST /v1/ended`, by the sidecar of a container that was left as it is; the answer is a `ContainerEnded`, or 503 as long as
/// the end is not known.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EndedRequest {}

/// What the agent's container has left in the pod's status.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerEnded {
    /// Its termination message. The sidecar knows the values of Secrets, the gateway does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Ending {
    /// By itself, and nothing more is known.
    pub fn exited(code: i32) -> Self {
        Self::Exited { code, signal: None, cause: None }
    }
}

/// Every refusal of the gateway.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase, stable: `AlreadyClaimed`, `Fenced`, `Unauthenticated`, `WrongPod`, `NotFound`,
    /// `TooLarge`, `BadRequest`, `Unavailable`, `Internal`.
    pub reason: String,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "team/shop-discovery-0123456789abcdef/11111111-2222-3333-4444-555555555555/2";
    const ID: &str = "0123456789abcdef0123456789abcdef";

    /// An ending as a gateway knows it that was built before.
    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(tag = "kind", rename_all = "camelCase")]
    enum Earlier {
        TimedOut,
        Silent { seconds: i64 },
    }

    /// Shims and gateways of two versions meet while an installation is renewed.
    #[test]
    fn the_exit_code_of_what_was_ended_may_be_missing() {
        for (text, ending) in [
            (r#"{"kind":"timedOut"}"#, Ending::TimedOut { code: None }),
            (r#"{"kind":"timedOut","code":143}"#, Ending::TimedOut { code: Some(143) }),
            (r#"{"kind":"silent","seconds":4}"#, Ending::Silent { seconds: 4, code: None }),
            (r#"{"kind":"silent","seconds":4,"code":0}"#, Ending::Silent { seconds: 4, code: Some(0) }),
        ] {
            assert_eq!(serde_json::from_str::<Ending>(text).expect("an ending"), ending);
            assert_eq!(serde_json::to_string(&ending).expect("JSON"), text);
        }
        let read = |ending: &Ending| serde_json::from_str::<Earlier>(&serde_json::to_string(ending).expect("JSON"));
        assert_eq!(read(&Ending::TimedOut { code: Some(143) }).expect("an ending"), Earlier::TimedOut);
        let silent = Ending::Silent { seconds: 4, code: Some(143) };
        assert_eq!(read(&silent).expect("an ending"), Earlier::Silent { seconds: 4 });
    }

    #[test]
    fn headers_are_read_back() {
        let read = AttemptRef::read(Some(GOOD), Some(ID)).expect("well-formed");
        assert_eq!((read.namespace.as_str(), read.attempt), ("team", 2));
        assert_eq!(read.headers(), [(header::ATTEMPT, GOOD.to_owned()), (header::CLAIM, ID.to_owned())]);
    }

    #[test]
    fn references_that_could_lead_elsewhere_are_refused() {
        let long = format!("{}/s/u/1", "x".repeat(64));
        for (attempt, id, words) in [
            (None, Some(ID), "lockstep-attempt is required"),
            (Some(GOOD), None, "lockstep-claim is required"),
            (Some(""), Some(ID), "NAMESPACE/STEPRUN/UID/ATTEMPT"),
            (Some("team/s/1"), Some(ID), "NAMESPACE/STEPRUN/UID/ATTEMPT"),
            (Some("team/s/1/2/3"), Some(ID), "NAMESPACE/STEPRUN/UID/ATTEMPT"),
            (Some("../s/1/2"), Some(ID), "the namespace"),
            (Some("/s/1/2"), Some(ID), "the namespace"),
            (Some(long.as_str()), Some(ID), "the namespace"),
            (Some("team/x?y/1/2"), Some(ID), "the StepRun"),
            (Some("team/../1/2"), Some(ID), "the StepRun"),
            (Some("team/s/u/2"), Some(ID), "the UID"),
            (Some("team/s//2"), Some(ID), "the UID"),
            (Some("team/s/1/0"), Some(ID), "the attempt"),
            (Some("team/s/1/-1"), Some(ID), "the attempt"),
            (Some("team/s/1/+1"), Some(ID), "the attempt"),
            (Some("team/s/1/9999999999"), Some(ID), "the attempt"),
            (Some("team/s/1/00000000001"), Some(ID), "the attempt"),
            (Some(GOOD), Some(""), "the id"),
            (Some(GOOD), Some("0123456789abcdef0123456789abcdeg"), "the id"),
        ] {
            let fault = AttemptRef::read(attempt, id).expect_err("refused");
            assert!(fault.contains(words), "{attempt:?} {id:?}: {fault}");
        }
    }
}
