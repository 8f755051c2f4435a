//! Steps of one list: what each waits for, what is skipped, what a failure does to the rest.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde_json::Value;

use super::walk_result::{Visited, WalkResult};
use super::{Admission, Fault, Frame, Walk, at_fault};
use crate::api::limits::DOCUMENT_BYTES;
use crate::api::step::{OnFailure, Order};
use crate::api::step_run::AttemptResult;
use crate::api::workflow::Phase;
use crate::decide::outcome::{Ended, Failure, Outcome, Output};
use crate::definition::expression::{self, Expression};
use crate::definition::program::{Step, StepKind, StepList};

/// The steps of a list that have ended, by name.
pub(super) type Done = RedBlackTreeMapSync<String, Ended>;

/// How far the steps of a list have come that were looked at so far.
struct Progress {
    /// By index.
    ended: Vec<Option<Ended>>,
    failure: Option<Failure>,
    open: bool,
    ahead: bool,
    begun: bool,
}

impl Walk<'_> {
    /// The steps of the group at `path`; of the run itself where that is empty.
    pub(super) fn list(&self, list: &StepList, path: &str, frame: &Frame) -> (Visited, Done) {
        let mut here = frame.clone();
        let mut found = WalkResult::default();
        let mut progress =
            Progress { ended: vec![None; list.steps.len()], failure: None, open: false, ahead: false, begun: false };
        for &index in &list.sequence {
            let step = &list.steps[index];
            let (visited, ready) = self.in_turn(list, index, &progress, &here);
            found.add(visited.found);
            match visited.outcome {
                Outcome::Done(ended) => {
                    progress.begun |= ended.phase != Phase::Skipped;
                    here.done.insert_mut(step.name.clone(), ended.clone());
                    // What ended although what it needs has not, in this older copy, lets nothing else begin.
                    progress.ended[index] = Some(ended).filter(|_| ready);
                }
                Outcome::Open => progress.open = true,
                Outcome::Ahead => progress.ahead = true,
                Outcome::Failing(failure) => {
                    progress.open = true;
                    progress.failure = Some(first(progress.failure, failure));
                }
                Outcome::Failed(failure) => progress.failure = Some(first(progress.failure, failure)),
            }
        }
        let visited = match progress {
            Progress { failure: Some(failure), open, .. } => {
                found.hold_back();
                // What was begun and goes no further is not waited for: only what is there can still end.
                let runs = open && found.runs();
                found.visited(if runs { Outcome::Failing(failure) } else { Outcome::Failed(failure) })
            }
            Progress { open, ahead, begun, .. } if open || ahead && begun => found.visited(Outcome::Open),
            Progress { ahead: true, .. } => found.visited(Outcome::Ahead),
            Progress { ended, .. } => {
                let visited = self.outcome_of_graph(list, path, &ended, &here);
                found.add(visited.found);
                found.visited(visited.outcome)
            }
        };
        (visited, here.done)
    }

    /// One step of a list behind those before it; and whether its turn has come.
    fn in_turn(&self, list: &StepList, index: usize, progress: &Progress, here: &Frame) -> (Visited, bool) {
        let (step, graph) = (&list.steps[index], list.order == Order::Graph);
        let needed = step.needs.as_slice();
        let before = |n: &usize| progress.ended[*n].as_ref();
        let its_turn = needed.iter().all(|n| before(n).is_some());
        let ready = its_turn && progress.failure.is_none();
        let fresh = here.fresh || needed.iter().any(|n| before(n).is_some_and(|e| e.fresh));
        let start = match here.start {
            start if ready => start,
            // Beside a branch that fails nothing new begins; what is there is looked at whole, also where nobody remembers it.
            Admission::Open | Admission::Closed if its_turn => Admission::Closed,
            _ => Admission::NotYet,
        };
        let inner = Frame { start, fresh, ..here.clone() };
        let skipped = |n: &usize| before(n).is_some_and(|e| e.phase == Phase::Skipped);
        let handed_on = |n: &usize| skipped(n) && !step.asks_about(&list.steps[*n].name);
        let passed_by = graph && needed.iter().any(handed_on) || self.is_skipped(step, &inner);
        let visited = if its_turn && passed_by {
            skip(step, &inner)
        } else if ready {
            self.step(step, &inner)
        } else {
            self.execution(step, &inner)
        };
        (visited, ready)
    }

    /// What a list gives whose steps have all ended: its last step's output, unless told.
    fn outcome_of_graph(&self, list: &StepList, path: &str, ended: &[Option<Ended>], frame: &Frame) -> Visited {
        let fresh = frame.fresh || ended.iter().flatten().any(|e| e.fresh);
        let output_of_last = ended.last().cloned().flatten().map_or(Output::Null, |e| e.output);
        let (output, values) = match list.output.as_ref().map(|output| self.computed(output, path, frame)) {
            None => (output_of_last, None),
            Some(Ok(value)) => (Output::Value(Arc::clone(&value)), Some((frame.place(path), value))),
            Some(Err(fault)) => return at_fault(fault, path, frame),
        };
        // Inside of items it goes with its item.
        let values = values.filter(|_| frame.keys.is_empty()).into_iter().collect();
        let ended = Ended { phase: Phase::Completed, output, fresh };
        WalkResult { values, ..WalkResult::default() }.visited(Outcome::Done(ended))
    }

    /// A value that is computed once from what cannot change any more.
    fn computed(&self, output: &Expression, path: &str, frame: &Frame) -> Result<Arc<Value>, Fault> {
        if let Some(known) = self.settled.values.get(&frame.place(path)) {
            return Ok(Arc::clone(known));
        }
        let value = self.evaluate(output, frame, "output")?;
        if expression::size(&value) > DOCUMENT_BYTES {
            return Err(Fault::Wrong(format!("output gives more than {DOCUMENT_BYTES} bytes")));
        }
        Ok(Arc::new(value))
    }

    /// A step whose turn it is.
    fn step(&self, step: &Step, frame: &Frame) -> Visited {
        let outside = frame.keys.is_empty();
        let (mut visited, when) = match self.when(step, frame) {
            Ok(Some(false)) => (skip(step, frame), Some(false)),
            Ok(when) => (self.execution(step, frame), when),
            Err(fault) => {
                let mut visited = at_fault(fault, &step.path, frame);
                if outside {
                    visited.found.tally(&step.path).extent.wanted = Some(1);
                }
                (visited, None)
            }
        };
        if outside {
            visited.found.tally(&step.path).latched.when = when;
        }
        visited
    }

    /// What its `when` gives, latched outside of items; none where it has none.
    fn when(&self, step: &Step, frame: &Frame) -> Result<Option<bool>, Fault> {
        let Some(when) = &step.when else { return Ok(None) };
        let latched = self.latched.get(&*step.path).and_then(|s| s.when).filter(|_| frame.keys.is_empty());
        if latched.is_some() {
            return Ok(latched);
        }
        match self.evaluate(when, frame, "when")? {
            Value::Bool(verdict) => Ok(Some(verdict)),
            other => Err(Fault::Wrong(format!("when gives {}, not true or false", expression::kind(&other)))),
        }
    }

    /// Whether its `when` was asked, and said no: a failure elsewhere does not take that back.
    fn is_skipped(&self, step: &Step, frame: &Frame) -> bool {
        frame.keys.is_empty() && self.latched.get(&*step.path).is_some_and(|s| s.when == Some(false))
    }

    fn execution(&self, step: &Step, frame: &Frame) -> Visited {
        let visited = match &step.for_each {
            None => self.body(step, frame).0,
            Some(for_each) => self.for_each((step, for_each), frame),
        };
        let mut found = visited.found;
        let outcome = passed_over(step, visited.outcome);
        let outside = frame.keys.is_empty();
        let tally = found.tally(&step.path);
        if outside {
            tally.extent.wanted = Some(1);
        }
        match &outcome {
            Outcome::Done(ended) => {
                tally.extent.complete += 1;
                tally.phase = outside.then_some(ended.phase);
            }
            Outcome::Failing(f) | Outcome::Failed(f) if outside && f.class != AttemptResult::Cancelled => {
                tally.phase = Some(Phase::Failed);
            }
            _ => {}
        }
        found.visited(outcome)
    }

    pub(super) fn body(&self, step: &Step, frame: &Frame) -> (Visited, Done) {
        if let StepKind::Group(list) = &step.kind {
            return self.list(list, &step.path, frame);
        }
        let visited = self.run(step, frame);
        let mut done = frame.done.clone();
        if let Outcome::Done(ended) = &visited.outcome {
            done.insert_mut(step.name.clone(), ended.clone());
        }
        (visited, done)
    }
}

fn skip(step: &Step, frame: &Frame) -> Visited {
    let mut found = WalkResult::default();
    skipped(step, &mut found, usize::from(frame.keys.is_empty()));
    // What is new before it is new for those behind it, too.
    found.visited(Outcome::Done(Ended { phase: Phase::Skipped, output: Output::Null, fresh: frame.fresh }))
}

/// The step, and all that is in it, which are expected so often more. The forEach around an item expects it already; what is
/// in a forEach of its own nobody expects where that is skipped.
fn skipped(step: &Step, found: &mut WalkResult, times: usize) {
    let tally = found.tally(&step.path);
    tally.counts.skipped += 1;
    tally.extent.complete += 1;
    tally.extent.expect(times);
    for inner in step.group().into_iter().flat_map(|group| &group.steps) {
        skipped(inner, found, if step.for_each.is_some() { 1 } else { times });
    }
}

/// `onFailure: Continue`: the step is failed, its output null, the run goes on.
fn passed_over(step: &Step, outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Failing(f) if f.may_pass() && step.on_failure == OnFailure::Continue => Outcome::Open,
        Outcome::Failed(f) if f.may_pass() && step.on_failure == OnFailure::Continue => {
            Outcome::Done(Ended { phase: Phase::Failed, output: Output::Null, fresh: true })
        }
        other => other,
    }
}

/// The first of two failures; what ended with the run is no cause.
fn first(known: Option<Failure>, other: Failure) -> Failure {
    let weak = |f: &Failure| f.class == AttemptResult::Cancelled;
    known.filter(|k| !weak(k) || weak(&other)).unwrap_or(other)
}
