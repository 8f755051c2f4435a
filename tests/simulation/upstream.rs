//! The gates that stand before a step, for its item.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep::api::StepRun;
use lockstep::api::definition::Definition;
use lockstep::api::step::Step;
use lockstep::api::step_run::{GateState, GateStatus, StepRunGate, StepRunSpec};
use lockstep::api::workflow::Phase;

use serde::Deserialize;

use super::super::server::{Kind, Server};

/// The data of a ControllerRevision.
#[derive(Deserialize)]
pub struct Pinned {
    pub data: Definition,
}

pub fn definition(server: &Server, spec: &StepRunSpec) -> Option<Arc<Pinned>> {
    Some(server.find(Kind::Revision, &spec.definition.revision_name)?.typed())
}

/// A gate before that StepRun that nobody opened, in words.
pub fn shut_gate(server: &Server, step_run: &StepRun) -> Option<String> {
    let pinned = definition(server, &step_run.spec)?;
    let definition = &pinned.data;
    let mut before = Vec::new();
    collect(&definition.steps, "", &step_run.spec.path, &mut before);
    for (path, plural) in before {
        let gated: Vec<_> = server
            .all(Kind::StepRun)
            .map(|s| s.typed::<StepRun>())
            .filter(|s| s.spec.workflow.uid == step_run.spec.workflow.uid && s.spec.path == path)
            .filter(|s| related(definition, s, step_run))
            .collect();
        if !plural && gated.is_empty() {
            return Some(format!("{path}, which was passed over"));
        }
        for found in gated {
            let status = found.status.clone().unwrap_or_default();
            let accepted = is_open(found.spec.gate.as_ref(), status.gate.as_ref());
            if !accepted || status.phase != Some(Phase::Completed) {
                return Some(format!("the gate of {path}"));
            }
        }
    }
    None
}

/// Accepted in its round, by as many people as it asks for, and rejected by nobody. Not the product's own function:
/// that one is what is judged.
pub fn is_open(wanted: Option<&StepRunGate>, gate: Option<&GateStatus>) -> bool {
    let Some(wanted) = wanted else { return true };
    gate.is_some_and(|gate| {
        let round: Vec<_> = gate.decisions.iter().filter(|d| d.round == gate.round).collect();
        let people: BTreeSet<&str> = round.iter().map(|d| d.decided_by.as_str()).collect();
        let enough = people.len() >= usize::try_from(wanted.approvals.max(1)).unwrap_or(usize::MAX);
        gate.state == GateState::Accepted && enough && round.iter().all(|d| d.accepted)
    })
}

/// Whether both stand in the same items of every forEach that is around both.
fn related(definition: &Definition, a: &StepRun, b: &StepRun) -> bool {
    let mut path = String::new();
    let mut links = 1;
    for (x, _) in a.spec.path.split('/').zip(b.spec.path.split('/')).take_while(|(x, y)| x == y) {
        path = if path.is_empty() { x.to_owned() } else { format!("{path}/{x}") };
        links += usize::from(definition.step(&path).is_some_and(|s| s.for_each.is_some()));
    }
    a.spec.scope_chain.get(..links) == b.spec.scope_chain.get(..links)
}

/// Paths of the gated steps before `target`, and whether they stand under a forEach.
fn collect(steps: &[Step], prefix: &str, target: &str, found: &mut Vec<(String, bool)>) {
    for step in steps {
        let path = format!("{prefix}{}", step.name);
        if path == target {
            return;
        }
        let inside = format!("{path}/");
        if target.starts_with(&inside) {
            return collect(&step.steps, &inside, target, found);
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
