//! What a run has come to, for somebody who waits for it: pure, from its objects alone.

use kube::ResourceExt;

use super::view::{self, Failure, Wait};
use crate::api::condition;
use crate::api::workflow::{Phase, RunOutput};
use crate::api::{StepRun, Workflow};
use crate::decide::history::label;

/// Where a run stands, as far as an answer depends on it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It may still come to anything.
    Open,
    Completed(Option<RunOutput>),
    /// Nothing goes on before these documents are there.
    PendingDocuments(Vec<String>),
    /// Nothing goes on before people have decided or answered.
    Waiting(Vec<Wait>),
    Failed(Failure),
    Cancelled(Failure),
}

pub fn of<'a>(run: &Workflow, steps: impl IntoIterator<Item = &'a StepRun>) -> Outcome {
    let Some(status) = &run.status else { return Outcome::Open };
    match status.phase.unwrap_or_default() {
        Phase::Completed => Outcome::Completed(status.output.clone()),
        Phase::Failed => Outcome::Failed(failure(run, steps)),
        Phase::Cancelled => Outcome::Cancelled(cancelled(run)),
        Phase::WaitingForDocuments => Outcome::PendingDocuments(status.pending_documents.clone()),
        Phase::WaitingForAcceptance | Phase::WaitingForInput => {
            let waits: Vec<Wait> = steps.into_iter().filter_map(view::wait).collect();
            // The run may tell of a wait before the cache shows its step.
            if waits.is_empty() { Outcome::Open } else { Outcome::Waiting(waits) }
        }
        Phase::Pending | Phase::Running | Phase::Suspended | Phase::Skipped => Outcome::Open,
    }
}

fn failure<'a>(run: &Workflow, steps: impl IntoIterator<Item = &'a StepRun>) -> Failure {
    let conditions = run.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let succeeded = condition::get(conditions, "Succeeded");
    let class = succeeded.map(|c| c.reason.clone()).unwrap_or_default();
    let said = succeeded.map(|c| c.message.clone()).unwrap_or_default();
    // `place: message`, as the operator writes it.
    let failed = steps.into_iter().filter(|step| step.status.as_ref().is_some_and(|s| s.phase == Some(Phase::Failed)));
    let step = failed.map(label).find(|place| said.starts_with(&format!("{place}: ")));
    let listed = || {
        let paths = run.status.iter().flat_map(|status| &status.steps).map(|step| step.path.clone());
        paths.into_iter().find(|path| said.starts_with(&format!("{path}: ")))
    };
    let step = step.or_else(listed);
    let error = step.as_ref().and_then(|place| said.strip_prefix(&format!("{place}: "))).unwrap_or(&said).to_owned();
    named(run, format!("Flow execution failed: {said}"), error, step, class)
}

fn cancelled(run: &Workflow) -> Failure {
    let detail = "the run was cancelled";
    named(run, detail.to_owned(), detail.to_owned(), None, "Cancelled".to_owned())
}

fn named(run: &Workflow, detail: String, error: String, step: Option<String>, class: String) -> Failure {
    Failure {
        detail,
        error,
        step,
        class,
        run: run.name_any(),
        namespace: run.namespace().unwrap_or_default(),
        session_id: view::session_of(run),
        created_at: run.metadata.creation_timestamp.clone(),
    }
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "objects are built in place")]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const AT: &str = "2026-11-21T10:00:00Z";

    fn run(status: Value) -> Workflow {
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
            "metadata": {"name": "shop-1", "namespace": "team", "uid": "u"}, "spec": {"session": "shop"}, "status": status}))
        .expect("a run")
    }

    fn step(path: &str, status: Value) -> StepRun {
        let spec = json!({"workflow": {"name": "shop-1", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": path, "agentId": "planner", "parameters": "{}", "inputDigest": "d",
            "gate": {"name": "plan", "approvals": 2, "notBy": "ann", "message": "Good?", "acceptors": {"users": ["bob"]}}});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": format!("shop-{path}")}, "spec": spec, "status": status}))
        .expect("a step")
    }

    fn ended(reason: &str, message: &str) -> Value {
        json!([{"type": "Succeeded", "status": "False", "reason": reason, "message": message, "lastTransitionTime": AT}])
    }

    #[test]
    fn only_what_nothing_but_others_can_change_is_an_answer() {
        for (phase, open) in [
            ("Pending", true),
            ("Running", true),
            ("Suspended", true),
            // Its steps are not seen yet.
            ("WaitingForAcceptance", true),
            ("WaitingForInput", true),
            ("WaitingForDocuments", false),
            ("Completed", false),
            ("Failed", false),
            ("Cancelled", false),
        ] {
            let found = of(&run(json!({"phase": phase})), []);
            assert_eq!(found == Outcome::Open, open, "{phase}: {found:?}");
        }
        assert_eq!(of(&run(Value::Null), []), Outcome::Open);
        let missing = run(json!({"phase": "WaitingForDocuments", "pendingDocuments": ["brief", "plan"]}));
        assert_eq!(of(&missing, []), Outcome::PendingDocuments(vec!["brief".into(), "plan".into()]));
    }

    #[test]
    fn a_failure_names_its_step_and_its_class() {
        let failed = json!({"phase": "Failed"});
        for (message, steps, step_of, error) in [
            ("plan: no result.json", vec![step("plan", failed.clone())], Some("plan"), "no result.json"),
            ("plan: gone", vec![], Some("plan"), "gone"),
            ("the template is gone", vec![step("plan", failed.clone())], None, "the template is gone"),
        ] {
            let status = json!({"phase": "Failed", "conditions": ended("InvalidOutput", message),
                "steps": [{"path": "plan", "phase": "Failed"}]});
            let Outcome::Failed(found) = of(&run(status), &steps) else { panic!("it failed") };
            assert_eq!(found.detail, format!("Flow execution failed: {message}"));
            assert_eq!((found.step.as_deref(), found.error.as_str()), (step_of, error));
            assert_eq!((found.class.as_str(), found.session_id.as_str()), ("InvalidOutput", "shop"));
        }
    }

    #[test]
    fn a_wait_says_who_may_end_it_and_how() {
        let waiting = run(json!({"phase": "WaitingForAcceptance"}));
        let open = json!({"phase": "WaitingForAcceptance", "gate": {"state": "Waiting", "round": 1, "outputDigest": "sha256:a",
            "openedAt": AT, "policy": "p", "decisions": []}});
        let Outcome::Waiting(waits) = of(&waiting, &[step("plan", open)]) else { panic!("it waits") };
        let found = serde_json::to_value(&waits[0]).expect("JSON");
        let expected = json!({"step": "plan", "stepRun": "shop-plan", "by": "decision", "question": "Good?",
            "review": "sha256:a", "permission": "approve on gates.lockstep.dev/plan", "users": ["bob"], "notBy": "ann",
            "approvals": {"needed": 2, "accepted": 0}, "since": AT});
        assert_eq!(found, expected);
        let asks = json!({"phase": "WaitingForInput", "waitingFor": {"id": "1", "kind": "RetriesSpent", "question": "?",
            "options": ["retry", "fail"], "since": AT}});
        let Outcome::Waiting(waits) = of(&waiting, &[step("plan", asks)]) else { panic!("it waits") };
        assert_eq!(
            (waits[0].by, waits[0].permission.as_str()),
            (view::WaitBy::Answer, "answer on inputs.lockstep.dev/planner")
        );
    }
}
