//! The three levels of steps, written out for the CRDs.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::Step;
use crate::api::limits::STEPS;

/// What stands below `steps` of a step; what a run or a template says of its own steps stands beside the field.
const GROUP: &str = "The steps of a group, which has an output of its own. Groups nest three deep, with at most 32 steps in a group and 16 in a group within a group.";

/// Structural schemas have no recursion: a step within a step within a step is written out.
pub fn step_levels(generator: &mut SchemaGenerator) -> Schema {
    let plain = Value::from(Step::json_schema(generator));
    let mut list = Value::Null;
    for limit in STEPS.iter().rev() {
        let mut item = plain.clone();
        if let Some(properties) = item.get_mut("properties").and_then(Value::as_object_mut)
            && !list.is_null()
        {
            properties.insert("steps".to_owned(), list);
        }
        list = step_list(&item, *limit);
    }
    Schema::try_from(list).unwrap_or_default()
}

fn step_list(item: &Value, limit: u32) -> Value {
    let (rule, message) = if item.pointer("/properties/steps").is_some() {
        (
            "has(self.agentId) ? !has(self.ask) && !has(self.steps) : has(self.ask) ? !has(self.steps) : has(self.steps) || has(self.gate)",
            "exactly one of agentId, ask and steps says what the step does, or gate alone",
        )
    } else {
        (
            "has(self.agentId) ? !has(self.ask) : has(self.ask) || has(self.gate)",
            "exactly one of agentId and ask says what the step does, or gate alone: groups nest at most three deep",
        )
    };
    let mut item = item.clone();
    if let Some(object) = item.as_object_mut() {
        object.insert(
            "x-kubernetes-validations".to_owned(),
            json!([
                {"rule": rule, "message": message},
                {"rule": "has(self.agentId) || !(has(self.produces) || has(self.outputSchema) || has(self.documents) || has(self.retry) || has(self.timeoutSeconds))",
                 "message": "produces, outputSchema, documents, retry and timeoutSeconds go with agentId"}
            ]),
        );
    }
    json!({
        "description": GROUP,
        "type": "array", "minItems": 1, "maxItems": limit,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        "items": item,
    })
}
