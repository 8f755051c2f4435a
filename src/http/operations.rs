//! All calls: where they are, what they take and answer, in words and in types, and who carries them out. The router and the
//! OpenAPI document are both made from this table.

use std::sync::Arc;

use axum::response::Response;
use futures::future::BoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::call::Call;
use super::problem::{Refusal, Result};
use super::{
    Http, act, decision, decision_request, documents, events, logs, memory, received, retry, run, run_request, runs,
    stream, view,
};

/// A document and its members at their limits, written as JSON.
const LARGE: usize = 1_250_000;
const MEDIUM: usize = 640 * 1024;
const SMALL: usize = 64 * 1024;

/// The part of every path that names a namespace.
pub const IN_NAMESPACE: &str = "/namespaces/{namespace}";

/// The function that carries an operation out.
pub type Handler = fn(Arc<Http>, Call) -> BoxFuture<'static, Result<Response>>;
type Of = fn(&mut SchemaGenerator) -> Schema;

/// One call.
pub struct Operation {
    /// `operationId`, and the label of metrics.
    pub id: &'static str,
    pub method: &'static str,
    pub path: &'static str,
    pub summary: &'static str,
    /// More of it, in whole sentences.
    pub about: &'static str,
    pub parameters: &'static [Parameter],
    /// The schema of its body, and whether it must be there.
    pub body: Option<(Of, bool)>,
    /// The most bytes of its body.
    pub body_bytes: usize,
    pub answers: &'static [ResponseSpec],
    pub handler: Handler,
}

/// A parameter of the query, or a header.
pub struct Parameter {
    pub name: &'static str,
    pub place: &'static str,
    pub about: &'static str,
    pub form: Form,
}

/// What a parameter may be.
#[derive(Clone, Copy)]
pub enum Form {
    Text,
    Flag,
    /// From 1 to so many.
    Number(i64),
    Time,
}

/// One response of an operation, as the OpenAPI document describes it.
pub struct ResponseSpec {
    pub code: u16,
    pub about: &'static str,
    pub kind: &'static str,
    pub of: Option<Of>,
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

const fn json(code: u16, about: &'static str, of: Of) -> ResponseSpec {
    ResponseSpec { code, about, kind: JSON, of: Some(of) }
}

const fn query(name: &'static str, form: Form, about: &'static str) -> Parameter {
    Parameter { name, place: "query", about, form }
}

const fn header(name: &'static str, about: &'static str) -> Parameter {
    Parameter { name, place: "header", about, form: Form::Text }
}

/// What every call may answer, beside its own.
pub const REFUSALS: &[ResponseSpec] = &[
    json(400, "A field, a parameter or the body is not valid; `errors` names every field.", of::<Refusal>),
    json(401, "There is no bearer token, or the API server of Kubernetes does not know it.", of::<Refusal>),
    json(403, "The caller lacks a permission, or an admission policy refuses it; `detail` says which.", of::<Refusal>),
    json(404, "It is not there, or not yet: `Retry-After` says when to look again.", of::<Refusal>),
    json(408, "The body came too slowly.", of::<Refusal>),
    json(409, "It does not fit what is there.", of::<Refusal>),
    json(413, "The body is too large.", of::<Refusal>),
    json(
        429,
        "Too many requests or streams of this user or of all; `Retry-After` says when to try again.",
        of::<Refusal>,
    ),
    json(503, "The API server of Kubernetes cannot be reached, or is busy.", of::<Refusal>),
];

const KEY: Parameter = query("key", Form::Text, "The keys of the items to look from, outermost first, joined by `/`.");
const ONE_RUN: &[ResponseSpec] = &[json(200, "The run as it is now.", of::<view::Shown>)];
const TAKEN: &[ResponseSpec] = &[
    json(200, "It is recorded, and the run goes on.", of::<decision::Taken>),
    json(
        202,
        "It is written and stays valid, but no operator has taken it up within ten seconds.",
        of::<decision::Taken>,
    ),
];
const PUBLISHED: &[ResponseSpec] = &[
    json(
        200,
        "Nothing new was started: the events came before (`duplicate`), or the Trigger does not take them (`skipped`).",
        of::<events::Received>,
    ),
    json(202, "Runs were started.", of::<events::Received>),
    json(
        404,
        "No Trigger takes the events, or there is none of that name; `detail` says what is taken.",
        of::<Refusal>,
    ),
    json(422, "The expressions of the Trigger fail for this event; `detail` says which.", of::<Refusal>),
];
const OUTCOMES: &[ResponseSpec] = &[
    json(
        200,
        "The run is completed (`result`), or it waits for documents (`pending_docs`). From `POST /run` also the stream of the run, where the client accepts it and the run takes longer.",
        of::<view::Answer>,
    ),
    json(202, "The run goes on, or waits for people (`waiting`).", of::<view::Answer>),
    json(409, "The run was cancelled; or it does not fit what is there.", of::<Refusal>),
    json(410, "The document that holds the result is gone, or was exchanged.", of::<Refusal>),
    json(422, "This `Idempotency-Key` was used for another request.", of::<Refusal>),
    json(500, "The run failed. There are no results, not even in part.", of::<view::Failure>),
];

pub const OPERATIONS: &[Operation] = &[
    Operation {
        id: "run",
        method: "POST",
        path: "/run",
        summary: "Start a run of a flow and wait for its result",
        about: "Answers with the result if the run ends within the wait (5 seconds unless told), with the types of the documents that are missing if it waits for some, and else with a stream of its events (`Accept: text/event-stream`) or 202. A second request of the same story while its run waits for documents joins that run.",
        parameters: &[
            query(
                "new",
                Form::Flag,
                "Whether another run is started although one of this story waits for documents. The default is false.",
            ),
            header(
                "Idempotency-Key",
                "Makes it safe to repeat the request: the same key of the same user is the same run, as long as that run is there. At most 255 characters.",
            ),
        ],
        body: Some((of::<run_request::RunRequest>, true)),
        body_bytes: LARGE,
        answers: OUTCOMES,
        handler: |http, call| Box::pin(run::run(http, call)),
    },
    Operation {
        id: "listRuns",
        method: "GET",
        path: "/runs",
        summary: "List runs, newest first",
        about: "",
        parameters: &[
            query("session", Form::Text, "Only those of this story."),
            query("phase", Form::Text, "Only those in this phase, such as Running or WaitingForInput."),
            query("flow", Form::Text, "Only those of this flow."),
            query("since", Form::Time, "Only those that were created then or later."),
            query("limit", Form::Number(500), "How many at most. The default is 50."),
            query("continue", Form::Text, "The member `continue` of the page before."),
        ],
        body: None,
        body_bytes: SMALL,
        answers: &[json(200, "A page of runs.", of::<runs::Page>)],
        handler: |http, call| Box::pin(runs::list(http, call)),
    },
    Operation {
        id: "getRun",
        method: "GET",
        path: "/runs/{run}",
        summary: "A run, and what it waits for",
        about: "`run` is the name of a run, or a story: then the newest run of that story is meant. So it is in all paths that name a run.",
        parameters: &[],
        body: None,
        body_bytes: SMALL,
        answers: ONE_RUN,
        handler: |http, call| Box::pin(runs::one(http, call)),
    },
    Operation {
        id: "getResult",
        method: "GET",
        path: "/runs/{run}/result",
        summary: "What the run has come to",
        about: "What `POST /run` would answer now, without waiting.",
        parameters: &[],
        body: None,
        body_bytes: SMALL,
        answers: OUTCOMES,
        handler: |http, call| Box::pin(run::result(http, call)),
    },
    Operation {
        id: "getHistory",
        method: "GET",
        path: "/runs/{run}/history",
        summary: "Every step with its input and output, all attempts, and what people said",
        about: "",
        parameters: &[],
        body: None,
        body_bytes: SMALL,
        answers: &[json(200, "The history.", of::<runs::History>)],
        handler: |http, call| Box::pin(runs::history(http, call)),
    },
    Operation {
        id: "getEvents",
        method: "GET",
        path: "/runs/{run}/events",
        summary: "The course of the run as server-sent events",
        about: "First what happened so far, then what happens; the last event is `result`, `failure` or `error`, and then the stream ends. Ids follow from what is stored: after a broken line send the last one as `Last-Event-ID`, to this or any other replica. What happened in the ten minutes before it may come twice, with the same id. `run.phase` and `step.progress` have no id: only the newest counts. A comment comes every 15 seconds.",
        parameters: &[
            header("Last-Event-ID", "The id of the last event that was seen."),
            query("lastEventId", Form::Text, "The same, for clients that cannot set headers."),
        ],
        body: None,
        body_bytes: SMALL,
        answers: &[ResponseSpec { code: 200, about: "The stream; each event's data is JSON.", kind: EVENTS, of: None }],
        handler: |http, call| Box::pin(stream::events(http, call)),
    },
    Operation {
        id: "listDocuments",
        method: "GET",
        path: "/runs/{run}/documents",
        summary: "The documents that the run sees",
        about: "",
        parameters: &[KEY],
        body: None,
        body_bytes: SMALL,
        answers: &[json(200, "One of each type.", of::<documents::List>)],
        handler: |http, call| Box::pin(documents::list(http, call)),
    },
    Operation {
        id: "getDocument",
        method: "GET",
        path: "/runs/{run}/documents/{type}",
        summary: "What a document holds",
        about: "The newest published one of the type, of the narrowest scope that the run is in.",
        parameters: &[KEY, header("If-None-Match", "The `ETag` of what is known already.")],
        body: None,
        body_bytes: SMALL,
        answers: &[
            ResponseSpec { code: 200, about: "The content; its digest is the `ETag`.", kind: "*/*", of: None },
            ResponseSpec { code: 304, about: "It is still the one that is known.", kind: "", of: None },
            json(410, "The document is gone, or was exchanged.", of::<Refusal>),
        ],
        handler: |http, call| Box::pin(documents::one(http, call)),
    },
    Operation {
        id: "cancelRun",
        method: "POST",
        path: "/runs/{run}/cancel",
        summary: "Cancel a run; this cannot be taken back",
        about: "",
        parameters: &[],
        body: None,
        body_bytes: SMALL,
        answers: ONE_RUN,
        handler: |http, call| Box::pin(act::cancel(http, call)),
    },
    Operation {
        id: "suspendRun",
        method: "POST",
        path: "/runs/{run}/suspend",
        summary: "Let nothing new start; what runs finishes",
        about: "",
        parameters: &[],
        body: None,
        body_bytes: SMALL,
        answers: ONE_RUN,
        handler: |http, call| Box::pin(act::suspend(http, call)),
    },
    Operation {
        id: "resumeRun",
        method: "POST",
        path: "/runs/{run}/resume",
        summary: "Let a suspended run go on",
        about: "",
        parameters: &[],
        body: None,
        body_bytes: SMALL,
        answers: ONE_RUN,
        handler: |http, call| Box::pin(act::resume(http, call)),
    },
    Operation {
        id: "retryRun",
        method: "POST",
        path: "/runs/{run}/retry",
        summary: "Run again what did not complete, as a new run",
        about: "Outputs and documents of what completed are taken over, and decisions where the gate asks for the same as then.",
        parameters: &[header(
            "Idempotency-Key",
            "Makes it safe to repeat the request: the same key of the same user for the same run is the same new run. At most 255 characters; a `name` does as well.",
        )],
        body: Some((of::<retry::RetryRequest>, false)),
        body_bytes: SMALL,
        answers: &[json(201, "The new run.", of::<view::Answer>)],
        handler: |http, call| Box::pin(retry::retry(http, call)),
    },
    Operation {
        id: "getLogs",
        method: "GET",
        path: "/runs/{run}/steps/{step}/logs",
        summary: "What the agent of a step printed",
        about: "`step` is `group/step/key`: the path of the step, and behind it the keys of the items; outer parts may be left out where the rest is clear.",
        parameters: &[
            query("follow", Form::Flag, "Whether the answer goes on until the agent ends. The default is false."),
            query("tailLines", Form::Number(100_000), "How many lines of the end. The default is 5000."),
            query("attempt", Form::Number(i32::MAX as i64), "Which attempt. The default is the current one."),
        ],
        body: None,
        body_bytes: SMALL,
        answers: &[ResponseSpec { code: 200, about: "The log.", kind: "text/plain", of: None }],
        handler: |http, call| Box::pin(logs::logs(http, call)),
    },
    Operation {
        id: "decide",
        method: "POST",
        path: "/runs/{run}/steps/{step}/decision",
        summary: "Accept or reject at the gate of a step",
        about: "Whoever has the permission `approve` on the gate may; service accounts never.",
        parameters: &[],
        body: Some((of::<decision_request::DecisionRequest>, true)),
        body_bytes: SMALL,
        answers: TAKEN,
        handler: |http, call| Box::pin(decision::decision(http, call)),
    },
    Operation {
        id: "answer",
        method: "POST",
        path: "/runs/{run}/steps/{step}/answer",
        summary: "Answer a question, or say what becomes of a step that could not go on",
        about: "Whoever has the permission `answer` on the input may; service accounts never.",
        parameters: &[],
        body: Some((of::<decision_request::AnswerRequest>, true)),
        body_bytes: SMALL,
        answers: TAKEN,
        handler: |http, call| Box::pin(decision::answer(http, call)),
    },
    Operation {
        id: "putDocument",
        method: "POST",
        path: "/documents",
        summary: "Put a document for a story, a project or the namespace",
        about: "The same document twice is one: then the answer is 200 with `created: false`.",
        parameters: &[],
        body: Some((of::<documents::Put>, true)),
        body_bytes: LARGE,
        answers: &[
            json(200, "It was there already, and is the newest.", of::<documents::Listed>),
            json(201, "It was made.", of::<documents::Listed>),
        ],
        handler: |http, call| Box::pin(documents::put(http, call)),
    },
    Operation {
        id: "publishEvents",
        method: "POST",
        path: "/events",
        summary: "Publish CloudEvents: every Trigger that one matches starts a run",
        about: "CloudEvents 1.0 in structured, binary or batch mode. Whoever publishes needs the permission `trigger` on the Trigger, and to make the run. The same event again (Trigger, source and id) is the same run, for 24 hours at least.",
        parameters: &[],
        body: Some((of::<received::Event>, true)),
        body_bytes: LARGE,
        answers: PUBLISHED,
        handler: |http, call| Box::pin(events::publish(http, call)),
    },
    Operation {
        id: events::TO_TRIGGER,
        method: "POST",
        path: "/events/{trigger}",
        summary: "Publish events to one Trigger, also by its secret",
        about: "What a Trigger's `auth` asks for may stand in place of a token: then webhooks that are no CloudEvents are taken, too, and become events. An event that the Trigger does not take is told in `skipped`.",
        parameters: &[],
        body: Some((of::<received::Event>, true)),
        body_bytes: LARGE,
        answers: PUBLISHED,
        handler: |http, call| Box::pin(events::to_trigger(http, call)),
    },
    Operation {
        id: "getMemory",
        method: "GET",
        path: "/memory/{agent}/{story}",
        summary: "What an agent remembers in a story",
        about: "For debugging; agents read and write it by themselves.",
        parameters: &[],
        body: None,
        body_bytes: SMALL,
        answers: &[json(200, "Values by key; the revision is the `ETag`.", of::<memory::Remembered>)],
        handler: |http, call| Box::pin(memory::get(http, call)),
    },
    Operation {
        id: "putMemory",
        method: "PUT",
        path: "/memory/{agent}/{story}",
        summary: "Replace what an agent remembers in a story",
        about: "",
        parameters: &[],
        body: Some((of::<memory::Replacement>, true)),
        body_bytes: MEDIUM,
        answers: &[json(200, "What is remembered now.", of::<memory::Remembered>)],
        handler: |http, call| Box::pin(memory::put(http, call)),
    },
];
