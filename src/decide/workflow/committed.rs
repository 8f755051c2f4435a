//! Documents that must be there because what was stored says so, also where the cache of Documents is behind that of
//! StepRuns, be it for hours: an expression without them would fail the run for good, or choose the wrong branch.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::api::name;
use crate::api::step_run::StepRun;
use crate::api::workflow::{Phase, Workflow};
use crate::decide::content;
use crate::decide::observed::StepRuns;
use crate::decide::settled::Settled;
use crate::decide::step_run::has_changed;

/// The findings.
#[derive(Debug, Default)]
pub struct Committed {
    /// Names of documents, each with the StepRun that made it; the run's own have none.
    pub documents: Vec<(Option<String>, String)>,
    /// How many StepRuns were looked at: what it costs.
    pub looked: usize,
}

/// The documents that the run itself and its finished steps have put, but for those that the API server has said are gone.
/// What is remembered makes it as dear as what is open: of what had ended before, only those come again whose documents could
/// not be seen then (`Settled::late`).
pub fn committed(workflow: &Workflow, step_runs: &StepRuns, settled: &Settled) -> Committed {
    let goes_on = workflow.status.as_ref().is_some_and(|s| s.definition.is_some() && s.completed_at.is_none());
    if !goes_on {
        return Committed::default();
    }
    let (own, uid) = (workflow.metadata.name.as_deref(), workflow.metadata.uid.as_deref());
    let (own, uid) = (own.unwrap_or_default(), uid.unwrap_or_default());
    let inline = workflow.spec.documents.iter();
    let inline = inline.map(|d| (None, name::run_document(own, uid, &d.document_type)));
    let looked = looked_at(step_runs, settled);
    let made = looked.iter().flat_map(|step_run| {
        // What was exchanged before it could be published never is.
        let done = step_run.status.as_ref().filter(|s| s.phase == Some(Phase::Completed) && !has_changed(step_run));
        let own = done.and_then(|s| s.result.as_ref()?.document_name.clone());
        let apart = done
            .and_then(|status| content::carrier(step_run, status))
            .map(|pin| pin.name)
            .filter(|n| own.as_ref() != Some(n));
        own.into_iter().chain(apart).map(|document| (step_run.metadata.name.clone(), document))
    });
    let documents = inline.chain(made).filter(|(_, name)| !settled.gone.contains(name)).collect();
    Committed { documents, looked: looked.len() }
}

/// All, unless it is remembered which have ended and shown what they made.
fn looked_at<'a>(step_runs: &'a StepRuns, settled: &Settled) -> Vec<&'a Arc<StepRun>> {
    if settled.lists.is_empty() || settled.step_runs != step_runs.size() {
        return step_runs.values().collect();
    }
    let names: BTreeSet<&String> = settled.open.iter().chain(&settled.late).collect();
    names.into_iter().filter_map(|name| step_runs.get(name)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A watch of Documents that has told nothing for days, while the steps went on.
    #[test]
    fn what_was_put_long_ago_is_looked_for_until_the_api_server_says_that_it_is_gone() {
        let workflow: Workflow = serde_json::from_value(json!({
            "metadata": {"name": "shop", "uid": "u"},
            "spec": {"documents": [{"type": "brief", "content": ""}], "steps": []},
            "status": {"definition": {"revisionName": "r", "digest": "d"}, "startedAt": "1970-01-01T00:00:00Z"}}))
        .expect("a run");
        let mut step_run = StepRun::new("shop-plan", crate::api::step_run::StepRunSpec::default());
        step_run.status = serde_json::from_value(json!({"phase": "Completed", "completedAt": "1970-01-01T00:00:00Z",
            "result": {"attempt": 1, "digest": "d", "documentName": "plan"}}))
        .expect("a status");
        let mut step_runs = StepRuns::default();
        step_runs.insert_mut("shop-plan".to_owned(), Arc::new(step_run));
        let brief = (None, name::run_document("shop", "u", "brief"));
        let plan = (Some("shop-plan".to_owned()), "plan".to_owned());
        let mut settled = Settled::default();
        assert_eq!(committed(&workflow, &step_runs, &settled).documents, [brief.clone(), plan]);
        Arc::make_mut(&mut settled.gone).insert("plan".to_owned());
        assert_eq!(committed(&workflow, &step_runs, &settled).documents, [brief]);
    }
}
