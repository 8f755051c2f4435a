//! The API server in memory as the simulation asks it: in one namespace, with all that ever happened in order.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use k8s_openapi::jiff::Timestamp;
use lockstep::apiserver::access::{Access, Open};
use lockstep::apiserver::{self, ApiServer, Change, ChangeType, Key, MemoryStore, Registry, Writer};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use lockstep::apiserver::{Format, Kind, Part};

/// The kinds that a run is made of.
pub const KINDS: [Kind; 9] = [
    Kind::Agent,
    Kind::WorkflowTemplate,
    Kind::Workflow,
    Kind::StepRun,
    Kind::Document,
    Kind::ControllerRevision,
    Kind::Job,
    Kind::Pod,
    Kind::ConfigMap,
];
pub const NAMESPACE: &str = "team";

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
    Merge(Kind, Part, String, Value),
    Json(Kind, Part, String, Value),
    Delete { kind: Kind, name: String, uid: Option<String>, version: Option<String>, propagation: Propagation },
}

/// The status code, and the word for it that clients branch on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: u16,
    pub reason: String,
    pub message: String,
}

pub fn refused(code: u16, reason: &str, message: impl Into<String>) -> Refused {
    Refused { code, reason: reason.to_owned(), message: message.into() }
}

pub type Reply = Result<Arc<Object>, Refused>;

/// An object of the server's, with what is often asked of it at hand.
#[derive(Debug)]
pub struct Object {
    pub kind: Kind,
    pub name: String,
    /// Kind and UID of its controller.
    pub controller: Option<(String, String)>,
    of: Arc<apiserver::Object>,
}

impl Deref for Object {
    type Target = apiserver::Object;

    fn deref(&self) -> &apiserver::Object {
        &self.of
    }
}

impl Object {
    fn new(of: &Arc<apiserver::Object>) -> Arc<Self> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let controller = controller(&of.value).map(|o| (text(&o["kind"]), text(&o["uid"])));
        Arc::new(Self { kind: of.key.kind, name: of.key.name.clone(), controller, of: Arc::clone(of) })
    }

    /// UID of the controller that stands in an object.
    pub fn controller_of(value: &Value) -> Option<String> {
        controller(value)?["uid"].as_str().map(str::to_owned)
    }

    pub fn is_controlled_by(&self, kind: &str, uid: &str) -> bool {
        self.controller.as_ref().is_some_and(|(k, u)| k == kind && u == uid)
    }

    /// As a client reads it.
    pub fn typed<T: DeserializeOwned + Send + Sync + 'static>(&self) -> Arc<T> {
        self.of.typed().unwrap_or_else(|| panic!("{} does not parse: {}", self.name, self.value))
    }
}

fn controller(value: &Value) -> Option<&Value> {
    value["metadata"]["ownerReferences"].as_array()?.iter().find(|o| o["controller"] == true)
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

pub struct Server {
    pub api: ApiServer,
    objects: BTreeMap<(Kind, String), Arc<Object>>,
    /// Milliseconds since the epoch.
    now: Arc<AtomicI64>,
    /// Everything that ever happened, in order.
    pub log: Vec<Event>,
}

impl Default for Server {
    fn default() -> Self {
        Self::with(Box::new(Open))
    }
}

impl Server {
    pub fn with(access: Box<dyn Access>) -> Self {
        let now = Arc::new(AtomicI64::new(0));
        let clock = Arc::clone(&now);
        let clock = Box::new(move || {
            Timestamp::from_millisecond(clock.load(Ordering::Relaxed)).expect("a time within the calendar")
        });
        let registry =
            Registry::new(Box::new(MemoryStore::keeping(usize::MAX)), access, clock, "simulation".to_owned());
        Self { api: ApiServer::new(registry, "admin"), objects: BTreeMap::new(), now, log: Vec::new() }
    }

    pub fn set_clock(&self, now: Timestamp) {
        self.now.store(now.as_millisecond(), Ordering::Relaxed);
    }

    pub fn find(&self, kind: Kind, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&(kind, name.to_owned()))
    }

    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.range((kind, String::new())..).take_while(move |((k, _), _)| *k == kind).map(|(_, o)| o)
    }

    pub fn handle(&mut self, request: &Request) -> Reply {
        let done = self.api.with(|registry| perform(registry, request));
        self.catch_up();
        let object = done.map_err(|status| refused(status.code, &status.reason, status.message))?;
        let stored = self.find(object.key.kind, &object.key.name).filter(|o| o.version == object.version);
        Ok(stored.cloned().unwrap_or_else(|| Object::new(&object)))
    }

    /// Takes in what was written since.
    pub fn catch_up(&mut self) {
        let seen = self.log.len() as u64;
        for Change { change_type, object, before: _ } in self.api.with(|r| r.store().changes(seen)).unwrap_or_default()
        {
            let key = (object.key.kind, object.key.name.clone());
            let before = self.objects.remove(&key);
            let after = (change_type != ChangeType::Deleted).then(|| Object::new(&object));
            self.objects.extend(after.clone().map(|after| (key, after)));
            self.log.push(Event { before, after });
        }
    }

    /// What the kubelet does at the end: a delete without any grace.
    pub fn purge(&mut self, kind: Kind, name: &str) {
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        let _ = self.api.with(|registry| registry.delete(&key(kind, name), &options, ADMIN));
        self.catch_up();
    }

    /// One act of the garbage collector, if there is one left to do.
    pub fn collect(&mut self) -> Option<String> {
        let act = self.api.with(Registry::collect);
        self.catch_up();
        act
    }

    /// Whether it names owners, and none of them is there.
    pub fn is_stray(&self, object: &Object) -> bool {
        !object.owners().is_empty() && self.api.with(|registry| registry.is_stray(object))
    }
}

const ADMIN: Writer<'_> = Writer { user: "admin", is_dry_run: false };

fn key(kind: Kind, name: &str) -> Key {
    Key::new(kind, NAMESPACE, name)
}

fn perform(registry: &mut Registry, request: &Request) -> apiserver::status::Result<Arc<apiserver::Object>> {
    let name_of = |value: &Value| value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match request {
        Request::Create(kind, value) => registry.create(&key(*kind, &name_of(value)), value.clone(), ADMIN),
        Request::Get(kind, name) => registry.get(&key(*kind, name)),
        Request::Merge(kind, part, name, change) => {
            registry.patch(&key(*kind, name), *part, (Format::Merge, change), ADMIN)
        }
        Request::Json(kind, part, name, operations) => {
            registry.patch(&key(*kind, name), *part, (Format::Json, operations), ADMIN)
        }
        Request::Delete { kind, name, uid, version, propagation } => {
            let preconditions = Preconditions { uid: uid.clone(), resource_version: version.clone() };
            let options = DeleteOptions {
                preconditions: Some(preconditions),
                propagation_policy: Some(format!("{propagation:?}")),
                ..DeleteOptions::default()
            };
            registry.delete(&key(*kind, name), &options, ADMIN)
        }
    }
}
