//! Where a run stands: the definition walked once over the StepRuns that exist. What may start now comes out complete.
//!
//! Reading order: `stand` and `Walk` here, then `list` (order, needs, skips), `begin` (one execution), `items` (forEach),
//! `tally` (what adds up to the status).

mod begin;
mod items;
mod list;
mod tally;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use tally::Tally;

use super::content::Pin;
use super::observed::Observed;
use super::scope::{Fault, Frame, Output, Seen, Sources, Start};
use super::settled::Settled;
use super::step_run::{self, Hold, POLICIES, has_changed, is_published_late};
use super::{build, decisions, document};
use crate::api::condition;
use crate::api::document::{Document, DocumentStatus};
use crate::api::limits::{ACTIVE_STEPS, PENDING};
use crate::api::name;
use crate::api::step_run::{AttemptResult, StepRun, StepRunSpec};
use crate::api::workflow::{AcceptanceDecision, PendingAcceptance, Phase, StepStatus};
use crate::definition::expression::Expression;
use crate::definition::program::{Program, Step};
use crate::mutant::{self, Mutant};

/// The findings.
#[derive(Default)]
pub struct Stand {
    /// StepRuns to make now.
    pub creates: Vec<Beginning>,
    /// By path, in file order.
    pub steps: Vec<StepStatus>,
    pub active: Vec<String>,
    pub running: usize,
    pub gates: usize,
    pub pending_acceptance: Vec<PendingAcceptance>,
    /// What was decided at gates that no longer wait, the newest.
    pub decisions: Vec<AcceptanceDecision>,
    pub questions: usize,
    pub missing_documents: Vec<String>,
    /// What waits for something that is not there, in words.
    pub pending: Vec<String>,
    /// StepRuns that wait for their Agent or a slot.
    pub held: usize,
    pub suspended: usize,
    /// The first that waits for the admission policies, and what is missing.
    pub unproven: Option<String>,
    /// StepRuns that end because the run does.
    pub failure: Option<Failure>,
    /// Everything is done; what the last step gave.
    pub done: Option<Output>,
    /// The same, read.
    pub output: Option<serde_json::Value>,
    /// Some attempt was claimed.
    pub busy: bool,
}

impl Stand {
    /// How many StepRuns have not ended.
    pub fn open(&self) -> usize {
        self.running + self.held + self.gates + self.questions + self.suspended
    }
}

/// A StepRun to be made.
#[derive(Clone, Debug)]
pub struct Beginning {
    pub spec: StepRunSpec,
    /// Keys of the items around it.
    pub keys: Vec<String>,
    /// Documents that it takes over from another run, to be made before; those that are found by others have a status.
    pub copies: Vec<(Document, Option<DocumentStatus>)>,
}

/// A failure for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub place: String,
    pub class: AttemptResult,
    pub message: String,
}

/// How far a step, an item or a list has come.
enum Outcome {
    Done(Seen),
    /// Begun, or waiting for something.
    Open,
    /// Not begun.
    Ahead,
    /// It will fail: parts of it still run.
    Failing(Failure),
    Failed(Failure),
}

/// What a walk gives.
#[derive(Default)]
pub struct Walked {
    pub stand: Stand,
    pub settled: Settled,
    /// Documents whose contents must be had first.
    pub unread: BTreeSet<Pin>,
    /// How many items of forEach were looked at: what a pass costs.
    pub looked: usize,
}

/// Walks the definition; with `Start::Not` nothing new begins.
pub fn stand(o: &Observed, program: &Program, start: Start) -> Walked {
    let known = &o.settled;
    let cold = known.lists.is_empty() && !o.step_runs.is_empty();
    if !cold {
        let (walked, accounted) = Walk::of(o, program, known.as_ref().clone()).go(start);
        // A StepRun is gone, or somebody else made one: what was settled is looked at again.
        if accounted == o.step_runs.size() || known.lists.is_empty() {
            return walked;
        }
    }
    // Slots are counted over what was begun: the first look finds it, the second one may begin more.
    let (first, _) = Walk::of(o, program, Settled::default()).go(Start::Not);
    if start == Start::Not || first.settled.lists.is_empty() {
        let again = || Walk::of(o, program, Settled::default()).go(start).0;
        return if start == Start::Not { first } else { again() };
    }
    Walk::of(o, program, first.settled).go(start).0
}

struct Walk<'a> {
    o: &'a Observed,
    sources: Sources<'a>,
    latched: BTreeMap<String, StepStatus>,
    tallies: BTreeMap<String, Tally>,
    /// By identity of an item: paths of the StepRuns in it. Made where something was begun that nobody remembers.
    begun: Option<BTreeMap<String, BTreeSet<String>>>,
    settled: Settled,
    /// StepRuns met so far, and the names of those that have not ended.
    accounted: usize,
    looked: usize,
    unfinished: Vec<String>,
    stand: Stand,
}

impl<'a> Walk<'a> {
    fn of(o: &'a Observed, program: &'a Program, settled: Settled) -> Self {
        let status = o.workflow.status.as_ref();
        let latched = status.map(|s| s.steps.iter().map(|s| (s.path.clone(), s.clone())).collect()).unwrap_or_default();
        let sources = Sources {
            program,
            documents: &o.documents,
            contents: &o.contents,
            evaluator: &o.evaluator,
            unread: RefCell::new(BTreeSet::new()),
        };
        Walk {
            o,
            sources,
            latched,
            tallies: BTreeMap::new(),
            begun: None,
            settled,
            accounted: 0,
            looked: 0,
            unfinished: Vec::new(),
            stand: Stand::default(),
        }
    }

    fn go(mut self, start: Start) -> (Walked, usize) {
        let frame = Frame { start, ..Frame::default() };
        let program = self.sources.program;
        let (outcome, _) = self.list(&program.steps, "", &frame);
        self.finish(outcome);
        let unread = self.sources.unread.take();
        (Walked { stand: self.stand, settled: self.settled, unread, looked: self.looked }, self.accounted)
    }

    fn tally(&mut self, path: &str) -> &mut Tally {
        self.tallies.entry(path.to_owned()).or_default()
    }

    // ---- one execution

    /// A step of one StepRun: an agent's, a question, an approval.
    fn run(&mut self, step: &Step, frame: &Frame) -> Outcome {
        let path: &str = &step.path;
        let own = self.step_run_name(path, &frame.keys);
        if let Some(found) = self.o.step_runs.get(&own).cloned() {
            return self.existing(&found, step, frame);
        }
        let begun = self.latched.get(path).is_some_and(|s| s.step_run.as_deref() == Some(&own));
        if begun && !mutant::on(Mutant::MadeAgain) {
            let tally = self.tally(path);
            tally.step_run = Some(own.clone());
            tally.counts.failed += 1;
            return Outcome::Failed(Failure {
                place: frame.place(path),
                class: AttemptResult::StepRunLost,
                message: format!("StepRun {own} was deleted; it is never made again"),
            });
        }
        if frame.start != Start::May {
            return Outcome::Ahead;
        }
        self.begin(step, frame)
    }

    fn step_run_name(&self, path: &str, keys: &[String]) -> String {
        let run = &self.sources.program.run;
        build::step_run_name(&run.name, &run.uid, path, keys)
    }

    fn existing(&mut self, step_run: &Arc<StepRun>, step: &Step, frame: &Frame) -> Outcome {
        let path: &str = &step.path;
        let status = step_run.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        self.accounted += 1;
        self.stand.busy |= status.agent.as_ref().is_some_and(|a| a.claim.is_some());
        let begun = self.latched.get(path).and_then(|s| s.started_at.clone());
        let tally = self.tally(path);
        tally.counts.started += 1;
        tally.found += 1;
        tally.decisions.extend(decisions::of(step_run));
        if frame.keys.is_empty() {
            tally.step_run.clone_from(&step_run.metadata.name);
        }
        tally.started_at = begun.or_else(|| tally::earliest(tally.started_at.take(), status.started_at.clone()));
        tally.completed_at = tally::latest(tally.completed_at.take(), status.completed_at.clone());
        if status.completed_at.is_some() && !self.is_unpublished(step_run, step, frame) {
            return self.ended(step_run, phase, path, frame);
        }
        self.unfinished.extend(step_run.metadata.name.clone());
        if let Some(missing) = condition::get(&status.conditions, POLICIES).filter(|c| c.status == "False") {
            self.stand.unproven.get_or_insert_with(|| format!("{}: {}", frame.place(path), missing.message));
        }
        self.open(step_run, status.phase, path, frame);
        self.active(path, frame);
        Outcome::Open
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

    fn open(&mut self, step_run: &StepRun, phase: Option<Phase>, path: &str, frame: &Frame) {
        let tally = self.tallies.entry(path.to_owned()).or_default();
        match phase {
            Some(Phase::WaitingForAcceptance) => {
                tally.gates += 1;
                self.stand.gates += 1;
                if self.stand.pending_acceptance.len() < PENDING {
                    let gate = step_run.spec.gate.as_ref().map(|g| g.name.clone()).unwrap_or_default();
                    let step_run = step_run.metadata.name.clone().unwrap_or_default();
                    self.stand.pending_acceptance.push(PendingAcceptance { step_run, path: frame.place(path), gate });
                }
            }
            Some(Phase::WaitingForInput) => {
                tally.inputs += 1;
                self.stand.questions += 1;
            }
            Some(Phase::Suspended) => {
                tally.suspended += 1;
                self.stand.suspended += 1;
            }
            // It was looked at, and its Agent is not there or not ready, or has no slot.
            Some(Phase::Pending) => {
                self.stand.held += 1;
                let status = step_run.status.as_ref();
                let why = status.and_then(|s| condition::get(&s.conditions, "Started")).map(|c| c.message.clone());
                self.pends(format!("{}: {}", frame.place(path), why.unwrap_or_default()));
            }
            _ => {
                tally.running += 1;
                self.stand.running += 1;
            }
        }
    }

    fn ended(&mut self, step_run: &Arc<StepRun>, phase: Phase, path: &str, frame: &Frame) -> Outcome {
        match phase {
            Phase::Completed if !has_changed(step_run) => {
                self.tally(path).counts.done += 1;
                let fresh = step_run.spec.reuse.is_none();
                Outcome::Done(Seen { phase, output: Output::Of(Arc::clone(step_run)), fresh })
            }
            Phase::Cancelled => {
                self.tally(path).cancelled = true;
                Outcome::Failed(Failure {
                    place: frame.place(path),
                    class: AttemptResult::Cancelled,
                    message: "ended with the run".to_owned(),
                })
            }
            _ => {
                self.tally(path).counts.failed += 1;
                let error = step_run.status.as_ref().and_then(|s| s.error.as_ref());
                Outcome::Failed(Failure {
                    place: frame.place(path),
                    class: error.map_or(AttemptResult::Retryable, |e| e.class),
                    message: error.map(|e| e.message.clone()).unwrap_or_default(),
                })
            }
        }
    }

    // ---- helpers of all rooms

    fn active(&mut self, path: &str, frame: &Frame) {
        if self.stand.active.len() < ACTIVE_STEPS {
            self.stand.active.push(frame.place(path));
        }
    }

    fn pends(&mut self, why: String) {
        if self.stand.pending.len() < PENDING {
            self.stand.pending.push(why);
        }
    }

    fn evaluate(&self, expression: &Expression, frame: &Frame, what: &str) -> Result<serde_json::Value, Fault> {
        let scope = self.sources.scope(frame, &[expression], &[])?;
        expression.evaluate(&scope).map_err(|e| Fault::Wrong(format!("{what}: {e}")))
    }

    /// What an expression that cannot be evaluated makes of a step.
    fn at_fault(&mut self, fault: Fault, path: &str, frame: &Frame) -> Outcome {
        match fault {
            Fault::Unread => {
                self.active(path, frame);
                Outcome::Open
            }
            // What it reads is not there yet in this copy: no fault of the expression.
            Fault::Wrong(_) if frame.start == Start::Behind => Outcome::Open,
            Fault::Wrong(message) => {
                self.tally(path).counts.failed += 1;
                let class = AttemptResult::ExpressionError;
                Outcome::Failed(Failure { place: frame.place(path), class, message })
            }
            Fault::Changed(message) => {
                self.tally(path).counts.failed += 1;
                let class = AttemptResult::DocumentChanged;
                Outcome::Failed(Failure { place: frame.place(path), class, message })
            }
        }
    }

    // ---- the end of the walk

    fn finish(&mut self, outcome: Outcome) {
        let program = self.sources.program;
        self.stand.failure = match &outcome {
            // What the end of the run ended is no failure of its own.
            Outcome::Failing(f) | Outcome::Failed(f) if f.class != AttemptResult::Cancelled => Some(f.clone()),
            _ => None,
        };
        self.find_lost();
        if self.stand.failure.is_some() {
            self.hold_back(0);
        }
        self.latch_begun();
        self.keep_latched();
        self.settled.step_runs = self.accounted + self.stand.creates.len();
        self.settled.open = std::mem::take(&mut self.unfinished);
        self.settled.late.clone_from(&self.o.settled.late);
        let mut tallies = std::mem::take(&mut self.tallies);
        self.stand.decisions =
            decisions::newest(tallies.values_mut().flat_map(|t| std::mem::take(&mut t.decisions)).collect());
        // Failures are passed over; that something was ended with the run is not: it is not complete.
        let cut_short = tallies.values().any(|t| t.cancelled);
        let mut steps: Vec<StepStatus> = program
            .all()
            .into_iter()
            .map(|step| tallies.remove(&*step.path).unwrap_or_default().status(&step.path))
            .collect();
        tally::roll_up(&mut steps);
        self.stand.steps = steps;
        if let (Outcome::Done(seen), false) = (outcome, cut_short) {
            // A list that is too large to be read has failed before; what else cannot be read is null.
            match self.sources.output(&seen.output) {
                Err(Fault::Changed(message)) => {
                    let (place, class) = (program.run.name.clone(), AttemptResult::DocumentChanged);
                    self.stand.failure.get_or_insert(Failure { place, class, message });
                }
                read => {
                    self.stand.output = read.ok();
                    self.stand.done = Some(seen.output);
                }
            }
        }
    }

    /// What is made in this pass is written down in this pass: the next one then has nothing to add.
    fn latch_begun(&mut self) {
        let run = &self.sources.program.run;
        for Beginning { spec, keys, .. } in &self.stand.creates {
            let tally = self.tallies.entry(spec.path.clone()).or_default();
            let begun = self.latched.get(&spec.path).and_then(|s| s.started_at.clone());
            tally.started_at = begun.or(tally.started_at.take()).or_else(|| Some(self.o.now.clone()));
            if keys.is_empty() {
                tally.step_run = Some(build::step_run_name(&run.name, &run.uid, &spec.path, keys));
            }
        }
    }

    /// What was latched stays, also behind a step that this pass, on an older copy, sees unfinished.
    fn keep_latched(&mut self) {
        for (path, old) in &self.latched {
            let tally = self.tallies.entry(path.clone()).or_default();
            tally.step_run = tally.step_run.take().or_else(|| old.step_run.clone());
            if tally.collection_digest.is_none() {
                tally.collection_digest.clone_from(&old.collection_digest);
                tally.collection_documents.clone_from(&old.collection_documents);
            }
            tally.when = tally.when.or(old.when);
            // Another operator's clock may have shown it otherwise: two of them must not correct each other for ever.
            tally.started_at = old.started_at.clone().or(tally.started_at.take());
        }
    }

    /// Items whose StepRun is gone: more were begun than there are. They are never made again.
    fn find_lost(&mut self) {
        for step in self.sources.program.all() {
            let path: &str = &step.path;
            let begun = self.latched.get(path).and_then(|s| s.counts).map_or(0, |c| c.started);
            let tally = self.tally(path);
            if step.group().is_some() || begun <= tally.found {
                continue;
            }
            // Not met on this walk is not gone: a step before it may be older in this copy than the status is.
            let there = self.o.step_runs.values().filter(|s| s.spec.path == path).count();
            let lost = begun - i32::try_from(there).unwrap_or(i32::MAX);
            if lost <= 0 {
                continue;
            }
            let tally = self.tally(path);
            tally.counts.failed += lost;
            // It stays as it was: the next pass must find them lost, too.
            tally.lost = lost;
            let message = format!("StepRuns of it were deleted ({lost}); they are never made again");
            let failure = Failure { place: path.to_owned(), class: AttemptResult::StepRunLost, message };
            self.stand.failure.get_or_insert(failure);
        }
    }

    /// Once something failed, what was to start behind that mark does not, and does not count.
    fn hold_back(&mut self, mark: usize) {
        for Beginning { spec, keys, .. } in self.stand.creates.split_off(mark.min(self.stand.creates.len())) {
            let place = keys.iter().fold(spec.path.clone(), |place, key| format!("{place}/{key}"));
            self.stand.active.retain(|a| *a != place);
            self.stand.running -= 1;
            let tally = self.tally(&spec.path);
            tally.running -= 1;
            tally.counts.started -= 1;
        }
    }
}

#[cfg(test)]
mod tests;
