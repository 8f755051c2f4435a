//! What is wrong with an Agent, each fault with its path; and what of it shapes the work that is done with it.

mod template;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Map, Value};

use super::expression::Evaluate;
use super::pinned::canonical_digest;
use crate::api::agent::Agent;

/// Name of the container that is the agent.
pub const CONTAINER: &str = "agent";

/// `sha256:...` of what shapes an Agent's work: its template and its schemas. How many of it run at once, how long they
/// may take and how often they are repeated is no part of it.
pub fn work_digest(agent: &Agent) -> String {
    let spec = &agent.spec;
    let schema = |schema: &Option<Map<String, Value>>| schema.clone().map_or(Value::Null, Value::Object);
    canonical_digest(&Value::from_iter([
        ("template", Value::Object(spec.template.clone())),
        ("parametersSchema", schema(&spec.parameters_schema)),
        ("outputSchema", schema(&spec.output_schema)),
    ]))
}

/// All faults of an Agent.
pub fn faults(agent: &Agent, evaluator: &dyn Evaluate) -> Vec<String> {
    let mut faults = Vec::new();
    let spec = &agent.spec;
    for (field, schema) in [("parametersSchema", &spec.parameters_schema), ("outputSchema", &spec.output_schema)] {
        if let Some(Err(fault)) = schema.as_ref().map(|schema| evaluator.check(schema)) {
            faults.push(format!("spec.{field}: {fault}"));
        }
    }
    faults.extend(pod_faults(agent));
    faults
}

/// The faults of its pod template alone: nothing has to be evaluated for them.
pub fn pod_faults(agent: &Agent) -> Vec<String> {
    let mut faults = Vec::new();
    match serde_json::from_value::<PodTemplateSpec>(Value::Object(agent.spec.template.clone())) {
        Err(e) => faults.push(format!("spec.template: is not a PodTemplateSpec: {e}")),
        Ok(template) => faults.extend(template::faults(&template)),
    }
    faults
}
