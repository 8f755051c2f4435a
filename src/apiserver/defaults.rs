//! Defaults that the schemas of custom kinds state: filled in when an object is written, as the real server does.

use serde_json::Value;

/// The defaults of a schema, without the rest of it: a write need not look through hundreds of fields that have none.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// By name of a field: its default, and those within it.
    fields: Vec<(String, Option<Value>, Defaults)>,
    /// Of the elements of a list, or of the values of a map.
    elements: Option<Box<Defaults>>,
}

impl Defaults {
    /// Of combined schemas (`allOf` and its like) none states a default.
    pub fn of(schema: &Value) -> Self {
        let properties = schema["properties"].as_object().into_iter().flatten();
        let all = properties.map(|(name, inner)| (name.clone(), inner.get("default").cloned(), Self::of(inner)));
        let elements = ["items", "additionalProperties"].into_iter().filter_map(|key| schema.get(key)).map(Self::of);
        Self {
            fields: all.filter(|(_, default, inner)| default.is_some() || !inner.is_empty()).collect(),
            elements: elements.filter(|inner| !inner.is_empty()).map(Box::new).next(),
        }
    }

    fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.elements.is_none()
    }

    /// Fills in what is not there, and what is null.
    pub fn fill(&self, value: &mut Value) {
        if let Some(fields) = value.as_object_mut() {
            for (name, default, inner) in &self.fields {
                if let Some(default) = default.as_ref().filter(|_| fields.get(name).is_none_or(Value::is_null)) {
                    fields.insert(name.clone(), default.clone());
                }
                if let Some(field) = fields.get_mut(name) {
                    inner.fill(field);
                }
            }
        }
        match (&self.elements, value) {
            (Some(inner), Value::Array(list)) => list.iter_mut().for_each(|element| inner.fill(element)),
            (Some(inner), Value::Object(fields)) => fields.values_mut().for_each(|field| inner.fill(field)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::kind::Kind;

    #[test]
    fn what_a_schema_states_is_filled_in_and_nothing_else() {
        let schema = json!({"properties": {
            "a": {"default": 1},
            "b": {"default": {}, "properties": {"c": {"default": 2}}},
            "d": {"items": {"properties": {"e": {"default": 3}}}},
            "f": {"properties": {"g": {"default": 4}}}}});
        let mut value = json!({"a": 7, "d": [{}, {"e": 8}]});
        Defaults::of(&schema).fill(&mut value);
        assert_eq!(value, json!({"a": 7, "b": {"c": 2}, "d": [{"e": 3}, {"e": 8}]}));
    }

    #[test]
    fn a_steprun_begins_with_its_first_attempt() {
        let mut value = json!({"spec": {}});
        Kind::StepRun.defaults().expect("a schema").fill(&mut value);
        assert_eq!(value["status"]["attempt"], 1);
        assert_eq!(value["status"]["counts"], json!({"retryable": 0, "infrastructure": 0, "answers": 0}));
    }
}
