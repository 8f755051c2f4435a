//! What is said of an object that cannot be read, on the object itself: nobody else can tell its author.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::Serialize;
use serde_json::Value;

use super::{Notice, status, trigger, workflow};
use crate::api::condition::{self, STALLED, Truth, clip};
use crate::api::limits::MESSAGE_BYTES;
use crate::api::name::LABEL_MADE_BY;
use crate::api::unreadable::Unreadable;
use crate::api::workflow::{Phase, WorkflowStatus};

/// Reason of the conditions, and of the Event.
const REASON: &str = "Unreadable";

/// What the status of a kind says it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusForm {
    /// A run that has not begun has failed: its spec never changes. One that has begun stands still until it can be read.
    Run,
    /// `Stalled`. The run of a StepRun fails, and names it.
    StepRun,
    /// `Ready` and `Stalled`.
    Ready,
    /// There is no condition: the Event alone says it.
    Event,
}

/// What is to be said.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// A merge patch of the status.
    pub status: Option<Value>,
    pub notice: Notice,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    observed_generation: i64,
    conditions: Vec<Condition>,
}

/// Nothing where all of it is said, or the object has ended.
pub fn told(form: StatusForm, of: &Unreadable, now: &Time) -> Option<Told> {
    let head = &of.status;
    if of.metadata.deletion_timestamp.is_some() || head.completed_at.is_some() {
        return None;
    }
    let remedy = match form {
        StatusForm::Run if head.phase.is_none() => "nothing was started; create it anew without that",
        StatusForm::Run | StatusForm::StepRun => "nothing of it goes on until it can be read",
        StatusForm::Ready | StatusForm::Event => "mend it",
    };
    let message = clip(&format!("it cannot be read: {}; {remedy}", of.fault), MESSAGE_BYTES);
    let generation = of.metadata.generation.unwrap_or_default();
    let at = (now, generation);
    let notice = Notice { warning: true, comes_first: false, reason: REASON, note: clip(&message, 900) };
    if form == StatusForm::Run && head.phase.is_none() {
        let mut status = WorkflowStatus::default();
        status::invalid(&mut status, REASON, &message, at);
        debug_assert_eq!(status.phase, Some(Phase::Failed));
        return Some(Told { status: serde_json::to_value(status).ok(), notice });
    }
    if form == StatusForm::Event {
        return Some(Told { status: None, notice });
    }
    let mut conditions = head.conditions.clone();
    if form == StatusForm::Ready {
        condition::set(&mut conditions, "Ready", Truth::False, REASON, &message, at);
    }
    condition::clear(&mut conditions, condition::RECONCILING);
    condition::set(&mut conditions, STALLED, Truth::True, REASON, &message, at);
    if conditions == head.conditions && head.observed_generation == Some(generation) {
        return None;
    }
    let status = Conditions { observed_generation: generation, conditions };
    Some(Told { status: serde_json::to_value(status).ok(), notice })
}

/// How long a run that cannot be read and is over stays, and with it what it made; nothing where it is not over, or stays for
/// good: nobody asked for its end, or a Git tool would make it again.
pub fn left(run: &Unreadable, now: &Time) -> Option<Duration> {
    let meta = &run.metadata;
    let is_made_once = meta.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_MADE_BY));
    if !is_made_once || meta.deletion_timestamp.is_some() {
        return None;
    }
    let left = workflow::kept_for(run.ttl_seconds_after_finished, run.status.completed_at.as_ref(), now)?;
    Some(left.max(trigger::remembered_by(meta, now).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn unreadable(status: &str) -> Unreadable {
        let text = format!(r#"{{"metadata": {{"name": "a", "generation": 3}}, "status": {status}}}"#);
        Unreadable::of(&text, "spec.x: invalid value".to_owned())
    }

    #[test]
    fn the_object_says_it_once() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let waits = r#"{"observedGeneration": 2, "phase": "Running", "conditions": [{"type": "Reconciling", "status": "True",
            "reason": "Running", "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"}]}"#;
        for (form, before, phase, conditions) in [
            (StatusForm::Run, "{}", Some("Failed"), "Succeeded=False Waiting=False Stalled=True"),
            (StatusForm::Run, waits, None, "Stalled=True"),
            (StatusForm::StepRun, "{}", None, "Stalled=True"),
            (StatusForm::StepRun, waits, None, "Stalled=True"),
            (StatusForm::Ready, "{}", None, "Ready=False Stalled=True"),
        ] {
            let told = told(form, &unreadable(before), &now).expect("it is told");
            assert!(told.notice.warning && told.notice.note.contains("spec.x: invalid value"), "{:?}", told.notice);
            let status = told.status.expect("a status");
            assert_eq!((status["phase"].as_str(), status["observedGeneration"].as_i64()), (phase, Some(3)), "{form:?}");
            let listed = status["conditions"].as_array().expect("conditions");
            let said: Vec<String> = listed
                .iter()
                .map(|c| {
                    format!("{}={}", c["type"].as_str().unwrap_or_default(), c["status"].as_str().unwrap_or_default())
                })
                .collect();
            assert_eq!(said.join(" "), conditions, "{form:?}");
            assert!(listed.iter().any(|c| c["reason"] == "Unreadable"), "{listed:?}");
            // As it is stored then, nothing more is said.
            let mut stored = serde_json::from_str(before).expect("a status");
            json_patch::merge(&mut stored, &status);
            assert_eq!(super::told(form, &unreadable(&stored.to_string()), &now), None, "{form:?}");
        }
        let event = told(StatusForm::Event, &unreadable("{}"), &now).expect("it is told");
        assert_eq!(event.status, None);
    }

    #[test]
    fn a_run_that_is_over_goes_when_its_time_has_passed() {
        let now = Time(Timestamp::from_second(100).expect("a time"));
        let over = r#"{"completedAt": "1970-01-01T00:00:10Z"}"#;
        let made = r#""labels": {"lockstep.dev/made-by": "trigger", "lockstep.dev/trigger": "t"}"#;
        let event = r#""labels": {"lockstep.dev/made-by": "trigger", "lockstep.dev/trigger": "t"},
            "annotations": {"lockstep.dev/event-id": "1"}"#;
        let unknown =
            format!(r#"{{"ttlSecondsAfterFinished": 60, "input": {}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
        for (meta, spec, status, expected) in [
            (made, r#"{"ttlSecondsAfterFinished": 60}"#, over, Some(0)),
            (made, unknown.as_str(), over, Some(0)),
            (made, r#"{"ttlSecondsAfterFinished": 120}"#, over, Some(30)),
            (event, r#"{"ttlSecondsAfterFinished": 60}"#, over, Some(24 * 3600 - 100)),
            (made, r#"{"ttlSecondsAfterFinished": 60}"#, "{}", None),
            (made, r#"{"ttlSecondsAfterFinished": "soon"}"#, over, None),
            (made, "{}", over, None),
            (r#""labels": {}"#, r#"{"ttlSecondsAfterFinished": 60}"#, over, None),
        ] {
            let text = format!(
                r#"{{"metadata": {{"name": "a", "creationTimestamp": "1970-01-01T00:00:00Z", {meta}}},
                    "spec": {spec}, "status": {status}}}"#
            );
            let found = left(&Unreadable::of(&text, String::new()), &now);
            assert_eq!(found, expected.map(Duration::from_secs), "{meta} {status}");
        }
    }

    #[test]
    fn nothing_is_said_of_what_has_ended_or_goes() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let ended = unreadable(r#"{"phase": "Completed", "completedAt": "1970-01-01T00:00:00Z"}"#);
        let mut goes = unreadable("{}");
        goes.metadata.deletion_timestamp = Some(now.clone());
        for one in [ended, goes] {
            assert_eq!(told(StatusForm::Run, &one, &now), None);
        }
    }
}
