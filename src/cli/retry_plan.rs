//! Predicts what a retry of a finished run does with each step: whether its result is reused, or it runs again and why. It
//! knows what can be read before the new run begins; the operator compares all inputs of a step once the step may start.

use std::collections::BTreeMap;

use super::target::keys;
use super::text::inline;
use crate::api::definition::Definition;
use crate::api::step::{Order, Step};
use crate::api::step_run::{Act, StepRun, StepRunStatus};
use crate::api::workflow::{Phase, StepStatus};
use crate::api::{Agent, Workflow};
use crate::decide::gate;
use crate::decide::graph::works_otherwise;
use crate::decide::step_run::has_changed;
use crate::definition::order::{needed, sequence};

/// Items of one forEach that are listed by their keys, at most.
const ITEMS: usize = 3;

/// The old run, the definition of the new one, and the flags of the retry.
pub struct RetryInput<'a> {
    pub old: &'a Workflow,
    pub step_runs: &'a [StepRun],
    /// The definition that the new run takes.
    pub steps: &'a [Step],
    pub order: Order,
    /// The definition of the old run, where it can be read.
    pub then: Option<&'a Definition>,
    /// The Agents by name, where they can be read.
    pub agents: Option<&'a BTreeMap<String, Agent>>,
    pub from: Option<&'a str>,
    pub keep_results: bool,
    /// The user who makes the new run.
    pub by: Option<&'a str>,
}

/// What the retry does with a step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RetryAction {
    /// Its result is taken over; with a note for the user, which may be empty.
    Reuse(String),
    /// It runs again; with the reason.
    Rerun(String),
}

/// A step, or one item of it, with what the retry does with it.
struct PlannedStep {
    path: String,
    key: String,
    action: RetryAction,
}

/// Where in the definition a step stands, and in which items.
#[derive(Clone, Default)]
struct StepPosition {
    /// The path of its group, with a slash behind it.
    within: String,
    keys: Vec<String>,
    /// A step that it needs and that runs again.
    behind: Option<String>,
}

/// The paths of all steps, in the order in which they run, each with a text of what the retry does with it.
pub fn plan(input: &RetryInput<'_>) -> Vec<(String, String)> {
    let mut planned = Vec::new();
    input.list(input.steps, input.order, &StepPosition::default(), &mut planned);
    let mut paths: Vec<&str> = Vec::new();
    for one in &planned {
        if !paths.contains(&one.path.as_str()) {
            paths.push(&one.path);
        }
    }
    paths.iter().map(|path| ((*path).to_owned(), summed(&planned, path))).collect()
}

/// The text of what the retry does with a step, or with all its items.
fn summed(planned: &[PlannedStep], path: &str) -> String {
    let own: Vec<&PlannedStep> = planned.iter().filter(|one| one.path == path).collect();
    if let [one] = own.as_slice()
        && one.key.is_empty()
    {
        return match &one.action {
            RetryAction::Reuse(note) if note.is_empty() => "taken over".to_owned(),
            RetryAction::Reuse(note) => format!("taken over, {note}"),
            RetryAction::Rerun(why) => format!("runs again: {why}"),
        };
    }
    let again: Vec<(&str, &str)> = own
        .iter()
        .filter_map(|one| match &one.action {
            RetryAction::Rerun(why) => Some((one.key.as_str(), why.as_str())),
            RetryAction::Reuse(_) => None,
        })
        .collect();
    let (kept, items) = (own.len() - again.len(), own.len());
    match again.as_slice() {
        [] => format!("{items} items taken over"),
        [(_, first), ..] if kept == 0 && again.iter().all(|(_, why)| why == first) => {
            format!("all {items} items run again: {first}")
        }
        some => {
            let shown: Vec<String> = some.iter().take(ITEMS).map(|(key, why)| format!("{key} ({why})")).collect();
            let more = if some.len() > ITEMS { format!(", and {} more", some.len() - ITEMS) } else { String::new() };
            format!("{kept} of {items} items taken over; again: {}{more}", shown.join(", "))
        }
    }
}

impl RetryInput<'_> {
    /// Goes through a list of steps; gives the name of one that runs again.
    fn list(
        &self,
        steps: &[Step],
        order: Order,
        position: &StepPosition,
        planned: &mut Vec<PlannedStep>,
    ) -> Option<String> {
        let mut again: Vec<Option<String>> = vec![None; steps.len()];
        for index in sequence(steps, order) {
            let behind = needed(steps, order, index).into_iter().find_map(|n| again[n].clone());
            let position = StepPosition { behind: position.behind.clone().or(behind), ..position.clone() };
            again[index] = self.step(&steps[index], &position, planned);
        }
        again.into_iter().flatten().next()
    }

    fn step(&self, step: &Step, position: &StepPosition, planned: &mut Vec<PlannedStep>) -> Option<String> {
        let path = format!("{}{}", position.within, step.name);
        if step.for_each.is_none() {
            return self.execution(step, &path, position, planned);
        }
        let items = self.items(&path, &position.keys);
        if items.is_empty() {
            let action = self.action_without_items(&path, position);
            let again = matches!(action, RetryAction::Rerun(_)).then(|| step.name.clone());
            planned.push(PlannedStep { path, key: String::new(), action });
            return again;
        }
        let mut again = None;
        for key in items {
            let inner = StepPosition { keys: [position.keys.as_slice(), &[key]].concat(), ..position.clone() };
            again = self.execution(step, &path, &inner, planned).or(again);
        }
        again
    }

    /// Keys of the items that a forEach had, below the outer ones.
    fn items(&self, path: &str, outer: &[String]) -> Vec<String> {
        let mut found: Vec<(i32, String)> = Vec::new();
        for one in self.step_runs {
            let own = one.spec.path == path || one.spec.path.strip_prefix(path).is_some_and(|p| p.starts_with('/'));
            let all = keys(one);
            if own && all.len() > outer.len() && outer.iter().zip(&all).all(|(a, b)| a == b) {
                let key = all[outer.len()].to_owned();
                let index =
                    if all.len() == outer.len() + 1 { one.spec.item.as_ref().map_or(0, |i| i.index) } else { 0 };
                if !found.iter().any(|(_, known)| *known == key) {
                    found.push((index, key));
                }
            }
        }
        found.sort();
        found.into_iter().map(|(_, key)| key).collect()
    }

    fn action_without_items(&self, path: &str, position: &StepPosition) -> RetryAction {
        let listed = self.listed(path);
        match (self.forced(path, position), listed) {
            (Some(why), _) => RetryAction::Rerun(why),
            (None, Some(listed)) if listed.phase == Phase::Completed && listed.counts.is_none_or(|c| c.total == 0) => {
                RetryAction::Reuse("its list was empty".to_owned())
            }
            (None, listed) => action_without_step_run(listed),
        }
    }

    fn execution(
        &self,
        step: &Step,
        path: &str,
        position: &StepPosition,
        planned: &mut Vec<PlannedStep>,
    ) -> Option<String> {
        if !step.steps.is_empty() {
            let inner = StepPosition { within: format!("{path}/"), ..position.clone() };
            let again = self.list(&step.steps, step.order.unwrap_or_default(), &inner, planned);
            return again.map(|_| step.name.clone());
        }
        let action = self.action_of(step, path, position);
        let again = matches!(action, RetryAction::Rerun(_)).then(|| step.name.clone());
        planned.push(PlannedStep { path: path.to_owned(), key: position.keys.join("/"), action });
        again
    }

    /// Why a step runs again whatever its result is: `--from` names it, or a step that it needs runs again.
    fn forced(&self, path: &str, position: &StepPosition) -> Option<String> {
        let named = |from: &str| path == from || path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/'));
        if self.from.is_some_and(named) {
            return Some("--from names it".to_owned());
        }
        position.behind.as_ref().map(|step| format!("{step} before it runs again"))
    }

    fn action_of(&self, step: &Step, path: &str, position: &StepPosition) -> RetryAction {
        if let Some(why) = self.forced(path, position) {
            return RetryAction::Rerun(why);
        }
        let is_it = |one: &&StepRun| one.spec.path == path && keys(one).iter().copied().eq(&position.keys);
        let Some(found) = self.step_runs.iter().find(is_it) else { return action_without_step_run(self.listed(path)) };
        let status = found.status.clone().unwrap_or_default();
        if let Some(why) = why_not_reusable(found, &status) {
            return RetryAction::Rerun(why);
        }
        if let Some(why) = self.what_changed(step, path, found) {
            return RetryAction::Rerun(why);
        }
        RetryAction::Reuse(self.of_gate(step, path, &status))
    }

    fn listed(&self, path: &str) -> Option<&StepStatus> {
        self.old.status.as_ref()?.steps.iter().find(|listed| listed.path == path)
    }

    /// What of the step or its Agent has changed since the old run, if anything has.
    fn what_changed(&self, step: &Step, path: &str, found: &StepRun) -> Option<String> {
        if let Some(then) = self.then.and_then(|definition| definition.step(path)) {
            if then.ask != step.ask {
                return Some("its question was changed".to_owned());
            }
            if then.agent_id != step.agent_id || then.parameters != step.parameters || then.documents != step.documents
            {
                return Some("its agentId, parameters or documents were changed".to_owned());
            }
        }
        let agent = self.agents.and_then(|agents| agents.get(&found.spec.agent_id)).filter(|_| !self.keep_results)?;
        works_otherwise(found, agent)
            .then(|| format!("template or schemas of its Agent {} were changed", found.spec.agent_id))
    }

    /// A note on the gate: who accepted, or why it opens again.
    fn of_gate(&self, step: &Step, path: &str, status: &StepRunStatus) -> String {
        let (Some(wanted), Some(open)) = (&step.gate, &status.gate) else { return String::new() };
        let then = self.then.and_then(|definition| definition.step(path)).and_then(|then| then.gate.as_ref());
        let decided = gate::decided_by(open).unwrap_or_default();
        if then.is_some_and(|then| then != wanted) {
            return "its gate asks for something else now and opens again".to_owned();
        }
        if wanted.four_eyes && self.by.is_some_and(|by| open.decisions.iter().any(|d| d.accepted && d.decided_by == by))
        {
            return "its gate opens again: it asks for four eyes, and you make the new run".to_owned();
        }
        if decided.is_empty() { String::new() } else { format!("accepted by {}", inline(&decided, 300)) }
    }
}

/// What the retry does with a step of which there is no StepRun.
fn action_without_step_run(listed: Option<&StepStatus>) -> RetryAction {
    match listed {
        Some(listed) if listed.when == Some(false) => RetryAction::Reuse("skipped: its when was false".to_owned()),
        Some(listed) if listed.step_run.is_some() || listed.phase == Phase::Completed => {
            RetryAction::Rerun("its StepRun is gone".to_owned())
        }
        _ => RetryAction::Rerun("it had not begun".to_owned()),
    }
}

/// Why there is no result to reuse; nothing where there is one.
fn why_not_reusable(found: &StepRun, status: &StepRunStatus) -> Option<String> {
    let class = status.error.as_ref().map_or_else(String::new, |error| format!(" ({})", error.class));
    match status.phase.unwrap_or_default() {
        _ if has_changed(found) => Some("its document was exchanged".to_owned()),
        Phase::Completed if status.result.is_some() || gate::is_approval_alone(found) => None,
        Phase::Completed => {
            let by = status.actions.iter().rfind(|action| action.action == Act::Skip);
            Some(
                by.map_or_else(|| "it gave no result".to_owned(), |one| format!("{} skipped it", inline(&one.by, 256))),
            )
        }
        Phase::Failed => Some(format!("it failed{class}")),
        Phase::Cancelled => Some("it was cancelled".to_owned()),
        _ => Some("it did not complete".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn definition() -> Definition {
        let steps = json!([
            {"name": "brief", "agentId": "a"},
            {"name": "plan", "agentId": "b", "gate": {"name": "plan", "fourEyes": true}},
            {"name": "parts", "forEach": {"in": "[]", "as": "part"}, "agentId": "a"},
            {"name": "optional", "agentId": "a", "when": "false"},
            {"name": "build", "steps": [{"name": "compile", "agentId": "a"}, {"name": "test", "agentId": "a"}]}
        ]);
        Definition { steps: serde_json::from_value(steps).expect("steps"), ..Definition::default() }
    }

    fn step_run(path: &str, key: Option<&str>, status: &Value) -> StepRun {
        let agent = if path == "plan" { "b" } else { "a" };
        let spec = json!({"workflow": {"name": "shop", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": path, "agentId": agent, "parameters": "{}", "inputDigest": "d",
            "item": key.map(|key| json!({"key": key, "index": 0, "value": null}))});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": path}, "spec": spec, "status": status}))
        .expect("a StepRun")
    }

    fn done() -> Value {
        json!({"phase": "Completed", "result": {"attempt": 1, "digest": "d"},
            "attempts": [{"number": 1, "round": 1, "result": "Succeeded", "completedAt": "2026-11-21T10:00:00Z", "agentDigest": "other"}]})
    }

    fn accepted(by: &str) -> Value {
        let decision = json!({"documentType": "plan", "scopeId": "u", "accepted": true, "decidedBy": by,
            "decidedAt": "2026-11-21T10:00:00Z", "digest": "d", "round": 1});
        let mut status = done();
        status["gate"] = json!({"state": "Accepted", "round": 1, "outputDigest": "d", "openedAt": "2026-11-21T10:00:00Z",
            "policy": "p", "decisions": [decision]});
        status
    }

    fn old() -> Workflow {
        let listed = |path: &str, phase: &str| json!({"path": path, "phase": phase});
        let mut optional = listed("optional", "Skipped");
        optional["when"] = json!(false);
        let steps = json!([
            listed("brief", "Completed"),
            listed("plan", "Completed"),
            listed("parts", "Completed"),
            optional,
            listed("build", "Failed"),
            listed("build/compile", "Failed"),
            listed("build/test", "Skipped")
        ]);
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
            "metadata": {"name": "shop", "uid": "u"}, "spec": {}, "status": {"phase": "Failed", "steps": steps}}))
        .expect("a run")
    }

    fn planned(change: impl Fn(&mut RetryInput<'_>)) -> String {
        let (old, then) = (old(), definition());
        let failed = json!({"phase": "Failed", "error": {"class": "Unrecoverable", "message": "no", "attempt": 1}});
        let step_runs = [
            step_run("brief", None, &done()),
            step_run("plan", None, &accepted("ann")),
            step_run("parts", Some("E1"), &done()),
            step_run("parts", Some("E2"), &done()),
            step_run("build/compile", None, &failed),
        ];
        let mut input = RetryInput {
            old: &old,
            step_runs: &step_runs,
            steps: &then.steps,
            order: Order::Chain,
            then: Some(&then),
            agents: None,
            from: None,
            keep_results: false,
            by: Some("bob"),
        };
        change(&mut input);
        plan(&input).into_iter().flat_map(|(path, action)| [path, ": ".to_owned(), action, "\n".to_owned()]).collect()
    }

    #[test]
    fn what_completed_is_taken_over_and_the_rest_runs_again() {
        let expected = "brief: taken over\nplan: taken over, accepted by ann\nparts: 2 items taken over\noptional: taken over, skipped: its when was false\nbuild/compile: runs again: it failed (Unrecoverable)\nbuild/test: runs again: compile before it runs again\n";
        assert_eq!(planned(|_| ()), expected);
    }

    #[test]
    fn from_names_the_first_and_all_behind_it_follow() {
        let text = planned(|input| input.from = Some("plan"));
        for line in [
            "brief: taken over\n",
            "plan: runs again: --from names it\n",
            "parts: all 2 items run again: plan before it runs again\n",
            "build/test: runs again: optional before it runs again\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn what_was_changed_runs_again() {
        let agent = |name: &str| {
            let mut agent = Agent::new(name, crate::api::AgentSpec::default());
            agent.metadata.name = Some(name.to_owned());
            (name.to_owned(), agent)
        };
        let agents = BTreeMap::from([agent("b")]);
        let text_of = |keep: bool| {
            let agents = agents.clone();
            planned(move |input| {
                // The objects outlive the call.
                input.agents = Some(Box::leak(Box::new(agents.clone())));
                input.keep_results = keep;
            })
        };
        assert!(text_of(false).contains("plan: runs again: template or schemas of its Agent b were changed\n"));
        assert!(text_of(true).contains("plan: taken over, accepted by ann\n"));
        let mine = planned(|input| input.by = Some("ann"));
        assert!(mine.contains("plan: taken over, its gate opens again: it asks for four eyes"), "{mine}");
        let mut now = definition();
        now.steps[0].parameters = json!({"n": 1}).as_object().cloned();
        let now: &'static Definition = Box::leak(Box::new(now));
        let text = planned(|input| input.steps = &now.steps);
        assert!(text.starts_with("brief: runs again: its agentId, parameters or documents were changed\n"), "{text}");
    }

    #[test]
    fn branches_that_need_nothing_new_are_taken_over() {
        let mut graph = definition();
        for (step, needs) in graph.steps.iter_mut().zip([vec![], vec!["brief"], vec![], vec![], vec!["plan"]]) {
            step.needs = needs.into_iter().map(str::to_owned).collect();
        }
        let graph: &'static Definition = Box::leak(Box::new(graph));
        let text = planned(|input| {
            input.steps = &graph.steps;
            input.order = Order::Graph;
            input.from = Some("brief");
        });
        assert!(text.contains("plan: runs again: brief before it runs again\n"), "{text}");
        assert!(text.contains("parts: 2 items taken over\n"), "{text}");
    }

    #[test]
    fn items_are_told_one_by_one_where_they_differ() {
        let again = |key: &str| PlannedStep {
            path: "a".into(),
            key: key.into(),
            action: RetryAction::Rerun("it failed".into()),
        };
        let kept =
            |key: &str| PlannedStep { path: "a".into(), key: key.into(), action: RetryAction::Reuse(String::new()) };
        assert_eq!(
            summed(&[kept("1"), again("2"), again("3"), again("4"), again("5")], "a"),
            "1 of 5 items taken over; again: 2 (it failed), 3 (it failed), 4 (it failed), and 1 more"
        );
    }
}
