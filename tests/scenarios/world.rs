//! A cluster in memory, as far as decisions see one: objects pass through JSON as they would through the API server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lockstep::api::definition::Definition;
use lockstep::api::document::{Document, DocumentPhase, DocumentStatus};
use lockstep::api::name;
use lockstep::api::step::Step;
use lockstep::api::step_run::JobRef;
use lockstep::api::workflow::WorkflowStatus;
use lockstep::api::{Agent, Memory, StepRun, Workflow, WorkflowTemplate};
use lockstep::cluster::slots::{Applicant, Limit, QueuePosition, Slots};
use lockstep::decide::budget::{self, RunBudget};
use lockstep::decide::build::{
    ANNOTATION_AGENT_DIGEST, ANNOTATION_AGENT_GENERATION, ANNOTATION_AGENT_UID, Installation,
};
use lockstep::decide::content::{self, Changed, Content, Contents, DocumentLookup, Pin};
use lockstep::decide::gate::{self, Guard};
use lockstep::decide::mail::Mail;
use lockstep::decide::memory::{self, MemorySeen};
use lockstep::decide::settled::Settled;
use lockstep::decide::step_run::{Hold, Input, JobSeen, Lack, Need, PodSeen, Slot, SourceAgent};
use lockstep::decide::terms::ANNOTATION_TERMS_DIGEST;
use lockstep::decide::{DeletableKind, Effect, Notice, Plan, document, seen, step_run, workflow};
use lockstep::definition::pinned;
use lockstep::definition::program::Program;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A Job and its one pod.
#[derive(Clone)]
pub struct Work {
    pub uid: String,
    pub step_run: Option<String>,
    pub attempt: i32,
    pub created: Time,
    pub generation: Option<i64>,
    pub ran: SourceAgent,
    pub ended: bool,
    pub pod: Option<PodSeen>,
}

/// What happened, in the order in which it did.
pub enum Happened {
    Effect(Effect),
    Notice(String, Notice),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Document(String),
    Workflow(String),
    StepRun(String),
}

pub struct World {
    pub now: Timestamp,
    serial: u32,
    pub agents: BTreeMap<String, Agent>,
    pub templates: BTreeMap<String, WorkflowTemplate>,
    pub workflows: BTreeMap<String, Workflow>,
    pub step_runs: BTreeMap<String, StepRun>,
    pub documents: BTreeMap<String, Document>,
    pub memories: BTreeMap<String, Memory>,
    revisions: BTreeMap<String, ControllerRevision>,
    pub jobs: BTreeMap<String, Work>,
    pub guard: Guard,
    /// What people write to StepRuns in the moment in which the mailbox is emptied next.
    pub next_letters: BTreeMap<String, BTreeMap<String, String>>,
    /// When what lies in the mailboxes was written, as the API server dates it.
    dates: BTreeMap<String, Time>,
    /// What the API server says to every Job, and the Jobs that heard it.
    pub quota: Option<String>,
    refused: BTreeMap<String, String>,
    /// StepRuns of pods whose Job is gone, while they end.
    pub leaving: Vec<String>,
    pub slots: Slots,
    pub due: BTreeMap<Key, Timestamp>,
    settled: BTreeMap<String, Arc<Settled>>,
}

/// As the API server gives it back: whole seconds, absent fields absent.
fn stored<T: Serialize + DeserializeOwned>(object: &T) -> T {
    let text = serde_json::to_string(object).expect("it serializes");
    serde_json::from_str(&text).expect("it comes back")
}

impl World {
    pub fn new() -> Self {
        Self {
            now: "2026-01-01T00:00:00Z".parse().expect("a time"),
            serial: 0,
            agents: BTreeMap::new(),
            templates: BTreeMap::new(),
            workflows: BTreeMap::new(),
            step_runs: BTreeMap::new(),
            documents: BTreeMap::new(),
            memories: BTreeMap::new(),
            revisions: BTreeMap::new(),
            jobs: BTreeMap::new(),
            guard: Guard::Proven("policies-1".into()),
            next_letters: BTreeMap::new(),
            dates: BTreeMap::new(),
            quota: None,
            refused: BTreeMap::new(),
            leaving: Vec::new(),
            slots: Slots::new(0),
            due: BTreeMap::new(),
            settled: BTreeMap::new(),
        }
    }

    pub fn time(&self) -> Time {
        Time(self.now)
    }

    pub fn pass_time(&mut self, by: Duration) {
        self.now += SignedDuration::try_from(by).expect("a span");
    }

    /// UID, version, generation and birth, as the API server gives them.
    pub fn admit(&mut self, meta: &mut ObjectMeta, name: &str) {
        self.serial += 1;
        meta.name = Some(name.to_owned());
        meta.namespace = Some("team".into());
        meta.uid = Some(format!("{:08}-uid", self.serial));
        meta.resource_version = Some(self.serial.to_string());
        meta.generation = Some(1);
        meta.creation_timestamp = Some(self.time());
    }

    pub fn definition(&self, workflow: &Workflow) -> Option<Definition> {
        let kept = workflow.status.as_ref()?.definition.as_ref()?;
        let revision = self.revisions.get(&kept.revision_name)?;
        serde_json::from_value(pinned::json(revision.data.as_ref()?.0.clone()).ok()?).ok()
    }

    fn program(&self, workflow: &Workflow) -> Option<Arc<Program>> {
        self.definition(workflow).map(|definition| Arc::new(Program::compile(&definition).expect("a program")))
    }

    /// One more step, behind all others: the walk over the definition does not come to it while one before it is open.
    pub fn pin_step(&mut self, run: &Workflow, step: Step) {
        let mut definition = self.definition(run).expect("a definition");
        definition.steps.push(step);
        let kept = run.status.as_ref().and_then(|s| s.definition.as_ref()).expect("a pin");
        let revision = self.revisions.get_mut(&kept.revision_name).expect("a revision");
        revision.data = Some(RawExtension(pinned::data(&definition)));
    }

    pub fn run_of(&self, step_run: &StepRun) -> Option<&Workflow> {
        self.workflows
            .get(&step_run.spec.workflow.name)
            .filter(|w| w.metadata.uid.as_ref() == Some(&step_run.spec.workflow.uid))
    }

    // ---- observing

    fn memory_seen(&self, step_run: &StepRun, session: &str) -> MemorySeen {
        let wanted = memory::initial(step_run, session, &self.time()).metadata;
        memory::seen(self.memories.get(&own(&wanted)).map(|found| &found.metadata), &wanted)
    }

    /// Those that are to go with it.
    fn memories_of(&self, run: &Workflow) -> Vec<ObjectMeta> {
        let metas = self.memories.values().map(|memory| &memory.metadata);
        let owned = metas.filter(|meta| owned_by(meta, run.metadata.uid.as_deref()));
        owned.filter(|_| workflow::is_due(run, &self.time())).cloned().collect()
    }

    fn observe_workflow(&self, workflow: &Workflow) -> workflow::Observed {
        let template = workflow.spec.template_ref.as_ref().and_then(|t| self.templates.get(&t.name));
        let definition = self.program(workflow);
        let agents: BTreeMap<_, _> = workflow::agents(definition.as_deref(), template, workflow)
            .into_iter()
            .filter_map(|name| Some((name.clone(), Arc::new(self.agents.get(&name)?.clone()))))
            .collect();
        let table = |uid: Option<&String>| {
            let own = self.step_runs.iter().filter(move |(_, s)| Some(&s.spec.workflow.uid) == uid);
            own.map(|(name, s)| (name.clone(), Arc::new(s.clone()))).collect()
        };
        let of = workflow.spec.retry_of.as_ref();
        let there =
            of.and_then(|of| self.workflows.get(&of.name)).filter(|w| w.metadata.uid.as_ref() == of.map(|of| &of.uid));
        let previous = of.filter(|_| there.is_some() || definition.is_some()).map(|of| workflow::Previous {
            step_runs: table(Some(&of.uid)),
            definition: there.and_then(|w| self.program(w)),
        });
        let own = self.step_runs.values().filter(|s| Some(&s.spec.workflow.uid) == workflow.metadata.uid.as_ref());
        let budget = budget::of_run(definition.as_ref().and_then(|program| program.budget.as_ref()), own);
        workflow::Observed {
            template: template.cloned().map(Arc::new),
            definition,
            agents,
            step_runs: table(workflow.metadata.uid.as_ref()),
            unreadable: lockstep::decide::workflow::UnreadableObjects::default(),
            documents: self.documents.values().map(|d| (document::key(d), without_content(d))).collect(),
            contents: Contents::default(),
            memories: self.memories_of(workflow),
            pods_ending: self.pods_ending(workflow),
            plain_revision: None,
            budget,
            previous,
            settled: Arc::default(),
            evaluator: Arc::new(lockstep::definition::expression::InProcess),
            now: self.time(),
            workflow: Arc::new(workflow.clone()),
        }
    }

    fn observe_step_run(&self, own_name: &str, step_run: &StepRun) -> step_run::Observed {
        let run = self.run_of(step_run);
        let status = step_run.status.clone().unwrap_or_default();
        let job_name = seen::job_name(step_run, status.attempt);
        let job = self.jobs.get(&job_name);
        let agent = status.agent.clone().unwrap_or_default();
        let claimed = agent.claim.filter(|c| c.attempt == status.attempt);
        let pod = job.and_then(|j| j.pod.clone()).filter(|p| claimed.is_none_or(|c| c.pod_uid == p.uid));
        let made = content::made(step_run).unwrap_or_default();
        let document = self.found(made.document_name.as_ref());
        let definition = run.and_then(|w| self.program(w));
        step_run::Observed {
            hold: run.map_or(Hold::Stopping, step_run::hold),
            refusal: self.refused.get(&job_name).cloned(),
            slot: None,
            pods_alive: self.pods_alive(own_name),
            goes_last: false,
            input: None,
            budget: self.budget(step_run, definition.as_deref()),
            definition,
            agent: self.agents.get(&step_run.spec.agent_id).cloned().map(Arc::new),
            agent_fault: None,
            job: match job {
                None => JobSeen::Absent,
                Some(work) if work.step_run.as_deref() != Some(own_name) => {
                    JobSeen::Foreign(format!("uid {}", work.uid))
                }
                Some(work) => JobSeen::Present {
                    uid: work.uid.clone(),
                    created: Some(work.created.clone()),
                    deleting: false,
                    ended: work.ended,
                    agent_generation: work.generation,
                    ran: work.ran.clone(),
                },
            },
            pod,
            unfinished: self
                .jobs
                .iter()
                .filter(|(_, j)| j.step_run.as_deref() == Some(own_name) && !j.ended)
                .map(|(name, j)| (name.clone(), j.uid.clone(), j.attempt))
                .collect(),
            lingering: Vec::new(),
            event: None,
            revision: None,
            document,
            output: self.found(made.output_document.as_ref()),
            guard: Guard::NotAsked,
            mail: Mail::NotAsked,
            installation: Arc::new(Installation::default()),
            evaluator: Arc::new(lockstep::definition::expression::InProcess),
            now: self.time(),
            step_run: Arc::new(step_run.clone()),
        }
    }

    fn budget(&self, step_run: &StepRun, program: Option<&Program>) -> RunBudget {
        let own = self.step_runs.values().filter(|s| s.spec.workflow.uid == step_run.spec.workflow.uid);
        let limit = program.and_then(|program| program.budget.as_ref());
        let asker = self.run_of(step_run).and_then(|run| run.status.as_ref()?.budget.as_ref()?.step_run.clone());
        RunBudget { asker, ..budget::of_run(limit, own) }
    }

    fn found(&self, name: Option<&String>) -> DocumentLookup {
        name.map_or(DocumentLookup::NotAsked, |name| {
            DocumentLookup::of(self.documents.get(name).cloned().map(Arc::new))
        })
    }

    fn content(&self, pin: &Pin) -> Result<Content, Changed> {
        Content::of(pin, self.found(Some(&pin.name)).loaded())
    }

    pub fn pods_alive(&self, step_run: &str) -> usize {
        let of_jobs = self.jobs.values().filter(|j| j.step_run.as_deref() == Some(step_run));
        let running = of_jobs.filter(|j| j.pod.as_ref().is_some_and(|p| !p.ended)).count();
        running + self.leaving.iter().filter(|s| *s == step_run).count()
    }

    fn pods_ending(&self, run: &Workflow) -> usize {
        let own = self.step_runs.iter().filter(|(_, s)| Some(&s.spec.workflow.uid) == run.metadata.uid.as_ref());
        let completed = own.filter(|(_, s)| seen::waits_for_pods(run, s));
        completed.map(|(name, _)| self.pods_alive(name)).sum()
    }

    /// What a decision lacks, as the operator gets it.
    fn get(&self, o: &mut step_run::Observed, lack: Lack) {
        match lack {
            Lack::Slot(need) => o.slot = Some(self.slot(need, o)),
            Lack::Definition => panic!("the pinned definition of {} is gone", o.step_run.spec.path),
            Lack::Input => {
                let step = o.definition.as_ref().and_then(|d| d.step(&o.step_run.spec.path));
                let produces = step.and_then(|s| s.produces()).map(|p| p.document_type.as_str());
                let changed = content::inputs(&o.step_run, produces).iter().find_map(|pin| self.content(pin).err());
                let session = o.definition.as_ref().map(|d| d.run.session.clone()).unwrap_or_default();
                o.input = Some(Input { changed, memory: self.memory_seen(&o.step_run, &session), ..Input::default() });
            }
            Lack::Policies => o.guard = self.guard.clone(),
            Lack::Mail => o.mail = Mail::Read(self.dates.get(&own(&o.step_run.metadata)).cloned()),
            Lack::Revision => o.revision = o.document.loaded().map(|d| self.number(d.document())),
        }
    }

    fn slot(&self, need: Need, o: &step_run::Observed) -> Slot {
        let (meta, run) = (&o.step_run.metadata, self.run_of(&o.step_run));
        let who = Applicant {
            namespace: "team".into(),
            agent: o.step_run.spec.agent_id.clone(),
            limit: Limit::of(o.agent.as_deref()),
            position: QueuePosition {
                run_created: run.and_then(|r| r.metadata.creation_timestamp.clone()),
                run: o.step_run.spec.workflow.name.clone(),
                created: meta.creation_timestamp.clone(),
                name: own(meta),
                uid: meta.uid.clone().unwrap_or_default(),
            },
        };
        match need {
            Need::Nothing => self.slots.release(&who.position.uid),
            Need::Holds => self.slots.hold(&who),
            Need::Launch => return self.slots.ask(&who),
        }
        Slot::Yours
    }

    fn of_type(&self, kind: &str) -> Vec<Arc<Document>> {
        self.documents.values().filter(|d| d.spec.document_type == kind).map(without_content).collect()
    }

    fn number(&self, document: &Document) -> i64 {
        document::next_revision(document, &self.of_type(&document.spec.document_type))
    }

    // ---- passing

    /// Everything that a watch would wake.
    pub fn keys(&self) -> Vec<Key> {
        let documents = self.documents.keys().cloned().map(Key::Document);
        let runs = self.workflows.keys().cloned().map(Key::Workflow);
        let step_runs = self.step_runs.keys().cloned().map(Key::StepRun);
        documents.chain(runs).chain(step_runs).collect()
    }

    /// One pass over one object; whether anything was decided.
    pub fn pass(&mut self, key: &Key, log: &mut Vec<Happened>) -> bool {
        self.pass_time(Duration::from_millis(1));
        let before = log.len();
        let (requeue, wrote) = match key {
            Key::Document(name) => (None, self.pass_document(name, log)),
            Key::Workflow(name) => self.pass_workflow(name, log),
            Key::StepRun(name) => self.pass_step_run(name, log),
        };
        match requeue {
            Some(after) => {
                let at = self.now + SignedDuration::try_from(after).expect("a span");
                self.due.insert(key.clone(), at);
            }
            None => {
                self.due.remove(key);
            }
        }
        wrote || log.len() > before
    }

    fn pass_document(&mut self, name: &str, log: &mut Vec<Happened>) -> bool {
        let Some(found) = self.documents.get(name) else {
            return false;
        };
        let siblings = self.of_type(&found.spec.document_type);
        let status = document::standing(found, &siblings, Some(self.number(found)));
        let Some(status) = status else { return false };
        let effect = document::set_status(found, status);
        self.carry_out(effect, log);
        true
    }

    fn pass_workflow(&mut self, name: &str, log: &mut Vec<Happened>) -> (Option<Duration>, bool) {
        let Some(found) = self.workflows.get(name).cloned() else {
            return (None, false);
        };
        let plan = self.decided(&found);
        for effect in plan.effects {
            self.carry_out(effect, log);
        }
        let wrote = plan.status.is_some();
        if let Some(status) = plan.status {
            let slot = self.workflows.get_mut(name).expect("it is there");
            slot.status = Some(stored(&status));
        }
        let about = |n| Happened::Notice(format!("run {name}"), n);
        log.extend(plan.notices.into_iter().map(about));
        (plan.requeue, wrote)
    }

    /// Decides as the operator does: with what it remembers, reading what it is asked to. A forgetful one must come to
    /// the same decision.
    fn decided(&mut self, found: &Workflow) -> Plan<WorkflowStatus> {
        let uid = found.metadata.uid.clone().unwrap_or_default();
        let forgetful = self.observe_workflow(found);
        let settled = self.settled.get(&uid).cloned().unwrap_or_default();
        let (plan, settled) = self.read(workflow::Observed { settled, ..forgetful.clone() });
        assert_eq!(plan, self.read(forgetful).0, "what is remembered makes a difference");
        self.settled.insert(uid, settled);
        plan
    }

    /// Decides, and reads as far as it is asked to.
    fn read(&self, mut observed: workflow::Observed) -> (Plan<WorkflowStatus>, Arc<Settled>) {
        for _ in 0..100 {
            let decided = workflow::decide(&observed);
            let unread = match decided.plan {
                Ok(plan) => return (plan, decided.settled),
                Err(unread) => unread.0,
            };
            observed.contents.make_room(unread.len());
            for pin in unread {
                if !observed.contents.is_full() {
                    let content = self.content(&pin);
                    observed.contents.insert(pin, content);
                }
            }
        }
        panic!("it reads for ever")
    }

    fn pass_step_run(&mut self, name: &str, log: &mut Vec<Happened>) -> (Option<Duration>, bool) {
        let Some(found) = self.step_runs.get(name).cloned() else {
            return (None, false);
        };
        let mut observed = self.observe_step_run(name, &found);
        let mut plan = loop {
            match step_run::decide(&observed) {
                Ok(plan) => break plan,
                Err(lack) => self.get(&mut observed, lack),
            }
        };
        for effect in plan.effects {
            if let (Effect::CreateJob(job), Some(why)) = (&effect, &self.quota) {
                // The pass ends there; the next one sees what was said.
                self.refused.insert(own(&job.metadata), why.clone());
                return (Some(Duration::ZERO), true);
            }
            let made = if let Effect::CreateJob(job) = &effect { Some(own(&job.metadata)) } else { None };
            self.carry_out(effect, log);
            if let (Some(name), Some(status)) = (made, &mut plan.status) {
                let uid = self.jobs[&name].uid.clone();
                let terms = self.jobs[&name].ran.terms.clone();
                status.job = Some(JobRef { attempt: status.attempt, name, uid, terms });
            }
        }
        let wrote = plan.status.is_some();
        if let Some(status) = plan.status {
            let slot = self.step_runs.get_mut(name).expect("it is there");
            slot.status = Some(stored(&status));
        }
        let about = |n| Happened::Notice(name.to_owned(), n);
        log.extend(plan.notices.into_iter().map(about));
        (plan.requeue, wrote)
    }

    // ---- acting

    fn carry_out(&mut self, effect: Effect, log: &mut Vec<Happened>) {
        match &effect {
            Effect::CreateRevision(object) => {
                let mut object = stored(object.as_ref());
                let name = own(&object.metadata);
                self.admit(&mut object.metadata, &name);
                self.revisions.entry(name).or_insert(object);
            }
            Effect::CreateDocument(object) => self.put_document(stored(object.as_ref())),
            Effect::CreateStepRun(object) => {
                let mut object = stored(object.as_ref());
                let name = own(&object.metadata);
                self.admit(&mut object.metadata, &name);
                let twice = self.step_runs.insert(name.clone(), object).is_some();
                assert!(!twice, "StepRun {name} was made twice");
            }
            Effect::CreateMemory(object) => {
                let mut object = stored(object.as_ref());
                let name = own(&object.metadata);
                object.metadata.uid = Some(format!("{name}-uid"));
                let twice = self.memories.insert(name.clone(), object).is_some();
                assert!(!twice, "Memory {name} was made twice");
            }
            Effect::CreateNetworkPolicy(_) => unreachable!("no Agent of a story limits its egress"),
            Effect::StartRun { .. } => unreachable!("no Trigger is looked at"),
            Effect::UseMemory { name, uid, at } => {
                let found = self.memories.get_mut(name).expect("a Memory");
                assert_eq!(found.metadata.uid.as_ref(), Some(uid), "another Memory");
                let annotations = found.metadata.annotations.get_or_insert_default();
                annotations.insert(name::LAST_USED.to_owned(), at.0.to_string());
            }
            Effect::CreateJob(job) => {
                let created = Work {
                    step_run: job.metadata.owner_references.as_ref().map(|o| o[0].name.clone()),
                    ran: SourceAgent {
                        uid: annotation(job, ANNOTATION_AGENT_UID),
                        digest: annotation(job, ANNOTATION_AGENT_DIGEST),
                        terms: annotation(job, ANNOTATION_TERMS_DIGEST),
                    },
                    generation: job
                        .metadata
                        .annotations
                        .as_ref()
                        .and_then(|a| a.get(ANNOTATION_AGENT_GENERATION)?.parse().ok()),
                    attempt: super::print::attempt(job),
                    ..self.work()
                };
                self.jobs.entry(own(&job.metadata)).or_insert(created);
            }
            Effect::Delete { what, name, uid } => self.delete(*what, name, uid),
            Effect::SetDocumentStatus { name, seen, status } => {
                self.assert_decided(name, status);
                let found = self.documents.get_mut(name).expect("what was decided on");
                let same = seen.as_ref().is_none_or(|seen| found.metadata.uid.as_ref() == Some(&seen.uid));
                assert!(same, "{name} is another one by now");
                if seen.is_some() || !document::has_standing(found) {
                    found.status = Some(stored(status));
                }
            }
            Effect::EmptyMailbox { step_run, resource_version, keys } => {
                self.empty_mailbox(step_run, resource_version, keys);
            }
        }
        log.push(Happened::Effect(effect));
    }

    fn empty_mailbox(&mut self, step_run: &str, resource_version: &str, keys: &[&str]) {
        let (next, time) = (self.next_letters.remove(step_run), self.time());
        let found = self.step_runs.get_mut(step_run).expect("a StepRun");
        let current = found.metadata.resource_version.as_deref();
        assert_eq!(current, Some(resource_version), "a mailbox of another time");
        let annotations = found.metadata.annotations.get_or_insert_default();
        annotations.retain(|key, _| !keys.contains(&key.as_str()));
        self.dates.remove(step_run);
        if let Some(letter) = next {
            annotations.extend(letter);
            self.dates.insert(step_run.to_owned(), stored(&time));
        }
    }

    /// What a gate is about is published only when the decision is stored.
    fn assert_decided(&self, name: &str, status: &DocumentStatus) {
        let makes = |s: &&StepRun| {
            let report = s.status.as_ref().and_then(|s| s.agent.as_ref()?.report.as_ref());
            report.is_some_and(|r| r.document_name.as_deref() == Some(name))
        };
        if let Some(step_run) = self.step_runs.values().find(makes) {
            let gate = step_run.status.as_ref().and_then(|s| s.gate.as_ref());
            let decided = gate::can_proceed(step_run.spec.gate.as_ref(), gate);
            assert!(
                decided || status.phase != Some(DocumentPhase::Published),
                "{name} is published before it is accepted"
            );
        }
    }

    fn delete(&mut self, what: DeletableKind, name: &str, uid: &str) {
        let same = |meta: &ObjectMeta| meta.uid.as_deref() == Some(uid);
        match what {
            DeletableKind::Job => {
                if let Some(gone) = self.jobs.get(name).filter(|j| j.uid == *uid).cloned() {
                    self.jobs.remove(name);
                    let alive = gone.pod.is_some_and(|p| !p.ended);
                    self.leaving.extend(gone.step_run.filter(|_| alive));
                }
            }
            DeletableKind::StepRun if self.step_runs.get(name).is_some_and(|s| same(&s.metadata)) => {
                self.step_runs.remove(name);
                self.jobs.retain(|_, j| j.step_run.as_deref() != Some(name));
            }
            DeletableKind::Document if self.documents.get(name).is_some_and(|d| same(&d.metadata)) => {
                self.documents.remove(name);
            }
            DeletableKind::Memory if self.memories.get(name).is_some_and(|m| same(&m.metadata)) => {
                self.memories.remove(name);
            }
            DeletableKind::Workflow if self.workflows.get(name).is_some_and(|w| same(&w.metadata)) => {
                self.workflows.remove(name);
                self.step_runs.retain(|_, s| s.spec.workflow.uid != uid);
                self.memories.retain(|_, m| !owned_by(&m.metadata, Some(uid)));
            }
            _ => {}
        }
    }

    /// A Job with a pod that has not claimed yet.
    pub fn work(&mut self) -> Work {
        self.serial += 1;
        Work {
            uid: format!("{:08}-uid", self.serial),
            step_run: None,
            attempt: 1,
            created: stored(&self.time()),
            generation: None,
            ran: SourceAgent::default(),
            ended: false,
            pod: Some(PodSeen { uid: format!("{:08}-pod", self.serial), ..PodSeen::default() }),
        }
    }

    pub fn put_document(&mut self, mut object: Document) {
        let name = own(&object.metadata);
        if !self.documents.contains_key(&name) {
            self.admit(&mut object.metadata, &name);
            self.documents.insert(name, object);
        }
    }

    /// What a person writes to a StepRun; the API server dates it, unless nobody keeps dates of this object any more.
    pub fn write_letter(&mut self, step_run: &str, letter: BTreeMap<String, String>, is_dated: bool) {
        if is_dated {
            self.dates.insert(step_run.to_owned(), stored(&self.time()));
        }
        self.touch(step_run).metadata.annotations.get_or_insert_default().extend(letter);
    }

    /// A write of somebody else: the version moves.
    pub fn touch(&mut self, step_run: &str) -> &mut StepRun {
        self.serial += 1;
        let version = self.serial.to_string();
        let found = self.step_runs.get_mut(step_run).expect("a StepRun");
        found.metadata.resource_version = Some(version);
        found
    }
}

fn annotation(job: &Job, key: &str) -> Option<String> {
    job.metadata.annotations.as_ref()?.get(key).cloned()
}

pub fn own(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

fn without_content(document: &Document) -> Arc<Document> {
    let mut document = document.clone();
    document.spec.content = String::new();
    Arc::new(document)
}

fn owned_by(meta: &ObjectMeta, uid: Option<&str>) -> bool {
    meta.owner_references.iter().flatten().any(|owner| Some(owner.uid.as_str()) == uid)
}
