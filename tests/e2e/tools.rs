//! What an agent does by itself, in real pods: it asks for documents, uses the calls as tools of a model, mends its output.

use anyhow::{Context as _, Result, ensure};
use lockstep::api::name;
use lockstep::api::step_run::AttemptResult;
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Space};

/// Reads what it can see, and fails where it is given more.
const READ: &str = r#"set -e
    lockstep document list > $LOCKSTEP_WORK/list
    lockstep document get glossary --file $LOCKSTEP_WORK/glossary.txt
    lockstep document get glossary --scope namespace > $LOCKSTEP_WORK/everywhere.txt
    code=0; lockstep document get secret || code=$?; test $code = 1
    code=0; lockstep document get 'secret,spec.scope=Session' || code=$?; test $code = 2
    printf '{"list": "%s", "glossary": "%s", "everywhere": "%s"}' "$(cut -f 6 $LOCKSTEP_WORK/list | tr '\n' ' ')" \
      "$(cat $LOCKSTEP_WORK/glossary.txt)" "$(cat $LOCKSTEP_WORK/everywhere.txt)" > $LOCKSTEP_OUT/result.json"#;

/// A client of MCP in a few lines, against the server that an agent's runtime starts.
const TOOLS: &str = r#"set -e
    ask() { printf '{"jsonrpc":"2.0","id":%s,"method":"%s","params":%s}\n' "$1" "$2" "$3"; sleep 0.3; }
    {
      ask 1 initialize '{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}'
      echo '{"jsonrpc":"2.0","method":"notifications/initialized"}'
      ask 2 tools/call '{"name":"progress","arguments":{"percent":40,"message":"by a tool"}}'
      ask 3 tools/call '{"name":"memory_set","arguments":{"key":"seen","value":true}}'
      ask 4 tools/call '{"name":"result","arguments":{"result":{"n":"two"}}}'
      ask 5 tools/call '{"name":"result","arguments":{"result":{"n":2}}}'
    } | lockstep mcp > $LOCKSTEP_WORK/answers
    cat $LOCKSTEP_WORK/answers
    test "$(grep -c '"isError":true' $LOCKSTEP_WORK/answers)" = 1
    test "$(lockstep memory get seen)" = true"#;

#[tokio::test]
async fn a_models_runtime_calls_by_tools() -> Result<()> {
    let space = Space::open("tools").await?;
    let schema = json!({"properties": {"n": {"type": "integer"}}, "required": ["n"]});
    space.agent("model", TOOLS, &json!({"retry": {"maxAttempts": 1}, "outputSchema": schema})).await?;
    space.run("run", &json!({"steps": [{"name": "think", "agentId": "model"}]})).await?;
    space.phase("run", Phase::Completed).await?;
    let status = space.step_run("run", "think").await?.and_then(|s| s.status).context("no StepRun")?;
    let report = status.agent.and_then(|agent| agent.report).context("no report")?;
    ensure!(report.output.as_deref() == Some("{\"n\":2}"), "{:?}", report.output);
    space.close().await
}

#[tokio::test]
async fn a_wrong_output_is_mended_within_the_attempt() -> Result<()> {
    let space = Space::open("repair").await?;
    let schema = json!({"properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let mend = r#"grep -q 'it is .*two' $LOCKSTEP_FAULTS || exit 9; echo '{"n": 2}' > $LOCKSTEP_OUT/result.json"#;
    let more = |mend: &str| {
        json!({"retry": {"maxAttempts": 1}, "outputSchema": schema,
            "repair": {"command": ["sh", "-c", mend], "maxRepairs": 2}})
    };
    let wrong = "echo '{\"n\": \"two\"}' > $LOCKSTEP_OUT/result.json";
    space.agent("mender", wrong, &more(mend)).await?;
    space.agent("hopeless", wrong, &more("echo IN VAIN")).await?;
    let steps = |agent: &str| json!({"onFailure": "Fail", "steps": [{"name": "count", "agentId": agent}]});
    space.run("mended", &steps("mender")).await?;
    space.run("in-vain", &steps("hopeless")).await?;
    space.phase("mended", Phase::Completed).await?;
    let status = space.step_run("mended", "count").await?.and_then(|s| s.status).context("no StepRun")?;
    ensure!(status.attempts.len() == 1 && status.attempts[0].exit_code == Some(0), "{:?}", status.attempts);
    space.phase("in-vain", Phase::Failed).await?;
    let status = space.step_run("in-vain", "count").await?.and_then(|s| s.status).context("no StepRun")?;
    let attempt = status.attempts.first().context("no attempt")?;
    let told = attempt.message.as_deref().unwrap_or_default();
    ensure!(
        attempt.result == AttemptResult::InvalidOutput && told.contains("/n: ") && told.contains("two"),
        "{attempt:?}"
    );
    let pods = space.pods("in-vain").await?;
    let log = space.log(pods.first().and_then(|pod| pod.metadata.name.as_deref()).context("no pod")?).await?;
    ensure!(log.matches("IN VAIN\n").count() == 2, "{log}");
    space.close().await
}

#[tokio::test]
async fn an_agent_asks_for_documents_that_it_can_see() -> Result<()> {
    let space = Space::open("documents").await?;
    space.agent("reader", READ, &json!({"retry": {"maxAttempts": 1}})).await?;
    let document = |kind: &str, scope: &str, content: &str| json!({"type": kind, "scope": scope, "format": "text", "content": content});
    let mut of_session = document("glossary", "Session", "of the session");
    of_session["session"] = "bikes".into();
    let mut of_another = document("secret", "Session", "of another session");
    of_another["session"] = "cars".into();
    let made = [
        ("everywhere", document("glossary", "Namespace", "of the namespace")),
        ("words", of_session),
        ("secret", of_another),
    ];
    for (name, spec) in &made {
        space.document(name, spec).await?;
        let published = async || {
            let found = space.get(&space.ours(&format!("documents/{name}"))).await?;
            Ok((found["status"]["phase"] == "Published").then_some(()))
        };
        space.until(&format!("{name} is published"), PATIENCE, None, published).await?;
    }
    space.run("run", &json!({"session": "bikes", "steps": [{"name": "read", "agentId": "reader"}]})).await?;
    space.phase("run", Phase::Completed).await?;
    let status = space.step_run("run", "read").await?.and_then(|s| s.status).context("no StepRun")?;
    let report = status.agent.clone().and_then(|agent| agent.report).context("no report")?;
    let gave: Value = serde_json::from_str(&report.output.context("no output")?)?;
    let expected = json!({"list": "words everywhere ", "glossary": "of the session", "everywhere": "of the namespace"});
    ensure!(gave == expected, "{gave}");
    let read = status.attempts.first().context("no attempt")?.documents_read.clone();
    let told: Vec<(&str, &str)> = read.iter().map(|read| (read.name.as_str(), read.digest.as_str())).collect();
    let digests = ["of the session", "of the namespace"].map(|text| name::digest_bytes(text.as_bytes()));
    ensure!(told == [("words", digests[0].as_str()), ("everywhere", digests[1].as_str())], "{told:?}");
    space.close().await
}
