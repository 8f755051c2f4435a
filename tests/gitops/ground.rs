//! The ground of a test: a team's namespace, Lockstep at work, and a record of all that ever was in the namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject};
use kube::config::Kubeconfig;
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use lockstep::api::StepRun;
use lockstep::api::name::{COMMENT, DECIDED_BY, DECISION, REVIEW};
use lockstep::api::step::Produces;
use serde_json::{Value, json};

use super::kubelet::{Deed, Kubelet, Runs};
use super::operator::Operator;
use super::plane::{PERSON, Plane, ask, code};
use super::process::Process;

/// How long anything may take on a busy machine of two cores.
const PATIENCE: Duration = Duration::from_secs(150);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long an agent works: long enough for a sync to come in between.
const WORK: Duration = Duration::from_millis(700);

/// Two operators at once would do each other's work.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub struct Ground {
    pub plane: Plane,
    /// The team's: what Git holds lands there.
    pub namespace: String,
    /// For the repository, the controllers' files and all logs.
    pub folder: PathBuf,
    pub record: Arc<Record>,
    /// Controllers that run beside Lockstep.
    processes: Mutex<Vec<Process>>,
    /// What was made outside of namespaces, to be taken away.
    made: Mutex<Vec<String>>,
    /// None where the cluster has nodes: there what is installed runs, in pods.
    lockstep: Option<(Operator, Arc<Kubelet>)>,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Ground {
    pub async fn open(purpose: &str) -> Result<Self> {
        let alone = ALONE.lock().await;
        let plane = Plane::find().await?;
        let namespace = format!("gitops-{purpose}-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gitops").join(purpose);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        let nodes = ask(&plane.admin, Method::GET, "/api/v1/nodes", None).await?;
        let lockstep = if nodes["items"].as_array().is_some_and(Vec::is_empty) {
            let operator = Operator::new(env!("CARGO_BIN_EXE_lockstep").as_ref(), &folder, &plane.kubeconfig)?;
            operator.start()?;
            Some((operator, Kubelet::new(&plane, Box::new(deed), Runs::Told, 32)))
        } else {
            None
        };
        plane.namespace(&namespace).await?;
        let kubelet = lockstep.as_ref().map(|(_, kubelet)| kubelet);
        let record = Record::begin(&plane, &namespace, kubelet);
        Ok(Self {
            plane,
            namespace,
            folder,
            record,
            processes: Mutex::default(),
            made: Mutex::default(),
            lockstep,
            _alone: alone,
        })
    }

    /// Starts a controller, which ends with the ground.
    pub fn start(&self, name: &'static str, command: &mut Command) -> Result<()> {
        let process = Process::start(name, &self.folder, command)?;
        self.processes().push(process);
        Ok(())
    }

    /// Kills it.
    pub fn strike(&self, name: &str) {
        self.processes().retain(|process| process.name != name);
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, Vec<Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if one of them went by itself.
    fn live(&self) -> Result<()> {
        self.processes().iter_mut().try_for_each(Process::lives)?;
        self.lockstep.as_ref().map_or(Ok(()), |(operator, _)| operator.lives().map(|_| ()))
    }

    /// Of a test that passed; one that failed leaves its namespaces to be looked at. Nothing was run twice, by what the pods saw.
    pub async fn close(self) -> Result<()> {
        self.live()?;
        if let Some((operator, kubelet)) = &self.lockstep {
            let twice: Vec<_> = kubelet.starts().into_iter().filter(|(_, starts)| *starts != 1).collect();
            ensure!(twice.is_empty(), "attempts that were started more than once: {twice:?}");
            let log = std::fs::read_to_string(operator.log())?;
            ensure!(!log.contains("panicked"), "the operator panicked, see {}", operator.log().display());
        }
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for path in made {
            self.delete(&path).await?;
        }
        self.plane.leave(&self.namespace).await
    }

    /// What is to be deleted when the test has passed.
    pub fn made(&self, path: String) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }

    /// Whether pods run here.
    pub fn has_pods(&self) -> bool {
        self.lockstep.is_none()
    }

    /// A ServiceAccount, with no right yet; gives the path of its kubeconfig.
    pub async fn account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.post(&path, &account).await?;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}});
        let answer = self.post(&format!("{path}/{name}/token"), &request).await?;
        let user = json!({"token": answer["status"]["token"]});
        self.kubeconfig(name, user)
    }

    /// A person to the API server, by whatever way that is; gives the path of a kubeconfig.
    pub fn somebody(&self, name: &str) -> Result<PathBuf> {
        let path = std::env::var("KUBECONFIG")?;
        let file = Kubeconfig::read_from(&path).with_context(|| format!("KUBECONFIG={path}"))?;
        let mut admin = file.auth_infos.into_iter().next().and_then(|named| named.auth_info).context("no user")?;
        admin.impersonate = Some(name.to_owned());
        self.kubeconfig(name, serde_json::to_value(admin)?)
    }

    fn kubeconfig(&self, name: &str, user: Value) -> Result<PathBuf> {
        let mut file: Value = serde_json::from_str(&self.plane.kubeconfig)?;
        file["users"][0]["user"] = user;
        let written = self.folder.join(format!("{name}.kubeconfig"));
        std::fs::write(&written, file.to_string())?;
        Ok(written)
    }

    /// Definitions of kinds that are not there yet, from files that hack/gitops/controllers made.
    pub async fn kinds(&self, files: &[&str]) -> Result<()> {
        let all = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        for file in files {
            let path = controllers()?.join("crds").join(file);
            let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            let mut definition: Value =
                serde_saphyr::from_str(text.trim_start_matches("---\n")).with_context(|| file.to_string())?;
            let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            definition.as_object_mut().context("no object")?.remove("status");
            match ask(&self.plane.admin, Method::POST, all, Some(&definition)).await {
                Err(error) if code(&error) != Some(409) => return Err(error).with_context(|| name),
                _ => {}
            }
            self.until(&format!("the kind {name} is served"), async || {
                let found = self.get(&format!("{all}/{name}")).await?;
                Ok((condition(&found, "Established")["status"] == "True").then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    // ---- what there is

    pub fn ours(&self, rest: &str) -> String {
        format!("/apis/lockstep.dev/v1alpha1/namespaces/{}/{rest}", self.namespace)
    }

    pub fn core(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.namespace)
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        ask(&self.plane.admin, Method::GET, path, None).await.with_context(|| format!("GET {path}"))
    }

    pub async fn exists(&self, path: &str) -> Result<bool> {
        match ask(&self.plane.admin, Method::GET, path, None).await {
            Ok(_) => Ok(true),
            Err(error) if code(&error) == Some(404) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("GET {path}")),
        }
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        ask(&self.plane.admin, Method::POST, path, Some(body)).await.with_context(|| format!("POST {path}"))
    }

    pub async fn delete(&self, path: &str) -> Result<()> {
        ask(&self.plane.admin, Method::DELETE, path, None).await.with_context(|| format!("DELETE {path}"))?;
        Ok(())
    }

    /// A merge patch, by a field manager as kubectl names itself; null takes away.
    pub async fn merge(&self, path: &str, body: &Value) -> Result<Value> {
        self.merge_as("kubectl-patch", path, body).await
    }

    pub async fn merge_as(&self, manager: &str, path: &str, body: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager={manager}");
        ask(&self.plane.admin, Method::PATCH, &path, Some(body)).await.with_context(|| format!("PATCH {path}"))
    }

    pub async fn run(&self, name: &str) -> Result<Value> {
        self.get(&self.ours(&format!("workflows/{name}"))).await
    }

    // ---- waiting

    /// Looks until there is something.
    pub async fn until<T, F>(&self, what: &str, mut look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let began = Instant::now();
        let mut trouble = String::new();
        while began.elapsed() < PATIENCE {
            match look().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => trouble.clear(),
                Err(error) => trouble = format!("; last: {error:#}"),
            }
            self.live()?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let failures = self.lockstep.as_ref().map(|(_, kubelet)| kubelet.failures()).unwrap_or_default();
        bail!("not within {PATIENCE:?}: {what}{trouble}\n{}{}", self.record.scene(), failures.join("\n"))
    }

    /// Until the run is in this phase; ends early where it can no more come to it.
    pub async fn phase(&self, run: &str, wanted: &str) -> Result<Value> {
        let found = self
            .until(&format!("{run} is {wanted}"), async || {
                let found = self.run(run).await?;
                let phase = &found["status"]["phase"];
                let over = ["Completed", "Failed", "Cancelled"].iter().any(|word| phase == word);
                Ok((phase == wanted || over).then_some(found))
            })
            .await?;
        ensure!(found["status"]["phase"] == wanted, "{run} is {}, not {wanted}", found["status"]["phase"]);
        Ok(found)
    }

    /// The StepRun of a step that is there once; none before it is.
    pub async fn step_run(&self, run: &str, path: &str) -> Result<Option<Value>> {
        let all = self.get(&self.ours("stepruns")).await?;
        let all = all["items"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|s| s["spec"]["workflow"]["name"] == run && s["spec"]["path"] == path))
    }

    pub async fn gate(&self, run: &str, path: &str) -> Result<Value> {
        self.until(&format!("the gate of {run}/{path} waits"), async || {
            let found = self.step_run(run, path).await?;
            Ok(found.filter(|s| s["status"]["gate"]["state"] == "Waiting"))
        })
        .await
    }

    /// A person accepts what waits at the gate, as the documentation says: by annotation.
    pub async fn approve(&self, run: &str, path: &str) -> Result<()> {
        let waiting = self.gate(run, path).await?;
        let name = waiting["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let annotations = json!({DECISION: "accepted", REVIEW: waiting["status"]["gate"]["outputDigest"],
            COMMENT: "fine", DECIDED_BY: PERSON});
        let body = json!({"metadata": {"annotations": annotations}});
        let path = self.ours(&format!("stepruns/{name}"));
        self.until(&format!("{PERSON} approves {name}"), async || {
            match ask(&self.plane.person, Method::PATCH, &path, Some(&body)).await {
                Ok(_) => Ok(Some(())),
                // The API server gives up a patch that others keep outrunning.
                Err(error) if code(&error) == Some(409) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }
}

/// What agents do: `breaker` fails, `writer` and the `notes` of examples/gitops/team make their documents, all say who they are.
fn deed(step_run: &StepRun, attempt: i32) -> Deed {
    let (path, agent) = (&step_run.spec.path, &step_run.spec.agent_id);
    let document_type = match agent.as_str() {
        "writer" => "draft",
        "notes" if step_run.spec.workflow.name.starts_with("nightly-notes") => "nightly-notes",
        "notes" => "release-notes",
        _ => "",
    };
    let produces = Produces { document_type: document_type.to_owned(), ..Produces::default() };
    Deed {
        output: json!({"by": path, "attempt": attempt}),
        document: (!document_type.is_empty()).then(|| (produces, format!("A draft by {path}"))),
        fails: agent == "breaker",
        takes: WORK,
    }
}

/// Where hack/gitops/controllers puts what it builds.
pub fn controllers() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/gitops/controllers");
    ensure!(folder.join("crds").is_dir(), "the controllers are not built: run hack/gitops/controllers");
    Ok(folder)
}

/// Of an object that has conditions.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    let all = object["status"]["conditions"].as_array();
    all.and_then(|all| all.iter().find(|c| c["type"] == kind)).unwrap_or(&NONE)
}

// ---- the record

const KINDS: [(&str, &str, &str); 7] = [
    ("lockstep.dev", "v1alpha1", "Workflow"),
    ("lockstep.dev", "v1alpha1", "StepRun"),
    ("lockstep.dev", "v1alpha1", "Document"),
    ("lockstep.dev", "v1alpha1", "Memory"),
    ("apps", "v1", "ControllerRevision"),
    ("batch", "v1", "Job"),
    ("", "v1", "Pod"),
];

#[derive(Default)]
struct Seen {
    objects: BTreeMap<(&'static str, String), Value>,
    made: BTreeMap<(&'static str, String), BTreeSet<String>>,
    gone: Vec<(&'static str, String)>,
    broken: Vec<String>,
}

/// All that ever was in the namespace, by a watch.
pub struct Record {
    seen: Mutex<Seen>,
}

impl Record {
    fn begin(plane: &Plane, namespace: &str, kubelet: Option<&Arc<Kubelet>>) -> Arc<Self> {
        let record = Arc::new(Self { seen: Mutex::default() });
        for (group, version, kind) in KINDS {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api: Api<DynamicObject> = Api::namespaced_with(plane.admin.clone(), namespace, &resource);
            let (record, kubelet) = (Arc::clone(&record), kubelet.cloned());
            tokio::spawn(async move {
                let mut events = watcher(api, Config::default()).default_backoff().boxed();
                while let Some(event) = events.next().await {
                    match event {
                        Ok(Event::Apply(object) | Event::InitApply(object)) => {
                            let Ok(value) = serde_json::to_value(&object) else { continue };
                            if let (Some(kubelet), Ok(pod)) = (&kubelet, serde_json::from_value::<Pod>(value.clone()))
                                && kind == "Pod"
                            {
                                kubelet.saw(pod);
                            }
                            let key = (kind, object.name_any());
                            let mut seen = record.seen();
                            seen.made.entry(key.clone()).or_default().insert(object.uid().unwrap_or_default());
                            seen.objects.insert(key, value);
                        }
                        Ok(Event::Delete(object)) => {
                            let key = (kind, object.name_any());
                            let mut seen = record.seen();
                            seen.objects.remove(&key);
                            seen.gone.push(key);
                        }
                        Ok(Event::Init | Event::InitDone) => {}
                        Err(error) => record.seen().broken.push(format!("{kind}: {error}")),
                    }
                }
            });
        }
        record
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of a kind that ever were, and under how many UIDs each.
    pub fn made(&self, kind: &str) -> BTreeMap<String, usize> {
        let seen = self.seen();
        let all = seen.made.iter().filter(|((k, _), _)| *k == kind);
        all.map(|((_, name), uids)| (name.clone(), uids.len())).collect()
    }

    pub fn there(&self, kind: &str) -> Vec<Value> {
        let seen = self.seen();
        seen.objects.iter().filter(|((k, _), _)| *k == kind).map(|(_, value)| value.clone()).collect()
    }

    /// What went, with its kind.
    pub fn gone(&self) -> Vec<(&'static str, String)> {
        self.seen().gone.clone()
    }

    fn scene(&self) -> String {
        let seen = self.seen();
        let mut text = String::new();
        for ((kind, name), value) in &seen.objects {
            let (status, kind_of) = (&value["status"], &value["spec"]["path"]);
            text += &format!("  {kind} {name} {kind_of}: phase {} gate {}\n", status["phase"], status["gate"]["state"]);
        }
        text + &seen.broken.join("\n")
    }
}
