//! What was told to receivers outside of the cluster (`notifications`).

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a receiver may be told of, as the administrator chooses it (`events` of a receiver).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum NotificationEvent {
    Started,
    Waiting,
    Decided,
    Completed,
    Failed,
    Cancelled,
}

impl NotificationEvent {
    /// The type of its CloudEvent.
    pub fn event_type(self) -> &'static str {
        match self {
            Self::Started => "dev.lockstep.run.started",
            Self::Waiting => "dev.lockstep.run.waiting",
            Self::Decided => "dev.lockstep.run.decided",
            Self::Completed => "dev.lockstep.run.completed",
            Self::Failed => "dev.lockstep.run.failed",
            Self::Cancelled => "dev.lockstep.run.cancelled",
        }
    }
}

/// What one receiver need not be told again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Notified {
    /// The name of the receiver, as the administrator gave it in the chart value `notifications.sinks`.
    #[schemars(length(min = 1, max = 40))]
    pub sink: String,
    /// What it is not told again, because it was delivered or given up, the newest 256, by short names such as `started`, `gate1`
    /// (the gate in its first round) and `ended`. `late.NAME` is what the Event NotificationLate was about, `unknown` says that there
    /// is no such receiver.
    #[schemars(length(max = 256), inner(length(max = 128)))]
    pub told: Vec<String>,
}
