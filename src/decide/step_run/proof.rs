//! Who writes into the mailbox is proven by the admission policies, and when by the API server's dates. A wait keeps the stamp of
//! the policies that stood when it was opened: what was written while they were away, or while others stood, does not count.

use super::{GUARD_AGAIN, Guard, Mail, Pass, StepRun, Time, Truth, condition};
use crate::api::name::{ACTION, ANSWER, DECISION};
use crate::decide::mail::{self, Arrival, Deadline};

/// Condition of a StepRun, and of its run, that waits for the policies.
pub const POLICIES: &str = "GatePolicyInstalled";

pub(super) fn has_mail(step_run: &StepRun) -> bool {
    let annotations = step_run.metadata.annotations.as_ref();
    [DECISION, ACTION, ANSWER].iter().any(|key| annotations.is_some_and(|a| a.contains_key(*key)))
}

impl<'a> Pass<'a> {
    /// Whether the admission policies stand. Asking costs two requests: where the decision turns on it and nobody has asked,
    /// it is taken again.
    pub(super) fn policies(&mut self) -> &'a Guard {
        self.lacks_policies |= self.o.guard == Guard::NotAsked;
        &self.o.guard
    }

    /// When what lies in the mailbox was written, as the API server says now; nothing where nothing lies there, or nobody can say.
    /// Asking costs a request: where the decision turns on it and nobody has asked, it is taken again.
    pub(super) fn written(&mut self) -> Option<&'a Time> {
        self.lacks_mail |= self.o.mail == Mail::NotAsked;
        match &self.o.mail {
            Mail::Read(written) => written.as_ref(),
            Mail::NotAsked => None,
        }
    }

    /// Whether what lies in the mailbox came in time for a wait that began then.
    pub(super) fn arrival(&mut self, since: &Time, deadline: Option<&Deadline>) -> Arrival {
        mail::arrival(self.written(), since, deadline, &self.o.now)
    }

    /// Whether a deadline has passed without a decision or an answer. Only the API server says that none lies there.
    pub(super) fn has_passed(&mut self, deadline: &Time) -> bool {
        let has_passed = self.o.now.0 >= deadline.0;
        self.lacks_mail |= has_passed && self.o.mail == Mail::NotAsked;
        has_passed
    }

    /// The stamp of the policies that stand now; empty while they do not.
    pub(super) fn stamp(&mut self) -> String {
        match self.policies() {
            Guard::Proven(stamp) => {
                condition::clear(&mut self.status.conditions, POLICIES);
                return stamp.clone();
            }
            Guard::Missing(why) => self.policies_missing(&format!("no answer counts: {why}")),
            Guard::NotAsked => {}
        }
        String::new()
    }

    /// The wait that is open, under the policies that stand now.
    pub(super) fn stamp_wait(&mut self) {
        let stamp = self.stamp();
        if let Some(wait) = &mut self.status.waiting_for {
            wait.policy = stamp;
        }
    }

    /// Says what is missing, with the remedy, once as an event, and looks again.
    pub(super) fn policies_missing(&mut self, what: &str) {
        if condition::get(&self.status.conditions, POLICIES).is_none() {
            self.plan.warn("PolicyMissing", what.to_owned());
        }
        self.condition(POLICIES, Truth::False, "PolicyMissing", what);
        self.plan.look_again(GUARD_AGAIN);
    }
}
