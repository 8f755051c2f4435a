//! What an attempt is held to: pinned to its pod, proven by the digest in the StepRun. No Agent is read for it, however many
//! attempts there are.

use kube::Api;

use super::auth::AttemptPod;
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, cluster};
use crate::api::{Agent, StepRun};
use crate::decide::terms::Terms;
use crate::definition::policy::AttemptPolicy;
use crate::definition::program::Step;
use crate::protocol::AttemptRef;

/// The terms of the attempt. None where they are the Agent's still, and it is gone.
pub async fn of(
    gateway: &Gateway,
    who: &AttemptRef,
    step_run: &StepRun,
    step: &Step,
    pod: &AttemptPod,
) -> Result<Option<Terms>> {
    let job = step_run.status.as_ref().and_then(|status| status.job.as_ref());
    let latched = job.filter(|job| job.attempt == who.attempt).and_then(|job| job.terms.as_deref());
    let Some(digest) = latched else {
        // There was no room for them, or an operator launched it that pinned none.
        return Ok(agent(gateway, who, step_run).await?.map(|agent| by_now(&agent, step)));
    };
    if let Some(terms) = pod.terms.as_deref().and_then(|text| Terms::read(text, digest)) {
        return Ok(Some(terms));
    }
    // Somebody took the annotation from the pod, or changed it: the Agent does as well, if it still says the same.
    let now = agent(gateway, who, step_run).await?.map(|agent| by_now(&agent, step));
    match now.filter(|terms| Terms::read(&terms.text(), digest).is_some()) {
        Some(terms) => Ok(Some(terms)),
        None => Err(Refusal::new(
            Reason::WrongPod,
            "the annotation lockstep.dev/terms of the pod was changed, and the Agent says something else by now",
        )),
    }
}

async fn agent(gateway: &Gateway, who: &AttemptRef, step_run: &StepRun) -> Result<Option<Agent>> {
    let api: Api<Agent> = Api::namespaced(gateway.client.clone(), &who.namespace);
    Ok(cluster::read(&api, &step_run.spec.agent_id).await?)
}

fn by_now(agent: &Agent, step: &Step) -> Terms {
    Terms::of(agent, AttemptPolicy::of(Some(step), Some(agent)).timeout)
}
