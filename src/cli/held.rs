//! Why nothing starts: what the conditions of a step and of its run say, in one line.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::target::label;
use super::text::inline;
use crate::api::condition;
use crate::api::workflow::Phase;
use crate::api::{StepRun, StepRunStatus, Workflow};
use crate::decide::step_run::POLICIES;

/// Longest reason in one line of a page; the page of the step has it whole.
const LINE: usize = 400;
/// Reasons that go by themselves, or that somebody wished.
const PASSING: [&str; 3] = ["WaitingForSlot", "Suspended", "Stopping"];

/// Why a step that could run does not: no Agent, no slot, a pod that cannot be placed.
pub fn step(status: &StepRunStatus) -> Option<String> {
    let why = reason(status)?;
    told(&why.reason, &why.message, "")
}

/// The condition that says why: of its start, or of the admission policies without which no gate opens.
fn reason(status: &StepRunStatus) -> Option<&Condition> {
    let phase = status.phase.unwrap_or_default();
    let begins = matches!(phase, Phase::Pending | Phase::Running | Phase::Suspended);
    let is_false = |kind: &str| condition::get(&status.conditions, kind).filter(|c| c.status == "False");
    let start = is_false("Started").filter(|_| begins);
    start.or_else(|| is_false(POLICIES).filter(|_| !phase.is_terminal()))
}

/// Since when.
pub fn since(status: &StepRunStatus) -> Option<&Time> {
    reason(status).map(|c| &c.last_transition_time)
}

/// Whether somebody has to mend something before it starts.
pub fn is_stuck(step_run: &StepRun) -> bool {
    let Some(status) = &step_run.status else { return false };
    reason(status).is_some_and(|c| !PASSING.contains(&c.reason.as_str()))
}

/// Why a run as a whole does not go on: no template, no Agent, documents that are missing.
pub fn run(run: &Workflow) -> Option<String> {
    beside(run, &[])
}

/// Whether somebody has to mend or bring something before it goes on.
pub fn is_run_stuck(of: &Workflow) -> bool {
    let conditions = of.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let passing = condition::get(conditions, "Succeeded").is_some_and(|c| PASSING.contains(&c.reason.as_str()));
    !passing && run(of).is_some()
}

/// Why it does not go on, on a page that shows these StepRuns, too: what each of them says is left out.
pub fn beside(run: &Workflow, steps: &[StepRun]) -> Option<String> {
    let status = run.status.as_ref()?;
    let phase = status.phase.filter(|phase| matches!(phase, Phase::Pending | Phase::WaitingForDocuments))?;
    let succeeded = condition::get(&status.conditions, "Succeeded").filter(|c| c.reason != "Initiated")?;
    let mut message = succeeded.message.clone();
    for one in steps.iter().filter(|one| run.metadata.uid.as_deref() == Some(&one.spec.workflow.uid)) {
        if let Some(why) = one.status.as_ref().and_then(reason) {
            message = message.replacen(&format!("{}: {}", label(one), why.message), "", 1);
        }
    }
    let rest = message.trim_matches([';', ' ']);
    if rest.is_empty() && !succeeded.message.is_empty() {
        return None;
    }
    told(&succeeded.reason, rest, &phase.to_string())
}

/// The same of a run and of those of its steps that are held, the first of them in words.
pub fn all(of: &Workflow, steps: &[&StepRun]) -> Option<String> {
    if let Some(why) = run(of) {
        return Some(why);
    }
    let held: Vec<(String, String)> =
        steps.iter().filter_map(|one| Some((label(one), step(one.status.as_ref()?)?))).collect();
    let (place, why) = held.first()?;
    let more = if held.len() > 1 { format!(", and {} more", held.len() - 1) } else { String::new() };
    Some(inline(&format!("{place}: {why}{more}"), LINE))
}

/// A reason that is the known word says nothing.
fn told(reason: &str, message: &str, known: &str) -> Option<String> {
    let text = match (reason, message) {
        (reason, "") => reason.to_owned(),
        (reason, message) if reason == known => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    };
    Some(inline(&text, LINE)).filter(|text| !text.is_empty() && text != known)
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "objects are built in place")]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const AT: &str = "2026-11-21T10:00:00Z";

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": AT})
    }

    fn a_step(path: &str, phase: &str, started: Value) -> StepRun {
        let spec = json!({"workflow": {"name": "shop", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": path, "parameters": "{}", "inputDigest": "d"});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": path}, "spec": spec, "status": {"phase": phase, "conditions": [started]}}))
        .expect("a step")
    }

    #[test]
    fn policies_that_are_missing_hold_a_gate() {
        let missing = condition("GatePolicyInstalled", "False", "PolicyMissing", "lockstep-gate is not there");
        for (phase, expected) in [
            ("Running", Some("PolicyMissing: lockstep-gate is not there")),
            ("WaitingForAcceptance", Some("PolicyMissing: lockstep-gate is not there")),
            ("Completed", None),
        ] {
            let found = a_step("a", phase, missing.clone());
            assert_eq!(found.status.as_ref().and_then(step).as_deref(), expected, "{phase}");
        }
    }

    fn a_run(phase: &str, reason: &str, message: &str) -> Workflow {
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "metadata": {"name": "shop"},
            "spec": {}, "status": {"phase": phase, "conditions": [condition("Succeeded", "Unknown", reason, message)]}}))
        .expect("a run")
    }

    #[test]
    fn what_holds_a_step_is_told_while_it_does() {
        for (phase, status, reason, message, expected, stuck) in [
            ("Running", "False", "PodNotReady", "ErrImagePull: no", Some("PodNotReady: ErrImagePull: no"), true),
            ("Pending", "False", "AgentNotFound", "Agent a", Some("AgentNotFound: Agent a"), true),
            ("Pending", "False", "WaitingForSlot", "it is the next", Some("WaitingForSlot: it is the next"), false),
            ("Suspended", "False", "Suspended", "until then", Some("Suspended: until then"), false),
            ("Running", "False", "AgentInvalid", "", Some("AgentInvalid"), true),
            ("Running", "Unknown", "Launched", "", None, false),
            ("Running", "True", "Started", "", None, false),
            ("Failed", "False", "PodNotReady", "x", None, false),
            ("WaitingForInput", "False", "PodNotReady", "x", None, false),
        ] {
            let found = a_step("a", phase, condition("Started", status, reason, message));
            let told = found.status.as_ref().and_then(step);
            assert_eq!((told.as_deref(), is_stuck(&found)), (expected, stuck), "{phase} {status} {reason}");
        }
    }

    #[test]
    fn what_holds_a_run_is_told_once() {
        for (phase, reason, message, expected) in [
            ("Pending", "TemplateNotFound", "WorkflowTemplate x", Some("TemplateNotFound: WorkflowTemplate x")),
            ("Pending", "Pending", "a: Agent x does not exist", Some("a: Agent x does not exist")),
            ("Pending", "Pending", "", None),
            ("Pending", "Initiated", "the definition is pinned", None),
            ("WaitingForDocuments", "WaitingForDocuments", "missing: brief", Some("missing: brief")),
            ("Running", "Running", "", None),
            ("Failed", "Rejected", "no", None),
        ] {
            let found = a_run(phase, reason, message);
            assert_eq!(
                (run(&found).as_deref(), is_run_stuck(&found)),
                (expected, expected.is_some()),
                "{phase} {reason}"
            );
        }
        let queued = a_run("Pending", "WaitingForSlot", "a: it is the next");
        assert!(run(&queued).is_some() && !is_run_stuck(&queued), "it goes by itself");
        let held = |path: &str| a_step(path, "Running", condition("Started", "False", "PodNotReady", "no image"));
        let (a, b) = (held("a"), held("b"));
        let running = a_run("Running", "Running", "");
        assert_eq!(all(&running, &[&a]).as_deref(), Some("a: PodNotReady: no image"));
        assert_eq!(all(&running, &[&a, &b]).as_deref(), Some("a: PodNotReady: no image, and 1 more"));
        assert_eq!(all(&a_run("Pending", "X", "y"), &[&a]).as_deref(), Some("X: y"));
        // Where the step is shown, its run does not say the same once more.
        let mut run = a_run("Pending", "PodNotReady", "a: no image");
        run.metadata.uid = Some("u".to_owned());
        assert_eq!(beside(&run, std::slice::from_ref(&a)), None);
        let mut both = a_run("Pending", "PodNotReady", "a: no image; c: Agent x does not exist");
        both.metadata.uid = Some("u".to_owned());
        assert_eq!(beside(&both, &[a]).as_deref(), Some("PodNotReady: c: Agent x does not exist"));
    }
}
