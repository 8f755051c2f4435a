//! The HTTP API with the account of the chart, against the API server: rights, policies and the stamp of the creator are those
//! of whoever's token a request brings.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::{Body, BodyDataStream, to_bytes};
use futures::StreamExt;
use http::{Request, Response, header};
use lockstep::cluster::clock::Clock;
use lockstep::cluster::evaluator::Evaluator;
use lockstep::http::{Bounds, Service, Settings};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{API, Ask, PATIENCE, Team, Who, annotation, nobody, object, policies_whole, token_of, until};

pub struct Api {
    pub service: Service,
    namespace: String,
}

impl Api {
    pub async fn open(team: &Team) -> Result<Self> {
        let own = Who::user(API, &[]).await?;
        let settings = Settings { default_namespace: "default".to_owned(), run_permission: true };
        let around = (Evaluator::here(), Clock::default());
        let service = Service::new((&own.client(), nobody().await?), around, settings, &Bounds::default());
        service.filled().await;
        Ok(Self { service, namespace: team.namespace.clone() })
    }

    async fn send(&self, token: &str, method: &str, path: &str, body: &Value) -> Result<Response<Body>> {
        let path = format!("/namespaces/{}{path}", self.namespace);
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request =
            Request::builder().method(method).uri(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        let router: Router = self.service.router.clone();
        Ok(router.oneshot(request.body(body)?).await?)
    }

    pub async fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let response = self.send(token, method, path, body).await?;
        let code = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await?;
        Ok((code, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Asks and must hear this.
    async fn hears(&self, token: &str, method: &str, path: &str, body: &Value, code: u16) -> Result<Value> {
        let (found, said) = self.ask(token, method, path, body).await?;
        ensure!(found == code, "{method} {path}: {found}, not {code}: {said}");
        Ok(said)
    }
}

/// The course of a run, as far as it was read.
struct Course {
    body: BodyDataStream,
    text: String,
}

impl Course {
    /// Open, and told of what happened so far.
    async fn open(api: &Api, token: &str, run: &str) -> Result<Self> {
        let response = api.send(token, "GET", &format!("/runs/{run}/events"), &Value::Null).await?;
        ensure!(response.status() == 200, "the stream is answered with {}", response.status());
        let mut course = Self { body: response.into_body().into_data_stream(), text: String::new() };
        while !course.text.contains("event: run.phase\n") {
            ensure!(course.more().await?, "it ended: {}", course.text);
        }
        Ok(course)
    }

    /// Whether anything came before the end.
    async fn more(&mut self) -> Result<bool> {
        let next = tokio::time::timeout(PATIENCE, self.body.next()).await.context("neither an event nor an end")?;
        let Some(piece) = next.transpose()? else { return Ok(false) };
        self.text.push_str(&String::from_utf8_lossy(&piece));
        Ok(true)
    }

    /// The data of its last event, which is an error.
    async fn error(mut self) -> Result<String> {
        while self.more().await? {}
        let (_, last) = self.text.rsplit_once("event: ").context("no event")?;
        let data = last.strip_prefix("error\ndata: ").with_context(|| format!("the last event is {last}"))?;
        Ok(data.trim_end().to_owned())
    }
}

/// An account of the team with these roles; its token.
pub async fn account(team: &Team, name: &str, roles: &[&str]) -> Result<String> {
    let made = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    team.admin.gets(&Ask::post(team.core("serviceaccounts"), made)).await?;
    let base = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", team.namespace);
    for role in roles {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": format!("{name}-{role}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": team.namespace}]});
        team.admin.gets(&Ask::post(&base, binding)).await?;
    }
    token_for(team, name, &[]).await
}

/// A token of the account for these audiences; for the API server itself where none is named.
async fn token_for(team: &Team, name: &str, audiences: &[&str]) -> Result<String> {
    let spec = json!({"audiences": audiences});
    let wish = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let path = team.core(&format!("serviceaccounts/{name}/token"));
    let made = team.admin.gets(&Ask::post(path, wish)).await?;
    Ok(made["status"]["token"].as_str().context("no token")?.to_owned())
}

pub async fn open(purpose: &str) -> Result<(Team, Api)> {
    let team = Team::open(purpose).await?;
    for name in ["default", "secret"] {
        let spec = json!({"steps": [{"name": "work", "agentId": "worker"}]});
        team.admin.gets(&Ask::post(team.all("workflowtemplates"), object("WorkflowTemplate", name, &spec))).await?;
    }
    let api = Api::open(&team).await?;
    Ok((team, api))
}

#[tokio::test]
async fn a_run_is_its_callers_and_so_are_the_refusals() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, api) = open("http").await?;
    let shop = account(&team, "shop", &["lockstep-edit", "lockstep-view"]).await?;
    let runner = account(&team, "runner", &["lockstep-runner"]).await?;
    let stranger = account(&team, "stranger", &[]).await?;
    let one = json!([{"apiGroups": ["lockstep.dev"], "resources": ["workflowtemplates"], "resourceNames": ["default"], "verbs": ["run"]}]);
    team.grant(&format!("system:serviceaccount:{}:runner", team.namespace), "run-default", one).await?;
    let body = |flow: &str, story: &str| json!({"flow": flow, "input": "x", "story_id": story, "wait": 0});
    until("the roles are bound", || async {
        let (code, _) = api.ask(&shop, "POST", "/run", &body("default", "s")).await?;
        let (other, _) = api.ask(&runner, "POST", "/run", &body("default", "r")).await?;
        Ok((code == 202 && other == 202).then_some(()))
    })
    .await?;
    // As the API server knows it, and not as the API says.
    let made = api.hears(&shop, "POST", "/run", &body("default", "t"), 202).await?;
    let name = made["run"].as_str().context("no name")?;
    let run = team.admin.gets(&Ask::get(team.one("workflows", name))).await?;
    let user = format!("system:serviceaccount:{}:shop", team.namespace);
    ensure!(annotation(&run, "lockstep.dev/created-by") == Some(&user), "{run}");
    let manager = &run["metadata"]["managedFields"][0]["manager"];
    ensure!(manager == "lockstep-api", "{manager}");
    // A right to one flow is none to another; a stranger has none to anything.
    let refused = api.hears(&runner, "POST", "/run", &body("secret", "r"), 403).await?;
    ensure!(refused["detail"].as_str().is_some_and(|detail| detail.contains("run on workflowtemplates")), "{refused}");
    let unknown = api.hears(&runner, "POST", "/run", &body("nothing", "r"), 404).await?;
    ensure!(unknown["flows"] == json!(["default"]), "{unknown}");
    for (method, path, asked) in [
        ("POST", "/run", body("default", "x")),
        ("GET", "/runs", Value::Null),
        ("GET", "/runs/t", Value::Null),
        ("GET", "/runs/t/history", Value::Null),
        ("GET", "/runs/t/events", Value::Null),
        ("POST", "/runs/t/cancel", Value::Null),
        ("POST", "/documents", json!({"type": "brief", "content": "x"})),
        ("GET", "/memory/worker/t", Value::Null),
    ] {
        let (code, said) = api.ask(&stranger, method, path, &asked).await?;
        ensure!(code == 403, "{method} {path} by a stranger: {code} {said}");
    }
    for token in ["forged", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."] {
        api.hears(token, "GET", "/runs", &Value::Null, 401).await?;
    }
    // What only people with the right may do.
    api.hears(&runner, "POST", "/documents", &json!({"type": "brief", "content": "x"}), 403).await?;
    let put =
        api.hears(&shop, "POST", "/documents", &json!({"type": "brief", "content": "x", "story_id": "t"}), 201).await?;
    let again =
        api.hears(&shop, "POST", "/documents", &json!({"type": "brief", "content": "x", "story_id": "t"}), 200).await?;
    ensure!(put["name"] == again["name"] && again["created"] == false, "{again}");
    let cancelled = api.hears(&shop, "POST", &format!("/runs/{name}/cancel"), &Value::Null, 200).await?;
    ensure!(cancelled["run"] == name, "{cancelled}");
    team.close().await
}

/// Streams ask again once a minute: then the account of one is gone, another has lost its roles, and the third goes on.
#[tokio::test]
async fn a_token_for_somebody_else_or_of_a_deleted_account_is_refused_and_so_is_its_open_stream() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, api) = open("revoked").await?;
    let roles = ["lockstep-edit", "lockstep-view"];
    let gone = account(&team, "gone", &roles).await?;
    let barred = account(&team, "barred", &roles).await?;
    let stays = account(&team, "stays", &roles).await?;
    let body = json!({"input": "x", "story_id": "s", "wait": 0});
    let run = until("the roles are bound", || async {
        let (read, _) = api.ask(&barred, "GET", "/runs/none/history", &Value::Null).await?;
        let (also, _) = api.ask(&stays, "GET", "/runs/none/history", &Value::Null).await?;
        let (code, said) = api.ask(&gone, "POST", "/run", &body).await?;
        Ok(said["run"].as_str().filter(|_| (code, read, also) == (202, 404, 404)).map(str::to_owned))
    })
    .await?;
    // Tokens that are good, but meant for others: a gateway of Lockstep, any other service, several of them.
    let others: [&[&str]; 3] = [&["lockstep-gateway"], &["https://vault.example"], &["https://vault.example", "x"]];
    for audiences in others {
        let foreign = token_for(&team, "gone", audiences).await?;
        for (method, path, asked) in [
            ("GET", "/runs/s".to_owned(), Value::Null),
            ("POST", "/run".to_owned(), body.clone()),
            ("GET", format!("/runs/{run}/events"), Value::Null),
        ] {
            let said = api.hears(&foreign, method, &path, &asked, 401).await?;
            ensure!(said["detail"].as_str().is_some_and(|why| why.contains("does not know this token")), "{said}");
        }
    }
    let mut courses = Vec::new();
    for token in [&gone, &barred, &stays] {
        courses.push(Course::open(&api, token, &run).await?);
    }
    ensure!(api.service.streams() == 3, "{} streams", api.service.streams());
    team.admin.gets(&Ask::delete(team.core("serviceaccounts/gone"))).await?;
    let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", team.namespace);
    for role in roles {
        team.admin.gets(&Ask::delete(format!("{bindings}/barred-{role}"))).await?;
    }
    // A pod that knows nobody yet; the API server itself believes a token that it has seen for ten seconds more.
    until("the API server refuses both", || async {
        let fresh = Api::open(&team).await?;
        let (one, _) = fresh.ask(&gone, "GET", "/runs/s", &Value::Null).await?;
        let (other, _) = fresh.ask(&barred, "GET", "/runs/s", &Value::Null).await?;
        Ok(((one, other) == (401, 403)).then_some(()))
    })
    .await?;
    // The pod that knew them believes itself for a minute, and the API server at once: nothing is written.
    let document = json!({"type": "brief", "content": "x", "story_id": "s"});
    api.hears(&gone, "POST", "/documents", &document, 401).await?;
    api.hears(&barred, "POST", "/documents", &document, 403).await?;
    ensure!(api.service.streams() == 3, "the minute is not over");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    let stayed = courses.pop().context("the third")?;
    let refused = courses.pop().context("the second")?.error().await?;
    ensure!(refused.contains("lacks the permission get on workflows.lockstep.dev"), "{refused}");
    let unknown = courses.pop().context("the first")?.error().await?;
    ensure!(unknown.contains("does not know this token"), "{unknown}");
    ensure!(api.service.streams() == 1, "{} streams", api.service.streams());
    for (token, code) in [(&gone, 401), (&barred, 403), (&stays, 200)] {
        api.hears(token, "GET", "/runs/s", &Value::Null, code).await?;
    }
    // The third is told what happens next.
    api.hears(&stays, "POST", &format!("/runs/{run}/cancel"), &Value::Null, 200).await?;
    let status =
        json!({"status": {"phase": "Cancelled", "completedAt": "2026-01-01T00:00:00Z", "observedGeneration": 1}});
    team.operator.gets(&Ask::patch(team.one("workflows", &format!("{run}/status")), status)).await?;
    let mut stayed = stayed;
    while stayed.more().await? {}
    ensure!(stayed.text.contains("event: failure\n"), "{}", stayed.text);
    team.close().await
}

#[tokio::test]
async fn a_story_that_waits_for_documents_is_joined_by_its_creator_alone() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, api) = open("join").await?;
    let roles = ["lockstep-edit", "lockstep-view"];
    let (one, other) = (account(&team, "one", &roles).await?, account(&team, "other", &roles).await?);
    let body = json!({"input": "x", "story_id": "s", "wait": 0});
    let made = until("the roles are bound", || async {
        let (code, said) = api.ask(&one, "POST", "/run?new=true", &body).await?;
        let (also, _) = api.ask(&other, "GET", "/runs", &Value::Null).await?;
        Ok((code == 202 && also == 200).then_some(said))
    })
    .await?;
    let name = made["run"].as_str().context("no name")?;
    let status =
        json!({"status": {"phase": "WaitingForDocuments", "pendingDocuments": ["brief"], "observedGeneration": 1}});
    team.operator.gets(&Ask::patch(team.one("workflows", &format!("{name}/status")), status)).await?;
    let joined = api.hears(&one, "POST", "/run", &body, 200).await?;
    ensure!(
        joined["run"] == name && joined["joined"] == true && joined["pending_docs"] == json!(["brief"]),
        "{joined}"
    );
    let refused = api.hears(&other, "POST", "/run", &body, 409).await?;
    ensure!(refused["run"] == name, "{refused}");
    let different = json!({"input": "y", "story_id": "s", "wait": 0});
    api.hears(&one, "POST", "/run", &different, 409).await?;
    team.close().await
}

#[tokio::test]
async fn people_decide_by_http_and_machines_do_not() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, api) = open("decide").await?;
    let bot = account(&team, "machine", &["lockstep-approver", "lockstep-view"]).await?;
    let alice = token_of("alice")?;
    let run = object("Workflow", "shop", &json!({"templateRef": {"name": "default"}, "session": "s"}));
    let run = team.bob.gets(&Ask::post(team.all("workflows"), run)).await?;
    let uid = run["metadata"]["uid"].as_str().context("no UID")?;
    let spec = json!({"workflow": {"name": "shop", "uid": uid}, "path": "work", "gate": {"name": "plan"}});
    let gate = json!({"state": "Waiting", "round": 1, "outputDigest": "sha256:00", "openedAt": "2026-01-01T00:00:00Z", "policy": "p"});
    let mut made = crate::support::step_run("shop-work", &spec);
    made["metadata"]["ownerReferences"] = json!([{"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "name": "shop", "uid": uid, "controller": true}]);
    team.operator.gets(&Ask::post(team.all("stepruns"), made)).await?;
    let status = json!({"status": {"phase": "WaitingForAcceptance", "gate": gate}});
    team.operator.gets(&Ask::patch(team.one("stepruns", "shop-work/status"), status)).await?;
    let path = "/runs/shop/steps/work/decision";
    let by_machine = until("the watch shows the step", || async {
        let (code, said) = api.ask(&bot, "POST", path, &json!({"accepted": true})).await?;
        Ok((code == 403).then_some(said))
    })
    .await?;
    ensure!(by_machine["detail"].as_str().is_some_and(|d| d.contains("only people decide")), "{by_machine}");
    api.hears(&alice, "POST", path, &json!({"accepted": true, "review": "sha256:ff"}), 409).await?;
    // No operator runs here: it is written, and nobody takes it up.
    let said = api
        .hears(&alice, "POST", path, &json!({"accepted": true, "review": "sha256:00", "comment": "good"}), 202)
        .await?;
    ensure!(said["recorded"] == false && said["by"] == "alice", "{said}");
    let now = team.admin.gets(&Ask::get(team.one("stepruns", "shop-work"))).await?;
    let notes = ["decided-by", "decision", "review", "comment"]
        .map(|key| annotation(&now, &format!("lockstep.dev/{key}")).unwrap_or_default().to_owned());
    ensure!(notes == ["alice", "accepted", "sha256:00", "good"], "{notes:?}");
    api.hears(&alice, "POST", path, &json!({"accepted": false}), 409).await?;
    team.close().await
}
