//! What a decision at a gate is about: output and document, read whole and held against the digests that the StepRun
//! pins. Documents lie beside it, where others may write; what does not fit is never shown as what was reported.

use std::sync::Arc;

use super::actions;
use super::connect::{Connection, parsed};
use super::fault::{Code, Fault};
use crate::api::document::OUTPUT_TYPE;
use crate::api::name;
use crate::api::step_run::{AttemptResult, GateState, GateStatus};
use crate::api::{Document, StepRun, StepRunStatus};
use crate::cluster::stored::Stored;
use crate::decide::content::{self, Content, Loaded, Pin};
use crate::decide::gate;
use crate::decide::output::{self, StoredOutput};

#[derive(Debug, Default)]
pub struct Subject {
    /// JSON text: the output, the answer to a question, or the parameters of an approval alone.
    pub output: Option<String>,
    pub document: Option<Document>,
    /// Why it cannot be taken for what was reported.
    pub trouble: Option<Trouble>,
}

impl Subject {
    /// What lies under the name of something that was reported, if it is that.
    fn take(&mut self, pin: &Pin, found: Option<Document>) {
        let Some(found) = found else {
            self.trouble = Some(Trouble::Gone(format!("the document {} is gone", pin.name)));
            return;
        };
        let loaded = Loaded::new(Arc::new(found));
        let carries_output = loaded.document().spec.document_type == OUTPUT_TYPE;
        match Content::of(pin, Some(&loaded)) {
            Ok(content) if carries_output => self.output = Some(content.text().to_owned()),
            Ok(content) => self.document = Some(content.document().as_ref().clone()),
            Err(changed) => {
                self.trouble = Some(Trouble::Exchanged(changed.to_string()));
                self.document = (!carries_output).then(|| loaded.document().as_ref().clone()).or(self.document.take());
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is there, and it is something else.
    Exchanged(String),
    Gone(String),
    /// Nobody knows: it could not be read.
    Unreadable(String),
}

impl Trouble {
    pub fn text(&self) -> &str {
        match self {
            Self::Exchanged(why) | Self::Gone(why) | Self::Unreadable(why) => why,
        }
    }

    /// Where it ends the command.
    pub fn fault(&self) -> Fault {
        let code = if matches!(self, Self::Unreadable(_)) { Code::Api } else { Code::Exchanged };
        Fault::new(code, format!("{}; nothing was sent", self.text()))
    }
}

/// Reads all of it, and checks it.
pub async fn load(on: &Connection, step: &StepRun) -> Result<Subject, Fault> {
    if actions::of_view(step).is_some() {
        return Ok(Subject { trouble: actions::trouble(step).map(Trouble::Exchanged), ..Subject::default() });
    }
    let mut subject = Subject { output: written(step), ..Subject::default() };
    for pin in carried(step) {
        let what = "read the document";
        let read = on.within(what, on.api::<Stored<Document>>().get_opt(&pin.name)).await?;
        let read = read.map_err(|wrong| Fault::call(what, &wrong));
        match read.and_then(|found| found.map(|one| parsed(what, one)).transpose()) {
            Ok(found) => subject.take(&pin, found),
            Err(fault) => subject.trouble = Some(Trouble::Unreadable(fault.text)),
        }
    }
    if subject.trouble.is_none() {
        let document = subject.document.as_ref().map(|d| d.spec.content.as_str());
        subject.trouble = unbound(step, subject.output.as_deref(), document).map(Trouble::Exchanged);
    }
    Ok(subject)
}

/// The document of the round before, where this one makes another: what a second look is compared with.
pub async fn before(on: &Connection, step: &StepRun, now: &Document) -> Option<Document> {
    let name = name_before(step, &now.spec.document_type)?;
    let read = on.within("read the document", on.api::<Document>().get_opt(&name)).await;
    let found = read.ok()?.ok()??;
    (found.spec.path == now.spec.path && found.spec.scope_id == now.spec.scope_id).then_some(found)
}

fn name_before(step: &StepRun, document_type: &str) -> Option<String> {
    let status = step.status.as_ref()?;
    let round = status.gate.as_ref()?.round - 1;
    let good = |a: &&crate::api::step_run::Attempt| a.round == round && a.result == AttemptResult::Succeeded;
    let last = status.attempts.iter().rev().find(good)?;
    let (own, uid) = (step.metadata.name.as_deref()?, step.metadata.uid.as_deref()?);
    Some(name::document(own, uid, last.number, document_type))
}

/// What stands in the StepRun itself. An approval alone is about what it was given.
fn written(step: &StepRun) -> Option<String> {
    if gate::is_approval_alone(step) {
        return Some(step.spec.parameters.clone());
    }
    match output::of(step) {
        StoredOutput::Inline(text) => Some(text),
        StoredOutput::Nowhere | StoredOutput::Document(_) => None,
    }
}

/// The Documents that carry the rest, as they were reported.
fn carried(step: &StepRun) -> Vec<Pin> {
    let Some(status) = &step.status else { return Vec::new() };
    let made = status.result.as_ref().and_then(content::document_of);
    let name = made.as_ref().map(|pin| pin.name.clone());
    let apart = content::carrier(step, status).filter(|pin| name.as_ref() != Some(&pin.name));
    made.into_iter().chain(apart).collect()
}

/// Why these are not the bytes that the StepRun pins. The one place that says what binds what: the verdict binds the
/// bytes, the gate binds the verdict.
fn unbound(step: &StepRun, output: Option<&str>, document: Option<&str>) -> Option<String> {
    let status = step.status.clone().unwrap_or_default();
    let pinned = gate::reviewed(step, &status)?;
    // A document may be the output itself.
    let whole = output.or(document).unwrap_or_default();
    let reported = name::digest([whole.as_bytes(), document.unwrap_or_default().as_bytes()]);
    // A person gave it, or it was taken over from where one did.
    let given = name::digest_bytes(output.unwrap_or_default().as_bytes());
    if pinned != reported && (pinned != given || document.is_some()) {
        return Some(format!(
            "what is under review was exchanged: the step reported {pinned}, the cluster holds {reported}{}",
            named(&status)
        ));
    }
    let about = |open: &GateStatus| open.output_digest == gate::review_digest(step, open.round, &pinned);
    match &status.gate {
        Some(open) if open.state == GateState::Waiting && !about(open) => {
            Some("the gate is about another output than the one that is there".to_owned())
        }
        _ => None,
    }
}

fn named(status: &StepRunStatus) -> String {
    let name = status.result.as_ref().and_then(|r| r.document_name.as_deref());
    name.map_or_else(String::new, |name| format!(" in the document {name}"))
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "objects are built in place")]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn step(spec: Value, status: Value) -> StepRun {
        let mut all = json!({"workflow": {"name": "shop", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "plan", "parameters": "{\"a\":1}", "inputDigest": "d"});
        for (key, value) in spec.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "shop-plan-0011223344556677", "uid": "s"}, "spec": all, "status": status}))
        .expect("a step")
    }

    fn digest(output: &str, document: &str) -> String {
        name::digest([output.as_bytes(), document.as_bytes()])
    }

    #[test]
    fn only_the_bytes_that_were_reported_are_taken_for_them() {
        let reported = |digest: String| json!({"result": {"attempt": 1, "digest": digest, "documentName": "doc"}});
        let agent = json!({"agentId": "planner"});
        let ask = json!({"ask": {"name": "plan", "question": "How many?"}});
        let reuse = json!({"agentId": "planner", "reuse": {"stepRun": "old", "uid": "o", "digest": "x"}});
        let both = || reported(digest("{}", "# Plan"));
        let answered = || json!({"result": {"attempt": 1, "digest": name::digest_bytes(b"5")}});
        for (case, spec, status, output, document, bound) in [
            ("as reported", &agent, both(), Some("{}"), Some("# Plan"), true),
            ("another document", &agent, both(), Some("{}"), Some("# Plan "), false),
            ("another output", &agent, both(), Some("{ }"), Some("# Plan"), false),
            ("no document", &agent, both(), Some("{}"), None, false),
            ("no output", &agent, both(), None, Some("# Plan"), false),
            ("moved over", &agent, both(), Some("{}# Plan"), None, false),
            ("output alone", &agent, reported(digest("{}", "")), Some("{}"), None, true),
            ("the output is the document", &agent, reported(digest("[1]", "[1]")), None, Some("[1]"), true),
            ("an answer", &ask, answered(), Some("5"), None, true),
            ("another answer", &ask, answered(), Some("6"), None, false),
            ("an answer and a document", &ask, answered(), Some("5"), Some("# Plan"), false),
            ("taken over from an agent", &reuse, both(), Some("{}"), Some("# Plan"), true),
            ("taken over, exchanged", &reuse, both(), Some("{}"), Some("# Other"), false),
            ("taken over from an answer", &reuse, answered(), Some("5"), None, true),
            ("nothing is committed yet", &agent, json!({}), None, None, true),
        ] {
            let why = unbound(&step(spec.clone(), status), output, document);
            assert_eq!(why.is_none(), bound, "{case}: {why:?}");
            assert!(why.is_none_or(|why| why.contains("was exchanged")), "{case}");
        }
    }

    /// Without a gate nothing else compares them: `show` prints an output over 16 KiB from its carrier.
    #[test]
    fn what_carries_an_output_or_a_document_is_compared_with_what_was_reported() {
        let found = |kind: &str, uid: &str, content: &str| -> Option<Document> {
            let spec = json!({"type": kind, "scope": "Workflow", "content": content});
            let mut found = Document::new("out", serde_json::from_value(spec).expect("a spec"));
            found.metadata.uid = Some(uid.into());
            Some(found)
        };
        let binding = json!({"uid": "o1", "digest": name::digest_bytes(b"[1]")});
        let carrier =
            json!({"result": {"attempt": 1, "digest": "d", "outputDocument": "out", "outputBinding": binding}});
        let document =
            json!({"result": {"attempt": 1, "digest": "d", "documentName": "out", "documentBinding": binding}});
        for (status, kind) in [(carrier, OUTPUT_TYPE), (document, "plan")] {
            let step = step(json!({"agentId": "planner"}), status);
            let [pin] = carried(&step).try_into().expect("one Document");
            let read = |found: Option<Document>| {
                let mut subject = Subject::default();
                subject.take(&pin, found);
                (subject.output, subject.document.is_some(), subject.trouble)
            };
            let whole = (kind == OUTPUT_TYPE).then(|| "[1]".to_owned());
            assert_eq!(read(found(kind, "o1", "[1]")), (whole, kind != OUTPUT_TYPE, None));
            for other in [found(kind, "o2", "[1]"), found(kind, "o1", "[2]")] {
                let (output, _, trouble) = read(other);
                assert!(output.is_none() && matches!(trouble, Some(Trouble::Exchanged(_))), "{kind}: {trouble:?}");
            }
            assert!(matches!(read(None), (None, false, Some(Trouble::Gone(_)))), "{kind}");
        }
    }

    #[test]
    fn the_gate_is_about_what_was_committed() {
        let open = |digest: &str, state: &str| json!({"state": state, "round": 1, "outputDigest": digest, "openedAt": "2026-01-01T00:00:00Z", "policy": "p"});
        let status = |gate: Value| json!({"result": {"attempt": 1, "digest": digest("{}", "")}, "gate": gate});
        let spec = json!({"agentId": "planner", "gate": {"name": "plan"}});
        let right = gate::review_digest(&step(spec.clone(), json!({})), 1, &digest("{}", ""));
        for (gate, bound) in [
            (open(&right, "Waiting"), true),
            (open("sha256:other", "Waiting"), false),
            (open("sha256:other", "Accepted"), true),
        ] {
            assert_eq!(unbound(&step(spec.clone(), status(gate)), Some("{}"), None).is_none(), bound);
        }
        // An approval alone is about its parameters.
        let alone = json!({"gate": {"name": "plan"}});
        let right = gate::review_digest(&step(alone.clone(), json!({})), 1, &name::digest_bytes(b"{\"a\":1}"));
        for (digest, bound) in [(right.as_str(), true), ("sha256:other", false)] {
            let step = step(alone.clone(), json!({"gate": open(digest, "Waiting")}));
            assert_eq!(unbound(&step, written(&step).as_deref(), None).is_none(), bound);
        }
    }

    #[test]
    fn the_round_before_is_that_of_its_last_good_attempt() {
        let at = "2026-01-01T00:00:00Z";
        let attempt = |number: i32, round: i32, result: &str| json!({"number": number, "round": round, "result": result, "completedAt": at});
        let gate = |round: i32| json!({"state": "Waiting", "round": round, "outputDigest": "d", "openedAt": at, "policy": "p"});
        let attempts = json!([
            attempt(1, 1, "Succeeded"),
            attempt(2, 2, "Succeeded"),
            attempt(3, 2, "Retryable"),
            attempt(4, 3, "Succeeded")
        ]);
        let before = |round: i32| {
            let step = step(json!({}), json!({"gate": gate(round), "attempts": attempts}));
            name_before(&step, "plan")
        };
        let named = |attempt: i32| Some(name::document("shop-plan-0011223344556677", "s", attempt, "plan"));
        assert_eq!((before(1), before(2), before(3), before(5)), (None, named(1), named(2), None));
    }
}
