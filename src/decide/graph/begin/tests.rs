use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::api::agent::AgentSpec;
use crate::api::definition::Definition;
use crate::api::workflow::{Workflow, WorkflowSpec, WorkflowStatus};
use crate::decide::content::{Content, Loaded};
use crate::decide::graph::{Walked, walk};
use crate::decide::observed::{Observed, Previous};
use crate::decide::scope::Admission;
use crate::decide::{Effect, workflow};
use crate::definition::expression::InProcess;
use crate::definition::program::Program;

const AT: &str = "2026-01-01T00:00:00Z";

/// A run that goes on from another, in which the step `a` was accepted by ann.
struct Again {
    o: Observed,
    definition: Definition,
    old: StepRun,
    then: Definition,
}

fn definition(run: &str, steps: &Value) -> Definition {
    let (workflow, workflow_uid) = (run.to_owned(), format!("{run}-uid"));
    let steps = serde_json::from_value(steps.clone()).expect("steps");
    Definition { workflow, workflow_uid, steps, ..Definition::default() }
}

fn compiled(definition: &Definition) -> Arc<Program> {
    Arc::new(Program::compile(definition).expect("a program"))
}

fn agent(template: &str) -> Agent {
    let spec = AgentSpec {
        template: json!({"image": template}).as_object().cloned().expect("an object"),
        ..AgentSpec::default()
    };
    let mut agent = Agent::new("x", spec);
    agent.metadata.generation = Some(1);
    agent
}

fn again(steps: &Value) -> Again {
    let of = serde_json::from_value(json!({"name": "old", "uid": "old-uid"})).expect("a retryOf");
    let mut run = Workflow::new("new", WorkflowSpec { retry_of: Some(of), ..WorkflowSpec::default() });
    (run.metadata.namespace, run.metadata.uid) = (Some("team".into()), Some("new-uid".into()));
    run.status = Some(WorkflowStatus::default());
    let observed = Observed {
        workflow: Arc::new(run),
        template: None,
        definition: None,
        agents: [("x".to_owned(), Arc::new(agent("one")))].into(),
        step_runs: crate::decide::observed::StepRuns::default(),
        unreadable: crate::decide::observed::UnreadableObjects::default(),
        documents: document::Documents::default(),
        contents: content::Contents::default(),
        previous: Some(Previous::default()),
        pods_ending: 0,
        plain_revision: None,
        memories: Vec::new(),
        budget: crate::decide::budget::RunBudget::default(),
        settled: Arc::default(),
        evaluator: Arc::new(InProcess),
        now: Time(Timestamp::UNIX_EPOCH),
    };
    let definition_now = definition("new", steps);
    // As it begins by itself.
    let begun = walk(&observed, &compiled(&definition_now), Admission::Open).progress.creates.remove(0).spec;
    let mut old = StepRun::new(&name::step_run("old", "old-uid", "a", &[]), begun);
    (old.metadata.namespace, old.metadata.uid) = (Some("team".into()), Some("old-a".into()));
    old.spec.workflow = WorkflowIdentity { name: "old".into(), uid: "old-uid".into(), ..Default::default() };
    let accepted = json!({"documentType": "a", "scopeId": "old-uid", "accepted": true, "decidedBy": "ann",
        "decidedAt": AT, "digest": "sha256:seen", "round": 1});
    old.status = serde_json::from_value(json!({
        "phase": "Completed", "completedAt": AT, "result": {"attempt": 1, "digest": "sha256:d"},
        "attempts": [{"number": 1, "round": 1, "result": "Succeeded", "completedAt": AT, "agentGeneration": 1,
            "agentUID": "x", "agentDigest": agent::work_digest(&agent("one"))}],
        "agent": {"report": {"attempt": 1, "class": "Succeeded", "digest": "sha256:d", "output": "1", "at": AT}},
        "gate": {"state": "Accepted", "round": 1, "outputDigest": "sha256:seen", "openedAt": AT, "policy": "p",
            "decisions": [accepted]},
    }))
    .expect("a status");
    Again { o: observed, definition: definition_now, old, then: definition("old", steps) }
}

impl Again {
    fn status(&mut self) -> &mut crate::api::step_run::StepRunStatus {
        self.old.status.as_mut().expect("a status")
    }

    fn of(&mut self) -> &mut crate::api::workflow::RetryOf {
        Arc::make_mut(&mut self.o.workflow).spec.retry_of.as_mut().expect("a retryOf")
    }

    fn document(&mut self, name: &str, uid: &str, kind: &str, content: &str) -> Arc<Document> {
        let mut made = Document::new(name, crate::api::document::DocumentSpec::default());
        made.metadata.uid = Some(uid.into());
        (made.spec.document_type, made.spec.content) = (kind.into(), content.into());
        (made.spec.scope, made.spec.scope_id) = (Scope::Workflow, Some("old-uid".into()));
        let made = Arc::new(made);
        self.o.documents.insert_mut(document::key(&made), Arc::clone(&made));
        made
    }

    fn walk(&mut self) -> Walked {
        let name = self.old.metadata.name.clone().unwrap_or_default();
        let step_runs = [(name, Arc::new(self.old.clone()))].into_iter().collect();
        self.o.previous = Some(Previous { step_runs, definition: Some(compiled(&self.then)) });
        walk(&self.o, &compiled(&self.definition), Admission::Open)
    }

    fn begun(&mut self) -> NewStepRun {
        self.walk().progress.creates.remove(0)
    }
}

fn gated(gate: &Value) -> Value {
    json!([{"name": "a", "agentId": "x", "gate": gate}])
}

type Change = fn(&mut Again);

/// Whether the result is taken over, whether the gates are the same, whether ann's acceptance counts.
fn cases() -> [(&'static str, Change, [bool; 3]); 19] {
    [
        ("the same", |_| {}, [true, true, true]),
        ("of another namespace", |a| a.old.metadata.namespace = Some("other".into()), [false; 3]),
        ("of another run", |a| a.old.spec.workflow.uid = "else".into(), [false; 3]),
        ("more approvals", |a| gate_of(a).approvals = Some(2), [true, false, false]),
        (
            "other acceptors",
            |a| gate_of(a).acceptors = serde_json::from_value(json!({"users": ["ann"]})).ok(),
            [true, false, false],
        ),
        ("another name", |a| gate_of(a).name = Some("high".into()), [true, false, false]),
        ("a review asked for", |a| gate_of(a).require_review = true, [true, false, false]),
        ("four eyes asked for", |a| gate_of(a).four_eyes = true, [true, false, false]),
        ("a person as creator asked for", |a| gate_of(a).created_by_person = true, [true, false, false]),
        ("another when", |a| gate_of(a).when = Some("output > 0".into()), [true, false, false]),
        ("another message", |a| gate_of(a).message = Some("sure?".into()), [true, false, false]),
        ("the old definition is gone", |a| a.then.steps.clear(), [true, false, false]),
        (
            "the old gate is another's, by the StepRun",
            |a| a.old.spec.gate.iter_mut().for_each(|g| g.name = "else".into()),
            [true, false, false],
        ),
        ("the Agent is another", |a| agent_is(a, agent("two")), [false; 3]),
        (
            "the Agent is another, and results are kept",
            |a| {
                agent_is(a, agent("two"));
                a.of().keep_results = true;
            },
            [true, true, true],
        ),
        (
            "the Agent may run more often",
            |a| {
                let mut more = agent("one");
                (more.spec.max_concurrent, more.metadata.generation) = (Some(9), Some(2));
                agent_is(a, more);
            },
            [true, true, true],
        ),
        (
            "of an older version, the same generation",
            |a| a.status().attempts[0].agent_digest = None,
            [true, true, true],
        ),
        (
            "of an older version, another generation",
            |a| {
                a.status().attempts[0].agent_digest = None;
                a.status().attempts[0].agent_generation = Some(7);
            },
            [false; 3],
        ),
        (
            "exchanged after it was accepted",
            |a| {
                a.status().error =
                    serde_json::from_value(json!({"class": "DocumentChanged", "message": "", "attempt": 1})).ok();
            },
            [false; 3],
        ),
    ]
}

#[test]
fn work_is_taken_over_and_authority_only_where_it_is_the_same() {
    for (what, change, expected) in cases() {
        let mut a = again(&gated(&json!({"name": "low"})));
        change(&mut a);
        let begun = a.begun();
        let reuse = begun.spec.reuse.as_ref();
        let gate = reuse.and_then(|r| r.gate.as_ref());
        let counts = reuse.is_some_and(|r| gate::still_opens(begun.spec.gate.as_ref(), r));
        assert_eq!([reuse.is_some(), gate.is_some_and(|g| g.compares == Comparison::Same), counts], expected, "{what}");
        if let Some(gate) = gate {
            // Who decided then, when and over what is said, whether it counts or not.
            let then = &gate.decisions[0];
            assert_eq!((then.decided_by.as_str(), then.decided_at.0.to_string().as_str()), ("ann", AT), "{what}");
            assert_eq!(then.digest, "sha256:seen", "{what}");
        }
    }
}

fn gate_of(a: &mut Again) -> &mut crate::api::step::Gate {
    a.definition.steps[0].gate.as_mut().expect("a gate")
}

fn agent_is(a: &mut Again, agent: Agent) {
    a.o.agents.insert("x".to_owned(), Arc::new(agent));
}

#[test]
fn four_eyes_look_at_who_made_the_new_run() {
    for (creator, counts) in [("ann", false), ("bob", true)] {
        let mut a = again(&gated(&json!({"fourEyes": true})));
        Arc::make_mut(&mut a.o.workflow).status.as_mut().expect("a status").creator = Some(creator.into());
        let begun = a.begun();
        let reuse = begun.spec.reuse.as_ref().expect("it is taken over");
        assert!(reuse.gate.as_ref().is_some_and(|g| g.compares == Comparison::Same));
        assert_eq!(gate::still_opens(begun.spec.gate.as_ref(), reuse), counts, "{creator}");
        assert_eq!(gate::taken_over(begun.spec.gate.as_ref(), reuse).len(), usize::from(counts));
    }
}

#[test]
fn an_answer_is_taken_over_for_the_same_question_only() {
    for (ask, taken) in [
        (json!({"question": "which?"}), true),
        (json!({"question": "which?", "schema": {"type": "integer"}}), false),
        (json!({"question": "which?", "deadlineSeconds": 5}), false),
        (json!({"question": "who?"}), false),
    ] {
        let mut a = again(&json!([{"name": "a", "ask": {"question": "which?"}}]));
        a.definition = definition("new", &json!([{"name": "a", "ask": ask}]));
        assert_eq!(a.begun().spec.reuse.is_some(), taken, "{ask}");
    }
}

#[test]
fn an_approval_alone_is_its_decisions() {
    let steps = |approvals: i32| json!([{"name": "a", "gate": {"approvals": approvals}}]);
    for (approvals, taken) in [(1, true), (2, false)] {
        let mut a = again(&steps(1));
        a.definition = definition("new", &steps(approvals));
        assert_eq!(a.begun().spec.reuse.is_some(), taken, "{approvals}");
    }
}

fn bound(uid: &str, content: &str) -> Value {
    json!({"uid": uid, "digest": name::digest_bytes(content.as_bytes())})
}

/// With a document, and an output that lies in one of its own.
fn with_documents() -> Again {
    let mut a = again(&json!([{"name": "a", "agentId": "x", "produces": {"type": "plan"}, "gate": {}}]));
    let result = json!({"attempt": 1, "digest": "sha256:d", "documentName": "p", "documentBinding": bound("p1", "a plan"),
        "outputDocument": "o", "outputBinding": bound("o1", "[1]")});
    let status = a.status();
    status.result = serde_json::from_value(result).expect("a result");
    if let Some(report) = status.agent.as_mut().and_then(|agent| agent.report.as_mut()) {
        report.output = None;
    }
    a.document("p", "p1", "plan", "a plan");
    a.document("o", "o1", OUTPUT_TYPE, "[1]");
    a
}

/// Reads what it is asked to, as often as it is asked.
fn read(a: &mut Again) -> Walked {
    for _ in 0..5 {
        let walked = a.walk();
        if walked.unread.is_empty() {
            return walked;
        }
        for pin in walked.unread {
            let found = a.o.documents.values().find(|d| d.metadata.name.as_ref() == Some(&pin.name));
            let found = found.map(|d| Loaded::new(Arc::clone(d)));
            a.o.contents.insert(pin.clone(), Content::of(&pin, found.as_ref()));
        }
    }
    panic!("it reads for ever")
}

#[test]
fn documents_are_copied_as_they_were_reported() {
    let mut a = with_documents();
    let begun = read(&mut a).progress.creates.remove(0);
    let reuse = begun.spec.reuse.as_ref().expect("it is taken over");
    let digest = |content: &str| Some(name::digest_bytes(content.as_bytes()));
    assert_eq!(reuse.document_binding.as_ref().map(|b| b.digest.clone()), digest("a plan"));
    assert_eq!(reuse.output_binding.as_ref().map(|b| b.digest.clone()), digest("[1]"));
    let copies: Vec<_> = begun.copies.iter().map(|(d, s)| (d.spec.content.as_str(), s.is_some())).collect();
    assert_eq!(copies, [("a plan", true), ("[1]", false)], "what carries an output is never published");
    // Where the gate opens again, nobody sees the document before.
    let mut a = with_documents();
    gate_of(&mut a).approvals = Some(2);
    let begun = read(&mut a).progress.creates.remove(0);
    assert!(begun.spec.reuse.is_some() && begun.copies.iter().all(|(_, status)| status.is_none()));
}

/// Two of one type that are copied in one pass do not see each other: their originals' numbers tell which one is newer.
#[test]
fn a_copy_is_no_older_than_its_original() {
    for (original, there, expected) in [(1, None, 1), (4, None, 4), (4, Some(2), 4), (4, Some(6), 7)] {
        let mut a = with_documents();
        let published = |revision: i64| {
            serde_json::from_value(json!({"phase": "Published", "revision": revision, "digest": "sha256:d"})).ok()
        };
        let mut old = Document::clone(&a.document("p", "p1", "plan", "a plan"));
        old.status = published(original);
        let sibling = there.map(|revision| {
            let mut sibling = Document { status: published(revision), ..old.clone() };
            (sibling.metadata.name, sibling.metadata.uid) = (Some("there".into()), Some("there-uid".into()));
            sibling.spec.scope_id = Some("new-uid".into());
            sibling
        });
        for document in sibling.into_iter().chain([old]) {
            a.o.documents.insert_mut(document::key(&document), Arc::new(document));
        }
        let begun = read(&mut a).progress.creates.remove(0);
        let numbers: Vec<_> = begun.copies.iter().filter_map(|(_, status)| status.as_ref()?.revision).collect();
        assert_eq!(numbers, [expected], "{original} {there:?}");
    }
}

#[test]
fn what_was_exchanged_runs_again() {
    for (what, gone, made) in [
        ("deleted", "p", None),
        ("made again", "p", Some(("p2", "plan", "a plan"))),
        ("other bytes", "p", Some(("p1", "plan", "forged"))),
        ("the output was made again", "o", Some(("o2", OUTPUT_TYPE, "[1]"))),
        ("other bytes of the output", "o", Some(("o1", OUTPUT_TYPE, "[2]"))),
    ] {
        let mut a = with_documents();
        let keys: Vec<String> =
            a.o.documents
                .iter()
                .filter(|(_, d)| d.metadata.name.as_deref() == Some(gone))
                .map(|(k, _)| k.clone())
                .collect();
        for key in &keys {
            a.o.documents.remove_mut(key);
        }
        if let Some((uid, kind, content)) = made {
            a.document(gone, uid, kind, content);
        }
        let begun = read(&mut a).progress.creates.remove(0);
        assert!(begun.spec.reuse.is_none() && begun.copies.is_empty(), "{what}");
    }
}

#[test]
fn what_is_held_back_leaves_no_copies() {
    let steps = |x: &str| {
        json!([{"name": "g", "order": "Graph", "steps": [{"name": "a", "agentId": "x", "produces": {"type": "plan"}},
            {"name": "b", "agentId": "x", "parameters": {"x": x}}]}])
    };
    for (parameter, copied) in [("1", 1), ("${ 1 / 0 }", 0)] {
        let mut a = with_documents();
        for (definition, run) in [(&mut a.definition, "new"), (&mut a.then, "old")] {
            *definition = self::definition(run, &steps(parameter));
        }
        a.old.metadata.name = Some(name::step_run("old", "old-uid", "g/a", &[]));
        a.old.spec.gate = None;
        (a.status().gate, a.status().result.as_mut().expect("a result").output_document) = (None, None);
        // It reads what it takes over before it knows that something else fails.
        let walked = read(&mut a);
        assert_eq!(walked.progress.failure.is_some(), copied == 0, "{parameter}");
        a.o.definition = Some(compiled(&a.definition));
        Arc::make_mut(&mut a.o.workflow).status.as_mut().expect("a status").definition =
            Some(crate::api::workflow::DefinitionRef::default());
        let plan = workflow::workflow(&a.o);
        let made = plan.effects.iter().filter(|e| matches!(e, Effect::CreateDocument(_))).count();
        let written = plan.effects.iter().filter(|e| matches!(e, Effect::SetDocumentStatus { .. })).count();
        assert_eq!((made, written), (copied, copied), "{parameter}");
    }
}
