//! What a pass sees: `cluster/observe.rs` over an operator's own caches, with live reads where that has them. The one
//! place that builds each `Observed`.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep::api::definition::Definition;
use lockstep::api::name::{self, ACTION, ANSWER, DECISION, LABEL_ATTEMPT};
use lockstep::api::step_run::{AttemptResult, ReportClass};
use lockstep::api::workflow::WorkflowStatus;
use lockstep::api::{Agent, Document, StepRun, Workflow, WorkflowTemplate};
use lockstep::decide::Plan;
use lockstep::decide::build::{ANNOTATION_AGENT_GENERATION, Surroundings};
use lockstep::decide::document::{self, Documents};
use lockstep::decide::expression::InProcess;
use lockstep::decide::gate::{self, Guard};
use lockstep::decide::step_run::{self, Hold, JobSeen, PodSeen, Slot};
use lockstep::decide::workflow::{self, StepRuns};

use super::judge::upstream::Pinned;
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
        let step_runs = self.step_runs(op, &workflow, &object.uid)?;
        let mut documents: Documents = self.documents(op).into_iter().map(|d| (document::key(&d), d)).collect();
        let now = self.time(self.operators[op].ahead);
        for name in workflow::committed_documents(&workflow, &step_runs, &now) {
            let seen = self.cached(op, Kind::Document, &name).map(|d| d.typed::<Document>());
            if seen.is_none_or(|d| !document::is_published(&d))
                && let Some(live) = self.get(op, Kind::Document, &name)?
            {
                let live = bare(&live);
                documents.insert_mut(document::key(&live), live);
            }
        }
        let of = workflow.spec.retry_of.as_ref().filter(|_| definition.is_some());
        let previous = of.map(|of| {
            let own = self.cached_all(op, Kind::StepRun).filter(|s| s.is_controlled_by("Workflow", &of.uid));
            own.map(|s| (s.name.clone(), s.typed())).collect()
        });
        Ok(workflow::Observed {
            template,
            definition,
            agents,
            step_runs,
            documents,
            contents: BTreeMap::new(),
            previous,
            settled: self.operators[op].settled.get(&object.uid).cloned().unwrap_or_default(),
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
            if decided.unread.is_empty() {
                return Ok(decided.plan);
            }
            for name in decided.unread {
                let text = self.text(op, &name)?;
                observed.contents.insert(name, text.unwrap_or_else(|| Arc::from("")));
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

    fn definition(&mut self, op: usize, revision: &str, run: &str) -> Result<Option<Arc<Definition>>, Trouble> {
        if let Some(found) = self.operators[op].definitions.get(run) {
            return Ok(Some(Arc::clone(found)));
        }
        let found = self.get(op, Kind::Revision, revision)?;
        let found = found.filter(|r| r.controller.as_ref().is_some_and(|(_, uid)| uid == run));
        let Some(found) = found else { return Ok(None) };
        let definition = Arc::new(found.typed::<Pinned>().data.clone());
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
        if found.size() < begun(workflow) {
            for live in self.all(Kind::StepRun).iter().filter(|s| s.is_controlled_by("Workflow", uid)) {
                if !found.contains_key(&live.name) {
                    found.insert_mut(live.name.clone(), live.typed());
                }
            }
        }
        Ok(found)
    }

    fn text(&mut self, op: usize, name: &str) -> Result<Option<Arc<str>>, Trouble> {
        let known = self.cached(op, Kind::Document, name).map(|d| d.uid.clone());
        if let Some(found) = known.as_ref().and_then(|uid| self.operators[op].texts.get(uid)) {
            return Ok(Some(Arc::clone(found)));
        }
        let Some(found) = self.get(op, Kind::Document, name)? else { return Ok(None) };
        let text: Arc<str> = found.value["spec"]["content"].as_str().unwrap_or_default().into();
        self.operators[op].texts.insert(found.uid.clone(), Arc::clone(&text));
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
        let run = run.map(|w| w.typed::<Workflow>());
        let hold = run.as_ref().map_or(Hold::Stopping, |w| step_run::hold(w));
        let jobs = self.jobs(op, object, &step_run, hold)?;
        let reported = if done { None } else { self.result_document(op, &step_run)? };
        let siblings = reported.as_ref().map(|d| self.siblings(op, d)).unwrap_or_default();
        let mut observed = step_run::Observed {
            hold,
            refusal: None,
            slot: Slot::Yours,
            pods_alive: self.pods_alive(op, &object.name),
            agent: self.cached(op, Kind::Agent, &step_run.spec.agent_id).map(|a| a.typed()),
            job: self.job_seen(op, &job_name, &jobs),
            pod: self.pod(op, &step_run, attempt, done)?,
            unfinished: jobs.iter().filter(|j| !job_ended(j) && !j.is_deleting()).map(|j| job_identity(j)).collect(),
            guard: if needs_guard(&step_run) { self.guard() } else { Guard::NotAsked },
            surroundings: Arc::new(Surroundings::default()),
            now: self.time(self.operators[op].ahead),
            definition,
            document: reported,
            siblings,
            step_run,
        };
        observed.slot = self.slot(op, &observed, run.as_deref());
        Ok(observed)
    }

    /// Where a Job decides by its absence, only the API server says that it is not there.
    fn jobs(
        &mut self,
        op: usize,
        object: &Object,
        step_run: &StepRun,
        hold: Hold,
    ) -> Result<Vec<Arc<Object>>, Trouble> {
        let own = self.cached_all(op, Kind::Job).filter(|j| j.is_controlled_by("StepRun", &object.uid));
        let mut jobs: Vec<Arc<Object>> = own.cloned().collect();
        let status = step_run.status.clone().unwrap_or_default();
        let cancelled = status.attempts.last().filter(|a| a.result == AttemptResult::Cancelled).map(|a| a.number);
        let wanted = match (status.completed_at, cancelled) {
            (Some(_), _) => None,
            (None, Some(number)) if hold == Hold::Stopping => Some(number),
            (None, _) => step_run::was_launched(step_run).then_some(status.attempt),
        };
        let Some(name) = wanted.map(|attempt| name::job(&object.name, &object.uid, attempt)) else { return Ok(jobs) };
        if jobs.iter().all(|j| j.name != name) {
            let live = self.get(op, Kind::Job, &name)?;
            jobs.extend(live.filter(|j| j.is_controlled_by("StepRun", &object.uid)));
        }
        Ok(jobs)
    }

    fn pods_alive(&self, op: usize, step_run: &str) -> usize {
        let pods = self.cached_all(op, Kind::Pod).filter(|p| p.label(name::LABEL_STEP_RUN) == Some(step_run));
        let ended = |p: &Object| matches!(p.value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        pods.filter(|p| !ended(p)).count()
    }

    fn guard(&self) -> Guard {
        if self.policies.standing { Guard::Proven(self.stamp()) } else { Guard::Missing("they were taken away".into()) }
    }

    fn result_document(&mut self, op: usize, step_run: &StepRun) -> Result<Option<Arc<Document>>, Trouble> {
        let report = step_run.status.as_ref().and_then(|s| s.agent.as_ref()?.report.as_ref());
        let reused = step_run.spec.reuse.as_ref().and_then(|r| r.document_name.as_ref());
        match reused.or_else(|| report?.document_name.as_ref()).cloned() {
            Some(name) => Ok(self.get(op, Kind::Document, &name)?.map(|d| d.typed())),
            None => Ok(None),
        }
    }

    pub fn job_seen(&self, op: usize, name: &str, ours: &[Arc<Object>]) -> JobSeen {
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

/// How many StepRuns the status says were begun, each step's once.
fn begun(workflow: &Workflow) -> usize {
    let steps = workflow.status.as_ref().map_or(&[][..], |s| &s.steps);
    let of = |index: usize| {
        let step = &steps[index];
        let inside = format!("{}/", step.path);
        let is_group = steps.get(index + 1).is_some_and(|next| next.path.starts_with(&inside));
        match step.counts {
            Some(counts) if !is_group => usize::try_from(counts.started).unwrap_or_default(),
            _ => usize::from(step.step_run.is_some()),
        }
    };
    (0..steps.len()).map(of).sum()
}

fn needs_guard(step_run: &StepRun) -> bool {
    let marks = step_run.metadata.annotations.as_ref();
    let marked = marks.is_some_and(|a| [DECISION, ACTION, ANSWER].iter().any(|key| a.contains_key(*key)));
    let status = step_run.status.as_ref();
    let open = status.is_none_or(|s| s.completed_at.is_none());
    let succeeded = status
        .and_then(|s| {
            s.agent.as_ref()?.report.as_ref().map(|r| r.class == ReportClass::Succeeded && r.attempt == s.attempt)
        })
        .unwrap_or_default();
    let waits = status.is_some_and(|s| s.gate.as_ref().is_some_and(|g| g.round == s.round));
    let reviewable = succeeded || !gate::has_agent(step_run);
    open && (marked || step_run.spec.gate.is_some() && reviewable && !waits)
}

pub fn job_ended(job: &Object) -> bool {
    let conditions = job.value["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|c| (c["type"] == "Complete" || c["type"] == "Failed") && c["status"] == "True")
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
