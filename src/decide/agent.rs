//! The statuses of what authors write for others to use, Agents and WorkflowTemplates: `Ready`, or every fault.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::agent::{Agent, AgentStatus};
use crate::api::condition::{self, Truth};
use crate::api::workflow_template::{WorkflowTemplate, WorkflowTemplateStatus};
use crate::definition::agent::faults;
use crate::definition::expression::Evaluate;
use crate::definition::validate;

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

fn ready(conditions: &mut Vec<Condition>, faults: &[String], at: (&Time, i64)) {
    match faults {
        [] => condition::set(conditions, "Ready", Truth::True, "Valid", "", at),
        _ => condition::set(conditions, "Ready", Truth::False, "Invalid", &faults.join("; "), at),
    }
}
