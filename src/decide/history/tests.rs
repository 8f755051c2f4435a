#![expect(clippy::needless_pass_by_value, reason = "objects are built in place")]

use super::record::{RECORD_BYTES, record};
use super::*;
use serde_json::json;

fn at(minute: u32) -> String {
    format!("2026-11-21T10:{minute:02}:00Z")
}

fn run(status: Value) -> Workflow {
    serde_json::from_value(json!({
        "apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
        "metadata": {"name": "shop", "namespace": "team-a", "uid": "uid"},
        "spec": {"templateRef": {"name": "default"}},
        "status": status,
    }))
    .expect("a run")
}

fn step(spec: Value, status: Value) -> StepRun {
    let mut all = json!({"workflow": {"name": "shop", "uid": "uid"}, "definition": {"revisionName": "r", "digest": "d"},
        "parameters": "{}", "inputDigest": "sha256:in"});
    for (key, value) in spec.as_object().expect("an object") {
        all[key] = value.clone();
    }
    let name = format!("shop-{}", all["path"].as_str().unwrap_or_default());
    serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
        "metadata": {"name": name}, "spec": all, "status": status}))
    .expect("a step")
}

fn report(attempt: i32, digest: &str, output: &str) -> Value {
    json!({"report": {"attempt": attempt, "class": "Succeeded", "digest": digest, "output": output, "at": at(2)}})
}

fn shop() -> (Workflow, Vec<StepRun>) {
    let run = run(json!({
        "phase": "Failed", "startedAt": at(0), "completedAt": at(9), "session": {"id": "s", "phase": "Failed"},
        "conditions": [{"type": "Succeeded", "status": "False", "reason": "Unrecoverable", "message": "arch/E2: no such epic",
            "lastTransitionTime": at(9)}],
        "steps": [
            {"path": "discovery", "phase": "Completed", "startedAt": at(0), "completedAt": at(2), "stepRun": "shop-discovery"},
            {"path": "extra", "phase": "Skipped", "completedAt": at(2), "when": false},
            {"path": "ask", "phase": "Completed", "startedAt": at(2), "completedAt": at(3)},
            {"path": "sign", "phase": "Completed", "startedAt": at(3), "completedAt": at(4)},
            {"path": "arch", "phase": "Failed", "startedAt": at(4), "completedAt": at(9),
             "counts": {"total": 3, "started": 2, "done": 1, "failed": 1}},
            {"path": "report", "phase": "Cancelled"},
        ],
    }));
    let decision = json!({"documentType": "discovery", "scopeId": "uid", "accepted": true, "comment": "good",
        "decidedBy": "alice", "decidedAt": at(2), "digest": "sha256:r", "round": 1});
    let gate = |state: &str| {
        json!({"state": state, "round": 1, "outputDigest": "sha256:r", "openedAt": at(1), "policy": "p",
        "decisions": [decision]})
    };
    let item = |key: &str, index: i32| {
        json!({"path": "arch", "agentId": "a", "item": {"key": key, "index": index, "value": null},
        "scopeChain": [{"scope": "epic", "scopeId": format!("uid/{key}")}]})
    };
    let steps = vec![
        // Not in file order, as a list from the API server.
        step(
            item("E2", 1),
            json!({"phase": "Failed", "attempt": 2, "startedAt": at(4), "completedAt": at(9),
            "attempts": [{"number": 2, "round": 1, "result": "Unrecoverable", "completedAt": at(9), "exitCode": 3}],
            "error": {"class": "Unrecoverable", "message": "no such epic", "attempt": 2}}),
        ),
        step(
            item("E1", 0),
            json!({"phase": "Completed", "result": {"attempt": 1, "digest": "sha256:e1"}, "agent": report(1, "sha256:e1", "1")}),
        ),
        step(
            json!({"path": "ask", "ask": {"name": "ask", "question": "How many?"}}),
            json!({"phase": "Completed", "answer": {"value": "{\"n\":2}", "by": "bob", "at": at(3)}}),
        ),
        step(
            json!({"path": "sign", "gate": {"name": "sign"}}),
            json!({"phase": "Completed", "gate": gate("Accepted")}),
        ),
        step(
            json!({"path": "discovery", "agentId": "d", "parameters": "{\"depth\":2}"}),
            json!({"phase": "Completed", "startedAt": at(0), "completedAt": at(2), "gate": gate("Accepted"),
            "result": {"attempt": 1, "digest": "sha256:out"}, "agent": report(1, "sha256:out", "{\"a\":1}"),
            "guidance": [{"attempt": 1, "by": "carol", "text": "look at v2"}]}),
        ),
        // Of an earlier run of the same name.
        step(json!({"path": "discovery", "workflow": {"name": "shop", "uid": "other"}, "agentId": "d"}), json!({})),
    ];
    (run, steps)
}

#[test]
fn every_step_has_its_line() {
    let (run, steps) = shop();
    let entries = entries(&step_instances(&run, &steps));
    let ids: Vec<(&str, Phase)> = entries.iter().map(|e| (e.step_id.as_str(), e.status)).collect();
    assert_eq!(
        ids,
        [
            ("discovery", Phase::Completed),
            ("extra", Phase::Skipped),
            ("ask", Phase::Completed),
            ("sign", Phase::Completed),
            ("arch", Phase::Failed),
            ("arch/E1", Phase::Completed),
            ("arch/E2", Phase::Failed),
            ("report", Phase::Cancelled),
        ]
    );
    assert_eq!(
        serde_json::to_value(&entries[0]).expect("JSON"),
        json!({"StepId": "discovery", "StartedAt": at(0), "CompletedAt": at(2), "Status": "Completed",
            "Input": {"depth": 2}, "Output": {"a": 1}})
    );
    let outputs: Vec<&Value> = entries.iter().map(|e| &e.output).collect();
    assert_eq!(entries[2].input, json!({"question": "How many?"}));
    assert_eq!(*outputs[2], json!({"n": 2}));
    assert_eq!(*outputs[3], json!({"accepted": true, "decidedBy": "alice", "comment": "good"}));
    assert_eq!((outputs[1], outputs[5], outputs[6]), (&Value::Null, &json!(1), &Value::Null));
    let tried = attempts(&step_instances(&run, &steps));
    assert_eq!(tried.iter().map(|t| (t.step_id.as_str(), t.attempt.number)).collect::<Vec<_>>(), [("arch/E2", 2)]);
}

#[test]
fn who_decided_is_told_the_same_everywhere() {
    let decision = |by: &str, accepted: bool, round: i32, comment: Value| {
        json!({"documentType": "sign", "scopeId": "uid", "accepted": accepted, "comment": comment, "decidedBy": by,
            "decidedAt": at(2), "digest": "sha256:r", "round": round})
    };
    let none = Value::Null;
    let two = [decision("zoe", true, 1, json!("fine")), decision("ann", true, 1, none.clone())];
    let no = [decision("zoe", true, 1, json!("fine")), decision("ann", false, 1, json!("not yet"))];
    for (state, decisions, expected) in [
        ("Accepted", &two[..], json!({"accepted": true, "decidedBy": "zoe, ann", "comment": "fine"})),
        ("Rejected", &no[..], json!({"accepted": false, "decidedBy": "ann", "comment": "not yet"})),
        // Nobody decided in time.
        ("Rejected", &two[..1], json!({"accepted": false, "decidedBy": null, "comment": null})),
        ("NotRequired", &[], json!({"accepted": true, "decidedBy": null, "comment": null})),
        ("Waiting", &two[..1], none.clone()),
        ("Closed", &two[..1], none),
    ] {
        let gate = json!({"state": state, "round": 1, "outputDigest": "sha256:r", "openedAt": at(1), "policy": "p",
            "decisions": decisions});
        let phase = if state == "Waiting" { "WaitingForAcceptance" } else { "Completed" };
        let sign = step(
            json!({"path": "sign", "gate": {"name": "sign", "approvals": 2}}),
            json!({"phase": phase, "gate": gate}),
        );
        assert_eq!(output(&sign), expected, "{state}");
        if state == "Accepted" {
            let status = sign.status.as_ref().expect("a status");
            assert_eq!(gate::output_of(&sign, status).as_ref(), Some(&expected), "what expressions see");
        }
        let listed = run(json!({"phase": phase, "steps": [{"path": "sign", "phase": phase}]}));
        let recorded = &record(&listed, [&sign])["steps"][0];
        let decided = expected.get("decidedBy").filter(|by| by.is_string());
        assert_eq!((recorded.get("decidedBy"), recorded["gate"].as_str()), (decided, Some(state)));
    }
}

#[test]
fn what_people_ordered_is_told_and_recorded() {
    let action = |word: &str, attempt: i32| json!({"action": word, "wait": "RetriesSpent", "attempt": attempt, "by": "carol", "at": at(5), "comment": "x".repeat(1000)});
    let item = |key: &str, index: i32, actions: Vec<Value>| {
        let spec = json!({"path": "arch", "agentId": "a", "item": {"key": key, "index": index, "value": null},
            "scopeChain": [{"scope": "epic", "scopeId": format!("uid/{key}")}]});
        step(spec, json!({"phase": "Completed", "actions": actions}))
    };
    let steps = [
        step(
            json!({"path": "plan", "agentId": "a"}),
            json!({"phase": "Completed", "actions": [action("retry", 3), action("skip", 6)]}),
        ),
        item("E1", 0, vec![action("skip", 1)]),
        item("E2", 1, (1..=10).map(|n| action("retry", n)).collect()),
    ];
    let counts = json!({"total": 2, "started": 2, "done": 2, "failed": 0});
    let run = run(json!({"phase": "Completed", "steps": [{"path": "plan", "phase": "Completed"},
        {"path": "arch", "phase": "Completed", "counts": counts}]}));
    let said = serde_json::to_value(human_input(&step_instances(&run, &steps))).expect("JSON");
    let first = &said["actions"][0];
    assert_eq!((&first["StepId"], &first["action"], &first["by"]), (&json!("plan"), &json!("retry"), &json!("carol")));
    assert_eq!(said["actions"].as_array().map(Vec::len), Some(13));
    let record = record(&run, &steps);
    let (plan, arch) = (&record["steps"][0], &record["steps"][1]);
    assert_eq!(plan["actions"][1]["action"], json!("skip"));
    assert_eq!((plan["actions"][1].get("key"), plan.get("actionsLeftOut")), (None, None));
    assert!(plan["actions"][0]["comment"].as_str().is_some_and(|c| c.len() <= 403), "{plan}");
    assert_eq!((&arch["actions"][0]["key"], &arch["actions"][1]["key"]), (&json!("E1"), &json!("E2")));
    assert_eq!((arch["actions"].as_array().map(Vec::len), &arch["actionsLeftOut"]), (Some(10), &json!(1)));
}

#[test]
fn only_the_report_that_the_verdict_names_is_the_output() {
    let mut late = step(
        json!({"path": "a", "agentId": "a"}),
        json!({"result": {"attempt": 1, "digest": "sha256:1"}, "agent": report(2, "sha256:2", "2")}),
    );
    assert_eq!(output(&late), Value::Null);
    late.status.as_mut().and_then(|s| s.result.as_mut()).expect("a result").document_name = Some("doc".into());
    assert_eq!(output(&late), json!({"documentName": "doc", "digest": "sha256:1"}));
    let reused = step(
        json!({"path": "a", "agentId": "a", "reuse": {"stepRun": "old", "uid": "u", "digest": "sha256:3", "output": "[3]"}}),
        json!({}),
    );
    assert_eq!(output(&reused), json!([3]));
}

#[test]
fn what_people_said_is_told_with_its_step() {
    let (run, steps) = shop();
    let said = serde_json::to_value(human_input(&step_instances(&run, &steps))).expect("JSON");
    assert_eq!(
        said["decisions"][0],
        json!({"StepId": "discovery", "documentType": "discovery", "scopeId": "uid", "accepted": true, "comment": "good",
            "decidedBy": "alice", "decidedAt": at(2), "digest": "sha256:r", "round": 1})
    );
    assert_eq!(said["decisions"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        said["answers"],
        json!([{"StepId": "ask", "question": "How many?", "value": {"n": 2}, "by": "bob", "at": at(3)}])
    );
    assert_eq!(said["guidance"], json!([{"StepId": "discovery", "attempt": 1, "by": "carol", "text": "look at v2"}]));
}

#[test]
fn a_finished_run_is_one_record() {
    let (run, steps) = shop();
    let record = record(&run, &steps);
    let expected = json!({
        "run": "shop", "namespace": "team-a", "uid": "uid", "template": "default", "session": "s", "phase": "Failed",
        "reason": "Unrecoverable", "message": "arch/E2: no such epic", "startedAt": at(0), "completedAt": at(9),
        "durationSeconds": 540.0,
        "steps": [
            {"StepId": "discovery", "StartedAt": at(0), "CompletedAt": at(2), "Status": "Completed", "attempts": 1,
             "Input": "sha256:in", "Output": "sha256:out", "gate": "Accepted", "decidedBy": "alice"},
            {"StepId": "extra", "StartedAt": null, "CompletedAt": at(2), "Status": "Skipped"},
            {"StepId": "ask", "StartedAt": at(2), "CompletedAt": at(3), "Status": "Completed", "Input": "sha256:in"},
            {"StepId": "sign", "StartedAt": at(3), "CompletedAt": at(4), "Status": "Completed", "Input": "sha256:in",
             "gate": "Accepted", "decidedBy": "alice"},
            {"StepId": "arch", "StartedAt": at(4), "CompletedAt": at(9), "Status": "Failed",
             "counts": {"total": 3, "started": 2, "done": 1, "failed": 1},
             "failedItems": [{"key": "E2", "error": "Unrecoverable"}]},
            {"StepId": "report", "StartedAt": null, "CompletedAt": null, "Status": "Cancelled"},
        ],
    });
    assert_eq!(record, expected);
}

#[test]
fn a_record_is_bounded() {
    let steps: Vec<Value> =
        (0..200).map(|n| json!({"path": format!("{}{n}", "x".repeat(500)), "phase": "Completed"})).collect();
    let run = run(json!({"phase": "Completed", "startedAt": at(0), "completedAt": at(1), "steps": steps}));
    let items: Vec<StepRun> = (0..5000)
        .map(|n| {
            let item = json!({"key": format!("{n}{}", "k".repeat(200)), "index": n, "value": null});
            let path = format!("{}0", "x".repeat(500));
            step(json!({"path": path, "agentId": "a", "item": item}), json!({"phase": "Failed"}))
        })
        .collect();
    let record = record(&run, &items);
    let bytes = record.to_string().len();
    assert!((60_000..=RECORD_BYTES).contains(&bytes), "{bytes}");
    let kept = record["steps"].as_array().map(Vec::len).unwrap_or_default();
    assert_eq!(record["stepsLeftOut"], json!(200 - kept));
    assert_eq!(record["steps"][0]["failedItems"].as_array().map(Vec::len), Some(5));
}

#[test]
fn an_attempt_without_a_report_is_told_once_and_by_the_operator() {
    let at = "2026-01-01T00:00:00Z";
    let attempt = |n: i32, result: &str| json!({"number": n, "round": 1, "result": result, "completedAt": at});
    let status = |attempts: Vec<Value>, reported: Option<i32>| -> StepRunStatus {
        let report = reported.map(|n| json!({"attempt": n, "class": "Exited", "digest": "", "at": at}));
        let agent = json!({"report": report});
        serde_json::from_value(json!({"attempts": attempts, "agent": agent})).expect("a status")
    };
    let (one, two) = (attempt(1, "Infrastructure"), attempt(2, "Retryable"));
    let first = status(vec![one.clone()], None);
    let numbers = |found: Vec<&Attempt>| found.iter().map(|a| a.number).collect::<Vec<_>>();
    assert_eq!(numbers(lost_attempts(None, &first)), [1]);
    assert_eq!(numbers(lost_attempts(Some(&first), &first)), Vec::<i32>::new());
    // The gateway has told of the second one, with all that its report says.
    let second = status(vec![one, two], Some(2));
    assert_eq!(numbers(lost_attempts(Some(&first), &second)), Vec::<i32>::new());
}
