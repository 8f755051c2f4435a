//! Triggers against the API server: who may publish, whose the runs are, and what senders without a token need.

use anyhow::{Context as _, Result, ensure};
use axum::body::{Body, to_bytes};
use http::Request;
use ring::hmac;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt;

use crate::http::{Api, account, open};
use crate::plugin::PLUGIN;
use crate::support::{API, Ask, OPERATOR, Team, annotation, object, policies_whole, until};

const SECRET: &str = "a secret that is long enough";

async fn trigger(team: &Team, name: &str, more: &Value) -> Result<()> {
    let mut spec =
        json!({"event": {"type": name}, "run": {"templateRef": {"name": "default"}, "input": "${ event.data.text }"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    team.admin.gets(&Ask::post(team.all("triggers"), object("Trigger", name, &spec))).await?;
    Ok(())
}

/// Sends, and gives the code and the answer.
async fn send(api: &Api, team: &Team, path: &str, headers: &[(&str, &str)], body: &Value) -> Result<(u16, Value)> {
    let mut request = Request::builder().method("POST").uri(format!("/namespaces/{}{path}", team.namespace));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = api.service.router.clone().oneshot(request.body(Body::from(body.to_string()))?).await?;
    let code = response.status().as_u16();
    Ok((code, serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await?).unwrap_or_default()))
}

async fn publish(api: &Api, team: &Team, token: &str, event: &Value) -> Result<(u16, Value)> {
    let token = format!("Bearer {token}");
    let headers = [("authorization", token.as_str()), ("content-type", "application/cloudevents+json")];
    send(api, team, "/events", &headers, event).await
}

fn event(kind: &str, id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/shop", "type": kind, "data": {"text": "bikes"}})
}

fn says(answer: &Value, words: &str) -> Result<()> {
    let detail = answer["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(words), "{words:?} is missing in {answer}");
    Ok(())
}

#[tokio::test]
async fn an_event_starts_a_run_of_its_senders_own_where_they_may() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, api) = open("events").await?;
    trigger(&team, "orders", &json!({})).await?;
    trigger(&team, "secret", &json!({"run": {"templateRef": {"name": "secret"}}})).await?;
    let shop = account(&team, "shop", &["lockstep-edit", "lockstep-view"]).await?;
    let runner = account(&team, "runner", &["lockstep-runner"]).await?;
    // May publish to one Trigger, and make no run.
    let teller = account(&team, "teller", &[]).await?;
    let one = json!([{"apiGroups": ["lockstep.dev"], "resources": ["triggers"], "resourceNames": ["orders"], "verbs": ["trigger"]}]);
    team.grant(&format!("system:serviceaccount:{}:teller", team.namespace), "tell", one.clone()).await?;
    let started = until("the roles are bound", || async {
        let (code, said) = publish(&api, &team, &shop, &event("orders", "order-1")).await?;
        let (other, _) = publish(&api, &team, &teller, &event("orders", "order-2")).await?;
        let (runs, _) = publish(&api, &team, &runner, &event("orders", "order-2")).await?;
        Ok((matches!(code, 200 | 202) && other == 403 && runs == 403).then_some(said))
    })
    .await?;
    let run = started["runs"][0]["run"].as_str().context("no run")?;
    let made = team.admin.gets(&Ask::get(team.one("workflows", run))).await?;
    let shops = format!("system:serviceaccount:{}:shop", team.namespace);
    ensure!(annotation(&made, "lockstep.dev/created-by") == Some(&shops), "{made}");
    ensure!(made["spec"]["session"] == "order-1" && made["spec"]["input"] == "bikes", "{made}");
    // Whoever sends it: it is that very run.
    let (code, again) = publish(&api, &team, &shop, &event("orders", "order-1")).await?;
    ensure!(code == 200 && again["duplicate"] == true && again["runs"][0]["run"] == run, "{code} {again}");
    let (_, said) = publish(&api, &team, &runner, &event("orders", "order-2")).await?;
    says(&said, "lacks the permission trigger on triggers.lockstep.dev")?;
    let (_, said) = publish(&api, &team, &teller, &event("orders", "order-2")).await?;
    says(&said, "cannot create resource \"workflows\"")?;
    // Who may make runs, but not of this template: the policy says it.
    let runners = format!("system:serviceaccount:{}:runner", team.namespace);
    let both = json!([{"apiGroups": ["lockstep.dev"], "resources": ["triggers"], "verbs": ["trigger"]}]);
    team.grant(&runners, "tell-all", both).await?;
    let refused = until("the runner may publish", || async {
        let (code, said) = publish(&api, &team, &runner, &event("secret", "x")).await?;
        Ok((code == 403 && said["detail"].to_string().contains("lockstep-run/v1")).then_some(said))
    })
    .await?;
    says(&refused, "lacks the permission run on workflowtemplates.lockstep.dev/secret")?;
    // Its status is the operator's.
    let status = json!({"status": {"url": "https://evil.example"}});
    let path = team.one("triggers", "orders/status");
    team.admin.is_refused(&Ask::patch(&path, status.clone()), 403, "may not write the status").await?;
    team.operator.gets(&Ask::patch(&path, status)).await?;
    // A schedule's run is the operator's, and no right of its own is asked for.
    let scheduled = json!({"templateRef": {"name": "secret"}});
    let mut run = object("Workflow", "scheduled", &scheduled);
    run["metadata"]["annotations"] = json!({"lockstep.dev/created-by": OPERATOR});
    let made = team.operator.gets(&Ask::post(team.all("workflows"), run)).await?;
    ensure!(annotation(&made, "lockstep.dev/created-by") == Some(OPERATOR), "{made}");
    team.close().await
}

#[tokio::test]
async fn a_sender_without_a_token_starts_runs_where_a_binding_lets_the_api() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, api) = open("webhooks").await?;
    let auth = json!({"hmac": {"secretRef": {"name": "github", "key": "secret"}}});
    trigger(&team, "hooks", &json!({"event": {"type": "com.github.push"}, "auth": auth})).await?;
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "github"}, "stringData": {"secret": SECRET}});
    team.admin.gets(&Ask::post(team.core("secrets"), secret)).await?;
    let body = json!({"text": "pushed"});
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = hmac::sign(&key, body.to_string().as_bytes());
    let tag: String = tag.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let tag = format!("sha256={tag}");
    let headers = [("x-github-event", "push"), ("x-github-delivery", "d-1"), ("x-hub-signature-256", tag.as_str())];
    let hook = || send(&api, &team, "/events/hooks", &headers, &body);
    until("the watch shows the Trigger", || async {
        let (code, said) = hook().await?;
        Ok((code == 401 && said["detail"].to_string().contains("log of lockstep-api")).then_some(()))
    })
    .await?;
    let read = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["github"], "verbs": ["get"]}]);
    team.grant(API, "github", read).await?;
    let refused = until("the Secret is read", || async {
        let (code, said) = hook().await?;
        Ok((code == 403).then_some(said))
    })
    .await?;
    let hint = format!(
        "kubectl -n {} create rolebinding lockstep-webhooks --clusterrole lockstep-webhooks --serviceaccount lockstep-system:lockstep-api",
        team.namespace
    );
    says(&refused, &hint)?;
    let user = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": API});
    team.bind("lockstep-webhooks", json!([user])).await?;
    let started = until("the account starts runs", || async {
        let (code, said) = hook().await?;
        Ok(matches!(code, 200 | 202).then_some(said))
    })
    .await?;
    let run = started["runs"][0]["run"].as_str().context("no run")?;
    let made = team.admin.gets(&Ask::get(team.one("workflows", run))).await?;
    ensure!(annotation(&made, "lockstep.dev/created-by") == Some(API), "{made}");
    let (code, said) = hook().await?;
    ensure!(code == 200 && said["duplicate"] == true, "{code} {said}");
    let forged = [headers[0], headers[1], ("x-hub-signature-256", "sha256=00")];
    let (code, _) = send(&api, &team, "/events/hooks", &forged, &body).await?;
    ensure!(code == 401, "{code}");
    team.close().await
}

/// S3.7.3: from the command line to POST /events to the Workflow.
#[tokio::test]
async fn the_plugin_publishes_an_event() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, api) = open("publish").await?;
    trigger(&team, "orders", &json!({})).await?;
    let shop = account(&team, "shop", &["lockstep-edit", "lockstep-view"]).await?;
    until("the roles are bound", || async {
        let (code, _) = publish(&api, &team, &shop, &event("orders", "warm")).await?;
        Ok(matches!(code, 200 | 202).then_some(()))
    })
    .await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = api.service.router.clone();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let file = std::env::temp_dir().join(format!("{}.json", team.namespace));
    std::fs::write(&file, "{\"text\": \"bells\"}")?;
    let call = async |words: &[&str]| {
        let mut command = std::process::Command::new(PLUGIN);
        command
            .args(["-n", &team.namespace, "trigger"])
            .args(words)
            .env("LOCKSTEP_API_TOKEN", &shop)
            .env("LOCKSTEP_API_URL", &url);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        anyhow::Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    };
    let data = file.display().to_string();
    let (code, name, told) = call(&["orders", "--data", &data, "--id", "order-9"]).await?;
    ensure!(code == Some(0) && told.contains("watch"), "{code:?} {name} {told}");
    let made = team.admin.gets(&Ask::get(team.one("workflows", name.trim()))).await?;
    ensure!(made["spec"]["session"] == "order-9" && made["spec"]["input"] == "bells", "{made}");
    let (code, again, told) = call(&["orders", "--data", &data, "--id", "order-9"]).await?;
    ensure!(code == Some(0) && again == name && told.contains("came before"), "{code:?} {again} {told}");
    let (code, _, told) = call(&["orders", "--type", "refund"]).await?;
    ensure!(code == Some(1) && told.contains("takes the type orders"), "{code:?} {told}");
    let (code, _, told) = call(&["order"]).await?;
    ensure!(code == Some(4) && told.contains("did you mean orders"), "{code:?} {told}");
    serving.abort();
    std::fs::remove_file(file)?;
    team.close().await
}
