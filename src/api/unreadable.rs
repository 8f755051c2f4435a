//! What is known of an object that cannot be read: it nests deeper than its reader goes, or a value of it is not of its
//! type. Its identity is read without a look at the rest. `ObjectMeta` would not do: its `managedFields` are as deep as the
//! object.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use kube::core::ObjectMeta;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::name::EVENT_ID;

/// An object that cannot be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unreadable {
    /// Its identity, and no more but the event that a run was made for.
    pub metadata: ObjectMeta,
    pub status: StatusHead,
    /// How long what a run made is kept after its end.
    pub ttl_seconds_after_finished: Option<i64>,
    /// Why it cannot be read, with the field.
    pub fault: String,
}

/// What of its status stays true, each field read by itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatusHead {
    pub observed_generation: Option<i64>,
    /// Its text whatever it is: that there is a phase says that the object has begun.
    pub phase: Option<String>,
    pub completed_at: Option<Time>,
    pub conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WithIdentity {
    metadata: Identity,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WithSpec<'a> {
    #[serde(borrow)]
    spec: SpecTexts<'a>,
}

/// The field of a spec as it was written.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SpecTexts<'a> {
    #[serde(borrow)]
    ttl_seconds_after_finished: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WithStatus<'a> {
    #[serde(borrow)]
    status: StatusTexts<'a>,
}

/// The fields of a status as they were written.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct StatusTexts<'a> {
    #[serde(borrow)]
    observed_generation: Option<&'a RawValue>,
    #[serde(borrow)]
    phase: Option<&'a RawValue>,
    #[serde(borrow)]
    completed_at: Option<&'a RawValue>,
    #[serde(borrow)]
    conditions: Option<&'a RawValue>,
}

impl StatusTexts<'_> {
    fn head(&self) -> StatusHead {
        let conditions: Vec<&RawValue> = field(self.conditions).unwrap_or_default();
        StatusHead {
            observed_generation: field(self.observed_generation),
            phase: self.phase.map(|phase| field(Some(phase)).unwrap_or_else(|| phase.get().to_owned())),
            completed_at: field(self.completed_at),
            conditions: conditions.into_iter().filter_map(|condition| field(Some(condition))).collect(),
        }
    }
}

/// Nothing where it is not there, or is of another type.
fn field<'a, T: Deserialize<'a>>(text: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(text?.get()).ok()
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl Unreadable {
    /// From the JSON text of an object.
    pub fn of(text: &str, fault: String) -> Self {
        let identity = serde_json::from_str::<WithIdentity>(text).unwrap_or_default().metadata;
        let status = serde_json::from_str::<WithStatus>(text).unwrap_or_default().status.head();
        let spec = serde_json::from_str::<WithSpec>(text).unwrap_or_default().spec;
        let event = identity.annotations.and_then(|mut notes| notes.remove_entry(EVENT_ID));
        let metadata = ObjectMeta {
            name: identity.name,
            namespace: identity.namespace,
            uid: identity.uid,
            resource_version: identity.resource_version,
            generation: identity.generation,
            creation_timestamp: identity.creation_timestamp,
            deletion_timestamp: identity.deletion_timestamp,
            labels: identity.labels,
            annotations: event.map(|event| [event].into()),
            owner_references: identity.owner_references,
            ..ObjectMeta::default()
        };
        Self { metadata, status, ttl_seconds_after_finished: field(spec.ttl_seconds_after_finished), fault }
    }

    /// `NAMESPACE/NAME`.
    pub fn place(&self) -> (String, String) {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        (text(&self.metadata.namespace), text(&self.metadata.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_read_whatever_stands_around_it() {
        let deep = format!("{}1{}", "{\"f:a\":".repeat(5000), "}".repeat(5000));
        let text = format!(
            r#"{{"metadata": {{"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2,
                "managedFields": [{{"fieldsV1": {deep}}}], "labels": {{"l": "1"}}, "annotations": {{"x": "y"}},
                "ownerReferences": [{{"apiVersion": "v", "kind": "Workflow", "name": "w", "uid": "o", "controller": true}}]}},
                "spec": {deep}, "status": {{"phase": "Running", "more": {deep}}}}}"#
        );
        let read = Unreadable::of(&text, "why".to_owned());
        let meta = &read.metadata;
        assert_eq!(read.place(), ("n".to_owned(), "a".to_owned()));
        assert_eq!(
            (meta.uid.as_deref(), meta.resource_version.as_deref(), meta.generation),
            (Some("u"), Some("7"), Some(2))
        );
        assert_eq!(meta.owner_references.as_ref().map(|all| all[0].uid.as_str()), Some("o"));
        assert_eq!(read.status.phase.as_deref(), Some("Running"));
        // A status of another shape takes nothing of the identity away.
        let odd = Unreadable::of(r#"{"metadata": {"name": "a"}, "status": 7}"#, String::new());
        assert_eq!((odd.metadata.name.as_deref(), odd.status), (Some("a"), StatusHead::default()));
    }

    #[test]
    fn a_field_that_is_wrong_hides_no_other() {
        let fine = r#"{"type": "Stalled", "status": "True", "reason": "Late", "message": "",
            "lastTransitionTime": "1970-01-01T00:00:00Z"}"#;
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        // Generation, phase, end and conditions, as they are written and as they are read.
        for (written, generation, phase, is_over, conditions) in [
            (["4", r#""Running""#, "null", "[FINE]"], Some(4), Some("Running"), false, 1),
            ([r#""four""#, r#""Running""#, "null", "[FINE]"], None, Some("Running"), false, 1),
            (["4", "7", r#""1970-01-01T00:00:00Z""#, "[FINE]"], Some(4), Some("7"), true, 1),
            (["4", r#""Failed""#, r#""yesterday""#, "[FINE]"], Some(4), Some("Failed"), false, 1),
            (["4", r#""Failed""#, r#""1970-01-01T00:00:00Z""#, "{}"], Some(4), Some("Failed"), true, 0),
            (["4", "null", "null", r#"[{"type": 1}, DEEP, FINE]"#], Some(4), None, false, 1),
            (["DEEP", r#""Running""#, "DEEP", "DEEP"], None, Some("Running"), false, 0),
        ] {
            let fields = written.map(|field| field.replace("FINE", fine).replace("DEEP", &deep));
            let [observed, state, end, said] = fields;
            let text = format!(
                r#"{{"status": {{"observedGeneration": {observed}, "phase": {state}, "completedAt": {end}, "conditions": {said}}}}}"#
            );
            let head = Unreadable::of(&text, String::new()).status;
            assert_eq!((head.observed_generation, head.phase.as_deref()), (generation, phase), "{written:?}");
            assert_eq!((head.completed_at.is_some(), head.conditions.len()), (is_over, conditions), "{written:?}");
        }
    }
}
