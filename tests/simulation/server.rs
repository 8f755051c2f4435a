//! A toy API server: objects as JSON by kind and name, with the rules of the real one that Lockstep leans on. Compared
//! with the real one by `tests/apiserver/toy.rs`. It knows neither Lockstep's types nor who asks.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

#[path = "collector.rs"]
mod collector;
#[path = "patch.rs"]
pub mod patch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Agent,
    Template,
    Workflow,
    StepRun,
    Document,
    Revision,
    Job,
    Pod,
    ConfigMap,
}

pub const KINDS: [Kind; 9] = [
    Kind::Agent,
    Kind::Template,
    Kind::Workflow,
    Kind::StepRun,
    Kind::Document,
    Kind::Revision,
    Kind::Job,
    Kind::Pod,
    Kind::ConfigMap,
];

impl Kind {
    pub fn is_custom(self) -> bool {
        self <= Self::Document
    }

    pub fn has_status(self) -> bool {
        self.is_custom() || matches!(self, Self::Job | Self::Pod)
    }

    /// ConfigMaps and ControllerRevisions have no generation.
    fn has_generation(self) -> bool {
        self.is_custom() || matches!(self, Self::Job | Self::Pod)
    }
}

/// Finalizers that the collector acts on.
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// No update changes them.
const SERVERS_OWN: [&str; 6] =
    ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// Which part of an object a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Main,
    Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// One request, so that it can be kept and made later.
#[derive(Clone, Debug)]
pub enum Request {
    Create(Kind, Value),
    Get(Kind, String),
    Put(Kind, Part, Value),
    Merge(Kind, Part, String, Value),
    Json(Kind, Part, String, Value),
    Delete { kind: Kind, name: String, uid: Option<String>, version: Option<String>, propagation: Propagation },
}

/// The status code, and the word for it that clients branch on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

pub fn refused(code: u16, reason: &'static str, message: impl Into<String>) -> Refused {
    Refused { code, reason, message: message.into() }
}

pub type Reply = Result<Arc<Object>, Refused>;

/// One version of an object; what it is as a type is worked out once.
#[derive(Debug)]
pub struct Object {
    pub kind: Kind,
    pub name: String,
    pub uid: String,
    pub version: u64,
    /// Kind and UID of its controller.
    pub controller: Option<(String, String)>,
    pub value: Value,
    /// As it was created: the defaults in its status are read, but not yet stored.
    is_bare: bool,
    typed: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Object {
    fn new(kind: Kind, value: Value, is_bare: bool) -> Self {
        let meta = &value["metadata"];
        let word = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
        let kind_and_uid = |o: &Value| (o["kind"].as_str().map(str::to_owned), o["uid"].as_str().map(str::to_owned));
        let controller =
            controller(&value).map(kind_and_uid).map(|(k, u)| (k.unwrap_or_default(), u.unwrap_or_default()));
        let version = meta["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or_default();
        Self { kind, name: word("name"), uid: word("uid"), version, controller, value, is_bare, typed: OnceLock::new() }
    }

    /// UID of the controller that stands in an object.
    pub fn controller_of(value: &Value) -> Option<String> {
        controller(value)?["uid"].as_str().map(str::to_owned)
    }

    pub fn meta(&self, key: &str) -> &Value {
        &self.value["metadata"][key]
    }

    pub fn is_deleting(&self) -> bool {
        !self.meta("deletionTimestamp").is_null()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.meta("labels")[key].as_str()
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.meta("annotations")[key].as_str()
    }

    pub fn is_controlled_by(&self, kind: &str, uid: &str) -> bool {
        self.controller.as_ref().is_some_and(|(k, u)| k == kind && u == uid)
    }

    /// As a client reads it.
    pub fn typed<T: DeserializeOwned + Send + Sync + 'static>(&self) -> Arc<T> {
        let read = || -> Arc<dyn Any + Send + Sync> {
            Arc::new(T::deserialize(&self.value).unwrap_or_else(|e| panic!("{} {}: {e}", self.name, self.value)))
        };
        let found = Arc::clone(self.typed.get_or_init(read));
        found.downcast().unwrap_or_else(|_| panic!("{} is read as two types", self.name))
    }
}

/// What a watch tells.
#[derive(Clone, Debug)]
pub struct Event {
    pub before: Option<Arc<Object>>,
    /// None: it is gone.
    pub after: Option<Arc<Object>>,
}

impl Event {
    pub fn object(&self) -> &Arc<Object> {
        self.after.as_ref().or(self.before.as_ref()).expect("one of both")
    }
}

#[derive(Default)]
pub struct Server {
    objects: BTreeMap<(Kind, String), Arc<Object>>,
    version: u64,
    uids: u64,
    /// RFC 3339, whole seconds; set by whoever keeps the time.
    pub now: String,
    /// Everything that ever happened, in order.
    pub log: Vec<Event>,
}

impl Server {
    pub fn find(&self, kind: Kind, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&(kind, name.to_owned()))
    }

    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.range((kind, String::new())..).take_while(move |((k, _), _)| *k == kind).map(|(_, o)| o)
    }

    pub fn handle(&mut self, request: &Request) -> Reply {
        match request {
            Request::Create(kind, value) => self.create(*kind, value.clone()),
            Request::Get(kind, name) => self.get(*kind, name),
            Request::Put(kind, part, value) => {
                let old = self.get(*kind, value["metadata"]["name"].as_str().unwrap_or_default())?;
                let stated = |key: &str| value["metadata"][key].as_str().filter(|v| !v.is_empty());
                if stated("uid").is_some_and(|uid| old.uid != uid) {
                    return Err(refused(409, "Conflict", "Precondition failed: UID in precondition differs"));
                }
                if kind.is_custom() && stated("resourceVersion").is_none() {
                    return Err(refused(422, "Invalid", "metadata.resourceVersion: must be specified for an update"));
                }
                self.update(&old, *part, value.clone())
            }
            Request::Merge(kind, part, name, change) => {
                let old = self.get(*kind, name)?;
                let mut new = old.value.clone();
                patch::merge(&mut new, change);
                self.update(&old, *part, new)
            }
            Request::Json(kind, part, name, operations) => {
                let old = self.get(*kind, name)?;
                let new = patch::json(old.value.clone(), operations).map_err(|why| refused(422, "Invalid", why))?;
                self.update(&old, *part, new)
            }
            Request::Delete { kind, name, uid, version, propagation } => {
                self.delete(&self.get(*kind, name)?, uid.as_deref(), version.as_deref(), *propagation)
            }
        }
    }

    fn get(&self, kind: Kind, name: &str) -> Reply {
        self.find(kind, name).cloned().ok_or_else(|| refused(404, "NotFound", format!("{kind:?} {name} not found")))
    }

    fn create(&mut self, kind: Kind, mut value: Value) -> Reply {
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if value["metadata"]["resourceVersion"].as_str().is_some_and(|v| !v.is_empty()) {
            return Err(refused(500, "", "resourceVersion should not be set on objects to be created"));
        }
        if self.find(kind, &name).is_some() {
            return Err(refused(409, "AlreadyExists", format!("{kind:?} {name} already exists")));
        }
        self.uids += 1;
        let meta = value["metadata"].as_object_mut().expect("metadata");
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            meta.remove(key);
        }
        meta.insert("uid".into(), json!(format!("{:08x}", self.uids.wrapping_mul(0x9E37_79B1) & 0xFFFF_FFFF)));
        meta.insert("creationTimestamp".into(), json!(self.now));
        if kind.has_generation() {
            meta.insert("generation".into(), json!(1));
        }
        if kind.has_status() {
            value["status"] = if kind == Kind::Pod { json!({"phase": "Pending"}) } else { json!({}) };
        }
        Ok(self.store(kind, None, tidy(kind, value)))
    }

    /// The next version of an object, written down and told.
    fn store(&mut self, kind: Kind, before: Option<Arc<Object>>, mut value: Value) -> Arc<Object> {
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = Arc::new(Object::new(kind, value, before.is_none() && kind.is_custom()));
        self.objects.insert((kind, after.name.clone()), Arc::clone(&after));
        self.log.push(Event { before, after: Some(Arc::clone(&after)) });
        after
    }

    fn remove(&mut self, old: &Arc<Object>) {
        self.version += 1;
        self.objects.remove(&(old.kind, old.name.clone()));
        self.log.push(Event { before: Some(Arc::clone(old)), after: None });
    }

    fn update(&mut self, old: &Arc<Object>, part: Part, asked: Value) -> Reply {
        let kind = old.kind;
        let stated = |key: &str| asked["metadata"][key].as_str().filter(|v| !v.is_empty());
        if stated("resourceVersion").is_some_and(|v| v != old.version.to_string()) {
            return Err(refused(409, "Conflict", "the object has been modified"));
        }
        let mut new = tidy(kind, taken(old, part, asked));
        if let Some(why) = forbidden(old, &new) {
            return Err(refused(422, "Invalid", why));
        }
        let meta = new["metadata"].as_object_mut().expect("metadata");
        for key in SERVERS_OWN {
            meta.remove(key);
            meta.extend(old.value["metadata"].get(key).map(|v| (key.to_owned(), v.clone())));
        }
        if kind.has_generation() && part == Part::Main && differ(&new, &old.value) {
            let generation = new["metadata"]["generation"].as_i64().unwrap_or_default();
            new["metadata"]["generation"] = json!(generation + 1);
        }
        // Within its grace the pod is the kubelet's to remove.
        if old.meta("deletionGracePeriodSeconds") == 0 && new["metadata"]["finalizers"].is_null() {
            self.remove(old);
            return Ok(Arc::new(Object::new(kind, new, false)));
        }
        if new == old.value && !old.is_bare {
            return Ok(Arc::clone(old));
        }
        Ok(self.store(kind, Some(Arc::clone(old)), new))
    }

    fn delete(
        &mut self,
        old: &Arc<Object>,
        uid: Option<&str>,
        version: Option<&str>,
        propagation: Propagation,
    ) -> Reply {
        if uid.is_some_and(|uid| uid != old.uid) || version.is_some_and(|v| v != old.version.to_string()) {
            return Err(refused(409, "Conflict", "Precondition failed"));
        }
        // A pod that is given time goes as it was told first.
        if old.meta("deletionGracePeriodSeconds").as_i64().is_some_and(|grace| grace > 0) {
            return Ok(Arc::clone(old));
        }
        let graceful = old.kind == Kind::Pod && !old.is_deleting();
        let mut new = old.value.clone();
        let mut finalizers: Vec<String> =
            serde_json::from_value(new["metadata"]["finalizers"].clone()).unwrap_or_default();
        finalizers.retain(|f| f != FOREGROUND && f != ORPHAN);
        match propagation {
            Propagation::Foreground => finalizers.push(FOREGROUND.into()),
            Propagation::Orphan => finalizers.push(ORPHAN.into()),
            Propagation::Background => {}
        }
        // The kubelet takes a pod away once its containers have ended.
        let runs = graceful
            && old.value["spec"]["nodeName"].is_string()
            && !matches!(old.value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if finalizers.is_empty() && !graceful {
            self.remove(old);
            return Ok(Arc::clone(old));
        }
        let goes = finalizers.is_empty() && !runs;
        new["metadata"]["finalizers"] = json!(finalizers);
        self.doom(&mut new, if runs { 30 } else { 0 });
        let new = tidy(old.kind, new);
        if new == old.value {
            return Ok(Arc::clone(old));
        }
        let stored = self.store(old.kind, Some(Arc::clone(old)), new);
        if goes {
            self.remove(&stored);
        }
        Ok(stored)
    }

    /// What the kubelet does at the end: a delete without any grace.
    pub fn purge(&mut self, kind: Kind, name: &str) {
        let Some(old) = self.find(kind, name).cloned() else { return };
        let mut new = old.value.clone();
        self.doom(&mut new, 0);
        let stored = if new == old.value { old } else { self.store(kind, Some(old), new) };
        if stored.meta("finalizers").is_null() {
            self.remove(&stored);
        }
    }

    /// It is to be gone at the end of the grace.
    fn doom(&self, value: &mut Value, grace: u32) {
        let meta = value["metadata"].as_object_mut().expect("metadata");
        if !meta.contains_key("deletionTimestamp") {
            meta.insert("deletionTimestamp".into(), json!(self.now));
            if let Some(generation) = meta.get("generation").and_then(Value::as_i64) {
                meta.insert("generation".into(), json!(generation + 1));
            }
        }
        meta.insert("deletionGracePeriodSeconds".into(), json!(grace));
    }
}

fn controller(value: &Value) -> Option<&Value> {
    value["metadata"]["ownerReferences"].as_array()?.iter().find(|o| o["controller"] == true)
}

/// Whether anything but metadata and status differs: that is what a generation counts.
fn differ(a: &Value, b: &Value) -> bool {
    let rest = |v: &Value| -> Map<String, Value> {
        let fields = v.as_object().into_iter().flatten();
        fields.filter(|(k, _)| *k != "metadata" && *k != "status").map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    rest(a) != rest(b)
}

/// What of the asked object counts on this part: the other part stays as it is. A status write to a custom resource
/// takes no metadata, to a Job all of it, to a Pod all but the owners.
fn taken(old: &Object, part: Part, mut asked: Value) -> Value {
    let kind = old.kind;
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
        return Some("metadata.finalizers: no new finalizers can be added if the object is being deleted");
    }
    if !old.is_deleting() && !meta["deletionTimestamp"].is_null() {
        return Some("metadata.deletionTimestamp: field is immutable");
    }
    if meta["uid"].as_str().is_some_and(|uid| !uid.is_empty() && uid != old.uid) {
        return Some("metadata.uid: field is immutable");
    }
    None
}

/// As it is stored: nothing empty in the metadata, and with the defaults that the schemas of our kinds state for a status.
fn tidy(kind: Kind, mut value: Value) -> Value {
    let is_empty = |v: &Value| v.is_null() || v.as_object().is_some_and(Map::is_empty) || *v == json!([]);
    if let Some(meta) = value["metadata"].as_object_mut() {
        meta.retain(|_, v| !is_empty(v));
    }
    if kind.has_status() && value["status"].is_null() {
        value["status"] = json!({});
    }
    if !kind.is_custom() {
        return value;
    }
    let counts = json!({"retryable": 0, "infrastructure": 0, "answers": 0});
    let defaults = match kind {
        Kind::Document => json!({}),
        Kind::StepRun => json!({"observedGeneration": -1, "attempt": 1, "round": 1, "counts": counts}),
        _ => json!({"observedGeneration": -1}),
    };
    fill(&mut value["status"], &defaults);
    value
}

fn fill(target: &mut Value, defaults: &Value) {
    if let (Some(target), Some(defaults)) = (target.as_object_mut(), defaults.as_object()) {
        for (key, default) in defaults {
            fill(target.entry(key).or_insert_with(|| default.clone()), default);
        }
    }
}
