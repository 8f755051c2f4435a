//! Flux: kustomize-controller itself. source-controller is played: the tree of a commit of the repository, offered over HTTP as
//! the artifact of a GitRepository.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use axum::extract::{Path, State};
use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use lockstep::api::name::digest_bytes;
use serde_json::{Value, json};

use super::ground::{Ground, condition, controllers};
use super::repository::Repository;
use super::rights::{TEAM, service_account};

const ACCOUNT: &str = "kustomize-controller";
const SOURCE: &str = "team";

type Served = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

pub struct Flux<'a> {
    ground: &'a Ground,
    /// The controller's own; Kustomizations and their source lie in the team's.
    namespace: String,
    pub repository: Repository,
    served: Served,
    port: u16,
    kubeconfig: std::path::PathBuf,
}

impl<'a> Flux<'a> {
    pub async fn open(ground: &'a Ground) -> Result<Self> {
        ground
            .kinds(&[
                "source.toolkit.fluxcd.io_gitrepositories.yaml",
                "source.toolkit.fluxcd.io_ocirepositories.yaml",
                "source.toolkit.fluxcd.io_buckets.yaml",
                "kustomize.toolkit.fluxcd.io_kustomizations.yaml",
            ])
            .await?;
        let namespace = format!("{}-flux", ground.namespace);
        ground.plane.namespace(&namespace).await?;
        let kubeconfig = ground.account(&namespace, ACCOUNT).await?;
        // Of the installation of Flux what every controller has (crd-controller), and not what adds all rights (cluster-reconciler):
        // it applies nothing under its own name.
        let rules = json!([
            {"apiGroups": ["source.toolkit.fluxcd.io", "kustomize.toolkit.fluxcd.io"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": [""], "resources": ["secrets", "configmaps", "serviceaccounts"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}
        ]);
        ground.may(&ground.namespace, ACCOUNT, &service_account(&namespace, ACCOUNT), rules).await?;
        ground.rights(TEAM, &[("team", &ground.namespace), ("flux-system", &namespace)]).await?;
        ground.beside().await?;
        let repository = Repository::new(&ground.folder)?;
        let served = Served::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let router = axum::Router::new().route("/{file}", axum::routing::get(file)).with_state(Arc::clone(&served));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let source = json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository", "metadata": {"name": SOURCE},
            "spec": {"interval": "1m", "url": "https://git.example.com/team.git"}});
        let flux = Self { ground, namespace, repository, served, port, kubeconfig };
        ground.post(&flux.sources(), &source).await?;
        flux.restart()?;
        Ok(flux)
    }

    pub async fn close(self) -> Result<()> {
        // While the controller runs: Kustomizations have a finalizer, and prune what they applied.
        let path = self.kustomizations();
        let all = self.ground.get(&path).await?;
        for one in all["items"].as_array().into_iter().flatten() {
            let name = one["metadata"]["name"].as_str().unwrap_or_default();
            self.ground.delete(&format!("{path}/{name}")).await?;
        }
        self.ground
            .until("the Kustomizations are gone", async || {
                Ok(self.ground.get(&path).await?["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
            })
            .await?;
        self.ground.plane.leave(&self.namespace).await
    }

    /// Kills the controller, if it runs, and starts another.
    pub fn restart(&self) -> Result<()> {
        self.ground.strike(ACCOUNT);
        let port = super::process::port()?;
        self.ground.start(
            ACCOUNT,
            Command::new(controllers()?.join(ACCOUNT))
                .args(["--watch-all-namespaces=false", "--metrics-addr=127.0.0.1:0", "--requeue-dependency=1s"])
                .arg(format!("--health-addr=127.0.0.1:{port}"))
                .env("RUNTIME_NAMESPACE", &self.ground.namespace)
                .env("KUBECONFIG", &self.kubeconfig)
                .env("TMPDIR", &self.ground.folder),
        )
    }

    /// Each apply of what a Kustomization names, by the controller's log: when, and what became of each object.
    pub fn applied_so_far(&self, name: &str) -> Result<Vec<(Timestamp, BTreeMap<String, String>)>> {
        let log = std::fs::read_to_string(self.ground.folder.join(format!("{ACCOUNT}.log")))?;
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["msg"] == "server-side apply completed" && line["name"] == name)
            .map(|line| {
                Ok((serde_json::from_value(line["ts"].clone())?, serde_json::from_value(line["output"].clone())?))
            })
            .collect()
    }

    pub fn applies(&self, name: &str) -> Result<usize> {
        Ok(self.applied_so_far(name)?.len())
    }

    /// Who acts for the controller.
    pub fn controller(&self) -> Value {
        service_account(&self.namespace, ACCOUNT)
    }

    fn sources(&self) -> String {
        format!("/apis/source.toolkit.fluxcd.io/v1/namespaces/{}/gitrepositories", self.ground.namespace)
    }

    fn kustomizations(&self) -> String {
        format!("/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/{}/kustomizations", self.ground.namespace)
    }

    /// Commits to the repository and offers the commit; gives its revision.
    pub async fn commit(&self, message: &str, files: &[(&str, Option<&str>)]) -> Result<String> {
        let commit = self.repository.commit(message, files)?;
        let archive = self.repository.archive(&commit)?;
        let (file, revision) = (format!("{commit}.tar.gz"), format!("main@sha1:{commit}"));
        let now = Timestamp::now().to_string();
        let artifact = json!({"url": format!("http://127.0.0.1:{}/{file}", self.port), "path": file, "revision": revision,
            "digest": digest_bytes(&archive), "size": archive.len(), "lastUpdateTime": now});
        self.served.lock().unwrap_or_else(PoisonError::into_inner).insert(file, archive);
        let ready =
            json!({"type": "Ready", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": now});
        let status = json!({"status": {"observedGeneration": 1, "artifact": artifact, "conditions": [ready]}});
        self.ground.merge(&format!("{}/{SOURCE}/status", self.sources()), &status).await?;
        Ok(revision)
    }

    /// A Kustomization of a folder; what is given is laid over its spec.
    pub async fn kustomize(&self, name: &str, more: Value) -> Result<()> {
        let mut spec = json!({"interval": "10m", "retryInterval": "1s", "timeout": "168h", "prune": true, "path": format!("./{name}"),
            "targetNamespace": self.ground.namespace, "serviceAccountName": "gitops", "sourceRef": {"kind": "GitRepository", "name": SOURCE}});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        let object = json!({"apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization",
            "metadata": {"name": name}, "spec": spec});
        self.ground.post(&self.kustomizations(), &object).await?;
        Ok(())
    }

    pub async fn get(&self, name: &str) -> Result<Value> {
        self.ground.get(&format!("{}/{name}", self.kustomizations())).await
    }

    /// Asks for a sync and waits until it was done; gives the condition Ready.
    pub async fn sync(&self, name: &str) -> Result<Value> {
        let now = Timestamp::now().to_string();
        let body = json!({"metadata": {"annotations": {"reconcile.fluxcd.io/requestedAt": now}}});
        self.ground.merge(&format!("{}/{name}", self.kustomizations()), &body).await?;
        let found = self
            .ground
            .until(&format!("{name} is synced"), async || {
                let found = self.get(name).await?;
                let handled = found["status"]["lastHandledReconcileAt"] == now.as_str();
                // A new one says nothing at first, and a commit may have it at work again.
                let is_ready = condition(&found, "Ready")["status"].as_str();
                Ok((handled && matches!(is_ready, Some("True" | "False"))).then_some(found))
            })
            .await?;
        Ok(condition(&found, "Ready").clone())
    }

    /// Until the revision was applied, and is ready.
    pub async fn applied(&self, name: &str, revision: &str) -> Result<()> {
        self.ground
            .until(&format!("{name} is ready at {revision}"), async || {
                let found = self.get(name).await?;
                let ready = condition(&found, "Ready");
                ensure!(ready["status"] != "False", "{}: {}", ready["reason"], ready["message"]);
                Ok((ready["status"] == "True" && found["status"]["lastAppliedRevision"] == revision).then_some(()))
            })
            .await
    }

    /// Until the Kustomization is not ready for this reason; gives the message.
    pub async fn fails(&self, name: &str, reason: &str) -> Result<String> {
        self.ground
            .until(&format!("{name} is not ready: {reason}"), async || {
                let found = self.get(name).await?;
                let ready = condition(&found, "Ready");
                let message = ready["message"].as_str().unwrap_or_default().to_owned();
                Ok((ready["status"] == "False" && ready["reason"] == reason).then_some(message))
            })
            .await
    }
}

async fn file(State(served): State<Served>, Path(file): Path<String>) -> std::result::Result<Vec<u8>, StatusCode> {
    let served = served.lock().unwrap_or_else(PoisonError::into_inner);
    served.get(&file).cloned().context("no such file").map_err(|_| StatusCode::NOT_FOUND)
}
