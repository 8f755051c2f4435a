//! A toy API server: objects as JSON by kind and name, with the rules of the real one that Lockstep leans on. Compared
//! with the real one by `tests/apiserver/toy.rs`. It knows neither Lockstep's types nor who asks.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

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
        self.is_custom() || self == Self::Job
    }
}

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
    typed: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Object {
    fn new(kind: Kind, value: Value) -> Self {
        let meta = &value["metadata"];
        let word = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
        let kind_and_uid = |o: &Value| (o["kind"].as_str().map(str::to_owned), o["uid"].as_str().map(str::to_owned));
        let controller =
            controller(&value).map(kind_and_uid).map(|(k, u)| (k.unwrap_or_default(), u.unwrap_or_default()));
        let version = meta["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or_default();
        Self { kind, name: word("name"), uid: word("uid"), version, controller, value, typed: OnceLock::new() }
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
                let version = &value["metadata"]["resourceVersion"];
                if kind.is_custom() && version.as_str().is_none_or(str::is_empty) {
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
            return Err(refused(500, "InternalError", "resourceVersion should not be set on objects to be created"));
        }
        if self.find(kind, &name).is_some() {
            return Err(refused(409, "AlreadyExists", format!("{kind:?} {name} already exists")));
        }
        self.uids += 1;
        let meta = value["metadata"].as_object_mut().expect("metadata");
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
            meta.remove(key);
        }
        meta.insert("uid".into(), json!(format!("{:08x}", self.uids.wrapping_mul(0x9E37_79B1) & 0xFFFF_FFFF)));
        meta.insert("creationTimestamp".into(), json!(self.now));
        if kind.has_generation() {
            meta.insert("generation".into(), json!(1));
        }
        if let (true, Some(fields)) = (kind.has_status(), value.as_object_mut()) {
            fields.remove("status");
        }
        Ok(self.store(kind, None, value))
    }

    /// The next version of an object, written down and told.
    fn store(&mut self, kind: Kind, before: Option<Arc<Object>>, mut value: Value) -> Arc<Object> {
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = Arc::new(Object::new(kind, value));
        self.objects.insert((kind, after.name.clone()), Arc::clone(&after));
        self.log.push(Event { before, after: Some(Arc::clone(&after)) });
        after
    }

    fn remove(&mut self, old: &Arc<Object>) {
        self.version += 1;
        self.objects.remove(&(old.kind, old.name.clone()));
        self.log.push(Event { before: Some(Arc::clone(old)), after: None });
    }

    fn update(&mut self, old: &Arc<Object>, part: Part, mut new: Value) -> Reply {
        let kind = old.kind;
        let asked = &new["metadata"];
        let of = |key: &str| asked[key].as_str().filter(|v| !v.is_empty());
        if of("uid").is_some_and(|uid| uid != old.uid) {
            return Err(refused(409, "Conflict", "Precondition failed: UID in precondition differs"));
        }
        if of("resourceVersion").is_some_and(|v| v != old.version.to_string()) {
            return Err(refused(409, "Conflict", "the object has been modified"));
        }
        let status = new.as_object_mut().and_then(|fields| fields.remove("status"));
        let mut new = if part == Part::Status { old.value.clone() } else { new };
        let kept = if part == Part::Status || !kind.has_status() { status } else { old.value.get("status").cloned() };
        if let Some(fields) = new.as_object_mut() {
            fields.remove("status");
            fields.extend(kept.filter(|s| !s.is_null()).map(|s| ("status".to_owned(), filled(kind, s))));
        }
        let meta = new["metadata"].as_object_mut().expect("metadata");
        let keys = ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
        for key in keys.into_iter().chain(["generation"]) {
            meta.remove(key);
            meta.extend(old.value["metadata"].get(key).map(|v| (key.to_owned(), v.clone())));
        }
        for key in ["annotations", "labels", "ownerReferences", "finalizers"] {
            if meta.get(key).is_some_and(|v| v.is_null() || v.as_object().is_some_and(Map::is_empty) || *v == json!([]))
            {
                meta.remove(key);
            }
        }
        if old.is_deleting() && new["metadata"]["finalizers"].is_null() {
            self.remove(old);
            return Ok(Arc::new(Object::new(kind, new)));
        }
        if new == old.value {
            return Ok(Arc::clone(old));
        }
        if kind.has_generation() && part == Part::Main && differ(&new, &old.value) {
            let generation = new["metadata"]["generation"].as_i64().unwrap_or_default();
            new["metadata"]["generation"] = json!(generation + 1);
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
        let mut new = old.value.clone();
        let mut finalizers: Vec<String> =
            serde_json::from_value(new["metadata"]["finalizers"].clone()).unwrap_or_default();
        finalizers.retain(|f| f != "foregroundDeletion" && f != "orphan");
        match propagation {
            Propagation::Foreground => finalizers.push("foregroundDeletion".into()),
            Propagation::Orphan => finalizers.push("orphan".into()),
            Propagation::Background => {}
        }
        // The kubelet takes a pod away once its containers have ended.
        let graceful =
            old.kind == Kind::Pod && !matches!(old.value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if finalizers.is_empty() && !graceful {
            self.remove(old);
            return Ok(Arc::clone(old));
        }
        let meta = new["metadata"].as_object_mut().expect("metadata");
        if finalizers.is_empty() {
            meta.remove("finalizers");
        } else {
            meta.insert("finalizers".into(), json!(finalizers));
        }
        if !meta.contains_key("deletionTimestamp") {
            meta.insert("deletionTimestamp".into(), json!(self.now));
            meta.insert("deletionGracePeriodSeconds".into(), json!(0));
            if let Some(generation) = meta.get("generation").and_then(Value::as_i64) {
                meta.insert("generation".into(), json!(generation + 1));
            }
        }
        if new == old.value {
            return Ok(Arc::clone(old));
        }
        Ok(self.store(old.kind, Some(Arc::clone(old)), new))
    }

    /// What the kubelet does at the end: the object goes, whatever its grace.
    pub fn purge(&mut self, kind: Kind, name: &str) {
        if let Some(old) = self.find(kind, name).cloned() {
            self.remove(&old);
        }
    }

    /// Whether it names owners, and none of them is there.
    pub fn is_stray(&self, object: &Object) -> bool {
        let owners = object.meta("ownerReferences").as_array();
        owners.is_some_and(|all| {
            !all.is_empty() && all.iter().all(|o| !self.objects.values().any(|x| o["uid"] == x.uid.as_str()))
        })
    }

    /// One act of the garbage collector, if there is one left to do.
    pub fn collect(&mut self) -> Option<String> {
        let lives = |uid: &str| self.objects.values().find(|o| o.uid == uid);
        let mut found = None;
        for object in self.objects.values() {
            let owners = object.meta("ownerReferences").as_array().cloned().unwrap_or_default();
            let standing: Vec<_> = owners.iter().filter_map(|o| lives(o["uid"].as_str().unwrap_or_default())).collect();
            let waited = |o: &&Arc<Object>| has_finalizer(o, "foregroundDeletion");
            let orphaned = owners.is_empty() || standing.iter().any(|o| !waited(o));
            if !orphaned && !object.is_deleting() {
                found = Some((object.clone(), standing.iter().any(waited)));
                break;
            }
            let dependants = || self.objects.values().filter(|d| owned_by(d, &object.uid));
            if object.is_deleting() && has_finalizer(object, "orphan") {
                return Some(self.orphan(&object.clone(), &dependants().cloned().collect::<Vec<_>>()));
            }
            if object.is_deleting() && has_finalizer(object, "foregroundDeletion") && dependants().next().is_none() {
                return Some(self.drop_finalizer(&object.clone(), "foregroundDeletion"));
            }
        }
        let (object, foreground) = found?;
        let propagation = if foreground { Propagation::Foreground } else { Propagation::Background };
        let done = self.delete(&object, Some(&object.uid), None, propagation);
        done.ok().map(|o| format!("{:?} {} is collected", o.kind, o.name))
    }

    fn orphan(&mut self, owner: &Arc<Object>, dependants: &[Arc<Object>]) -> String {
        for dependant in dependants {
            let mut new = dependant.value.clone();
            if let Some(owners) = new["metadata"]["ownerReferences"].as_array_mut() {
                owners.retain(|o| o["uid"] != owner.uid.as_str());
            }
            let _ = self.update(dependant, Part::Main, new);
        }
        self.drop_finalizer(owner, "orphan")
    }

    fn drop_finalizer(&mut self, object: &Arc<Object>, finalizer: &str) -> String {
        let mut new = object.value.clone();
        if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
            list.retain(|f| f != finalizer);
        }
        let _ = self.update(object, Part::Main, new);
        format!("{:?} {} loses the finalizer {finalizer}", object.kind, object.name)
    }
}

fn controller(value: &Value) -> Option<&Value> {
    value["metadata"]["ownerReferences"].as_array()?.iter().find(|o| o["controller"] == true)
}

fn owned_by(object: &Object, uid: &str) -> bool {
    object.meta("ownerReferences").as_array().is_some_and(|owners| owners.iter().any(|o| o["uid"] == uid))
}

fn has_finalizer(object: &Object, finalizer: &str) -> bool {
    object.meta("finalizers").as_array().is_some_and(|list| list.iter().any(|f| f == finalizer))
}

/// Whether anything but metadata and status differs: that is what a generation counts.
fn differ(a: &Value, b: &Value) -> bool {
    let rest = |v: &Value| -> Map<String, Value> {
        let fields = v.as_object().into_iter().flatten();
        fields.filter(|(k, _)| *k != "metadata" && *k != "status").map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    rest(a) != rest(b)
}

/// The defaults that the schema of a StepRun's status states.
fn filled(kind: Kind, mut status: Value) -> Value {
    if let (Kind::StepRun, Some(fields)) = (kind, status.as_object_mut()) {
        let counts = json!({"retryable": 0, "infrastructure": 0, "answers": 0});
        for (key, value) in
            [("observedGeneration", json!(-1)), ("attempt", json!(1)), ("round", json!(1)), ("counts", counts)]
        {
            fields.entry(key).or_insert(value);
        }
    }
    status
}
