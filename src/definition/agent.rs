//! An Agent, checked: what is wrong with it, each fault with its path; its pod template, read; and what of it shapes the
//! work that is done with it.

mod template;

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
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

/// An Agent without faults, its pod template read: what a Job is built from.
#[derive(Clone, Debug)]
pub struct CheckedAgent<'a> {
    agent: &'a Agent,
    metadata: ObjectMeta,
    pod: PodSpec,
}

impl<'a> CheckedAgent<'a> {
    /// An error is all its faults.
    pub fn of(agent: &'a Agent, evaluator: &dyn Evaluate) -> Result<Self, Vec<String>> {
        let mut faults = schema_faults(agent, evaluator);
        match pod_template(agent) {
            Ok((metadata, pod)) if faults.is_empty() => return Ok(Self { agent, metadata, pod }),
            Ok(_) => {}
            Err(of_the_pod) => faults.extend(of_the_pod),
        }
        Err(faults)
    }

    pub fn agent(&self) -> &'a Agent {
        self.agent
    }

    /// Metadata and spec of its pods, as the author wrote them.
    pub fn pod(&self) -> (ObjectMeta, PodSpec) {
        (self.metadata.clone(), self.pod.clone())
    }
}

/// All faults of an Agent.
pub fn faults(agent: &Agent, evaluator: &dyn Evaluate) -> Vec<String> {
    CheckedAgent::of(agent, evaluator).err().unwrap_or_default()
}

/// The faults of its pod template alone: nothing has to be evaluated for them.
pub fn pod_faults(agent: &Agent) -> Vec<String> {
    pod_template(agent).err().unwrap_or_default()
}

fn schema_faults(agent: &Agent, evaluator: &dyn Evaluate) -> Vec<String> {
    let spec = &agent.spec;
    let schemas = [("parametersSchema", &spec.parameters_schema), ("outputSchema", &spec.output_schema)];
    let faults = schemas.into_iter().filter_map(|(field, schema)| {
        let fault = evaluator.check(schema.as_ref()?).err()?;
        Some(format!("spec.{field}: {fault}"))
    });
    faults.collect()
}

fn pod_template(agent: &Agent) -> Result<(ObjectMeta, PodSpec), Vec<String>> {
    let read: Result<PodTemplateSpec, _> = serde_json::from_value(Value::Object(agent.spec.template.clone()));
    let read = read.map_err(|e| vec![format!("spec.template: is not a PodTemplateSpec: {e}")])?;
    let faults = template::faults(&read);
    match read.spec {
        Some(pod) if faults.is_empty() => Ok((read.metadata.unwrap_or_default(), pod)),
        _ => Err(faults),
    }
}
