//! Gates: opened over what was made, decided by people, closed by a deadline; what a rejection leads to.

use serde_json::Value;

use super::{
    ATTEMPTS_KEPT, AttemptCounts, AttemptResult, COMMENT, DECIDED_BY, DECISION, Decision, DocumentLookup,
    DocumentPhase, DocumentStatus, GUARD_AGAIN, GateState, GateStatus, Guard, Guidance, Hold, MESSAGE_BYTES, OnFailure,
    POLICIES, Pass, Phase, REVIEW, ResultRef, Reuse, StepError, StepRun, StepRunGate, TOO_LATE, Time, WaitKind, after,
    clip, condition, content, document, gate, name,
};
use crate::api::limits::OUTPUT_INLINE_BYTES;
use crate::api::step::OnReject;
use crate::decide::mail::{Arrival, Deadline};
use crate::decide::output::{self, StoredOutput};
use crate::definition::expression::{Expression, Scope, kind};
use crate::definition::program::{Gate, MAX_ROUNDS, Step};

/// Whether the document of an accepted step is published after its end was stored.
pub fn is_published_late(step_run: &StepRun) -> bool {
    let accepted = step_run.status.as_ref().filter(|s| s.phase == Some(Phase::Completed));
    let document = accepted.and_then(|s| s.result.as_ref()?.document_name.as_ref());
    step_run.spec.gate.is_some() && document.is_some()
}

/// Whether what was accepted was exchanged, or taken away, before it could be published: nothing goes on from it.
pub fn has_changed(step_run: &StepRun) -> bool {
    let error = step_run.status.as_ref().and_then(|s| s.error.as_ref());
    error.is_some_and(|e| e.class == AttemptResult::DocumentChanged)
}

impl Pass<'_> {
    pub(super) fn open_gate(&mut self) {
        if !self.holds() {
            return;
        }
        let Some(wanted) = self.o.step_run.spec.gate.clone() else {
            return self.accept();
        };
        let Some(reviewed) = gate::reviewed(&self.o.step_run, &self.status) else {
            return;
        };
        // Decided in an earlier pass, but the document could not be seen yet: nobody is asked again.
        let decided = self.gate_is(GateState::Accepted) || self.gate_is(GateState::NotRequired);
        if decided && gate::can_proceed(Some(&wanted), self.status.gate.as_ref()) {
            return self.accept();
        }
        if self.closing() {
            return self.cancel();
        }
        match self.gate_terms().and_then(|g| g.when.as_ref()).map(|when| self.required(when)) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => {
                self.set_gate(GateState::NotRequired, &reviewed, "");
                self.plan.notice("GateNotRequired", format!("gate {}: its when is false", wanted.name));
                return self.accept();
            }
            Some(Err(fault)) => return self.fail(AttemptResult::ExpressionError, &format!("gate.when: {fault}")),
        }
        if let Some(why) = self.nobody_may_decide() {
            return self.fail(AttemptResult::GateNotProven, why);
        }
        match self.policies() {
            Guard::Proven(stamp) => self.wait_for_decision(&wanted, &reviewed, stamp),
            Guard::Missing(why) => {
                self.status.phase = Some(Phase::Running);
                self.policies_missing(&format!("the gate stays shut: {why}"));
            }
            Guard::NotAsked => {}
        }
    }

    fn wait_for_decision(&mut self, wanted: &StepRunGate, reviewed: &str, stamp: &str) {
        self.set_gate(GateState::Waiting, reviewed, stamp);
        self.status.started_at.get_or_insert_with(|| self.o.now.clone());
        self.status.phase = Some(Phase::WaitingForAcceptance);
        condition::clear(&mut self.status.conditions, POLICIES);
        let people = if wanted.approvals > 1 { format!("{} decisions", wanted.approvals) } else { "a decision".into() };
        self.plan.notice("GateOpened", format!("gate {} waits for {people}", wanted.name));
        self.wake_at_deadline();
    }

    fn set_gate(&mut self, state: GateState, reviewed: &str, policy: &str) {
        let round = self.status.round;
        let output_digest = gate::review_digest(&self.o.step_run, round, reviewed);
        let commands = if state == GateState::Waiting { self.accepting(&output_digest) } else { Vec::new() };
        self.status.gate = Some(GateStatus {
            state,
            round,
            output_digest,
            commands,
            opened_at: self.o.now.clone(),
            deadline: self.deadline_of_new_round().filter(|_| state == GateState::Waiting),
            policy: policy.to_owned(),
            decisions: self.status.gate.take().map(|g| g.decisions).unwrap_or_default(),
        });
    }

    /// How to accept: what is reviewed is named, so that nothing else is accepted by mistake.
    pub(super) fn accepting(&self, reviewed: &str) -> Vec<String> {
        let meta = &self.o.step_run.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let own = meta.name.as_deref().unwrap_or_default();
        vec![
            format!(
                "kubectl -n {namespace} annotate steprun {own} {DECISION}=accepted {REVIEW}={reviewed}{}",
                self.signature()
            ),
            format!("kubectl lockstep -n {namespace} approve {own}"),
        ]
    }

    /// Four eyes need to know the first two: who made the run. A gate may ask that these are a person's.
    pub(super) fn nobody_may_decide(&self) -> Option<&'static str> {
        // A `notBy` of nobody is that of a run whose maker is not known.
        if self.o.step_run.spec.action_gates.iter().any(|gate| gate.not_by.as_deref() == Some("")) {
            return Some(
                "an action gate asks for four eyes, and who made the run is not known: nobody may decide it; make the run again with lockstep.dev/created-by=YOUR-NAME on it",
            );
        }
        let (wanted, terms) = (self.o.step_run.spec.gate.as_ref()?, self.gate_terms()?);
        let creator = self.o.step_run.spec.workflow.creator.as_deref().unwrap_or_default();
        let unknown = wanted.not_by.as_deref().is_none_or(str::is_empty);
        if terms.four_eyes && unknown {
            return Some(
                "the gate asks for four eyes, and who made the run is not known: nobody may decide it; make the run again with lockstep.dev/created-by=YOUR-NAME on it",
            );
        }
        let person = !creator.is_empty() && !creator.starts_with("system:");
        (terms.created_by_person && !person).then_some(
            "the gate asks for a run that a person made, and no person is known to have made this one: nobody may decide it; let a person make the run",
        )
    }

    // ---- while it waits

    pub(super) fn review(&mut self) {
        let (Some(mut open), Some(wanted)) = (self.status.gate.clone(), self.o.step_run.spec.gate.clone()) else {
            return;
        };
        let deadline = self.deadline();
        if let Some(deadline) = deadline.as_ref().filter(|deadline| !deadline.is_enforced) {
            open.deadline = Some(deadline.at.clone());
            self.status.gate = Some(open.clone());
        }
        match gate::submission(&self.o.step_run) {
            None => return self.watch_deadline(&open),
            Some(Err(why)) => self.refuse_submission(&why),
            // It was latched in an earlier pass, and the gate waits for others.
            Some(Ok(submission)) if gate::has_decided(&open, &submission.by) => self.clear_decision(),
            Some(Ok(submission)) => match gate::admissible(&open, &wanted, &submission, self.policies()) {
                Err(why) => {
                    self.refuse_submission(&why);
                    match self.policies() {
                        Guard::Proven(stamp) if *stamp != open.policy => {
                            self.status.gate = Some(GateStatus {
                                policy: stamp.clone(),
                                opened_at: self.o.now.clone(),
                                deadline: self.deadline_of_new_round(),
                                ..open
                            });
                        }
                        Guard::Proven(_) => {}
                        _ => self.plan.look_again(GUARD_AGAIN),
                    }
                }
                Ok(()) => match self.arrival(&open.opened_at, deadline.as_ref()) {
                    Arrival::InTime(at) => self.decide(&open, &wanted, &submission, &at),
                    Arrival::Late => {
                        let why = format!("the decision of {} was not recorded: {TOO_LATE}", clip(&submission.by, 256));
                        self.plan.refuse("DecisionRefused", why);
                        self.clear_decision();
                        return self.round_is_over(&open);
                    }
                },
            },
        }
        self.wake_at_deadline();
    }

    fn decide(&mut self, open: &GateStatus, wanted: &StepRunGate, submission: &gate::Submission, at: &Time) {
        let produced =
            self.step.and_then(Step::produces).map_or(self.o.step_run.spec.path.as_str(), |p| p.document_type.as_str());
        let scope_id = self.o.step_run.spec.scope_chain.last().map(|s| s.scope_id.as_str()).unwrap_or_default();
        let decided = gate::decided(open, wanted.approvals, submission, &gate::About { produced, scope_id, at });
        let (state, by) = (decided.state, submission.by.as_str());
        let so_far = decided.decisions.iter().filter(|d| d.round == decided.round).count();
        self.status.gate = Some(decided);
        match state {
            GateState::Accepted => {
                self.plan.notice("GateAccepted", format!("accepted by {by}"));
                self.accept();
            }
            GateState::Rejected => {
                let words = submission.comment.as_deref().map(|c| format!(": {c}")).unwrap_or_default();
                self.plan.warn("GateRejected", format!("rejected by {by}"));
                let then = if wanted.revise && self.has_agent() { OnReject::Revise } else { OnReject::Fail };
                self.rejected(&format!("rejected by {by}{words}"), then);
            }
            // The mailbox is emptied for the next in the next pass: a crash in between loses nothing.
            _ => self.plan.notice("GateDecision", format!("accepted by {by}, {so_far} of {}", wanted.approvals)),
        }
    }

    /// By when a round must be decided that opens now.
    fn deadline_of_new_round(&self) -> Option<Time> {
        let seconds = self.gate_terms()?.deadline_seconds?;
        Some(after(&self.o.now, seconds))
    }

    /// By when the open round must be decided. One that an older version opened has it not in its status.
    fn deadline(&self) -> Option<Deadline> {
        let gate = self.status.gate.as_ref().filter(|g| g.state == GateState::Waiting)?;
        let seconds = self.gate_terms()?.deadline_seconds?;
        let stored = gate.deadline.clone();
        let is_enforced = stored.is_some();
        Some(Deadline { at: stored.unwrap_or_else(|| after(&gate.opened_at, seconds)), is_enforced })
    }

    fn wake_at_deadline(&mut self) {
        if let Some(deadline) = self.deadline() {
            self.wake_at(&deadline.at);
        }
    }

    fn watch_deadline(&mut self, open: &GateStatus) {
        match self.deadline() {
            Some(deadline) if self.has_passed(&deadline.at) => self.round_is_over(open),
            _ => self.wake_at_deadline(),
        }
    }

    /// A round that nobody decided in time is rejected, and has no comment to go on from: that is the end.
    fn round_is_over(&mut self, open: &GateStatus) {
        let seconds = self.gate_terms().and_then(|gate| gate.deadline_seconds).unwrap_or_default();
        self.status.gate = Some(GateStatus { state: GateState::Rejected, ..open.clone() });
        self.plan.warn("GateDeadline", format!("not decided within {seconds} s"));
        let why = format!("the gate was not decided within {seconds} s, which counts as rejected");
        self.rejected(&why, OnReject::Fail);
    }

    // ---- after a rejection

    fn rejected(&mut self, why: &str, then: OnReject) {
        self.set_document(DocumentPhase::Rejected);
        self.status.error = Some(StepError {
            class: AttemptResult::Rejected,
            message: clip(why, MESSAGE_BYTES),
            attempt: self.status.attempt,
            exit_code: None,
            log_tail: None,
            trace_id: Some(self.trace_id()),
        });
        if then == OnReject::Fail {
            return self.conclude(Phase::Failed);
        }
        self.keep_comments();
        let most = self.gate_terms().map_or(MAX_ROUNDS, Gate::max_rounds);
        if self.status.round < most {
            self.next_round();
        } else if self.policy.on_failure == OnFailure::Wait {
            self.ask(WaitKind::RoundsSpent, why);
        } else {
            self.conclude(Phase::Failed);
        }
    }

    /// The comments of this round, for the attempts that follow.
    fn keep_comments(&mut self) {
        let (round, attempt) = (self.status.round, self.status.attempt);
        let decisions: Vec<Decision> = self.status.gate.iter().flat_map(|g| g.decisions.clone()).collect();
        for d in decisions.into_iter().filter(|d| d.round == round) {
            if let Some(text) = d.comment.filter(|c| !c.trim().is_empty()) {
                self.guide(Guidance { attempt, by: d.decided_by, text, at: Some(d.decided_at) });
            }
        }
    }

    pub(super) fn guide(&mut self, said: Guidance) {
        self.status.guidance.push(said);
        let surplus = self.status.guidance.len().saturating_sub(ATTEMPTS_KEPT);
        self.status.guidance.drain(..surplus);
    }

    /// Another attempt, for another review.
    pub(super) fn next_round(&mut self) {
        self.status.round += 1;
        self.status.result = None;
        self.status.counts = AttemptCounts { answers: self.status.counts.answers + 1, ..AttemptCounts::default() };
        self.next_attempt(None);
    }

    // ---- the mailbox

    pub(super) fn refuse_submission(&mut self, why: &str) {
        self.plan.refuse("DecisionRefused", format!("the decision was not recorded: {why}; decide again"));
        self.clear_decision();
    }

    pub(super) fn clear_decision(&mut self) {
        self.empty_mailbox(vec![DECISION, COMMENT, REVIEW, DECIDED_BY]);
    }

    // ---- after an acceptance, and where none is needed

    /// The result of a finished run, with what was decided then. A gate that asks for more than was given opens again.
    pub(super) fn take_over(&mut self, reuse: &Reuse) {
        self.status.started_at.get_or_insert_with(|| self.o.now.clone());
        self.status.result = Some(content::reused(reuse, self.status.attempt));
        if !self.holds() {
            return;
        }
        if let Some(wanted) = &self.o.step_run.spec.gate {
            let taken = gate::taken_over(Some(wanted), reuse);
            // What this run's creator makes undecidable, another's run does not decide.
            if self.nobody_may_decide().is_none()
                && gate::state(&taken, self.status.round, wanted.approvals) == GateState::Accepted
            {
                self.set_gate(GateState::Accepted, &reuse.digest, "");
                self.status.gate.iter_mut().for_each(|gate| gate.decisions.clone_from(&taken));
            }
        }
        self.plan.notice("TakenOver", gate::describe_reuse(&self.o.step_run, reuse));
        self.open_gate();
    }

    pub(super) fn accept(&mut self) {
        if let Some(output) = gate::output_of(&self.o.step_run, &self.status) {
            // What was decided is the output; what was reviewed are the parameters.
            let digest = name::digest_bytes(output.to_string().as_bytes());
            self.status.result = Some(ResultRef { attempt: self.status.attempt, digest, ..ResultRef::default() });
        }
        // A decision is stored first: a crash in between must not leave a document published that nobody accepted.
        let before = self.o.step_run.status.as_ref().and_then(|s| s.gate.as_ref());
        if gate::can_proceed(self.o.step_run.spec.gate.as_ref(), before) {
            self.set_document(DocumentPhase::Published);
        }
        self.status.error = None;
        self.conclude(Phase::Completed);
    }

    /// What a decision that is stored now lets everybody see.
    pub(super) fn publish_accepted(&mut self) {
        if has_changed(&self.o.step_run)
            || self.o.document == DocumentLookup::NotAsked
            || !is_published_late(&self.o.step_run)
        {
            return;
        }
        match self.content() {
            Ok(Some(content)) if !document::has_standing(content.document()) => {
                self.set_document(DocumentPhase::Published);
            }
            // Of a run that has ended people may take the documents away.
            Ok(_) | Err(_) if self.o.hold == Hold::Stopping => {}
            Ok(_) => {}
            // Its end is stored, and stays; that it cannot be gone on from is the run's failure.
            Err(changed) => {
                self.plan.warn("DocumentChanged", clip(&changed.to_string(), 900));
                self.status.error = Some(StepError {
                    class: AttemptResult::DocumentChanged,
                    message: clip(&changed.to_string(), MESSAGE_BYTES),
                    attempt: self.status.attempt,
                    exit_code: None,
                    log_tail: None,
                    trace_id: Some(self.trace_id()),
                });
            }
        }
    }

    fn set_document(&mut self, phase: DocumentPhase) {
        let Ok(Some(content)) = self.content() else { return };
        let found = content.document();
        // What was published once, by the run that this one took it from, is not taken back.
        let too_late = phase == DocumentPhase::Rejected && document::has_standing(found);
        if too_late || found.status.as_ref().is_some_and(|s| s.phase == Some(phase)) {
            return;
        }
        let status = match (phase, self.o.revision) {
            (DocumentPhase::Published, None) => {
                self.lacks_revision = true;
                return;
            }
            (DocumentPhase::Published, Some(number)) => document::published(&content, number),
            (other, _) => DocumentStatus { phase: Some(other), ..document::published(&content, 1) },
        };
        self.plan.effects.push(document::set_status(found, status));
    }

    // ---- gate.when

    /// What `when` gives.
    fn required(&self, when: &Expression) -> Result<bool, String> {
        let apart = self.status.result.as_ref().is_some_and(|r| r.output_document.is_some());
        if apart && when.variables().iter().any(|v| v == "output") {
            return Err(format!(
                "reads `output`, which has more than {OUTPUT_INLINE_BYTES} bytes and lies in a Document of its own"
            ));
        }
        match when.evaluate(&self.scope(self.output()?))? {
            Value::Bool(required) => Ok(required),
            other => Err(format!("gives {}, not a boolean", kind(&other))),
        }
    }

    fn scope(&self, output: Value) -> Scope {
        let spec = &self.o.step_run.spec;
        let mut scope = Scope::new(&self.o.evaluator).with("output", output);
        if let Some(program) = self.o.definition.as_deref() {
            let parameters = Value::Object(program.run.parameters.clone());
            scope = scope.with("workflow", program.run.variable()).with("parameters", parameters);
        }
        if let (Some(item), Some(link)) = (&spec.item, spec.scope_chain.last()) {
            let place = [("key", item.key.clone().into()), ("index", Value::from(item.index))];
            scope = scope.with("item", Value::from_iter(place)).with(&link.scope, item.value.clone());
        }
        scope
    }

    /// Inline, or in the document that carries it; null where there is none.
    fn output(&self) -> Result<Value, String> {
        match output::stored(&self.o.step_run, &self.status) {
            StoredOutput::Nowhere => Ok(Value::Null),
            StoredOutput::Inline(text) => Ok(output::read(&text)),
            StoredOutput::Document(_) => {
                let content = self.content().map_err(|changed| changed.to_string())?;
                Ok(content.map(|c| output::read(c.text())).unwrap_or_default())
            }
        }
    }
}
