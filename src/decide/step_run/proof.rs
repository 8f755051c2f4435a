//! Who writes into the mailbox is proven by the admission policies. A wait keeps the stamp of those that stood when it was
//! opened: what was written while they were away, or while others stood, does not count.

use super::{GUARD_AGAIN, Guard, Observed, Pass, ReportClass, StepRun, Truth, condition, gate, slot, step_run};
use crate::api::name::{ACTION, ANSWER, DECISION};
use crate::decide::claim;

/// Condition of a StepRun, and of its run, that waits for the policies.
pub const POLICIES: &str = "GatePolicyInstalled";

/// Whether this pass needs to know if the policies stand. Asking costs two requests, so it is not asked for nothing.
pub fn needs_guard(o: &Observed) -> bool {
    let status = o.step_run.status.as_ref();
    if status.is_some_and(|s| s.completed_at.is_some()) {
        return false;
    }
    let unproven = status.and_then(|s| s.waiting_for.as_ref()).is_some_and(|w| w.policy.is_empty());
    has_mail(&o.step_run) || unproven || opens_gate(&o.step_run) || asks(o)
}

fn has_mail(step_run: &StepRun) -> bool {
    let annotations = step_run.metadata.annotations.as_ref();
    [DECISION, ACTION, ANSWER].iter().any(|key| annotations.is_some_and(|a| a.contains_key(*key)))
}

fn reported(step_run: &StepRun) -> Option<ReportClass> {
    let status = step_run.status.as_ref()?;
    claim::current_report(status).map(|r| r.class)
}

fn opens_gate(step_run: &StepRun) -> bool {
    let reviewable = reported(step_run) == Some(ReportClass::Succeeded) || !gate::has_agent(step_run);
    let status = step_run.status.as_ref();
    let waits = status.is_some_and(|s| s.gate.as_ref().is_some_and(|g| g.round == s.round));
    step_run.spec.gate.is_some() && reviewable && !waits
}

/// Whether a person is asked in this pass. Only what has begun, or cannot begin, may end in a question.
fn asks(o: &Observed) -> bool {
    let (status, report) = (o.step_run.status.as_ref(), reported(&o.step_run));
    let begun = report.is_some() || o.refusal.is_some() || status.is_some_and(slot::launched);
    let may = if gate::has_agent(&o.step_run) {
        begun && report != Some(ReportClass::Succeeded)
    } else {
        o.step_run.spec.ask.is_some()
    };
    let waits = status.is_some_and(|s| s.waiting_for.is_some());
    may && !waits && step_run(o).status.is_some_and(|s| s.waiting_for.is_some())
}

impl Pass<'_> {
    /// The stamp of the policies that stand now; empty while they do not.
    pub(super) fn stamp(&mut self) -> String {
        match &self.o.guard {
            Guard::Proven(stamp) => {
                condition::clear(&mut self.status.conditions, POLICIES);
                return stamp.clone();
            }
            Guard::Missing(why) => self.policies_missing(&format!("no answer counts: {why}")),
            Guard::NotAsked => self.plan.look_again(GUARD_AGAIN),
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

    /// Says what is missing and the remedy, once as an event, and looks again.
    pub(super) fn policies_missing(&mut self, what: &str) {
        let message = format!("{what}; reinstall the chart");
        if condition::get(&self.status.conditions, POLICIES).is_none() {
            self.plan.warn("PolicyMissing", message.clone());
        }
        self.condition(POLICIES, Truth::False, "PolicyMissing", &message);
        self.plan.look_again(GUARD_AGAIN);
    }
}
