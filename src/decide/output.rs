//! The output of a StepRun, and where it is stored. Expressions, gates, histories, later runs and reviewers all ask here.

use serde_json::Value;

use super::content::{self, Pin};
use super::gate;
use crate::api::step_run::{Report, StepRun, StepRunStatus};
use crate::definition::digits;

/// Where an output is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredOutput {
    /// There is none, or none yet.
    Nowhere,
    /// In the StepRun itself, as JSON text.
    Inline(String),
    /// In the Document that carries it.
    Document(Pin),
}

/// Of a StepRun, with a status that may not be stored yet: the answer of a person, what a manual approval came to, what the
/// verdict took of an agent's report, or what was taken over from another run.
pub fn stored(step_run: &StepRun, status: &StepRunStatus) -> StoredOutput {
    let answer = status.answer.as_ref().map(|answer| answer.value.clone());
    let approval = || gate::output_of(step_run, status).map(|given| given.to_string());
    let reported = || committed_report(status)?.output.clone();
    let taken_over = || step_run.spec.reuse.as_ref()?.output.clone();
    if let Some(text) = answer.or_else(approval).or_else(reported).or_else(taken_over) {
        return StoredOutput::Inline(text);
    }
    content::carrier(step_run, status).map_or(StoredOutput::Nowhere, StoredOutput::Document)
}

/// The same, as it is stored.
pub fn of(step_run: &StepRun) -> StoredOutput {
    match &step_run.status {
        Some(status) => stored(step_run, status),
        None => stored(step_run, &StepRunStatus::default()),
    }
}

/// The report that the verdict took: that of its attempt, with its digest.
pub fn committed_report(status: &StepRunStatus) -> Option<&Report> {
    let verdict = status.result.as_ref()?;
    let report = status.agent.as_ref()?.report.as_ref()?;
    (verdict.attempt == report.attempt && verdict.digest == report.digest).then_some(report)
}

/// The value of an output that is stored as text; null where it is no JSON.
pub fn read(text: &str) -> Value {
    digits::read(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::step_run::StepRunSpec;

    fn step_run(spec: &Value, status: Value) -> StepRun {
        let mut all = json!({"workflow": {"name": "w", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "a", "parameters": "{}", "inputDigest": ""});
        for (key, value) in spec.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        let spec: StepRunSpec = serde_json::from_value(all).expect("a spec");
        let mut step_run = StepRun::new("s", spec);
        step_run.status = serde_json::from_value(status).expect("a status");
        step_run
    }

    #[test]
    fn an_output_is_found_wherever_it_is_stored() {
        let at = "1970-01-01T00:00:00Z";
        let agent = json!({"agentId": "x"});
        let report = |digest: &str| json!({"report": {"attempt": 1, "class": "Succeeded", "digest": digest, "output": "1", "at": at}});
        let verdict = json!({"attempt": 1, "digest": "d"});
        let apart = json!({"attempt": 1, "digest": "d", "documentName": "plan", "outputDocument": "out"});
        let accepted = json!([{"documentType": "a", "scopeId": "u", "accepted": true, "decidedBy": "ann", "decidedAt": at,
            "digest": "o", "round": 1}]);
        let gate = json!({"state": "Accepted", "round": 1, "outputDigest": "o", "openedAt": at, "policy": "p",
            "decisions": accepted});
        let reuse = |output: Value| {
            json!({"agentId": "x", "reuse": {"stepRun": "o", "uid": "o", "digest": "d",
            "output": output, "documentName": "old"}})
        };
        let inline = |text: &str| StoredOutput::Inline(text.to_owned());
        let document = |name: &str| StoredOutput::Document(Pin::new(name, None));
        for (what, spec, status, expected) in [
            ("nothing yet", &agent, json!(null), StoredOutput::Nowhere),
            ("a report without a verdict", &agent, json!({"agent": report("d")}), StoredOutput::Nowhere),
            ("a verdict over it", &agent, json!({"agent": report("d"), "result": verdict}), inline("1")),
            ("one over another", &agent, json!({"agent": report("e"), "result": verdict}), StoredOutput::Nowhere),
            ("in a Document of its own", &agent, json!({"result": apart}), document("out")),
            (
                "an answer",
                &json!({"ask": {"name": "a", "question": "?"}}),
                json!({"answer": {"value": "7", "by": "ann", "at": at}, "result": verdict}),
                inline("7"),
            ),
            (
                "an approval",
                &json!({"gate": {"name": "a"}}),
                json!({"gate": gate}),
                inline(r#"{"accepted":true,"decidedBy":"ann","comment":null}"#),
            ),
            ("of another run", &reuse(json!("3")), json!(null), inline("3")),
            ("of another run, in a Document", &reuse(json!(null)), json!(null), document("old")),
        ] {
            assert_eq!(of(&step_run(spec, status)), expected, "{what}");
        }
    }
}
