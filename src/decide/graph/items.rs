//! Items of a forEach: the list, its keys, its slots. What has ended is not looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::list::Done;
use super::walk_result::{Visited, WalkResult};
use super::{Admission, Fault, Frame, Walk, at_fault, failed};
use crate::api::limits::{COLLECTION_DOCUMENTS, DOCUMENT_BYTES, ITEMS};
use crate::api::name;
use crate::api::step_run::{AttemptResult, StepRunStatus};
use crate::api::workflow::Phase;
use crate::decide::outcome::{Ended, Failure, Item, Outcome, Output};
use crate::decide::scope::{self, Entity};
use crate::decide::settled::{EndedItem, List};
use crate::decide::tally::Collection;
use crate::decide::{claim, document, output};
use crate::definition::expression::{self, Expression, kind};
use crate::definition::free_value;
use crate::definition::program::{ForEach, Step};

type Keyed = Vec<(String, Arc<Value>)>;
type Loop<'s> = (&'s Step, &'s ForEach);

/// What the visit of one item found.
struct ItemVisit {
    outcome: Outcome,
    found: WalkResult,
    /// Something of it was begun, in this pass or before.
    is_begun: bool,
}

/// The slots of a forEach, counted over the items that were visited.
#[derive(Default)]
struct Slots {
    /// Items that have an attempt queued or running.
    used: usize,
    /// Items of which nothing was begun before this pass, and what was found in them.
    begun_now: Vec<(usize, WalkResult)>,
    /// The first item that will fail.
    failing: Option<Failure>,
}

impl Walk<'_> {
    pub(super) fn for_each(&self, what: Loop<'_>, frame: &Frame) -> Visited {
        let (step, for_each) = what;
        let place = format!("{}\0{}", step.path, frame.keys.join("/"));
        let remembered = self.settled.lists.get(&place).filter(|_| !frame.cold);
        let known = remembered.filter(|list| self.is_latched(list, step, frame));
        if known.is_none() && frame.start == Admission::NotYet {
            if !self.has_begun(step, frame) {
                return WalkResult::default().visited(Outcome::Ahead);
            }
            // No digest is latched inside of items: what this older copy makes of the list must not be remembered for it.
            if !frame.keys.is_empty() {
                return WalkResult::default().visited(Outcome::Open);
            }
        }
        let list = match known.map_or_else(|| self.new_list(for_each, step, frame), |list| Ok(list.as_ref().clone())) {
            Ok(list) => list,
            Err(fault) => {
                let mut visited = at_fault(fault, &step.path, frame);
                visited.found.tally(&step.path).extent.plural = true;
                return visited;
            }
        };
        // Where another list was remembered, what was remembered inside of it is of that one.
        let cold = known.is_none() && (frame.cold || remembered.is_some());
        let frame = Frame { cold, ..frame.clone() };
        let mut found = WalkResult { step_runs: list.step_runs, ..WalkResult::default() };
        let tally = found.tally(&step.path);
        tally.extent.plural = true;
        tally.counts.total = i32::try_from(list.items.len()).unwrap_or(i32::MAX);
        if frame.keys.is_empty() {
            tally.latched.collection = Some(list.collection.clone());
        }
        expect(step, list.items.len(), &mut found);
        if frame.start == Admission::Open && self.is_to_be_latched(step, &frame) {
            // What began now, here or behind an empty list, would be of another list than the one that is pinned in the end, where
            // this copy of the documents lags or this operator dies before it has written. The write wakes the next pass.
            found.lists.insert(place, Arc::new(list));
            return found.visited(Outcome::Open);
        }
        found.add_sums(&list.sums);
        let all = known.is_none() && (frame.start != Admission::Open || cold);
        let (visited, list) = self.items(what, &frame, list, (found, all));
        let mut found = visited.found;
        found.lists.insert(place, Arc::new(list));
        found.visited(visited.outcome)
    }

    /// Those that are open, then as many new ones as there are slots. Where nobody remembers which are open, all are looked
    /// at first.
    fn items(
        &self,
        what: Loop<'_>,
        frame: &Frame,
        mut list: List,
        (mut found, all): (WalkResult, bool),
    ) -> (Visited, List) {
        let (step, for_each) = what;
        let allowed = for_each.tolerate.of(list.items.len());
        let limit = for_each.max_parallel;
        let mut slots = Slots::default();
        if all {
            let start = if frame.start == Admission::NotYet { Admission::NotYet } else { Admission::Closed };
            for index in 0..list.items.len() {
                let visit = self.item(what, &Frame { start, ..frame.clone() }, index, &list);
                // What is open is looked at again where it may go on.
                let again = frame.start == Admission::Open && !visit.has_ended();
                let part = note(&mut list, index, visit, &mut slots);
                found.looked += part.looked;
                if !again {
                    found.add(WalkResult { looked: 0, ..part });
                }
            }
        }
        if frame.start == Admission::Open {
            slots.failing = None;
        }
        if frame.start == Admission::Open || !all {
            let open: Vec<usize> = list.open.keys().copied().collect();
            let busy: BTreeSet<usize> = open.iter().copied().filter(|index| self.is_busy(&list, *index)).collect();
            slots.used = busy.len();
            for index in open {
                let has_slot = busy.contains(&index);
                let free = (has_slot || slots.used < limit) && list.failures.count <= allowed;
                let start = if free || frame.start == Admission::NotYet { frame.start } else { Admission::Closed };
                let visit = self.item(what, &Frame { start, ..frame.clone() }, index, &list);
                found.add(note(&mut list, index, visit, &mut slots));
                slots.used += usize::from(!has_slot && self.is_busy(&list, index));
            }
        }
        let mut index = list.frontier;
        while frame.start == Admission::Open
            && index < list.items.len()
            && slots.used < limit
            && list.failures.count <= allowed
            && list.failures.fatal.is_none()
            && slots.failing.is_none()
        {
            if !list.is_begun(index) {
                let visit = self.item(what, frame, index, &list);
                let anew = visit.found.begins() && visit.found.step_runs == 0;
                let part = note(&mut list, index, visit, &mut slots);
                if anew {
                    slots.begun_now.push((index, part));
                } else {
                    found.add(part);
                }
                // Somebody else may have begun it: another operator, or this one in a pass that it forgot.
                slots.used += usize::from(self.is_busy(&list, index));
            }
            if index == list.frontier && list.is_begun(index) {
                list.frontier += 1;
            }
            index += 1;
        }
        self.verdict(step, frame, list, (found, slots, allowed))
    }

    fn verdict(
        &self,
        step: &Step,
        frame: &Frame,
        mut list: List,
        (mut found, slots, allowed): (WalkResult, Slots, usize),
    ) -> (Visited, List) {
        let failures = &list.failures;
        let spent = if failures.count > allowed { failures.first.clone() } else { None };
        let failing = slots.failing.filter(|f| !f.may_pass() || allowed == 0);
        if let Some(failure) = failures.fatal.clone().or(spent).or(failing).or(failures.cancelled.clone()) {
            found.hold_back();
            for (index, part) in slots.begun_now {
                found.looked += part.looked;
                list.open.remove(&index);
                list.frontier = list.frontier.min(index);
            }
            for own in list.open.values_mut() {
                own.retain(|name| self.o.step_runs.contains_key(name));
            }
            let runs = list.open.values().any(|own| !own.is_empty());
            return (found.visited(if runs { Outcome::Failing(failure) } else { Outcome::Failed(failure) }), list);
        }
        slots.begun_now.into_iter().for_each(|(_, part)| found.add(part));
        if list.ended.size() < list.items.len() {
            return (found.visited(Outcome::Open), list);
        }
        let visited = match gathered(&mut list) {
            Ok(items) => {
                let anew = |e: &EndedItem| matches!(e, EndedItem::Done(ended) if ended.fresh);
                let fresh = frame.fresh || list.failures.count > 0 || list.ended.values().any(anew);
                let ended = Ended { phase: Phase::Completed, output: Output::List(items), fresh };
                found.visited(Outcome::Done(ended))
            }
            Err(message) => failed(found, &step.path, frame, (AttemptResult::OutputTooLarge, message)),
        };
        (visited, list)
    }

    fn item(&self, (step, for_each): Loop<'_>, frame: &Frame, index: usize, list: &List) -> ItemVisit {
        let (key, value) = list.items[index].clone();
        let mut inner = frame.clone();
        inner.keys.push(key);
        let number = i32::try_from(index).unwrap_or(i32::MAX);
        inner.items.push(Entity { as_name: for_each.as_name.clone(), index: number, value });
        let (visited, done) = self.body(step, &inner);
        let Visited { outcome, mut found } = self.collected(visited, (step, for_each), &inner, done);
        let is_begun = found.begins() || found.step_runs > 0 || list.open.contains_key(&index);
        let over = matches!(outcome, Outcome::Done(_) | Outcome::Failed(_));
        if step.group().is_some() && (is_begun || over) {
            found.tally(&step.path).count_item(&outcome);
        }
        if !is_begun && !over && inner.start != Admission::Open {
            // It was not its turn: it leaves no trace.
            found = WalkResult::default();
        }
        found.looked += 1;
        ItemVisit { outcome, found, is_begun }
    }

    /// What of an item that has ended goes into the list.
    fn collected(&self, visited: Visited, (step, for_each): Loop<'_>, frame: &Frame, done: Done) -> Visited {
        let (Outcome::Done(ended), Some(collect)) = (&visited.outcome, &for_each.collect) else { return visited };
        if ended.phase != Phase::Completed {
            return visited;
        }
        let mut found = visited.found;
        match self.evaluate(collect, &Frame { done, ..frame.clone() }, "forEach.collect") {
            Ok(value) => {
                let output = Output::Value(Arc::new(value));
                found.visited(Outcome::Done(Ended { output, ..ended.clone() }))
            }
            Err(fault) => {
                let visited = at_fault(fault, &step.path, frame);
                found.add(visited.found);
                found.visited(visited.outcome)
            }
        }
    }

    /// Whether an item has an attempt queued or running; those that wait for a person have given their slot up, unless their
    /// agent waits in its pod.
    fn is_busy(&self, list: &List, index: usize) -> bool {
        let waits = |s: &StepRunStatus| {
            matches!(s.phase, Some(Phase::WaitingForAcceptance | Phase::WaitingForInput)) && !claim::agent_waits(s)
        };
        let runs = |s: &StepRunStatus| s.completed_at.is_none() && !waits(s);
        let is_busy = |name: &String| self.o.step_runs.get(name).is_none_or(|s| s.status.as_ref().is_none_or(runs));
        list.open.get(&index).is_some_and(|own| own.iter().any(is_busy))
    }

    /// Whether no list is pinned yet where one will be.
    fn is_to_be_latched(&self, step: &Step, frame: &Frame) -> bool {
        frame.keys.is_empty() && self.latched.get(&*step.path).is_none_or(|s| s.collection_digest.is_none())
    }

    /// Whether a remembered list is the one that was latched: another operator may have read another one first.
    fn is_latched(&self, list: &List, step: &Step, frame: &Frame) -> bool {
        let latched = self.latched.get(&*step.path).filter(|_| frame.keys.is_empty());
        latched.and_then(|s| s.collection_digest.as_ref()).is_none_or(|digest| *digest == list.collection.digest)
    }

    /// Whether a forEach was begun at this place.
    fn has_begun(&self, step: &Step, frame: &Frame) -> bool {
        if frame.keys.is_empty() {
            return self.latched.get(&*step.path).is_some_and(|s| s.collection_digest.is_some());
        }
        let begun = self.begun.get_or_init(|| {
            let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for step_run in self.o.step_runs.values() {
                for link in &step_run.spec.scope_chain {
                    all.entry(&link.scope_id).or_default().insert(&step_run.spec.path);
                }
            }
            all
        });
        let here = name::scope_id(&self.sources.program.run.uid, &frame.keys);
        let inside = format!("{}/", step.path);
        begun.get(here.as_str()).is_some_and(|paths| paths.iter().any(|p| *p == &*step.path || p.starts_with(&inside)))
    }

    // ---- the list

    fn new_list(&self, for_each: &ForEach, step: &Step, frame: &Frame) -> Result<List, Fault> {
        let pinned = frame.keys.is_empty();
        let latched = self.latched.get(&*step.path).filter(|_| pinned);
        let latched = latched.and_then(|s| Some((s.collection_digest.as_ref()?, &*s.collection_documents)));
        let (old, documents) = latched.unzip();
        let wrong = |text: String| Fault::Wrong(format!("forEach.in{text}"));
        let scope = self.sources.scope(frame, &[&for_each.items], documents)?;
        let value = for_each.items.evaluate(&scope).map_err(|e| wrong(format!(": {e}")))?;
        let digest = name::digest_bytes(value.to_string().as_bytes());
        if old.is_some_and(|old| *old != digest) {
            return Err(wrong(
                " gives another list than when the step began, and items of that one have started".to_owned(),
            ));
        }
        let documents = documents.map_or_else(|| self.read_from(&for_each.items, frame), <[String]>::to_vec);
        let items = match value {
            Value::Null => Vec::new(),
            Value::Array(items) => items,
            other => return Err(wrong(format!(" gives {}, not a list", kind(&other)))),
        };
        let items = Arc::new(self.keyed(for_each, frame, items)?);
        Ok(List { items, collection: Collection { digest, documents }, ..List::default() })
    }

    /// The documents that an expression reads from here, by name.
    fn read_from(&self, expression: &Expression, frame: &Frame) -> Vec<String> {
        let (wanted, from) = (scope::named(&[expression], "documents"), self.sources.viewpoint(frame));
        let types = document::types(&self.o.documents).into_iter();
        types
            .filter(|kind| wanted.has(kind) || wanted.has(&expression::underscored(kind)))
            .filter_map(|kind| document::find(&self.o.documents, kind, &from)?.metadata.name.clone())
            .take(COLLECTION_DOCUMENTS)
            .collect()
    }

    fn keyed(&self, for_each: &ForEach, frame: &Frame, items: Vec<Value>) -> Result<Keyed, Fault> {
        let wrong = |text: String| Fault::Wrong(format!("forEach.{text}"));
        if items.len() > ITEMS {
            return Err(wrong(format!("in gives {} items, at most {ITEMS} are allowed", items.len())));
        }
        let key = for_each.key.as_ref();
        let mut scope = key.map(|key| self.sources.scope(frame, &[key], None)).transpose()?;
        let mut seen = BTreeSet::new();
        let mut keyed = Vec::with_capacity(items.len());
        for (index, value) in items.into_iter().enumerate() {
            if let Some(fault) = free_value::nesting(&value) {
                return Err(wrong(format!("in gives item {index}, which {fault}")));
            }
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
                return Err(wrong(format!("key: two items have the key {own:?}")));
            }
            keyed.push((own, Arc::new(value)));
        }
        Ok(keyed)
    }
}

impl ItemVisit {
    fn has_ended(&self) -> bool {
        matches!(self.outcome, Outcome::Done(_) | Outcome::Failed(_))
    }
}

/// Writes down in the list how far an item has come; gives what of it counts beside the list.
fn note(list: &mut List, index: usize, visit: ItemVisit, slots: &mut Slots) -> WalkResult {
    let ItemVisit { outcome, mut found, is_begun } = visit;
    list.open.remove(&index);
    match outcome {
        Outcome::Done(ended) => close(list, index, &mut found, EndedItem::Done(ended)),
        Outcome::Failed(failure) => {
            list.failures.add(failure);
            close(list, index, &mut found, EndedItem::Failed);
        }
        Outcome::Failing(failure) => {
            slots.failing.get_or_insert(failure);
            list.open.insert(index, found.unfinished());
        }
        Outcome::Open | Outcome::Ahead if is_begun => {
            list.open.insert(index, found.unfinished());
        }
        Outcome::Open | Outcome::Ahead => {}
    }
    found
}

/// What is remembered of forEach inside an item goes with it.
fn close(list: &mut List, index: usize, found: &mut WalkResult, ended: EndedItem) {
    for (path, sum) in &found.tallies {
        list.sums.entry(path.clone()).or_default().add(sum);
    }
    list.step_runs += found.step_runs;
    let ended = kept(list, ended);
    list.ended.insert_mut(index, ended);
    found.lists.clear();
}

/// A list that is too large fails in the end, and what went past its bound is not held until then.
fn kept(list: &mut List, ended: EndedItem) -> EndedItem {
    let EndedItem::Done(ended) = ended else { return ended };
    list.bytes += least_size(&ended.output);
    let output = if list.bytes > DOCUMENT_BYTES { Output::Null } else { ended.output };
    EndedItem::Done(Ended { output, ..ended })
}

/// The steps of a group have to be done once for each item.
fn expect(group: &Step, items: usize, found: &mut WalkResult) {
    for step in group.group().into_iter().flat_map(|list| &list.steps) {
        let tally = found.tally(&step.path);
        tally.extent.expect(items);
        if step.for_each.is_some() {
            continue;
        }
        tally.extent.plural = true;
        tally.counts.total += i32::try_from(items).unwrap_or(i32::MAX);
        expect(step, items, found);
    }
}

/// All outputs in the order of the list, once.
fn gathered(list: &mut List) -> Result<Arc<Vec<Item>>, String> {
    if let Some(known) = &list.output {
        return Ok(Arc::clone(known));
    }
    if list.bytes > DOCUMENT_BYTES {
        return Err(scope::too_large());
    }
    let mut items = Vec::with_capacity(list.items.len());
    for (index, (key, _)) in list.items.iter().enumerate() {
        let (phase, output) = match list.ended.get(&index) {
            Some(EndedItem::Done(ended)) => (ended.phase, ended.output.clone()),
            _ => (Phase::Failed, Output::Null),
        };
        items.push(Item { key: key.clone(), phase, output });
    }
    let items = Arc::new(items);
    list.output = Some(Arc::clone(&items));
    Ok(items)
}

/// Bytes that an output has at least, without reading it.
fn least_size(output: &Output) -> usize {
    match output {
        Output::Null => 4,
        Output::Value(value) => expression::size(value),
        Output::List(items) => items.iter().map(|i| least_size(&i.output)).sum(),
        Output::Of(step_run) => {
            let report = step_run.status.as_ref().and_then(output::committed_report);
            report.and_then(|r| r.output.as_ref()).map_or(2, String::len)
        }
    }
}

fn legal_key(key: &str) -> bool {
    (1..=63).contains(&key.len())
        && key.starts_with(|c: char| c.is_ascii_alphanumeric())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
