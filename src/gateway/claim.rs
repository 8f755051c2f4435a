//! Claim: the one moment at which an attempt becomes a shim's own, and the way the input reaches it.

#![expect(clippy::disallowed_macros, reason = "an empty status for the JSON patch")]

use std::collections::HashMap;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::attempt::Asked;
use super::auth::{self, AttemptCall, AttemptPod, Caller};
use super::cluster::{add, patch_status};
use super::context::{self, Parts};
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, attempt, cluster, definitions, document, history, terms};
use crate::api::StepRun;
use crate::api::agent::Repair;
use crate::api::limits::MAX_REPAIRS;
use crate::api::name::LABEL_SESSION;
use crate::api::step::Format;
use crate::api::step_run::{StepRunSpec, StepRunStatus};
use crate::decide::claim::{self as rules, Answer, Claimant};
use crate::decide::content::Pin;
use crate::decide::trace::TraceContext;
use crate::definition::policy::AttemptPolicy;
use crate::definition::program::{AgentStep, Program, Step};
use crate::protocol::{self, AttemptRef, ClaimRequest, Claimed, InputFile};

/// Decisions on a StepRun that others keep writing to.
const ROUNDS: usize = 6;
/// Documents that one claim holds in memory at once.
const READS_AT_ONCE: usize = 4;

pub async fn claim(gateway: &Gateway, caller: &Caller, request: Asked<ClaimRequest>) -> Result<Claimed> {
    let who = &request.attempt;
    let pod = auth::pod(&gateway.client, caller, who, AttemptCall::Claim).await?;
    let id = attempt::id_digest(who);
    let claimant = attempt::claimant(who, caller, &id);
    for _ in 0..ROUNDS {
        let step_run = attempt::read(gateway, who).await?;
        let again = match rules::admit(&step_run, &claimant) {
            Answer::Free => false,
            Answer::Again => true,
            Answer::Refused(why) => return Err(why.into()),
        };
        auth::of_the_job(&pod.job, &step_run, who.attempt, AttemptCall::Claim)?;
        // Before the write: an attempt whose input cannot be had must not be spent.
        let answer = input(gateway, who, &step_run, &pod).await?;
        if !again {
            match write(gateway, who, &claimant, &step_run).await {
                Ok(()) => {
                    gateway.metrics.claims.inc();
                }
                Err(failure) if failure.is_outrun() => {
                    gateway.metrics.conflicts.inc();
                    continue;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        tracing::info!(
            namespace = who.namespace,
            workflow = step_run.spec.workflow.name,
            step = step_run.spec.path,
            agent = step_run.spec.agent_id,
            attempt = who.attempt,
            stepRun = who.step_run,
            pod = caller.pod_name,
            traceId = TraceContext::of_step(&step_run).id(),
            session = step_run.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_SESSION)),
            again,
            "claimed"
        );
        return Ok(answer);
    }
    Err(Refusal::unavailable("the StepRun is being written to"))
}

async fn write(
    gateway: &Gateway,
    who: &AttemptRef,
    claimant: &Claimant<'_>,
    step_run: &StepRun,
) -> std::result::Result<(), cluster::Failure> {
    let mut operations = attempt::tests(rules::claim_preconditions(step_run));
    if step_run.status.is_none() {
        // The API server fills in the operator's defaults.
        operations.push(add("/status", &serde_json::json!({})));
    }
    operations.push(add("/status/agent", &rules::claimed(claimant, gateway.clock.now())));
    patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await
}

async fn input(gateway: &Gateway, who: &AttemptRef, step_run: &StepRun, pod: &AttemptPod) -> Result<Claimed> {
    let spec = &step_run.spec;
    let definition = gateway.definitions.get(&gateway.client, &who.namespace, spec).await?;
    let (step, own) = definitions::step(&definition, spec)?;
    let terms = terms::of(gateway, who, step_run, step, pod).await?;
    let formats = formats(gateway, who, spec, &definition).await?;
    let status = attempt::status(step_run);
    context::claimed(&Parts {
        attempt: who,
        spec,
        rejected: rejected(gateway, who, &status, own).await?,
        history: history::newest(gateway, who, step_run, &definition).await?,
        status: &status,
        run: &definition.run,
        step: own,
        formats: &formats,
        timeout_seconds: terms
            .as_ref()
            .map_or_else(|| AttemptPolicy::of(Some(step), None).timeout, |t| t.timeout_seconds),
        progress_timeout_seconds: terms.as_ref().and_then(|terms| terms.progress_timeout_seconds),
        repair: terms.as_ref().and_then(|terms| terms.repair.as_ref()).map(repair),
        output_schema: terms.as_ref().and_then(|terms| terms.output_schema.clone()),
        prompt: terms.and_then(|terms| terms.prompt),
    })
    .map_err(|error| {
        tracing::error!(%error, stepRun = who.step_run, "spec.parameters is not JSON");
        Refusal::new(Reason::Internal, "spec.parameters of the StepRun is not JSON")
    })
}

fn repair(repair: &Repair) -> protocol::Repair {
    let most = repair.max_repairs.unwrap_or(MAX_REPAIRS);
    protocol::Repair { command: repair.command.clone(), most: u32::try_from(most).unwrap_or_default() }
}

/// The document of the round before, as it was reviewed.
async fn rejected(
    gateway: &Gateway,
    who: &AttemptRef,
    status: &StepRunStatus,
    step: &AgentStep,
) -> Result<Option<InputFile>> {
    let (Some(pin), Some(produces)) = (context::rejected(who, status, step), &step.produces) else {
        return Ok(None);
    };
    let content = document::content(gateway, &who.namespace, &pin).await?;
    let path = context::rejected_path(produces);
    Ok(Some(InputFile { name: pin.name, path, digest: content.digest().to_owned() }))
}

/// Formats of the pinned documents. Members of a fan-in were made by this run, whose definition says their format:
/// thousands of documents are not read for the endings of their names.
async fn formats(
    gateway: &Gateway,
    who: &AttemptRef,
    spec: &StepRunSpec,
    definition: &Program,
) -> Result<HashMap<String, Format>> {
    let made: HashMap<&str, Format> =
        definition.all().into_iter().filter_map(Step::produces).map(|p| (p.document_type.as_str(), p.format)).collect();
    let known = |document: &crate::api::step_run::DocumentRef| {
        document.key.as_ref()?;
        made.get(document.document_type.as_str()).copied()
    };
    let lookups: Vec<(Pin, Option<Format>)> =
        spec.documents.iter().map(|document| (Pin::from(document), known(document))).collect();
    stream::iter(lookups)
        .map(|(pin, known)| async move {
            let format = match known {
                Some(format) => format,
                None => document::content(gateway, &who.namespace, &pin).await?.document().spec.format,
            };
            Ok::<_, Refusal>((pin.name, format))
        })
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await
}
