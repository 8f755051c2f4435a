//! What is run: agents, a definition, documents, and how each execution behaves, all from the seed.

use std::collections::BTreeMap;

use lockstep::api::step_run::ReportClass;
use lockstep::api::{StepRun, name};
use serde_json::{Map, Value, json};

use super::chance::Chance;
use super::judge::upstream;
use super::kubelet::{Outcome, Process};
use super::server::{Kind, Object};
use super::world::World;

/// StepRuns that one definition may come to.
const LARGEST: i64 = 12;

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
    salt: u64,
    /// By StepRun UID: where it stands in its run.
    places: BTreeMap<String, String>,
    /// By place: reports that said failure.
    failures: BTreeMap<String, u32>,
}

/// How a command behaves at one place, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Good,
    /// Fails that often, then is good.
    Flaky(u32, ReportClass),
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
        let mut maker = Maker {
            agents: made.agents.iter().map(|(name, _)| name.clone()).collect(),
            chance: chance.branch(),
            serial: 0,
            left: LARGEST,
            lists: vec!["parameters.items".into()],
            wanted: made.wanted.clone(),
            made: Vec::new(),
        };
        if inline {
            maker.lists.push("documents.inline.items".into());
        }
        let count = maker.chance.between(1, 4);
        let steps = maker.list(count, 0, 1);
        let mut spec = Map::new();
        if chance.percent(20) {
            made.template = Some(json!({"steps": steps}));
            spec.insert("templateRef".into(), json!({"name": "template"}));
        } else {
            spec.insert("steps".into(), steps);
        }
        spec.insert("parameters".into(), json!({"items": items(chance.between(0, 3), 0)}));
        if chance.percent(40) {
            spec.insert("session".into(), json!("session"));
        }
        if inline {
            let content = json!({"items": items(2, 0)}).to_string();
            spec.insert("documents".into(), json!([{"type": "inline", "format": "json", "content": content}]));
        }
        made.spec = Value::Object(spec);
        made.runs.push("run".into());
        if chance.percent(15) {
            made.runs.push("other".into());
        }
        made
    }

    fn draw(&self, place: &str, what: &str) -> u64 {
        let digest = name::digest([place.as_bytes(), what.as_bytes(), &self.salt.to_be_bytes()]);
        u64::from_str_radix(&digest[7..19], 16).unwrap_or_default()
    }

    fn behaviour(&self, place: &str) -> Behaviour {
        let lot = self.draw(place, "behaviour") % 100;
        let times = u32::try_from(self.draw(place, "times") % 3 + 1).unwrap_or(1);
        match lot {
            0..60 => Behaviour::Good,
            60..72 => Behaviour::Flaky(times, ReportClass::Exited),
            72..80 => Behaviour::Flaky(times, ReportClass::InvalidOutput),
            80..85 => Behaviour::Flaky(times, ReportClass::Timeout),
            85..90 => Behaviour::Flaky(times, ReportClass::Retryable),
            _ if self.settled => Behaviour::Good,
            90..96 => Behaviour::Unrecoverable,
            _ => Behaviour::TooLarge,
        }
    }

    pub fn place(&self, step_uid: &str) -> &str {
        self.places.get(step_uid).map_or("?", String::as_str)
    }

    /// A StepRun was made: where it stands is remembered, whatever becomes of it.
    pub fn learn(&mut self, step_run: &Object) {
        let spec = &step_run.value["spec"];
        let last = spec["scopeChain"].as_array().and_then(|c| c.last()).and_then(|l| l["scopeID"].as_str());
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
        if class != ReportClass::Succeeded {
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
            Behaviour::Good | Behaviour::Flaky(..) => {
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
    json!({
        "template": {"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}},
        "idempotent": chance.percent(40),
        "timeoutSeconds": chance.between(20, 60),
        "startTimeoutSeconds": chance.between(20, 60),
        "retry": {"maxAttempts": chance.between(1, 3), "initialBackoffSeconds": chance.between(1, 8), "maxBackoffSeconds": 20},
        "exitCodes": {"unrecoverable": [9]},
    })
}

/// Makes steps.
struct Maker {
    chance: Chance,
    agents: Vec<String>,
    serial: u32,
    /// StepRuns that may still be added.
    left: i64,
    /// Expressions that give a list here.
    lists: Vec<String>,
    wanted: Vec<String>,
    /// Types of documents made so far, at the outermost level.
    made: Vec<String>,
}

impl Maker {
    /// Steps one after the other, each for `times` items.
    fn list(&mut self, count: i64, depth: u32, times: i64) -> Value {
        let mut steps = Vec::new();
        for _ in 0..count {
            if self.left < times && !steps.is_empty() {
                break;
            }
            steps.push(self.step(depth, times));
        }
        Value::Array(steps)
    }

    fn step(&mut self, depth: u32, times: i64) -> Value {
        self.serial += 1;
        let name = format!("s{}", self.serial);
        let mut step = Map::from_iter([("name".to_owned(), json!(name))]);
        let plural = depth < 3 && self.chance.percent(35) && self.left >= times * 2;
        let times = if plural { times * 3 } else { times };
        if plural {
            // What others may put anew is read outside of a forEach only.
            let shared = |list: &&String| {
                depth == 0 || !list.starts_with("documents.inline") && !list.starts_with("documents.brief")
            };
            let lists: Vec<String> = self.lists.iter().filter(shared).cloned().collect();
            let list = self.chance.pick(&lists).clone();
            let item = format!("e{}", self.serial);
            let mut each = json!({"in": list, "as": item});
            if self.chance.percent(70) {
                each["key"] = json!(format!("{item}.id"));
            }
            if self.chance.percent(60) {
                each["maxParallel"] = json!(self.chance.between(1, 3));
            }
            step.insert("forEach".into(), each);
        }
        let known = (self.lists.len(), self.made.len());
        if depth < 2 && self.chance.percent(25) && self.left >= times * 2 {
            let count = self.chance.between(1, 2);
            step.insert("steps".into(), self.list(count, depth + 1, times));
            // What is inside a group is not seen from outside.
            self.lists.truncate(known.0);
            self.made.truncate(known.1);
        } else {
            self.left -= times;
            self.execution(&mut step, plural, times);
        }
        Value::Object(step)
    }

    fn execution(&mut self, step: &mut Map<String, Value>, plural: bool, times: i64) {
        let name = step["name"].as_str().unwrap_or_default().to_owned();
        step.insert("agentId".into(), json!(self.chance.pick(&self.agents.clone())));
        if self.chance.percent(30) {
            let what = self.chance.pick(&self.lists).clone();
            step.insert("parameters".into(), json!({"seen": format!("${{ {what} }}")}));
        }
        if self.chance.percent(30) {
            let gate = match self.chance.below(4) {
                0 => json!({"onReject": "Revise", "maxRounds": self.chance.between(2, 3)}),
                1 => json!({"approvals": 2}),
                _ => json!({}),
            };
            step.insert("gate".into(), gate);
        }
        if self.chance.percent(20) {
            step.insert("retry".into(), json!({"maxAttempts": self.chance.between(1, 2)}));
        }
        let mut documents = Vec::new();
        if !self.wanted.is_empty() && self.chance.percent(60) {
            documents.push(self.wanted[0].clone());
        }
        if !self.made.is_empty() && self.chance.percent(40) {
            documents.push(self.chance.pick(&self.made.clone()).clone());
        }
        if !documents.is_empty() {
            step.insert("documents".into(), json!(documents));
        }
        if self.chance.percent(40) {
            step.insert("produces".into(), json!({"type": format!("doc-{name}"), "format": "json"}));
        }
        if !plural {
            self.lists.push(format!("steps.{name}.output.items"));
        }
        if times == 1 && step.contains_key("produces") {
            self.made.push(format!("doc-{name}"));
            self.lists.push(format!("documents.doc_{name}.items"));
        }
        if times == 1 && documents_brief(step) {
            self.lists.push("documents.brief.items".into());
        }
    }
}

/// After a step that needed it, the brief is there.
fn documents_brief(step: &Map<String, Value>) -> bool {
    step.get("documents").and_then(Value::as_array).is_some_and(|d| d.iter().any(|t| t == "brief"))
}
