//! Steps of one list: what each waits for, what is skipped, what a failure does to the rest.

use rpds::RedBlackTreeMapSync;
use serde_json::Value;

use super::{AttemptResult, Expression, Failure, Fault, Frame, Outcome, Output, Phase, Seen, Start, Step, Walk};
use crate::api::limits::DOCUMENT_BYTES;
use crate::api::step::{OnFailure, Order};
use crate::definition::expression;
use crate::definition::program::{StepKind, StepList};
use crate::mutant::{self, Mutant};

/// The steps of a list that have ended.
pub(super) type Done = RedBlackTreeMapSync<String, Seen>;

/// What `when` says.
enum When {
    Yes,
    No,
}

impl Walk<'_> {
    /// The steps of the group at `path`; of the run itself where that is empty.
    pub(super) fn list(&mut self, list: &StepList, path: &str, frame: &Frame) -> (Outcome, Done) {
        let (steps, graph) = (&list.steps, list.order == Order::Graph);
        let mut here = frame.clone();
        let mut ended: Vec<Option<Seen>> = vec![None; steps.len()];
        let (mut failure, mut open, mut ahead, mut begun) = (None, false, false, false);
        let mark = self.unfinished.len();
        for &index in &list.sequence {
            let step = &steps[index];
            let ignored = graph && mutant::on(Mutant::NeedsIgnored);
            let needed = if ignored { &[][..] } else { &step.needs };
            let its_turn = needed.iter().all(|n| ended[*n].is_some());
            let ready = its_turn && failure.is_none();
            let fresh = frame.fresh || needed.iter().any(|n| ended[*n].as_ref().is_some_and(|s| s.fresh));
            let inner = Frame { start: if ready { frame.start } else { Start::Behind }, fresh, ..here.clone() };
            let skipped = |n: &usize| ended[*n].as_ref().is_some_and(|s| s.phase == Phase::Skipped);
            let handed_on = |n: &usize| skipped(n) && !step.asks_about(&steps[*n].name);
            let in_graph = graph && !mutant::on(Mutant::SkipNotHandedOn);
            let passed_by = in_graph && needed.iter().any(handed_on) || self.is_skipped(step, &inner);
            let outcome = if its_turn && passed_by {
                self.skip(step, &inner)
            } else if ready {
                self.step(step, &inner)
            } else {
                self.execution(step, &inner)
            };
            match outcome {
                Outcome::Done(seen) => {
                    begun |= seen.phase != Phase::Skipped;
                    here.done.insert_mut(step.name.clone(), seen.clone());
                    // What ended although what it needs has not, in this older copy, lets nothing else begin.
                    ended[index] = Some(seen).filter(|_| ready);
                }
                Outcome::Open => open = true,
                Outcome::Ahead => ahead = true,
                Outcome::Failing(f) => {
                    open = true;
                    failure = Some(first(failure, f));
                }
                Outcome::Failed(f) => failure = Some(first(failure, f)),
            }
        }
        let outcome = match failure {
            // What was begun and goes no further is not waited for: only what is there can still end.
            Some(failure) if open && self.runs(mark) => Outcome::Failing(failure),
            Some(failure) => Outcome::Failed(failure),
            None if open || (ahead && begun) => Outcome::Open,
            None if ahead => Outcome::Ahead,
            None => self.together(list, path, &ended, &here),
        };
        (outcome, here.done)
    }

    /// Whether a StepRun that was met behind that mark has not ended.
    fn runs(&self, mark: usize) -> bool {
        self.unfinished.iter().skip(mark).any(|name| self.o.step_runs.contains_key(name))
    }

    /// What a list gives whose steps have all ended: its last step's output, unless told.
    fn together(&mut self, list: &StepList, path: &str, ended: &[Option<Seen>], frame: &Frame) -> Outcome {
        let fresh = frame.fresh || ended.iter().flatten().any(|s| s.fresh);
        let output_of_last = ended.last().cloned().flatten().map_or(Output::Null, |s| s.output);
        let Some(output) = &list.output else {
            return Outcome::Done(Seen { phase: Phase::Completed, output: output_of_last, fresh });
        };
        match self.computed(output, path, frame) {
            Ok(output) => Outcome::Done(Seen { phase: Phase::Completed, output, fresh }),
            Err(fault) => self.at_fault(fault, path, frame),
        }
    }

    /// A value that is computed once from what cannot change any more.
    fn computed(&mut self, output: &Expression, path: &str, frame: &Frame) -> Result<Output, Fault> {
        let place = frame.place(path);
        if let Some(known) = self.settled.values.get(&place) {
            return Ok(Output::Value(known.clone()));
        }
        let value = self.evaluate(output, frame, "output")?;
        if expression::size(&value) > DOCUMENT_BYTES {
            return Err(Fault::Wrong(format!("output gives more than {DOCUMENT_BYTES} bytes")));
        }
        let value = std::sync::Arc::new(value);
        if frame.keys.is_empty() {
            self.settled.values.insert(place, value.clone());
        }
        Ok(Output::Value(value))
    }

    /// A step whose turn it is.
    fn step(&mut self, step: &Step, frame: &Frame) -> Outcome {
        match self.when(step, frame) {
            Ok(When::No) => self.skip(step, frame),
            Ok(When::Yes) => self.execution(step, frame),
            Err(fault) => {
                self.want(&step.path, frame);
                self.at_fault(fault, &step.path, frame)
            }
        }
    }

    fn want(&mut self, path: &str, frame: &Frame) {
        if frame.keys.is_empty() {
            self.tally(path).wanted = Some(1);
        }
    }

    fn when(&mut self, step: &Step, frame: &Frame) -> Result<When, Fault> {
        let Some(when) = &step.when else { return Ok(When::Yes) };
        let path: &str = &step.path;
        let outside = frame.keys.is_empty();
        let latched = self.latched.get(path).and_then(|s| s.when).filter(|_| outside);
        let verdict = match latched {
            Some(verdict) => verdict,
            None => match self.evaluate(when, frame, "when")? {
                Value::Bool(verdict) => verdict,
                other => {
                    return Err(Fault::Wrong(format!("when gives {}, not true or false", expression::kind(&other))));
                }
            },
        };
        if outside {
            self.tally(path).when = Some(verdict);
        }
        Ok(if verdict { When::Yes } else { When::No })
    }

    /// Whether its `when` was asked, and said no: a failure elsewhere does not take that back.
    fn is_skipped(&self, step: &Step, frame: &Frame) -> bool {
        frame.keys.is_empty() && self.latched.get(&*step.path).is_some_and(|s| s.when == Some(false))
    }

    fn skip(&mut self, step: &Step, frame: &Frame) -> Outcome {
        self.want(&step.path, frame);
        self.skipped(step);
        // What is new before it is new for those behind it, too.
        Outcome::Done(Seen { phase: Phase::Skipped, output: Output::Null, fresh: frame.fresh })
    }

    /// The step, and all that is in it.
    fn skipped(&mut self, step: &Step) {
        let tally = self.tally(&step.path);
        tally.counts.skipped += 1;
        tally.complete += 1;
        tally.wanted.get_or_insert(1);
        for inner in step.group().into_iter().flat_map(|group| &group.steps) {
            self.skipped(inner);
        }
    }

    fn execution(&mut self, step: &Step, frame: &Frame) -> Outcome {
        self.want(&step.path, frame);
        let mark = self.stand.creates.len();
        let outcome = match &step.for_each {
            None => self.body(step, frame).0,
            Some(for_each) => self.for_each((step, for_each), frame),
        };
        let outcome = self.passed_over(step, outcome, mark);
        let outside = frame.keys.is_empty();
        let tally = self.tally(&step.path);
        match &outcome {
            Outcome::Done(seen) => {
                tally.complete += 1;
                tally.phase = outside.then_some(seen.phase);
            }
            Outcome::Failing(f) | Outcome::Failed(f) if outside && f.class != AttemptResult::Cancelled => {
                tally.phase = Some(Phase::Failed);
            }
            _ => {}
        }
        outcome
    }

    pub(super) fn body(&mut self, step: &Step, frame: &Frame) -> (Outcome, Done) {
        if let StepKind::Group(list) = &step.kind {
            return self.list(list, &step.path, frame);
        }
        let outcome = self.run(step, frame);
        let mut done = frame.done.clone();
        if let Outcome::Done(seen) = &outcome {
            done.insert_mut(step.name.clone(), seen.clone());
        }
        (outcome, done)
    }

    /// `onFailure: Continue`: the step is failed, its output null, the run goes on.
    fn passed_over(&mut self, step: &Step, outcome: Outcome, mark: usize) -> Outcome {
        let may = |f: &Failure| may_pass(f.class);
        match outcome {
            Outcome::Failing(f) if may(&f) && step.on_failure == OnFailure::Continue => {
                self.hold_back(mark);
                Outcome::Open
            }
            Outcome::Failed(f) if may(&f) && step.on_failure == OnFailure::Continue => {
                self.hold_back(mark);
                Outcome::Done(Seen { phase: Phase::Failed, output: Output::Null, fresh: true })
            }
            other => other,
        }
    }
}

/// The first of two failures; what ended with the run is no cause.
fn first(known: Option<Failure>, other: Failure) -> Failure {
    let weak = |f: &Failure| f.class == AttemptResult::Cancelled;
    known.filter(|k| !weak(k) || weak(&other)).unwrap_or(other)
}

/// Whether a failure of that class can be passed over at all.
pub(super) fn may_pass(class: AttemptResult) -> bool {
    use AttemptResult::{Cancelled, DocumentChanged, Rejected, StepRunLost};
    !matches!(class, Rejected | Cancelled | StepRunLost | DocumentChanged)
}
