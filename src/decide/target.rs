//! Which step of a run is meant by a word, and what a step waits for.

use super::approval;
use super::history::{keys, label};
use crate::api::StepRun;
use crate::api::step_run::GateState;
use crate::api::workflow::Phase;

/// All that `wanted` may mean: the whole label, a step's bare name, a label without the outer keys or without any.
pub fn matching<'a>(wanted: &str, steps: &'a [StepRun]) -> Vec<&'a StepRun> {
    let exact: Vec<&StepRun> = steps.iter().filter(|s| label(s) == wanted).collect();
    if !exact.is_empty() {
        return exact;
    }
    steps
        .iter()
        .filter(|step| {
            let path = step.spec.path.as_str();
            let bare = path.rsplit('/').next().unwrap_or(path);
            let all = keys(step).join("/");
            let inner = keys(step).last().copied().unwrap_or_default().to_owned();
            [path, bare].into_iter().any(|path| {
                wanted == path
                    || [&all, &inner].into_iter().any(|key| {
                        wanted.strip_prefix(path).and_then(|rest| rest.strip_prefix('/')) == Some(key.as_str())
                    })
            })
        })
        .collect()
}

fn is_open(step: &StepRun) -> bool {
    let phase = step.status.as_ref().and_then(|s| s.phase);
    !phase.is_some_and(Phase::is_terminal)
}

/// Whether its gate waits for a decision, or that of an action that its agent requested.
pub fn waits_at_gate(step: &StepRun) -> bool {
    let requested =
        step.status.as_ref().is_some_and(|s| s.completed_at.is_none() && approval::waiting(s).next().is_some());
    // Without action gates it is a step as it is shown at one of them.
    waits_at_own_gate(step) || requested && !step.spec.action_gates.is_empty()
}

/// Whether its own gate waits for a decision.
pub fn waits_at_own_gate(step: &StepRun) -> bool {
    let gate = step.status.as_ref().and_then(|s| s.gate.as_ref());
    is_open(step) && gate.is_some_and(|gate| gate.state == GateState::Waiting)
}

/// Whether it waits for an answer.
pub fn waits_for_answer(step: &StepRun) -> bool {
    is_open(step)
        && step.status.as_ref().is_some_and(|s| s.waiting_for.is_some() && s.phase == Some(Phase::WaitingForInput))
}

/// How many have accepted in the round that the gate is in.
pub fn accepted(step: &StepRun) -> usize {
    let gate = step.status.as_ref().and_then(|s| s.gate.as_ref());
    gate.map_or(0, |gate| gate.decisions.iter().filter(|d| d.accepted && d.round == gate.round).count())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::api::step_run::{Item, ScopeLink};

    /// The StepRun of that step, within items of those keys.
    pub fn step(path: &str, keys: &[&str]) -> StepRun {
        let mut step = StepRun::new(
            &format!("shop-{}-{}", path.replace('/', "-"), keys.join("-")),
            crate::api::StepRunSpec::default(),
        );
        step.spec.path = path.to_owned();
        step.spec.workflow.uid = "uid".to_owned();
        step.spec.item = keys.last().map(|key| Item { key: (*key).to_owned(), ..Item::default() });
        step.spec.scope_chain = vec![ScopeLink {
            scope: "s".to_owned(),
            scope_id: format!("uid/{}", keys.join("/")),
            ..ScopeLink::default()
        }];
        step
    }

    #[test]
    fn steps_are_found_by_path_name_and_key() {
        let steps = [
            step("discovery", &[]),
            step("build/arch", &["E1"]),
            step("build/arch", &["E2"]),
            step("build/arch/story", &["E1", "S1"]),
            step("build/arch/story", &["E2", "S1"]),
        ];
        let table: [(&str, &[usize]); 10] = [
            ("discovery", &[0]),
            ("build/arch/E1", &[1]),
            ("arch/E2", &[2]),
            ("arch", &[1, 2]),
            ("build/arch", &[1, 2]),
            ("build/arch/story/E1/S1", &[3]),
            ("story/E2/S1", &[4]),
            ("story/S1", &[3, 4]),
            ("arch/E3", &[]),
            ("nothing", &[]),
        ];
        for (wanted, expected) in table {
            let found: Vec<usize> =
                matching(wanted, &steps).iter().filter_map(|f| steps.iter().position(|s| s == *f)).collect();
            assert_eq!(found, expected, "{wanted}");
        }
    }
}
