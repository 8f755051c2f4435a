//! The beginning of one execution: its documents, its resolved parameters, its StepRun; or what a finished run did already.

use serde_json::Value;

use super::{
    Arc, AttemptResult, Beginning, Failure, Fault, Frame, Outcome, Pin, Step, StepRun, StepRunSpec, Walk, document,
    has_changed, name,
};
use crate::api::agent::Agent;
use crate::api::document::{Document, DocumentStatus, OUTPUT_TYPE, Scope};
use crate::api::limits::{PARAMETERS_BYTES, PENDING};
use crate::api::step_run::{
    Binding, Comparison, DocumentRef, Item, Reuse, ScopeLink, StepRunAsk, StepRunGate, WorkflowIdentity,
};
use crate::api::workflow::Phase;
use crate::decide::output::{self, StoredOutput};
use crate::decide::{build, content, gate};
use crate::definition::agent;
use crate::definition::program::{DocumentSelector, OnReject, Parameters};
use crate::mutant::{self, Mutant};

type Refused = (AttemptResult, Fault);

impl Walk<'_> {
    pub(super) fn begin(&mut self, step: &Step, frame: &Frame) -> Outcome {
        let path: &str = &step.path;
        let Some(documents) = self.documents(step, frame) else {
            self.active(path, frame);
            return Outcome::Open;
        };
        let made = self.spec(step, frame, documents).and_then(|spec| self.taken_over(spec, step, frame));
        match made {
            Err((_, Fault::Unread)) => {
                self.active(path, frame);
                Outcome::Open
            }
            Err((_, fault @ Fault::Changed(_))) => self.at_fault(fault, path, frame),
            Err((class, Fault::Wrong(message))) => {
                self.tally(path).counts.failed += 1;
                Outcome::Failed(Failure { place: frame.place(path), class, message })
            }
            Ok(begun) => {
                let own = self.step_run_name(path, &frame.keys);
                self.unfinished.push(own);
                self.stand.creates.push(begun);
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
    fn documents(&mut self, step: &Step, frame: &Frame) -> Option<Vec<DocumentRef>> {
        let Some(own) = step.agent() else { return Some(Vec::new()) };
        let Some(agent) = self.o.agents.get(&own.agent) else {
            self.pends(format!("{}: Agent {} does not exist", step.path, own.agent));
            return None;
        };
        let from = self.sources.viewpoint(frame);
        let mut found: Vec<DocumentRef> = Vec::new();
        let mut complete = true;
        for selector in own.reads(agent) {
            match selector {
                DocumentSelector::OfAllItems(kind) => {
                    let all = document::fan_in(&self.o.documents, &kind, &from).into_iter();
                    found.extend(all.map(|(key, d)| document::pinned(d, Some(key))));
                }
                DocumentSelector::Newest(kind) => match document::find(&self.o.documents, &kind, &from) {
                    Some(_) if found.iter().any(|old| old.key.is_none() && old.document_type == kind) => {}
                    Some(d) => found.push(document::pinned(d, None)),
                    None => {
                        complete = false;
                        self.missing(&kind);
                    }
                },
            }
        }
        if !complete {
            self.tally(&step.path).documents += 1;
        }
        complete.then_some(found)
    }

    fn missing(&mut self, kind: &str) {
        let missing = &mut self.stand.missing_documents;
        if !missing.iter().any(|m| m == kind) && missing.len() < PENDING {
            missing.push(kind.to_owned());
        }
    }

    fn spec(&self, step: &Step, frame: &Frame, documents: Vec<DocumentRef>) -> Result<StepRunSpec, Refused> {
        let at_fault = |fault| (AttemptResult::ExpressionError, fault);
        let scope = self.sources.scope(frame, &step.expressions(), &[]).map_err(at_fault)?;
        let wrong = |text| at_fault(Fault::Wrong(text));
        let none = Parameters::default();
        let parameters = step.parameters().unwrap_or(&none).expand(&scope).map_err(wrong)?;
        let parameters = Value::Object(parameters).to_string();
        if parameters.len() > PARAMETERS_BYTES {
            let message = format!(
                "the parameters are {} bytes long, at most {PARAMETERS_BYTES} are allowed; pass a document instead",
                parameters.len()
            );
            return Err((AttemptResult::InvalidParameters, Fault::Wrong(message)));
        }
        let question = step.ask().map(|ask| ask.question.expand_to_text(&scope)).transpose();
        let question = question.map_err(|e| wrong(format!("ask.question: {e}")))?;
        let ask = step.ask().zip(question).map(|(ask, question)| StepRunAsk {
            name: step.name.clone(),
            question,
            deadline_seconds: ask.deadline_seconds,
        });
        let run = &self.sources.program.run;
        let status = self.o.workflow.status.as_ref();
        let agent_id = step.agent().map(|own| own.agent.clone()).unwrap_or_default();
        let question = ask.as_ref().map(|a| a.question.clone()).unwrap_or_default();
        let digests: Vec<&[u8]> =
            [agent_id.as_bytes(), parameters.as_bytes(), run.input.as_bytes(), question.as_bytes()]
                .into_iter()
                .chain(documents.iter().map(|d| d.digest.as_bytes()))
                .collect();
        Ok(StepRunSpec {
            workflow: WorkflowIdentity {
                name: run.name.clone(),
                uid: run.uid.clone(),
                creator: status.and_then(|s| s.creator.clone()),
            },
            definition: status.and_then(|s| s.definition.clone()).unwrap_or_default(),
            path: step.path.to_string(),
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
        let gate = step.gate()?;
        let creator = self.o.workflow.status.as_ref().and_then(|s| s.creator.clone());
        Some(StepRunGate {
            name: gate.name.clone(),
            acceptors: gate.acceptors.clone(),
            approvals: gate.approvals,
            not_by: gate.four_eyes.then(|| creator.unwrap_or_default()),
            require_review: gate.require_review,
            revise: matches!(gate.on_reject, OnReject::Revise { .. }),
            message: gate.message.clone(),
        })
    }

    fn scope_chain(&self, frame: &Frame) -> Vec<ScopeLink> {
        let uid = &self.sources.program.run.uid;
        let own = ScopeLink { scope: "workflow".to_owned(), scope_id: uid.clone() };
        let items = frame.items.iter().enumerate().map(|(depth, entity)| ScopeLink {
            scope: entity.as_name.clone(),
            scope_id: name::scope_id(uid, &frame.keys[..=depth]),
        });
        std::iter::once(own).chain(items).collect()
    }

    // ---- what a finished run did already

    /// The same, if the run that this one goes on from completed it with the same input and nothing before it is new.
    fn taken_over(&mut self, spec: StepRunSpec, step: &Step, frame: &Frame) -> Result<Beginning, Refused> {
        let path: &str = &step.path;
        let mut begun = Beginning { spec, keys: frame.keys.clone(), copies: Vec::new() };
        let (Some(of), Some(previous)) = (&self.o.workflow.spec.retry_of, &self.o.previous) else { return Ok(begun) };
        let from = of.from.as_deref().is_some_and(|from| from == path || path.starts_with(&format!("{from}/")));
        let fresh = frame.fresh && !mutant::on(Mutant::ReuseUnchecked);
        let found = previous.step_runs.get(&name::step_run(&of.name, &of.uid, path, &frame.keys));
        let namespace = &self.o.workflow.metadata.namespace;
        let theirs = |old: &StepRun| old.metadata.namespace == *namespace && old.spec.workflow.uid == of.uid;
        let whole = |old: &&Arc<StepRun>| !from && !fresh && theirs(old) && was_completed(old, &begun.spec);
        let Some(old) = found.filter(whole).cloned() else { return Ok(begun) };
        let then = previous.definition.as_deref().and_then(|d| d.step(path));
        let gate = match then {
            Some(then) if then.gate() == step.gate() => compare(&old.spec, &begun.spec),
            _ => Comparison::Differs,
        };
        let other_question = step.ask().is_some() && then.and_then(Step::ask) != step.ask();
        let agent = self.o.agents.get(&begun.spec.agent_id);
        if other_question || !of.keep_results && agent.is_some_and(|agent| works_otherwise(&old, agent)) {
            return Ok(begun);
        }
        let mut taken = reuse(&old, gate);
        // An approval alone has nothing but its decisions: where they do not count, it is asked for anew.
        let alone = begun.spec.agent_id.is_empty() && begun.spec.ask.is_none();
        let opens = begun.spec.gate.is_none() || gate::still_opens(begun.spec.gate.as_ref(), &taken);
        if alone && !opens {
            return Ok(begun);
        }
        let kind = step.produces().map_or(OUTPUT_TYPE, |p| p.document_type.as_str());
        let result = old.status.as_ref().and_then(|s| s.result.clone()).unwrap_or_default();
        let apart = old
            .status
            .as_ref()
            .and_then(|status| content::carrier(&old, status))
            .filter(|pin| result.document_name.as_ref() != Some(&pin.name));
        for (pin, kind) in [(content::document_of(&result), kind), (apart, OUTPUT_TYPE)] {
            let Some(pin) = pin else { continue };
            match self.copied(&pin, kind, &frame.place(path), frame) {
                Ok(Some((name, binding, copy))) => {
                    // Nobody sees it before the gate, where that opens again.
                    begun.copies.extend(copy.map(|(copy, status)| (copy, status.filter(|_| opens))));
                    let (names, bindings) = if kind == OUTPUT_TYPE {
                        (&mut taken.output_document, &mut taken.output_binding)
                    } else {
                        (&mut taken.document_name, &mut taken.document_binding)
                    };
                    (*names, *bindings) = (Some(name), Some(binding));
                }
                // Its document is gone, or is another one: the step runs again.
                Ok(None) => return Ok(Beginning { copies: Vec::new(), ..begun }),
                Err(fault) => return Err((AttemptResult::ExpressionError, fault)),
            }
        }
        begun.spec.reuse = Some(taken);
        Ok(begun)
    }

    /// This run's copy of a document of another; wider than the run, it is the same one.
    fn copied(&self, pin: &Pin, kind: &str, place: &str, frame: &Frame) -> Result<Option<Taken>, Fault> {
        let there = document::named(&self.o.documents, kind, std::slice::from_ref(&pin.name));
        let Some(old) = there.filter(|d| pin.uid.is_none() || pin.uid == d.metadata.uid) else { return Ok(None) };
        if old.spec.scope > Scope::Workflow {
            let digest = old.status.as_ref().and_then(|s| s.digest.clone()).unwrap_or_default();
            let binding = Binding { uid: old.metadata.uid.clone(), digest };
            return Ok(pin.is_met_by(old).then(|| (pin.name.clone(), binding, None)));
        }
        let content = match self.sources.content(pin) {
            Err(Fault::Changed(_)) => return Ok(None),
            other => other?,
        };
        let uid = &self.sources.program.run.uid;
        let mut copy: Document = build::copied_document(&self.o.workflow, content.document(), place);
        let keys: &[String] = if old.spec.scope == Scope::Item { &frame.keys } else { &[] };
        copy.spec.scope_id = Some(name::scope_id(uid, keys));
        // What carries an output is found by nobody.
        let found = kind != OUTPUT_TYPE;
        let status = found.then(|| document::put_up(&copy, &document::siblings(&self.o.documents, &copy)));
        let name = copy.metadata.name.clone().unwrap_or_default();
        let binding = Binding { uid: None, digest: content.digest().to_owned() };
        Ok(Some((name, binding, Some((copy, status)))))
    }
}

/// The name of a document that is taken over, what it holds, and the copy that is to be made.
type Taken = (String, Binding, Option<(Document, Option<DocumentStatus>)>);

fn was_completed(old: &StepRun, spec: &StepRunSpec) -> bool {
    let status = old.status.as_ref();
    // Skipped by a person it has no result, and is tried again; so is what was exchanged after it was accepted.
    old.spec.input_digest == spec.input_digest
        && status.is_some_and(|s| s.phase == Some(Phase::Completed) && s.result.is_some())
        && !has_changed(old)
}

/// How two gates compare, whoever made the runs.
fn compare(old: &StepRunSpec, new: &StepRunSpec) -> Comparison {
    let bare = |gate: &StepRunGate| StepRunGate { not_by: None, ..gate.clone() };
    let same = old.gate.as_ref().map(bare) == new.gate.as_ref().map(bare);
    if same { Comparison::Same } else { Comparison::Differs }
}

/// Whether the Agent's work is shaped otherwise than when the result was made. What is not known counts as changed.
fn works_otherwise(old: &StepRun, agent: &Agent) -> bool {
    let made = old.status.as_ref().and_then(|s| s.attempts.iter().rfind(|a| a.result == AttemptResult::Succeeded));
    match (agent_digest(old), made.and_then(|a| a.agent_generation)) {
        (Some(digest), _) => digest != agent::work_digest(agent),
        (None, generation) => generation.is_none() || generation != agent.metadata.generation,
    }
}

/// Digest of the Agent that a result was made with, in this run or in one before.
fn agent_digest(old: &StepRun) -> Option<String> {
    let made = old.status.as_ref().and_then(|s| s.attempts.iter().rfind(|a| a.result == AttemptResult::Succeeded));
    made.and_then(|a| a.agent_digest.clone()).or_else(|| old.spec.reuse.as_ref()?.agent_digest.clone())
}

fn reuse(old: &StepRun, compares: Comparison) -> Reuse {
    let status = old.status.clone().unwrap_or_default();
    let output = match output::stored(old, &status) {
        StoredOutput::Inline(text) => Some(text),
        StoredOutput::Nowhere | StoredOutput::Document(_) => None,
    };
    let gate = status.gate.as_ref().map(|gate| gate::reused(gate, compares));
    Reuse {
        step_run: old.metadata.name.clone().unwrap_or_default(),
        uid: old.metadata.uid.clone().unwrap_or_default(),
        digest: status.result.map(|r| r.digest).unwrap_or_default(),
        output,
        decided_by: gate.iter().flat_map(|g| &g.decisions).map(|d| d.decided_by.clone()).collect(),
        gate,
        agent_digest: agent_digest(old),
        ..Reuse::default()
    }
}

#[cfg(test)]
mod tests;
