//! What is wrong with an Agent, each fault with its path.

mod template;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use super::schema;
use super::validate;
use crate::api::agent::{Agent, AgentStatus};
use crate::api::condition::{self, Truth};
use crate::api::workflow_template::{WorkflowTemplate, WorkflowTemplateStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Name of the container that is the agent.
pub const CONTAINER: &str = "agent";

/// All faults of an Agent.
pub fn faults(agent: &Agent) -> Vec<String> {
    let mut faults = Vec::new();
    let spec = &agent.spec;
    for (field, schema) in [("parametersSchema", &spec.parameters_schema), ("outputSchema", &spec.output_schema)] {
        if let Some(Err(fault)) = schema.as_ref().map(schema::check) {
            faults.push(format!("spec.{field}: {fault}"));
        }
    }
    match serde_json::from_value::<PodTemplateSpec>(Value::Object(spec.template.clone())) {
        Err(e) => faults.push(format!("spec.template: is not a PodTemplateSpec: {e}")),
        Ok(template) => faults.extend(template::faults(&template)),
    }
    faults
}

/// The status of an Agent: `Ready`, with every fault.
pub fn agent_status(agent: &Agent, now: &Time) -> AgentStatus {
    let mut status = agent.status.clone().unwrap_or_default();
    status.observed_generation = agent.metadata.generation.unwrap_or_default();
    ready(&mut status.conditions, &faults(agent), (now, status.observed_generation));
    status
}

/// The status of a WorkflowTemplate: `Ready`, with every fault.
pub fn template_status(template: &WorkflowTemplate, now: &Time) -> WorkflowTemplateStatus {
    let mut status = template.status.clone().unwrap_or_default();
    status.observed_generation = template.metadata.generation.unwrap_or_default();
    let faults = validate::template(&template.spec);
    ready(&mut status.conditions, &faults, (now, status.observed_generation));
    status
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
