//! What the agent remembers: the calls `memory/get`, `memory/set`, `memory/delete` and `memory/list` of the local server.
//! Every write has a number, so that one that is repeated because its reply was lost is done once.

#![expect(clippy::disallowed_methods, reason = "the pause between two tries")]
#![expect(clippy::disallowed_macros, reason = "answers to the agent's calls")]

use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::gateway::{CallError, Gateway};
use super::mask::Mask;
use super::process::lock;
use crate::definition::digits;
use crate::protocol::memory::{self, MemoryAnswer, MemoryRequest, Operation, Outcome};

/// How long an outage of the gateway is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the shim knows of the memory: how far it has heard, and how many writes there were.
#[derive(Default)]
pub struct Remembered {
    heard: Mutex<Option<u64>>,
    /// Held while a write is under way: one at a time has a number.
    writes: Mutex<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetCall {
    key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetCall {
    key: String,
    value: Value,
    #[serde(default)]
    if_revision: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeleteCall {
    key: String,
    #[serde(default)]
    if_revision: Option<i64>,
}

/// The reply to a call about the Memory: its status and JSON, or the error of the call to the gateway.
pub type MemoryReply = Result<(u16, Value), CallError>;

impl Remembered {
    /// Answers one call of the agent.
    pub fn call(&self, gateway: &Gateway, mask: &Mask, call: &str, body: &[u8]) -> MemoryReply {
        let outcome = match call {
            "get" => match parse::<GetCall>(body) {
                Ok(GetCall { key }) => self.ask(gateway, Operation::Get { key }),
                Err(fault) => return Ok(fault),
            },
            "list" => self.ask(gateway, Operation::List {}),
            "set" => match parse::<SetCall>(body) {
                Ok(call) => match masked(mask, &call.key, &call.value) {
                    Ok(value) => self.write(gateway, |sequence| Operation::Set {
                        key: call.key.clone(),
                        value: value.clone(),
                        if_revision: call.if_revision,
                        sequence,
                    }),
                    Err(fault) => return Ok(bad(&fault)),
                },
                Err(fault) => return Ok(fault),
            },
            "delete" => match parse::<DeleteCall>(body) {
                Ok(call) => self.write(gateway, |sequence| Operation::Delete {
                    key: call.key.clone(),
                    if_revision: call.if_revision,
                    sequence,
                }),
                Err(fault) => return Ok(fault),
            },
            _ => return Ok((404, json!({"error": "no such call: memory has get, set, delete and list"}))),
        };
        outcome.map(told)
    }

    fn write(&self, gateway: &Gateway, operation: impl Fn(i64) -> Operation) -> Result<Outcome, CallError> {
        let mut writes = lock(&self.writes);
        // Given up or not: the number is spent, and what is still on its way under it is refused once the next one landed.
        *writes += 1;
        self.ask(gateway, operation(*writes))
    }

    fn ask(&self, gateway: &Gateway, operation: Operation) -> Result<Outcome, CallError> {
        let request = MemoryRequest { operation, at_least: *lock(&self.heard) };
        let answer = gateway.call(memory::PATH, &request, PATIENCE, |delay| {
            std::thread::sleep(delay);
            true
        })?;
        let answer: MemoryAnswer =
            serde_json::from_slice(&answer).map_err(|error| CallError::Unreachable(error.to_string()))?;
        let mut heard = lock(&self.heard);
        *heard = (*heard).max(answer.resource_version);
        Ok(answer.outcome)
    }
}

/// As it may leave the pod. A value of a Secret that stands outside of strings, or in a key, is not written.
fn masked(mask: &Mask, key: &str, value: &Value) -> Result<String, String> {
    let text = value.to_string();
    let masked = mask.json(&text);
    if mask.text(key) != key {
        return Err("key: holds the value of a Secret".to_owned());
    }
    if mask.text(&masked) != masked {
        return Err("value: holds the value of a Secret where it cannot be masked".to_owned());
    }
    Ok(masked)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, (u16, Value)> {
    digits::read_bytes(body).map_err(|error| bad(&error))
}

fn bad(fault: &impl std::fmt::Display) -> (u16, Value) {
    (400, json!({"error": fault.to_string()}))
}

fn told(outcome: Outcome) -> (u16, Value) {
    match outcome {
        Outcome::Found { value, revision } => match digits::read(&value) {
            Ok(value) => (200, json!({"value": value, "revision": revision})),
            Err(error) => (500, json!({"error": format!("value: what is stored is not JSON ({error}); set it anew")})),
        },
        Outcome::Absent => (404, json!({"error": "key: there is no such key; `memory list` says which there are"})),
        Outcome::Listed { entries, bytes } => (200, json!({"entries": entries, "bytes": bytes})),
        Outcome::Done { revision } => (200, json!({"revision": revision})),
        Outcome::Conflict { revision } => {
            let error = match revision {
                0 => "ifRevision: there is no such key by now; leave it out, or say 0, to set it anew".to_owned(),
                other => {
                    format!("ifRevision: the key has the revision {other}; read it again, and write on top of that")
                }
            };
            (409, json!({"error": error, "revision": revision}))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_by_status_and_field() {
        let listed = memory::Listed { key: "k".to_owned(), revision: 2, bytes: 3 };
        for (outcome, status, body) in [
            (
                Outcome::Found { value: "{\"a\":1}".to_owned(), revision: 4 },
                200,
                json!({"value": {"a": 1}, "revision": 4}),
            ),
            (Outcome::Absent, 404, json!({"error": "key: there is no such key; `memory list` says which there are"})),
            (
                Outcome::Listed { entries: vec![listed], bytes: 4 },
                200,
                json!({"entries": [{"key": "k", "revision": 2, "bytes": 3}], "bytes": 4}),
            ),
            (Outcome::Done { revision: Some(5) }, 200, json!({"revision": 5})),
            (Outcome::Done { revision: None }, 200, json!({"revision": null})),
            (
                Outcome::Conflict { revision: 6 },
                409,
                json!({"error": "ifRevision: the key has the revision 6; read it again, and write on top of that", "revision": 6}),
            ),
            (
                Outcome::Conflict { revision: 0 },
                409,
                json!({"error": "ifRevision: there is no such key by now; leave it out, or say 0, to set it anew", "revision": 0}),
            ),
        ] {
            assert_eq!(told(outcome), (status, body));
        }
        assert_eq!(told(Outcome::Found { value: "{".to_owned(), revision: 1 }).0, 500);
    }

    #[test]
    fn secrets_do_not_leave_by_way_of_the_memory() {
        let mask = Mask::new([b"s3cret-value".to_vec(), b"12345678".to_vec()]);
        assert_eq!(masked(&mask, "k", &json!({"a": "x s3cret-value y"})), Ok(r#"{"a":"x *** y"}"#.to_owned()));
        assert_eq!(masked(&mask, "k", &json!([1, null])), Ok("[1,null]".to_owned()));
        assert!(masked(&mask, "k", &json!({"s3cret-value": 1})).is_err_and(|fault| fault.starts_with("value: ")));
        assert!(masked(&mask, "k", &json!(12_345_678)).is_err_and(|fault| fault.starts_with("value: ")));
        assert!(masked(&mask, "s3cret-value", &json!(1)).is_err_and(|fault| fault.starts_with("key: ")));
    }
}
