//! The gateway's own process, with the account of the chart, against the API server: who calls is proven before a body is
//! read, and whoever proves nothing costs next to nothing. The pod that calls is real, made by the Job controller of a Job
//! as the operator makes it; no node runs it, and its token is asked for as the kubelet does.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use kube::config::Kubeconfig;
use lockstep::api::definition::Definition;
use lockstep::api::step_run::{StepRun, StepRunStatus};
use lockstep::api::{Agent, Workflow, name};
use lockstep::decide::build::{self, Installation};
use lockstep::definition::agent::CheckedAgent;
use lockstep::definition::expression::InProcess;
use lockstep::definition::policy::AttemptPolicy;
use lockstep::protocol::{self, AttemptRef, env};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Ask, PATIENCE, Team, object, until};

const ID: &str = "0123456789abcdef0123456789abcdef";
const OTHER_ID: &str = "fedcba9876543210fedcba9876543210";
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

pub struct Gateway {
    child: Child,
    port: u16,
    health: u16,
    /// PEM of its certificate.
    authority: String,
    connector: TlsConnector,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer: status, head and body as they came, and whether the connection ended with it.
#[derive(Debug)]
struct Heard {
    status: u16,
    text: String,
    closed: bool,
}

impl Gateway {
    pub async fn start(team: &Team) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["gateway".to_owned(), "127.0.0.1".to_owned()])?;
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"},
            "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()}});
        team.admin.gets(&Ask::post(team.core("secrets"), secret)).await?;
        let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", team.namespace);
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "tls"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["tls"], "verbs": ["get"]}]});
        team.admin.gets(&Ask::post(format!("{rbac}/roles"), role)).await?;
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "tls"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tls"},
            "subjects": [{"kind": "ServiceAccount", "name": "lockstep-gateway", "namespace": "lockstep-system"}]});
        team.admin.gets(&Ask::post(format!("{rbac}/rolebindings"), binding)).await?;

        let folder = folder(team)?;
        std::fs::write(folder.join("kubeconfig"), kubeconfig(team).await?)?;
        let (port, health) = (crate::port::free()?.port(), crate::port::free()?.port());
        // Figures are those of the binary that is published.
        let program = std::env::var("LOCKSTEP_GATEWAY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_lockstep").to_owned());
        let child = Command::new(program)
            .args(["gateway", "--tls-secret", "tls", "--namespace", &team.namespace])
            .args(["--listen", &format!("127.0.0.1:{port}"), "--health-listen", &format!("127.0.0.1:{health}")])
            .env("KUBECONFIG", folder.join("kubeconfig"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(folder.join("gateway.log"))?)
            .spawn()?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(made.cert.der().to_vec()))?;
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let gateway =
            Self { child, port, health, authority: made.cert.pem(), connector: TlsConnector::from(Arc::new(client)) };
        until("the gateway is ready", || async {
            let heard = plain(gateway.health, "/readyz", HONEST).await.ok();
            Ok(heard.filter(|heard| heard.starts_with("HTTP/1.1 200")))
        })
        .await
        .with_context(|| format!("see {}", folder.join("gateway.log").display()))?;
        Ok(gateway)
    }

    async fn connect(&self, from: Ipv4Addr) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = socket.connect((Ipv4Addr::LOCALHOST, self.port).into()).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    pub async fn shake(&self, from: Ipv4Addr) -> Result<TlsStream<TcpStream>> {
        Ok(self.connector.connect(ServerName::try_from("gateway")?, self.connect(from).await?).await?)
    }

    /// Sends these bytes on a connection of its own and reads the first answer; then looks for the connection's end.
    async fn say(&self, from: Ipv4Addr, words: &[u8]) -> Result<Heard> {
        let mut stream = self.shake(from).await?;
        stream.write_all(words).await?;
        let mut text = Vec::new();
        let mut some = vec![0; 16 * 1024];
        let mut closed = false;
        let reading = async {
            while !whole(&text) {
                match stream.read(&mut some).await {
                    Ok(read @ 1..) => text.extend_from_slice(&some[..read]),
                    _ => return true,
                }
            }
            let text = String::from_utf8_lossy(&text);
            // Only where it says so it is waited for.
            text.contains("connection: close") && !matches!(stream.read(&mut some).await, Ok(1..))
        };
        closed |= tokio::time::timeout(PATIENCE, reading).await.map_err(|_| anyhow!("no answer"))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
        Ok(Heard { status, text, closed })
    }

    async fn call(&self, path: &str, token: &str, attempt: &AttemptRef, body: &Value) -> Result<Heard> {
        self.say(HONEST, whole_call(path, token, attempt, body).as_bytes()).await
    }

    /// Kilobytes that the process has in memory.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().next().context("no number")?.parse()?)
    }

    /// The sum of a metric over all that the words pick out.
    pub async fn metric(&self, words: &str) -> Result<f64> {
        let text = plain(self.health, "/metrics", HONEST).await?;
        let values = text.lines().filter(|line| line.starts_with(words)).filter_map(|line| line.rsplit(' ').next());
        Ok(values.filter_map(|value| value.parse::<f64>().ok()).sum())
    }
}

/// Whether the head is there, and as much of a body as it declares.
pub fn whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let declared = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= declared.unwrap_or(0)
}

fn head(path: &str, token: Option<&str>, attempt: Option<&AttemptRef>, length: usize) -> String {
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {length}\r\n");
    if let Some(token) = token {
        head += &format!("authorization: Bearer {token}\r\n");
    }
    for (name, value) in attempt.into_iter().flat_map(AttemptRef::headers) {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

pub fn whole_call(path: &str, token: &str, attempt: &AttemptRef, body: &Value) -> String {
    let body = body.to_string();
    head(path, Some(token), Some(attempt), body.len()) + &body
}

async fn plain(port: u16, path: &str, from: Ipv4Addr) -> Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let mut stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await??;
    Ok(text)
}

/// For the chart's gateway account.
async fn kubeconfig(team: &Team) -> Result<String> {
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
    let path = "/api/v1/namespaces/lockstep-system/serviceaccounts/lockstep-gateway/token";
    let made = team.admin.gets(&Ask::post(path, request)).await?;
    let file = Kubeconfig::read_from(std::env::var("KUBECONFIG")?)?;
    let cluster = file.clusters.into_iter().next().and_then(|named| named.cluster).context("no cluster")?;
    Ok(json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": made["status"]["token"]}}]})
    .to_string())
}

fn folder(team: &Team) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&team.namespace);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A run with one step that produces a plan, whose first attempt has a Job and a pod. Gives the attempt and the pod.
pub async fn attempt(team: &Team) -> Result<(AttemptRef, Value)> {
    attempt_of(team, &begun(team).await?, &[]).await
}

/// A run, and what its StepRuns are made of.
pub struct Begun {
    run: Workflow,
    agent: Agent,
    spec: Value,
}

/// A run with one step that produces a plan.
pub async fn begun(team: &Team) -> Result<Begun> {
    let template =
        json!({"spec": {"containers": [{"name": "agent", "image": "nobody-pulls-it", "command": ["true"]}]}});
    let agent = object("Agent", "writer", &json!({"template": template}));
    let agent: Agent = serde_json::from_value(team.admin.gets(&Ask::post(team.all("agents"), agent)).await?)?;
    let steps = json!([{"name": "work", "agentId": "writer", "produces": {"type": "plan", "format": "markdown"}}]);
    let spec = json!({"steps": steps});
    let run = team.admin.gets(&Ask::post(team.all("workflows"), object("Workflow", "run", &spec))).await?;
    let run: Workflow = serde_json::from_value(run)?;
    let uid = run.metadata.uid.clone().unwrap_or_default();
    let definition: Definition = serde_json::from_value(json!({"workflow": "run", "workflowUid": uid, "session": "s",
        "input": "A shop for $(used) bikes", "steps": steps}))?;
    let revision = build::revision(&run, &definition);
    let revisions = format!("/apis/apps/v1/namespaces/{}/controllerrevisions", team.namespace);
    team.operator.gets(&Ask::post(revisions, serde_json::to_value(&revision)?)).await?;
    let digest = name::digest_bytes(serde_json::to_string(&definition)?.as_bytes());
    let spec = json!({"workflow": {"name": "run", "uid": uid}, "path": "work", "agentId": "writer",
        "definition": {"revisionName": revision.metadata.name, "digest": digest}, "parameters": r#"{"depth":2}"#, "inputDigest": "sha256:i",
        "scopeChain": [{"scope": "workflow", "scopeId": uid}]});
    Ok(Begun { run, agent, spec })
}

/// An execution of its step under these keys, whose first attempt has a Job and a pod.
pub async fn attempt_of(team: &Team, of: &Begun, keys: &[String]) -> Result<(AttemptRef, Value)> {
    let (run, agent) = (&of.run, &of.agent);
    let step_run = build::step_run(run, "s", serde_json::from_value(of.spec.clone())?, keys);
    let made = team.operator.gets(&Ask::post(team.all("stepruns"), serde_json::to_value(&step_run)?)).await?;
    let step_run: StepRun = serde_json::from_value(made)?;
    let name = step_run.metadata.name.clone().unwrap_or_default();
    let around = Installation {
        image: "nobody-pulls-it".to_owned(),
        image_pull_policy: "Never".to_owned(),
        gateway_url: "https://gateway".to_owned(),
        gateway_ca: String::new(),
        api_url: String::new(),
        account: String::new(),
        stamps_names: false,
        ..Installation::default()
    };
    let status = StepRunStatus { attempt: 1, ..StepRunStatus::default() };
    let policy = AttemptPolicy::of(None, Some(agent));
    let agent = CheckedAgent::of(agent, &InProcess).map_err(|faults| anyhow!(faults.join("; ")))?;
    let job = build::job(&step_run, &status, &agent, &policy, &around);
    let jobs = format!("/apis/batch/v1/namespaces/{}/jobs", team.namespace);
    let job = team.operator.gets(&Ask::post(jobs, job.body.clone())).await?;
    let job = json!({"attempt": 1, "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]});
    let status = json!({"status": {"phase": "Running", "attempt": 1, "round": 1, "job": job}});
    team.operator.gets(&Ask::patch(team.one("stepruns", &format!("{name}/status")), status)).await?;
    let pods = Ask::get(format!("{}?labelSelector=lockstep.dev/steprun%3D{name}", team.core("pods")));
    let pod = until("the Job controller makes the pod", || async {
        Ok(team.admin.gets(&pods).await?["items"].get(0).cloned())
    })
    .await?;
    let attempt = AttemptRef {
        namespace: team.namespace.clone(),
        step_run: name,
        uid: step_run.metadata.uid.unwrap_or_default(),
        attempt: 1,
        id: ID.to_owned(),
    };
    Ok((attempt, pod))
}

/// A token of the namespace's account `default`, bound to the pod where one is given.
pub async fn token(team: &Team, audience: Option<&str>, pod: Option<&Value>) -> Result<String> {
    let mut spec = json!({"expirationSeconds": 600});
    if let Some(audience) = audience {
        spec["audiences"] = json!([audience]);
    }
    if let Some(pod) = pod {
        spec["boundObjectRef"] =
            json!({"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]});
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let made = team.admin.gets(&Ask::post(team.core("serviceaccounts/default/token"), request)).await?;
    Ok(made["status"]["token"].as_str().context("no token")?.to_owned())
}

#[tokio::test]
async fn no_body_is_read_of_whoever_is_not_proven() -> Result<()> {
    let _whole = crate::support::policies_whole().await;
    let team = Team::open("gateway").await?;
    let gateway = Gateway::start(&team).await?;
    let (attempt, pod) = Box::pin(attempt(&team)).await?;
    let audience = name::audience(&attempt.uid, 1);
    let good = token(&team, Some(&audience), Some(&pod)).await?;
    let second = AttemptRef { attempt: 2, ..attempt.clone() };
    let elsewhere = AttemptRef { namespace: "default".to_owned(), ..attempt.clone() };
    let other_uid = AttemptRef { uid: "11111111-2222-3333-4444-555555555555".to_owned(), ..attempt.clone() };
    let no_id = AttemptRef { id: "x".to_owned(), ..attempt.clone() };
    let unbound = token(&team, Some(&audience), None).await?;
    let of_api = token(&team, None, Some(&pod)).await?;
    let of_second = token(&team, Some(&name::audience(&attempt.uid, 2)), Some(&pod)).await?;
    let forged = format!("{}x", &good[..good.len() - 6]);
    let cases: [(&str, Option<&str>, Option<&AttemptRef>, u16); 11] = [
        ("no token", None, Some(&attempt), 401),
        ("a word", Some("word"), Some(&attempt), 401),
        ("a signature that is wrong", Some(&forged), Some(&attempt), 401),
        ("a token for the API server", Some(&of_api), Some(&attempt), 401),
        ("a token of another attempt", Some(&of_second), Some(&attempt), 401),
        ("a token of no pod", Some(&unbound), Some(&attempt), 403),
        ("another attempt than the token's", Some(&good), Some(&second), 401),
        ("another StepRun's UID", Some(&good), Some(&other_uid), 401),
        ("another namespace", Some(&good), Some(&elsewhere), 403),
        ("no attempt", Some(&good), None, 400),
        ("an id that is none", Some(&good), Some(&no_id), 400),
    ];
    for path in [protocol::REPORT, protocol::CLAIM] {
        for (what, token, attempt, status) in &cases {
            // A body is declared and never comes. Whoever waited for it would answer 503.
            let heard = gateway.say(HONEST, head(path, *token, *attempt, 1_200_000).as_bytes()).await.context(*what)?;
            ensure!(heard.status == *status, "{path}, {what}: {heard:?}");
            ensure!(heard.closed, "{path}, {what}: the connection stays: {heard:?}");
        }
    }
    // The pod's own token: its body is waited for, for as long as a slow sender has.
    let begun = Instant::now();
    let heard = gateway.say(HONEST, head(protocol::REPORT, Some(&good), Some(&attempt), 1_200_000).as_bytes()).await?;
    ensure!(heard.status == 503 && heard.text.contains("too slowly"), "{heard:?}");
    ensure!(begun.elapsed() >= Duration::from_secs(3), "after {:?}", begun.elapsed());
    // More than may be: told by the head, and the sender is heard out, because it is known.
    let large = head(protocol::REPORT, Some(&good), Some(&attempt), 2_000_000) + &" ".repeat(2_000_000);
    let heard = gateway.say(HONEST, large.as_bytes()).await?;
    ensure!(heard.status == 413, "{heard:?}");
    crowd(&gateway, &good, &attempt).await?;
    honest(&gateway, &good, &attempt).await?;
    strangers(&gateway, &good, &attempt).await?;
    team.close().await
}

/// Two thousand connections of one address, a quarter each silent, with a handshake, with half a head, and with the head
/// of a body that never comes: claims from elsewhere are all answered, and the process stays small.
async fn crowd(gateway: &Gateway, token: &str, attempt: &AttemptRef) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(16_384)), hard)?;
    let alone = claims(gateway, token, attempt).await?;
    println!("claims alone, each with its handshake: {alone}; {} kB resident", gateway.resident()?);
    let whole = head(protocol::REPORT, Some("word"), Some(attempt), 1_200_000);
    let come = async {
        let mut held = Vec::new();
        let mut silent = Vec::new();
        for n in 0..2000 {
            let words = match n % 4 {
                0 => {
                    silent.extend(gateway.connect(STRANGER).await.ok());
                    continue;
                }
                1 => "",
                2 => &whole[..whole.len() / 2],
                _ => &whole,
            };
            // Most are closed at once.
            let Ok(mut stream) = gateway.shake(STRANGER).await else { continue };
            if stream.write_all(words.as_bytes()).await.is_ok() {
                held.push(stream);
            }
        }
        Ok::<_, anyhow::Error>((held, silent))
    };
    let (beside, held) = tokio::join!(claims(gateway, token, attempt), come);
    let _held = held?;
    let refused = gateway.metric("lockstep_gateway_connections_refused_total").await?;
    println!("claims while 2,000 connections come: {}; {refused} refused", beside?);
    let after = claims(gateway, token, attempt).await?;
    let (open, resident) = (gateway.metric("lockstep_gateway_connections ").await?, gateway.resident()?);
    println!("claims beside those that stay: {after}; {open} open, {resident} kB resident");
    ensure!(refused >= 1_000.0, "only {refused} were refused");
    ensure!(open <= 65.0, "{open} are open");
    ensure!(resident < 256 * 1024, "{resident} kB resident, more than the chart's limit");
    Ok(())
}

/// A hundred claims, which are all the same one again, each from an address of its own, as from pods.
async fn claims(gateway: &Gateway, token: &str, attempt: &AttemptRef) -> Result<String> {
    let words = whole_call(protocol::CLAIM, token, attempt, &json!({"shimVersion": "test"}));
    let mut took = Vec::new();
    for n in 1..=100 {
        let begun = Instant::now();
        let heard = gateway.say(Ipv4Addr::new(127, 5, 0, n), words.as_bytes()).await?;
        ensure!(heard.status == 200, "{heard:?}");
        took.push(begun.elapsed());
    }
    took.sort();
    Ok(format!("p50 {:?}, p99 {:?}", took[49], took[98]))
}

/// The legitimate ways, each on a connection of its own.
async fn honest(gateway: &Gateway, token: &str, attempt: &AttemptRef) -> Result<()> {
    let claim = json!({"shimVersion": "test"});
    let progress = json!({"percent": 50, "message": "half"});
    let usage = json!({"tokensIn": 900, "tokensOut": 80, "cost": "0.01", "models": ["small"]});
    let output = json!({"output": {"result": "{}", "document": "# Plan"}});
    let report = json!({"ending": {"kind": "exited", "code": 0}, "output": {"result": "{\"a\": 1}", "document": "# Plan"}, "logTail": ""});
    let other = AttemptRef { id: OTHER_ID.to_owned(), ..attempt.clone() };
    let mut took = Vec::new();
    for (what, path, who, body, status) in [
        ("the claim", protocol::CLAIM, attempt, &claim, 200),
        ("its repetition", protocol::CLAIM, attempt, &claim, 200),
        ("another's claim", protocol::CLAIM, &other, &claim, 409),
        ("progress", protocol::PROGRESS, attempt, &progress, 204),
        ("usage", protocol::USAGE, attempt, &usage, 204),
        ("the history", protocol::HISTORY, attempt, &json!({}), 200),
        ("a history before nothing", protocol::HISTORY, attempt, &json!({"before": "x"}), 400),
        ("another's history", protocol::HISTORY, &other, &json!({}), 409),
        ("a check", protocol::CHECK, attempt, &output, 200),
        ("a document that there is not", protocol::DOCUMENT, attempt, &json!({"name": "x"}), 404),
        ("the report", protocol::REPORT, attempt, &report, 200),
        ("its repetition", protocol::REPORT, attempt, &report, 200),
    ] {
        let begun = Instant::now();
        let heard = gateway.call(path, token, who, body).await?;
        took.push(format!("{what} {:?}", begun.elapsed()));
        ensure!(heard.status == status, "{what}: {heard:?}");
    }
    println!("with their handshakes: {}", took.join(", "));
    Ok(())
}

/// A flood of bad tokens of one address is a bounded number of TokenReviews; others are served beside it.
async fn strangers(gateway: &Gateway, token: &str, attempt: &AttemptRef) -> Result<()> {
    const FLOOD: usize = 120;
    let bad = "lockstep_gateway_token_reviews_total{verdict=\"bad\"}";
    let (before, begun) = (gateway.metric(bad).await?, Instant::now());
    let mut answers = [0; 2];
    for n in 0..FLOOD {
        let words = head(protocol::CLAIM, Some(&format!("word-{n}")), Some(attempt), 1_200_000);
        match gateway.say(STRANGER, words.as_bytes()).await?.status {
            401 => answers[0] += 1,
            503 => answers[1] += 1,
            other => return Err(anyhow!("answered {other}")),
        }
    }
    let asked = gateway.metric(bad).await? - before;
    let most = 64.0 + 4.0 * begun.elapsed().as_secs_f64() + 1.0;
    println!("{FLOOD} bad tokens: {asked} TokenReviews; {} answered 401, {} 503", answers[0], answers[1]);
    ensure!(asked <= most, "{asked} TokenReviews, at most {most} are allowed");
    ensure!(
        answers[1] > 0 && gateway.metric("lockstep_gateway_token_reviews_total{verdict=\"not-asked\"}").await? > 0.0
    );
    let heard = gateway
        .call(
            protocol::REPORT,
            token,
            attempt,
            &json!({"ending": {"kind": "exited", "code": 0},
        "output": {"result": null, "document": null}, "logTail": ""}),
        )
        .await?;
    ensure!(heard.status == 200, "{heard:?}");
    ensure!(gateway.metric("lockstep_gateway_connections ").await? <= 65.0);
    Ok(())
}

/// Scripts start dozens of programs, on a machine that may be busy with others.
const SHIM_PATIENCE: Duration = Duration::from_secs(300);

/// Runs the shim's own process, as it is in an agent's container, with a script as the command; `$SHIM` is the program.
pub async fn run_shim(
    team: &Team,
    gateway: &Gateway,
    (attempt, pod): (&AttemptRef, &Value),
    script: &str,
) -> Result<()> {
    let good = token(team, Some(&name::audience(&attempt.uid, attempt.attempt)), Some(pod)).await?;
    let folder = folder(team)?;
    std::fs::write(folder.join("token"), good)?;
    for part in ["in", "out", "work"] {
        std::fs::create_dir_all(folder.join(part))?;
    }
    let mut shim = Command::new(env!("CARGO_BIN_EXE_lockstep-shim"));
    shim.args(["run", "--", "/bin/sh", "-c", script])
        .env(env::GATEWAY, format!("https://127.0.0.1:{}", gateway.port))
        .env(env::GATEWAY_CA, &gateway.authority)
        .env(env::STEP_RUN, format!("{}/{}", attempt.namespace, attempt.step_run))
        .env(env::STEP_RUN_UID, &attempt.uid)
        .env(env::ATTEMPT, "1")
        .env("SHIM", env!("CARGO_BIN_EXE_lockstep-shim"))
        .env("S3_BUCKET_NAME", "bucket")
        .env("DDB_TABLE_NAME", "table")
        .env(env::IN, folder.join("in"))
        .env(env::OUT, folder.join("out"))
        .env(env::WORK, folder.join("work"))
        .env("LOCKSTEP_TOKEN_FILE", folder.join("token"))
        .env("LOCKSTEP_TERMINATION_LOG", folder.join("termination-log"));
    let child = shim.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = nix::unistd::Pid::from_raw(child.id().try_into()?);
    let mut end = tokio::task::spawn_blocking(move || child.wait_with_output());
    let in_time = tokio::time::timeout(SHIM_PATIENCE, &mut end).await;
    // Else it would go on for as long as a shim is patient, and with it the test.
    let (ran, late) = if let Ok(ran) = in_time {
        (ran??, "")
    } else {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        (end.await??, "it took too long: ")
    };
    ensure!(ran.status.success(), "{late}{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

/// The shim's own process, as it is in an agent's container, with a document near the limit.
#[tokio::test]
async fn the_shim_claims_and_reports() -> Result<()> {
    let _whole = crate::support::policies_whole().await;
    let team = Team::open("gateway-shim").await?;
    let gateway = Gateway::start(&team).await?;
    let (attempt, pod) = Box::pin(attempt(&team)).await?;
    let script = r#"head -c 500000 /dev/zero | tr '\0' x > $LOCKSTEP_OUT/plan.md
        printf '{"env": ["%s", "%s", "%s", "%s", "%s", "%s"], "context": %s}' "$SESSION_ID" "$WORKFLOW" "$STEP_ID" \
          "${LOCKSTEP_URL:+there}" "$S3_BUCKET_NAME" "$DDB_TABLE_NAME" "$(cat $LOCKSTEP_IN/context.json)" > $LOCKSTEP_OUT/result.json"#;
    run_shim(&team, &gateway, (&attempt, &pod), script).await?;
    let made = team.admin.gets(&Ask::get(team.one("stepruns", &attempt.step_run))).await?;
    let report = &made["status"]["agent"]["report"];
    ensure!(report["class"] == "Succeeded", "{report}");
    // What the command found: variables for what is short, a file for what may be long.
    let output: Value = serde_json::from_str(report["output"].as_str().context("no output")?)?;
    ensure!(output["env"] == json!(["s", "run", "work", "there", "bucket", "table"]), "{output}");
    let context = &output["context"];
    let schema = jsonschema::validator_for(&protocol::context::schema()).map_err(|fault| anyhow!("{fault}"))?;
    ensure!(
        schema.is_valid(context),
        "{:?}: {context}",
        schema.iter_errors(context).map(|e| e.to_string()).collect::<Vec<_>>()
    );
    ensure!(context["workflow"]["name"] == "run" && context["session"] == "s", "{context}");
    ensure!(
        context["input"] == "A shop for $(used) bikes" && context["parameters"] == json!({"depth": 2}),
        "{context}"
    );
    ensure!(
        context["scopeChain"] == json!([{"scope": "workflow", "scopeId": context["workflow"]["uid"]}]),
        "{context}"
    );
    let document = report["documentName"].as_str().context("no document")?;
    let document = team.admin.gets(&Ask::get(team.one("documents", document))).await?;
    ensure!(document["spec"]["content"].as_str().map(str::len) == Some(500_000));
    team.close().await
}

/// Thirty reports of one namespace whose bodies never come take the places of one namespace, and no more: another's check is
/// answered before the first of them ends.
#[tokio::test]
async fn slow_bodies_of_one_namespace_hold_no_other_up() -> Result<()> {
    let _whole = crate::support::policies_whole().await;
    let (slow, honest) = (Team::open("gateway-slow").await?, Team::open("gateway-fair").await?);
    let gateway = Gateway::start(&slow).await?;
    let mut both = Vec::new();
    for team in [&slow, &honest] {
        let (attempt, pod) = Box::pin(attempt(team)).await?;
        let token = token(team, Some(&name::audience(&attempt.uid, 1)), Some(&pod)).await?;
        let heard = gateway.call(protocol::CLAIM, &token, &attempt, &json!({"shimVersion": "test"})).await?;
        ensure!(heard.status == 200, "{heard:?}");
        both.push((attempt, token));
    }
    let [(slow_attempt, slow_token), (attempt, token)] = &both[..] else { return Err(anyhow!("two attempts")) };
    let words = head(protocol::REPORT, Some(slow_token), Some(slow_attempt), 1_200_000);
    let never = (1..=30).map(|n| Box::pin(gateway.say(Ipv4Addr::new(127, 6, 0, n), words.as_bytes())));
    let beside = async {
        until("all thirty are there", || async {
            let held = gateway.metric("lockstep_gateway_places_held{pool=\"outputs\"}").await?;
            let waiting = gateway.metric("lockstep_gateway_places_waiting{pool=\"outputs\"}").await?;
            // Three quarters of sixteen.
            Ok((held + waiting >= 30.0).then_some((held, waiting)))
        })
        .await
        .and_then(|found| if found == (12.0, 18.0) { Ok(()) } else { Err(anyhow!("{found:?} hold and wait")) })?;
        let output = json!({"output": {"result": "{}", "document": "# Plan"}});
        gateway.call(protocol::CHECK, token, attempt, &output).await
    };
    tokio::select! {
        heard = beside => {
            let heard = heard?;
            ensure!(heard.status == 200, "{heard:?}");
        }
        (first, ..) = futures::future::select_all(never) => return Err(anyhow!("a slow one ended first: {first:?}")),
    }
    slow.close().await?;
    honest.close().await
}

#[tokio::test]
async fn idle_connections_do_not_shut_probes_out() -> Result<()> {
    let team = Team::open("gateway-probes").await?;
    let gateway = Gateway::start(&team).await?;
    let mut idle = Vec::new();
    for n in 0..200 {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 4, 0, 1 + n % 20), 0).into())?;
        idle.push(socket.connect((Ipv4Addr::LOCALHOST, gateway.health).into()).await?);
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let heard = plain(gateway.health, path, HONEST).await?;
        ensure!(heard.starts_with("HTTP/1.1 200 "), "{path}: {heard}");
    }
    team.close().await
}
