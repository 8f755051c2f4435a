//! What is said of an object that cannot be read, on the object itself: nobody else can tell its author.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::Serialize;
use serde_json::Value;

use super::{Notice, status};
use crate::api::condition::{self, STALLED, Truth, clip};
use crate::api::limits::MESSAGE_BYTES;
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
