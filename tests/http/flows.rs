//! `POST /run`: the five ways in which it answers, and that a story is started once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use http::{Request, header};
use lockstep::apiserver::Kind;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::town::{Deed, Events, Town, ids, send};

fn with(user: &str, body: &Value, headers: &[(&'static str, &str)]) -> Request<Body> {
    let mut request = Town::request(user, "POST", "/run", body);
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a header"));
    }
    request
}

#[tokio::test(start_paused = true)]
async fn success_is_answered_with_the_result() {
    let town = Town::open().await;
    town.echo("default");
    let reply = town.post("/run", json!({"input": "a shop", "story_id": "shop.1"})).await.is(200);
    assert_eq!(reply.body["result"], "a shop");
    assert_eq!(reply.body["pending_docs"], Value::Null);
    assert_eq!(reply.body["session_id"], "shop.1");
    assert_eq!(reply.body["joined"], false);
    assert!(reply.body["createdAt"].is_string());
    let run = reply.body["run"].as_str().expect("a name").to_owned();
    // The run is its caller's, and marked as made here.
    let made = &town.objects(Kind::Workflow)[0];
    assert_eq!(made["metadata"]["annotations"]["lockstep.dev/created-by"], "ann");
    assert_eq!(made["metadata"]["labels"]["lockstep.dev/made-by"], "api");
    assert_eq!(made["metadata"]["name"], run.as_str());
    // The same in a namespace of the path, and by the name of the run or of the story.
    for name in [run.as_str(), "shop.1"] {
        let result = town.get(&format!("/namespaces/team/runs/{name}/result")).await.is(200);
        assert_eq!(result.body["result"], "a shop");
    }
}

#[tokio::test(start_paused = true)]
async fn documents_that_are_missing_are_told_before_any_agent_ran_and_then_the_run_goes_on() {
    let town = Town::open().await;
    town.agent("default", &json!({"requiredDocuments": ["brief", "plan"]}), |context| Deed {
        output: json!(context["documents"].as_object().map(serde_json::Map::len)),
        ..Deed::default()
    });
    town.flow("default", &json!({}));
    let body = json!({"input": "x", "story_id": "s"});
    let reply = town.post("/run", body.clone()).await.is(200);
    assert_eq!((&reply.body["result"], &reply.body["pending_docs"]), (&Value::Null, &json!(["brief", "plan"])));
    assert!(town.objects(Kind::Job).is_empty() && town.objects(Kind::StepRun).is_empty(), "an agent ran");
    let run = reply.body["run"].clone();
    // One of two: the same run still waits, for the other.
    let put = |kind: &str| json!({"type": kind, "content": "# Text", "story_id": "s"});
    town.post("/documents", put("brief")).await.is(201);
    town.post("/documents", put("brief")).await.is(200);
    let again = town.post("/run", body.clone()).await.is(200);
    assert_eq!(
        (&again.body["run"], &again.body["joined"], &again.body["pending_docs"]),
        (&run, &json!(true), &json!(["plan"]))
    );
    // A document of another story is none of this one.
    let other = json!({"type": "plan", "content": "x", "story_id": "other"});
    town.post("/documents", other).await.is(201);
    assert_eq!(town.post("/run", body.clone()).await.is(200).body["pending_docs"], json!(["plan"]));
    // Somebody else, or something else, does not join it; unless another run is wanted.
    let bobs = town.ask("bob", "POST", "/run", body.clone()).await.is(409);
    assert_eq!((&bobs.body["run"], bobs.text.contains("somebody else")), (&run, true));
    let differs = town.post("/run", json!({"input": "y", "story_id": "s"})).await.is(409);
    assert!(differs.text.contains("another input") && differs.text.contains("new=true"), "{}", differs.text);
    let new = town.post("/run?new=true", body.clone()).await.is(200);
    assert_ne!(new.body["run"], run);
    town.post(&format!("/runs/{}/cancel", new.body["run"].as_str().expect("a name")), Value::Null).await.is(200);
    // Now both are there.
    town.post("/documents", put("plan")).await.is(201);
    let done = town.post("/run", body).await.is(200);
    assert_eq!((&done.body["run"], &done.body["result"], &done.body["joined"]), (&run, &json!(2), &json!(true)));
    // It was told what came of it: from now on the same words mean another run.
    let next = town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    assert_ne!(next.body["run"], run);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_answered_with_its_step_and_its_class_and_no_results() {
    let town = Town::open().await;
    town.agent("default", &json!({"exitCodes": {"unrecoverable": [3]}}), |_| Deed { code: 3, ..Deed::default() });
    town.flow("default", &json!({}));
    let reply = town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(500);
    assert!(
        reply.body["detail"].as_str().is_some_and(|detail| detail.starts_with("Flow execution failed: ")),
        "{}",
        reply.text
    );
    assert_eq!((&reply.body["step"], &reply.body["class"]), (&json!("work"), &json!("Unrecoverable")));
    assert_eq!(reply.body["session_id"], "s");
    assert!(reply.body.get("result").is_none() && reply.body["run"].is_string());
    let later = town.get("/runs/s/result").await.is(500);
    assert_eq!(later.body, reply.body);
}

#[tokio::test(start_paused = true)]
async fn a_story_sees_nothing_of_another() {
    let town = Town::open().await;
    town.agent("default", &json!({"requiredDocuments": ["brief"]}), |context| Deed {
        output: json!({"story": context["session"], "brief": context["documents"]["brief"]["digest"]}),
        document: context["session"].as_str().map(|story| format!("# Made in {story}")),
        ..Deed::default()
    });
    town.flow("default", &json!({"produces": {"type": "plan", "scope": "Session"}}));
    for story in ["one", "two"] {
        town.post("/documents", json!({"type": "brief", "content": format!("# {story}"), "story_id": story}))
            .await
            .is(201);
    }
    for story in ["one", "two"] {
        let reply = town.post("/run", json!({"input": "x", "story_id": story})).await.is(200);
        assert_eq!(reply.body["result"]["story"], story);
        let plan = town.get(&format!("/runs/{story}/documents/plan")).await.is(200);
        assert_eq!(plan.text, format!("# Made in {story}"));
        let memory = town.get(&format!("/memory/default/{story}")).await.is(200);
        assert_eq!(memory.body["entries"]["story_id"], story);
    }
    let digest = |story: &str| {
        let given = town.given.lock().expect("nobody panicked");
        let own = given.iter().find(|(_, context)| context["session"] == story).expect("it ran");
        own.1["documents"]["brief"]["digest"].clone()
    };
    assert_ne!(digest("one"), digest("two"));
    town.get("/memory/default/three").await.is(404);
    assert_eq!(town.get("/runs?session=one").await.is(200).body["runs"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(start_paused = true)]
async fn fifty_at_once_are_fifty_runs() {
    let town = Town::open().await;
    town.agent("default", &json!({}), |context| Deed {
        seconds: 1.0,
        output: context["input"].clone(),
        ..Deed::default()
    });
    town.flow("default", &json!({}));
    let asked =
        (0..50).map(|n| town.post("/run", json!({"input": format!("{n}"), "story_id": format!("s-{n}"), "wait": 30})));
    let replies = futures::future::join_all(asked).await;
    let mut runs: Vec<String> = Vec::new();
    for (n, reply) in replies.into_iter().enumerate() {
        let reply = reply.is(200);
        assert_eq!(
            (&reply.body["result"], &reply.body["session_id"]),
            (&json!(n.to_string()), &json!(format!("s-{n}")))
        );
        runs.push(reply.body["run"].to_string());
    }
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), 50);
    assert!(town.elapsed() < Duration::from_secs(20), "they waited for each other: {:?}", town.elapsed());
}

/// S0.10: a stream begins five seconds after the request, and progress is there within a second.
#[tokio::test(start_paused = true)]
async fn what_takes_longer_than_five_seconds_is_a_stream() {
    let town = Town::open().await;
    town.agent("default", &json!({}), |_| Deed {
        seconds: 20.0,
        progress: vec![(1.0, 10), (9.0, 50), (14.0, 90)],
        output: json!("done"),
        ..Deed::default()
    });
    town.flow("default", &json!({}));
    let began = town.elapsed();
    let accept = [("accept", "application/json, text/event-stream")];
    let request = with("ann", &json!({"input": "x", "story_id": "s"}), &accept);
    let response = town.service.router.clone().oneshot(request).await.expect("never fails");
    assert_eq!(response.status().as_u16(), 200);
    let mut events = Events::of(response);
    let (mut first, mut told) = (None, Vec::new());
    while let Some(event) = events.next().await {
        first.get_or_insert(town.elapsed());
        if event.name == "step.progress" {
            told.push((event.data["percent"].as_i64().expect("a number"), (town.elapsed() - began).as_secs_f64()));
        }
        if event.name == "result" {
            assert_eq!((&event.data["result"], &event.data["session_id"]), (&json!("done"), &json!("s")));
        }
    }
    let first = first.expect("an event") - began;
    assert!(first >= Duration::from_secs(5) && first <= Duration::from_millis(5_500), "{first:?}");
    // What was said before the stream is in it at once, what is said later within a second.
    let percents: Vec<i64> = told.iter().map(|(percent, _)| *percent).collect();
    assert_eq!(percents, [10, 50, 90]);
    for ((_, at), said) in told.iter().zip([5.0, 9.0, 14.0]) {
        assert!(*at >= said && *at - said <= 1.0, "said at {said}, told at {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_no_stream_is_told_where_to_look() {
    let town = Town::open().await;
    town.agent("default", &json!({}), |_| Deed { seconds: 30.0, output: json!(7), ..Deed::default() });
    town.flow("default", &json!({}));
    let began = town.elapsed();
    let reply = town.post("/run", json!({"input": "x", "story_id": "s", "wait": 2})).await.is(202);
    assert_eq!((town.elapsed() - began).as_secs(), 2);
    assert_eq!((&reply.body["result"], reply.header("retry-after")), (&Value::Null, "5"));
    let run = reply.header("location").to_owned();
    assert_eq!(reply.body["events"], format!("{run}/events"));
    assert_eq!(town.get(&run).await.is(200).body["phase"], "Running");
    town.get(&format!("{run}/result")).await.is(202);
    let events = town.stream("ann", &format!("{run}/events"), None).await.all().await;
    assert_eq!(
        events.last().map(|event| (event.name.as_str(), event.data["result"].clone())),
        Some(("result", json!(7)))
    );
    assert_eq!(town.get(&format!("{run}/result")).await.is(200).body["result"], 7);
    // A client that takes nothing but a stream gets one at once.
    let only = with("ann", &json!({"input": "x", "story_id": "t"}), &[("accept", "text/event-stream")]);
    let before = town.elapsed();
    let mut events = Events::of(town.service.router.clone().oneshot(only).await.expect("never fails"));
    events.next().await.expect("an event");
    assert!(town.elapsed() - before < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_key_stands_for_one_request_however_often_and_whenever_it_is_sent() {
    let mut town = Town::open().await;
    town.echo("default");
    let body = json!({"input": "x", "story_id": "s"});
    let key = [("idempotency-key", "order-1")];
    let router = town.service.router.clone();
    let twenty = (0..20).map(|_| send(router.clone(), with("ann", &body, &key)));
    let replies = futures::future::join_all(twenty).await;
    let mut fresh = 0;
    for reply in replies {
        let reply = reply.is(200);
        assert_eq!(reply.body["result"], "x");
        fresh += usize::from(reply.body["joined"] == false);
    }
    assert_eq!((town.objects(Kind::Workflow).len(), fresh), (1, 1));
    town.send(with("ann", &json!({"input": "y", "story_id": "s"}), &key)).await.is(422);
    town.send(with("bob", &body, &key)).await.is(200);
    town.send(with("ann", &body, &[("idempotency-key", "order-2")])).await.is(200);
    assert_eq!(town.objects(Kind::Workflow).len(), 3, "a key is its user's, and another is another");
    town.send(with("ann", &body, &[("idempotency-key", "")])).await.is(400);
    town.send(with("ann", &body, &[("idempotency-key", &"k".repeat(256))])).await.is(400);
    // The pod is killed at each of its requests to the API server, before and after it was done; the client asks again.
    for requests in 0..8 {
        let key = format!("killed-{requests}");
        let request = || with("ann", &body, &[("idempotency-key", &key)]);
        town.door.left.store(requests, Ordering::SeqCst);
        let first = tokio::time::timeout(Duration::from_secs(20), town.send(request())).await;
        town.restart().await;
        let second = town.send(request()).await.is(200);
        assert_eq!(second.body["result"], "x");
        if let Ok(first) = first {
            assert!(first.code == 200 || first.code == 503, "{}", first.text);
        }
        let made = town.objects(Kind::Workflow);
        let own = made.iter().filter(|run| run["metadata"]["name"] == second.body["run"]).count();
        assert_eq!((own, made.len()), (1, 4 + requests), "after {requests} requests");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_may_not_run_a_flow_hears_it_and_an_unknown_one_is_told_with_those_there_are() {
    let town = Town::open().await;
    town.echo("default");
    town.echo("secret");
    let body = |flow: &str| json!({"flow": flow, "input": "x", "story_id": "s"});
    town.deny("bob", "run", "workflowtemplates", "secret");
    town.deny("eve", "create", "workflows", "");
    let refused = town.ask("bob", "POST", "/run", body("secret")).await.is(403);
    assert!(refused.text.contains("run on workflowtemplates"), "{}", refused.text);
    town.ask("bob", "POST", "/run", body("default")).await.is(200);
    let unknown = town.ask("bob", "POST", "/run", body("nothing")).await.is(404);
    assert_eq!(unknown.body["flows"], json!(["default"]), "only those that bob may run");
    let unknown = town.ask("ann", "POST", "/run", body("nothing")).await.is(404);
    assert_eq!(unknown.body["flows"], json!(["default", "secret"]));
    // Who may start nothing learns nothing.
    let refused = town.ask("eve", "POST", "/run", body("nothing")).await.is(403);
    assert!(refused.body.get("flows").is_none());
    assert_eq!(town.objects(Kind::Workflow).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_field_that_is_wrong_is_named_and_strangers_come_no_further_than_the_head() {
    let town = Town::open().await;
    town.echo("default");
    let bad = town.post("/run", json!({"story_id": "../etc", "flow": 5, "stroy": 1})).await.is(400);
    let mut fields: Vec<&str> =
        bad.body["errors"].as_array().expect("a list").iter().filter_map(|e| e["field"].as_str()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["flow", "input", "story_id", "stroy"]);
    for hostile in ["", " ", "s\n", "s\u{0}", "-s", "_own", "s/t", "ß", "%2e%2e", "$(id)", &"x".repeat(64)] {
        town.post("/run", json!({"input": "x", "story_id": hostile})).await.is(400);
    }
    let large = json!({"input": "x".repeat(10_000_000), "story_id": "s"});
    let reply = town.post("/run", large).await.is(413);
    assert_eq!(reply.header("connection"), "close");
    for header_value in
        ["", "Bearer", "Bearer nobody", "Basic YTpi", "Bearer token-", &format!("Bearer {}", "x".repeat(9_000))]
    {
        let mut request = Town::request("ann", "POST", "/run", &json!({"input": "x", "story_id": "s"}));
        request.headers_mut().insert(header::AUTHORIZATION, header_value.parse().expect("a header"));
        let reply = town.send(request).await.is(401);
        assert_eq!(reply.header("www-authenticate"), "Bearer", "{header_value}");
    }
    let mut nobody = Town::request("ann", "GET", "/runs", &Value::Null);
    nobody.headers_mut().remove(header::AUTHORIZATION);
    town.send(nobody).await.is(401);
    assert!(town.objects(Kind::Workflow).is_empty(), "nothing was started");
}

/// S1.10: Agents are watched by the operator, and templates here; a request reads neither from the API server.
#[tokio::test(start_paused = true)]
async fn a_warm_request_asks_the_api_server_for_the_run_alone() {
    let town = Town::open().await;
    town.echo("default");
    let body = |n: usize| json!({"input": "x", "story_id": format!("s-{n}")});
    town.post("/run", body(0)).await.is(200);
    town.door.asked.lock().expect("nobody panicked").clear();
    for n in 1..=10 {
        town.post("/run", body(n)).await.is(200);
    }
    let asked = town.door.asked.lock().expect("nobody panicked").clone();
    let expected = [("GET workflows".to_owned(), 10), ("POST workflows".to_owned(), 10)];
    assert_eq!(asked, expected.into(), "one look for a run that waits, one run made");
    town.door.asked.lock().expect("nobody panicked").clear();
    for _ in 0..20 {
        town.get("/runs/s-1").await.is(200);
    }
    let asked: usize = town.door.asked.lock().expect("nobody panicked").values().sum();
    assert!(asked <= 3, "two rights, asked once: {asked}");
}

#[tokio::test(start_paused = true)]
async fn a_broken_line_loses_no_event_and_neither_does_another_pod() {
    let mut town = Town::open().await;
    town.agent("default", &json!({}), |_| Deed { seconds: 3.0, output: json!(1), ..Deed::default() });
    let step = |name: &str| json!({"name": name, "agentId": "default"});
    town.make(Kind::WorkflowTemplate, "three", &json!({"steps": [step("a"), step("b"), step("c")]}));
    let reply = town.post("/run", json!({"flow": "three", "input": "x", "story_id": "s", "wait": 0})).await.is(202);
    let path = reply.body["events"].as_str().expect("a path").to_owned();
    let mut seen = Vec::new();
    let mut last: Option<String> = None;
    // Each line breaks after a few events, and the pod is another one each time.
    let mut lines = 0;
    loop {
        let mut events = town.stream("ann", &path, last.as_deref()).await;
        let mut is_over = false;
        for _ in 0..6 {
            let Some(event) = events.next().await else {
                is_over = true;
                break;
            };
            last = event.id.clone().or(last);
            seen.push(event);
        }
        if is_over {
            break;
        }
        drop(events);
        lines += 1;
        town.restart().await;
        assert!(lines < 30, "it never ends");
    }
    let whole = town.stream("ann", &path, None).await.all().await;
    assert_eq!(ids(&seen), ids(&whole), "what was told over {lines} lines is what there is");
    let names: Vec<&str> = whole.iter().filter(|event| event.id.is_some()).map(|event| event.name.as_str()).collect();
    assert_eq!(names.iter().filter(|name| **name == "step.claimed").count(), 3);
    assert_eq!((names.first(), names.last()), (Some(&"run.created"), Some(&"run.ended")));
    assert!(town.service.streams() == 0, "whoever leaves gives its place back");
}

/// Requests and answers are on their way for a while, so that they cross each other in many orders: a status is written after
/// its pod has claimed, a copy is older than what was written. None of it makes a run wait for a clock: the shortest pause of
/// operator and gateway after something that did not fit, 500 ms, is longer than all requests of a run together.
#[tokio::test(start_paused = true)]
async fn a_run_takes_no_longer_than_its_requests_in_whatever_order_they_come() {
    const MOST: u64 = 5;
    for seed in 0..3 {
        let town = Town::open().await;
        town.echo("default");
        town.post("/run", json!({"input": "x", "story_id": "warm"})).await.is(200);
        for (number, door) in (0..).zip([&town.door, &town.inside[0], &town.inside[1]]) {
            door.takes(MOST, 10 * seed + number);
        }
        for number in 0..25 {
            let before = town.elapsed();
            town.post("/run", json!({"input": "x", "story_id": format!("s-{number}"), "wait": 60})).await.is(200);
            let took = town.elapsed() - before;
            assert!(took < Duration::from_millis(400), "run {number} of order {seed} took {took:?}");
        }
    }
}
