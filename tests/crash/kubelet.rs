//! A kubelet that runs nothing: for each pod it plays shim, agent and gateway. What the gateway writes it writes in the
//! gateway's name and in the gateway's way (`src/gateway/claim.rs`, `report.rs`, `document.rs`).

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use lockstep::api::StepRun;
use lockstep::api::name::{self, LABEL_ATTEMPT, LABEL_STEP_RUN};
use lockstep::api::step::{Produces, WiderScope};
use lockstep::api::step_run::GateState;
use lockstep::api::workflow::Phase;
use lockstep::protocol::env;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::plane::{Plane, ask, code};

/// Tries of one write that others keep outrunning.
const ROUNDS: usize = 20;

/// What an agent does in one attempt.
pub struct Deed {
    pub output: Value,
    /// What it makes, with its content.
    pub document: Option<(Produces, String)>,
    /// It exits with 1 instead.
    pub fails: bool,
    /// How long it works.
    pub takes: Duration,
}

pub type Agents = Box<dyn Fn(&StepRun, i32) -> Deed + Send + Sync>;

pub struct Kubelet {
    plane: Plane,
    agents: Agents,
    /// Whether pods are reported as running before they end.
    runs: Runs,
    seen: Mutex<HashSet<String>>,
    /// Commands started, by StepRun UID and attempt.
    starts: Mutex<BTreeMap<(String, i32), u32>>,
    failures: Mutex<Vec<String>>,
    at_once: Semaphore,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    Told,
    #[allow(dead_code, reason = "the bench measures others' work")]
    Untold,
}

/// One attempt, as its pod knows it.
struct Attempt {
    namespace: String,
    pod: String,
    pod_uid: String,
    step_run: String,
    uid: String,
    number: i32,
    id: String,
}

enum Claimed {
    Mine(Box<StepRun>),
    /// Fenced off: the shim starts nothing.
    Refused,
}

impl Kubelet {
    pub fn new(plane: &Plane, agents: Agents, runs: Runs, at_once: usize) -> Arc<Self> {
        Arc::new(Self {
            plane: plane.clone(),
            agents,
            runs,
            seen: Mutex::default(),
            starts: Mutex::default(),
            failures: Mutex::default(),
            at_once: Semaphore::new(at_once),
        })
    }

    /// A pod appeared or changed.
    pub fn saw(self: &Arc<Self>, pod: Pod) {
        let new = pod.metadata.deletion_timestamp.is_none()
            && self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.uid().unwrap_or_default());
        if new {
            let kubelet = Arc::clone(self);
            tokio::spawn(async move {
                let _slot = kubelet.at_once.acquire().await;
                if let Err(error) = kubelet.run(&pod).await {
                    let place = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
                    let mut failures = kubelet.failures.lock().unwrap_or_else(PoisonError::into_inner);
                    failures.push(format!("pod {place}: {error:#}"));
                }
            });
        }
    }

    /// How often each attempt's command was started.
    pub fn starts(&self) -> BTreeMap<(String, i32), u32> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn run(&self, pod: &Pod) -> Result<()> {
        if !pod.labels().contains_key(LABEL_STEP_RUN) {
            return self.ends(&pod.namespace().unwrap_or_default(), &pod.name_any(), 0).await;
        }
        let attempt = Attempt::of(pod)?;
        let Claimed::Mine(step_run) = self.claim(&attempt).await? else {
            return self.ends(&attempt.namespace, &attempt.pod, 1).await;
        };
        let key = (attempt.uid.clone(), attempt.number);
        *self.starts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(0) += 1;
        if self.runs == Runs::Told {
            self.status(&attempt.namespace, &attempt.pod, &json!({"phase": "Running"})).await?;
        }
        let deed = (self.agents)(&step_run, attempt.number);
        tokio::time::sleep(deed.takes).await;
        self.report(&attempt, &step_run, &deed).await?;
        self.ends(&attempt.namespace, &attempt.pod, i32::from(deed.fails)).await
    }

    async fn read(&self, attempt: &Attempt) -> Result<Option<StepRun>> {
        match ask(&self.plane.gateway, Method::GET, &attempt.path(""), None).await {
            Ok(found) => Ok(Some(serde_json::from_value(found)?)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn claim(&self, attempt: &Attempt) -> Result<Claimed> {
        for _ in 0..ROUNDS {
            let Some(step_run) = self.read(attempt).await? else { return Ok(Claimed::Refused) };
            if !attempt.may_start(&step_run) {
                return Ok(Claimed::Refused);
            }
            let claim = json!({"claim": {"attempt": attempt.number, "id": attempt.digest(), "podName": attempt.pod,
                "podUID": attempt.pod_uid, "at": Timestamp::now().to_string()}});
            let mut operations = vec![
                test("/metadata/uid", attempt.uid.as_str()),
                test("/metadata/resourceVersion", step_run.resource_version()),
            ];
            if step_run.status.is_none() {
                operations.push(add("/status", json!({})));
            }
            operations.push(add("/status/agent", claim));
            if self.patch(attempt, operations).await? {
                return Ok(Claimed::Mine(Box::new(step_run)));
            }
        }
        bail!("the StepRun is being written to")
    }

    async fn report(&self, attempt: &Attempt, step_run: &StepRun, deed: &Deed) -> Result<()> {
        let output = deed.output.to_string();
        let mut report = json!({"attempt": attempt.number, "exitCode": i32::from(deed.fails),
            "class": if deed.fails { "Exited" } else { "Succeeded" }, "at": Timestamp::now().to_string()});
        let mut content = "";
        if !deed.fails {
            report["output"] = json!(output);
            if let Some((produces, text)) = &deed.document {
                content = text;
                report["documentName"] = json!(self.document(attempt, step_run, produces, text).await?);
            }
        }
        report["digest"] = json!(name::digest([output.as_bytes(), content.as_bytes()]));
        for _ in 0..ROUNDS {
            let operations = vec![
                test("/metadata/uid", attempt.uid.as_str()),
                // The operator may not have written its status yet.
                test("/status/attempt", attempt.number),
                test("/status/completedAt", Value::Null),
                test("/status/agent/claim/id", attempt.digest()),
                test("/status/agent/claim/attempt", attempt.number),
                test("/status/agent/report", Value::Null),
                add("/status/agent/report", report.clone()),
            ];
            if self.patch(attempt, operations).await? {
                return Ok(());
            }
            let live = self.read(attempt).await?.context("the StepRun is gone")?;
            let mine =
                live.status.and_then(|s| s.agent).and_then(|a| a.claim).is_some_and(|c| c.id == attempt.digest());
            if !mine {
                bail!("the claim is lost");
            }
        }
        bail!("the report could not be written")
    }

    async fn document(&self, attempt: &Attempt, from: &StepRun, produces: &Produces, content: &str) -> Result<String> {
        let spec = &from.spec;
        let scope = match produces.scope {
            Some(WiderScope::Session) => "Session",
            Some(WiderScope::Project) => "Project",
            None if spec.item.is_some() => "Item",
            None => "Workflow",
        };
        let name = name::document(&attempt.step_run, &attempt.uid, attempt.number, &produces.document_type);
        let mut metadata = json!({"name": name,
            "labels": {name::LABEL_WORKFLOW: name::label_value(&spec.workflow.name)}});
        if produces.scope.is_none() {
            metadata["ownerReferences"] = json!([{"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
                "name": spec.workflow.name, "uid": spec.workflow.uid}]);
        }
        let document = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Document", "metadata": metadata, "spec": {
            "type": produces.document_type, "scope": scope, "scopeId": spec.scope_chain.last().map(|link| &link.scope_id),
            "session": from.labels().get(name::LABEL_SESSION), "workflow": spec.workflow.name, "path": spec.path,
            "attempt": attempt.number, "format": produces.format, "content": content}});
        let path = format!("/apis/lockstep.dev/v1alpha1/namespaces/{}/documents", attempt.namespace);
        match ask(&self.plane.gateway, Method::POST, &path, Some(&document)).await {
            Ok(_) => Ok(name),
            Err(error) => Err(anyhow!("document {name}: {error}")),
        }
    }

    /// Writes `status.agent`; false if a test failed or another write came between.
    async fn patch(&self, attempt: &Attempt, operations: Vec<Value>) -> Result<bool> {
        let path = attempt.path("/status?fieldManager=lockstep-gateway");
        match ask(&self.plane.gateway, Method::PATCH, &path, Some(&Value::Array(operations))).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(code(&error), Some(409 | 422)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn ends(&self, namespace: &str, pod: &str, exit_code: i32) -> Result<()> {
        let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
        let terminated = json!({"terminated": {"exitCode": exit_code}});
        let container = json!({"name": "agent", "image": "none", "imageID": "", "ready": false, "restartCount": 0,
            "state": terminated});
        self.status(namespace, pod, &json!({"phase": phase, "containerStatuses": [container]})).await
    }

    async fn status(&self, namespace: &str, pod: &str, status: &Value) -> Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/status");
        match ask(&self.plane.admin, Method::PATCH, &path, Some(&json!({"status": status}))).await {
            Err(error) if code(&error) != Some(404) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Attempt {
    fn of(pod: &Pod) -> Result<Self> {
        let label = |key: &str| pod.labels().get(key).cloned().with_context(|| format!("no label {key}"));
        let variables = pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.env.iter().flatten());
        let uid = variables.into_iter().find(|v| v.name == env::STEP_RUN_UID).and_then(|v| v.value.clone());
        let pod_uid = pod.uid().unwrap_or_default();
        Ok(Self {
            namespace: pod.namespace().unwrap_or_default(),
            pod: pod.name_any(),
            step_run: label(LABEL_STEP_RUN)?,
            uid: uid.context("the pod does not know its StepRun's UID")?,
            number: label(LABEL_ATTEMPT)?.parse()?,
            // As good as random: no other pod has it.
            id: name::digest_bytes(pod_uid.as_bytes()),
            pod_uid,
        })
    }

    fn path(&self, rest: &str) -> String {
        format!("/apis/lockstep.dev/v1alpha1/namespaces/{}/stepruns/{}{rest}", self.namespace, self.step_run)
    }

    fn digest(&self) -> String {
        name::digest_bytes(self.id.as_bytes())
    }

    /// The fence (`src/gateway/attempt.rs`), and that nobody was first.
    fn may_start(&self, step_run: &StepRun) -> bool {
        let status = step_run.status.clone().unwrap_or_default();
        let waits =
            status.gate.as_ref().is_some_and(|gate| gate.state == GateState::Waiting) || status.waiting_for.is_some();
        step_run.uid().as_ref() == Some(&self.uid)
            && step_run.metadata.deletion_timestamp.is_none()
            && status.attempt == self.number
            && status.completed_at.is_none()
            && !status.phase.is_some_and(Phase::is_terminal)
            && !waits
            && status.agent.and_then(|a| a.claim).is_none_or(|claim| claim.attempt != self.number)
    }
}

fn test(path: &str, value: impl Into<Value>) -> Value {
    json!({"op": "test", "path": path, "value": value.into()})
}

fn add(path: &str, value: impl Into<Value>) -> Value {
    json!({"op": "add", "path": path, "value": value.into()})
}
