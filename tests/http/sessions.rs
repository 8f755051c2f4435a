//! The record of a session: one a run, written before anything starts; and what a run refers to without copying it.

use lockstep::apiserver::Kind;
use serde_json::{Value, json};

use super::town::{Deed, Town};

#[tokio::test(start_paused = true)]
async fn a_run_has_one_record_of_its_session_and_is_found_by_it() {
    let town = Town::open().await;
    town.echo("default");
    let step = |name: &str| json!({"name": name, "agentId": "default"});
    town.make(Kind::WorkflowTemplate, "three", &json!({"steps": [step("a"), step("b"), step("c")]}));
    let mut runs = Vec::new();
    for session in ["event-1", "event-1", "event-2"] {
        let reply = town.post("/run", json!({"flow": "three", "input": "x", "session_id": session})).await.is(200);
        runs.push(reply.body["run"].clone());
    }
    // Every run has its own record, with the session as it was named, from its first moment to its end; no step has another.
    let workflows = town.objects(Kind::Workflow);
    for (run, session) in runs.iter().zip(["event-1", "event-1", "event-2"]) {
        let of: Vec<&Value> = workflows.iter().filter(|object| object["metadata"]["name"] == *run).collect();
        let [record] = of[..] else { panic!("{} records of {run}", of.len()) };
        let status = &record["status"]["session"];
        assert_eq!((&status["id"], &status["phase"]), (&json!(session), &json!("Completed")), "{record}");
        assert!(status["startTime"].is_string() && record["metadata"]["creationTimestamp"].is_string());
    }
    assert_eq!(workflows.len(), 3);
    let steps = town.objects(Kind::StepRun);
    assert_eq!(steps.len(), 9);
    for step in &steps {
        assert!(step["status"]["session"].is_null(), "{step}");
        // It says whose it is, and that is all.
        assert!(
            runs.contains(&step["spec"]["workflow"]["name"])
                && step["metadata"]["labels"]["lockstep.dev/session"].is_string()
        );
    }
    // The key is the session.
    let found = town.get("/runs?session=event-1").await.is(200);
    let found: Vec<&Value> = found.body["runs"].as_array().expect("a list").iter().map(|run| &run["run"]).collect();
    assert!(found.len() == 2 && !found.contains(&&runs[2]), "{found:?}");
    assert_eq!(town.get("/runs/event-2").await.is(200).body["run"], runs[2]);
    assert_eq!(town.get("/runs/event-2/result").await.is(200).body["session_id"], "event-2");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_written_down_fails_the_run_and_starts_nothing() {
    let town = Town::open().await;
    town.echo("default");
    town.wall("walled");
    let reply = town.post("/run", json!({"input": "x", "story_id": "walled", "wait": 30})).await.is(500);
    assert_eq!(reply.body["class"], "SessionInitFailed", "{}", reply.text);
    assert!(reply.text.contains("no-sessions/v1"), "{}", reply.text);
    // It was tried again, further apart each time, before it was given up.
    assert_eq!(town.walled("walled"), 5);
    assert!(town.elapsed().as_secs() >= 5, "{:?}", town.elapsed());
    assert!(town.objects(Kind::Job).is_empty() && town.objects(Kind::StepRun).is_empty(), "something was started");
    let run = &town.objects(Kind::Workflow)[0]["status"];
    assert_eq!((&run["phase"], &run["session"]), (&json!("Failed"), &Value::Null), "{run}");
    // Others are not kept from beginning.
    town.post("/run", json!({"input": "x", "story_id": "other"})).await.is(200);
    assert_eq!(town.walled("walled"), 5, "what has ended is not tried again");
}

#[tokio::test(start_paused = true)]
async fn agents_come_from_one_watch_however_many_runs_there_are() {
    let town = Town::open().await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "first"})).await.is(200);
    let asked = || [&town.inside[0], &town.door, &town.inside[1]].map(|door| door.asked_for(Kind::Agent));
    let before = asked();
    for n in 0..50 {
        town.post("/run", json!({"input": "x", "story_id": format!("s-{n}")})).await.is(200);
    }
    let [operator, api, gateway] = asked();
    // The gateway judges by what the operator pinned to the pod when it launched the attempt.
    assert_eq!([operator, api, gateway], before, "a run asked the API server for its Agent");
    assert_eq!(gateway, 0);
    // The watch brings what changes: the next run meets a new Agent, and nobody asked for it.
    town.agent("second", &json!({}), |_| Deed { output: json!("new"), ..Deed::default() });
    town.flow("second", &json!({}));
    let reply = town.post("/run", json!({"flow": "second", "input": "x", "story_id": "t"})).await.is(200);
    assert_eq!(reply.body["result"], "new");
    // Its status is one write, of the operator alone.
    let [now, _, gateway] = asked();
    assert!(now <= operator + 1 && gateway == 0, "{now} {operator} {gateway}");
}

#[tokio::test(start_paused = true)]
async fn definitions_are_taken_by_reference_and_nothing_is_copied() {
    let town = Town::open().await;
    let secret = json!({"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "model", "key": "token"}}});
    let config = json!({"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "modes", "key": "mode"}}});
    let mounted = json!({"name": "prompts", "configMap": {"name": "prompts"}});
    let container = json!({"name": "agent", "image": "registry.example/agent:1", "command": ["x"], "env": [secret, config],
        "envFrom": [{"secretRef": {"name": "all-keys"}}], "volumeMounts": [{"name": "prompts", "mountPath": "/prompts"}]});
    let more =
        json!({"template": {"spec": {"serviceAccountName": "own", "containers": [container], "volumes": [mounted]}}});
    town.agent("default", &more, |_| Deed { output: json!(1), ..Deed::default() });
    town.flow("default", &json!({}));
    for n in 0..2 {
        town.post("/run", json!({"input": "x", "story_id": format!("s-{n}")})).await.is(200);
    }
    // Two runs of one definition, each by its name.
    let workflows = town.objects(Kind::Workflow);
    assert!(
        workflows.iter().all(|run| run["spec"]["templateRef"]["name"] == "default" && run["spec"]["steps"].is_null())
    );
    assert_eq!((town.objects(Kind::WorkflowTemplate).len(), town.objects(Kind::Agent).len()), (1, 1));
    let jobs = town.objects(Kind::Job);
    assert_eq!(jobs.len(), 2);
    for job in &jobs {
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["serviceAccountName"], "own");
        let agent =
            pod["containers"].as_array().into_iter().flatten().find(|c| c["name"] == "agent").expect("the agent");
        let env = agent["env"].as_array().expect("an environment");
        assert!(env.contains(&secret) && env.contains(&config), "{env:?}");
        assert_eq!(agent["envFrom"], json!([{"secretRef": {"name": "all-keys"}}]));
        assert!(
            pod["volumes"].as_array().expect("volumes").iter().any(|v| v["configMap"]["name"] == "prompts"),
            "{pod}"
        );
    }
    // Nothing of what they name was read or made anew by operator or gateway.
    for door in &town.inside {
        let asked = door.asked.lock().expect("nobody panicked").clone();
        let of = |line: &&String| ["secrets", "configmaps", "serviceaccounts"].iter().any(|kind| line.ends_with(kind));
        let touched: Vec<&String> = asked.keys().filter(of).collect();
        assert!(touched.is_empty(), "{touched:?}");
    }
}
