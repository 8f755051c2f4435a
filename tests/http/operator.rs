//! The operator, without the process around it.

use std::sync::Arc;

use kube::runtime::events::{Recorder, Reporter};
use lockstep::cluster::clock::Clock;
use lockstep::cluster::consistency::Consistency;
use lockstep::cluster::contents::Contents;
use lockstep::cluster::evaluator::Evaluator;
use lockstep::cluster::guard::{Accounts, JOB_CONTROLLER, PolicyGuard};
use lockstep::cluster::lease::Elector;
use lockstep::cluster::observe::Observer;
use lockstep::cluster::pod_events::PodEvents;
use lockstep::cluster::refusals::Refusals;
use lockstep::cluster::revisions::Revisions;
use lockstep::cluster::sinks::{SinkOptions, Sinks};
use lockstep::cluster::slots::Slots;
use lockstep::controllers::context::Context as Passes;
use lockstep::controllers::{self, Options, Reach};
use lockstep::decide::build::Installation;
use lockstep::telemetry::traces::Traces;
use lockstep::telemetry::{Health, Metrics};

pub const OPERATOR: &str = "system:serviceaccount:lockstep-system:lockstep-operator";
pub const GATEWAY: &str = "system:serviceaccount:lockstep-system:lockstep-gateway";

/// Works until it is dropped.
pub async fn operator(client: kube::Client, clock: Clock, (traces, sinks): (Traces, Sinks)) {
    let accounts = Accounts {
        operator: OPERATOR.to_owned(),
        gateway: GATEWAY.to_owned(),
        job_controller: JOB_CONTROLLER.to_owned(),
    };
    let observer = Observer {
        client: client.clone(),
        clock: clock.clone(),
        world: lockstep::cluster::world::World::default(),
        consistency: Consistency::default(),
        contents: Contents::default(),
        settled: lockstep::cluster::contents::SettledRuns::default(),
        guard: Box::new(PolicyGuard::new(&accounts).expect("the policies parse")),
        installation: Arc::new(Installation {
            image: "lockstep".to_owned(),
            api_url: "https://lockstep-api.lockstep-system.svc".to_owned(),
            account: OPERATOR.to_owned(),
            ..Installation::default()
        }),
        evaluator: Evaluator::here(),
        slots: Slots::new(0),
        refusals: Refusals::default(),
        taken: Refusals::default(),
        pod_events: PodEvents::default(),
        revisions: Revisions::default(),
    };
    let reporter = Reporter { controller: "lockstep-operator".to_owned(), instance: None };
    let metrics = Arc::new(Metrics::default());
    let context = Arc::new(
        Passes::new(observer, Recorder::new(client.clone(), reporter), Arc::clone(&metrics))
            .with_traces(traces)
            .with_sinks(sinks),
    );
    let mut elector = Elector::new(client, ("lockstep-system", "lockstep-operator"), "operator".to_owned(), clock);
    let options = Options {
        namespace: "lockstep-system".to_owned(),
        image: "lockstep".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        gateway_service: "lockstep-gateway".to_owned(),
        gateway_reach: Reach::Dns,
        tls_secret: "lockstep-gateway-tls".to_owned(),
        api_service: String::new(),
        api_tls_secret: "lockstep-api-tls".to_owned(),
        api_url: "https://lockstep-api.lockstep-system.svc".to_owned(),
        operator_account: OPERATOR.to_owned(),
        gateway_account: GATEWAY.to_owned(),
        job_controller_account: JOB_CONTROLLER.to_owned(),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        stamps_names: false,
        leader_elect: false,
        lease_name: "lockstep-operator".to_owned(),
        concurrency: 16,
        evaluators: 2,
        max_concurrent_per_namespace: 0,
        agent_dns: String::new(),
        agent_private: Vec::new(),
        attendant: String::new(),
        prompt: String::new(),
        traces: lockstep::telemetry::traces::OtlpOptions::default(),
        sinks: SinkOptions::default(),
    };
    let why = Box::pin(controllers::work(&options, context, Health::new(metrics), &mut elector)).await;
    panic!("the operator ended: {why}");
}
