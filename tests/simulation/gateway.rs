//! The gateway's rules for a claim and a report, and the patches it writes. A call is two steps, a read and a write, with
//! time in between for everybody else.

use std::sync::Arc;

use lockstep::api::document::{Document, DocumentSpec, Scope};
use lockstep::api::name::{self, LABEL_ATTEMPT, LABEL_STEP_RUN};
use lockstep::api::step::WiderScope;
use lockstep::api::step_run::{Binding, ReportClass};
use lockstep::api::{StepRun, Workflow};
use lockstep::decide::claim::{self, Answer, Precondition};
use serde_json::{Value, json};

use super::judge::upstream;
use super::kubelet::{Outcome, Process};
use super::server::{Kind, Object, Part, Request};
use super::workload::QUESTIONS;
use super::world::{Who, World};

/// What the gateway says without a write.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It is so already: the reply was lost.
    Again,
    Write(Box<Request>),
    /// The attempt is not the caller's.
    Refused(String),
    /// Try again.
    Unavailable,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    Done,
    Outrun,
    Unavailable,
}

impl Process {
    fn claimant<'a>(&'a self, id: &'a str) -> claim::Claimant<'a> {
        claim::Claimant { attempt: self.attempt, id, pod_name: &self.pod, pod_uid: &self.uid }
    }
}

impl World {
    /// Whether the pod may claim, and the write that does it.
    pub fn claim_verdict(&mut self, process: &Process) -> Verdict {
        let job = match self.pod_speaks(process, Act::Claim) {
            Ok(job) => job,
            Err(why) => return Verdict::Refused(why.into()),
        };
        let Some(found) = self.live(Kind::StepRun, &process.step_run, &process.step_uid) else {
            return Verdict::Refused("there is no such StepRun".into());
        };
        let step_run: Arc<StepRun> = found.typed();
        let id = id_digest(process);
        match claim::admit(&step_run, &process.claimant(&id)) {
            Answer::Free => match made_by(&step_run, process.attempt) {
                Some(made) if made == job => Verdict::Write(Box::new(self.claim_patch(process, &step_run))),
                Some(_) => Verdict::Refused("the Job of the pod is not the one that the operator made".into()),
                None => Verdict::Unavailable,
            },
            Answer::Again => Verdict::Again,
            Answer::Refused(why) => Verdict::Refused(why.to_string()),
        }
    }

    fn claim_patch(&self, process: &Process, step_run: &StepRun) -> Request {
        let mut operations = tests(claim::claim_preconditions(step_run));
        if step_run.status.is_none() {
            operations.push(json!({"op": "add", "path": "/status", "value": {}}));
        }
        let id = id_digest(process);
        let written = claim::claimed(&process.claimant(&id), self.time(0));
        operations.push(json!({"op": "add", "path": "/status/agent", "value": written}));
        Request::Json(Kind::StepRun, Part::Status, process.step_run.clone(), Value::Array(operations))
    }

    /// Whether the pod may report, and the write that does it; the document is made first.
    pub fn report_verdict(&mut self, process: &Process, outcome: &Outcome) -> Verdict {
        if let Err(why) = self.pod_speaks(process, Act::Report) {
            return Verdict::Refused(why.into());
        }
        let Some(found) = self.live(Kind::StepRun, &process.step_run, &process.step_uid) else {
            return Verdict::Refused("there is no such StepRun".into());
        };
        let step_run: Arc<StepRun> = found.typed();
        let id = id_digest(process);
        match claim::accept(&step_run, &process.claimant(&id)) {
            Answer::Free => {}
            Answer::Again => return Verdict::Again,
            Answer::Refused(why) => return Verdict::Refused(why.to_string()),
        }
        let document = match &outcome.document {
            Some(content) => match self.make_document(process, &step_run, content) {
                Some(made) => Some(made),
                None => return Verdict::Unavailable,
            },
            None => None,
        };
        Verdict::Write(Box::new(self.report_patch(process, outcome, document)))
    }

    fn report_patch(&self, process: &Process, outcome: &Outcome, document: Option<(String, Binding)>) -> Request {
        let output = outcome.output.as_deref().unwrap_or_default();
        let digest = name::digest([output.as_bytes(), outcome.document.as_deref().unwrap_or_default().as_bytes()]);
        let mut report =
            json!({"attempt": process.attempt, "class": outcome.class, "digest": digest, "at": self.time(0)});
        for (key, value) in [
            ("exitCode", outcome.code.map(Value::from)),
            ("output", outcome.output.clone().map(Value::from)),
            ("documentName", document.clone().map(|(name, _)| Value::from(name))),
            ("documentBinding", document.map(|(_, bound)| json!(bound))),
        ] {
            report.as_object_mut().expect("fields").extend(value.map(|v| (key.to_owned(), v)));
        }
        if outcome.class == ReportClass::Asked {
            report["questions"] = QUESTIONS.iter().map(|question| json!({"question": question})).collect();
        }
        let mut operations =
            tests(claim::report_preconditions(&process.step_uid, process.attempt, &id_digest(process)));
        operations.push(json!({"op": "add", "path": "/status/agent/report", "value": report}));
        Request::Json(Kind::StepRun, Part::Status, process.step_run.clone(), Value::Array(operations))
    }

    /// The write, whose answer the gateway may not get: it then repeats it, and its tests tell.
    pub fn gateway_writes(&mut self, request: &Request) -> Wrote {
        if self.chance.mille(self.faults.late) {
            self.soon(500, 60_000, super::world::Event::Late(Who::Gateway, Box::new(request.clone())));
            return Wrote::Unavailable;
        }
        let mut reply = self.ask(Who::Gateway, request);
        if self.chance.mille(self.faults.lost_reply) {
            reply = self.ask(Who::Gateway, request);
        }
        match reply {
            Ok(_) => Wrote::Done,
            Err(refused) if matches!(refused.code, 409 | 422) => Wrote::Outrun,
            Err(_) => Wrote::Unavailable,
        }
    }

    /// TokenReview and the pod's owner.
    fn pod_speaks(&self, process: &Process, act: Act) -> Result<String, &'static str> {
        let pod = self.live(Kind::Pod, &process.pod, &process.uid).ok_or("the pod is gone")?;
        if !matches!(pod.value["status"]["phase"].as_str(), Some("Pending" | "Running")) {
            return Err("the pod has ended");
        }
        if act == Act::Claim && pod.is_deleting() {
            return Err("the pod is being deleted");
        }
        let labelled = pod.label(LABEL_STEP_RUN) == Some(process.step_run.as_str())
            && pod.label(LABEL_ATTEMPT) == Some(process.attempt.to_string().as_str());
        let owners = pod.meta("ownerReferences").as_array();
        let job = owners.into_iter().flatten().find(|o| o["controller"] == true && o["kind"] == "Job");
        let job = job.and_then(|o| o["uid"].as_str()).filter(|_| labelled);
        job.map(str::to_owned).ok_or("the pod is not of the attempt's Job")
    }

    /// As `gateway/document.rs` makes it.
    fn make_document(&mut self, process: &Process, step_run: &StepRun, content: &str) -> Option<(String, Binding)> {
        let spec = &step_run.spec;
        let pinned = upstream::definition(&self.server, spec)?;
        let definition = &pinned.data;
        let produces = definition.step(&spec.path)?.produces.clone()?;
        let scope = match produces.scope {
            Some(WiderScope::Session) => Scope::Session,
            Some(WiderScope::Project) => Scope::Project,
            None if spec.item.is_some() => Scope::Item,
            None => Scope::Workflow,
        };
        let name = name::document(&process.step_run, &process.step_uid, process.attempt, &produces.document_type);
        let mut document = Document::new(
            &name,
            DocumentSpec {
                document_type: produces.document_type,
                scope,
                scope_id: spec.scope_chain.last().map(|link| link.scope_id.clone()),
                session: Some(definition.session.clone()),
                project: definition.project.clone(),
                workflow: Some(spec.workflow.name.clone()),
                path: Some(spec.path.clone()),
                attempt: Some(process.attempt),
                format: produces.format,
                content: content.to_owned(),
            },
        );
        if matches!(scope, Scope::Item | Scope::Workflow) {
            document.metadata.owner_references =
                Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
                    api_version: <Workflow as kube::Resource>::api_version(&()).into_owned(),
                    kind: "Workflow".into(),
                    name: spec.workflow.name.clone(),
                    uid: spec.workflow.uid.clone(),
                    ..Default::default()
                }]);
        }
        let value = serde_json::to_value(&document).expect("it serializes");
        let wanted = value["spec"].clone();
        let bound = |made: &Object| {
            let digest = name::digest_bytes(content.as_bytes());
            (made.name.clone(), Binding { uid: Some(made.uid.clone()), digest })
        };
        match self.ask(Who::Gateway, &Request::Create(Kind::Document, value)) {
            Ok(made) => Some(bound(&made)),
            Err(refused) if refused.reason == "AlreadyExists" => {
                let found = self.server.find(Kind::Document, &name)?;
                (found.value["spec"] == wanted).then(|| bound(found))
            }
            Err(_) => None,
        }
    }
}

/// UID of the Job that the operator made for the attempt.
fn made_by(step_run: &StepRun, attempt: i32) -> Option<String> {
    let job = step_run.status.as_ref()?.job.as_ref()?;
    (job.attempt == attempt).then(|| job.uid.clone())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Claim,
    Report,
}

fn id_digest(process: &Process) -> String {
    name::digest_bytes(process.id.as_bytes())
}

fn tests(held: Vec<Precondition>) -> Vec<Value> {
    held.into_iter().map(|h| json!({"op": "test", "path": h.path, "value": h.value})).collect()
}
