//! A namespace of a test's own, what people do in it, and how to wait for what follows.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http::{Method, Request};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use lockstep::api::step_run::{Claim, GateState, StepRunStatus};
use lockstep::api::workflow::{Phase, WorkflowStatus};
use lockstep::api::{Document, StepRun, Workflow};
use serde_json::{Value, json};

use crate::contexts;

pub const SYSTEM: &str = "lockstep-system";
/// Who may decide every gate and answer every question of a test's namespace.
pub const APPROVER: &str = "ann";
/// May write annotations, but decide nothing.
pub const EDITOR: &str = "bob";
/// How long anything may take on a busy machine of two cores.
pub const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const IMAGE: &str = "lockstep-example-agents:dev";
/// In an agent's script: waits until the test calls `release`.
pub const HELD: &str = "until [ -e $LOCKSTEP_WORK/go ]; do sleep 0.2; done";

pub struct Space {
    pub admin: Client,
    pub namespace: String,
}

/// The cluster that KUBECONFIG names, as administrator or in somebody else's name.
pub async fn client(user: Option<&str>) -> Result<Client> {
    let path = std::env::var("KUBECONFIG").map_err(|_| {
        anyhow!("these tests need a cluster with Lockstep installed: make install, then eval \"$(hack/devcluster/devcluster env)\"; KUBECONFIG is not set")
    })?;
    let file = Kubeconfig::read_from(&path).with_context(|| format!("KUBECONFIG={path}"))?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.auth_info.impersonate = user.map(str::to_owned);
    Ok(Client::try_from(config)?)
}

/// One request; an error has the API server's code and words.
pub async fn ask(client: &Client, method: Method, path: &str, body: Option<&Value>) -> kube::Result<Value> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = body.map_or_else(Vec::new, |b| b.to_string().into_bytes());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// The code and the words of a refusal; that the request passed is the failure.
pub fn refusal(answer: kube::Result<Value>) -> Result<(u16, String)> {
    match answer {
        Err(kube::Error::Api(status)) => Ok((status.code, status.message)),
        Err(other) => Err(other.into()),
        Ok(_) => bail!("accepted, but should be refused"),
    }
}

impl Space {
    pub async fn open(purpose: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let space =
            Self { admin: client(None).await?, namespace: format!("e2e-{purpose}-{}-{number}", std::process::id()) };
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": space.namespace, "labels": labels}});
        space.post("/api/v1/namespaces", &namespace).await?;
        for (user, role) in [(APPROVER, "lockstep-approver"), (EDITOR, "lockstep-edit")] {
            space.bind("User", user, role).await?;
        }
        // A pod needs the account, which a controller makes in its own time.
        space
            .until("the account default exists", PATIENCE, None, async || {
                Ok(space.get(&space.core("serviceaccounts/default")).await.ok().map(|_| ()))
            })
            .await?;
        Ok(space)
    }

    /// Of a test that passed; one that failed leaves its namespace to be looked at.
    pub async fn close(self) -> Result<()> {
        self.contexts().await?;
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        ask(&self.admin, Method::DELETE, &path, None).await?;
        Ok(())
    }

    pub async fn bind(&self, kind: &str, name: &str, role: &str) -> Result<()> {
        let mut subject = json!({"kind": kind, "name": name});
        if kind == "ServiceAccount" {
            subject["namespace"] = json!(self.namespace);
        } else {
            subject["apiGroup"] = json!("rbac.authorization.k8s.io");
        }
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": format!("{name}-{role}")}, "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}});
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", self.namespace);
        self.post(&path, &binding).await?;
        Ok(())
    }

    pub fn core(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.namespace)
    }

    pub fn ours(&self, rest: &str) -> String {
        format!("/apis/lockstep.dev/v1alpha1/namespaces/{}/{rest}", self.namespace)
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        ask(&self.admin, Method::GET, path, None).await.with_context(|| format!("GET {path}"))
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        ask(&self.admin, Method::POST, path, Some(body)).await.with_context(|| format!("POST {path}"))
    }

    async fn make(&self, kind: &str, plural: &str, name: &str, spec: &Value) -> Result<()> {
        let object = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec});
        self.post(&self.ours(plural), &object).await?;
        Ok(())
    }

    /// An Agent that runs a shell script; `more` is laid over its spec. Patience ends before the time of an attempt does.
    pub async fn agent(&self, name: &str, script: &str, more: &Value) -> Result<()> {
        let spec = laid_over(json!({"template": pod_template(script), "timeoutSeconds": 300}), more);
        self.agent_of(name, &spec).await
    }

    /// An Agent with this spec and nothing else.
    pub async fn agent_of(&self, name: &str, spec: &Value) -> Result<()> {
        self.make("Agent", "agents", name, spec).await
    }

    pub async fn run(&self, name: &str, spec: &Value) -> Result<()> {
        self.make("Workflow", "workflows", name, spec).await
    }

    pub async fn document(&self, name: &str, spec: &Value) -> Result<()> {
        self.make("Document", "documents", name, spec).await
    }

    /// The example's Agents and its template, as the files have them.
    pub async fn apply_example(&self) -> Result<()> {
        self.apply("product-discovery", &["agents.yaml", "workflow-template.yaml"]).await
    }

    /// Files of an example.
    pub async fn apply(&self, example: &str, files: &[&str]) -> Result<()> {
        for file in files {
            let path = format!("{}/examples/{example}/{file}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            for object in yaml(&text)? {
                let plural = match object["kind"].as_str() {
                    Some("Agent") => "agents",
                    Some("WorkflowTemplate") => "workflowtemplates",
                    Some("Workflow") => "workflows",
                    Some("Trigger") => "triggers",
                    other => bail!("{path}: {other:?}"),
                };
                self.post(&self.ours(plural), &object).await?;
            }
        }
        Ok(())
    }

    // ---- what there is

    pub async fn workflow(&self, name: &str) -> Result<Workflow> {
        let api: Api<Workflow> = Api::namespaced(self.admin.clone(), &self.namespace);
        Ok(api.get(name).await?)
    }

    pub async fn status(&self, name: &str) -> Result<WorkflowStatus> {
        Ok(self.workflow(name).await?.status.unwrap_or_default())
    }

    /// In the order of their making.
    pub async fn step_runs(&self, run: &str) -> Result<Vec<StepRun>> {
        let api: Api<StepRun> = Api::namespaced(self.admin.clone(), &self.namespace);
        let chosen = ListParams::default().fields(&format!("spec.workflow.name={run}"));
        let mut found = api.list(&chosen).await?.items;
        found.sort_by_key(|s| {
            (s.metadata.creation_timestamp.clone().map(|t| t.0), s.spec.item.as_ref().map(|i| i.index))
        });
        Ok(found)
    }

    /// Of a step that runs once.
    pub async fn step_run(&self, run: &str, path: &str) -> Result<Option<StepRun>> {
        let all = self.step_runs(run).await?;
        Ok(all.into_iter().find(|s| s.spec.path == path))
    }

    pub async fn jobs(&self, run: &str) -> Result<Vec<Job>> {
        let api: Api<Job> = Api::namespaced(self.admin.clone(), &self.namespace);
        Ok(api.list(&labelled("workflow", run)).await?.items)
    }

    pub async fn pods(&self, run: &str) -> Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.admin.clone(), &self.namespace);
        Ok(api.list(&labelled("workflow", run)).await?.items)
    }

    pub async fn documents(&self, run: &str, document_type: &str) -> Result<Vec<Document>> {
        let api: Api<Document> = Api::namespaced(self.admin.clone(), &self.namespace);
        let chosen = format!("spec.workflow={run},spec.type={document_type}");
        let found = api.list(&ListParams::default().fields(&chosen)).await?;
        Ok(found.items)
    }

    pub async fn log(&self, pod: &str) -> Result<String> {
        let api: Api<Pod> = Api::namespaced(self.admin.clone(), &self.namespace);
        let options = LogParams { container: Some("agent".to_owned()), ..LogParams::default() };
        Ok(api.logs(pod, &options).await?)
    }

    // ---- waiting

    /// Looks until there is something; what stands in the cluster goes into the failure.
    pub async fn until<T, F>(
        &self,
        what: &str,
        patience: Duration,
        run: Option<&str>,
        mut look: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let start = Instant::now();
        let mut trouble = None;
        while start.elapsed() < patience {
            match look().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => trouble = None,
                Err(error) => trouble = Some(error),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let scene = match run {
            Some(run) => self.scene(run).await,
            None => String::new(),
        };
        let trouble = trouble.map_or_else(String::new, |e| format!("; last: {e:#}"));
        bail!("not within {patience:?}: {what}{trouble}{scene}")
    }

    /// Until the run is in this phase; ends early where it can no more come to it.
    pub async fn phase(&self, run: &str, wanted: Phase) -> Result<WorkflowStatus> {
        let reached = self
            .until(&format!("{run} is {wanted}"), PATIENCE, Some(run), async || {
                let status = self.status(run).await?;
                let phase = status.phase.unwrap_or_default();
                Ok((phase == wanted || phase.is_terminal()).then_some(status))
            })
            .await?;
        if reached.phase != Some(wanted) {
            bail!("{run} is {:?}, not {wanted}{}", reached.phase, self.scene(run).await);
        }
        Ok(reached)
    }

    /// Until the step's status is as wanted.
    pub async fn step(
        &self,
        run: &str,
        path: &str,
        what: &str,
        wanted: impl Fn(&StepRunStatus) -> bool,
    ) -> Result<StepRun> {
        self.until(&format!("{path}: {what}"), PATIENCE, Some(run), async || {
            let found = self.step_run(run, path).await?;
            Ok(found.filter(|s| s.status.as_ref().is_some_and(&wanted)))
        })
        .await
    }

    /// Until an agent of the step runs, or is about to; `path/key` is an item.
    pub async fn claimed(&self, run: &str, place: &str) -> Result<StepRun> {
        let at = |s: &StepRun| match &s.spec.item {
            Some(item) => format!("{}/{}", s.spec.path, item.key),
            None => s.spec.path.clone(),
        };
        self.until(&format!("{place}: claimed"), PATIENCE, Some(run), async || {
            let found = self.step_runs(run).await?.into_iter().find(|s| at(s) == place);
            Ok(found.filter(|s| claim(s).is_some()))
        })
        .await
    }

    /// Lets an agent go on that `HELD` keeps waiting.
    pub async fn release(&self, claimed: &StepRun) -> Result<()> {
        let pod = &claim(claimed).context("nothing is claimed")?.pod_name;
        self.until(&format!("{pod} is released"), PATIENCE, None, async || {
            self.kubectl(&format!("exec {pod} -c agent -- touch /lockstep/work/go")).await.map(|_| Some(()))
        })
        .await
    }

    /// Until the agent has written these words; its log so far.
    pub async fn says(&self, pod: &str, words: &str) -> Result<String> {
        self.until(&format!("{pod} says {words:?}"), PATIENCE, None, async || {
            let log = self.log(pod).await?;
            ensure!(log.contains(words), "{log}");
            Ok(Some(log))
        })
        .await
    }

    pub async fn gate(&self, run: &str, path: &str) -> Result<StepRun> {
        self.step(run, path, "its gate waits", |s| s.gate.as_ref().is_some_and(|g| g.state == GateState::Waiting)).await
    }

    /// What `kubectl annotate` sends, by somebody.
    pub async fn annotate(&self, user: &str, step_run: &StepRun, annotations: &Value) -> kube::Result<Value> {
        let name = step_run.metadata.name.as_deref().unwrap_or_default();
        let client = client(Some(user)).await.map_err(|e| kube::Error::Service(e.into()))?;
        let body = json!({"metadata": {"annotations": annotations}});
        ask(&client, Method::PATCH, &self.ours(&format!("stepruns/{name}")), Some(&body)).await
    }

    /// Until no answer lies in the mailbox of a step: why one is refused is told before it is taken away.
    pub async fn emptied(&self, run: &str, path: &str) -> Result<()> {
        self.until(&format!("the mailbox of {path} is empty"), PATIENCE, Some(run), async || {
            let letters = self.step_run(run, path).await?.and_then(|step| step.metadata.annotations);
            Ok((!letters.is_some_and(|all| all.contains_key("lockstep.dev/answer"))).then_some(()))
        })
        .await
    }

    /// Waits for the gate and decides it.
    pub async fn decide(&self, run: &str, path: &str, decision: &str) -> Result<()> {
        let step_run = self.gate(run, path).await?;
        self.annotate(APPROVER, &step_run, &json!({"lockstep.dev/decision": decision}))
            .await
            .with_context(|| format!("{decision} {path}"))?;
        Ok(())
    }
}

fn claim(step_run: &StepRun) -> Option<&Claim> {
    step_run.status.as_ref()?.agent.as_ref()?.claim.as_ref()
}

/// Pods of the operator or the gateway that are not on their way out.
pub async fn component(client: &Client, name: &str) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), SYSTEM);
    let chosen = ListParams::default().labels(&format!("app.kubernetes.io/name=lockstep-{name}"));
    let mut found = api.list(&chosen).await?.items;
    found.retain(|p| p.metadata.deletion_timestamp.is_none());
    Ok(found)
}

fn labelled(key: &str, value: &str) -> ListParams {
    ListParams::default().labels(&format!("lockstep.dev/{key}={value}"))
}

pub fn label<'a>(meta: &'a k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, key: &str) -> &'a str {
    meta.labels.as_ref().and_then(|l| l.get(&format!("lockstep.dev/{key}"))).map_or("", String::as_str)
}

/// Of the condition of a run.
pub fn condition<'a>(status: &'a WorkflowStatus, kind: &str) -> Result<(&'a str, &'a str)> {
    status
        .conditions
        .iter()
        .find(|c| c.type_ == kind)
        .map(|c| (c.reason.as_str(), c.message.as_str()))
        .with_context(|| format!("no condition {kind}"))
}

pub fn example() -> String {
    format!("{}/examples/product-discovery", env!("CARGO_MANIFEST_DIR"))
}

/// What an agent was told: a context.json, if it keeps the contract that docs/ publish.
pub fn context(text: &str) -> Result<Value> {
    let path = format!("{}/docs/context.schema.json", env!("CARGO_MANIFEST_DIR"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    let context: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
    let validator = jsonschema::validator_for(&schema).map_err(|fault| anyhow!("{path}: {fault}"))?;
    let faults: Vec<String> =
        validator.iter_errors(&context).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    if faults.is_empty() { Ok(context) } else { bail!("{path}: {}\n{context:#}", faults.join("; ")) }
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

/// A pod that passes Pod Security `restricted`.
pub fn pod_template(script: &str) -> Value {
    json!({"spec": {
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "agent", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", format!("{}\necho STARTED $STEP_ID $ATTEMPT\n{script}", contexts::told())],
            "env": [field("NODE", "status.hostIP"), field("NAMESPACE", "metadata.namespace")],
            "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]}},
        }],
    }})
}

pub fn yaml(text: &str) -> Result<Vec<Value>> {
    text.split("\n---\n").map(|one| serde_saphyr::from_str(one).map_err(|e| anyhow!("{e}"))).collect()
}

fn laid_over(mut base: Value, more: &Value) -> Value {
    if let (Some(base), Some(more)) = (base.as_object_mut(), more.as_object()) {
        base.extend(more.clone());
    }
    base
}
