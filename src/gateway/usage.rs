//! What an attempt has used, as its shim says: a sum that only grows, so that it counts once however often it arrives and in
//! whatever order. Written seldom; the last of it comes with the report.

#![expect(clippy::disallowed_methods, reason = "usage is written at a bounded pace")]

use serde_json::Value;
use tokio::time::Instant;

use super::attempt::Asked;
use super::auth::Caller;
use super::cluster::{add, patch_status, test};
use super::refusal::{Refusal, Result};
use super::{Gateway, attempt};
use crate::api::step_run::StepRunStatus;
use crate::api::usage::{Usage, billionths};
use crate::decide::claim::{self, Rejection};
use crate::protocol;

const ROUNDS: usize = 4;
/// Tokens of one attempt: what is beyond is a mistake.
const MOST_TOKENS: i64 = 1_000_000_000_000_000;
const PATH: &str = "/status/agent/usage";

pub async fn usage(gateway: &Gateway, caller: &Caller, request: Asked<protocol::Usage>) -> Result<()> {
    let (who, said) = (&request.attempt, read(&request.body)?);
    if !gateway.usage_pace.due(who, &caller.pod_uid, Instant::now()) {
        return Err(Refusal::unavailable("usage is written every 2 s at most; try again"));
    }
    for _ in 0..ROUNDS {
        let step_run = attempt::read(gateway, who).await?;
        attempt::stands(&step_run, who)?;
        attempt::holds(&step_run, who, caller)?;
        let status = attempt::status(&step_run);
        // Its sum has come with the report.
        if claim::report_of(&status, who.attempt).is_some() {
            return Err(Rejection::Reported.into());
        }
        let known = known(&status);
        if known.as_ref().is_some_and(|known| known.covers(&said)) {
            return Ok(());
        }
        let mut operations =
            attempt::tests(claim::report_preconditions(&who.uid, who.attempt, &attempt::id_digest(who)));
        operations.extend(still(known.as_ref()));
        operations.push(add(PATH, &said));
        match patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await {
            Ok(()) => {
                gateway.metrics.used(&said, known.as_ref());
                return Ok(());
            }
            Err(failure) if failure.is_outrun() => gateway.metrics.conflicts.inc(),
            Err(failure) => return Err(failure.into()),
        };
    }
    Err(Refusal::unavailable("the StepRun is being written to"))
}

/// What a shim says, held to the bounds of the kinds.
pub fn read(said: &protocol::Usage) -> Result<Usage> {
    let tokens = |name: &str, number: i64| match number {
        0..=MOST_TOKENS => Ok(number),
        _ => Err(Refusal::bad_request(format!("{name}: must be 0 to {MOST_TOKENS}"))),
    };
    let mut usage = Usage {
        tokens_in: tokens("tokensIn", said.tokens_in)?,
        tokens_out: tokens("tokensOut", said.tokens_out)?,
        ..Usage::default()
    };
    if let Some(cost) = &said.cost {
        billionths(cost).map_err(Refusal::bad_request)?;
        usage.add(&Usage { cost: Some(cost.clone()), ..Usage::default() });
    }
    said.models.iter().for_each(|model| usage.name_model(model));
    Ok(usage)
}

/// What is written of the current claim's attempt; the claim has taken away what was of an earlier one.
pub fn known(status: &StepRunStatus) -> Option<Usage> {
    status.agent.as_ref().and_then(|agent| agent.usage.clone())
}

/// Nobody wrote another sum meanwhile.
fn still(known: Option<&Usage>) -> Vec<Value> {
    let Some(known) = known else { return vec![test(PATH, Value::Null)] };
    vec![
        test("/status/agent/usage/tokensIn", known.tokens_in),
        test("/status/agent/usage/tokensOut", known.tokens_out),
        test("/status/agent/usage/cost", known.cost.clone().map_or(Value::Null, Value::from)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(tokens_in: i64, tokens_out: i64, cost: Option<&str>) -> protocol::Usage {
        protocol::Usage { tokens_in, tokens_out, cost: cost.map(str::to_owned), models: vec!["m\u{7}".to_owned()] }
    }

    #[test]
    fn what_is_said_is_held_to_its_bounds() {
        let good = read(&said(5, 0, Some("0.10"))).expect("good");
        assert_eq!((good.tokens_in, good.cost.as_deref(), &good.models[..]), (5, Some("0.1"), &["m".to_owned()][..]));
        for (wrong, words) in [
            (said(-1, 0, None), "tokensIn"),
            (said(0, MOST_TOKENS + 1, None), "tokensOut"),
            (said(0, 0, Some("-1")), "cost"),
            (said(0, 0, Some("1e9")), "cost"),
        ] {
            assert!(read(&wrong).is_err_and(|refusal| refusal.message.contains(words)), "{wrong:?}");
        }
    }
}
