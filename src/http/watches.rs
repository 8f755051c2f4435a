//! What the API server tells of Lockstep's kinds, watched once for all callers; and word of each change of a run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{StepRun, Workflow};
use crate::cluster::cache::{Cache, Keeping, Watched, ready};
use crate::cluster::world::{World, run_key};

/// The caches, filled by one watch a kind.
pub struct Watches {
    pub world: World,
    runs: Runs,
}

impl Default for Watches {
    fn default() -> Self {
        let keeping = Keeping { keys: run_keys, rank: newest_last, strip: strip_run };
        let world = World { workflows: Arc::new(Cache::new(keeping)), ..World::default() };
        Self { world, runs: Runs::default() }
    }
}

/// Under its namespace, and under its session.
fn run_keys(run: &Workflow) -> Vec<String> {
    let namespace = run.namespace().unwrap_or_default();
    let session = run.spec.session.as_deref().map(|session| session_key(&namespace, session));
    session.into_iter().chain([namespace_key(&namespace)]).collect()
}

pub fn namespace_key(namespace: &str) -> String {
    format!("namespace {namespace}")
}

pub fn session_key(namespace: &str, session: &str) -> String {
    format!("session {namespace}/{session}")
}

/// By time of creation, then by name.
pub fn newest_last(run: &Workflow) -> String {
    let made = run.metadata.creation_timestamp.as_ref().map(|at| at.0.as_second()).unwrap_or_default();
    format!("{made:020} {}", run.name_any())
}

/// What its documents hold is read where it is needed.
fn strip_run(run: &mut Workflow) {
    for document in &mut run.spec.documents {
        document.content.clear();
    }
}

impl Watches {
    /// One task a kind; none of them ends by itself.
    pub fn spawn(self: &Arc<Self>, client: &Client) -> JoinSet<()> {
        let mut set = JoinSet::new();
        set.spawn(self.one(&self.world.templates, client, |_, _| {}));
        set.spawn(self.one(&self.world.triggers, client, |_, _| {}));
        set.spawn(self.one(&self.world.documents, client, |_, _| {}));
        set.spawn(self.one(&self.world.workflows, client, |watches, run: &Workflow| {
            watches.runs.tell(&run.namespace().unwrap_or_default(), &run.name_any());
        }));
        set.spawn(self.one(&self.world.step_runs, client, |watches, step: &StepRun| {
            watches.runs.tell(&step.namespace().unwrap_or_default(), &step.spec.workflow.name);
        }));
        set
    }

    fn one<K: Watched>(
        self: &Arc<Self>,
        cache: &Arc<Cache<K>>,
        client: &Client,
        heard: fn(&Self, &K),
    ) -> impl Future<Output = ()> + Send + use<K> {
        let (watches, cache, api) = (Arc::clone(self), Arc::clone(cache), Api::all(client.clone()));
        cache.run(api, watcher::Config::default(), move |object: Arc<K>| {
            heard(&watches, &object);
            std::future::ready(())
        })
    }

    /// Waits for the first list of each kind.
    pub async fn filled(&self) {
        let world = &self.world;
        futures::join!(
            ready(&world.templates),
            ready(&world.triggers),
            ready(&world.documents),
            ready(&world.workflows),
            ready(&world.step_runs)
        );
    }

    /// Hears of every change of a run and its steps from now on.
    pub fn follow(self: &Arc<Self>, namespace: &str, run: &str) -> Following {
        Following {
            changes: self.runs.follow(namespace, run),
            of: (namespace.to_owned(), run.to_owned()),
            watches: Arc::clone(self),
        }
    }

    pub fn run(&self, namespace: &str, name: &str) -> Option<Arc<Workflow>> {
        self.world.workflows.get(namespace, name)
    }

    pub fn steps(&self, run: &Workflow) -> Vec<Arc<StepRun>> {
        let (namespace, uid) = (run.namespace().unwrap_or_default(), run.uid().unwrap_or_default());
        self.world.step_runs.under(&run_key(&namespace, &uid))
    }
}

/// Who waits for news of which run.
#[derive(Default)]
struct Runs(Mutex<HashMap<(String, String), watch::Sender<()>>>);

impl Runs {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, namespace: &str, run: &str) {
        if let Some(sender) = self.lock().get(&(namespace.to_owned(), run.to_owned())) {
            sender.send_replace(());
        }
    }

    fn follow(&self, namespace: &str, run: &str) -> watch::Receiver<()> {
        self.lock().entry((namespace.to_owned(), run.to_owned())).or_insert_with(|| watch::channel(()).0).subscribe()
    }
}

/// Word of what becomes of one run, until it is dropped.
pub struct Following {
    changes: watch::Receiver<()>,
    of: (String, String),
    watches: Arc<Watches>,
}

impl Following {
    /// Waits until something has changed since the last time.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut runs = self.watches.runs.lock();
        // This receiver is still one of them.
        if runs.get(&self.of).is_some_and(|sender| sender.receiver_count() <= 1) {
            runs.remove(&self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_follows_a_run_hears_of_it_and_leaves_nothing_behind() {
        let watches = Arc::new(Watches::default());
        let mut one = watches.follow("team", "shop");
        let other = watches.follow("team", "shop");
        watches.runs.tell("team", "other");
        watches.runs.tell("team", "shop");
        one.changed().await;
        drop(one);
        assert_eq!(watches.runs.lock().len(), 1);
        drop(other);
        assert_eq!(watches.runs.lock().len(), 0);
    }
}
