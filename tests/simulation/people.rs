//! People: reviewers who accept, reject and answer; and those who delete, edit and forge. What the admission policies
//! allow is decided here, as the chart's policies do.

use std::sync::Arc;

use lockstep::api::StepRun;
use lockstep::api::name::{ACTION, ANSWER, COMMENT, DECIDED_BY, DECISION, LABEL_STEP_RUN, REVIEW};
use lockstep::decide::seen;
use serde_json::{Value, json};

use super::server::{Kind, Object, Part, Propagation, Refused, Request, refused};
use super::workload::items;
use super::world::{Event, Who, World};

/// In what nobody has made who may.
pub const FORGED: &str = "forged by mallory";

/// How people are.
#[derive(Clone, Debug, Default)]
pub struct People {
    /// In a hundred.
    pub rejects: u64,
    /// Answers they give; the first one in the end.
    pub answers: Vec<&'static str>,
    /// Whether they delete and re-create what matters.
    pub destructive: bool,
    /// They do nothing of themselves any more.
    pub resting: bool,
    pub documents: i64,
    /// Whether they suspend runs and resume them, and cancel them.
    pub suspends: bool,
    pub cancels: bool,
    /// A run was made that goes on from another.
    pub retried: bool,
}

/// What the chart's policies say; without them everything passes.
pub fn admitted(world: &World, who: Who, request: &Request) -> Result<(), Refused> {
    if !world.policies.standing {
        return Ok(());
    }
    let deny = |why: &str| Err(refused(403, "Forbidden", why));
    match (who, request) {
        (Who::Person, Request::Merge(Kind::StepRun, Part::Main, name, change)) => {
            match world.server.find(Kind::StepRun, name) {
                Some(found) => mailbox(found, &change["metadata"]["annotations"]).or_else(deny),
                None => Ok(()),
            }
        }
        (Who::Person, Request::Delete { kind: Kind::StepRun, .. }) => deny("a StepRun is deleted with its Workflow"),
        (Who::Person, Request::Delete { kind: Kind::Document, name, .. })
            if world.server.find(Kind::Document, name).is_some_and(|d| !d.value["spec"]["workflow"].is_null()) =>
        {
            deny("documents of a run are deleted by Lockstep")
        }
        (Who::Person, Request::Create(Kind::Document, object)) if !object["spec"]["workflow"].is_null() => {
            deny("documents of a run are put by Lockstep")
        }
        (Who::Gateway, Request::Json(Kind::StepRun, Part::Status, name, _)) => {
            let frozen = world.server.find(Kind::StepRun, name).is_some_and(|found| {
                let status = &found.value["status"];
                !status["completedAt"].is_null() || status["gate"]["state"] == "Waiting"
            });
            if frozen { deny("the step has ended or is under review") } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

fn mailbox(found: &Object, written: &Value) -> Result<(), &'static str> {
    let status = &found.value["status"];
    let pending = [DECISION, ACTION, ANSWER].iter().any(|key| found.annotation(key).is_some());
    let own = [DECISION, ACTION, ANSWER, COMMENT, REVIEW, DECIDED_BY].iter().any(|key| !written[*key].is_null());
    if !own {
        return Ok(());
    }
    if pending {
        return Err("a decision is already there");
    }
    let deciding = !written[DECISION].is_null();
    let gate = &status["gate"];
    if deciding && waiting_action(status).is_some_and(|digest| written[REVIEW] == digest) {
        return Ok(());
    }
    if deciding && gate["state"] != "Waiting" {
        return Err("this step is not waiting for a decision");
    }
    let review = &written[REVIEW];
    if deciding && (if review.is_null() { gate["round"].as_i64() > Some(1) } else { *review != gate["outputDigest"] }) {
        return Err("stale review");
    }
    let answering = !written[ACTION].is_null() || !written[ANSWER].is_null();
    if answering && status["phase"] != "WaitingForInput" {
        return Err("this step is not waiting for an answer");
    }
    if written[ACTION] == "skip" && !found.value["spec"]["gate"].is_null() {
        return Err("a step with a gate cannot be skipped");
    }
    Ok(())
}

/// The digest of an action that waits for people.
pub fn waiting_action(status: &Value) -> Option<&str> {
    let mut all = status["approvalRequests"].as_array().into_iter().flatten();
    all.find(|request| request["gate"]["state"] == "Waiting")?["gate"]["outputDigest"].as_str()
}

impl World {
    /// A person looks around, and acts on something perhaps.
    pub fn person(&mut self) {
        if self.people.resting {
            return;
        }
        for step_run in self.all(Kind::StepRun) {
            if self.chance.percent(60) {
                self.attend(&step_run);
            }
        }
        if self.chance.percent(50) {
            self.supply();
        }
        self.steer();
        self.soon(1_000, 30_000, Event::Person);
    }

    /// Everything that waits gets what it waits for.
    pub fn everybody_helps(&mut self) {
        self.people.answers.truncate(1);
        self.people.rejects = 0;
        self.policies_back();
        self.resume_all();
        self.restore_agents();
        self.supply();
        self.put_missing();
        for step_run in self.all(Kind::StepRun) {
            self.attend(&step_run);
        }
    }

    /// Documents that a run says it lacks: those of a step that was skipped, for example.
    fn put_missing(&mut self) {
        let pending = |o: &Arc<Object>| o.value["status"]["pendingDocuments"].as_array().cloned().unwrap_or_default();
        for kind in self.all(Kind::Workflow).iter().flat_map(pending) {
            self.people.documents += 1;
            let spec = json!({"type": kind, "scope": "Namespace", "format": "json",
                "content": json!({"items": items(1, 0)}).to_string()});
            let name = format!("put-{}", self.people.documents);
            let object = json!({"metadata": {"name": name}, "spec": spec});
            let _ = self.ask(Who::Person, &Request::Create(Kind::Document, object));
        }
    }

    /// Decides what waits at a gate, answers what asks.
    fn attend(&mut self, step_run: &Arc<Object>) {
        let status = &step_run.value["status"];
        if status["gate"]["state"] == "Waiting" && status["phase"] == "WaitingForAcceptance" {
            let word = if self.chance.percent(self.people.rejects) { "rejected" } else { "accepted" };
            let mut written = json!({DECISION: word});
            if word == "rejected" {
                written[COMMENT] = json!("shorter");
            }
            if self.chance.percent(50) || status["gate"]["round"].as_i64() > Some(1) {
                written[REVIEW] = status["gate"]["outputDigest"].clone();
            }
            self.write_letter(step_run, written);
        } else if let Some(digest) = waiting_action(status) {
            let word = if self.chance.percent(self.people.rejects) { "rejected" } else { "accepted" };
            let mut written = json!({DECISION: word, REVIEW: digest});
            if word == "rejected" {
                written[COMMENT] = json!("not this");
            }
            self.write_letter(step_run, written);
        } else if status["waitingFor"]["kind"] == "BudgetSpent" && status["phase"] == "WaitingForInput" {
            let most = self.chance.between(1_000, 3_000);
            self.write_letter(step_run, json!({ANSWER: json!({"tokens": most}).to_string()}));
        } else if status["waitingFor"]["kind"] == "Question" && status["phase"] == "WaitingForInput" {
            let fails = self.people.answers[0] == "fail" && self.chance.percent(20);
            let written = if fails { json!({ACTION: "fail"}) } else { json!({ANSWER: "42"}) };
            self.write_letter(step_run, written);
        } else if status["phase"] == "WaitingForInput" {
            let gated = !step_run.value["spec"]["gate"].is_null();
            let words = self.people.answers.clone();
            let word = *self.chance.pick(&words);
            let word = if gated && word == "skip" { "retry" } else { word };
            let mut written = json!({ACTION: word});
            if self.chance.percent(50) {
                written[COMMENT] = json!("do better");
            }
            self.write_letter(step_run, written);
        }
    }

    fn write_letter(&mut self, step_run: &Arc<Object>, mut written: Value) {
        let proven = self.policies.standing;
        let by = *self.chance.pick(&["ann", "bob"]);
        written[DECIDED_BY] = json!(by);
        let change = json!({"metadata": {"annotations": written.clone()}});
        let request = Request::Merge(Kind::StepRun, Part::Main, step_run.name.clone(), change);
        // The version of what was looked at is not asked for: `kubectl annotate` sends none.
        if let Ok(stored) = self.ask(Who::Person, &request)
            && proven
        {
            self.judge_letter(&stored, &written);
        }
    }

    fn supply(&mut self) {
        if !self.workload.wanted.is_empty()
            && (self.people.documents == 0 || !self.workload.settled && self.chance.percent(40))
        {
            self.people.documents += 1;
            let number = self.people.documents;
            let scopes = [json!({"scope": "Namespace"}), json!({"scope": "Session", "session": "session"})];
            let mut spec = scopes[if number == 1 { 0 } else { usize::from(self.chance.percent(50)) }].clone();
            spec["type"] = json!("brief");
            spec["format"] = json!("json");
            spec["content"] = json!(json!({"items": items(number.min(3), number)}).to_string());
            let object = json!({"metadata": {"name": format!("brief-{number}")}, "spec": spec});
            let _ = self.ask(Who::Person, &Request::Create(Kind::Document, object));
        }
    }

    // ---- mischief

    pub fn mischief(&mut self) {
        let next = self.faults.mischief;
        if next == 0 {
            return;
        }
        let harmless = 7;
        let kinds = if self.people.destructive { 16 } else { harmless };
        match self.chance.below(kinds) {
            0 => self.delete_some(Kind::Job),
            1 => self.delete_some(Kind::Pod),
            2 => self.edit_agent(),
            3 => self.scribble(),
            4 => self.policies_come_and_go(),
            5 => {
                let op = usize::try_from(self.chance.below(self.operators.len() as u64)).unwrap_or_default();
                if self.operators[op].alive {
                    self.crash(op);
                }
            }
            6 => self.forge(),
            7 => self.delete_some(Kind::StepRun),
            8 | 9 => self.delete_some(Kind::Workflow),
            10 => self.create_runs(),
            11 => self.delete_some(Kind::Agent),
            12 => self.squat(),
            13 | 14 => self.exchange(),
            _ => self.supply(),
        }
        self.soon(next * 200, next * 2_000, Event::Mischief);
    }

    fn some(&mut self, kind: Kind) -> Option<Arc<Object>> {
        let all: Vec<Arc<Object>> = self.all(kind).into_iter().filter(|o| o.label("planted").is_none()).collect();
        (!all.is_empty()).then(|| Arc::clone(self.chance.pick(&all)))
    }

    fn delete_some(&mut self, kind: Kind) {
        let Some(found) = self.some(kind) else { return };
        let ways = [Propagation::Background, Propagation::Foreground, Propagation::Orphan];
        // A run that is deleted without its children is meant to leave them.
        let propagation = *self.chance.pick(if kind == Kind::Job { &ways } else { &ways[..2] });
        let request = Request::Delete { kind, name: found.name.clone(), uid: None, version: None, propagation };
        let _ = self.ask(Who::Admin, &request);
        if kind == Kind::StepRun {
            self.judge.bereaved = true;
        }
        if kind == Kind::Workflow && self.chance.percent(50) {
            self.create_runs();
        }
    }

    fn edit_agent(&mut self) {
        let Some(found) = self.some(Kind::Agent) else { return };
        let seconds = self.chance.between(20, 60);
        let change = json!({"spec": {"startTimeoutSeconds": seconds}});
        let _ = self.ask(Who::Person, &Request::Merge(Kind::Agent, Part::Main, found.name.clone(), change));
    }

    /// Somebody else's write: nothing changes but the version.
    fn scribble(&mut self) {
        let kind = *self.chance.pick(&[Kind::StepRun, Kind::Workflow, Kind::Job]);
        let Some(found) = self.some(kind) else { return };
        let change = json!({"metadata": {"annotations": {"someone.else/note": self.chance.below(1000).to_string()}}});
        let _ = self.ask(Who::Person, &Request::Merge(kind, Part::Main, found.name.clone(), change));
    }

    fn policies_come_and_go(&mut self) {
        if self.policies.standing {
            self.set_policies(false);
            self.tell(|| "the admission policies are taken away".into());
        } else {
            self.policies_back();
        }
    }

    pub fn policies_back(&mut self) {
        if !self.policies.standing {
            self.set_policies(true);
            self.tell(|| "the admission policies stand again".into());
        }
    }

    /// While nobody watches the door, a decision or an answer in somebody else's name.
    fn forge(&mut self) {
        let waits = |o: &&Arc<Object>| {
            o.value["status"]["gate"]["state"] == "Waiting" || !o.value["status"]["waitingFor"].is_null()
        };
        let found = self.all(Kind::StepRun).iter().find(waits).cloned();
        if let (Some(found), false) = (found, self.policies.standing) {
            let asked = !found.value["status"]["waitingFor"].is_null();
            let written = if asked {
                json!({ACTION: "retry", DECIDED_BY: "mallory"})
            } else {
                json!({DECISION: "accepted", DECIDED_BY: "mallory"})
            };
            let change = json!({"metadata": {"annotations": written}});
            let _ = self.ask(Who::Person, &Request::Merge(Kind::StepRun, Part::Main, found.name.clone(), change));
        }
    }

    /// Somebody else makes a Job under the name that the next attempt will want.
    fn squat(&mut self) {
        let Some(found) = self.some(Kind::StepRun) else { return };
        let attempt = found.value["status"]["attempt"].as_i64().unwrap_or(1);
        let attempt = i32::try_from(attempt).unwrap_or(1) + 1;
        let name = seen::job_name(&found.typed::<StepRun>(), attempt);
        let mut object = json!({"metadata": {"name": name, "labels": {"planted": "yes"}}});
        // Our label is the policies' to refuse: without it no watch tells of the Job.
        if !self.policies.standing || self.chance.percent(30) {
            object["metadata"]["labels"][LABEL_STEP_RUN] = found.name.clone().into();
        }
        if let Ok(made) = self.ask(Who::Person, &Request::Create(Kind::Job, object)) {
            self.judge.planted.push(made);
        }
    }

    /// Somebody deletes a document of a run, and makes another one under its name: a person, whom the policies stop while
    /// they stand, or an administrator, whom nothing stops.
    fn exchange(&mut self) {
        let all = self.all(Kind::Document);
        let made = all.into_iter().filter(|d| !d.value["spec"]["path"].is_null() && !d.is_deleting());
        let made: Vec<Arc<Object>> = made.collect();
        if made.is_empty() {
            return;
        }
        let found = Arc::clone(self.chance.pick(&made));
        let who = if self.chance.percent(50) { Who::Admin } else { Who::Person };
        let (kind, propagation) = (Kind::Document, Propagation::Background);
        let delete = Request::Delete { kind, name: found.name.clone(), uid: None, version: None, propagation };
        if self.ask(who, &delete).is_err() {
            return;
        }
        self.judge.bereaved = true;
        self.judge.exchanged.insert(found.name.clone());
        if self.chance.percent(70) {
            let mut spec = found.value["spec"].clone();
            spec["content"] = json!(json!({"items": items(1, -1), "place": FORGED}).to_string());
            let owners = found.meta("ownerReferences").clone();
            let object = json!({"metadata": {"name": found.name, "ownerReferences": owners}, "spec": spec});
            let _ = self.ask(who, &Request::Create(Kind::Document, object));
        }
    }

    pub fn restore_agents(&mut self) {
        for (name, spec) in self.workload.agents.clone() {
            if self.server.find(Kind::Agent, &name).is_none() {
                let object = json!({"metadata": {"name": name}, "spec": spec});
                let _ = self.ask(Who::Admin, &Request::Create(Kind::Agent, object));
            }
        }
    }

    /// Runs that are not there are made, under their names.
    pub fn create_runs(&mut self) {
        for name in self.workload.runs.clone() {
            if self.server.find(Kind::Workflow, &name).is_none() {
                let object = self.run_named(&name, &self.workload.spec);
                let _ = self.ask(Who::Admin, &Request::Create(Kind::Workflow, object));
            }
        }
    }
}
