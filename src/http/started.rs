//! Makes the run that `POST /run` asks for, or finds the one that it means.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::api::{ListParams, Patch, PostParams};
use kube::{Api, ResourceExt};
use serde::Serialize;

use super::act::patch;
use super::call::Call;
use super::caller::{Right, read, read_known, within};
use super::outcome::Outcome;
use super::problem::{Problem, Result};
use super::run_request::RunRequest;
use super::view::Begun;
use super::{Http, watches};
use crate::api::name::{self, API, AWAITED, CREATED_BY, TRACEPARENT};
use crate::api::workflow::Phase;
use crate::api::{Workflow, WorkflowTemplate};
use crate::cluster::chance::run_name;
use crate::cluster::stored;
use crate::decide::trace::TraceContext;

/// W3C trace context.
const TRACEPARENT_HEADER: &str = "traceparent";
/// Names tried before giving up.
const TRIES: usize = 20;
/// Flows that are listed to somebody who asked for an unknown one, and those that RBAC is asked about one by one.
const FLOWS: usize = 50;
const FLOWS_ASKED: usize = 20;
const KEY_BYTES: usize = 255;

/// A run that is waited for.
pub struct Started {
    pub run: Arc<Workflow>,
    pub begun: Begun,
}

/// A field manager, as in all that is written here.
pub fn post() -> PostParams {
    PostParams { field_manager: Some(API.to_owned()), ..PostParams::default() }
}

/// Whether the caller may run the flow; an unknown one is told with those that they may run.
pub async fn allowed(http: &Arc<Http>, call: &Call, flow: &str) -> Result<()> {
    let namespace = call.namespace.as_str();
    let create = Right { verb: "create", resource: "workflows", namespace, name: "" };
    http.callers.must(&call.caller, create).await?;
    let run = Right { verb: "run", resource: "workflowtemplates", namespace, name: flow };
    let templates = &http.watches.world.templates;
    // A run of one that cannot be read waits, and says why.
    let is_known = templates.get(namespace, flow).is_some() || templates.fault(namespace, flow).is_some();
    let is_there = is_known || is_new(call, flow).await;
    if is_there {
        return if http.settings.run_permission { http.callers.must(&call.caller, run).await } else { Ok(()) };
    }
    let flows = flows(http, call).await?;
    let list = if flows.is_empty() { "none".to_owned() } else { flows.join(", ") };
    let mut problem = Problem::new(
        http::StatusCode::NOT_FOUND,
        format!("there is no flow {flow} (WorkflowTemplate) in the namespace {namespace}; you may run: {list}"),
    );
    problem.refusal.flows = Some(flows);
    Err(problem)
}

/// A template that was made a moment ago, if the caller may read it.
async fn is_new(call: &Call, flow: &str) -> bool {
    let api: Api<WorkflowTemplate> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    within(api.get_metadata(flow)).await.is_ok()
}

async fn flows(http: &Arc<Http>, call: &Call) -> Result<Vec<String>> {
    let all = http.watches.world.templates.all();
    let own = all.iter().filter(|template| template.namespace().as_deref() == Some(&call.namespace));
    let names: Vec<String> = own.map(|template| template.name_any()).collect();
    let any = Right { verb: "run", resource: "workflowtemplates", namespace: &call.namespace, name: "" };
    if !http.settings.run_permission || http.callers.may(&call.caller, any).await? {
        return Ok(names.into_iter().take(FLOWS).collect());
    }
    let mut allowed = Vec::new();
    for name in names.into_iter().take(FLOWS_ASKED) {
        if http.callers.may(&call.caller, Right { name: &name, ..any }).await? {
            allowed.push(name);
        }
    }
    Ok(allowed)
}

pub async fn start(http: &Arc<Http>, call: &Call, wanted: &RunRequest) -> Result<Started> {
    let mut run = wanted.workflow(&call.caller.user);
    run.annotations_mut().extend(traced(call));
    let api: Api<Workflow> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let is_new = call.flag("new")?;
    if let Some(key) = idempotency_key(call)? {
        run.metadata.name = Some(name::keyed_run(&wanted.flow, &call.caller.user, key));
        return keyed(call, wanted, &api, &run).await;
    }
    if !is_new && let Some(run) = waits_already(http, call, wanted, &api).await? {
        return Ok(Started { run: Arc::new(run), begun: Begun::Before });
    }
    for _ in 0..TRIES {
        run.metadata.name = Some(run_name(&wanted.flow));
        if let Some(made) = within_name(api.create(&post(), &run)).await? {
            return Ok(Started { run: Arc::new(made), begun: Begun::Now });
        }
    }
    Err(Problem::unavailable("no free name was found for the run; try again"))
}

/// The caller's trace is the run's, by an annotation; what is no trace context is nobody's fault, says the standard.
pub fn traced(call: &Call) -> Option<(String, String)> {
    let told = call.header(TRACEPARENT_HEADER).filter(|text| TraceContext::parse(text).is_some())?;
    Some((TRACEPARENT.to_owned(), told.to_owned()))
}

/// None where the name is taken.
pub async fn within_name<T>(create: impl Future<Output = kube::Result<T>>) -> Result<Option<T>> {
    let told = within(async {
        match create.await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
            other => other.map(Some),
        }
    });
    told.await
}

pub fn idempotency_key(call: &Call) -> Result<Option<&str>> {
    let Some(value) = call.headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().map(str::trim).filter(|key| !key.is_empty() && key.len() <= KEY_BYTES);
    key.map(Some)
        .ok_or_else(|| Problem::field("Idempotency-Key", format!("must be 1 to {KEY_BYTES} printable characters")))
}

/// The run whose name follows from the key: made once, however often it is asked for.
async fn keyed(call: &Call, wanted: &RunRequest, api: &Api<Workflow>, run: &Workflow) -> Result<Started> {
    if let Some(made) = within_name(api.create(&post(), run)).await? {
        return Ok(Started { run: Arc::new(made), begun: Begun::Now });
    }
    let name = run.name_any();
    let there = read_known(api, &name).await?;
    let creator = creator(&there);
    if creator.is_some_and(|creator| *creator != *call.caller.user) {
        return Err(
            Problem::conflict(format!("somebody else has made a run {name}; use another Idempotency-Key")).about(&name)
        );
    }
    match wanted.difference(&there) {
        None => Ok(Started { run: Arc::new(there), begun: Begun::Before }),
        Some(field) => Err(Problem::new(
            http::StatusCode::UNPROCESSABLE_ENTITY,
            format!(
                "this Idempotency-Key was used for the run {name}, with another {field}; a key stands for one request"
            ),
        )
        .about(&name)),
    }
}

pub fn creator(run: &Workflow) -> Option<&str> {
    let latched = run.status.as_ref().and_then(|status| status.creator.as_deref());
    latched.or_else(|| run.annotations().get(CREATED_BY).map(String::as_str))
}

/// The run of this story that waits for documents, or did when its caller was told so: it goes on, and no second one begins.
/// Those that wait are read as they are now, because another request may have started one a moment ago.
async fn waits_already(
    http: &Arc<Http>,
    call: &Call,
    wanted: &RunRequest,
    api: &Api<Workflow>,
) -> Result<Option<Workflow>> {
    let list = Right { verb: "list", resource: "workflows", namespace: &call.namespace, name: "" };
    if !http.callers.may(&call.caller, list).await? {
        return Ok(None);
    }
    let selector = format!("spec.session={},status.phase=WaitingForDocuments", wanted.story_id);
    let params = ListParams::default().fields(&selector).limit(100);
    let mut open = within(stored::list(api.clone(), &params)).await?.items;
    open.sort_by_cached_key(watches::newest_last);
    let mut why = "";
    for run in open.iter().rev() {
        match wanted.difference(run) {
            None if creator(run) == Some(&call.caller.user) => return Ok(Some(run.clone())),
            None => why = "by somebody else",
            Some(field) => why = field,
        }
    }
    let Some(newest) = open.last() else { return awaited(http, call, wanted, api).await };
    let name = newest.name_any();
    let differs = if why == "by somebody else" { why.to_owned() } else { format!("with another {why}") };
    Err(Problem::conflict(format!(
        "the run {name} of the story {} waits for documents, and was started {differs}; put the documents and ask as then, or start another run with ?new=true",
        wanted.story_id
    ))
    .about(&name))
}

/// The run whose caller was told that documents are missing: they came, and it went on before its caller asked again.
async fn awaited(http: &Arc<Http>, call: &Call, wanted: &RunRequest, api: &Api<Workflow>) -> Result<Option<Workflow>> {
    let runs = http.watches.world.workflows.table(&watches::session_key(&call.namespace, &wanted.story_id));
    let own = |run: &Workflow| {
        let is_cancelled = run.status.as_ref().and_then(|status| status.phase) == Some(Phase::Cancelled);
        !is_cancelled
            && run.annotations().contains_key(AWAITED)
            && creator(run) == Some(&call.caller.user)
            && run.spec.input.as_ref() == Some(&wanted.input)
    };
    let Some(known) = runs.iter().rev().map(|(_, run)| run).find(|run| own(run)) else { return Ok(None) };
    let now = read(api, &known.name_any()).await?;
    Ok(now.filter(|now| own(now) && wanted.difference(now).is_none()))
}

/// A merge patch of one note.
#[derive(Serialize, Debug)]
struct Note {
    metadata: Noted,
}

#[derive(Serialize, Debug)]
struct Noted {
    uid: Option<String>,
    annotations: BTreeMap<&'static str, Option<&'static str>>,
}

/// Notes that the caller was told of missing documents, and takes the note back once they are told what the run came to.
/// Whoever may not change runs does without.
pub async fn note(call: &Call, run: &Workflow, outcome: &Outcome) {
    let value = match (outcome, run.annotations().contains_key(AWAITED)) {
        (Outcome::PendingDocuments(_), false) => Some("documents"),
        (Outcome::Completed(_) | Outcome::Failed(_) | Outcome::Cancelled(_), true) => None,
        _ => return,
    };
    let annotations = [(AWAITED, value)].into();
    let note = Note { metadata: Noted { uid: run.uid(), annotations } };
    let api: Api<Workflow> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    if let Err(problem) = within(api.patch(&run.name_any(), &patch(), &Patch::Merge(&note))).await {
        tracing::debug!(run = run.name_any(), why = problem.refusal.detail, "the run could not be noted");
    }
}
