//! Objects as the API server sends them, each read alone: what cannot be read stops only itself. Everything that lists or
//! watches kinds of ours asks for `Stored<K>` in the place of `K`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;

use futures::Stream;
use kube::api::ListParams;
use kube::core::{ListMeta, NamespaceResourceScope, ObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer};
use serde_json::value::RawValue;

use super::Error;
use super::client::bounded;
use crate::api::condition::clip;
use crate::api::unreadable::Unreadable;
use crate::definition::free_value;

/// Bytes of what is wrong.
const FAULT_BYTES: usize = 512;

/// An object, or who it is and why it cannot be read. Its text is taken without recursion, and parsed by itself.
#[derive(Clone, Debug)]
pub struct Stored<K>(pub Result<K, Box<Unreadable>>);

impl<'de, K: DeserializeOwned> Deserialize<'de> for Stored<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        if !text.get().starts_with('{') {
            return Err(de::Error::custom("is no object"));
        }
        let read = serde_json::from_str(text.get());
        Ok(Self(read.map_err(|error| Box::new(Unreadable::of(text.get(), fault::<K>(text.get(), &error))))))
    }
}

/// What is wrong, with the field.
fn fault<K: DeserializeOwned>(text: &str, error: &serde_json::Error) -> String {
    if error.to_string().starts_with("recursion limit exceeded") {
        return clip(&too_deep(text), FAULT_BYTES);
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let told = match serde_path_to_error::deserialize::<_, K>(&mut json) {
        Ok(_) => error.to_string(),
        Err(misread) => format!("{}: {}", misread.path(), misread.inner()),
    };
    // Lines are of a text that nobody has written.
    let words = told.rsplit_once(" at line ").map_or(told.as_str(), |(words, _)| words);
    clip(words, FAULT_BYTES)
}

/// A field that nests too deep.
fn too_deep(text: &str) -> String {
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Outline {
        spec: BTreeMap<String, Box<RawValue>>,
        status: BTreeMap<String, Box<RawValue>>,
    }
    let outline: Outline = serde_json::from_str(text).unwrap_or_default();
    let parts = [("spec", &outline.spec), ("status", &outline.status)];
    let mut fields = parts.iter().flat_map(|(part, all)| all.iter().map(move |(name, value)| (*part, name, value)));
    let found = fields
        .find_map(|(part, name, value)| Some(format!("{part}.{name}: {}", free_value::nesting_of_text(value.get())?)));
    found.unwrap_or_else(|| "it nests deeper than it can be read".to_owned())
}

impl<K: Resource> Resource for Stored<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, K::meta_mut)
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Listed<K> {
    pub items: Vec<K>,
    pub unreadable: Vec<Unreadable>,
    pub metadata: ListMeta,
}

/// The same objects, each read alone.
pub fn alone<K>(api: Api<K>) -> Api<Stored<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match api.namespace().map(str::to_owned) {
        Some(namespace) => Api::namespaced(api.into_client(), &namespace),
        None => Api::all(api.into_client()),
    }
}

/// Lists: what cannot be read is told beside the rest.
pub async fn list<K>(api: Api<K>, params: &ListParams) -> kube::Result<Listed<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let page = alone(api).list(params).await?;
    let mut listed =
        Listed { items: Vec::with_capacity(page.items.len()), unreadable: Vec::new(), metadata: page.metadata };
    for Stored(one) in page.items {
        match one {
            Ok(object) => listed.items.push(object),
            Err(unreadable) => listed.unreadable.push(*unreadable),
        }
    }
    Ok(listed)
}

/// The object of that name, if there is one.
pub async fn get_opt<K>(api: &Api<K>, name: &str) -> kube::Result<Option<Stored<K>>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    alone(api.clone()).get_opt(name).await
}

/// The same within the time that one call may take; one that cannot be read is an error that says which one, and why.
pub async fn read<K>(what: &'static str, api: &Api<K>, name: &str) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    match bounded(what, get_opt(api, name)).await? {
        Some(Stored(Ok(found))) => Ok(Some(found)),
        Some(Stored(Err(one))) => {
            Err(Error::Unusable(format!("the {} {name} cannot be read: {}", K::kind(&()), one.fault)))
        }
        None => Ok(None),
    }
}

/// Watches.
pub fn watch<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Result<Event<Stored<K>>>> + Send
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(alone(api), config)
}

/// The event, if it is of what can be read.
pub fn readable<K>(event: Event<Stored<K>>) -> Result<Event<K>, Box<Unreadable>> {
    Ok(match event {
        Event::Apply(one) => Event::Apply(one.0?),
        Event::Delete(one) => Event::Delete(one.0?),
        Event::InitApply(one) => Event::InitApply(one.0?),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    })
}
