//! Everything that can be wrong with a definition before it runs, each fault with its path. `kubectl apply` refuses what
//! a structural schema can see; this is the rest, and the same words for Workflow, WorkflowTemplate and `lint`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::expression::{Expression, expressions, underscored};
use super::schema;
use crate::api::limits::WORKFLOW_DOCUMENTS_BYTES;
use crate::api::step::{ForEach, Step};
use crate::api::workflow::WorkflowSpec;

/// Faults of a list of steps and what stands around it.
pub fn definition(steps: &[Step], parameters_schema: Option<&Map<String, Value>>) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(schema) = parameters_schema
        && let Err(fault) = schema::check(schema)
    {
        faults.push(format!("spec.parametersSchema: {fault}"));
    }
    let mut walk = Walk { faults, names: BTreeSet::new(), produced: BTreeSet::new() };
    let known = ["workflow", "parameters", "steps", "documents"].map(str::to_owned).into();
    walk.list(steps, "spec.steps", &Visible { variables: known, steps: Vec::new() });
    walk.faults
}

/// Faults of a Workflow itself, its own steps included.
pub fn workflow(spec: &WorkflowSpec) -> Vec<String> {
    let mut faults = definition(&spec.steps, spec.parameters_schema.as_ref());
    let bytes: usize = spec.documents.iter().map(|d| d.content.len()).sum();
    if bytes > WORKFLOW_DOCUMENTS_BYTES {
        faults.push(format!("spec.documents: {bytes} bytes in all, at most {WORKFLOW_DOCUMENTS_BYTES} are allowed; put a Document of session scope instead"));
    }
    faults
}

/// Faults of the parameters of a run against the definition's schema; the defaults are filled in first.
pub fn parameters(
    given: &Map<String, Value>,
    parameters_schema: Option<&Map<String, Value>>,
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
    let faults = match schema::faults(schema, &Value::Object(filled.clone())) {
        Ok(faults) => {
            faults.iter().map(|f| format!("spec.parameters{}: {}", f.pointer.replace('/', "."), f.message)).collect()
        }
        Err(fault) => vec![format!("spec.parametersSchema: {fault}")],
    };
    (filled, faults)
}

struct Walk {
    faults: Vec<String>,
    names: BTreeSet<String>,
    produced: BTreeSet<String>,
}

/// What expressions may name at a place.
#[derive(Clone)]
struct Visible {
    variables: BTreeSet<String>,
    steps: Vec<String>,
}

impl Walk {
    fn list(&mut self, steps: &[Step], place: &str, outer: &Visible) {
        let mut seen = outer.clone();
        for (index, step) in steps.iter().enumerate() {
            let place = format!("{place}[{index}]");
            self.step(step, &place, &seen);
            seen.steps.push(step.name.clone());
        }
    }

    fn step(&mut self, step: &Step, place: &str, seen: &Visible) {
        if !self.names.insert(step.name.clone()) {
            self.fault(format!(
                "{place}.name: {} stands twice; step names are unique in the whole definition",
                step.name
            ));
        }
        let mut inside = seen.clone();
        if let Some(for_each) = &step.for_each {
            self.for_each(for_each, place, seen, &mut inside);
        }
        if let Some(parameters) = &step.parameters {
            let mut found = Vec::new();
            for (key, value) in parameters {
                expressions(value, &format!("{place}.parameters.{key}"), &mut found);
            }
            for (pointer, expression) in found {
                self.expression(&pointer, expression, &inside);
            }
        }
        if let Some(schema) = &step.output_schema
            && let Err(fault) = schema::check(schema)
        {
            self.fault(format!("{place}.outputSchema: {fault}"));
        }
        if let Some(produces) = &step.produces
            && !self.produced.insert(produces.document_type.clone())
        {
            self.fault(format!("{place}.produces.type: {} is made by another step already", produces.document_type));
        }
        for (index, wanted) in step.documents.iter().enumerate() {
            if !is_document_type(wanted.strip_suffix("/*").unwrap_or(wanted)) {
                self.fault(format!(
                    "{place}.documents[{index}]: {wanted:?} is not a document type (a-z, 0-9 and -, or TYPE/*)"
                ));
            }
        }
        match (&step.agent_id, step.steps.is_empty()) {
            (Some(_), true) => {}
            (None, false) => self.list(&step.steps, &format!("{place}.steps"), &inside),
            _ => self.fault(format!("{place}: exactly one of agentId and steps says what the step does")),
        }
    }

    fn for_each(&mut self, for_each: &ForEach, place: &str, seen: &Visible, inside: &mut Visible) {
        self.expression(&format!("{place}.forEach.in"), Expression::parse(&for_each.items), seen);
        if inside.variables.contains(&for_each.as_name) {
            self.fault(format!("{place}.forEach.as: {} is taken already; choose another name", for_each.as_name));
        }
        inside.variables.insert(for_each.as_name.clone());
        inside.variables.insert("item".to_owned());
        if let Some(key) = &for_each.key {
            self.expression(&format!("{place}.forEach.key"), Expression::parse(key), inside);
        }
    }

    fn expression(&mut self, place: &str, parsed: Result<Expression, String>, seen: &Visible) {
        match parsed {
            Err(fault) => self.fault(format!("{place}: {fault}")),
            Ok(expression) => {
                for name in expression.variables().difference(&seen.variables) {
                    self.fault(format!("{place}: {name} is not known here; known are {}", joined(&seen.variables)));
                }
                for name in expression.members("steps") {
                    if !seen.steps.iter().any(|known| *known == name || underscored(known) == name) {
                        self.fault(format!("{place}: steps.{name} is no step before this one"));
                    }
                }
            }
        }
    }

    fn fault(&mut self, fault: String) {
        if self.faults.len() < 50 {
            self.faults.push(fault);
        }
    }
}

fn is_document_type(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().cloned().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(steps: Value, expected: &[&str]) {
        let steps: Vec<Step> = serde_json::from_value(steps).unwrap_or_default();
        let faults = definition(&steps, None);
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
        check(json!([{"name": "a"}]), &["exactly one of agentId and steps"]);
        check(json!([{"name": "a", "agentId": "x", "documents": ["Brief"]}]), &["spec.steps[0].documents[0]"]);
        check(
            json!([{"name": "g", "steps": [{"name": "a", "agentId": "x", "produces": {"type": "t"}}]}, {"name": "b", "agentId": "x", "produces": {"type": "t"}}]),
            &["spec.steps[1].produces.type: t is made by another"],
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
            assert_eq!(workflow(&spec).len(), faults, "{bytes}");
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
            let (_, faults) = parameters(&given, Some(&schema));
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
        let (filled, faults) = parameters(&Map::new(), Some(&schema));
        assert_eq!((Value::Object(filled), faults.len()), (json!({"depth": 2}), 0));
    }
}
