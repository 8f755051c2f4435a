//! The observer outside the operator: watches all that a run consists of, and remembers what came, what went, and what
//! may never happen. It drives the fake kubelet and the people as well.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use lockstep::api::StepRun;
use lockstep::api::name::{LABEL_ATTEMPT, LABEL_STEP_RUN};
use serde_json::Value;
use tokio::sync::watch;

use super::kubelet::Kubelet;
use super::people::People;
use super::plane::Plane;

const KINDS: [(&str, &str, &str); 7] = [
    ("lockstep.dev", "v1alpha1", "Agent"),
    ("lockstep.dev", "v1alpha1", "Workflow"),
    ("lockstep.dev", "v1alpha1", "StepRun"),
    ("lockstep.dev", "v1alpha1", "Document"),
    ("apps", "v1", "ControllerRevision"),
    ("batch", "v1", "Job"),
    ("", "v1", "Pod"),
];

type Place = (String, &'static str, String);

#[derive(Default)]
struct Seen {
    /// What there is: namespace, kind, name.
    objects: BTreeMap<Place, Value>,
    /// UIDs that ever were, with the version in which they came.
    created: BTreeMap<Place, Vec<(String, u64)>>,
    /// StepRun: the version in which its gate was first seen accepted.
    accepted: BTreeMap<(String, String), u64>,
    /// Names of StepRuns, as people would call them.
    steps: BTreeMap<(String, String), Step>,
    removed: HashSet<String>,
    violations: Vec<String>,
}

/// What a StepRun is, whatever its name.
#[derive(Clone, Debug)]
pub struct Step {
    pub run: String,
    pub path: String,
    /// `chapter p1/c2`: the path and the keys around it.
    pub title: String,
}

pub struct Observer {
    seen: Mutex<Seen>,
    /// Moves with everything that is seen.
    pub changes: watch::Sender<u64>,
    kubelet: Arc<Kubelet>,
    people: Arc<People>,
    /// Namespaces that begin with it are looked at.
    prefix: String,
}

impl Observer {
    /// Begins to watch; returns when all kinds were listed.
    pub async fn begin(plane: &Plane, prefix: &str, kubelet: Arc<Kubelet>, people: Arc<People>) -> Result<Arc<Self>> {
        let changes = watch::Sender::new(0);
        let prefix = prefix.to_owned();
        let observer = Arc::new(Self { seen: Mutex::default(), changes, kubelet, people, prefix });
        let listed = Arc::new(tokio::sync::Semaphore::new(0));
        for (group, version, kind) in KINDS {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api: Api<DynamicObject> = Api::all_with(plane.admin.clone(), &resource);
            let (observer, listed) = (Arc::clone(&observer), Arc::clone(&listed));
            tokio::spawn(async move {
                let mut events = watcher(api, Config::default()).default_backoff().boxed();
                while let Some(event) = events.next().await {
                    match event {
                        Ok(Event::InitDone) => listed.add_permits(1),
                        Ok(Event::Apply(object) | Event::InitApply(object)) => observer.came(kind, &object),
                        Ok(Event::Delete(object)) => observer.went(kind, &object),
                        Ok(Event::Init) => {}
                        Err(error) => observer.broken(&format!("the observer's watch on {kind} broke: {error}")),
                    }
                }
            });
        }
        let all = u32::try_from(KINDS.len())?;
        let waited = tokio::time::timeout(super::plane::PATIENCE, listed.acquire_many(all)).await;
        ensure!(waited.is_ok(), "the observer's first lists do not come");
        Ok(observer)
    }

    fn came(&self, kind: &'static str, object: &DynamicObject) {
        let namespace = object.namespace().unwrap_or_default();
        if !namespace.starts_with(&self.prefix) {
            return;
        }
        let name = object.name_any();
        let Ok(value) = serde_json::to_value(object) else { return };
        let mut seen = self.seen();
        seen.note(kind, &namespace, &name, &value);
        seen.objects.insert((namespace, kind, name), value.clone());
        drop(seen);
        match kind {
            "Pod" => serde_json::from_value::<Pod>(value).map_or((), |pod| self.kubelet.saw(pod)),
            "StepRun" => serde_json::from_value::<StepRun>(value).map_or((), |step_run| self.people.saw(step_run)),
            _ => {}
        }
        self.changes.send_modify(|n| *n += 1);
    }

    fn went(&self, kind: &'static str, object: &DynamicObject) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let mut seen = self.seen();
        seen.objects.remove(&(namespace, kind, name));
        seen.removed.insert(object.uid().unwrap_or_default());
        drop(seen);
        self.changes.send_modify(|n| *n += 1);
    }

    /// What a watch misses while it is broken may not be told from what never was.
    fn broken(&self, what: &str) {
        self.seen().violations.push(what.to_owned());
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn violations(&self) -> Vec<String> {
        self.seen().violations.clone()
    }

    /// Objects in namespaces that begin so: namespace, kind, object.
    pub fn objects(&self, prefix: &str) -> Vec<(String, &'static str, Value)> {
        let seen = self.seen();
        let all = seen.objects.iter().filter(|((namespace, ..), _)| namespace.starts_with(prefix));
        all.map(|((namespace, kind, _), value)| (namespace.clone(), *kind, value.clone())).collect()
    }

    /// How many runs have ended.
    pub fn ended(&self, prefix: &str) -> usize {
        let seen = self.seen();
        let of_round = seen
            .objects
            .iter()
            .filter(|((namespace, kind, _), _)| *kind == "Workflow" && namespace.starts_with(prefix));
        of_round.filter(|(_, value)| value["status"]["completedAt"].is_string()).count()
    }

    pub fn steps(&self, prefix: &str) -> BTreeMap<(String, String), Step> {
        let seen = self.seen();
        let all = seen.steps.iter().filter(|((namespace, _), _)| namespace.starts_with(prefix));
        all.map(|(place, step)| (place.clone(), step.clone())).collect()
    }

    /// Everything that was ever created in namespaces that begin so: namespace, kind, name, and how often.
    pub fn created(&self, prefix: &str) -> Vec<(String, &'static str, String, usize)> {
        let seen = self.seen();
        let all = seen.created.iter().filter(|((namespace, ..), _)| namespace.starts_with(prefix));
        all.map(|((namespace, kind, name), uids)| (namespace.clone(), *kind, name.clone(), uids.len())).collect()
    }

    /// StepRuns and Jobs of a step that came before the gate of another step was accepted.
    pub fn too_early(&self, namespace: &str, run: &str, (gate, after): (&str, &str)) -> Vec<String> {
        let seen = self.seen();
        let of = |path: &'static str, steps: &BTreeMap<(String, String), Step>| -> BTreeSet<String> {
            let here = steps.iter().filter(|((ns, _), step)| ns == namespace && step.run == run && step.path == path);
            here.map(|((_, name), _)| name.clone()).collect()
        };
        let (gate, after): (&'static str, &'static str) = (leak(gate), leak(after));
        let opened =
            of(gate, &seen.steps).into_iter().map(|name| seen.accepted.get(&(namespace.to_owned(), name)).copied());
        let opened = opened.map(|version| version.unwrap_or(u64::MAX)).max().unwrap_or(u64::MAX);
        let late = of(after, &seen.steps);
        let came =
            seen.created.iter().filter(|((ns, ..), _)| ns == namespace).flat_map(|((_, kind, name), uids)| {
                uids.iter().map(move |(_, version)| (*kind, name.clone(), *version))
            });
        came.filter(|(kind, name, version)| {
            let of_step = match *kind {
                "StepRun" => late.contains(name),
                "Job" => seen.objects.get(&(namespace.to_owned(), "Job", name.clone())).is_some_and(|job| {
                    job["metadata"]["labels"][LABEL_STEP_RUN].as_str().is_some_and(|owner| late.contains(owner))
                }),
                _ => false,
            };
            of_step && *version < opened
        })
        .map(|(kind, name, _)| {
            format!("{kind} {namespace}/{name} of {after} came before the gate of {gate} was accepted")
        })
        .collect()
    }
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

impl Seen {
    fn note(&mut self, kind: &'static str, namespace: &str, name: &str, value: &Value) {
        let meta = &value["metadata"];
        let uid = meta["uid"].as_str().unwrap_or_default().to_owned();
        let version = meta["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or_default();
        let place = (namespace.to_owned(), kind, name.to_owned());
        let uids = self.created.entry(place.clone()).or_default();
        if !uids.iter().any(|(known, _)| *known == uid) {
            uids.push((uid.clone(), version));
        }
        if kind == "StepRun" {
            self.note_step(namespace, name, value, version);
        }
        if let Some(before) = self.objects.get(&place).filter(|o| o["metadata"]["uid"] == uid.as_str()) {
            for what in backwards(kind, &before["status"], &value["status"]) {
                self.violations.push(format!("{kind} {namespace}/{name}: {what}"));
            }
        }
    }

    fn note_step(&mut self, namespace: &str, name: &str, value: &Value, version: u64) {
        let place = (namespace.to_owned(), name.to_owned());
        let spec = &value["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let scope = spec["scopeChain"].as_array().and_then(|chain| chain.last()).map(|link| text(&link["scopeId"]));
        let keys = scope.and_then(|id| id.split_once('/').map(|(_, keys)| keys.to_owned())).unwrap_or_default();
        let (run, path) = (text(&spec["workflow"]["name"]), text(&spec["path"]));
        let title = format!("{run}:{path} {keys}").trim().to_owned();
        self.steps.insert(place.clone(), Step { run, path, title });
        if value["status"]["gate"]["state"] == "Accepted" {
            self.accepted.entry(place).or_insert(version);
        }
    }
}

/// What went backwards between two states: numbers that only grow, and what is terminal.
fn backwards(kind: &str, before: &Value, after: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if !matches!(kind, "Workflow" | "StepRun") {
        return found;
    }
    for pointer in ["/attempt", "/round", "/counts/answers"] {
        let number = |status: &Value| status.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
        if number(after) < number(before) {
            found.push(format!("{pointer} fell from {} to {}", number(before), number(after)));
        }
    }
    if before["completedAt"].is_string() && ["completedAt", "phase"].iter().any(|key| before[*key] != after[*key]) {
        found.push(format!("was {} and became {}", before["phase"], after["phase"]));
    }
    found
}

/// The attempt that a Job or pod is of.
pub fn attempt(value: &Value) -> String {
    value["metadata"]["labels"][LABEL_ATTEMPT].as_str().unwrap_or_default().to_owned()
}
