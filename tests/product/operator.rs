//! An operator's lives: each is the real one, as one future, and ends when that is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use kube::runtime::events::{Recorder, Reporter};
use lockstep::cluster::clock::Clock;
use lockstep::cluster::consistency::Consistency;
use lockstep::cluster::contents::{Contents, SettledRuns};
use lockstep::cluster::evaluator::Evaluator;
use lockstep::cluster::guard::{Accounts, JOB_CONTROLLER, PolicyGuard};
use lockstep::cluster::lease::Elector;
use lockstep::cluster::observe::Observer;
use lockstep::cluster::pod_events::PodEvents;
use lockstep::cluster::refusals::Refusals;
use lockstep::cluster::revisions::Revisions;
use lockstep::cluster::slots::Slots;
use lockstep::controllers::context::Context;
use lockstep::controllers::{self, Options, Reach};
use lockstep::decide::build::Installation;
use lockstep::telemetry::{Health, Metrics};
use tokio::task::AbortHandle;

use super::door::{Caller, Door};
use super::policies;
use super::server::{Kind, Object};
use super::world::{Event, World, enter, millis, time};

#[derive(Default)]
pub struct Operator {
    pub alive: bool,
    /// Counts its lives: what an earlier one had going is void.
    pub epoch: u32,
    /// Milliseconds that its clock is ahead.
    pub ahead: i64,
    /// Until then it stands still.
    pub stalled_until: i64,
    /// When its caches heard of which version, by kind.
    heard: BTreeMap<Kind, Vec<(i64, u64)>>,
    future: Option<AbortHandle>,
}

impl Operator {
    pub fn new(ahead: i64) -> Self {
        Self { ahead, ..Self::default() }
    }

    pub fn hears(&mut self, kind: Kind, now: i64, version: u64) {
        self.heard.entry(kind).or_default().push((now, version));
    }

    /// The last version of a kind that it had heard of before that time.
    pub fn heard_before(&self, kind: Kind, at: i64) -> u64 {
        let all = self.heard.get(&kind).into_iter().flatten();
        all.take_while(|(when, _)| *when < at).last().map_or(0, |(_, version)| *version)
    }

    pub fn heard(&self, kind: Kind) -> u64 {
        self.heard_before(kind, i64::MAX)
    }
}

impl World {
    pub fn start_operator(&mut self, op: usize) {
        let (shared, slots, leader_elect) = (self.shared(), self.workload.slots, self.leader_elect);
        let operator = &mut self.operators[op];
        operator.epoch += 1;
        operator.alive = true;
        operator.heard.clear();
        let (epoch, ahead) = (operator.epoch, operator.ahead);
        self.tell(|| format!("operator {op} starts"));
        let door =
            Door::with(&shared, self.began, self.server.api.as_user(policies::OPERATOR), Caller::Operator(op, epoch));
        let weak = Arc::downgrade(&shared);
        let life = tokio::spawn(async move {
            let why = Box::pin(live(door, (op, epoch), ahead, (slots, leader_elect))).await;
            ended(&weak, (op, epoch), &why);
        });
        self.operators[op].future = Some(life.abort_handle());
    }

    pub fn crash(&mut self, op: usize) {
        self.tell(|| format!("operator {op} crashes"));
        self.end_operator(op);
        self.soon(500, 30_000, Event::Restart(op));
    }

    fn end_operator(&mut self, op: usize) {
        let operator = &mut self.operators[op];
        operator.alive = false;
        operator.epoch += 1;
        operator.stalled_until = 0;
        if let Some(future) = operator.future.take() {
            future.abort();
        }
    }

    pub fn restart(&mut self, op: usize) {
        if !self.operators[op].alive {
            self.start_operator(op);
        }
    }

    /// Whether the limits are exact here: one operator that knows of every Job it has asked for.
    pub fn counts_slots(&self) -> bool {
        self.operators.len() == 1 && self.operators[0].epoch == 1 && !self.judge.blind
    }

    /// What an operator's cache had of an object, from that version of its kind on up to now.
    pub fn known(&self, op: usize, (kind, name): (Kind, &str), from: u64) -> Vec<Arc<Object>> {
        let upto = self.operators[op].heard(kind).max(from);
        let index = |version: u64| usize::try_from(version).unwrap_or_default();
        let is_it = |o: &&Arc<Object>| o.kind == kind && o.name == name;
        let log = &self.server.log;
        let first = log[..index(from)].iter().rev().find(|c| is_it(&c.object())).and_then(|c| c.after.clone());
        let then = log[index(from)..index(upto)].iter().filter_map(|c| c.after.as_ref()).filter(is_it).cloned();
        first.into_iter().chain(then).collect()
    }
}

/// It ended by itself, as one does that loses its lease: Kubernetes starts it again.
fn ended(shared: &Weak<Mutex<World>>, (op, epoch): (usize, u32), why: &str) {
    let Some(shared) = shared.upgrade() else { return };
    let mut world = enter(&shared);
    if world.operators[op].epoch == epoch {
        world.tell(|| format!("operator {op} ends: {why}"));
        if !why.contains("lease") {
            world.violated(format!("operator {op} ended by itself: {why}"));
        }
        world.end_operator(op);
        world.soon(500, 5_000, Event::Restart(op));
    }
}

async fn live(door: Door, (op, epoch): (usize, u32), ahead: i64, (slots, leader_elect): (usize, bool)) -> String {
    let began = door.began();
    let client = kube::Client::new(door, super::server::NAMESPACE);
    let clock = Clock::of(move || time(millis(began) + ahead).0);
    let accounts = Accounts {
        operator: policies::OPERATOR.to_owned(),
        gateway: policies::GATEWAY.to_owned(),
        job_controller: JOB_CONTROLLER.to_owned(),
    };
    let observer = Observer {
        client: client.clone(),
        clock: clock.clone(),
        world: lockstep::cluster::world::World::default(),
        consistency: Consistency::default(),
        contents: Contents::default(),
        settled: SettledRuns::default(),
        guard: Box::new(PolicyGuard::new(&accounts).expect("the policies parse")),
        installation: Arc::new(Installation::default()),
        evaluator: Evaluator::here(),
        slots: Slots::new(slots),
        refusals: Refusals::default(),
        taken: Refusals::default(),
        pod_events: PodEvents::default(),
        revisions: Revisions::default(),
    };
    let reporter = Reporter { controller: "lockstep-operator".to_owned(), instance: Some(format!("operator-{op}")) };
    let metrics = Arc::new(Metrics::default());
    let context = Arc::new(Context::new(observer, Recorder::new(client.clone(), reporter), Arc::clone(&metrics)));
    let lease = ("lockstep-system", "lockstep-operator");
    let mut elector = Elector::new(client, lease, format!("operator-{op}_{epoch}"), clock);
    Box::pin(controllers::work(&options(leader_elect), context, Health::new(metrics), &mut elector)).await
}

fn options(leader_elect: bool) -> Options {
    Options {
        namespace: "lockstep-system".to_owned(),
        image: "lockstep".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        gateway_service: "lockstep-gateway".to_owned(),
        gateway_reach: Reach::Dns,
        tls_secret: "lockstep-gateway-tls".to_owned(),
        api_service: String::new(),
        api_tls_secret: "lockstep-api-tls".to_owned(),
        api_url: "https://lockstep-api.lockstep-system.svc".to_owned(),
        operator_account: policies::OPERATOR.to_owned(),
        gateway_account: policies::GATEWAY.to_owned(),
        job_controller_account: JOB_CONTROLLER.to_owned(),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        stamps_names: false,
        leader_elect,
        lease_name: "lockstep-operator".to_owned(),
        concurrency: 16,
        evaluators: 2,
        max_concurrent_per_namespace: 0,
        agent_dns: String::new(),
        agent_private: Vec::new(),
        attendant: String::new(),
        prompt: String::new(),
        traces: lockstep::telemetry::traces::OtlpOptions::default(),
        sinks: lockstep::cluster::sinks::SinkOptions::default(),
    }
}
