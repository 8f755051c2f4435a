//! What an agent remembers in a session: what its Memory holds at first, what a write makes of it, and when it goes. Pure:
//! the gateway asks about a copy and writes only if that copy is still what is there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Resource;
use kube::core::ObjectMeta;
use serde_json::Value;

use crate::api::limits::{MEMORY_BYTES, MEMORY_KEYS, MEMORY_VALUE_BYTES, MEMORY_WRITERS};
use crate::api::memory::{
    AGENT_ID, INITIALIZED, KEY_FORM, Memory, MemoryEntry, MemorySpec, MemoryWriter, STATUS, STORY_ID, is_key,
};
use crate::api::name::{self, LABEL_AGENT, LABEL_SESSION, LABEL_WORKFLOW, LAST_USED};
use crate::api::step_run::StepRun;
use crate::api::workflow::Workflow;

/// What there is under the name of the Memory that an attempt uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MemorySeen {
    #[default]
    NotAsked,
    Absent,
    There {
        uid: String,
    },
    /// Somebody else's: whose, in words.
    Foreign(String),
}

/// The Memory of the step's agent in this session, as it is made.
pub fn initial(step_run: &StepRun, session: &str, now: &Time) -> Memory {
    let spec = &step_run.spec;
    let texts = [(AGENT_ID, spec.agent_id.as_str()), (STORY_ID, session), (STATUS, INITIALIZED)];
    let entry = |text: &str| MemoryEntry { value: Value::from(text).to_string(), revision: 1 };
    let content = MemorySpec {
        agent_id: spec.agent_id.clone(),
        session: session.to_owned(),
        revision: 1,
        entries: texts.map(|(key, text)| (key.to_owned(), entry(text))).into(),
        writers: Vec::new(),
    };
    let mut memory = Memory::new(&name::memory(&spec.agent_id, session), content);
    memory.metadata.namespace.clone_from(&step_run.metadata.namespace);
    let mut labels = vec![(LABEL_AGENT, spec.agent_id.as_str()), (LABEL_SESSION, session)];
    if name::is_private(session) {
        labels.push((LABEL_WORKFLOW, &spec.workflow.name));
        memory.metadata.owner_references = Some(vec![OwnerReference {
            api_version: Workflow::api_version(&()).into_owned(),
            kind: Workflow::kind(&()).into_owned(),
            name: spec.workflow.name.clone(),
            uid: spec.workflow.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }]);
    }
    let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), name::label_value(value)));
    memory.metadata.labels = Some(labels.collect());
    memory.metadata.annotations = Some([(LAST_USED.to_owned(), now.0.to_string())].into());
    memory
}

/// Whether what lies there is what was to be made.
pub fn seen(found: Option<&ObjectMeta>, wanted: &ObjectMeta) -> MemorySeen {
    let Some(found) = found else { return MemorySeen::Absent };
    let label = |meta: &ObjectMeta, key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    if let Some(key) = [LABEL_AGENT, LABEL_SESSION].into_iter().find(|key| label(found, key) != label(wanted, key)) {
        let holder = label(found, key).unwrap_or_else(|| "none".to_owned());
        return MemorySeen::Foreign(format!("its label {key} is {holder}"));
    }
    if owner(found) != owner(wanted) {
        return MemorySeen::Foreign(format!("its owner has the UID {}", owner(found).unwrap_or("none")));
    }
    MemorySeen::There { uid: found.uid.clone().unwrap_or_default() }
}

fn owner(meta: &ObjectMeta) -> Option<&str> {
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str())
}

/// What becomes of a Memory whose time may be up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    Stays,
    /// It is in use, which has not been written down for a while.
    Used,
    Goes,
}

/// Whether a step of the agent in that session is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Open,
    Over,
}

/// One that nobody used for so many seconds goes. While a step may use it that is written down ten times in this time, so
/// that it counts from the step's end.
pub fn fate(meta: &ObjectMeta, ttl_seconds: i64, is_used: Use, now: &Time) -> Retention {
    let Some(used) = last_used(meta) else { return Retention::Stays };
    let idle = now.0.duration_since(used);
    match is_used {
        Use::Open if idle >= SignedDuration::from_secs((ttl_seconds / 10).max(1)) => Retention::Used,
        Use::Over if idle >= SignedDuration::from_secs(ttl_seconds) => Retention::Goes,
        _ => Retention::Stays,
    }
}

/// What cannot be read is no time: then it is as old as the object.
fn last_used(meta: &ObjectMeta) -> Option<Timestamp> {
    let written = meta.annotations.as_ref().and_then(|annotations| annotations.get(LAST_USED)?.parse().ok());
    let made = meta.creation_timestamp.as_ref().map(|made| made.0);
    written.into_iter().chain(made).max()
}

/// A write of one key, by an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    pub step_run_uid: &'a str,
    pub attempt: i32,
    /// The number of the write among those of the attempt: the same for a repetition.
    pub sequence: i64,
    pub key: &'a str,
    /// JSON text; nothing deletes.
    pub value: Option<&'a str>,
    /// Only if the key has this revision; 0: only if there is no such key.
    pub if_revision: Option<i64>,
}

/// Whether a write changes a Memory, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteVerdict {
    Change(Change),
    /// Nothing is to be written: it was, or what is to be deleted is not there.
    Done {
        revision: Option<i64>,
    },
    Conflict {
        revision: i64,
    },
    /// A later write of the same step was there first.
    Overtaken,
    /// A bound: the field, and the bound in words.
    TooMuch(String),
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: i64,
    /// Nothing where the key goes.
    pub entry: Option<MemoryEntry>,
    pub writers: Vec<MemoryWriter>,
}

/// What is wrong with a write whatever the Memory holds: the field, and what it must be.
pub fn fault(key: &str, value: Option<&str>) -> Option<String> {
    if !is_key(key) {
        return Some(format!("key: {KEY_FORM}"));
    }
    let value = value?;
    if value.len() > MEMORY_VALUE_BYTES {
        return Some(format!("value: has {} bytes, at most {MEMORY_VALUE_BYTES}", value.len()));
    }
    let error = serde_json::from_str::<Value>(value).err()?;
    Some(format!("value: is not JSON ({error}); a text stands in quotes"))
}

/// Decides about a write on a copy of the Memory. `Change` and a repetition hold if the copy is what is there; anything else
/// is to be asked again of what is there now.
pub fn write(memory: &MemorySpec, write: &Write<'_>) -> WriteVerdict {
    let place = (write.attempt, write.sequence);
    let known = memory.writers.iter().find(|writer| writer.step_run_uid == write.step_run_uid);
    match known.map(|known| ((known.attempt, known.sequence), known.revision)) {
        Some((newest, revision)) if newest == place => return WriteVerdict::Done { revision },
        Some((newest, _)) if newest > place => return WriteVerdict::Overtaken,
        _ => {}
    }
    let current = memory.entries.get(write.key).map_or(0, |entry| entry.revision);
    if write.if_revision.is_some_and(|wanted| wanted != current) {
        return WriteVerdict::Conflict { revision: current };
    }
    if write.value.is_none() && current == 0 {
        return WriteVerdict::Done { revision: None };
    }
    if let Some(fault) = write.value.and_then(|value| too_much(memory, write.key, value)) {
        return WriteVerdict::TooMuch(fault);
    }
    let revision = next_revision(memory);
    let entry = write.value.map(|value| MemoryEntry { value: value.to_owned(), revision });
    let mut writers: Vec<MemoryWriter> =
        memory.writers.iter().filter(|writer| writer.step_run_uid != write.step_run_uid).cloned().collect();
    writers.push(MemoryWriter {
        step_run_uid: write.step_run_uid.to_owned(),
        attempt: write.attempt,
        sequence: write.sequence,
        revision: entry.as_ref().map(|entry| entry.revision),
    });
    writers.drain(..writers.len().saturating_sub(MEMORY_WRITERS));
    WriteVerdict::Change(Change { revision, entry, writers })
}

/// The revision of the next write, whatever people made of the field.
pub fn next_revision(memory: &MemorySpec) -> i64 {
    let highest = memory.entries.values().map(|entry| entry.revision).max().unwrap_or_default();
    memory.revision.max(highest).saturating_add(1)
}

/// Bytes of keys and values.
pub fn bytes(memory: &MemorySpec) -> usize {
    memory.entries.iter().map(|(key, entry)| key.len() + entry.value.len()).sum()
}

/// The bound that a Memory would exceed with this value. One that is beyond it already may shrink.
pub fn too_much(memory: &MemorySpec, key: &str, value: &str) -> Option<String> {
    let there = memory.entries.get(key);
    if there.is_none() && memory.entries.len() >= MEMORY_KEYS {
        return Some(format!("key: the memory has {MEMORY_KEYS} keys, which is the most; delete one"));
    }
    let before = there.map_or(0, |entry| key.len() + entry.value.len());
    let (all, own) = (bytes(memory), key.len() + value.len());
    let after = all - before + own;
    (after > MEMORY_BYTES && own > before).then(|| {
        format!(
            "value: the memory would have {after} bytes in all, at most {MEMORY_BYTES}; delete a key, or write less"
        )
    })
}

#[cfg(test)]
mod tests;
