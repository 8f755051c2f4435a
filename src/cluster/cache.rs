//! One watched kind: a reflector's store, an index over it, and word of what changed.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_kind};
use kube::{Api, Resource};
use rpds::RedBlackTreeMapSync;
use serde::de::DeserializeOwned;

/// What a kind must be to be watched.
pub trait Watched: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static> Watched for K {}

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
}

impl<K: Watched> Cache<K> {
    pub fn new(keeping: Keeping<K>) -> Self {
        let (store, writer) = store();
        Self { store, writer: RwLock::new(writer), index: RwLock::default(), keeping }
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

    /// Watches for ever; `changed` hears of every object that came, changed or went.
    pub async fn run<F: Future<Output = ()>>(
        self: Arc<Self>,
        api: Api<K>,
        config: watcher::Config,
        changed: impl Fn(Arc<K>) -> F,
    ) {
        let api: Api<DeserializeGuard<K>> = Api::all(api.into_client());
        let mut events = watch_kind(api, config).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    let touched = readable(event).map(|event| self.take(event)).unwrap_or_default();
                    for object in touched {
                        changed(object).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "the watch broke; it starts again with back-off");
                }
            }
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

/// One object that does not parse must not stop the list: it is left out, and the log names it.
fn readable<K: Watched>(event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
    let parsed = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            tracing::error!(kind = %K::kind(&()), namespace = ?invalid.metadata.namespace, name = ?invalid.metadata.name, error = %invalid.error, "a stored object cannot be read and is ignored");
            None
        }
    };
    Some(match event {
        Event::Apply(guard) => Event::Apply(parsed(guard)?),
        Event::Delete(guard) => Event::Delete(parsed(guard)?),
        Event::InitApply(guard) => Event::InitApply(parsed(guard)?),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    })
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
