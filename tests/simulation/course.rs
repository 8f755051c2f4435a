//! The course of a run, held against an independent reading of it: what may begin, what a step is given, how a run ends,
//! what suspending, cancelling and limits mean, and what one run takes over from another.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockstep::api::definition::Definition;
use lockstep::api::step::{OnFailure, Order};
use lockstep::api::step_run::{Reuse, StepRunStatus};
use lockstep::api::workflow::Phase;
use lockstep::api::{StepRun, Workflow};
use serde_json::Value;

use super::super::server::{Kind, Object};
use super::super::world::{Who, World};
use super::reading::{End, Reading, keys};
use super::upstream;

/// Features that a thousand worlds must have had, each to its full effect.
pub const FEATURES: [&str; 18] = [
    "graph",
    "when",
    "handed on",
    "group output",
    "tolerate",
    "collect",
    "ask",
    "approval",
    "onFailure",
    "passed over",
    "suspend",
    "resume",
    "cancel",
    "timeout",
    "ttl",
    "slots",
    "retryOf",
    "reuse",
];

/// Seconds by which clocks may differ.
const SKEW: i64 = 5;

/// What a StepRun gave that completed.
#[derive(Clone, Debug)]
struct Given {
    run: String,
    place: (String, Vec<String>),
    input: String,
    digest: String,
    output: Option<String>,
}

#[derive(Default)]
pub struct Course {
    /// By UID of the StepRun.
    given: BTreeMap<String, Given>,
    /// Features that were seen at work.
    pub had: std::collections::BTreeSet<&'static str>,
}

fn seconds(from: &Time, to: &Time) -> i64 {
    to.0.duration_since(from.0).as_secs()
}

fn reason(workflow: &Workflow) -> String {
    let conditions = workflow.status.iter().flat_map(|s| &s.conditions);
    conditions.filter(|c| c.type_ == "Succeeded").map(|c| c.reason.clone()).next().unwrap_or_default()
}

/// What a copy of a run says that lets nothing new start.
pub fn forbids(run: &Value) -> Option<&'static str> {
    let conditions = run["status"]["conditions"].as_array();
    let failing = conditions.into_iter().flatten().any(|c| c["type"] == "Failing" && c["status"] == "True");
    [
        (run["spec"]["cancel"] == true, "cancelled"),
        (!run["metadata"]["deletionTimestamp"].is_null(), "deleted"),
        (!run["status"]["completedAt"].is_null(), "over"),
        (failing, "failing"),
        (run["spec"]["suspend"] == true, "suspended"),
    ]
    .into_iter()
    .find_map(|(is, word)| is.then_some(word))
}

impl World {
    pub fn had(&mut self, feature: &'static str) {
        self.judge.course.had.insert(feature);
    }

    /// The run as it is, if it goes on and nobody took a part of it away.
    fn going(&self, name: &str, uid: &str) -> Option<Arc<Object>> {
        let run = self.live(Kind::Workflow, name, uid).filter(|r| !self.judge.bereaved && !r.is_deleting());
        run.filter(|r| r.value["status"]["completedAt"].is_null())
    }

    // ---- beginnings

    /// A StepRun is made only when what it needs has ended, and nothing skips it.
    pub fn judge_beginning(&mut self, made: &Arc<Object>) {
        let step_run: Arc<StepRun> = made.typed();
        let spec = &step_run.spec;
        if self.going(&spec.workflow.name, &spec.workflow.uid).is_none() {
            return;
        }
        let Some(pinned) = upstream::definition(&self.server, spec) else { return };
        let reading = Reading::of(&self.server, &pinned.data);
        let keys = keys(&step_run);
        if let Err(why) = reading.may_begin(&spec.path, &keys) {
            return self.violated(format!("{} begins although {why}", made.name));
        }
        self.judge_parameters(&reading, &step_run);
        self.judge_reuse(&pinned.data, &step_run);
        let (_, order) = around(&pinned.data, &spec.path);
        if order == Order::Graph && pinned.data.step(&spec.path).is_some_and(|s| !s.needs.is_empty()) {
            self.had("graph");
        }
    }

    fn judge_parameters(&mut self, reading: &Reading<'_>, step_run: &StepRun) {
        let spec = &step_run.spec;
        let Some(pinned) = upstream::definition(&self.server, spec) else { return };
        let step = pinned.data.step(&spec.path);
        let text = step.and_then(|s| s.parameters.as_ref()?.get("seen")?.as_str().map(str::to_owned));
        let Some(expected) = text.and_then(|text| reading.value(&text, &keys(step_run))) else { return };
        let given: Value = serde_json::from_str(&spec.parameters).unwrap_or_default();
        if given["seen"] != expected {
            self.violated(format!("{} is given {}, not {expected}", spec.path, given["seen"]));
        }
    }

    /// A Job is made behind what was decided, and for nobody whom no agent serves.
    pub fn judge_launch(&mut self, job: &Object, owner: &Object) {
        let step_run: Arc<StepRun> = owner.typed();
        let spec = &step_run.spec;
        if spec.agent_id.is_empty() || spec.reuse.is_some() {
            return self.violated(format!("Job {} is for a step without an agent", job.name));
        }
        if self.going(&spec.workflow.name, &spec.workflow.uid).is_none() {
            return;
        }
        if let Some(gate) = upstream::shut_gate(&self.server, &step_run) {
            self.violated(format!("Job {} was made behind {gate}", job.name));
        }
    }

    /// A pass that has heard that nothing may start starts nothing.
    pub fn judge_heard(&mut self, about: &Object, run: &Object) {
        if let Some(word) = forbids(&run.value) {
            self.violated(format!("{} starts something, and its run is {word}", about.name));
        }
    }

    /// A claim that is new: the run goes on, and no more run at once than may.
    pub fn judge_claim(&mut self, after: &Arc<Object>) {
        let step_run: Arc<StepRun> = after.typed();
        let identity = &step_run.spec.workflow;
        let run = self.live(Kind::Workflow, &identity.name, &identity.uid);
        if run.is_some_and(|r| !r.value["status"]["completedAt"].is_null()) {
            return self.violated(format!("{} is claimed, and its run is over", after.name));
        }
        if !self.counts_slots() {
            return;
        }
        let all: Vec<Arc<StepRun>> = self.server.all(Kind::StepRun).map(|s| s.typed::<StepRun>()).collect();
        let running: Vec<&Arc<StepRun>> = all.iter().filter(|s| s.status.as_ref().is_some_and(runs)).collect();
        let agent = &step_run.spec.agent_id;
        let same = running.iter().filter(|s| s.spec.agent_id == *agent).count();
        let of_agent = self.workload.agents.iter().find(|(name, _)| name == agent);
        let most = of_agent.and_then(|(_, spec)| spec["maxConcurrent"].as_u64()).unwrap_or(u64::MAX);
        if u64::try_from(same).unwrap_or_default() > most {
            self.violated(format!("{same} attempts of {agent} run at once, {most} may"));
        }
        if self.workload.slots > 0 && running.len() > self.workload.slots {
            let most = self.workload.slots;
            self.violated(format!("{} attempts run at once in the namespace, {most} may", running.len()));
        }
    }

    // ---- ends

    /// The end of a run is what its steps' ends add up to.
    pub fn judge_ending(&mut self, after: &Arc<Object>) {
        let workflow: Arc<Workflow> = after.typed();
        let Some(status) = workflow.status.clone() else { return };
        let why = reason(&workflow);
        let conditions = after.value["status"]["conditions"].to_string();
        // A cache that is behind may lack what people have put.
        let unseen = conditions.contains("documents has no field");
        if matches!(why.as_str(), "InvalidWorkflow" | "InvalidParameters" | "ExpressionError" | "DefinitionLost")
            && !unseen
        {
            return self.violated(format!("{} ends with {why}: {conditions}", after.name));
        }
        if self.judge.bereaved || after.is_deleting() {
            return;
        }
        let Some(pinned) =
            status.definition.as_ref().and_then(|d| self.server.find(Kind::ControllerRevision, &d.revision_name))
        else {
            return;
        };
        let pinned = pinned.typed::<upstream::Pinned>();
        let reading = Reading::of(&self.server, &pinned.data);
        let all = reading.all();
        let due = pinned.data.timeout_seconds.zip(status.started_at.as_ref().zip(status.completed_at.as_ref()));
        let fits = match status.phase {
            Some(Phase::Completed) => matches!(all, End::Well | End::Unsure),
            Some(Phase::Cancelled) => workflow.spec.cancel == Some(true),
            _ if why == "RunTimeout" => due.is_some_and(|(limit, (from, to))| seconds(from, to) >= limit - SKEW),
            _ => unseen || matches!(all, End::Failed(_)) || reading.outside().iter().any(|(_, e)| *e == End::Unsure),
        };
        if !fits {
            return self.violated(format!("{} ends {:?} ({why}), its steps are {all:?}", after.name, status.phase));
        }
        match status.phase {
            Some(Phase::Completed) => self.judge_completed(&reading, &pinned.data, &workflow),
            Some(Phase::Cancelled) => self.had("cancel"),
            _ if why == "RunTimeout" => self.had("timeout"),
            _ => {}
        }
    }

    fn judge_completed(&mut self, reading: &Reading<'_>, definition: &Definition, workflow: &Workflow) {
        let status = workflow.status.clone().unwrap_or_default();
        for (path, end) in reading.outside() {
            let step = definition.step(&path);
            let plural = step.is_some_and(|s| s.for_each.is_some());
            let phase = status.steps.iter().find(|s| s.path == path).map(|s| s.phase);
            let fits = match end {
                End::Well => phase == Some(Phase::Completed) || plural && phase == Some(Phase::Skipped),
                End::Skipped => phase == Some(Phase::Skipped),
                End::Passed => phase == Some(Phase::Failed),
                _ => true,
            };
            // Where a group has failed, nobody asks its steps any more.
            if !fits && !reading.is_in_failed(&path) {
                self.violated(format!("{path} is {end:?}, and the run says {phase:?}"));
            }
            self.note(step, end, &path);
        }
        let given = status.output.as_ref().and_then(|o| o.value.clone());
        let Some(expected) = reading.run_output() else { return };
        let given: Value = given.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or_default());
        if given != expected {
            self.violated(format!("the run gives {given}, not {expected}"));
        }
    }

    /// What was at work in a run that completed.
    fn note(&mut self, step: Option<&lockstep::api::step::Step>, end: End, path: &str) {
        let Some(step) = step else { return };
        match end {
            End::Skipped if step.when.is_some() => self.had("when"),
            End::Skipped => self.had("handed on"),
            End::Passed => self.had("passed over"),
            End::Well if step.output.is_some() => self.had("group output"),
            End::Well => {}
            _ => return,
        }
        let inside = format!("{path}/");
        let failed = self.server.all(Kind::StepRun).any(|s| {
            let own = s.value["spec"]["path"].as_str().unwrap_or_default();
            (own == path || own.starts_with(&inside)) && s.value["status"]["phase"] == "Failed"
        });
        if let (Some(for_each), End::Well) = (&step.for_each, end) {
            if for_each.collect.is_some() {
                self.had("collect");
            }
            if for_each.tolerate.is_some() && failed {
                self.had("tolerate");
            }
        }
    }

    /// A StepRun has just ended: what it gave is remembered.
    pub fn judge_step_end(&mut self, after: &Arc<Object>, status: &StepRunStatus) {
        let step_run: Arc<StepRun> = after.typed();
        let spec = &step_run.spec;
        let alone = spec.agent_id.is_empty() && spec.reuse.is_none();
        if status.phase == Some(Phase::Completed) && alone {
            self.had(if spec.ask.is_some() { "ask" } else { "approval" });
        }
        if status.phase == Some(Phase::Failed)
            && let Some(pinned) = upstream::definition(&self.server, spec)
        {
            let step = pinned.data.step(&spec.path);
            let way = step.and_then(|s| s.on_failure).unwrap_or(pinned.data.on_failure);
            if way != OnFailure::Wait {
                self.had("onFailure");
            }
        }
        let Some(result) = status.result.as_ref().filter(|_| status.phase == Some(Phase::Completed)) else { return };
        if let Some(reuse) = &spec.reuse
            && reuse.digest != result.digest
        {
            self.violated(format!("{}: {} was taken over as {}", after.name, reuse.digest, result.digest));
        }
        let report = status.agent.as_ref().and_then(|a| a.report.as_ref()?.output.clone());
        let answer = status.answer.as_ref().map(|a| a.value.clone());
        let given = Given {
            run: spec.workflow.uid.clone(),
            place: (spec.path.clone(), keys(&step_run)),
            input: spec.input_digest.clone(),
            digest: result.digest.clone(),
            output: report.or(answer).or(spec.reuse.as_ref().and_then(|r| r.output.clone())),
        };
        self.judge.course.given.insert(after.uid.clone(), given);
    }

    // ---- one run after another

    /// What is taken over was completed there, for the same item with the same input, and nothing before it is new.
    fn judge_reuse(&mut self, definition: &Definition, step_run: &StepRun) {
        let spec = &step_run.spec;
        let Some(reuse) = &spec.reuse else { return };
        self.had("reuse");
        let run = self.live(Kind::Workflow, &spec.workflow.name, &spec.workflow.uid);
        let of = run.and_then(|r| r.typed::<Workflow>().spec.retry_of.clone());
        let place = (spec.path.clone(), keys(step_run));
        let given = self.judge.course.given.get(&reuse.uid).cloned();
        let fits = |g: &Given| {
            g.place == place
                && g.input == spec.input_digest
                && g.digest == reuse.digest
                && (g.output == reuse.output || g.output.is_none())
                && of.as_ref().is_some_and(|of| of.uid == g.run)
        };
        if !given.as_ref().is_some_and(fits) {
            return self.violated(format!("{} takes over what was not completed so: {reuse:?}, {given:?}", spec.path));
        }
        let from = of.and_then(|of| of.from).unwrap_or_default();
        let inside = format!("{from}/");
        let wanted_anew = spec.path == from || spec.path.starts_with(&inside);
        let before = upstream::before(definition, &spec.path).into_iter();
        let all = before.flat_map(|b| upstream::siblings(&self.server, definition, &b.path, step_run));
        let anew = all.into_iter().find(|s| s.spec.reuse.is_none()).map(|s| s.spec.path.clone());
        if wanted_anew || anew.is_some() {
            self.violated(format!("{} is taken over, and {anew:?} before it ran again", spec.path));
        }
    }

    /// Whether somebody decided that in the run that was taken over.
    pub fn was_decided_there(&self, reuse: Option<&Reuse>, by: &str) -> bool {
        reuse.is_some_and(|reuse| self.judge.has_accepted(&reuse.uid, by))
    }

    // ---- time to live

    /// The operator takes a StepRun or a run away only when its time is over.
    pub fn judge_removal(&mut self, who: Who, gone: &Object) {
        let Who::Operator(_) = who else { return };
        let run = if gone.kind == Kind::Workflow {
            Some(gone.typed::<Workflow>())
        } else {
            let identity = gone.typed::<StepRun>().spec.workflow.clone();
            self.live(Kind::Workflow, &identity.name, &identity.uid).map(|r| r.typed())
        };
        let Some(run) = run else { return };
        let end = run.status.as_ref().and_then(|s| s.completed_at.clone());
        let over = end.zip(run.spec.ttl_seconds_after_finished).is_some_and(|(end, ttl)| {
            let now = self.time(0);
            seconds(&end, &now) >= ttl - SKEW
        });
        if !over {
            return self.violated(format!("{} was taken away before its time", gone.name));
        }
        self.had("ttl");
    }

    // ---- quiet

    /// Whoever is suspended stands still, whoever has a limit has come to an end, and no slot lies idle.
    pub fn judge_standstill(&mut self) {
        for run in self.all(Kind::Workflow) {
            let workflow: Arc<Workflow> = run.typed();
            let status = workflow.status.clone().unwrap_or_default();
            if status.completed_at.is_some() {
                if workflow.spec.ttl_seconds_after_finished.is_some() {
                    let left =
                        self.all(Kind::StepRun).iter().filter(|s| s.is_controlled_by("Workflow", &run.uid)).count();
                    if left > 0 {
                        self.violated(format!("{}: {left} StepRuns are left after its time to live", run.name));
                    }
                }
                continue;
            }
            let begun = status.definition.is_some();
            if begun && workflow.spec.cancel == Some(true) {
                self.violated(format!("{} is cancelled, and has not ended", run.name));
            }
            if begun && workflow.spec.timeout_seconds.is_some() {
                self.violated(format!("{} has gone beyond its timeoutSeconds", run.name));
            }
            if begun && workflow.spec.suspend == Some(true) && status.phase != Some(Phase::Suspended) {
                self.violated(format!("{} is suspended, and {:?}", run.name, status.phase));
            }
        }
        for step_run in self.all(Kind::StepRun) {
            let status = step_run.typed::<StepRun>().status.clone().unwrap_or_default();
            if status.conditions.iter().any(|c| c.type_ == "Started" && c.reason == "WaitingForSlot") {
                self.violated(format!("{} waits for a slot, and nothing runs", step_run.name));
            }
        }
    }

    /// What can be seen at work in a StepRun.
    pub fn judge_features(&mut self, status: &StepRunStatus) {
        if status.conditions.iter().any(|c| c.type_ == "Started" && c.reason == "WaitingForSlot") {
            self.had("slots");
        }
        if status.phase == Some(Phase::Suspended) {
            self.had("suspend");
        }
    }
}

/// The list that a step stands in.
fn around<'a>(definition: &'a Definition, path: &str) -> (&'a [lockstep::api::step::Step], Order) {
    match path.rsplit_once('/').and_then(|(group, _)| definition.step(group)) {
        Some(group) => (&group.steps, group.order.unwrap_or_default()),
        None => (&definition.steps, definition.order),
    }
}

/// Whether an attempt was claimed and has not ended.
fn runs(status: &StepRunStatus) -> bool {
    let agent = status.agent.clone().unwrap_or_default();
    let claimed = agent.claim.is_some_and(|c| c.attempt == status.attempt);
    let reported = agent.report.is_some_and(|r| r.attempt == status.attempt);
    claimed && !reported && status.completed_at.is_none() && status.waiting_for.is_none()
}
