//! What is wrong with an Agent, each fault with its path.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Map, Value};

use super::schema;
use super::validate;
use crate::api::agent::{Agent, AgentStatus};
use crate::api::condition::{self, Truth};
use crate::api::definition::canonical_digest;
use crate::api::workflow_template::{WorkflowTemplate, WorkflowTemplateStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Name of the container that is the agent.
pub const CONTAINER: &str = "agent";
const OURS: &str = "lockstep";

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
        Ok(template) => template_faults(&template, &mut faults),
    }
    faults
}

fn template_faults(template: &PodTemplateSpec, faults: &mut Vec<String>) {
    let Some(pod) = &template.spec else {
        faults.push("spec.template.spec: is required".to_owned());
        return;
    };
    let place = "spec.template.spec";
    if pod.restart_policy.as_deref().is_some_and(|p| p != "Never") {
        faults.push(format!("{place}.restartPolicy: must be Never or absent; Lockstep repeats attempts itself"));
    }
    if pod.automount_service_account_token == Some(true) {
        faults.push(format!(
            "{place}.automountServiceAccountToken: must not be true; agents get no credentials for the API server"
        ));
    }
    for (flag, set) in [("hostNetwork", pod.host_network), ("hostPID", pod.host_pid), ("hostIPC", pod.host_ipc)] {
        if set == Some(true) {
            faults.push(format!("{place}.{flag}: must not be true"));
        }
    }
    match pod.containers.iter().position(|c| c.name == CONTAINER) {
        None => faults.push(format!("{place}.containers: one must be named {CONTAINER}")),
        Some(index) => {
            let container = &pod.containers[index];
            if container.command.as_ref().is_none_or(Vec::is_empty) {
                faults.push(format!(
                    "{place}.containers[{index}].command: is required, because Kubernetes does not tell an image's entrypoint; find it with: skopeo inspect --config docker://IMAGE"
                ));
            }
            for (n, variable) in
                container.env.iter().flatten().enumerate().filter(|(_, v)| v.name.starts_with("LOCKSTEP_"))
            {
                faults.push(format!(
                    "{place}.containers[{index}].env[{n}].name: {}: names that begin with LOCKSTEP_ are Lockstep's own",
                    variable.name
                ));
            }
            if container.image.as_ref().is_none_or(String::is_empty) {
                faults.push(format!("{place}.containers[{index}].image: is required"));
            }
        }
    }
    for (index, container) in pod.containers.iter().enumerate() {
        if container.restart_policy.is_some() {
            faults.push(format!(
                "{place}.containers[{index}].restartPolicy: is not allowed; a restart would start the agent twice"
            ));
        }
    }
    for (index, volume) in pod.volumes.iter().flatten().enumerate() {
        if volume.name.starts_with(OURS) {
            faults.push(format!("{place}.volumes[{index}].name: names that begin with {OURS} are Lockstep's own"));
        }
        if volume.host_path.is_some() {
            faults.push(format!("{place}.volumes[{index}].hostPath: is not allowed"));
        }
    }
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
