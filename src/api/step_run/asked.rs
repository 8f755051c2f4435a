//! What an agent asks people in the middle of its work, and what they answered.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::people::Answer;

/// A question of an agent to a person, as the attempt reported it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct AgentQuestion {
    /// The name that the agent gave the question. If it is absent, the text of the question is its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub key: Option<String>,
    /// The question, in words, at most 4096 bytes.
    #[schemars(length(max = 4096))]
    pub question: String,
    /// The JSON Schema that the answer must meet, as JSON text of at most 4096 bytes. The default is to take any answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub schema: Option<String>,
}

/// A question of the step's agent, and the answer to it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AskedQuestion {
    /// The name that the agent gave the question. If it is absent, the text of the question is its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub key: Option<String>,
    /// The question, in words, at most 4096 bytes.
    #[schemars(length(max = 4096))]
    pub question: String,
    /// The JSON Schema that the answer must meet, as JSON text of at most 4096 bytes. The default is to take any answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub schema: Option<String>,
    /// The number of the attempt that asked.
    pub attempt: i32,
    /// When the attempt ended with the question, or began to wait for the answer (`lockstep ask --wait`).
    pub asked_at: Time,
    /// What a person answered; absent until somebody has.
    // Write-once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

impl AskedQuestion {
    /// The name by which the agent finds the answer again.
    pub fn name(&self) -> &str {
        self.key.as_deref().unwrap_or(&self.question)
    }
}

impl AgentQuestion {
    /// The name by which the agent finds the answer again.
    pub fn name(&self) -> &str {
        self.key.as_deref().unwrap_or(&self.question)
    }
}
