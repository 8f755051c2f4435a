use serde_json::json;

use super::*;
use crate::api::agent::AgentSpec;
use crate::api::step_run::StepRunSpec;
use k8s_openapi::jiff::Timestamp;

pub const NOW: Time = Time(Timestamp::UNIX_EPOCH);

/// What a pass sees of an agent's StepRun with that status; nothing else is there.
pub fn observed(status: &serde_json::Value) -> Observed {
    let spec = StepRunSpec { path: "draft".into(), agent_id: "writer".into(), ..StepRunSpec::default() };
    let mut step_run = StepRun::new("shop-draft-0123", spec);
    step_run.metadata.uid = Some("s".into());
    step_run.status = serde_json::from_value(status.clone()).expect("a status");
    Observed {
        step_run: Arc::new(step_run),
        hold: Hold::No,
        definition: None,
        agent: Some(Arc::new(Agent::new("writer", AgentSpec::default()))),
        job: JobSeen::Absent,
        refusal: None,
        slot: Slot::Yours,
        pod: None,
        unfinished: Vec::new(),
        pods_alive: 0,
        document: None,
        siblings: Vec::new(),
        guard: Guard::Proven("p".into()),
        surroundings: Arc::default(),
        evaluator: Arc::new(crate::decide::expression::InProcess),
        now: NOW,
    }
}

#[test]
fn a_job_is_deleted_only_behind_the_fence_that_is_stored() {
    let asks = json!({"id": "1-0", "kind": "RetriesSpent", "question": "?", "options": ["retry"], "policy": "p",
        "since": "1970-01-01T00:00:00Z"});
    let waits = json!({"attempt": 1, "phase": "WaitingForInput", "waitingFor": asks});
    let ended = json!({"attempt": 1, "phase": "Completed", "completedAt": "1970-01-01T00:00:00Z"});
    for (name, status, attempt, goes) in [
        ("an attempt behind the fence", json!({"attempt": 2, "phase": "Running"}), 1, true),
        ("the attempt that is current", json!({"attempt": 2, "phase": "Running"}), 2, false),
        ("one that a person is asked about", waits.clone(), 1, true),
        // The wait is over, and another operator has gone on: this copy is old.
        ("the next one, while this copy still waits", waits, 2, false),
        ("one of a step that has ended", ended.clone(), 1, true),
        ("a later one of a step that has ended", ended, 2, true),
    ] {
        let mut o = observed(&status);
        o.unfinished = vec![("job".into(), "uid".into(), attempt)];
        let deletes = step_run(&o).effects.iter().any(|e| matches!(e, Effect::Delete { what: Kept::Job, .. }));
        assert_eq!(deletes, goes, "{name}");
    }
}

/// The same with an Agent that can be launched.
fn ready(status: &serde_json::Value) -> Observed {
    let template = json!({"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}});
    let spec = serde_json::from_value(json!({"template": template})).expect("a spec");
    Observed { agent: Some(Arc::new(Agent::new("writer", spec))), ..observed(status) }
}

#[test]
fn a_name_that_is_taken_costs_an_attempt_and_nothing_else() {
    let counts = json!({"retryable": 2, "infrastructure": 5, "answers": 0});
    let mut o = ready(&json!({"attempt": 3, "counts": counts}));
    o.job = JobSeen::Foreign("uid u-9 by kubectl-create".into());
    let plan = step_run(&o);
    let status = plan.status.expect("a status");
    assert_eq!((status.attempt, status.counts.retryable, status.counts.infrastructure), (4, 2, 5));
    assert!(status.completed_at.is_none() && status.not_before.is_none() && status.waiting_for.is_none());
    assert_eq!(status.attempts.last().map(|a| a.result), Some(AttemptResult::NameConflict));
    assert!(plan.notices.iter().any(|n| n.reason == "NameTaken" && n.note.contains("u-9")), "{:?}", plan.notices);
    assert!(plan.effects.is_empty() && plan.requeue.is_some());
    // The next name has something in it that depends on what a stranger does not write.
    let salt = status.job_salt.clone().expect("a salt");
    Arc::make_mut(&mut o.step_run).metadata.resource_version = Some("8".into());
    let other = step_run(&o).status.and_then(|s| s.job_salt).expect("a salt");
    assert_ne!(salt, other);
    let name = |salt: Option<&str>| {
        let status = StepRunStatus { job_salt: salt.map(str::to_owned), ..StepRunStatus::default() };
        build::job_name(&o.step_run, &status, 4)
    };
    assert_ne!(name(Some(&salt)), name(None));
    assert_ne!(name(Some(&salt)), name(Some(&other)));
}

#[test]
fn who_takes_one_name_after_the_other_is_not_raced_for_ever() {
    let taken = |number: i32| json!({"number": number, "round": 1, "result": "NameConflict", "completedAt": "1970-01-01T00:00:00Z"});
    for (before, waits) in [(0, false), (2, false), (3, true), (9, true)] {
        let attempts: Vec<_> = (1..=before).map(taken).collect();
        let mut o = ready(&json!({"attempt": before + 1, "attempts": attempts}));
        o.job = JobSeen::Foreign("uid u".into());
        let status = step_run(&o).status.expect("a status");
        assert_eq!((status.attempt, status.not_before.is_some()), (before + 2, waits), "after {before}");
        assert!(status.completed_at.is_none() && status.attempts.len() <= 10);
    }
}

#[test]
fn the_job_is_written_down_once() {
    let present = |uid: &str| JobSeen::Present {
        uid: uid.into(),
        created: Some(NOW),
        deleting: false,
        ended: false,
        agent_generation: None,
    };
    let job = |attempt: i32| json!({"attempt": attempt, "name": "n", "uid": "first"});
    for (what, status, expected) in [
        ("a pass that crashed after it made the Job", json!({"attempt": 1}), Some((1, "seen"))),
        ("that of the attempt before", json!({"attempt": 2, "job": job(1)}), Some((2, "seen"))),
        ("known", json!({"attempt": 2, "job": job(2)}), Some((2, "first"))),
    ] {
        let mut o = ready(&status);
        o.job = present("seen");
        let status = step_run(&o).status.expect("a status");
        assert_eq!(status.job.as_ref().map(|j| (j.attempt, j.uid.as_str())), expected, "{what}");
        // The next pass has nothing to write.
        Arc::make_mut(&mut o.step_run).status = Some(status);
        assert_eq!(step_run(&o).status, None, "{what}");
    }
}
