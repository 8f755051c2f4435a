//! The gateway: the real one's calls, made as a shim makes them.

use axum::Router;
use axum::body::{Body, to_bytes};
use http::{Request, header};
use lockstep::api::name;
use lockstep::api::step_run::ReportClass;
use lockstep::cluster::clock::Clock;
use lockstep::cluster::evaluator::Evaluator;
use lockstep::gateway::{self, Bounds};
use lockstep::protocol::{self, AttemptRef, ClaimRequest, Ending, Output, Question, ReportRequest};
use lockstep::telemetry::traces::Traces;
use serde_json::Value;
use tokio::task::AbortHandle;
use tower::ServiceExt;

use super::door::{Caller, Door};
use super::kubelet::{Outcome, Process};
use super::policies;
use super::server::NAMESPACE;
use super::workload::QUESTIONS;
use super::world::{World, enter, millis, time};

#[derive(Default)]
pub struct Gateway {
    pub epoch: u32,
    router: Option<Router>,
    /// Calls under way, by the UID of their pod.
    calls: Vec<(String, AbortHandle)>,
}

/// What the shim makes of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With what it says.
    Done(Value),
    /// It may be so later, and the shim does not wait for long.
    Denied(String),
    Refused(String),
    Unavailable,
}

fn answer(code: u16, body: &[u8]) -> Answer {
    let words = || String::from_utf8_lossy(body).into_owned();
    match code {
        200..300 => Answer::Done(serde_json::from_slice(body).unwrap_or_default()),
        401 | 403 => Answer::Denied(words()),
        408 | 429 | 500..600 => Answer::Unavailable,
        _ => Answer::Refused(words()),
    }
}

impl World {
    pub fn start_gateway(&mut self) {
        self.gateway.epoch += 1;
        let caller = Caller::Gateway(self.gateway.epoch);
        let shared = self.shared();
        let door = Door::with(&shared, self.began, self.server.api.as_user(policies::GATEWAY), caller);
        let bounds = Bounds {
            max_connections: 64,
            max_connections_per_address: 64,
            max_handshakes_per_address: 64,
            max_inputs: 16,
            max_outputs: 16,
        };
        let began = self.began;
        let clock = Clock::of(move || time(millis(began)).0);
        let client = kube::Client::new(door, NAMESPACE);
        self.gateway.router = Some(gateway::calls(client, &bounds, Evaluator::here(), clock, Traces::default()));
    }

    /// What was under way is gone; another gateway is there at once.
    pub fn crash_gateway(&mut self) {
        self.tell(|| "the gateway crashes".into());
        for (uid, call) in std::mem::take(&mut self.gateway.calls) {
            call.abort();
            self.answered(&uid, Answer::Unavailable);
        }
        self.start_gateway();
    }

    /// Makes the call; `answered` hears of the answer.
    pub fn call_gateway(&mut self, process: &Process, path: &str, body: String) {
        let attempt = AttemptRef {
            namespace: NAMESPACE.to_owned(),
            step_run: process.step_run.clone(),
            uid: process.step_uid.clone(),
            attempt: process.attempt,
            id: process.id.clone(),
        };
        let audience = name::audience(&process.step_uid, process.attempt);
        let token = format!("{}|{}|{audience}", process.pod, process.uid);
        let mut request = Request::post(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        for (name, value) in attempt.headers() {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body)).expect("a request");
        let (shared, router, uid) =
            (self.shared(), self.gateway.router.clone().expect("a gateway"), process.uid.clone());
        let of = uid.clone();
        let call = tokio::spawn(async move {
            let Ok(response) = router.oneshot(request).await;
            let code = response.status().as_u16();
            let body = to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
            let mut world = enter(&shared);
            world.gateway.calls.retain(|(other, _)| *other != uid);
            world.answered(&uid, answer(code, &body));
        });
        self.gateway.calls.push((of, call.abort_handle()));
    }

    pub fn claim(&mut self, process: &Process) {
        let request = ClaimRequest { shim_version: "0".to_owned() };
        self.call_gateway(process, protocol::CLAIM, serde_json::to_string(&request).expect("it serializes"));
    }

    pub fn report(&mut self, process: &Process, outcome: &Outcome) {
        let code = outcome.code.unwrap_or_default();
        let good = |result: String| (Ending::exited(0), Some(result));
        let (ending, result) = match outcome.class {
            ReportClass::Succeeded => (Ending::exited(0), outcome.output.clone()),
            ReportClass::InvalidOutput => good("this is no JSON".to_owned()),
            ReportClass::OutputTooLarge => good("x".repeat(lockstep::api::limits::DOCUMENT_BYTES + 1)),
            ReportClass::Timeout => (Ending::TimedOut { code: Some(143) }, None),
            ReportClass::Asked if process.talk.requests => (Ending::Asked { questions: Vec::new() }, None),
            ReportClass::Asked => (Ending::Asked { questions: QUESTIONS.map(question).into() }, None),
            ReportClass::Retryable => (Ending::Failed { retryable: true, message: "later".to_owned(), code }, None),
            _ => (Ending::exited(code), None),
        };
        let output = Output { result, document: outcome.document.clone(), ..Output::default() };
        let usage =
            self.workload.talks.then(|| protocol::Usage { tokens_in: process.talk.used, ..protocol::Usage::default() });
        let request = ReportRequest { ending, output, log_tail: String::new(), usage };
        self.call_gateway(process, protocol::REPORT, serde_json::to_string(&request).expect("it serializes"));
    }
}

pub fn question(text: &str) -> Question {
    Question { question: text.to_owned(), ..Question::default() }
}
