//! What must hold, seen from the API server and from the nodes, never from an operator's own view: after every write, at
//! every start of a command, when all is quiet, and when all is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep::api::document::DocumentPhase;
use lockstep::api::name::{ACTION, ANSWER, DECIDED_BY, DECISION, LABEL_ATTEMPT, REVIEW};
use lockstep::api::step_run::{AskedQuestion, AttemptResult, GateState, StepRunStatus};
use lockstep::api::workflow::Phase;
use lockstep::api::{Document, StepRun, Workflow};
use serde_json::Value;

use super::kubelet::Process;
use super::people;
use super::server::{Event as Change, Kind, Object, Server};
use super::world::{Who, World};

#[path = "course.rs"]
pub mod course;
#[path = "reading.rs"]
pub mod reading;
#[path = "upstream.rs"]
pub mod upstream;

/// What a person wrote into a mailbox, proven at admission.
#[derive(Clone, Debug)]
struct Submission {
    step_run: String,
    uid: String,
    /// The decision or the action.
    word: String,
    by: String,
    digest: String,
    round: i64,
    answers: i32,
    refusals: u32,
}

#[derive(Default)]
pub struct Judge {
    /// How often a command was started.
    starts: BTreeMap<(String, i32), u32>,
    /// How many answers there were when an attempt was claimed: whoever is cut off starts late, or not at all.
    claims: BTreeMap<(String, i32), i32>,
    reported: BTreeSet<(String, i32)>,
    /// Each StepRun as it was written last, by UID: somebody may delete it between a claim and the start.
    latest: BTreeMap<String, Arc<StepRun>>,
    letters: Vec<Submission>,
    /// Notices that refuse a letter, by UID.
    refusals: BTreeMap<String, u32>,
    /// Failed attempts since the last act of a person, by UID: of the agent's making, of the cluster's.
    budgets: BTreeMap<String, (i32, i32)>,
    /// The `rev` of the list that a forEach goes over, by run, path and scope around.
    lists: BTreeMap<String, Value>,
    /// Items in which something has waited for a person: their slot was another's meanwhile.
    waited: BTreeSet<String>,
    /// The run of every StepRun that there ever was, by name.
    names: BTreeMap<String, String>,
    pub planted: Vec<Arc<Object>>,
    /// Somebody deleted a StepRun by hand.
    pub bereaved: bool,
    /// Names of Documents that somebody deleted, and made again perhaps.
    pub exchanged: BTreeSet<String>,
    /// An operator may not know of all that it has started.
    pub blind: bool,
    pub course: course::Course,
}

impl Judge {
    pub fn starts(&self) -> usize {
        self.starts.len()
    }

    /// Whether that person accepted that StepRun.
    pub fn has_accepted(&self, uid: &str, by: &str) -> bool {
        self.letters.iter().any(|l| l.uid == uid && l.word == "accepted" && l.by == by)
    }

    /// Whether somebody proven said that of an action.
    #[allow(dead_code, reason = "the simulation with the mirror has no actions")]
    pub fn has_said(&self, uid: &str, word: &str, digest: &str) -> bool {
        self.letters.iter().any(|l| l.uid == uid && l.word == word && l.digest == digest)
    }
}

pub fn is_settled(server: &Server) -> bool {
    server.all(Kind::Workflow).all(|w| !w.value["status"]["completedAt"].is_null())
}

pub fn open_runs(server: &Server) -> String {
    let open = server.all(Kind::Workflow).filter(|w| w.value["status"]["completedAt"].is_null());
    open.map(|w| format!("{} {}", w.name, w.value["status"])).collect::<Vec<_>>().join("; ")
}

impl World {
    pub fn judge_change(&mut self, who: Who, change: &Change) {
        let object = Arc::clone(change.object());
        self.judge_forgery(who, change);
        match (object.kind, &change.before, &change.after) {
            (Kind::StepRun, None, Some(made)) => {
                self.workload.learn(made);
                self.judge_made(made);
            }
            (Kind::StepRun, Some(before), Some(after)) => self.judge_step_run(before, after),
            (Kind::StepRun | Kind::Workflow, Some(before), None) => self.judge_removal(who, before),
            (Kind::Workflow, Some(before), Some(after)) => self.judge_workflow(before, after),
            (Kind::Job, None, Some(job)) if job.controller.is_some() => self.judge_job(job),
            (Kind::Job, Some(job), after) if after.as_ref().is_none_or(|j| j.is_deleting()) => {
                self.judge_deletion(who, job);
            }
            (Kind::Document, Some(before), Some(after)) => self.judge_document(before, after),
            _ => {}
        }
    }

    fn uphold(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violated(what());
        }
    }

    /// What nobody made who may is neither published nor read.
    fn judge_forgery(&mut self, who: Who, change: &Change) {
        let Some(after) = change.after.as_ref().filter(|_| matches!(who, Who::Operator(_))) else { return };
        let status = &after.value["status"];
        let read = match after.kind {
            Kind::Document => &after.value["spec"]["content"],
            Kind::StepRun => &after.value["spec"],
            Kind::Workflow => &status["output"],
            _ => return,
        };
        let stands =
            after.kind != Kind::Document || matches!(status["phase"].as_str(), Some("Published" | "Superseded"));
        let forged = stands && read.to_string().contains(people::FORGED);
        self.uphold(!forged, || format!("{:?} {}: what was forged counts", after.kind, after.name));
    }

    // ---- StepRuns

    fn judge_made(&mut self, made: &Arc<Object>) {
        let step_run: Arc<StepRun> = made.typed();
        let run = &step_run.spec.workflow.uid;
        self.uphold(made.is_controlled_by("Workflow", run), || {
            format!("{} is of run {run}, but not its own", made.name)
        });
        let first = self.judge.names.entry(made.name.clone()).or_insert_with(|| run.clone()).clone();
        self.uphold(first == *run, || format!("{} was of run {first} before, now it is of {run}", made.name));
        for wanted in &step_run.spec.documents {
            let there = |d: &&Arc<Object>| !self.judge.exchanged.contains(&d.name);
            let Some(found) = self.server.find(Kind::Document, &wanted.name).filter(there) else { continue };
            let status = &found.value["status"];
            // A newer one may have come since the look.
            let was = matches!(status["phase"].as_str(), Some("Published" | "Superseded"));
            let seen = was && status["digest"] == wanted.digest;
            let name = wanted.name.clone();
            self.uphold(seen, || format!("{} was given the document {name}, which is not published", made.name));
        }
        self.judge_item(&step_run);
        self.judge_slots(&step_run);
        self.judge_beginning(made);
    }

    /// All items of a forEach come from one list.
    fn judge_item(&mut self, step_run: &StepRun) {
        let spec = &step_run.spec;
        let (Some(item), [.., around, _]) = (&spec.item, spec.scope_chain.as_slice()) else { return };
        let Some(rev) = item.value.get("rev").cloned() else { return };
        let as_name = spec.scope_chain.last().map_or("", |l| l.scope.as_str());
        let first = self.judge.lists.entry(format!("{} {as_name}", around.scope_id)).or_insert_with(|| rev.clone());
        let same = *first == rev;
        self.uphold(same, || format!("{} is of another list than its siblings: {}", spec.path, item.value));
    }

    /// Items that were begun and never waited hold their slots.
    fn judge_slots(&mut self, made: &StepRun) {
        let Some(pinned) = upstream::definition(&self.server, &made.spec) else { return };
        let definition = &pinned.data;
        let mut path = String::new();
        let mut depth = 0;
        for part in made.spec.path.split('/') {
            path = if path.is_empty() { part.to_owned() } else { format!("{path}/{part}") };
            let Some(for_each) = definition.step(&path).and_then(|s| s.for_each.clone()) else { continue };
            let most = usize::try_from(for_each.max_parallel.unwrap_or(10)).unwrap_or(10);
            let around = made.spec.scope_chain[depth].scope_id.clone();
            depth += 1;
            let mut busy = BTreeSet::new();
            for other in self.server.all(Kind::StepRun) {
                let step_run: Arc<StepRun> = other.typed();
                let chain = &step_run.spec.scope_chain;
                let inside = step_run.spec.path == path || step_run.spec.path.starts_with(&format!("{path}/"));
                let same = chain.get(depth - 1).is_some_and(|l| l.scope_id == around);
                let open = step_run.status.as_ref().is_none_or(|s| s.completed_at.is_none());
                if inside && same && open {
                    let item = chain.get(depth).map(|l| l.scope_id.clone());
                    busy.extend(item.filter(|id| !self.judge.waited.contains(id)));
                }
            }
            self.uphold(busy.len() <= most, || format!("{path}: {} items run at once, {most} may", busy.len()));
        }
    }

    fn judge_step_run(&mut self, before: &Arc<Object>, after: &Arc<Object>) {
        let (old, new): (Arc<StepRun>, Arc<StepRun>) = (before.typed(), after.typed());
        self.judge.latest.insert(after.uid.clone(), Arc::clone(&new));
        let (old, new) = (old.status.clone().unwrap_or_default(), (new.status.clone().unwrap_or_default(), new));
        let (new, step_run) = new;
        let name = &after.name;
        self.uphold(new.attempt >= old.attempt && new.round >= old.round, || format!("{name}: the fence went back"));
        let terminal = new.phase.is_some_and(Phase::is_terminal);
        self.uphold(new.completed_at.is_some() == terminal, || format!("{name}: {:?} and its end", new.phase));
        if old.completed_at.is_some() {
            let same = (old.phase, &old.completed_at, old.attempt, &old.result, &old.gate)
                == (new.phase, &new.completed_at, new.attempt, &new.result, &new.gate);
            self.uphold(same, || format!("{name}: an end is the end, and it changed"));
        }
        if matches!(new.phase, Some(Phase::WaitingForAcceptance | Phase::WaitingForInput)) {
            self.judge.waited.extend(step_run.spec.scope_chain.iter().map(|l| l.scope_id.clone()));
        }
        if old.completed_at.is_none() && new.completed_at.is_some() {
            self.judge_step_end(after, &new);
        }
        self.judge_features(&new);
        self.judge_agent_part(after, &old, &new);
        // Gateways may be newer than operators: what these do not know they leave alone.
        let newer = |of: &Object| of.value["status"]["agent"]["newer"].clone();
        self.uphold(newer(before).is_null() || newer(before) == newer(after), || {
            format!("{name}: what a newer gateway has written is lost")
        });
        self.judge_gate(after, &step_run, &old, &new);
        self.judge_answers(after, &old, &new);
        if new.attempt > old.attempt {
            self.judge_budget(after, &old, &new);
        }
        if let (None, Some(result)) = (&old.result, &new.result) {
            let report = new.agent.as_ref().and_then(|a| a.report.as_ref());
            let of_report = report.is_some_and(|r| r.attempt == result.attempt && r.digest == result.digest);
            let of_people = step_run.spec.agent_id.is_empty() || step_run.spec.reuse.is_some();
            let own = of_report || of_people && report.is_none();
            self.uphold(own && result.attempt == new.attempt, || format!("{name}: a result that no report gave"));
        }
    }

    /// Claim and report are written once for an attempt.
    fn judge_agent_part(&mut self, after: &Arc<Object>, old: &StepRunStatus, new: &StepRunStatus) {
        let (was, is) = (old.agent.clone().unwrap_or_default(), new.agent.clone().unwrap_or_default());
        if let (Some(was), Some(is)) = (&was.claim, &is.claim) {
            self.uphold(was == is || is.attempt > was.attempt, || format!("{}: a claim was taken over", after.name));
        }
        if let Some(claim) = &is.claim {
            let key = (after.uid.clone(), claim.attempt);
            if was.claim.as_ref() != Some(claim) {
                self.judge_claim(after);
            }
            self.judge.claims.entry(key).or_insert(new.counts.answers);
        }
        if let Some(report) = &is.report {
            let again = was.report.as_ref().is_some_and(|r| r.attempt == report.attempt);
            if again {
                self.uphold(was.report == is.report, || format!("{}: a report was written over", after.name));
            } else {
                self.judge.reported.insert((after.uid.clone(), report.attempt));
                let fits =
                    is.claim.as_ref().is_some_and(|c| c.attempt == report.attempt) && report.attempt == new.attempt;
                self.uphold(fits, || format!("{}: a report of attempt {} got in", after.name, report.attempt));
                self.workload.reported(&after.uid, report.class);
            }
        }
    }

    fn judge_gate(&mut self, after: &Arc<Object>, step_run: &StepRun, old: &StepRunStatus, new: &StepRunStatus) {
        let was = old.gate.as_ref().map(|g| g.decisions.clone()).unwrap_or_default();
        let is = new.gate.as_ref().map(|g| g.decisions.clone()).unwrap_or_default();
        self.uphold(is.starts_with(&was), || format!("{}: a decision is gone", after.name));
        for decision in is.iter().skip(was.len()) {
            let word = if decision.accepted { "accepted" } else { "rejected" };
            let known = self.judge.letters.iter().any(|l| {
                l.uid == after.uid
                    && l.word == word
                    && l.by == decision.decided_by
                    && l.digest == decision.digest
                    && l.round == i64::from(decision.round)
            });
            let known = known || self.was_decided_there(step_run.spec.reuse.as_ref(), &decision.decided_by);
            self.uphold(known, || format!("{}: nobody proven decided {decision:?}", after.name));
        }
        let passed = new.phase == Some(Phase::Completed) && step_run.spec.gate.is_some();
        let open = upstream::is_open(step_run.spec.gate.as_ref(), new.gate.as_ref());
        let fresh = new.gate.as_ref().is_some_and(|g| g.round == new.round);
        if let Some(gate) = new.gate.as_ref().filter(|g| g.state == GateState::Rejected) {
            let said = gate.decisions.iter().any(|d| d.round == gate.round && !d.accepted);
            self.uphold(said, || format!("{}: rejected in a round in which nobody did", after.name));
        }
        self.uphold(!passed || open && fresh, || format!("{}: passed its gate unopened", after.name));
    }

    fn judge_answers(&mut self, after: &Arc<Object>, old: &StepRunStatus, new: &StepRunStatus) {
        let (was, is) = (old.counts.answers, new.counts.answers);
        self.uphold(is == was || is == was + 1, || format!("{}: {was} answers became {is}", after.name));
        // What an agent waits for is withdrawn where its attempt ends otherwise.
        let withdraws = self.workload.talks;
        let mut answered = old.questions.iter().filter(|was| was.answer.is_some());
        let kept = if withdraws {
            answered.all(|was| new.questions.contains(was))
        } else {
            new.questions.iter().zip(&old.questions).all(|(now, was)| was.answer.is_none() || now == was)
        };
        let names: BTreeSet<&str> = new.questions.iter().map(AskedQuestion::name).collect();
        let grown = (withdraws || new.questions.len() >= old.questions.len()) && names.len() == new.questions.len();
        self.uphold(kept && grown, || format!("{}: {:?} became {:?}", after.name, old.questions, new.questions));
        let given = self.judge.letters.iter().filter(|l| l.uid == after.uid && l.word != "accepted").count();
        let most = i32::try_from(given).unwrap_or(i32::MAX);
        // While the policies are away an answer has no proof, and is none.
        self.uphold(is <= most, || format!("{}: {is} answers count, {most} were given", after.name));
    }

    /// What failed without anybody's word between is bounded.
    fn judge_budget(&mut self, after: &Arc<Object>, old: &StepRunStatus, new: &StepRunStatus) {
        let budget = self.judge.budgets.entry(after.uid.clone()).or_default();
        if new.counts.answers > old.counts.answers {
            *budget = (0, 0);
            return;
        }
        match new.attempts.last().map(|a| a.result) {
            Some(AttemptResult::Infrastructure) => budget.1 += 1,
            // A name that somebody took costs nothing but the name, a question nothing at all.
            Some(AttemptResult::Cancelled | AttemptResult::NameConflict | AttemptResult::Asked) | None => {}
            Some(_) => budget.0 += 1,
        }
        let (own, lost) = *budget;
        self.uphold(own < 3 && lost <= 5, || {
            format!("{}: goes on by itself after {own} failures and {lost} losses", after.name)
        });
    }

    // ---- runs, Jobs, documents

    fn judge_workflow(&mut self, before: &Arc<Object>, after: &Arc<Object>) {
        let (old, new): (Arc<Workflow>, Arc<Workflow>) = (before.typed(), after.typed());
        let Some(new) = &new.status else { return };
        let bytes = after.value["status"].to_string().len();
        self.uphold(bytes < 64 * 1024, || format!("{bytes} bytes of status"));
        let terminal = new.phase.is_some_and(Phase::is_terminal);
        self.uphold(new.completed_at.is_some() == terminal, || format!("{}: {:?} and its end", after.name, new.phase));
        let was_over = old.status.as_ref().is_some_and(|s| s.completed_at.is_some());
        if new.completed_at.is_some() && !was_over {
            self.judge_ending(after);
        }
        let Some(old) = &old.status else { return };
        if old.completed_at.is_some() {
            let same = old.phase == new.phase && old.completed_at == new.completed_at && old.steps == new.steps;
            self.uphold(same, || format!("{}: an end is the end, and it changed", after.name));
        }
        let kept = old.definition.is_none() || old.definition == new.definition;
        self.uphold(kept, || format!("{}: the definition was pinned anew", after.name));
        for step in &old.steps {
            let now = new.steps.iter().find(|s| s.path == step.path);
            let latched = now.is_some_and(|n| {
                (step.step_run.is_none() || step.step_run == n.step_run)
                    && (step.collection_digest.is_none() || step.collection_digest == n.collection_digest)
            });
            self.uphold(latched, || format!("{}: {} forgot what was latched", after.name, step.path));
        }
    }

    /// No Job behind a gate that is shut.
    fn judge_job(&mut self, job: &Arc<Object>) {
        let (_, uid) = job.controller.clone().unwrap_or_default();
        let owner = self.server.all(Kind::StepRun).find(|s| s.uid == uid).cloned();
        if let Some(owner) = owner {
            self.judge_launch(job, &owner);
        }
    }

    /// The fence moves first.
    fn judge_deletion(&mut self, who: Who, job: &Arc<Object>) {
        let (Who::Operator(_), Some((_, uid))) = (who, &job.controller) else {
            let planted = self.judge.planted.iter().any(|p| p.uid == job.uid);
            return self.uphold(!planted, || format!("{} is somebody else's", job.name));
        };
        let Some(owner) = self.server.all(Kind::StepRun).find(|s| s.uid == *uid).cloned() else { return };
        let status = owner.typed::<StepRun>().status.clone().unwrap_or_default();
        let attempt: i32 = job.label(LABEL_ATTEMPT).and_then(|a| a.parse().ok()).unwrap_or_default();
        let behind = status.attempt > attempt || status.completed_at.is_some() || status.waiting_for.is_some();
        self.uphold(behind, || format!("{} was deleted, and attempt {attempt} still counts", job.name));
    }

    fn judge_document(&mut self, before: &Arc<Object>, after: &Arc<Object>) {
        let (old, new): (Arc<Document>, Arc<Document>) = (before.typed(), after.typed());
        let phase = |d: &Document| d.status.as_ref().and_then(|s| s.phase);
        let end = matches!(phase(&old), Some(DocumentPhase::Rejected));
        self.uphold(!end || phase(&new) == phase(&old), || format!("{}: what was rejected came back", after.name));
        if phase(&old) != Some(DocumentPhase::Published) && phase(&new) == Some(DocumentPhase::Published) {
            let step_runs: Vec<Arc<StepRun>> = self.server.all(Kind::StepRun).map(|s| s.typed()).collect();
            let makes = |s: &&Arc<StepRun>| {
                let report = s.status.as_ref().and_then(|s| s.agent.as_ref()?.report.as_ref());
                report.is_some_and(|r| r.document_name.as_deref() == Some(&after.name))
            };
            let author = step_runs.iter().find(makes);
            let decided = author.is_none_or(|s| {
                upstream::is_open(s.spec.gate.as_ref(), s.status.as_ref().and_then(|s| s.gate.as_ref()))
            });
            self.uphold(decided, || format!("{}: published before it was accepted", after.name));
        }
    }

    // ---- people

    /// A proven letter lies in a mailbox.
    pub fn judge_letter(&mut self, stored: &Object, written: &Value) {
        let status = &stored.value["status"];
        let text = written[ANSWER].as_str().map(|_| "answer");
        let word = written[DECISION].as_str().or(written[ACTION].as_str()).or(text).unwrap_or_default();
        self.judge.letters.push(Submission {
            step_run: stored.name.clone(),
            uid: stored.uid.clone(),
            word: word.to_owned(),
            by: written[DECIDED_BY].as_str().unwrap_or_default().to_owned(),
            digest: match people::waiting_action(status).filter(|digest| written[REVIEW] == *digest) {
                Some(action) => action.to_owned(),
                None => status["gate"]["outputDigest"].as_str().unwrap_or_default().to_owned(),
            },
            round: status["gate"]["round"].as_i64().unwrap_or_default(),
            answers: i32::try_from(status["counts"]["answers"].as_i64().unwrap_or_default()).unwrap_or_default(),
            refusals: self.judge.refusals.get(&stored.uid).copied().unwrap_or_default(),
        });
    }

    /// Reasons of the notices of a pass.
    pub fn judge_notices<'a>(&mut self, uid: &str, reasons: impl Iterator<Item = &'a str>) {
        let refusing = reasons.filter(|r| matches!(*r, "DecisionRefused" | "AnswerRefused"));
        let count = u32::try_from(refusing.count()).unwrap_or_default();
        *self.judge.refusals.entry(uid.to_owned()).or_default() += count;
    }

    /// A pass knows what it does: these StepRuns it is about to make, of that run as it saw it.
    pub fn judge_making<'a>(&mut self, about: &Object, names: impl Iterator<Item = &'a str>) {
        for name in names {
            let steps = about.value["status"]["steps"].as_array();
            let latched = steps.into_iter().flatten().any(|s| s["stepRun"] == name);
            self.uphold(!latched, || format!("{name} was begun, is gone, and is made again"));
        }
    }

    // ---- nodes

    pub fn judge_start(&mut self, process: &Process) {
        let key = (process.step_uid.clone(), process.attempt);
        let times = self.judge.starts.entry(key).or_default();
        *times += 1;
        let times = *times;
        self.uphold(times == 1, || {
            format!("attempt {} of {} started {times} times", process.attempt, process.step_run)
        });
        self.judge_repetition(process);
    }

    /// Where an earlier attempt may have had its effects, a person was asked before the next.
    fn judge_repetition(&mut self, process: &Process) {
        let step_run = self.judge.latest.get(&process.step_uid).cloned();
        let agent = step_run.as_ref().map(|s| s.spec.agent_id.clone()).unwrap_or_default();
        let status = step_run.and_then(|s| s.status.clone()).unwrap_or_default();
        let idempotent = self.workload.agents.iter().any(|(name, spec)| *name == agent && spec["idempotent"] == true);
        let earlier: Vec<(i32, i32)> = self
            .judge
            .starts
            .range((process.step_uid.clone(), 0)..(process.step_uid.clone(), process.attempt))
            .map(|(key, _)| (key.1, self.judge.claims.get(key).copied().unwrap_or_default()))
            .collect();
        for (attempt, answers) in earlier {
            let reported = self.judge.reported.contains(&(process.step_uid.clone(), attempt));
            let timed_out = status.attempts.iter().any(|a| a.number == attempt && a.result == AttemptResult::Timeout);
            let asked = status.counts.answers > answers;
            let dropped = !status.attempts.iter().any(|a| a.number == attempt) && status.attempts.len() >= 10;
            self.uphold(idempotent || reported || timed_out || asked || dropped, || {
                format!(
                    "attempt {} of {} started, and nobody knows what attempt {attempt} did",
                    process.attempt, process.step_run
                )
            });
        }
    }

    // ---- quiet

    /// Every run that has not ended names what it waits for.
    pub fn judge_waits(&mut self) {
        self.judge_standstill();
        for run in self.all(Kind::Workflow) {
            let workflow: Arc<Workflow> = run.typed();
            let status = workflow.status.clone().unwrap_or_default();
            if status.completed_at.is_some() {
                continue;
            }
            let waits = status.conditions.iter().find(|c| c.type_ == "Succeeded").map(|c| c.message.clone());
            let named = match status.phase {
                Some(Phase::WaitingForAcceptance | Phase::WaitingForInput) => status.waiting.is_some(),
                Some(Phase::WaitingForDocuments) => !status.pending_documents.is_empty(),
                Some(Phase::Pending) => waits.is_some_and(|w| !w.is_empty()),
                Some(Phase::Suspended) => workflow.spec.suspend == Some(true),
                _ => false,
            };
            self.uphold(named && !run.is_deleting(), || {
                format!("{}: {:?}, and nothing says what it waits for", run.name, status.phase)
            });
        }
    }

    /// Nothing said by a person is lost, and nothing foreign was touched.
    pub fn judge_end(&mut self) {
        for letter in self.judge.letters.clone() {
            let Some(found) = self.live(Kind::StepRun, &letter.step_run, &letter.uid) else { continue };
            let status = found.typed::<StepRun>().status.clone().unwrap_or_default();
            let refused = self.judge.refusals.get(&letter.uid).copied().unwrap_or_default() > letter.refusals;
            let latched = if is_answer(&letter.word) {
                status.counts.answers > letter.answers || status.phase == Some(Phase::Failed) && letter.word == "fail"
            } else {
                let of_action = status.approval_requests.iter().flat_map(|request| &request.gate.decisions);
                status.gate.iter().flat_map(|g| &g.decisions).any(|d| {
                    d.decided_by == letter.by && i64::from(d.round) == letter.round && d.digest == letter.digest
                }) || of_action.clone().any(|d| d.decided_by == letter.by && d.digest == letter.digest)
            };
            // What they decided about was exchanged under their hands: the step failed, and says so.
            let exchanged = status.error.as_ref().is_some_and(|e| e.class == AttemptResult::DocumentChanged);
            let closed = status.phase == Some(Phase::Cancelled) || exchanged;
            self.uphold(latched || refused || closed, || format!("{} is lost: {letter:?}", letter.word));
        }
        for planted in self.judge.planted.clone() {
            let same = self.server.find(planted.kind, &planted.name).is_some_and(|o| o.version == planted.version);
            self.uphold(same, || format!("{} is somebody else's, and was touched", planted.name));
        }
    }

    pub fn judge_leftovers(&mut self) {
        for kind in [Kind::Workflow, Kind::StepRun, Kind::Job, Kind::Pod, Kind::ControllerRevision, Kind::Document] {
            let left: Vec<String> = self
                .all(kind)
                .iter()
                // Whom somebody made an orphan on purpose, nobody looks after.
                .filter(|o| kind != Kind::Pod || o.controller.is_some())
                .filter(|o| !self.judge.planted.iter().any(|p| p.uid == o.uid))
                .filter(|o| {
                    kind != Kind::Document
                        || !matches!(o.value["spec"]["scope"].as_str(), Some("Session" | "Project" | "Namespace"))
                })
                .map(|o| o.name.clone())
                .collect();
            self.uphold(left.is_empty(), || format!("left behind: {kind:?} {left:?}"));
        }
    }
}

fn is_answer(word: &str) -> bool {
    matches!(word, "retry" | "skip" | "fail" | "answer")
}
