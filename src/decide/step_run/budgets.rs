//! A budget that is spent: nothing of the step starts until people have raised it.

use super::{Pass, Phase, Time, WaitKind, WaitingFor, questions::read};
use crate::api::step_run::BudgetRaise;
use crate::api::usage::Budget;
use crate::decide::budget::{self, BUDGET_SPENT, Spent};

impl Pass<'_> {
    /// Asks people: for the run one of its StepRuns does, which its own pass chooses among those that would start.
    pub(super) fn budget_spent(&mut self, spent: &Spent) {
        let asker = self.o.budget.asker.as_deref();
        if spent.of_run && asker != self.o.step_run.metadata.name.as_deref() {
            let message =
                "the budget of the run is spent; it starts when people have raised it (kubectl lockstep inbox)";
            return self.pend(BUDGET_SPENT, message);
        }
        super::condition::clear(&mut self.status.conditions, "Started");
        self.ask(WaitKind::BudgetSpent, &spent.told());
        let gated = self.o.step_run.spec.gate.is_some();
        let options: &[&str] = if gated { &["fail"] } else { &["skip", "fail"] };
        if let Some(wait) = &mut self.status.waiting_for {
            if spent.limit.tokens.is_none() {
                wait.commands.iter_mut().for_each(|command| *command = command.replace("\"tokens\"", "\"cost\""));
            }
            wait.of_run = spent.of_run;
            wait.schema = Some(spent.schema().to_string());
            wait.options = options.iter().map(|option| (*option).to_owned()).collect();
        }
    }

    /// The answer: a higher budget.
    pub(super) fn take_raise(&mut self, wait: &WaitingFor, (by, at): (&str, Time), text: &str) {
        let to = match self.raised(wait, text) {
            Ok(to) => to,
            Err(fault) => return self.refuse_answer(&format!("the answer was not recorded: {fault}; answer again")),
        };
        let whose = if wait.of_run { "run" } else { "step" };
        self.plan.notice("BudgetRaised", format!("the budget of the {whose} was raised by {by}"));
        let raise = BudgetRaise { of_run: wait.of_run, budget: to, by: by.to_owned(), at };
        budget::keep(&mut self.status, raise);
        self.status.waiting_for = None;
        self.status.counts.answers += 1;
        self.status.phase = Some(Phase::Pending);
    }

    fn raised(&self, wait: &WaitingFor, text: &str) -> Result<Budget, String> {
        let unreadable = |fault: serde_json::Error| format!("its schema cannot be read: {fault}");
        let schema = wait.schema.as_deref().map(serde_json::from_str).transpose().map_err(unreadable)?;
        let value = read(text, schema.as_ref(), self.o.evaluator.as_ref())?;
        let answer = serde_json::from_str(&value).map_err(|fault| fault.to_string())?;
        // What runs may have used more meanwhile.
        match budget::spent(&self.o.step_run, &self.o.budget).filter(|spent| spent.of_run == wait.of_run) {
            Some(spent) => budget::raised(&spent, &answer),
            None => Err("it is not spent any more".to_owned()),
        }
    }
}
