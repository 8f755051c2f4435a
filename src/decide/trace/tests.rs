#![expect(clippy::needless_pass_by_value, reason = "objects are built in place")]

use serde_json::{Value, json};

use super::*;

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn at(second: u32) -> String {
    format!("2026-11-21T10:00:{second:02}Z")
}

fn time(second: u32) -> Time {
    Time(at(second).parse().expect("a time"))
}

fn step_run(traceparent: Value, status: Value) -> StepRun {
    let spec = json!({"workflow": {"name": "shop", "uid": "run-uid", "traceparent": traceparent}, "path": "group/plan",
        "definition": {"revisionName": "r", "digest": "d"}, "agentId": "planner", "parameters": "{}", "inputDigest": "d",
        "gate": {"name": "plan"}});
    serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun", "spec": spec, "status": status,
        "metadata": {"name": "shop-plan-1", "namespace": "team", "uid": "step-uid", "labels": {"lockstep.dev/session": "s"}}}))
    .expect("a StepRun")
}

fn status(of: Value) -> StepRunStatus {
    serde_json::from_value(of).expect("a status")
}

fn fact<'a>(span: &'a Span, name: &str) -> Option<&'a Fact> {
    span.attributes.iter().find(|(key, _)| *key == name).map(|(_, fact)| fact)
}

#[test]
fn a_context_is_read_as_the_standard_says() {
    let context = TraceContext::parse(CALLER).expect("it is one");
    assert_eq!(context.id(), "0af7651916cd43dd8448eb211c80319c");
    assert!(context.is_sampled);
    assert_eq!(context.below(context.parent.expect("a parent")), CALLER);
    for (text, is_one) in [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true),
        // A later version may have more behind.
        ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false),
        ("00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01", false),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", false),
        ("0af7651916cd43dd8448eb211c80319c", false),
        ("00-\u{e4}\u{e4}f7651916cd43dd8448eb211c8031-b7ad6b7169203331-01", false),
        ("", false),
    ] {
        assert_eq!(TraceContext::parse(text).is_some(), is_one, "{text}");
    }
}

#[test]
fn ids_follow_from_uids_and_a_repeat_is_the_same_span() {
    let own = step_run(Value::Null, json!({"attempt": 1}));
    let told = step_run(json!(CALLER), json!({"attempt": 1}));
    assert_ne!(TraceContext::of_step(&own).id(), TraceContext::of_step(&told).id());
    assert_eq!(TraceContext::of_step(&told).id(), "0af7651916cd43dd8448eb211c80319c");
    // What an agent gets is below its own attempt.
    let [first, second] = [1, 2].map(|attempt| of_attempt(&told, attempt));
    assert!(first.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && first.ends_with("-01") && first != second);
    assert_eq!(TraceContext::parse(&first).and_then(|context| context.parent), Some(attempt_span(&told, 1)));
    let next = status(json!({"attempt": 1, "completedAt": at(9), "phase": "Completed"}));
    let (one, again) = (of_step_run(&own, Some(&next), &time(10)), of_step_run(&own, Some(&next), &time(20)));
    assert!(one == again && one.len() == 1, "{one:?}");
}

#[test]
fn what_ends_in_a_pass_is_told_with_its_times() {
    let gate = json!({"state": "Waiting", "round": 1, "outputDigest": "d", "openedAt": at(3), "policy": "p"});
    let attempt = json!({"number": 1, "round": 1, "result": "Succeeded", "exitCode": 0, "startedAt": at(1), "completedAt": at(3),
        "usage": {"tokensIn": 12, "tokensOut": 3, "cost": "0.5", "models": ["small"]}});
    let lost = json!({"number": 2, "round": 1, "result": "Timeout", "completedAt": at(4), "message": "too slow"});
    // The attempt has ended, and its gate opens: only the attempt is told.
    let running = step_run(Value::Null, json!({"attempt": 1, "startedAt": at(1), "phase": "Running"}));
    let waits =
        json!({"attempt": 1, "startedAt": at(1), "phase": "WaitingForAcceptance", "attempts": [attempt], "gate": gate});
    let spans = of_step_run(&running, Some(&status(waits.clone())), &time(5));
    let [tried] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((tried.name.as_str(), &tried.started, &tried.ended), ("invoke_agent planner", &time(1), &time(3)));
    assert_eq!(tried.id, attempt_span(&running, 1));
    assert_eq!(fact(tried, "gen_ai.usage.input_tokens"), Some(&Fact::Number(12)));
    assert_eq!(fact(tried, "gen_ai.request.model"), Some(&"small".into()));
    assert_eq!(fact(tried, "gen_ai.conversation.id"), Some(&"s".into()));
    assert!(tried.fault.is_none() && fact(tried, "error.type").is_none());
    // A person accepts, and the step is over.
    let waiting = step_run(Value::Null, waits.clone());
    let mut over = waits;
    over["phase"] = json!("Completed");
    over["completedAt"] = json!(at(8));
    over["gate"]["state"] = json!("Accepted");
    over["gate"]["decisions"] = json!([{"documentType": "plan", "scopeId": "s", "accepted": true, "decidedBy": "ann",
        "decidedAt": at(7), "digest": "d", "round": 1}]);
    let spans = of_step_run(&waiting, Some(&status(over.clone())), &time(9));
    let [gate, step] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((gate.name.as_str(), &gate.started, &gate.ended), ("gate plan", &time(3), &time(7)));
    assert_eq!(fact(gate, "lockstep.gate.decided_by"), Some(&Fact::Texts(vec!["ann".to_owned()])));
    assert_eq!((step.name.as_str(), &step.started, &step.ended), ("step group/plan", &time(1), &time(8)));
    // One hangs below the other: attempt and gate below the step, the step below the run.
    assert_eq!((tried.context.parent, gate.context.parent), (Some(step.id), Some(step.id)));
    assert_eq!(step.context.parent, Some(run_span("run-uid")));
    assert!(spans.iter().all(|span| span.context.trace == tried.context.trace));
    // What is over is not told again; what was lost is, with why.
    let ended = step_run(Value::Null, over.clone());
    assert!(of_step_run(&ended, Some(&status(over)), &time(9)).is_empty());
    assert!(of_step_run(&ended, None, &time(9)).is_empty());
    let spans = of_step_run(&running, Some(&status(json!({"attempt": 3, "attempts": [lost]}))), &time(5));
    assert_eq!(spans[0].fault.as_deref(), Some("Timeout: too slow"));
    assert_eq!(fact(&spans[0], "error.type"), Some(&"Timeout".into()));
}

#[test]
fn a_run_is_told_once_and_below_its_caller() {
    let run = |annotations: Value, status: Value| -> Workflow {
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "spec": {"templateRef": {"name": "default"}},
            "metadata": {"name": "shop", "namespace": "team", "uid": "run-uid", "annotations": annotations}, "status": status}))
        .expect("a run")
    };
    let over = |phase: &str| -> WorkflowStatus {
        let failed = json!({"type": "Succeeded", "status": "False", "reason": "Timeout", "message": "plan: too slow",
            "lastTransitionTime": at(9)});
        serde_json::from_value(json!({"phase": phase, "startedAt": at(1), "completedAt": at(9), "conditions": [failed],
            "session": {"id": "s", "phase": "Failed"}, "usage": {"tokensIn": 12, "tokensOut": 3}}))
        .expect("a status")
    };
    let open = run(json!({TRACEPARENT: CALLER}), json!({"phase": "Running", "startedAt": at(1)}));
    let spans = of_run(&open, Some(&over("Failed")));
    let [span] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((span.name.as_str(), &span.started, &span.ended), ("run default", &time(1), &time(9)));
    assert_eq!(Some(span.context), TraceContext::parse(CALLER));
    assert_eq!(span.fault.as_deref(), Some("Timeout: plan: too slow"));
    assert_eq!(fact(span, "lockstep.session.id"), Some(&"s".into()));
    assert_eq!(fact(span, "gen_ai.usage.output_tokens"), Some(&Fact::Number(3)));
    // Without one it begins its trace; what is no trace context is none.
    for annotations in [json!({}), json!({TRACEPARENT: "mine"})] {
        let spans = of_run(&run(annotations, Value::Null), Some(&over("Completed")));
        assert!(spans.len() == 1 && spans[0].context.parent.is_none() && spans[0].fault.is_none(), "{spans:?}");
    }
    let ended = run(json!({}), serde_json::to_value(over("Failed")).expect("JSON"));
    assert!(of_run(&ended, Some(&over("Failed"))).is_empty() && of_run(&open, None).is_empty());
}

#[test]
fn a_call_of_a_pod_is_below_what_the_pod_names() {
    let told = |traceparent: &str, code: u16| of_call("report", traceparent, ("step-uid", 2), code, (time(1), time(2)));
    let span = told(CALLER, 200).expect("a span");
    assert_eq!((span.name.as_str(), span.is_server), ("gateway report", true));
    assert_eq!(Some(span.context), TraceContext::parse(CALLER));
    assert!(span.fault.is_none() && told(CALLER, 503).is_some_and(|span| span.fault.is_some()));
    assert!(told("mine", 200).is_none());
}
