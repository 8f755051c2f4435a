//! The server in memory, and what of the real server's answers it: UIDs and versions of one are those of the other, and objects are
//! compared without what only the real server adds.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::server::{Kind, Object, Server};

/// Of kinds with defaults that the one in memory does not know: what the requests write.
const WRITTEN: [(Kind, &[&str]); 2] = [
    (Kind::Job, &["/spec/suspend", "/spec/parallelism", "/status/active"]),
    (Kind::Pod, &["/spec/nodeName", "/spec/activeDeadlineSeconds", "/status/phase", "/status/message"]),
];

#[derive(Default)]
pub struct Twins {
    pub memory: Server,
    /// By the UID in memory, the real one.
    uids: BTreeMap<String, String>,
    /// By the version in memory, what both had then.
    bodies: BTreeMap<u64, (Value, Value)>,
    /// The newest real version that a reply showed.
    newest: u64,
}

impl Twins {
    /// What both had of an object, oldest first, an earlier one of the same name too.
    pub fn versions(&self, kind: Kind, name: &str) -> Vec<(&Value, &Value)> {
        let word = kind.name();
        let of =
            self.bodies.values().filter(|(memory, _)| memory["kind"] == word && memory["metadata"]["name"] == name);
        of.map(|(memory, real)| (memory, real)).collect()
    }

    pub fn knows_version(&self, version: &str) -> bool {
        version.parse().is_ok_and(|v| self.bodies.contains_key(&v))
    }

    /// The same with the real server's UIDs and versions.
    pub fn to_real(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => json!(self.uids.get(text).unwrap_or(text)),
            Value::Array(list) => list.iter().map(|v| self.to_real(v)).collect(),
            Value::Object(fields) => {
                let is_version = |key: &str| {
                    key == "resourceVersion" || key == "value" && value["path"] == "/metadata/resourceVersion"
                };
                let both = fields.iter().map(|(key, v)| {
                    let real = if is_version(key) { self.real_version(v) } else { self.to_real(v) };
                    (key.clone(), real)
                });
                Value::Object(both.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    fn real_version(&self, memory: &Value) -> Value {
        let known = memory.as_str().and_then(|v| v.parse().ok()).and_then(|v: u64| self.bodies.get(&v));
        known.map_or_else(|| memory.clone(), |(_, real)| real["metadata"]["resourceVersion"].clone())
    }

    /// Pairs an object of the memory with the real one; says where their UIDs or versions do not go together. A version that
    /// a request made is newer than all before; the collector's order is its own.
    pub fn pair(&mut self, memory: &Object, real: &Value, requested: bool) -> Result<(), String> {
        let word = |key: &str| real["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (uid, version) = (word("uid"), word("resourceVersion"));
        match self.uids.get(&memory.uid) {
            Some(known) if *known != uid => return Err(format!("the UID {} was {known} and is {uid}", memory.uid)),
            None if self.uids.values().any(|v| *v == uid) => {
                return Err(format!("the UID {} is new, {uid} not", memory.uid));
            }
            _ => self.uids.insert(memory.uid.clone(), uid),
        };
        let number: u64 = version.parse().map_err(|_| format!("{version} is no number"))?;
        match self.bodies.get(&memory.version) {
            Some((_, known)) if known["metadata"]["resourceVersion"] == version.as_str() => return Ok(()),
            Some((_, known)) => {
                let was = &known["metadata"]["resourceVersion"];
                return Err(format!(
                    "the memory keeps version {}, the real one goes from {was} to {version}",
                    memory.version
                ));
            }
            None if requested && number <= self.newest => {
                return Err(format!("the memory makes version {}, the real one stays at {version}", memory.version));
            }
            None => self.newest = self.newest.max(number),
        }
        let mut real = real.clone();
        // Sent back, they would count as a change.
        if let Some(meta) = real["metadata"].as_object_mut() {
            meta.remove("managedFields");
        }
        self.bodies.insert(memory.version, (memory.value.clone(), real));
        Ok(())
    }

    /// The real version that this one of the memory's has, where it is another than the one shown.
    pub fn other_version(&self, memory: &Object, real: &Value) -> Option<&str> {
        let known = self.bodies.get(&memory.version)?.1["metadata"]["resourceVersion"].as_str()?;
        (real["metadata"]["resourceVersion"] != known).then_some(known)
    }

    /// What is compared of an object of either server, with the memory's UIDs.
    pub fn view(&self, kind: Kind, value: &Value) -> Value {
        let meta = &value["metadata"];
        let mut seen = json!({"kind": kind.name(), "deleting": !meta["deletionTimestamp"].is_null()});
        for key in ["name", "generation", "deletionGracePeriodSeconds", "finalizers", "labels", "annotations"] {
            seen[key] = meta[key].clone();
        }
        seen["owners"] = self.to_memory(&meta["ownerReferences"]);
        if let Some((_, written)) = WRITTEN.iter().find(|(k, _)| *k == kind) {
            for path in *written {
                seen[*path] = value.pointer(path).cloned().unwrap_or_default();
            }
            if kind == Kind::Pod && seen["/status/phase"].is_null() {
                seen["/status/phase"] = json!("Pending");
            }
        } else {
            for key in ["spec", "status", "data", "revision"] {
                seen[key] = value[key].clone();
            }
        }
        if let Some(fields) = seen.as_object_mut() {
            fields.retain(|_, v| !v.is_null());
        }
        seen
    }

    fn to_memory(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                json!(self.uids.iter().find(|(_, real)| *real == text).map_or(text, |(memory, _)| memory))
            }
            Value::Array(list) => list.iter().map(|v| self.to_memory(v)).collect(),
            Value::Object(fields) => {
                Value::Object(fields.iter().map(|(k, v)| (k.clone(), self.to_memory(v))).collect())
            }
            other => other.clone(),
        }
    }
}

/// Where two views differ, one line a field.
pub fn differences(memory: &Value, real: &Value) -> String {
    let keys = |v: &Value| v.as_object().into_iter().flat_map(Map::keys).cloned().collect::<Vec<_>>();
    let mut all = keys(memory);
    all.extend(keys(real).into_iter().filter(|k| !memory.as_object().is_some_and(|t| t.contains_key(k))));
    let lines = all.iter().filter(|k| memory[k.as_str()] != real[k.as_str()]);
    lines
        .map(|k| format!("    {k}: memory {}, real {}", memory[k.as_str()], real[k.as_str()]))
        .collect::<Vec<_>>()
        .join("\n")
}
