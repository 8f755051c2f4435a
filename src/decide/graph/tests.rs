use super::*;
use crate::api::agent::{Agent, AgentSpec};
use crate::api::step_run::{AgentReport, Report, ReportClass, ResultRef, StepRunStatus};
use crate::api::workflow::{Workflow, WorkflowSpec, WorkflowStatus};
use crate::decide::expression::InProcess;
use crate::decide::{build, status, validate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

const NOW: Time = Time(Timestamp::UNIX_EPOCH);

/// A run of these steps that knows what it made.
fn run(steps: &serde_json::Value, parameters: &serde_json::Value) -> (Observed, Definition) {
    let mut workflow = Workflow::new("w", WorkflowSpec::default());
    workflow.metadata.uid = Some("12345678-rest".into());
    workflow.status = Some(WorkflowStatus::default());
    let definition = Definition {
        workflow: "w".into(),
        workflow_uid: "12345678-rest".into(),
        steps: serde_json::from_value(steps.clone()).unwrap_or_default(),
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        ..Definition::default()
    };
    let agent = Arc::new(Agent::new("x", AgentSpec::default()));
    let observed = Observed {
        workflow: Arc::new(workflow),
        template: None,
        definition: None,
        agents: [("x".to_owned(), agent)].into(),
        step_runs: crate::decide::observed::StepRuns::default(),
        documents: document::Documents::default(),
        contents: BTreeMap::new(),
        previous: None,
        settled: Arc::default(),
        evaluator: Arc::new(InProcess),
        now: NOW,
    };
    (observed, definition)
}

/// Everything that is to be made is made and completes; what was walked.
fn step_on(o: &mut Observed, definition: &Definition) -> Walked {
    let mut walked = stand(o, definition, Start::May);
    for (spec, keys) in std::mem::take(&mut walked.stand.creates) {
        let mut made = build::step_run(&o.workflow, "s", spec, &keys);
        let report = Report {
            attempt: 1,
            exit_code: Some(0),
            class: ReportClass::Succeeded,
            digest: "d".into(),
            output: Some("1".into()),
            output_document: None,
            document_name: None,
            message: None,
            log_tail: None,
            at: NOW,
        };
        made.status = Some(StepRunStatus {
            phase: Some(Phase::Completed),
            started_at: Some(NOW),
            completed_at: Some(NOW),
            result: Some(ResultRef { attempt: 1, digest: "d".into(), document_name: None }),
            agent: Some(AgentReport { report: Some(report), ..AgentReport::default() }),
            ..StepRunStatus::default()
        });
        o.step_runs.insert_mut(made.metadata.name.clone().unwrap_or_default(), Arc::new(made));
    }
    let mut after = o.workflow.status.clone().unwrap_or_default();
    status::derive(&mut after, &walked.stand, (status::End::Open, &NOW));
    let mut workflow = o.workflow.as_ref().clone();
    workflow.status = Some(after);
    o.workflow = Arc::new(workflow);
    o.settled = Arc::new(walked.settled.clone());
    walked
}

#[test]
fn a_pass_looks_at_what_is_open_not_at_what_there_is() {
    let items: Vec<u32> = (0..5_000).collect();
    let steps =
        json!([{"name": "each", "agentId": "x", "forEach": {"in": "parameters.all", "as": "n", "maxParallel": 100}}]);
    let (mut o, definition) = run(&steps, &json!({"all": items}));
    let mut passes = 0;
    loop {
        let walked = step_on(&mut o, &definition);
        // The hundred that ended since, and the hundred that begin.
        assert!(walked.looked <= 201, "{} items were looked at", walked.looked);
        passes += 1;
        if walked.stand.done.is_some() {
            break;
        }
        assert!(passes < 60, "it never ends");
    }
    assert_eq!(o.step_runs.size(), 5_000);
    // Whoever remembers nothing finds the same.
    o.settled = Arc::default();
    let cold = stand(&o, &definition, Start::May);
    assert!(cold.stand.done.is_some() && cold.stand.creates.is_empty());
}

#[test]
fn the_status_of_the_largest_run_stays_below_its_limit() {
    let name = |n: usize| format!("{:0<40}", format!("step-{n}-"));
    let group = |n: usize| {
        let inner: Vec<_> = (0..15).map(|i| json!({"name": name(n * 100 + i), "agentId": "x"})).collect();
        let outer: Vec<_> = (0..3)
            .map(|i| json!({"name": name(n * 100 + 50 + i), "order": "Graph", "steps": &inner[i * 5..i * 5 + 5]}))
            .collect();
        json!({"name": name(n * 100 + 99), "order": "Graph", "steps": outer})
    };
    let mut steps: Vec<_> = (1..11).map(group).collect();
    steps.push(
        json!({"name": name(1), "agentId": "x", "forEach": {"in": "parameters.all", "as": "n", "maxParallel": 1000}}),
    );
    let all: Vec<u32> = (0..5_000).collect();
    let (mut o, mut definition) = run(&json!(steps), &json!({"all": all}));
    definition.order = crate::api::step::Order::Graph;
    assert!(validate::count(&definition.steps) > 190);
    for _ in 0..20 {
        let walked = step_on(&mut o, &definition);
        let bytes = serde_json::to_string(&o.workflow.status).map_or(usize::MAX, |s| s.len());
        assert!(bytes < 64 * 1024, "{bytes} bytes");
        if walked.stand.done.is_some() {
            return;
        }
    }
    panic!("it never ends");
}
