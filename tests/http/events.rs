//! `POST /events`, and schedules: what starts runs by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use lockstep::api::{Workflow, name};
use lockstep::apiserver::{Key, Kind, Writer};
use lockstep::decide::history::record::record;
use lockstep::decide::trace::{self, Fact};
use ring::hmac;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::town::{BEGAN, Deed, NAMESPACE, OWN, Reply, Town, send};

const SECRET: &str = "a secret that is long enough";

fn event(id: &str, more: &Value) -> Value {
    let mut event =
        json!({"specversion": "1.0", "id": id, "source": "/shop", "type": "order", "data": {"text": "bikes"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        event[key] = value.clone();
    }
    event
}

fn request(path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut builder = Request::builder().method("POST").uri(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).expect("a request")
}

fn by(user: &str, event: &Value) -> Request<Body> {
    let token = format!("Bearer token-{user}");
    let kind = if event.is_array() { "application/cloudevents-batch+json" } else { "application/cloudevents+json" };
    request("/events", &[("authorization", &token), ("content-type", kind)], event.to_string())
}

async fn publish(town: &Town, event: &Value) -> Reply {
    town.send(by("ann", event)).await
}

/// A Trigger of a flow that gives its input back.
fn on_orders(town: &Town, name: &str, more: &Value) {
    let mut spec = json!({"event": {"type": "order"}, "run": {"templateRef": {"name": "default"}, "input": "${ event.data.text }"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        for (inner, value) in value.as_object().into_iter().flatten() {
            spec[key][inner] = value.clone();
        }
    }
    town.make(Kind::Trigger, name, &spec);
}

async fn open() -> Town {
    let town = Town::open().await;
    town.echo("default");
    on_orders(&town, "orders", &json!({}));
    known(&town, "orders").await;
    town
}

/// The operator has seen it, and so has the API.
async fn known(town: &Town, name: &str) {
    let is_ready = || {
        let all = town.objects(Kind::Trigger);
        let found = all.iter().find(|trigger| trigger["metadata"]["name"] == name)?;
        found["status"]["conditions"][0]["type"].is_string().then_some(())
    };
    town.until("the operator has seen the Trigger", is_ready).await;
    sleep(Duration::from_millis(100)).await;
}

pub fn secret(town: &Town, name: &str) {
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(SECRET);
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {"key": data}});
    let key = Key::new(Kind::Secret, NAMESPACE, name);
    let by = Writer { user: "admin", is_dry_run: false };
    town.api.with(|registry| registry.create(&key, object, by)).expect("it is made");
}

pub fn tag(message: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    hmac::sign(&key, message).as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[tokio::test(start_paused = true)]
async fn an_event_starts_a_run_of_every_trigger_that_matches() {
    let town = open().await;
    let filter = |filter: &str| json!({"event": {"filter": filter}});
    on_orders(&town, "bikes-only", &filter("event.data.text == 'bikes'"));
    on_orders(&town, "cars-only", &filter("event.data.text == 'cars'"));
    on_orders(&town, "broken-filter", &filter("event.data.nothing == 1"));
    on_orders(&town, "other-source", &json!({"event": {"source": "/elsewhere"}}));
    on_orders(&town, "by-session", &json!({"run": {"session": "order ${ event.data.text }"}}));
    known(&town, "by-session").await;
    let reply = publish(&town, &event("7f3a", &json!({}))).await.is(202);
    assert_eq!(reply.body["duplicate"], false);
    let runs = reply.body["runs"].as_array().expect("runs").clone();
    let triggers: Vec<&str> = runs.iter().filter_map(|run| run["trigger"].as_str()).collect();
    assert_eq!(triggers, ["bikes-only", "by-session", "orders"]);
    let skipped = reply.body["skipped"].as_array().expect("skipped").clone();
    let why = |name: &str| {
        let found = skipped.iter().find(|one| one["trigger"] == name).expect("it is told");
        found["detail"].as_str().expect("words").to_owned()
    };
    assert!(skipped.len() == 2 && why("cars-only").contains("says no"), "{skipped:?}");
    assert!(why("broken-filter").contains("spec.event.filter") && why("broken-filter").contains("nothing"));
    assert_eq!(runs[2]["session_id"], "7f3a");
    assert!(runs.iter().all(|run| run["createdAt"].is_string()), "{runs:?}");
    let session = runs[1]["session_id"].as_str().expect("a session");
    assert!(session.starts_with("h-"), "no session may be called so: {session}");
    // It is its sender's, and its input is what the event brought.
    let name = runs[2]["run"].as_str().expect("a name");
    assert_eq!(town.end(name).await.data["result"], "bikes");
    let made =
        town.objects(Kind::Workflow).into_iter().find(|run| run["metadata"]["name"] == name).expect("it is there");
    let notes = &made["metadata"]["annotations"];
    assert_eq!(notes["lockstep.dev/created-by"], "ann");
    assert_eq!(
        (&notes["lockstep.dev/event-id"], &notes["lockstep.dev/event-source"]),
        (&json!("7f3a"), &json!("/shop"))
    );
    assert_eq!(made["metadata"]["labels"]["lockstep.dev/made-by"], "trigger");
    // Where the Trigger stands.
    let status = town.until("its status tells of the run", || {
        let all = town.objects(Kind::Trigger);
        let found = all.iter().find(|trigger| trigger["metadata"]["name"] == "orders")?;
        (found["status"]["runs"]["completed"] == 1).then(|| found["status"].clone())
    });
    let status = status.await;
    assert_eq!(status["url"], "https://lockstep-api.lockstep-system.svc/namespaces/team/events/orders");
    assert_eq!((&status["lastEvent"]["id"], &status["lastRun"]["name"]), (&json!("7f3a"), &json!(name)));
}

/// From the event to the agent it is one string: S3.7.5.
#[tokio::test(start_paused = true)]
async fn the_id_of_an_event_is_the_same_everywhere() {
    let town = open().await;
    let id = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
    let reply = publish(&town, &event(id, &json!({}))).await.is(202);
    let run = reply.body["runs"][0]["run"].as_str().expect("a name").to_owned();
    town.end(&run).await;
    let first = |kind: Kind| town.objects(kind).into_iter().next().expect("it is there");
    let workflow = first(Kind::Workflow);
    let run_typed: Workflow = serde_json::from_value(workflow.clone()).expect("a run");
    let label = |object: &Value| object["metadata"]["labels"]["lockstep.dev/session"].clone();
    let (agent, context) = town.given.lock().expect("a lock")[0].clone();
    assert_eq!(agent, "default");
    let begun = Workflow { status: None, ..run_typed.clone() };
    let span = trace::of_run(&begun, run_typed.status.as_ref()).pop().expect("a span");
    let told = |name: &str| match span.attributes.iter().find(|(key, _)| *key == name) {
        Some((_, Fact::Text(text))) => json!(text),
        other => panic!("{name}: {other:?}"),
    };
    for (what, found) in [
        ("answer", reply.body["runs"][0]["session_id"].clone()),
        ("Workflow", workflow["spec"]["session"].clone()),
        ("its status", workflow["status"]["session"]["id"].clone()),
        ("its annotation", workflow["metadata"]["annotations"]["lockstep.dev/event-id"].clone()),
        ("StepRun", label(&first(Kind::StepRun))),
        ("Job", label(&first(Kind::Job))),
        (
            "the pods of the Job",
            first(Kind::Job)["spec"]["template"]["metadata"]["labels"]["lockstep.dev/session"].clone(),
        ),
        ("context", context["session"].clone()),
        ("workflow in the context", context["workflow"]["session"].clone()),
        ("the environment of the agent's process", context["env"]["SESSION_ID"].clone()),
        ("the record in the operator's log", record(&run_typed, [])["session"].clone()),
        ("the session in its trace", told("lockstep.session.id")),
        ("the event in its trace", told("cloudevents.event_id")),
    ] {
        assert_eq!(found, id, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_event_is_the_same_run_whoever_sends_it_and_however_often() {
    let town = open().await;
    let router = town.service.router.clone();
    let senders: Vec<_> = (0..20)
        .map(|n| tokio::spawn(send(router.clone(), by(&format!("sender-{}", n % 4), &event("once", &json!({}))))))
        .collect();
    let (mut new, mut names) = (0, BTreeSet::new());
    for sender in senders {
        let reply = sender.await.expect("it ends");
        assert_eq!(reply.code, if reply.body["duplicate"] == true { 200 } else { 202 }, "{}", reply.text);
        new += usize::from(reply.body["duplicate"] == false);
        names.insert(reply.body["runs"][0]["run"].as_str().expect("a name").to_owned());
    }
    assert_eq!((new, names.len(), town.objects(Kind::Workflow).len()), (1, 1, 1));
    // Another id, another source: another run.
    publish(&town, &event("twice", &json!({}))).await.is(202);
    publish(&town, &event("once", &json!({"source": "/other"}))).await.is(202);
    assert_eq!(town.objects(Kind::Workflow).len(), 3);
}

/// A run that somebody made by hand, with all that one of a Trigger's has; its UID.
fn squat(town: &Town, name: &str, user: &str, trigger: &str, notes: &Value) -> String {
    let mut annotations = notes.clone();
    annotations["lockstep.dev/created-by"] = json!(user);
    let metadata = json!({"name": name, "labels": {"lockstep.dev/trigger": trigger}, "annotations": annotations});
    // One that never ends, in place of the work.
    let spec = json!({"templateRef": {"name": "nothing"}, "input": "nothing"});
    let object =
        json!({"apiVersion": Kind::Workflow.api_version(), "kind": "Workflow", "metadata": metadata, "spec": spec});
    let by = Writer { user, is_dry_run: false };
    let key = Key::new(Kind::Workflow, NAMESPACE, name);
    town.api.with(|registry| registry.create(&key, object, by)).expect("it is made");
    let all = town.objects(Kind::Workflow);
    let made = all.iter().find(|run| run["metadata"]["name"] == name).expect("it is there");
    made["metadata"]["uid"].as_str().expect("a UID").to_owned()
}

/// The name of an event's run can be foreseen. Who takes it first costs the name, not the run.
#[tokio::test(start_paused = true)]
async fn who_takes_the_name_of_an_events_run_does_not_keep_the_run_away() {
    let town = open().await;
    let notes = |salt: &str| {
        let mut notes = json!({"lockstep.dev/event-id": "7", "lockstep.dev/event-source": "/shop", "lockstep.dev/event-type": "order"});
        if !salt.is_empty() {
            notes["lockstep.dev/name-salt"] = json!(salt);
        }
        notes
    };
    let mut salt = String::new();
    for _ in 0..2 {
        salt = squat(&town, &name::event_run("orders", "/shop", "7", &salt), "mallory", "orders", &notes(&salt));
    }
    sleep(Duration::from_secs(1)).await;
    let reply = publish(&town, &event("7", &json!({}))).await.is(202);
    let own = name::event_run("orders", "/shop", "7", &salt);
    assert_eq!((&reply.body["duplicate"], &reply.body["runs"][0]["run"]), (&json!(false), &json!(own)));
    assert_eq!(town.end(&own).await.data["result"], "bikes");
    let again = town.send(by("ben", &event("7", &json!({})))).await.is(200);
    assert_eq!((&again.body["duplicate"], &again.body["runs"][0]["run"]), (&json!(true), &json!(own)));
    // Who takes them all is named.
    let mut salt = String::new();
    for _ in 0..16 {
        let taken = name::event_run("orders", "/shop", "8", &salt);
        salt = squat(&town, &taken, "mallory", "orders", &json!({"lockstep.dev/event-id": "8"}));
    }
    sleep(Duration::from_secs(1)).await;
    let reply = publish(&town, &event("8", &json!({}))).await.is(409);
    assert!(reply.text.contains(&name::event_run("orders", "/shop", "8", "")), "{}", reply.text);
}

#[tokio::test(start_paused = true)]
async fn who_takes_the_name_of_a_schedules_run_does_not_keep_the_run_away() {
    let town = Town::open().await;
    town.echo("default");
    let run = json!({"templateRef": {"name": "default"}, "input": "of ${ scheduledTime }"});
    let spec = json!({"schedule": {"cron": "*/10 * * * *", "concurrencyPolicy": "Forbid"}, "run": run});
    town.make(Kind::Trigger, "often", &spec);
    let time = "2026-11-21T10:10:00Z";
    let second = time.parse::<k8s_openapi::jiff::Timestamp>().expect("a time").as_second();
    let name = name::scheduled_run("often", second, "");
    let uid = squat(&town, &name, "mallory", "often", &json!({"lockstep.dev/scheduled-time": time}));
    sleep(Duration::from_secs(11 * 60)).await;
    let runs = town.objects(Kind::Workflow);
    let made = runs.iter().find(|run| run["metadata"]["name"] == name::scheduled_run("often", second, &uid));
    let made = made.expect("the real run");
    assert_eq!(made["spec"]["templateRef"]["name"], "default");
    assert_eq!(made["status"]["phase"], "Completed");
    let trigger = town.objects(Kind::Trigger).into_iter().next().expect("a Trigger");
    assert_eq!(trigger["status"]["lastScheduleTime"], time);
    assert_eq!(trigger["status"]["runs"]["active"], 0, "{trigger}");
}

#[tokio::test(start_paused = true)]
async fn an_event_is_known_for_a_day_also_when_its_run_has_been_taken_away() {
    let town = Town::open().await;
    town.echo("default");
    on_orders(&town, "orders", &json!({"run": {"ttlSecondsAfterFinished": 0}}));
    known(&town, "orders").await;
    let reply = publish(&town, &event("7", &json!({}))).await.is(202);
    let run = reply.body["runs"][0]["run"].clone();
    let over = || (town.objects(Kind::Workflow)[0]["status"]["completedAt"].is_string()).then_some(());
    town.until("the run is over", over).await;
    let gone = || (town.objects(Kind::StepRun).is_empty() && town.objects(Kind::Job).is_empty()).then_some(());
    town.until("what it made is gone", gone).await;
    sleep(Duration::from_secs(23 * 3600)).await;
    town.door.asked.lock().expect("a lock").clear();
    let again = publish(&town, &event("7", &json!({}))).await.is(200);
    assert_eq!((&again.body["duplicate"], &again.body["runs"][0]["run"]), (&json!(true), &run));
    let asked = town.door.asked.lock().expect("a lock").clone();
    assert!(!asked.contains_key("POST workflows"), "a repeated event writes nothing: {asked:?}");
    sleep(Duration::from_secs(2 * 3600)).await;
    assert!(town.objects(Kind::Workflow).is_empty(), "its time is up");
    publish(&town, &event("7", &json!({}))).await.is(202);
}

#[tokio::test(start_paused = true)]
async fn whoever_publishes_is_told_what_is_missing() {
    let town = open().await;
    let other = event("1", &json!({"type": "refund"}));
    let unknown = publish(&town, &other).await.is(404);
    assert!(
        unknown.text.contains("refund") && unknown.text.contains("orders takes the type order"),
        "{}",
        unknown.text
    );
    town.deny("eve", "trigger", "triggers", "orders");
    let refused = town.send(by("eve", &event("1", &json!({})))).await.is(403);
    assert!(refused.text.contains("trigger on triggers.lockstep.dev"), "{}", refused.text);
    let hidden = town.send(by("eve", &other)).await.is(404);
    assert!(hidden.text.contains("none that you may use"), "{}", hidden.text);
    let fails = publish(&town, &event("1", &json!({"data": {}}))).await.is(422);
    assert!(fails.text.contains("spec.run.input"), "{}", fails.text);
    town.send(request("/events", &[("content-type", "application/cloudevents+json")], "{}")).await.is(401);
    town.ask("ann", "POST", "/events/nothing", event("1", &json!({}))).await.is(404);
    town.ask("eve", "POST", "/events/orders", event("1", &json!({}))).await.is(403);
    let plain = town.ask("ann", "POST", "/events", json!({"text": "x"})).await.is(400);
    assert!(plain.text.contains("no CloudEvent"), "{}", plain.text);
    assert!(town.objects(Kind::Workflow).is_empty(), "nothing was started");
    let schedule = json!({"schedule": {"cron": "@yearly"}, "run": {"templateRef": {"name": "default"}}});
    town.make(Kind::Trigger, "yearly", &schedule);
    known(&town, "yearly").await;
    town.ask("ann", "POST", "/events/yearly", event("1", &json!({}))).await.is(409);
}

#[tokio::test(start_paused = true)]
async fn events_come_in_every_mode_and_hostile_ones_harm_nobody() {
    let town = open().await;
    let batch = json!([event("b1", &json!({})), event("b2", &json!({})), event("b1", &json!({}))]);
    let reply = publish(&town, &batch).await.is(202);
    let duplicates: Vec<Value> =
        reply.body["runs"].as_array().expect("runs").iter().map(|r| r["duplicate"].clone()).collect();
    assert_eq!(duplicates, [json!(false), json!(false), json!(true)]);
    assert_eq!(publish(&town, &batch).await.is(200).body["duplicate"], true);
    let faulty = publish(&town, &json!([event("b3", &json!({})), event("", &json!({}))])).await.is(400);
    assert_eq!(faulty.body["errors"][0]["field"], "[1].id");
    let binary = |id: &str| {
        let headers = [
            ("authorization", "Bearer token-ann"),
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/shop"),
            ("ce-type", "order"),
        ];
        request("/events", &headers, json!({"text": "bikes"}).to_string())
    };
    let one = town.send(binary("c1")).await.is(202);
    assert_eq!(
        publish(&town, &event("c1", &json!({}))).await.is(200).body["runs"][0]["run"],
        one.body["runs"][0]["run"]
    );
    let long = "x".repeat(1024);
    for id in
        ["../../etc/passwd", "a b", "'; DROP TABLE runs; --", "${ event.id }", "\u{202e}abc", "ä", "-", long.as_str()]
    {
        let reply = publish(&town, &event(id, &json!({}))).await.is(202);
        let run = &reply.body["runs"][0];
        let session = run["session_id"].as_str().expect("a session");
        assert!(session.starts_with("h-") && session.len() == 34, "{id}: {session}");
        let name = run["run"].as_str().expect("a name");
        let made =
            town.objects(Kind::Workflow).into_iter().find(|run| run["metadata"]["name"] == name).expect("it is there");
        assert_eq!(made["metadata"]["annotations"]["lockstep.dev/event-id"], id, "the original is kept");
    }
    for id in ["", "a\nb", "a\u{0}b", "x".repeat(1025).as_str()] {
        publish(&town, &event(id, &json!({}))).await.is(400);
    }
    let large = event("large", &json!({"data": {"text": "x".repeat(70_000)}}));
    let reply = publish(&town, &large).await.is(422);
    assert!(reply.text.contains("at most 65536"), "{}", reply.text);
    let huge = event("huge", &json!({"data": "x".repeat(10_000_000)}));
    publish(&town, &huge).await.is(413);
    assert_eq!(town.service.busy(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn senders_without_a_token_prove_themselves_by_the_secret_of_the_trigger() {
    let town = open().await;
    secret(&town, "github");
    let spec = |kind: &str, auth: &Value| json!({"event": {"type": kind}, "auth": auth, "run": {"templateRef": {"name": "default"}, "input": "${ event.data.text }"}});
    let reference = json!({"secretRef": {"name": "github", "key": "key"}});
    let with = |field: &str, value: Value| {
        let mut auth = reference.clone();
        auth[field] = value;
        auth
    };
    town.make(Kind::Trigger, "pushes", &spec("com.github.push", &json!({"hmac": reference})));
    town.make(Kind::Trigger, "chat", &spec("com.slack.app_mention", &json!({"hmac": with("scheme", json!("Slack"))})));
    town.make(Kind::Trigger, "alerts", &spec("dev.lockstep.webhook", &json!({"bearer": reference})));
    town.make(
        Kind::Trigger,
        "labs",
        &spec("com.gitlab.push", &json!({"bearer": with("header", json!("X-Gitlab-Token"))})),
    );
    let lost = json!({"hmac": {"secretRef": {"name": "lost", "key": "key"}}});
    town.make(Kind::Trigger, "lost", &spec("com.github.push", &lost));
    known(&town, "lost").await;
    let body = json!({"text": "pushed"}).to_string();
    let signed = format!("sha256={}", tag(body.as_bytes()));
    let github = |path: &str, signature: &str, body: &str, id: &str| {
        let headers = [
            ("x-github-event", "push"),
            ("x-github-delivery", id),
            ("x-hub-signature-256", signature),
            ("content-type", "application/json"),
        ];
        town.send(request(path, &headers, body.to_owned()))
    };
    let made = github("/events/pushes", &signed, &body, "d-1").await.is(202);
    assert_eq!(
        (&made.body["runs"][0]["session_id"], &made.body["runs"][0]["trigger"]),
        (&json!("d-1"), &json!("pushes"))
    );
    assert_eq!(github("/events/pushes", &signed, &body, "d-1").await.is(200).body["duplicate"], true);
    let run = town.objects(Kind::Workflow).into_iter().next().expect("a run");
    assert_eq!(run["metadata"]["annotations"]["lockstep.dev/created-by"], OWN, "nobody else's");
    // Forged: the signature of another body, of another secret, none, of a Trigger whose Secret is not there.
    for (path, signature, body) in [
        ("/events/pushes", signed.as_str(), "{\"text\": \"forged\"}"),
        ("/events/pushes", &format!("sha256={}", "0".repeat(64)), body.as_str()),
        ("/events/pushes", "sha256=", body.as_str()),
        ("/events/lost", signed.as_str(), body.as_str()),
        ("/events/orders", signed.as_str(), body.as_str()),
        ("/events/nothing", signed.as_str(), body.as_str()),
        ("/events", signed.as_str(), body.as_str()),
    ] {
        github(path, signature, body, "d-2").await.is(401);
    }
    // Attributes in headers are not signed.
    let unsigned = [
        ("ce-id", "x"),
        ("ce-specversion", "1.0"),
        ("ce-source", "/s"),
        ("ce-type", "com.github.push"),
        ("x-hub-signature-256", &signed),
    ];
    town.send(request("/events/pushes", &unsigned, body.clone())).await.is(400);
    let ping = [("x-github-event", "ping"), ("x-github-delivery", "p"), ("x-hub-signature-256", &signed)];
    let ping = town.send(request("/events/pushes", &ping, body.clone())).await.is(200);
    assert!(
        ping.body["skipped"][0]["detail"].as_str().is_some_and(|why| why.contains("com.github.push")),
        "{}",
        ping.text
    );
    let huge = "x".repeat(10_000_000);
    github("/events/pushes", &signed, &huge, "d-3").await.is(413);
    // Slack, now and too late.
    let mention = json!({"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention"}, "text": "hi"})
        .to_string();
    let slack = |body: &str, at: i64| {
        let time = at.to_string();
        let signature = format!("v0={}", tag(format!("v0:{time}:{body}").as_bytes()));
        town.send(request(
            "/events/chat",
            &[("x-slack-signature", &signature), ("x-slack-request-timestamp", &time)],
            body.to_owned(),
        ))
    };
    let began: k8s_openapi::jiff::Timestamp = BEGAN.parse().expect("a time");
    let now = began.as_second() + i64::try_from(town.elapsed().as_secs()).expect("it fits");
    assert_eq!(slack(&mention, now).await.is(202).body["runs"][0]["session_id"], "Ev1");
    slack(&mention, now - 400).await.is(401);
    slack(&mention, now + 400).await.is(401);
    let asks = json!({"type": "url_verification", "challenge": "abc"}).to_string();
    assert_eq!(slack(&asks, now).await.is(200).body["challenge"], "abc");
    // The secret itself.
    let bearer = |path: &str, name: &str, value: &str| {
        town.send(request(path, &[(name, value), ("x-gitlab-event", "Push Hook")], body.clone()))
    };
    bearer("/events/labs", "x-gitlab-token", SECRET).await.is(202);
    bearer("/events/labs", "x-gitlab-token", "a secret that is long enougH").await.is(401);
    let alert = |value: String| town.send(request("/events/alerts", &[("authorization", &value)], body.clone()));
    alert(format!("Bearer {SECRET}")).await.is(202);
    alert("Bearer something else".to_owned()).await.is(401);
    // A token of Kubernetes is one there, too.
    town.ask("ann", "POST", "/events/alerts", json!({"text": "by hand"})).await.is(202);
}

#[tokio::test(start_paused = true)]
async fn a_schedule_starts_each_of_its_times_once() {
    let town = Town::open().await;
    town.agent("default", &json!({}), |context| Deed {
        seconds: 5.0,
        output: context["input"].clone(),
        ..Deed::default()
    });
    town.flow("default", &json!({}));
    let run = json!({"templateRef": {"name": "default"}, "input": "of ${ scheduledTime }"});
    let spec = json!({"schedule": {"cron": "*/10 * * * *", "timeZone": "Europe/Berlin", "concurrencyPolicy": "Forbid"}, "historyLimit": 3, "run": run});
    town.make(Kind::Trigger, "often", &spec);
    let of = |town: &Town| {
        let mut times: Vec<String> = town
            .objects(Kind::Workflow)
            .iter()
            .filter_map(|run| Some(run["metadata"]["annotations"]["lockstep.dev/scheduled-time"].as_str()?.to_owned()))
            .collect();
        times.sort();
        times
    };
    sleep(Duration::from_secs(9 * 60)).await;
    assert!(of(&town).is_empty(), "not before its time");
    sleep(Duration::from_secs(22 * 60)).await;
    let expected = ["2026-11-21T11:10:00+01:00", "2026-11-21T11:20:00+01:00", "2026-11-21T11:30:00+01:00"];
    assert_eq!(of(&town), expected);
    let run = town.objects(Kind::Workflow).into_iter().next().expect("a run");
    assert_eq!(run["spec"]["input"].as_str().map(|input| input.starts_with("of 2026-11-21T11:")), Some(true));
    let by = &run["metadata"]["annotations"]["lockstep.dev/created-by"];
    assert_eq!(by, "system:serviceaccount:lockstep-system:lockstep-operator");
    // Those beyond the limit go; no time comes again.
    sleep(Duration::from_secs(30 * 60)).await;
    assert_eq!(of(&town), ["2026-11-21T11:40:00+01:00", "2026-11-21T11:50:00+01:00", "2026-11-21T12:00:00+01:00"]);
    let trigger = town.objects(Kind::Trigger).into_iter().next().expect("a Trigger");
    assert_eq!(trigger["status"]["nextScheduleTime"], "2026-11-21T11:10:00Z");
    assert_eq!(trigger["status"]["lastScheduleTime"], "2026-11-21T11:00:00Z");
}
