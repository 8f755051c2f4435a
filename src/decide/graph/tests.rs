use super::*;
use crate::api::agent::{Agent, AgentSpec};
use crate::api::definition::Definition;
use crate::api::name;
use crate::api::step_run::{AgentReport, GateStatus, Report, ReportClass, ResultRef, StepRunStatus};
use crate::api::workflow::{Workflow, WorkflowSpec, WorkflowStatus};
use crate::decide::content::{Content, Contents, Loaded, Pin};
use crate::decide::workflow::committed;
use crate::decide::{build, status};
use crate::definition::expression::InProcess;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

const NOW: Time = Time(Timestamp::UNIX_EPOCH);

/// A run of these steps that knows what it made.
fn run(steps: &serde_json::Value, parameters: &serde_json::Value) -> (Observed, Program) {
    let definition = Definition {
        workflow: "w".into(),
        workflow_uid: "12345678-rest".into(),
        steps: serde_json::from_value(steps.clone()).unwrap_or_default(),
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        ..Definition::default()
    };
    run_of(&definition)
}

fn run_of(definition: &Definition) -> (Observed, Program) {
    let mut workflow = Workflow::new("w", WorkflowSpec::default());
    workflow.metadata.uid = Some("12345678-rest".into());
    workflow.status = Some(WorkflowStatus::default());
    let agent = Arc::new(Agent::new("x", AgentSpec::default()));
    let observed = Observed {
        workflow: Arc::new(workflow),
        template: None,
        definition: None,
        agents: [("x".to_owned(), agent)].into(),
        step_runs: crate::decide::observed::StepRuns::default(),
        unreadable: crate::decide::observed::UnreadableObjects::default(),
        documents: document::Documents::default(),
        contents: Contents::default(),
        previous: None,
        pods_ending: 0,
        plain_revision: None,
        memories: Vec::new(),
        budget: crate::decide::budget::RunBudget::default(),
        settled: Arc::default(),
        evaluator: Arc::new(InProcess),
        now: NOW,
    };
    (observed, Program::compile(definition).expect("a program"))
}

/// Everything that is to be made is made and completes; what was walked.
fn step_on(o: &mut Observed, program: &Program) -> Walked {
    step_on_with(o, program, "1", None)
}

fn pinned(o: &Observed) -> usize {
    let steps = o.workflow.status.iter().flat_map(|s| &s.steps);
    steps.filter(|s| s.collection_digest.is_some()).count()
}

/// The same, with what each step gives, and a gate that somebody has decided.
fn step_on_with(o: &mut Observed, program: &Program, output: &str, gate: Option<&GateStatus>) -> Walked {
    let before = pinned(o);
    let mut walked = walk(o, program, Admission::Open);
    for NewStepRun { spec, keys, .. } in std::mem::take(&mut walked.progress.creates) {
        let mut made = build::step_run(&o.workflow, "s", spec, &keys);
        let digest = name::digest_bytes(output.as_bytes());
        let report = Report {
            attempt: 1,
            exit_code: Some(0),
            class: ReportClass::Succeeded,
            digest: digest.clone(),
            output: Some(output.into()),
            output_document: None,
            output_binding: None,
            document_name: None,
            document_binding: None,
            questions: Vec::new(),
            message: None,
            log_tail: None,
            interrupted: false,
            at: NOW,
        };
        made.status = Some(StepRunStatus {
            phase: Some(Phase::Completed),
            started_at: Some(NOW),
            completed_at: Some(NOW),
            gate: gate.cloned(),
            result: Some(ResultRef { attempt: 1, digest, ..ResultRef::default() }),
            agent: Some(AgentReport { report: Some(report), ..AgentReport::default() }),
            ..StepRunStatus::default()
        });
        o.step_runs.insert_mut(made.metadata.name.clone().unwrap_or_default(), Arc::new(made));
    }
    let mut after = o.workflow.status.clone().unwrap_or_default();
    status::derive(&mut after, &walked.progress, (status::End::Open, &NOW));
    status::show_outputs(&mut after, &o.workflow, &o.step_runs);
    let mut workflow = o.workflow.as_ref().clone();
    workflow.status = Some(after);
    o.workflow = Arc::new(workflow);
    o.settled = Arc::new(walked.settled.clone());
    // A pass that pins a list is followed by the one in which its items begin.
    if pinned(o) > before { step_on_with(o, program, output, gate) } else { walked }
}

#[test]
fn a_pass_looks_at_what_is_open_not_at_what_there_is() {
    let items: Vec<u32> = (0..5_000).collect();
    let steps =
        json!([{"name": "each", "agentId": "x", "forEach": {"in": "parameters.all", "as": "n", "maxParallel": 100}}]);
    let (mut o, program) = run(&steps, &json!({"all": items}));
    let mut passes = 0;
    loop {
        let walked = step_on(&mut o, &program);
        // The hundred that ended since, and the hundred that begin.
        assert!(walked.looked <= 201, "{} items were looked at", walked.looked);
        passes += 1;
        if walked.progress.done.is_some() {
            break;
        }
        assert!(passes < 60, "it never ends");
    }
    assert_eq!(o.step_runs.size(), 5_000);
    // Whoever remembers nothing finds the same.
    o.settled = Arc::default();
    let cold = walk(&o, &program, Admission::Open);
    assert!(cold.progress.done.is_some() && cold.progress.creates.is_empty());
}

/// Groups of 19 steps with names as long as they may be, and a forEach over 5,000 items.
fn large(groups: usize) -> (Observed, Program) {
    let name = |n: usize| format!("{:0<40}", format!("step-{n}-"));
    let group = |n: usize| {
        let inner: Vec<_> = (0..15).map(|i| json!({"name": name(n * 100 + i), "agentId": "x"})).collect();
        let outer: Vec<_> = (0..3)
            .map(|i| json!({"name": name(n * 100 + 50 + i), "order": "Graph", "steps": &inner[i * 5..i * 5 + 5]}))
            .collect();
        json!({"name": name(n * 100 + 99), "order": "Graph", "steps": outer})
    };
    let mut steps: Vec<_> = (1..=groups).map(group).collect();
    steps.push(
        json!({"name": name(1), "agentId": "x", "forEach": {"in": "parameters.all", "as": "n", "maxParallel": 1000}}),
    );
    let all: Vec<u32> = (0..5_000).collect();
    let parameters = json!({"all": all});
    run_of(&Definition {
        workflow: "w".into(),
        workflow_uid: "12345678-rest".into(),
        steps: serde_json::from_value(json!(steps)).expect("steps"),
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        order: crate::api::step::Order::Graph,
        ..Definition::default()
    })
}

#[test]
fn the_status_of_the_largest_run_stays_below_its_limit() {
    let decision = json!({"documentType": "t".repeat(63), "scopeId": "u".repeat(120), "accepted": true,
        "decidedBy": "p".repeat(60), "decidedAt": NOW, "digest": "d", "round": 1});
    let gate = json!({"state": "Accepted", "round": 1, "outputDigest": "d", "openedAt": NOW, "policy": "p",
        "decisions": [decision]});
    let gate: GateStatus = serde_json::from_value(gate).expect("a gate");
    // Of up to 100 steps it says what they gave.
    for (groups, least, tells) in [(5, 95, true), (10, 190, false)] {
        let (mut o, program) = large(groups);
        assert!(program.all().len() > least);
        let mut passes = 0;
        while step_on_with(&mut o, &program, &format!("\"{}\"", "x".repeat(100)), Some(&gate)).progress.done.is_none() {
            let status = o.workflow.status.as_ref();
            let bytes = serde_json::to_string(&status).map_or(usize::MAX, |s| s.len());
            assert!(bytes < 64 * 1024, "{bytes} bytes");
            passes += 1;
            assert!(passes < 20, "it never ends");
        }
        let status = o.workflow.status.clone().unwrap_or_default();
        let told = status.steps.iter().filter(|s| s.summary.is_some() && s.output_digest.is_some()).count();
        assert_eq!((told > 70, status.acceptance_decisions.len()), (tells, 10));
    }
}

// ---- copies that are older than the status, and other operators

/// Changes a StepRun, by path and the last key of its item.
fn change(o: &mut Observed, path: &str, key: Option<&str>, with: impl FnOnce(&mut StepRunStatus)) {
    let of = |s: &StepRun| s.spec.path == path && s.spec.item.as_ref().map(|i| i.key.as_str()) == key;
    let found = o.step_runs.values().find(|s| of(s)).cloned().expect("it was made");
    let mut changed = found.as_ref().clone();
    with(changed.status.get_or_insert_default());
    o.step_runs.insert_mut(changed.metadata.name.clone().unwrap_or_default(), Arc::new(changed));
}

/// It has not ended yet, or not in this copy.
fn open(status: &mut StepRunStatus) {
    *status = StepRunStatus { phase: Some(Phase::Running), started_at: Some(NOW), ..StepRunStatus::default() };
}

fn gives(output: &'static str) -> impl FnOnce(&mut StepRunStatus) {
    move |status| {
        let report = status.agent.as_mut().and_then(|a| a.report.as_mut()).expect("a report");
        report.output = Some(output.into());
    }
}

/// What would begin, as `path/key`.
fn begins(walked: &Walked) -> Vec<String> {
    let place = |path: &str, keys: &[String]| keys.iter().fold(path.to_owned(), |place, key| format!("{place}/{key}"));
    walked.progress.creates.iter().map(|b| place(&b.spec.path, &b.keys)).collect()
}

/// A run whose items came from the first step, and a copy in which that step has not ended.
fn with_an_older_copy() -> (Observed, Program) {
    let each = json!({"in": "steps.list.output", "as": "n", "key": "n"});
    let steps = json!([
        {"name": "list", "agentId": "x"},
        {"name": "each", "agentId": "x", "forEach": each},
        {"name": "last", "agentId": "x"},
    ]);
    let (mut o, program) = run(&steps, &json!({}));
    step_on(&mut o, &program);
    change(&mut o, "list", None, gives(r#"["a","b"]"#));
    let walked = step_on(&mut o, &program);
    assert_eq!(walked.progress.steps[1].counts.map(|c| c.started), Some(2));
    change(&mut o, "list", None, open);
    change(&mut o, "each", Some("a"), open);
    change(&mut o, "each", Some("b"), open);
    // A restart since: it remembers nothing.
    o.settled = Arc::default();
    (o, program)
}

#[test]
fn an_older_copy_takes_nothing_back_that_was_latched() {
    let (o, program) = with_an_older_copy();
    let before = o.workflow.status.clone().unwrap_or_default();
    assert!(before.steps[1].collection_digest.is_some() && before.steps[0].step_run.is_some());
    let after = walk(&o, &program, Admission::Open).progress;
    for (was, is) in before.steps.iter().zip(&after.steps) {
        let latched = |s: &StepStatus| (s.step_run.clone(), s.collection_digest.clone(), s.started_at.clone());
        assert_eq!(latched(was), latched(is), "{}", was.path);
    }
}

#[test]
fn a_step_that_is_open_in_an_older_copy_fails_nothing_behind_it() {
    let (o, program) = with_an_older_copy();
    let after = walk(&o, &program, Admission::Open).progress;
    // Its items cannot be listed without its output, and their StepRuns are not met: neither is a fault.
    assert_eq!(after.failure, None);
    assert!(after.steps.iter().all(|s| s.phase != Phase::Failed), "{:?}", after.steps);
}

#[test]
fn what_ended_before_what_it_needs_in_an_older_copy_lets_nothing_begin() {
    let steps = json!([
        {"name": "a", "agentId": "x"}, {"name": "b", "agentId": "x"}, {"name": "c", "agentId": "x"},
    ]);
    let (mut o, program) = run(&steps, &json!({}));
    step_on(&mut o, &program);
    step_on(&mut o, &program);
    assert_eq!(begins(&walk(&o, &program, Admission::Open)), ["c"]);
    change(&mut o, "a", None, open);
    assert_eq!(begins(&walk(&o, &program, Admission::Open)), Vec::<String>::new());
}

#[test]
fn items_that_another_operator_began_hold_their_slots() {
    let each = json!({"in": "parameters.all", "as": "n", "maxParallel": 2});
    let (mut o, program) =
        run(&json!([{"name": "each", "agentId": "x", "forEach": each}]), &json!({"all": [0, 1, 2, 3, 4, 5]}));
    step_on(&mut o, &program);
    let remembered = Arc::clone(&o.settled);
    // The first two have ended, and the other one began the next two, which this one has never looked at.
    step_on(&mut o, &program);
    change(&mut o, "each", Some("2"), open);
    change(&mut o, "each", Some("3"), open);
    o.settled = remembered;
    assert_eq!(begins(&walk(&o, &program, Admission::Open)), Vec::<String>::new());
    change(&mut o, "each", Some("3"), |s| s.phase = Some(Phase::WaitingForAcceptance));
    assert_eq!(begins(&walk(&o, &program, Admission::Open)), ["each/4"], "who waits has given the slot up");
}

#[test]
fn an_item_that_another_operator_took_on_holds_its_slot_again() {
    let each = json!({"in": "parameters.all", "as": "n", "maxParallel": 1});
    let inner = json!([{"name": "first", "agentId": "x"}, {"name": "second", "agentId": "x"}]);
    let (mut o, program) = run(&json!([{"name": "each", "steps": inner, "forEach": each}]), &json!({"all": [0, 1, 2]}));
    step_on(&mut o, &program);
    // This one knows of the first step only, which waited for a person and gave the slot up.
    change(&mut o, "each/first", Some("0"), |s| {
        s.phase = Some(Phase::WaitingForAcceptance);
        s.completed_at = None;
    });
    let seen = walk(&o, &program, Admission::Closed);
    o.settled = Arc::new(seen.settled);
    change(&mut o, "each/first", Some("0"), |s| {
        s.phase = Some(Phase::Completed);
        s.completed_at = Some(NOW);
    });
    let remembered = Arc::clone(&o.settled);
    step_on(&mut o, &program);
    change(&mut o, "each/second", Some("0"), open);
    o.settled = remembered;
    assert_eq!(begins(&walk(&o, &program, Admission::Open)), Vec::<String>::new());
}

#[test]
fn a_remembered_list_is_forgotten_where_another_one_was_latched() {
    let each = json!({"in": "parameters.all", "as": "n", "maxParallel": 1});
    let steps = json!([{"name": "each", "agentId": "x", "forEach": each}]);
    let (mut o, mine) = run(&steps, &json!({"all": [1, 2, 3]}));
    let (mut other, theirs) = run(&steps, &json!({"all": [7, 8, 9]}));
    let remembered = Arc::new(walk(&o, &mine, Admission::Open).settled);
    step_on(&mut other, &theirs);
    // The other one read another list, and latched it first.
    o.workflow = Arc::clone(&other.workflow);
    o.step_runs = other.step_runs.clone();
    o.settled = remembered;
    let after = walk(&o, &theirs, Admission::Open).progress;
    let latched = other.workflow.status.clone().unwrap_or_default().steps[0].clone();
    assert_eq!(after.steps[0].collection_digest, latched.collection_digest);
    let values: Vec<_> = after.creates.iter().filter_map(|b| Some(b.spec.item.clone()?.value)).collect();
    assert_eq!(values, [json!(8)]);
}

#[test]
fn nothing_begins_on_a_list_that_is_not_pinned_yet() {
    let each = |list: &str| json!({"in": list, "as": "n"});
    let steps = json!([{"name": "none", "agentId": "x", "forEach": each("[]")},
        {"name": "each", "agentId": "x", "forEach": each("parameters.all")}]);
    let (mut o, program) = run(&steps, &json!({"all": [1, 2]}));
    let mut passes = Vec::new();
    for _ in 0..3 {
        let walked = walk(&o, &program, Admission::Open);
        let mut after = o.workflow.status.clone().unwrap_or_default();
        status::derive(&mut after, &walked.progress, (status::End::Open, &NOW));
        let mut workflow = o.workflow.as_ref().clone();
        workflow.status = Some(after);
        o.workflow = Arc::new(workflow);
        o.settled = Arc::new(walked.settled.clone());
        passes.push((pinned(&o), begins(&walked).len()));
    }
    assert_eq!(passes, [(1, 0), (2, 0), (2, 2)]);
}

/// A document that comes later is none of the list, also for an operator that remembers nothing.
#[test]
fn a_list_of_no_document_stays_so() {
    use crate::api::document::{DocumentPhase, DocumentSpec, DocumentStatus, Scope};
    use crate::api::step::Format;
    let each = json!({"in": "has(documents.brief) ? documents.brief : []", "as": "n"});
    let steps = json!([{"name": "each", "agentId": "x", "forEach": each}, {"name": "last", "agentId": "x"}]);
    let (mut o, program) = run(&steps, &json!({}));
    step_on(&mut o, &program);
    let spec = DocumentSpec {
        document_type: "brief".into(),
        scope: Scope::Namespace,
        format: Format::Json,
        content: "[1, 2]".into(),
        ..DocumentSpec::default()
    };
    let mut brief = Document::new("brief-1", spec);
    brief.status = Some(DocumentStatus {
        phase: Some(DocumentPhase::Published),
        revision: Some(1),
        digest: Some(name::digest_bytes(b"[1, 2]")),
        ..DocumentStatus::default()
    });
    o.documents.insert_mut(document::key(&brief), Arc::new(brief));
    for settled in [Arc::clone(&o.settled), Arc::default()] {
        o.settled = settled;
        let walked = walk(&o, &program, Admission::Open);
        assert!(walked.progress.failure.is_none() && walked.unread.is_empty(), "{:?}", walked.progress.failure);
        assert!(walked.progress.done.is_some(), "{:?}", walked.progress.steps);
    }
}

/// A copy of the documents that lags: what the list was read from is asked for, and another is no stand-in.
#[test]
fn a_document_of_a_list_that_a_copy_does_not_show_is_asked_for() {
    let each = json!({"in": "has(documents.brief) ? documents.brief : []", "as": "n"});
    let (mut o, program) = run(&json!([{"name": "each", "agentId": "x", "forEach": each}]), &json!({}));
    let digest = name::digest_bytes(json!([1, 2]).to_string().as_bytes());
    let latched = json!({"steps": [{"path": "each", "phase": "Running", "collectionDigest": digest,
        "collectionDocuments": ["brief-1"]}]});
    let mut workflow = o.workflow.as_ref().clone();
    workflow.status = Some(serde_json::from_value(latched).expect("a status"));
    o.workflow = Arc::new(workflow);
    let spec = json!({"type": "brief", "scope": "Namespace", "format": "json", "content": "[1, 2]"});
    let brief = Document::new("brief-1", serde_json::from_value(spec).expect("a spec"));
    let pin = Pin { name: "brief-1".into(), ..Pin::default() };
    assert_eq!(walk(&o, &program, Admission::Open).unread, vec![pin.clone()]);
    o.contents.insert(pin.clone(), Content::of(&pin, Some(&Loaded::new(Arc::new(brief)))));
    assert_eq!(begins(&walk(&o, &program, Admission::Open)), ["each/0", "each/1"]);
    o.contents.insert(pin.clone(), Content::of(&pin, None));
    let failure = walk(&o, &program, Admission::Open).progress.failure.map(|failure| failure.class);
    assert_eq!(failure, Some(AttemptResult::DocumentChanged), "it is gone");
}

#[test]
fn items_say_what_they_are_of_and_scopes_are_left_again() {
    let chapters = json!({"in": "part.chapters", "as": "chapter", "key": "chapter.id"});
    let inner = json!([
        {"name": "outline", "agentId": "x"},
        {"name": "write", "agentId": "x", "forEach": chapters},
        {"name": "edit", "agentId": "x"},
    ]);
    let parts = json!({"in": "parameters.parts", "as": "part", "key": "part.id"});
    let steps = json!([{"name": "part", "steps": inner, "forEach": parts}, {"name": "print", "agentId": "x"}]);
    let parts = json!([{"id": "p1", "chapters": [{"id": "c1"}, {"id": "c2"}]}, {"id": "p2", "chapters": []}]);
    let (mut o, definition) = run(&steps, &json!({"parts": parts}));
    for _ in 0..10 {
        if step_on(&mut o, &definition).progress.done.is_some() {
            break;
        }
    }
    let uid = "12345678-rest";
    let told: BTreeSet<String> = o
        .step_runs
        .values()
        .map(|s| {
            let chain = s.spec.scope_chain.iter().map(|link| format!("{} {}", link.scope, link.scope_id));
            let item = s.spec.item.as_ref().map(|i| format!("{} {} {}", i.index, i.key, i.value));
            format!("{}: {}; {}", s.spec.path, chain.collect::<Vec<_>>().join(", "), item.unwrap_or_default())
        })
        .collect();
    let run = format!("workflow {uid}");
    let (first, second) = (format!("{run}, part {uid}/p1"), format!("{run}, part {uid}/p2"));
    let expected = [
        format!("part/outline: {first}; 0 p1 {}", parts[0]),
        format!("part/write: {first}, chapter {uid}/p1/c1; 0 c1 {}", parts[0]["chapters"][0]),
        format!("part/write: {first}, chapter {uid}/p1/c2; 1 c2 {}", parts[0]["chapters"][1]),
        format!("part/edit: {first}; 0 p1 {}", parts[0]),
        format!("part/outline: {second}; 1 p2 {}", parts[1]),
        format!("part/edit: {second}; 1 p2 {}", parts[1]),
        format!("print: {run}; "),
    ];
    assert_eq!(told, BTreeSet::from(expected));
    let status = o.workflow.status.clone().unwrap_or_default();
    let lists: Vec<(&str, bool, Option<i32>)> = status
        .steps
        .iter()
        .map(|s| (s.path.as_str(), s.collection_digest.is_some(), s.counts.map(|c| c.total)))
        .collect();
    assert_eq!(lists[0], ("part", true, Some(2)));
    assert_eq!(lists[2], ("part/write", false, Some(2)));
    assert_eq!(lists[4], ("print", false, None));
}

#[test]
fn documents_of_what_ended_and_was_seen_are_not_asked_for_again() {
    let items: Vec<u32> = (0..5_000).collect();
    let each = json!({"in": "parameters.all", "as": "n", "maxParallel": 100});
    let steps = json!([{"name": "each", "agentId": "x", "forEach": each}]);
    let (mut o, program) = run(&steps, &json!({"all": items}));
    let mut workflow = o.workflow.as_ref().clone();
    workflow.status.get_or_insert_default().definition = Some(crate::api::workflow::DefinitionRef::default());
    o.workflow = Arc::new(workflow);
    for pass in 0..5 {
        step_on(&mut o, &program);
        let ended: Vec<String> = o.settled.open.clone();
        for name in &ended {
            let mut step_run = o.step_runs[name].as_ref().clone();
            if let Some(result) = step_run.status.as_mut().and_then(|s| s.result.as_mut()) {
                result.document_name = Some(format!("of-{name}"));
            }
            o.step_runs.insert_mut(name.clone(), Arc::new(step_run));
        }
        let found = committed(&o.workflow, &o.step_runs, &o.settled);
        assert_eq!((found.documents.len(), found.looked), (100, 100), "pass {pass}");
        // One of them is behind in the cache of Documents: it comes again, the others do not.
        let late = ended[..1].to_vec();
        Arc::make_mut(&mut o.settled).late.clone_from(&late);
        let again = walk(&o, &program, Admission::Closed).settled;
        let again = committed(&o.workflow, &o.step_runs, &again);
        assert_eq!(again.documents, [(Some(late[0].clone()), format!("of-{}", late[0]))]);
        Arc::make_mut(&mut o.settled).late.clear();
    }
    // Whoever remembers nothing looks at all.
    let found = committed(&o.workflow, &o.step_runs, &crate::decide::settled::Settled::default());
    assert_eq!((found.documents.len(), found.looked), (500, 500));
}

#[test]
fn the_list_of_an_item_is_not_remembered_from_an_older_copy() {
    let list = json!({"in": "steps.?list.?output.orValue([0, 0])", "as": "n", "maxParallel": 1});
    let inner = json!([{"name": "list", "agentId": "x"}, {"name": "each", "agentId": "x", "forEach": list}]);
    let outer = json!({"in": "parameters.all", "as": "p", "key": "p"});
    let (mut o, program) = run(&json!([{"name": "outer", "steps": inner, "forEach": outer}]), &json!({"all": ["p"]}));
    step_on(&mut o, &program);
    change(&mut o, "outer/list", Some("p"), gives("[7, 8]"));
    step_on(&mut o, &program);
    let newer = o.step_runs.clone();
    // A restart, on a copy in which the list has not been made yet; then one that has caught up.
    change(&mut o, "outer/list", Some("p"), open);
    o.settled = Arc::default();
    let behind = walk(&o, &program, Admission::Open);
    assert!(behind.progress.done.is_none() && behind.progress.failure.is_none());
    o.settled = Arc::new(behind.settled);
    o.step_runs = newer;
    let after = walk(&o, &program, Admission::Open).progress;
    let values: Vec<_> = after.creates.iter().filter_map(|b| Some(b.spec.item.clone()?.value)).collect();
    assert_eq!(values, [json!(8)]);
}

#[test]
fn when_a_step_began_stays_as_it_was_latched() {
    let each = json!({"in": "parameters.all", "as": "n"});
    let (mut o, program) = run(&json!([{"name": "each", "agentId": "x", "forEach": each}]), &json!({"all": [1, 2]}));
    step_on(&mut o, &program);
    step_on(&mut o, &program);
    // Another operator, whose clock is ahead, has latched it; this one remembers it otherwise.
    let other = Some(Time(Timestamp::from_second(5).expect("a time")));
    let mut workflow = o.workflow.as_ref().clone();
    workflow.status.as_mut().expect("it has one").steps[0].started_at.clone_from(&other);
    o.workflow = Arc::new(workflow);
    let walked = walk(&o, &program, Admission::Open);
    assert_eq!(walked.progress.steps[0].started_at, other, "two operators would correct each other for ever");
}

#[test]
fn what_was_skipped_stays_so_after_a_failure() {
    let steps = json!([{"name": "a", "agentId": "x"}, {"name": "b", "agentId": "x", "when": "false"}]);
    let group = json!([{"name": "g", "order": "Graph", "steps": steps}]);
    let (mut o, program) = run(&group, &json!({}));
    let skipped = |walked: &Walked| {
        walked.progress.steps.iter().any(|s| s.path == "g/b" && s.phase == Phase::Skipped && s.when == Some(false))
    };
    assert!(skipped(&step_on(&mut o, &program)));
    change(&mut o, "g/a", None, |status| status.phase = Some(Phase::Failed));
    let walked = walk(&o, &program, Admission::Open);
    assert!(skipped(&walked), "{:?}", walked.progress.steps);
}

/// Reads what it is asked to from these Documents: name, UID, content.
fn read_from(o: &mut Observed, program: &Program, there: &[(&str, &str, &str)]) -> Walked {
    for _ in 0..5 {
        let walked = walk(o, program, Admission::Open);
        if walked.unread.is_empty() {
            return walked;
        }
        for pin in walked.unread {
            let found = there.iter().find(|(name, ..)| *name == pin.name).map(|(name, uid, content)| {
                let mut made = Document::new(name, crate::api::document::DocumentSpec::default());
                (made.metadata.uid, made.spec.content) = (Some((*uid).into()), (*content).into());
                Loaded::new(Arc::new(made))
            });
            o.contents.insert(pin.clone(), Content::of(&pin, found.as_ref()));
        }
    }
    panic!("it reads for ever")
}

/// So many documents in the namespace, each of a type of its own, and their contents of so many bytes.
fn put(o: &mut Observed, number: usize, bytes: usize) -> Vec<(String, String)> {
    let content = "x".repeat(bytes);
    for n in 0..number {
        let kind = format!("d{n:04}");
        let spec = json!({"type": kind, "scope": "Namespace", "format": "text", "content": ""});
        let mut document = Document::new(&kind, serde_json::from_value(spec).expect("a spec"));
        document.metadata.uid = Some(kind.clone());
        let digest = name::digest_bytes(content.as_bytes());
        document.status = serde_json::from_value(json!({"phase": "Published", "digest": digest, "revision": 1})).ok();
        o.documents.insert_mut(document::key(&document), Arc::new(document));
    }
    (0..number).map(|n| (format!("d{n:04}"), content.clone())).collect()
}

/// Fetches as the operator does: as much as there is room for. How many were fetched, too.
fn fetch(o: &mut Observed, program: &Program, there: &[(String, String)]) -> (Walked, usize) {
    let mut fetched = 0;
    for _ in 0..100 {
        let walked = walk(o, program, Admission::Open);
        if walked.unread.is_empty() {
            return (walked, fetched);
        }
        o.settled = Arc::new(walked.settled);
        o.contents.make_room(walked.unread.len());
        for pin in walked.unread {
            if o.contents.is_full() {
                continue;
            }
            let kind = pin.name.clone();
            let (_, content) = there.iter().find(|(name, _)| *name == kind).expect("it is there");
            let spec = json!({"type": kind, "scope": "Namespace", "format": "text", "content": content});
            let mut document = Document::new(&kind, serde_json::from_value(spec).expect("a spec"));
            document.metadata.uid = Some(kind);
            let found = Content::of(&pin, Some(&Loaded::new(Arc::new(document))));
            o.contents.insert(pin, found);
            fetched += 1;
        }
    }
    panic!("it reads for ever")
}

#[test]
fn the_expressions_of_one_place_read_only_so_many_documents() {
    use crate::api::limits::EXPRESSION_DOCUMENTS;
    let whole = json!([{"name": "a", "agentId": "x", "parameters": {"n": "${ size(documents) }"}}]);
    let path = |number: usize| {
        let parameters: serde_json::Map<_, _> =
            (0..number).map(|n| (format!("p{n}"), json!(format!("${{ documents.d{n:04} }}")))).collect();
        json!([{"name": "a", "agentId": "x", "parameters": parameters}])
    };
    for (what, steps, number, bytes, most, wrong) in [
        ("few", whole.clone(), 3, 10, 3, None),
        ("as many as may be", path(EXPRESSION_DOCUMENTS), EXPRESSION_DOCUMENTS, 10, EXPRESSION_DOCUMENTS, None),
        ("too many", whole.clone(), 65, 10, 0, Some("more than 64 documents")),
        ("too many names", path(65), 65, 10, 0, Some("more than 64 documents")),
        ("large ones", whole, 30, 500_000, 30, Some("more than 4194304 bytes together")),
        ("large ones by name", path(30), 30, 500_000, 30, Some("more than 4194304 bytes together")),
    ] {
        let (mut o, program) = run(&steps, &json!({}));
        let there = put(&mut o, number, bytes);
        let (walked, fetched) = fetch(&mut o, &program, &there);
        assert!(fetched <= most, "{what}: {fetched} were fetched");
        match (walked.progress.failure, wrong) {
            (None, None) => assert_eq!(walked.progress.creates.len(), 1, "{what}"),
            (Some(Failure { class: AttemptResult::ExpressionError, message, .. }), Some(wrong)) => {
                assert!(message.contains(wrong), "{what}: {message}");
            }
            (failure, _) => panic!("{what}: {failure:?}"),
        }
    }
}

#[test]
fn steps_that_read_more_than_there_is_room_for_begin_one_after_the_other() {
    let step = |n: usize| {
        let parameters = json!({"t": format!("${{ documents.?d{n:04}.x.orValue('') }}")});
        json!({"name": format!("s{n}"), "agentId": "x", "parameters": parameters})
    };
    let definition = Definition {
        workflow: "w".into(),
        workflow_uid: "12345678-rest".into(),
        steps: serde_json::from_value((0..60).map(step).collect()).expect("steps"),
        order: crate::api::step::Order::Graph,
        ..Definition::default()
    };
    let (mut o, program) = run_of(&definition);
    let there = put(&mut o, 60, 10_000);
    assert_eq!(fetch(&mut o, &program, &there).0.progress.creates.len(), 60, "there is room for all");
    let (mut o, program) = run_of(&definition);
    let there = put(&mut o, 60, 524_000);
    let mut begun = 0;
    for _ in 0..5 {
        let (walked, _) = fetch(&mut o, &program, &there);
        assert!(walked.progress.failure.is_none(), "{:?}", walked.progress.failure);
        let creates = walked.progress.creates;
        assert!(!creates.is_empty() && creates.len() < 40, "{} begin", creates.len());
        begun += creates.len();
        for NewStepRun { spec, keys, .. } in creates {
            let own = build::step_run_name("w", "12345678-rest", &spec.path, &keys);
            o.step_runs.insert_mut(own, Arc::new(build::step_run(&o.workflow, "s", spec, &keys)));
        }
        o.contents = Contents::default();
        if begun == 60 {
            return;
        }
    }
    panic!("only {begun} of 60 began");
}

/// As after a restart: nothing is remembered, and the outputs of all items are more than there is room for.
#[test]
fn what_items_gave_is_collected_by_parts() {
    let inner = json!([{"name": "a", "agentId": "x"}]);
    let each =
        json!({"in": "parameters.list", "as": "n", "maxParallel": 60, "collect": "steps.a.output.?y.orValue('-')"});
    let list: Vec<usize> = (0..60).collect();
    let (mut o, program) = run(&json!([{"name": "g", "forEach": each, "steps": inner}]), &json!({"list": list}));
    step_on(&mut o, &program);
    let content = json!({"x": "x".repeat(520_000)}).to_string();
    let digest = name::digest_bytes(content.as_bytes());
    let mut there = Vec::new();
    for n in 0..60 {
        let own = format!("d{n:04}");
        change(&mut o, "g/a", Some(&n.to_string()), |status| {
            let bound = crate::api::step_run::Binding { uid: Some(own.clone()), digest: digest.clone() };
            status.result = Some(ResultRef {
                output_document: Some(own.clone()),
                output_binding: Some(bound),
                ..status.result.clone().unwrap_or_default()
            });
            status.agent.as_mut().and_then(|a| a.report.as_mut()).expect("a report").output = None;
        });
        there.push((own, content.clone()));
    }
    o.settled = Arc::default();
    let (walked, fetched) = fetch(&mut o, &program, &there);
    assert_eq!(fetched, 60, "each once");
    assert!(!o.contents.is_closed() && walked.progress.failure.is_none(), "{:?}", walked.progress.failure);
    assert_eq!(walked.progress.done, Some(json!(vec!["-"; 60])));
}

#[test]
fn a_question_and_parameters_stop_at_their_bounds() {
    let uses = |number: usize| "${ parameters.big }".repeat(number);
    let big = "x".repeat(30_000);
    for (step, class, words) in [
        (
            json!({"ask": {"question": uses(50)}}),
            AttemptResult::ExpressionError,
            "ask.question: gives more than 16384 bytes",
        ),
        (
            json!({"ask": {"question": "${ parameters.some }"}}),
            AttemptResult::ExpressionError,
            "ask.question: gives 5000 characters, at most 4096",
        ),
        (
            json!({"agentId": "x", "parameters": {"a": {"b": [uses(2)]}}}),
            AttemptResult::InvalidParameters,
            "parameters.a: gives more than 32768 bytes, at most 32768 are allowed; pass a document instead",
        ),
        (
            json!({"agentId": "x", "parameters": {"a": ["${ parameters.deep }"]}}),
            AttemptResult::InvalidParameters,
            "parameters: nests 65 levels of lists and objects, at most 64 are allowed",
        ),
        (
            json!({"agentId": "x", "forEach": {"in": "[1, [parameters.deep]]", "as": "e"}}),
            AttemptResult::ExpressionError,
            "forEach.in gives item 1, which nests 65 levels of lists and objects, at most 64 are allowed",
        ),
    ] {
        let mut step = step;
        step["name"] = json!("a");
        let deep = (0..63 + usize::from(step.get("forEach").is_some())).fold(json!(1), |inner, _| json!([inner]));
        let (o, program) = run(&json!([step]), &json!({"big": big, "some": "y".repeat(5000), "deep": deep}));
        let failure = walk(&o, &program, Admission::Open).progress.failure.expect("it fails");
        assert!(failure.class == class && failure.message.contains(words), "{failure:?}");
    }
}

#[test]
fn an_output_that_lies_apart_is_read_as_it_was_reported() {
    let steps = json!([{"name": "a", "agentId": "x"},
        {"name": "b", "agentId": "x", "parameters": {"seen": "${ steps.a.output.text }"}}]);
    let whole = r#"{"text": "true"}"#;
    for (what, there, given) in [
        ("it", vec![("out", "o1", whole)], Some("true")),
        ("gone", vec![], None),
        ("made again", vec![("out", "o2", whole)], None),
        ("other bytes", vec![("out", "o1", r#"{"text": "forged"}"#)], None),
    ] {
        let (mut o, program) = run(&steps, &json!({}));
        step_on(&mut o, &program);
        change(&mut o, "a", None, |status| {
            let bound = crate::api::step_run::Binding {
                uid: Some("o1".into()),
                digest: name::digest_bytes(br#"{"text": "true"}"#),
            };
            status.result = Some(ResultRef {
                output_document: Some("out".into()),
                output_binding: Some(bound),
                ..status.result.clone().unwrap_or_default()
            });
            status.agent.as_mut().and_then(|a| a.report.as_mut()).expect("a report").output = None;
        });
        let walked = read_from(&mut o, &program, &there);
        let parameters = walked.progress.creates.first().map(|b| b.spec.parameters.clone());
        assert_eq!(parameters, given.map(|text| json!({"seen": text}).to_string()), "{what}");
        let failure = walked.progress.failure.map(|f| (f.class, f.message.contains("Document out")));
        assert_eq!(failure, given.is_none().then_some((AttemptResult::DocumentChanged, true)), "{what}");
    }
}

#[test]
fn what_was_to_begin_beside_a_failure_is_not_waited_for() {
    let inner = json!([{"name": "first", "agentId": "x"}, {"name": "second", "agentId": "x"}]);
    let each = json!({"in": "parameters.all", "as": "n"});
    let steps = json!([
        {"name": "each", "steps": inner, "forEach": each, "onFailure": "Continue"},
        {"name": "after", "agentId": "x"},
    ]);
    let (mut o, program) = run(&steps, &json!({"all": [0, 1]}));
    step_on(&mut o, &program);
    // The second step of the first item could begin; but the second item has failed, and the step with it.
    change(&mut o, "each/first", Some("1"), |status| status.phase = Some(Phase::Failed));
    let walked = walk(&o, &program, Admission::Open);
    assert_eq!(begins(&walked), ["after"]);
    let each = &walked.progress.steps[0];
    assert_eq!((each.phase, walked.progress.open.running), (Phase::Failed, 1));
    assert_eq!(walked.settled.open.len(), 1, "only what is made is waited for");
}

#[test]
fn a_pass_without_memory_finds_in_one_walk_what_was_begun() {
    let each = json!({"in": "parameters.all", "as": "n", "maxParallel": 2});
    let (mut o, program) =
        run(&json!([{"name": "each", "agentId": "x", "forEach": each}]), &json!({"all": [0, 1, 2, 3]}));
    step_on(&mut o, &program);
    change(&mut o, "each", Some("0"), open);
    o.settled = Arc::default();
    // One has ended and one is open: one slot is free. Each of the four is looked at, what is open and what begins again.
    let walked = walk(&o, &program, Admission::Open);
    assert_eq!((begins(&walked), walked.looked), (vec!["each/2".to_owned()], 6));
    assert_eq!(walked.progress.steps[0].counts.map(|c| (c.started, c.done)), Some((3, 1)));
}

/// `s1` beside a forEach in a forEach: one of the inner items has failed, so `s1` was cancelled.
#[test]
fn what_failed_beside_a_cancelled_step_is_found_without_memory() {
    let inner = json!([{"name": "inner", "agentId": "x", "forEach": {"in": "parameters.all", "as": "m"}}]);
    let definition = Definition {
        workflow: "w".into(),
        workflow_uid: "12345678-rest".into(),
        order: crate::api::step::Order::Graph,
        steps: serde_json::from_value(json!([
            {"name": "beside", "agentId": "x"},
            {"name": "each", "steps": inner, "forEach": {"in": "parameters.all", "as": "n"}},
        ]))
        .expect("steps"),
        parameters: json!({"all": [0, 1]}).as_object().cloned().expect("parameters"),
        ..Definition::default()
    };
    let (mut o, program) = run_of(&definition);
    step_on(&mut o, &program);
    change(&mut o, "beside", None, |status| status.phase = Some(Phase::Cancelled));
    change(&mut o, "each/inner", Some("0"), |status| status.phase = Some(Phase::Failed));
    let places = |o: &Observed| {
        let walked = walk(o, &program, Admission::Open);
        assert!(walked.progress.creates.is_empty(), "nothing begins beside a failure: {:?}", begins(&walked));
        walked.progress.failure.map(|failure| failure.place)
    };
    let known = places(&o);
    assert!(known.as_ref().is_some_and(|place| place.starts_with("each/inner")), "{known:?}");
    o.settled = Arc::default();
    assert_eq!(places(&o), known, "an operator that has just started knows as much");
}

#[test]
fn a_step_run_that_cannot_be_read_fails_its_run_and_is_named() {
    let steps = json!([{"name": "a", "agentId": "x", "forEach": {"in": "[1, 2]", "as": "e", "tolerate": 2}, "onFailure": "Continue"},
        {"name": "b", "agentId": "x"}]);
    let (mut o, program) = run(&steps, &json!({}));
    let own = build::step_run_name("w", "12345678-rest", "a", &["1".to_owned()]);
    o.unreadable.step_runs.insert(own.clone(), "spec.item: nests 124 levels".to_owned());
    // The first pass pins the list; what is there already is met in the next.
    step_on(&mut o, &program);
    let walked = walk(&o, &program, Admission::Open);
    assert!(walked.progress.creates.is_empty(), "nothing begins behind it");
    let failure = walked.progress.failure.expect("the run fails");
    assert_eq!((failure.place.as_str(), failure.class), ("a/1", AttemptResult::StepRunLost));
    assert!(failure.message.contains(&own) && failure.message.contains("nests 124 levels"), "{}", failure.message);
}
