//! `POST /run`: starts a run and waits for what it comes to, for a while.

#![expect(clippy::disallowed_methods, reason = "how long a result is waited for")]

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use kube::ResourceExt;
use tokio::time::Instant;

use super::call::Call;
use super::outcome::{self, Outcome};
use super::problem::Result;
use super::result::{answer, output_of, url};
use super::run_request::RunRequest;
use super::started::{self, Started, allowed, start};
use super::view::Begun;
use super::watches::Following;
use super::{Http, documents, stream};
use crate::api::Workflow;

/// A run that waits for documents and is joined may not have heard yet of those that were put: it gets so long.
const SETTLED: Duration = Duration::from_millis(1500);
/// What asks for the run next shall find it: so long the watch may take to show it, even if nobody waits for its result.
const SEEN: Duration = Duration::from_secs(1);
/// When to look again after 202, in seconds.
const LOOK_AGAIN: u32 = 5;

pub async fn run(http: Arc<Http>, mut call: Call) -> Result<Response> {
    let wanted = RunRequest::read(&call.body)?;
    allowed(&http, &call, &wanted.flow).await?;
    let started = start(&http, &call, &wanted).await?;
    let name = started.run.name_any();
    tracing::info!(namespace = call.namespace, run = name, session = wanted.story_id, begun = ?started.begun, "run");
    call.body = Vec::new();
    // What follows waits, and costs next to nothing.
    call.place = None;
    let accepts = Accepts::of(&call.headers);
    let patience = if accepts == Accepts::OnlyStream { Duration::ZERO } else { wanted.patience() };
    let (outcome, now) = wait(&http, &started, Instant::now() + patience).await;
    started::note(&call, &now, &outcome).await;
    answered(&http, call, (outcome, &now, started.begun), accepts).await
}

/// Which sorts of answers a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    Json,
    Both,
    OnlyStream,
}

impl Accepts {
    pub fn of(headers: &HeaderMap) -> Self {
        let all = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let parts = all.flat_map(|value| value.split(','));
        let wanted: Vec<&str> = parts
            .filter(|part| !part.split(';').any(|p| matches!(p.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")))
            .filter_map(|part| part.split(';').next())
            .map(str::trim)
            .collect();
        let stream = wanted.iter().any(|kind| kind.eq_ignore_ascii_case("text/event-stream"));
        let json = wanted.iter().any(|kind| matches!(*kind, "*/*" | "application/*" | "application/json"));
        match (stream, json) {
            (true, true) => Self::Both,
            (true, false) => Self::OnlyStream,
            (false, _) => Self::Json,
        }
    }
}

/// Waits until the run has come to something, at most until then.
async fn wait(http: &Arc<Http>, started: &Started, until: Instant) -> (Outcome, Arc<Workflow>) {
    let namespace = started.run.namespace().unwrap_or_default();
    let mut following = http.watches.follow(&namespace, &started.run.name_any());
    let settled = Instant::now() + if started.begun == Begun::Before { SETTLED } else { Duration::ZERO };
    let seen = until.max(Instant::now() + SEEN);
    loop {
        let now = latest(http, &started.run);
        let until = if http.watches.run(&namespace, &started.run.name_any()).is_none() { seen } else { until };
        let outcome = outcome_now(http, &now);
        let unsettled = matches!(outcome, Outcome::PendingDocuments(_)) && Instant::now() < settled.min(until);
        if outcome != Outcome::Open && !unsettled {
            return (outcome, now);
        }
        let due = if unsettled { settled.min(until) } else { until };
        if !heard(&mut following, due).await && due == until {
            let now = latest(http, &started.run);
            return (outcome::of(&now, http.watches.steps(&now).iter().map(AsRef::as_ref)), now);
        }
    }
}

/// Whether something changed before then.
async fn heard(following: &mut Following, until: Instant) -> bool {
    tokio::time::timeout_at(until, following.changed()).await.is_ok()
}

/// The run as it is known: the watch may be behind what was just made.
pub fn latest(http: &Arc<Http>, run: &Arc<Workflow>) -> Arc<Workflow> {
    let cached = http.watches.run(&run.namespace().unwrap_or_default(), &run.name_any());
    let version = |run: &Workflow| run.resource_version().and_then(|v| v.parse::<u64>().ok()).unwrap_or_default();
    cached
        .filter(|cached| cached.uid() == run.uid() && version(cached) >= version(run))
        .unwrap_or_else(|| Arc::clone(run))
}

/// What it has come to; documents that are there by now are not missing, even if the run has not said so yet.
fn outcome_now(http: &Arc<Http>, run: &Workflow) -> Outcome {
    match outcome::of(run, http.watches.steps(run).iter().map(AsRef::as_ref)) {
        Outcome::PendingDocuments(types) if documents::are_there(http, run, &types) => Outcome::Open,
        other => other,
    }
}

async fn answered(
    http: &Arc<Http>,
    call: Call,
    (outcome, run, begun): (Outcome, &Arc<Workflow>, Begun),
    accepts: Accepts,
) -> Result<Response> {
    let mut said = answer(run, begun);
    match outcome {
        Outcome::Completed(output) => {
            said.result = output_of(&call.caller, &call.namespace, output.as_ref()).await?;
            Ok(axum::Json(said).into_response())
        }
        Outcome::PendingDocuments(types) => {
            said.pending_docs = Some(types);
            Ok(axum::Json(said).into_response())
        }
        Outcome::Failed(failure) => Ok((StatusCode::INTERNAL_SERVER_ERROR, axum::Json(failure)).into_response()),
        Outcome::Cancelled(failure) => Ok((StatusCode::CONFLICT, axum::Json(failure)).into_response()),
        Outcome::Waiting(waits) => {
            // Who may start runs may not see what their steps ask, unless they may read StepRuns.
            if super::runs::may_see_steps(http, &call).await? {
                said.waiting = waits;
            }
            Ok(accepted(run, said))
        }
        Outcome::Open if accepts == Accepts::Json => Ok(accepted(run, said)),
        Outcome::Open => stream::open(http, call, Arc::clone(run), begun),
    }
}

fn accepted(run: &Workflow, said: super::view::Answer) -> Response {
    let mut response = (StatusCode::ACCEPTED, axum::Json(said)).into_response();
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&url(run, "")) {
        headers.insert(header::LOCATION, location);
    }
    headers.insert(header::RETRY_AFTER, LOOK_AGAIN.into());
    response
}

/// `GET /runs/{run}/result`: what `POST /run` would have answered by now, without waiting.
pub async fn result(http: Arc<Http>, call: Call) -> Result<Response> {
    let run = super::runs::find(&http, &call).await?;
    let outcome = outcome::of(&run, http.watches.steps(&run).iter().map(AsRef::as_ref));
    answered(&http, call, (outcome, &run, Begun::Now), Accepts::Json).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_for_those_who_ask_for_one() {
        for (accept, expected) in [
            ("", Accepts::Json),
            ("*/*", Accepts::Json),
            ("application/json", Accepts::Json),
            ("application/json, text/event-stream", Accepts::Both),
            ("text/event-stream;q=0.9, */*;q=0.1", Accepts::Both),
            ("text/event-stream", Accepts::OnlyStream),
            ("text/event-stream;q=0, application/json", Accepts::Json),
            ("text/html", Accepts::Json),
        ] {
            let value = HeaderValue::from_static(accept);
            assert_eq!(Accepts::of(&HeaderMap::from_iter([(header::ACCEPT, value)])), expected, "{accept:?}");
        }
        assert_eq!(Accepts::of(&HeaderMap::new()), Accepts::Json);
    }
}
