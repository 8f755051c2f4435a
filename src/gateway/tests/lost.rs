//! A gateway dies in the middle of a call: at every request that the call makes to the API server, before it is sent, after it
//! was carried out, and with its own answer under way. The shim repeats the call, another gateway answers it, and what is
//! stored then is what it would be had nothing happened: nothing is lost, and nothing done twice.

use std::convert::Infallible;
use std::sync::atomic::AtomicUsize;
use std::task::{Context as Task, Poll};

use futures::future::{BoxFuture, pending};
use http::Response;
use tokio::sync::Notify;
use tower::Service;

use super::*;
use crate::protocol::memory;

/// Where in the request the gateway dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// It is never sent.
    Before,
    /// It was carried out, and nobody hears the answer.
    After,
}

/// The way of a gateway to the API server, on which it dies.
#[derive(Clone)]
struct Way {
    api: ApiServer,
    /// Requests that go well before that.
    left: Arc<AtomicUsize>,
    moment: Moment,
    dies: Arc<Notify>,
}

impl Service<Request<kube::client::Body>> for Way {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let way = self.clone();
        let dies = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err();
        Box::pin(async move {
            if dies && way.moment == Moment::Before {
                way.dies.notify_one();
                return pending().await;
            }
            let answer = way.api.oneshot(request).await;
            if dies {
                way.dies.notify_one();
                return pending().await;
            }
            answer
        })
    }
}

/// A call, and what is set up before it.
struct Case {
    name: &'static str,
    path: &'static str,
    body: Value,
    /// Whether a repetition may write the same once more.
    writes_again: bool,
    setup: Setup,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    Nothing,
    Claimed,
    /// An approval was requested and given, and not used.
    Approved,
    /// A question was put, and the agent waits for its answer.
    Asked,
    /// The agent's container was left as it is, and has ended.
    Ended,
}

fn case(name: &'static str, path: &'static str, body: Value) -> Case {
    Case { name, path, body, writes_again: false, setup: Setup::Claimed }
}

fn cases() -> Vec<Case> {
    let output = |result: &str| json!({"result": result, "document": null});
    let ends = |ending: Value, result: &str| {
        json!({"ending": ending, "output": output(result), "logTail": "the end",
        "usage": {"tokensIn": 7, "tokensOut": 1, "cost": "0.5", "models": ["m"]}})
    };
    let exited = json!({"kind": "exited", "code": 0});
    let remember = |operation: Value| json!({"operation": operation});
    let set = json!({"kind": "set", "key": "plan", "value": "1", "ifRevision": null, "sequence": 1});
    let set_if = json!({"kind": "set", "key": "status", "value": "2", "ifRevision": 1, "sequence": 1});
    let delete = json!({"kind": "delete", "key": "status", "ifRevision": null, "sequence": 1});
    let large = format!("{{\"text\": \"{}\"}}", "x".repeat(20_000));
    let asks =
        json!({"questions": [{"question": "How much?"}, {"question": "Who?", "key": "who"}], "waitSeconds": 300});
    vec![
        Case { setup: Setup::Nothing, ..case("claim", protocol::CLAIM, json!({"shimVersion": "0"})) },
        Case { writes_again: true, ..case("progress", protocol::PROGRESS, json!({"percent": 50, "message": "half"})) },
        case("usage", protocol::USAGE, json!({"tokensIn": 10, "tokensOut": 2, "cost": "0.25", "models": ["m"]})),
        case("history", protocol::HISTORY, json!({})),
        case("check", protocol::CHECK, json!({"output": output("1")})),
        case("document list", protocol::DOCUMENTS, json!({"kind": "list"})),
        case("document get", protocol::DOCUMENTS, json!({"kind": "get", "type": "glossary"})),
        case("memory get", memory::PATH, remember(json!({"kind": "get", "key": "status"}))),
        case("memory set", memory::PATH, remember(set)),
        case("memory set if", memory::PATH, remember(set_if)),
        case("memory delete", memory::PATH, remember(delete)),
        case("ask", protocol::ASK, asks),
        Case { setup: Setup::Asked, ..case("await", protocol::AWAIT, waits_for("How much?", 1)) },
        case("request-approval", protocol::APPROVAL, mail(CALL)),
        Case { setup: Setup::Approved, ..case("use an approval", protocol::APPROVAL, mail(CALL)) },
        Case { setup: Setup::Ended, ..case("ended", protocol::ENDED, json!({})) },
        case("report", protocol::REPORT, ends(exited.clone(), "{\"n\": 1}")),
        case("report of a large output", protocol::REPORT, ends(exited.clone(), &large)),
        case("report of a wrong output", protocol::REPORT, ends(exited, "{")),
        case("report of a failure", protocol::REPORT, ends(json!({"kind": "exited", "code": 3}), "1")),
        case(
            "report of a question",
            protocol::REPORT,
            ends(json!({"kind": "asked", "questions": [{"question": "How much?"}]}), "null"),
        ),
    ]
}

impl Scene {
    fn by(&self, way: &Way) -> Self {
        let router = Self::gateway(kube::Client::new(way.clone(), TEAM));
        Self { api: self.api.clone(), router, tokens: self.tokens.clone() }
    }

    /// All that there is before the call.
    async fn prepared(case: &Case) -> (Self, Attempt) {
        let scene = Self::new();
        scene.create_agent_once();
        let attempt = scene.attempt("run", "bikes");
        let entry = json!({"value": "\"initialized\"", "revision": 1});
        let spec = json!({"agentId": "writer", "session": "bikes", "revision": 1, "entries": {"status": entry}});
        scene.create(
            Kind::Memory,
            &json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Memory",
            "metadata": {"name": name::memory("writer", "bikes"), "namespace": TEAM}, "spec": spec}),
        );
        let (glossary, status) = placed("words", "glossary", ("Session", "bikes"), ("Published", 1));
        scene.create(Kind::Document, &glossary);
        scene.set_status(Kind::Document, "words", &status);
        let key = Key::new(Kind::StepRun, TEAM, &attempt.who.step_run);
        let gates = json!({"spec": {"actionGates": [{"name": "mail"}]}});
        scene.api.with(|registry| registry.patch(&key, Part::Main, (Format::Merge, &gates), BY)).expect("written");
        if case.setup != Setup::Nothing {
            scene.claim(&attempt).await;
        }
        match case.setup {
            Setup::Approved => {
                let (_, asked) = scene.call(&attempt, protocol::APPROVAL, &mail(&"9".repeat(32))).await;
                scene.decide(&attempt, &asked["digest"], "Accepted");
            }
            Setup::Asked => {
                let asks = json!({"questions": [{"question": "How much?"}], "waitSeconds": 300});
                scene.call(&attempt, protocol::ASK, &asks).await;
                scene.put(&attempt, "How much?");
            }
            Setup::Ended => {
                let terminated = json!({"exitCode": 0, "message": "1", "reason": "Completed"});
                let container = json!({"name": "agent", "state": {"terminated": terminated}, "ready": false,
                    "restartCount": 0, "image": "i", "imageID": "i"});
                let status = json!({"phase": "Running", "containerStatuses": [container]});
                scene.set_status(Kind::Pod, "run-pod", &status);
            }
            Setup::Nothing | Setup::Claimed => {}
        }
        (scene, attempt)
    }

    /// All that a call may change, and how often anything was written at all.
    fn stored(&self, attempt: &Attempt) -> (Value, u64) {
        let all = |kind: Kind| -> Vec<Value> {
            let objects: Vec<Value> =
                self.api.with(|registry| registry.store().list(kind).iter().map(|o| o.value.clone()).collect());
            let told = |o: &Value| {
                json!([o["metadata"]["name"], o["metadata"]["ownerReferences"], o["spec"], o["status"]["phase"]])
            };
            objects.iter().map(told).collect()
        };
        let stored = json!([self.status(&attempt.who.step_run), all(Kind::Document), all(Kind::Memory)]);
        (stored, self.api.with(|registry| registry.store().version()))
    }
}

/// What is stored, and what the shim is told in the end; how often the gateway died at most.
async fn undisturbed(case: &Case) -> ((Value, u64), (u16, Value)) {
    let (scene, attempt) = Scene::prepared(case).await;
    let answer = scene.beside().call(&attempt, case.path, &case.body).await;
    assert_eq!(answer.0 / 100, 2, "{}: {answer:?}", case.name);
    (scene.stored(&attempt), answer)
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_dies_in_the_middle_of_a_call_leaves_no_double_effect() {
    for case in cases() {
        let (expected, told) = undisturbed(&case).await;
        let mut deaths = 0;
        for moment in [Moment::Before, Moment::After] {
            for after in 0.. {
                let (scene, attempt) = Scene::prepared(&case).await;
                let way = Way {
                    api: scene.api.clone(),
                    left: Arc::new(AtomicUsize::new(after)),
                    moment,
                    dies: Arc::default(),
                };
                let dying = scene.by(&way);
                let died = tokio::select! {
                    answer = dying.call(&attempt, case.path, &case.body) => {
                        assert_eq!(answer, told, "{}", case.name);
                        false
                    }
                    () = way.dies.notified() => true,
                };
                drop(dying);
                let what = format!("{}, {moment:?} request {after}, died: {died}", case.name);
                // The shim repeats it: the other gateway knows nothing but what is stored. So it does where the answer was lost.
                let answer = scene.beside().call(&attempt, case.path, &case.body).await;
                assert_eq!(answer, told, "{what}");
                let (stored, version) = scene.stored(&attempt);
                assert_eq!(stored, expected.0, "{what}");
                assert!(
                    version == expected.1 || case.writes_again && version <= expected.1 + 1,
                    "{what}: written twice"
                );
                if !died {
                    break;
                }
                deaths += 1;
            }
        }
        // The token, the StepRun or the pod, and what the call itself does.
        let least = if matches!(case.path, protocol::PROGRESS | protocol::ENDED) { 4 } else { 6 };
        assert!(deaths >= least, "{}: the gateway died {deaths} times only", case.name);
    }
}
