//! Documents that must be there because what was stored says so, also where the cache of Documents is behind that of
//! StepRuns: an expression without them would fail the run for good.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;

use crate::api::name;
use crate::api::step_run::StepRun;
use crate::api::workflow::{Phase, Workflow};
use crate::decide::content;
use crate::decide::observed::StepRuns;
use crate::decide::settled::Settled;

/// A cache of Documents that is behind for longer than this is no cache.
const RECENTLY: SignedDuration = SignedDuration::from_secs(300);

/// The findings.
#[derive(Debug, Default)]
pub struct Committed {
    /// Names of documents, each with the StepRun that made it; the run's own have none.
    pub documents: Vec<(Option<String>, String)>,
    /// How many StepRuns were looked at: what it costs.
    pub looked: usize,
}

/// The documents that the run itself and its finished steps have put of late. What is remembered makes it as dear as what is
/// open: of what had ended before, only those come again whose documents could not be seen then (`Settled::late`).
pub fn committed(workflow: &Workflow, step_runs: &StepRuns, settled: &Settled, now: &Time) -> Committed {
    let status = workflow.status.as_ref().filter(|s| s.definition.is_some() && s.completed_at.is_none());
    let Some(status) = status else { return Committed::default() };
    let recent = |at: Option<&Time>| at.is_some_and(|at| now.0.duration_since(at.0) < RECENTLY);
    let (own, uid) = (workflow.metadata.name.as_deref(), workflow.metadata.uid.as_deref());
    let (own, uid) = (own.unwrap_or_default(), uid.unwrap_or_default());
    let inline = workflow.spec.documents.iter().filter(|_| recent(status.started_at.as_ref()));
    let inline = inline.map(|d| (None, name::run_document(own, uid, &d.document_type)));
    let looked = looked_at(step_runs, settled);
    let made = looked.iter().flat_map(|step_run| {
        let done = step_run.status.as_ref().filter(|s| s.phase == Some(Phase::Completed));
        let done = done.filter(|s| recent(s.completed_at.as_ref()));
        let own = done.and_then(|s| s.result.as_ref()?.document_name.clone());
        let apart = done
            .and_then(|status| content::carrier(step_run, status))
            .map(|pin| pin.name)
            .filter(|n| own.as_ref() != Some(n));
        own.into_iter().chain(apart).map(|document| (step_run.metadata.name.clone(), document))
    });
    Committed { documents: inline.chain(made).collect(), looked: looked.len() }
}

/// All, unless it is remembered which have ended and shown what they made.
fn looked_at<'a>(step_runs: &'a StepRuns, settled: &Settled) -> Vec<&'a Arc<StepRun>> {
    if settled.lists.is_empty() || settled.step_runs != step_runs.size() {
        return step_runs.values().collect();
    }
    let names: BTreeSet<&String> = settled.open.iter().chain(&settled.late).collect();
    names.into_iter().filter_map(|name| step_runs.get(name)).collect()
}
