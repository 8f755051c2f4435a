//! The beginning of one execution: its documents, its resolved parameters, its StepRun; or what a finished run did already.

use std::sync::Arc;

use serde_json::Value;

use super::walk_result::{Active, ActiveState, Visited, WaitReason, WalkResult};
use super::{NewStepRun, Walk, at_fault, failed, waits};
use crate::api::agent::Agent;
use crate::api::document::{Document, DocumentStatus, OUTPUT_TYPE, Scope};
use crate::api::limits::{PARAMETERS_BYTES, QUESTION_CHARS};
use crate::api::name;
use crate::api::step_run::{
    AttemptResult, Binding, Comparison, DocumentRef, Item, Reuse, ScopeLink, StepRun, StepRunAsk, StepRunGate,
    StepRunSpec, WorkflowIdentity,
};
use crate::api::workflow::Phase;
use crate::decide::content::{self, Pin};
use crate::decide::outcome::Outcome;
use crate::decide::output::{self, StoredOutput};
use crate::decide::scope::{Fault, Frame};
use crate::decide::step_run::has_changed;
use crate::decide::{build, document, gate, trace};
use crate::definition::agent;
use crate::definition::expression::{self, Room, TextTemplate};
use crate::definition::free_value;
use crate::definition::program::{DocumentSelector, Gate, OnReject, Parameters, Step};

type Refused = (AttemptResult, Fault);

impl Walk<'_> {
    pub(super) fn begin(&self, step: &Step, own: String, frame: &Frame) -> Visited {
        let documents = match self.documents(step, frame) {
            Ok(documents) => documents,
            Err(found) => return waits(*found, &step.path, frame),
        };
        let made = self.spec(step, frame, documents).and_then(|spec| self.taken_over(spec, step, frame));
        match made {
            Ok(beginning) => {
                let mut found = WalkResult::default();
                let state = ActiveState::Begins(own, Box::new(beginning));
                found.active.push(Active { place: frame.place(&step.path), state });
                found.visited(Outcome::Open)
            }
            Err((class, Fault::Wrong(message))) => failed(WalkResult::default(), &step.path, frame, (class, message)),
            Err((_, fault)) => at_fault(fault, &step.path, frame),
        }
    }

    /// The documents that a step reads, pinned; what is waited for, while one of them, or the Agent, is missing.
    fn documents(&self, step: &Step, frame: &Frame) -> Result<Vec<DocumentRef>, Box<WalkResult>> {
        let Some(own) = step.agent() else { return Ok(Vec::new()) };
        let mut waits = WalkResult::default();
        let Some(agent) = self.o.agents.get(&own.agent) else {
            let (reason, why) = match self.o.unreadable.agents.get(&own.agent) {
                Some(fault) => ("AgentInvalid", format!("cannot be read: {fault}; the step starts when it is mended")),
                None => ("AgentNotFound", "does not exist in this namespace; the step starts when it does".to_owned()),
            };
            let message = format!("{}: Agent {} {why}", frame.place(&step.path), own.agent);
            waits.waits.pending.push(WaitReason { reason: reason.to_owned(), message });
            return Err(Box::new(waits));
        };
        let from = self.sources.viewpoint(frame);
        let mut found: Vec<DocumentRef> = Vec::new();
        for selector in own.reads(agent) {
            match selector {
                DocumentSelector::OfAllItems(kind) => found.extend(self.fan_in(&kind, frame)),
                DocumentSelector::Newest(kind) => match document::find(&self.o.documents, &kind, &from) {
                    Some(_) if found.iter().any(|old| old.key.is_none() && old.document_type == kind) => {}
                    Some(d) => found.push(document::pinned(d, None)),
                    None => waits.waits.document(kind),
                },
            }
        }
        if waits.waits.documents.is_empty() {
            return Ok(found);
        }
        waits.tally(&step.path).open.documents = 1;
        Err(Box::new(waits))
    }

    /// The documents of all items, in the order of their lists.
    fn fan_in(&self, kind: &str, frame: &Frame) -> Vec<DocumentRef> {
        let all = document::fan_in(&self.o.documents, kind, &self.sources.viewpoint(frame)).into_iter();
        let mut placed: Vec<_> =
            all.map(|(key, document)| (self.indexes(document, &key, frame), key, document)).collect();
        placed.sort_by(|(a, a_key, _), (b, b_key, _)| a.cmp(b).then_with(|| a_key.cmp(b_key)));
        let pinned = |(indexes, key, document): (Vec<Option<i32>>, String, &Arc<Document>)| {
            document::pinned(document, Some((key, indexes.last().copied().flatten())))
        };
        placed.into_iter().map(pinned).collect()
    }

    /// Where the item that made a document stands in each of the lists around it. Its StepRun knows.
    fn indexes(&self, document: &Document, key: &str, frame: &Frame) -> Vec<Option<i32>> {
        let keys: Vec<String> = frame.keys.iter().cloned().chain(key.split('/').map(str::to_owned)).collect();
        let path = document.spec.path.as_deref().unwrap_or_default();
        let Some(made) = self.o.step_runs.get(&self.step_run_name(path, &keys)) else { return Vec::new() };
        let mut indexes: Vec<_> =
            made.spec.scope_chain.iter().skip(1 + frame.keys.len()).map(|link| link.index).collect();
        // Older versions wrote down that of the innermost item only.
        if let Some(last) = indexes.last_mut().filter(|last| last.is_none()) {
            *last = made.spec.item.as_ref().map(|item| item.index);
        }
        indexes
    }

    fn spec(&self, step: &Step, frame: &Frame, documents: Vec<DocumentRef>) -> Result<StepRunSpec, Refused> {
        let refused = |fault| (AttemptResult::ExpressionError, fault);
        let scope = self.sources.scope(frame, &step.expressions(), None).map_err(refused)?;
        let wrong = |text| refused(Fault::Wrong(text));
        let none = Parameters::default();
        let mut room = Room::of(PARAMETERS_BYTES);
        let parameters = step.parameters().unwrap_or(&none).expand(&scope, &mut room);
        let parameters = parameters.map_err(|text| {
            let too_large = |text| (AttemptResult::InvalidParameters, Fault::Wrong(text));
            if room.is_spent() { too_large(format!("{text}; pass a document instead")) } else { wrong(text) }
        })?;
        let parameters = Value::Object(parameters);
        if let Some(fault) = free_value::nesting(&parameters) {
            return Err((AttemptResult::InvalidParameters, Fault::Wrong(format!("parameters: {fault}"))));
        }
        let parameters = parameters.to_string();
        if parameters.len() > PARAMETERS_BYTES {
            let message = format!(
                "the parameters are {} bytes long, at most {PARAMETERS_BYTES} are allowed; pass a document instead",
                parameters.len()
            );
            return Err((AttemptResult::InvalidParameters, Fault::Wrong(message)));
        }
        let question = step.ask().map(|ask| asked(&ask.question, &scope)).transpose();
        let question = question.map_err(|e| wrong(format!("ask.question: {e}")))?;
        let ask = step.ask().zip(question).map(|(ask, question)| StepRunAsk {
            name: step.name.clone(),
            question,
            deadline_seconds: ask.deadline_seconds,
        });
        let run = &self.sources.program.run;
        let status = self.o.workflow.status.as_ref();
        let agent_id = step.agent().map(|own| own.agent.clone()).unwrap_or_default();
        // That another run has another name makes no other question of it.
        let question =
            step.ask().map(|ask| ask.question.expand_nameless(&scope, &mut Room::of(QUESTION_BYTES))).transpose();
        let question = question.map_err(wrong)?.unwrap_or_default();
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
                traceparent: trace::told(&self.o.workflow),
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
            gate: step.gate().map(|gate| self.gate(gate)),
            budget: step.agent().and_then(|own| own.budget.clone()),
            action_gates: step
                .agent()
                .into_iter()
                .flat_map(|own| &own.action_gates)
                .map(|gate| self.gate(gate))
                .collect(),
        })
    }

    fn gate(&self, gate: &Gate) -> StepRunGate {
        let creator = self.o.workflow.status.as_ref().and_then(|s| s.creator.clone());
        StepRunGate {
            name: gate.name.clone(),
            acceptors: gate.acceptors.clone(),
            approvals: gate.approvals,
            not_by: gate.four_eyes.then(|| creator.unwrap_or_default()),
            require_review: gate.require_review,
            revise: matches!(gate.on_reject, OnReject::Revise { .. }),
            message: gate.message.clone(),
        }
    }

    fn scope_chain(&self, frame: &Frame) -> Vec<ScopeLink> {
        let uid = &self.sources.program.run.uid;
        let own = ScopeLink { scope: "workflow".to_owned(), scope_id: uid.clone(), index: None };
        let items = frame.items.iter().enumerate().map(|(depth, entity)| ScopeLink {
            scope: entity.as_name.clone(),
            scope_id: name::scope_id(uid, &frame.keys[..=depth]),
            index: Some(entity.index),
        });
        std::iter::once(own).chain(items).collect()
    }

    // ---- what a finished run did already

    /// The same, if the run that this one goes on from completed it with the same input and nothing before it is new.
    fn taken_over(&self, spec: StepRunSpec, step: &Step, frame: &Frame) -> Result<NewStepRun, Refused> {
        let path: &str = &step.path;
        let mut begun = NewStepRun { spec, keys: frame.keys.clone(), copies: Vec::new() };
        let (Some(of), Some(previous)) = (&self.o.workflow.spec.retry_of, &self.o.previous) else { return Ok(begun) };
        let from = of.from.as_deref().is_some_and(|from| from == path || path.starts_with(&format!("{from}/")));
        let found = previous.step_runs.get(&name::step_run(&of.name, &of.uid, path, &frame.keys));
        let namespace = &self.o.workflow.metadata.namespace;
        let theirs = |old: &StepRun| old.metadata.namespace == *namespace && old.spec.workflow.uid == of.uid;
        let whole = |old: &&Arc<StepRun>| !from && !frame.fresh && theirs(old) && was_completed(old, &begun.spec);
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
                Ok(None) => return Ok(NewStepRun { copies: Vec::new(), ..begun }),
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
        let number = || document::copied_revision(old, &copy, &document::siblings(&self.o.documents, &copy));
        let status = found.then(|| document::initial_status(&copy, number()));
        let name = copy.metadata.name.clone().unwrap_or_default();
        let binding = Binding { uid: None, digest: content.digest().to_owned() };
        Ok(Some((name, binding, Some((copy, status)))))
    }
}

/// What that many characters have at most.
const QUESTION_BYTES: usize = 4 * QUESTION_CHARS;

/// A question as it is shown, if it is short enough to be.
fn asked(question: &TextTemplate, scope: &expression::Scope) -> Result<String, String> {
    let text = question.expand_to_text(scope, &mut Room::of(QUESTION_BYTES))?;
    match text.chars().count() {
        0..=QUESTION_CHARS => Ok(text),
        chars => Err(format!("gives {chars} characters, at most {QUESTION_CHARS} are allowed")),
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
pub fn works_otherwise(old: &StepRun, agent: &Agent) -> bool {
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
