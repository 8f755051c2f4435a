//! `POST /runs/{run}/retry`: a new run that goes on from a finished one.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use kube::{Api, ResourceExt};
use schemars::JsonSchema;
use serde::Serialize;

use super::call::Call;
use super::caller::read_known;
use super::fields::Fields;
use super::problem::{Problem, Result};
use super::result::{answer, url};
use super::started::{creator, idempotency_key, post, traced, within_name};
use super::view::Begun;
use super::{Http, runs};
use crate::api::name::{self, CREATED_BY, LABEL_MADE_BY};
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};
use crate::decide::retry::{again, nothing_left, number_of, numbered, path_of};

const TRIES: u32 = 50;

/// The body of `POST /runs/{run}/retry`; all of it may be left out.
#[derive(Serialize, JsonSchema, Default)]
pub struct RetryRequest {
    /// The step to start from, even if it completed. The default is the first that did not complete.
    #[schemars(length(min = 1, max = 512))]
    pub from: Option<String>,
    /// Whether results are taken over although their Agent's template or schemas were changed since. The default is false.
    pub keep_results: Option<bool>,
    /// Whether nothing is taken over and every step runs again. The default is false.
    pub all: Option<bool>,
    /// The name of the new run. The default is that of the finished one with `-r2`, `-r3` and so on behind it.
    #[schemars(length(min = 1, max = 52))]
    pub name: Option<String>,
}

impl RetryRequest {
    fn read(body: &[u8]) -> Result<Self> {
        let mut fields = Fields::read_optional(body)?;
        let wanted = Self {
            from: fields.text("from", 512),
            keep_results: fields.flag("keep_results"),
            all: fields.flag("all"),
            name: fields.name("name"),
        };
        if wanted.all == Some(true) && (wanted.from.is_some() || wanted.keep_results == Some(true)) {
            fields.fault("all", "takes nothing over: leave from and keep_results out");
        }
        fields.end()?;
        Ok(wanted)
    }
}

pub async fn retry(http: Arc<Http>, call: Call) -> Result<Response> {
    let wanted = RetryRequest::read(&call.body)?;
    let old = runs::find(&http, &call).await?;
    runs::must_see_steps(&http, &call).await?;
    let steps: Vec<StepRun> = http.watches.steps(&old).iter().map(|step| StepRun::clone(step)).collect();
    let new = wished(&old, &steps, &wanted)?;
    let api: Api<Workflow> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let (made, begun) = make(&api, &call, new, (&old.name_any(), wanted.name.as_deref())).await?;
    let mut response = (StatusCode::CREATED, axum::Json(answer(&made, begun))).into_response();
    if let Ok(location) = HeaderValue::from_str(&url(&made, "")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The new run, without its name.
fn wished(old: &Workflow, steps: &[StepRun], wanted: &RetryRequest) -> Result<Workflow> {
    let name = old.name_any();
    let status = old.status.clone().unwrap_or_default();
    let (phase, all) = (status.phase.unwrap_or_default(), wanted.all == Some(true));
    let no = |why: String| Err(Problem::conflict(why).about(&name));
    if status.completed_at.is_none() {
        return no(format!("the run {name} is not over ({phase}); cancel it first"));
    }
    if phase == Phase::Completed && wanted.from.is_none() && !all {
        return no(format!(
            "the run {name} completed; say from which step it runs again (from), or that all of it does (all)"
        ));
    }
    if let Some(why) = nothing_left(old, steps).filter(|_| !all) {
        return no(format!("{why}; nothing can be taken over; to run every step again say all"));
    }
    let from = match &wanted.from {
        None => None,
        Some(step) => Some(path_of(old, step).ok_or_else(|| {
            let paths: Vec<&str> = status.steps.iter().map(|step| step.path.as_str()).take(20).collect();
            Problem::field("from", format!("the run has no such step; it has {}", paths.join(", ")))
        })?),
    };
    // What the cache leaves out of a run is its documents' content.
    let mut new = again(old, from);
    match &mut new.spec.retry_of {
        _ if all => new.spec.retry_of = None,
        Some(of) => of.keep_results = wanted.keep_results == Some(true),
        None => {}
    }
    Ok(new)
}

async fn make(
    api: &Api<Workflow>,
    call: &Call,
    mut new: Workflow,
    (old, own): (&str, Option<&str>),
) -> Result<(Workflow, Begun)> {
    new.metadata.labels = Some([(LABEL_MADE_BY.to_owned(), "api".to_owned())].into());
    new.metadata.annotations = Some([(CREATED_BY.to_owned(), call.caller.user.to_string())].into());
    new.annotations_mut().extend(traced(call));
    if !new.spec.documents.is_empty() {
        new.spec.documents = read_known(api, old).await?.spec.documents;
    }
    if let (Some(key), None) = (idempotency_key(call)?, own) {
        new.metadata.name = Some(name::keyed_run(&format!("{old}-retry"), &call.caller.user, key));
        return keyed(api, call, &new).await;
    }
    let first = number_of(old).map_or(1, |(_, number)| number);
    for number in first + 1..=first + TRIES {
        let name = own.map_or_else(|| numbered(old, number), str::to_owned);
        new.metadata.name = Some(name.clone());
        match within_name(api.create(&post(), &new)).await? {
            Some(made) => return Ok((made, Begun::Now)),
            None if own.is_some() => {
                return Err(Problem::conflict(format!("there is a run {name} already")).about(&name));
            }
            None => {}
        }
    }
    Err(Problem::conflict("this run was retried too often; give the new run a name"))
}

/// The run whose name follows from the key: made once, however often it is asked for.
async fn keyed(api: &Api<Workflow>, call: &Call, new: &Workflow) -> Result<(Workflow, Begun)> {
    if let Some(made) = within_name(api.create(&post(), new)).await? {
        return Ok((made, Begun::Now));
    }
    let name = new.name_any();
    let there = read_known(api, &name).await?;
    let is_same = there.spec.retry_of == new.spec.retry_of && there.spec.template_ref == new.spec.template_ref;
    if is_same && creator(&there) == Some(&call.caller.user) {
        return Ok((there, Begun::Before));
    }
    Err(Problem::conflict(format!(
        "this Idempotency-Key was used for the run {name}, which is another; use another key"
    ))
    .about(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn old(status: &Value) -> Workflow {
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
            "metadata": {"name": "shop", "uid": "u"}, "spec": {"templateRef": {"name": "t"}, "input": "x"}, "status": status}))
        .expect("a run")
    }

    #[test]
    fn only_what_is_over_and_has_something_left_is_retried() {
        let over = |phase: &str| {
            json!({"phase": phase, "completedAt": "2026-11-21T10:00:00Z",
            "steps": [{"path": "a", "phase": "Completed"}, {"path": "g/b", "phase": phase}]})
        };
        let gone = json!({"phase": "Failed", "completedAt": "2026-11-21T10:00:00Z",
            "steps": [{"path": "a", "phase": "Failed", "stepRun": "shop-a"}]});
        let from = |step: &str| RetryRequest { from: Some(step.to_owned()), ..RetryRequest::default() };
        let all = || RetryRequest { all: Some(true), ..RetryRequest::default() };
        for (what, status, wanted, expected) in [
            ("running", json!({"phase": "Running"}), RetryRequest::default(), Err("is not over")),
            ("failed", over("Failed"), RetryRequest::default(), Ok(Some(None))),
            ("failed, from a step", over("Failed"), from("b"), Ok(Some(Some("g/b")))),
            ("failed, from nowhere", over("Failed"), from("z"), Err("it has a, g/b")),
            ("completed", over("Completed"), RetryRequest::default(), Err("completed; say from which step")),
            ("completed, from a step", over("Completed"), from("a"), Ok(Some(Some("a")))),
            ("completed, all", over("Completed"), all(), Ok(None)),
            ("taken away", gone.clone(), RetryRequest::default(), Err("are gone")),
            ("taken away, all", gone, all(), Ok(None)),
        ] {
            match (wished(&old(&status), &[], &wanted), expected) {
                (Ok(new), Ok(of)) => {
                    let found = new.spec.retry_of.as_ref().map(|of| of.from.as_deref());
                    assert_eq!(found, of, "{what}");
                }
                (Err(problem), Err(words)) => assert!(problem.refusal.detail.contains(words), "{what}: {problem:?}"),
                (found, _) => panic!("{what}: {found:?}"),
            }
        }
        assert!(RetryRequest::read(b"").is_ok() && RetryRequest::read(br#"{"all": true, "from": "a"}"#).is_err());
    }
}
