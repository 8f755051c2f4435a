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
        document: Found::NotAsked,
        siblings: Vec::new(),
        output: Found::NotAsked,
        changed_input: None,
        guard: Guard::Proven("p".into()),
        surroundings: Arc::default(),
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
