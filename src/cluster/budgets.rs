//! What is left of runs' budgets, kept up with the news of their StepRuns: who would start one more attempt must not go by what
//! the run's status said a moment ago.

use std::sync::{Mutex, PoisonError};

use crate::api::usage::Budget;
use crate::api::{StepRunStatus, Workflow};
use crate::decide::budget::{Ledger, RunBudget};
use crate::decide::{claim, step_run};

/// Shared by all passes.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<Ledger>);

impl Budgets {
    /// News of a StepRun, by its run and its UID; nothing where it is gone.
    pub fn hear(&self, run: &str, uid: &str, status: Option<&StepRunStatus>) {
        self.ledger(|ledger| ledger.hear(run, uid, status));
    }

    /// For a StepRun that may start an attempt, or raise it; its own copy may be newer than the cache.
    pub fn of_step_run(&self, o: &step_run::Observed, key: &str, run: Option<&Workflow>) -> RunBudget {
        let limit = o.definition.as_ref().and_then(|program| program.budget.as_ref());
        let waits = |s: &StepRunStatus| s.waiting_for.is_some() || claim::current_claim(s).is_none();
        let may_start = o.step_run.status.as_ref().is_none_or(|s| s.completed_at.is_none() && waits(s));
        if limit.is_none() || !may_start {
            return RunBudget::default();
        }
        let asker = run.and_then(|run| run.status.as_ref()?.budget.as_ref()?.step_run.clone());
        RunBudget { asker, ..self.ledger(|ledger| ledger.of_run(limit, key, Some(&o.step_run))) }
    }

    pub fn of_run(&self, limit: Option<&Budget>, key: &str) -> RunBudget {
        self.ledger(|ledger| ledger.of_run(limit, key, None))
    }

    fn ledger<T>(&self, act: impl FnOnce(&mut Ledger) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
