//! What is wrong with an Agent, each fault with its path.

mod template;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Map, Value};

use super::expression::Evaluate;
use super::validate;
use crate::api::agent::{Agent, AgentStatus};
use crate::api::condition::{self, Truth};
use crate::api::definition::canonical_digest;
use crate::api::workflow_template::{WorkflowTemplate, WorkflowTemplateStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

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

/// The status of an Agent: `Ready`, with every fault.
pub fn agent_status(agent: &Agent, evaluator: &dyn Evaluate, now: &Time) -> AgentStatus {
    let mut status = agent.status.clone().unwrap_or_default();
    status.observed_generation = agent.metadata.generation.unwrap_or_default();
    ready(&mut status.conditions, &faults(agent, evaluator), (now, status.observed_generation));
    status
}

/// The status of a WorkflowTemplate: `Ready`, with every fault.
pub fn template_status(template: &WorkflowTemplate, evaluator: &dyn Evaluate, now: &Time) -> WorkflowTemplateStatus {
    let mut status = template.status.clone().unwrap_or_default();
    status.observed_generation = template.metadata.generation.unwrap_or_default();
    let faults = validate::template(&template.spec, evaluator);
    ready(&mut status.conditions, &faults, (now, status.observed_generation));
    status
}

/// Whether its status says of this very spec that it has faults.
pub fn is_known_faulty(agent: &Agent) -> bool {
    let current = agent.status.as_ref().filter(|s| Some(s.observed_generation) == agent.metadata.generation);
    current.and_then(|s| condition::get(&s.conditions, "Ready")).is_some_and(|ready| ready.status == "False")
}

fn ready(
    conditions: &mut Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
    faults: &[String],
    at: (&Time, i64),
) {
    match faults {
        [] => condition::set(conditions, "Ready", Truth::True, "Valid", "", at),
        _ => condition::set(conditions, "Ready", Truth::False, "Invalid", &faults.join("; "), at),
    }
}
