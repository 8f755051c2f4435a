//! What a definition asks for: agents, and documents that nobody in it makes.

use std::collections::BTreeSet;

use super::Observed;
use crate::api::limits::PENDING;
use crate::api::step::Step;
use crate::api::workflow::Workflow;
use crate::api::workflow_template::WorkflowTemplate;
use crate::decide::document::{self, Viewpoint};
use crate::definition::program::{DocumentSelector, Program};

/// Required documents that no step makes and nobody has put: all of them, before anything starts.
pub(super) fn missing_at_start(o: &Observed, program: &Program) -> Vec<String> {
    let (mut required, mut produced) = (Vec::new(), BTreeSet::new());
    for step in program.all() {
        let Some(own) = step.agent() else { continue };
        required.extend(o.agents.get(&own.agent).into_iter().flat_map(|agent| own.reads(agent)));
        produced.extend(own.produces.as_ref().map(|p| p.document_type.clone()));
    }
    let from = Viewpoint {
        workflow_uid: program.run.uid.clone(),
        session: program.run.session.clone(),
        project: program.run.project.clone(),
        keys: Vec::new(),
    };
    // Those that stand in the run itself are on their way, even if no cache shows them yet.
    let inline = |kind: &str| o.workflow.spec.documents.iter().any(|d| d.document_type == kind);
    let mut missing = Vec::new();
    for selector in required {
        let DocumentSelector::Newest(kind) = selector else { continue };
        let there = produced.contains(&kind) || inline(&kind) || document::find(&o.documents, &kind, &from).is_some();
        if !there && !missing.contains(&kind) {
            missing.push(kind);
        }
    }
    missing.truncate(PENDING);
    missing
}

/// Names of all Agents that a run's steps name: of those that were pinned, else of those that will be.
pub fn agents(program: Option<&Program>, template: Option<&WorkflowTemplate>, workflow: &Workflow) -> BTreeSet<String> {
    match (program, template) {
        (Some(program), _) => program.agents(),
        (None, Some(template)) => written(&template.spec.steps),
        (None, None) => written(&workflow.spec.steps),
    }
}

fn written(steps: &[Step]) -> BTreeSet<String> {
    steps.iter().flat_map(|s| written(&s.steps).into_iter().chain(s.agent_id.clone())).collect()
}
