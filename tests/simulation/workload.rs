//! What is run: agents, a definition (`maker`), documents, and how each execution behaves, all from the seed.

use std::collections::BTreeMap;

use lockstep::api::step_run::ReportClass;
use lockstep::api::{StepRun, name};
use serde_json::{Map, Value, json};

use super::chance::Chance;
use super::judge::upstream;
use super::kubelet::{Outcome, Process};
use super::maker::{self, Maker};
use super::server::{Kind, Object};
use super::world::World;

#[derive(Clone, Debug, Default)]
pub struct Workload {
    pub agents: Vec<(String, Value)>,
    pub runs: Vec<String>,
    pub spec: Value,
    pub template: Option<Value>,
    /// Types of documents that people have to put.
    pub wanted: Vec<String>,
    /// Whether the end state is the same however often things go wrong.
    pub settled: bool,
    /// Attempts that the namespace takes at once; 0: no limit.
    pub slots: usize,
    /// Whether a run that has ended is followed by one that goes on from it.
    pub retries: bool,
    /// Whether the runs are of those that go, too, when their time to live is over.
    pub throwaway: bool,
    /// Whether agents say what they use, wait for people in their pods and have actions approved.
    pub talks: bool,
    salt: u64,
    /// By StepRun UID: where it stands in its run.
    places: BTreeMap<String, String>,
    /// By place: reports that said failure.
    failures: BTreeMap<String, u32>,
}

/// What an agent asks, all in one call.
pub const QUESTIONS: [&str; 2] = ["how much?", "how many?"];

/// How a command behaves at one place, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Good,
    /// Fails that often, then is good.
    Flaky(u32, ReportClass),
    /// Asks people, and is good once they have answered.
    Asks,
    Unrecoverable,
    TooLarge,
}

impl Workload {
    pub fn generate(chance: &mut Chance) -> Self {
        let mut made = Self { salt: chance.draw(), settled: chance.percent(35), ..Self::default() };
        for number in 0..chance.between(1, 3) {
            made.agents.push((format!("agent-{number}"), agent(chance)));
        }
        if chance.percent(30) {
            made.wanted.push("brief".into());
        }
        let inline = chance.percent(20);
        let agents = made.agents.iter().map(|(name, _)| name.clone()).collect();
        let mut maker = Maker::new(chance.branch(), agents, made.wanted.clone(), made.settled);
        let mut lists = if inline { vec!["documents.inline.items"] } else { Vec::new() };
        if !made.settled && !made.wanted.is_empty() {
            lists.push(maker::BRIEF);
        }
        let written = maker.definition(&lists);
        let mut spec = Map::new();
        if chance.percent(20) {
            made.template = Some(Value::Object(written));
            spec.insert("templateRef".into(), json!({"name": "template"}));
        } else {
            spec.extend(written);
        }
        let parameters = json!({"items": items(chance.between(0, 3), 0), "yes": true, "no": false});
        spec.insert("parameters".into(), parameters);
        if chance.percent(40) {
            spec.insert("session".into(), json!("session"));
        }
        if inline {
            let content = json!({"items": items(2, 0)}).to_string();
            spec.insert("documents".into(), json!([{"type": "inline", "format": "json", "content": content}]));
        }
        // What may end a run early, or take it away, has no end that is always the same.
        if !made.settled && chance.percent(15) {
            spec.insert("timeoutSeconds".into(), json!(chance.between(20, 200)));
        }
        if !made.settled && chance.percent(15) {
            spec.insert("ttlSecondsAfterFinished".into(), json!(chance.between(0, 120)));
            made.throwaway = chance.percent(40);
        }
        made.spec = Value::Object(spec);
        made.slots = if chance.percent(15) { usize::try_from(chance.between(1, 3)).unwrap_or(1) } else { 0 };
        made.retries = chance.percent(30);
        made.runs.push("run".into());
        if chance.percent(15) {
            made.runs.push("other".into());
        }
        made
    }

    pub fn draw(&self, place: &str, what: &str) -> u64 {
        let digest = name::digest([place.as_bytes(), what.as_bytes(), &self.salt.to_be_bytes()]);
        u64::from_str_radix(&digest[7..19], 16).unwrap_or_default()
    }

    fn behaviour(&self, place: &str) -> Behaviour {
        let lot = self.draw(place, "behaviour") % 100;
        let times = u32::try_from(self.draw(place, "times") % 3 + 1).unwrap_or(1);
        match lot {
            0..52 => Behaviour::Good,
            52..60 => Behaviour::Asks,
            60..72 => Behaviour::Flaky(times, ReportClass::Exited),
            72..80 => Behaviour::Flaky(times, ReportClass::InvalidOutput),
            80..85 => Behaviour::Flaky(times, ReportClass::Timeout),
            85..90 => Behaviour::Flaky(times, ReportClass::Retryable),
            _ if self.settled => Behaviour::Good,
            90..96 => Behaviour::Unrecoverable,
            _ => Behaviour::TooLarge,
        }
    }

    /// Whether the agent at this place asks people, and whether it does so while it runs.
    #[allow(dead_code, reason = "agents of the simulation with the mirror do not wait")]
    pub fn waits_for_answers(&self, place: &str) -> bool {
        self.behaviour(place) == Behaviour::Asks && self.draw(place, "waits").is_multiple_of(2)
    }

    pub fn place(&self, step_uid: &str) -> &str {
        self.places.get(step_uid).map_or("?", String::as_str)
    }

    /// A StepRun was made: where it stands is remembered, whatever becomes of it.
    pub fn learn(&mut self, step_run: &Object) {
        let spec = &step_run.value["spec"];
        let last = spec["scopeChain"].as_array().and_then(|c| c.last()).and_then(|l| l["scopeId"].as_str());
        let keys = last.and_then(|id| id.split_once('/')).map_or("", |(_, keys)| keys);
        let place = format!(
            "{}:{}/{keys}",
            spec["workflow"]["name"].as_str().unwrap_or_default(),
            spec["path"].as_str().unwrap_or_default()
        );
        self.places.insert(step_run.uid.clone(), place);
    }

    /// A report was accepted.
    pub fn reported(&mut self, step_uid: &str, class: ReportClass) {
        if !matches!(class, ReportClass::Succeeded | ReportClass::Asked) {
            *self.failures.entry(self.place(step_uid).to_owned()).or_default() += 1;
        }
    }

    pub fn seconds(&self, step_uid: &str, attempt: i32) -> i64 {
        let place = self.place(step_uid);
        i64::try_from(self.draw(place, &format!("seconds {attempt}")) % 6).unwrap_or_default() + 1
    }
}

impl World {
    /// How the command of that process ends now.
    pub fn outcome(&self, process: &Process) -> Outcome {
        let place = self.workload.place(&process.step_uid).to_owned();
        let failed = self.workload.failures.get(&place).copied().unwrap_or_default();
        let bad = |class: ReportClass, code: i32| Outcome { class, code: Some(code), output: None, document: None };
        match self.workload.behaviour(&place) {
            Behaviour::Flaky(times, class) if failed < times => bad(class, 1),
            Behaviour::Unrecoverable => bad(ReportClass::Exited, 9),
            Behaviour::TooLarge => bad(ReportClass::OutputTooLarge, 0),
            Behaviour::Asks if !self.was_answered(process) => bad(ReportClass::Asked, 143),
            Behaviour::Good | Behaviour::Asks | Behaviour::Flaky(..) => {
                let many = i64::try_from(self.workload.draw(&place, "items") % 3).unwrap_or_default();
                let value = json!({"place": place, "items": items(many, 0)}).to_string();
                let makes = self.makes_document(process);
                Outcome {
                    class: ReportClass::Succeeded,
                    code: Some(0),
                    output: Some(value.clone()),
                    document: makes.then_some(value),
                }
            }
        }
    }

    /// What the agent of that process finds in its context: all that it asks, answered.
    fn was_answered(&self, process: &Process) -> bool {
        let found = self.live(Kind::StepRun, &process.step_run, &process.step_uid);
        let known = found.and_then(|found| found.value["status"]["questions"].as_array().cloned()).unwrap_or_default();
        known.len() == QUESTIONS.len() && known.iter().all(|question| question["answer"]["value"] == "42")
    }

    fn makes_document(&self, process: &Process) -> bool {
        let found = self.live(Kind::StepRun, &process.step_run, &process.step_uid);
        found.is_some_and(|found| {
            let step_run = found.typed::<StepRun>();
            let pinned = upstream::definition(&self.server, &step_run.spec);
            pinned.is_some_and(|p| p.data.step(&step_run.spec.path).is_some_and(|s| s.produces.is_some()))
        })
    }
}

/// A list for a forEach; `rev` tells one list from another.
pub fn items(count: i64, rev: i64) -> Value {
    (0..count).map(|n| json!({"id": format!("k{n}"), "rev": rev})).collect()
}

fn agent(chance: &mut Chance) -> Value {
    let mut spec = json!({
        "template": {"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}},
        "idempotent": chance.percent(40),
        "timeoutSeconds": chance.between(20, 60),
        "startTimeoutSeconds": chance.between(20, 60),
        "retry": {"maxAttempts": chance.between(1, 3), "initialBackoffSeconds": chance.between(1, 8), "maxBackoffSeconds": 20},
        "exitCodes": {"unrecoverable": [9]},
    });
    if chance.percent(20) {
        spec["maxConcurrent"] = json!(chance.between(1, 2));
    }
    spec
}
