//! May this attempt still speak? `decide::claim` says so, of a StepRun that was just read here.

use kube::Api;
use serde_json::Value;

use super::auth::Caller;
use super::cluster::test;
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, cluster};
use crate::api::StepRun;
use crate::api::name;
use crate::api::step_run::StepRunStatus;
use crate::decide::claim::{self, Claimant, Precondition, Rejection};
use crate::protocol::AttemptRef;

/// A call: what its body asks, by the attempt that its head names.
pub struct Asked<T> {
    pub attempt: AttemptRef,
    pub body: T,
}

pub fn api(gateway: &Gateway, attempt: &AttemptRef) -> Api<StepRun> {
    Api::namespaced(gateway.client.clone(), &attempt.namespace)
}

/// The StepRun as it is now, if it is the one that is meant.
pub async fn read(gateway: &Gateway, attempt: &AttemptRef) -> Result<StepRun> {
    let api = api(gateway, attempt);
    cluster::read(&api, &attempt.step_run)
        .await?
        .filter(|step_run| step_run.metadata.uid.as_ref() == Some(&attempt.uid))
        .ok_or_else(|| Refusal::new(Reason::NotFound, "there is no such StepRun"))
}

/// Its status; what the operator has not written yet has its defaults.
pub fn status(step_run: &StepRun) -> StepRunStatus {
    step_run.status.clone().unwrap_or_default()
}

/// The fence: the attempt is the current one, and the step neither ended nor waits for a person.
pub fn stands(step_run: &StepRun, attempt: &AttemptRef) -> Result<()> {
    Ok(claim::stands(step_run, attempt.attempt)?)
}

/// What the status knows of the id that the shim holds.
pub fn id_digest(attempt: &AttemptRef) -> String {
    name::digest_bytes(attempt.id.as_bytes())
}

/// For every call after the claim.
pub fn holds(step_run: &StepRun, attempt: &AttemptRef, caller: &Caller) -> Result<()> {
    Ok(claim::holds(step_run, &claimant(attempt, caller, &id_digest(attempt)))?)
}

/// The fence and the claim, and that the end is not reported: after that nothing of the attempt counts.
pub fn works(step_run: &StepRun, attempt: &AttemptRef, caller: &Caller) -> Result<()> {
    stands(step_run, attempt)?;
    holds(step_run, attempt, caller)?;
    let reported = step_run.status.as_ref().is_some_and(|status| claim::report_of(status, attempt.attempt).is_some());
    if reported { Err(Rejection::Reported.into()) } else { Ok(()) }
}

/// The one who asks, by its id's digest.
pub fn claimant<'a>(attempt: &AttemptRef, caller: &'a Caller, id: &'a str) -> Claimant<'a> {
    Claimant { attempt: attempt.attempt, id, pod_name: &caller.pod_name, pod_uid: &caller.pod_uid }
}

/// The tests of a JSON patch.
pub fn tests(held: Vec<Precondition>) -> Vec<Value> {
    held.into_iter().map(|held| test(held.path, held.value)).collect()
}

impl From<Rejection> for Refusal {
    fn from(why: Rejection) -> Self {
        let reason = if why == Rejection::Taken { Reason::AlreadyClaimed } else { Reason::Fenced };
        Self::new(reason, why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lost_the_attempt_is_told_how() {
        for (why, reason) in [
            (Rejection::Taken, Reason::AlreadyClaimed),
            (Rejection::NotCurrent { asked: 1, current: 2 }, Reason::Fenced),
            (Rejection::Ended, Reason::Fenced),
            (Rejection::Waits, Reason::Fenced),
            (Rejection::Reported, Reason::Fenced),
            (Rejection::Unclaimed, Reason::Fenced),
            (Rejection::Deleting, Reason::Fenced),
        ] {
            assert_eq!(Refusal::from(why), Refusal::new(reason, why.to_string()));
        }
    }

    #[test]
    fn the_id_is_shown_by_its_digest_only() {
        let attempt = AttemptRef {
            namespace: "team".to_owned(),
            step_run: "s".to_owned(),
            uid: "u".to_owned(),
            attempt: 2,
            id: "0123456789abcdef0123456789abcdef".to_owned(),
        };
        let caller = Caller { pod_name: "p".to_owned(), pod_uid: "pod".to_owned() };
        let id = id_digest(&attempt);
        let claimant = claimant(&attempt, &caller, &id);
        assert_eq!((claimant.attempt, claimant.pod_name, claimant.pod_uid), (2, "p", "pod"));
        assert!(claimant.id.starts_with("sha256:") && !claimant.id.contains(&attempt.id));
    }
}
