//! What a question takes: the schema of its answer, from the definition that the run keeps; or, where that may not be read,
//! from where it was taken.

use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Map, Value};

use super::connect::Connection;
use super::text::{inline, quote};
use crate::api::definition::Definition;
use crate::api::step::{Ask, Step};
use crate::api::{StepRun, Workflow, WorkflowTemplate};
use crate::definition::pinned;

type Schema = Map<String, Value>;

/// What is known of the answer that a question takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Answers {
    /// Neither the definition nor what it was taken from can be read.
    #[default]
    Unknown,
    /// The question has no schema: anything is an answer.
    Free,
    Of(Schema),
    /// As the template has it now; the run keeps what it was when it began.
    Perhaps(Schema),
}

impl Answers {
    fn sure(schema: Option<Schema>) -> Self {
        schema.map_or(Self::Free, Self::Of)
    }

    pub fn schema(&self) -> Option<&Schema> {
        match self {
            Self::Of(schema) | Self::Perhaps(schema) => Some(schema),
            Self::Unknown | Self::Free => None,
        }
    }
}

/// What an agent asks, which stands in the wait itself; none where the step is the question.
pub fn by_agent(step: &StepRun) -> Option<Answers> {
    let wait = step.status.as_ref()?.waiting_for.as_ref().filter(|_| step.spec.ask.is_none())?;
    Some(match wait.schema.as_deref().map(serde_json::from_str) {
        None => Answers::Free,
        Some(Ok(schema)) => Answers::Of(schema),
        Some(Err(_)) => Answers::Unknown,
    })
}

/// Reads it; who may read nothing of it learns nothing, and the operator judges the answer anyway.
pub async fn of(on: &Connection, step: &StepRun) -> Answers {
    if let Some(answers) = by_agent(step) {
        return answers;
    }
    let api = on.api::<ControllerRevision>();
    let read = on.call("read the definition", api.get_opt(&step.spec.definition.revision_name)).await;
    if let Ok(Some(revision)) = read
        && let Some(data) = revision.data
        && let Ok(program) = pinned::read(data.0, &step.spec.definition.digest)
        && let Some(ask) = program.step(&step.spec.path).and_then(|own| own.ask())
    {
        return Answers::sure(ask.schema.as_ref().map(|schema| schema.as_object().clone()));
    }
    let run = on.read::<Workflow>("read the run", &step.spec.workflow.name).await;
    let Ok(Some(run)) = run else { return Answers::Unknown };
    let Some(template) = &run.spec.template_ref else {
        let ask = in_steps(run.spec.steps.clone(), &step.spec.path);
        return ask.map_or(Answers::Unknown, |ask| Answers::sure(ask.schema));
    };
    let read = on.read::<WorkflowTemplate>("read the template", &template.name).await;
    let steps = read.ok().flatten().map(|template| template.spec.steps).unwrap_or_default();
    in_steps(steps, &step.spec.path).and_then(|ask| ask.schema).map_or(Answers::Unknown, Answers::Perhaps)
}

/// The question at that path.
fn in_steps(steps: Vec<Step>, path: &str) -> Option<Ask> {
    let definition = Definition { steps, ..Definition::default() };
    definition.step(path)?.ask.clone()
}

/// What a schema asks for, in one line of at most so many characters.
pub fn in_words(schema: &str, most: usize) -> String {
    let choices = serde_json::from_str(schema).map(|schema: Schema| choices(&schema)).unwrap_or_default();
    if choices.is_empty() {
        return inline(&format!("a value of this schema: {schema}"), most);
    }
    let choices: Vec<String> = choices.iter().map(|choice| quote(choice)).collect();
    inline(&format!("one of {}", choices.join(", ")), most)
}

/// The few answers that a schema allows, as they are typed; none where there are many.
pub fn choices(schema: &Schema) -> Vec<String> {
    let typed = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if let Some(all) = schema.get("enum").and_then(Value::as_array) {
        return all.iter().map(typed).collect();
    }
    if let Some(only) = schema.get("const") {
        return vec![typed(only)];
    }
    if schema.get("type").and_then(Value::as_str) == Some("boolean") {
        return vec!["true".to_owned(), "false".to_owned()];
    }
    let either = ["oneOf", "anyOf"].into_iter().find_map(|key| schema.get(key).and_then(Value::as_array));
    let each = either.into_iter().flatten().map(|one| one.as_object().map(choices).unwrap_or_default());
    let each: Vec<Vec<String>> = each.collect();
    if each.iter().any(Vec::is_empty) { Vec::new() } else { each.concat() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_few_answers_are_choices() {
        for (schema, expected) in [
            (json!({"enum": ["small", "large", 3]}), vec!["small", "large", "3"]),
            (json!({"type": "boolean"}), vec!["true", "false"]),
            (json!({"const": "yes"}), vec!["yes"]),
            (json!({"oneOf": [{"const": "a"}, {"enum": ["b"]}]}), vec!["a", "b"]),
            (json!({"oneOf": [{"const": "a"}, {"type": "string"}]}), vec![]),
            (json!({"type": "integer"}), vec![]),
            (json!({}), vec![]),
        ] {
            assert_eq!(choices(schema.as_object().expect("an object")), expected, "{schema}");
        }
    }

    #[test]
    fn what_is_wanted_is_said_in_one_line() {
        for (schema, words) in [
            (r#"{"enum":["small","very large"]}"#, "one of small, 'very large'"),
            (r#"{"type":"integer"}"#, r#"a value of this schema: {"type":"integer"}"#),
            ("no schema", "a value of this schema: no schema"),
        ] {
            assert_eq!(in_words(schema, 300), words);
        }
    }

    #[test]
    fn an_agents_question_carries_its_schema() {
        let step = |ask: Value, schema: Value| -> StepRun {
            serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun", "metadata": {},
                "spec": {"workflow": {"name": "w", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
                    "path": "plan", "parameters": "{}", "inputDigest": "d", "ask": ask},
                "status": {"waitingFor": {"id": "1-0", "kind": "Question", "question": "?", "options": [],
                    "schema": schema, "since": "2026-11-21T10:00:00Z"}}}))
            .expect("a step")
        };
        let integer = json!({"type": "integer"}).as_object().cloned().expect("an object");
        assert_eq!(by_agent(&step(Value::Null, json!(r#"{"type": "integer"}"#))), Some(Answers::Of(integer)));
        assert_eq!(by_agent(&step(Value::Null, Value::Null)), Some(Answers::Free));
        assert_eq!(by_agent(&step(json!({"name": "plan", "question": "?"}), Value::Null)), None);
    }

    #[test]
    fn a_question_is_found_in_its_group() {
        let steps: Vec<Step> = serde_json::from_value(json!([{"name": "g", "steps": [
            {"name": "budget", "ask": {"question": "How much?", "schema": {"type": "integer"}}},
            {"name": "open", "ask": {"question": "What?"}}]}]))
        .expect("steps");
        let integer = json!({"type": "integer"}).as_object().cloned();
        assert_eq!(in_steps(steps.clone(), "g/budget").map(|ask| ask.schema), Some(integer));
        assert_eq!(in_steps(steps.clone(), "g/open").map(|ask| ask.schema), Some(None));
        assert_eq!(in_steps(steps, "g/other"), None);
    }
}
