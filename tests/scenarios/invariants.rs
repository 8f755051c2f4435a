//! What must hold after every step of every story.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lockstep::api::condition;
use lockstep::api::definition::Definition;
use lockstep::api::step::{Order, Step};
use lockstep::api::step_run::{Decision, GateState, StepRun};
use lockstep::api::workflow::{Phase, StepStatus, Workflow, WorkflowStatus};
use lockstep::decide::{Effect, gate};
use lockstep::definition::order;

use super::world::{Happened, World};

/// What was seen before.
#[derive(Default)]
pub struct Invariants {
    ended: BTreeMap<String, Phase>,
    attempts: BTreeMap<String, i32>,
    decisions: BTreeMap<String, Vec<Decision>>,
    cancelled: BTreeSet<String>,
}

impl Invariants {
    pub fn check(&mut self, world: &World, log: &[Happened]) {
        for happened in log {
            if let Happened::Effect(Effect::CreateJob(job)) = happened {
                let owners = job.metadata.owner_references.as_ref();
                let name = owners.map(|o| o[0].name.clone()).unwrap_or_default();
                gates_are_open(world, &world.step_runs[&name]);
            }
        }
        for (name, step_run) in &world.step_runs {
            let uid = step_run.metadata.uid.clone().unwrap_or_default();
            let status = step_run.status.clone().unwrap_or_default();
            self.absorbed(&uid, status.phase, status.completed_at.is_some());
            tools_agree(name, status.phase, &status.conditions);
            let last = self.attempts.insert(uid, status.attempt).unwrap_or(1);
            assert!(status.attempt >= last, "{name}: the fence went back");
            // Every wait says how it is ended, ready to paste.
            if let Some(gate) = status.gate.as_ref().filter(|g| g.state == GateState::Waiting) {
                assert!(gate.commands.len() == 2 && gate.commands[0].contains(&gate.output_digest), "{name}");
            }
            if let Some(wait) = &status.waiting_for {
                assert_eq!(wait.commands.len(), 2, "{name}");
            }
            one_job_at_most(world, name, status.attempt);
            let decisions = status.gate.map(|g| g.decisions).unwrap_or_default();
            let before = self.decisions.insert(name.clone(), decisions.clone()).unwrap_or_default();
            assert!(decisions.starts_with(&before), "{name}: a decision was lost or changed");
            if status.phase == Some(Phase::Cancelled) && !self.cancelled.contains(name) {
                assert!(still_running(world, name) == 0, "{name} is Cancelled, and something of it runs");
                self.cancelled.insert(name.clone());
            }
        }
        for workflow in world.workflows.values() {
            let uid = workflow.metadata.uid.clone().unwrap_or_default();
            let status = workflow.status.clone().unwrap_or_default();
            self.absorbed(&uid, status.phase, status.completed_at.is_some());
            tools_agree("the run", status.phase, &status.conditions);
            overview(world, workflow, &status);
            if status.phase == Some(Phase::Cancelled) && self.cancelled.insert(uid.clone()) {
                let own = world.step_runs.iter().filter(|(_, s)| s.spec.workflow.uid == uid);
                let alive: Vec<&String> = own.map(|(name, _)| name).filter(|n| world.pods_alive(n) > 0).collect();
                assert!(alive.is_empty(), "the run is Cancelled, and these have pods: {alive:?}");
            }
            if workflow.metadata.deletion_timestamp.is_none() {
                let known = workflow.status.as_ref().map(|s| s.observed_generation);
                assert_eq!(known, workflow.metadata.generation, "kstatus waits for ever");
            }
            if status.completed_at.is_some() {
                let open: Vec<&StepStatus> = status.steps.iter().filter(|s| !s.phase.is_terminal()).collect();
                assert!(open.is_empty(), "the run has ended, and these have not: {open:?}");
            }
            let bytes = serde_json::to_string(&status).expect("it serializes").len();
            assert!(bytes < 64 * 1024, "{bytes} bytes of status");
        }
    }

    fn absorbed(&mut self, uid: &str, phase: Option<Phase>, ended: bool) {
        let phase = phase.unwrap_or_default();
        assert_eq!(ended, phase.is_terminal(), "{uid}: {phase} and its end");
        if let Some(end) = self.ended.get(uid) {
            assert_eq!(*end, phase, "{uid}: an end is the end");
        }
        if ended {
            self.ended.insert(uid.to_owned(), phase);
        }
    }
}

/// What a run's status repeats is what stands in its steps and StepRuns, counted anew.
fn overview(world: &World, workflow: &Workflow, status: &WorkflowStatus) {
    let outermost = |s: &&StepStatus| !s.path.contains('/') && s.phase == Phase::Completed;
    let completed: Vec<&str> = status.steps.iter().filter(outermost).map(|s| s.path.as_str()).collect();
    assert_eq!(status.completed_steps, completed);
    // What a run that ended says stays, whatever is done to its StepRuns later.
    if status.completed_at.is_some() || workflow.metadata.deletion_timestamp.is_some() {
        return;
    }
    let own =
        world.step_runs.values().filter(|s| s.spec.workflow.uid == workflow.metadata.uid.clone().unwrap_or_default());
    let gates = own.filter_map(|s| s.status.as_ref()?.gate.as_ref());
    let over = gates.flat_map(|g| g.decisions.iter().filter(|d| g.state != GateState::Waiting || d.round < g.round));
    let mut decided: Vec<(Time, &str)> = over.map(|d| (d.decided_at.clone(), d.decided_by.as_str())).collect();
    decided.sort_by(|a, b| a.0.0.cmp(&b.0.0).then(a.1.cmp(b.1)));
    let mut told: Vec<(Time, &str)> =
        status.acceptance_decisions.iter().map(|d| (d.decided_at.clone(), d.decided_by.as_str())).collect();
    told.sort_by(|a, b| a.0.0.cmp(&b.0.0).then(a.1.cmp(b.1)));
    assert_eq!(told, decided[decided.len().saturating_sub(10)..]);
}

/// After settling, no Job of an attempt behind the fence is left, and of the current one there is one at most. A Job whose
/// pod has ended is no more than a record that comes late.
fn one_job_at_most(world: &World, name: &str, attempt: i32) {
    let runs = |j: &&super::world::Work| !j.ended && j.pod.as_ref().is_none_or(|pod| !pod.ended);
    let unfinished: Vec<i32> =
        world.jobs.values().filter(|j| j.step_run.as_deref() == Some(name)).filter(runs).map(|j| j.attempt).collect();
    assert!(unfinished.len() <= 1, "{name}: Jobs {unfinished:?}");
    assert!(
        unfinished.iter().all(|a| *a == attempt),
        "{name}: a Job of attempt {unfinished:?}, the fence is at {attempt}"
    );
}

/// Pods of a run that was told to stop: where it merely fails, what had not begun goes a moment later.
fn still_running(world: &World, name: &str) -> usize {
    let step_run = &world.step_runs[name];
    let told = |run: &Workflow| run.spec.cancel == Some(true) || run.metadata.deletion_timestamp.is_some();
    let stops = world.run_of(step_run).is_some_and(told);
    if stops { world.pods_alive(name) } else { 0 }
}

/// Every gate before a StepRun, in its run and for its item, was accepted by somebody.
fn gates_are_open(world: &World, step_run: &StepRun) {
    let run = world.run_of(step_run).expect("its run");
    let definition = world.definition(run).expect("its definition");
    let mut before = Vec::new();
    upstream((&definition.steps, definition.order), "", &step_run.spec.path, &mut before);
    for (path, plural) in before {
        let gated: Vec<&StepRun> = world
            .step_runs
            .values()
            .filter(|s| s.spec.workflow == step_run.spec.workflow && s.spec.path == path)
            .filter(|s| related(&definition, s, step_run))
            .collect();
        assert!(plural || !gated.is_empty(), "{path} was passed over");
        for found in gated {
            let status = found.status.clone().unwrap_or_default();
            let accepted = gate::can_proceed(found.spec.gate.as_ref(), status.gate.as_ref()) && enough(found);
            let open = accepted && status.phase == Some(Phase::Completed);
            assert!(open, "{} ran past {path}", step_run.spec.path);
        }
    }
}

/// Counted anew: so many different people, none of them shut out, nobody against it; or no decision was needed.
fn enough(step_run: &StepRun) -> bool {
    let status = step_run.status.clone().unwrap_or_default();
    let (Some(wanted), Some(gate)) = (&step_run.spec.gate, &status.gate) else { return false };
    let this_round: Vec<&Decision> = gate.decisions.iter().filter(|d| d.round == gate.round).collect();
    let people: BTreeSet<&str> = this_round.iter().filter(|d| d.accepted).map(|d| d.decided_by.as_str()).collect();
    let fair = people.iter().all(|by| !by.is_empty() && Some(*by) != wanted.not_by.as_deref());
    let enough = i32::try_from(people.len()).expect("few") >= wanted.approvals;
    gate.state == GateState::NotRequired || (fair && enough && this_round.iter().all(|d| d.accepted))
}

/// Whether both stand in the same items of every forEach that is around both.
fn related(definition: &Definition, a: &StepRun, b: &StepRun) -> bool {
    let mut path = String::new();
    let mut links = 1;
    for (x, _) in a.spec.path.split('/').zip(b.spec.path.split('/')).take_while(|(x, y)| x == y) {
        path = if path.is_empty() { x.to_owned() } else { format!("{path}/{x}") };
        links += usize::from(definition.step(&path).is_some_and(|s| s.for_each.is_some()));
    }
    let chain = |s: &StepRun| s.spec.scope_chain[..links].to_vec();
    chain(a) == chain(b)
}

/// Paths of the gated steps that come before `target`, and whether they stand under a forEach.
fn upstream((steps, order): (&[Step], Order), prefix: &str, target: &str, found: &mut Vec<(String, bool)>) {
    for (index, step) in steps.iter().enumerate() {
        let path = format!("{prefix}{}", step.name);
        let inside = format!("{path}/");
        if path != target && !target.starts_with(&inside) {
            continue;
        }
        for before in order::ancestors(steps, order, index) {
            let step = &steps[before];
            gated(step, &format!("{prefix}{}", step.name), step.for_each.is_some(), found);
        }
        upstream((&step.steps, step.order.unwrap_or_default()), &inside, target, found);
    }
}

fn gated(step: &Step, path: &str, plural: bool, found: &mut Vec<(String, bool)>) {
    if step.gate.is_some() {
        found.push((path.to_owned(), plural));
    }
    for inner in &step.steps {
        let plural = plural || inner.for_each.is_some();
        gated(inner, &format!("{path}/{}", inner.name), plural, found);
    }
}

/// kstatus: on its way until the end; then failed, or nothing is said.
fn tools_agree(name: &str, phase: Option<Phase>, conditions: &[Condition]) {
    let Some(phase) = phase else { return };
    let on = |kind| condition::get(conditions, kind).is_some_and(|c| c.status == "True");
    let expected = match phase {
        Phase::Completed | Phase::Skipped => (false, false),
        Phase::Failed | Phase::Cancelled => (false, true),
        _ => (true, false),
    };
    assert_eq!((on(condition::RECONCILING), on(condition::STALLED)), expected, "{name} is {phase}");
}
