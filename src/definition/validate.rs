//! Everything that can be wrong with a definition before it runs, each fault with its path. `kubectl apply` refuses what
//! a structural schema can see; this is the rest, and the same words for Workflow, WorkflowTemplate and `lint`.

use serde_json::{Map, Value};

use super::compile::{self, Source};
use super::expression::Evaluate;
use super::free_value;
use crate::api::limits::WORKFLOW_DOCUMENTS_BYTES;
use crate::api::step::{Order, Step};
use crate::api::workflow::WorkflowSpec;
use crate::api::workflow_template::WorkflowTemplateSpec;
use crate::protocol::Fault;

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
pub fn warnings(source: Source<'_>) -> Vec<String> {
    let mut found = compile::compile(source, &|_| Ok(())).warnings;
    unawaited(source.steps, (source.order, source.output), "spec.steps", &mut found);
    found
}

/// The parameters of a run that its schema does not know and takes all the same.
pub fn undeclared(given: &Map<String, Value>, parameters_schema: Option<&Map<String, Value>>) -> Vec<String> {
    let properties = parameters_schema.and_then(|schema| schema.get("properties")?.as_object());
    let Some(properties) = properties else { return Vec::new() };
    let names: Vec<&str> = properties.keys().map(String::as_str).collect();
    let unknown = given.keys().filter(|name| !properties.contains_key(*name));
    let told = unknown
        .map(|name| format!("spec.parameters.{name}: is not in parametersSchema, which has {}", names.join(", ")));
    told.collect()
}

/// Branches that nothing waits for, where the author does not say either what the list gives.
fn unawaited(steps: &[Step], (order, output): (Order, Option<&str>), place: &str, found: &mut Vec<String>) {
    for (index, step) in steps.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let needed = steps.iter().any(|s| s.needs.contains(&step.name));
        if order == Order::Graph && output.is_none() && !needed && index + 1 < steps.len() {
            found.push(format!(
                "{place}: no step needs {}; the output of the list is that of its last step, {}",
                step.name,
                steps.last().map_or("", |s| s.name.as_str())
            ));
        }
        let own = (step.order.unwrap_or_default(), step.output.as_deref());
        unawaited(&step.steps, own, &format!("{place}.steps"), found);
    }
}

/// Faults of the parameters of a run against the definition's schema; the defaults are filled in first.
pub fn parameters(
    given: &Map<String, Value>,
    parameters_schema: Option<&Map<String, Value>>,
    evaluator: &dyn Evaluate,
) -> (Map<String, Value>, Vec<String>) {
    let mut filled = given.clone();
    let mut faults = free_value::faults(&Value::Object(given.clone()), "spec.parameters");
    // What nests too deep is held against nothing.
    let Some(schema) = parameters_schema.filter(|_| free_value::nesting_of(given).is_none()) else {
        return (filled, faults);
    };
    if let Some(Value::Object(properties)) = schema.get("properties") {
        for (name, property) in properties {
            if let (false, Some(default)) = (filled.contains_key(name), property.get("default")) {
                filled.insert(name.clone(), default.clone());
            }
        }
    }
    match evaluator.faults(schema, &Value::Object(filled.clone())) {
        Ok(found) => {
            let told = |f: &Fault| format!("spec.parameters{}: {}", f.pointer.replace('/', "."), f.message);
            faults.extend(found.iter().map(told));
        }
        Err(fault) => faults.push(format!("spec.parametersSchema: {fault}")),
    }
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
            &["spec.steps[1].name: another step is called a too"],
        );
        check(
            json!([{"name": "a", "agentId": "x", "parameters": {"p": {"q": ["${ 1 + }"]}}}]),
            &["spec.steps[0].parameters.p.q[0]: is not valid CEL"],
        );
        check(
            json!([{"name": "a", "agentId": "x", "parameters": {"p": "${ steps.b.output }"}}, {"name": "b", "agentId": "x"}]),
            &["there is no step b that ends before this one"],
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
            &["workflow is the name of another variable"],
        );
        check(json!([{"name": "a"}]), &["exactly one of agentId, ask and steps"]);
        check(
            json!([{"name": "a", "agentId": "x", "budget": {}}, {"name": "b", "ask": {"question": "?"}, "budget": {"tokens": 5}}]),
            &["spec.steps[0].budget: limits nothing", "spec.steps[1].budget: is only allowed with agentId"],
        );
        check(json!([{"name": "a", "agentId": "x", "actionGates": [{"name": "mail"}, {"name": "push"}]}]), &[]);
        check(
            json!([{"name": "a", "agentId": "x", "actionGates": [{"name": "mail"}, {"name": "mail"}]}]),
            &["spec.steps[0].actionGates[1].name: another action gate of the step is called mail too"],
        );
        check(
            json!([{"name": "a", "agentId": "x", "actionGates": [{"name": "mail", "approvals": 2, "acceptors": {"users": ["ann"]}}]}]),
            &["spec.steps[0].actionGates[0].approvals: 2 are needed, and acceptors.users has only 1"],
        );
        check(
            json!([{"name": "a", "ask": {"question": "?"}, "actionGates": [{"name": "mail"}]}]),
            &["spec.steps[0].actionGates: is only allowed with agentId"],
        );
        check(json!([{"name": "a", "agentId": "x", "documents": ["Brief"]}]), &["spec.steps[0].documents[0]"]);
        check(
            json!([{"name": "g", "steps": [{"name": "a", "agentId": "x", "produces": {"type": "t"}}]}, {"name": "b", "agentId": "x", "produces": {"type": "t"}}]),
            &[],
        );
    }

    #[expect(clippy::needless_pass_by_value, reason = "tables give literals")]
    fn schema(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn with_schema(steps: &Value, parameters: Value) -> WorkflowTemplateSpec {
        let steps = serde_json::from_value(steps.clone()).expect("steps");
        WorkflowTemplateSpec { steps, parameters_schema: Some(schema(parameters)), ..WorkflowTemplateSpec::default() }
    }

    #[test]
    fn a_hyphen_that_is_read_as_a_minus_is_told_with_its_remedy() {
        let step = |text: &str| {
            json!([
                {"name": "epic-list", "agentId": "x", "documents": ["plan-b"]},
                {"name": "draft-2", "agentId": "x"},
                {"name": "b", "agentId": "x", "forEach": {"in": "[{}]", "as": "n"}, "parameters": {"p": format!("${{ {text} }}")}},
            ])
        };
        for (text, expected) in [
            ("parameters.dry-run", Some("parameters['dry-run'] or parameters.dry_run")),
            ("workflow.parameters.dry-run", Some("workflow.parameters['dry-run'] or workflow.parameters.dry_run")),
            ("parameters.all.run-id", Some("parameters.all['run-id']")),
            ("parameters.list[0].run-id.x + 1", Some("parameters.list[0]['run-id']")),
            ("steps.epic-list.output", Some("steps['epic-list'] or steps.epic_list")),
            ("steps.draft-2", Some("steps['draft-2'] or steps.draft_2")),
            ("steps.draft-2.output", Some("steps['draft-2'] or steps.draft_2")),
            ("steps.draft_2.output.run-id", Some("steps.draft_2.output['run-id']")),
            ("documents.epic-backlog.epics", Some("documents['epic-backlog'] or documents.epic_backlog")),
            ("documents.plan-b", Some("documents['plan-b'] or documents.plan_b")),
            ("documents.?epic-backlog.orValue([])", Some("documents['epic-backlog']")),
            ("n.run-id", Some("n['run-id']")),
            ("item.run-key", Some("item['run-key']")),
            ("workflow.run-id", Some("workflow['run-id']")),
            ("parameters.opt-in", Some("parameters['opt-in'] or parameters.opt_in")),
            ("[1].map(i, parameters.run-id)", Some("parameters['run-id']")),
            // The other side is known, or a number.
            ("parameters.count-n", None),
            ("parameters.count-1", None),
            ("n.b-item.index", None),
            ("parameters.run - n", None),
            ("'parameters.dry-run'", None),
        ] {
            let steps = serde_json::from_value(step(text)).expect("steps");
            let faults = template(&WorkflowTemplateSpec { steps, ..WorkflowTemplateSpec::default() }, &InProcess);
            match expected {
                None => assert_eq!(faults, Vec::<String>::new(), "{text}"),
                Some(part) => {
                    assert_eq!(faults.len(), 1, "{text}: {faults:#?}");
                    assert!(faults[0].starts_with("spec.steps[2].parameters.p: "), "{}", faults[0]);
                    assert!(faults[0].contains("hyphen") && faults[0].contains(part), "{text}: {}", faults[0]);
                }
            }
        }
        // A parameter of that name is meant, whatever else the words are.
        let named = with_schema(&step("parameters.count-n"), json!({"properties": {"count-n": {}}}));
        assert!(template(&named, &InProcess)[0].contains("parameters['count-n']"));
    }

    #[test]
    fn parameters_that_can_never_be_there_are_refused_and_doubtful_ones_told() {
        let read = |text: &str| json!([{"name": "a", "agentId": "x", "parameters": {"p": format!("${{ {text} }}")}}]);
        let open = json!({"properties": {"depth": {}, "dry-run": {}}});
        let closed = json!({"properties": {"depth": {}, "dry-run": {}}, "additionalProperties": false});
        let patterned = json!({"properties": {}, "patternProperties": {"^x": {}}, "additionalProperties": false});
        for (text, schema, faults, warnings) in [
            ("parameters.depth + parameters.dry_run + parameters['dry-run']", &closed, 0, 0),
            ("parameters.depht", &closed, 1, 0),
            ("workflow.parameters.depht", &closed, 1, 0),
            ("parameters.?depht.orValue(1)", &closed, 1, 0),
            ("parameters.depht", &open, 0, 1),
            ("workflow.parameters.depht", &open, 0, 1),
            ("parameters.?other.orValue(1)", &open, 0, 0),
            ("has(parameters.other)", &open, 0, 0),
            ("size(parameters)", &closed, 0, 0),
            ("parameters.xy", &patterned, 0, 1),
        ] {
            let spec = with_schema(&read(text), schema.clone());
            let (refused, doubted) = (template(&spec, &InProcess), super::warnings((&spec).into()));
            assert_eq!((refused.len(), doubted.len()), (faults, warnings), "{text}: {refused:?} {doubted:?}");
            for told in refused.iter().chain(&doubted) {
                assert!(
                    told.starts_with("spec.steps[0].parameters.p: ") && told.contains("parametersSchema"),
                    "{told}"
                );
            }
        }
        // Without a schema a run's own parameters are all there are.
        let steps = serde_json::from_value(read("parameters.depht")).expect("steps");
        let run = WorkflowSpec { steps, parameters: Some(schema(json!({"depth": 2}))), ..WorkflowSpec::default() };
        assert_eq!(workflow(&run, &InProcess).len(), 0);
        let told = super::warnings((&run).into());
        assert!(told.len() == 1 && told[0].contains("is not among spec.parameters, which has depth"), "{told:?}");
        let told = undeclared(&schema(json!({"depth": 1, "villain": 2})), Some(&schema(open)));
        assert_eq!(told, ["spec.parameters.villain: is not in parametersSchema, which has depth, dry-run"]);
    }

    #[test]
    fn a_branch_that_nothing_waits_for_is_told_unless_the_author_says_what_the_list_gives() {
        let steps = json!([{"name": "a", "agentId": "x"}, {"name": "b", "agentId": "x"}]);
        let of = |spec: Value| {
            let spec: WorkflowTemplateSpec = serde_json::from_value(spec).expect("a template");
            super::warnings((&spec).into())
        };
        let told = "no step needs a; the output of the list is that of its last step, b";
        assert_eq!(of(json!({"order": "Graph", "steps": steps})), [format!("spec.steps[0]: {told}")]);
        assert_eq!(of(json!({"order": "Graph", "output": "steps.a.output", "steps": steps})), Vec::<String>::new());
        assert_eq!(of(json!({"steps": steps})), Vec::<String>::new());
        let mut group = json!({"name": "g", "order": "Graph", "steps": steps});
        assert_eq!(of(json!({"steps": [group]})), [format!("spec.steps[0].steps[0]: {told}")]);
        group["output"] = json!("steps.a.output");
        assert_eq!(of(json!({"steps": [group]})), Vec::<String>::new());
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
    fn integers_that_the_api_server_rounds_are_refused_wherever_an_author_writes_them() {
        let given = schema(
            json!({"order": 12_345_678_901_234_567_890_u64, "day": 20_200_219, "account": 9_007_199_254_740_993_i64}),
        );
        for wanted in [None, Some(schema(json!({"properties": {"order": {"type": "integer"}}})))] {
            let (_, faults) = parameters(&given, wanted.as_ref(), &InProcess);
            assert!(
                faults.len() == 1 && faults[0].starts_with("spec.parameters.order: 12345678901234567890"),
                "{faults:?}"
            );
        }
        check(
            json!([{"name": "a", "agentId": "x", "parameters": {"p": {"q": [1e19, 12_345_678_901_234_567_000_u64]}}}]),
            &["spec.steps[0].parameters.p.q[1]: 12345678901234567000 is too large"],
        );
    }

    #[test]
    fn free_values_nest_at_most_64_levels() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        let object = |levels: usize| Map::from_iter([("a".to_owned(), nested(levels - 1))]);
        let step = |levels: usize| {
            json!([{"name": "a", "agentId": "x", "parameters": object(levels), "outputSchema": {"enum": nested(levels - 1)}},
                {"name": "b", "ask": {"question": "?", "schema": {"enum": nested(levels - 1)}}}])
        };
        check(step(64), &[]);
        let fault = |place: &str| format!("{place}: nests 65 levels of lists and objects, at most 64 are allowed");
        let places = ["spec.steps[0].parameters", "spec.steps[0].outputSchema", "spec.steps[1].ask.schema"].map(fault);
        check(step(65), &places.each_ref().map(String::as_str));
        assert_eq!(parameters(&object(64), None, &InProcess).1, Vec::<String>::new());
        for wanted in [None, Some(Map::new())] {
            let (_, faults) = parameters(&object(65), wanted.as_ref(), &InProcess);
            assert!(faults.len() == 1 && faults[0].starts_with(&fault("spec.parameters")), "{faults:?}");
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
