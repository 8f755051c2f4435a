//! Who asks, what they ask, and where.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub const OPERATOR: &str = "system:serviceaccount:lockstep-system:lockstep-operator";
pub const GATEWAY: &str = "system:serviceaccount:lockstep-system:lockstep-gateway";
pub const API: &str = "system:serviceaccount:lockstep-system:lockstep-api";
pub const JOB_CONTROLLER: &str = "system:serviceaccount:kube-system:job-controller";
/// How long anything may take that the API server does in its own time, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Held for reading by tests that need the policies whole, for writing by those that take them apart.
static POLICIES: RwLock<()> = RwLock::const_new(());

/// What a request came to, where it was not accepted.
#[derive(Debug)]
pub struct Refusal {
    pub code: u16,
    pub message: String,
}

pub type Answer = std::result::Result<Value, Refusal>;

/// One identity at the API server.
#[derive(Clone)]
pub struct Who {
    client: Client,
    pub name: String,
}

/// One request, kept so that it can be made again.
#[derive(Clone)]
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub kind: &'static str,
    pub body: Option<Value>,
}

impl Ask {
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, "application/json", None)
    }

    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::POST, path, "application/json", Some(body))
    }

    pub fn put(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::PUT, path, "application/json", Some(body))
    }

    pub fn patch(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::PATCH, path, "application/merge-patch+json", Some(body))
    }

    /// A JSON patch: lists as they are, nothing else touched.
    pub fn edit(path: impl Into<String>, operations: Value) -> Self {
        Self::new(Method::PATCH, path, "application/json-patch+json", Some(operations))
    }

    /// As `kubectl delete --cascade=orphan`.
    pub fn orphan(path: impl Into<String>) -> Self {
        Self::delete_as(path, "Orphan")
    }

    /// As `kubectl delete --cascade=foreground`.
    pub fn foreground(path: impl Into<String>) -> Self {
        Self::delete_as(path, "Foreground")
    }

    /// Always with a propagation policy: a Job without one would leave its pods behind.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::delete_as(path, "Background")
    }

    fn delete_as(path: impl Into<String>, propagation: &str) -> Self {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation});
        Self::new(Method::DELETE, path, "application/json", Some(options))
    }

    /// What `kubectl annotate` sends.
    #[expect(clippy::needless_pass_by_value, reason = "as its brothers")]
    pub fn annotate(path: impl Into<String>, annotations: Value) -> Self {
        Self::patch(path, json!({"metadata": {"annotations": annotations}}))
    }

    fn new(method: Method, path: impl Into<String>, kind: &'static str, body: Option<Value>) -> Self {
        let path = path.into();
        Self { method, path, kind, body }
    }
}

impl Who {
    /// The administrator whom KUBECONFIG names.
    pub async fn admin() -> Result<Self> {
        Ok(Self { client: Client::try_from(config().await?)?, name: "admin".to_owned() })
    }

    /// The administrator, who asks once: what is refused for now is told, and not tried again.
    pub async fn once() -> Result<Self> {
        let mut config = config().await?;
        config.default_retry = false;
        Ok(Self { client: Client::try_from(config)?, name: "admin".to_owned() })
    }

    /// Somebody else, by impersonation; the API server adds the groups that follow from the name.
    pub async fn user(name: &str, groups: &[&str]) -> Result<Self> {
        let mut config = config().await?;
        config.auth_info.impersonate = Some(name.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|g| (*g).to_owned()).collect());
        Ok(Self { client: Client::try_from(config)?, name: name.to_owned() })
    }

    /// A user whose token claims to come from a pod.
    pub async fn in_pod(name: &str, pod: &str) -> Result<Self> {
        let mut config = config().await?;
        config.auth_info.impersonate = Some(name.to_owned());
        let claim = "authentication.kubernetes.io/pod-name".to_owned();
        config.auth_info.impersonate_user_extra = Some([(claim, vec![pod.to_owned()])].into());
        Ok(Self { client: Client::try_from(config)?, name: name.to_owned() })
    }

    /// Whoever holds this token.
    pub async fn token(name: &str, token: &str) -> Result<Self> {
        let config = config().await?;
        let authority = config.root_cert.as_ref().and_then(|c| c.first()).context("no certificate authority")?;
        let raw = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {
                "server": config.cluster_url.to_string(), "certificate-authority-data": base64(authority)}}],
            "users": [{"name": "u", "user": {"token": token}}],
        });
        let file: Kubeconfig = serde_json::from_value(raw)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Self { client: Client::try_from(config)?, name: name.to_owned() })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub async fn asks(&self, ask: &Ask) -> Answer {
        self.send(ask, "").await
    }

    /// Everything happens, except that nothing is stored.
    pub async fn tries(&self, ask: &Ask) -> Answer {
        let mut ask = ask.clone();
        // Options in a DELETE's body make the server overlook those in its query.
        if let (true, Some(options)) = (ask.method == Method::DELETE, &mut ask.body) {
            options["dryRun"] = json!(["All"]);
        }
        self.send(&ask, "dryRun=All").await
    }

    /// As `kubectl` asks since 1.27: unknown and doubled fields are refused.
    pub async fn asks_strictly(&self, ask: &Ask) -> Answer {
        self.send(ask, "fieldValidation=Strict").await
    }

    async fn send(&self, ask: &Ask, query: &str) -> Answer {
        let joint = if ask.path.contains('?') { '&' } else { '?' };
        let uri = if query.is_empty() { ask.path.clone() } else { format!("{}{joint}{query}", ask.path) };
        let body = ask.body.as_ref().map_or_else(Vec::new, |b| b.to_string().into_bytes());
        let request = Request::builder()
            .method(ask.method.clone())
            .uri(uri)
            .header("content-type", ask.kind)
            .header("accept", "application/json")
            .body(body)
            .map_err(|e| Refusal { code: 0, message: e.to_string() })?;
        match tokio::time::timeout(PATIENCE, self.client.request::<Value>(request)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(kube::Error::Api(status))) => Err(Refusal { code: status.code, message: status.message }),
            Ok(Err(other)) => Err(Refusal { code: 0, message: other.to_string() }),
            Err(_) => Err(Refusal { code: 0, message: format!("no answer within {PATIENCE:?}") }),
        }
    }

    /// Asks and must get it.
    pub async fn gets(&self, ask: &Ask) -> Result<Value> {
        self.asks(ask).await.map_err(|refusal| {
            anyhow!("{} {} by {}: {} {}", ask.method, ask.path, self.name, refusal.code, refusal.message)
        })
    }

    /// Asks and must be refused, with this code and these words.
    pub async fn is_refused(&self, ask: &Ask, code: u16, words: &str) -> Result<()> {
        refused(&self.asks(ask).await, code, words)
            .with_context(|| format!("{} {} by {}", ask.method, ask.path, self.name))
    }
}

pub fn refused(answer: &Answer, code: u16, words: &str) -> Result<()> {
    match answer {
        Ok(_) => bail!("accepted, but should be refused: {words}"),
        Err(refusal) => {
            ensure!(
                refusal.code == code && refusal.message.contains(words),
                "refused with {} {:?}, not with {code} {words:?}",
                refusal.code,
                refusal.message
            );
            Ok(())
        }
    }
}

/// Asks again until the check is content, at most `PATIENCE`.
pub async fn until<T, F>(what: &str, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A namespace of a test's own, with people in it:
/// alice and carol decide and answer everything (role lockstep-approver), so by RBAC do the account `bot` and, as a
/// member of `product`, dave; bob has lockstep-edit and lockstep-view only.
pub struct Team {
    pub admin: Who,
    pub operator: Who,
    pub gateway: Who,
    pub alice: Who,
    pub bob: Who,
    pub namespace: String,
}

impl Team {
    pub async fn open(purpose: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{purpose}-{}-{number}", std::process::id());
        let team = Self {
            admin: Who::admin().await?,
            operator: Who::user(OPERATOR, &[]).await?,
            gateway: Who::user(GATEWAY, &[]).await?,
            alice: Who::user("alice", &[]).await?,
            bob: Who::user("bob", &[]).await?,
            namespace,
        };
        let create = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team.namespace}});
        team.admin.gets(&Ask::post("/api/v1/namespaces", create)).await?;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}});
        team.admin.gets(&Ask::post(team.core("serviceaccounts"), account)).await?;
        let user = |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
        let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "product"});
        let bot = json!({"kind": "ServiceAccount", "name": "bot", "namespace": team.namespace});
        team.bind("lockstep-approver", json!([user("alice"), user("carol"), group, bot])).await?;
        team.bind("lockstep-edit", json!([user("bob")])).await?;
        team.bind("lockstep-view", json!([user("bob")])).await?;
        for (user, verb, resource) in
            [("alice", "approve", "gates"), ("bob", "patch", "stepruns"), ("bob", "list", "stepruns")]
        {
            until(&format!("{user} may {verb} {resource}"), || async {
                Ok(team.may(user, &[], verb, "lockstep.dev", resource).await?.then_some(()))
            })
            .await?;
        }
        team.policies_stand().await?;
        Ok(team)
    }

    /// Best effort: a test that failed leaves its namespace to be looked at.
    pub async fn close(&self) -> Result<()> {
        self.admin.gets(&Ask::delete(format!("/api/v1/namespaces/{}", self.namespace))).await?;
        Ok(())
    }

    /// A Role of that name with these rules, bound to one user.
    pub async fn grant(&self, user: &str, role: &str, rules: Value) -> Result<()> {
        let base = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", self.namespace);
        let made = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": role}, "rules": rules});
        self.admin.gets(&Ask::post(format!("{base}/roles"), made)).await?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        self.admin.gets(&Ask::post(format!("{base}/rolebindings"), binding)).await?;
        Ok(())
    }

    pub async fn bind(&self, role: &str, subjects: Value) -> Result<()> {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", self.namespace);
        let body = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": subjects,
        });
        self.admin.gets(&Ask::post(path, body)).await?;
        Ok(())
    }

    /// What RBAC says.
    pub async fn may(&self, user: &str, groups: &[&str], verb: &str, group: &str, resource: &str) -> Result<bool> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": {
                "namespace": self.namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource}},
        });
        let answer = self.admin.gets(&Ask::post("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)).await?;
        Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or(false))
    }

    /// As the operator does it: the canaries must be refused with their texts; and on a server that stamps, stamps.
    pub async fn policies_stand(&self) -> Result<()> {
        let probe = step_run("canary", &json!({}));
        match self.operator.asks(&Ask::post(self.all("stepruns"), probe)).await {
            Err(refusal) if refusal.code != 409 => bail!("{refusal:?}: is the chart installed?"),
            _ => {}
        }
        let main = Ask::annotate(self.one("stepruns", "canary"), json!({"lockstep.dev/canary": "x"}));
        let status = Ask::patch(self.one("stepruns", "canary/status"), json!({"status": {"canary": "x"}}));
        for (ask, words) in [(main, "lockstep-gate/v1: canary ok"), (status, "lockstep-status/v1: canary ok")] {
            until(words, || async { Ok(refused(&self.operator.tries(&ask).await, 403, words).ok()) })
                .await
                .context("the admission policies do not stand: is the chart installed?")?;
        }
        // An API server that is young, and asks for the right to finalizers, knows kinds only after some seconds.
        let mut owned = step_run("canary-owned", &json!({}));
        owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
            "name": "shop", "uid": "u-1", "controller": true, "blockOwnerDeletion": true}]);
        let owned = Ask::post(self.all("stepruns"), owned);
        until("a run's end can be made to wait for its StepRuns", || async {
            match self.operator.tries(&owned).await {
                Err(refusal) if refusal.message.contains("RESTMapping") => Ok(None),
                Err(refusal) => bail!("{refusal:?}"),
                Ok(_) => Ok(Some(())),
            }
        })
        .await?;
        if stamps(&self.admin).await? {
            let run = Ask::post(self.all("workflows"), workflow("canary", &json!({})));
            until("created-by is stamped", || async {
                let made = self.admin.tries(&run).await.map_err(|r| anyhow!(r.message))?;
                Ok(annotation(&made, "lockstep.dev/created-by").map(|_| ()))
            })
            .await?;
        }
        Ok(())
    }

    /// `/apis/lockstep.dev/...` of a kind in this namespace.
    pub fn all(&self, plural: &str) -> String {
        format!("/apis/lockstep.dev/v1alpha1/namespaces/{}/{plural}", self.namespace)
    }

    /// Of one object, or with `/status` behind its name.
    pub fn one(&self, plural: &str, name: &str) -> String {
        format!("{}/{name}", self.all(plural))
    }

    pub fn jobs(&self) -> String {
        format!("/apis/batch/v1/namespaces/{}/jobs", self.namespace)
    }

    pub fn core(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    /// A StepRun as the operator makes it, in some state.
    pub async fn step_run(&self, name: &str, spec: Value, status: Value) -> Result<Value> {
        let made = self.operator.gets(&Ask::post(self.all("stepruns"), step_run(name, &spec))).await?;
        if status.is_null() {
            return Ok(made);
        }
        let path = self.one("stepruns", &format!("{name}/status"));
        self.operator.gets(&Ask::patch(path, json!({"status": status}))).await
    }
}

/// While held, nobody takes policies apart.
pub async fn policies_whole() -> RwLockReadGuard<'static, ()> {
    POLICIES.read().await
}

/// While held, nobody else needs the policies.
pub async fn policies_mine() -> RwLockWriteGuard<'static, ()> {
    POLICIES.write().await
}

/// Whether this server has MutatingAdmissionPolicies at v1, from Kubernetes 1.36 on.
pub async fn stamps(admin: &Who) -> Result<bool> {
    let list = admin.gets(&Ask::get("/apis/admissionregistration.k8s.io/v1")).await?;
    Ok(list.to_string().contains("\"mutatingadmissionpolicies\""))
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// A StepRun; `more` is laid over its spec.
pub fn step_run(name: &str, more: &Value) -> Value {
    let spec = json!({
        "workflow": {"name": "shop", "uid": "u-1"},
        "definition": {"revisionName": "shop-1", "digest": "sha256:d"},
        "path": "discovery", "agentId": "discoverer", "parameters": "{}", "inputDigest": "sha256:i",
    });
    object("StepRun", name, &laid_over(spec, more))
}

/// A Workflow; `more` is laid over its spec.
pub fn workflow(name: &str, more: &Value) -> Value {
    object("Workflow", name, &laid_over(json!({"templateRef": {"name": "default"}}), more))
}

pub fn document(name: &str, more: &Value) -> Value {
    let spec = json!({"type": "brief", "scope": "Namespace", "content": "# Brief"});
    object("Document", name, &laid_over(spec, more))
}

pub fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn laid_over(mut base: Value, more: &Value) -> Value {
    if let (Some(base), Some(more)) = (base.as_object_mut(), more.as_object()) {
        for (key, value) in more {
            if value.is_null() {
                base.remove(key);
            } else {
                base.insert(key.clone(), value.clone());
            }
        }
    }
    base
}

async fn config() -> Result<Config> {
    let path = std::env::var("KUBECONFIG").map_err(|_| {
        anyhow!("these tests need a real API server with the chart installed: set KUBECONFIG (hack/devcluster/devcluster up)")
    })?;
    let file = Kubeconfig::read_from(&path).with_context(|| format!("KUBECONFIG={path}"))?;
    Ok(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
}

/// A client that says nothing of who it is.
pub async fn nobody() -> Result<Client> {
    let mut config = config().await?;
    config.auth_info = kube::config::AuthInfo::default();
    Ok(Client::try_from(config)?)
}

/// The token of a person, as the development cluster keeps it beside its kubeconfig.
pub fn token_of(person: &str) -> Result<String> {
    let config = std::env::var("KUBECONFIG")?;
    let file = std::path::Path::new(&config).with_file_name("pki/people.csv");
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!("{}: people's tokens are the development cluster's; start it afresh", file.display())
    })?;
    let own = text.lines().find_map(|line| line.split_once(',').filter(|(_, rest)| rest.starts_with(person)));
    Ok(own.with_context(|| format!("{person} has no token"))?.0.to_owned())
}

fn base64(der: &[u8]) -> String {
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", encoded(der));
    encoded(pem.as_bytes())
}

fn encoded(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut word = [0_u8; 3];
        word[..group.len()].copy_from_slice(group);
        let bits = u32::from(word[0]) << 16 | u32::from(word[1]) << 8 | u32::from(word[2]);
        for place in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap_or_default();
            text.push(if place <= group.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}
