//! What must hold after every step of every story.

use std::collections::BTreeMap;

use lockstep::api::definition::Definition;
use lockstep::api::step::Step;
use lockstep::api::step_run::StepRun;
use lockstep::api::workflow::Phase;
use lockstep::decide::{Effect, gate};

use crate::world::{Happened, World};

/// What was seen before.
#[derive(Default)]
pub struct Invariants {
    ended: BTreeMap<String, Phase>,
    attempts: BTreeMap<String, i32>,
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
            let last = self.attempts.insert(uid, status.attempt).unwrap_or(1);
            assert!(status.attempt >= last, "{name}: the fence went back");
            one_job_at_most(world, name, status.attempt);
        }
        for workflow in world.workflows.values() {
            let uid = workflow.metadata.uid.clone().unwrap_or_default();
            let status = workflow.status.clone().unwrap_or_default();
            self.absorbed(&uid, status.phase, status.completed_at.is_some());
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

/// After settling, no Job of an attempt behind the fence is left, and of the current one there is one at most. A Job whose
/// pod has ended is no more than a record that comes late.
fn one_job_at_most(world: &World, name: &str, attempt: i32) {
    let runs = |j: &&crate::world::Work| !j.ended && j.pod.as_ref().is_none_or(|pod| !pod.ended);
    let unfinished: Vec<i32> =
        world.jobs.values().filter(|j| j.step_run.as_deref() == Some(name)).filter(runs).map(|j| j.attempt).collect();
    assert!(unfinished.len() <= 1, "{name}: Jobs {unfinished:?}");
    assert!(
        unfinished.iter().all(|a| *a == attempt),
        "{name}: a Job of attempt {unfinished:?}, the fence is at {attempt}"
    );
}

/// Every gate before a StepRun, in its run and for its item, was accepted by somebody.
fn gates_are_open(world: &World, step_run: &StepRun) {
    let run = world.run_of(step_run).expect("its run");
    let definition = world.definition(run).expect("its definition");
    let mut before = Vec::new();
    upstream(&definition.steps, "", &step_run.spec.path, &mut before);
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
            let accepted = status
                .gate
                .as_ref()
                .is_some_and(|g| gate::can_proceed(Some(g)) && g.decisions.iter().all(|d| !d.decided_by.is_empty()));
            let open = accepted && status.phase == Some(Phase::Completed);
            assert!(open, "{} ran past {path}", step_run.spec.path);
        }
    }
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
fn upstream(steps: &[Step], prefix: &str, target: &str, found: &mut Vec<(String, bool)>) {
    for step in steps {
        let path = format!("{prefix}{}", step.name);
        if path == target {
            return;
        }
        let inside = format!("{path}/");
        if target.starts_with(&inside) {
            return upstream(&step.steps, &inside, target, found);
        }
        gated(step, &path, step.for_each.is_some(), found);
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
