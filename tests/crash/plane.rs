//! The control plane under test, and those who speak with it: an administrator, the operator and the gateway by their
//! service accounts, and a person who may decide and answer everything.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

pub const SYSTEM: &str = "lockstep-system";
pub const PERSON: &str = "ann";
const OPERATOR: &str = "lockstep-operator";
const GATEWAY: &str = "system:serviceaccount:lockstep-system:lockstep-gateway";
/// How long anything may take that is not the run itself.
pub const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A whole night of rounds.
const TOKEN_SECONDS: u32 = 86_400;

#[derive(Clone)]
pub struct Plane {
    pub admin: Client,
    pub gateway: Client,
    pub person: Client,
    /// With a token of the operator's own account.
    pub operator: Client,
    /// For an operator that is to reach the API server by itself.
    #[allow(dead_code, reason = "the bench's")]
    pub kubeconfig: String,
}

impl Plane {
    /// The control plane that KUBECONFIG names.
    pub async fn find() -> Result<Self> {
        let admin = Client::try_from(config().await?)?;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS}});
        let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{OPERATOR}/token");
        let answer = ask(&admin, Method::POST, &path, Some(&request)).await.context("is the chart installed?")?;
        let token = json!({"token": answer["status"]["token"]});
        let mut operator = config().await?;
        operator.auth_info = serde_json::from_value(token.clone())?;
        let cluster = file()?.clusters.into_iter().next().and_then(|named| named.cluster).context("no cluster")?;
        let found = Self {
            kubeconfig: kubeconfig(&serde_json::to_value(cluster)?, &token),
            gateway: somebody(GATEWAY).await?,
            person: somebody(PERSON).await?,
            operator: Client::try_from(operator)?,
            admin,
        };
        until("the API server knows the kinds as owners", || found.knows_owners()).await?;
        Ok(found)
    }

    /// Up to half a minute after the CRDs came, the admission plugin OwnerReferencesPermissionEnforcement refuses what a deletion
    /// of their objects in the foreground would wait for; the operator tries again, and the observer would call that strange.
    async fn knows_owners(&self) -> bool {
        let owner = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun", "name": "owner", "uid": "owner",
            "controller": true, "blockOwnerDeletion": true});
        let container = json!({"name": "none", "image": "none"});
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "owned", "ownerReferences": [owner]},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}});
        let path = format!("/apis/batch/v1/namespaces/{SYSTEM}/jobs?dryRun=All");
        match ask(&self.operator, Method::POST, &path, Some(&job)).await {
            Err(kube::Error::Api(status)) => !status.message.contains("RESTMapping"),
            _ => true,
        }
    }

    /// A namespace that pods can be made in.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ask(&self.admin, Method::POST, "/api/v1/namespaces", Some(&body)).await?;
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        until("the account default exists", || async { ask(&self.admin, Method::GET, &account, None).await.is_ok() })
            .await
    }

    /// Takes a namespace away with all that is in it; nobody waits for it.
    pub async fn leave(&self, name: &str) -> Result<()> {
        ask(&self.admin, Method::DELETE, &format!("/api/v1/namespaces/{name}"), None).await?;
        Ok(())
    }
}

/// Names a cluster and who speaks with it. JSON is YAML.
pub fn kubeconfig(cluster: &Value, user: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": user}]})
    .to_string()
}

fn file() -> Result<Kubeconfig> {
    let path = std::env::var("KUBECONFIG").map_err(|_| {
        anyhow!("a control plane with the chart installed is needed: hack/devcluster/devcluster up --control-plane, then eval \"$(hack/devcluster/devcluster env)\"; KUBECONFIG is not set")
    })?;
    Kubeconfig::read_from(&path).with_context(|| format!("KUBECONFIG={path}"))
}

async fn config() -> Result<Config> {
    let file = file()?;
    Ok(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
}

pub async fn somebody(name: &str) -> Result<Client> {
    let mut config = config().await?;
    config.auth_info.impersonate = Some(name.to_owned());
    Ok(Client::try_from(config)?)
}

/// One request. A PATCH is a JSON patch if its body is a list, else a merge patch.
pub async fn ask(client: &Client, method: Method, path: &str, body: Option<&Value>) -> kube::Result<Value> {
    let kind = match (&method, body) {
        (&Method::PATCH, Some(Value::Array(_))) => "application/json-patch+json",
        (&Method::PATCH, _) => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = body.map_or_else(Vec::new, |b| b.to_string().into_bytes());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// The code of a refusal; none where there was no answer.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Looks again until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) -> Result<()> {
    let start = Instant::now();
    while !look().await {
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
