//! The rules by which objects are made, changed and deleted. Compared with the real API server by
//! `tests/apiserver/comparison.rs`.
//!
//! Not here: validation against schemas and by the rules in them, pruning of unknown fields, managed fields but those of
//! annotations, and what the real server fills in for its own kinds.

#![expect(clippy::disallowed_macros, reason = "changes of objects of any kind")]

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::access::{Access, Attributes, Operation};
use super::kind::{Kind, Part};
use super::managed;
use super::object::{Key, Object};
use super::patch::{self, Format};
use super::status::{self, Result};
use super::store::{Change, ChangeType, Store};
use crate::api::name;

/// Finalizers that the garbage collector acts on.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";
/// Metadata that no update changes.
const SERVERS_OWN: [&str; 6] =
    ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];
/// Seconds that the containers of a pod have to end.
const GRACE_SECONDS: i64 = 30;

/// Who writes, and whether it is meant.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub user: &'a str,
    pub is_dry_run: bool,
}

/// Whose time stamps objects get.
pub type Clock = Box<dyn Fn() -> Timestamp + Send>;

/// Objects, and the rules for them.
pub struct Registry {
    pub(super) store: Box<dyn Store>,
    pub(super) access: Box<dyn Access>,
    clock: Clock,
    /// What the UIDs of this store are made from.
    salt: String,
}

impl Registry {
    /// `salt` must be another one for every store whose objects may ever meet, because UIDs are made from it.
    pub fn new(store: Box<dyn Store>, access: Box<dyn Access>, clock: Clock, salt: String) -> Self {
        Self { store, access, clock, salt }
    }

    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    pub fn get(&self, key: &Key) -> Result<Arc<Object>> {
        self.store.find(key).ok_or_else(|| status::not_found(key.kind, &key.name))
    }

    pub fn create(&mut self, key: &Key, asked: Value, by: Writer<'_>) -> Result<Arc<Object>> {
        if asked["metadata"]["resourceVersion"].as_str().is_some_and(|v| !v.is_empty()) {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(status::plain(500, "", why));
        }
        let value = self.born(key, asked);
        self.admit(Operation::Create, Part::Main, (None, Some(&value), key), by)?;
        if let Some(there) = self.store.find(key) {
            return Err(status::already_exists(&there));
        }
        if by.is_dry_run {
            return Ok(Arc::new(Object::new(key.clone(), value)));
        }
        Ok(self.put(key, None, value))
    }

    /// A new object with what the server states of it.
    fn born(&self, key: &Key, asked: Value) -> Value {
        let kind = key.kind;
        let mut value = identified(kind, asked);
        let version = self.store.version() + 1;
        let uid = uid(&name::digest([self.salt.as_bytes(), &version.to_be_bytes()]));
        let now = self.now();
        if let Some(meta) = value["metadata"].as_object_mut() {
            for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
                meta.remove(field);
            }
            meta.insert("name".to_owned(), json!(key.name));
            if kind.is_namespaced() {
                meta.insert("namespace".to_owned(), json!(key.namespace));
            }
            meta.insert("uid".to_owned(), json!(uid));
            meta.insert("creationTimestamp".to_owned(), json!(now));
            if kind.has_generation() {
                meta.insert("generation".to_owned(), json!(1));
            }
        }
        if kind.is_custom() {
            // Its schema may state with what it begins.
            value.as_object_mut().and_then(|fields| fields.shift_remove("status"));
        } else if kind.has_status() {
            value["status"] = if kind == Kind::Pod { json!({"phase": "Pending"}) } else { json!({}) };
        }
        tidy(kind, value)
    }

    /// Replaces the main part or the status by what the request states.
    pub fn replace(&mut self, key: &Key, part: Part, asked: Value, by: Writer<'_>) -> Result<Arc<Object>> {
        let old = self.get(key)?;
        let stated = |field: &str| asked["metadata"][field].as_str().filter(|v| !v.is_empty());
        if let Some(uid) = stated("uid").filter(|uid| old.uid != *uid) {
            return Err(precondition(key, "UID", uid, &old.uid));
        }
        if key.kind.is_custom() && stated("resourceVersion").is_none() {
            let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
            return Err(status::invalid(key.kind, &key.name, why));
        }
        self.update(&old, part, asked, by)
    }

    /// Changes the main part or the status by a patch.
    pub fn patch(
        &mut self,
        key: &Key,
        part: Part,
        (format, patch): (Format, &Value),
        by: Writer<'_>,
    ) -> Result<Arc<Object>> {
        let old = self.get(key)?;
        let new = patch::apply(format, old.value.clone(), patch)?;
        self.update(&old, part, new, by)
    }

    pub(super) fn update(
        &mut self,
        old: &Arc<Object>,
        part: Part,
        asked: Value,
        by: Writer<'_>,
    ) -> Result<Arc<Object>> {
        let (key, kind) = (&old.key, old.key.kind);
        let stated = |field: &str| asked["metadata"][field].as_str().filter(|v| !v.is_empty());
        if stated("resourceVersion").is_some_and(|v| v != old.version.to_string()) {
            return Err(status::modified(kind, &key.name));
        }
        let mut new = tidy(kind, taken(old, part, identified(kind, asked)));
        if let Some(why) = forbidden(old, &new) {
            return Err(status::invalid(kind, &key.name, why));
        }
        keep_servers_own(old, &mut new);
        managed::keep(&old.value, &mut new, by.user, &self.now());
        if kind.has_generation() && part == Part::Main && differ(&new, &old.value) {
            let generation = new["metadata"]["generation"].as_i64().unwrap_or_default();
            new["metadata"]["generation"] = json!(generation + 1);
        }
        self.admit(Operation::Update, part, (Some(old), Some(&new), key), by)?;
        if by.is_dry_run {
            return Ok(Arc::new(Object::new(key.clone(), new)));
        }
        // Within its grace a pod is the kubelet's to remove.
        if old.meta("deletionGracePeriodSeconds") == 0 && new["metadata"]["finalizers"].is_null() {
            self.remove(old);
            return Ok(Arc::new(Object::new(key.clone(), new)));
        }
        if new == old.value && !old.is_bare {
            return Ok(Arc::clone(old));
        }
        Ok(self.put(key, Some(Arc::clone(old)), new))
    }

    /// Deletes, or begins to; gives the object as it is then, or as it was last.
    pub fn delete(&mut self, key: &Key, options: &DeleteOptions, by: Writer<'_>) -> Result<Arc<Object>> {
        let old = self.get(key)?;
        if let Some(stated) = &options.preconditions {
            if let Some(uid) = stated.uid.as_ref().filter(|uid| **uid != old.uid) {
                return Err(precondition(key, "UID", uid, &old.uid));
            }
            let version = old.version.to_string();
            if let Some(other) = stated.resource_version.as_ref().filter(|v| **v != version) {
                return Err(precondition(key, "ResourceVersion", other, &version));
            }
        }
        self.admit(Operation::Delete, Part::Main, (Some(&old), None, key), by)?;
        if by.is_dry_run {
            return Ok(old);
        }
        if key.kind == Kind::Pod && options.grace_period_seconds == Some(0) {
            return Ok(self.purge(&old));
        }
        Ok(self.begin_to_delete(&old, options.propagation_policy.as_deref()))
    }

    fn begin_to_delete(&mut self, old: &Arc<Object>, propagation: Option<&str>) -> Arc<Object> {
        let kind = old.key.kind;
        // A pod that is given time goes as it was told first.
        if old.meta("deletionGracePeriodSeconds").as_i64().is_some_and(|grace| grace > 0) {
            return Arc::clone(old);
        }
        let is_graceful = kind == Kind::Pod && !old.is_deleting();
        let mut new = old.value.clone();
        let mut finalizers: Vec<Value> = old.meta("finalizers").as_array().cloned().unwrap_or_default();
        finalizers.retain(|f| f != FOREGROUND && f != ORPHAN);
        // Of all kinds Jobs alone leave their dependants where nothing is said about them.
        match propagation.unwrap_or(if kind == Kind::Job { "Orphan" } else { "Background" }) {
            "Foreground" => finalizers.push(json!(FOREGROUND)),
            "Orphan" => finalizers.push(json!(ORPHAN)),
            _ => {}
        }
        // The kubelet takes a pod away once its containers have ended.
        let has_ended = matches!(old.value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let runs = is_graceful && old.value["spec"]["nodeName"].is_string() && !has_ended;
        if finalizers.is_empty() && !is_graceful {
            return self.remove(old);
        }
        let goes = finalizers.is_empty() && !runs;
        new["metadata"]["finalizers"] = json!(finalizers);
        self.doom(&mut new, if runs { GRACE_SECONDS } else { 0 });
        let new = tidy(kind, new);
        if new == old.value {
            return Arc::clone(old);
        }
        let stored = self.put(&old.key, Some(Arc::clone(old)), new);
        if goes { self.remove(&stored) } else { stored }
    }

    /// What the kubelet does at the end of a pod: a delete without any grace.
    fn purge(&mut self, old: &Arc<Object>) -> Arc<Object> {
        let mut new = old.value.clone();
        self.doom(&mut new, 0);
        let stored = if new == old.value { Arc::clone(old) } else { self.put(&old.key, Some(Arc::clone(old)), new) };
        if stored.meta("finalizers").is_null() { self.remove(&stored) } else { stored }
    }

    /// It is to be gone at the end of the grace, in seconds.
    fn doom(&self, value: &mut Value, grace: i64) {
        let now = self.now();
        let Some(meta) = value["metadata"].as_object_mut() else { return };
        if !meta.contains_key("deletionTimestamp") {
            meta.insert("deletionTimestamp".to_owned(), json!(now));
            if let Some(generation) = meta.get("generation").and_then(Value::as_i64) {
                meta.insert("generation".to_owned(), json!(generation + 1));
            }
        }
        meta.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    }

    fn admit(
        &self,
        operation: Operation,
        part: Part,
        (old, new, key): (Option<&Object>, Option<&Value>, &Key),
        by: Writer<'_>,
    ) -> Result<()> {
        let (kind, name) = (key.kind, key.name.as_str());
        let write = Attributes { user: by.user, operation, kind, part, name, old, new, is_dry_run: by.is_dry_run };
        self.access.admit(&write).map_err(|why| status::forbidden(kind, name, &why))
    }

    /// The next version of an object, committed.
    fn put(&mut self, key: &Key, before: Option<Arc<Object>>, value: Value) -> Arc<Object> {
        let mut object = self.next(key, value);
        object.is_bare = before.is_none() && key.kind.is_custom();
        let object = Arc::new(object);
        let change_type = if before.is_none() { ChangeType::Added } else { ChangeType::Modified };
        self.store.commit(Change { change_type, object: Arc::clone(&object), before });
        object
    }

    /// Gives the object as it was last.
    fn remove(&mut self, old: &Arc<Object>) -> Arc<Object> {
        let object = Arc::new(self.next(&old.key, old.value.clone()));
        self.store.commit(Change {
            change_type: ChangeType::Deleted,
            object: Arc::clone(&object),
            before: Some(Arc::clone(old)),
        });
        object
    }

    fn next(&self, key: &Key, mut value: Value) -> Object {
        value["metadata"]["resourceVersion"] = json!((self.store.version() + 1).to_string());
        Object::new(key.clone(), value)
    }

    /// RFC 3339, whole seconds.
    fn now(&self) -> String {
        let now = (self.clock)();
        Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
    }
}

fn precondition(key: &Key, what: &str, stated: &str, is: &str) -> status::Refusal {
    let why = format!("Precondition failed: {what} in precondition: {stated}, {what} in object meta: {is}");
    status::conflict(key.kind, &key.name, &why)
}

/// Version 4 by its form; made from a digest, so that the same requests make the same UIDs.
fn uid(digest: &str) -> String {
    let hex = digest.rsplit(':').next().unwrap_or_default();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

/// With the version and the kind of its path, whatever the body says of them.
fn identified(kind: Kind, asked: Value) -> Value {
    let mut whole = Map::new();
    whole.insert("apiVersion".to_owned(), json!(kind.api_version()));
    whole.insert("kind".to_owned(), json!(kind.name()));
    if let Value::Object(fields) = asked {
        whole.extend(fields.into_iter().filter(|(field, _)| field != "apiVersion" && field != "kind"));
    }
    if !whole.get("metadata").is_some_and(Value::is_object) {
        whole.insert("metadata".to_owned(), json!({}));
    }
    Value::Object(whole)
}

fn keep_servers_own(old: &Object, new: &mut Value) {
    let Some(meta) = new["metadata"].as_object_mut() else { return };
    meta.insert("name".to_owned(), json!(old.key.name));
    if old.key.kind.is_namespaced() {
        meta.insert("namespace".to_owned(), json!(old.key.namespace));
    }
    for field in SERVERS_OWN {
        match old.value["metadata"].get(field) {
            Some(own) => drop(meta.insert(field.to_owned(), own.clone())),
            None => drop(meta.remove(field)),
        }
    }
}

/// Whether anything but metadata and status differs: that is what a generation counts.
fn differ(a: &Value, b: &Value) -> bool {
    let counts = |(field, _): &(&String, &Value)| *field != "metadata" && *field != "status";
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a != b };
    a.iter().filter(counts).count() != b.iter().filter(counts).count()
        || a.iter().filter(counts).any(|(field, value)| b.get(field) != Some(value))
}

/// What of the asked object counts on this part: the other part stays as it is. A status write to a custom resource
/// takes no metadata, to a Job all of it, to a Pod all but the owners.
fn taken(old: &Object, part: Part, mut asked: Value) -> Value {
    let kind = old.key.kind;
    if !kind.has_status() {
        return asked;
    }
    if part == Part::Main {
        asked["status"] = old.value["status"].clone();
        return asked;
    }
    let mut new = old.value.clone();
    new["status"] = asked["status"].take();
    if !kind.is_custom() {
        new["metadata"] = asked["metadata"].take();
    }
    if kind == Kind::Pod {
        new["metadata"]["ownerReferences"] = old.meta("ownerReferences").clone();
        new["metadata"]["deletionTimestamp"] = old.meta("deletionTimestamp").clone();
    }
    new
}

/// What no update may do to metadata.
fn forbidden(old: &Object, new: &Value) -> Option<&'static str> {
    let meta = &new["metadata"];
    let had = old.meta("finalizers").as_array();
    let adds = |list: &Vec<Value>| list.iter().any(|f| had.is_none_or(|had| !had.contains(f)));
    if old.is_deleting() && meta["finalizers"].as_array().is_some_and(adds) {
        return Some("metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted");
    }
    if !old.is_deleting() && !meta["deletionTimestamp"].is_null() {
        return Some("metadata.deletionTimestamp: Invalid value: field is immutable");
    }
    if meta["uid"].as_str().is_some_and(|uid| !uid.is_empty() && uid != old.uid) {
        return Some("metadata.uid: Invalid value: field is immutable");
    }
    // The real one compares bytes: a definition is kept as a text, which every client spells alike.
    if old.key.kind == Kind::ControllerRevision && new["data"] != old.value["data"] {
        return Some("data: Invalid value: field is immutable");
    }
    None
}

/// As it is stored: nothing empty in the metadata, and with the defaults that a custom kind's schema states.
fn tidy(kind: Kind, mut value: Value) -> Value {
    let is_empty =
        |v: &Value| v.is_null() || v.as_object().is_some_and(Map::is_empty) || v.as_array().is_some_and(Vec::is_empty);
    if let Some(meta) = value["metadata"].as_object_mut() {
        meta.retain(|_, v| !is_empty(v));
    }
    if let Some(defaults) = kind.defaults() {
        defaults.fill(&mut value);
    }
    if kind.has_status() && value["status"].is_null() {
        value["status"] = json!({});
    }
    value
}
