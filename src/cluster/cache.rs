//! One watched kind: a reflector's store, an index over it, and word of what changed.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use rpds::RedBlackTreeMapSync;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use super::stored::{self, Stored};
use crate::api::unreadable::Unreadable;

/// What a kind must be to be watched.
pub trait Watched:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}
impl<K> Watched for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// A persistent map: a copy of it costs nothing and stays as it is.
pub type Table<K> = RedBlackTreeMapSync<String, Arc<K>>;
type Index<K> = HashMap<String, Table<K>>;

/// How a kind is found and kept.
pub struct Keeping<K> {
    /// Under what an object is found beside its name.
    pub keys: fn(&K) -> Vec<String>,
    /// In which order it stands there; unique under each key.
    pub rank: fn(&K) -> String,
    /// Takes away what nobody reads.
    pub strip: fn(&mut K),
}

impl<K: Watched> Default for Keeping<K> {
    fn default() -> Self {
        Self { keys: |_| Vec::new(), rank: |k| k.meta().name.clone().unwrap_or_default(), strip: |_| {} }
    }
}

/// A cache of all objects of a kind.
pub struct Cache<K: Watched> {
    store: Store<K>,
    writer: RwLock<kube::runtime::reflector::store::Writer<K>>,
    index: RwLock<Index<K>>,
    keeping: Keeping<K>,
    unreadable: RwLock<UnreadableObjects>,
    /// Something was heard of what cannot be read.
    heard: Notify,
}

/// What is there and cannot be read, by namespace and name.
#[derive(Default)]
struct UnreadableObjects {
    known: BTreeMap<(String, String), Arc<Unreadable>>,
    /// Of a list that is not complete yet.
    arriving: BTreeMap<(String, String), Arc<Unreadable>>,
}

impl<K: Watched> Cache<K> {
    pub fn new(keeping: Keeping<K>) -> Self {
        let (store, writer) = store();
        Self {
            store,
            writer: RwLock::new(writer),
            index: RwLock::default(),
            keeping,
            unreadable: RwLock::default(),
            heard: Notify::new(),
        }
    }

    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// Everything, by namespace and name: the store itself has an order of its own in every process.
    pub fn all(&self) -> Vec<Arc<K>> {
        let mut all = self.store.state();
        all.sort_by(|a, b| place(a.as_ref()).cmp(&place(b.as_ref())));
        all
    }

    /// Everything under a key, by rank.
    pub fn table(&self, key: &str) -> Table<K> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.get(key).cloned().unwrap_or_default()
    }

    /// Everything under a key.
    pub fn under(&self, key: &str) -> Vec<Arc<K>> {
        self.table(key).values().cloned().collect()
    }

    /// What is there and cannot be read.
    pub fn unreadable(&self) -> Vec<Arc<Unreadable>> {
        self.unreadable.read().unwrap_or_else(PoisonError::into_inner).known.values().cloned().collect()
    }

    /// Those of a namespace.
    pub fn unreadable_in(&self, namespace: &str) -> Vec<Arc<Unreadable>> {
        let objects = self.unreadable.read().unwrap_or_else(PoisonError::into_inner);
        let from = objects.known.range((namespace.to_owned(), String::new())..);
        from.take_while(|((within, _), _)| within == namespace).map(|(_, one)| Arc::clone(one)).collect()
    }

    /// The object of that name, if it is there and cannot be read.
    pub fn unreadable_named(&self, namespace: &str, name: &str) -> Option<Arc<Unreadable>> {
        let objects = self.unreadable.read().unwrap_or_else(PoisonError::into_inner);
        objects.known.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Why it cannot be read.
    pub fn fault(&self, namespace: &str, name: &str) -> Option<String> {
        self.unreadable_named(namespace, name).map(|one| one.fault.clone())
    }

    /// Waits until something was heard of what cannot be read; one may wait.
    pub async fn unreadable_changed(&self) {
        self.heard.notified().await;
    }

    /// Watches for ever; `changed` hears of every object that came, changed or went.
    pub async fn run<F: Future<Output = ()>>(
        self: Arc<Self>,
        api: Api<K>,
        config: watcher::Config,
        changed: impl Fn(Arc<K>) -> F,
    ) {
        let mut events = stored::watch(api, config).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    for object in self.hear(event) {
                        changed(object).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "the watch broke; it starts again with back-off");
                }
            }
        }
    }

    /// What cannot be read is kept beside the rest, and what was known of it before is as good as gone.
    pub(super) fn hear(&self, event: Event<Stored<K>>) -> Vec<Arc<K>> {
        self.note(&event);
        let is_gone = matches!(event, Event::Apply(Stored(Err(_))) | Event::Delete(Stored(Err(_))));
        match stored::readable(event) {
            Ok(event) => self.take(event),
            Err(unreadable) if is_gone => {
                let (namespace, name) = unreadable.place();
                let old = self.get(&namespace, &name);
                old.map(|old| self.take(Event::Delete(old.as_ref().clone()))).unwrap_or_default()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Notes which objects can be read, and which cannot.
    fn note(&self, event: &Event<Stored<K>>) {
        let mut objects = self.unreadable.write().unwrap_or_else(PoisonError::into_inner);
        let UnreadableObjects { known, arriving } = &mut *objects;
        let is_news = match event {
            Event::Init => {
                arriving.clear();
                false
            }
            Event::InitApply(Stored(Err(one))) => {
                told::<K>(one, known.get(&one.place()));
                arriving.insert(one.place(), Arc::new(one.as_ref().clone()));
                false
            }
            Event::InitApply(Stored(Ok(_))) => false,
            Event::InitDone => {
                let before = std::mem::replace(known, std::mem::take(arriving));
                !before.is_empty() || !known.is_empty()
            }
            Event::Apply(Stored(Err(one))) => {
                told::<K>(one, known.get(&one.place()));
                known.insert(one.place(), Arc::new(one.as_ref().clone()));
                true
            }
            Event::Delete(Stored(Err(one))) => known.remove(&one.place()).is_some(),
            Event::Apply(Stored(Ok(object))) | Event::Delete(Stored(Ok(object))) => {
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                known.remove(&(text(&object.meta().namespace), text(&object.meta().name))).is_some()
            }
        };
        if is_news {
            self.heard.notify_one();
        }
    }

    /// What the watch brings; which objects it touched.
    pub(super) fn take(&self, mut event: Event<K>) -> Vec<Arc<K>> {
        if let Event::Apply(object) | Event::Delete(object) | Event::InitApply(object) = &mut event {
            object.meta_mut().managed_fields = None;
            (self.keeping.strip)(object);
        }
        let reference = match &event {
            Event::Apply(object) | Event::Delete(object) => Some(ObjectRef::from_obj(object)),
            _ => None,
        };
        let old = reference.as_ref().and_then(|r| self.store.get(r));
        let before = if matches!(event, Event::InitDone) { self.all() } else { Vec::new() };
        self.writer.write().unwrap_or_else(PoisonError::into_inner).apply_watcher_event(&event);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init | Event::InitApply(_) => Vec::new(),
            Event::InitDone => {
                index.clear();
                let now = self.all();
                for object in &now {
                    insert(&mut index, &self.keeping, object);
                }
                let gone = before.into_iter().filter(|o| self.store.get(&ObjectRef::from_obj(o.as_ref())).is_none());
                gone.collect::<Vec<_>>().into_iter().chain(now).collect()
            }
            Event::Apply(_) | Event::Delete(_) => {
                let new = reference.as_ref().and_then(|r| self.store.get(r));
                if let Some(old) = &old {
                    remove(&mut index, &self.keeping, old);
                }
                if let Some(new) = &new {
                    insert(&mut index, &self.keeping, new);
                }
                new.or(old).into_iter().collect()
            }
        }
    }
}

fn place<K: Watched>(object: &K) -> (Option<&str>, Option<&str>) {
    (object.meta().namespace.as_deref(), object.meta().name.as_deref())
}

fn insert<K: Watched>(index: &mut Index<K>, keeping: &Keeping<K>, object: &Arc<K>) {
    for key in (keeping.keys)(object) {
        index.entry(key).or_default().insert_mut((keeping.rank)(object), Arc::clone(object));
    }
}

fn remove<K: Watched>(index: &mut Index<K>, keeping: &Keeping<K>, object: &Arc<K>) {
    for key in (keeping.keys)(object) {
        if let Some(found) = index.get_mut(&key) {
            found.remove_mut(&(keeping.rank)(object));
            if found.is_empty() {
                index.remove(&key);
            }
        }
    }
}

/// The log names it, once for each fault.
fn told<K: Watched>(one: &Unreadable, before: Option<&Arc<Unreadable>>) {
    if before.is_none_or(|before| before.fault != one.fault || before.metadata.uid != one.metadata.uid) {
        let (namespace, name) = one.place();
        tracing::error!(kind = %K::kind(&()), namespace, name, fault = one.fault, "a stored object cannot be read; everything else goes on");
    }
}

/// Waits until the first list has arrived, saying so while it takes long.
pub async fn ready<K: Watched>(cache: &Cache<K>) -> bool {
    let store = cache.store();
    let mut waited = 0;
    loop {
        match tokio::time::timeout(Duration::from_secs(10), store.wait_until_ready()).await {
            Ok(Ok(())) => return true,
            Ok(Err(_)) => return false,
            Err(_) => {
                waited += 10;
                tracing::warn!(kind = %K::kind(&()), seconds = waited, "still waiting for the first list");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{Agent, Document, StepRun, Trigger, Workflow, WorkflowTemplate};
    use crate::apiserver::{self, ApiServer, Key, Kind, Part, Registry, Writer};

    const ADMIN: Writer<'static> = Writer { user: "admin", is_dry_run: false };

    fn server() -> ApiServer {
        let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
        let clock = Box::new(|| Timestamp::UNIX_EPOCH);
        let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "cache".to_owned());
        ApiServer::new(registry, "operator")
    }

    fn deep(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, _| json!({"a": inner}))
    }

    fn object(kind: Kind, name: &str, spec: &Value) -> Value {
        json!({"apiVersion": kind.api_version(), "kind": kind.name(), "spec": spec,
            "metadata": {"name": name, "namespace": "team", "labels": {"kept": "yes"}}})
    }

    fn make(server: &ApiServer, kind: Kind, name: &str, spec: &Value) {
        let key = Key::new(kind, "team", name);
        server.with(|registry| registry.create(&key, object(kind, name, spec), ADMIN)).expect("it is made");
    }

    fn names<K: Watched>(cache: &Cache<K>) -> (Vec<String>, Vec<String>) {
        let readable = cache.all().iter().filter_map(|object| object.meta().name.clone()).collect();
        (readable, cache.unreadable().iter().map(|one| one.place().1).collect())
    }

    async fn until<K: Watched>(cache: &Cache<K>, heard: &Notify, readable: &[&str], unreadable: &[&str]) {
        let waits = async {
            while names(cache)
                != (
                    readable.iter().map(|n| (*n).to_owned()).collect(),
                    unreadable.iter().map(|n| (*n).to_owned()).collect(),
                )
            {
                tokio::select! { () = heard.notified() => {}, () = cache.unreadable_changed() => {} }
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), waits).await;
        assert!(waited.is_ok(), "{}: {:?}, not {readable:?} and {unreadable:?}", K::kind(&()), names(cache));
    }

    /// There at the start and come at run time: others are seen all the same, and what cannot be read is known.
    async fn goes_on<K: Watched>(kind: Kind, good: Value, field: &str, wide: (&str, Value)) {
        let server = server();
        let with = |pointer: &str, value: Value| {
            let mut spec = good.clone();
            *spec.pointer_mut(pointer).expect("a field") = value;
            spec
        };
        make(&server, kind, "good", &good);
        make(&server, kind, "deep", &with(field, deep(150)));
        make(&server, kind, "wide", &with(wide.0, wide.1.clone()));
        let (cache, heard) = (Arc::new(Cache::<K>::new(Keeping::default())), Arc::new(Notify::new()));
        let (told, api) = (Arc::clone(&heard), Api::all(server.client("team")));
        let watching = tokio::spawn(Arc::clone(&cache).run(api, watcher::Config::default(), move |_| {
            told.notify_one();
            std::future::ready(())
        }));
        until(&cache, &heard, &["good"], &["deep", "wide"]).await;
        let all = cache.unreadable();
        let place = |pointer: &str| format!("spec{}", pointer.split('/').take(2).collect::<Vec<_>>().join("."));
        let told = if kind == Kind::Document { "expected a string" } else { "levels" };
        assert!(all[0].fault.starts_with(&place(field)) && all[0].fault.contains(told), "{}", all[0].fault);
        assert!(all[1].fault.starts_with(&place(wide.0)) && !all[1].fault.contains(" line "), "{}", all[1].fault);
        let meta = &all[0].metadata;
        assert!(meta.uid.is_some() && meta.resource_version.is_some() && meta.labels.is_some(), "{meta:?}");
        // One comes, one that could be read turns, and others come still.
        make(&server, kind, "late", &with(field, deep(150)));
        until(&cache, &heard, &["good"], &["deep", "late", "wide"]).await;
        let turned = object(kind, "good", &with(wide.0, wide.1));
        server
            .with(|registry| {
                registry.replace(&Key::new(kind, "team", "good"), Part::Main, versioned(registry, kind, turned), ADMIN)
            })
            .expect("it is written");
        until(&cache, &heard, &[], &["deep", "good", "late", "wide"]).await;
        make(&server, kind, "new", &good);
        until(&cache, &heard, &["new"], &["deep", "good", "late", "wide"]).await;
        // What can be read again, and what goes.
        let mended = object(kind, "good", &good);
        server
            .with(|registry| {
                registry.replace(&Key::new(kind, "team", "good"), Part::Main, versioned(registry, kind, mended), ADMIN)
            })
            .expect("it is written");
        for name in ["deep", "late"] {
            server
                .with(|registry| registry.delete(&Key::new(kind, "team", name), &DeleteOptions::default(), ADMIN))
                .expect("it goes");
        }
        until(&cache, &heard, &["good", "new"], &["wide"]).await;
        watching.abort();
    }

    fn versioned(registry: &Registry, kind: Kind, mut object: Value) -> Value {
        let old = registry.get(&Key::new(kind, "team", "good")).expect("it is there");
        object["metadata"]["resourceVersion"] = json!(old.version.to_string());
        object
    }

    #[tokio::test]
    async fn what_cannot_be_read_stops_only_itself() {
        let step = json!({"name": "a", "agentId": "x", "forEach": {"in": "[]", "as": "e", "tolerate": 1}});
        let (schema, large) = (json!({"type": "object"}), json!(3_000_000_000_u32));
        let agent = json!({"template": {}, "outputSchema": schema, "maxConcurrent": 1});
        goes_on::<Agent>(Kind::Agent, agent, "/outputSchema", ("/maxConcurrent", large.clone())).await;
        let template = json!({"parametersSchema": schema, "steps": [step]});
        goes_on::<WorkflowTemplate>(
            Kind::WorkflowTemplate,
            template,
            "/parametersSchema",
            ("/steps/0/forEach/tolerate", large.clone()),
        )
        .await;
        let run = json!({"parameters": {}, "steps": [step]});
        goes_on::<Workflow>(Kind::Workflow, run, "/parameters", ("/steps/0/forEach/tolerate", large.clone())).await;
        let step_run = json!({"workflow": {"name": "w", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "a", "parameters": "{}", "inputDigest": "", "item": {"key": "0", "index": 0, "value": 1}});
        goes_on::<StepRun>(Kind::StepRun, step_run, "/item/value", ("/item/index", large.clone())).await;
        // No field of it is free.
        let document = json!({"type": "brief", "scope": "Namespace", "format": "text", "content": "x", "attempt": 1});
        goes_on::<Document>(Kind::Document, document, "/content", ("/attempt", large)).await;
        let trigger = json!({"event": {}, "run": {"templateRef": {"name": "t"}, "parameters": {}}, "historyLimit": 1});
        goes_on::<Trigger>(Kind::Trigger, trigger, "/run/parameters", ("/historyLimit", json!("many"))).await;
    }
}
