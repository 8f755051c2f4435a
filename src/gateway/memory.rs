//! What an agent remembers: read from a bounded cache, written by compare-and-swap. Which Memory it is follows from the
//! attempt alone, so nothing in a call can name another one.

#![expect(clippy::disallowed_methods, reason = "how old a copy may be, and the pause before a write is decided again")]
#![expect(clippy::disallowed_macros, reason = "the operations of a JSON patch")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::attempt::Asked;
use super::auth::Caller;
use super::cluster::{self, Failure, add, test};
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, attempt};
use crate::api::Memory;
use crate::api::name::{self, LAST_USED};
use crate::cluster::bounded_cache::BoundedCache;
use crate::cluster::fair::Fair;
use crate::decide::memory::{self as rules, Change, Write, WriteVerdict};
use crate::protocol::AttemptRef;
use crate::protocol::memory::{Listed, MemoryAnswer, MemoryRequest, Operation, Outcome};

mod pace;

/// Bytes of the cached copies, and of the grants of attempts that read.
const COPY_BYTES: usize = 16 * 1024 * 1024;
const READ_GRANT_BYTES: usize = 2 * 1024 * 1024;
/// How old a copy may be that answers a read: so late an attempt hears of what others wrote, or people. Of what it wrote
/// itself, and of what it has heard of already, it hears at once.
const FRESH: Duration = Duration::from_secs(2);
/// For so long a reader counts as the holder of its attempt. Whoever writes is looked at anew each time.
const STANDS: Duration = Duration::from_secs(1);
/// Decisions on a Memory that other gateways and people keep writing to.
const ROUNDS: u32 = 16;
const PAUSE: Duration = Duration::from_millis(5);
/// Calls of one namespace that wait for a place.
const QUEUED: usize = 256;
/// About how many Memories can be written to at once: each is written under one of so many locks.
const WRITE_LOCKS: usize = 64;
/// What an entry or a writer of a Memory takes beside its key and value: names of fields, numbers, who owns it.
const PART_BYTES: usize = 128;

/// The gateway's cache of Memories, and what bounds the calls about them.
pub struct Memories {
    /// By namespace and name.
    copies: BoundedCache<CachedMemory>,
    /// By the UID of the StepRun: the grant of its newest attempt.
    read_grants: BoundedCache<ReadGrant>,
    /// Each holds a write of a Memory, by a hash of its name, so that writes through this gateway do not conflict.
    write_locks: [Mutex<()>; WRITE_LOCKS],
    pace: pace::WritePace,
    pub places: Fair,
}

impl Memories {
    pub fn new(at_once: usize) -> Self {
        Self {
            copies: BoundedCache::new(COPY_BYTES),
            read_grants: BoundedCache::new(READ_GRANT_BYTES),
            write_locks: std::array::from_fn(|_| Mutex::new(())),
            pace: pace::WritePace::default(),
            places: Fair::new(at_once, QUEUED),
        }
    }

    fn write_lock(&self, memory_ref: &MemoryRef) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        memory_ref.key().hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % WRITE_LOCKS as u64).unwrap_or_default();
        &self.write_locks[index]
    }
}

/// A Memory as the API server gave it, and when it was asked.
struct CachedMemory {
    memory: Memory,
    version: Option<u64>,
    asked_at: Instant,
}

impl CachedMemory {
    fn is_fresh(&self, at_least: Option<u64>) -> bool {
        self.asked_at.elapsed() < FRESH
            && at_least.is_none_or(|least| self.version.is_some_and(|version| version >= least))
    }
}

/// The name of the one Memory that an attempt may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MemoryRef {
    namespace: String,
    name: String,
    agent: String,
    session: String,
}

impl MemoryRef {
    fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn not_found(&self) -> Refusal {
        let Self { name, agent, .. } = self;
        Refusal::new(
            Reason::NotFound,
            format!("memory: there is no Memory {name} any more; the next attempt of agent {agent} gets a new one"),
        )
    }
}

/// That an attempt may read its Memory: it held its claim at this time. Good for `STANDS`, for reads only.
struct ReadGrant {
    attempt: i32,
    id: String,
    pod_uid: String,
    memory_ref: MemoryRef,
    at: Instant,
}

pub async fn memory(gateway: &Gateway, caller: &Caller, request: Asked<MemoryRequest>) -> Result<MemoryAnswer> {
    let who = &request.attempt;
    let MemoryRequest { operation, at_least } = request.body;
    match operation {
        Operation::Get { key } => {
            validate_entry(&key, None)?;
            let copy = read(gateway, caller, who, at_least).await?;
            let entry = copy.memory.spec.entries.get(&key);
            let found = |entry: &crate::api::memory::MemoryEntry| Outcome::Found {
                value: entry.value.clone(),
                revision: entry.revision,
            };
            Ok(answer(&copy, entry.map_or(Outcome::Absent, found)))
        }
        Operation::List {} => {
            let copy = read(gateway, caller, who, at_least).await?;
            Ok(answer(&copy, listed(&copy)))
        }
        Operation::Set { key, value, if_revision, sequence } => {
            let write = wanted(who, &key, Some(&value), (if_revision, sequence))?;
            written(gateway, caller, who, &write).await
        }
        Operation::Delete { key, if_revision, sequence } => {
            let write = wanted(who, &key, None, (if_revision, sequence))?;
            written(gateway, caller, who, &write).await
        }
    }
}

fn wanted<'a>(
    who: &'a AttemptRef,
    key: &'a str,
    value: Option<&'a str>,
    (if_revision, sequence): (Option<i64>, i64),
) -> Result<Write<'a>> {
    validate_entry(key, value)?;
    if sequence < 1 {
        return Err(Refusal::bad_request("sequence: must be 1 or more"));
    }
    if if_revision.is_some_and(|revision| revision < 0) {
        return Err(Refusal::bad_request("ifRevision: must be 0, for a key that is not there, or more"));
    }
    Ok(Write { step_run_uid: &who.uid, attempt: who.attempt, sequence, key, value, if_revision })
}

fn validate_entry(key: &str, value: Option<&str>) -> Result<()> {
    rules::fault(key, value).map_or(Ok(()), |fault| Err(Refusal::bad_request(fault)))
}

fn answer(copy: &CachedMemory, outcome: Outcome) -> MemoryAnswer {
    MemoryAnswer { resource_version: copy.version, outcome }
}

fn listed(copy: &CachedMemory) -> Outcome {
    let spec = &copy.memory.spec;
    let entries = spec.entries.iter();
    let entries = entries.map(|(key, e)| Listed { key: key.clone(), revision: e.revision, bytes: e.value.len() });
    Outcome::Listed { entries: entries.collect(), bytes: rules::bytes(spec) }
}

// ---- which Memory an attempt reaches

/// The Memory that an attempt may reach, by its StepRun as it is now and the session that its run pinned.
async fn memory_of(gateway: &Gateway, caller: &Caller, who: &AttemptRef) -> Result<MemoryRef> {
    let at = Instant::now();
    let step_run = attempt::read(gateway, who).await?;
    attempt::works(&step_run, who, caller)?;
    let definition = gateway.definitions.get(&gateway.client, &who.namespace, &step_run.spec).await?;
    let (agent, session) = (step_run.spec.agent_id, definition.run.session.clone());
    let memory_ref =
        MemoryRef { namespace: who.namespace.clone(), name: name::memory(&agent, &session), agent, session };
    let grant = ReadGrant {
        attempt: who.attempt,
        id: attempt::id_digest(who),
        pod_uid: caller.pod_uid.clone(),
        memory_ref: memory_ref.clone(),
        at,
    };
    gateway.memories.read_grants.insert(who.uid.clone(), Arc::new(grant), 512);
    Ok(memory_ref)
}

/// The same for a read: a grant of a moment ago is enough.
async fn readable_memory(gateway: &Gateway, caller: &Caller, who: &AttemptRef) -> Result<MemoryRef> {
    let id = attempt::id_digest(who);
    let known = gateway.memories.read_grants.get(&who.uid).filter(|grant| {
        grant.at.elapsed() < STANDS
            && (grant.attempt, &grant.id, &grant.pod_uid) == (who.attempt, &id, &caller.pod_uid)
            && grant.memory_ref.namespace == who.namespace
    });
    match known {
        Some(known) => Ok(known.memory_ref.clone()),
        None => memory_of(gateway, caller, who).await,
    }
}

// ---- copies

async fn read(
    gateway: &Gateway,
    caller: &Caller,
    who: &AttemptRef,
    at_least: Option<u64>,
) -> Result<Arc<CachedMemory>> {
    let memory_ref = readable_memory(gateway, caller, who).await?;
    match cached(gateway, &memory_ref, at_least) {
        Some(copy) => Ok(copy),
        None => live(gateway, &memory_ref).await,
    }
}

fn cached(gateway: &Gateway, memory_ref: &MemoryRef, at_least: Option<u64>) -> Option<Arc<CachedMemory>> {
    gateway.memories.copies.get(&memory_ref.key()).filter(|copy| copy.is_fresh(at_least))
}

fn api(gateway: &Gateway, memory_ref: &MemoryRef) -> Api<Memory> {
    Api::namespaced(gateway.client.clone(), &memory_ref.namespace)
}

async fn live(gateway: &Gateway, memory_ref: &MemoryRef) -> Result<Arc<CachedMemory>> {
    let (api, asked_at) = (api(gateway, memory_ref), Instant::now());
    match cluster::read(&api, &memory_ref.name).await? {
        Some(memory) => keep(gateway, memory_ref, memory, asked_at),
        None => Err(memory_ref.not_found()),
    }
}

/// Caches a Memory if it is that of this agent and session: names are short digests, and two may collide.
fn keep(gateway: &Gateway, memory_ref: &MemoryRef, mut memory: Memory, asked_at: Instant) -> Result<Arc<CachedMemory>> {
    if (&memory.spec.agent_id, &memory.spec.session) != (&memory_ref.agent, &memory_ref.session) {
        let message = format!("memory: Memory {} is not that of this agent and session", memory_ref.name);
        return Err(Refusal::new(Reason::NotFound, message));
    }
    memory.metadata.managed_fields = None;
    let version = memory.metadata.resource_version.as_ref().and_then(|version| version.parse().ok());
    let bytes = rules::bytes(&memory.spec) + 64 * memory.spec.entries.len() + 256 * memory.spec.writers.len() + 2048;
    let copy = Arc::new(CachedMemory { memory, version, asked_at });
    let newer = gateway.memories.copies.get(&memory_ref.key()).is_some_and(|other| other.version > copy.version);
    if !newer {
        gateway.memories.copies.insert(memory_ref.key(), Arc::clone(&copy), bytes);
    }
    Ok(copy)
}

// ---- writing

async fn written(gateway: &Gateway, caller: &Caller, who: &AttemptRef, write: &Write<'_>) -> Result<MemoryAnswer> {
    let memory_ref = memory_of(gateway, caller, who).await?;
    let _lock = gateway.memories.write_lock(&memory_ref).lock().await;
    let (mut copy, mut is_live) = match cached(gateway, &memory_ref, None) {
        Some(copy) => (copy, false),
        None => (live(gateway, &memory_ref).await?, true),
    };
    let mut is_paid = false;
    for round in 0..ROUNDS {
        match rules::write(&copy.memory.spec, write) {
            WriteVerdict::Change(change) => {
                // Once a call, and only where something is stored: a repetition and a conflict cost nothing.
                if !std::mem::replace(&mut is_paid, true) && !pays(gateway, &memory_ref, &copy, write) {
                    return Err(Refusal::unavailable("memory: too much is written at once; try again in a moment"));
                }
                match change_it(gateway, &memory_ref, &copy, (write.key, &change)).await {
                    Ok(copy) => {
                        let revision = change.entry.map(|entry| entry.revision);
                        return Ok(answer(&copy, Outcome::Done { revision }));
                    }
                    Err(failure) if failure.is_outrun() => {
                        gateway.metrics.conflicts.inc();
                        tokio::time::sleep(PAUSE * round).await;
                    }
                    Err(failure) if failure.is_not_found() => return Err(memory_ref.not_found()),
                    Err(failure) => return Err(failure.into()),
                }
            }
            // An older copy may say so wrongly.
            _ if !is_live => {}
            WriteVerdict::Done { revision } => return Ok(answer(&copy, Outcome::Done { revision })),
            WriteVerdict::Conflict { revision } => return Ok(answer(&copy, Outcome::Conflict { revision })),
            WriteVerdict::Overtaken => return Err(Refusal::fenced("a later write of this step was there first")),
            WriteVerdict::TooMuch(fault) => return Err(Refusal::bad_request(fault)),
        }
        (copy, is_live) = (live(gateway, &memory_ref).await?, true);
    }
    Err(Refusal::unavailable("memory: others keep writing to it; try again in a moment"))
}

/// Whether the Memory as it would be may be stored now.
fn pays(gateway: &Gateway, memory_ref: &MemoryRef, copy: &CachedMemory, write: &Write<'_>) -> bool {
    let spec = &copy.memory.spec;
    let replaced = spec.entries.get(write.key).map_or(0, |entry| entry.value.len());
    let texts = rules::bytes(spec) - replaced + write.key.len() + write.value.map_or(0, str::len);
    let bytes = texts + (spec.entries.len() + 1 + spec.writers.len()) * PART_BYTES;
    gateway.memories.pace.take(&memory_ref.namespace, write.step_run_uid, bytes, Instant::now())
}

/// Lands only on the very copy that it was decided on.
async fn change_it(
    gateway: &Gateway,
    memory_ref: &MemoryRef,
    copy: &CachedMemory,
    (key, change): (&str, &Change),
) -> std::result::Result<Arc<CachedMemory>, Failure> {
    let now = gateway.clock.now().0.to_string();
    let operations = json!(operations(&copy.memory, (key, change), &now));
    let patch: Patch<()> = Patch::Json(serde_json::from_value(operations).map_err(|e| Failure::Broken(e.to_string()))?);
    let params = PatchParams { field_manager: Some(name::GATEWAY.to_owned()), ..PatchParams::default() };
    let (api, asked_at) = (api(gateway, memory_ref), Instant::now());
    let memory = cluster::call(|| api.patch(&memory_ref.name, &params, &patch)).await?;
    keep(gateway, memory_ref, memory, asked_at).map_err(|refusal| Failure::Broken(refusal.message))
}

fn operations(memory: &Memory, (key, change): (&str, &Change), now: &str) -> Vec<Value> {
    let meta = &memory.metadata;
    let place = format!("/spec/entries/{key}");
    let entries = match &change.entry {
        // The map may be absent where it is empty.
        Some(entry) if memory.spec.entries.is_empty() => add("/spec/entries", &json!({key: entry})),
        Some(entry) => add(&place, entry),
        None => json!({"op": "remove", "path": place}),
    };
    let used = match &meta.annotations {
        Some(_) => add(&format!("/metadata/annotations/{}", LAST_USED.replace('/', "~1")), &now),
        None => add("/metadata/annotations", &json!({LAST_USED: now})),
    };
    vec![
        test("/metadata/uid", meta.uid.clone().unwrap_or_default()),
        test("/metadata/resourceVersion", meta.resource_version.clone().unwrap_or_default()),
        entries,
        add("/spec/revision", &change.revision),
        add("/spec/writers", &change.writers),
        used,
    ]
}

#[cfg(test)]
mod tests;
