//! What people do to runs by HTTP: decide, answer, cancel, suspend, resume, retry.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep::api::name::DECISION;
use lockstep::apiserver::Kind;
use serde_json::{Value, json};

use super::town::{Deed, Town, send};

async fn gated(town: &Town) -> String {
    town.agent("default", &json!({}), |_| Deed { output: json!({"ok": true}), ..Deed::default() });
    town.flow("default", &json!({"gate": {"name": "plan", "message": "Is it right?"}}));
    let reply = town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(202);
    let waits = reply.body["waiting"].as_array().expect("waits").clone();
    assert_eq!((waits[0]["step"].as_str(), waits[0]["by"].as_str()), (Some("work"), Some("decision")));
    assert_eq!(waits[0]["permission"], "approve on gates.lockstep.dev/plan");
    assert_eq!(waits[0]["question"], "Is it right?");
    waits[0]["review"].as_str().expect("a digest").to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_person_decides_and_the_run_goes_on() {
    let town = Town::open().await;
    let review = gated(&town).await;
    let path = "/runs/s/steps/work/decision";
    town.ask("bob", "POST", path, json!({"comment": "?"})).await.is(400);
    let stale = town.ask("bob", "POST", path, json!({"accepted": true, "review": "sha256:00"})).await.is(409);
    assert!(stale.text.contains(&review), "{}", stale.text);
    let machine = town.ask("system:serviceaccount:team:bot", "POST", path, json!({"accepted": true})).await.is(403);
    assert!(machine.text.contains("only people decide"), "{}", machine.text);
    let taken =
        town.ask("bob", "POST", path, json!({"accepted": true, "review": review, "comment": "good"})).await.is(200);
    assert_eq!(
        (&taken.body["gate"], &taken.body["by"], &taken.body["recorded"]),
        (&json!("Accepted"), &json!("bob"), &json!(true))
    );
    assert_eq!(town.end("s").await.data["result"], json!({"ok": true}));
    let result = town.get("/runs/s/result").await.is(200);
    assert_eq!(result.body["result"], json!({"ok": true}));
    let late = town.ask("bob", "POST", path, json!({"accepted": false})).await.is(409);
    assert!(late.text.contains("does not wait"), "{}", late.text);
    let history = town.get("/runs/s/history").await.is(200);
    let decision = &history.body["decisions"][0];
    assert_eq!(
        (&decision["accepted"], &decision["decidedBy"], &decision["comment"]),
        (&json!(true), &json!("bob"), &json!("good"))
    );
    let step = &history.body["steps"][0];
    assert_eq!(
        (&step["StepId"], &step["Status"], &step["Output"]),
        (&json!("work"), &json!("Completed"), &json!({"ok": true}))
    );
    assert!(history.body["createdAt"].is_string() && history.body["attempts"][0]["StepId"] == "work");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_ends_the_run() {
    let town = Town::open().await;
    gated(&town).await;
    town.ask("bob", "POST", "/runs/s/steps/work/decision", json!({"accepted": false, "comment": "no"})).await.is(200);
    assert_eq!(town.end("s").await.name, "failure");
    let reply = town.get("/runs/s/result").await.is(500);
    assert_eq!((&reply.body["class"], &reply.body["step"]), (&json!("Rejected"), &json!("work")));
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_and_a_step_that_cannot_go_on_gets_its_order() {
    let town = Town::open().await;
    let ask = json!({"name": "budget", "ask": {"question": "How much?", "schema": {"type": "integer"}}});
    town.make(Kind::WorkflowTemplate, "asks", &json!({"steps": [ask]}));
    let reply = town.post("/run", json!({"flow": "asks", "input": "x", "story_id": "s"})).await.is(202);
    assert_eq!(
        (&reply.body["waiting"][0]["kind"], &reply.body["waiting"][0]["by"]),
        (&json!("Question"), &json!("answer"))
    );
    let path = "/runs/s/steps/budget/answer";
    for wrong in [
        json!({}),
        json!({"answer": 1, "action": "fail"}),
        json!({"action": "explode"}),
        json!({"answer": 1, "comment": "x"}),
    ] {
        town.post(path, wrong).await.is(400);
    }
    // The operator judges it; one that does not fit leaves the mailbox again.
    town.post(path, json!({"answer": "many"})).await.is(409);
    let taken = town.post(path, json!({"answer": 20_000})).await.is(200);
    assert_eq!(taken.body["phase"], "Completed");
    assert_eq!(town.end("s").await.data["result"], 20_000);
    town.post(path, json!({"answer": 1})).await.is(409);
    // An agent that cannot go on.
    town.agent("frail", &json!({}), |_| Deed { code: 1, ..Deed::default() });
    town.make(Kind::WorkflowTemplate, "frail", &json!({"steps": [{"name": "work", "agentId": "frail"}]}));
    let reply = town.post("/run", json!({"flow": "frail", "input": "x", "story_id": "t"})).await.is(202);
    assert_eq!(reply.body["waiting"][0]["options"], json!(["retry", "skip", "fail"]));
    town.post("/runs/t/steps/work/answer", json!({"action": "skip", "comment": "not needed"})).await.is(200);
    let end = town.end("t").await;
    assert_eq!((end.name.as_str(), &end.data["phase"]), ("result", &json!("Completed")));
}

#[tokio::test(start_paused = true)]
async fn a_run_is_suspended_resumed_cancelled_and_retried() {
    let town = Town::open().await;
    town.agent("default", &json!({}), |_| Deed { seconds: 5.0, output: json!(1), ..Deed::default() });
    let step = |name: &str| json!({"name": name, "agentId": "default"});
    town.make(Kind::WorkflowTemplate, "two", &json!({"steps": [step("a"), step("b")]}));
    let start = |story: &str| json!({"flow": "two", "input": "x", "story_id": story, "wait": 0});
    town.post("/run", start("s")).await.is(202);
    town.post("/runs/s/suspend", Value::Null).await.is(200);
    let held = town.until("it holds still", || {
        let run = town.objects(Kind::Workflow).into_iter().find(|run| run["status"]["phase"] == "Suspended")?;
        Some(run["metadata"]["name"].as_str()?.to_owned())
    });
    let run = held.await;
    town.post(&format!("/runs/{run}/retry"), Value::Null).await.is(409);
    town.post("/runs/s/resume", Value::Null).await.is(200);
    let events = town.stream("ann", "/runs/s/events", None).await.all().await;
    assert_eq!(events.last().map(|event| event.name.as_str()), Some("result"));
    town.post("/runs/s/suspend", Value::Null).await.is(409);
    town.post("/runs/s/retry", Value::Null).await.is(409);
    town.post("/runs/s/retry", json!({"from": "zzz"})).await.is(400);
    let retried = town.post("/runs/s/retry", json!({"from": "b"})).await.is(201);
    assert_eq!(retried.body["run"], format!("{run}-r2"));
    assert_eq!(retried.header("location"), format!("/namespaces/team/runs/{run}-r2"));
    let events = town.stream("ann", &format!("/runs/{run}-r2/events"), None).await.all().await;
    let claims = events.iter().filter(|event| event.name == "step.claimed").count();
    assert_eq!(claims, 1, "a was taken over, b ran again");
    // Cancelled while it runs.
    town.post("/run", start("t")).await.is(202);
    town.post("/runs/t/cancel", Value::Null).await.is(200);
    let events = town.stream("ann", "/runs/t/events", None).await.all().await;
    assert_eq!(
        events.last().map(|event| (event.name.as_str(), event.data["class"].as_str())),
        Some(("failure", Some("Cancelled")))
    );
}

/// What came in time counts whenever the operator reads it, and bears the time at which it was written; what comes later is refused.
#[tokio::test(start_paused = true)]
async fn a_deadline_holds_while_the_operator_is_away() {
    let town = Town::open().await;
    town.agent("default", &json!({}), |_| Deed { output: json!({"ok": true}), ..Deed::default() });
    town.flow("default", &json!({"gate": {"name": "plan", "deadlineSeconds": 60}}));
    for story in ["intime", "late"] {
        town.post("/run", json!({"input": "x", "story_id": story})).await.is(202);
    }
    let away = town.inside[0].open.clone().write_owned().await;
    let decide = |story: &str| format!("/runs/{story}/steps/work/decision");
    town.ask("bob", "POST", &decide("intime"), json!({"accepted": true})).await.is(202);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let refused = town.ask("bob", "POST", &decide("late"), json!({"accepted": true})).await.is(403);
    assert!(refused.text.contains("too late"), "{}", refused.text);
    drop(away);
    assert_eq!(town.end("intime").await.data["result"], json!({"ok": true}));
    assert_eq!(town.end("late").await.name, "failure");
    let gates: Vec<Value> =
        town.objects(Kind::StepRun).iter().map(|step_run| step_run["status"]["gate"].clone()).collect();
    let decided = gates.iter().find(|gate| gate["state"] == "Accepted").expect("the one in time");
    let time = |value: &Value| value.as_str().expect("a time").to_owned();
    let (at, deadline) = (time(&decided["decisions"][0]["decidedAt"]), time(&decided["deadline"]));
    assert!(at < deadline, "{at} is not before {deadline}");
    assert!(gates.iter().any(|gate| gate["state"] == "Rejected" && gate["decisions"].is_null()), "{gates:?}");
}

/// The operator dies at each of its requests after somebody decided what cannot be taken.
#[tokio::test(start_paused = true)]
async fn why_a_decision_was_refused_is_told_before_it_leaves_the_mailbox() {
    let (mut kept, mut emptied) = (0, 0);
    for requests in 0..12 {
        let town = Town::open().await;
        town.agent("default", &json!({}), |_| Deed { output: json!({"ok": true}), ..Deed::default() });
        // A rejection must say what to change.
        town.flow("default", &json!({"gate": {"name": "plan", "onReject": "Revise"}}));
        town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(202);
        let operator = &town.inside[0];
        operator.left.store(requests, Ordering::SeqCst);
        let path = "/runs/s/steps/work/decision";
        let request = Town::request("bob", "POST", path, &json!({"accepted": false}));
        let reply = send(town.service.router.clone(), request).await;
        assert!(matches!(reply.code, 202 | 409), "{}", reply.text);
        let mailbox = || town.objects(Kind::StepRun)[0]["metadata"]["annotations"][DECISION].clone();
        let told = town.objects(Kind::Event).iter().any(|event| event["reason"] == "DecisionRefused");
        if mailbox().is_null() {
            emptied += 1;
            assert!(told, "it is gone after {requests} requests, and nobody knows why");
        } else {
            kept += 1;
        }
    }
    assert!(kept > 0 && emptied > 0, "{kept} {emptied}");
}
