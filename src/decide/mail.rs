//! When what lies in the mailbox of a StepRun was written. The API server dates every write in `metadata.managedFields` before it is
//! admitted: no client can say it, and no cache keeps it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, Time};

use crate::api::name::{ACTION, ANSWER, DECISION};
use crate::api::step_run::{GateState, StepRun};

/// What the API server says of the mailbox that is decided on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mail {
    /// Nobody needed to know.
    #[default]
    NotAsked,
    /// The mailbox is as it was seen, and this is when it was written to; nothing where nothing lies there, or nobody can say.
    Read(Option<Time>),
}

/// By when people decide or answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub at: Time,
    /// It stands in the stored status, so that the policies have let nothing into the mailbox that came later. A wait that an
    /// older version began has none there.
    pub is_enforced: bool,
}

/// Whether a decision or an answer came in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// And when it was made.
    InTime(Time),
    Late,
}

/// When a decision or an answer was written: the time of the entry that owns its annotation.
pub fn written(meta: &ObjectMeta) -> Option<Time> {
    let owning = meta.managed_fields.iter().flatten().filter(|entry| owns_mail(entry));
    owning.filter_map(|entry| entry.time.clone()).max()
}

/// What the policy `lockstep-gate` holds against a write to a mailbox, for a server that evaluates no policies: the wait is over.
pub fn comes_late(before: &StepRun, after: &ObjectMeta) -> bool {
    let has = |meta: &ObjectMeta, key: &str| meta.annotations.as_ref().is_some_and(|all| all.contains_key(key));
    let adds = |key: &str| has(after, key) && !has(&before.metadata, key);
    let Some(status) = &before.status else { return false };
    let open = status.gate.as_ref().filter(|gate| gate.state == GateState::Waiting);
    let deadline = if adds(ACTION) || adds(ANSWER) {
        status.waiting_for.as_ref().and_then(|wait| wait.deadline.as_ref())
    } else {
        open.filter(|_| adds(DECISION)).and_then(|gate| gate.deadline.as_ref())
    };
    deadline.is_some_and(|deadline| written(after).is_none_or(|at| at.0 > deadline.0))
}

fn owns_mail(entry: &ManagedFieldsEntry) -> bool {
    let annotations = entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:metadata")?.get("f:annotations"));
    let owns = |key: &&str| annotations.is_some_and(|owned| owned.get(format!("f:{key}")).is_some());
    [DECISION, ACTION, ANSWER].iter().any(owns)
}

/// What becomes of what lies in the mailbox of a wait that began at `since`. Its time is the API server's, and is kept between
/// the others of the wait, which are the operator's. What has no time is late once the deadline has passed.
pub fn arrival(written: Option<&Time>, since: &Time, deadline: Option<&Deadline>, now: &Time) -> Arrival {
    let mut at = written.map_or(now.0, |written| written.0.min(now.0));
    if let Some(deadline) = deadline {
        match written {
            None if now.0 >= deadline.at.0 => return Arrival::Late,
            Some(written) if written.0 > deadline.at.0 && !deadline.is_enforced => return Arrival::Late,
            // It was admitted in time: a later write of the same client has moved its time.
            Some(_) => at = at.min(deadline.at.0),
            None => {}
        }
    }
    Arrival::InTime(Time(at.max(since.0)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).expect("a time"))
    }

    #[test]
    fn in_time_late_or_not_known() {
        let (in_time, late) = (|second| Arrival::InTime(at(second)), Arrival::Late);
        for (what, written, since, deadline, now, expected) in [
            ("no deadline", Some(5), 1, None, 900, in_time(5)),
            ("no deadline, not known", None, 1, None, 900, in_time(900)),
            ("in time, seen at once", Some(5), 1, Some((10, true)), 6, in_time(5)),
            ("in time, seen late", Some(5), 1, Some((10, true)), 900, in_time(5)),
            ("in the last second", Some(10), 1, Some((10, true)), 900, in_time(10)),
            ("late, and no policy knew the deadline", Some(11), 1, Some((10, false)), 900, late.clone()),
            ("in time, and no policy knew the deadline", Some(5), 1, Some((10, false)), 900, in_time(5)),
            ("admitted in time, and moved since", Some(700), 1, Some((10, true)), 900, in_time(10)),
            ("not known, seen in time", None, 1, Some((10, true)), 9, in_time(9)),
            ("not known, seen at the deadline", None, 1, Some((10, true)), 10, late.clone()),
            ("not known, seen late", None, 1, Some((10, true)), 900, late.clone()),
            ("the API server's clock is behind", Some(5), 7, Some((10, true)), 900, in_time(7)),
            ("the API server's clock is ahead", Some(9), 1, Some((10, true)), 6, in_time(6)),
        ] {
            let deadline = deadline.map(|(second, is_enforced)| Deadline { at: at(second), is_enforced });
            let written = written.map(at);
            let found = arrival(written.as_ref(), &at(since), deadline.as_ref(), &at(now));
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn what_comes_late_is_known_where_no_policy_is_evaluated() {
        let wait =
            json!({"id": "1-0", "kind": "Question", "question": "?", "options": [], "since": "1970-01-01T00:00:00Z"});
        let gate = json!({"state": "Waiting", "round": 1, "outputDigest": "d", "openedAt": "1970-01-01T00:00:00Z", "policy": "p"});
        let with = |mut value: Value, deadline: Option<&str>| {
            value["deadline"] = json!(deadline);
            value
        };
        let due = Some("1970-01-01T00:00:10Z");
        for (what, status, key, time, late) in [
            ("in time", json!({"gate": with(gate.clone(), due)}), DECISION, Some("1970-01-01T00:00:10Z"), false),
            ("late", json!({"gate": with(gate.clone(), due)}), DECISION, Some("1970-01-01T00:00:11Z"), true),
            ("not dated", json!({"gate": with(gate.clone(), due)}), DECISION, None, true),
            ("no deadline", json!({"gate": with(gate, None)}), DECISION, None, false),
            ("an answer", json!({"waitingFor": with(wait.clone(), due)}), ANSWER, Some("1970-01-01T00:00:11Z"), true),
            ("an order", json!({"waitingFor": with(wait, due)}), ACTION, Some("1970-01-01T00:00:11Z"), true),
            ("nothing of it", json!({}), DECISION, None, false),
        ] {
            let mut before = StepRun::new("s", crate::api::StepRunSpec::default());
            before.status = serde_json::from_value(status).expect("a status");
            let owned = json!({format!("f:{key}"): {}});
            let after: ObjectMeta = serde_json::from_value(json!({"annotations": {key: "x"}, "managedFields": [
                {"time": time, "fieldsV1": {"f:metadata": {"f:annotations": owned}}}]}))
            .expect("metadata");
            assert_eq!(comes_late(&before, &after), late, "{what}");
            // What lay there before is not written again.
            before.metadata = after.clone();
            assert!(!comes_late(&before, &after), "{what}");
        }
    }

    #[test]
    fn the_entry_that_owns_the_annotation_says_when() {
        let owns = |key: &str, time: Value| {
            json!({"manager": "m", "operation": "Update", "apiVersion": "lockstep.dev/v1alpha1", "fieldsType": "FieldsV1",
                "time": time, "fieldsV1": {"f:metadata": {"f:annotations": {".": {}, key: {}}}}})
        };
        let status = json!({"manager": "lockstep", "operation": "Update", "subresource": "status",
            "time": "1970-01-01T00:00:50Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:phase": {}}}});
        let other = owns("f:example.com/note", json!("1970-01-01T00:00:40Z"));
        for (what, entries, expected) in [
            ("none is kept", json!(null), None),
            ("all were taken away", json!([]), None),
            ("others' alone", json!([status, other]), None),
            (
                "a decision",
                json!([status, owns("f:lockstep.dev/decision", json!("1970-01-01T00:00:05Z")), other]),
                Some(5),
            ),
            ("an action", json!([owns("f:lockstep.dev/action", json!("1970-01-01T00:00:06Z"))]), Some(6)),
            ("an answer", json!([owns("f:lockstep.dev/answer", json!("1970-01-01T00:00:07Z"))]), Some(7)),
            ("without a time", json!([owns("f:lockstep.dev/decision", json!(null))]), None),
            ("a comment alone", json!([owns("f:lockstep.dev/comment", json!("1970-01-01T00:00:05Z"))]), None),
        ] {
            let meta: ObjectMeta = serde_json::from_value(json!({"managedFields": entries})).expect("metadata");
            assert_eq!(written(&meta), expected.map(at), "{what}");
        }
    }
}
