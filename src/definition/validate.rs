//! Everything that can be wrong with a definition before it runs, each fault with its path. `kubectl apply` refuses what
//! a structural schema can see; this is the rest, and the same words for Workflow, WorkflowTemplate and `lint`.

mod names;
mod step;

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value};

use super::expression::{Evaluate, Expression};
use super::order;
use crate::api::limits::{ALL_STEPS, WORKFLOW_DOCUMENTS_BYTES};
use crate::api::step::{Order, Step};
use crate::api::workflow::WorkflowSpec;
use crate::api::workflow_template::WorkflowTemplateSpec;
use names::{Maker, Producer, Visible};

/// A definition as it is written, in a template or in a run.
#[derive(Clone, Copy)]
struct Written<'a> {
    steps: &'a [Step],
    order: Order,
    output: Option<&'a str>,
    parameters_schema: Option<&'a Map<String, Value>>,
}

/// Faults of a template.
pub fn template(spec: &WorkflowTemplateSpec, evaluator: &dyn Evaluate) -> Vec<String> {
    let written = Written {
        steps: &spec.steps,
        order: spec.order.unwrap_or_default(),
        output: spec.output.as_deref(),
        parameters_schema: spec.parameters_schema.as_ref(),
    };
    definition(written, evaluator)
}

/// Faults of a Workflow itself, its own steps included.
pub fn workflow(spec: &WorkflowSpec, evaluator: &dyn Evaluate) -> Vec<String> {
    let written = Written {
        steps: &spec.steps,
        order: spec.order.unwrap_or_default(),
        output: spec.output.as_deref(),
        parameters_schema: spec.parameters_schema.as_ref(),
    };
    let mut faults = definition(written, evaluator);
    let bytes: usize = spec.documents.iter().map(|d| d.content.len()).sum();
    if bytes > WORKFLOW_DOCUMENTS_BYTES {
        faults.push(format!("spec.documents: {bytes} bytes in all, at most {WORKFLOW_DOCUMENTS_BYTES} are allowed; put a Document of session scope instead"));
    }
    faults
}

fn definition(written: Written<'_>, evaluator: &dyn Evaluate) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(schema) = written.parameters_schema
        && let Err(fault) = evaluator.check(schema)
    {
        faults.push(format!("spec.parametersSchema: {fault}"));
    }
    let all = count(written.steps);
    if all > ALL_STEPS {
        faults.push(format!(
            "spec.steps: {all} steps in all, at most {ALL_STEPS} are allowed; move a part into a workflow of its own"
        ));
    }
    let mut walk = Walk { evaluator, faults, names: BTreeSet::new(), produced: Vec::new(), makers: Vec::new() };
    names::producers(written.steps, &mut Vec::new(), &mut walk.produced);
    let inside = walk.list((written.steps, written.order), "spec.steps", &Visible::default());
    walk.one_after_the_other();
    if let Some(output) = written.output {
        walk.expression("spec.output", Expression::parse(output), &inside);
    }
    walk.faults
}

/// Steps of a definition, groups and their steps counted.
pub fn count(steps: &[Step]) -> usize {
    steps.iter().map(|s| 1 + count(&s.steps)).sum()
}

/// What is allowed and likely not meant, each with its path.
pub fn warnings(steps: &[Step], order: Order) -> Vec<String> {
    let mut found = Vec::new();
    unawaited(steps, order, "spec.steps", &mut found);
    found
}

fn unawaited(steps: &[Step], order: Order, place: &str, found: &mut Vec<String>) {
    for (index, step) in steps.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let needed = steps.iter().any(|s| s.needs.contains(&step.name));
        if order == Order::Graph && !needed && index + 1 < steps.len() {
            found.push(format!(
                "{place}: nothing needs {}; the output of the list is that of its last step, {}",
                step.name,
                steps.last().map_or("", |s| s.name.as_str())
            ));
        }
        unawaited(&step.steps, step.order.unwrap_or_default(), &format!("{place}.steps"), found);
    }
}

/// How many of so many items may fail.
pub fn tolerated(tolerate: Option<&IntOrString>, items: usize) -> usize {
    match tolerate {
        None => 0,
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or_default(),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or_default();
            items * percent.min(100) / 100
        }
    }
}

/// Faults of the parameters of a run against the definition's schema; the defaults are filled in first.
pub fn parameters(
    given: &Map<String, Value>,
    parameters_schema: Option<&Map<String, Value>>,
    evaluator: &dyn Evaluate,
) -> (Map<String, Value>, Vec<String>) {
    let mut filled = given.clone();
    let Some(schema) = parameters_schema else {
        return (filled, Vec::new());
    };
    if let Some(Value::Object(properties)) = schema.get("properties") {
        for (name, property) in properties {
            if let (false, Some(default)) = (filled.contains_key(name), property.get("default")) {
                filled.insert(name.clone(), default.clone());
            }
        }
    }
    let faults = match evaluator.faults(schema, &Value::Object(filled.clone())) {
        Ok(faults) => {
            faults.iter().map(|f| format!("spec.parameters{}: {}", f.pointer.replace('/', "."), f.message)).collect()
        }
        Err(fault) => vec![format!("spec.parametersSchema: {fault}")],
    };
    (filled, faults)
}

struct Walk<'a> {
    evaluator: &'a dyn Evaluate,
    faults: Vec<String>,
    names: BTreeSet<String>,
    produced: Vec<Producer>,
    makers: Vec<Maker>,
}

impl Walk<'_> {
    /// Looks at the steps of a list; gives what can be seen behind all of them.
    fn list(&mut self, (steps, order): (&[Step], Order), place: &str, outer: &Visible) -> Visible {
        for (index, step) in steps.iter().enumerate() {
            let place = format!("{place}[{index}]");
            self.needs(steps, order, step, &place);
            let mut seen = outer.clone();
            let before = order::ancestors(steps, order, index);
            seen.steps.extend(before.into_iter().filter(|n| *n != index).map(|n| steps[n].name.clone()));
            self.step(step, &place, &seen);
        }
        let sequence = order::sequence(steps, order);
        if sequence.len() < steps.len() {
            let circle: Vec<&str> =
                (0..steps.len()).filter(|n| !sequence.contains(n)).map(|n| steps[n].name.as_str()).collect();
            self.fault(format!("{place}: {} wait for each other", circle.join(", ")));
        }
        let mut inside = outer.clone();
        inside.steps.extend(steps.iter().map(|s| s.name.clone()));
        inside
    }

    fn needs(&mut self, steps: &[Step], order: Order, step: &Step, place: &str) {
        if order == Order::Chain && !step.needs.is_empty() {
            self.fault(format!(
                "{place}.needs: goes with order: Graph; in a Chain each step follows the one before it"
            ));
            return;
        }
        for (index, name) in step.needs.iter().enumerate() {
            if *name == step.name {
                self.fault(format!("{place}.needs[{index}]: a step cannot need itself"));
            } else if !steps.iter().any(|s| s.name == *name) {
                self.fault(format!("{place}.needs[{index}]: {name} is no step of this list"));
            }
        }
    }

    fn fault(&mut self, fault: String) {
        if self.faults.len() < 50 {
            self.faults.push(fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::expression::InProcess;
    use serde_json::json;

    fn check(steps: Value, expected: &[&str]) {
        let steps: Vec<Step> = serde_json::from_value(steps).unwrap_or_default();
        let written = Written { steps: &steps, order: Order::Chain, output: None, parameters_schema: None };
        let faults = definition(written, &InProcess);
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, part) in faults.iter().zip(expected) {
            assert!(fault.contains(part), "{fault} lacks {part}");
        }
    }

    #[test]
    fn every_fault_has_its_path() {
        check(json!([{"name": "a", "agentId": "x"}]), &[]);
        check(
            json!([{"name": "a", "agentId": "x"}, {"name": "a", "agentId": "x"}]),
            &["spec.steps[1].name: a stands twice"],
        );
        check(
            json!([{"name": "a", "agentId": "x", "parameters": {"p": {"q": ["${ 1 + }"]}}}]),
            &["spec.steps[0].parameters.p.q[0]: is not valid CEL"],
        );
        check(
            json!([{"name": "a", "agentId": "x", "parameters": {"p": "${ steps.b.output }"}}, {"name": "b", "agentId": "x"}]),
            &["steps.b is no step before this one"],
        );
        check(
            json!([{"name": "a-b", "agentId": "x"}, {"name": "b", "agentId": "x", "parameters": {"p": "${ steps.a_b.output }"}}]),
            &[],
        );
        check(json!([{"name": "a", "agentId": "x", "parameters": {"p": "${HOME}"}}]), &["shell or Flux variable"]);
        check(json!([{"name": "a", "agentId": "x", "parameters": {"p": "${ epic }"}}]), &["epic is not known here"]);
        check(
            json!([{"name": "a", "agentId": "x", "forEach": {"in": "documents.b.c", "as": "epic", "key": "epic.id"}, "parameters": {"p": "${ epic }"}}]),
            &[],
        );
        check(
            json!([{"name": "a", "agentId": "x", "forEach": {"in": "[]", "as": "workflow"}}]),
            &["workflow is taken already"],
        );
        check(json!([{"name": "a"}]), &["exactly one of agentId, ask and steps"]);
        check(json!([{"name": "a", "agentId": "x", "documents": ["Brief"]}]), &["spec.steps[0].documents[0]"]);
        check(
            json!([{"name": "g", "steps": [{"name": "a", "agentId": "x", "produces": {"type": "t"}}]}, {"name": "b", "agentId": "x", "produces": {"type": "t"}}]),
            &[],
        );
    }

    #[test]
    fn the_documents_of_a_run_have_a_limit_in_all() {
        for (bytes, faults) in [(WORKFLOW_DOCUMENTS_BYTES / 2, 0), (WORKFLOW_DOCUMENTS_BYTES / 2 + 1, 1)] {
            let document = |kind: &str| crate::api::workflow::InlineDocument {
                document_type: kind.into(),
                content: "x".repeat(bytes),
                ..Default::default()
            };
            let spec = WorkflowSpec { documents: vec![document("a"), document("b")], ..WorkflowSpec::default() };
            assert_eq!(workflow(&spec, &InProcess).len(), faults, "{bytes}");
        }
    }

    #[test]
    fn parameters_are_held_against_their_schema() {
        let schema = json!({"type": "object", "required": ["hero"], "additionalProperties": false,
            "properties": {"hero": {"type": "string"}, "words": {"type": "integer"}}});
        let Value::Object(schema) = schema else {
            return;
        };
        for (given, expected) in [
            (json!({"hero": "h"}), &[][..]),
            (json!({}), &["spec.parameters: "][..]),
            (json!({"hero": 1, "words": "x"}), &["spec.parameters.hero", "spec.parameters.words"][..]),
            (json!({"hero": "h", "villain": "v"}), &["villain"][..]),
        ] {
            let Value::Object(given) = given else { return };
            let (_, faults) = parameters(&given, Some(&schema), &InProcess);
            assert_eq!(faults.len(), expected.len(), "{faults:?}");
            for (fault, part) in faults.iter().zip(expected) {
                assert!(fault.contains(part), "{fault} lacks {part}");
            }
        }
    }

    #[test]
    fn defaults_fill_parameters() {
        let schema = json!({"type": "object", "properties": {"depth": {"type": "integer", "default": 2}}});
        let Value::Object(schema) = schema else {
            return;
        };
        let (filled, faults) = parameters(&Map::new(), Some(&schema), &InProcess);
        assert_eq!((Value::Object(filled), faults.len()), (json!({"depth": 2}), 0));
    }
}
