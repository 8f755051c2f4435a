//! The garbage collector, by the rules of Kubernetes' own: one act at a time, until there is none left to do.

#![expect(clippy::disallowed_macros, reason = "changes of objects of any kind")]

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use serde_json::{Value, json};

use super::kind::{Kind, Part};
use super::object::Object;
use super::registry::{FOREGROUND, ORPHAN, Registry, Writer};

/// As it calls itself in admission.
pub const USER: &str = "system:serviceaccount:kube-system:generic-garbage-collector";
const BY: Writer<'_> = Writer { user: USER, is_dry_run: false };

impl Registry {
    /// Does one act, if there is one left to do, and says which.
    pub fn collect(&mut self) -> Option<String> {
        let graph = Graph::of(self);
        // What an owner waits for is told to go before the owner is looked at.
        let acts = || graph.objects.iter().filter_map(|object| graph.act_on(object));
        let act = acts().find(|act| !matches!(act.action, GarbageAction::Release(_))).or_else(|| acts().next())?;
        drop(graph);
        act.carry_out(self)
    }

    /// Whether an object names owners, and none of them is there.
    pub fn is_stray(&self, object: &Object) -> bool {
        let mut all = Kind::ALL.into_iter().flat_map(|kind| self.store.list(kind));
        let owns = |owner: &Object| object.owners().iter().any(|reference| reference["uid"] == owner.uid.as_str());
        !object.owners().is_empty() && !all.any(|owner| owns(&owner))
    }
}

/// Who owns whom, now.
struct Graph {
    objects: Vec<Arc<Object>>,
    by_uid: BTreeMap<String, Arc<Object>>,
    /// By the owner's UID: what names it, and how.
    dependants: BTreeMap<String, Vec<(Arc<Object>, Value)>>,
}

impl Graph {
    fn of(registry: &Registry) -> Self {
        let objects: Vec<Arc<Object>> = Kind::ALL.into_iter().flat_map(|kind| registry.store.list(kind)).collect();
        let by_uid = objects.iter().map(|object| (object.uid.clone(), Arc::clone(object))).collect();
        let mut dependants: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for object in &objects {
            for reference in object.owners() {
                let uid = reference["uid"].as_str().unwrap_or_default().to_owned();
                dependants.entry(uid).or_default().push((Arc::clone(object), reference.clone()));
            }
        }
        Self { objects, by_uid, dependants }
    }

    fn owner(&self, reference: &Value) -> Option<&Arc<Object>> {
        self.by_uid.get(reference["uid"].as_str()?)
    }

    fn dependants(&self, uid: &str) -> impl Iterator<Item = &(Arc<Object>, Value)> {
        self.dependants.get(uid).into_iter().flatten()
    }

    fn act_on(&self, object: &Arc<Object>) -> Option<GarbageTask> {
        let is = |action| Some(GarbageTask { object: Arc::clone(object), action });
        if object.is_deleting() {
            let mut dependants = self.dependants(&object.uid);
            return if object.has_finalizer(ORPHAN) {
                is(GarbageAction::Orphan(dependants.map(|(d, _)| Arc::clone(d)).collect()))
            } else if object.has_finalizer(FOREGROUND) && !dependants.any(|(_, r)| r["blockOwnerDeletion"] == true) {
                is(GarbageAction::Release(FOREGROUND))
            } else {
                None
            };
        }
        let waits = |o: &Arc<Object>| o.is_deleting() && o.has_finalizer(FOREGROUND);
        let is_solid = |r: &&Value| self.owner(r).is_some_and(|o| !waits(o));
        let (solid, other): (Vec<&Value>, Vec<&Value>) = object.owners().iter().partition(is_solid);
        let some_waits = other.iter().any(|r| self.owner(r).is_some());
        if other.is_empty() {
            return None;
        }
        if !solid.is_empty() {
            return is(GarbageAction::Disown(other.into_iter().cloned().collect()));
        }
        let mut dependants = self.dependants(&object.uid).peekable();
        if !some_waits || dependants.peek().is_none() {
            let kept = [(ORPHAN, "Orphan"), (FOREGROUND, "Foreground")];
            let kept = kept.into_iter().find(|(finalizer, _)| object.has_finalizer(finalizer));
            return is(GarbageAction::Delete(kept.map_or("Background", |(_, propagation)| propagation)));
        }
        // What may be a circle is cut.
        let blocks = object.owners().iter().any(|r| r["blockOwnerDeletion"] == true);
        if blocks && dependants.any(|(d, _)| waits(d)) {
            is(GarbageAction::Unblock)
        } else {
            is(GarbageAction::Delete("Foreground"))
        }
    }
}

struct GarbageTask {
    object: Arc<Object>,
    action: GarbageAction,
}

enum GarbageAction {
    /// With that propagation.
    Delete(&'static str),
    /// These forget that the object owns them, and the object may go.
    Orphan(Vec<Arc<Object>>),
    /// The object loses that finalizer.
    Release(&'static str),
    /// Owners that are gone, or wait for this object, while another stands.
    Disown(Vec<Value>),
    /// The object blocks none of its owners any more.
    Unblock,
}

impl GarbageTask {
    fn carry_out(self, registry: &mut Registry) -> Option<String> {
        let Self { object, action } = self;
        let who = format!("{:?} {}", object.key.kind, object.key.name);
        match action {
            GarbageAction::Delete(propagation) => {
                let options = DeleteOptions {
                    preconditions: Some(Preconditions { uid: Some(object.uid.clone()), resource_version: None }),
                    propagation_policy: Some(propagation.to_owned()),
                    ..DeleteOptions::default()
                };
                registry.delete(&object.key, &options, BY).ok()?;
                Some(format!("{who} is collected"))
            }
            GarbageAction::Orphan(dependants) => {
                for dependant in dependants {
                    registry
                        .change(&dependant, "ownerReferences", |all| all.retain(|o| o["uid"] != object.uid.as_str()));
                }
                registry.change(&object, "finalizers", |all| all.retain(|f| f != ORPHAN));
                Some(format!("{who} leaves what it owned"))
            }
            GarbageAction::Release(finalizer) => {
                registry.change(&object, "finalizers", |all| all.retain(|f| f != finalizer));
                Some(format!("{who} loses the finalizer {finalizer}"))
            }
            GarbageAction::Disown(gone) => {
                registry.change(&object, "ownerReferences", |all| all.retain(|o| !gone.contains(o)));
                Some(format!("{who} forgets owners"))
            }
            GarbageAction::Unblock => {
                registry.change(&object, "ownerReferences", |all| {
                    for owner in all.iter_mut().filter(|o| o["blockOwnerDeletion"] == true) {
                        owner["blockOwnerDeletion"] = json!(false);
                    }
                });
                Some(format!("{who} blocks no owner any more"))
            }
        }
    }
}

impl Registry {
    /// Changes a list in the metadata.
    fn change(&mut self, object: &Arc<Object>, field: &str, change: impl FnOnce(&mut Vec<Value>)) {
        let mut new = object.value.clone();
        if let Some(list) = new["metadata"][field].as_array_mut() {
            change(list);
        }
        let _ = self.update(object, Part::Main, new, BY);
    }
}
