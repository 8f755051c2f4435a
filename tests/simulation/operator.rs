//! An operator process: caches that lag, a queue, passes that go on request by request, and sudden ends. Acting is that of
//! `cluster/apply.rs` and `cluster/publish.rs`, trying again that of `controllers/context.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use lockstep::api::name::LABEL_STEP_RUN;
use lockstep::api::workflow::WorkflowStatus;
use lockstep::api::{Document, StepRun, Workflow};
use lockstep::cluster::merge_patch;
use lockstep::cluster::slots::Slots;
use lockstep::decide::content::Loaded;
use lockstep::decide::settled::Settled;
use lockstep::decide::status::differs_by_progress_only;
use lockstep::decide::step_run::Hold;
use lockstep::decide::{self, DeletableKind, Effect, Notice, Plan, seen};
use lockstep::definition::program::Program;
use serde_json::{Map, Value, json};

use super::server::{Kind, Object, Part, Propagation, Request};
use super::world::{Event, Who, World, watched};

pub type Key = (Kind, String);

const RESYNC: i64 = 300_000;
const PACE: i64 = 500;
const PATIENCE: i64 = 5_000;
const LONGEST_BACKOFF: i64 = 60_000;

/// What a pass ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Conflict,
    Stale,
    NotOurs,
    Api,
}

/// One watched kind, as far as this operator has heard.
#[derive(Default)]
pub struct Cache {
    pub objects: BTreeMap<String, Arc<Object>>,
    /// How much of the server's log it has taken in.
    cursor: usize,
    /// News are on their way.
    expecting: bool,
}

/// A pass that is under way.
struct Running {
    observed: Arc<Object>,
    effects: VecDeque<Effect>,
    status: Option<Value>,
    version: Option<String>,
    /// Documents that it made.
    made: BTreeMap<String, Arc<Object>>,
    notices: Vec<Notice>,
    requeue: i64,
}

#[derive(Default)]
pub struct Operator {
    pub alive: bool,
    /// Counts its lives: what an earlier one had going is void.
    pub epoch: u32,
    /// Milliseconds that its clock is ahead.
    pub ahead: i64,
    pub caches: BTreeMap<Kind, Cache>,
    written: BTreeMap<String, (u64, i64)>,
    pub definitions: BTreeMap<String, Arc<Program>>,
    pub texts: BTreeMap<String, Loaded>,
    pub bare: BTreeMap<u64, Arc<Document>>,
    pub settled: BTreeMap<String, Arc<Settled>>,
    pub slots: Option<Slots>,
    /// UIDs of the runs that are suspended, so that their StepRuns hear of it when that ends.
    suspended: BTreeSet<String>,
    due: BTreeMap<Key, i64>,
    running: BTreeMap<Key, Running>,
    dirty: BTreeSet<Key>,
    failures: BTreeMap<String, u32>,
    /// Names of Jobs that somebody else holds, and who.
    pub taken: BTreeMap<String, String>,
    paces: BTreeMap<String, i64>,
}

impl Operator {
    pub fn new(ahead: i64) -> Self {
        Self { ahead, ..Self::default() }
    }
}

impl World {
    // ---- life and watches

    /// A new life: everything is listed, everything is looked at.
    pub fn start_operator(&mut self, op: usize) {
        let old = &self.operators[op];
        let slots = Some(Slots::new(self.workload.slots));
        let fresh = Operator { alive: true, epoch: old.epoch + 1, ahead: old.ahead, slots, ..Operator::default() };
        self.operators[op] = fresh;
        self.tell(|| format!("operator {op} starts"));
        for kind in watched() {
            self.relist(op, kind);
        }
        self.restore_slots(op);
    }

    pub fn crash(&mut self, op: usize) {
        self.tell(|| format!("operator {op} crashes"));
        let old = &mut self.operators[op];
        *old = Operator { epoch: old.epoch + 1, ahead: old.ahead, ..Operator::default() };
        self.soon(500, 30_000, Event::Restart(op));
    }

    /// A list, perhaps by an API server that is behind: it shows what was true a while ago.
    fn relist(&mut self, op: usize, kind: Kind) {
        let length = self.server.log.len();
        let behind = if self.chance.mille(self.faults.gap) { self.chance.below(12) } else { 0 };
        let upto = length - usize::try_from(behind).unwrap_or_default().min(length);
        let mut objects = BTreeMap::new();
        for change in &self.server.log[..upto] {
            match &change.after {
                _ if change.object().kind != kind => {}
                Some(after) => drop(objects.insert(after.name.clone(), Arc::clone(after))),
                None => drop(objects.remove(&change.object().name)),
            }
        }
        let old = self.operators[op].caches.insert(kind, Cache { objects, cursor: upto, expecting: false });
        let touched: Vec<Arc<Object>> = {
            let now = &self.operators[op].caches[&kind].objects;
            let gone = old.iter().flat_map(|c| c.objects.values()).filter(|o| !now.contains_key(&o.name));
            gone.chain(now.values()).cloned().collect()
        };
        for object in touched {
            self.woken_by(op, &object);
        }
        self.announce(kind);
    }

    /// Something of that kind was written: every watch will bring it, in its own time.
    pub fn announce(&mut self, kind: Kind) {
        for op in 0..self.operators.len() {
            let lag = if self.chance.mille(self.faults.lag) { 15_000 } else { 25 };
            let operator = &mut self.operators[op];
            let epoch = operator.epoch;
            if let Some(cache) = operator.caches.get_mut(&kind).filter(|c| operator.alive && !c.expecting) {
                cache.expecting = true;
                self.soon(1, lag, Event::Deliver(op, epoch, kind));
            }
        }
    }

    pub fn deliver(&mut self, op: usize, epoch: u32, kind: Kind) {
        if self.operators[op].epoch != epoch {
            return;
        }
        if self.chance.mille(self.faults.gap) {
            self.tell(|| format!("operator {op} loses its watch of {kind:?}"));
            return self.relist(op, kind);
        }
        let some = if self.chance.mille(self.faults.lag) { self.chance.between(1, 4) } else { i64::MAX };
        let mut touched = Vec::new();
        let (mut taken, length) = (0, self.server.log.len());
        let cache = self.operators[op].caches.get_mut(&kind).expect("a watched kind");
        cache.expecting = false;
        while cache.cursor < length && taken < some {
            let change = &self.server.log[cache.cursor];
            cache.cursor += 1;
            if change.object().kind != kind {
                continue;
            }
            taken += 1;
            touched.push(Arc::clone(change.object()));
            match &change.after {
                Some(after) => drop(cache.objects.insert(after.name.clone(), Arc::clone(after))),
                None => drop(cache.objects.remove(&change.object().name)),
            }
        }
        if cache.cursor < length {
            self.announce(kind);
        }
        for object in touched {
            self.woken_by(op, &object);
        }
    }

    /// As `controllers/wakes.rs` has it.
    fn woken_by(&mut self, op: usize, object: &Object) {
        let mut keys: Vec<Key> = Vec::new();
        let concerns_steps = object.kind == Kind::Workflow && self.concerns_steps(op, object);
        if object.kind == Kind::StepRun {
            self.left(op, object);
        }
        let known = |kind: Kind| self.operators[op].caches.get(&kind).map(|c| &c.objects);
        let step_runs = || known(Kind::StepRun).into_iter().flat_map(|all| all.values());
        match object.kind {
            Kind::Workflow => {
                keys.push((Kind::Workflow, object.name.clone()));
                if concerns_steps {
                    let own = step_runs().filter(|s| s.is_controlled_by("Workflow", &object.uid));
                    let own = own.filter(|s| s.value["status"]["completedAt"].is_null());
                    keys.extend(own.map(|s| (Kind::StepRun, s.name.clone())));
                }
            }
            Kind::StepRun => {
                keys.push((Kind::StepRun, object.name.clone()));
                let run = object.value["spec"]["workflow"]["name"].as_str().unwrap_or_default();
                keys.push((Kind::Workflow, run.to_owned()));
            }
            Kind::Job | Kind::Pod => {
                let step_run = object.label(lockstep::api::name::LABEL_STEP_RUN);
                keys.extend(step_run.map(|s| (Kind::StepRun, s.to_owned())));
            }
            Kind::Agent => {
                let of_agent = step_runs().filter(|s| s.value["spec"]["agentId"] == object.name.as_str());
                keys.extend(of_agent.map(|s| (Kind::StepRun, s.name.clone())));
                keys.extend(self.expecting(op));
            }
            Kind::WorkflowTemplate => keys.extend(self.expecting(op)),
            Kind::Document => {
                keys.push((Kind::Document, object.name.clone()));
                let siblings = known(Kind::Document).into_iter().flat_map(|all| all.values());
                let same = siblings.filter(|d| d.value["spec"]["type"] == object.value["spec"]["type"]);
                keys.extend(same.map(|d| (Kind::Document, d.name.clone())));
                let run = object.value["spec"]["workflow"].as_str();
                keys.extend(run.map(|run| (Kind::Workflow, run.to_owned())));
                keys.extend(self.expecting(op));
            }
            _ => {}
        }
        for key in keys {
            self.wake(op, key, self.now);
        }
    }

    /// Whether a run says something new to its open StepRuns, or something that they must not miss.
    fn concerns_steps(&mut self, op: usize, run: &Object) -> bool {
        let there = self.cached(op, Kind::Workflow, &run.name).is_some_and(|w| w.uid == run.uid);
        let suspended = &mut self.operators[op].suspended;
        match decide::step_run::hold(&run.typed::<Workflow>()) {
            Hold::Suspended if there => suspended.insert(run.uid.clone()),
            Hold::No => suspended.remove(&run.uid) || !there,
            Hold::Suspended | Hold::Closing | Hold::Stopping => {
                suspended.remove(&run.uid);
                true
            }
        }
    }

    fn expecting(&self, op: usize) -> Vec<Key> {
        let waits = |o: &&Arc<Object>| {
            let status = &o.value["status"];
            matches!(status["phase"].as_str(), None | Some("Pending" | "WaitingForDocuments"))
                || status["pendingDocuments"].is_array()
        };
        let runs = self.operators[op].caches.get(&Kind::Workflow).into_iter().flat_map(|c| c.objects.values());
        runs.filter(waits).map(|o| (Kind::Workflow, o.name.clone())).collect()
    }

    // ---- the queue

    pub fn wake(&mut self, op: usize, key: Key, at: i64) {
        let operator = &mut self.operators[op];
        if operator.running.contains_key(&key) {
            operator.dirty.insert(key);
            return;
        }
        if operator.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        operator.due.insert(key.clone(), at);
        let epoch = operator.epoch;
        self.at(at, Event::Pass(op, epoch, key));
    }

    pub fn pass_due(&mut self, op: usize, epoch: u32, key: Key) {
        let operator = &mut self.operators[op];
        if operator.epoch != epoch || operator.due.get(&key).is_none_or(|due| *due > self.now) {
            return;
        }
        operator.due.remove(&key);
        let Some(cached) = operator.caches[&key.0].objects.get(&key.1).cloned() else { return };
        let planned = match key.0 {
            Kind::Workflow => self.plan_workflow(op, &cached),
            Kind::StepRun => self.plan_step_run(op, &cached),
            _ => Ok(self.plan_document(op, &cached)),
        };
        match planned {
            Err(trouble) => self.failed(op, key, trouble),
            Ok(running) => {
                self.judge_notices(&running.observed.uid.clone(), running.notices.iter().map(|n| n.reason));
                if running.effects.is_empty() && running.status.is_none() {
                    return self.finished(op, &key, &running);
                }
                self.operators[op].running.insert(key.clone(), running);
                self.next_step(op, key);
            }
        }
    }

    fn next_step(&mut self, op: usize, key: Key) {
        let epoch = self.operators[op].epoch;
        let stalled = self.chance.mille(self.faults.stall);
        let wait = if stalled { self.chance.between(1_000, 90_000) } else { self.chance.between(1, 8) };
        if stalled {
            self.tell(|| format!("operator {op} stands still at {} for {} s", key.1, wait / 1000));
        }
        self.at(self.now + wait, Event::Step(op, epoch, key));
    }

    fn failed(&mut self, op: usize, key: Key, trouble: Trouble) {
        let wait = match trouble {
            Trouble::Conflict => 500,
            Trouble::Stale => PATIENCE + 50,
            Trouble::NotOurs | Trouble::Api => {
                let count = self.operators[op].failures.entry(key.1.clone()).or_insert(0);
                *count += 1;
                (200_i64 << (*count).min(12)).min(LONGEST_BACKOFF)
            }
        };
        self.tell(|| format!("operator {op}: {} {}: {trouble:?}", format!("{:?}", key.0).to_lowercase(), key.1));
        self.again(op, key, wait);
    }

    fn finished(&mut self, op: usize, key: &Key, running: &Running) {
        self.operators[op].failures.remove(&key.1);
        self.again(op, key.clone(), running.requeue);
    }

    fn again(&mut self, op: usize, key: Key, wait: i64) {
        let at = if self.operators[op].dirty.remove(&key) { self.now } else { self.now + wait };
        self.wake(op, key, at);
    }

    // ---- deciding

    fn plan_workflow(&mut self, op: usize, cached: &Arc<Object>) -> Result<Running, Trouble> {
        let object = self.fresh(op, cached)?;
        let observed = self.observe_workflow(op, &object)?;
        let plan = self.decided(op, observed, &object.uid)?;
        self.judge_plan(op, &object, &plan.effects);
        let plan = self.paced(op, &object, plan);
        Ok(running(object, plan, |s| serde_json::to_value(s).expect("a status")))
    }

    fn plan_step_run(&mut self, op: usize, cached: &Arc<Object>) -> Result<Running, Trouble> {
        let object = self.fresh(op, cached)?;
        let mut observed = self.observe_step_run(op, &object)?;
        let plan = loop {
            match decide::step_run::decide(&observed) {
                Ok(plan) => break plan,
                Err(lack) => self.get_lack(op, &mut observed, lack)?,
            }
        };
        self.judge_plan(op, &object, &plan.effects);
        Ok(running(object, plan, |s| serde_json::to_value(s).expect("a status")))
    }

    fn judge_plan(&mut self, op: usize, about: &Arc<Object>, effects: &[Effect]) {
        let starts = |e: &Effect| matches!(e, Effect::CreateJob(_) | Effect::CreateStepRun(_));
        let identity = &about.value["spec"]["workflow"];
        let run = if about.kind == Kind::Workflow {
            Some(Arc::clone(about))
        } else {
            let cached = self.cached(op, Kind::Workflow, identity["name"].as_str().unwrap_or_default());
            cached.filter(|w| identity["uid"] == w.uid.as_str())
        };
        if let Some(run) = run.filter(|_| effects.iter().any(starts)) {
            self.judge_heard(about, &run);
        }
        let names: Vec<&str> = effects.iter().filter_map(made).collect();
        self.judge_making(about, names.into_iter());
    }

    fn plan_document(&mut self, op: usize, cached: &Arc<Object>) -> Running {
        let (document, siblings) = self.observe_document(op, cached);
        let number = decide::document::next_revision(&document, &siblings);
        let status = decide::document::standing(&document, &siblings, Some(number));
        let effects = status.map(|status| decide::document::set_status(&document, status));
        let plan = Plan::<()> { effects: effects.into_iter().collect(), ..Plan::default() };
        running(Arc::clone(cached), plan, |()| Value::Null)
    }

    /// The rule of `cluster/consistency.rs`: not older than our own last write.
    fn fresh(&mut self, op: usize, cached: &Arc<Object>) -> Result<Arc<Object>, Trouble> {
        let now = self.now;
        let written = &mut self.operators[op].written;
        match written.get(&cached.uid) {
            Some((version, since)) if cached.version < *version => {
                if now - since < PATIENCE {
                    return Err(Trouble::Stale);
                }
                self.ask(Who::Operator(op), &Request::Get(cached.kind, cached.name.clone())).map_err(|_| Trouble::Api)
            }
            _ => {
                written.remove(&cached.uid);
                Ok(Arc::clone(cached))
            }
        }
    }

    fn paced(&mut self, op: usize, object: &Arc<Object>, mut plan: Plan<WorkflowStatus>) -> Plan<WorkflowStatus> {
        let Some(status) = plan.status.as_ref() else { return plan };
        let workflow = object.typed::<Workflow>();
        let progress = workflow.status.as_ref().is_some_and(|before| differs_by_progress_only(before, status));
        let now = self.now;
        let paces = &mut self.operators[op].paces;
        match paces.get(&object.uid).map(|at| now - at).filter(|since| progress && *since < PACE) {
            Some(since) => {
                plan.status = None;
                plan.look_again(std::time::Duration::from_millis(u64::try_from(PACE - since).unwrap_or_default()));
            }
            None => drop(paces.insert(object.uid.clone(), now)),
        }
        plan
    }

    // ---- acting

    pub fn step(&mut self, op: usize, epoch: u32, key: &Key) {
        if self.operators[op].epoch != epoch {
            return;
        }
        if self.chance.mille(self.faults.crash) {
            return self.crash(op);
        }
        let Some(mut running) = self.operators[op].running.remove(key) else { return };
        let done = match running.effects.pop_front() {
            Some(effect) => self.carry_out(op, &effect, &mut running),
            None => match running.status.take() {
                Some(status) => self.publish(op, &running, &status),
                None => Ok(()),
            },
        };
        match done {
            Err(trouble) => self.failed(op, key.clone(), trouble),
            Ok(()) if running.effects.is_empty() && running.status.is_none() => self.finished(op, key, &running),
            Ok(()) => {
                self.operators[op].running.insert(key.clone(), running);
                self.next_step(op, key.clone());
            }
        }
    }

    /// A request that may be lost, or whose answer may be, or that may land when nobody waits for it any more.
    fn attempt(&mut self, op: usize, request: &Request) -> Result<Arc<Object>, Trouble> {
        let who = Who::Operator(op);
        let launches = matches!(request, Request::Create(Kind::Job, _));
        if self.chance.mille(self.faults.late) {
            self.judge.blind |= launches;
            self.tell(|| format!("operator {op} gives up a write that is still on its way"));
            self.soon(1_000, 120_000, Event::Late(who, Box::new(request.clone())));
            return Err(Trouble::Api);
        }
        let reply = self.ask(who, request);
        if self.chance.mille(self.faults.lost_reply) {
            self.judge.blind |= launches;
            self.tell(|| format!("operator {op} does not get the answer"));
            return Err(Trouble::Api);
        }
        reply.map_err(|refused| match refused.reason.as_str() {
            "Conflict" => Trouble::Conflict,
            "AlreadyExists" => Trouble::NotOurs,
            _ => Trouble::Api,
        })
    }

    fn carry_out(&mut self, op: usize, effect: &Effect, running: &mut Running) -> Result<(), Trouble> {
        match effect {
            Effect::CreateRevision(object) => self.create(op, Kind::ControllerRevision, json_of(object)).map(drop),
            Effect::CreateDocument(object) => {
                let there = self.create(op, Kind::Document, json_of(object))?;
                running.made.insert(there.name.clone(), there);
                Ok(())
            }
            Effect::CreateStepRun(object) => self.create(op, Kind::StepRun, json_of(object)).map(drop),
            Effect::CreateMemory(_) | Effect::UseMemory { .. } => unreachable!("no Memory is looked for"),
            Effect::CreateNetworkPolicy(_) => unreachable!("no Agent here limits its egress"),
            Effect::StartRun { .. } => unreachable!("no Trigger is looked at"),
            Effect::CreateJob(job) => {
                // What is in the pod is not simulated, and large.
                let mut job = job.job.clone();
                if let Some(spec) = &mut job.spec {
                    spec.template = k8s_openapi::api::core::v1::PodTemplateSpec::default();
                }
                let made = self.create(op, Kind::Job, json_of(&job));
                if let (Err(Trouble::NotOurs), Some(name)) = (&made, &job.metadata.name) {
                    self.operators[op].taken.insert(name.clone(), "somebody's".into());
                }
                // Known only now that it is made; no write of its own.
                let made = seen::job_ref(&made?.typed::<Job>());
                if let Some(status) = &mut running.status {
                    status["job"] = json_of(&made);
                }
                Ok(())
            }
            Effect::Delete { what, name, uid } => {
                let (kind, name, uid) = (kind_of(*what), name.clone(), Some(uid.clone()));
                let propagation = Propagation::Background;
                let gone = self.attempt(op, &Request::Delete { kind, name, uid, version: None, propagation });
                gone.map(drop).or_else(|t| if t == Trouble::Conflict || self.is_gone(effect) { Ok(()) } else { Err(t) })
            }
            Effect::SetDocumentStatus { name, seen, status } => {
                let (uid, version) = match (seen, running.made.get(name)) {
                    (Some(seen), _) => (seen.uid.clone(), seen.resource_version.clone()),
                    (None, Some(there)) if !decide::document::has_standing(&there.typed::<Document>()) => {
                        (there.uid.clone(), there.version.to_string())
                    }
                    (None, _) => return Ok(()),
                };
                let change = json!({"metadata": {"uid": uid, "resourceVersion": version}, "status": status});
                let done = self.attempt(op, &Request::Merge(Kind::Document, Part::Status, name.clone(), change));
                done.map(drop).map_err(|t| if self.is_gone(effect) { Trouble::Stale } else { t })
            }
            Effect::EmptyMailbox { step_run, resource_version, keys } => {
                let nulls: Map<String, Value> = keys.iter().map(|k| ((*k).to_owned(), Value::Null)).collect();
                let change = json!({"metadata": {"resourceVersion": resource_version, "annotations": nulls}});
                let done = self.attempt(op, &Request::Merge(Kind::StepRun, Part::Main, step_run.clone(), change))?;
                self.wrote(op, &done);
                running.version = Some(done.version.to_string());
                Ok(())
            }
        }
    }

    /// NotFound counts as done where the object was to go, or has nothing to be told any more.
    fn is_gone(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Delete { what, name, .. } => self.server.find(kind_of(*what), name).is_none(),
            Effect::SetDocumentStatus { name, .. } => self.server.find(Kind::Document, name).is_none(),
            _ => false,
        }
    }

    fn create(&mut self, op: usize, kind: Kind, value: Value) -> Result<Arc<Object>, Trouble> {
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let wanted = Object::controller_of(&value);
        let label = value["metadata"]["labels"][LABEL_STEP_RUN].as_str().map(str::to_owned);
        match self.attempt(op, &Request::Create(kind, value)) {
            Ok(made) => Ok(made),
            Err(Trouble::NotOurs) => {
                let existing = self.ask(Who::Operator(op), &Request::Get(kind, name)).map_err(|_| Trouble::Api)?;
                let same = existing.controller.as_ref().map(|c| &c.1) == wanted.as_ref()
                    && existing.label(LABEL_STEP_RUN) == label.as_deref();
                if same { Ok(existing) } else { Err(Trouble::NotOurs) }
            }
            Err(other) => Err(other),
        }
    }

    fn publish(&mut self, op: usize, running: &Running, status: &Value) -> Result<(), Trouble> {
        let seen = &running.observed;
        let version = running.version.clone().unwrap_or_else(|| seen.version.to_string());
        // As this version reads it.
        let before = match seen.kind {
            Kind::Workflow => json_of(&seen.typed::<Workflow>().status),
            _ => json_of(&seen.typed::<StepRun>().status),
        };
        let change = json!({"metadata": {"uid": seen.uid, "resourceVersion": version},
            "status": merge_patch::between(&before, status)});
        let written = self.attempt(op, &Request::Merge(seen.kind, Part::Status, seen.name.clone(), change))?;
        self.wrote(op, &written);
        Ok(())
    }

    fn wrote(&mut self, op: usize, object: &Arc<Object>) {
        let now = self.now;
        self.operators[op].written.insert(object.uid.clone(), (object.version, now));
    }
}

/// Name of the StepRun that an effect makes.
fn made(effect: &Effect) -> Option<&str> {
    match effect {
        Effect::CreateStepRun(made) => made.metadata.name.as_deref(),
        _ => None,
    }
}

fn kind_of(what: DeletableKind) -> Kind {
    match what {
        DeletableKind::Job => Kind::Job,
        DeletableKind::StepRun => Kind::StepRun,
        DeletableKind::Document => Kind::Document,
        DeletableKind::Memory => unreachable!("no Memory is looked for"),
        DeletableKind::Workflow => Kind::Workflow,
        DeletableKind::ControllerRevision => Kind::ControllerRevision,
    }
}

fn json_of(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).expect("it serializes")
}

fn running<S>(observed: Arc<Object>, plan: Plan<S>, read: impl Fn(&S) -> Value) -> Running {
    let requeue = plan.requeue.map_or(RESYNC, |d| i64::try_from(d.as_millis()).unwrap_or(RESYNC).min(RESYNC));
    Running {
        observed,
        status: plan.status.as_ref().map(read),
        effects: plan.effects.into(),
        version: None,
        made: BTreeMap::new(),
        notices: plan.notices,
        requeue,
    }
}
