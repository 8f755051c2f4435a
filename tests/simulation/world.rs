//! Time, the queue of what comes next, and the one door to the API server: who asks, what is admitted, who hears of
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::chance::Chance;
use super::judge::Judge;
use super::kubelet::Process;
use super::operator::{Key, Operator};
use super::people::{self, People};
use super::server::{Event as Change, KINDS, Kind, Object, Reply, Request, Server};
use super::workload::Workload;

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
    /// A watch brings news to an operator.
    Deliver(usize, u32, Kind),
    Pass(usize, u32, Key),
    /// The next request of a pass that is under way.
    Step(usize, u32, Key),
    Restart(usize),
    /// A write that was on its way for long lands.
    Late(Who, Box<Request>),
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

/// Whether the admission policies stand, and their stamp.
#[derive(Clone, Debug)]
pub struct Policies {
    pub standing: bool,
    pub serial: u32,
}

pub struct World {
    /// Milliseconds since the beginning.
    pub now: i64,
    pub chance: Chance,
    queue: BTreeMap<(i64, u64), Event>,
    serial: u64,
    pub server: Server,
    heard: usize,
    pub operators: Vec<Operator>,
    pub processes: BTreeMap<String, Process>,
    /// UIDs of Jobs that have had their pod.
    pub podded: BTreeMap<String, u32>,
    pub faults: Faults,
    pub policies: Policies,
    pub people: People,
    pub judge: Judge,
    pub workload: Workload,
    pub story: Option<Vec<String>>,
    pub violation: Option<String>,
}

impl World {
    pub fn new(chance: Chance, workload: Workload, story: Option<Vec<String>>) -> Self {
        let mut world = Self {
            now: 0,
            chance,
            queue: BTreeMap::new(),
            serial: 0,
            server: Server::default(),
            heard: 0,
            operators: Vec::new(),
            processes: BTreeMap::new(),
            podded: BTreeMap::new(),
            faults: Faults::default(),
            policies: Policies { standing: true, serial: 1 },
            people: People::default(),
            judge: Judge::default(),
            workload,
            story,
            violation: None,
        };
        world.set_clock(0);
        world
    }

    fn set_clock(&mut self, now: i64) {
        self.server.set_clock(time(now).0);
        self.now = now;
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
    }

    pub fn at(&mut self, when: i64, event: Event) {
        self.serial += 1;
        self.queue.insert((when.max(self.now), self.serial), event);
    }

    pub fn soon(&mut self, least: i64, most: i64, event: Event) {
        let wait = self.chance.between(least, most);
        self.at(self.now + wait, event);
    }

    /// Everything that is due up to then; stops at a violation.
    pub fn run_until(&mut self, end: i64) {
        while self.violation.is_none() {
            let Some((&(when, serial), _)) = self.queue.first_key_value() else { break };
            if when > end {
                break;
            }
            let event = self.queue.remove(&(when, serial)).expect("it is there");
            self.set_clock(when.max(self.now));
            if self.chance.mille(self.faults.jump) {
                // All stood still, the clock did not.
                let by = self.chance.between(1_000, 90_000);
                self.set_clock(self.now + by);
                self.tell(|| format!("the clock jumps by {} s", by / 1000));
            }
            self.happen(event);
        }
        self.set_clock(end.max(self.now));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver(op, epoch, kind) => self.deliver(op, epoch, kind),
            Event::Pass(op, epoch, key) => self.pass_due(op, epoch, key),
            Event::Step(op, epoch, key) => self.step(op, epoch, &key),
            Event::Restart(op) => self.start_operator(op),
            Event::Late(who, request) => {
                self.tell(|| format!("a write of {who:?} lands late"));
                let _ = self.ask(who, &request);
            }
            Event::Job(name) => self.job_controller(&name),
            Event::Pod(uid) => self.kubelet(&uid),
            Event::Collect => self.collector(),
            Event::Person => self.person(),
            Event::Mischief => self.mischief(),
        }
    }

    /// The door: admission, then the server, then everybody hears of it.
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

    /// What was written is judged, and reaches those who watch.
    pub fn spread(&mut self, who: Who) {
        while self.heard < self.server.log.len() {
            let change = self.server.log[self.heard].clone();
            self.heard += 1;
            self.judge_change(who, &change);
            self.dispatch(&change);
        }
    }

    fn dispatch(&mut self, change: &Change) {
        let object = Arc::clone(change.object());
        self.announce(object.kind);
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

    /// Writes so far.
    pub fn writes(&self) -> usize {
        self.server.log.len()
    }

    pub fn all(&self, kind: Kind) -> Vec<Arc<Object>> {
        self.server.all(kind).cloned().collect()
    }

    /// The StepRun as it is, if it is the one with that UID.
    pub fn live(&self, kind: Kind, name: &str, uid: &str) -> Option<Arc<Object>> {
        self.server.find(kind, name).filter(|o| o.uid == uid).cloned()
    }

    pub fn set_policies(&mut self, standing: bool) {
        self.policies.standing = standing;
        self.policies.serial += u32::from(standing);
    }

    pub fn stamp(&self) -> String {
        format!("policies-{}", self.policies.serial)
    }
}

pub fn time(millis: i64) -> Time {
    let begin: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    Time(begin + SignedDuration::from_millis(millis))
}

/// Kinds that operators watch.
pub fn watched() -> impl Iterator<Item = Kind> {
    KINDS.into_iter().filter(|k| !matches!(k, Kind::ControllerRevision | Kind::ConfigMap))
}

fn spoken(who: Who, request: &Request, reply: &Reply) -> String {
    let what = match request {
        Request::Create(kind, value) => {
            format!("creates {kind:?} {}", value["metadata"]["name"].as_str().unwrap_or_default())
        }
        Request::Get(kind, name) => format!("gets {kind:?} {name}"),
        Request::Merge(kind, part, name, change) => {
            let status = &change["status"];
            let shown = if status.is_null() { change.to_string() } else { brief(status) };
            format!("patches {kind:?} {part:?} {name} {shown}")
        }
        Request::Json(kind, part, name, operations) => {
            format!(
                "patches {kind:?} {part:?} {name} {}",
                operations.as_array().and_then(|o| o.last()).unwrap_or(operations)
            )
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
fn brief(status: &serde_json::Value) -> String {
    let keys =
        ["phase", "attempt", "round", "completedAt", "counts", "result", "waitingFor", "gate", "error", "notBefore"];
    let mut shown: Vec<String> = Vec::new();
    for key in keys {
        if !status[key].is_null() {
            let mut text = status[key].to_string();
            text.truncate(text.char_indices().nth(160).map_or(text.len(), |(at, _)| at));
            shown.push(format!("{key}={text}"));
        }
    }
    for condition in status["conditions"].as_array().into_iter().flatten().filter(|c| c["type"] == "Failing") {
        shown.push(format!("failing={}", condition["message"]));
    }
    for step in status["steps"].as_array().into_iter().flatten() {
        shown.push(format!(
            "{}:{}",
            step["path"].as_str().unwrap_or_default(),
            step["phase"].as_str().unwrap_or_default()
        ));
    }
    shown.join(" ")
}
