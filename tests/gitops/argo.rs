//! Argo CD: application controller, repo server and API server of its own binary, with Redis, reading the repository by `file://`;
//! and its CLI, as people use it. They have the rights that the chart recommends. The API server asks nobody who they are: what it may do is
//! what its account may do.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::ground::{Ground, controllers};
use super::process::port;
use super::repository::Repository;
use super::rights::{ARGO, TEAM, documents, moved, service_account, user};

const CONTROLLER: &str = "argocd-application-controller";
const SERVER: &str = "argocd-server";
const SETS: &str = "argocd-applicationset-controller";
/// What the cluster has of a team's repository.
const EXAMPLE: &str = "examples/gitops/team/argocd.yaml";

pub struct Argo<'a> {
    ground: &'a Ground,
    pub namespace: String,
    pub repository: Repository,
    /// Ports of Redis, repo server and API server.
    redis: u16,
    repo: u16,
    server: u16,
}

impl<'a> Argo<'a> {
    pub async fn open(ground: &'a Ground) -> Result<Self> {
        ground.kinds(&["application-crd.yaml", "appproject-crd.yaml"]).await?;
        let namespace = format!("{}-argocd", ground.namespace);
        ground.plane.namespace(&namespace).await?;
        let repository = Repository::new(&ground.folder)?;
        let argo = Self { ground, namespace, repository, redis: port()?, repo: port()?, server: port()? };
        argo.configure().await?;
        argo.start().await?;
        argo.answers().await?;
        Ok(argo)
    }

    async fn answers(&self) -> Result<()> {
        self.ground.until("Argo CD answers", async || Ok(self.ask("version").await.ok().map(|_| ()))).await
    }

    /// As its installation does, with the chart's patch of argocd-cm and its rights, and with the project of a team.
    async fn configure(&self) -> Result<()> {
        let part = json!({"app.kubernetes.io/part-of": "argocd"});
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/lockstep/gitops/argocd/argocd-cm.yaml");
        let chart: Value = serde_saphyr::from_str(&std::fs::read_to_string(file)?)?;
        let core = format!("/api/v1/namespaces/{}", self.namespace);
        let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm", "labels": part},
            // Else it takes for its own what an instance before it made for an Application of the same name.
            "data": {"installationID": self.namespace}});
        self.ground.post(&format!("{core}/configmaps"), &config).await?;
        self.ground.merge(&format!("{core}/configmaps/argocd-cm"), &chart).await?;
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "argocd-secret", "labels": part},
            "stringData": {"server.secretkey": "only for this test"}});
        self.ground.post(&format!("{core}/secrets"), &secret).await?;
        let namespaces = [("team", self.ground.namespace.as_str()), ("argocd", self.namespace.as_str())];
        self.ground.rights(ARGO, &namespaces).await?;
        self.ground.rights(TEAM, &namespaces).await?;
        self.ground.beside().await?;
        let mut project = documents(EXAMPLE)?.swap_remove(0);
        ensure!(project["kind"] == "AppProject", "{EXAMPLE} begins with {project}");
        moved(&mut project, &namespaces);
        project["spec"]["sourceRepos"] = json!([self.url()]);
        self.ground.give(&project).await
    }

    /// Where the repository is.
    pub fn url(&self) -> String {
        format!("file://{}", self.repository.path.display())
    }

    async fn start(&self) -> Result<()> {
        let folder = &self.ground.folder;
        let controller = self.ground.account(&self.namespace, CONTROLLER).await?;
        self.role_of(CONTROLLER, &self.controller()).await?;
        let server = self.ground.account(&self.namespace, SERVER).await?;
        self.serves(&service_account(&self.namespace, SERVER)).await?;
        let mut command = Command::new(controllers()?.join("redis-server"));
        self.ground.start(
            "redis",
            command.args(["--bind", "127.0.0.1", "--save", "", "--port", &self.redis.to_string()]).current_dir(folder),
        )?;
        let redis = format!("--redis=127.0.0.1:{}", self.redis);
        let mut command = self.binary("argocd-repo-server", None)?;
        self.ground.start(
            "argocd-repo-server",
            command
                .args([&redis, "--disable-tls", "--address=127.0.0.1", "--metrics-address=127.0.0.1"])
                .args([format!("--port={}", self.repo), format!("--metrics-port={}", port()?)])
                // helm, for the chart, lies beside the embedded cluster's kubectl.
                .env("ARGOCD_GPG_ENABLED", "false")
                .env("ARGOCD_ASK_PASS_SOCK", folder.join("ask-pass.sock"))
                .env("TMPDIR", folder),
        )?;
        let repo = format!("--repo-server=127.0.0.1:{}", self.repo);
        let mut command = self.binary(CONTROLLER, Some(&controller))?;
        self.ground.start(
            CONTROLLER,
            command
                .args([&redis, &repo, "--repo-server-plaintext", "--persist-resource-health"])
                .args([format!("--metrics-port={}", port()?), format!("--namespace={}", self.namespace)]),
        )?;
        self.serve(&server)
    }

    /// The controller of ApplicationSets, and one of them.
    pub async fn set(&self, name: &str, spec: &Value) -> Result<()> {
        self.ground.kinds(&["applicationset-crd.yaml"]).await?;
        let kubeconfig = self.ground.account(&self.namespace, SETS).await?;
        self.role_of(SETS, &service_account(&self.namespace, SETS)).await?;
        let mut command = self.binary(SETS, Some(&kubeconfig))?;
        self.ground.start(
            SETS,
            command
                .args([
                    format!("--argocd-repo-server=127.0.0.1:{}", self.repo),
                    format!("--namespace={}", self.namespace),
                ])
                .args(["--repo-server-plaintext", "--enable-leader-election=false"])
                .args([format!("--metrics-addr=127.0.0.1:{}", port()?), format!("--probe-addr=127.0.0.1:{}", port()?)])
                .arg(format!("--webhook-addr=127.0.0.1:{}", port()?)),
        )?;
        let object = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "metadata": {"name": name}, "spec": spec});
        self.ground.post(&self.argoproj("applicationsets"), &object).await?;
        Ok(())
    }

    pub async fn change_set(&self, name: &str, body: &Value) -> Result<()> {
        self.ground.merge(&self.argoproj(&format!("applicationsets/{name}")), body).await?;
        Ok(())
    }

    /// Whether there is such an Application.
    pub async fn has(&self, name: &str) -> Result<bool> {
        self.ground.exists(&self.argoproj(&format!("applications/{name}"))).await
    }

    fn serve(&self, kubeconfig: &PathBuf) -> Result<()> {
        let mut command = self.binary(SERVER, Some(kubeconfig))?;
        self.ground.start(
            SERVER,
            command
                .args([format!("--redis=127.0.0.1:{}", self.redis), format!("--repo-server=127.0.0.1:{}", self.repo)])
                .args(["--repo-server-plaintext", "--disable-auth", "--insecure", "--address=127.0.0.1"])
                .args([format!("--port={}", self.server), format!("--metrics-port={}", port()?)])
                .args([format!("--namespace={}", self.namespace)]),
        )
    }

    /// Its API server begins anew, under a name that is no machine's to the API server of the cluster, and may decide at every gate.
    pub async fn serve_as(&self, name: &str) -> Result<()> {
        let team = &self.ground.namespace;
        self.serves(&user(name)).await?;
        self.ground
            .bound(team, name, &user(name), &json!({"kind": "ClusterRole", "name": "lockstep-approver"}))
            .await?;
        self.ground.strike(SERVER);
        self.serve(&self.ground.somebody(name)?)?;
        self.answers().await
    }

    /// The rights of its API server: those of its installation in its own namespace, and those of the chart in the team's.
    async fn serves(&self, who: &Value) -> Result<()> {
        self.role_of(SERVER, who).await?;
        let team = &self.ground.namespace;
        let name = format!("argocd-server-{}", who["kind"].as_str().unwrap_or_default().to_lowercase());
        let role = json!({"kind": "ClusterRole", "name": format!("{team}-lockstep-argocd-actions")});
        self.ground.bound(team, &name, who, &role).await
    }

    /// The Role that its own installation gives it in its own namespace.
    async fn role_of(&self, part: &str, who: &Value) -> Result<()> {
        let file = controllers()?.join("roles").join(format!("{part}-role.yaml"));
        let role: Value =
            serde_saphyr::from_str(&std::fs::read_to_string(&file).with_context(|| file.display().to_string())?)?;
        let name = format!("{part}-{}", who["kind"].as_str().unwrap_or_default().to_lowercase());
        self.ground.may(&self.namespace, &name, who, role["rules"].clone()).await
    }

    /// Who acts for the application controller.
    pub fn controller(&self) -> Value {
        service_account(&self.namespace, CONTROLLER)
    }

    /// The binary looks at a name to know what it is.
    fn binary(&self, name: &str, kubeconfig: Option<&PathBuf>) -> Result<Command> {
        let mut command = Command::new(controllers()?.join("argocd"));
        command.env("ARGOCD_BINARY_NAME", name).env("ARGOCD_FAKE_IN_CLUSTER", "true").env("HOME", &self.ground.folder);
        for (variable, below) in
            [("ARGOCD_TLS_DATA_PATH", "tls"), ("ARGOCD_SSH_DATA_PATH", "ssh"), ("ARGOCD_GPG_DATA_PATH", "gpg")]
        {
            let path = self.ground.folder.join(below);
            std::fs::create_dir_all(&path)?;
            command.env(variable, path);
        }
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        Ok(command)
    }

    pub async fn close(self) -> Result<()> {
        self.ground.plane.leave(&self.namespace).await
    }

    fn argoproj(&self, rest: &str) -> String {
        format!("/apis/argoproj.io/v1alpha1/namespaces/{}/{rest}", self.namespace)
    }

    /// An Application of a folder that heals and prunes by itself; what is given is laid over its spec.
    pub async fn application(&self, name: &str, more: Value) -> Result<()> {
        let mut spec = json!({"project": "team",
            "source": {"repoURL": self.url(), "targetRevision": "main", "path": name},
            "destination": {"server": "https://kubernetes.default.svc", "namespace": self.ground.namespace},
            "syncPolicy": {"automated": {"prune": true, "selfHeal": true}, "retry": {"limit": 5, "refresh": true}}});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        let object = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
            "metadata": {"name": name}, "spec": spec});
        self.ground.post(&self.argoproj("applications"), &object).await?;
        Ok(())
    }

    pub async fn get(&self, name: &str) -> Result<Value> {
        self.ground.get(&self.argoproj(&format!("applications/{name}"))).await
    }

    /// A merge patch of an Application.
    pub async fn change(&self, name: &str, body: &Value) -> Result<()> {
        self.ground.merge(&self.argoproj(&format!("applications/{name}")), body).await?;
        Ok(())
    }

    /// As a webhook of the Git server does.
    pub async fn refresh(&self, name: &str) -> Result<()> {
        self.change(name, &json!({"metadata": {"annotations": {"argocd.argoproj.io/refresh": "normal"}}})).await
    }

    /// Until the commit is synced, by itself.
    pub async fn synced(&self, name: &str, commit: &str) -> Result<()> {
        self.refresh(name).await?;
        self.ground
            .until(&format!("{name} is synced to {commit}"), async || {
                let status = self.get(name).await?["status"].clone();
                let done = status["operationState"]["phase"] == "Succeeded"
                    && status["operationState"]["syncResult"]["revision"] == commit;
                Ok((done && status["sync"]["status"] == "Synced" && status["sync"]["revision"] == commit).then_some(()))
            })
            .await
    }

    /// Until a sync, which it begins by itself, fails with these words about one of its objects.
    pub async fn refused(&self, name: &str, words: &str) -> Result<()> {
        self.refresh(name).await?;
        self.ground
            .until(&format!("the sync of {name} fails: {words}"), async || {
                let state = self.get(name).await?["status"]["operationState"].clone();
                let told = |r: &Value| r["message"].as_str().is_some_and(|m| m.contains(words));
                Ok(state["syncResult"]["resources"].as_array().is_some_and(|all| all.iter().any(told)).then_some(()))
            })
            .await
    }

    /// Until the Application has this health.
    pub async fn health(&self, name: &str, wanted: &str) -> Result<()> {
        self.ground
            .until(&format!("{name} is {wanted}"), async || {
                let found = self.get(name).await?;
                Ok((found["status"]["health"]["status"] == wanted).then_some(()))
            })
            .await
    }

    /// Health and message of one of its resources.
    pub async fn resource(&self, name: &str, kind: &str, resource: &str) -> Result<(String, String)> {
        let found = self.get(name).await?;
        let all = found["status"]["resources"].as_array().cloned().unwrap_or_default();
        let one = all.iter().find(|r| r["kind"] == kind && r["name"] == resource).context("no such resource")?;
        let text = |key: &str| one["health"][key].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("message")))
    }

    /// The CLI; gives what it prints.
    pub async fn cli(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = self.binary("argocd", None)?;
        command.args(arguments).args([format!("--server=127.0.0.1:{}", self.server), "--plaintext".to_owned()]);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code().unwrap_or(-1), text))
    }

    /// `argocd app diff`: nothing.
    pub async fn no_diff(&self, name: &str) -> Result<()> {
        let (code, text) = self.cli(&["app", "diff", name, "--exit-code"]).await?;
        ensure!(code == 0 && text.trim().is_empty(), "argocd app diff {name} ends with {code}:\n{text}");
        Ok(())
    }

    /// `argocd app sync`, and until it is done; false if another sync was under way. What it sets may be overlooked by a controller
    /// that writes at that very moment, until the Application changes again: so it is refreshed meanwhile.
    pub async fn sync(&self, name: &str) -> Result<bool> {
        let (code, text) = self.cli(&["app", "sync", name, "--prune", "--async"]).await?;
        let begun = code == 0;
        ensure!(
            begun || text.contains("another operation is already in progress"),
            "argocd app sync {name}: {code}:\n{text}"
        );
        let looks = std::cell::Cell::new(0);
        self.ground
            .until(&format!("the sync of {name} is done"), async || {
                looks.set(looks.get() + 1);
                if looks.get() % 20 == 0 {
                    self.refresh(name).await?;
                }
                let found = self.get(name).await?;
                let state = &found["status"]["operationState"];
                ensure!(!["Failed", "Error"].iter().any(|phase| state["phase"] == *phase), "{state:#}");
                Ok((found["operation"].is_null() && state["phase"] == "Succeeded").then_some(()))
            })
            .await?;
        Ok(begun)
    }

    /// A button of the user interface, by the request that it sends; gives the answer.
    pub async fn action(&self, name: &str, action: &str, kind: &str, resource: &str) -> Result<Value> {
        self.action_with(name, action, kind, resource, None).await
    }

    /// One that asks for a comment.
    pub async fn action_with(
        &self,
        name: &str,
        action: &str,
        kind: &str,
        resource: &str,
        comment: Option<&str>,
    ) -> Result<Value> {
        let mut body = json!({"name": name, "appNamespace": self.namespace, "namespace": self.ground.namespace, "resourceName": resource,
            "version": "v1alpha1", "group": "lockstep.dev", "kind": kind, "action": action});
        if let Some(comment) = comment {
            body["resourceActionParameters"] = json!([{"name": "comment", "value": comment}]);
        }
        self.request("POST", &format!("applications/{name}/resource/actions/v2"), Some(body)).await
    }

    /// All below the Application as the user interface shows it.
    pub async fn tree(&self, name: &str) -> Result<Vec<Value>> {
        let found = self.ask(&format!("applications/{name}/resource-tree?appNamespace={}", self.namespace)).await?;
        Ok(found["nodes"].as_array().cloned().unwrap_or_default())
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        self.request("GET", path, None).await
    }

    async fn request(&self, method: &'static str, path: &str, body: Option<Value>) -> Result<Value> {
        let base = if path == "version" { "api" } else { "api/v1" };
        let uri = format!("http://127.0.0.1:{}/{base}/{path}", self.server);
        let request = http::Request::builder().method(method).uri(&uri).header("content-type", "application/json");
        let body = body.map_or_else(String::new, |body| body.to_string());
        let request = request.body(body)?;
        tokio::task::spawn_blocking(move || {
            let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
            let mut answer = agent.run(request)?;
            let text = answer.body_mut().read_to_string()?;
            serde_json::from_str(&text).with_context(|| format!("{uri}: {} {text}", answer.status()))
        })
        .await?
    }
}
