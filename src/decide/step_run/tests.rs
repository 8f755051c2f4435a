mod egress;
mod memories;
mod pods;

use serde_json::json;

use super::*;
use crate::api::Document;
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
        agent_fault: None,
        job: JobSeen::Absent,
        refusal: None,
        slot: Some(Slot::Yours),
        pod: None,
        unfinished: Vec::new(),
        lingering: Vec::new(),
        event: None,
        pods_alive: 0,
        goes_last: false,
        document: DocumentLookup::NotAsked,
        revision: Some(1),
        output: DocumentLookup::NotAsked,
        input: None,
        budget: crate::decide::budget::RunBudget::default(),
        guard: Guard::Proven("p".into()),
        mail: Mail::NotAsked,
        installation: Arc::default(),
        evaluator: Arc::new(crate::definition::expression::InProcess),
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
        let deletes = step_run(&o).effects.iter().any(|e| matches!(e, Effect::Delete { what: DeletableKind::Job, .. }));
        assert_eq!(deletes, goes, "{name}");
    }
}

/// Deleted by the operator, a Job would be gone before its pods, and the run before those.
#[test]
fn what_goes_in_the_foreground_keeps_its_jobs_for_the_garbage_collector() {
    let mut o = observed(&json!({"attempt": 2, "phase": "Running"}));
    o.unfinished = vec![("job".into(), "uid".into(), 1)];
    for hold in [Hold::No, Hold::Stopping] {
        o.hold = hold;
        o.goes_last = false;
        assert!(step_run(&o).effects.iter().any(|e| matches!(e, Effect::Delete { .. })), "{hold:?}");
        o.goes_last = true;
        assert!(step_run(&o).effects.is_empty(), "{hold:?}");
    }
}

#[test]
fn an_agent_that_cannot_be_read_is_there() {
    let mut o = observed(&serde_json::Value::Null);
    o.agent = None;
    for (fault, reason, words) in [
        (None, "AgentNotFound", "Agent writer does not exist in this namespace; it starts when it does"),
        (Some("too wide"), "AgentInvalid", "Agent writer cannot be read: too wide; it starts when it is mended"),
    ] {
        o.agent_fault = fault.map(str::to_owned);
        let status = step_run(&o).status.expect("a status");
        let why = crate::api::condition::get(&status.conditions, "Started").expect("a condition");
        assert_eq!((why.reason.as_str(), why.message.as_str()), (reason, words));
    }
}

#[test]
fn nothing_starts_for_a_step_run_that_is_deleted() {
    let mut o = ready(&json!(null));
    o.input = Some(Input::default());
    assert!(matches!(step_run(&o).effects[..], [Effect::CreateJob(_)]), "{:?}", step_run(&o));
    assert_eq!(slot::need(&o), Need::Launch);
    Arc::make_mut(&mut o.step_run).metadata.deletion_timestamp = Some(NOW);
    assert!(step_run(&o).effects.is_empty());
    assert_eq!(slot::need(&o), Need::Nothing, "nor does it take a place");
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
fn the_commands_that_are_told_have_a_name_only_where_people_must_write_it() {
    let asks = |stamps: bool| {
        let mut o = observed(&json!({"attempt": 1}));
        let step = Arc::make_mut(&mut o.step_run);
        step.spec.agent_id.clear();
        step.spec.ask = Some(StepRunAsk { question: "How deep?".into(), ..StepRunAsk::default() });
        o.installation = Arc::new(Installation { stamps_names: stamps, ..Installation::default() });
        step_run(&o).status.and_then(|s| s.waiting_for).expect("a question").commands.remove(0)
    };
    let told = asks(true);
    assert!(told.ends_with("lockstep.dev/answer='ANSWER'"), "{told}");
    let name = " lockstep.dev/decided-by=\"$(kubectl auth whoami -o jsonpath='{.status.userInfo.username}')\"";
    assert_eq!(asks(false), format!("{told}{name}"));
}

#[test]
fn the_job_is_written_down_once() {
    let present = |uid: &str| JobSeen::Present {
        uid: uid.into(),
        created: Some(NOW),
        deleting: false,
        ended: false,
        agent_generation: None,
        ran: SourceAgent::default(),
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

/// A StepRun whose attempt made the document `plan`, and what lies under its name now.
#[expect(clippy::fn_params_excessive_bools, reason = "a column of the tables")]
fn with_document(status: serde_json::Value, gated: bool, found: Option<(&str, &str)>) -> Observed {
    let bound = json!({"uid": "p1", "digest": name::digest_bytes(b"a plan")});
    let at = "1970-01-01T00:00:00Z";
    let report = json!({"attempt": 1, "class": "Succeeded", "digest": "d", "at": at, "documentName": "plan",
        "documentBinding": bound});
    let result = json!({"attempt": 1, "digest": "d", "documentName": "plan", "documentBinding": bound});
    let mut whole = json!({"attempt": 1, "agent": {"report": report}, "result": result});
    if let (Some(whole), serde_json::Value::Object(status)) = (whole.as_object_mut(), status) {
        whole.extend(status);
    }
    let mut o = observed(&whole);
    let spec = &mut Arc::make_mut(&mut o.step_run).spec;
    spec.gate = gated.then(|| StepRunGate { name: "plan".into(), approvals: 1, ..StepRunGate::default() });
    let made = found.map(|(uid, content)| {
        let mut made = Document::new("plan", crate::api::document::DocumentSpec::default());
        (made.metadata.uid, made.spec.content) = (Some(uid.into()), content.into());
        Arc::new(made)
    });
    o.document = DocumentLookup::of(made);
    o
}

#[test]
fn nothing_goes_on_from_a_document_that_is_not_what_was_reported() {
    let at = "1970-01-01T00:00:00Z";
    let gate = |state: &str, decisions: serde_json::Value| json!({"state": state, "round": 1, "outputDigest": "o", "openedAt": at, "policy": "p", "decisions": decisions});
    let accepted = json!([{"documentType": "plan", "scopeId": "w", "accepted": true, "decidedBy": "ann", "decidedAt": at,
        "digest": "o", "round": 1}]);
    for (what, found) in [
        ("it", Some(("p1", "a plan"))),
        ("gone", None),
        ("made again", Some(("p2", "a plan"))),
        ("other bytes", Some(("p1", "forged"))),
    ] {
        let whole = what == "it";
        let effects = |plan: &Plan<StepRunStatus>| {
            plan.effects.iter().filter(|e| matches!(e, Effect::SetDocumentStatus { .. })).count()
        };
        let class = |plan: &Plan<StepRunStatus>| plan.status.as_ref().and_then(|s| s.error.as_ref()).map(|e| e.class);
        let changed = (!whole).then_some(AttemptResult::DocumentChanged);
        // Without a gate, before it is opened, while it waits, with a decision in the mailbox.
        let submission = |o: &mut Observed| {
            let mail = [(DECISION, "accepted"), (DECIDED_BY, "ann")].map(|(k, v)| (k.to_owned(), v.to_owned()));
            Arc::make_mut(&mut o.step_run).metadata.annotations = Some(mail.into());
        };
        for (when, gated, state, decides) in [
            ("no gate", false, json!({}), false),
            ("reported", true, json!({"result": null}), false),
            ("waits", true, json!({"phase": "WaitingForAcceptance", "gate": gate("Waiting", json!([]))}), false),
            ("decided", true, json!({"phase": "WaitingForAcceptance", "gate": gate("Waiting", json!([]))}), true),
        ] {
            let mut o = with_document(state, gated, found);
            if decides {
                submission(&mut o);
            }
            let plan = step_run(&o);
            let status = plan.status.clone().or(o.step_run.status.clone()).expect("a status");
            assert_eq!(class(&plan), changed, "{what}, {when}");
            let ended = (!whole).then_some(Phase::Failed);
            assert!(whole || status.phase == ended && status.gate.is_none_or(|g| g.state == GateState::Closed));
            let accepted = whole && (decides || !gated);
            assert_eq!(status.phase == Some(Phase::Completed), accepted, "{what}, {when}");
            assert_eq!(effects(&plan), usize::from(whole && !gated), "{what}, {when}");
        }
        // A number is asked for where the document is published, and nowhere else.
        for (state, lacks) in [(json!({}), whole), (json!({"phase": "Completed", "completedAt": at}), false)] {
            let o = Observed { revision: None, ..with_document(state, false, found) };
            assert_eq!(decide(&o).is_err_and(|lack| lack == Lack::Revision), lacks, "{what}");
        }
        // Accepted and stored, and not yet published: its end stays, and the run learns that nothing goes on from it.
        let done = json!({"phase": "Completed", "completedAt": at, "gate": gate("Accepted", accepted.clone())});
        let o = with_document(done, true, found);
        let plan = step_run(&o);
        assert_eq!((effects(&plan), class(&plan)), (usize::from(whole), changed), "{what}");
        let status = plan.status.clone().or(o.step_run.status.clone()).expect("a status");
        assert_eq!(status.phase, Some(Phase::Completed), "{what}");
        let mut after = o.step_run.as_ref().clone();
        after.status = Some(status);
        assert_eq!(has_changed(&after), !whole, "{what}");
        // It is said once.
        let again = step_run(&Observed { step_run: Arc::new(after), ..o });
        assert!(again.status.is_none() && again.notices.is_empty(), "{what}");
    }
}

#[test]
fn an_attempt_keeps_what_it_ran_with() {
    let at = "1970-01-01T00:00:00Z";
    let claim = json!({"attempt": 1, "id": "i", "podName": "p", "podUID": "u", "at": at});
    let report = json!({"attempt": 1, "class": "Succeeded", "digest": "d", "at": at});
    let mut o = observed(&json!({"attempt": 1, "agent": {"claim": claim, "report": report}}));
    o.pod = Some(PodSeen { uid: "u".into(), image_digest: Some("sha256:1".into()), ..PodSeen::default() });
    o.job = JobSeen::Present {
        uid: "j".into(),
        created: Some(NOW),
        deleting: false,
        ended: false,
        agent_generation: Some(7),
        ran: SourceAgent { uid: Some("agent".into()), digest: Some("sha256:2".into()), terms: None },
    };
    let status = step_run(&o).status.expect("a status");
    let ran = serde_json::to_value(&status.attempts[0]).expect("JSON");
    for (field, value) in [
        ("agentUID", json!("agent")),
        ("agentGeneration", json!(7)),
        ("agentDigest", json!("sha256:2")),
        ("imageDigest", json!("sha256:1")),
    ] {
        assert_eq!(ran[field], value, "{field}");
    }
}

#[test]
fn a_decision_is_recorded_with_all_that_it_is() {
    let at = "1970-01-01T00:00:00Z";
    let first = json!({"documentType": "plan", "scopeId": "w", "accepted": true, "decidedBy": "bob", "decidedAt": at,
        "digest": "sha256:o", "round": 1});
    let gate = json!({"state": "Waiting", "round": 1, "outputDigest": "sha256:o", "openedAt": at, "policy": "p",
        "decisions": [first]});
    let mut o = with_document(json!({"phase": "WaitingForAcceptance", "gate": gate}), true, Some(("p1", "a plan")));
    let definition = json!({"workflow": "shop", "workflowUid": "w", "session": "s", "steps": [
        {"name": "draft", "agentId": "writer", "produces": {"type": "plan"}, "gate": {"approvals": 2}}]});
    let definition = serde_json::from_value(definition).expect("a definition");
    o.definition = Some(Arc::new(crate::definition::program::Program::compile(&definition).expect("a program")));
    let step = Arc::make_mut(&mut o.step_run);
    step.spec.gate.as_mut().expect("a gate").approvals = 2;
    step.spec.scope_chain = serde_json::from_value(json!([{"scope": "workflow", "scopeId": "w"}])).expect("a chain");
    let submission = [(DECISION, "accepted"), (DECIDED_BY, "ann"), (COMMENT, "good")];
    step.metadata.annotations = Some(submission.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let gate = step_run(&o).status.and_then(|s| s.gate).expect("a gate");
    let second = json!({"documentType": "plan", "scopeId": "w", "accepted": true, "comment": "good", "decidedBy": "ann",
        "decidedAt": at, "digest": "sha256:o", "round": 1});
    assert_eq!(serde_json::to_value(&gate.decisions).expect("JSON"), json!([first, second]));
}

#[test]
fn no_attempt_starts_on_a_document_that_is_not_what_was_pinned() {
    let pin = content::Pin::new("brief", Some(&crate::api::step_run::Binding::default()));
    let mut o = observed(&json!(null));
    let template = json!({"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}});
    let spec = serde_json::from_value(json!({"template": template})).expect("a spec");
    o.agent = Some(Arc::new(Agent::new("writer", spec)));
    let launches = |plan: &Plan<StepRunStatus>| plan.effects.iter().any(|e| matches!(e, Effect::CreateJob(_)));
    assert!(launches(&step_run(&o)));
    o.input = Some(Input { changed: Content::of(&pin, None).err(), ..Input::default() });
    let plan = step_run(&o);
    let status = plan.status.as_ref().expect("a status");
    assert!(!launches(&plan) && status.phase == Some(Phase::Failed));
    assert_eq!(status.error.as_ref().map(|e| e.class), Some(AttemptResult::DocumentChanged));
}
