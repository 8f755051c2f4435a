//! Where a run stands: the definition walked once over the StepRuns that exist. What may start now comes out complete.

mod items;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use tally::{file_order, roll_up};

use super::document;
use super::expression::{self, Expression, kind};
use super::scope::{self, Frame, Output, Sources};
use super::workflow::Observed;
use crate::api::condition;
use crate::api::definition::Definition;
use crate::api::limits::{ACTIVE_STEPS, ITEMS, PARAMETERS_BYTES, PENDING};
use crate::api::name;
use crate::api::step::{ForEach, Step};
use crate::api::step_run::{
    AttemptResult, DocumentRef, Item, ScopeLink, StepRun, StepRunGate, StepRunSpec, WorkflowIdentity,
};
use crate::api::workflow::{Counts, PendingAcceptance, Phase, StepStatus};

/// The findings.
#[derive(Default)]
pub struct Stand {
    /// StepRuns to make now, with the item keys of each.
    pub creates: Vec<(StepRunSpec, Vec<String>)>,
    /// By path, in file order.
    pub steps: Vec<StepStatus>,
    pub active: Vec<String>,
    pub running: usize,
    pub gates: usize,
    pub pending_acceptance: Vec<PendingAcceptance>,
    pub questions: usize,
    pub missing_documents: Vec<String>,
    /// What waits for something that is not there, in words.
    pub pending: Vec<String>,
    /// StepRuns that wait for their Agent.
    pub held: usize,
    pub failure: Option<Failure>,
    /// Everything is done.
    pub done: bool,
    /// Some attempt was claimed.
    pub busy: bool,
}

/// The first failure that nothing tolerates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub place: String,
    pub class: AttemptResult,
    pub message: String,
}

/// How far a step, an item or a list has come.
enum Outcome {
    Done(Output),
    /// Begun, or waiting for something.
    Open,
    /// Not begun.
    Ahead,
    Failed,
}

/// Walks the definition.
pub fn stand(o: &Observed, definition: &Definition) -> Stand {
    let status = o.workflow.status.as_ref();
    let latched = status.map(|s| s.steps.iter().map(|s| (s.path.clone(), s.clone())).collect()).unwrap_or_default();
    let sources = Sources { definition, documents: &o.documents, contents: &o.contents };
    let mut walk = Walk { o, sources, latched, tallies: BTreeMap::new(), order: Vec::new(), stand: Stand::default() };
    walk.lay_out(&definition.steps, "");
    let outcome = walk.list(&definition.steps, &Frame::default(), true);
    walk.finish(&outcome)
}

struct Walk<'a> {
    o: &'a Observed,
    sources: Sources<'a>,
    latched: BTreeMap<String, StepStatus>,
    tallies: BTreeMap<String, Tally>,
    order: Vec<String>,
    stand: Stand,
}

/// What adds up at one path, over all items.
#[derive(Default)]
struct Tally {
    counts: Counts,
    /// Inside or at a forEach.
    plural: bool,
    running: usize,
    inputs: usize,
    gates: usize,
    documents: usize,
    started_at: Option<Time>,
    completed_at: Option<Time>,
    step_run: Option<String>,
    output_digest: Option<String>,
    collection_digest: Option<String>,
    collection_documents: Vec<String>,
    cancelled: bool,
    /// StepRuns that were begun and are gone.
    lost: i32,
    /// How often this path is done, and how often it has to be; unknown before the items around it are.
    complete: usize,
    wanted: Option<usize>,
}

impl Walk<'_> {
    fn lay_out(&mut self, steps: &[Step], prefix: &str) {
        for step in steps {
            let path = format!("{prefix}{}", step.name);
            self.lay_out(&step.steps, &format!("{path}/"));
            self.order.push(path);
        }
    }

    fn tally(&mut self, path: &str) -> &mut Tally {
        self.tallies.entry(path.to_owned()).or_default()
    }

    fn list(&mut self, steps: &[Step], frame: &Frame, may_start: bool) -> Outcome {
        let mut here = frame.clone();
        let (mut last, mut failed) = (Output::Null, false);
        for step in steps {
            match self.step(step, &here, may_start && !failed) {
                Outcome::Done(output) => {
                    here.done.insert(step.name.clone(), output.clone());
                    last = output;
                }
                // What was begun behind a StepRun that is lost still runs: it is counted, nothing more.
                Outcome::Failed => failed = true,
                _ if failed => {}
                other => return other,
            }
        }
        if failed { Outcome::Failed } else { Outcome::Done(last) }
    }

    fn step(&mut self, step: &Step, frame: &Frame, may_start: bool) -> Outcome {
        let path = format!("{}{}", frame.prefix, step.name);
        if frame.keys.is_empty() {
            self.tally(&path).wanted = Some(1);
        }
        let outcome = match &step.for_each {
            None => self.body(step, &path, frame, may_start),
            Some(for_each) => self.for_each(step, for_each, &path, frame, may_start),
        };
        if let Outcome::Done(_) = outcome {
            self.tally(&path).complete += 1;
        }
        outcome
    }

    fn body(&mut self, step: &Step, path: &str, frame: &Frame, may_start: bool) -> Outcome {
        match &step.agent_id {
            Some(agent) => self.run(step, agent, path, frame, may_start),
            None => self.list(&step.steps, &Frame { prefix: format!("{path}/"), ..frame.clone() }, may_start),
        }
    }

    // ---- one execution

    fn run(&mut self, step: &Step, agent: &str, path: &str, frame: &Frame, may_start: bool) -> Outcome {
        let definition = self.sources.definition;
        let own = name::step_run(&definition.workflow, &definition.workflow_uid, path, &frame.keys);
        if let Some(found) = self.o.step_runs.get(&own).cloned() {
            return self.existing(&found, path, frame);
        }
        if self.latched.get(path).is_some_and(|s| s.step_run.as_deref() == Some(&own)) {
            let tally = self.tally(path);
            tally.step_run = Some(own.clone());
            tally.counts.failed += 1;
            return self.fail(
                place(path, frame),
                AttemptResult::StepRunLost,
                format!("StepRun {own} was deleted; it is never made again"),
            );
        }
        if !may_start {
            return Outcome::Ahead;
        }
        self.begin(step, agent, path, frame)
    }

    fn existing(&mut self, step_run: &Arc<StepRun>, path: &str, frame: &Frame) -> Outcome {
        let status = step_run.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        self.stand.busy |= status.agent.as_ref().is_some_and(|a| a.claim.is_some());
        let begun = self.latched.get(path).and_then(|s| s.started_at.clone());
        let tally = self.tally(path);
        tally.counts.started += 1;
        if frame.keys.is_empty() {
            tally.step_run.clone_from(&step_run.metadata.name);
            tally.output_digest = status.result.as_ref().map(|r| r.digest.clone());
        }
        tally.started_at = begun.or_else(|| earliest(tally.started_at.take(), status.started_at.clone()));
        tally.completed_at = latest(tally.completed_at.take(), status.completed_at.clone());
        if status.completed_at.is_some() {
            return self.ended(step_run, phase, path, frame);
        }
        match phase {
            Phase::WaitingForAcceptance => {
                tally.gates += 1;
                self.stand.gates += 1;
                let gate = step_run.spec.gate.as_ref().map(|g| g.name.clone()).unwrap_or_default();
                let step_run = step_run.metadata.name.clone().unwrap_or_default();
                self.stand.pending_acceptance.push(PendingAcceptance { step_run, path: place(path, frame), gate });
                self.stand.pending_acceptance.truncate(PENDING);
            }
            Phase::WaitingForInput => {
                tally.inputs += 1;
                self.stand.questions += 1;
            }
            // It was looked at, and its Agent is not there or not ready.
            Phase::Pending if status.phase.is_some() => {
                self.stand.held += 1;
                let why = condition::get(&status.conditions, "Started");
                let why = why.map(|c| c.message.clone()).unwrap_or_default();
                self.stand.pending.push(format!("{}: {why}", place(path, frame)));
            }
            _ => {
                tally.running += 1;
                self.stand.running += 1;
            }
        }
        self.active(path, frame);
        Outcome::Open
    }

    fn ended(&mut self, step_run: &Arc<StepRun>, phase: Phase, path: &str, frame: &Frame) -> Outcome {
        match phase {
            Phase::Completed => {
                self.tally(path).counts.done += 1;
                Outcome::Done(Output::Of(Arc::clone(step_run)))
            }
            Phase::Cancelled => {
                self.tally(path).cancelled = true;
                Outcome::Open
            }
            _ => {
                self.tally(path).counts.failed += 1;
                let error = step_run.status.as_ref().and_then(|s| s.error.as_ref());
                let class = error.map_or(AttemptResult::Retryable, |e| e.class);
                let message = error.map(|e| e.message.clone()).unwrap_or_default();
                self.fail(place(path, frame), class, message)
            }
        }
    }

    fn begin(&mut self, step: &Step, agent: &str, path: &str, frame: &Frame) -> Outcome {
        let Some(found) = self.o.agents.get(agent) else {
            self.stand.pending.push(format!("{path}: Agent {agent} does not exist"));
            self.active(path, frame);
            return Outcome::Open;
        };
        let wanted: Vec<String> = found.spec.required_documents.iter().chain(&step.documents).cloned().collect();
        let Some(documents) = self.documents(&wanted, frame) else {
            self.tally(path).documents += 1;
            self.active(path, frame);
            return Outcome::Open;
        };
        match self.spec(step, agent, path, frame, documents) {
            Err((class, message)) => {
                self.tally(path).counts.failed += 1;
                self.fail(place(path, frame), class, message)
            }
            Ok(spec) => {
                self.stand.creates.push((spec, frame.keys.clone()));
                self.stand.running += 1;
                let tally = self.tally(path);
                tally.running += 1;
                tally.counts.started += 1;
                self.active(path, frame);
                Outcome::Open
            }
        }
    }

    /// The documents that a step reads, pinned; none while one is missing.
    fn documents(&mut self, wanted: &[String], frame: &Frame) -> Option<Vec<DocumentRef>> {
        let from = self.sources.viewpoint(frame);
        let mut found: Vec<DocumentRef> = Vec::new();
        let mut complete = true;
        for kind in wanted {
            if let Some(plain) = kind.strip_suffix("/*") {
                found.extend(
                    document::fan_in(&self.o.documents, plain, &from)
                        .into_iter()
                        .map(|(key, d)| document::pinned(d, Some(key))),
                );
            } else if let Some(d) = document::find(&self.o.documents, kind, &from) {
                if !found.iter().any(|old| old.key.is_none() && old.document_type == *kind) {
                    found.push(document::pinned(d, None));
                }
            } else {
                complete = false;
                self.missing(kind);
            }
        }
        complete.then_some(found)
    }

    fn missing(&mut self, kind: &str) {
        if !self.stand.missing_documents.iter().any(|m| m == kind) && self.stand.missing_documents.len() < PENDING {
            self.stand.missing_documents.push(kind.to_owned());
        }
    }

    fn spec(
        &self,
        step: &Step,
        agent: &str,
        path: &str,
        frame: &Frame,
        documents: Vec<DocumentRef>,
    ) -> Result<StepRunSpec, (AttemptResult, String)> {
        let used = scope::of_step(step);
        let scope = self.sources.scope(frame, &used.iter().collect::<Vec<_>>(), &[]);
        let parameters = step.parameters.clone().unwrap_or_default();
        let parameters = expression::expand(&parameters, &scope).map_err(|e| (AttemptResult::ExpressionError, e))?;
        let parameters = Value::Object(parameters).to_string();
        if parameters.len() > PARAMETERS_BYTES {
            let message = format!(
                "the parameters are {} bytes long, at most {PARAMETERS_BYTES} are allowed; pass a document instead",
                parameters.len()
            );
            return Err((AttemptResult::InvalidParameters, message));
        }
        let definition = self.sources.definition;
        let status = self.o.workflow.status.as_ref();
        let gate = step.gate.as_ref().map(|gate| StepRunGate {
            name: gate
                .name
                .clone()
                .or_else(|| step.produces.as_ref().map(|p| p.document_type.clone()))
                .unwrap_or_else(|| step.name.clone()),
            acceptors: gate.acceptors.clone(),
            message: gate.message.clone(),
        });
        let item = frame.items.last().zip(frame.keys.last()).map(|((_, index, value), key)| Item {
            key: key.clone(),
            index: *index,
            value: value.clone(),
        });
        let digests: Vec<&[u8]> = [agent.as_bytes(), parameters.as_bytes(), definition.input.as_bytes()]
            .into_iter()
            .chain(documents.iter().map(|d| d.digest.as_bytes()))
            .collect();
        Ok(StepRunSpec {
            workflow: WorkflowIdentity {
                name: definition.workflow.clone(),
                uid: definition.workflow_uid.clone(),
                creator: status.and_then(|s| s.creator.clone()),
            },
            definition: status.and_then(|s| s.definition.clone()).unwrap_or_default(),
            path: path.to_owned(),
            agent_id: agent.to_owned(),
            item,
            scope_chain: self.scope_chain(frame),
            input_digest: name::digest(digests),
            parameters,
            documents,
            gate,
        })
    }

    fn scope_chain(&self, frame: &Frame) -> Vec<ScopeLink> {
        let uid = &self.sources.definition.workflow_uid;
        let own = ScopeLink { scope: "workflow".to_owned(), scope_id: uid.clone() };
        let items = frame.items.iter().enumerate().map(|(n, (as_name, _, _))| ScopeLink {
            scope: as_name.clone(),
            scope_id: name::scope_id(uid, &frame.keys[..=n]),
        });
        std::iter::once(own).chain(items).collect()
    }

    fn active(&mut self, path: &str, frame: &Frame) {
        if self.stand.active.len() < ACTIVE_STEPS {
            self.stand.active.push(place(path, frame));
        }
    }

    fn fail(&mut self, place: String, class: AttemptResult, message: String) -> Outcome {
        self.stand.failure.get_or_insert(Failure { place, class, message });
        Outcome::Failed
    }

    fn finish(mut self, outcome: &Outcome) -> Stand {
        self.find_lost();
        if self.stand.failure.is_some() {
            self.hold_back();
        }
        self.latch_begun();
        self.keep_latched();
        let order = std::mem::take(&mut self.order);
        let mut tallies = std::mem::take(&mut self.tallies);
        // Groups stand behind their steps in `order`; file order is by where a path first appears.
        let mut steps: Vec<StepStatus> =
            order.iter().map(|path| tallies.remove(path).unwrap_or_default().status(path)).collect();
        roll_up(&mut steps);
        self.stand.steps = file_order(steps, &self.sources.definition.steps);
        self.stand.done = matches!(outcome, Outcome::Done(_));
        self.stand
    }

    /// What is made in this pass is written down in this pass: the next one then has nothing to add.
    fn latch_begun(&mut self) {
        let definition = self.sources.definition;
        for (spec, keys) in &self.stand.creates {
            let tally = self.tallies.entry(spec.path.clone()).or_default();
            let begun = self.latched.get(&spec.path).and_then(|s| s.started_at.clone());
            tally.started_at = begun.or(tally.started_at.take()).or_else(|| Some(self.o.now.clone()));
            if keys.is_empty() {
                let own = name::step_run(&definition.workflow, &definition.workflow_uid, &spec.path, keys);
                tally.step_run = Some(own);
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
            tally.started_at = tally.started_at.take().or_else(|| old.started_at.clone());
        }
    }

    /// Items whose StepRun is gone: more were begun than there are. They are never made again.
    fn find_lost(&mut self) {
        let mut there: BTreeMap<&str, i32> = BTreeMap::new();
        for found in self.o.step_runs.values() {
            *there.entry(found.spec.path.as_str()).or_default() += 1;
        }
        for path in self.order.clone() {
            let step = self.sources.definition.step(&path);
            let begun = self.latched.get(&path).and_then(|s| s.counts);
            let begun = begun.map_or(0, |c| c.started);
            let there = there.get(path.as_str()).copied().unwrap_or_default();
            if step.is_none_or(|s| s.agent_id.is_none()) || begun <= there {
                continue;
            }
            let lost = begun - there;
            let tally = self.tally(&path);
            tally.counts.failed += lost;
            // It stays as it was: the next pass must find them lost, too.
            tally.lost = lost;
            let message = format!("StepRuns of it were deleted ({lost}); they are never made again");
            self.fail(path, AttemptResult::StepRunLost, message);
        }
    }

    /// Once something failed, what was to start does not, and does not count.
    fn hold_back(&mut self) {
        for (spec, keys) in std::mem::take(&mut self.stand.creates) {
            let place = keys.iter().fold(spec.path.clone(), |place, key| format!("{place}/{key}"));
            self.stand.active.retain(|a| *a != place);
            self.stand.running -= 1;
            let tally = self.tally(&spec.path);
            tally.running -= 1;
            tally.counts.started -= 1;
        }
    }
}

fn place(path: &str, frame: &Frame) -> String {
    frame.keys.iter().fold(path.to_owned(), |place, key| format!("{place}/{key}"))
}

fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    [a, b].into_iter().flatten().min_by_key(|t| t.0)
}

fn latest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    [a, b].into_iter().flatten().max_by_key(|t| t.0)
}
