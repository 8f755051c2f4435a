//! The toy's garbage collector, by the rules of Kubernetes' own: one act at a time, until there is none left to do.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{FOREGROUND, ORPHAN, Object, Part, Propagation, Server};

impl Server {
    /// Whether it names owners, and none of them is there.
    pub fn is_stray(&self, object: &Object) -> bool {
        let owners = owners(object);
        !owners.is_empty() && owners.iter().all(|o| self.owner(o).is_none())
    }

    /// One act, if there is one left to do.
    pub fn collect(&mut self) -> Option<String> {
        // What an owner waits for is told to go before the owner is looked at.
        let acts = || self.objects.values().filter_map(|object| self.act_on(object));
        let act = acts().find(|act| !matches!(act.what, What::Release(_))).or_else(|| acts().next())?;
        act.done(self)
    }

    fn owner(&self, reference: &Value) -> Option<&Arc<Object>> {
        self.objects.values().find(|o| reference["uid"] == o.uid.as_str())
    }

    fn dependants<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = (&'a Arc<Object>, &'a Value)> {
        let all = self.objects.values().flat_map(|o| owners(o).iter().map(move |r| (o, r)));
        all.filter(move |(_, r)| r["uid"] == uid)
    }

    fn act_on(&self, object: &Arc<Object>) -> Option<Act> {
        let is = |what| Some(Act { object: Arc::clone(object), what });
        if object.is_deleting() {
            let mut dependants = self.dependants(&object.uid);
            return if has_finalizer(object, ORPHAN) {
                is(What::Orphan(dependants.map(|(d, _)| Arc::clone(d)).collect()))
            } else if has_finalizer(object, FOREGROUND) && !dependants.any(|(_, r)| r["blockOwnerDeletion"] == true) {
                is(What::Release(FOREGROUND))
            } else {
                None
            };
        }
        let waits = |o: &Arc<Object>| o.is_deleting() && has_finalizer(o, FOREGROUND);
        let is_solid = |r: &&Value| self.owner(r).is_some_and(|o| !waits(o));
        let (solid, other): (Vec<&Value>, Vec<&Value>) = owners(object).iter().partition(is_solid);
        let some_waits = other.iter().any(|r| self.owner(r).is_some());
        if other.is_empty() {
            return None;
        }
        if !solid.is_empty() {
            return is(What::Disown(other.into_iter().cloned().collect()));
        }
        let mut dependants = self.dependants(&object.uid).peekable();
        if !some_waits || dependants.peek().is_none() {
            let kept = [(ORPHAN, Propagation::Orphan), (FOREGROUND, Propagation::Foreground)];
            let kept = kept.into_iter().find(|(finalizer, _)| has_finalizer(object, finalizer));
            return is(What::Delete(kept.map_or(Propagation::Background, |(_, how)| how)));
        }
        // What may be a circle is cut.
        let blocks = owners(object).iter().any(|r| r["blockOwnerDeletion"] == true);
        if blocks && dependants.any(|(d, _)| waits(d)) {
            is(What::Unblock)
        } else {
            is(What::Delete(Propagation::Foreground))
        }
    }
}

struct Act {
    object: Arc<Object>,
    what: What,
}

enum What {
    Delete(Propagation),
    /// These forget that the object owns them, and the object may go.
    Orphan(Vec<Arc<Object>>),
    Release(&'static str),
    /// Owners that are gone, or wait for this object, while another stands.
    Disown(Vec<Value>),
    Unblock,
}

impl Act {
    fn done(self, server: &mut Server) -> Option<String> {
        let Self { object, what } = self;
        let who = format!("{:?} {}", object.kind, object.name);
        match what {
            What::Delete(how) => {
                server.delete(&object, Some(&object.uid), None, how).ok()?;
                Some(format!("{who} is collected"))
            }
            What::Orphan(dependants) => {
                for dependant in dependants {
                    server.change_owners(&dependant, |all| all.retain(|o| o["uid"] != object.uid.as_str()));
                }
                server.release(&object, ORPHAN);
                Some(format!("{who} leaves what it owned"))
            }
            What::Release(finalizer) => {
                server.release(&object, finalizer);
                Some(format!("{who} loses the finalizer {finalizer}"))
            }
            What::Disown(gone) => {
                server.change_owners(&object, |all| all.retain(|o| !gone.contains(o)));
                Some(format!("{who} forgets owners"))
            }
            What::Unblock => {
                server.change_owners(&object, |all| {
                    for owner in all.iter_mut().filter(|o| o["blockOwnerDeletion"] == true) {
                        owner["blockOwnerDeletion"] = json!(false);
                    }
                });
                Some(format!("{who} blocks no owner any more"))
            }
        }
    }
}

impl Server {
    fn change_owners(&mut self, object: &Arc<Object>, change: impl FnOnce(&mut Vec<Value>)) {
        let mut new = object.value.clone();
        if let Some(list) = new["metadata"]["ownerReferences"].as_array_mut() {
            change(list);
        }
        let _ = self.update(object, Part::Main, new);
    }

    fn release(&mut self, object: &Arc<Object>, finalizer: &str) {
        let mut new = object.value.clone();
        if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
            list.retain(|f| f != finalizer);
        }
        let _ = self.update(object, Part::Main, new);
    }
}

fn owners(object: &Object) -> &[Value] {
    object.meta("ownerReferences").as_array().map_or(&[], Vec::as_slice)
}

fn has_finalizer(object: &Object, finalizer: &str) -> bool {
    object.meta("finalizers").as_array().is_some_and(|list| list.iter().any(|f| f == finalizer))
}
