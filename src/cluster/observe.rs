//! Gathers the object and everything its decision needs into one value. A missing or broken reference is a value, not an
//! error; no opinions here.

mod runs;
mod step_runs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};

use super::Error;
use super::cache::Table;
use super::client::bounded;
use super::clock::Clock;
use super::consistency::{Consistency, Freshness};
use super::contents::{self, Contents, SettledRuns};
use super::dry_run;
use super::egress;
use super::evaluator::{Evaluator, Kind};
use super::guard::Proves;
use super::mail;
use super::memories;
use super::pod_events::PodEvents;
use super::refusals::Refusals;
use super::revisions::Revisions;
use super::slots::{Applicant, Limit, QueuePosition, Slots};
use super::stored;
use super::world::{World, run_key};
use crate::api::document::OUTPUT_TYPE;
use crate::api::{Agent, Document, StepRun, Workflow};
use crate::decide::agent::{self, DryRun};
use crate::decide::budget::RunBudget;
use crate::decide::build::{self, Installation};
use crate::decide::content::{self, Changed, DocumentLookup, Loaded};
use crate::decide::gate::Guard;
use crate::decide::mail::Mail;
use crate::decide::observed::UnreadableObjects;
use crate::decide::settled::Settled;
use crate::decide::step_run::{Hold, Input, JobSeen, Lack, Need, PodSeen, Slot};
use crate::decide::workflow::Unread;
use crate::decide::{claim, document, seen, step_run, trigger, workflow};
use crate::definition::program::Step;

/// How long the API server may take for a dry run, which waits for webhooks.
const DRY_RUN: Duration = Duration::from_secs(15);

/// Everything that observing needs.
pub struct Observer {
    pub client: Client,
    pub clock: Clock,
    pub world: World,
    pub consistency: Consistency,
    pub contents: Contents,
    pub settled: SettledRuns,
    pub guard: Box<dyn Proves>,
    pub installation: Arc<Installation>,
    pub evaluator: Evaluator,
    pub slots: Slots,
    pub refusals: Refusals,
    /// Who holds the name of a Job that was to be made: it is not in the cache, which holds only what bears our label.
    pub taken: Refusals,
    pub pod_events: PodEvents,
    pub revisions: Revisions,
}

impl Observer {
    /// What the decision about a run needs.
    pub async fn workflow(&self, cached: Arc<Workflow>) -> Result<workflow::Observed, Error> {
        let workflow = self.fresh(cached).await?;
        let namespace = workflow.namespace().unwrap_or_default();
        let uid = workflow.uid().unwrap_or_default();
        let template = workflow.spec.template_ref.as_ref().and_then(|t| self.world.templates.get(&namespace, &t.name));
        let pinned = workflow.status.as_ref().and_then(|s| s.definition.clone());
        let definition = match &pinned {
            Some(pinned) => self.contents.definition(&self.client, &namespace, pinned, &uid).await?,
            None => None,
        };
        let mut unreadable = UnreadableObjects::default();
        if let Some(named) = workflow.spec.template_ref.as_ref().filter(|_| template.is_none()) {
            unreadable.template = self.world.templates.fault(&namespace, &named.name);
        }
        let mut agents = BTreeMap::new();
        for name in workflow::agents(definition.as_deref(), template.as_deref(), &workflow) {
            if let Some(agent) = self.world.agents.get(&namespace, &name) {
                agents.insert(name, agent);
            } else if let Some(fault) = self.world.agents.fault(&namespace, &name) {
                unreadable.agents.insert(name, fault);
            }
        }
        let step_runs;
        (step_runs, unreadable.step_runs) = self.step_runs(&workflow, &namespace, &uid).await?;
        let mut documents = self.world.documents.table(&namespace);
        let mut settled = self.settled.of(&uid);
        self.add_committed(&workflow, &step_runs, &mut settled, &mut documents).await?;
        let previous;
        (previous, unreadable.previous) = self.previous(&workflow, &namespace).await?;
        let now = self.clock.now();
        let pods_ending = self.world.pods_ending(&workflow, &step_runs, &now);
        // What is left of a run that is only remembered is looked at without a request.
        let is_kept = step_runs.is_empty() && trigger::remembered(&workflow, &now).is_some();
        let is_due = workflow::is_due(&workflow, &now);
        let memories = if is_due && !is_kept { memories::of_run(&self.client, &workflow).await? } else { Vec::new() };
        let plain_revision = contents::plain_revision(&self.client, &namespace, &workflow).await?;
        let limit = definition.as_ref().and_then(|program| program.budget.as_ref());
        let budget = self.world.budgets.of_run(limit, &run_key(&namespace, &uid));
        Ok(workflow::Observed {
            template,
            budget,
            definition,
            agents,
            step_runs,
            unreadable,
            documents,
            contents: content::Contents::default(),
            memories,
            pods_ending,
            plain_revision,
            previous,
            settled,
            evaluator: self.evaluator.for_pass(Kind::Workflow, &namespace, &workflow.name_any()),
            now,
            workflow,
        })
    }

    /// Documents of finished steps, also where their cache is behind, however long it has been. Which StepRuns made those is
    /// remembered, and what the API server has said of each: it is asked once, and again only of what is not published yet.
    async fn add_committed(
        &self,
        workflow: &Workflow,
        step_runs: &Table<StepRun>,
        settled: &mut Arc<Settled>,
        documents: &mut Table<Document>,
    ) -> Result<(), Error> {
        let namespace = workflow.namespace().unwrap_or_default();
        let (mut late, mut gone, mut shown) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (step_run, name) in workflow::committed(workflow, step_runs, settled).documents {
            // What carries an output is never published: it is enough that it is there.
            let seen = |d: &Document| document::has_standing(d) || d.spec.document_type == OUTPUT_TYPE;
            // Nor is more to be had of one that cannot be read.
            let is_unreadable = self.world.documents.fault(&namespace, &name).is_some();
            if is_unreadable || self.world.documents.get(&namespace, &name).is_some_and(|d| seen(&d)) {
                continue;
            }
            let live = match settled.shown.get(&name) {
                Some(known) => Some(Arc::clone(known)),
                None => self.live_document(&namespace, &name).await?.map(|mut live| {
                    live.spec.content.clear();
                    Arc::new(live)
                }),
            };
            let Some(live) = live else {
                gone.push(name);
                continue;
            };
            if seen(&live) {
                shown.insert(name, Arc::clone(&live));
            }
            late.extend(step_run);
            documents.insert_mut(document::key(&live), live);
        }
        if settled.late != late || !gone.is_empty() || settled.shown.keys().ne(shown.keys()) {
            let settled = Arc::make_mut(settled);
            (settled.late, settled.shown) = (late, Arc::new(shown));
            Arc::make_mut(&mut settled.gone).extend(gone);
        }
        Ok(())
    }

    async fn live_document(&self, namespace: &str, name: &str) -> Result<Option<Document>, Error> {
        let api: Api<Document> = Api::namespaced(self.client.clone(), namespace);
        stored::read("GET documents", &api, name).await
    }

    /// Fetches the contents of the documents that a decision about a run lacks, each compared with what is meant; as many as
    /// there is room for, and at least one.
    pub async fn workflow_lack(&self, observed: &mut workflow::Observed, lack: Unread) -> Result<(), Error> {
        let namespace = observed.workflow.namespace().unwrap_or_default();
        observed.contents.make_room(lack.0.len());
        for pin in &lack.0 {
            if observed.contents.is_full() {
                break;
            }
            let content = self.contents.content(&self.client, &namespace, pin).await?;
            // A difference counts once the cache has it, too: until then the choice may have been made on an old copy.
            let cached = self.world.documents.get(&namespace, &pin.name).and_then(|d| d.uid());
            if content.is_err() && cached.is_some() && cached == pin.uid {
                let live = self.live_document(&namespace, &pin.name).await?.and_then(|d| d.uid());
                if live != cached {
                    return Err(Error::Stale(pin.name.clone()));
                }
            }
            observed.contents.insert(pin.clone(), content);
        }
        Ok(())
    }

    /// The first of the documents that an attempt is to read and that is not what was pinned. The cache knows UIDs and
    /// digests; that one differs only the API server says.
    async fn changed_input(&self, o: &step_run::Observed) -> Result<Option<Changed>, Error> {
        let (spec, namespace) = (&o.step_run.spec, o.step_run.namespace().unwrap_or_default());
        let step = o.definition.as_ref().and_then(|d| d.step(&spec.path));
        let produces = step.and_then(Step::produces).map(|p| p.document_type.as_str());
        for pin in content::inputs(&o.step_run, produces) {
            if self.world.documents.get(&namespace, &pin.name).is_some_and(|d| pin.is_met_by(&d)) {
                continue;
            }
            if let Err(changed) = self.contents.content(&self.client, &namespace, &pin).await? {
                return Ok(Some(changed));
            }
        }
        Ok(None)
    }

    /// What the decision about a StepRun needs.
    pub async fn step_run(&self, cached: Arc<StepRun>) -> Result<step_run::Observed, Error> {
        let step_run = self.fresh(cached).await?;
        let namespace = step_run.namespace().unwrap_or_default();
        let identity = &step_run.spec.workflow;
        let workflow = self.run_of(&namespace, identity).await?;
        let done = step_run.status.as_ref().is_some_and(|s| s.completed_at.is_some());
        let definition = if done {
            None
        } else {
            self.contents.definition(&self.client, &namespace, &step_run.spec.definition, &identity.uid).await?
        };
        let attempt = step_run.status.as_ref().map_or(1, |s| s.attempt);
        let job_name = seen::job_name(&step_run, attempt);
        let hold = workflow.as_ref().map_or(Hold::Stopping, |w| step_run::hold(w));
        let jobs = self.jobs(&step_run, hold).await?;
        let pods = self.world.pods_of(&step_run, &jobs);
        let looks = !done || self.publishes(&step_run, &namespace);
        let made = content::made(&step_run).filter(|_| looks).unwrap_or_default();
        let document = self.found(&namespace, made.document_name.as_deref()).await?;
        let gated = step_run.spec.gate.is_some() && !done;
        let output = self.found(&namespace, made.output_document.as_deref().filter(|_| gated)).await?;
        let now = self.clock.now();
        let mut observed = step_run::Observed {
            hold,
            agent: self.world.agents.get(&namespace, &step_run.spec.agent_id),
            agent_fault: self.world.agents.fault(&namespace, &step_run.spec.agent_id),
            job: self.job(&namespace, &job_name, &jobs),
            refusal: self.refusals.of(&namespace, &job_name),
            slot: None,
            pod: if done { None } else { self.pod(&step_run, &pods, attempt).await? },
            unfinished: jobs.iter().filter(|j| seen::is_unfinished(j)).map(|j| seen::identity(j)).collect(),
            pods_alive: seen::alive(&pods, &now),
            goes_last: seen::goes_last(&step_run, workflow.as_deref()),
            lingering: seen::lingering(&pods),
            event: self.event(&job_name, &jobs, seen::newest_of(attempt, &pods)),
            guard: Guard::NotAsked,
            mail: Mail::NotAsked,
            installation: Arc::clone(&self.installation),
            evaluator: self.evaluator.for_pass(Kind::StepRun, &namespace, &step_run.name_any()),
            now,
            definition,
            document,
            revision: None,
            output,
            input: None,
            budget: RunBudget::default(),
            step_run,
        };
        let run = run_key(&namespace, &observed.step_run.spec.workflow.uid);
        observed.budget = self.world.budgets.of_step_run(&observed, &run, workflow.as_deref());
        Ok(observed)
    }

    /// Gets what a decision about a StepRun lacks.
    pub async fn step_run_lack(&self, observed: &mut step_run::Observed, lack: Lack) -> Result<(), Error> {
        match lack {
            Lack::Slot(need) => {
                let namespace = observed.step_run.namespace().unwrap_or_default();
                let run = self.run_of(&namespace, &observed.step_run.spec.workflow).await?;
                observed.slot = Some(self.slot(need, &observed.step_run, run.as_deref()));
            }
            // The run's own pass finds the same, and ends it.
            Lack::Definition => {
                return Err(Error::Unusable(format!(
                    "the pinned definition of {} is gone, or is another one",
                    observed.step_run.name_any()
                )));
            }
            Lack::Input => {
                let changed = self.changed_input(observed).await?;
                let memory = memories::of_step(&self.client, observed).await?;
                let egress = egress::of_step(&self.client, observed).await?;
                observed.input = Some(Input { changed, memory, egress });
            }
            Lack::Policies => observed.guard = self.guard.check(&self.client, &observed.step_run).await?,
            Lack::Mail => observed.mail = mail::of(&self.client, &observed.step_run).await?,
            Lack::Revision => {
                let made = observed.document.loaded().map(Loaded::document);
                observed.revision = made.map(|made| self.revisions.next(made, &self.world.documents));
            }
        }
        Ok(())
    }

    /// The Jobs of a StepRun. Where one decides by its absence, only the API server may say that it is not there.
    async fn jobs(&self, step_run: &StepRun, hold: Hold) -> Result<Vec<Arc<Job>>, Error> {
        let mut jobs = self.world.jobs_of(step_run);
        let Some(name) = seen::decisive_job(step_run, hold).map(|attempt| seen::job_name(step_run, attempt)) else {
            return Ok(jobs);
        };
        if jobs.iter().all(|j| j.name_any() != name) {
            let api: Api<Job> = Api::namespaced(self.client.clone(), &step_run.namespace().unwrap_or_default());
            let live = bounded("GET jobs", api.get_opt(&name)).await?;
            jobs.extend(live.filter(|j| seen::is_own_job(j, step_run)).map(Arc::new));
        }
        Ok(jobs)
    }

    fn slot(&self, need: Need, step_run: &StepRun, run: Option<&Workflow>) -> Slot {
        let who = self.applicant(step_run, run);
        let slot = match need {
            Need::Nothing => {
                self.slots.release(&who.position.uid);
                return Slot::Yours;
            }
            Need::Holds => {
                self.slots.hold(&who);
                Slot::Yours
            }
            Need::Launch => self.slots.ask(&who),
        };
        // Its end is told by the watch, once; it must not have come before.
        let there = self.world.step_runs.get(&who.namespace, &who.position.name).and_then(|s| s.uid());
        if there.as_ref() != Some(&who.position.uid) {
            self.slots.release(&who.position.uid);
        }
        slot
    }

    fn applicant(&self, step_run: &StepRun, run: Option<&Workflow>) -> Applicant {
        let namespace = step_run.namespace().unwrap_or_default();
        let agent = self.world.agents.get(&namespace, &step_run.spec.agent_id);
        Applicant {
            limit: Limit::of(agent.as_deref()),
            agent: step_run.spec.agent_id.clone(),
            position: QueuePosition {
                run_created: run.and_then(ResourceExt::creation_timestamp),
                run: step_run.spec.workflow.name.clone(),
                created: step_run.creation_timestamp(),
                name: step_run.name_any(),
                uid: step_run.uid().unwrap_or_default(),
            },
            namespace,
        }
    }

    /// Gives the slot of a StepRun back that is not there any more.
    pub fn left(&self, step_run: &StepRun) {
        let uid = step_run.uid().unwrap_or_default();
        let there = self.world.step_runs.get(&step_run.namespace().unwrap_or_default(), &step_run.name_any());
        if there.is_none_or(|s| s.uid().as_ref() != Some(&uid)) {
            self.slots.release(&uid);
        }
    }

    /// At the start: what runs holds its slot before anybody asks for one.
    pub fn restore_slots(&self) {
        for step_run in self.world.step_runs.all() {
            let namespace = step_run.namespace().unwrap_or_default();
            let attempt = step_run.status.as_ref().map_or(1, |s| s.attempt);
            let job = self.job(&namespace, &seen::job_name(&step_run, attempt), &self.world.jobs_of(&step_run));
            if step_run::holds_slot(&step_run, &job) {
                let run = self.world.workflows.get(&namespace, &step_run.spec.workflow.name);
                self.slots.hold(&self.applicant(&step_run, run.as_deref()));
            }
        }
    }

    /// A Document that was made, with its content: the cache keeps none, and is not asked what there is.
    async fn found(&self, namespace: &str, name: Option<&str>) -> Result<DocumentLookup, Error> {
        match name {
            Some(name) => Ok(DocumentLookup::of(self.live_document(namespace, name).await?.map(Arc::new))),
            None => Ok(DocumentLookup::NotAsked),
        }
    }

    /// Whether its document may still have to be published: the cache is not believed that it has not been.
    fn publishes(&self, step_run: &StepRun, namespace: &str) -> bool {
        let name = step_run.status.as_ref().and_then(|s| s.result.as_ref()?.document_name.as_ref());
        let seen = name.and_then(|name| self.world.documents.get(namespace, name));
        step_run::is_published_late(step_run) && seen.is_none_or(|d| !document::has_standing(&d))
    }

    fn job(&self, namespace: &str, name: &str, ours: &[Arc<Job>]) -> JobSeen {
        if let Some(job) = ours.iter().find(|j| j.name_any() == name) {
            return seen::job(job);
        }
        let labelled = self.world.jobs.get(namespace, name).map(|job| seen::holder(&job.metadata));
        labelled.or_else(|| self.taken.of(namespace, name)).map_or(JobSeen::Absent, JobSeen::Foreign)
    }

    /// What Events say of why the attempt's Job has no pod, or why that is not set up.
    fn event(&self, job: &str, jobs: &[Arc<Job>], pod: Option<&Arc<Pod>>) -> Option<String> {
        match pod {
            Some(pod) if seen::is_set_up(pod) => None,
            Some(pod) => self.pod_events.of(&pod.uid()?),
            None => self.pod_events.of(&jobs.iter().find(|j| j.name_any() == job)?.uid()?),
        }
    }

    async fn pod(&self, step_run: &StepRun, pods: &[Arc<Pod>], attempt: i32) -> Result<Option<PodSeen>, Error> {
        let Some(claim) = step_run.status.as_ref().and_then(|s| claim::claim_of(s, attempt)) else {
            return Ok(seen::newest_of(attempt, pods).map(|p| seen::pod(p)));
        };
        if let Some(pod) = pods.iter().find(|p| p.uid().as_deref() == Some(&claim.pod_uid)) {
            return Ok(Some(seen::pod(pod)));
        }
        // That the pod is gone decides the attempt's fate: only the API server may say so.
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &step_run.namespace().unwrap_or_default());
        let live = bounded("GET pods", api.get_opt(&claim.pod_name)).await?;
        Ok(live.filter(|p| p.uid().as_deref() == Some(&claim.pod_uid)).map(|p| seen::pod(&p)))
    }

    /// What the API server says of an Agent's template, where that is not known.
    pub async fn dry_run(&self, agent: &Agent) -> DryRun {
        if !agent::needs_dry_run(agent) {
            return DryRun::NotAsked;
        }
        let (namespace, job) = (agent.namespace().unwrap_or_default(), build::dry_run(agent, &self.installation));
        let asked = dry_run::ask(&self.client, &namespace, &job);
        tokio::time::timeout(DRY_RUN, asked).await.unwrap_or_else(|_| DryRun::Unknown("no answer in time".to_owned()))
    }

    /// The object, not older than our own last write.
    pub async fn fresh<K>(&self, cached: Arc<K>) -> Result<Arc<K>, Error>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        match self.consistency.freshness(cached.meta()) {
            Freshness::Fresh => Ok(cached),
            Freshness::Behind => Err(Error::Stale(cached.name_any())),
            Freshness::TooLong => {
                let api: Api<K> = Api::namespaced(self.client.clone(), &cached.namespace().unwrap_or_default());
                let live = stored::read("GET", &api, &cached.name_any()).await?;
                live.map(Arc::new).ok_or_else(|| Error::Stale(cached.name_any()))
            }
        }
    }

    /// A Document, those that lie in its place, and its number if it is published now; with its content only while it has no status,
    /// since only then it is read.
    pub async fn put_document(
        &self,
        cached: Arc<Document>,
    ) -> Result<(Arc<Document>, Vec<Arc<Document>>, Option<i64>), Error> {
        let namespace = cached.namespace().unwrap_or_default();
        let siblings = document::siblings(&self.world.documents.table(&namespace), &cached);
        let settled = cached.status.as_ref().is_some_and(|s| s.phase.is_some());
        if settled {
            return Ok((cached, siblings, None));
        }
        let live = self.live_document(&namespace, &cached.name_any()).await?;
        let document = live.map_or(cached, Arc::new);
        let number = document::is_new(&document).then(|| self.revisions.next(&document, &self.world.documents));
        Ok((document, siblings, number))
    }
}

#[cfg(test)]
pub(crate) mod tests;
