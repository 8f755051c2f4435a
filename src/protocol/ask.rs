//! `lockstep ask`: an agent's questions to people. The call says what is answered already, and whether the rest may be asked.
//! Where the agent waits in its pod it also puts them, and `await` holds until people have answered; else the report that ends
//! the attempt puts them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Path of the gateway's call.
pub const ASK: &str = "/v1/ask";

/// `POST /v1/ask`: the answer is an `AskReply`; 400 where one of them cannot be asked. It writes nothing, but where the agent
/// waits: then people are asked at once, and the same call again asks nobody twice.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AskRequest {
    pub questions: Vec<Question>,
    /// For so many seconds the agent waits in its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<i64>,
}

/// Path of the gateway's call.
pub const AWAIT: &str = "/v1/await";

/// `POST /v1/await`: holds until people have said all of it, at most `seconds` and at most `HOLD_SECONDS`; then the answer is
/// an `AwaitReply`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AwaitRequest {
    /// SHA-256 digests of the names of questions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub questions: Vec<String>,
    /// The digests of approvals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<String>,
    pub seconds: i64,
}

/// Seconds that the gateway holds one call; the shim calls again.
pub const HOLD_SECONDS: i64 = 20;

/// Whether it is said.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct AwaitReply {
    pub done: bool,
}

/// One question, as agents write it too. `choices` and `schema` exclude each other.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub question: String,
    /// The texts that may be answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<String>>,
    /// JSON Schema 2020-12 of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Map<String, Value>>,
    /// By what the answer is found again; absent: by the text of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// What is known already.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct AskReply {
    /// By key: what people have answered.
    pub answers: Map<String, Value>,
    /// Keys of what they must be asked; empty: the agent goes on.
    pub open: Vec<String>,
}
