//! Who writes into the mailbox is proven by the admission policies. A wait keeps the stamp of those that stood when it was
//! opened: what was written while they were away, or while others stood, does not count.

use super::{GUARD_AGAIN, Guard, Pass, StepRun, Truth, condition};
use crate::api::name::{ACTION, ANSWER, DECISION};

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
