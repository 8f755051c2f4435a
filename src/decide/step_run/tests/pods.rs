//! What the cluster does to an attempt's pod, and what comes of it.

use super::*;
use crate::definition::agent::work_digest;
use AttemptResult as R;

const AT: &str = "1970-01-01T00:00:00Z";

#[expect(clippy::fn_params_excessive_bools, reason = "a column of the tables")]
fn agent(image: &str, idempotent: bool) -> Arc<Agent> {
    let template = json!({"spec": {"containers": [{"name": "agent", "image": image, "command": ["run"]}]}});
    let spec = json!({"template": template, "idempotent": idempotent, "retry": {"maxAttempts": 1}});
    Arc::new(Agent::new("writer", serde_json::from_value(spec).expect("a spec")))
}

fn job_of(agent: &Agent) -> JobSeen {
    JobSeen::Present {
        uid: "j".into(),
        created: Some(NOW),
        deleting: false,
        ended: false,
        agent_generation: Some(1),
        ran: SourceAgent { digest: Some(work_digest(agent)), ..SourceAgent::default() },
    }
}

/// Launched, and its pod waits.
fn waiting(obstacle: Option<&str>) -> Observed {
    let launched = json!({"type": "Started", "status": "Unknown", "reason": "Launched", "message": "",
        "lastTransitionTime": AT});
    let mut o = observed(&json!({"attempt": 1, "phase": "Running", "conditions": [launched]}));
    o.agent = Some(agent("i", false));
    o.job = job_of(&agent("i", false));
    o.pod = Some(PodSeen { uid: "u".into(), obstacle: obstacle.map(str::to_owned), ..PodSeen::default() });
    o
}

#[expect(clippy::fn_params_excessive_bools, reason = "a column of the tables")]
fn claimed(idempotent: bool, pod: Option<PodSeen>) -> Observed {
    let claim = json!({"attempt": 1, "id": "i", "podName": "p", "podUID": "u", "at": AT});
    let mut o = observed(&json!({"attempt": 1, "phase": "Running", "agent": {"claim": claim}}));
    o.agent = Some(agent("i", idempotent));
    o.job = job_of(&agent("i", idempotent));
    o.pod = pod;
    o
}

fn started(o: &Observed) -> (String, String) {
    let status = step_run(o).status.expect("a status");
    let condition = condition::get(&status.conditions, "Started").expect("a condition");
    (condition.status.clone(), condition.message.clone())
}

#[test]
fn why_nothing_starts_is_told_in_the_words_of_the_pod_or_of_events() {
    let events = "FailedCreate: its pod is forbidden: exceeded quota: small";
    let mut o = waiting(Some("container agent: ErrImagePull: no such image"));
    assert_eq!(started(&o), ("False".into(), "container agent: ErrImagePull: no such image".into()));
    o.event = Some(events.into());
    assert_eq!(started(&o).1, "container agent: ErrImagePull: no such image", "the pod knows better");
    (o.pod, o.event) = (None, Some(events.into()));
    assert_eq!(started(&o), ("False".into(), events.into()));
    // An attempt that ends of it says so, too.
    let deadline = SignedDuration::from_secs(600 + SKEW_SECONDS);
    o.now = Time(NOW.0 + deadline);
    let status = step_run(&o).status.expect("a status");
    assert_eq!(status.attempts[0].message, Some(format!("not started within 600 s: {events}")));
}

/// The author wrote no volume.
#[test]
fn a_volume_of_ours_is_told_by_the_field_that_asks_for_it() {
    let events = "FailedMount: MountVolume.SetUp failed for volume \"lockstep-ca\" : configmap \"models-ca\" not found";
    let mut o = waiting(None);
    o.event = Some(events.into());
    let told = started(&o).1;
    assert!(
        told.starts_with(events) && told.contains("; spec.prompt.caConfigMapRef of the Agent asks for it"),
        "{told}"
    );
}

#[test]
fn an_agent_that_was_mended_is_taken_at_once_and_free_of_budget() {
    for (what, now, obstacle, anew) in [
        ("mended, while its pod cannot start", agent("mended", false), Some("ErrImagePull"), true),
        ("the same Agent", agent("i", false), Some("ErrImagePull"), false),
        ("how often it is repeated shapes no pod", agent("i", true), Some("ErrImagePull"), false),
        ("changed, while all is well", agent("mended", false), None, false),
    ] {
        let mut o = waiting(obstacle);
        o.agent = Some(now);
        let plan = step_run(&o);
        let status = plan.status.unwrap_or_else(|| o.step_run.status.clone().expect("a status"));
        assert_eq!(status.attempt, if anew { 2 } else { 1 }, "{what}");
        assert_eq!(status.counts, AttemptCounts::default(), "{what}");
        assert_eq!(status.attempts.last().map(|a| a.result), anew.then_some(R::AgentChanged), "{what}");
        assert_eq!(plan.notices.iter().any(|n| n.reason == "AgentChanged"), anew, "{what}");
        assert!(status.not_before.is_none(), "{what}");
    }
}

#[test]
fn what_can_never_start_is_told_and_then_ends_the_attempt() {
    let mut o = waiting(Some("container agent: InvalidImageName: couldn't parse"));
    o.pod.as_mut().expect("a pod").never_starts = true;
    let plan = step_run(&o);
    assert!(plan.requeue.is_some_and(|again| again <= Duration::from_secs(6)), "{plan:?}");
    let told = plan.status.expect("a status");
    assert_eq!(condition::get(&told.conditions, "Started").map(|c| c.status.as_str()), Some("False"));
    assert!(told.attempts.is_empty());
    Arc::make_mut(&mut o.step_run).status = Some(told);
    o.now = Time(NOW.0 + SignedDuration::from_secs(5));
    let ended = step_run(&o).status.expect("a status");
    assert_eq!(ended.attempts.iter().map(|a| a.result).collect::<Vec<_>>(), [R::Infrastructure]);
    assert_eq!(ended.counts, AttemptCounts { infrastructure: 1, ..AttemptCounts::default() }, "what is counted is so");
    // No further attempt is made of it: a person is asked, and told which name.
    let question = ended.waiting_for.expect("a wait").question;
    assert!(question.contains("InvalidImageName: couldn't parse"), "{question}");
    // Where nobody is to be asked it fails, and does not try five times more.
    let spec = json!({"template": {"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}}});
    let mut definition = json!({"workflow": "shop", "workflowUid": "w", "session": "s", "steps": [
        {"name": "draft", "agentId": "writer", "onFailure": "Fail"}]});
    definition["onFailure"] = json!("Fail");
    let definition = serde_json::from_value(definition).expect("a definition");
    o.definition = Some(Arc::new(crate::definition::program::Program::compile(&definition).expect("a program")));
    o.agent = Some(Arc::new(Agent::new("writer", serde_json::from_value(spec).expect("a spec"))));
    assert_eq!(step_run(&o).status.expect("a status").phase, Some(Phase::Failed));
}

#[test]
fn what_the_cluster_did_costs_the_agent_nothing() {
    let there = |change: fn(&mut PodSeen)| {
        let mut pod =
            PodSeen { uid: "u".into(), ended: true, termination: "claimed\nstarted".into(), ..PodSeen::default() };
        change(&mut pod);
        Some(pod)
    };
    for (what, pod, idempotent, not_idempotent) in [
        ("its process died", there(|_| {}), R::OutcomeUnknown, R::OutcomeUnknown),
        ("it was evicted", there(|p| p.disrupted = true), R::Infrastructure, R::OutcomeUnknown),
        ("it is gone", None, R::Infrastructure, R::OutcomeUnknown),
        (
            "it was done, and evicted before it could say so",
            there(|p| (p.disrupted, p.termination) = (true, "claimed\nstarted\nsucceeded".into())),
            R::OutputLost,
            R::OutputLost,
        ),
        (
            "out of memory",
            there(|p| p.out_of_memory = Some("out of memory, limit 64Mi".into())),
            R::Retryable,
            R::Retryable,
        ),
    ] {
        for (is, expected) in [(true, idempotent), (false, not_idempotent)] {
            let status = step_run(&claimed(is, pod.clone())).status.expect("a status");
            assert_eq!(status.attempts[0].result, expected, "{what}, idempotent: {is}");
            let retries = i32::from(expected != R::Infrastructure);
            assert_eq!(status.counts.retryable, retries, "{what}, idempotent: {is}");
        }
    }
    let pod = there(|p| p.out_of_memory = Some("out of memory, limit 64Mi".into()));
    let status = step_run(&claimed(false, pod)).status.expect("a status");
    assert_eq!(status.attempts[0].message.as_deref(), Some("out of memory, limit 64Mi"));
    assert!(status.error.is_some_and(|e| e.message == "out of memory, limit 64Mi"));
}

#[test]
fn an_exit_in_a_pod_that_was_taken_away_is_no_failure_of_the_agent() {
    for (class, code, interrupted, expected) in [
        ("Exited", 143, true, R::Infrastructure),
        ("Exited", 143, false, R::Retryable),
        ("InvalidOutput", 0, false, R::InvalidOutput),
        // Told to go it ended with 0, and had written nothing: the gateway finds no output.
        ("InvalidOutput", 0, true, R::Infrastructure),
        // The shim had ended it by then.
        ("Timeout", 143, true, R::Timeout),
        ("Timeout", 143, false, R::Timeout),
        // What it says itself stays said.
        ("Unrecoverable", 1, true, R::Unrecoverable),
        ("Succeeded", 0, true, R::Succeeded),
    ] {
        let mut o = claimed(false, Some(PodSeen::default()));
        let mut status = serde_json::to_value(o.step_run.status.as_ref()).expect("JSON");
        status["agent"]["report"] = json!({"attempt": 1, "class": class, "exitCode": code, "digest": "d", "at": AT,
            "interrupted": interrupted});
        Arc::make_mut(&mut o.step_run).status = serde_json::from_value(status).expect("a status");
        let status = step_run(&o).status.expect("a status");
        assert_eq!(status.attempts[0].result, expected, "{class} {code} {interrupted}");
        assert_eq!(status.attempts[0].exit_code, Some(code), "{class} {code} {interrupted}");
    }
}

#[test]
fn a_sidecar_does_not_keep_a_pod_whose_attempt_is_recorded() {
    let attempt = json!({"number": 1, "round": 1, "result": "Succeeded", "completedAt": AT, "exitCode": 0});
    let recorded = json!({"attempt": 1, "phase": "Completed", "completedAt": AT, "attempts": [attempt]});
    let report = json!({"attempt": 1, "class": "Succeeded", "digest": "d", "at": AT});
    let reported = json!({"attempt": 1, "phase": "Running", "agent": {"report": report}});
    for (what, status, lingering, goes) in [
        ("a sidecar runs on", recorded.clone(), vec![1], true),
        ("its pod ends by itself", recorded.clone(), vec![], false),
        ("of another attempt", recorded, vec![2], false),
        ("its end is not stored yet", reported, vec![1], false),
    ] {
        let mut o = observed(&status);
        o.unfinished = vec![("job".into(), "uid".into(), 1)];
        o.lingering = lingering;
        let deletes = step_run(&o).effects.iter().any(|e| matches!(e, Effect::Delete { what: DeletableKind::Job, .. }));
        assert_eq!(deletes, goes, "{what}");
    }
}

#[test]
fn what_was_stopped_keeps_its_last_words() {
    let attempt = |number: i32| json!({"number": number, "round": 1, "result": "Cancelled", "completedAt": AT});
    let stopped = json!({"attempt": 1, "exitCode": 143, "logTail": "LAST WORDS", "at": AT});
    for (last, kept) in [(1, true), (2, false)] {
        let status = json!({"attempt": last + 1, "phase": "Running", "attempts": [attempt(last)],
            "agent": {"stopped": stopped}});
        let mut o = observed(&status);
        o.hold = Hold::Stopping;
        let status = step_run(&o).status.expect("a status");
        assert_eq!(status.phase, Some(Phase::Cancelled));
        assert_eq!(status.attempts[0].exit_code, kept.then_some(143));
        assert_eq!(status.error.and_then(|e| e.log_tail).as_deref(), kept.then_some("LAST WORDS"));
    }
}
