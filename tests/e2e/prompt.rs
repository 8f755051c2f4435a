//! Agents that are only a prompt, in real pods at the level `restricted`: Lockstep's own image talks to an endpoint in this process, at
//! the address of the node. Its key is in no log, no status, no Event and no list of processes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lockstep::api::step_run::AttemptResult as R;
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::authority::Authority;
use crate::model::{Answer, Model};
use crate::support::{PATIENCE, Space};

const KEY: &str = "sk-never-to-be-seen-0123456789";

/// Where pods reach this process.
async fn address(space: &Space) -> Result<String> {
    let nodes = space.get("/api/v1/nodes").await?;
    let all = nodes["items"][0]["status"]["addresses"].as_array().context("a node without addresses")?;
    let own = all.iter().find(|one| one["type"] == "InternalIP").and_then(|one| one["address"].as_str());
    own.map(str::to_owned).context("a node without an address")
}

/// Runs all Agents beside each other, and compares how their attempts end.
async fn end_as_expected<'a>(space: &Space, cases: impl Iterator<Item = (&'a str, R, &'a str)> + Clone) -> Result<()> {
    let steps: Vec<Value> =
        cases.clone().map(|(case, ..)| json!({"name": case, "agentId": case, "onFailure": "Continue"})).collect();
    space.run("all", &json!({"order": "Graph", "steps": steps})).await?;
    space.phase("all", Phase::Completed).await?;
    for (case, result, said) in cases {
        let status = space.step_run("all", case).await?.and_then(|s| s.status).context("no StepRun")?;
        let attempt = status.attempts.first().context("no attempt")?;
        ensure!(attempt.result == result, "{case}: {attempt:?}");
        let output = status.agent.as_ref().and_then(|agent| agent.report.as_ref()?.output.clone()).unwrap_or_default();
        let told = format!("{output} {}", attempt.message.clone().unwrap_or_default());
        ensure!(told.contains(said), "{case}: {told}");
    }
    Ok(())
}

#[tokio::test]
async fn a_prompt_runs_in_real_pods_and_its_key_is_nowhere() -> Result<()> {
    let good = || Answer::Says("{\"n\": 3}");
    let slow_down = Answer::Fails(429, Some("1"), "{\"error\": {\"message\": \"slow down\"}}");
    let echo = "{\"error\": {\"message\": \"Incorrect API key: sk-never-to-be-seen-0123456789\"}}";
    let memory = Answer::Calls(vec![("memory_set", json!({"key": "seen", "value": true}))]);
    let wrong = Answer::Says("{\"n\": \"three\"}");
    let cases = [
        ("works", vec![memory, wrong, good()], R::Succeeded, "{\"n\": 3}"),
        (
            "waits",
            vec![slow_down, Answer::Fails(500, Some("0"), ""), Answer::CutOff, Answer::Garbled, good()],
            R::Succeeded,
            "{\"n\": 3}",
        ),
        ("busy", vec![Answer::Fails(503, Some("0"), "")], R::Retryable, "the endpoint answered 503"),
        ("stranger", vec![Answer::Fails(401, None, echo)], R::Unrecoverable, "Incorrect API key: ***"),
        ("refuses", vec![Answer::Refuses("I cannot help with that.")], R::Unrecoverable, "the model refused: I cannot"),
        (
            "said-back",
            vec![Answer::Says("{\"n\": \"sk-never-to-be-seen-0123456789\"}")],
            R::InvalidOutput,
            "it is \"***\"",
        ),
    ];
    let script: Vec<(&str, Vec<Answer>)> = cases.iter().map(|(case, answers, ..)| (*case, answers.clone())).collect();
    let model = Model::start("0.0.0.0", &script);
    let space = Space::open("prompt").await?;
    let node = address(&space).await?;
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "model-keys"}, "stringData": {"api": KEY}});
    space.post(&space.core("secrets"), &secret).await?;
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let egress = json!([{"cidr": format!("{node}/32"), "ports": [model.port()]}]);
    for (case, ..) in &cases {
        let prompt = json!({"system": "Count.", "model": "small", "baseURL": model.url(&node, case), "maxTurns": 3,
            "apiKeySecretRef": {"name": "model-keys", "key": "api"}});
        let spec = json!({"prompt": prompt, "outputSchema": schema, "egress": egress, "timeoutSeconds": 60, "retry": {"maxAttempts": 1}});
        space.agent_of(case, &spec).await?;
    }
    end_as_expected(&space, cases.iter().map(|(case, _, result, said)| (*case, *result, *said))).await?;
    let used = space.step_run("all", "works").await?.and_then(|s| s.status?.usage).context("nothing was used")?;
    ensure!((used.tokens_in, used.tokens_out) == (300, 30), "{used:?}");
    ensure!(
        model.asked("works").iter().all(|asked| asked.bearer.as_deref() == Some(KEY)),
        "the key is what the Secret says"
    );
    let ready = space.get(&space.ours("agents/works")).await?;
    ensure!(ready["status"]["conditions"][0]["status"] == "True", "{ready}");
    keeps_the_key(&space, &model).await?;
    space.close().await
}

/// The file from the ConfigMap is read in a real pod: with the right authority in it, and with another one.
#[tokio::test]
async fn a_prompt_trusts_whom_its_config_map_names() -> Result<()> {
    let space = Space::open("prompt-trust").await?;
    let node = address(&space).await?;
    let (own, stranger) = (Authority::new("own"), Authority::new("stranger"));
    let cases = [
        ("right", &own, R::Succeeded, "{\"n\": 3}"),
        ("foreign", &stranger, R::Unrecoverable, "no authority that spec.prompt.caConfigMapRef names"),
    ];
    let script = cases.iter().map(|(case, ..)| (*case, vec![Answer::Says("{\"n\": 3}")])).collect::<Vec<_>>();
    let model = Model::start_tls("0.0.0.0", &script, own.server(&node, 2999));
    for (case, authority, ..) in &cases {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": case}, "data": {"ca.crt": authority.pem}});
        space.post(&space.core("configmaps"), &map).await?;
        let prompt = json!({"system": "Count.", "model": "small", "baseURL": model.url(&node, case), "caConfigMapRef": {"name": case}});
        let spec = json!({"prompt": prompt, "outputSchema": {"type": "object"}, "timeoutSeconds": 60});
        space.agent_of(case, &spec).await?;
    }
    end_as_expected(&space, cases.iter().map(|(case, _, result, said)| (*case, *result, *said))).await?;
    space.close().await
}

/// Looks at all that the namespace has, but the Secret.
async fn keeps_the_key(space: &Space, model: &Model) -> Result<()> {
    let mut seen = BTreeMap::new();
    for kind in ["agents", "workflows", "stepruns", "documents", "memories"] {
        seen.insert(kind.to_owned(), space.get(&space.ours(kind)).await?.to_string());
    }
    for kind in ["events", "pods"] {
        seen.insert(kind.to_owned(), space.get(&space.core(kind)).await?.to_string());
    }
    let jobs = format!("/apis/batch/v1/namespaces/{}/jobs", space.namespace);
    seen.insert("jobs".to_owned(), space.get(&jobs).await?.to_string());
    let pods = space.until("the pods of all", PATIENCE, Some("all"), async || {
        let pods = space.pods("all").await?;
        Ok((!pods.is_empty()).then_some(pods))
    });
    for pod in pods.await? {
        let name = pod.metadata.name.unwrap_or_default();
        let log = space.log(&name).await?;
        ensure!(log.contains("prompt: turn 1") || log.contains("prompt: the endpoint answered"), "{name}: {log}");
        seen.insert(format!("log of {name}"), log);
    }
    for (what, text) in &seen {
        ensure!(!text.contains(KEY), "the key is in {what}: {text}");
    }
    ensure!(model.shown().is_empty(), "the key is in a list of processes: {:?}", model.shown());
    Ok(())
}
