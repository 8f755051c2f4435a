//! What is told to whom, and once.

use serde_json::{Value, json};

use super::*;
use crate::api::document::{Document, DocumentSpec};
use crate::decide::content::Loaded;

fn at(second: u32) -> String {
    format!("2026-11-21T10:00:{second:02}Z")
}

fn time(second: i64) -> Time {
    Time(at(0).parse::<k8s_openapi::jiff::Timestamp>().expect("a time") + SignedDuration::from_secs(second))
}

fn run(notifications: &Value, status: &Value) -> Workflow {
    let mut spec = json!({"templateRef": {"name": "shop"}});
    if !notifications.is_null() {
        spec["notifications"] = notifications.clone();
    }
    serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
        "metadata": {"name": "bikes", "namespace": "team", "uid": "u"}, "spec": spec, "status": status}))
    .expect("a run")
}

fn step(status: &Value) -> StepRun {
    let spec = json!({"workflow": {"name": "bikes", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
        "path": "plan", "agentId": "planner", "parameters": "{}", "inputDigest": "d", "gate": {"name": "plan"}});
    serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
        "metadata": {"name": "bikes-plan", "uid": "s"}, "spec": spec, "status": status}))
    .expect("a step")
}

fn sink(name: &str, more: &Value) -> Sink {
    let mut all = json!({"name": name});
    all.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    serde_json::from_value(all).expect("a receiver")
}

fn whats(all: &[&Notification]) -> Vec<String> {
    all.iter().map(|one| one.what.clone()).collect()
}

fn gate(state: &str, decisions: &Value) -> Value {
    json!({"state": state, "round": 1, "outputDigest": "sha256:a", "openedAt": at(9), "policy": "p",
        "commands": if state == "Waiting" { json!(["kubectl lockstep approve bikes/plan"]) } else { json!([]) },
        "decisions": decisions})
}

#[test]
fn a_run_picks_receivers_by_name_among_those_of_its_namespace() {
    let sinks = [
        sink("chat", &json!({"default": true})),
        sink("pager", &json!({})),
        sink("other", &json!({"default": true, "namespaces": ["elsewhere"]})),
    ];
    let of = |named: &Value| {
        let (found, unknown) = receivers(sinks.iter(), &run(named, &Value::Null));
        (found.iter().map(|sink| sink.name.clone()).collect::<Vec<_>>().join(" "), unknown.join(" "))
    };
    for (named, found, unknown) in [
        (Value::Null, "chat", ""),
        (json!([]), "", ""),
        (json!(["pager"]), "pager", ""),
        (json!(["pager", "chat"]), "chat pager", ""),
        (json!(["other", "nobody"]), "", "other nobody"),
    ] {
        assert_eq!(of(&named), (found.to_owned(), unknown.to_owned()), "{named}");
    }
    let marks = marked(&[], &[said_unknown("other")], |_| true);
    assert_eq!(super::unknown(&["other".to_owned(), "nobody".to_owned()], &marks), ["nobody"], "told once");
}

#[test]
fn what_happens_to_a_run_is_told_by_the_name_of_its_end() {
    for (phase, expected) in [
        ("Completed", "dev.lockstep.run.completed"),
        ("Failed", "dev.lockstep.run.failed"),
        ("Cancelled", "dev.lockstep.run.cancelled"),
    ] {
        let status = json!({"startedAt": at(1), "completedAt": at(5), "phase": phase});
        let types: Vec<&str> = of_run(&run(&Value::Null, &status)).iter().map(|one| one.event.event_type()).collect();
        assert_eq!(types, ["dev.lockstep.run.started", expected]);
    }
    assert!(of_run(&run(&Value::Null, &json!({}))).is_empty(), "it has not started");
}

#[test]
fn each_receiver_is_told_once_of_what_it_wants() {
    let decided = json!([{"documentType": "plan", "scopeId": "u", "accepted": true, "decidedBy": "ann",
        "decidedAt": at(12), "digest": "sha256:a", "round": 1}]);
    let waits = of_step(&step(
        &json!({"phase": "WaitingForAcceptance", "startedAt": at(1), "gate": gate("Waiting", &json!([]))}),
    ));
    let all = of_step(&step(&json!({"phase": "Completed", "completedAt": at(12), "gate": gate("Accepted", &decided)})));
    let chat = sink("chat", &json!({}));
    let pager = sink("pager", &json!({"events": ["waiting"]}));
    assert_eq!(whats(&due(&waits, &chat, &[])), ["gate1"]);
    assert_eq!(whats(&due(&waits, &pager, &[])), ["gate1"]);
    assert_eq!(due(&all, &pager, &[]).len(), 0, "a wait that is over needs nobody");
    let after = due(&all, &chat, &[]);
    assert_eq!((after.len(), after[0].event), (1, NotificationEvent::Decided));

    let marks = marked(&[], &[("chat".to_owned(), "gate1".to_owned())], |_| true);
    assert!(due(&waits, &chat, &marks).is_empty(), "told already");
    assert_eq!(whats(&due(&waits, &pager, &marks)), ["gate1"], "of another receiver");
    let marks =
        marked(&marks, &[("chat".to_owned(), after[0].what.clone()), ("chat".to_owned(), "gate1".to_owned())], |_| {
            true
        });
    assert_eq!(marks, [Notified { sink: "chat".into(), told: vec!["gate1".into(), after[0].what.clone()] }]);
    assert!(due(&all, &chat, &marks).is_empty());
}

#[test]
fn marks_have_a_bound() {
    let told: Vec<_> = (0..300).map(|number| ("chat".to_owned(), format!("wait-{number}"))).collect();
    let marks = marked(&[], &told, |_| true);
    assert_eq!((marks[0].told.len(), marks[0].told[0].as_str()), (256, "wait-44"));
}

#[test]
fn marks_of_receivers_that_are_there_no_more_are_dropped() {
    let told = |name: &str| (name.to_owned(), "started".to_owned());
    let marks = marked(&[], &[told("old"), said_unknown("nobody")], |_| true);
    let marks = marked(&marks, &[told("chat")], |name| name == "chat");
    assert_eq!(marks.iter().map(|mark| mark.sink.as_str()).collect::<Vec<_>>(), ["nobody", "chat"]);
}

#[test]
fn a_new_receiver_is_told_no_history_but_of_people_who_are_waited_for() {
    let chat = sink("chat", &json!({}));
    let old = run(&Value::Null, &json!({"startedAt": at(0)}));
    let started = of_run(&old);
    let waits = of_step(&step(&json!({"phase": "WaitingForAcceptance", "gate": gate("Waiting", &json!([]))})));
    assert!(!is_history(&started[0], &time(3600)) && is_history(&started[0], &time(3601)));
    assert!(!is_history(&waits[0], &time(9000)));
    let told = json!([{"sink": "chat", "told": ["started"]}]);
    let known = run(&Value::Null, &json!({"startedAt": at(0), "notified": told}));
    let unknown = marked(&[], &[said_unknown("chat")], |_| true);
    assert!(knows_of(&chat, &known, &[]) && !knows_of(&chat, &old, &unknown));
    assert!(knows_of(&chat, &old, &marked(&[], &[said_late(&waits[0], &chat)], |_| true)));
}

#[test]
fn documents_that_a_run_waits_for_are_told_once() {
    let waiting = json!([{"type": "Waiting", "status": "True", "reason": "WaitingForDocuments", "message": "",
        "lastTransitionTime": at(7)}]);
    let of = |types: &Value| {
        let status = json!({"phase": "WaitingForDocuments", "pendingDocuments": types, "conditions": waiting});
        of_run(&run(&Value::Null, &status))
    };
    assert!(of(&json!([])).is_empty());
    let (one, other) = (of(&json!(["plan", "brief"])), of(&json!(["plan"])));
    assert_eq!((one.len(), one[0].event, one[0].at.clone()), (1, NotificationEvent::Waiting, time(7)));
    assert!(one[0].what == of(&json!(["plan", "brief"]))[0].what && one[0].what != other[0].what);
    let event = cloud_event(&one[0], (&run(&Value::Null, &Value::Null), None), None, "");
    let event = serde_json::to_value(event).expect("JSON");
    assert_eq!((&event["type"], &event["data"]["event"]), (&json!("dev.lockstep.run.waiting"), &json!("run.waiting")));
    assert_eq!(event["data"]["message"], "documents are missing: plan, brief");
}

#[test]
fn after_an_hour_of_failures_it_is_overdue() {
    let all = of_run(&run(&Value::Null, &json!({"startedAt": at(0)})));
    let failing = |lasts, failures| Trouble { lasts: SignedDuration::from_secs(lasts), failures };
    for (now, trouble, expected) in [
        (3601, failing(3601, 5), true),
        (3600, failing(3601, 5), false),
        (3601, failing(3601, 4), false),
        // The operator was away, and has begun to try.
        (9000, failing(0, 1), false),
        (9000, failing(3600, 70), false),
        (9000, failing(3601, 70), true),
        // It happened while the receiver was down already.
        (60, failing(9000, 70), false),
    ] {
        assert_eq!(is_overdue(&all[0], &time(now), trouble), expected, "{now} {trouble:?}");
    }
    assert!(may_be_given_up(&all[0]));
}

#[test]
fn a_wait_is_never_given_up_but_said_once_and_tried_last() {
    let request = |opened: u32| {
        json!({"attempt": 1, "gateName": "mail", "action": "send", "payload": "{}", "requestedAt": at(opened),
        "gate": {"state": "Waiting", "round": 1, "outputDigest": "sha256:b", "openedAt": at(opened), "policy": "p"}})
    };
    let status = json!({"phase": "WaitingForAcceptance", "gate": gate("Waiting", &json!([])),
        "approvalRequests": [request(20)]});
    let all = of_step(&step(&status));
    let chat = sink("chat", &json!({}));
    assert_eq!(whats(&due(&all, &chat, &[])), ["gate1", "request0"]);
    assert!(!may_be_given_up(&all[0]) && !is_said_late(&all[0], &chat, &[]));
    let marks = marked(&[], &[said_late(&all[0], &chat)], |_| true);
    assert!(is_said_late(&all[0], &chat, &marks) && !is_said_late(&all[1], &chat, &marks));
    assert_eq!(whats(&due(&all, &chat, &marks)), ["request0", "gate1"]);
}

#[test]
fn a_wait_comes_with_all_that_a_person_needs() {
    let lines: Vec<String> = (0..40).map(|number| format!("line {number}")).collect();
    let spec = DocumentSpec { document_type: "plan".into(), content: lines.join("\n"), ..DocumentSpec::default() };
    let mut plan = Document::new("bikes-plan-1", spec);
    plan.metadata.uid = Some("d".into());
    let loaded = Loaded::new(std::sync::Arc::new(plan));
    let digest = crate::api::name::digest_bytes(lines.join("\n").as_bytes());
    let binding = json!({"uid": "d", "digest": digest});
    let step = step(&json!({"phase": "WaitingForAcceptance", "gate": gate("Waiting", &json!([])),
        "result": {"attempt": 1, "digest": "sha256:a", "documentName": "bikes-plan-1", "documentBinding": binding}}));
    let run = run(&Value::Null, &json!({"session": {"id": "story-1", "phase": "Busy"}}));
    let all = of_step(&step);
    let pin = document(&all[0], &step).expect("a document");
    let content = Content::of(&pin, Some(&loaded)).expect("the one that was meant");
    let event = cloud_event(&all[0], (&run, Some(&step)), Some(&content), "https://api/");
    let event = serde_json::to_value(event).expect("JSON");
    assert_eq!(
        event,
        json!({
            "specversion": "1.0", "id": all[0].payload.id, "source": "/namespaces/team/workflows/bikes",
            "type": "dev.lockstep.run.waiting", "subject": "plan", "time": at(9), "datacontenttype": "application/json",
            "data": {
                "namespace": "team", "event": "step.waiting", "id": all[0].payload.id, "run": "bikes", "step": "plan",
                "stepRun": "bikes-plan", "at": at(9), "round": 1, "session": "story-1", "flow": "shop", "gate": "plan",
                "commands": ["kubectl lockstep approve bikes/plan"],
                "document": {"type": "plan", "name": "bikes-plan-1", "digest": digest, "firstLines": lines[..10].join("\n")},
                "url": "https://api/namespaces/team/runs/bikes",
            },
        })
    );
}
