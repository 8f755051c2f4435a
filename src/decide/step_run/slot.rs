//! Where attempts are limited: whether this StepRun needs a slot now. One is held from the launch to the end of an attempt,
//! never while people are waited for or a back-off runs.

use super::{Hold, JobSeen, Observed, StepRun, StepRunStatus, build, condition, gate};

/// Whether an attempt may be launched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slot {
    #[default]
    Yours,
    /// All are taken, and so many others wait longer.
    Wait { ahead: usize },
}

/// What a StepRun wants of the ledger of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    /// An attempt would be launched now.
    Launch,
    /// An attempt was launched and has not ended.
    Holds,
}

/// Whether the Job of the current attempt was made: stored after it was, and cleared when the attempt ends.
pub fn was_launched(step_run: &StepRun) -> bool {
    step_run.status.as_ref().is_some_and(launched)
}

pub(super) fn launched(status: &StepRunStatus) -> bool {
    condition::get(&status.conditions, "Started")
        .is_some_and(|c| matches!(c.reason.as_str(), "Launched" | "PodNotReady" | "Claimed"))
}

/// Whether an attempt was launched and has not ended.
pub fn holds_slot(step_run: &StepRun, job: &JobSeen) -> bool {
    let status = step_run.status.clone().unwrap_or_default();
    let agent = status.agent.as_ref();
    let claimed = agent.and_then(|a| a.claim.as_ref()).is_some_and(|c| c.attempt == status.attempt);
    let begun = claimed || launched(&status) || matches!(job, JobSeen::Present { ended: false, .. });
    begun && may_run(step_run, &status)
}

fn may_run(step_run: &StepRun, status: &StepRunStatus) -> bool {
    let idle = status.completed_at.is_some() || status.waiting_for.is_some() || status.result.is_some();
    let agent = status.agent.as_ref();
    let reported = agent.and_then(|a| a.report.as_ref()).is_some_and(|r| r.attempt == status.attempt);
    !idle && !reported && gate::has_agent(step_run)
}

/// Decided on everything but the slot itself.
pub fn need(o: &Observed) -> Need {
    let status = o.step_run.status.clone().unwrap_or_default();
    if holds_slot(&o.step_run, &o.job) {
        return Need::Holds;
    }
    let ready = o.agent.as_deref().is_some_and(|agent| build::not_ready(agent).is_none());
    let due = status.not_before.as_ref().is_none_or(|at| o.now.0 >= at.0);
    let free = o.job == JobSeen::Absent && o.refusal.is_none();
    let wanted = may_run(&o.step_run, &status) && ready && due && free && o.hold == Hold::No;
    if wanted { Need::Launch } else { Need::Nothing }
}
