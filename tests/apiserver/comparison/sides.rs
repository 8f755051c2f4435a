//! The two servers: how a request is sent to either, what it replies, and what the real one's watches tell.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use futures::TryStreamExt as _;
use http::{Method, Request as Http};
use kube::Client;
use kube::core::WatchEvent;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::server::{KINDS, Kind, Part, Propagation};
use crate::support::PATIENCE;

/// A request as a server gets it; the path lacks the namespace.
#[derive(Clone, Debug)]
pub struct Sent {
    pub method: Method,
    pub kind: Kind,
    /// Behind the collection's path.
    rest: String,
    content: &'static str,
    pub body: Option<Value>,
}

impl Sent {
    fn new(method: Method, kind: Kind, rest: String, content: &'static str, body: Option<Value>) -> Self {
        Self { method, kind, rest, content, body }
    }

    pub fn get(kind: Kind, name: &str) -> Self {
        Self::new(Method::GET, kind, format!("/{name}"), "application/json", None)
    }

    pub fn create(kind: Kind, body: Value) -> Self {
        Self::new(Method::POST, kind, String::new(), "application/json", Some(body))
    }

    pub fn put(kind: Kind, part: Part, name: &str, body: Value) -> Self {
        Self::new(Method::PUT, kind, rest(name, part), "application/json", Some(body))
    }

    pub fn merge(kind: Kind, part: Part, name: &str, body: Value) -> Self {
        Self::new(Method::PATCH, kind, rest(name, part), "application/merge-patch+json", Some(body))
    }

    pub fn json(kind: Kind, part: Part, name: &str, body: Value) -> Self {
        Self::new(Method::PATCH, kind, rest(name, part), "application/json-patch+json", Some(body))
    }

    pub fn delete(kind: Kind, name: &str, uid: Option<&str>, version: Option<&str>, how: Propagation) -> Self {
        let mut preconditions = json!({});
        for (key, value) in [("uid", uid), ("resourceVersion", version)] {
            if let Some(value) = value {
                preconditions[key] = json!(value);
            }
        }
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": format!("{how:?}"),
            "preconditions": preconditions});
        Self::new(Method::DELETE, kind, format!("/{name}"), "application/json", Some(options))
    }
}

impl Sent {
    /// A pod's end.
    pub fn purge(name: &str) -> Self {
        let mut sent = Self::delete(Kind::Pod, name, None, None, Propagation::Background);
        sent.body = Some(json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}));
        sent
    }
}

fn rest(name: &str, part: Part) -> String {
    format!("/{name}{}", if part == Part::Status { "/status" } else { "" })
}

/// Sends a request to either server.
pub async fn send(client: &Client, namespace: &str, sent: &Sent) -> Result<Said> {
    let uri = format!("{}{}", sent.kind.path(namespace), sent.rest);
    let body = sent.body.as_ref().map_or_else(Vec::new, |b| b.to_string().into_bytes());
    let request =
        Http::builder().method(sent.method.clone()).uri(uri).header("content-type", sent.content).body(body)?;
    match tokio::time::timeout(PATIENCE, client.request::<Value>(request)).await? {
        Ok(value) => Ok(Ok(value)),
        Err(kube::Error::Api(status)) => Ok(Err((status.code, status.reason.clone(), status.message.clone()))),
        Err(other) => Err(anyhow!("{other}")),
    }
}

/// What it says: an object (or the word that it is gone), or code, reason and message of a refusal.
pub type Said = Result<Value, (u16, String, String)>;

/// What a watch told: the kind, the word for what happened, the object.
pub type Told = (Kind, &'static str, Value);

pub struct Real {
    client: Client,
    namespace: String,
    told: mpsc::UnboundedReceiver<Told>,
    /// Everything told so far.
    pub log: Vec<Told>,
    /// What is there, by what was told.
    pub objects: BTreeMap<(Kind, String), Value>,
}

impl Real {
    pub async fn open(client: Client, namespace: &str) -> Result<Self> {
        let (tell, told) = mpsc::unbounded_channel();
        for kind in KINDS {
            let path = kind.path(namespace);
            let list = client.request::<Value>(Http::get(&path).body(Vec::new())?).await?;
            let first = list["metadata"]["resourceVersion"].as_str().context("a list has a version")?.to_owned();
            let watch = format!("{path}?watch=true&resourceVersion={first}");
            let stream = client.request_events::<Value>(Http::get(watch).body(Vec::new())?).await?;
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut stream = std::pin::pin!(stream);
                while let Ok(Some(event)) = stream.try_next().await {
                    let event = match event {
                        WatchEvent::Added(o) => ("added", o),
                        WatchEvent::Modified(o) => ("modified", o),
                        WatchEvent::Deleted(o) => ("deleted", o),
                        WatchEvent::Bookmark(_) => continue,
                        WatchEvent::Error(_) => break,
                    };
                    if tell.send((kind, event.0, event.1)).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { client, namespace: namespace.to_owned(), told, log: Vec::new(), objects: BTreeMap::new() })
    }

    pub async fn send(&self, sent: &Sent) -> Result<Said> {
        send(&self.client, &self.namespace, sent).await
    }

    /// Hears until the check is content. Whether it ever was: while something still comes it is waited for, however slowly
    /// it comes, and for ten times as long at most.
    pub async fn hears(&mut self, content: impl Fn(&Self) -> bool) -> Result<bool> {
        let end = tokio::time::Instant::now() + PATIENCE * 10;
        while !content(self) {
            let next = end.min(tokio::time::Instant::now() + PATIENCE);
            match tokio::time::timeout_at(next, self.told.recv()).await {
                Ok(Some(told)) => self.take(told),
                Ok(None) => bail!("the watches ended"),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn take(&mut self, told: Told) {
        let (kind, word, object) = &told;
        let key = (*kind, object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        if *word == "deleted" {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, object.clone());
        }
        self.log.push(told);
    }
}
