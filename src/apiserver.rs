//! An API server of Kubernetes within the process: the kinds that Lockstep reads and writes, behind the same requests, for
//! the same client (`ApiServer::client`). Tests run the whole product on it; nothing of the operator needs it.
//!
//! Read `kind` (what is served), `object` and `store` (what is kept), `registry` (the rules of writes) and `collector`
//! (who goes with whom), then `request`, `listing`, `watch`, `review` and `answer` (HTTP). `access` is where whoever runs
//! it decides who may do what. What is not served is said where it would stand.

pub mod access;
mod answer;
mod collector;
mod defaults;
pub mod json_text;
mod kind;
mod listing;
mod managed;
mod object;
mod patch;
mod registry;
mod request;
mod review;
mod selector;
pub mod status;
mod store;
mod table;
mod watch;

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

pub use collector::USER as COLLECTOR;
pub use kind::{Kind, Part};
pub use object::{Key, Object};
pub use patch::Format;
pub use registry::{Clock, Registry, Writer};
pub use store::{Change, ChangeType, MemoryStore, Store};

/// The server, as one user sees it. Clones share the objects.
#[derive(Clone)]
pub struct ApiServer {
    registry: Arc<Mutex<Registry>>,
    /// Wakes whoever watches, first come first served: in a simulation the order must be the same every time.
    commits: Arc<Notify>,
    user: Arc<str>,
}

impl ApiServer {
    pub fn new(registry: Registry, user: &str) -> Self {
        Self { registry: Arc::new(Mutex::new(registry)), commits: Arc::default(), user: user.into() }
    }

    /// The same server for another user.
    #[must_use]
    pub fn as_user(&self, user: &str) -> Self {
        Self { user: user.into(), ..self.clone() }
    }

    /// A client of this user, with a namespace for what names none.
    pub fn client(&self, namespace: &str) -> kube::Client {
        kube::Client::new(self.clone(), namespace)
    }

    /// Does something to the objects themselves; whoever watches hears of it.
    pub fn with<T>(&self, act: impl FnOnce(&mut Registry) -> T) -> T {
        let mut registry = lock(&self.registry);
        let before = registry.store().version();
        let done = act(&mut registry);
        let is_changed = registry.store().version() != before;
        drop(registry);
        if is_changed {
            self.commits.notify_waiters();
        }
        done
    }

    /// Collects garbage whenever something was written, for ever.
    pub async fn collect_garbage(&self) {
        loop {
            let mut commit = pin!(self.commits.notified());
            commit.as_mut().enable();
            while self.with(Registry::collect).is_some() {}
            commit.await;
        }
    }
}

fn lock(registry: &Mutex<Registry>) -> MutexGuard<'_, Registry> {
    registry.lock().unwrap_or_else(PoisonError::into_inner)
}
