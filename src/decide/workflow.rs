//! One run: pin its definition, start what may start, say where it stands, end it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::graph::{self, Stand};
use super::{Effect, Plan, build, document, status, validate};
use crate::api::agent::Agent;
use crate::api::condition::{Truth, clip};
use crate::api::definition::Definition;
use crate::api::document::{Document, DocumentPhase};
use crate::api::name::{self, CREATED_BY};
use crate::api::step::Step;
use crate::api::step_run::StepRun;
use crate::api::workflow::{DefinitionRef, Phase, SessionPhase, SessionStatus, Workflow, WorkflowStatus};
use crate::api::workflow_template::WorkflowTemplate;

/// All that the decision needs.
#[derive(Clone, Debug)]
pub struct Observed {
    pub workflow: Arc<Workflow>,
    pub template: Option<Arc<WorkflowTemplate>>,
    /// The pinned one, once there is one.
    pub definition: Option<Arc<Definition>>,
    /// Those that exist of the agents that the steps name.
    pub agents: BTreeMap<String, Arc<Agent>>,
    /// Those that this run's UID owns, by name.
    pub step_runs: BTreeMap<String, Arc<StepRun>>,
    /// Of all types that the steps name, contents left out.
    pub documents: Vec<Arc<Document>>,
    /// Contents that expressions read, by the Document's name.
    pub contents: BTreeMap<String, Arc<str>>,
    pub now: Time,
}

/// What to do with this run now.
pub fn workflow(o: &Observed) -> Plan<WorkflowStatus> {
    let before = o.workflow.status.clone().unwrap_or_default();
    if o.workflow.metadata.deletion_timestamp.is_some() || before.completed_at.is_some() {
        return Plan::default();
    }
    let mut plan = match (&before.definition, &o.definition) {
        (None, _) => start(o, before.clone()),
        (Some(_), Some(definition)) => advance(o, before.clone(), definition),
        (Some(pinned), None) => lost_definition(o, before.clone(), pinned),
    };
    if plan.status.as_ref() == o.workflow.status.as_ref() {
        plan.status = None;
    }
    plan
}

// ---- the first pass

fn start(o: &Observed, mut status: WorkflowStatus) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let spec = &o.workflow.spec;
    status.observed_generation = o.workflow.metadata.generation.unwrap_or_default();
    let at = (&o.now, status.observed_generation);
    let own_faults = validate::workflow(spec);
    if !own_faults.is_empty() {
        status::invalid(&mut status, "InvalidWorkflow", &own_faults.join("; "), at);
        plan.warn("InvalidWorkflow", clip(&own_faults.join("; "), 900));
        plan.status = Some(status);
        return plan;
    }
    let steps = match resolved(o) {
        Ok((steps, parameters_schema)) => (steps, parameters_schema),
        Err((reason, message)) => {
            status::pending(&mut status, reason, &message, at);
            plan.status = Some(status);
            return plan;
        }
    };
    let (parameters, faults) = validate::parameters(&spec.parameters.clone().unwrap_or_default(), steps.1.as_ref());
    if !faults.is_empty() {
        status::invalid(&mut status, "InvalidParameters", &faults.join("; "), at);
        plan.warn("InvalidParameters", clip(&faults.join("; "), 900));
        plan.status = Some(status);
        return plan;
    }
    pin(o, status, steps.0, parameters)
}

type Resolved = (Vec<Step>, Option<serde_json::Map<String, serde_json::Value>>);

/// The steps to pin, or what they wait for, every missing thing with its path.
fn resolved(o: &Observed) -> Result<Resolved, (&'static str, String)> {
    let spec = &o.workflow.spec;
    let (steps, parameters_schema) = match &spec.template_ref {
        None => (spec.steps.clone(), spec.parameters_schema.clone()),
        Some(wanted) => {
            let Some(template) = &o.template else {
                return Err((
                    "TemplateNotFound",
                    format!(
                        "spec.templateRef.name: WorkflowTemplate {} does not exist in this namespace; the run starts when it does",
                        wanted.name
                    ),
                ));
            };
            let faults = validate::definition(&template.spec.steps, template.spec.parameters_schema.as_ref());
            if !faults.is_empty() {
                return Err((
                    "TemplateInvalid",
                    format!(
                        "WorkflowTemplate {}: {}; the run starts when it is mended",
                        wanted.name,
                        faults.join("; ")
                    ),
                ));
            }
            (template.spec.steps.clone(), template.spec.parameters_schema.clone())
        }
    };
    let missing = missing_agents(&steps, "spec.steps", &o.agents);
    if missing.is_empty() {
        Ok((steps, parameters_schema))
    } else {
        Err(("AgentNotFound", format!("{}; the run starts when they exist", missing.join("; "))))
    }
}

fn missing_agents(steps: &[Step], place: &str, agents: &BTreeMap<String, Arc<Agent>>) -> Vec<String> {
    let mut missing = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if let Some(agent) = step.agent_id.as_ref().filter(|a| !agents.contains_key(*a)) {
            missing.push(format!("{place}[{index}].agentId: Agent {agent} does not exist in this namespace"));
        }
        missing.extend(missing_agents(&step.steps, &format!("{place}[{index}].steps"), agents));
    }
    missing
}

/// Everything that must not change is written down before anything runs: no StepRun in this pass.
fn pin(
    o: &Observed,
    mut status: WorkflowStatus,
    steps: Vec<Step>,
    parameters: serde_json::Map<String, serde_json::Value>,
) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let (meta, spec) = (&o.workflow.metadata, &o.workflow.spec);
    let (own, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
    let private = || format!("{own}-{}", uid.chars().take(8).collect::<String>());
    let definition = Definition {
        workflow: own.clone(),
        workflow_uid: uid.clone(),
        session: spec.session.clone().unwrap_or_else(private),
        project: spec.project.clone(),
        template: spec.template_ref.as_ref().map(|t| t.name.clone()),
        input: spec.input.clone().unwrap_or_default(),
        parameters,
        steps,
    };
    let text = serde_json::to_string(&definition).unwrap_or_default();
    plan.effects.push(Effect::CreateRevision(Box::new(build::revision(&o.workflow, &definition))));
    for inline in &spec.documents {
        let made = build::run_document(&o.workflow, inline);
        let name = made.metadata.name.clone().unwrap_or_default();
        let published = document::published(&made, &[]);
        plan.effects.push(Effect::CreateDocument(Box::new(made)));
        plan.effects.push(Effect::SetDocumentStatus { name, status: published });
    }
    status.creator = meta.annotations.as_ref().and_then(|a| a.get(CREATED_BY)).map(|c| clip(c, 512));
    status.definition =
        Some(DefinitionRef { revision_name: name::revision(&own, &uid), digest: name::digest_bytes(text.as_bytes()) });
    status.session = Some(SessionStatus {
        id: definition.session.clone(),
        phase: SessionPhase::Initiated,
        start_time: Some(o.now.clone()),
    });
    status.started_at = Some(o.now.clone());
    let at = (&o.now, status.observed_generation);
    status::pending(&mut status, "Initiated", "the definition is pinned", at);
    plan.notice("Started", format!("session {}", definition.session));
    plan.status = Some(status);
    plan
}

// ---- every later pass

fn advance(o: &Observed, mut status: WorkflowStatus, definition: &Definition) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    status.observed_generation = o.workflow.metadata.generation.unwrap_or_default();
    if o.step_runs.is_empty() && status.steps.iter().all(|s| s.step_run.is_none()) {
        let missing = missing_at_start(o, definition);
        if !missing.is_empty() {
            let stand = Stand { missing_documents: missing, ..Stand::default() };
            let was = status.phase;
            status::derive(&mut status, &stand, &o.now);
            announce(&mut plan, was, &status, &stand);
            plan.status = Some(status);
            return plan;
        }
    }
    let mut stand = graph::stand(o, definition);
    let session = status.session.as_ref().map(|s| s.id.clone()).unwrap_or_default();
    for (spec, keys) in std::mem::take(&mut stand.creates) {
        plan.effects.push(Effect::CreateStepRun(Box::new(build::step_run(&o.workflow, &session, spec, &keys))));
    }
    let was = status.phase;
    status::derive(&mut status, &stand, &o.now);
    announce(&mut plan, was, &status, &stand);
    plan.status = Some(status);
    plan
}

fn announce(plan: &mut Plan<WorkflowStatus>, was: Option<Phase>, status: &WorkflowStatus, stand: &Stand) {
    if was == status.phase {
        return;
    }
    match status.phase {
        Some(Phase::Completed) => plan.notice("Completed", "every step is done"),
        Some(Phase::Failed) => {
            let why =
                stand.failure.as_ref().map(|f| format!("{}: {}: {}", f.place, f.class, f.message)).unwrap_or_default();
            plan.warn("Failed", clip(&why, 900));
        }
        Some(Phase::WaitingForDocuments) => {
            plan.notice("WaitingForDocuments", stand.missing_documents.join(", "));
        }
        _ => {}
    }
}

/// Required documents that no step makes and nobody has put: all of them, before anything starts.
fn missing_at_start(o: &Observed, definition: &Definition) -> Vec<String> {
    let (mut required, mut produced) = (Vec::new(), BTreeSet::new());
    census(&definition.steps, &o.agents, &mut required, &mut produced);
    let from = document::Viewpoint {
        workflow_uid: definition.workflow_uid.clone(),
        session: definition.session.clone(),
        project: definition.project.clone(),
        keys: Vec::new(),
    };
    // Those that stand in the run itself are on their way, even if no cache shows them yet.
    let inline = |kind: &str| o.workflow.spec.documents.iter().any(|d| d.document_type == kind);
    let mut missing = Vec::new();
    for kind in required {
        let there = produced.contains(&kind) || inline(&kind) || document::find(&o.documents, &kind, &from).is_some();
        if !there && !missing.contains(&kind) {
            missing.push(kind);
        }
    }
    missing.truncate(crate::api::limits::PENDING);
    missing
}

fn census(
    steps: &[Step],
    agents: &BTreeMap<String, Arc<Agent>>,
    required: &mut Vec<String>,
    produced: &mut BTreeSet<String>,
) {
    for step in steps {
        let of_agent = step
            .agent_id
            .as_ref()
            .and_then(|a| agents.get(a))
            .map(|a| a.spec.required_documents.as_slice())
            .unwrap_or_default();
        required.extend(of_agent.iter().chain(&step.documents).filter(|d| !d.ends_with("/*")).cloned());
        produced.extend(step.produces.as_ref().map(|p| p.document_type.clone()));
        census(&step.steps, agents, required, produced);
    }
}

fn lost_definition(o: &Observed, mut status: WorkflowStatus, pinned: &DefinitionRef) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let message = format!(
        "ControllerRevision {} is gone or is not the one that was pinned; the run cannot go on",
        pinned.revision_name
    );
    plan.warn("DefinitionLost", message.clone());
    let at = (&o.now, o.workflow.metadata.generation.unwrap_or_default());
    status::invalid(&mut status, "DefinitionLost", &message, at);
    plan.status = Some(status);
    plan
}

/// Every type of document that a definition can have to do with.
pub fn document_types(steps: &[Step], agents: &BTreeMap<String, Arc<Agent>>) -> BTreeSet<String> {
    let (mut required, mut types) = (Vec::new(), BTreeSet::new());
    census(steps, agents, &mut required, &mut types);
    types.extend(required);
    fan_in(steps, &mut types);
    types
}

fn fan_in(steps: &[Step], types: &mut BTreeSet<String>) {
    for step in steps {
        types.extend(step.documents.iter().map(|d| d.trim_end_matches("/*").to_owned()));
        for used in super::scope::of_step(step) {
            types.extend(used.members("documents").into_iter().flat_map(|m| [m.replace('_', "-"), m]));
        }
        fan_in(&step.steps, types);
    }
}

/// Names of all agents that steps name.
pub fn agent_names(steps: &[Step]) -> BTreeSet<String> {
    steps.iter().flat_map(|s| agent_names(&s.steps).into_iter().chain(s.agent_id.clone())).collect()
}

/// Whether a document belongs to what a run can see, Draft or not.
pub fn is_settled(document: &Document) -> bool {
    document.status.as_ref().is_some_and(|s| s.phase == Some(DocumentPhase::Published))
}

/// Names of the documents that the run itself and its finished steps have put: published before the status that says so
/// was written.
pub fn committed_documents(workflow: &Workflow, step_runs: &BTreeMap<String, Arc<StepRun>>) -> BTreeSet<String> {
    let (own, uid) = (workflow.metadata.name.as_deref(), workflow.metadata.uid.as_deref());
    let (own, uid) = (own.unwrap_or_default(), uid.unwrap_or_default());
    let pinned = workflow.status.as_ref().is_some_and(|s| s.definition.is_some());
    let inline = workflow.spec.documents.iter().filter(|_| pinned);
    let inline = inline.map(|d| name::run_document(own, uid, &d.document_type));
    let done = step_runs.values().filter_map(|s| s.status.as_ref()).filter(|s| s.phase == Some(Phase::Completed));
    inline.chain(done.filter_map(|s| s.result.as_ref()?.document_name.clone())).collect()
}

/// `True` once the run fails or goes away: its StepRuns close.
pub fn is_closing(workflow: &Workflow) -> bool {
    let failing = workflow.status.as_ref().is_some_and(|s| {
        s.completed_at.is_some()
            || crate::api::condition::get(&s.conditions, status::FAILING)
                .is_some_and(|c| c.status == Truth::True.as_str())
    });
    failing || workflow.metadata.deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::agent::AgentSpec;
    use crate::api::workflow::WorkflowSpec;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn the_session_is_written_before_anything_starts() {
        let step = Step { name: "a".into(), agent_id: Some("x".into()), ..Step::default() };
        let mut run = Workflow::new("w", WorkflowSpec { steps: vec![step.clone()], ..WorkflowSpec::default() });
        run.metadata.uid = Some("12345678-rest".into());
        let agent = Arc::new(Agent::new("x", AgentSpec::default()));
        let mut o = Observed {
            workflow: Arc::new(run.clone()),
            template: None,
            definition: None,
            agents: [("x".to_owned(), agent)].into(),
            step_runs: BTreeMap::new(),
            documents: Vec::new(),
            contents: BTreeMap::new(),
            now: Time(Timestamp::UNIX_EPOCH),
        };
        let begins = |plan: &Plan<WorkflowStatus>| {
            plan.effects.iter().any(|e| matches!(e, Effect::CreateStepRun(_) | Effect::CreateJob(_)))
        };
        let first = workflow(&o);
        assert!(!begins(&first));
        let status = first.status.expect("the first pass writes");
        let session = status.session.clone().expect("a session");
        assert_eq!((session.id.as_str(), session.phase), ("w-12345678", SessionPhase::Initiated));
        assert_eq!(session.start_time, Some(o.now.clone()));
        // Only what was stored lets the next pass begin.
        assert!(!begins(&workflow(&o)));
        run.status = Some(status);
        o.workflow = Arc::new(run);
        o.definition = Some(Arc::new(Definition { steps: vec![step], ..Definition::default() }));
        assert!(begins(&workflow(&o)));
    }
}
