//! What starts runs by itself: an event that is published with the plugin, one that comes with a signature, and a
//! schedule; with agents in real pods.

use anyhow::{Context as _, Result, ensure};
use lockstep::api::workflow::Phase;
use ring::hmac;
use serde_json::{Value, json};

use crate::causes::shell;
use crate::support::{PATIENCE, SYSTEM, Space};

const SECRET: &str = "a secret that is long enough";

/// Where the HTTP API is reached from here.
async fn address(space: &Space) -> Result<String> {
    if let Ok(url) = std::env::var("LOCKSTEP_API_URL") {
        return Ok(url);
    }
    let service = space.get(&format!("/api/v1/namespaces/{SYSTEM}/services/lockstep-api")).await?;
    Ok(format!("https://{}", service["spec"]["clusterIP"].as_str().context("no address")?))
}

async fn output(space: &Space, run: &str) -> Result<Value> {
    let status = space.phase(run, Phase::Completed).await?;
    let text = status.output.and_then(|output| output.value).context("no output")?;
    Ok(serde_json::from_str(&text)?)
}

/// What `make trigger` does: the event is published by the plugin to POST /events, and its id is the session of the
/// agent's process.
#[tokio::test(flavor = "multi_thread")]
async fn make_trigger_publishes_an_event_that_reaches_an_agent() -> Result<()> {
    let space = Space::open("triggers").await?;
    // The image of the examples has another name on other clusters.
    space.apply("triggers", &["agent.yaml", "triggers.yaml"]).await?;
    let (root, ns) = (env!("CARGO_MANIFEST_DIR"), &space.namespace);
    let trigger = async |id: &str| shell(&format!("cd {root} && NAMESPACE={ns} hack/trigger {id}")).await;
    let said = trigger("idea-7").await?;
    let run =
        said.lines().find_map(|line| line.strip_prefix("started workflow.lockstep.dev/")).context(said.clone())?;
    let given = output(&space, run).await?;
    ensure!(given == json!({"idea": "A shop for used bikes", "session": "idea-7"}), "{given}");
    let jobs = space.jobs(run).await?;
    let session = jobs[0].metadata.labels.as_ref().and_then(|labels| labels.get("lockstep.dev/session"));
    ensure!(session.map(String::as_str) == Some("idea-7"), "{session:?}");
    // Published again it is the same run, which is over.
    let again = trigger("idea-7").await?;
    ensure!(again.contains(&format!("started workflow.lockstep.dev/{run}")), "{again}");
    ensure!(space.step_runs(run).await?.len() == 1, "it did not run again");
    let status = space.get(&space.ours("triggers/ideas")).await?["status"].clone();
    ensure!(status["lastRun"]["name"] == run && status["lastEvent"]["id"] == "idea-7", "{status}");
    space.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_webhook_starts_a_run_where_a_role_lets_it() -> Result<()> {
    let space = Space::open("webhooks").await?;
    space.apply("triggers", &["agent.yaml"]).await?;
    let spec = json!({"event": {"type": "com.github.issues"}, "auth": {"hmac": {"secretRef": {"name": "github", "key": "secret"}}},
        "run": {"templateRef": {"name": "idea"}, "input": "${ event.data.issue.title }"}});
    let object =
        json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Trigger", "metadata": {"name": "issues"}, "spec": spec});
    space.post(&space.ours("triggers"), &object).await?;
    space.kubectl("wait trigger/issues --for=condition=Ready --timeout=60s").await?;
    space.kubectl(&format!("create secret generic github --from-literal=secret='{SECRET}'")).await?;
    let url = format!("{}/namespaces/{}/events/issues", address(&space).await?, space.namespace);
    let body = json!({"action": "opened", "issue": {"title": "Bells ring too loud"}}).to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag: String = hmac::sign(&key, body.as_bytes())
        .as_ref()
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let send = |tag: String| {
        let line = format!(
            "curl -ksS -w '\\n%{{http_code}}' -H 'X-GitHub-Event: issues' -H 'X-GitHub-Delivery: delivery-1' -H 'X-Hub-Signature-256: sha256={tag}' -H 'Content-Type: application/json' -d '{body}' {url}"
        );
        async move {
            let said = shell(&line).await?;
            let (text, code) = said.trim_end().rsplit_once('\n').context(said.clone())?;
            let text: Value = serde_json::from_str(text)?;
            anyhow::Ok((code.parse::<u16>()?, text))
        }
    };
    // Neither the Secret nor a run is the API's own account's to have, until a RoleBinding says so.
    let (code, said) = send(tag.clone()).await?;
    ensure!(code == 401, "{code} {said}");
    let account = format!("--serviceaccount {SYSTEM}:lockstep-api");
    for words in [
        "create role github --verb get --resource secrets --resource-name github".to_owned(),
        format!("create rolebinding github --role github {account}"),
    ] {
        space.kubectl(&words).await?;
    }
    let refused = space.until("the Secret is read", PATIENCE, None, async || {
        let (code, said) = send(tag.clone()).await?;
        Ok((code == 403).then_some(said))
    });
    let refused = refused.await?["detail"].to_string();
    ensure!(refused.contains("create rolebinding lockstep-webhooks"), "{refused}");
    space.kubectl(&format!("create rolebinding lockstep-webhooks --clusterrole lockstep-webhooks {account}")).await?;
    let started = space.until("the account starts runs", PATIENCE, None, async || {
        let (code, said) = send(tag.clone()).await?;
        Ok((code == 202).then_some(said))
    });
    let run = started.await?["runs"][0]["run"].as_str().context("no run")?.to_owned();
    let given = output(&space, &run).await?;
    ensure!(given == json!({"idea": "Bells ring too loud", "session": "delivery-1"}), "{given}");
    let (code, said) = send(tag).await?;
    ensure!(code == 200 && said["duplicate"] == true, "{code} {said}");
    let (code, said) = send("0".repeat(64)).await?;
    ensure!(code == 401, "{code} {said}");
    let creator = space.status(&run).await?.creator;
    ensure!(creator.as_deref() == Some("system:serviceaccount:lockstep-system:lockstep-api"), "{creator:?}");
    space.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_starts_a_run_at_the_next_minute() -> Result<()> {
    let space = Space::open("schedules").await?;
    space.apply("triggers", &["agent.yaml"]).await?;
    let spec = json!({"schedule": {"cron": "* * * * *"}, "run": {"templateRef": {"name": "idea"}, "input": "of ${ scheduledTime }"}});
    let object = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Trigger", "metadata": {"name": "minutely"}, "spec": spec});
    space.post(&space.ours("triggers"), &object).await?;
    let run = space.until("a run of the schedule", PATIENCE, None, async || {
        let status = space.get(&space.ours("triggers/minutely")).await?["status"].clone();
        Ok(status["lastRun"]["name"].as_str().map(str::to_owned))
    });
    let run = run.await?;
    let suspend = json!({"spec": {"schedule": {"suspend": true}}});
    space.patch(&space.ours("triggers/minutely"), &suspend).await?;
    let given = output(&space, &run).await?;
    ensure!(
        given["idea"].as_str().is_some_and(|idea| idea.starts_with("of 20") && idea.ends_with(":00+00:00")),
        "{given}"
    );
    let creator = space.status(&run).await?.creator;
    ensure!(creator.as_deref() == Some("system:serviceaccount:lockstep-system:lockstep-operator"), "{creator:?}");
    space.close().await
}
