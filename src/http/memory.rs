//! What an agent remembers in a story: read and corrected by people, with their own token.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::Http;
use super::call::Call;
use super::caller::{read, within};
use super::fields::Fields;
use super::problem::{FieldFault, Problem, Result};
use crate::api::limits::{MEMORY_BYTES, MEMORY_KEYS};
use crate::api::memory::{Memory, MemoryEntry};
use crate::api::name::{self, API};
use crate::decide::memory::{bytes, fault, next_revision};
use crate::definition::digits;

const TRIES: usize = 5;

/// What an agent remembers.
#[derive(Serialize, JsonSchema)]
pub struct Remembered {
    pub agent: String,
    pub session_id: String,
    #[serde(rename = "createdAt")]
    pub created_at: Option<Time>,
    /// Grows with every write.
    pub revision: i64,
    /// The values by key.
    pub entries: BTreeMap<String, Value>,
}

/// The body of `PUT /memory/{agent}/{story}`.
#[derive(Serialize, JsonSchema)]
pub struct Replacement {
    /// All that is remembered from now on: keys that are left out are deleted.
    pub entries: BTreeMap<String, Value>,
    /// Only if this is its revision; else the answer is 409. The default is to replace whatever is there.
    #[schemars(range(min = 0))]
    pub revision: Option<i64>,
}

fn shown(memory: &Memory) -> Response {
    let spec = &memory.spec;
    let value = |text: &str| digits::read(text).unwrap_or_else(|_| Value::from(text));
    let entries = spec.entries.iter().map(|(key, entry)| (key.clone(), value(&entry.value))).collect();
    let said = Remembered {
        agent: spec.agent_id.clone(),
        session_id: spec.session.clone(),
        created_at: memory.metadata.creation_timestamp.clone(),
        revision: spec.revision,
        entries,
    };
    let mut response = axum::Json(said).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", spec.revision)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

async fn find(call: &Call) -> Result<(Api<Memory>, Memory)> {
    let (agent, story) = (call.part("agent"), call.part("story"));
    let api: Api<Memory> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let found = read(&api, &name::memory(agent, story)).await?;
    let own = found.filter(|memory| memory.spec.agent_id == agent && memory.spec.session == story);
    let missing = || {
        Problem::not_found(format!(
            "the agent {agent:?} remembers nothing in the story {story:?} (yet); it does from its first attempt in that story on"
        ))
    };
    own.map(|memory| (api, memory)).ok_or_else(missing)
}

/// `GET /memory/{agent}/{story}`
pub async fn get(_: Arc<Http>, call: Call) -> Result<Response> {
    find(&call).await.map(|(_, memory)| shown(&memory))
}

/// `PUT /memory/{agent}/{story}`
pub async fn put(_: Arc<Http>, call: Call) -> Result<Response> {
    let (wanted, revision) = wanted(&call.body)?;
    for _ in 0..TRIES {
        let (api, mut memory) = find(&call).await?;
        if is_there(&memory, &wanted) {
            // Said again: the answer was lost.
            return Ok(shown(&memory));
        }
        if revision.is_some_and(|revision| revision != memory.spec.revision) {
            let now = memory.spec.revision;
            return Err(Problem::conflict(format!("the revision is {now} by now; read it again, nothing was written")));
        }
        replace(&mut memory, &wanted);
        let params = PostParams { field_manager: Some(API.to_owned()), ..PostParams::default() };
        match within(api.replace(&memory.name_any(), &params, &memory)).await {
            Ok(written) => return Ok(shown(&written)),
            Err(problem) if problem.status == StatusCode::CONFLICT => {}
            Err(problem) => return Err(problem),
        }
    }
    Err(Problem::unavailable("others keep writing to this memory; try again"))
}

fn is_there(memory: &Memory, wanted: &BTreeMap<String, String>) -> bool {
    let entries = &memory.spec.entries;
    entries.len() == wanted.len()
        && wanted.iter().all(|(key, value)| entries.get(key).is_some_and(|entry| entry.value == *value))
}

/// What stays the same keeps its revision.
fn replace(memory: &mut Memory, wanted: &BTreeMap<String, String>) {
    let next = next_revision(&memory.spec);
    let before = std::mem::take(&mut memory.spec.entries);
    let entry = |key: &String, value: &String| {
        let old = before.get(key).filter(|old| old.value == *value);
        old.cloned().unwrap_or_else(|| MemoryEntry { value: value.clone(), revision: next })
    };
    memory.spec.entries = wanted.iter().map(|(key, value)| (key.clone(), entry(key, value))).collect();
    memory.spec.revision = next;
}

fn wanted(body: &[u8]) -> Result<(BTreeMap<String, String>, Option<i64>)> {
    let mut fields = Fields::read(body)?;
    let entries = fields.object("entries");
    let revision = fields.value("revision");
    let number = revision.as_ref().and_then(Value::as_i64).filter(|number| *number >= 0);
    if revision.is_some() && number.is_none() {
        fields.fault("revision", "must be a number, 0 or more");
    }
    let Some(entries) = entries else {
        fields.fault("entries", "is required");
        return Err(fields.end().err().unwrap_or_else(|| Problem::field("entries", "is required")));
    };
    fields.end()?;
    let texts: BTreeMap<String, String> = entries.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
    let faults: Vec<FieldFault> = texts
        .iter()
        .filter_map(|(key, value)| {
            let message = fault(key, Some(value))?;
            Some(FieldFault { field: crate::api::condition::clip(&format!("entries.{key}"), 160), message })
        })
        .take(32)
        .collect();
    if !faults.is_empty() {
        return Err(Problem::fields(faults));
    }
    let entry = |(key, value): (&String, &String)| (key.clone(), MemoryEntry { value: value.clone(), revision: 1 });
    let spec = crate::api::MemorySpec { entries: texts.iter().map(entry).collect(), ..Default::default() };
    if bytes(&spec) > MEMORY_BYTES || texts.len() > MEMORY_KEYS {
        let many = format!(
            "have {} keys with {} bytes in all, at most {MEMORY_KEYS} keys and {MEMORY_BYTES} bytes",
            texts.len(),
            bytes(&spec)
        );
        return Err(Problem::field("entries", many));
    }
    Ok((texts, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MemorySpec;

    #[test]
    fn a_replacement_keeps_what_stays_and_is_bounded() {
        let mut memory = Memory::new("m", MemorySpec { revision: 4, ..MemorySpec::default() });
        for (key, value, revision) in [("a", "1", 2), ("b", "\"x\"", 4)] {
            memory.spec.entries.insert(key.into(), MemoryEntry { value: value.into(), revision });
        }
        let (new, revision) = wanted(br#"{"entries": {"a": 1, "c": [2]}, "revision": 4}"#).expect("it is good");
        replace(&mut memory, &new);
        let found: Vec<(&str, &str, i64)> =
            memory.spec.entries.iter().map(|(key, e)| (key.as_str(), e.value.as_str(), e.revision)).collect();
        assert_eq!((found, memory.spec.revision, revision), (vec![("a", "1", 2), ("c", "[2]", 5)], 5, Some(4)));
        let big = format!("{{\"entries\": {{\"a\": \"{}\"}}}}", "x".repeat(70_000));
        let many: Vec<String> = (0..5).map(|n| format!("\"k{n}\": \"{}\"", "x".repeat(60_000))).collect();
        let many = format!("{{\"entries\": {{{}}}}}", many.join(","));
        for body in [
            "{}",
            r#"{"entries": []}"#,
            r#"{"entries": {"a/b": 1}}"#,
            r#"{"entries": {}, "revision": -1}"#,
            &big,
            &many,
        ] {
            assert!(wanted(body.as_bytes()).is_err(), "{}", crate::api::condition::clip(body, 80));
        }
    }
}
