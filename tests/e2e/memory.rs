//! What agents remember, in real pods: kept over attempts and runs of a session, private to agent and session, gone with a
//! private run.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use lockstep::api::name;
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Space, ask, refusal};

/// Counts on, and says what it found, as its output.
const COUNT: &str = r#"set -e
    test "$(lockstep memory get status)" = initialized || test "$(lockstep memory get status)" = counting
    count=$(lockstep memory get count || echo 0)
    lockstep memory set count $((count + 1))
    lockstep memory set status '"counting"'
    test "$ATTEMPT" -ge "${ATTEMPTS:-1}" || exit 3
    printf '{"count": %s, "story": "%s", "agent": "%s", "verb": "%s"}' "$(lockstep memory get count)" "$(lockstep memory get story_id)" \
      "$(lockstep memory get agent_id)" "$(lockstep context /memory/verb)" > $LOCKSTEP_OUT/result.json"#;

async fn memory(space: &Space, agent: &str, session: &str) -> Result<Option<Value>> {
    let path = space.ours(&format!("memories/{}", name::memory(agent, session)));
    match ask(&space.admin, Method::GET, &path, None).await {
        Ok(found) => Ok(Some(found)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(wrong) => Err(wrong.into()),
    }
}

fn value(memory: &Value, key: &str) -> String {
    memory["spec"]["entries"][key]["value"].as_str().unwrap_or_default().to_owned()
}

async fn output(space: &Space, run: &str) -> Result<Value> {
    let step_run = space.step_run(run, "count").await?.context("no StepRun")?;
    let report = step_run.status.and_then(|s| s.agent?.report).context("no report")?;
    Ok(serde_json::from_str(&report.output.context("no output")?)?)
}

#[tokio::test]
async fn agents_remember_in_their_session() -> Result<()> {
    let space = Space::open("memory").await?;
    // The first attempt fails after it has written: what it wrote is kept.
    let failing = format!("ATTEMPTS=2\n{COUNT}");
    let retry = json!({"retry": {"maxAttempts": 2, "initialBackoffSeconds": 1}});
    space.agent("counter", &failing, &retry).await?;
    space.agent("other", COUNT, &json!({})).await?;
    let run = |agent: &str, session: Option<&str>| {
        let mut spec = json!({"steps": [{"name": "count", "agentId": agent}]});
        if let Some(session) = session {
            spec["session"] = session.into();
        }
        spec
    };
    space.run("first", &run("counter", Some("spring"))).await?;
    space.phase("first", Phase::Completed).await?;
    let gave = output(&space, "first").await?;
    ensure!(gave == json!({"count": 2, "story": "spring", "agent": "counter", "verb": "lockstep memory"}), "{gave}");
    // A later run of the session goes on from there; another agent, and another session, begin anew.
    space.run("second", &run("counter", Some("spring"))).await?;
    space.run("others", &run("other", Some("spring"))).await?;
    space.run("alone", &run("counter", None)).await?;
    for (name, count) in [("second", 4), ("others", 1), ("alone", 2)] {
        space.phase(name, Phase::Completed).await?;
        let gave = output(&space, name).await?;
        ensure!(gave["count"] == count, "{name}: {gave}");
    }
    let kept = memory(&space, "counter", "spring").await?.context("no Memory")?;
    ensure!(value(&kept, "count") == "4" && value(&kept, "status") == "\"counting\"", "{kept}");
    let session = space.status("alone").await?.session.context("no session")?.id;
    let private = memory(&space, "counter", &session).await?.context("no private Memory")?;
    ensure!(private["metadata"]["ownerReferences"][0]["name"] == "alone", "{private}");
    // Nobody but Lockstep makes one, and a private one goes with its run.
    let forged = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Memory", "metadata": {"name": "forged"},
        "spec": {"agentId": "counter", "session": "summer"}});
    let (code, words) = refusal(ask(&space.admin, Method::POST, &space.ours("memories"), Some(&forged)).await)?;
    ensure!(code == 403 && words.contains("made by Lockstep"), "{code}: {words}");
    ask(&space.admin, Method::DELETE, &space.ours("workflows/alone"), None).await?;
    space
        .until("the private memory goes with its run", PATIENCE, None, async || {
            Ok(memory(&space, "counter", &session).await?.is_none().then_some(()))
        })
        .await?;
    space.close().await
}

#[tokio::test]
async fn a_memory_goes_when_nobody_uses_it() -> Result<()> {
    let space = Space::open("forgets").await?;
    space.agent("forgetful", COUNT, &json!({"memory": {"ttlSecondsAfterLastUse": 5}})).await?;
    let steps =
        json!([{"name": "count", "agentId": "forgetful"}, {"name": "word", "ask": {"question": "Which word?"}}]);
    space.run("short", &json!({"session": "spring", "steps": steps})).await?;
    // From before its first attempt until 5 s after its last use.
    space
        .until("the memory is made", PATIENCE, Some("short"), async || {
            Ok(memory(&space, "forgetful", "spring").await?.map(|_| ()))
        })
        .await?;
    space.step("short", "word", "it asks", |s| s.waiting_for.is_some()).await?;
    space
        .until("it is forgotten", Duration::from_secs(180), None, async || {
            Ok(memory(&space, "forgetful", "spring").await?.is_none().then_some(()))
        })
        .await?;
    space.close().await
}
