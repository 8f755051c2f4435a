//! Operator and gateway as they are installed here: the product's own, over the API server of this process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::events::{Recorder, Reporter};
use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;

use super::durable::Durable;
use super::person::LocalPerson;
use crate::api::name;
use crate::apiserver::{ApiServer, Registry};
use crate::cluster::clock::Clock;
use crate::cluster::consistency::Consistency;
use crate::cluster::contents::{Contents, SettledRuns};
use crate::cluster::evaluator::Evaluator;
use crate::cluster::lease::Elector;
use crate::cluster::observe::Observer;
use crate::cluster::pod_events::PodEvents;
use crate::cluster::refusals::Refusals;
use crate::cluster::revisions::Revisions;
use crate::cluster::sinks::SinkOptions;
use crate::cluster::slots::Slots;
use crate::cluster::world::World;
use crate::controllers::context::Context;
use crate::controllers::{self, Options, Reach};
use crate::decide::build::Installation;
use crate::gateway::{self, Bounds};
use crate::telemetry::traces::{OtlpOptions, Traces};
use crate::telemetry::{Health, Metrics};

/// Where everything lives.
pub const NAMESPACE: &str = "dev";
const OPERATOR: &str = "system:serviceaccount:lockstep-system:lockstep-operator";
pub const GATEWAY: &str = "system:serviceaccount:lockstep-system:lockstep-gateway";
const SYSTEM: &str = "lockstep-system";
/// Processes that evaluate, for operator and gateway together.
const EVALUATORS: u16 = 2;
/// Between two looks for garbage.
const SWEEP: Duration = Duration::from_millis(500);

/// What both work with: who evaluates, and how many attempts run at once.
#[derive(Clone, Debug)]
pub struct Means {
    evaluator: Evaluator,
    jobs: u16,
}

impl Means {
    /// This program evaluates, in processes of its own.
    pub fn of(program: &Path, jobs: u16) -> Self {
        Self { evaluator: Evaluator::of(program, EVALUATORS), jobs }
    }
}

/// The operator, for ever; returns why it ended.
pub async fn operate(
    server: &Durable,
    person: LocalPerson,
    gateway_url: String,
    (means, metrics): (&Means, Arc<Metrics>),
) -> String {
    let client = server.client(OPERATOR, NAMESPACE);
    let options = options(means.jobs);
    let installation = Installation { gateway_url, account: OPERATOR.to_owned(), ..Installation::default() };
    let observer = Observer {
        client: client.clone(),
        clock: Clock::default(),
        world: World::default(),
        consistency: Consistency::default(),
        contents: Contents::default(),
        settled: SettledRuns::default(),
        guard: Box::new(person),
        installation: Arc::new(installation),
        evaluator: means.evaluator.clone(),
        slots: Slots::new(options.max_concurrent_per_namespace),
        refusals: Refusals::default(),
        taken: Refusals::default(),
        pod_events: PodEvents::default(),
        revisions: Revisions::default(),
    };
    let reporter = Reporter { controller: name::OPERATOR.to_owned(), instance: None };
    let context = Context::new(observer, Recorder::new(client.clone(), reporter), Arc::clone(&metrics));
    let lease = (SYSTEM, options.lease_name.as_str());
    let mut elector = Elector::new(client, lease, "dev".to_owned(), Clock::default());
    Box::pin(controllers::work(&options, Arc::new(context), Health::new(metrics), &mut elector)).await
}

/// What the chart sets in a cluster.
fn options(jobs: u16) -> Options {
    Options {
        namespace: SYSTEM.to_owned(),
        image: String::new(),
        image_pull_policy: String::new(),
        gateway_service: name::GATEWAY.to_owned(),
        gateway_reach: Reach::Dns,
        tls_secret: String::new(),
        api_service: String::new(),
        api_tls_secret: String::new(),
        api_url: String::new(),
        operator_account: OPERATOR.to_owned(),
        gateway_account: GATEWAY.to_owned(),
        job_controller_account: String::new(),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        stamps_names: false,
        leader_elect: false,
        lease_name: name::OPERATOR.to_owned(),
        concurrency: 16,
        evaluators: EVALUATORS,
        max_concurrent_per_namespace: usize::from(jobs),
        agent_dns: String::new(),
        agent_private: Vec::new(),
        attendant: String::new(),
        prompt: String::new(),
        traces: OtlpOptions::default(),
        sinks: SinkOptions::default(),
    }
}

/// The gateway, for ever. Its callers are processes of this machine, each with a token that is good for one attempt.
pub async fn serve(server: &Durable, listener: TcpListener, means: &Means) -> std::io::Result<()> {
    let places = usize::from(means.jobs).max(16);
    let bounds = Bounds {
        max_connections: 16 * places,
        max_connections_per_address: 16 * places,
        max_handshakes_per_address: places,
        max_inputs: places,
        max_outputs: places,
    };
    let client = server.client(GATEWAY, NAMESPACE);
    let calls = gateway::calls(client, &bounds, means.evaluator.clone(), Clock::default(), Traces::default());
    axum::serve(listener, calls).await
}

/// The garbage collector, for ever.
pub async fn collect(api: ApiServer) {
    let mut due = tokio::time::interval(SWEEP);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = 0;
    loop {
        due.tick().await;
        let version = api.with(|registry| registry.store().version());
        if version != seen {
            while api.with(Registry::collect).is_some() {
                tokio::task::yield_now().await;
            }
            seen = api.with(|registry| registry.store().version());
        }
    }
}
