//! What a definition asks for: agents, and documents that nobody in it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Observed;
use crate::api::agent::Agent;
use crate::api::definition::Definition;
use crate::api::limits::PENDING;
use crate::api::step::Step;
use crate::decide::document;

/// Required documents that no step makes and nobody has put: all of them, before anything starts.
pub(super) fn missing_at_start(o: &Observed, definition: &Definition) -> Vec<String> {
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
    missing.truncate(PENDING);
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

/// Names of all agents that steps name.
pub fn agent_names(steps: &[Step]) -> BTreeSet<String> {
    steps.iter().flat_map(|s| agent_names(&s.steps).into_iter().chain(s.agent_id.clone())).collect()
}
