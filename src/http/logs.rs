//! What an agent printed: the log of its pod, read with the caller's own token.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::io::AsyncReadExt;
use http::{HeaderValue, header};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};

use super::call::Call;
use super::caller::within;
use super::problem::{Problem, Result};
use super::{Http, steps};
use crate::api::name::{LABEL_ATTEMPT, LABEL_STEP_RUN};
use crate::definition::agent::CONTAINER;

const LINES: i64 = 5_000;
const LARGEST: i64 = 100_000;
const PIECE: usize = 8 * 1024;

/// `GET /runs/{run}/steps/{step}/logs`
pub async fn logs(http: Arc<Http>, mut call: Call) -> Result<Response> {
    let follow = call.flag("follow")?;
    let lines = number(&call, "tailLines", LARGEST)?.unwrap_or(LINES);
    let attempt = number(&call, "attempt", i64::from(i32::MAX))?;
    let (_, step) = steps::known(&http, &call).await?;
    let pods: Api<Pod> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let current = step.status.as_ref().map_or(1, |status| status.attempt);
    let attempt = attempt.unwrap_or_else(|| i64::from(current));
    let labels = format!("{LABEL_STEP_RUN}={},{LABEL_ATTEMPT}={attempt}", step.name_any());
    let found = within(pods.list(&ListParams::default().labels(&labels).limit(8))).await?;
    // Our labels on pods that the Job controller did not make are refused by policy; of several the one that was given the attempt.
    let claimed =
        step.status.as_ref().and_then(|s| s.agent.as_ref()?.claim.as_ref()).map(|claim| claim.pod_uid.clone());
    let pod = found.items.iter().find(|pod| pod.uid() == claimed).or(found.items.last());
    let Some(pod) = pod else {
        let step = step.name_any();
        return Err(Problem::not_found(format!(
            "attempt {attempt} of {step} has no pod (any more, or yet); its last words are in status.error.logTail"
        )));
    };
    let permit = http.streams.try_acquire(&call.caller.user).ok_or_else(Problem::no_stream)?;
    call.place = None;
    let params =
        LogParams { container: Some(CONTAINER.to_owned()), follow, tail_lines: Some(lines), ..LogParams::default() };
    let log = within(pods.log_stream(&pod.name_any(), &params)).await?;
    let busy = call.peer.hold();
    let held = (Box::pin(log), vec![0_u8; PIECE], busy, permit);
    let pieces = futures::stream::unfold(held, |(mut log, mut piece, busy, permit)| async move {
        match log.read(&mut piece).await {
            Ok(0) => None,
            Ok(n) => Some((Ok(axum::body::Bytes::copy_from_slice(&piece[..n])), (log, piece, busy, permit))),
            Err(error) => Some((Err(error), (log, piece, busy, permit))),
        }
    });
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(pieces)).into_response())
}

fn number(call: &Call, name: &str, most: i64) -> Result<Option<i64>> {
    let Some(text) = call.query(name) else { return Ok(None) };
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.map(Some).ok_or_else(|| Problem::field(name, format!("must be a number from 1 to {most}")))
}
