//! What a pass sees: `cluster/observe.rs` over an operator's own caches, with live reads where that has them. The one
//! place that builds each `Observed`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockstep::api::name::LABEL_STEP_RUN;
use lockstep::api::workflow::{DefinitionRef, WorkflowStatus};
use lockstep::api::{Agent, Document, StepRun, Workflow, WorkflowTemplate};
use lockstep::decide::Plan;
use lockstep::decide::build::Installation;
use lockstep::decide::content::{self, Changed, Content, Contents, DocumentLookup, Loaded, Pin};
use lockstep::decide::document::{self, Documents};
use lockstep::decide::gate::Guard;
use lockstep::decide::mail::{self, Mail};
use lockstep::decide::seen;
use lockstep::decide::step_run::{self, Hold, Input, JobSeen, Lack, PodSeen};
use lockstep::decide::workflow::{self, Previous, StepRuns};
use lockstep::definition::expression::InProcess;
use lockstep::definition::program::Program;

use super::operator::Trouble;
use super::server::{Kind, Object, Request};
use super::world::{Who, World};

impl World {
    pub fn observe_workflow(&mut self, op: usize, object: &Arc<Object>) -> Result<workflow::Observed, Trouble> {
        let workflow: Arc<Workflow> = object.typed();
        let template =
            workflow.spec.template_ref.as_ref().and_then(|t| self.cached(op, Kind::WorkflowTemplate, &t.name));
        let template: Option<Arc<WorkflowTemplate>> = template.map(|t| t.typed());
        let pinned = workflow.status.as_ref().and_then(|s| s.definition.clone());
        let definition = match &pinned {
            Some(pinned) => self.definition(op, pinned, &object.uid)?,
            None => None,
        };
        let named = workflow::agents(definition.as_deref(), template.as_deref(), &workflow);
        let agents: BTreeMap<String, Arc<Agent>> = named
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.cached(op, Kind::Agent, &name)?.typed())))
            .collect();
        let step_runs = self.step_runs(op, &workflow, &object.uid)?;
        let mut documents: Documents = self.documents(op).into_iter().map(|d| (document::key(&d), d)).collect();
        let now = self.time(self.operators[op].ahead);
        let mut settled = self.operators[op].settled.get(&object.uid).cloned().unwrap_or_default();
        let (mut late, mut gone, mut shown) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (step_run, name) in workflow::committed(&workflow, &step_runs, &settled).documents {
            let seen = self.cached(op, Kind::Document, &name).map(|d| d.typed::<Document>());
            let there = |d: &Document| {
                document::has_standing(d) || d.spec.document_type == lockstep::api::document::OUTPUT_TYPE
            };
            if seen.is_some_and(|d| there(&d)) {
                continue;
            }
            let live = match settled.shown.get(&name) {
                Some(known) => Some(Arc::clone(known)),
                None => self.get(op, Kind::Document, &name)?.map(|live| bare(&live)),
            };
            let Some(live) = live else {
                gone.push(name);
                continue;
            };
            if there(&live) {
                shown.insert(name, Arc::clone(&live));
            }
            late.extend(step_run);
            documents.insert_mut(document::key(&live), live);
        }
        let remembered = Arc::make_mut(&mut settled);
        (remembered.late, remembered.shown) = (late, Arc::new(shown));
        Arc::make_mut(&mut remembered.gone).extend(gone);
        let previous = self.previous(op, &workflow)?;
        let pods_ending = self.pods_ending(op, &workflow, &step_runs, &now);
        Ok(workflow::Observed {
            template,
            definition,
            agents,
            step_runs,
            unreadable: lockstep::decide::workflow::UnreadableObjects::default(),
            documents,
            contents: Contents::default(),
            memories: Vec::new(),
            pods_ending,
            plain_revision: None,
            budget: lockstep::decide::budget::RunBudget::default(),
            previous,
            settled,
            evaluator: Arc::new(InProcess),
            now,
            workflow,
        })
    }

    /// Decides, and fetches contents as far as the decision asks for them: `controllers/context.rs`.
    pub fn decided(
        &mut self,
        op: usize,
        mut observed: workflow::Observed,
        uid: &str,
    ) -> Result<Plan<WorkflowStatus>, Trouble> {
        loop {
            let decided = workflow::decide(&observed);
            self.operators[op].settled.insert(uid.to_owned(), Arc::clone(&decided.settled));
            let unread = match decided.plan {
                Ok(plan) => return Ok(plan),
                Err(unread) => unread.0,
            };
            for pin in unread {
                let content = self.content(op, &pin)?;
                let cached = self.cached(op, Kind::Document, &pin.name).map(|d| d.uid.clone());
                if content.is_err() && cached.is_some() && cached == pin.uid {
                    let live = self.get(op, Kind::Document, &pin.name)?.map(|d| d.uid.clone());
                    if live != cached {
                        return Err(Trouble::Stale);
                    }
                }
                observed.contents.insert(pin, content);
            }
        }
    }

    pub fn cached(&self, op: usize, kind: Kind, name: &str) -> Option<Arc<Object>> {
        self.operators[op].caches.get(&kind)?.objects.get(name).cloned()
    }

    pub fn cached_all(&self, op: usize, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.operators[op].caches.get(&kind).into_iter().flat_map(|c| c.objects.values())
    }

    fn get(&mut self, op: usize, kind: Kind, name: &str) -> Result<Option<Arc<Object>>, Trouble> {
        if self.chance.mille(self.faults.lost_reply / 4) {
            return Err(Trouble::Api);
        }
        Ok(self.ask(Who::Operator(op), &Request::Get(kind, name.to_owned())).ok())
    }

    fn previous(&mut self, op: usize, workflow: &Workflow) -> Result<Option<Previous>, Trouble> {
        let status = workflow.status.as_ref();
        let of = workflow.spec.retry_of.as_ref().filter(|_| status.is_none_or(|s| s.completed_at.is_none()));
        let Some(of) = of else { return Ok(None) };
        let run = match self.cached(op, Kind::Workflow, &of.name).filter(|w| w.uid == of.uid) {
            Some(cached) => Some(cached),
            None => self.get(op, Kind::Workflow, &of.name)?.filter(|w| w.uid == of.uid),
        };
        if run.is_none() && status.is_none_or(|s| s.definition.is_none()) {
            return Ok(None);
        }
        let pinned = run.and_then(|w| w.typed::<Workflow>().status.as_ref()?.definition.clone());
        let definition = match pinned {
            Some(pinned) => self.definition(op, &pinned, &of.uid)?,
            None => None,
        };
        let own = self.cached_all(op, Kind::StepRun).filter(|s| s.is_controlled_by("Workflow", &of.uid));
        Ok(Some(Previous { step_runs: own.map(|s| (s.name.clone(), s.typed())).collect(), definition }))
    }

    fn definition(&mut self, op: usize, pinned: &DefinitionRef, run: &str) -> Result<Option<Arc<Program>>, Trouble> {
        if let Some(found) = self.operators[op].definitions.get(run) {
            return Ok(Some(Arc::clone(found)));
        }
        let found = self.get(op, Kind::ControllerRevision, &pinned.revision_name)?;
        let found = found.filter(|r| r.controller.as_ref().is_some_and(|(_, uid)| uid == run));
        let Some(found) = found else { return Ok(None) };
        let Ok(definition) = lockstep::definition::pinned::read(found.value["data"].clone(), &pinned.digest) else {
            return Ok(None);
        };
        let definition = Arc::new(definition);
        self.operators[op].definitions.insert(run.to_owned(), Arc::clone(&definition));
        Ok(Some(definition))
    }

    /// The cache keeps no contents.
    fn documents(&mut self, op: usize) -> Vec<Arc<Document>> {
        let found: Vec<Arc<Object>> = self.cached_all(op, Kind::Document).cloned().collect();
        let kept = &mut self.operators[op].bare;
        found.iter().map(|object| Arc::clone(kept.entry(object.version).or_insert_with(|| bare(object)))).collect()
    }

    fn siblings(&mut self, op: usize, of: &Document) -> Vec<Arc<Document>> {
        let all: Documents = self.documents(op).into_iter().map(|d| (document::key(&d), d)).collect();
        document::siblings(&all, of)
    }

    fn step_runs(&mut self, op: usize, workflow: &Workflow, uid: &str) -> Result<StepRuns, Trouble> {
        let own = self.cached_all(op, Kind::StepRun).filter(|s| s.is_controlled_by("Workflow", uid));
        let mut found: StepRuns = own.map(|s| (s.name.clone(), s.typed())).collect();
        if workflow.status.as_ref().is_some_and(|s| s.completed_at.is_some()) {
            return Ok(found);
        }
        let latched = workflow.status.iter().flat_map(|s| &s.steps).filter_map(|s| s.step_run.as_ref());
        let unseen: Vec<String> = latched.filter(|name| !found.contains_key(*name)).cloned().collect();
        for name in unseen {
            let live = self.get(op, Kind::StepRun, &name)?.filter(|s| s.is_controlled_by("Workflow", uid));
            if let Some(live) = live {
                found.insert_mut(name, live.typed());
            }
        }
        if found.size() < seen::begun(workflow) {
            for live in self.all(Kind::StepRun).iter().filter(|s| s.is_controlled_by("Workflow", uid)) {
                if !found.contains_key(&live.name) {
                    found.insert_mut(live.name.clone(), live.typed());
                }
            }
        }
        Ok(found)
    }

    fn content(&mut self, op: usize, pin: &Pin) -> Result<Result<Content, Changed>, Trouble> {
        let kept = pin.uid.as_ref().and_then(|uid| self.operators[op].texts.get(uid));
        if let Some(Ok(content)) = kept.map(|kept| Content::of(pin, Some(kept))) {
            return Ok(Ok(content));
        }
        let loaded = self.get(op, Kind::Document, &pin.name)?.map(|d| Loaded::new(d.typed()));
        let content = Content::of(pin, loaded.as_ref());
        if let (Ok(_), Some(loaded)) = (&content, loaded) {
            let uid = loaded.document().metadata.uid.clone().unwrap_or_default();
            self.operators[op].texts.insert(uid, loaded);
        }
        Ok(content)
    }

    fn changed_input(&mut self, op: usize, o: &step_run::Observed) -> Result<Option<Changed>, Trouble> {
        let step = o.definition.as_ref().and_then(|d| d.step(&o.step_run.spec.path));
        let produces = step.and_then(|s| s.produces()).map(|p| p.document_type.as_str());
        for pin in content::inputs(&o.step_run, produces) {
            let cached = self.cached(op, Kind::Document, &pin.name).map(|d| d.typed::<Document>());
            if cached.is_some_and(|d| pin.is_met_by(&d)) {
                continue;
            }
            if let Err(changed) = self.content(op, &pin)? {
                return Ok(Some(changed));
            }
        }
        Ok(None)
    }

    // ---- StepRuns

    pub fn observe_step_run(&mut self, op: usize, object: &Arc<Object>) -> Result<step_run::Observed, Trouble> {
        let step_run: Arc<StepRun> = object.typed();
        let identity = &step_run.spec.workflow;
        let run = match self.cached(op, Kind::Workflow, &identity.name).filter(|w| w.uid == identity.uid) {
            Some(cached) => Some(cached),
            None => self.get(op, Kind::Workflow, &identity.name)?.filter(|w| w.uid == identity.uid),
        };
        let done = step_run.status.as_ref().is_some_and(|s| s.completed_at.is_some());
        let pinned = &step_run.spec.definition;
        let definition = if done { None } else { self.definition(op, pinned, &identity.uid)? };
        let attempt = step_run.status.as_ref().map_or(1, |s| s.attempt);
        let job_name = seen::job_name(&step_run, attempt);
        let run = run.map(|w| w.typed::<Workflow>());
        let hold = run.as_ref().map_or(Hold::Stopping, |w| step_run::hold(w));
        let jobs = self.jobs(op, object, &step_run, hold)?;
        let pods = self.pods_of(op, &step_run, &jobs);
        let name = step_run.status.as_ref().and_then(|s| s.result.as_ref()?.document_name.clone());
        let seen = name.and_then(|name| self.cached(op, Kind::Document, &name)).map(|d| d.typed::<Document>());
        let publishes = step_run::is_published_late(&step_run) && seen.is_none_or(|d| !document::has_standing(&d));
        let made = content::made(&step_run).filter(|_| !done || publishes).unwrap_or_default();
        let document = self.found(op, made.document_name.as_deref())?;
        let gated = step_run.spec.gate.is_some() && !done;
        let output = self.found(op, made.output_document.as_deref().filter(|_| gated))?;
        let now = self.time(self.operators[op].ahead);
        Ok(step_run::Observed {
            hold,
            refusal: None,
            slot: None,
            goes_last: seen::goes_last(&step_run, run.as_deref()),
            pods_alive: pods.iter().filter(|p| seen::is_alive(p, &now)).count(),
            agent: self.cached(op, Kind::Agent, &step_run.spec.agent_id).map(|a| a.typed()),
            agent_fault: None,
            job: self.job_seen(op, &job_name, &jobs),
            pod: if done { None } else { self.pod(op, &step_run, attempt, &pods)? },
            unfinished: jobs
                .iter()
                .map(|j| j.typed())
                .filter(|j| seen::is_unfinished(j))
                .map(|j| seen::identity(&j))
                .collect(),
            lingering: seen::lingering(&pods),
            event: None,
            guard: Guard::NotAsked,
            mail: Mail::NotAsked,
            installation: Arc::new(Installation::default()),
            evaluator: Arc::new(InProcess),
            now,
            definition,
            document,
            revision: None,
            output,
            input: None,
            budget: lockstep::decide::budget::RunBudget::default(),
            step_run,
        })
    }

    /// What a decision lacks, as the operator gets it.
    pub fn get_lack(&mut self, op: usize, observed: &mut step_run::Observed, lack: Lack) -> Result<(), Trouble> {
        match lack {
            Lack::Slot(need) => observed.slot = Some(self.slot(op, need, &observed.step_run)),
            Lack::Definition => return Err(Trouble::Api),
            Lack::Input => {
                // What agents remember decides nothing, and is not simulated here.
                let changed = self.changed_input(op, observed)?;
                observed.input = Some(Input { changed, ..Input::default() });
            }
            Lack::Policies => observed.guard = self.guard(),
            Lack::Mail => observed.mail = self.mail(op, &observed.step_run)?,
            Lack::Revision => {
                let made = observed.document.loaded().map(lockstep::decide::content::Loaded::document);
                observed.revision = made.map(|made| document::next_revision(made, &self.siblings(op, made)));
            }
        }
        Ok(())
    }

    /// When its mailbox was written to, of the version that is decided on.
    fn mail(&mut self, op: usize, step_run: &StepRun) -> Result<Mail, Trouble> {
        let live = self.get(op, Kind::StepRun, step_run.metadata.name.as_deref().unwrap_or_default())?;
        let live = live.map(|live| live.typed::<StepRun>()).ok_or(Trouble::Stale)?;
        let same = live.metadata.resource_version == step_run.metadata.resource_version;
        if same { Ok(Mail::Read(mail::written(&live.metadata))) } else { Err(Trouble::Stale) }
    }

    /// Where a Job decides by its absence, only the API server says that it is not there.
    fn jobs(
        &mut self,
        op: usize,
        object: &Object,
        step_run: &StepRun,
        hold: Hold,
    ) -> Result<Vec<Arc<Object>>, Trouble> {
        let own = |j: &Arc<Object>| {
            j.is_controlled_by("StepRun", &object.uid) && j.label(LABEL_STEP_RUN) == Some(object.name.as_str())
        };
        let mut jobs: Vec<Arc<Object>> = self.cached_all(op, Kind::Job).filter(|j| own(j)).cloned().collect();
        let Some(name) = seen::decisive_job(step_run, hold).map(|attempt| seen::job_name(step_run, attempt)) else {
            return Ok(jobs);
        };
        if jobs.iter().all(|j| j.name != name) {
            let live = self.get(op, Kind::Job, &name)?;
            jobs.extend(live.filter(own));
        }
        Ok(jobs)
    }

    fn pods_ending(&self, op: usize, run: &Workflow, step_runs: &StepRuns, now: &Time) -> usize {
        let completed = step_runs.values().filter(|step_run| seen::waits_for_pods(run, step_run));
        let of = |step_run: &Arc<StepRun>| {
            let uid = step_run.metadata.uid.clone().unwrap_or_default();
            let jobs: Vec<_> =
                self.cached_all(op, Kind::Job).filter(|j| j.is_controlled_by("StepRun", &uid)).cloned().collect();
            self.pods_of(op, step_run, &jobs).iter().filter(|pod| seen::is_alive(pod, now)).count()
        };
        completed.map(of).sum()
    }

    fn pods_of(&self, op: usize, step_run: &StepRun, jobs: &[Arc<Object>]) -> Vec<Arc<Pod>> {
        let jobs: Vec<Arc<Job>> = jobs.iter().map(|j| j.typed()).collect();
        let made = seen::job_uids(step_run, jobs.iter().map(AsRef::as_ref));
        let of = step_run.metadata.name.as_deref();
        let pods = self.cached_all(op, Kind::Pod).filter(|p| p.label(LABEL_STEP_RUN) == of);
        pods.map(|p| p.typed()).filter(|p: &Arc<Pod>| seen::is_own_pod(p, &made)).collect()
    }

    fn guard(&self) -> Guard {
        if self.policies.standing { Guard::Proven(self.stamp()) } else { Guard::Missing("they were taken away".into()) }
    }

    fn found(&mut self, op: usize, name: Option<&str>) -> Result<DocumentLookup, Trouble> {
        match name {
            Some(name) => Ok(DocumentLookup::of(self.get(op, Kind::Document, name)?.map(|d| d.typed()))),
            None => Ok(DocumentLookup::NotAsked),
        }
    }

    pub fn job_seen(&self, op: usize, name: &str, ours: &[Arc<Object>]) -> JobSeen {
        match ours.iter().find(|j| j.name == name) {
            Some(job) => seen::job(&job.typed()),
            // The watch tells only of Jobs that bear our label.
            None => match self.cached(op, Kind::Job, name).filter(|j| j.label(LABEL_STEP_RUN).is_some()) {
                Some(job) => JobSeen::Foreign(format!("uid {}", job.uid)),
                None => self.operators[op].taken.get(name).cloned().map_or(JobSeen::Absent, JobSeen::Foreign),
            },
        }
    }

    fn pod(
        &mut self,
        op: usize,
        step_run: &StepRun,
        attempt: i32,
        pods: &[Arc<Pod>],
    ) -> Result<Option<PodSeen>, Trouble> {
        let claim = step_run.status.as_ref().and_then(|s| s.agent.as_ref()).and_then(|a| a.claim.as_ref());
        let Some(claim) = claim.filter(|c| c.attempt == attempt) else {
            return Ok(seen::newest_of(attempt, pods).map(|p| seen::pod(p)));
        };
        if let Some(pod) = pods.iter().find(|p| p.metadata.uid.as_ref() == Some(&claim.pod_uid)) {
            return Ok(Some(seen::pod(pod)));
        }
        let live = self.get(op, Kind::Pod, &claim.pod_name)?.filter(|p| p.uid == claim.pod_uid);
        Ok(live.map(|p| seen::pod(&p.typed())))
    }

    // ---- Documents of people

    pub fn observe_document(&mut self, op: usize, cached: &Arc<Object>) -> (Arc<Document>, Vec<Arc<Document>>) {
        let siblings = self.siblings(op, &cached.typed::<Document>());
        let settled = !cached.value["status"]["phase"].is_null();
        let live = if settled { None } else { self.server.find(Kind::Document, &cached.name).cloned() };
        (live.unwrap_or_else(|| Arc::clone(cached)).typed(), siblings)
    }
}

fn bare(object: &Object) -> Arc<Document> {
    let mut document = Document::clone(&object.typed::<Document>());
    document.spec.content.clear();
    Arc::new(document)
}
