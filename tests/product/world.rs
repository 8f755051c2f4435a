//! Time, what happens next, and everybody but the product: who asks the API server in memory directly, what is admitted,
//! and what the judge sees of every write.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::chance::Chance;
use super::door::About;
use super::gateway::Gateway;
use super::judge::Judge;
use super::judge::course::forbids;
use super::kubelet::Process;
use super::operator::Operator;
use super::people::{self, People};
use super::plans::{self, Plan};
use super::policies::{self, Standing};
use super::server::{Event as Change, KINDS, Kind, Object, Reply, Request, Server};
use super::talk::Hearsay;
use super::workload::Workload;

pub type Shared = Arc<Mutex<World>>;

/// Who asks the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Operator(usize),
    Gateway,
    JobController,
    Kubelet,
    Collector,
    Person,
    /// Whom no policy holds.
    Admin,
}

/// What happens at some time.
#[derive(Clone, Debug)]
pub enum Event {
    Restart(usize),
    Job(String),
    Pod(String),
    Collect,
    Person,
    Mischief,
}

/// How likely what goes wrong is, in a thousand.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub crash: u64,
    pub lost_reply: u64,
    pub late: u64,
    pub stall: u64,
    pub gap: u64,
    pub lag: u64,
    pub death: u64,
    pub duplicate: u64,
    pub slow_job: u64,
    pub stuck_pod: u64,
    pub node_loss: u64,
    /// A second between two acts of mischief, on average; 0: none.
    pub mischief: i64,
    pub jump: u64,
}

impl Faults {
    /// Some of all faults, other ones for each seed: faults that always come together hide each other.
    pub fn some(chance: &mut Chance) -> Self {
        let mut of = |likely: u64, mille: i64| {
            if chance.percent(likely) { u64::try_from(chance.between(1, mille)).unwrap_or_default() } else { 0 }
        };
        Self {
            crash: of(45, 40),
            lost_reply: of(45, 60),
            late: of(40, 40),
            stall: of(40, 40),
            gap: of(40, 60),
            lag: of(50, 150),
            death: of(45, 150),
            duplicate: of(30, 200),
            slow_job: of(35, 200),
            stuck_pod: of(25, 100),
            node_loss: of(25, 100),
            mischief: i64::try_from(of(45, 60)).unwrap_or_default(),
            jump: of(20, 10),
        }
    }
}

/// Whether the admission policies stand.
#[derive(Default)]
pub struct Policies {
    pub standing: bool,
    of_server: Standing,
}

pub struct World {
    /// Milliseconds since the beginning.
    pub now: i64,
    pub began: Instant,
    pub chance: Chance,
    queue: BTreeMap<(i64, u64), Event>,
    serial: u64,
    /// Something comes sooner than what was waited for.
    pub sooner: Arc<Notify>,
    pub server: Server,
    heard: usize,
    writes: usize,
    pub operators: Vec<Operator>,
    pub leader_elect: bool,
    pub gateway: Gateway,
    pub processes: BTreeMap<String, Process>,
    /// UIDs of Jobs that have had their pod.
    pub podded: BTreeMap<String, u32>,
    pub faults: Faults,
    pub policies: Policies,
    pub people: People,
    pub judge: Judge,
    /// What was said to agents and by them.
    pub heard_of: Hearsay,
    pub workload: Workload,
    /// Plans of passes that are under way, and when they were made.
    plans: HashMap<tokio::task::Id, (Plan, i64)>,
    /// How many were heard. None means that nobody listens, and then much of what is judged is not.
    planned: usize,
    pub story: Option<Vec<String>>,
    pub violation: Option<String>,
    own: Weak<Mutex<World>>,
}

/// The world as it is now.
pub fn enter(shared: &Shared) -> MutexGuard<'_, World> {
    let mut world = shared.lock().unwrap_or_else(PoisonError::into_inner);
    world.tick();
    world
}

/// Since the beginning.
pub fn millis(began: Instant) -> i64 {
    i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX)
}

impl World {
    pub fn open(chance: Chance, workload: Workload, story: Option<Vec<String>>) -> Shared {
        let policies = Policies::default();
        let server = Server::with(Box::new(policies.of_server.clone()));
        let began = Instant::now();
        Arc::new_cyclic(|own| {
            Mutex::new(Self {
                now: 0,
                began,
                chance,
                queue: BTreeMap::new(),
                serial: 0,
                sooner: Arc::default(),
                server,
                heard: 0,
                writes: 0,
                operators: Vec::new(),
                leader_elect: false,
                gateway: Gateway::default(),
                processes: BTreeMap::new(),
                podded: BTreeMap::new(),
                faults: Faults::default(),
                policies,
                people: People::default(),
                judge: Judge::default(),
                heard_of: Hearsay::default(),
                workload,
                plans: HashMap::new(),
                planned: 0,
                story,
                violation: None,
                own: Weak::clone(own),
            })
        })
    }

    pub fn shared(&self) -> Shared {
        self.own.upgrade().expect("whoever asks holds it")
    }

    fn tick(&mut self) {
        self.now = millis(self.began);
        self.server.set_clock(time(self.now).0);
        for plan in plans::heard() {
            self.planned(plan);
        }
    }

    /// As somebody's clock shows it who is that many milliseconds ahead.
    pub fn time(&self, ahead: i64) -> Time {
        time(self.now + ahead)
    }

    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let at = self.now;
            story.push(format!("{:>6}.{:03}  {}", at / 1000, at % 1000, line()));
        }
    }

    pub fn violated(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.tell(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
        self.sooner.notify_one();
    }

    // ---- what comes next

    pub fn at(&mut self, when: i64, event: Event) {
        self.serial += 1;
        let key = (when.max(self.now), self.serial);
        let is_first = self.queue.first_key_value().is_none_or(|(first, _)| key < *first);
        self.queue.insert(key, event);
        if is_first {
            self.sooner.notify_one();
        }
    }

    pub fn soon(&mut self, least: i64, most: i64, event: Event) {
        let wait = self.chance.between(least, most);
        self.at(self.now + wait, event);
    }

    /// When the next event is due.
    pub fn next_due(&self) -> i64 {
        self.queue.first_key_value().map_or(i64::MAX, |((when, _), _)| *when)
    }

    /// Lets the next event happen, if one is due.
    pub fn proceed(&mut self) -> bool {
        if self.next_due() > self.now {
            return false;
        }
        let Some((_, event)) = self.queue.pop_first() else { return false };
        match event {
            Event::Restart(op) => self.restart(op),
            Event::Job(name) => self.job_controller(&name),
            Event::Pod(uid) => self.kubelet(&uid),
            Event::Collect => self.collector(),
            Event::Person => self.person(),
            Event::Mischief => self.mischief(),
        }
        true
    }

    /// By how many milliseconds the clock jumps while all stand still.
    pub fn jump(&mut self) -> Option<u64> {
        if !self.chance.mille(self.faults.jump) {
            return None;
        }
        let by = self.chance.between(1_000, 90_000);
        self.tell(|| format!("the clock jumps by {} s", by / 1000));
        u64::try_from(by).ok()
    }

    // ---- requests of everybody but the product

    pub fn ask(&mut self, who: Who, request: &Request) -> Reply {
        let reply = match people::admitted(self, who, request) {
            Ok(()) => self.server.handle(request),
            Err(refused) => Err(refused),
        };
        if self.story.is_some() && !matches!(request, Request::Get(..)) {
            let line = spoken(who, request, &reply);
            self.tell(|| line);
        }
        self.spread(who);
        reply
    }

    /// What was written is judged, and others act upon it.
    pub fn spread(&mut self, who: Who) {
        self.server.catch_up();
        while self.heard < self.server.log.len() {
            let change = self.server.log[self.heard].clone();
            self.heard += 1;
            if KINDS.contains(&change.object().kind) {
                self.writes += 1;
                self.judge_change(who, &change);
                self.judge_talk(&change);
                self.dispatch(&change);
            }
        }
    }

    fn dispatch(&mut self, change: &Change) {
        let object = Arc::clone(change.object());
        match object.kind {
            Kind::Job if change.after.is_some() => {
                let wait = if self.chance.mille(self.faults.slow_job) { 20_000 } else { 150 };
                self.soon(5, wait, Event::Job(object.name.clone()));
            }
            Kind::Pod => self.pod_changed(change),
            _ => {}
        }
        let stray = change.before.is_none() && self.server.is_stray(&object);
        if stray || change.after.as_ref().is_none_or(|o| o.is_deleting()) {
            self.soon(5, 2_000, Event::Collect);
        }
    }

    fn collector(&mut self) {
        while let Some(what) = self.server.collect() {
            self.tell(|| what);
            self.spread(Who::Collector);
        }
    }

    /// Writes so far to what runs are made of.
    pub fn writes(&self) -> usize {
        self.writes
    }

    pub fn all(&self, kind: Kind) -> Vec<Arc<Object>> {
        self.server.all(kind).cloned().collect()
    }

    /// The object as it is, if it is the one with that UID.
    pub fn live(&self, kind: Kind, name: &str, uid: &str) -> Option<Arc<Object>> {
        self.server.find(kind, name).filter(|o| o.uid == uid).cloned()
    }

    pub fn set_policies(&mut self, standing: bool) {
        self.policies.standing = standing;
        self.policies.of_server.0.store(standing, std::sync::atomic::Ordering::Relaxed);
        self.server.api.with(|registry| policies::place(registry, standing));
        self.spread(Who::Admin);
    }

    // ---- what passes say that they will do

    /// Whoever judges hears of plans.
    pub fn judge_listening(&mut self) {
        if self.planned == 0 {
            self.violated("no plan was heard of in this world");
        }
    }

    fn planned(&mut self, plan: Plan) {
        self.planned += 1;
        if !plan.effects.is_empty() {
            self.tell(|| format!("plan for {} {}: {}", plan.kind, plan.name, plan.effects.join(", ")));
        }
        self.judge_notices(&plan.uid, plan.notices.iter().map(String::as_str));
        if let Some(about) = self.version(plan.version).filter(|o| o.uid == plan.uid) {
            self.judge_making(&about, plan.targets("create_steprun"));
            if plan.starts() && about.kind == Kind::Workflow {
                self.judge_heard(&about, &about.clone());
            }
        }
        if let Some(task) = plan.task.filter(|_| plan.starts()) {
            self.plans.insert(task, (plan, self.now));
        }
    }

    /// The object that a commit made.
    fn version(&self, version: u64) -> Option<Arc<Object>> {
        let index = usize::try_from(version.checked_sub(1)?).ok()?;
        self.server.log.get(index)?.after.clone()
    }

    /// A pass that had heard that nothing may start starts nothing: here the passes of StepRuns, which know their run from
    /// the cache.
    pub fn judge_request(&mut self, op: usize, about: &About) {
        if !(about.creates && about.kind == Some(Kind::Job)) {
            return;
        }
        let Some((plan, at)) = tokio::task::try_id().and_then(|task| self.plans.remove(&task)) else { return };
        let Some(object) = self.version(plan.version).filter(|o| o.kind == Kind::StepRun) else { return };
        let identity = &object.value["spec"]["workflow"];
        let from = self.operators[op].heard_before(Kind::Workflow, at - PASS);
        let known = self.known(op, (Kind::Workflow, identity["name"].as_str().unwrap_or_default()), from);
        let own = |o: &&Arc<Object>| identity["uid"] == o.uid.as_str();
        // Only where all that it can have seen forbids it.
        let forbidding = known.iter().filter(own).filter(|o| forbids(&o.value).is_some()).count();
        if forbidding > 0 && forbidding == known.len() {
            self.judge_heard(&object, &known[0]);
        }
    }
}

/// Milliseconds between what a pass sees first and its plan: its reads take a few each.
const PASS: i64 = 100;

pub fn time(millis: i64) -> Time {
    let begin: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    Time(begin + SignedDuration::from_millis(millis))
}

fn spoken(who: Who, request: &Request, reply: &Reply) -> String {
    let what = match request {
        Request::Create(kind, value) => {
            format!("creates {kind:?} {}", value["metadata"]["name"].as_str().unwrap_or_default())
        }
        Request::Get(kind, name) => format!("gets {kind:?} {name}"),
        Request::Merge(kind, part, name, change) | Request::Json(kind, part, name, change) => {
            format!("patches {kind:?} {part:?} {name} {change}")
        }
        Request::Delete { kind, name, .. } => format!("deletes {kind:?} {name}"),
    };
    let answer = match reply {
        Ok(object) => format!("version {}", object.version),
        Err(refused) => format!("{} {}: {}", refused.code, refused.reason, refused.message),
    };
    format!("{who:?} {what} -> {answer}")
}

/// The fields of a status that tell a story.
pub fn brief(status: &Value) -> String {
    let keys =
        ["phase", "attempt", "round", "completedAt", "counts", "result", "waitingFor", "gate", "error", "notBefore"];
    let shown = keys.iter().filter(|key| !status[**key].is_null());
    let mut shown: Vec<String> = shown.map(|key| format!("{key}={}", cut(&status[*key].to_string()))).collect();
    for condition in status["conditions"].as_array().into_iter().flatten().filter(|c| c["type"] == "Failing") {
        shown.push(format!("failing={}", condition["message"]));
    }
    for step in status["steps"].as_array().into_iter().flatten() {
        let text = |field: &str| step[field].as_str().unwrap_or_default();
        shown.push(format!("{}:{}", text("path"), text("phase")));
    }
    shown.join(" ")
}

fn cut(text: &str) -> &str {
    &text[..text.char_indices().nth(160).map_or(text.len(), |(at, _)| at)]
}
