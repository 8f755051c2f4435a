//! One version of an object. It never changes; a write makes another one.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kind::Kind;

/// What an object is found by. Objects of kinds without a namespace have an empty one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.is_namespaced() { namespace } else { "" };
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

#[derive(Debug)]
pub struct Object {
    pub key: Key,
    pub uid: String,
    /// `metadata.resourceVersion`, as a number.
    pub version: u64,
    pub value: Value,
    /// Whether it is stored as it was created: defaults of the status are shown in it, and the next write stores them.
    pub(super) is_bare: bool,
    json: OnceLock<Bytes>,
    typed: OnceLock<Option<Arc<dyn Any + Send + Sync>>>,
}

impl Object {
    pub fn new(key: Key, value: Value) -> Self {
        let meta = &value["metadata"];
        let uid = meta["uid"].as_str().unwrap_or_default().to_owned();
        let version = meta["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or_default();
        Self { key, uid, version, value, is_bare: false, json: OnceLock::new(), typed: OnceLock::new() }
    }

    /// A field of the metadata; null where it is not there.
    pub fn meta(&self, field: &str) -> &Value {
        &self.value["metadata"][field]
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

    pub fn owners(&self) -> &[Value] {
        self.meta("ownerReferences").as_array().map_or(&[], Vec::as_slice)
    }

    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.meta("finalizers").as_array().is_some_and(|all| all.iter().any(|f| f == finalizer))
    }

    /// As it is sent; written out once, however many read it.
    pub fn json(&self) -> Bytes {
        self.json.get_or_init(|| Bytes::from(self.value.to_string())).clone()
    }

    /// As a type reads it, read once; none where it does not parse. Whoever asks first decides on the type.
    pub fn typed<T: DeserializeOwned + Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let read = || -> Option<Arc<dyn Any + Send + Sync>> { Some(Arc::new(T::deserialize(&self.value).ok()?)) };
        Arc::clone(self.typed.get_or_init(read).as_ref()?).downcast().ok()
    }
}
