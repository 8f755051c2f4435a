//! Budgets of tokens and cost, of a step and of a run: whether one is spent, and who asks people to raise it. Attempts that run
//! already go on, and may overshoot; no other one starts.

#![expect(clippy::disallowed_macros, reason = "a schema is JSON")]

use std::collections::HashMap;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde_json::{Value, json};

use crate::api::condition;
use crate::api::step_run::{BudgetRaise, StepRun, StepRunStatus, WaitKind};
use crate::api::usage::{Budget, Usage, billionths, cost_of};
use crate::api::workflow::BudgetStatus;
use crate::decide::claim;

/// By name.
type StepRuns = RedBlackTreeMapSync<String, Arc<StepRun>>;

/// Why an attempt that could start does not: the reason of its condition `Started`.
pub const BUDGET_SPENT: &str = "BudgetSpent";

/// What a StepRun knows of the budget of its run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunBudget {
    /// With what people have raised; none where the run has no budget.
    pub limit: Option<Budget>,
    /// What all agents of the run have used.
    pub used: Usage,
    /// The StepRun that asks people.
    pub asker: Option<String>,
}

/// A budget that is spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    pub of_run: bool,
    pub limit: Budget,
    pub used: Usage,
}

impl Spent {
    /// "the budget of the run is spent: 12000 of 10000 tokens (2000 over)".
    pub fn told(&self) -> String {
        let whose = if self.of_run { "run" } else { "step" };
        format!("the budget of the {whose} is spent: {}", self.limit.told(&self.used))
    }

    /// What an answer must be: a higher budget.
    pub fn schema(&self) -> Value {
        let mut properties = serde_json::Map::new();
        if self.limit.tokens.is_some() {
            properties.insert("tokens".to_owned(), json!({"type": "integer", "minimum": self.used.tokens() + 1}));
        }
        if self.limit.cost.is_some() {
            properties.insert("cost".to_owned(), json!({"type": ["string", "number"]}));
        }
        json!({"type": "object", "properties": properties, "additionalProperties": false, "minProperties": 1})
    }
}

/// All that the agent of a StepRun has used so far, in the attempt that runs too.
pub fn used_by(status: &StepRunStatus) -> Usage {
    #[cfg(test)]
    tests::LOOKS.with(|looks| looks.set(looks.get() + 1));
    let mut used = status.usage.clone().unwrap_or_default();
    let is_recorded = status.attempts.iter().any(|a| a.number == status.attempt);
    let running = status.agent.as_ref().and_then(|agent| agent.usage.as_ref());
    if let Some(running) = running.filter(|_| !is_recorded && claim::current_claim(status).is_some()) {
        used.add(running);
    }
    used
}

/// The budget of the step as people have raised it.
pub fn of_step(step_run: &StepRun) -> Option<Budget> {
    let limit = step_run.spec.budget.clone()?;
    let raises = step_run.status.iter().flat_map(|s| &s.budget_raises).filter(|raise| !raise.of_run);
    Some(raises.fold(limit, |limit, raise| limit.raised(&raise.budget)))
}

/// That of a run, by what its StepRuns say.
pub fn of_run<'a>(limit: Option<&Budget>, step_runs: impl Iterator<Item = &'a StepRun>) -> RunBudget {
    let Some(limit) = limit else { return RunBudget::default() };
    let mut budget = RunBudget { limit: Some(limit.clone()), ..RunBudget::default() };
    for status in step_runs.filter_map(|own| own.status.as_ref()) {
        budget.used.add(&used_by(status));
        budget.raise_by(status);
    }
    budget
}

impl RunBudget {
    /// Takes what was raised in a StepRun.
    pub fn raise_by(&mut self, status: &StepRunStatus) {
        for raise in status.budget_raises.iter().filter(|raise| raise.of_run) {
            self.limit = self.limit.take().map(|limit| limit.raised(&raise.budget));
        }
    }
}

/// What the StepRuns of all runs have used and raised, kept up with their news: what a run comes to is known without a look at
/// all that it has.
#[derive(Debug, Default)]
pub struct Ledger {
    runs: HashMap<String, Account>,
}

/// Of one run.
#[derive(Debug, Default)]
struct Account {
    sum: Sum,
    /// By UID: those that have used something, and those in which something was raised.
    used: HashMap<String, Sum>,
    raised: HashMap<String, Vec<Budget>>,
}

/// A usage that can be taken away again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    tokens_in: i128,
    tokens_out: i128,
    billionths: i128,
    /// How many have said what it cost.
    costs: i128,
}

impl Sum {
    fn of(used: &Usage) -> Self {
        Self {
            tokens_in: used.tokens_in.into(),
            tokens_out: used.tokens_out.into(),
            billionths: used.billionths().into(),
            costs: i128::from(used.cost.is_some()),
        }
    }

    fn plus(self, other: Self, times: i128) -> Self {
        Self {
            tokens_in: self.tokens_in + times * other.tokens_in,
            tokens_out: self.tokens_out + times * other.tokens_out,
            billionths: self.billionths + times * other.billionths,
            costs: self.costs + times * other.costs,
        }
    }

    fn usage(self) -> Usage {
        let most = |sum: i128| i64::try_from(sum).unwrap_or(i64::MAX);
        let cost = (self.costs > 0).then(|| cost_of(most(self.billionths)));
        Usage { tokens_in: most(self.tokens_in), tokens_out: most(self.tokens_out), cost, models: Vec::new() }
    }
}

impl Ledger {
    /// News of a StepRun; nothing where it is gone.
    pub fn hear(&mut self, run: &str, uid: &str, status: Option<&StepRunStatus>) {
        let sum = status.map(|status| Sum::of(&used_by(status))).filter(|sum| *sum != Sum::default());
        let raises = status.iter().flat_map(|s| &s.budget_raises).filter(|raise| raise.of_run);
        let raises: Vec<Budget> = raises.map(|raise| raise.budget.clone()).collect();
        if !self.runs.contains_key(run) && sum.is_none() && raises.is_empty() {
            return;
        }
        let account = self.runs.entry(run.to_owned()).or_default();
        let before = match sum {
            Some(sum) => account.used.insert(uid.to_owned(), sum),
            None => account.used.remove(uid),
        };
        account.sum = account.sum.plus(sum.unwrap_or_default(), 1).plus(before.unwrap_or_default(), -1);
        if raises.is_empty() {
            account.raised.remove(uid);
        } else {
            account.raised.insert(uid.to_owned(), raises);
        }
        if account.used.is_empty() && account.raised.is_empty() {
            self.runs.remove(run);
        }
    }

    /// What is left of a run's budget. The copy of the one StepRun that is decided about counts before what was heard of it.
    pub fn of_run(&self, limit: Option<&Budget>, run: &str, own: Option<&StepRun>) -> RunBudget {
        let Some(limit) = limit else { return RunBudget::default() };
        let none = Account::default();
        let account = self.runs.get(run).unwrap_or(&none);
        let (mut sum, mut limit) = (account.sum, limit.clone());
        let uid = own.and_then(|own| own.metadata.uid.as_deref()).unwrap_or_default();
        for (_, raises) in account.raised.iter().filter(|(of, _)| of.as_str() != uid) {
            limit = raises.iter().fold(limit, |limit, raise| limit.raised(raise));
        }
        let mut budget = RunBudget { limit: Some(limit), ..RunBudget::default() };
        if let Some(status) = own.and_then(|own| own.status.as_ref()) {
            sum = sum.plus(account.used.get(uid).copied().unwrap_or_default(), -1).plus(Sum::of(&used_by(status)), 1);
            budget.raise_by(status);
        }
        budget.used = sum.usage();
        budget
    }
}

/// Whether an attempt of this StepRun may not start because a budget is spent: its own comes first.
pub fn spent(step_run: &StepRun, run: &RunBudget) -> Option<Spent> {
    let used = step_run.status.as_ref().map(used_by).unwrap_or_default();
    let own = of_step(step_run).map(|limit| Spent { of_run: false, limit, used });
    let of_run = run.limit.clone().map(|limit| Spent { of_run: true, limit, used: run.used.clone() });
    own.into_iter().chain(of_run).find(|budget| budget.limit.is_spent_by(&budget.used))
}

/// What an answer raises a spent budget to; an error says why it does not let anything start.
pub fn raised(spent: &Spent, answer: &Value) -> Result<Budget, String> {
    let cost = match answer.get("cost") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(number) => Some(number.to_string()),
        None => None,
    };
    if let Some(cost) = &cost {
        billionths(cost)?;
    }
    let to = Budget { tokens: answer.get("tokens").and_then(Value::as_i64), cost };
    let raised = spent.limit.raised(&to);
    if raised.is_spent_by(&spent.used) {
        return Err(format!("it is still spent: {}; give more than that", raised.told(&spent.used)));
    }
    Ok(raised)
}

/// Records it, the newest ten.
pub fn keep(status: &mut StepRunStatus, raise: BudgetRaise) {
    status.budget_raises.push(raise);
    let surplus = status.budget_raises.len().saturating_sub(10);
    status.budget_raises.drain(..surplus);
}

/// What the run says of its budget: the first StepRun that would start an attempt asks, and stays the one while it does.
pub fn status(budget: &RunBudget, step_runs: &StepRuns, before: Option<&BudgetStatus>) -> Option<BudgetStatus> {
    let limit = budget.limit.clone()?;
    if !limit.is_spent_by(&budget.used) {
        return Some(BudgetStatus { limit, spent: false, step_run: None });
    }
    let wants = |own: &&StepRun| {
        let status = own.status.as_ref().filter(|s| s.completed_at.is_none());
        status.is_some_and(|s| {
            let asks = s.waiting_for.as_ref().is_some_and(|wait| wait.kind == WaitKind::BudgetSpent && wait.of_run);
            let held = condition::get(&s.conditions, "Started").is_some_and(|c| c.reason == BUDGET_SPENT);
            asks || (held && s.waiting_for.is_none())
        })
    };
    // Whoever was named stays it also where this copy does not show yet that it wants to: two would ask.
    let may_want = |own: &StepRun| {
        let is_launched = |s: &StepRunStatus| s.job.as_ref().is_some_and(|job| job.attempt == s.attempt);
        let is_free = |s: &StepRunStatus| s.completed_at.is_none() && s.waiting_for.is_none() && !is_launched(s);
        wants(&own) || own.status.as_ref().is_none_or(is_free)
    };
    let known = before.and_then(|before| before.step_run.as_ref());
    let stays = known.filter(|name| step_runs.get(*name).is_some_and(|own| may_want(own))).cloned();
    let first = || {
        let wanting = step_runs.values().map(AsRef::as_ref).filter(wants);
        let born =
            |own: &&StepRun| (own.metadata.creation_timestamp.as_ref().map(|at| at.0), own.metadata.name.clone());
        wanting.min_by_key(born).and_then(|own| own.metadata.name.clone())
    };
    Some(BudgetStatus { limit, spent: true, step_run: stays.or_else(first) })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const AT: &str = "2026-01-01T00:00:00Z";

    thread_local! {
        /// How often it was asked in this thread what a StepRun has used.
        pub static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

    fn looks() -> usize {
        LOOKS.with(Cell::take)
    }

    fn with_uid(uid: &str, status: &Value) -> StepRun {
        let mut own = step_run(uid, &json!(null), status);
        own.metadata.uid = Some(uid.to_owned());
        own
    }

    /// A run of 5,000 items in which one item after the other says what it used, and each that waits looks again.
    #[test]
    fn what_a_run_has_used_costs_no_look_at_all_of_its_items() {
        const ITEMS: usize = 5_000;
        let mut ledger = Ledger::default();
        let status = |tokens: i64| with_uid("x", &used(tokens)).status.expect("a status");
        for item in 0..ITEMS {
            ledger.hear("run", &item.to_string(), Some(&status(1)));
        }
        assert_eq!(looks(), ITEMS, "at the start each once");
        let own = with_uid("0", &used(1));
        for item in 0..ITEMS {
            ledger.hear("run", &item.to_string(), Some(&status(2)));
            let budget = ledger.of_run(Some(&limit(3)), "run", Some(&own));
            let others = i64::try_from(2 * item.min(ITEMS) + (ITEMS - 1 - item)).expect("a number");
            assert_eq!(budget.used.tokens(), others + 1, "its own copy says 1");
        }
        assert_eq!(looks(), 2 * ITEMS, "the news, and the own copy: not all of them for each");
        let budget = ledger.of_run(Some(&limit(3)), "run", None);
        let step_runs: StepRuns =
            (0..ITEMS).map(|n| (n.to_string(), Arc::new(with_uid(&n.to_string(), &used(2))))).collect();
        assert!(status_of_run(&budget, &step_runs).is_some_and(|status| status.spent));
        assert_eq!(looks(), 0, "nor does the run's own pass");
    }

    fn status_of_run(budget: &RunBudget, step_runs: &StepRuns) -> Option<BudgetStatus> {
        super::status(budget, step_runs, None)
    }

    proptest! {
        /// Whatever comes in whatever order, it is what a look at all of them gives.
        #[test]
        fn a_ledger_comes_to_the_same_as_a_look_at_all(
            news in proptest::collection::vec((0..2_usize, 0..4_usize, proptest::option::of((0..50_i64, proptest::option::of(0..3_000_000_000_i64), proptest::option::of(50..200_i64)))), 0..40)
        ) {
            let mut ledger = Ledger::default();
            let mut there: BTreeMap<(usize, usize), StepRun> = BTreeMap::new();
            for (run, item, said) in news {
                let status = said.map(|(tokens, cost, raised)| {
                    let mut status = used(tokens);
                    if let Some(cost) = cost {
                        status["usage"]["cost"] = json!(cost_of(cost));
                    }
                    status["budgetRaises"] = raised
                        .map(|tokens| json!([{"ofRun": true, "budget": {"tokens": tokens}, "by": "ann", "at": AT}]))
                        .unwrap_or(json!([]));
                    status
                });
                let own = status.map(|status| with_uid(&item.to_string(), &status));
                ledger.hear(&run.to_string(), &item.to_string(), own.as_ref().and_then(|own| own.status.as_ref()));
                match own {
                    Some(own) => drop(there.insert((run, item), own)),
                    None => drop(there.remove(&(run, item))),
                }
                for run in 0..2 {
                    let of: Vec<&StepRun> = there.iter().filter(|((r, _), _)| *r == run).map(|(_, own)| own).collect();
                    let expected = of_run(Some(&limit(60)), of.iter().copied());
                    prop_assert_eq!(&ledger.of_run(Some(&limit(60)), &run.to_string(), None), &expected);
                    for own in of {
                        prop_assert_eq!(&ledger.of_run(Some(&limit(60)), &run.to_string(), Some(own)), &expected);
                    }
                }
            }
            for ((run, item), _) in there {
                ledger.hear(&run.to_string(), &item.to_string(), None);
            }
            prop_assert!(ledger.runs.is_empty(), "nothing is kept of what is gone");
        }
    }

    fn step_run(name: &str, budget: &Value, status: &Value) -> StepRun {
        let mut step_run = StepRun::new(name, crate::api::StepRunSpec::default());
        step_run.spec.budget = serde_json::from_value(budget.clone()).expect("a budget");
        step_run.status = serde_json::from_value(status.clone()).expect("a status");
        step_run
    }

    fn used(tokens: i64) -> Value {
        json!({"usage": {"tokensIn": tokens, "tokensOut": 0}})
    }

    fn limit(tokens: i64) -> Budget {
        Budget { tokens: Some(tokens), cost: None }
    }

    #[test]
    fn the_attempt_that_runs_counts_once() {
        let claim = json!({"attempt": 2, "id": "i", "podName": "p", "podUID": "u", "at": AT});
        let ended = json!([{"number": 2, "round": 1, "result": "Retryable", "completedAt": AT}]);
        let running = |attempts: &Value, attempt: i32| {
            let agent = json!({"claim": claim, "usage": {"tokensIn": 5, "tokensOut": 1}});
            let status = json!({"attempt": attempt, "usage": {"tokensIn": 10, "tokensOut": 0}, "attempts": attempts, "agent": agent});
            used_by(&serde_json::from_value(status).expect("a status")).tokens()
        };
        assert_eq!(running(&json!([]), 2), 16);
        assert_eq!(running(&ended, 2), 10, "it is in the sum");
        assert_eq!(running(&ended, 3), 10, "of an attempt before");
    }

    #[test]
    fn a_step_and_its_run_are_held_by_their_own_budgets_until_they_are_raised() {
        let raise =
            |of_run: bool, tokens: i64| json!({"ofRun": of_run, "budget": {"tokens": tokens}, "by": "ann", "at": AT});
        let with = |tokens: i64, raises: Value| {
            let mut status = used(tokens);
            status["budgetRaises"] = raises;
            status
        };
        let run = |tokens: i64| RunBudget {
            limit: Some(limit(100)),
            used: Usage { tokens_in: tokens, ..Usage::default() },
            asker: None,
        };
        for (status, of_run, expected) in [
            (used(9), run(9), None),
            (used(10), run(10), Some("the budget of the step is spent: 10 of 10 tokens")),
            (used(12), run(112), Some("the budget of the step is spent: 12 of 10 tokens (2 over)")),
            (used(5), run(112), Some("the budget of the run is spent: 112 of 100 tokens (12 over)")),
            (with(12, json!([raise(false, 20)])), run(12), None),
            (
                with(12, json!([raise(true, 20)])),
                run(12),
                Some("the budget of the step is spent: 12 of 10 tokens (2 over)"),
            ),
            (used(5), RunBudget::default(), None),
        ] {
            let own = step_run("s", &json!({"tokens": 10}), &status);
            assert_eq!(spent(&own, &of_run).map(|s| s.told()).as_deref(), expected, "{status}");
        }
        let own =
            [step_run("a", &json!(null), &with(70, json!([raise(true, 150)]))), step_run("b", &json!(null), &used(40))];
        let budget = of_run(Some(&limit(100)), own.iter());
        assert_eq!((budget.limit, budget.used.tokens_in), (Some(limit(150)), 110));
        assert_eq!(of_run(None, own.iter()), RunBudget::default());
    }

    #[test]
    fn only_an_answer_that_lets_something_start_raises_it() {
        let spent = Spent {
            of_run: false,
            limit: Budget { tokens: Some(10), cost: Some("1".to_owned()) },
            used: Usage { tokens_in: 12, cost: Some("1.5".to_owned()), ..Usage::default() },
        };
        for (answer, expected) in [
            (json!({"tokens": 20, "cost": "2"}), Ok((Some(20), Some("2")))),
            (json!({"tokens": 20, "cost": 2.25}), Ok((Some(20), Some("2.25")))),
            (json!({"tokens": 20}), Err("still spent: 12 of 20 tokens, cost 1.5 of 1 (0.5 over)")),
            (json!({"tokens": 12, "cost": "2"}), Err("still spent: 12 of 12 tokens")),
            (json!({"tokens": 20, "cost": "much"}), Err("cost: must be a decimal number")),
            (json!({"tokens": 20, "cost": -2}), Err("cost: must be a decimal number")),
        ] {
            match (raised(&spent, &answer), expected) {
                (Ok(found), Ok((tokens, cost))) => assert_eq!((found.tokens, found.cost.as_deref()), (tokens, cost)),
                (Err(found), Err(words)) => assert!(found.contains(words), "{answer}: {found}"),
                (found, expected) => panic!("{answer}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn one_step_run_asks_for_the_whole_run() {
        let held = json!({"usage": {"tokensIn": 60, "tokensOut": 0}, "conditions": [{"type": "Started", "status": "False",
            "reason": BUDGET_SPENT, "message": "", "lastTransitionTime": AT}]});
        let table = |all: &[(&str, &Value)]| -> StepRuns {
            all.iter()
                .map(|(name, status)| ((*name).to_owned(), Arc::new(step_run(name, &json!(null), status))))
                .collect()
        };
        let asker = |all: &[(&str, &Value)], before: Option<&str>| {
            let before = before.map(|name| BudgetStatus { step_run: Some(name.to_owned()), ..BudgetStatus::default() });
            let (limit, all) = (limit(100), table(all));
            let budget = of_run(Some(&limit), all.values().map(AsRef::as_ref));
            let found = status(&budget, &all, before.as_ref()).expect("a budget");
            (found.spent, found.step_run)
        };
        let mut asks = held.clone();
        asks["conditions"] = json!([]);
        asks["waitingFor"] =
            json!({"id": "w", "kind": "BudgetSpent", "ofRun": true, "question": "?", "options": [], "since": AT});
        let mut over = held.clone();
        over["completedAt"] = json!(AT);
        let other = used(60);
        let named = |name: &str| (true, Some(name.to_owned()));
        assert_eq!(asker(&[("a", &used(60)), ("b", &used(20))], None), (false, None));
        assert_eq!(asker(&[("a", &other), ("b", &other)], None), (true, None), "nothing would start");
        assert_eq!(asker(&[("a", &other), ("b", &held), ("c", &held)], None), named("b"));
        assert_eq!(asker(&[("a", &other), ("b", &held), ("c", &asks)], Some("c")), named("c"), "it stays the one");
        assert_eq!(asker(&[("b", &held), ("c", &over)], Some("c")), named("b"), "it is over");
        assert_eq!(asker(&[("b", &held), ("c", &used(60))], Some("c")), named("c"), "this copy does not show it yet");
        let mut runs = used(60);
        runs["attempt"] = json!(1);
        runs["job"] = json!({"attempt": 1, "name": "j", "uid": "j"});
        assert_eq!(asker(&[("b", &held), ("c", &runs)], Some("c")), named("b"), "it needs nobody");
        assert_eq!(status(&RunBudget::default(), &table(&[("a", &held)]), None), None);
    }
}
