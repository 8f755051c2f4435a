//! Everything that can be wrong with a definition before it runs, each fault with its path. `kubectl apply` refuses what
//! a structural schema can see; this is the rest, and the same words for Workflow, WorkflowTemplate and `lint`.

use serde_json::{Map, Value};

use super::compile::{self, Source};
use super::expression::Evaluate;
use crate::api::limits::WORKFLOW_DOCUMENTS_BYTES;
use crate::api::step::{Order, Step};
use crate::api::workflow::WorkflowSpec;
use crate::api::workflow_template::WorkflowTemplateSpec;

/// Faults of a template.
pub fn template(spec: &WorkflowTemplateSpec, evaluator: &dyn Evaluate) -> Vec<String> {
    faults(spec.into(), evaluator)
}

/// Faults of a Workflow itself, its own steps included.
pub fn workflow(spec: &WorkflowSpec, evaluator: &dyn Evaluate) -> Vec<String> {
    let mut faults = faults(spec.into(), evaluator);
    let bytes: usize = spec.documents.iter().map(|d| d.content.len()).sum();
    if bytes > WORKFLOW_DOCUMENTS_BYTES {
        faults.push(format!("spec.documents: {bytes} bytes in all, at most {WORKFLOW_DOCUMENTS_BYTES} are allowed; put a Document of session scope instead"));
    }
    faults
}

fn faults(source: Source<'_>, evaluator: &dyn Evaluate) -> Vec<String> {
    compile::compile(source, &|schema| evaluator.check(schema.as_object())).faults
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::expression::InProcess;
    use serde_json::json;

    fn check(steps: Value, expected: &[&str]) {
        let steps = serde_json::from_value(steps).expect("steps");
        let faults = template(&WorkflowTemplateSpec { steps, ..WorkflowTemplateSpec::default() }, &InProcess);
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
