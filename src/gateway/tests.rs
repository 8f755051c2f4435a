//! The calls of an attempt, as its shim makes them, over an API server in memory: what the gateway writes and gives out.

pub mod log;
mod lost;
mod pace;
mod strangers;
mod terms;

use axum::body::{Body, to_bytes};
use http::{Request, header};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

use super::*;
use crate::api::definition::Definition;
use crate::api::name::{self, LABEL_ATTEMPT, LABEL_STEP_RUN};
use crate::api::step_run::AttemptResult;
use crate::api::{StepRun, Workflow};
use crate::apiserver::access::Access;
use crate::apiserver::{ApiServer, Format, Key, Kind, MemoryStore, Part, Registry, Writer};
use crate::decide::{build, failure};
use crate::protocol::{self, AttemptRef};
use crate::telemetry::traces::Traces;

const TEAM: &str = "team";
const ID: &str = "0123456789abcdef0123456789abcdef";
const BY: Writer<'static> = Writer { user: "admin", is_dry_run: false };

/// A token is the name of a pod, its UID and an audience. Those that are kept here count no more: their time is over, or their
/// pod is gone.
#[derive(Clone, Default)]
struct Tokens(Arc<std::sync::Mutex<std::collections::HashSet<String>>>);

impl Access for Tokens {
    fn authenticate(&self, token: &str, audiences: &[String]) -> Option<(UserInfo, Vec<String>)> {
        if self.0.lock().expect("a lock").contains(token) {
            return None;
        }
        let [pod, uid, audience] = token.split('|').collect::<Vec<_>>()[..] else { return None };
        let extra = |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        let user = UserInfo {
            username: Some(format!("system:serviceaccount:{TEAM}:default")),
            extra: Some([extra("pod-name", pod), extra("pod-uid", uid)].into()),
            ..UserInfo::default()
        };
        audiences.iter().any(|wanted| wanted == audience).then(|| (user, vec![audience.to_owned()]))
    }
}

/// A server whose clock says how many objects were made: each StepRun is a second older than the next.
struct Scene {
    api: ApiServer,
    router: Router,
    tokens: Tokens,
}

/// An attempt, and the token of its pod.
struct Attempt {
    who: AttemptRef,
    token: String,
}

impl Scene {
    fn new() -> Self {
        let seconds = std::sync::atomic::AtomicI64::new(0);
        let clock = move || Timestamp::new(seconds.fetch_add(1, Ordering::Relaxed), 0).expect("a time");
        let (tokens, memory) = (Tokens::default(), Box::new(MemoryStore::keeping(10)));
        let registry = Registry::new(memory, Box::new(tokens.clone()), Box::new(clock), "gateway".to_owned());
        let api = ApiServer::new(registry, "gateway");
        let router = Self::gateway(api.client(TEAM));
        Self { api, router, tokens }
    }

    fn gateway(client: kube::Client) -> Router {
        let bounds = Bounds {
            max_connections: 8,
            max_connections_per_address: 8,
            max_handshakes_per_address: 8,
            max_inputs: 8,
            max_outputs: 8,
        };
        calls(client, &bounds, Evaluator::here(), Clock::of(|| Timestamp::UNIX_EPOCH), Traces::default())
    }

    fn create(&self, kind: Kind, object: &impl serde::Serialize) -> Value {
        let object = serde_json::to_value(object).expect("JSON");
        let key = Key::new(kind, TEAM, object["metadata"]["name"].as_str().expect("a name"));
        self.api.with(|registry| registry.create(&key, object, BY).expect("made").value.clone())
    }

    fn set_status(&self, kind: Kind, name: &str, status: &Value) {
        let patch = json!({"status": status});
        let key = Key::new(kind, TEAM, name);
        self.api.with(|registry| registry.patch(&key, Part::Status, (Format::Merge, &patch), BY)).expect("written");
    }

    fn status(&self, name: &str) -> Value {
        let key = Key::new(Kind::StepRun, TEAM, name);
        self.api.with(|registry| registry.get(&key)).expect("it is there").value["status"].clone()
    }

    /// A run of one step by the Agent `writer`, whose first attempt has a pod.
    fn attempt(&self, run: &str, session: &str) -> Attempt {
        let question = json!({"name": "budget", "ask": {"question": "How much?"}});
        let steps = json!([question, {"name": "work", "agentId": "writer"}]);
        let object = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
            "metadata": {"name": run, "namespace": TEAM}, "spec": {"steps": steps}});
        let workflow: Workflow = serde_json::from_value(self.create(Kind::Workflow, &object)).expect("a run");
        let uid = workflow.metadata.uid.clone().expect("a UID");
        let definition: Definition = serde_json::from_value(
            json!({"workflow": run, "workflowUid": uid, "session": session, "input": "A shop", "steps": steps}),
        )
        .expect("a definition");
        let revision = build::revision(&workflow, &definition);
        self.create(Kind::ControllerRevision, &revision);
        let digest = name::digest_bytes(serde_json::to_string(&definition).expect("JSON").as_bytes());
        let spec = json!({"workflow": {"name": run, "uid": uid}, "path": "work", "agentId": "writer",
            "definition": {"revisionName": revision.metadata.name, "digest": digest}, "parameters": format!("{{\"of\":\"{run}\"}}"),
            "inputDigest": "i", "scopeChain": [{"scope": "workflow", "scopeId": uid}]});
        let step_run = build::step_run(&workflow, session, serde_json::from_value(spec).expect("a spec"), &[]);
        let step_run: StepRun = serde_json::from_value(self.create(Kind::StepRun, &step_run)).expect("a StepRun");
        let (own, uid) = (step_run.metadata.name.expect("a name"), step_run.metadata.uid.expect("a UID"));
        let pod = format!("{run}-pod");
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": TEAM,
            "labels": {LABEL_STEP_RUN: own, LABEL_ATTEMPT: "1"}, "ownerReferences": [{"apiVersion": "batch/v1",
            "kind": "Job", "name": "job", "uid": "job", "controller": true}]}, "spec": {}});
        let pod_uid = self.create(Kind::Pod, &object)["metadata"]["uid"].as_str().expect("a UID").to_owned();
        let job = json!({"attempt": 1, "name": "job", "uid": "job"});
        self.set_status(Kind::StepRun, &own, &json!({"phase": "Running", "attempt": 1, "round": 1, "job": job}));
        let token = format!("{pod}|{pod_uid}|{}", name::audience(&uid, 1));
        let who = AttemptRef { namespace: TEAM.to_owned(), step_run: own, uid, attempt: 1, id: ID.to_owned() };
        Attempt { who, token }
    }

    async fn call(&self, of: &Attempt, path: &str, body: &Value) -> (u16, Value) {
        let mut request = Request::post(path).header(header::AUTHORIZATION, format!("Bearer {}", of.token));
        for (name, value) in of.who.headers() {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body.to_string())).expect("a request");
        let Ok(response) = self.router.clone().oneshot(request).await;
        let code = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        (code, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Claims, and gives the context.
    async fn claim(&self, of: &Attempt) -> Value {
        let (code, answer) = self.call(of, protocol::CLAIM, &json!({"shimVersion": "0"})).await;
        assert_eq!(code, 200, "{answer}");
        answer["context"].clone()
    }
}

fn report(result: &str) -> Value {
    json!({"ending": {"kind": "exited", "code": 0}, "output": {"result": result, "document": null}, "logTail": ""})
}

fn kinds(context: &Value) -> Vec<(String, String)> {
    let entries = context["history"].as_array().or(context["entries"].as_array()).expect("a history");
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    entries.iter().map(|entry| (text(entry, "kind"), text(&entry["of"], "workflow"))).collect()
}

#[tokio::test]
async fn a_claim_says_busy_and_a_report_what_it_came_to() {
    let scene = Scene::new();
    for (run, body, state) in [
        ("good", report("1"), "Completed"),
        ("wrong", report("{"), "Failed"),
        (
            "exits",
            json!({"ending": {"kind": "exited", "code": 3}, "output": {"result": null, "document": null}, "logTail": ""}),
            "Failed",
        ),
    ] {
        let attempt = scene.attempt(run, "_private");
        scene.create_agent_once();
        scene.claim(&attempt).await;
        let agent = scene.status(&attempt.who.step_run)["agent"].clone();
        assert_eq!((&agent["journal"]["state"], &agent["journal"]["attempt"]), (&json!("Busy"), &json!(1)));
        assert_eq!((&agent["progress"]["percent"], &agent["progress"]["at"]), (&json!(0), &agent["claim"]["at"]));
        assert_eq!(scene.call(&attempt, protocol::REPORT, &body).await.0, 200);
        let agent = scene.status(&attempt.who.step_run)["agent"].clone();
        assert_eq!(agent["journal"]["state"], state, "{run}: {agent}");
    }
}

#[tokio::test]
async fn an_exit_0_without_work_in_a_pod_that_is_taken_away_is_no_success() {
    let scene = Scene::new();
    let disrupted = json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}]});
    let signalled = json!({"kind": "exited", "code": 0, "signal": 15});
    let by_itself = json!({"kind": "exited", "code": 0});
    for (run, taken_away, ending, result, succeeds) in [
        ("drained", true, &signalled, None, false),
        ("drained-with-work", true, &signalled, Some("{}"), true),
        ("ended-before", true, &by_itself, None, true),
        ("told-to-stop", false, &signalled, None, true),
    ] {
        let of = scene.attempt(run, "s");
        scene.create_agent_once();
        scene.claim(&of).await;
        if taken_away {
            scene.set_status(Kind::Pod, &format!("{run}-pod"), &disrupted);
        }
        let body = json!({"ending": ending, "output": {"result": result, "document": null}, "logTail": ""});
        for _ in 0..2 {
            let (code, answer) = scene.call(&of, protocol::REPORT, &body).await;
            assert_eq!(code, 200, "{run}: {answer}");
            let faults = answer["faults"].as_array().map_or(0, Vec::len);
            assert_eq!(faults, usize::from(!succeeds), "{run}: {answer}");
        }
        let report = &scene.status(&of.who.step_run)["agent"]["report"];
        assert_eq!(report["exitCode"], 0, "{run}: {report}");
        let report = serde_json::from_value(report.clone()).expect("a report");
        let expected = if succeeds { AttemptResult::Succeeded } else { AttemptResult::Infrastructure };
        assert_eq!(failure::verdict(&report, None), expected, "{run}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sum_counts_once_in_whatever_order_it_comes() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.attempt("run", "_private");
    let usage = |tokens: i64, cost: &str| json!({"tokensIn": tokens, "tokensOut": 1, "cost": cost, "models": ["m"]});
    let used = || scene.status(&attempt.who.step_run)["agent"]["usage"].clone();
    assert_eq!(scene.call(&attempt, protocol::USAGE, &usage(1, "0.1")).await.0, 409, "before the claim");
    scene.claim(&attempt).await;
    for (said, cost, code, known) in [
        (10, "0.10", 204, 10),
        // The same again, as after a lost reply, and one that was overtaken.
        (10, "0.10", 204, 10),
        (4, "0.05", 204, 10),
        (30, "0.30", 204, 30),
    ] {
        tokio::time::advance(Duration::from_secs(3)).await;
        let (answered, answer) = scene.call(&attempt, protocol::USAGE, &usage(said, cost)).await;
        assert_eq!((answered, &used()["tokensIn"]), (code, &json!(known)), "{said}: {answer}");
    }
    // Too soon: the shim comes again, and another gateway comes to the same.
    assert_eq!(scene.call(&attempt, protocol::USAGE, &usage(40, "0.4")).await.0, 503);
    let other = scene.beside();
    assert_eq!(other.call(&attempt, protocol::USAGE, &usage(40, "0.4")).await.0, 204);
    assert_eq!(used(), json!({"tokensIn": 40, "tokensOut": 1, "cost": "0.4", "models": ["m"]}));
    for wrong in [json!({"tokensIn": -1, "tokensOut": 0}), json!({"tokensIn": 1, "tokensOut": 0, "cost": "much"})] {
        assert_eq!(scene.call(&attempt, protocol::USAGE, &wrong).await.0, 400, "{wrong}");
    }
    let stranger =
        Attempt { who: AttemptRef { id: "f".repeat(32), ..attempt.who.clone() }, token: attempt.token.clone() };
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(scene.call(&stranger, protocol::USAGE, &usage(99, "9")).await.0, 409, "another shim's");
    // The end says all of it, in the one write that commits; after that nothing counts.
    let mut last = report("1");
    last["usage"] = usage(50, "0.5");
    assert_eq!(scene.call(&attempt, protocol::REPORT, &last).await.0, 200);
    assert_eq!(used()["tokensIn"], 50);
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(scene.call(&attempt, protocol::USAGE, &usage(60, "0.6")).await.0, 409);
    assert_eq!(scene.call(&attempt, protocol::REPORT, &last).await.0, 200, "a repeated report");
    assert_eq!(used()["tokensIn"], 50);
}

#[tokio::test]
async fn a_session_is_remembered_and_nobody_else_is_told() {
    let scene = Scene::new();
    scene.create_agent_once();
    let first = scene.attempt("first", "bikes");
    assert_eq!(scene.claim(&first).await["history"], json!([]));
    scene.call(&first, protocol::REPORT, &report(r#"{"summary": "two epics"}"#)).await;
    let made = scene.status(&first.who.step_run)["agent"]["report"]["digest"].clone();
    let attempts = json!([{"number": 1, "round": 1, "result": "Succeeded", "completedAt": "1970-01-01T00:00:00Z"}]);
    let done = |digest: &Value| json!({"phase": "Completed", "attempts": attempts, "result": {"attempt": 1, "digest": digest}});
    scene.set_status(Kind::StepRun, &first.who.step_run, &done(&made));

    let second = scene.attempt("second", "bikes");
    let context = scene.claim(&second).await;
    let history = &context["history"];
    assert_eq!(history[0]["text"], r#"{"of":"first"}"#);
    assert_eq!((&history[1]["text"], &history[1]["digest"]), (&json!("two epics"), &made), "{history}");
    assert_eq!(context.get("historyCursor"), None);
    // Another session, a private one, and what still runs.
    for (run, session) in [("elsewhere", "cars"), ("private", "_private"), ("beside", "bikes")] {
        let context = scene.claim(&scene.attempt(run, session)).await;
        let expected = if session == "bikes" { 2 } else { 0 };
        assert_eq!(context["history"].as_array().map(Vec::len), Some(expected), "{run}: {context}");
    }
}

#[tokio::test]
async fn what_people_answered_in_the_run_is_told_to_the_agents_that_follow() {
    let scene = Scene::new();
    scene.create_agent_once();
    let work = scene.attempt("run", "_private");
    assert_eq!(scene.claim(&work).await["history"], json!([]), "it is not asked yet");
    let run = Key::new(Kind::Workflow, TEAM, "run");
    let run = scene.api.with(|registry| registry.get(&run)).expect("the run").value.clone();
    let run: Workflow = serde_json::from_value(run).expect("a run");
    let uid = run.metadata.uid.clone().expect("a UID");
    let spec = json!({"workflow": {"name": "run", "uid": uid}, "path": "budget", "parameters": "{}", "inputDigest": "i",
        "ask": {"name": "budget", "question": "How much?"}, "definition": {"revisionName": "r", "digest": "d"}});
    let asked = build::step_run(&run, "_private", serde_json::from_value(spec).expect("a spec"), &[]);
    let asked = scene.create(Kind::StepRun, &asked)["metadata"]["name"].as_str().expect("a name").to_owned();
    assert_eq!(scene.claim(&work).await["history"], json!([]), "it is not answered yet");
    let answer = json!({"value": "500", "by": "ann", "at": "1970-01-01T00:00:00Z"});
    scene.set_status(Kind::StepRun, &asked, &json!({"phase": "Completed", "answer": answer}));
    let context = scene.claim(&work).await;
    let told: Vec<_> = kinds(&context).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(told, ["question", "answer"]);
    assert_eq!((&context["history"][1]["text"], &context["history"][1]["by"]), (&json!("500"), &json!("ann")));
}

#[tokio::test]
async fn older_entries_are_had_page_by_page() {
    let scene = Scene::new();
    scene.create_agent_once();
    let runs: Vec<String> = (0..27).map(|n| format!("run-{n}")).collect();
    for run in &runs {
        let attempt = scene.attempt(run, "bikes");
        let status = json!({"phase": "Completed", "result": {"attempt": 1, "digest": format!("sha256:{run}")}});
        scene.set_status(Kind::StepRun, &attempt.who.step_run, &status);
    }
    let last = scene.attempt("last", "bikes");
    let context = scene.claim(&last).await;
    let mut all = kinds(&context);
    assert_eq!(all.len(), 20, "{context}");
    let mut cursor = context["historyCursor"].clone();
    let mut pages = 0;
    while !cursor.is_null() {
        let (code, page) = scene.call(&last, protocol::HISTORY, &json!({"before": cursor})).await;
        assert_eq!(code, 200, "{page}");
        let mut found = kinds(&page);
        assert!(!found.is_empty() && found.len() <= 20, "{page}");
        found.append(&mut all);
        all = found;
        cursor = page["cursor"].clone();
        pages += 1;
    }
    assert_eq!(pages, 2);
    let expected: Vec<(String, String)> =
        runs.iter().flat_map(|run| ["asked", "gave"].map(|kind| (kind.to_owned(), run.clone()))).collect();
    assert_eq!(all, expected);
    let (code, answer) = scene.call(&last, protocol::HISTORY, &json!({"before": "nonsense"})).await;
    assert_eq!(code, 400, "{answer}");
    let stranger = Attempt { who: AttemptRef { id: "f".repeat(32), ..last.who.clone() }, token: last.token.clone() };
    assert_eq!(scene.call(&stranger, protocol::HISTORY, &json!({})).await.0, 409, "another shim's");
}

/// Documents of a type, of one scope and id, in a phase.
fn placed(name: &str, kind: &str, (scope, id): (&str, &str), (phase, revision): (&str, i64)) -> (Value, Value) {
    let whose = match scope {
        "Session" => "session",
        "Project" => "project",
        _ => "scopeId",
    };
    let content = format!("the {name}");
    let mut spec = json!({"type": kind, "scope": scope, "format": "text", "content": content});
    if !id.is_empty() {
        spec[whose] = json!(id);
    }
    let object = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Document",
        "metadata": {"name": name, "namespace": TEAM}, "spec": spec});
    let status = json!({"phase": phase, "revision": revision, "digest": name::digest_bytes(content.as_bytes())});
    (object, status)
}

#[tokio::test]
async fn documents_are_found_where_the_step_can_see_them_and_what_is_read_is_written_down() {
    let scene = Scene::new();
    scene.create_agent_once();
    let work = scene.attempt("run", "bikes");
    let run = scene.api.with(|registry| registry.get(&Key::new(Kind::Workflow, TEAM, "run"))).expect("the run");
    let run = run.uid.clone();
    for (object, status) in [
        placed("everywhere", "glossary", ("Namespace", ""), ("Published", 4)),
        placed("old", "glossary", ("Session", "bikes"), ("Superseded", 1)),
        placed("newer", "glossary", ("Session", "bikes"), ("Published", 2)),
        placed("newest", "glossary", ("Session", "bikes"), ("Published", 3)),
        placed("waits", "glossary", ("Workflow", &run), ("Draft", 9)),
        placed("own", "plan", ("Workflow", &run), ("Published", 1)),
        placed("foreign", "secret", ("Workflow", "another-run"), ("Published", 1)),
        placed("item", "secret", ("Item", &format!("{run}/a")), ("Published", 1)),
        placed("cars", "secret", ("Session", "cars"), ("Published", 1)),
        placed("project", "secret", ("Project", "bikes"), ("Published", 1)),
    ] {
        scene.create(Kind::Document, &object);
        scene.set_status(Kind::Document, object["metadata"]["name"].as_str().expect("a name"), &status);
    }
    let get = |kind: &str| json!({"kind": "get", "type": kind});
    assert_eq!(scene.call(&work, protocol::DOCUMENTS, &get("plan")).await.0, 409, "before the claim");
    scene.claim(&work).await;

    let (code, all) = scene.call(&work, protocol::DOCUMENTS, &json!({"kind": "list"})).await;
    let names: Vec<&str> =
        all["documents"].as_array().into_iter().flatten().filter_map(|found| found["name"].as_str()).collect();
    assert_eq!(
        (code, names, &all["more"]),
        (200, vec!["own", "newest", "newer", "everywhere"], &json!(false)),
        "{all}"
    );
    let (_, some) = scene.call(&work, protocol::DOCUMENTS, &json!({"kind": "list", "scope": "namespace"})).await;
    assert_eq!(some["documents"][0]["name"], "everywhere", "{some}");

    let read = || scene.status(&work.who.step_run)["agent"]["documentsRead"].clone();
    assert_eq!(read(), Value::Null, "a list gives no content");
    for _ in 0..2 {
        let (code, found) = scene.call(&work, protocol::DOCUMENTS, &get("glossary")).await;
        assert_eq!((code, &found["kind"], &found["content"]), (200, &json!("found"), &json!("the newest")), "{found}");
        assert_eq!(found["document"]["digest"], name::digest_bytes(b"the newest"));
    }
    let everywhere = json!({"kind": "get", "type": "glossary", "scope": "Namespace"});
    let (_, found) = scene.call(&work, protocol::DOCUMENTS, &everywhere).await;
    assert_eq!(found["content"], "the everywhere");
    let said: Vec<(&str, &str)> = [("newest", "Session"), ("everywhere", "Namespace")].into();
    let known = read();
    for (at, (name, scope)) in said.iter().enumerate() {
        assert_eq!((&known[at]["name"], &known[at]["scope"]), (&json!(name), &json!(scope)), "{known}");
        assert_eq!(known[at]["digest"], name::digest_bytes(format!("the {name}").as_bytes()));
    }
    assert_eq!(known.as_array().map(Vec::len), Some(2), "each once: {known}");

    // What it cannot see is as if it were not there; a call cannot name whose.
    assert_eq!(scene.call(&work, protocol::DOCUMENTS, &get("secret")).await.1, json!({"kind": "absent"}));
    for wrong in [get("secret,spec.scope=Item"), json!({"kind": "get", "type": "plan", "scope": "Cluster"})] {
        assert_eq!(scene.call(&work, protocol::DOCUMENTS, &wrong).await.0, 400, "{wrong}");
    }
    let stranger = Attempt { who: AttemptRef { id: "f".repeat(32), ..work.who.clone() }, token: work.token.clone() };
    assert_eq!(scene.call(&stranger, protocol::DOCUMENTS, &get("plan")).await.0, 409, "another shim's");

    // The record is bounded, and so is what can be read.
    for number in 2..20 {
        let name = format!("more-{number}");
        let (object, status) = placed(&name, &name, ("Namespace", ""), ("Published", 1));
        scene.create(Kind::Document, &object);
        scene.set_status(Kind::Document, &name, &status);
        assert_eq!(scene.call(&work, protocol::DOCUMENTS, &get(&name)).await.0, 200, "{name}");
    }
    let (code, refused) = scene.call(&work, protocol::DOCUMENTS, &get("plan")).await;
    assert_eq!((code, read().as_array().map(Vec::len)), (400, Some(20)), "{refused}");
    assert_eq!(scene.call(&work, protocol::DOCUMENTS, &get("more-7")).await.0, 200, "what was read before");

    assert_eq!(scene.call(&work, protocol::REPORT, &report("1")).await.0, 200);
    assert_eq!(scene.call(&work, protocol::DOCUMENTS, &get("more-7")).await.0, 409, "after the end");
    assert_eq!(read().as_array().map(Vec::len), Some(20), "the report leaves it");
}

#[tokio::test]
async fn documents_of_all_items_below_are_found_by_their_keys() {
    let scene = Scene::new();
    scene.create_agent_once();
    let work = scene.attempt("run", "bikes");
    let run = scene.api.with(|registry| registry.get(&Key::new(Kind::Workflow, TEAM, "run"))).expect("the run");
    let own = |key: &str| format!("{}/{key}", run.uid);
    for (name, kind, id, of, phase, revision) in [
        ("b-new", "story", own("b"), "run", "Published", 2),
        ("b-old", "story", own("b"), "run", "Published", 1),
        ("a", "story", own("a"), "run", "Published", 1),
        ("deep", "story", own("a/x,y"), "run", "Published", 1),
        ("waits", "story", own("c"), "run", "Draft", 1),
        ("other-type", "plan", own("a"), "run", "Published", 1),
        ("other-run", "story", "another/a".to_owned(), "another", "Published", 1),
        // It says that it is of this run.
        ("liar", "story", "another/d".to_owned(), "run", "Published", 1),
    ] {
        let (mut object, status) = placed(name, kind, ("Item", &id), (phase, revision));
        object["spec"]["workflow"] = json!(of);
        scene.create(Kind::Document, &object);
        scene.set_status(Kind::Document, name, &status);
    }
    scene.claim(&work).await;
    let list = json!({"kind": "list", "type": "story", "items": true});
    let (code, all) = scene.call(&work, protocol::DOCUMENTS, &list).await;
    let found: Vec<(&str, &str)> = all["documents"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|found| (found["key"].as_str().expect("a key"), found["name"].as_str().expect("a name")))
        .collect();
    assert_eq!((code, found), (200, vec![("a", "a"), ("a/x,y", "deep"), ("b", "b-new")]), "{all}");
    for (key, content) in
        [("b", Some("the b-new")), ("a/x,y", Some("the deep")), ("c", None), ("d", None), ("../another/a", None)]
    {
        let get = json!({"kind": "get", "type": "story", "key": key});
        let (code, found) = scene.call(&work, protocol::DOCUMENTS, &get).await;
        assert_eq!((code, found["content"].as_str()), (200, content), "{key}: {found}");
    }
    let read = scene.status(&work.who.step_run)["agent"]["documentsRead"].clone();
    assert_eq!(read.as_array().map(Vec::len), Some(2), "what was read is written down: {read}");
    for wrong in [
        json!({"kind": "list", "items": true}),
        json!({"kind": "list", "type": "story", "items": true, "scope": "Session"}),
        json!({"kind": "get", "type": "story", "key": "a", "scope": "Workflow"}),
    ] {
        let (code, refused) = scene.call(&work, protocol::DOCUMENTS, &wrong).await;
        assert_eq!(code, 400, "{wrong}: {refused}");
    }
}

impl Scene {
    fn create_agent_once(&self) {
        let key = Key::new(Kind::Agent, TEAM, "writer");
        if self.api.with(|registry| registry.get(&key)).is_err() {
            let template = json!({"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}});
            let agent = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent",
                "metadata": {"name": "writer", "namespace": TEAM}, "spec": {"template": template}});
            self.create(Kind::Agent, &agent);
        }
    }
}

// ---- agents that wait for people in their pods

impl Scene {
    /// The same objects behind another gateway.
    fn beside(&self) -> Self {
        let router = Self::gateway(self.api.client(TEAM));
        Self { api: self.api.clone(), router, tokens: self.tokens.clone() }
    }

    /// What the operator makes of what a person said.
    fn answered(&self, of: &Attempt, question: &str, value: &str) {
        let at = "1970-01-01T00:00:00Z";
        let answer = json!({"value": value, "by": "ann", "at": at});
        let asked = json!({"question": question, "attempt": 1, "askedAt": at, "answer": answer});
        self.set_status(
            Kind::StepRun,
            &of.who.step_run,
            &json!({"phase": "Running", "waitingFor": null, "questions": [asked]}),
        );
    }

    /// What the operator makes of what an agent waits for.
    fn put(&self, of: &Attempt, question: &str) {
        let at = "1970-01-01T00:00:00Z";
        let wait = json!({"id": "1-0", "kind": "Question", "question": question, "options": [], "since": at, "agentWaitsUntil": at});
        let asked = json!([{"question": question, "attempt": 1, "askedAt": at}]);
        let status = json!({"phase": "WaitingForInput", "waitingFor": wait, "questions": asked});
        self.set_status(Kind::StepRun, &of.who.step_run, &status);
    }
}

fn waits_for(question: &str, seconds: i64) -> Value {
    json!({"questions": [name::digest_bytes(question.as_bytes())], "seconds": seconds})
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_waits_hears_of_the_answer_through_any_gateway() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.attempt("run", "_private");
    let ask = json!({"questions": [{"question": "How much?"}], "waitSeconds": 300});
    assert_eq!(scene.call(&attempt, protocol::ASK, &ask).await.0, 409, "before the claim");
    scene.claim(&attempt).await;
    let open = json!({"answers": {}, "open": ["How much?"]});
    assert_eq!(scene.call(&attempt, protocol::ASK, &ask).await, (200, open.clone()));
    let asking = || scene.status(&attempt.who.step_run)["agent"]["asking"].clone();
    let (first, version) = (asking(), scene.api.with(|registry| registry.store().version()));
    assert_eq!((&first["attempt"], &first["questions"]), (&json!(1), &json!([{"question": "How much?"}])), "{first}");
    assert_eq!(first["until"], json!("1970-01-01T00:05:00Z"));
    // The same again, as after a lost reply, and through another gateway: nobody is asked twice.
    for gateway in [&scene, &scene.beside()] {
        assert_eq!(gateway.call(&attempt, protocol::ASK, &ask).await, (200, open.clone()));
    }
    assert_eq!(scene.api.with(|registry| registry.store().version()), version, "nothing is written again");
    // A second question joins it.
    let more = json!({"questions": [{"question": "Who?"}], "waitSeconds": 10});
    assert_eq!(scene.call(&attempt, protocol::ASK, &more).await.0, 200);
    let both = asking();
    assert_eq!((both["questions"].as_array().map(Vec::len), &both["until"]), (Some(2), &first["until"]));

    scene.put(&attempt, "How much?");
    let beside = scene.beside();
    let waiting = async { beside.call(&attempt, protocol::AWAIT, &waits_for("How much?", 20)).await };
    let answering = async {
        // It waits through whatever else is written.
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.set_status(Kind::StepRun, &attempt.who.step_run, &json!({"observedGeneration": 2}));
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.answered(&attempt, "How much?", "500");
        Instant::now()
    };
    let ((code, reply), at) = tokio::join!(waiting, answering);
    assert_eq!((code, reply), (200, json!({"done": true})));
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    let answered = json!({"answers": {"How much?": 500}, "open": []});
    assert_eq!(scene.call(&attempt, protocol::ASK, &ask).await, (200, answered));
    assert_eq!(scene.call(&attempt, protocol::AWAIT, &waits_for("How much?", 20)).await, (200, json!({"done": true})));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_in_time_and_with_its_attempt() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.attempt("run", "_private");
    scene.claim(&attempt).await;
    let ask = |seconds: i64| json!({"questions": [{"question": "How much?"}], "waitSeconds": seconds});
    for (seconds, code) in [(0, 400), (-1, 400), (604_801, 400), (604_800, 200)] {
        assert_eq!(scene.call(&attempt, protocol::ASK, &ask(seconds)).await.0, code, "{seconds}");
    }
    scene.put(&attempt, "How much?");
    for (seconds, most) in [(2, 3), (20, 21), (3600, 21)] {
        let begun = Instant::now();
        let answer = scene.call(&attempt, protocol::AWAIT, &waits_for("How much?", seconds)).await;
        assert_eq!(answer, (200, json!({"done": false})));
        assert!(begun.elapsed() < Duration::from_secs(most), "{seconds}: {:?}", begun.elapsed());
    }
    let many: Vec<Value> = (0..21).map(|n| json!(n.to_string())).collect();
    assert_eq!(scene.call(&attempt, protocol::AWAIT, &json!({"questions": many, "seconds": 1})).await.0, 400);
    let stranger =
        Attempt { who: AttemptRef { id: "f".repeat(32), ..attempt.who.clone() }, token: attempt.token.clone() };
    assert_eq!(scene.call(&stranger, protocol::AWAIT, &waits_for("How much?", 20)).await.0, 409, "another shim's");
    // The fence moves while it waits.
    let waiting = async { scene.call(&attempt, protocol::AWAIT, &waits_for("How much?", 20)).await };
    let fencing = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        scene.set_status(Kind::StepRun, &attempt.who.step_run, &json!({"attempt": 2}));
        Instant::now()
    };
    let ((code, _), at) = tokio::join!(waiting, fencing);
    assert_eq!(code, 409);
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
}

#[tokio::test]
async fn what_is_answered_while_an_attempt_gives_up_waiting_is_not_refused() {
    let scene = Scene::new();
    scene.create_agent_once();
    let gives_up = json!({"ending": {"kind": "asked", "questions": [{"question": "How much?"}]},
        "output": {"result": null, "document": null}, "logTail": ""});
    // Nothing was asked by this attempt: it has no reason to end.
    let before = scene.attempt("before", "_private");
    scene.claim(&before).await;
    scene.answered(&before, "How much?", "500");
    let other = json!({"questions": [{"question": "How much?", "attempt": 0, "askedAt": "1970-01-01T00:00:00Z",
        "answer": {"value": "500", "by": "ann", "at": "1970-01-01T00:00:00Z"}}]});
    scene.set_status(Kind::StepRun, &before.who.step_run, &other);
    assert_eq!(scene.call(&before, protocol::REPORT, &gives_up).await.0, 400);

    let attempt = scene.attempt("run", "_private");
    scene.claim(&attempt).await;
    let ask = json!({"questions": [{"question": "How much?"}], "waitSeconds": 300});
    assert_eq!(scene.call(&attempt, protocol::ASK, &ask).await.0, 200);
    scene.answered(&attempt, "How much?", "500");
    assert_eq!(scene.call(&attempt, protocol::REPORT, &gives_up).await.0, 200);
    let report = scene.status(&attempt.who.step_run)["agent"]["report"].clone();
    assert_eq!((&report["class"], report.get("questions")), (&json!("Asked"), None), "{report}");
}

// ---- actions that people approve

const CALL: &str = "11111111111111111111111111111111";

impl Scene {
    /// An attempt of a step that declares these action gates, claimed.
    async fn acting(&self, run: &str, gates: &Value) -> Attempt {
        let attempt = self.attempt(run, "_private");
        let key = Key::new(Kind::StepRun, TEAM, &attempt.who.step_run);
        let patch = json!({"spec": {"actionGates": gates}});
        self.api.with(|registry| registry.patch(&key, Part::Main, (Format::Merge, &patch), BY)).expect("written");
        self.claim(&attempt).await;
        attempt
    }

    /// What the operator makes of a request, once people have said that.
    fn decide(&self, of: &Attempt, digest: &Value, state: &str) {
        let status = self.status(&of.who.step_run);
        let requested = &status["agent"]["approvalRequests"];
        let said = requested.as_array().and_then(|all| all.last()).expect("a request").clone();
        let at = "1970-01-01T00:00:00Z";
        let accepted = state == "Accepted";
        let decision = json!([{"documentType": "mail", "scopeId": "s", "accepted": accepted, "decidedBy": "ann", "decidedAt": at,
            "digest": digest, "round": 1, "comment": "as you wish"}]);
        let decisions = if state == "Waiting" { json!([]) } else { decision };
        let mut request = json!({"attempt": 1, "requestedAt": at, "gate": {"state": state, "round": 1, "outputDigest": digest,
            "openedAt": at, "policy": "p", "decisions": decisions}});
        for field in ["gateName", "action", "payload", "repeats"] {
            request[field] = said[field].clone();
        }
        let phase = if state == "Waiting" { "WaitingForAcceptance" } else { "Running" };
        if state == "Waiting" {
            request["agentWaitsUntil"] = json!(at);
        }
        let kept = status["approvalRequests"].as_array().cloned().unwrap_or_default();
        let others = kept.into_iter().filter(|known| known["gate"]["outputDigest"] != *digest);
        let all: Vec<Value> = others.chain([request]).collect();
        self.set_status(Kind::StepRun, &of.who.step_run, &json!({"phase": phase, "approvalRequests": all}));
    }
}

fn mail(id: &str) -> Value {
    json!({"action": "Send the mail", "payload": "{\"to\": \"ann\", \"cc\": []}", "id": id, "waitSeconds": 300})
}

#[tokio::test(start_paused = true)]
async fn an_action_is_allowed_once_whatever_is_lost_on_the_way() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.acting("run", &json!([{"name": "mail"}])).await;
    let (code, first) = scene.call(&attempt, protocol::APPROVAL, &mail(CALL)).await;
    assert_eq!((code, &first["decision"]), (200, &json!("waiting")), "{first}");
    let digest = first["digest"].clone();
    // Again, through another gateway: nobody is asked twice.
    for gateway in [&scene, &scene.beside()] {
        assert_eq!(gateway.call(&attempt, protocol::APPROVAL, &mail(CALL)).await, (200, first.clone()));
    }
    let requested = scene.status(&attempt.who.step_run)["agent"]["approvalRequests"].clone();
    assert_eq!(requested.as_array().map(Vec::len), Some(1), "{requested}");
    assert_eq!(requested[0]["payload"], json!("{\"cc\":[],\"to\":\"ann\"}"), "canonical");
    scene.decide(&attempt, &digest, "Waiting");
    assert_eq!(scene.call(&attempt, protocol::APPROVAL, &mail(CALL)).await, (200, first));

    let beside = scene.beside();
    let wanted = json!({"approvals": [digest], "seconds": 20});
    let waiting = async { beside.call(&attempt, protocol::AWAIT, &wanted).await };
    let deciding = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        scene.decide(&attempt, &digest, "Accepted");
        Instant::now()
    };
    let (told, at) = tokio::join!(waiting, deciding);
    assert_eq!(told, (200, json!({"done": true})));
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());

    // Two calls at once, through two gateways: one of them may, and again where its answer was lost.
    let other = "2".repeat(32);
    let (one, two) = (mail(CALL), mail(&other));
    let (mine, theirs) =
        tokio::join!(scene.call(&attempt, protocol::APPROVAL, &one), beside.call(&attempt, protocol::APPROVAL, &two));
    let allowed = |reply: &(u16, Value)| reply.1["decision"] == "allowed";
    assert!(allowed(&mine) != allowed(&theirs), "{mine:?} {theirs:?}");
    let (winner, loser) = if allowed(&mine) { (one, two) } else { (two, one) };
    let (_, again) = beside.call(&attempt, protocol::APPROVAL, &winner).await;
    assert_eq!((&again["decision"], &again["decisions"][0]["by"]), (&json!("allowed"), &json!("ann")), "{again}");
    assert_eq!(again["payload"], json!({"cc": [], "to": "ann"}), "what was decided on");
    let (_, another) = scene.call(&attempt, protocol::APPROVAL, &loser).await;
    assert_eq!(another["decision"], "waiting");
    assert_ne!(another["digest"], digest, "it is another request");
    let used = scene.status(&attempt.who.step_run)["agent"]["usedApprovals"].clone();
    assert_eq!((used.as_array().map(Vec::len), &used[0]["call"]), (Some(1), &winner["id"]), "{used}");
}

#[tokio::test]
async fn an_action_is_denied_for_good_and_only_what_is_declared_can_be_requested() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.acting("run", &json!([{"name": "mail"}, {"name": "push"}])).await;
    let with = |key: &str, value: Value| {
        let mut call = mail(CALL);
        call["gate"] = json!("push");
        call[key] = value;
        call
    };
    for (call, words) in [
        (mail(CALL), "name one of the step's actionGates: mail, push"),
        (with("gate", json!("anybody")), "is none of the step's actionGates"),
        (with("action", json!(" \u{7} ")), "action: is empty"),
        (with("action", json!("x".repeat(1025))), "action: has 1025 bytes"),
        (with("payload", json!("x".repeat(9000))), "payload: has 9002 bytes"),
        (with("id", json!("short")), "id: must be 32"),
        (with("waitSeconds", json!(0)), "waitSeconds: must be 1"),
        (with("acceptors", json!(["ann"])), "unknown field"),
    ] {
        let (code, answer) = scene.call(&attempt, protocol::APPROVAL, &call).await;
        assert_eq!(code, 400, "{answer}");
        assert!(answer["message"].as_str().is_some_and(|message| message.contains(words)), "{words}: {answer}");
    }
    let none = scene.acting("none", &json!([])).await;
    let (code, answer) = scene.call(&none, protocol::APPROVAL, &mail(CALL)).await;
    assert!(code == 400 && answer["message"].as_str().is_some_and(|m| m.contains("declares none")), "{answer}");
    assert_eq!(scene.status(&attempt.who.step_run)["agent"].get("approvalRequests"), None, "nothing was written");

    let (_, first) = scene.call(&attempt, protocol::APPROVAL, &with("gate", json!("push"))).await;
    scene.decide(&attempt, &first["digest"], "Rejected");
    for id in [CALL, "33333333333333333333333333333333"] {
        let (code, told) = scene.call(&attempt, protocol::APPROVAL, &with("id", json!(id))).await;
        assert_eq!((code, &told["decision"]), (200, &json!("denied")), "{told}");
        assert_eq!(
            (&told["decisions"][0]["by"], &told["decisions"][0]["comment"]),
            (&json!("ann"), &json!("as you wish"))
        );
    }
    let stranger =
        Attempt { who: AttemptRef { id: "f".repeat(32), ..attempt.who.clone() }, token: attempt.token.clone() };
    assert_eq!(scene.call(&stranger, protocol::APPROVAL, &with("gate", json!("push"))).await.0, 409, "another shim's");
    // It ends to let people decide what it requested, and for nothing else.
    let ends = json!({"ending": {"kind": "asked", "questions": []}, "output": {"result": null, "document": null}, "logTail": ""});
    assert_eq!(scene.call(&none, protocol::REPORT, &ends).await.0, 400);
    assert_eq!(scene.call(&attempt, protocol::REPORT, &ends).await.0, 200);
    assert_eq!(scene.call(&attempt, protocol::APPROVAL, &with("gate", json!("mail"))).await.0, 409, "it has ended");
}

#[test]
fn the_command_line_of_the_gateway_is_consistent() {
    use clap::Args as _;
    Options::augment_args(clap::Command::new("gateway")).debug_assert();
}
