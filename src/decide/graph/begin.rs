//! The beginning of one execution: its documents, its resolved parameters, its StepRun; or what a finished run did already.

use serde_json::{Map, Value};

use super::{AttemptResult, Failure, Fault, Frame, Outcome, Step, StepRun, StepRunSpec, Walk, document, name};
use crate::api::document::{Document, Scope};
use crate::api::limits::{PARAMETERS_BYTES, PENDING};
use crate::api::step::OnReject;
use crate::api::step_run::{
    DocumentRef, GateStatus, Item, Reuse, ScopeLink, StepRunAsk, StepRunGate, WorkflowIdentity,
};
use crate::api::workflow::Phase;
use crate::decide::expression;
use crate::decide::{build, gate, scope};
use crate::mutant::{self, Mutant};

type Refused = (AttemptResult, Fault);

impl Walk<'_> {
    pub(super) fn begin(&mut self, step: &Step, path: &str, frame: &Frame) -> Outcome {
        let Some(documents) = self.documents(step, path, frame) else {
            self.active(path, frame);
            return Outcome::Open;
        };
        let made = self.spec(step, path, frame, documents).and_then(|spec| self.taken_over(spec, step, path, frame));
        match made {
            Err((_, Fault::Unread)) => {
                self.active(path, frame);
                Outcome::Open
            }
            Err((class, Fault::Wrong(message))) => {
                self.tally(path).counts.failed += 1;
                Outcome::Failed(Failure { place: frame.place(path), class, message })
            }
            Ok(spec) => {
                let definition = self.sources.definition;
                let own = build::step_run_name(&definition.workflow, &definition.workflow_uid, path, &frame.keys);
                self.unfinished.push(own);
                self.stand.creates.push((spec, frame.keys.clone()));
                self.stand.running += 1;
                let tally = self.tally(path);
                tally.running += 1;
                tally.counts.started += 1;
                self.active(path, frame);
                Outcome::Open
            }
        }
    }

    /// The documents that a step reads, pinned; none while one of them, or the Agent, is missing.
    fn documents(&mut self, step: &Step, path: &str, frame: &Frame) -> Option<Vec<DocumentRef>> {
        let mut wanted = step.documents.clone();
        if let Some(agent) = &step.agent_id {
            let Some(found) = self.o.agents.get(agent) else {
                self.pends(format!("{path}: Agent {agent} does not exist"));
                return None;
            };
            wanted.splice(0..0, found.spec.required_documents.iter().cloned());
        }
        let from = self.sources.viewpoint(frame);
        let mut found: Vec<DocumentRef> = Vec::new();
        let mut complete = true;
        for kind in &wanted {
            if let Some(plain) = kind.strip_suffix("/*") {
                let all = document::fan_in(&self.o.documents, plain, &from).into_iter();
                found.extend(all.map(|(key, d)| document::pinned(d, Some(key))));
            } else if let Some(d) = document::find(&self.o.documents, kind, &from) {
                if !found.iter().any(|old| old.key.is_none() && old.document_type == *kind) {
                    found.push(document::pinned(d, None));
                }
            } else {
                complete = false;
                self.missing(kind);
            }
        }
        if !complete {
            self.tally(path).documents += 1;
        }
        complete.then_some(found)
    }

    fn missing(&mut self, kind: &str) {
        let missing = &mut self.stand.missing_documents;
        if !missing.iter().any(|m| m == kind) && missing.len() < PENDING {
            missing.push(kind.to_owned());
        }
    }

    fn spec(
        &self,
        step: &Step,
        path: &str,
        frame: &Frame,
        documents: Vec<DocumentRef>,
    ) -> Result<StepRunSpec, Refused> {
        let used = scope::of_step(step);
        let at_fault = |fault| (AttemptResult::ExpressionError, fault);
        let scope = self.sources.scope(frame, &used.iter().collect::<Vec<_>>(), &[]).map_err(at_fault)?;
        let wrong = |text| at_fault(Fault::Wrong(text));
        let parameters = expression::expand(&step.parameters.clone().unwrap_or_default(), &scope).map_err(wrong)?;
        let parameters = Value::Object(parameters).to_string();
        if parameters.len() > PARAMETERS_BYTES {
            let message = format!(
                "the parameters are {} bytes long, at most {PARAMETERS_BYTES} are allowed; pass a document instead",
                parameters.len()
            );
            return Err((AttemptResult::InvalidParameters, Fault::Wrong(message)));
        }
        let ask = match &step.ask {
            None => None,
            Some(ask) => Some(StepRunAsk {
                name: step.name.clone(),
                question: question(&ask.question, &scope).map_err(wrong)?,
                deadline_seconds: ask.deadline_seconds,
            }),
        };
        let definition = self.sources.definition;
        let status = self.o.workflow.status.as_ref();
        let agent_id = step.agent_id.clone().unwrap_or_default();
        let question = ask.as_ref().map(|a| a.question.clone()).unwrap_or_default();
        let digests: Vec<&[u8]> =
            [agent_id.as_bytes(), parameters.as_bytes(), definition.input.as_bytes(), question.as_bytes()]
                .into_iter()
                .chain(documents.iter().map(|d| d.digest.as_bytes()))
                .collect();
        Ok(StepRunSpec {
            workflow: WorkflowIdentity {
                name: definition.workflow.clone(),
                uid: definition.workflow_uid.clone(),
                creator: status.and_then(|s| s.creator.clone()),
            },
            definition: status.and_then(|s| s.definition.clone()).unwrap_or_default(),
            path: path.to_owned(),
            input_digest: name::digest(digests),
            agent_id,
            ask,
            reuse: None,
            item: frame.items.last().zip(frame.keys.last()).map(|(entity, key)| Item {
                key: key.clone(),
                index: entity.index,
                value: entity.value.as_ref().clone(),
            }),
            scope_chain: self.scope_chain(frame),
            parameters,
            documents,
            gate: self.gate(step),
        })
    }

    fn gate(&self, step: &Step) -> Option<StepRunGate> {
        let gate = step.gate.as_ref()?;
        let own_name = || step.produces.as_ref().map_or(&step.name, |p| &p.document_type).clone();
        let creator = self.o.workflow.status.as_ref().and_then(|s| s.creator.clone());
        Some(StepRunGate {
            name: gate.name.clone().unwrap_or_else(own_name),
            acceptors: gate.acceptors.clone(),
            approvals: gate.approvals.unwrap_or(1),
            not_by: gate.four_eyes.then(|| creator.unwrap_or_default()),
            require_review: gate.require_review,
            revise: gate.on_reject == Some(OnReject::Revise),
            message: gate.message.clone(),
        })
    }

    fn scope_chain(&self, frame: &Frame) -> Vec<ScopeLink> {
        let uid = &self.sources.definition.workflow_uid;
        let own = ScopeLink { scope: "workflow".to_owned(), scope_id: uid.clone() };
        let items = frame.items.iter().enumerate().map(|(depth, entity)| ScopeLink {
            scope: entity.as_name.clone(),
            scope_id: name::scope_id(uid, &frame.keys[..=depth]),
        });
        std::iter::once(own).chain(items).collect()
    }

    // ---- what a finished run did already

    /// The same, if the run that this one goes on from completed it with the same input and nothing before it is new.
    fn taken_over(
        &mut self,
        spec: StepRunSpec,
        step: &Step,
        path: &str,
        frame: &Frame,
    ) -> Result<StepRunSpec, Refused> {
        let (Some(of), Some(previous)) = (&self.o.workflow.spec.retry_of, &self.o.previous) else { return Ok(spec) };
        let from = of.from.as_deref().is_some_and(|from| from == path || path.starts_with(&format!("{from}/")));
        let fresh = frame.fresh && !mutant::on(Mutant::ReuseUnchecked);
        let found = previous.get(&name::step_run(&of.name, &of.uid, path, &frame.keys));
        let Some(old) = found.filter(|old| !from && !fresh && was_completed(old, &spec)).cloned() else {
            return Ok(spec);
        };
        let document_name = match document_of(&old) {
            None => None,
            Some(wanted) => match self.copied(&wanted, step, path, frame) {
                Ok(Some(name)) => Some(name),
                // Its document is gone: the step runs again.
                Ok(None) => return Ok(spec),
                Err(fault) => return Err((AttemptResult::ExpressionError, fault)),
            },
        };
        Ok(StepRunSpec { reuse: Some(reuse(&old, document_name)), ..spec })
    }

    /// This run's copy of a document of another, by name; wider than the run, it is the same one.
    fn copied(&mut self, wanted: &str, step: &Step, path: &str, frame: &Frame) -> Result<Option<String>, Fault> {
        let kind = step.produces.as_ref().map_or(document::OUTPUT_TYPE, |p| p.document_type.as_str());
        let Some(old) = document::named(&self.o.documents, kind, &[wanted.to_owned()]).cloned() else {
            return Ok(None);
        };
        if old.spec.scope > Scope::Workflow {
            return Ok(Some(wanted.to_owned()));
        }
        let Some(content) = self.o.contents.get(wanted) else {
            self.sources.unread.borrow_mut().insert(wanted.to_owned());
            return Err(Fault::Unread);
        };
        let uid = &self.sources.definition.workflow_uid;
        let mut copy: Document = build::copied_document(&self.o.workflow, &old, &frame.place(path));
        content.as_ref().clone_into(&mut copy.spec.content);
        let keys: &[String] = if old.spec.scope == Scope::Item { &frame.keys } else { &[] };
        copy.spec.scope_id = Some(name::scope_id(uid, keys));
        let status = document::published(&copy, &document::siblings(&self.o.documents, &copy));
        let name = copy.metadata.name.clone();
        self.stand.copies.push((copy, status));
        Ok(name)
    }
}

fn question(text: &str, scope: &expression::Scope) -> Result<String, String> {
    let given: Map<String, Value> = [("question".to_owned(), Value::String(text.to_owned()))].into_iter().collect();
    Ok(match expression::expand(&given, scope)?.remove("question").unwrap_or_default() {
        Value::String(text) => text,
        other => other.to_string(),
    })
}

fn was_completed(old: &StepRun, spec: &StepRunSpec) -> bool {
    let status = old.status.as_ref();
    // A StepRun takes one document over: with a document and a large output the step runs again.
    if status.is_some_and(|s| s.result.as_ref().is_some_and(|r| r.document_name.is_some()))
        && output_apart(old).is_some()
    {
        return false;
    }
    // Skipped by a person it has no result, and is tried again.
    old.spec.input_digest == spec.input_digest
        && status.is_some_and(|s| s.phase == Some(Phase::Completed) && s.result.is_some())
}

/// The document that is to be taken over: the step's, or the one that carries its output.
fn document_of(old: &StepRun) -> Option<String> {
    let reused = || old.spec.reuse.as_ref().and_then(|r| r.document_name.clone());
    let made = old.status.as_ref().and_then(|s| s.result.as_ref()?.document_name.clone());
    made.or_else(|| output_apart(old)).or_else(reused)
}

fn output_apart(old: &StepRun) -> Option<String> {
    old.status.as_ref()?.agent.as_ref()?.report.as_ref()?.output_document.clone()
}

fn reuse(old: &StepRun, document_name: Option<String>) -> Reuse {
    let status = old.status.clone().unwrap_or_default();
    let report = status.agent.as_ref().and_then(|a| a.report.as_ref()).and_then(|r| r.output.clone());
    let answer = status.answer.as_ref().map(|a| a.value.clone());
    let approval = gate::output(old).map(|value| value.to_string());
    let earlier = old.spec.reuse.as_ref().and_then(|r| r.output.clone());
    let of_the_last_round = |g: &GateStatus| -> Vec<String> {
        let accepted = g.decisions.iter().filter(|d| d.accepted && d.round == g.round);
        accepted.map(|d| d.decided_by.clone()).take(16).collect()
    };
    Reuse {
        step_run: old.metadata.name.clone().unwrap_or_default(),
        uid: old.metadata.uid.clone().unwrap_or_default(),
        digest: status.result.map(|r| r.digest).unwrap_or_default(),
        output: report.or(answer).or(approval).or(earlier),
        document_name,
        decided_by: status.gate.as_ref().map(of_the_last_round).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_cannot_be_taken_over_whole_runs_again() {
        let old = |document: Value, apart: Value| {
            let mut step_run =
                StepRun::new("s", StepRunSpec { input_digest: "i".to_owned(), ..StepRunSpec::default() });
            let at = "2026-01-01T00:00:00Z";
            let report = json!({"attempt": 1, "class": "Succeeded", "digest": "d", "at": at, "outputDocument": apart});
            let result = json!({"attempt": 1, "digest": "d", "documentName": document});
            let status = json!({"phase": "Completed", "result": result, "agent": {"report": report}});
            step_run.status = Some(serde_json::from_value(status).expect("a status"));
            step_run
        };
        let spec = StepRunSpec { input_digest: "i".to_owned(), ..StepRunSpec::default() };
        for (document, apart, whole, taken) in [
            (Value::Null, Value::Null, true, None),
            (json!("plan"), Value::Null, true, Some("plan")),
            (Value::Null, json!("output"), true, Some("output")),
            (json!("plan"), json!("output"), false, Some("plan")),
        ] {
            let old = old(document, apart);
            assert_eq!(was_completed(&old, &spec), whole, "{taken:?}");
            assert_eq!(document_of(&old).as_deref(), taken);
        }
    }
}
