//! Trigger: what starts runs by itself, an event that comes by `POST /events` or a schedule. Runs name their Trigger by
//! label; it owns none of them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schema::{free_object, told};
use super::workflow::TemplateRef;

/// The type of an event that a person publishes by hand, where nobody says another.
pub const MANUAL: &str = "dev.lockstep.manual";
/// Finished runs that are kept, where `historyLimit` does not say.
pub const HISTORY_LIMIT: i64 = 100;

/// What starts a run, and which run.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "Trigger",
    namespaced,
    status = "TriggerStatus",
    shortname = "ltr",
    category = "lockstep",
    doc = "A Trigger starts runs of a WorkflowTemplate: one for each event that matches, or one at each time of a schedule.",
    derive = "PartialEq",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name must be at most 52 characters, because names and labels of runs are derived from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Event", type_ = "string", json_path = ".spec.event.type"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule.cron"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime"),
    printcolumn(name = "Last-Run", type_ = "string", json_path = ".status.lastRun.name"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.runs.active"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Template", type_ = "string", json_path = ".spec.run.templateRef.name", priority = 1),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.event) != has(self.schedule)").message("exactly one of event and schedule says what starts a run"))]
#[x_kube(validation = Rule::new("!has(self.auth) || has(self.event)").message("auth is about senders of events, and goes with event"))]
pub struct TriggerSpec {
    /// The events that start a run. Exactly one of `event` and `schedule` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventFilter>,
    /// The times at which a run starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// The run that is started.
    pub run: TriggeredRun,
    /// How senders without a token of Kubernetes prove who they are. They send to `status.url`, and Lockstep's own
    /// account of the HTTP API starts the run. The default is that senders need a token, with the permission `trigger`
    /// on this Trigger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<SenderAuth>,
    /// How many finished runs of this Trigger are kept, the newest: 0 to 1000. Those before them are deleted with all
    /// that they made; runs of events stay for 24 hours all the same, because a repeated event is known by them. The
    /// default is 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub history_limit: Option<i64>,
}

/// Which CloudEvents are meant; all that is given must fit.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct EventFilter {
    /// The `source` of the event, the whole of it. The default is every source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub source: Option<String>,
    /// The `type` of the event, the whole of it. The default is `dev.lockstep.manual`, which `kubectl lockstep trigger`
    /// publishes.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub event_type: Option<String>,
    /// A CEL expression over `event` that gives true or false, at most 1024 bytes, for example `event.data.ref ==
    /// "refs/heads/main"`. An event for which it fails does not match. The default is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub filter: Option<String>,
}

impl EventFilter {
    /// The type that is meant.
    pub fn event_type(&self) -> &str {
        self.event_type.as_deref().unwrap_or(MANUAL)
    }
}

/// When runs start, as a CronJob says it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// The times: minute, hour, day of the month, month and day of the week, or one of `@hourly`, `@daily`, `@weekly`,
    /// `@monthly` and `@yearly`. If both days are given either one counts.
    #[schemars(length(min = 1, max = 256))]
    pub cron: String,
    /// The name of the time zone in the IANA database, for example `Europe/Berlin`. The default is UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// What happens while an earlier run of this Trigger is not over. The default is Allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_policy: Option<ConcurrencyPolicy>,
    /// How many seconds after its time a run may still start, if it was missed: 1 to 31536000. The default is no limit.
    /// Of several missed times only the newest starts a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub starting_deadline_seconds: Option<i64>,
    /// Whether no run is started. Times that pass meanwhile count as missed. The default is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
}

/// What happens while an earlier run is not over.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum ConcurrencyPolicy {
    /// Another run starts beside it.
    #[default]
    Allow,
    /// No run starts. The newest time that passed starts one when the earlier run is over, within
    /// `startingDeadlineSeconds`.
    Forbid,
    /// The earlier run is cancelled, and another one starts.
    Replace,
}

/// The run. Strings of `input`, `parameters` and `session` may hold CEL expressions as `${ EXPRESSION }`, over `event`
/// (the CloudEvent: `event.id`, `event.source`, `event.type`, `event.data` ...) or over `scheduledTime`; the template
/// is never an expression.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TriggeredRun {
    /// The WorkflowTemplate to run. Whoever writes the Trigger needs the permission `run` on it.
    pub template_ref: TemplateRef,
    /// What is asked for, at most 4096 characters here and 64 KiB once its expressions are resolved. The default is no
    /// input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub input: Option<String>,
    /// The parameters of the run, at most 32 KiB with their expressions resolved. The default is no parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub parameters: Option<Map<String, Value>>,
    /// The session of the run, at most 1024 characters here. What no session may be called is replaced by a digest of
    /// it. The default is the id of the event; on a schedule it is a session of the run's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub session: Option<String>,
    /// The `ttlSecondsAfterFinished` of the run: 0 to 315360000 (ten years). The Workflow of an event stays for 24
    /// hours at least, because a repeated event is known by it. The default is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// How senders without a token of Kubernetes prove who they are.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = Rule::new("has(self.hmac) != has(self.bearer)").message("exactly one of hmac and bearer says how senders prove who they are"))]
pub struct SenderAuth {
    /// Senders sign the body (HMAC-SHA256) with a secret that they share with Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac: Option<HmacAuth>,
    /// Senders send a secret that they share with Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerAuth>,
}

/// Signed bodies.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HmacAuth {
    /// Where the secret is.
    pub secret_ref: SecretKeyRef,
    /// How the signature is written. The default is GitHub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<HmacScheme>,
    /// The header that holds the signature. The default is that of the scheme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub header: Option<String>,
}

/// How a signature is written.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum HmacScheme {
    /// Over the body, as hexadecimal digits with or without `sha256=` before them, in the header `X-Hub-Signature-256`.
    #[default]
    GitHub,
    /// Over `v0:TIMESTAMP:BODY`, as `v0=` and hexadecimal digits, in the header `X-Slack-Signature`. The time in the
    /// header `X-Slack-Request-Timestamp` must be at most five minutes off.
    Slack,
    /// As [Standard Webhooks](https://www.standardwebhooks.com) says, and as Lockstep signs its own notifications: over
    /// `ID.TIMESTAMP.BODY`, as `v1,` and Base64, in the header `Webhook-Signature`, which may hold several. The time in the header
    /// `Webhook-Timestamp` must be at most five minutes off. A secret that begins with `whsec_` is Base64 behind that.
    StandardWebhooks,
}

/// A secret that is sent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BearerAuth {
    /// Where the secret is.
    pub secret_ref: SecretKeyRef,
    /// The header that holds the secret alone, for example `X-Gitlab-Token`. The default is `Authorization`, with
    /// `Bearer` before the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub header: Option<String>,
}

/// A key of a Secret of the same namespace. The account of the HTTP API needs the permission to get that Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretKeyRef {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key within the Secret; what it holds must have 16 bytes at least.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What Lockstep knows of the Trigger and its runs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TriggerStatus {
    /// The `metadata.generation` that this status is about; -1 before Lockstep has looked at the Trigger.
    // Derived.
    #[serde(default = "super::condition::unseen")]
    pub observed_generation: i64,
    /// The condition `Ready`: True if runs can be started; if False, its message lists every fault with its path, and
    /// `Stalled`, which kstatus reads, is True.
    // Derived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Where events for this Trigger are sent to; absent with a schedule, and where the HTTP API is not installed.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub url: Option<String>,
    /// The newest event that started a run.
    // Latched, by the newest run that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<LastEvent>,
    /// The newest run.
    // Latched, as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<LastRun>,
    /// The newest time of the schedule for which a run was started.
    // Latched: it only grows, and no time up to it is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// The next time of the schedule; absent while it is suspended.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// How many runs of this Trigger there are, by how they stand.
    // Derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<TriggerRuns>,
}

impl Default for TriggerStatus {
    fn default() -> Self {
        Self {
            observed_generation: super::condition::unseen(),
            conditions: Vec::new(),
            url: None,
            last_event: None,
            last_run: None,
            last_schedule_time: None,
            next_schedule_time: None,
            runs: None,
        }
    }
}

/// An event that started a run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct LastEvent {
    /// The `id` of the event, at most 256 bytes of it.
    #[schemars(length(max = 256))]
    pub id: String,
    /// The `source` of the event.
    #[schemars(length(max = 512))]
    pub source: String,
    /// The `type` of the event.
    #[serde(rename = "type")]
    #[schemars(length(max = 256))]
    pub event_type: String,
}

/// A run that was started.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastRun {
    /// The name of the Workflow.
    #[schemars(length(max = 253))]
    pub name: String,
    /// When it was created.
    pub created_at: Time,
}

/// Runs that are there, by how they stand.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct TriggerRuns {
    /// Runs that are not over.
    pub active: i64,
    /// Runs that have completed.
    pub completed: i64,
    /// Runs that have failed.
    pub failed: i64,
    /// Runs that were cancelled.
    pub cancelled: i64,
}
