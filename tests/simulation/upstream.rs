//! The gates that stand before a step, for its item, by `needs` or by file order.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep::api::StepRun;
use lockstep::api::definition::Definition;
use lockstep::api::step::Step;
use lockstep::api::step_run::{AttemptResult, GateState, GateStatus, StepRunGate, StepRunSpec};
use lockstep::api::workflow::Phase;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::super::server::{Kind, Server};
use super::reading::{self, Reading};

/// A ControllerRevision.
#[derive(Deserialize)]
pub struct Pinned {
    #[serde(deserialize_with = "from_text")]
    pub data: Definition,
}

/// A definition lies there as a text.
fn from_text<'de, D: Deserializer<'de>>(data: D) -> Result<Definition, D::Error> {
    #[derive(Deserialize)]
    struct Data {
        definition: String,
    }
    serde_json::from_str(&Data::deserialize(data)?.definition).map_err(D::Error::custom)
}

pub fn definition(server: &Server, spec: &StepRunSpec) -> Option<Arc<Pinned>> {
    Some(server.find(Kind::ControllerRevision, &spec.definition.revision_name)?.typed())
}

/// A gate before that StepRun that nobody opened, in words.
pub fn shut_gate(server: &Server, step_run: &StepRun) -> Option<String> {
    let pinned = definition(server, &step_run.spec)?;
    let definition = &pinned.data;
    let reading = Reading::of(server, definition);
    let keys = reading::keys(step_run);
    for Before { path, plural } in
        before(definition, &step_run.spec.path).into_iter().filter(|b| is_gated(definition, b))
    {
        let gated = siblings(server, definition, &path, step_run);
        if !plural && gated.is_empty() && !reading.was_passed_by(&path, &keys) {
            return Some(format!("{path}, which was passed over"));
        }
        for found in gated {
            let status = found.status.clone().unwrap_or_default();
            let accepted = is_open(found.spec.gate.as_ref(), status.gate.as_ref());
            // An item that failed before anybody could decide may be tolerated; one that was rejected never.
            let failed = status.phase == Some(Phase::Failed)
                && status.error.is_some_and(|e| e.class != AttemptResult::Rejected)
                && status.gate.is_none();
            if !failed && (!accepted || status.phase != Some(Phase::Completed)) {
                return Some(format!("the gate of {path}"));
            }
        }
    }
    None
}

/// StepRuns of a path, of the same items as that one, as far as those are around both.
pub fn siblings(server: &Server, definition: &Definition, path: &str, of: &StepRun) -> Vec<Arc<StepRun>> {
    let all = server.all(Kind::StepRun).map(|s| s.typed::<StepRun>());
    let own = all.filter(|s| s.spec.workflow.uid == of.spec.workflow.uid && s.spec.path == path);
    own.filter(|s| related(definition, s, of)).collect()
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

/// An execution that has to end before another.
pub struct Before {
    pub path: String,
    /// Whether a forEach stands around it that is not around the other.
    pub plural: bool,
}

/// Executions before `target`: by `needs` where the list is a graph, else by file order; directly or not.
pub fn before(definition: &Definition, target: &str) -> Vec<Before> {
    let mut found = Vec::new();
    let (mut steps, mut order, mut prefix) = (definition.steps.as_slice(), definition.order, String::new());
    for name in target.split('/') {
        let Some(at) = steps.iter().position(|s| s.name == name) else { break };
        let (mut ahead, mut met) = (reading::needs(steps, order, at), BTreeSet::new());
        while let Some(next) = ahead.pop() {
            if met.insert(next) {
                ahead.extend(reading::needs(steps, order, next));
            }
        }
        for index in met {
            executions(&steps[index], &format!("{prefix}{}", steps[index].name), false, &mut found);
        }
        prefix = format!("{prefix}{name}/");
        (steps, order) = (steps[at].steps.as_slice(), steps[at].order.unwrap_or_default());
    }
    found
}

fn executions(step: &Step, path: &str, around: bool, found: &mut Vec<Before>) {
    let plural = around || step.for_each.is_some();
    if step.steps.is_empty() {
        found.push(Before { path: path.to_owned(), plural });
    }
    for inner in &step.steps {
        executions(inner, &format!("{path}/{}", inner.name), plural, found);
    }
}

fn is_gated(definition: &Definition, before: &Before) -> bool {
    definition.step(&before.path).is_some_and(|s| s.gate.is_some())
}
