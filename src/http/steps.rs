//! The step that a path names, and its StepRun as it is now.

use std::sync::Arc;

use kube::{Api, ResourceExt};

use super::call::Call;
use super::caller::{Right, read_known};
use super::problem::{Problem, Result};
use super::{Http, runs};
use crate::api::{StepRun, Workflow};
use crate::decide::history::label;
use crate::decide::target::matching;

/// Where a step stands in the path of an operation.
pub const STEP: &str = "{step}";
/// The route of all operations on a step.
pub const ROUTE: &str = "/runs/{run}/steps/{*rest}";
/// Names in a refusal.
const NAMED: usize = 10;

/// The step of a path, which may have slashes in it: what stands before the last part.
pub fn of_path(call: &Call) -> &str {
    let rest = call.part("rest").trim_matches('/');
    rest.rsplit_once('/').map_or("", |(step, _)| step)
}

/// The run and the step that the path names, as the watches know them.
pub async fn known(http: &Arc<Http>, call: &Call) -> Result<(Arc<Workflow>, Arc<StepRun>)> {
    let run = runs::find(http, call).await?;
    let name = run.name_any();
    let right = Right { verb: "list", resource: "stepruns", namespace: &call.namespace, name: "" };
    // Who may decide may read StepRuns by name alone.
    if !http.callers.may(&call.caller, right).await? {
        http.callers.must(&call.caller, Right { verb: "get", ..right }).await?;
    }
    let steps: Vec<StepRun> = http.watches.steps(&run).iter().map(|step| StepRun::clone(step)).collect();
    let wanted = of_path(call);
    let found = matching(wanted, &steps);
    match found.as_slice() {
        [step] => Ok((run, Arc::new((*step).clone()))),
        [] if steps.is_empty() => {
            Err(Problem::not_found(format!("no step of the run {name} has started yet")).about(&name))
        }
        [] => {
            let labels: Vec<String> = steps.iter().map(label).take(NAMED).collect();
            let detail = format!("the run {name} has no started step {wanted:?}; it has {}", labels.join(", "));
            Err(Problem::not_found(detail).about(&name))
        }
        several => {
            let labels: Vec<String> = several.iter().map(|step| label(step)).take(NAMED).collect();
            let detail =
                format!("{wanted:?} is more than one step of the run {name}; name one of {}", labels.join(", "));
            Err(Problem::conflict(detail).about(&name))
        }
    }
}

/// The same StepRun as the API server has it now, read with the caller's token.
pub async fn fresh(call: &Call, step: &StepRun) -> Result<StepRun> {
    let api: Api<StepRun> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let found = read_known(&api, &step.name_any()).await?;
    if found.uid() == step.uid() { Ok(found) } else { Err(Problem::not_found("the step is gone")) }
}
