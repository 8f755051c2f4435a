//! What people are asked while the attempt goes on: its agent waits for them in its pod. What they say is latched as always;
//! the gateway watches for it.

use super::{Act, AttemptResult, Pass, Phase};
use crate::decide::question;

impl Pass<'_> {
    /// What the agent has asked since it began to wait, one after the other, and the answer that lies in the mailbox. While a
    /// run fails nobody is asked any more: then the agent waits in vain, and its attempt ends as it would without.
    pub(super) fn hear_agent(&mut self) {
        self.take_asking();
        if self.closing() {
            self.status.waiting_for = None;
            return self.close_requests();
        }
        self.take_requests();
        self.review_requests();
        if self.has_waiting_requests() {
            self.wait_for_approvals();
        }
        if self.status.waiting_for.is_some() {
            self.status.phase = Some(Phase::WaitingForInput);
            return self.answer();
        }
        let until = question::asking(&self.status).map(|asking| asking.until.clone());
        if let (Some(next), Some(until)) = (question::open(&self.status).cloned(), until) {
            self.put(next);
            if let Some(wait) = &mut self.status.waiting_for {
                wait.agent_waits_until = Some(until);
                // What may be asked of the same attempt at its end is another wait.
                wait.id.push_str("-agent");
            }
        }
    }

    /// What the gateway wrote down for the agent of this attempt.
    pub(super) fn take_asking(&mut self) {
        if let Some(asking) = question::asking(&self.status).cloned() {
            self.take_questions(&asking.questions, &asking.at);
        }
    }

    /// The attempt has ended, and what it asked is nobody's business any more: whether the next one asks it, too, is its own.
    pub(super) fn withdraw_questions(&mut self) {
        if self.status.waiting_for.take_if(|wait| wait.agent_waits_until.is_some()).is_some() {
            self.status.phase = Some(Phase::Running);
        }
        self.close_requests();
        let attempt = self.status.attempt;
        self.status.questions.retain(|asked| asked.answer.is_some() || asked.attempt != attempt);
    }

    /// A person ends the step in the place of an answer, and with it the attempt that waits.
    pub(super) fn end_waiting(&mut self, act: Option<Act>, by: &str) {
        if let Some(act @ (Act::Fail | Act::Skip)) = act {
            let why = format!("{} while its agent waited, by {by}", act.past());
            self.record(AttemptResult::Unrecoverable, None, Some(&why));
        }
    }
}
