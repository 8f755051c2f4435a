//! Where a run stands: the definition walked once over the StepRuns that exist. What may start now comes out complete.
//!
//! Each part of the walk gives what it found, and changes nothing else: `walk_result` (what that is), `list` (order, needs,
//! skips), `items` (forEach), `begin` (one execution). Reading order: `walk` here, then these.

mod begin;
mod items;
mod list;
mod walk_result;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

pub use begin::works_otherwise;
pub use walk_result::Waits;

use super::content::Pin;
use super::observed::Observed;
use super::outcome::{Ended, Failure, Outcome, Output};
use super::scope::{Admission, Fault, Frame, Reading, Sources};
use super::settled::Settled;
use super::step_run::{self, Hold, POLICIES, has_changed, is_published_late};
use super::tally::{self, Latched, OpenCounts, Tally};
use super::{approval, build, decisions, document};
use crate::api::condition;
use crate::api::document::{Document, DocumentStatus};
use crate::api::limits::ACTIVE_STEPS;
use crate::api::step_run::{AttemptResult, StepRun, StepRunSpec};
use crate::api::usage::Usage;
use crate::api::workflow::{AcceptanceDecision, PendingAcceptance, Phase, StepStatus};
use crate::definition::expression::Expression;
use crate::definition::program::{Program, Step};
use walk_result::{Active, ActiveState, Visited, WaitReason, WalkResult};

/// How far a run has come.
#[derive(Default)]
pub struct RunProgress {
    /// By path, in file order.
    pub steps: Vec<StepStatus>,
    /// StepRuns to make now.
    pub creates: Vec<NewStepRun>,
    /// Places at which something is open.
    pub active: Vec<String>,
    pub open: OpenCounts,
    /// Pods of what has completed that still end, where the run is cancelled.
    pub pods_ending: usize,
    pub waits: Waits,
    /// What was decided at gates that no longer wait, the newest.
    pub decisions: Vec<AcceptanceDecision>,
    /// What all agents of the run said that they used.
    pub usage: Usage,
    /// The failure that ends the run.
    pub failure: Option<Failure>,
    /// Everything is done; what the run gives.
    pub done: Option<Value>,
    /// Some attempt was claimed.
    pub busy: bool,
}

/// A StepRun to be made.
#[derive(Clone, Debug)]
pub struct NewStepRun {
    pub spec: StepRunSpec,
    /// Keys of the items around it.
    pub keys: Vec<String>,
    /// Documents that it takes over from another run, to be made before; those that are found by others have a status.
    pub copies: Vec<(Document, Option<DocumentStatus>)>,
}

/// What a walk gives.
#[derive(Default)]
pub struct Walked {
    pub progress: RunProgress,
    pub settled: Settled,
    /// Documents whose contents must be had first.
    pub unread: Vec<Pin>,
    /// How many items of forEach were looked at: what a pass costs.
    pub looked: usize,
}

/// Walks the definition; with `Admission::Closed` nothing new begins.
pub fn walk(o: &Observed, program: &Program, start: Admission) -> Walked {
    let remembers = !o.settled.lists.is_empty();
    let (walked, step_runs) = Walk::of(o, program, &o.settled).go(start);
    if remembers && step_runs != o.step_runs.size() {
        // A StepRun is gone, or somebody else made one: what is remembered is no longer so.
        return Walk::of(o, program, &Settled::default()).go(start).0;
    }
    walked
}

/// All steps, where none of them has begun.
pub fn ahead(program: &Program) -> Vec<StepStatus> {
    program.all().into_iter().map(|step| Tally::default().status(&step.path)).collect()
}

struct Walk<'a> {
    o: &'a Observed,
    settled: &'a Settled,
    sources: Sources<'a>,
    latched: BTreeMap<&'a str, &'a StepStatus>,
    /// By identity of an item: paths of the StepRuns in it. Made where something was begun that nobody remembers.
    begun: OnceCell<BTreeMap<&'a str, BTreeSet<&'a str>>>,
}

impl<'a> Walk<'a> {
    fn of(o: &'a Observed, program: &'a Program, settled: &'a Settled) -> Self {
        let steps = o.workflow.status.iter().flat_map(|s| &s.steps);
        let sources = Sources {
            program,
            documents: &o.documents,
            contents: &o.contents,
            evaluator: &o.evaluator,
            unread: RefCell::default(),
        };
        let latched = steps.map(|s| (s.path.as_str(), s)).collect();
        Walk { o, settled, sources, latched, begun: OnceCell::new() }
    }

    /// What is found, and how many StepRuns were met.
    fn go(self, start: Admission) -> (Walked, usize) {
        let cold = self.settled.lists.is_empty() && !self.o.step_runs.is_empty();
        let frame = Frame { start, cold, ..Frame::default() };
        let (visited, _) = self.list(&self.sources.program.steps, "", &frame);
        let (looked, step_runs) = (visited.found.looked, visited.found.step_runs);
        let (progress, settled) = self.sum_up(visited);
        (Walked { progress, settled, unread: self.sources.lacking(), looked }, step_runs)
    }

    // ---- one execution

    /// A step of one StepRun: an agent's, a question, an approval.
    fn run(&self, step: &Step, frame: &Frame) -> Visited {
        let own = self.step_run_name(&step.path, &frame.keys);
        if let Some(found) = self.o.step_runs.get(&own) {
            return self.existing(found, &own, step, frame);
        }
        if let Some(fault) = self.o.unreadable.step_runs.get(&own) {
            let mut found = WalkResult::default();
            let tally = found.tally(&step.path);
            (tally.counts.started, tally.found) = (1, 1);
            if frame.keys.is_empty() {
                tally.latched.step_run = Some(own.clone());
            }
            let message = format!("its StepRun {own} cannot be read, and its result is lost: {fault}");
            return failed(found, &step.path, frame, (AttemptResult::StepRunLost, message));
        }
        let begun = self.latched.get(&*step.path).is_some_and(|s| s.step_run.as_deref() == Some(&own));
        if begun {
            let mut found = WalkResult::default();
            found.tally(&step.path).latched.step_run = Some(own.clone());
            let message =
                format!("its StepRun {own} was deleted, and its result is lost; a retry of the run starts it again");
            return failed(found, &step.path, frame, (AttemptResult::StepRunLost, message));
        }
        if frame.start != Admission::Open {
            return WalkResult::default().visited(Outcome::Ahead);
        }
        self.begin(step, own, frame)
    }

    fn step_run_name(&self, path: &str, keys: &[String]) -> String {
        let run = &self.sources.program.run;
        build::step_run_name(&run.name, &run.uid, path, keys)
    }

    fn existing(&self, step_run: &Arc<StepRun>, own: &str, step: &Step, frame: &Frame) -> Visited {
        let status = step_run.status.as_ref();
        let completed_at = status.and_then(|s| s.completed_at.clone());
        let mut found = WalkResult { step_runs: 1, ..WalkResult::default() };
        found.busy = status.and_then(|s| s.agent.as_ref()).is_some_and(|a| a.claim.is_some());
        let tally = found.tally(&step.path);
        tally.counts.started = 1;
        tally.found = 1;
        tally.decisions = decisions::of(step_run);
        tally.usage = status.and_then(|s| s.usage.clone()).unwrap_or_default();
        tally.started_at = status.and_then(|s| s.started_at.clone());
        tally.completed_at.clone_from(&completed_at);
        if frame.keys.is_empty() {
            tally.latched.step_run = Some(own.to_owned());
        }
        if completed_at.is_some() && !self.is_unpublished(step_run, step, frame) {
            return ended(found, step_run, &step.path, frame);
        }
        let place = frame.place(&step.path);
        let missing = status.and_then(|s| condition::get(&s.conditions, POLICIES)).filter(|c| c.status == "False");
        found.waits.unproven = missing.map(|missing| format!("{place}: {}", missing.message));
        open(&mut found, step_run, &step.path, &place);
        found.active.push(Active { place, state: ActiveState::Open(own.to_owned()) });
        found.visited(Outcome::Open)
    }

    /// Whether its document, which was accepted, cannot be seen by others yet: that is a moment after it was. If it was
    /// exchanged or taken away by then, the pass over the StepRun says so.
    fn is_unpublished(&self, step_run: &StepRun, step: &Step, frame: &Frame) -> bool {
        let status = step_run.status.as_ref().filter(|_| is_published_late(step_run) && !has_changed(step_run));
        let Some(name) = status.and_then(|s| s.result.as_ref()?.document_name.as_ref()) else { return false };
        let Some(produces) = step.produces() else { return false };
        let key = document::key_of(name, produces, &self.sources.viewpoint(frame));
        // One that was taken over may lie elsewhere.
        let elsewhere = || document::named(&self.o.documents, &produces.document_type, std::slice::from_ref(name));
        let found = self.o.documents.get(&key).or_else(elsewhere);
        let bound = status.and_then(|s| s.result.as_ref()?.document_binding.as_ref()?.uid.clone());
        match found.filter(|d| bound.is_none() || d.metadata.uid == bound) {
            Some(document) => !document::has_standing(document),
            // A run that ends does not wait for what may never come back.
            None => step_run::hold(&self.o.workflow) != Hold::Stopping,
        }
    }

    fn evaluate(&self, expression: &Expression, frame: &Frame, what: &str) -> Result<Value, Fault> {
        let scope = self.sources.scope(frame, &[expression], None)?;
        expression.evaluate(&scope).map_err(|e| Fault::Wrong(format!("{what}: {e}")))
    }

    // ---- the end of the walk

    fn sum_up(&self, visited: Visited) -> (RunProgress, Settled) {
        let Visited { outcome, mut found } = visited;
        let mut failure = match &outcome {
            // What the end of the run ended is no failure of its own.
            Outcome::Failing(f) | Outcome::Failed(f) if f.class != AttemptResult::Cancelled => Some(f.clone()),
            _ => None,
        };
        if let Some(lost) = self.find_lost(&mut found) {
            found.hold_back();
            failure.get_or_insert(lost);
        }
        let unfinished = found.unfinished();
        let (active, creates) = self.count_begun(&mut found);
        self.keep_latched(&mut found);
        let settled = Settled {
            step_runs: found.step_runs + creates.len(),
            open: unfinished,
            late: self.o.settled.late.clone(),
            gone: Arc::clone(&self.o.settled.gone),
            shown: Arc::clone(&self.o.settled.shown),
            lists: found.lists,
            values: found.values,
        };
        let mut open = OpenCounts::default();
        found.tallies.values().for_each(|tally| open.add(&tally.open));
        // Failures are passed over; that something was ended with the run is not: it is not complete.
        let cut_short = found.tallies.values().any(|t| t.cancelled);
        let done = match outcome {
            Outcome::Done(ended) if !cut_short => self.given(&ended, &mut failure),
            _ => None,
        };
        let mut tallies = found.tallies;
        let decided = tallies.values_mut().flat_map(|tally| std::mem::take(&mut tally.decisions));
        let decisions = decisions::newest(decided.collect());
        let mut usage = Usage::default();
        for tally in tallies.values() {
            usage.add(&tally.usage);
        }
        let mut steps: Vec<StepStatus> = self
            .sources
            .program
            .all()
            .into_iter()
            .map(|step| tallies.remove(&*step.path).unwrap_or_default().status(&step.path))
            .collect();
        tally::roll_up(&mut steps);
        let progress = RunProgress {
            steps,
            creates,
            active,
            open,
            pods_ending: self.o.pods_ending,
            waits: found.waits,
            decisions,
            usage,
            failure,
            done,
            busy: found.busy,
        };
        (progress, settled)
    }

    /// What the run gives, read. A list that is too large to be read has failed before; what else cannot be read is null.
    fn given(&self, ended: &Ended, failure: &mut Option<Failure>) -> Option<Value> {
        match self.sources.output(&ended.output, &mut Reading::default()) {
            Err(Fault::Changed(message)) => {
                let (place, class) = (self.sources.program.run.name.clone(), AttemptResult::DocumentChanged);
                failure.get_or_insert(Failure { place, class, message });
                None
            }
            // In the next pass, or the next decision of this one.
            Err(Fault::Unread) => None,
            Err(Fault::Wrong(_)) => Some(Value::Null),
            Ok(read) => Some(read),
        }
    }

    /// Counts what begins, now that it is sure. What is made in this pass is written down in this pass: the next one then
    /// has nothing to add.
    fn count_begun(&self, found: &mut WalkResult) -> (Vec<String>, Vec<NewStepRun>) {
        let (mut places, mut creates) = (Vec::new(), Vec::new());
        for Active { place, state } in std::mem::take(&mut found.active) {
            if let ActiveState::Begins(own, beginning) = state {
                let tally = found.tally(&beginning.spec.path);
                tally.open.running += 1;
                tally.counts.started += 1;
                tally.started_at = tally.started_at.take().or_else(|| Some(self.o.now.clone()));
                if beginning.keys.is_empty() {
                    tally.latched.step_run = Some(own);
                }
                creates.push(*beginning);
            }
            if places.len() < ACTIVE_STEPS {
                places.push(place);
            }
        }
        (places, creates)
    }

    /// What was latched stays, also behind a step that this pass, on an older copy, sees unfinished.
    fn keep_latched(&self, found: &mut WalkResult) {
        for (path, old) in &self.latched {
            let tally = found.tally(path);
            tally.latched.or(&Latched::from(*old));
            // Another operator's clock may have shown it otherwise: two of them must not correct each other for ever.
            tally.started_at = old.started_at.clone().or(tally.started_at.take());
        }
    }

    /// StepRuns of items that are gone: more were begun than there are. They are never made again.
    fn find_lost(&self, found: &mut WalkResult) -> Option<Failure> {
        let mut first = None;
        for step in self.sources.program.all() {
            let path: &str = &step.path;
            let begun = self.latched.get(path).and_then(|s| s.counts).map_or(0, |c| c.started);
            let there = found.tallies.get(path).map_or(0, |t| t.found);
            if step.group().is_some() || begun <= there {
                continue;
            }
            // Not met on this walk is not gone: a step before it may be older in this copy than the status is.
            let there = self.o.step_runs.values().filter(|s| s.spec.path == path).count();
            let lost = begun - i32::try_from(there).unwrap_or(i32::MAX);
            if lost <= 0 {
                continue;
            }
            let tally: &mut Tally = found.tally(path);
            tally.counts.failed += lost;
            // It stays as it was: the next pass must find them lost, too.
            tally.lost = lost;
            let message = format!(
                "StepRuns of its items were deleted ({lost}), and their results are lost; a retry of the run starts them again"
            );
            first.get_or_insert(Failure { place: path.to_owned(), class: AttemptResult::StepRunLost, message });
        }
        first
    }
}

/// What an expression that cannot be evaluated makes of a step.
fn at_fault(fault: Fault, path: &str, frame: &Frame) -> Visited {
    match fault {
        Fault::Unread => waits(WalkResult::default(), path, frame),
        // What it reads is not there yet in this copy: no fault of the expression.
        Fault::Wrong(_) if frame.start == Admission::NotYet => WalkResult::default().visited(Outcome::Open),
        Fault::Wrong(message) => failed(WalkResult::default(), path, frame, (AttemptResult::ExpressionError, message)),
        Fault::Changed(message) => {
            failed(WalkResult::default(), path, frame, (AttemptResult::DocumentChanged, message))
        }
    }
}

/// Something that is not there yet is waited for here.
fn waits(mut found: WalkResult, path: &str, frame: &Frame) -> Visited {
    found.active.push(Active { place: frame.place(path), state: ActiveState::Waits });
    found.visited(Outcome::Open)
}

fn failed(mut found: WalkResult, path: &str, frame: &Frame, (class, message): (AttemptResult, String)) -> Visited {
    found.tally(path).counts.failed += 1;
    found.visited(Outcome::Failed(Failure { place: frame.place(path), class, message }))
}

/// Counts a StepRun that has not ended by what it does.
fn open(found: &mut WalkResult, step_run: &StepRun, path: &str, place: &str) {
    let status = step_run.status.as_ref();
    let phase = status.and_then(|s| s.phase);
    let counts = &mut found.tally(path).open;
    match phase {
        Some(Phase::WaitingForAcceptance) => counts.gates += 1,
        Some(Phase::WaitingForInput) => counts.inputs += 1,
        Some(Phase::Suspended) => counts.suspended += 1,
        // It was looked at, and its Agent is not there or not ready, or has no slot.
        Some(Phase::Pending) => counts.held += 1,
        _ => counts.running += 1,
    }
    if phase == Some(Phase::WaitingForAcceptance) {
        // One in the middle of the agent's work comes before the one at its end.
        let of_action = status.and_then(|s| approval::waiting(s).next()).map(|request| request.gate_name.clone());
        let own = || step_run.spec.gate.as_ref().map(|g| g.name.clone());
        let gate = of_action.or_else(own).unwrap_or_default();
        let step_run = step_run.metadata.name.clone().unwrap_or_default();
        found.waits.acceptance.push(PendingAcceptance { step_run, path: place.to_owned(), gate });
    } else if phase == Some(Phase::Pending)
        && let Some(why) = status.and_then(|s| condition::get(&s.conditions, "Started"))
    {
        let message = format!("{place}: {}", why.message);
        found.waits.pending.push(WaitReason { reason: why.reason.clone(), message });
    }
}

/// A StepRun that has ended.
fn ended(mut found: WalkResult, step_run: &Arc<StepRun>, path: &str, frame: &Frame) -> Visited {
    let status = step_run.status.as_ref();
    let phase = status.and_then(|s| s.phase).unwrap_or_default();
    match phase {
        Phase::Completed if !has_changed(step_run) => {
            found.tally(path).counts.done += 1;
            let fresh = step_run.spec.reuse.is_none();
            found.visited(Outcome::Done(Ended { phase, output: Output::Of(Arc::clone(step_run)), fresh }))
        }
        Phase::Cancelled => {
            found.tally(path).cancelled = true;
            let (place, message) = (frame.place(path), "ended with the run".to_owned());
            found.visited(Outcome::Failed(Failure { place, class: AttemptResult::Cancelled, message }))
        }
        _ => {
            let error = status.and_then(|s| s.error.as_ref());
            let class = error.map_or(AttemptResult::Retryable, |e| e.class);
            failed(found, path, frame, (class, error.map(|e| e.message.clone()).unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests;
