//! Memory: what one agent remembers in one session, key by key. The operator makes it, the gateway writes it for agents.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::generate::SchemaGenerator;
use schemars::{Schema, json_schema};
use serde::{Deserialize, Serialize};

use super::limits::{MEMORY_KEY_BYTES, MEMORY_KEYS};

/// The keys that are there from the beginning, and what `status` says then.
pub const AGENT_ID: &str = "agent_id";
pub const STORY_ID: &str = "story_id";
pub const STATUS: &str = "status";
pub const INITIALIZED: &str = "initialized";

/// Whose it is, and what is remembered.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "Memory",
    plural = "memories",
    namespaced,
    shortname = "lmem",
    category = "lockstep",
    doc = "A Memory is what one agent remembers in one session, as JSON values by key. Lockstep makes it before the first attempt of that agent in that session; agents read and write it by `lockstep memory`, people by `kubectl lockstep memory`. That of a run without a session of its own goes with the run.",
    derive = "PartialEq",
    selectable = ".spec.agentId",
    selectable = ".spec.session",
    printcolumn(name = "Agent", type_ = "string", json_path = ".spec.agentId"),
    printcolumn(name = "Session", type_ = "string", json_path = ".spec.session"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".spec.revision"),
    printcolumn(name = "Last-Used", type_ = "date", json_path = ".metadata.annotations.lockstep\\.dev/last-used"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.agentId == oldSelf.agentId && self.session == oldSelf.session").message("agentId and session say whose memory it is, and never change"))]
pub struct MemorySpec {
    /// The agent that remembers: the `metadata.name` of the Agent. It is set by Lockstep.
    #[schemars(length(min = 1, max = 253))]
    pub agent_id: String,
    /// The session in which it remembers: that of the runs, or the private one of a single run, which begins with an
    /// underscore. It is set by Lockstep.
    #[schemars(length(min = 1, max = 63))]
    pub session: String,
    /// The highest revision that any key was ever given. Every write of a key takes the next number, so no revision is given
    /// twice, even if a key is deleted and set again.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub revision: i64,
    /// The values by their keys: at most 1000 keys, 64 KiB a value, and 256 KiB in all. A key is a letter, a digit or `_`,
    /// then letters, digits and `._:-`, at most 128 characters.
    #[serde(default)]
    #[schemars(schema_with = "entries_schema")]
    pub entries: BTreeMap<String, MemoryEntry>,
    /// The newest write of each step that wrote, the newest last, at most 128. By it a write that is repeated because its
    /// answer was lost is done once, and one that comes too late is refused. It is set by Lockstep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub writers: Vec<MemoryWriter>,
}

/// One value.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemoryEntry {
    /// The value as JSON text, at most 64 KiB. A text stands in quotes.
    #[schemars(length(max = 65_536))]
    pub value: String,
    /// The number of the write that gave the value. Who writes only if it is still this number overwrites nobody.
    #[schemars(range(min = 1))]
    pub revision: i64,
}

/// The newest write of one step.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemoryWriter {
    /// The UID of the StepRun whose attempt wrote.
    #[serde(rename = "stepRunUID")]
    #[schemars(length(max = 64))]
    pub step_run_uid: String,
    /// The number of the attempt that wrote.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub attempt: i32,
    /// The number of the write among those of the attempt.
    #[schemars(range(min = 1))]
    pub sequence: i64,
    /// The revision that the write gave; absent where it deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub revision: Option<i64>,
}

/// schemars has no word for the size of a map.
fn entries_schema(generator: &mut SchemaGenerator) -> Schema {
    let entry = generator.subschema_for::<MemoryEntry>();
    json_schema!({"type": "object", "default": {}, "maxProperties": MEMORY_KEYS, "additionalProperties": entry})
}

/// Whether a key may be one.
pub fn is_key(key: &str) -> bool {
    let may = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '-');
    (1..=MEMORY_KEY_BYTES).contains(&key.len())
        && key.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && key.chars().all(may)
}

/// What a key must be, in words.
pub const KEY_FORM: &str =
    "must be a letter, a digit or '_', then letters, digits, '.', '_', ':' and '-', at most 128 characters";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_in_form() {
        let long = "k".repeat(MEMORY_KEY_BYTES);
        for key in ["a", "A.b_c-d:9", "_x", "0", long.as_str()] {
            assert!(is_key(key), "{key}");
        }
        let longer = "k".repeat(MEMORY_KEY_BYTES + 1);
        for key in ["", "-a", ".a", ":a", "a/b", "a b", "a~b", "ä", "a\n", "../x", longer.as_str()] {
            assert!(!is_key(key), "{key:?}");
        }
    }
}
