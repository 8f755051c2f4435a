//! Reading runs: lists, one run, its history.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use schemars::JsonSchema;
use serde::Serialize;

use super::Http;
use super::call::Call;
use super::caller::{Right, read};
use super::fields::{is_identifier, is_name};
use super::problem::{Problem, Result};
use super::view::{self, Shown};
use super::watches::{namespace_key, newest_last, session_key};
use crate::api::step_run::Attempt;
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};
use crate::cluster::cache::Table;
use crate::decide::history::{self, Acted, Answered, Decided, Entry, Guided, TakenOver};

/// Runs of one page: unless told, and at most.
const PAGE: usize = 50;
const LARGEST_PAGE: usize = 500;

/// One page of runs, newest first.
#[derive(Serialize, JsonSchema)]
pub struct Page {
    #[schemars(length(max = 500))]
    pub runs: Vec<Shown>,
    /// The parameter `continue` of the next page; absent on the last one.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// All that is known of the course of a run.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct History {
    pub run: String,
    pub namespace: String,
    pub session_id: String,
    pub phase: Phase,
    pub created_at: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    /// Every step and every item, in the order of the definition.
    #[schemars(with = "Vec<Line>")]
    pub steps: Vec<Entry>,
    /// Every attempt that has ended and is remembered, in the order of their steps.
    #[schemars(with = "Vec<StepAttempt>")]
    pub attempts: Vec<history::AttemptRecord>,
    /// What people decided at gates.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub decisions: Vec<Decided>,
    /// What people answered.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub answers: Vec<Answered>,
    /// What people said for the attempts that followed.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub guidance: Vec<Guided>,
    /// Retries, skips and failures that people ordered.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub actions: Vec<Acted>,
    /// What was decided in the run that this one goes on from.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub taken_over: Vec<TakenOver>,
}

/// A step, or one item of it.
#[derive(JsonSchema)]
#[schemars(rename = "Step")]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "says what `history::Entry` is written as")]
pub struct Line {
    /// `group/step`, and behind it the keys of the items.
    step_id: String,
    started_at: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    completed_at: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    status: Phase,
    /// The parameters as the agent got them; of a question, the question.
    input: serde_json::Value,
    /// What the step gave; where a Document carries it, its name and digest.
    output: serde_json::Value,
}

/// An attempt, and whose it is.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what `history::Tried` is written as")]
pub struct StepAttempt {
    #[serde(rename = "StepId")]
    step_id: String,
    #[serde(flatten)]
    attempt: Attempt,
}

/// The run of the path: by its name, or the newest of a story of that name.
pub async fn find(http: &Arc<Http>, call: &Call) -> Result<Arc<Workflow>> {
    let (namespace, wanted) = (call.namespace.as_str(), call.part("run"));
    if !is_name(wanted) && !is_identifier(wanted) {
        return Err(Problem::not_found("there is no run of that name, and none of a story of that name"));
    }
    let named = http.watches.run(namespace, wanted);
    let of_story = || {
        let table = http.watches.world.workflows.table(&session_key(namespace, wanted));
        table.iter().next_back().map(|(_, run)| Arc::clone(run))
    };
    let found = named.or_else(of_story);
    let name = found.as_ref().map_or_else(|| wanted.to_owned(), |run| run.name_any());
    http.callers.must(&call.caller, Right { verb: "get", resource: "workflows", namespace, name: &name }).await?;
    if let Some(run) = found {
        return Ok(run);
    }
    // It may have been made a moment ago, before the watch has told of it.
    if is_name(wanted) {
        let api: Api<Workflow> = Api::namespaced(call.caller.client.clone(), namespace);
        if let Some(run) = read(&api, wanted).await? {
            return Ok(Arc::new(run));
        }
    }
    Err(Problem::not_found(format!(
        "there is no run {wanted} in the namespace {namespace}, and none of a story of that name (yet)"
    )))
}

/// Whether the caller may read what the steps of runs say.
pub async fn may_see_steps(http: &Arc<Http>, call: &Call) -> Result<bool> {
    let right = Right { verb: "list", resource: "stepruns", namespace: &call.namespace, name: "" };
    http.callers.may(&call.caller, right).await
}

pub async fn must_see_steps(http: &Arc<Http>, call: &Call) -> Result<()> {
    let right = Right { verb: "list", resource: "stepruns", namespace: &call.namespace, name: "" };
    http.callers.must(&call.caller, right).await
}

/// `GET /runs/{run}`
pub async fn one(http: Arc<Http>, call: Call) -> Result<Response> {
    let run = find(&http, &call).await?;
    let steps = if may_see_steps(&http, &call).await? { http.watches.steps(&run) } else { Vec::new() };
    Ok(axum::Json(view::run(&run, steps.iter().map(AsRef::as_ref))).into_response())
}

/// `GET /runs/{run}/history`
pub async fn history(http: Arc<Http>, call: Call) -> Result<Response> {
    let run = find(&http, &call).await?;
    must_see_steps(&http, &call).await?;
    let steps = http.watches.steps(&run);
    Ok(axum::Json(told(&run, steps.iter().map(AsRef::as_ref))).into_response())
}

fn told<'a>(run: &'a Workflow, steps: impl IntoIterator<Item = &'a StepRun>) -> History {
    let instances = history::step_instances(run, steps);
    let is_over = run.status.as_ref().is_some_and(|status| status.completed_at.is_some());
    let mut entries = history::entries(&instances);
    for entry in entries.iter_mut().filter(|entry| is_over && entry.status == Phase::Pending) {
        // What never began is no longer to come.
        entry.status = Phase::Skipped;
    }
    let said = history::human_input(&instances);
    History {
        run: run.name_any(),
        namespace: run.namespace().unwrap_or_default(),
        session_id: view::session_of(run),
        phase: run.status.as_ref().and_then(|status| status.phase).unwrap_or_default(),
        created_at: run.metadata.creation_timestamp.clone(),
        steps: entries,
        attempts: history::attempts(&instances),
        decisions: said.decisions,
        answers: said.answers,
        guidance: said.guidance,
        actions: said.actions,
        taken_over: said.taken_over,
    }
}

/// The filter and the page of a list of runs.
#[derive(Debug, Default)]
struct RunFilter {
    session: Option<String>,
    phase: Option<Phase>,
    flow: Option<String>,
    since: Option<Timestamp>,
    limit: usize,
    /// The last run of the page before.
    after: Option<String>,
}

impl RunFilter {
    fn read(call: &Call) -> Result<Self> {
        // A form sends the fields that nobody filled in, too.
        let text = |name: &str| call.query(name).filter(|text| !text.is_empty());
        let number = |text: &str| text.parse().ok().filter(|n| (1..=LARGEST_PAGE).contains(n));
        let limit = match call.query("limit") {
            None => PAGE,
            Some(text) => number(text)
                .ok_or_else(|| Problem::field("limit", format!("must be a number from 1 to {LARGEST_PAGE}")))?,
        };
        let phase = call.query("phase").map(|text| serde_json::from_value(text.into())).transpose();
        let since = call.query("since").map(str::parse::<Timestamp>).transpose();
        let after = text("continue").map(after).transpose()?;
        Ok(Self {
            session: text("session").map(str::to_owned),
            phase: phase.map_err(|_| {
                Problem::field("phase", "must be the phase of a run, such as Running or WaitingForInput")
            })?,
            flow: text("flow").map(str::to_owned),
            since: since.map_err(|_| Problem::field("since", "must be a time such as 2026-11-21T10:00:00Z"))?,
            limit,
            after,
        })
    }

    fn takes(&self, run: &Workflow) -> bool {
        let made = run.metadata.creation_timestamp.as_ref().map(|at| at.0);
        self.phase.is_none_or(|phase| run.status.as_ref().and_then(|s| s.phase).unwrap_or_default() == phase)
            && self.since.is_none_or(|since| made.is_some_and(|made| made >= since))
            && self.session.as_ref().is_none_or(|session| view::session_of(run) == *session)
            && self.flow.as_ref().is_none_or(|flow| run.spec.template_ref.as_ref().is_some_and(|t| t.name == *flow))
    }
}

/// The place in the order of runs that a page ends with.
fn after(token: &str) -> Result<String> {
    let wrong = || Problem::field("continue", "must be the member `continue` of an earlier page");
    let (made, name) = token.split_once('.').ok_or_else(wrong)?;
    let made: i64 = made.parse().map_err(|_| wrong())?;
    if is_name(name) { Ok(format!("{made:020} {name}")) } else { Err(wrong()) }
}

fn token(run: &Workflow) -> String {
    let rank = newest_last(run);
    let (made, name) = rank.split_once(' ').unwrap_or_default();
    format!("{}.{name}", made.trim_start_matches('0'))
}

fn page(table: &Table<Workflow>, wanted: &RunFilter) -> Page {
    let runs = table.iter().rev().filter(|(rank, _)| wanted.after.as_ref().is_none_or(|after| *rank < after));
    let mut fitting = runs.map(|(_, run)| run).filter(|run| wanted.takes(run));
    let found: Vec<&Arc<Workflow>> = fitting.by_ref().take(wanted.limit).collect();
    let next = fitting.next().and_then(|_| found.last()).map(|run| token(run));
    Page { runs: found.into_iter().map(|run| view::run(run, [])).collect(), next }
}

/// `GET /runs`
pub async fn list(http: Arc<Http>, call: Call) -> Result<Response> {
    let wanted = RunFilter::read(&call)?;
    let right = Right { verb: "list", resource: "workflows", namespace: &call.namespace, name: "" };
    http.callers.must(&call.caller, right).await?;
    let key = match &wanted.session {
        // A run's own session begins with an underscore, and is not in its spec.
        Some(session) if !session.starts_with('_') => session_key(&call.namespace, session),
        _ => namespace_key(&call.namespace),
    };
    Ok(axum::Json(page(&http.watches.world.workflows.table(&key), &wanted)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(number: usize, phase: &str) -> (String, Arc<Workflow>) {
        let run: Workflow = serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
            "metadata": {"name": format!("r-{number}"), "creationTimestamp": format!("2026-11-21T10:00:{:02}Z", number / 2)},
            "spec": {"templateRef": {"name": if number.is_multiple_of(3) { "three" } else { "other" }}, "session": "s"}, "status": {"phase": phase}}))
        .expect("a run");
        (newest_last(&run), Arc::new(run))
    }

    #[test]
    fn pages_together_are_the_whole_newest_first() {
        let table: Table<Workflow> = (0..25).map(|n| run(n, if n < 5 { "Running" } else { "Failed" })).collect();
        for (what, wanted, count) in [
            ("all", RunFilter::default(), 25_usize),
            ("a phase", RunFilter { phase: Some(Phase::Running), ..RunFilter::default() }, 5),
            ("a flow", RunFilter { flow: Some("three".into()), ..RunFilter::default() }, 9),
            ("a session", RunFilter { session: Some("t".into()), ..RunFilter::default() }, 0),
            ("since", RunFilter { since: "2026-11-21T10:00:10Z".parse().ok(), ..RunFilter::default() }, 5),
        ] {
            for limit in [1, 4, 25, 100] {
                let (mut names, mut next, mut pages) = (Vec::new(), None, 0);
                loop {
                    let after = next.as_deref().map(|token| after(token).expect("a token"));
                    let of = RunFilter {
                        limit,
                        after,
                        phase: wanted.phase,
                        since: wanted.since,
                        flow: wanted.flow.clone(),
                        session: wanted.session.clone(),
                    };
                    let found = page(&table, &of);
                    assert!(found.runs.len() <= limit);
                    names.extend(found.runs.iter().map(|run| (run.created_at.clone().map(|at| at.0), run.run.clone())));
                    pages += 1;
                    next = found.next;
                    if next.is_none() {
                        break;
                    }
                }
                assert_eq!((names.len(), pages), (count, count.div_ceil(limit).max(1)), "{what} by {limit}");
                assert!(names.is_sorted_by(|a, b| a > b), "{names:?}");
            }
        }
        for token in ["", "x", "5", ".r-1", "x.r-1", "5.R"] {
            assert!(after(token).is_err(), "{token:?}");
        }
    }
}
