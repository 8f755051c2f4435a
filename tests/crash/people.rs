//! People who accept every gate and answer every question as soon as they see it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use kube::ResourceExt;
use lockstep::api::StepRun;
use lockstep::api::name::{ACTION, COMMENT, DECIDED_BY, DECISION, REVIEW};
use lockstep::api::step_run::GateState;
use serde_json::{Value, json};

use super::plane::{PERSON, Plane, ask, code};

pub struct People {
    plane: Plane,
    /// What was decided and answered: StepRun UID and what it was about.
    done: Mutex<HashSet<(String, String)>>,
    failures: Mutex<Vec<String>>,
}

impl People {
    pub fn new(plane: &Plane) -> Arc<Self> {
        Arc::new(Self { plane: plane.clone(), done: Mutex::default(), failures: Mutex::default() })
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A StepRun appeared or changed.
    pub fn saw(self: &Arc<Self>, step_run: StepRun) {
        let Some((about, annotations)) = wanted(&step_run) else { return };
        let key = (step_run.uid().unwrap_or_default(), about);
        if !self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
            return;
        }
        let people = Arc::clone(self);
        tokio::spawn(async move {
            let (namespace, name) = (step_run.namespace().unwrap_or_default(), step_run.name_any());
            let path = format!("/apis/lockstep.dev/v1alpha1/namespaces/{namespace}/stepruns/{name}");
            let body = json!({"metadata": {"annotations": annotations}});
            let mut answer = ask(&people.plane.person, Method::PATCH, &path, Some(&body)).await;
            // The API server gives up a patch that others keep outrunning.
            while answer.as_ref().err().and_then(code) == Some(409) {
                answer = ask(&people.plane.person, Method::PATCH, &path, Some(&body)).await;
            }
            if let Err(error) = answer {
                let mut failures = people.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.push(format!("StepRun {namespace}/{name}: {error}"));
            }
        });
    }
}

/// What a person would write now, and about what.
fn wanted(step_run: &StepRun) -> Option<(String, Value)> {
    let status = step_run.status.as_ref()?;
    if step_run.annotations().contains_key(DECISION) || step_run.annotations().contains_key(ACTION) {
        return None;
    }
    if let Some(gate) = status.gate.as_ref().filter(|gate| gate.state == GateState::Waiting) {
        let text = json!({DECISION: "accepted", REVIEW: gate.output_digest, COMMENT: "fine", DECIDED_BY: PERSON});
        return Some((format!("round {}", gate.round), text));
    }
    let question = status.waiting_for.as_ref()?;
    Some((question.id.clone(), json!({ACTION: "retry", COMMENT: "once more", DECIDED_BY: PERSON})))
}
