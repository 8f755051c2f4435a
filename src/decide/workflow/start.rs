//! The first pass: everything that must not change is written down before anything runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Observed, Plan};
use crate::api::agent::Agent;
use crate::api::condition::clip;
use crate::api::definition::Definition;
use crate::api::name::{self, CREATED_BY};
use crate::api::step::{OnFailure, Order, Step};
use crate::api::usage::Budget;
use crate::api::workflow::{DefinitionRef, RetryOf, SessionPhase, SessionStatus, WorkflowStatus};
use crate::decide::{Effect, build, document, status};
use crate::definition::{pinned, validate};

pub(super) fn start(o: &Observed, mut status: WorkflowStatus) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let spec = &o.workflow.spec;
    status.observed_generation = o.workflow.metadata.generation.unwrap_or_default();
    let at = (&o.now, status.observed_generation);
    if spec.cancel == Some(true) {
        status::never_begun(&mut status, at);
        plan.notice("Cancelled", status::NEVER_BEGUN);
        plan.status = Some(status);
        return plan;
    }
    let own_faults = validate::workflow(spec, o.evaluator.as_ref());
    if !own_faults.is_empty() {
        status::invalid(&mut status, "InvalidWorkflow", &own_faults.join("; "), at);
        plan.warn("InvalidWorkflow", clip(&own_faults.join("; "), 900));
        plan.status = Some(status);
        return plan;
    }
    if let Some(of) = spec.retry_of.as_ref().filter(|_| o.previous.is_none()) {
        let (reason, why) = nothing_to_retry(o, of);
        status::invalid(&mut status, reason, &why, at);
        plan.warn(reason, clip(&why, 900));
        plan.status = Some(status);
        return plan;
    }
    let source = match resolved(o) {
        Ok(source) => source,
        Err((reason, message)) => {
            status::pending(&mut status, reason, &message, at);
            plan.status = Some(status);
            return plan;
        }
    };
    let given = spec.parameters.clone().unwrap_or_default();
    let (parameters, faults) = validate::parameters(&given, source.parameters_schema.as_ref(), o.evaluator.as_ref());
    if !faults.is_empty() {
        status::invalid(&mut status, "InvalidParameters", &faults.join("; "), at);
        plan.warn("InvalidParameters", clip(&faults.join("; "), 900));
        plan.status = Some(status);
        return plan;
    }
    pin(o, status, source, parameters)
}

/// Why the run that this one goes on from is no use to it, and what to do. A spec never changes, so that one which cannot be
/// read is not waited for.
fn nothing_to_retry(o: &Observed, of: &RetryOf) -> (&'static str, String) {
    let RetryOf { name, uid, .. } = of;
    if let Some(fault) = &o.unreadable.previous {
        let why = format!(
            "spec.retryOf: the Workflow {name} cannot be read, and nothing can be taken over from it: {fault}; start its work anew, without retryOf; after a downgrade go back to the newer version, and retry it again"
        );
        return ("RetryOfUnreadable", why);
    }
    let why = format!(
        "spec.retryOf: there is no Workflow {name} with the UID {uid} in this namespace; a retry takes over the results of a run that still exists in the same namespace"
    );
    ("RetryOfNotFound", why)
}

/// A definition, from the template or from the run itself.
struct Source {
    steps: Vec<Step>,
    order: Option<Order>,
    on_failure: Option<OnFailure>,
    output: Option<String>,
    timeout_seconds: Option<i64>,
    budget: Option<Budget>,
    parameters_schema: Option<Map<String, Value>>,
}

/// The steps to pin, or what they wait for, every missing thing with its path.
fn resolved(o: &Observed) -> Result<Source, (&'static str, String)> {
    let spec = &o.workflow.spec;
    let source = match &spec.template_ref {
        None => Source {
            steps: spec.steps.clone(),
            order: spec.order,
            on_failure: spec.on_failure,
            output: spec.output.clone(),
            timeout_seconds: spec.timeout_seconds,
            budget: spec.budget.clone(),
            parameters_schema: spec.parameters_schema.clone(),
        },
        Some(wanted) => {
            let Some(template) = &o.template else {
                if let Some(fault) = &o.unreadable.template {
                    let name = &wanted.name;
                    let why =
                        format!("WorkflowTemplate {name} cannot be read: {fault}; the run starts when it is mended");
                    return Err(("TemplateInvalid", why));
                }
                return Err((
                    "TemplateNotFound",
                    format!(
                        "spec.templateRef.name: WorkflowTemplate {} does not exist in this namespace; the run starts when it does",
                        wanted.name
                    ),
                ));
            };
            let faults = validate::template(&template.spec, o.evaluator.as_ref());
            if !faults.is_empty() {
                return Err((
                    "TemplateInvalid",
                    format!(
                        "WorkflowTemplate {} has faults: {}; the run starts when they are corrected",
                        wanted.name,
                        faults.join("; ")
                    ),
                ));
            }
            let written = template.spec.clone();
            Source {
                steps: written.steps,
                order: written.order,
                on_failure: spec.on_failure.or(written.on_failure),
                output: written.output,
                timeout_seconds: spec.timeout_seconds.or(written.timeout_seconds),
                budget: spec.budget.clone().or(written.budget),
                parameters_schema: written.parameters_schema,
            }
        }
    };
    let missing = missing_agents(&source.steps, "spec.steps", &o.agents);
    if missing.is_empty() {
        return Ok(source);
    }
    let told = |(place, agent): &(String, &str)| match o.unreadable.agents.get(*agent) {
        Some(fault) => format!("{place}: Agent {agent} cannot be read: {fault}"),
        None => format!("{place}: Agent {agent} does not exist in this namespace"),
    };
    let faults: Vec<String> = missing.iter().map(told).collect();
    let (reason, then) = if missing.iter().any(|(_, agent)| o.unreadable.agents.contains_key(*agent)) {
        ("AgentInvalid", "that is mended")
    } else {
        ("AgentNotFound", if missing.len() == 1 { "it exists" } else { "they exist" })
    };
    Err((reason, format!("{}; the run starts when {then}", faults.join("; "))))
}

/// Agents that are not known, each with the place that names it.
fn missing_agents<'a>(steps: &'a [Step], place: &str, agents: &BTreeMap<String, Arc<Agent>>) -> Vec<(String, &'a str)> {
    let mut missing = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if let Some(agent) = step.agent_id.as_deref().filter(|a| !agents.contains_key(*a)) {
            missing.push((format!("{place}[{index}].agentId"), agent));
        }
        missing.extend(missing_agents(&step.steps, &format!("{place}[{index}].steps"), agents));
    }
    missing
}

/// Everything that must not change is written down before anything runs: no StepRun in this pass.
fn pin(
    o: &Observed,
    mut status: WorkflowStatus,
    source: Source,
    parameters: Map<String, Value>,
) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let (meta, spec) = (&o.workflow.metadata, &o.workflow.spec);
    let (own, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
    // Nobody can spell it: `spec.session` begins with a letter or a digit.
    let private = || format!("_{own}-{}", uid.chars().take(8).collect::<String>());
    let definition = Definition {
        workflow: own.clone(),
        workflow_uid: uid.clone(),
        session: spec.session.clone().unwrap_or_else(private),
        project: spec.project.clone(),
        template: spec.template_ref.as_ref().map(|t| t.name.clone()),
        input: spec.input.clone().unwrap_or_default(),
        parameters,
        order: source.order.unwrap_or_default(),
        on_failure: source.on_failure.unwrap_or_default(),
        output: source.output,
        timeout_seconds: source.timeout_seconds,
        budget: source.budget,
        steps: source.steps,
    };
    plan.effects.push(Effect::CreateRevision(Box::new(build::revision(&o.workflow, &definition))));
    for inline in &spec.documents {
        let made = build::run_document(&o.workflow, inline);
        let published = document::initial_status(&made, 1);
        plan.effects.extend(document::create(made, published));
    }
    status.creator = meta.annotations.as_ref().and_then(|a| a.get(CREATED_BY)).map(|c| clip(c, 512));
    status.definition =
        Some(DefinitionRef { revision_name: name::revision(&own, &uid), digest: pinned::digest(&definition) });
    status.session = Some(SessionStatus {
        id: definition.session.clone(),
        phase: SessionPhase::Initiated,
        start_time: Some(o.now.clone()),
    });
    status.project.clone_from(&definition.project);
    status.started_at = Some(o.now.clone());
    status.retry_of.clone_from(&spec.retry_of);
    let at = (&o.now, status.observed_generation);
    status::pending(&mut status, "Initiated", "the definition was recorded; steps start next", at);
    plan.notice("Started", format!("session {}", definition.session));
    plan.status = Some(status);
    plan
}
