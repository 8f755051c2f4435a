//! What a story asks: requests drawn from a seed, each with what either server is sent. Bodies
//! keep to fields that no rule of Lockstep's own kinds forbids to change; owners come before what they own, so that no
//! circle of them arises.

use serde_json::{Value, json};

use super::chance::Chance;
use super::server::{KINDS, Kind, Object, Part, Propagation};
use super::sides::Sent;
use super::twins::Twins;

/// Names of objects of one kind.
const NAMES: u64 = 2;
const FINALIZERS: [&str; 2] = ["memory.test/a", "memory.test/b"];

pub struct Drawer {
    chance: Chance,
    seed: u64,
    /// What this story is about.
    kinds: Vec<Kind>,
    /// A pod's deadline may only be brought forward.
    deadline: i64,
    node: String,
}

/// One request: as the server in memory gets it, and as the real one does, which has other UIDs and versions.
pub struct Both {
    pub memory: Sent,
    pub real: Sent,
}

impl Both {
    fn same(sent: Sent) -> Self {
        Self { memory: sent.clone(), real: sent }
    }
}

/// Where what is written starts from.
struct Base {
    memory: Value,
    real: Value,
}

impl Drawer {
    pub fn new(seed: u64, node: &str) -> Self {
        let mut chance = Chance::new(seed);
        let mut kinds: Vec<Kind> = KINDS.to_vec();
        while kinds.len() > 3 {
            let out = usize::try_from(chance.below(kinds.len() as u64)).unwrap_or_default();
            kinds.remove(out);
        }
        Self { chance, seed, kinds, deadline: 100_000, node: node.to_owned() }
    }

    pub fn next(&mut self, twins: &Twins) -> Both {
        let kind = *self.chance.pick(&self.kinds);
        let name = format!("s{}-{}", self.seed, self.chance.below(NAMES));
        let there = twins.memory.find(kind, &name).is_some();
        match self.chance.below(100) {
            _ if !there && self.chance.percent(75) => self.create(kind, &name, twins),
            0..12 => self.create(kind, &name, twins),
            12..17 => Both::same(Sent::get(kind, &name)),
            17..40 => self.put(kind, &name, twins),
            40..60 => self.merge(kind, &name, twins),
            60..80 => self.json(kind, &name, twins),
            80..84 if kind == Kind::Pod && there => Both::same(Sent::purge(&name)),
            _ => self.delete(kind, &name, twins),
        }
    }

    /// What takes away an object that is left at the end.
    pub fn last(twins: &Twins) -> Option<Both> {
        let left = KINDS.iter().flat_map(|kind| twins.memory.all(*kind)).next()?;
        let (kind, name) = (left.kind, left.name.clone());
        if left.meta("finalizers").is_null() && !left.is_deleting() {
            let propagation = Propagation::Background;
            return Some(Both::same(Sent::delete(kind, &name, None, None, propagation)));
        }
        if left.meta("finalizers").is_null() && kind == Kind::Pod {
            return Some(Both::same(Sent::purge(&name)));
        }
        let change = json!({"metadata": {"finalizers": null, "ownerReferences": null}});
        Some(Both::same(Sent::merge(kind, Part::Main, &name, change)))
    }

    fn create(&mut self, kind: Kind, name: &str, twins: &Twins) -> Both {
        let mut body = seed_of(kind, &self.node);
        body["metadata"]["name"] = json!(name);
        if kind == Kind::Pod && self.chance.percent(20) {
            // No node yet, and no scheduler that looks for one.
            body["spec"]["nodeName"] = Value::Null;
            body["spec"]["schedulerName"] = json!("nobody");
        }
        for _ in 0..self.chance.below(3) {
            json_patch::merge(&mut body, &self.meta_change(kind, name, twins));
        }
        if self.chance.percent(30) {
            json_patch::merge(&mut body, &self.status_change(kind));
        }
        for (field, value) in [
            ("resourceVersion", json!("1")),
            ("resourceVersion", json!("")),
            ("uid", json!("deadbeef")),
            ("generation", json!(7)),
            ("deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        ] {
            if self.chance.percent(3) {
                body["metadata"][field] = value;
            }
        }
        // Nothing is there to be removed.
        strip_nulls(&mut body);
        let real = twins.to_real(&body);
        Both { memory: Sent::create(kind, body), real: Sent::create(kind, real) }
    }

    fn put(&mut self, kind: Kind, name: &str, twins: &Twins) -> Both {
        let part = self.part(kind);
        let change = self.change(kind, name, part, twins);
        let mut base = self.base(kind, name, twins);
        json_patch::merge(&mut base.memory, &change);
        json_patch::merge(&mut base.real, &twins.to_real(&change));
        let stated = self.identity(kind, name, twins);
        for key in ["uid", "resourceVersion"] {
            match &stated[key] {
                Value::Null => {}
                stated if stated == "" => {
                    for side in [&mut base.memory, &mut base.real] {
                        side["metadata"].as_object_mut().map(|m| m.remove(key));
                    }
                }
                stated => {
                    base.memory["metadata"][key] = stated.clone();
                    base.real["metadata"][key] = twins.to_real(&json!({key: stated}))[key].clone();
                }
            }
        }
        Both { memory: Sent::put(kind, part, name, base.memory), real: Sent::put(kind, part, name, base.real) }
    }

    fn merge(&mut self, kind: Kind, name: &str, twins: &Twins) -> Both {
        let part = self.part(kind);
        let mut change = self.change(kind, name, part, twins);
        if self.chance.percent(40) {
            let mut stated = self.identity(kind, name, twins);
            strip_nulls(&mut stated);
            if let Some(fields) = stated.as_object_mut() {
                // In a patch the empty string would be a value.
                fields.retain(|_, v| v != "");
            }
            json_patch::merge(&mut change, &json!({"metadata": stated}));
        }
        let real = twins.to_real(&change);
        Both { memory: Sent::merge(kind, part, name, change), real: Sent::merge(kind, part, name, real) }
    }

    fn json(&mut self, kind: Kind, name: &str, twins: &Twins) -> Both {
        let part = self.part(kind);
        let now = twins.memory.find(kind, name).map(|o| o.value.clone()).unwrap_or_default();
        let mut operations = Vec::new();
        if self.chance.percent(50) {
            let stated = self.identity(kind, name, twins);
            for key in ["uid", "resourceVersion"] {
                if stated[key].as_str().is_some_and(|v| !v.is_empty()) {
                    operations.push(json!({"op": "test", "path": format!("/metadata/{key}"), "value": stated[key]}));
                }
            }
        }
        let path = |kind: Kind, chance: &mut Chance| -> (&'static str, Value) {
            match chance.below(4) {
                0 => ("/metadata/labels/a", json!("1")),
                1 => ("/metadata/annotations/memory.test~1a", json!("1")),
                _ if part == Part::Status => match kind {
                    Kind::Job => ("/status/active", json!(chance.between(1, 3))),
                    Kind::Pod => ("/status/message", json!("m")),
                    Kind::Document => ("/status/revision", json!(chance.between(1, 3))),
                    _ => ("/status/observedGeneration", json!(chance.between(1, 3))),
                },
                _ => match kind {
                    Kind::Agent => ("/spec/maxConcurrent", json!(chance.between(1, 3))),
                    Kind::Workflow | Kind::Job => ("/spec/suspend", json!(chance.percent(50))),
                    Kind::ControllerRevision => ("/revision", json!(chance.between(1, 3))),
                    Kind::ConfigMap => ("/data/k", json!(chance.between(1, 3).to_string())),
                    _ => ("/metadata/labels/b", json!("2")),
                },
            }
        };
        for _ in 0..=self.chance.below(2) {
            let (path, value) = path(kind, &mut self.chance);
            let there = now.pointer(path).cloned().unwrap_or_default();
            operations.push(match self.chance.below(10) {
                0..2 => json!({"op": "test", "path": path, "value": there}),
                2 => json!({"op": "test", "path": path, "value": value}),
                3 => json!({"op": "test", "path": path, "value": null}),
                4..7 => json!({"op": "add", "path": path, "value": value}),
                7..9 => json!({"op": "replace", "path": path, "value": value}),
                // What must be there or has a default cannot go.
                _ if kind.is_custom() && part == Part::Main || path.starts_with("/metadata") => {
                    json!({"op": "remove", "path": path})
                }
                _ => json!({"op": "add", "path": path, "value": value}),
            });
        }
        let operations = Value::Array(operations);
        let real = twins.to_real(&operations);
        Both { memory: Sent::json(kind, part, name, operations), real: Sent::json(kind, part, name, real) }
    }

    fn delete(&mut self, kind: Kind, name: &str, twins: &Twins) -> Both {
        let stated = if self.chance.percent(60) { self.identity(kind, name, twins) } else { Value::Null };
        let of = |key: &str| stated[key].as_str().filter(|v| !v.is_empty()).map(str::to_owned);
        let (uid, version) = (of("uid"), of("resourceVersion"));
        let propagation = *self.chance.pick(&[Propagation::Background, Propagation::Foreground, Propagation::Orphan]);
        let real = twins.to_real(&json!({"uid": uid, "resourceVersion": version}));
        Both {
            memory: Sent::delete(kind, name, uid.as_deref(), version.as_deref(), propagation),
            real: Sent::delete(kind, name, real["uid"].as_str(), real["resourceVersion"].as_str(), propagation),
        }
    }

    fn part(&mut self, kind: Kind) -> Part {
        if kind.has_status() && self.chance.percent(45) { Part::Status } else { Part::Main }
    }

    /// The object as it is, as it was, or as nobody ever saw it.
    fn base(&mut self, kind: Kind, name: &str, twins: &Twins) -> Base {
        let versions = twins.versions(kind, name);
        let Some((newest, older)) = versions.split_last() else {
            let mut body = seed_of(kind, &self.node);
            body["metadata"]["name"] = json!(name);
            return Base { real: body.clone(), memory: body };
        };
        // A pod is not put back as it was: most of its spec cannot change.
        // A Job bears its UID in its pods' labels.
        let is_other = |(memory, _): &(&Value, &Value)| memory["metadata"]["uid"] != newest.0["metadata"]["uid"];
        let fixed = kind == Kind::Pod || kind == Kind::Job && older.iter().any(is_other);
        if older.is_empty() || fixed || self.chance.percent(80) {
            return Base { memory: newest.0.clone(), real: newest.1.clone() };
        }
        let (memory, real) = *self.chance.pick(older);
        let mut base = Base { memory: memory.clone(), real: real.clone() };
        // Old owners could close a circle.
        for side in [&mut base.memory, &mut base.real] {
            side["metadata"]["ownerReferences"] = Value::Null;
            if loosely_owns(kind, name, twins) {
                side["metadata"]["finalizers"] = Value::Null;
            }
        }
        base
    }

    /// UID and version to state: null says nothing about it, an empty text leaves it out.
    fn identity(&mut self, kind: Kind, name: &str, twins: &Twins) -> Value {
        let versions = twins.versions(kind, name);
        let now = twins.memory.find(kind, name);
        let known = |field: &str, chance: &mut Chance| -> Value {
            let old =
                if versions.is_empty() { Value::Null } else { chance.pick(&versions).0["metadata"][field].clone() };
            let now = now.map(|o| o.meta(field).clone()).unwrap_or_default();
            match chance.below(10) {
                0..3 => Value::Null,
                3..5 => json!(""),
                5 => old,
                6 => json!(if field == "uid" { "deadbeef" } else { "777777777" }),
                _ => now,
            }
        };
        let uid = known("uid", &mut self.chance);
        let mut version = known("resourceVersion", &mut self.chance);
        // Versions that only the collector made have no counterpart.
        if version.as_str().is_some_and(|v| !twins.knows_version(v)) && version != "777777777" {
            version = json!("");
        }
        json!({"uid": uid, "resourceVersion": version})
    }

    fn change(&mut self, kind: Kind, name: &str, part: Part, twins: &Twins) -> Value {
        let mut change = json!({});
        // Now and then what this part does not take.
        let stray = self.chance.percent(15);
        if self.chance.percent(if part == Part::Main { 50 } else { 20 }) {
            json_patch::merge(&mut change, &self.meta_change(kind, name, twins));
        }
        if (part == Part::Main) != stray && self.chance.percent(60) {
            json_patch::merge(&mut change, &self.spec_change(kind));
        }
        if (part == Part::Status) != stray && kind.has_status() {
            json_patch::merge(&mut change, &self.status_change(kind));
        }
        change
    }

    fn meta_change(&mut self, kind: Kind, name: &str, twins: &Twins) -> Value {
        let value = |chance: &mut Chance| {
            [json!("1"), json!("2"), Value::Null][usize::try_from(chance.below(3)).unwrap_or(0)].clone()
        };
        let fields = match self.chance.below(10) {
            0..2 => json!({"labels": {"a": value(&mut self.chance), "b": value(&mut self.chance)}}),
            2..4 => json!({"annotations": {"memory.test/a": value(&mut self.chance)}}),
            // A Job without labels takes those of its pods.
            4 if kind == Kind::Job => json!({"annotations": {}}),
            4 => json!({"labels": null, "annotations": {}}),
            5 => json!({"finalizers": null}),
            6..8 if loosely_owns(kind, name, twins) => json!({"finalizers": null}),
            6..8 => {
                let mut some: Vec<&str> = FINALIZERS.to_vec();
                some.truncate(usize::try_from(self.chance.below(3)).unwrap_or(0));
                json!({"finalizers": some})
            }
            8 => self.owners(kind, name, twins),
            _ if self.chance.percent(30) => json!({"ownerReferences": null}),
            _ if self.chance.percent(30) => json!({"generation": 1}),
            _ if self.chance.percent(20) => json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
            _ if self.chance.percent(20) => json!({"creationTimestamp": "2026-01-01T00:00:00Z"}),
            _ => self.owners(kind, name, twins),
        };
        json!({"metadata": fields})
    }

    /// Owners that come before it. Where one owner hangs on another, or an owner already waits for what it owns, the
    /// collector's acts depend on how fast it hears.
    fn owners(&mut self, kind: Kind, name: &str, twins: &Twins) -> Value {
        let own = |o: &Object| o.meta("ownerReferences").as_array().map_or(0, Vec::len);
        let all: Vec<_> = KINDS.iter().flat_map(|k| twins.memory.all(*k)).collect();
        let uid = twins.memory.find(kind, name).map(|o| o.uid.clone()).unwrap_or_default();
        if all.iter().any(|o| own(o) > 1 && o.meta("ownerReferences").to_string().contains(&uid)) {
            return json!({});
        }
        let before: Vec<_> =
            all.iter().filter(|o| (o.kind, o.name.as_str()) < (kind, name) && !o.is_deleting()).collect();
        let count = 1 + self.chance.below(2);
        let mut owners = Vec::new();
        for _ in 0..count {
            let mut owner = if before.is_empty() || self.chance.percent(20) {
                let uid = format!("nobody-{}", self.seed);
                json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": uid})
            } else {
                let owner = self.chance.pick(&before);
                if count > 1 && own(owner) > 0 {
                    continue;
                }
                let (api, word) = (owner.kind.api_version(), owner.kind.name());
                json!({"apiVersion": api, "kind": word, "name": owner.name, "uid": owner.uid})
            };
            let held = before.iter().any(|o| owner["uid"] == o.uid.as_str() && !o.meta("finalizers").is_null());
            if held || self.chance.percent(60) {
                owner["blockOwnerDeletion"] = json!(true);
            }
            if owners.iter().all(|o: &Value| o["uid"] != owner["uid"]) {
                owners.push(owner);
            }
        }
        json!({"ownerReferences": owners})
    }

    fn spec_change(&mut self, kind: Kind) -> Value {
        let number = self.chance.between(1, 3);
        let flag = self.chance.percent(50);
        match kind {
            Kind::Agent => json!({"spec": {"maxConcurrent": number}}),
            Kind::WorkflowTemplate => json!({"spec": {"steps": [{"name": "a", "agentId": format!("x{number}")}]}}),
            Kind::Workflow if flag => json!({"spec": {"ttlSecondsAfterFinished": number}}),
            // What they are, they stay.
            Kind::StepRun | Kind::Document => json!({}),
            Kind::ControllerRevision if flag => json!({"data": {"x": number}}),
            Kind::ControllerRevision => json!({"revision": number}),
            Kind::Job if flag => json!({"spec": {"parallelism": number}}),
            Kind::Workflow | Kind::Job => json!({"spec": {"suspend": number == 1}}),
            Kind::Pod => {
                self.deadline -= 1;
                json!({"spec": {"activeDeadlineSeconds": self.deadline}})
            }
            _ => json!({"data": {"k": number.to_string()}}),
        }
    }

    fn status_change(&mut self, kind: Kind) -> Value {
        let number = self.chance.between(1, 3);
        let phase = *self.chance.pick(&["Pending", "Running", "Running", "Succeeded"]);
        match kind {
            Kind::Document => json!({"status": {"revision": number}}),
            Kind::StepRun if number == 1 => json!({"status": {"attempt": 2, "counts": {"answers": 1}}}),
            Kind::StepRun | Kind::Agent if number == 2 => json!({"status": {"observedGeneration": null}}),
            Kind::Agent | Kind::WorkflowTemplate | Kind::Workflow | Kind::StepRun => {
                json!({"status": {"observedGeneration": number}})
            }
            Kind::Job => json!({"status": {"active": number}}),
            Kind::Pod if number == 1 => json!({"status": {"phase": phase}}),
            Kind::Pod => json!({"status": {"message": format!("m{number}")}}),
            _ => json!({}),
        }
    }
}

/// Whether it owns something that would not hold it up: were it to stay for a finalizer, that one would go or stay by
/// which of both the collector sees first.
fn loosely_owns(kind: Kind, name: &str, twins: &Twins) -> bool {
    let Some(owner) = twins.memory.find(kind, name) else { return false };
    let loose = |r: &Value| r["uid"] == owner.uid.as_str() && r["blockOwnerDeletion"] != true;
    let mut all = KINDS.iter().flat_map(|k| twins.memory.all(*k));
    all.any(|o| o.meta("ownerReferences").as_array().is_some_and(|refs| refs.iter().any(loose)))
}

/// The least that the real server accepts, with every default stated that the memory does not know.
fn seed_of(kind: Kind, node: &str) -> Value {
    let (api, word) = (kind.api_version(), kind.name());
    let container = json!({"name": "agent", "image": "nothing"});
    let mut body = match kind {
        Kind::Agent => json!({"spec": {"template": {}}}),
        Kind::WorkflowTemplate => json!({"spec": {"steps": [{"name": "a", "agentId": "x"}]}}),
        Kind::Workflow => json!({"spec": {"templateRef": {"name": "default"}}}),
        Kind::StepRun => json!({"spec": {
            "workflow": {"name": "shop", "uid": "u-1"},
            "definition": {"revisionName": "shop-1", "digest": "sha256:d"},
            "path": "discovery", "agentId": "discoverer", "parameters": "{}", "inputDigest": "sha256:i"}}),
        Kind::Document => {
            json!({"spec": {"type": "brief", "scope": "Namespace", "content": "# Brief", "format": "markdown"}})
        }
        Kind::ControllerRevision => json!({"data": {"x": 1}, "revision": 1}),
        // Managed by nobody, so that the Job controller leaves it alone.
        Kind::Job => {
            json!({"metadata": {"labels": {"memory": "job"}}, "spec": {"suspend": true, "parallelism": 1, "managedBy": "memory.test/nobody",
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}})
        }
        Kind::Pod => json!({"spec": {"nodeName": node, "restartPolicy": "Never", "containers": [container]}}),
        _ => json!({"data": {"k": "0"}}),
    };
    let mut whole = json!({"apiVersion": api, "kind": word, "metadata": {}});
    json_patch::merge(&mut whole, &body);
    body = whole;
    body
}

fn strip_nulls(value: &mut Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, v| !v.is_null());
        fields.values_mut().for_each(strip_nulls);
    }
}
