//! What people decide: gates, and the answers to questions.

use super::{
    ACTION, ATTEMPTS_KEPT, AttemptCounts, AttemptResult, COMMENT, DECIDED_BY, DocumentPhase, DocumentStatus, Duration,
    Effect, GUARD_AGAIN, GateState, GateStatus, Guard, Guidance, MESSAGE_BYTES, Pass, Phase, StepError, Truth,
    WaitKind, WaitingFor, clip, condition, document, gate, name,
};

impl Pass<'_> {
    pub(super) fn open_gate(&mut self) {
        let Some(result) = self.status.result.clone() else {
            return;
        };
        let Some(wanted) = &self.o.step_run.spec.gate else {
            return self.accept();
        };
        // Accepted in an earlier pass, but the document could not be seen yet: nobody is asked again.
        if self.gate_is(GateState::Accepted) && gate::can_proceed(self.status.gate.as_ref()) {
            return self.accept();
        }
        if self.o.closing {
            return self.cancel();
        }
        match &self.o.guard {
            Guard::Proven(stamp) => {
                let output_digest = gate::review_digest(&self.o.step_run, self.status.round, &result.digest);
                self.status.gate = Some(GateStatus {
                    state: GateState::Waiting,
                    round: self.status.round,
                    output_digest,
                    opened_at: self.o.now.clone(),
                    policy: stamp.clone(),
                    decisions: self.status.gate.take().map(|g| g.decisions).unwrap_or_default(),
                });
                self.status.phase = Some(Phase::WaitingForAcceptance);
                condition::clear(&mut self.status.conditions, "GatePolicyInstalled");
                self.plan.notice("GateOpened", format!("gate {} waits for a decision", wanted.name));
            }
            Guard::Missing(why) => {
                self.status.phase = Some(Phase::Running);
                self.condition(
                    "GatePolicyInstalled",
                    Truth::False,
                    "PolicyMissing",
                    &format!("the gate stays shut: {why}; reinstall the chart"),
                );
                self.plan.look_again(GUARD_AGAIN);
            }
            Guard::NotAsked => self.plan.look_again(GUARD_AGAIN),
        }
    }

    pub(super) fn review(&mut self) {
        let Some(open) = self.status.gate.clone() else {
            return;
        };
        match gate::letter(&self.o.step_run) {
            None => {}
            Some(Err(why)) => self.refuse_letter(&why),
            Some(Ok(letter)) => match gate::admissible(&open, &letter, &self.o.guard) {
                Err(why) => {
                    self.refuse_letter(&why);
                    if let Guard::Proven(stamp) = &self.o.guard {
                        self.status.gate =
                            Some(GateStatus { policy: stamp.clone(), opened_at: self.o.now.clone(), ..open });
                    } else {
                        self.plan.look_again(GUARD_AGAIN);
                    }
                }
                Ok(()) => self.decide(&open, &letter),
            },
        }
    }

    pub(super) fn decide(&mut self, open: &GateStatus, letter: &gate::Letter) {
        let produced = self
            .step
            .and_then(|s| s.produces.as_ref())
            .map_or(self.o.step_run.spec.path.as_str(), |p| p.document_type.as_str());
        let scope_id = self.o.step_run.spec.scope_chain.last().map(|s| s.scope_id.as_str()).unwrap_or_default();
        let decided = gate::decided(open, letter, (produced, scope_id), &self.o.now);
        let accepted = gate::can_proceed(Some(&decided));
        self.status.gate = Some(decided);
        let by = &letter.by;
        if accepted {
            self.plan.notice("GateAccepted", format!("accepted by {by}"));
            return self.accept();
        }
        let words = letter.comment.as_deref().map(|c| format!(": {c}")).unwrap_or_default();
        self.plan.warn("GateRejected", format!("rejected by {by}"));
        self.set_document(DocumentPhase::Rejected);
        self.status.error = Some(StepError {
            class: AttemptResult::Rejected,
            message: clip(&format!("rejected by {by}{words}"), MESSAGE_BYTES),
            attempt: self.status.attempt,
            exit_code: None,
            log_tail: None,
        });
        self.conclude(Phase::Failed);
    }

    pub(super) fn refuse_letter(&mut self, why: &str) {
        self.plan.warn("DecisionRefused", format!("the decision was not recorded: {why}; decide again"));
        self.empty_mailbox(vec![name::DECISION, COMMENT, name::REVIEW, DECIDED_BY]);
    }

    pub(super) fn accept(&mut self) {
        if !self.set_document(DocumentPhase::Published) {
            self.status.phase = Some(Phase::Running);
            self.plan.look_again(Duration::from_secs(1));
            return;
        }
        self.conclude(Phase::Completed);
    }

    /// Whether the document, if there is one, is on its way; false while it cannot be seen yet.
    pub(super) fn set_document(&mut self, phase: DocumentPhase) -> bool {
        let Some(wanted) = self.status.result.as_ref().and_then(|r| r.document_name.clone()) else {
            return true;
        };
        let Some(found) = &self.o.document else {
            return false;
        };
        let status = match phase {
            DocumentPhase::Published => document::published(found, &self.o.siblings),
            other => DocumentStatus { phase: Some(other), ..document::published(found, &[]) },
        };
        if found.status.as_ref().is_none_or(|s| s.phase != Some(phase)) {
            self.plan.effects.push(Effect::SetDocumentStatus { name: wanted, status });
        }
        true
    }

    pub(super) fn ask(&mut self, kind: WaitKind, why: &str) {
        let step_run = &self.o.step_run;
        let options: Vec<String> = if step_run.spec.gate.is_some() {
            vec!["retry".into(), "fail".into()]
        } else {
            vec!["retry".into(), "skip".into(), "fail".into()]
        };
        let (namespace, own) = (
            step_run.metadata.namespace.as_deref().unwrap_or_default(),
            step_run.metadata.name.as_deref().unwrap_or_default(),
        );
        let question = match kind {
            WaitKind::RetriesSpent if self.status.counts.retryable == 1 => {
                format!("the only attempt failed: {why}")
            }
            WaitKind::RetriesSpent => {
                format!("all {} attempts failed, the last with: {why}", self.status.counts.retryable)
            }
            WaitKind::OutcomeUnknown => format!(
                "attempt {} may or may not have had its effects ({why}); may it run again?",
                self.status.attempt
            ),
            WaitKind::RoundsSpent => format!("{} outputs were reviewed and rejected: {why}", self.status.round),
            WaitKind::Question => why.to_owned(),
            WaitKind::InfrastructureSpent => {
                format!("the cluster lost {} attempts, the last with: {why}", self.status.counts.infrastructure)
            }
        };
        let commands = vec![
            format!(
                "kubectl -n {namespace} annotate steprun {own} {ACTION}=retry {COMMENT}='WHAT TO DO BETTER' {DECIDED_BY}=\"$(kubectl auth whoami -o jsonpath='{{.status.userInfo.username}}')\""
            ),
            format!("kubectl lockstep -n {namespace} answer {own} retry -m 'WHAT TO DO BETTER'"),
        ];
        let id = format!("{}-{}", self.status.attempt, self.status.counts.answers);
        self.plan.warn("WaitingForInput", clip(&question, 400));
        self.status.waiting_for = Some(WaitingFor {
            id,
            kind,
            question: clip(&question, MESSAGE_BYTES),
            options,
            since: self.o.now.clone(),
            commands,
        });
        self.status.phase = Some(Phase::WaitingForInput);
    }

    pub(super) fn answer(&mut self) {
        let annotations = self.o.step_run.metadata.annotations.clone().unwrap_or_default();
        let Some(action) = annotations.get(ACTION) else {
            return;
        };
        let by = annotations.get(DECIDED_BY).filter(|by| !by.is_empty());
        let (Some(by), Guard::Proven(_)) = (by, &self.o.guard) else {
            self.plan.warn("AnswerRefused", "the answer was not recorded: who gave it is not proven; answer again");
            self.plan.look_again(GUARD_AGAIN);
            return self.empty_mailbox(vec![ACTION, COMMENT, DECIDED_BY]);
        };
        let allowed = self.status.waiting_for.as_ref().is_some_and(|w| w.options.contains(action));
        if !allowed {
            self.plan.warn("AnswerRefused", format!("{} is no answer to this question", clip(action, 40)));
            return self.empty_mailbox(vec![ACTION, COMMENT, DECIDED_BY]);
        }
        // Latched in this pass, taken out of the mailbox in the next: a crash in between loses nothing.
        if let Some(text) = annotations.get(COMMENT) {
            self.status.guidance.push(Guidance {
                attempt: self.status.attempt,
                by: clip(by, 512),
                text: clip(text, 4096),
            });
            let surplus = self.status.guidance.len().saturating_sub(ATTEMPTS_KEPT);
            self.status.guidance.drain(..surplus);
        }
        self.plan.notice("Answered", format!("{action} by {by}"));
        self.status.waiting_for = None;
        let answers = self.status.counts.answers + 1;
        match action.as_str() {
            "retry" => {
                self.status.counts = AttemptCounts { answers, ..AttemptCounts::default() };
                self.next_attempt(None);
            }
            "skip" => {
                self.status.counts.answers = answers;
                self.status.error = None;
                self.conclude(Phase::Completed);
            }
            _ => self.conclude(Phase::Failed),
        }
    }

    /// An answer that nobody waits for must not meet the next question.
    pub(super) fn drop_stray_answer(&mut self) {
        let there = self.o.step_run.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ACTION));
        if there && self.status.waiting_for.is_none() {
            self.empty_mailbox(vec![ACTION, COMMENT, DECIDED_BY]);
        }
    }

    pub(super) fn empty_mailbox(&mut self, keys: Vec<&'static str>) {
        let meta = &self.o.step_run.metadata;
        self.plan.effects.push(Effect::EmptyMailbox {
            step_run: meta.name.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            keys,
        });
    }
}
