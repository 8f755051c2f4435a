//! `POST /events`: every Trigger that an event matches starts a run. Its name follows from Trigger, source and id, so
//! the same event again finds the same run. Nothing is remembered here: the run itself is the memory, and stays for a
//! day at least.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::call::Call;
use super::caller::{Right, read, read_known};
use super::evaluate::steadily;
use super::problem::{Problem, Result};
use super::received::{self, For};
use super::started::{post, within_name};
use super::{Http, result};
use crate::api::name::CREATED_BY;
use crate::api::{Trigger, Workflow};
use crate::decide::event::CloudEvent;
use crate::decide::{seen, trigger};
use crate::definition::trigger::{EVENT, Program, RunArguments};

/// The call whose senders may have a secret of the Trigger in place of a token.
pub const TO_TRIGGER: &str = "publishToTrigger";
/// Triggers that one event may start.
const TRIGGERS: usize = 32;
/// Triggers that are named to somebody whose event none of them takes.
const NAMED: usize = 20;

/// What became of the events of a request.
#[derive(Serialize, JsonSchema, Debug, Default)]
pub struct Received {
    /// Whether all runs were there already: the events came before.
    pub duplicate: bool,
    /// The runs, by event and Trigger.
    #[schemars(length(max = 3200))]
    pub runs: Vec<Triggered>,
    /// Triggers of whose source and type an event was, and that started nothing.
    #[schemars(length(max = 3200))]
    pub skipped: Vec<Skipped>,
    /// What Slack asks for when a URL is registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
}

/// The run of an event.
#[derive(Serialize, JsonSchema, Debug)]
pub struct Triggered {
    /// The id of the event.
    pub event: String,
    /// The source of the event.
    pub source: String,
    /// The name of the Trigger.
    pub trigger: String,
    /// The name of the run.
    pub run: String,
    pub namespace: String,
    /// The session of the run: the id of the event, or a digest where no session may be called so; or what the Trigger
    /// says.
    pub session_id: String,
    #[serde(rename = "createdAt")]
    pub created_at: Option<Time>,
    /// Whether the run was there already: the event came before.
    pub duplicate: bool,
    /// The path of the run.
    pub url: String,
}

/// A Trigger that started nothing.
#[derive(Serialize, JsonSchema, Debug)]
pub struct Skipped {
    /// The id of the event.
    pub event: String,
    /// The name of the Trigger.
    pub trigger: String,
    /// Why, and what helps.
    pub detail: String,
    #[serde(skip)]
    code: StatusCode,
}

/// `POST /events`
pub async fn publish(http: Arc<Http>, call: Call) -> Result<Response> {
    let events = received::events(&call.headers, &call.body, For::Anybody)?;
    let mut received = Received::default();
    for event in &events {
        let wanting = wanting(&http, &call, event);
        deliver(&http, &call, event, wanting, &mut received).await?;
    }
    if received.runs.is_empty() && received.skipped.is_empty() {
        return Err(unwanted(&http, &call, &events).await?);
    }
    answered(received)
}

/// `POST /events/{trigger}`
pub async fn to_trigger(http: Arc<Http>, call: Call) -> Result<Response> {
    let trigger = match &call.trigger {
        Some(trigger) => Arc::clone(trigger),
        None => named(&http, &call).await?,
    };
    if trigger.spec.event.is_none() {
        let name = trigger.name_any();
        return Err(Problem::conflict(format!(
            "the Trigger {name} has a schedule and takes no events; start a run of its template with POST /run"
        )));
    }
    let is_signed = call.trigger.is_some() && trigger.spec.auth.as_ref().is_some_and(|auth| auth.hmac.is_some());
    let source = format!("/namespaces/{}/events/{}", call.namespace, trigger.name_any());
    let whom = if is_signed { For::Signed(&source) } else { For::Trigger(&source) };
    let events = received::events(&call.headers, &call.body, whom)?;
    let mut received = Received::default();
    if call.trigger.is_some() {
        received.challenge = events.first().and_then(received::challenge);
        if received.challenge.is_some() {
            return Ok(axum::Json(received).into_response());
        }
    }
    for event in &events {
        if trigger::means(&trigger.spec, event) {
            deliver(&http, &call, event, vec![Arc::clone(&trigger)], &mut received).await?;
        } else {
            let detail = format!("it takes {}; this event is {}", taken(&trigger), of(event));
            received.skipped.push(Skipped::new(event, &trigger, detail, StatusCode::OK));
        }
    }
    answered(received)
}

impl Skipped {
    fn new(event: &CloudEvent, trigger: &Trigger, detail: String, code: StatusCode) -> Self {
        Self { event: event.id.clone(), trigger: trigger.name_any(), detail, code }
    }
}

/// Refusals are the answer only where nothing was started: a part that was is not undone.
fn answered(mut received: Received) -> Result<Response> {
    let refusal = received.skipped.iter().find(|skipped| skipped.code != StatusCode::OK);
    if let (true, Some(refusal)) = (received.runs.is_empty(), refusal) {
        return Err(Problem::new(refusal.code, format!("Trigger {}: {}", refusal.trigger, refusal.detail)));
    }
    received.duplicate = !received.runs.is_empty() && received.runs.iter().all(|run| run.duplicate);
    let is_new = received.runs.iter().any(|run| !run.duplicate);
    let location = received.runs.first().filter(|_| received.runs.len() == 1).map(|run| run.url.clone());
    let code = if is_new { StatusCode::ACCEPTED } else { StatusCode::OK };
    let mut response = (code, axum::Json(received)).into_response();
    if let Some(location) = location.and_then(|url| HeaderValue::from_str(&url).ok()) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Those of the namespace that are for events of its source and type, by name.
fn wanting(http: &Http, call: &Call, event: &CloudEvent) -> Vec<Arc<Trigger>> {
    let all = http.watches.world.triggers.under(&call.namespace);
    all.into_iter().filter(|one| trigger::means(&one.spec, event)).take(TRIGGERS).collect()
}

/// The Trigger of the path; it may have been made a moment ago, before the watch has told of it.
async fn named(http: &Http, call: &Call) -> Result<Arc<Trigger>> {
    let name = call.part("trigger");
    let missing = || {
        let namespace = &call.namespace;
        Problem::not_found(format!(
            "there is no Trigger {name} in the namespace {namespace} (yet); kubectl -n {namespace} get triggers lists those there are"
        ))
    };
    let right = Right { verb: "trigger", resource: "triggers", namespace: &call.namespace, name };
    if !super::fields::is_name(name) {
        return Err(missing());
    }
    http.callers.must(&call.caller, right).await?;
    if let Some(trigger) = http.watches.world.triggers.get(&call.namespace, name) {
        return Ok(trigger);
    }
    let api: Api<Trigger> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    match read(&api, name).await {
        Ok(found) => found.map(Arc::new).ok_or_else(missing),
        Err(problem) if problem.status == StatusCode::FORBIDDEN => Err(missing()),
        Err(problem) => Err(problem),
    }
}

/// Nobody wants any of the events: what would be wanted, as far as the caller may know it.
async fn unwanted(http: &Http, call: &Call, events: &[CloudEvent]) -> Result<Problem> {
    let namespace = call.namespace.as_str();
    let mut known = Vec::new();
    for trigger in http.watches.world.triggers.under(namespace).iter().filter(|t| t.spec.event.is_some()).take(NAMED) {
        let name = trigger.name_any();
        let right = Right { verb: "trigger", resource: "triggers", namespace, name: &name };
        if http.callers.may(&call.caller, right).await? {
            known.push(format!("{name} takes {}", taken(trigger)));
        }
    }
    let known = if known.is_empty() { "there is none that you may use".to_owned() } else { known.join("; ") };
    let event = events.first().map(of).unwrap_or_default();
    Ok(Problem::not_found(format!("no Trigger of the namespace {namespace} takes {event}: {known}")))
}

fn of(event: &CloudEvent) -> String {
    format!("of the type {} from {}", event.event_type, event.source)
}

fn taken(trigger: &Trigger) -> String {
    let Some(filter) = &trigger.spec.event else { return "no events".to_owned() };
    let source = filter.source.as_ref().map_or_else(|| "any source".to_owned(), Clone::clone);
    format!("the type {} from {source}", filter.event_type())
}

/// Whether a Trigger takes an event: with the arguments of the run, or why not.
enum TriggerVerdict {
    Takes(RunArguments),
    Passes(String),
    Fails(String),
}

/// Starts the runs of one event. What may pass is an error for the whole: its sender sends it again, and finds what was
/// started.
async fn deliver(
    http: &Arc<Http>,
    call: &Call,
    event: &CloudEvent,
    wanting: Vec<Arc<Trigger>>,
    received: &mut Received,
) -> Result<()> {
    for trigger in wanting {
        let name = trigger.name_any();
        let right = Right { verb: "trigger", resource: "triggers", namespace: &call.namespace, name: &name };
        let mut skip = |detail: String, code| received.skipped.push(Skipped::new(event, &trigger, detail, code));
        if call.trigger.is_none()
            && let Err(problem) = http.callers.must(&call.caller, right).await
        {
            let refused = if problem.status == StatusCode::FORBIDDEN { problem } else { return Err(problem) };
            skip(refused.refusal.detail, refused.status);
            continue;
        }
        let arguments = match judged(http, &trigger, event).await? {
            TriggerVerdict::Takes(arguments) => arguments,
            TriggerVerdict::Passes(why) => {
                skip(why, StatusCode::OK);
                continue;
            }
            TriggerVerdict::Fails(why) => {
                skip(why, StatusCode::UNPROCESSABLE_ENTITY);
                continue;
            }
        };
        match start(http, call, (&trigger, event), arguments).await {
            Ok(run) => received.runs.push(run),
            Err(problem) if problem.retry_after.is_some() => return Err(problem),
            Err(problem) => skip(problem.refusal.detail, problem.status),
        }
    }
    Ok(())
}

async fn judged(http: &Arc<Http>, trigger: &Trigger, event: &CloudEvent) -> Result<TriggerVerdict> {
    let program = match Program::compile(&trigger.spec) {
        Ok(program) => program,
        Err(faults) => return Ok(TriggerVerdict::Fails(format!("it is not valid: {}", faults.join("; ")))),
    };
    let (namespace, expressions) = (trigger.namespace().unwrap_or_default(), program.expressions());
    let value: Arc<Value> = Arc::new(event.value.clone());
    steadily(http, &namespace, expressions, move |evaluator| match program.takes(&value, evaluator) {
        Ok(false) => TriggerVerdict::Passes("its filter says no".to_owned()),
        Err(why) => TriggerVerdict::Passes(format!("its filter cannot be asked: {why}")),
        Ok(true) => match program.run_arguments(EVENT, Value::clone(&value), evaluator) {
            Ok(arguments) => TriggerVerdict::Takes(arguments),
            Err(why) => TriggerVerdict::Fails(why),
        },
    })
    .await
}

/// Makes the run, or finds it.
async fn start(
    http: &Arc<Http>,
    call: &Call,
    (trigger, event): (&Trigger, &CloudEvent),
    arguments: RunArguments,
) -> Result<Triggered> {
    let own = trigger.name_any();
    let api: Api<Workflow> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let mut taken: Vec<Arc<Workflow>> = Vec::new();
    let (run, is_new) = loop {
        let salt = taken.last().and_then(|run| run.uid()).unwrap_or_default();
        let mut wanted = trigger::event_run(trigger, event, arguments.clone(), &salt);
        let name = wanted.name_any();
        let notes: &mut BTreeMap<String, String> = wanted.metadata.annotations.get_or_insert_default();
        // Admission lets nobody write another name than their own.
        notes.insert(CREATED_BY.to_owned(), call.caller.user.to_string());
        let there = match http.watches.run(&call.namespace, &name) {
            Some(there) => there,
            None => match within_name(api.create(&post(), &wanted)).await {
                Ok(Some(made)) => break (Arc::new(made), true),
                Ok(None) => known(read_known(&api, &name).await, &name)?,
                Err(problem) => return Err(hinted(problem, call)),
            },
        };
        if trigger::is_of_event(&own, &there, &wanted) {
            break (there, false);
        }
        tracing::warn!(
            namespace = call.namespace,
            trigger = own,
            run = name,
            event = event.id,
            holder = seen::holder(&there.metadata),
            by = trigger::maker(&there),
            "somebody else's run has the name of an event's"
        );
        taken.push(there);
        if taken.len() >= trigger::PLACES {
            return Err(occupied(&taken));
        }
    };
    let name = run.name_any();
    let session = run.spec.session.clone().unwrap_or_default();
    tracing::info!(namespace = call.namespace, trigger = own, run = name, session, event = event.id, source = event.source, duplicate = !is_new, by = %call.caller.user, "event");
    Ok(Triggered {
        event: event.id.clone(),
        source: event.source.clone(),
        trigger: own,
        url: result::url(&run, ""),
        run: name,
        namespace: call.namespace.clone(),
        session_id: session,
        created_at: run.metadata.creation_timestamp.clone(),
        duplicate: !is_new,
    })
}

/// The run whose name was taken when it was to be made, as it was read.
fn known(read: Result<Workflow>, name: &str) -> Result<Arc<Workflow>> {
    match read {
        Ok(there) => Ok(Arc::new(there)),
        // Its sender may not read it, and whose it is the watch shows in a moment.
        Err(problem) if problem.status == StatusCode::FORBIDDEN => Err(Problem::unavailable(format!(
            "a run {name} was made a moment ago, and whether it is this event's is not known yet; send the event again"
        ))),
        Err(problem) if problem.status == StatusCode::NOT_FOUND => Err(Problem::unavailable(format!(
            "the run {name} of this event was deleted a moment ago; send the event again"
        ))),
        Err(problem) => Err(problem),
    }
}

/// All names that the run could have are others'.
fn occupied(taken: &[Arc<Workflow>]) -> Problem {
    let names: Vec<String> = taken.iter().map(|run| run.name_any()).collect();
    let first = taken.first().map(|run| seen::holder(&run.metadata)).unwrap_or_default();
    let why =
        format!("no run is started: its names are taken by others; delete {} (the first: {first})", names.join(", "));
    Problem::conflict(why).about(&names[0])
}

/// What lets the API's own account start runs.
fn hinted(mut problem: Problem, call: &Call) -> Problem {
    let account = call.caller.user.strip_prefix("system:serviceaccount:").filter(|_| call.trigger.is_some());
    if let (StatusCode::FORBIDDEN, Some(account)) = (problem.status, account) {
        problem.refusal.detail += &format!(
            "; senders without a token start runs by the account of the API, where a RoleBinding lets it: kubectl -n {} create rolebinding lockstep-webhooks --clusterrole lockstep-webhooks --serviceaccount {account}",
            call.namespace
        );
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::WorkflowSpec;

    #[test]
    fn an_event_counts_as_known_only_where_its_run_is_there() {
        let name = "orders-1";
        let refused = |status| Err(Problem::new(status, "why"));
        assert!(known(Ok(Workflow::new(name, WorkflowSpec::default())), name).is_ok());
        for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS] {
            assert!(known(refused(status), name).is_err(), "{status}");
        }
        // Gone, or not to be read and so perhaps somebody else's: the sender sends it again.
        for status in [StatusCode::NOT_FOUND, StatusCode::FORBIDDEN] {
            let later = known(refused(status), name).expect_err("not known");
            assert!(later.retry_after.is_some() && later.refusal.detail.contains("send the event again"), "{later:?}");
        }
    }
}
