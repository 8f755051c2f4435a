//! What an agent asks people: its questions are put one after the other, each with its own schema. Once all are answered the
//! attempt that waits for them goes on, or another starts where it has ended.

use super::proof::has_mail;
use super::{
    Answer, AttemptCounts, AttemptResult, Duration, Pass, Phase, Report, Time, WaitKind, WaitingFor, condition,
    questions::read,
};
use crate::api::limits::QUESTIONS;
use crate::api::step_run::{AgentQuestion, AskedQuestion};
use crate::decide::{approval, question};

impl Pass<'_> {
    /// What the report of class Asked leads to, in the pass that sees it first and in all that follow.
    pub(super) fn asked(&mut self, report: &Report) {
        let attempt = self.status.attempt;
        let is_recorded = self.status.attempts.iter().any(|a| a.number == attempt);
        if !is_recorded {
            self.take_asking();
            self.take_requests();
            if !self.has_taken_requests() && !self.closing() {
                // Nobody can be asked before the policies stand.
                return;
            }
            self.take_questions(&report.questions, &report.at);
            // People may have answered what the attempt waited for in the moment in which it gave up.
            let asked = self.status.questions.iter().any(|q| q.attempt == attempt);
            let requested = approval::has_requested(&self.o.step_run, attempt);
            if question::open(&self.status).is_none() && !asked && !requested {
                // The gateway lets no such report pass.
                return self.end_attempt(
                    AttemptResult::InvalidOutput,
                    Some(report),
                    "it ended to ask, and asked nothing",
                );
            }
            self.record(AttemptResult::Asked, Some(report), None);
            self.requests_outlive_attempt();
            condition::clear(&mut self.status.conditions, "Started");
        }
        if self.closing() {
            return self.cancel();
        }
        self.ask_next();
    }

    pub(super) fn take_questions(&mut self, questions: &[AgentQuestion], at: &Time) {
        for asked in questions {
            let known = self.status.questions.iter().any(|q| q.name() == asked.name());
            if !known && self.status.questions.len() < QUESTIONS {
                self.status.questions.push(AskedQuestion {
                    key: asked.key.clone(),
                    question: asked.question.clone(),
                    schema: asked.schema.clone(),
                    attempt: self.status.attempt,
                    asked_at: at.clone(),
                    answer: None,
                });
            }
        }
    }

    /// The next question, or the next attempt. What lies in the mailbox was for the question before, and goes first.
    fn ask_next(&mut self) {
        self.review_requests();
        let Some(next) = question::open(&self.status).cloned() else {
            return if self.has_waiting_requests() { self.wait_for_approvals() } else { self.next_attempt(None) };
        };
        // It is asked already: what lies in the mailbox is for it.
        if let Some(wait) = &mut self.status.waiting_for {
            wait.agent_waits_until = None;
            self.status.phase = Some(Phase::WaitingForInput);
            return self.plan.look_again(Duration::ZERO);
        }
        self.put(next);
    }

    /// Puts a question of the agent to people.
    pub(super) fn put(&mut self, next: AskedQuestion) {
        if has_mail(&self.o.step_run) {
            self.status.phase = Some(Phase::Running);
            return;
        }
        self.ask(WaitKind::Question, &next.question);
        let gated = self.o.step_run.spec.gate.is_some();
        let options: &[&str] = if gated { &["fail"] } else { &["skip", "fail"] };
        if let Some(wait) = &mut self.status.waiting_for {
            wait.schema = next.schema;
            wait.options = options.iter().map(|o| (*o).to_owned()).collect();
        }
    }

    /// The answer to the question that is open, if it meets the schema.
    pub(super) fn take_reply(&mut self, wait: &WaitingFor, (by, at): (&str, Time), text: &str) {
        let schema = wait.schema.as_deref().map(serde_json::from_str).transpose();
        let value = match schema {
            Ok(schema) => read(text, schema.as_ref(), self.o.evaluator.as_ref()),
            Err(fault) => Err(format!("its schema cannot be read: {fault}")),
        };
        let value = match value {
            Ok(value) => value,
            Err(fault) => return self.refuse_answer(&format!("the answer was not recorded: {fault}; answer again")),
        };
        self.plan.notice("Answered", format!("answered by {by}"));
        self.status.waiting_for = None;
        let answers = self.status.counts.answers + 1;
        self.status.counts = AttemptCounts { answers, ..AttemptCounts::default() };
        let answer = Answer { value, by: by.to_owned(), at };
        if let Some(open) = self.status.questions.iter_mut().find(|q| q.answer.is_none()) {
            open.answer = Some(answer);
        }
        self.status.phase = Some(Phase::Running);
        // An agent that waits in its pod goes on by itself.
        if question::open(&self.status).is_none() && wait.agent_waits_until.is_none() {
            if self.has_waiting_requests() {
                self.wait_for_approvals();
            } else {
                self.next_attempt(None);
            }
        }
    }
}
