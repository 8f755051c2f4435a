//! Agent: what an `agentId` means: a pod template and the contract around it. Written by the platform team.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::{free_object, free_value, told};
use super::step::Retry;

/// What the agent is: a pod template, or a prompt; everything else has a default.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "Agent",
    namespaced,
    status = "AgentStatus",
    category = "lockstep",
    doc = "An Agent says how the work of a step is done: the pod that runs it, and the schemas, time limits and retries that hold for it. Steps name it by its `metadata.name` (field `agentId`). It is read anew for each attempt, so a change counts from the next attempt on.",
    derive = "PartialEq",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name must be at most 52 characters, because names of Jobs are derived from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.template) != has(self.prompt)").message("exactly one of template and prompt says what the agent is: a pod of yours, or what a model is told"))]
pub struct AgentSpec {
    /// The pod that runs an attempt, as a PodTemplateSpec. The container named `agent` is the agent and must state its
    /// `command`, because Kubernetes does not tell an image's entrypoint; init containers, sidecars and volumes are yours. The
    /// condition `Ready` names every part of it that is refused, with its path. Exactly one of `template` and `prompt` is needed.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "free_object")]
    pub template: Map<String, Value>,
    /// In place of a template: what a model is told. Lockstep's own image talks to it, so there is nothing to build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// What Lockstep does in the agent's container. The default is Shim.
    #[serde(default, skip_serializing_if = "Protocol::is_shim")]
    pub protocol: Protocol,
    /// With the protocol None: the absolute path of a file in the agent's container, in a volume that it mounts, which is the
    /// output, as JSON. The default is the container's termination message, if that is JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 4096))]
    pub result_path: Option<String>,
    /// The JSON Schema (2020-12) that the `parameters` of a step must meet, at most 32 KiB of text. A step whose parameters do
    /// not meet it fails with the class InvalidParameters before a pod runs. Without a schema all parameters are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters_schema: Option<Map<String, Value>>,
    /// The JSON Schema (2020-12) that the output (`result.json`) must meet, at most 32 KiB of text. An output that does not meet
    /// it ends the attempt with the class InvalidOutput, and the next attempt is told the faults. Without a schema any JSON
    /// value is taken, and none at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub output_schema: Option<Map<String, Value>>,
    /// The types of documents that every step of this agent reads, at most 32. A step waits until all of them are published
    /// (phase WaitingForDocuments). The default is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)))]
    pub required_documents: Vec<String>,
    /// How many seconds one attempt may take, from the start of the agent's command to its exit: 1 to 604800 (a week). An
    /// attempt that takes longer is ended (SIGTERM, SIGKILL after 10 s) with the class Timeout. A step's own `timeoutSeconds`
    /// counts before this one. The default is 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: Option<i64>,
    /// How many seconds an attempt's pod may take to start the agent, from the making of its Job: 1 to 86400 (a day). An attempt
    /// that did not start in time ends with the class Infrastructure and is repeated. The default is 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub start_timeout_seconds: Option<i64>,
    /// How many seconds an agent may be silent: 1 to 604800. An attempt in which the agent made no call (`lockstep progress` or
    /// any other) for so long is ended with the class Timeout. The default is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub progress_timeout_seconds: Option<i64>,
    /// How many attempts of this agent may run at once in its namespace: 1 to 10000. Those beyond it wait, those of the oldest
    /// run first; a place is not taken while people are waited for, nor between two attempts. The default is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_concurrent: Option<i32>,
    /// How often a failed attempt is repeated, and how far apart; a step's own `retry` counts before this one, field by field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What the exit codes of the agent's command mean; code 0 is success, and every other one is tried again by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_codes: Option<ExitCodes>,
    /// Whether an attempt may simply be repeated when its pod ended without saying how (class OutcomeUnknown or OutputLost). If
    /// false, a person is asked whether it may run again, or the step fails where `onFailure` is not Wait. The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idempotent: bool,
    /// How long what the agent remembers in a session is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<AgentMemory>,
    /// Where the pods of its attempts may connect to, by a NetworkPolicy that is there before they are: `None`, nothing; `Internet`,
    /// every address that is neither private nor special; or a list of 1 to 32 entries `{cidr, ports}`, a block of addresses with
    /// up to 32 TCP ports (without `ports` all of them, of every protocol). The gateway and DNS are reached in any case. It holds
    /// only where the cluster's network enforces NetworkPolicies. Without it no NetworkPolicy is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_value")]
    pub egress: Option<Value>,
    /// How the agent mends a wrong output within the same attempt, before that counts as failed. The default is that a wrong
    /// output ends the attempt with the class InvalidOutput.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
}

/// An agent that is only a prompt: which model does the work, and what it is told.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Prompt {
    /// What the model is told first, in its system message: 1 to 32768 characters. The context of the attempt, the documents of
    /// the step and what people said follow by themselves.
    #[schemars(length(min = 1, max = 32768))]
    pub system: String,
    /// The name of the model, as the endpoint knows it.
    #[schemars(length(min = 1, max = 256))]
    pub model: String,
    /// Where the model is reached: the address of an endpoint for chat completions as OpenAI has them, without the
    /// `/chat/completions` behind it, for example `https://models.example/v1`.
    #[serde(rename = "baseURL")]
    #[schemars(length(min = 8, max = 1024), regex(pattern = r"^https?://[^\s@?#]+$"))]
    pub base_url: String,
    /// The key that the endpoint asks for, sent as a bearer token. It reaches the pod as a variable from this Secret, and its value
    /// is masked in all that the agent gives. The default is to send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<ApiKeyRef>,
    /// The authorities that may have signed the endpoint's certificate, as PEM in a ConfigMap. They take the place of those that
    /// browsers trust, and each attempt reads them anew. The default is to trust those that browsers trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<CaRef>,
    /// How freely the model chooses its words: 0 to 2. The default is the endpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f64>,
    /// How often the model is called in one attempt at most, repairs of a wrong output and calls of tools among them: 1 to 200.
    /// The default is 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 200))]
    pub max_turns: Option<i32>,
}

/// A key of a Secret in the namespace of the Agent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiKeyRef {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key within the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A key of a ConfigMap in the namespace of the Agent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct CaRef {
    /// The name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key within the ConfigMap. The default is `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: Option<String>,
}

/// What Lockstep does in the agent's container.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum Protocol {
    /// Lockstep's shim runs the agent's command: the agent has its input as files, its calls, and its output checked.
    #[default]
    Shim,
    /// Nothing: the container runs as its image has it, and need not state a command. A sidecar of Lockstep's claims the attempt
    /// before it starts, and reports the output when it has ended. Code 0 is success.
    None,
}

impl Protocol {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_shim(&self) -> bool {
        *self == Self::Shim
    }
}

/// How a wrong output is mended within an attempt.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// What is run in the agent's container when its command has ended with code 0 and a wrong output: a program and its
    /// arguments, 1 to 64 of them, without a shell. It has the environment of the agent's command, and `LOCKSTEP_FAULTS` names a
    /// JSON file with the faults. Its exit code counts as the command's: 0 means that the output is looked at again.
    #[schemars(length(min = 1, max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// How often it is run in one attempt at most: 1 to 10. If the output is wrong still, the attempt ends with the class
    /// InvalidOutput. The default is 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub max_repairs: Option<i32>,
}

/// How long what the agent remembers is kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentMemory {
    /// How many seconds a Memory of this agent is kept after its last use: 1 to 315360000 (ten years). A write uses it, and so
    /// does an attempt of the agent in that session, as long as its step is not over. That of a run without a session of its
    /// own goes with the run in any case. The default is to keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315_360_000))]
    pub ttl_seconds_after_last_use: Option<i64>,
}

/// What the exit codes of the agent's command mean.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct ExitCodes {
    /// The exit codes (1 to 255, at most 32 of them) after which no further attempt can help: the step fails at once, with the
    /// class Unrecoverable. Every other code but 0 is tried again. The default is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 1, max = 255)))]
    pub unrecoverable: Vec<i32>,
}

/// What Lockstep found when it looked at the Agent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The `metadata.generation` that the conditions are about; -1 before Lockstep has looked at the Agent.
    // Derived.
    #[serde(default = "super::condition::unseen")]
    pub observed_generation: i64,
    /// The condition `Ready`: True if the Agent can be used; if False, its message lists every fault with its path; Unknown if the
    /// API server could not be asked about its pod, in which case steps run all the same. While it is False, so is `Stalled` True, which
    /// kstatus reads.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}
