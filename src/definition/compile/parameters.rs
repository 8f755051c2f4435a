//! The parameters that a definition has, as far as can be known before it runs: from its schema, and from what a run gives.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Source;
use crate::definition::expression::underscored;

#[derive(Debug, Default)]
pub(super) struct Parameters {
    /// Names in the schema; none without one.
    declared: Option<BTreeSet<String>>,
    /// Whether the schema takes no others.
    closed: bool,
    /// Names that the run gives, where it is known.
    given: Option<BTreeSet<String>>,
}

impl Parameters {
    pub fn of(source: Source<'_>) -> Self {
        let names = |members: &Map<String, Value>| members.keys().cloned().collect::<BTreeSet<_>>();
        Self {
            declared: source.parameters_schema.map(|schema| declared(schema).map(names).unwrap_or_default()),
            closed: source.parameters_schema.is_some_and(is_closed),
            given: source.parameters.map(names),
        }
    }

    /// Whether there is one of exactly that name.
    pub fn has(&self, name: &str) -> bool {
        self.declared.iter().chain(&self.given).any(|names| names.contains(name))
    }

    /// Why there can never be one of that name.
    pub fn refusal(&self, name: &str) -> Option<String> {
        let declared = self.declared.as_ref().filter(|names| self.closed && !is_in(names, name))?;
        Some(format!("cannot exist: parametersSchema has {} and allows no others", listed(declared)))
    }

    /// Why there is probably none.
    pub fn doubt(&self, name: &str) -> Option<String> {
        let known = self.declared.iter().chain(&self.given).any(|names| is_in(names, name));
        match (&self.declared, &self.given) {
            _ if known => None,
            (Some(declared), _) => Some(format!("is not in parametersSchema, which has {}", listed(declared))),
            (None, Some(given)) => Some(format!("is not among spec.parameters, which has {}", listed(given))),
            (None, None) => None,
        }
    }
}

/// The properties of a schema.
fn declared(schema: &Map<String, Value>) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object()
}

/// Whether a schema takes nothing but its properties.
fn is_closed(schema: &Map<String, Value>) -> bool {
    schema.get("additionalProperties") == Some(&Value::Bool(false)) && !schema.contains_key("patternProperties")
}

fn is_in(names: &BTreeSet<String>, name: &str) -> bool {
    names.iter().any(|known| known == name || underscored(known) == name)
}

fn listed(names: &BTreeSet<String>) -> String {
    if names.is_empty() { "none".to_owned() } else { names.iter().cloned().collect::<Vec<_>>().join(", ") }
}
