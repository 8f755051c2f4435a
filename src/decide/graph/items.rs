//! Items of a forEach: the list, its keys, its slots. What has ended is not looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::list::may_pass;
use super::{Expression, Failure, Fault, Frame, Outcome, Output, Phase, Seen, Start, Step, Walk, name, tally};
use crate::api::limits::{DOCUMENT_BYTES, ITEMS};
use crate::api::step_run::{AttemptResult, StepRunStatus};
use crate::decide::document;
use crate::decide::scope::{self, Entity, Item};
use crate::decide::settled::{Ended, List};
use crate::definition::expression::{self, kind};
use crate::definition::program::ForEach;
use crate::mutant::{self, Mutant};

type Keyed = Vec<(String, Arc<Value>)>;

impl Walk<'_> {
    pub(super) fn for_each(&mut self, what: (&Step, &ForEach), frame: &Frame) -> Outcome {
        let (step, for_each) = what;
        let path: &str = &step.path;
        let place = format!("{path}\0{}", frame.keys.join("/"));
        let known = self.settled.lists.remove(&place).filter(|list| self.is_latched(list, path, frame));
        if known.is_none() && frame.start == Start::Behind && !self.has_begun(path, frame) {
            return Outcome::Ahead;
        }
        // No digest is latched inside of items: what this older copy makes of the list must not be remembered for it.
        if known.is_none() && frame.start == Start::Behind && !frame.keys.is_empty() {
            return Outcome::Open;
        }
        self.tally(path).plural = true;
        let mut list = match known.map_or_else(|| self.new_list(for_each, path, frame), Ok) {
            Ok(list) => list,
            Err(fault) => return self.at_fault(fault, path, frame),
        };
        if frame.keys.is_empty() {
            let tally = self.tally(path);
            tally.collection_digest = Some(list.digest.clone());
            tally.collection_documents.clone_from(&list.documents);
        }
        let total = list.items.len();
        self.tally(path).counts.total += i32::try_from(total).unwrap_or(i32::MAX);
        self.expect(step, total);
        for (path, sum) in &list.sums {
            self.tallies.entry(path.clone()).or_default().add(sum);
        }
        self.accounted += list.step_runs;
        let outcome = self.items(what, frame, Arc::make_mut(&mut list));
        self.settled.lists.insert(place, list);
        outcome
    }

    /// Those that are open, then as many new ones as there are slots.
    fn items(&mut self, what: (&Step, &ForEach), frame: &Frame, list: &mut List) -> Outcome {
        let (step, for_each) = what;
        let allowed = for_each.tolerate.of(list.items.len());
        let allowed = allowed + usize::from(mutant::on(Mutant::ToleranceMiscounted));
        let busy: BTreeSet<usize> =
            list.open.iter().filter(|(_, own)| self.is_busy(own)).map(|(index, _)| *index).collect();
        let mut used = busy.len();
        let limit = if mutant::on(Mutant::SlotsIgnored) { usize::MAX } else { for_each.max_parallel };
        let mut failing: Option<Failure> = None;
        let mut looked: Vec<usize> = list.open.keys().copied().collect();
        if frame.start != Start::May && list.open.is_empty() && list.ended.is_empty() {
            looked = (0..list.items.len()).collect();
        }
        for index in looked {
            let has_slot = busy.contains(&index);
            let free = (has_slot || used < limit) && list.failed <= allowed;
            let start = if free || frame.start == Start::Behind { frame.start } else { Start::Not };
            match self.item((step, for_each), &Frame { start, ..frame.clone() }, index, list) {
                Looked::Began if !has_slot => used += 1,
                Looked::On if !has_slot && self.goes_on(list, index) => used += 1,
                Looked::Failing(f) => failing = failing.or(Some(f)),
                _ => {}
            }
        }
        let mut index = list.frontier;
        while frame.start == Start::May
            && index < list.items.len()
            && used < limit
            && list.failed <= allowed
            && list.fatal.is_none()
            && failing.is_none()
        {
            if !list.is_begun(index) {
                match self.item((step, for_each), frame, index, list) {
                    Looked::Began => used += 1,
                    Looked::Failing(f) => failing = failing.or(Some(f)),
                    // Somebody else began it: another operator, or this one in a pass that it forgot.
                    Looked::On if self.goes_on(list, index) => used += 1,
                    Looked::On | Looked::Ahead => {}
                }
            }
            if index == list.frontier && list.is_begun(index) {
                list.frontier += 1;
            }
            index += 1;
        }
        self.verdict(list, allowed, failing, &step.path, frame)
    }

    fn verdict(
        &mut self,
        list: &mut List,
        allowed: usize,
        failing: Option<Failure>,
        path: &str,
        frame: &Frame,
    ) -> Outcome {
        let spent = if list.failed > allowed { list.first.clone() } else { None };
        let failing = failing.filter(|f| !may_pass(f.class) || allowed == 0);
        if let Some(failure) = list.fatal.clone().or(spent).or(failing).or(list.cancelled.clone()) {
            let runs = list.open.values().any(|own| !own.is_empty());
            return if runs { Outcome::Failing(failure) } else { Outcome::Failed(failure) };
        }
        if list.ended.size() < list.items.len() {
            return Outcome::Open;
        }
        match gathered(list) {
            Ok(items) => {
                let anew = |e: &Ended| matches!(e, Ended::Done(seen) if seen.fresh);
                let fresh = frame.fresh || list.failed > 0 || list.ended.values().any(anew);
                Outcome::Done(Seen { phase: Phase::Completed, output: Output::List(items), fresh })
            }
            Err(message) => {
                self.tally(path).counts.failed += 1;
                Outcome::Failed(Failure { place: frame.place(path), class: AttemptResult::OutputTooLarge, message })
            }
        }
    }

    /// Looks at one item, and takes it out of the open ones when it has ended.
    fn item(&mut self, (step, for_each): (&Step, &ForEach), frame: &Frame, index: usize, list: &mut List) -> Looked {
        let path: &str = &step.path;
        self.looked += 1;
        let (key, value) = list.items[index].clone();
        let mut inner = frame.clone();
        inner.keys.push(key);
        let number = i32::try_from(index).unwrap_or(i32::MAX);
        inner.items.push(Entity { as_name: for_each.as_name.clone(), index: number, value });
        let outer = (std::mem::take(&mut self.tallies), self.accounted, std::mem::take(&mut self.unfinished));
        let before = self.stand.creates.len();
        let (outcome, done) = self.body(step, &inner);
        let outcome = self.collected(outcome, for_each, path, &Frame { done, ..inner.clone() });
        let (began, found) = (self.stand.creates.len() > before, self.accounted - outer.1);
        let is_begun = began || found > 0 || list.open.contains_key(&index);
        let over = matches!(outcome, Outcome::Done(_) | Outcome::Failed(_));
        if step.group().is_some() && (is_begun || over) {
            tally::item(&mut self.tally(path).counts, &outcome);
        }
        let own = std::mem::replace(&mut self.tallies, outer.0);
        let unfinished = std::mem::replace(&mut self.unfinished, outer.2);
        if !is_begun && !over && inner.start != Start::May {
            // It was not its turn: it leaves no trace.
            self.forget_inside(path, &inner);
            return Looked::Ahead;
        }
        for (path, sum) in &own {
            self.tallies.entry(path.clone()).or_default().add(sum);
        }
        self.unfinished.extend(unfinished.iter().cloned());
        list.open.remove(&index);
        match outcome {
            Outcome::Done(seen) => {
                self.close((index, own, found), path, Ended::Done(seen), list, &inner);
                Looked::On
            }
            Outcome::Failed(failure) => {
                list.failed += 1;
                if failure.class == AttemptResult::Cancelled {
                    list.cancelled.get_or_insert(failure);
                } else {
                    if !may_pass(failure.class) {
                        list.fatal.get_or_insert(failure.clone());
                    }
                    list.first.get_or_insert(failure);
                }
                self.close((index, own, found), path, Ended::Failed, list, &inner);
                Looked::On
            }
            Outcome::Failing(failure) => {
                list.open.insert(index, unfinished);
                Looked::Failing(failure)
            }
            Outcome::Open | Outcome::Ahead if !is_begun => Looked::Ahead,
            Outcome::Open | Outcome::Ahead => {
                list.open.insert(index, unfinished);
                if began { Looked::Began } else { Looked::On }
            }
        }
    }

    fn close(
        &mut self,
        (index, own, step_runs): (usize, BTreeMap<String, tally::Tally>, usize),
        path: &str,
        ended: Ended,
        list: &mut List,
        inner: &Frame,
    ) {
        for (path, sum) in own {
            list.sums.entry(path).or_default().add(&sum);
        }
        list.step_runs += step_runs;
        list.ended.insert_mut(index, ended);
        self.forget_inside(path, inner);
    }

    /// What is remembered of forEach inside an item.
    fn forget_inside(&mut self, path: &str, inner: &Frame) {
        let (prefix, keys) = (format!("{path}/"), inner.keys.join("/"));
        let within = format!("{keys}/");
        self.settled.lists.retain(|place, _| {
            let (inside, own) = place.split_once('\0').unwrap_or_default();
            !(inside.starts_with(&prefix) && (own == keys || own.starts_with(&within)))
        });
    }

    fn collected(&mut self, outcome: Outcome, for_each: &ForEach, path: &str, frame: &Frame) -> Outcome {
        let (Outcome::Done(seen), Some(collect)) = (&outcome, &for_each.collect) else { return outcome };
        if seen.phase != Phase::Completed {
            return outcome;
        }
        match self.evaluate(collect, frame, "forEach.collect") {
            Ok(value) => Outcome::Done(Seen { output: Output::Value(Arc::new(value)), ..seen.clone() }),
            Err(fault) => self.at_fault(fault, path, frame),
        }
    }

    /// Whether an item has an attempt queued or running; those that wait for a person have given their slot up.
    fn is_busy(&self, own: &[String]) -> bool {
        let runs = |s: &StepRunStatus| {
            s.completed_at.is_none() && !matches!(s.phase, Some(Phase::WaitingForAcceptance | Phase::WaitingForInput))
        };
        own.iter().any(|name| self.o.step_runs.get(name).is_none_or(|s| s.status.as_ref().is_none_or(runs)))
    }

    /// Whether a remembered list is the one that was latched: another operator may have read another one first.
    fn is_latched(&mut self, list: &List, path: &str, frame: &Frame) -> bool {
        let latched = self.latched.get(path).filter(|_| frame.keys.is_empty());
        let same = latched.and_then(|s| s.collection_digest.as_ref()).is_none_or(|digest| *digest == list.digest);
        if !same {
            let inside = format!("{path}/");
            self.settled.lists.retain(|place, _| !place.starts_with(&inside));
        }
        same
    }

    fn goes_on(&self, list: &List, index: usize) -> bool {
        list.open.get(&index).is_some_and(|own| self.is_busy(own))
    }

    /// Whether a forEach was begun at this place.
    fn has_begun(&mut self, path: &str, frame: &Frame) -> bool {
        if frame.keys.is_empty() {
            return self.latched.get(path).is_some_and(|s| s.collection_digest.is_some());
        }
        let o = self.o;
        let begun = self.begun.get_or_insert_with(|| {
            let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for step_run in o.step_runs.values() {
                for link in &step_run.spec.scope_chain {
                    all.entry(link.scope_id.clone()).or_default().insert(step_run.spec.path.clone());
                }
            }
            all
        });
        let here = name::scope_id(&self.sources.program.run.uid, &frame.keys);
        let inside = format!("{path}/");
        begun.get(&here).is_some_and(|paths| paths.iter().any(|p| p == path || p.starts_with(&inside)))
    }

    /// The steps of a group have to be done once for each item.
    fn expect(&mut self, group: &Step, items: usize) {
        for step in group.group().into_iter().flat_map(|list| &list.steps) {
            let tally = self.tally(&step.path);
            tally.wanted = Some(tally.wanted.unwrap_or_default() + items);
            if step.for_each.is_some() {
                continue;
            }
            tally.plural = true;
            tally.counts.total += i32::try_from(items).unwrap_or(i32::MAX);
            self.expect(step, items);
        }
    }

    // ---- the list

    fn new_list(&mut self, for_each: &ForEach, path: &str, frame: &Frame) -> Result<Arc<List>, Fault> {
        let pinned = frame.keys.is_empty() && !mutant::on(Mutant::ListReadAgain);
        let latched = self.latched.get(path).filter(|_| pinned).cloned().unwrap_or_default();
        let wrong = |text: String| Fault::Wrong(format!("forEach.in{text}"));
        let scope = self.sources.scope(frame, &[&for_each.items], &latched.collection_documents)?;
        let value = for_each.items.evaluate(&scope).map_err(|e| wrong(format!(": {e}")))?;
        let digest = name::digest_bytes(value.to_string().as_bytes());
        if latched.collection_digest.as_ref().is_some_and(|old| *old != digest) {
            return Err(wrong(": the list is not the one it was when the step began".to_owned()));
        }
        let documents = match latched.collection_digest {
            Some(_) => latched.collection_documents,
            None => self.read_from(&for_each.items, frame),
        };
        let items = match value {
            Value::Null => Vec::new(),
            Value::Array(items) => items,
            other => return Err(wrong(format!(" gives {}, not a list", kind(&other)))),
        };
        let items = Arc::new(self.keyed(for_each, frame, items)?);
        Ok(Arc::new(List { items, digest, documents, ..List::default() }))
    }

    /// The documents that an expression reads from here, by name.
    fn read_from(&self, expression: &Expression, frame: &Frame) -> Vec<String> {
        let (kinds, from) = (expression.members("documents"), self.sources.viewpoint(frame));
        let types = document::types(&self.o.documents).into_iter();
        types
            .filter(|kind| kinds.contains(*kind) || kinds.contains(&expression::underscored(kind)))
            .filter_map(|kind| document::find(&self.o.documents, kind, &from)?.metadata.name.clone())
            .take(16)
            .collect()
    }

    fn keyed(&self, for_each: &ForEach, frame: &Frame, items: Vec<Value>) -> Result<Keyed, Fault> {
        let wrong = |text: String| Fault::Wrong(format!("forEach.{text}"));
        if items.len() > ITEMS {
            return Err(wrong(format!("in gives {} items, at most {ITEMS} are allowed", items.len())));
        }
        let key = for_each.key.as_ref();
        let mut scope = key.map(|key| self.sources.scope(frame, &[key], &[])).transpose()?;
        let mut seen = BTreeSet::new();
        let mut keyed = Vec::with_capacity(items.len());
        for (index, value) in items.into_iter().enumerate() {
            scope = scope.map(|s| s.with(&for_each.as_name, value.clone()));
            let own = match (key, &scope) {
                (Some(key), Some(scope)) => match key.evaluate(scope) {
                    Ok(Value::String(text)) => text,
                    Ok(Value::Number(number)) => number.to_string(),
                    Ok(other) => {
                        let given = kind(&other);
                        return Err(wrong(format!("key gives {given} for item {index}, not a string or a number")));
                    }
                    Err(e) => return Err(wrong(format!("key of item {index}: {e}"))),
                },
                _ => index.to_string(),
            };
            if !legal_key(&own) {
                return Err(wrong(format!(
                    "key of item {index} is {own:?}; keys are 1 to 63 letters, digits, '.', '_' or '-', and begin with a letter or digit"
                )));
            }
            if !seen.insert(own.clone()) {
                return Err(wrong(format!("key: {own:?} stands twice")));
            }
            keyed.push((own, Arc::new(value)));
        }
        Ok(keyed)
    }
}

/// All outputs in the order of the list, once.
fn gathered(list: &mut List) -> Result<Arc<Vec<Item>>, String> {
    if let Some(known) = &list.output {
        return Ok(Arc::clone(known));
    }
    let mut bytes = 0;
    let mut items = Vec::with_capacity(list.items.len());
    for (index, (key, _)) in list.items.iter().enumerate() {
        let (phase, output) = match list.ended.get(&index) {
            Some(Ended::Done(seen)) => (seen.phase, seen.output.clone()),
            _ => (Phase::Failed, Output::Null),
        };
        bytes += least_size(&output);
        items.push(Item { key: key.clone(), phase, output });
    }
    if bytes > DOCUMENT_BYTES {
        return Err(scope::too_large());
    }
    let items = Arc::new(items);
    list.output = Some(Arc::clone(&items));
    Ok(items)
}

/// What a look at an item found.
enum Looked {
    Ahead,
    /// Something of it begins in this pass.
    Began,
    On,
    Failing(Failure),
}

/// Bytes that an output has at least, without reading it.
fn least_size(output: &Output) -> usize {
    match output {
        Output::Null => 4,
        Output::Value(value) => expression::size(value),
        Output::List(items) => items.iter().map(|i| least_size(&i.output)).sum(),
        Output::Of(step_run) => {
            let report = step_run.status.as_ref().and_then(|s| s.agent.as_ref()?.report.as_ref());
            report.and_then(|r| r.output.as_ref()).map_or(2, String::len)
        }
    }
}

fn legal_key(key: &str) -> bool {
    (1..=63).contains(&key.len())
        && key.starts_with(|c: char| c.is_ascii_alphanumeric())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
