//! The gateway's rules for a claim and a report, and the patches it writes. A call is two steps, a read and a write, with
//! time in between for everybody else.

use std::sync::Arc;

use lockstep::api::definition::Definition;
use lockstep::api::document::{Document, DocumentSpec, Scope};
use lockstep::api::name;
use lockstep::api::step::WiderScope;
use lockstep::api::step_run::{GateState, StepRunStatus};
use lockstep::api::workflow::Phase;
use lockstep::api::{StepRun, Workflow};
use serde_json::{Value, json};

use super::kubelet::{Outcome, Process};
use super::server::{Kind, Object, Part, Request};
use super::world::{Who, World};

/// What the gateway says without a write.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It is so already: the reply was lost.
    Again,
    Write(Box<Request>),
    /// The attempt is not the caller's.
    Refused(&'static str),
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

impl World {
    /// Whether the pod may claim, and the write that does it.
    pub fn claim_verdict(&mut self, process: &Process) -> Verdict {
        if let Err(why) = self.pod_speaks(process, Act::Claim) {
            return Verdict::Refused(why);
        }
        let Some(found) = self.live(Kind::StepRun, &process.step_run, &process.step_uid) else {
            return Verdict::Refused("there is no such StepRun");
        };
        let step_run: Arc<StepRun> = found.typed();
        let status = step_run.status.clone().unwrap_or_default();
        if let Err(why) = stands(&found, &status, process.attempt) {
            return Verdict::Refused(why);
        }
        let agent = status.agent.unwrap_or_default();
        if agent.report.is_some_and(|r| r.attempt == process.attempt) {
            return Verdict::Refused("the attempt has reported its end");
        }
        match agent.claim.filter(|c| c.attempt == process.attempt) {
            None => Verdict::Write(Box::new(self.claim_patch(process, &found))),
            Some(claim) if claim.id == id_digest(process) && claim.pod_uid == process.uid => Verdict::Again,
            Some(_) => Verdict::Refused("another shim has claimed this attempt"),
        }
    }

    fn claim_patch(&self, process: &Process, found: &Object) -> Request {
        let mut operations = vec![
            json!({"op": "test", "path": "/metadata/uid", "value": process.step_uid}),
            json!({"op": "test", "path": "/metadata/resourceVersion", "value": found.version.to_string()}),
        ];
        if found.value["status"].is_null() {
            operations.push(json!({"op": "add", "path": "/status", "value": {}}));
        }
        let claim = json!({"attempt": process.attempt, "id": id_digest(process), "podName": process.pod,
            "podUID": process.uid, "at": self.time(0)});
        operations.push(json!({"op": "add", "path": "/status/agent", "value": {"claim": claim}}));
        Request::Json(Kind::StepRun, Part::Status, process.step_run.clone(), Value::Array(operations))
    }

    /// Whether the pod may report, and the write that does it; the document is made first.
    pub fn report_verdict(&mut self, process: &Process, outcome: &Outcome) -> Verdict {
        if let Err(why) = self.pod_speaks(process, Act::Report) {
            return Verdict::Refused(why);
        }
        let Some(found) = self.live(Kind::StepRun, &process.step_run, &process.step_uid) else {
            return Verdict::Refused("there is no such StepRun");
        };
        let step_run: Arc<StepRun> = found.typed();
        let status = step_run.status.clone().unwrap_or_default();
        let held = holds(&status, process);
        let agent = status.agent.clone().unwrap_or_default();
        if agent.report.is_some_and(|r| r.attempt == process.attempt) {
            return held.map_or_else(Verdict::Refused, |()| Verdict::Again);
        }
        if let Err(why) = stands(&found, &status, process.attempt).and(held) {
            return Verdict::Refused(why);
        }
        let document = match &outcome.document {
            Some(content) => match self.make_document(process, &step_run, content) {
                Some(name) => Some(name),
                None => return Verdict::Unavailable,
            },
            None => None,
        };
        Verdict::Write(Box::new(self.report_patch(process, outcome, document)))
    }

    fn report_patch(&self, process: &Process, outcome: &Outcome, document: Option<String>) -> Request {
        let output = outcome.output.as_deref().unwrap_or_default();
        let digest = name::digest([output.as_bytes(), outcome.document.as_deref().unwrap_or_default().as_bytes()]);
        let mut report = json!({"attempt": process.attempt, "class": outcome.class, "digest": digest, "at": self.time(0)});
        for (key, value) in [
            ("exitCode", outcome.code.map(Value::from)),
            ("output", outcome.output.clone().map(Value::from)),
            ("documentName", document.map(Value::from)),
        ] {
            report.as_object_mut().expect("fields").extend(value.map(|v| (key.to_owned(), v)));
        }
        let test = |path: &str, value: Value| json!({"op": "test", "path": path, "value": value});
        let operations = json!([
            test("/metadata/uid", json!(process.step_uid)),
            test("/status/attempt", json!(process.attempt)),
            test("/status/completedAt", Value::Null),
            test("/status/agent/claim/id", json!(id_digest(process))),
            test("/status/agent/claim/attempt", json!(process.attempt)),
            test("/status/agent/report", Value::Null),
            {"op": "add", "path": "/status/agent/report", "value": report},
        ]);
        Request::Json(Kind::StepRun, Part::Status, process.step_run.clone(), operations)
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
    fn pod_speaks(&self, process: &Process, act: Act) -> Result<(), &'static str> {
        let pod = self.live(Kind::Pod, &process.pod, &process.uid).ok_or("the pod is gone")?;
        if !matches!(pod.value["status"]["phase"].as_str(), Some("Pending" | "Running")) {
            return Err("the pod has ended");
        }
        if act == Act::Claim && pod.is_deleting() {
            return Err("the pod is being deleted");
        }
        let job = name::job(&process.step_run, &process.step_uid, process.attempt);
        let owners = pod.meta("ownerReferences").as_array();
        let owned = owners.into_iter().flatten().any(|o| o["controller"] == true && o["name"] == job.as_str());
        if owned { Ok(()) } else { Err("the pod is not of the attempt's Job") }
    }

    /// As `gateway/document.rs` makes it.
    fn make_document(&mut self, process: &Process, step_run: &StepRun, content: &str) -> Option<String> {
        let spec = &step_run.spec;
        let revision = self.server.find(Kind::Revision, &spec.definition.revision_name)?;
        let definition = serde_json::from_value::<Definition>(revision.value["data"].clone()).ok()?;
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
                round: Some(process.attempt),
                format: produces.format,
                content: content.to_owned(),
            },
        );
        if matches!(scope, Scope::Item | Scope::Workflow) {
            document.metadata.owner_references = Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
                api_version: <Workflow as kube::Resource>::api_version(&()).into_owned(),
                kind: "Workflow".into(),
                name: spec.workflow.name.clone(),
                uid: spec.workflow.uid.clone(),
                ..Default::default()
            }]);
        }
        let value = serde_json::to_value(&document).expect("it serializes");
        let wanted = value["spec"].clone();
        match self.ask(Who::Gateway, &Request::Create(Kind::Document, value)) {
            Ok(_) => Some(name),
            Err(refused) if refused.reason == "AlreadyExists" => {
                let found = self.server.find(Kind::Document, &name)?;
                (found.value["spec"] == wanted).then_some(name)
            }
            Err(_) => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Claim,
    Report,
}

fn id_digest(process: &Process) -> String {
    name::digest_bytes(process.id.as_bytes())
}

/// The fence of `gateway/attempt.rs`.
fn stands(found: &Object, status: &StepRunStatus, attempt: i32) -> Result<(), &'static str> {
    if found.is_deleting() {
        return Err("the StepRun is being deleted");
    }
    if status.attempt != attempt {
        return Err("the attempt is not the current one");
    }
    if status.completed_at.is_some() || status.phase.is_some_and(Phase::is_terminal) {
        return Err("the step has ended");
    }
    let gate = status.gate.as_ref().is_some_and(|gate| gate.state == GateState::Waiting);
    let phase =
        matches!(status.phase, Some(Phase::WaitingForInput | Phase::WaitingForAcceptance | Phase::WaitingForDocuments));
    if gate || phase || status.waiting_for.is_some() {
        return Err("the step waits for a person");
    }
    Ok(())
}

fn holds(status: &StepRunStatus, process: &Process) -> Result<(), &'static str> {
    let claim = status.agent.as_ref().and_then(|a| a.claim.as_ref()).filter(|c| c.attempt == process.attempt);
    match claim {
        Some(claim) if claim.id == id_digest(process) && claim.pod_uid == process.uid => Ok(()),
        Some(_) => Err("another shim has claimed this attempt"),
        None => Err("the attempt is not claimed"),
    }
}
