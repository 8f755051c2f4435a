//! An independent reading of a run: from the pinned definition and the StepRuns that the API server has, how far each step
//! has come, whether another may begin, and what it gives. Not the product's own walk: that one is what is judged. It
//! knows the few forms of expression that `maker` writes, and says nothing where it cannot know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lockstep::api::StepRun;
use lockstep::api::definition::Definition;
use lockstep::api::step::{OnFailure, Order, Step};
use lockstep::api::step_run::AttemptResult;
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use super::super::maker::{items_of, place_of};
use super::super::server::{Kind, Server};
use super::super::workload::items;
use super::upstream;

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Something before it has not ended.
    Ahead,
    Open,
    Well,
    Skipped,
    /// Failed, and passed over.
    Passed,
    /// Failed; whether that can be passed over at all.
    Failed(bool),
    /// What this reading does not know decides.
    Unsure,
}

impl End {
    /// Whether what follows may begin.
    pub fn lets_on(self) -> bool {
        matches!(self, Self::Well | Self::Skipped | Self::Passed | Self::Unsure)
    }

    fn phase(self) -> Option<&'static str> {
        match self {
            Self::Well => Some("Completed"),
            Self::Skipped => Some("Skipped"),
            Self::Passed => Some("Failed"),
            _ => None,
        }
    }
}

/// A list of steps, for the items around it.
#[derive(Clone, Copy)]
struct List<'a> {
    steps: &'a [Step],
    order: Order,
    /// `group/`, or empty.
    prefix: &'a str,
    keys: &'a [String],
}

pub struct Reading<'a> {
    definition: &'a Definition,
    /// By path and keys.
    found: BTreeMap<(String, Vec<String>), Arc<StepRun>>,
}

/// Keys of the items that a StepRun stands in, outermost first.
pub fn keys(step_run: &StepRun) -> Vec<String> {
    let last = step_run.spec.scope_chain.last().map(|link| link.scope_id.clone()).unwrap_or_default();
    last.split('/').skip(1).map(str::to_owned).collect()
}

impl<'a> Reading<'a> {
    pub fn of(server: &Server, definition: &'a Definition) -> Self {
        let own = server.all(Kind::StepRun).map(|s| s.typed::<StepRun>());
        let own = own.filter(|s| s.spec.workflow.uid == definition.workflow_uid);
        Self { definition, found: own.map(|s| ((s.spec.path.clone(), keys(&s)), s)).collect() }
    }

    fn top(&self) -> List<'_> {
        List { steps: &self.definition.steps, order: self.definition.order, prefix: "", keys: &[] }
    }

    /// How the run as a whole stands.
    pub fn all(&self) -> End {
        self.list(self.top())
    }

    /// By path, how the steps stand that are in no forEach.
    pub fn outside(&self) -> Vec<(String, End)> {
        let mut found = Vec::new();
        self.lay_out(self.top(), &mut found);
        found
    }

    fn lay_out(&self, list: List<'_>, found: &mut Vec<(String, End)>) {
        for (step, end) in list.steps.iter().zip(self.ends(list)) {
            let path = format!("{}{}", list.prefix, step.name);
            found.push((path.clone(), end));
            if step.for_each.is_none() && !matches!(end, End::Skipped | End::Ahead) {
                let (prefix, order) = (format!("{path}/"), step.order.unwrap_or_default());
                self.lay_out(List { steps: &step.steps, order, prefix: &prefix, keys: list.keys }, found);
            }
        }
    }

    /// Whether a step may have been begun for these items: what it needs has ended, and nothing skips it.
    pub fn may_begin(&self, path: &str, keys: &[String]) -> Result<(), String> {
        let (mut steps, mut order) = (self.definition.steps.as_slice(), self.definition.order);
        let (mut walked, mut depth) = (String::new(), 0);
        for name in path.split('/') {
            let prefix = if walked.is_empty() { String::new() } else { format!("{walked}/") };
            let here = List { steps, order, prefix: &prefix, keys: &keys[..depth] };
            let mut known = vec![None; steps.len()];
            let at = steps.iter().position(|s| s.name == name).ok_or_else(|| format!("{name} is no step"))?;
            for needed in needs(steps, order, at) {
                let end = self.end(here, needed, &mut known);
                if !end.lets_on() {
                    return Err(format!("{} is {end:?}", steps[needed].name));
                }
            }
            if self.end(here, at, &mut known) == End::Skipped {
                return Err(format!("{name} is to be skipped"));
            }
            let step = &steps[at];
            walked = format!("{prefix}{name}");
            depth += usize::from(step.for_each.is_some());
            (steps, order) = (step.steps.as_slice(), step.order.unwrap_or_default());
        }
        Ok(())
    }

    /// Whether a step, or a group around it, was skipped or passed over, for these items.
    pub fn was_passed_by(&self, path: &str, keys: &[String]) -> bool {
        let ends = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]);
        let mut depth = 0;
        for part in ends {
            let end = keys.get(..depth).and_then(|keys| self.end_at(part, keys));
            if matches!(end, Some(End::Skipped | End::Passed | End::Unsure)) {
                return true;
            }
            depth += usize::from(self.definition.step(part).is_some_and(|s| s.for_each.is_some()));
        }
        false
    }

    /// Whether a group around a step that is in no forEach has failed, and was passed over.
    pub fn is_in_failed(&self, path: &str) -> bool {
        path.match_indices('/').any(|(at, _)| self.end_at(&path[..at], &[]) == Some(End::Passed))
    }

    fn ends(&self, list: List<'_>) -> Vec<End> {
        let mut known = vec![None; list.steps.len()];
        (0..list.steps.len()).map(|at| self.end(list, at, &mut known)).collect()
    }

    /// Looks at what a step needs, and at nothing else: what its `when` reads is among that.
    fn end(&self, list: List<'_>, at: usize, known: &mut Vec<Option<End>>) -> End {
        if let Some(end) = known[at] {
            return end;
        }
        let mut needed = Vec::new();
        for other in needs(list.steps, list.order, at) {
            needed.push((list.steps[other].name.as_str(), self.end(list, other, known)));
        }
        let end = self.step(&list.steps[at], list, &needed);
        known[at] = Some(end);
        end
    }

    fn list(&self, list: List<'_>) -> End {
        sum(&self.ends(list))
    }

    fn step(&self, step: &Step, list: List<'_>, needed: &[(&str, End)]) -> End {
        if !needed.iter().all(|(_, end)| end.lets_on()) {
            return End::Ahead;
        }
        let when = step.when.as_deref();
        let asked = |name: &str| when.is_some_and(|w| w.contains(&format!("steps.{name}.")));
        let handed_on = |(name, end): &(&str, End)| *end == End::Skipped && !asked(name);
        if list.order == Order::Graph && needed.iter().any(handed_on) {
            return End::Skipped;
        }
        match when.map(|when| self.condition(when, list.keys)) {
            Some(Some(false)) => return End::Skipped,
            Some(None) if !self.is_begun(step, list) => return End::Unsure,
            _ => {}
        }
        if list.order == Order::Graph && needed.iter().any(|(name, end)| *end == End::Unsure && !asked(name)) {
            return End::Unsure;
        }
        let path = format!("{}{}", list.prefix, step.name);
        let end = if step.for_each.is_some() {
            self.items(step, &path, list.keys)
        } else {
            self.body(step, &path, list.keys)
        };
        let way = step.on_failure.unwrap_or(self.definition.on_failure);
        match end {
            End::Failed(true) if way == OnFailure::Continue && step.gate.is_none() => End::Passed,
            end => end,
        }
    }

    fn is_begun(&self, step: &Step, list: List<'_>) -> bool {
        self.found.contains_key(&(format!("{}{}", list.prefix, step.name), list.keys.to_vec()))
    }

    fn body(&self, step: &Step, path: &str, keys: &[String]) -> End {
        if !step.steps.is_empty() {
            let order = step.order.unwrap_or_default();
            return self.list(List { steps: &step.steps, order, prefix: &format!("{path}/"), keys });
        }
        let Some(found) = self.found.get(&(path.to_owned(), keys.to_vec())) else { return End::Open };
        let status = found.status.clone().unwrap_or_default();
        match status.phase {
            Some(Phase::Completed) if upstream::is_open(found.spec.gate.as_ref(), status.gate.as_ref()) => End::Well,
            Some(Phase::Failed) => End::Failed(status.error.is_none_or(|e| e.class != AttemptResult::Rejected)),
            Some(Phase::Cancelled) => End::Failed(false),
            _ => End::Open,
        }
    }

    fn items(&self, step: &Step, path: &str, keys: &[String]) -> End {
        let known = self.keys_of(step, keys);
        let own = known.clone().unwrap_or_else(|| self.begun(path, keys));
        let ends: Vec<End> = own.iter().map(|key| self.item(step, path, keys, key)).collect();
        let failed = ends.iter().filter(|e| matches!(e, End::Failed(_))).count();
        if ends.contains(&End::Failed(false)) {
            return End::Failed(false);
        }
        let most = match step.for_each.as_ref().and_then(|f| f.tolerate.clone()) {
            None => 0,
            Some(IntOrString::Int(number)) => usize::try_from(number).unwrap_or_default(),
            Some(IntOrString::String(text)) => {
                own.len() * text.trim_end_matches('%').parse::<usize>().unwrap_or_default() / 100
            }
        };
        if known.is_none() && failed > 0 {
            return End::Unsure;
        }
        if failed > most {
            return End::Failed(true);
        }
        let others: Vec<End> = ends.into_iter().filter(|e| !matches!(e, End::Failed(_))).collect();
        match sum(&others) {
            End::Well if known.is_none() => End::Unsure,
            end => end,
        }
    }

    fn item(&self, step: &Step, path: &str, keys: &[String], key: &str) -> End {
        let mut keys = keys.to_vec();
        keys.push(key.to_owned());
        self.body(step, path, &keys)
    }

    /// Keys of the items that something was begun for.
    fn begun(&self, path: &str, around: &[String]) -> Vec<String> {
        let inside = format!("{path}/");
        let here =
            self.found.keys().filter(|(p, keys)| (p == path || p.starts_with(&inside)) && keys.starts_with(around));
        let own: BTreeSet<String> = here.filter_map(|(_, keys)| keys.get(around.len()).cloned()).collect();
        own.into_iter().collect()
    }

    /// Keys of all items, where the list can be known.
    fn keys_of(&self, step: &Step, keys: &[String]) -> Option<Vec<String>> {
        let for_each = step.for_each.as_ref()?;
        let list = self.value(&for_each.items, keys)?;
        let all = list.as_array()?.iter().enumerate();
        Some(
            all.map(|(index, item)| match for_each.key {
                Some(_) => item["id"].as_str().unwrap_or_default().to_owned(),
                None => index.to_string(),
            })
            .collect(),
        )
    }

    // ---- expressions

    fn condition(&self, when: &str, keys: &[String]) -> Option<bool> {
        if let Some(name) = when.strip_prefix("parameters.") {
            return self.definition.parameters.get(name)?.as_bool();
        }
        if when.ends_with(".id != \"k0\"") {
            let last = keys.last()?;
            return Some(last != "k0" && last != "0");
        }
        let (name, rest) = when.strip_prefix("steps.")?.split_once(".phase ")?;
        let (sign, phase) = rest.split_once(' ')?;
        let (path, keys) = self.place(name, keys)?;
        let is = self.end_at(&path, &keys)?.phase()? == phase.trim_matches('"');
        Some(is == (sign == "=="))
    }

    /// What an expression gives here, if it is one of the known forms.
    pub fn value(&self, text: &str, keys: &[String]) -> Option<Value> {
        let text = text.strip_prefix("${ ").and_then(|t| t.strip_suffix(" }")).unwrap_or(text);
        if text == "parameters.items" {
            return self.definition.parameters.get("items").cloned();
        }
        if text == "documents.inline.items" {
            return Some(items(2, 0));
        }
        // An agent writes the same to its document as to its output; instead of one that is missing people put another.
        if let Some((name, _)) = text.strip_prefix("has(documents.doc_").and_then(|rest| rest.split_once(')')) {
            let (path, keys) = self.place(name, keys)?;
            return self.output(&path, &keys)?.get("items").cloned();
        }
        let (name, _) = text.strip_prefix("steps.")?.split_once('.')?;
        let (path, keys) = self.place(name, keys)?;
        let output = self.output(&path, &keys)?;
        if text == format!("steps.{name}.output") {
            Some(output)
        } else if text == place_of(name) {
            Some(output.get("place").cloned().unwrap_or_default())
        } else if text == items_of(name) {
            Some(output.get("items").cloned().unwrap_or_else(|| json!([])))
        } else {
            None
        }
    }

    /// Path of a step, and those of the keys around it that count for it.
    fn place(&self, name: &str, keys: &[String]) -> Option<(String, Vec<String>)> {
        fn search(steps: &[Step], prefix: &str, depth: usize, name: &str) -> Option<(String, usize)> {
            steps.iter().find_map(|step| {
                let path = format!("{prefix}{}", step.name);
                if step.name == name {
                    return Some((path, depth));
                }
                search(&step.steps, &format!("{path}/"), depth + usize::from(step.for_each.is_some()), name)
            })
        }
        let (path, depth) = search(&self.definition.steps, "", 0, name)?;
        // An item of the step itself, where `collect` asks.
        Some((path, keys.get(..depth)?.to_vec()))
    }

    fn end_at(&self, path: &str, keys: &[String]) -> Option<End> {
        let (prefix, name) = path.rsplit_once('/').map_or((String::new(), path), |(p, n)| (format!("{p}/"), n));
        let list = match self.definition.step(prefix.trim_end_matches('/')) {
            Some(group) => List { steps: &group.steps, order: group.order.unwrap_or_default(), prefix: &prefix, keys },
            None => self.top(),
        };
        let at = list.steps.iter().position(|s| s.name == name)?;
        Some(self.end(list, at, &mut vec![None; list.steps.len()]))
    }

    /// What a step gave that has ended.
    fn output(&self, path: &str, keys: &[String]) -> Option<Value> {
        let step = self.definition.step(path)?;
        match self.end_at(path, keys)? {
            End::Well => {}
            End::Skipped | End::Passed => return Some(Value::Null),
            _ => return None,
        }
        if step.for_each.is_none() {
            return self.gives(step, path, keys);
        }
        let items = self.keys_of(step, keys)?.into_iter().map(|key| {
            let mut inner = keys.to_vec();
            inner.push(key.clone());
            match self.item(step, path, keys, &key) {
                End::Well => match step.for_each.as_ref().and_then(|f| f.collect.as_deref()) {
                    Some(collect) if step.steps.is_empty() => {
                        let own = self.gives(step, path, &inner)?;
                        (collect == place_of(&step.name)).then(|| own.get("place").cloned().unwrap_or_default())
                    }
                    Some(collect) => self.value(collect, &inner),
                    None => self.gives(step, path, &inner),
                },
                End::Failed(_) => Some(Value::Null),
                _ => None,
            }
        });
        items.collect::<Option<Vec<Value>>>().map(Value::Array)
    }

    /// What a step or an item that ended well gives.
    fn gives(&self, step: &Step, path: &str, keys: &[String]) -> Option<Value> {
        if let Some(last) = step.steps.last() {
            return match &step.output {
                Some(text) => self.value(text, keys),
                None => self.output(&format!("{path}/{}", last.name), keys),
            };
        }
        let found = self.found.get(&(path.to_owned(), keys.to_vec()))?;
        let read = |text: &str| serde_json::from_str(text).ok();
        if let Some(reuse) = &found.spec.reuse {
            return reuse.output.as_deref().map_or(Some(Value::Null), read);
        }
        let status = found.status.clone()?;
        if let Some(answer) = status.answer {
            return read(&answer.value);
        }
        if found.spec.agent_id.is_empty() {
            let decisions = status.gate.map(|g| g.decisions).unwrap_or_default();
            let by: Vec<&str> = decisions.iter().map(|d| d.decided_by.as_str()).collect();
            return Some(json!({"accepted": true, "decidedBy": by.join(", "), "comment": null}));
        }
        // Without a result a person skipped it.
        let report = status.agent.and_then(|a| a.report).filter(|_| status.result.is_some());
        report.and_then(|r| r.output).map_or(Some(Value::Null), |text| read(&text))
    }

    /// What the run gives, if that can be known.
    pub fn run_output(&self) -> Option<Value> {
        match &self.definition.output {
            Some(text) => self.value(text, &[]),
            None => self.output(&self.definition.steps.last()?.name, &[]),
        }
    }
}

/// Indexes of the steps that must have ended before this one begins.
pub fn needs(steps: &[Step], order: Order, at: usize) -> Vec<usize> {
    let named = |other: &Step| steps[at].needs.contains(&other.name);
    match order {
        Order::Chain => (0..at).collect(),
        Order::Graph => (0..steps.len()).filter(|n| named(&steps[*n])).collect(),
    }
}

/// How a list stands whose steps stand so.
fn sum(ends: &[End]) -> End {
    if let Some(fatal) = ends.iter().find(|e| **e == End::Failed(false)) {
        *fatal
    } else if ends.contains(&End::Failed(true)) {
        End::Failed(true)
    } else if ends.iter().any(|e| matches!(e, End::Ahead | End::Open)) {
        End::Open
    } else if ends.contains(&End::Unsure) {
        End::Unsure
    } else {
        End::Well
    }
}
