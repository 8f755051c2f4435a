//! What a pass sees: `cluster/observe.rs` over an operator's own caches, with live reads where that has them. The one
//! place that builds each `Observed`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep::api::definition::Definition;
use lockstep::api::name::{self, ACTION, DECISION, LABEL_ATTEMPT};
use lockstep::api::step::Step;
use lockstep::api::step_run::ReportClass;
use lockstep::api::{Agent, Document, StepRun, Workflow, WorkflowTemplate};
use lockstep::decide::build::{ANNOTATION_AGENT_GENERATION, Surroundings};
use lockstep::decide::gate::Guard;
use lockstep::decide::step_run::{self, JobSeen, PodSeen};
use lockstep::decide::{scope, workflow};

use super::operator::Trouble;
use super::server::{Kind, Object, Request};
use super::world::{Who, World};

impl World {
    pub fn observe_workflow(&mut self, op: usize, object: &Arc<Object>) -> Result<workflow::Observed, Trouble> {
        let workflow: Arc<Workflow> = object.typed();
        let template = workflow.spec.template_ref.as_ref().and_then(|t| self.cached(op, Kind::Template, &t.name));
        let template: Option<Arc<WorkflowTemplate>> = template.map(|t| t.typed());
        let pinned = workflow.status.as_ref().and_then(|s| s.definition.clone());
        let definition = match &pinned {
            Some(pinned) => self.definition(op, &pinned.revision_name, &object.uid)?,
            None => None,
        };
        let steps = match (&definition, &template) {
            (Some(definition), _) => definition.steps.as_slice(),
            (None, Some(template)) => template.spec.steps.as_slice(),
            (None, None) => workflow.spec.steps.as_slice(),
        };
        let agents: BTreeMap<String, Arc<Agent>> = workflow::agent_names(steps)
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.cached(op, Kind::Agent, &name)?.typed())))
            .collect();
        let kinds = self.kinds(&object.uid, steps, &agents);
        let mut documents: Vec<Arc<Document>> = kinds.keys().flat_map(|kind| self.of_type(op, kind)).collect();
        let step_runs = self.step_runs(op, &workflow, &object.uid)?;
        self.add_committed(op, &workflow::committed_documents(&workflow, &step_runs), &mut documents)?;
        let contents = self.contents_of(op, &kinds, &documents, &step_runs)?;
        let now = self.time(self.operators[op].ahead);
        Ok(workflow::Observed { template, definition, agents, step_runs, documents, contents, now, workflow })
    }

    /// The types of documents that a definition has to do with, and whether their contents are read. Parsing is most of a
    /// pass, so it is done once for the same steps and agents.
    fn kinds(&mut self, run: &str, steps: &[Step], agents: &BTreeMap<String, Arc<Agent>>) -> Arc<BTreeMap<String, bool>> {
        let versions = agents.values().map(|a| a.metadata.resource_version.clone().unwrap_or_default());
        let key = format!("{run} {} {:?}", steps.len(), versions.collect::<Vec<_>>());
        let read = || {
            let types = workflow::document_types(steps, agents).into_iter();
            Arc::new(types.map(|kind| (kind.clone(), scope::reads_content(steps, &kind))).collect())
        };
        Arc::clone(self.kinds.entry(key).or_insert_with(read))
    }

    pub fn cached(&self, op: usize, kind: Kind, name: &str) -> Option<Arc<Object>> {
        self.operators[op].caches.get(&kind)?.objects.get(name).cloned()
    }

    fn cached_all(&self, op: usize, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.operators[op].caches.get(&kind).into_iter().flat_map(|c| c.objects.values())
    }

    fn get(&mut self, op: usize, kind: Kind, name: &str) -> Result<Option<Arc<Object>>, Trouble> {
        if self.chance.mille(self.faults.lost_reply / 4) {
            return Err(Trouble::Api);
        }
        Ok(self.ask(Who::Operator(op), &Request::Get(kind, name.to_owned())).ok())
    }

    fn definition(&mut self, op: usize, revision: &str, run: &str) -> Result<Option<Arc<Definition>>, Trouble> {
        if let Some(found) = self.operators[op].definitions.get(run) {
            return Ok(Some(Arc::clone(found)));
        }
        let found = self.get(op, Kind::Revision, revision)?;
        let found = found.filter(|r| r.controller.as_ref().is_some_and(|(_, uid)| uid == run));
        let definition = found.and_then(|r| serde_json::from_value::<Definition>(r.value["data"].clone()).ok());
        let Some(definition) = definition.map(Arc::new) else { return Ok(None) };
        self.operators[op].definitions.insert(run.to_owned(), Arc::clone(&definition));
        Ok(Some(definition))
    }

    /// The cache keeps no contents.
    fn of_type(&mut self, op: usize, kind: &str) -> Vec<Arc<Document>> {
        let found: Vec<Arc<Object>> =
            self.cached_all(op, Kind::Document).filter(|d| d.value["spec"]["type"] == kind).cloned().collect();
        let bare = &mut self.operators[op].bare;
        let strip = |object: &Object| {
            let mut document = Document::clone(&object.typed::<Document>());
            document.spec.content.clear();
            Arc::new(document)
        };
        found.iter().map(|object| Arc::clone(bare.entry(object.version).or_insert_with(|| strip(object)))).collect()
    }

    fn step_runs(
        &mut self,
        op: usize,
        workflow: &Workflow,
        uid: &str,
    ) -> Result<BTreeMap<String, Arc<StepRun>>, Trouble> {
        let own = self.cached_all(op, Kind::StepRun).filter(|s| s.is_controlled_by("Workflow", uid));
        let mut found: BTreeMap<String, Arc<StepRun>> = own.map(|s| (s.name.clone(), s.typed())).collect();
        let latched = workflow.status.iter().flat_map(|s| &s.steps).filter_map(|s| s.step_run.clone());
        let unseen: Vec<String> = latched.filter(|name| !found.contains_key(name)).collect();
        for name in unseen {
            let live = self.get(op, Kind::StepRun, &name)?.filter(|s| s.is_controlled_by("Workflow", uid));
            found.extend(live.map(|s| (name, s.typed())));
        }
        if fewer_than_begun(workflow, &found) {
            for live in self.all(Kind::StepRun).iter().filter(|s| s.is_controlled_by("Workflow", uid)) {
                found.entry(live.name.clone()).or_insert_with(|| live.typed());
            }
        }
        Ok(found)
    }

    fn add_committed(
        &mut self,
        op: usize,
        names: &BTreeSet<String>,
        documents: &mut Vec<Arc<Document>>,
    ) -> Result<(), Trouble> {
        let own = |d: &Document| d.metadata.name.clone().unwrap_or_default();
        let seen: BTreeSet<String> = documents.iter().filter(|d| workflow::is_settled(d)).map(|d| own(d)).collect();
        for name in names.difference(&seen) {
            if let Some(live) = self.get(op, Kind::Document, name)? {
                let mut live = Document::clone(&live.typed::<Document>());
                live.spec.content.clear();
                documents.retain(|d| own(d) != *name);
                documents.push(Arc::new(live));
            }
        }
        Ok(())
    }

    fn contents_of(
        &mut self,
        op: usize,
        kinds: &BTreeMap<String, bool>,
        documents: &[Arc<Document>],
        step_runs: &BTreeMap<String, Arc<StepRun>>,
    ) -> Result<BTreeMap<String, Arc<str>>, Trouble> {
        let carried: Vec<&str> = step_runs
            .values()
            .filter_map(|s| s.status.as_ref()?.agent.as_ref()?.report.as_ref())
            .filter(|r| r.output.is_none())
            .filter_map(|r| r.document_name.as_deref())
            .collect();
        let mut contents = BTreeMap::new();
        for document in documents.iter().filter(|d| workflow::is_settled(d)) {
            let named = kinds.get(&document.spec.document_type).copied().unwrap_or_default();
            let own = document.metadata.name.clone().unwrap_or_default();
            if (named || carried.contains(&own.as_str()))
                && let Some(text) = self.text(op, document)?
            {
                contents.insert(own, text);
            }
        }
        Ok(contents)
    }

    fn text(&mut self, op: usize, document: &Document) -> Result<Option<Arc<str>>, Trouble> {
        let (name, uid) = (document.metadata.name.as_deref().unwrap_or_default(), document.metadata.uid.as_deref());
        let uid = uid.unwrap_or_default();
        if let Some(found) = self.operators[op].texts.get(uid) {
            return Ok(Some(Arc::clone(found)));
        }
        let Some(found) = self.get(op, Kind::Document, name)?.filter(|d| d.uid == uid) else { return Ok(None) };
        let text: Arc<str> = found.value["spec"]["content"].as_str().unwrap_or_default().into();
        self.operators[op].texts.insert(uid.to_owned(), Arc::clone(&text));
        Ok(Some(text))
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
        let revision = &step_run.spec.definition.revision_name;
        let definition = if done { None } else { self.definition(op, revision, &identity.uid)? };
        let attempt = step_run.status.as_ref().map_or(1, |s| s.attempt);
        let job_name = name::job(&object.name, &object.uid, attempt);
        let jobs: Vec<Arc<Object>> =
            self.cached_all(op, Kind::Job).filter(|j| j.is_controlled_by("StepRun", &object.uid)).cloned().collect();
        let document = if done { None } else { self.reported_document(op, &step_run)? };
        let siblings = document.as_ref().map(|d| self.of_type(op, &d.spec.document_type)).unwrap_or_default();
        Ok(step_run::Observed {
            closing: run.is_none_or(|w| workflow::is_closing(&w.typed::<Workflow>())),
            agent: self.cached(op, Kind::Agent, &step_run.spec.agent_id).map(|a| a.typed()),
            job: self.job_seen(op, &job_name, &jobs),
            pod: self.pod(op, &step_run, attempt, done)?,
            unfinished: jobs.iter().filter(|j| !job_ended(j) && !j.is_deleting()).map(|j| job_identity(j)).collect(),
            guard: if needs_guard(&step_run) { self.guard() } else { Guard::NotAsked },
            surroundings: Arc::new(Surroundings::default()),
            now: self.time(self.operators[op].ahead),
            definition,
            document,
            siblings,
            step_run,
        })
    }

    fn guard(&self) -> Guard {
        match self.policies.standing {
            true => Guard::Proven(self.stamp()),
            false => Guard::Missing("they were taken away".into()),
        }
    }

    fn reported_document(&mut self, op: usize, step_run: &StepRun) -> Result<Option<Arc<Document>>, Trouble> {
        let report = step_run.status.as_ref().and_then(|s| s.agent.as_ref()?.report.as_ref());
        match report.and_then(|r| r.document_name.clone()) {
            Some(name) => Ok(self.get(op, Kind::Document, &name)?.map(|d| d.typed())),
            None => Ok(None),
        }
    }

    fn job_seen(&self, op: usize, name: &str, ours: &[Arc<Object>]) -> JobSeen {
        match ours.iter().find(|j| j.name == name) {
            Some(job) => JobSeen::Present {
                created: serde_json::from_value(job.meta("creationTimestamp").clone()).ok(),
                deleting: job.is_deleting(),
                ended: job_ended(job),
                agent_generation: job.annotation(ANNOTATION_AGENT_GENERATION).and_then(|g| g.parse().ok()),
            },
            None if self.cached(op, Kind::Job, name).is_some() => JobSeen::Foreign,
            None => JobSeen::Absent,
        }
    }

    fn pod(&mut self, op: usize, step_run: &StepRun, attempt: i32, done: bool) -> Result<Option<PodSeen>, Trouble> {
        if done {
            return Ok(None);
        }
        let own = step_run.metadata.name.clone().unwrap_or_default();
        let pods = self.cached_all(op, Kind::Pod);
        let of_step: Vec<Arc<Object>> =
            pods.filter(|p| p.label(name::LABEL_STEP_RUN) == Some(own.as_str())).cloned().collect();
        let claim = step_run.status.as_ref().and_then(|s| s.agent.as_ref()).and_then(|a| a.claim.as_ref());
        let Some(claim) = claim.filter(|c| c.attempt == attempt) else {
            let number = attempt.to_string();
            let current = of_step.iter().filter(|p| p.label(LABEL_ATTEMPT) == Some(&number));
            return Ok(current.max_by_key(|p| p.meta("creationTimestamp").to_string()).map(|p| pod_seen(p)));
        };
        if let Some(pod) = of_step.iter().find(|p| p.uid == claim.pod_uid) {
            return Ok(Some(pod_seen(pod)));
        }
        let live = self.get(op, Kind::Pod, &claim.pod_name)?.filter(|p| p.uid == claim.pod_uid);
        Ok(live.map(|p| pod_seen(&p)))
    }

    // ---- Documents of people

    pub fn observe_document(&mut self, op: usize, cached: &Arc<Object>) -> (Arc<Document>, Vec<Arc<Document>>) {
        let siblings = self.of_type(op, cached.value["spec"]["type"].as_str().unwrap_or_default());
        let settled = !cached.value["status"]["phase"].is_null();
        let live = if settled { None } else { self.server.find(Kind::Document, &cached.name).cloned() };
        (live.unwrap_or_else(|| Arc::clone(cached)).typed(), siblings)
    }
}

fn fewer_than_begun(workflow: &Workflow, found: &BTreeMap<String, Arc<StepRun>>) -> bool {
    let steps = workflow.status.as_ref().map_or(&[][..], |s| &s.steps);
    steps.iter().any(|step| {
        let inside = format!("{}/", step.path);
        let is_group = steps.iter().any(|s| s.path.starts_with(&inside));
        let begun = step.counts.map_or(0, |c| c.started);
        let there = found.values().filter(|s| s.spec.path == step.path).count();
        !is_group && i32::try_from(there).unwrap_or(i32::MAX) < begun
    })
}

fn needs_guard(step_run: &StepRun) -> bool {
    let marked = step_run.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(DECISION) || a.contains_key(ACTION));
    let status = step_run.status.as_ref();
    let open = status.is_none_or(|s| s.completed_at.is_none());
    let succeeded = status
        .and_then(|s| {
            s.agent.as_ref()?.report.as_ref().map(|r| r.class == ReportClass::Succeeded && r.attempt == s.attempt)
        })
        .unwrap_or_default();
    let waits = status.is_some_and(|s| s.gate.as_ref().is_some_and(|g| g.round == s.round));
    open && (marked || step_run.spec.gate.is_some() && succeeded && !waits)
}

pub fn job_ended(job: &Object) -> bool {
    let conditions = job.value["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| (c["type"] == "Complete" || c["type"] == "Failed") && c["status"] == "True")
}

fn job_identity(job: &Object) -> (String, String, i32) {
    let attempt = job.label(LABEL_ATTEMPT).and_then(|a| a.parse().ok()).unwrap_or_default();
    (job.name.clone(), job.uid.clone(), attempt)
}

/// Of a pod's status the simulation has the phase, the agent's end with its message, and what keeps it from running.
fn pod_seen(pod: &Object) -> PodSeen {
    let status = &pod.value["status"];
    let terminated = &status["containerStatuses"][0]["state"]["terminated"];
    let waiting = &status["containerStatuses"][0]["state"]["waiting"]["reason"];
    let phase_ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    PodSeen {
        uid: pod.uid.clone(),
        ended: phase_ended || !terminated.is_null(),
        gone_by: serde_json::from_value::<Option<_>>(pod.meta("deletionTimestamp").clone()).ok().flatten(),
        termination: terminated["message"].as_str().unwrap_or_default().to_owned(),
        obstacle: waiting.as_str().map(|reason| format!("container agent: {reason}: ")),
    }
}
