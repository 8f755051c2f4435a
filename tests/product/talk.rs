//! Agents that talk while they run: they say what they use, ask people and wait in their pods, and have actions approved, at every
//! place where a call may be lost and its caller die. What must hold: who hears an answer hears what was given; a permission
//! that people gave is used once; what was used counts once, and holds back what would start when it is too much.

use std::collections::{BTreeMap, BTreeSet};

use lockstep::api::name::DECISION;
use lockstep::api::step_run::{GateState, ReportClass, StepRunStatus};
use lockstep::api::{StepRun, Workflow};
use lockstep::protocol;
use serde_json::{Value, json};

use super::chance::Chance;
use super::gateway::{Answer, question};
use super::kubelet::{Outcome, Process};
use super::server::{Event as Change, Kind};
use super::workload::{QUESTIONS, Workload};
use super::world::World;

/// What a thousand worlds must have had.
pub const FEATURES: [&str; 5] = ["usage", "answer to a pod", "wait given up", "permission", "budget"];
/// Milliseconds that an agent waits for people in its pod, and that a call is repeated.
const WAIT: i64 = 25_000;
const PATIENCE: i64 = 60_000;
/// Milliseconds after which whoever would start an attempt knows that the budget is spent, whatever is late.
const KNOWN: i64 = 180_000;

/// How far a process has come with what it has to say.
#[derive(Clone, Debug, Default)]
pub struct Talk {
    at: usize,
    /// When the call began that is repeated.
    since: Option<i64>,
    /// Of the call that requests an approval: the same until it is told.
    id: String,
    /// Tokens, in all.
    pub used: i64,
    /// It ends because nobody has decided on its action yet.
    pub requests: bool,
}

impl Talk {
    pub fn new(chance: &mut Chance) -> Self {
        Self { id: format!("{:032x}", chance.draw()), ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Use(i64),
    Ask,
    Act,
}

/// What the world remembers of what was said.
#[derive(Debug, Default)]
pub struct Hearsay {
    /// Tokens that each attempt said it used, the most.
    used: BTreeMap<(String, i32), i64>,
    /// The calls to which it was said that the action of this digest may be done.
    allowed: BTreeMap<(String, String), BTreeSet<String>>,
    /// Since when the budget of a run is spent.
    spent: BTreeMap<String, i64>,
}

/// Half of the worlds talk.
pub fn begin(workload: &mut Workload, chance: &mut Chance) {
    workload.talks = chance.percent(50);
    if !workload.talks {
        return;
    }
    if chance.percent(50) {
        workload.spec["budget"] = json!({"tokens": chance.between(5, 60)});
    }
    for list in [Some(&mut workload.spec), workload.template.as_mut()].into_iter().flatten() {
        declare(list.get_mut("steps"));
    }
}

/// Every step of an agent has an action gate.
fn declare(steps: Option<&mut Value>) {
    for step in steps.and_then(Value::as_array_mut).into_iter().flatten() {
        if step["agentId"].is_string() {
            step["actionGates"] = json!([{"name": "act"}]);
        }
        declare(step.get_mut("steps"));
    }
}

impl World {
    fn deeds(&self, process: &Process) -> Vec<Deed> {
        if !self.workload.talks {
            return Vec::new();
        }
        let place = self.workload.place(&process.step_uid);
        let drawn = |what: &str| self.workload.draw(place, what);
        let tokens = i64::try_from(drawn("tokens") % 9).unwrap_or_default() + 1;
        let mut deeds = vec![Deed::Use(tokens)];
        deeds.extend(self.workload.waits_for_answers(place).then_some(Deed::Ask));
        deeds.extend(drawn("acts").is_multiple_of(3).then_some(Deed::Act));
        deeds.extend(drawn("uses more").is_multiple_of(2).then_some(Deed::Use(tokens)));
        deeds
    }

    pub fn has_to_say(&self, process: &Process) -> bool {
        process.talk.at < self.deeds(process).len()
    }

    /// Makes its next call; `told` hears of the answer.
    pub fn say(&mut self, mut process: Process) {
        let deed = self.deeds(&process)[process.talk.at];
        let is_new = process.talk.since.is_none();
        let since = *process.talk.since.get_or_insert(self.now);
        let left = ((since + WAIT - self.now) / 1000).max(1);
        let (path, body) = match deed {
            Deed::Use(tokens) => {
                if is_new {
                    process.talk.used += tokens;
                    let key = (process.step_uid.clone(), process.attempt);
                    self.heard_of.used.insert(key, process.talk.used);
                }
                (protocol::USAGE, json!({"tokensIn": process.talk.used, "tokensOut": 0}))
            }
            Deed::Ask => (protocol::ASK, json!({"questions": QUESTIONS.map(question), "waitSeconds": left})),
            Deed::Act => {
                let payload = json!({"of": self.workload.place(&process.step_uid)}).to_string();
                (
                    protocol::APPROVAL,
                    json!({"action": "act", "payload": payload, "id": process.talk.id, "waitSeconds": left}),
                )
            }
        };
        process.calls = true;
        self.call_gateway(&process, path, body.to_string());
        self.processes.insert(process.uid.clone(), process);
    }

    /// The answer to what it said.
    pub fn told(&mut self, mut process: Process, answer: Answer) {
        let Some(deed) = self.deeds(&process).get(process.talk.at).copied() else {
            return self.later(process, 5, 100);
        };
        let since = process.talk.since.unwrap_or(self.now);
        match answer {
            Answer::Done(body) => match deed {
                Deed::Use(_) => self.said(process, "usage"),
                Deed::Ask if body["open"].as_array().is_some_and(Vec::is_empty) => {
                    let right =
                        QUESTIONS.iter().all(|asked| body["answers"][asked] == 42 || body["answers"][asked] == "42");
                    if !right {
                        self.violated(format!("{} heard {body}, and people said 42", process.pod));
                    }
                    self.said(process, "answer to a pod");
                }
                Deed::Act if body["decision"] != "waiting" => self.decided(process, &body),
                Deed::Ask | Deed::Act if self.now >= since + WAIT => self.gives_up(process, deed),
                Deed::Ask | Deed::Act => self.later(process, 500, 4_000),
            },
            Answer::Refused(why) if why.contains("BadRequest") => {
                self.tell(|| format!("pod {} hears: {why}", process.pod));
                process.talk.at += 1;
                process.talk.since = None;
                self.later(process, 5, 100);
            }
            Answer::Refused(why) => {
                self.tell(|| format!("pod {} is refused at attempt {}: {why}", process.pod, process.attempt));
                self.end(&process, "Failed");
            }
            Answer::Denied(_) | Answer::Unavailable if self.now >= since + PATIENCE => self.said(process, ""),
            Answer::Denied(_) | Answer::Unavailable => self.later(process, 200, 3_000),
        }
    }

    fn said(&mut self, mut process: Process, feature: &'static str) {
        if !feature.is_empty() {
            self.judge.course.had.insert(feature);
        }
        process.talk.at += 1;
        process.talk.since = None;
        self.later(process, 5, 500);
    }

    /// Nobody has answered in time: the attempt ends, and the next one goes on.
    fn gives_up(&mut self, mut process: Process, deed: Deed) {
        self.judge.course.had.insert("wait given up");
        process.talk.requests = deed == Deed::Act;
        let outcome = Outcome { class: ReportClass::Asked, code: Some(143), output: None, document: None };
        process.outcome = Some(outcome);
        self.later(process, 5, 100);
    }

    /// People have decided on its action.
    fn decided(&mut self, process: Process, body: &Value) {
        let digest = body["digest"].as_str().unwrap_or_default().to_owned();
        let word = if body["decision"] == "allowed" { "accepted" } else { "rejected" };
        if !self.judge.has_said(&process.step_uid, word, &digest) {
            self.violated(format!("{} hears {body}, and nobody {DECISION} so", process.pod));
        }
        if word == "accepted" {
            let calls = self.heard_of.allowed.entry((process.step_uid.clone(), digest.clone())).or_default();
            calls.insert(process.talk.id.clone());
            let many = calls.len();
            if many > 1 {
                self.violated(format!("{}: a permission was used by {many} calls: {digest}", process.step_run));
            }
        }
        self.said(process, "permission");
    }

    // ---- what is judged

    pub fn judge_talk(&mut self, change: &Change) {
        if !self.workload.talks {
            return;
        }
        let Some(after) = change.after.clone() else { return };
        match after.kind {
            Kind::StepRun => {
                let step_run = after.typed::<StepRun>();
                let status = step_run.status.clone().unwrap_or_default();
                self.judge_actions(&after.name, &after.uid, &status);
                self.judge_spent(&step_run.spec.workflow.uid);
            }
            Kind::Job if change.before.is_none() && after.controller.is_some() => {
                let owner = after.controller.as_ref().map(|(_, uid)| uid.clone()).unwrap_or_default();
                let run = self
                    .server
                    .all(Kind::StepRun)
                    .find(|o| o.uid == owner)
                    .map(|o| o.value["spec"]["workflow"]["uid"].clone());
                let run = run.and_then(|run| run.as_str().map(str::to_owned)).unwrap_or_default();
                let since = self.heard_of.spent.get(&run).copied();
                if since.is_some_and(|since| self.now > since + KNOWN) {
                    self.violated(format!(
                        "{} was made, and the budget of its run is spent since {since:?}",
                        after.name
                    ));
                }
            }
            _ => {}
        }
    }

    /// A permission is used once, and only after people gave it; a decision is somebody's.
    fn judge_actions(&mut self, name: &str, uid: &str, status: &StepRunStatus) {
        for request in &status.approval_requests {
            for decision in &request.gate.decisions {
                let word = if decision.accepted { "accepted" } else { "rejected" };
                if !self.judge.has_said(uid, word, &decision.digest) {
                    self.violated(format!("{name}: nobody proven decided {decision:?}"));
                }
            }
            if request.gate.state == GateState::Accepted && !request.gate.decisions.iter().any(|d| d.accepted) {
                self.violated(format!("{name}: an action is allowed that nobody accepted: {request:?}"));
            }
        }
        let mut used = BTreeSet::new();
        for done in status.agent.iter().flat_map(|agent| &agent.used_approvals) {
            if !used.insert(done.digest.clone()) {
                self.violated(format!("{name}: a permission was used twice: {}", done.digest));
            }
        }
    }

    /// Since when a run has used more than it may.
    fn judge_spent(&mut self, run: &str) {
        let limit = self.workload.spec["budget"]["tokens"].as_i64();
        let Some(limit) = limit else { return };
        let (mut used, mut most, mut asks) = (0, limit, 0);
        for object in self.server.all(Kind::StepRun).filter(|o| o.value["spec"]["workflow"]["uid"] == run) {
            let Some(status) = object.typed::<StepRun>().status.clone() else { continue };
            used += status.usage.as_ref().map_or(0, |usage| usage.tokens_in);
            let raises =
                status.budget_raises.iter().filter(|raise| raise.of_run).filter_map(|raise| raise.budget.tokens);
            most = raises.fold(most, i64::max);
            asks += i32::from(status.waiting_for.is_some_and(|wait| wait.of_run));
        }
        if used >= most {
            self.heard_of.spent.entry(run.to_owned()).or_insert(self.now);
        } else {
            self.heard_of.spent.remove(run);
        }
        if asks > 0 {
            self.judge.course.had.insert("budget");
        }
        if asks > 1 {
            self.violated(format!("{asks} StepRuns of one run ask for more of its budget"));
        }
    }

    /// In the end: what attempts said counts once, and is what the run says.
    pub fn judge_usage(&mut self) {
        if !self.workload.talks {
            return;
        }
        let mut sums: BTreeMap<String, i64> = BTreeMap::new();
        for object in self.all(Kind::StepRun) {
            let step_run = object.typed::<StepRun>();
            let status = step_run.status.clone().unwrap_or_default();
            let own = status.usage.as_ref().map_or(0, |usage| usage.tokens_in);
            *sums.entry(step_run.spec.workflow.uid.clone()).or_default() += own;
            let of_attempts =
                status.attempts.iter().map(|a| (a.number, a.usage.as_ref().map_or(0, |usage| usage.tokens_in)));
            for (number, used) in of_attempts.clone() {
                let said = self.heard_of.used.get(&(object.uid.clone(), number)).copied().unwrap_or_default();
                if used > said {
                    self.violated(format!("{}: attempt {number} said {said}, and {used} counts", object.name));
                }
            }
            let sum: i64 = of_attempts.map(|(_, used)| used).sum();
            if status.attempts.len() < 10 && sum != own {
                self.violated(format!("{}: its attempts used {sum}, it says {own}", object.name));
            }
        }
        for object in self.all(Kind::Workflow) {
            let status = object.typed::<Workflow>().status.clone().unwrap_or_default();
            let (sum, said) =
                (sums.get(&object.uid).copied().unwrap_or_default(), status.usage.map_or(0, |usage| usage.tokens_in));
            // What its time to live took away is counted no more.
            let is_whole = object.value["spec"]["ttlSecondsAfterFinished"].is_null() && !self.judge.bereaved;
            if is_whole && sum != said {
                self.violated(format!("{}: its steps used {sum}, it says {said}", object.name));
            }
        }
    }
}
