//! `approval`: what an agent requests, and what it is told. `decide::approval` says what that is; the request and the use of a
//! permission are written by compare-and-swap before the agent hears of them, so that a reply that is lost, or a gateway that dies,
//! asks nobody twice and allows nothing twice.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;

use super::Gateway;
use super::attempt::{self, Asked};
use super::auth::Caller;
use super::cluster::{Failure, add, patch_status};
use super::judge::clean;
use super::refusal::{Refusal, Result};
use crate::api::StepRun;
use crate::api::limits::LONGEST_WAIT;
use crate::api::step_run::Decision;
use crate::decide::approval::{self, GatedAction, PermissionState};
use crate::decide::claim::{self, Rejection};
use crate::definition::digits;
use crate::protocol::{ApprovalCall, ApprovalReply, AttemptRef, Decided, Verdict};

/// Decisions on a StepRun that others keep writing to.
const ROUNDS: usize = 8;

pub async fn request(gateway: &Gateway, caller: &Caller, request: Asked<ApprovalCall>) -> Result<ApprovalReply> {
    let (who, call) = (&request.attempt, &request.body);
    validate_call(call)?;
    for _ in 0..ROUNDS {
        let step_run = attempt::read(gateway, who).await?;
        attempt::stands(&step_run, who)?;
        attempt::holds(&step_run, who, caller)?;
        if claim::report_of(&attempt::status(&step_run), who.attempt).is_some() {
            return Err(Rejection::Reported.into());
        }
        let wanted = wanted(&step_run, call)?;
        let standing = approval::standing(&step_run, &wanted, &call.id).map_err(Refusal::bad_request)?;
        match write(gateway, who, &step_run, &wanted, call, &standing).await {
            Ok(()) => return Ok(reply(&step_run, &wanted, standing)),
            Err(failure) if failure.is_outrun() => gateway.metrics.conflicts.inc(),
            Err(failure) => return Err(failure.into()),
        };
    }
    Err(Refusal::unavailable("the StepRun is being written to"))
}

fn validate_call(call: &ApprovalCall) -> Result<()> {
    if call.id.len() != 32 || !call.id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Refusal::bad_request("id: must be 32 hexadecimal digits"));
    }
    if call.wait_seconds.is_some_and(|seconds| !(1..=LONGEST_WAIT).contains(&seconds)) {
        return Err(Refusal::bad_request(format!("waitSeconds: must be 1 to {LONGEST_WAIT}")));
    }
    Ok(())
}

fn wanted(step_run: &StepRun, call: &ApprovalCall) -> Result<GatedAction> {
    let gate = approval::gate(&step_run.spec.action_gates, call.gate.as_deref()).map_err(Refusal::bad_request)?;
    approval::wanted(gate, &clean(&call.action, usize::MAX), call.payload.as_deref()).map_err(Refusal::bad_request)
}

/// What must stand before the agent is told.
async fn write(
    gateway: &Gateway,
    who: &AttemptRef,
    step_run: &StepRun,
    wanted: &GatedAction,
    call: &ApprovalCall,
    standing: &PermissionState,
) -> std::result::Result<(), Failure> {
    let now = gateway.clock.now();
    let operation = match standing {
        PermissionState::New { repeats } => {
            let wait = SignedDuration::from_secs(call.wait_seconds.unwrap_or_default());
            let until = Time(now.0.saturating_add(wait).unwrap_or(now.0));
            let all = approval::requested(step_run, wanted, *repeats, &now, &until);
            add("/status/agent/approvalRequests", &all)
        }
        PermissionState::Allowed { digest, .. } => {
            let all = approval::using(&attempt::status(step_run), digest, &call.id, &now);
            add("/status/agent/usedApprovals", &all)
        }
        PermissionState::Waits { .. } | PermissionState::AllowedAgain { .. } | PermissionState::Denied { .. } => {
            return Ok(());
        }
    };
    // Each says all there is, so nobody may have written in between.
    let mut operations = attempt::tests(claim::report_preconditions(&who.uid, who.attempt, &attempt::id_digest(who)));
    operations.extend(attempt::tests(claim::claim_preconditions(step_run)));
    operations.push(operation);
    patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await?;
    tracing::info!(
        namespace = who.namespace,
        workflow = step_run.spec.workflow.name,
        step = step_run.spec.path,
        agent = step_run.spec.agent_id,
        attempt = who.attempt,
        stepRun = who.step_run,
        gate = wanted.gate_name,
        action = wanted.action,
        "{}",
        if matches!(standing, PermissionState::New { .. }) { "approval requested" } else { "permission used" }
    );
    Ok(())
}

fn reply(step_run: &StepRun, wanted: &GatedAction, standing: PermissionState) -> ApprovalReply {
    let uid = step_run.metadata.uid.as_deref().unwrap_or_default();
    let (decision, digest, decisions) = match standing {
        PermissionState::New { repeats } => (Verdict::Waiting, approval::digest(uid, wanted, repeats), Vec::new()),
        PermissionState::Waits { digest } => (Verdict::Waiting, digest, Vec::new()),
        PermissionState::Allowed { digest, decisions } | PermissionState::AllowedAgain { digest, decisions } => {
            (Verdict::Allowed, digest, decisions)
        }
        PermissionState::Denied { digest, decisions } => (Verdict::Denied, digest, decisions),
    };
    let told = |d: Decision| Decided {
        accepted: d.accepted,
        by: d.decided_by,
        at: d.decided_at.0.to_string(),
        comment: d.comment,
    };
    ApprovalReply {
        decision,
        digest,
        decisions: decisions.into_iter().map(told).collect(),
        payload: wanted.payload.as_deref().and_then(|payload| digits::read(payload).ok()),
    }
}
