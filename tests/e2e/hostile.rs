//! A hostile agent in a real pod: all that it tries from there comes to nothing, and so does all that its author tries elsewhere
//! with the token of its pod. The gateway's log has a line for it.

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use lockstep::api::StepRun;
use lockstep::api::step_run::{AttemptResult, GateState, StepRunStatus};
use lockstep::api::workflow::Phase;
use lockstep::protocol::{self, AttemptRef, memory};
use serde_json::{Value, json};

use crate::claims::{Gateway, gateway};
use crate::support::{APPROVER, SYSTEM, Space, component};

/// It keeps something in its memory, and works on until somebody answers.
const VICTIM: &str = r#"lockstep memory set treasure '"gold"'
    answer=$(lockstep ask 'Enough?' --wait 5m)
    test "$(lockstep memory get treasure)" = gold || exit 1
    echo "\"$answer\"" > $LOCKSTEP_OUT/result.json"#;

/// Whatever it tries says what came of it; then it hands its token to its author, by its log.
const HOSTILE: &str = r#"
    tried() { echo "TRIED $1 $2"; }
    lockstep memory get treasure; tried memory $?
    lockstep document get plans; tried document $?
    lockstep document get plans --scope Session; tried session $?
    lockstep request-approval 'send it' --gate theirs; tried gate $?
    token=$(cat /var/run/secrets/lockstep.dev/token)
    echo "TOKEN $token"
    i=0; while [ $i -lt 200 ]; do i=$((i+1)); wget -q -O /dev/null --post-data '{"percent": 1}' $LOCKSTEP_URL/progress & done; wait
    answer=$(lockstep ask 'More?' --wait 5m)
    echo "\"$answer\"" > $LOCKSTEP_OUT/result.json"#;

/// Every call of the protocol, with a body that its attempt may send.
fn calls() -> Vec<(&'static str, Value)> {
    vec![
        (protocol::CLAIM, json!({"shimVersion": "0"})),
        (protocol::DOCUMENT, json!({"name": "x"})),
        (protocol::CHECK, json!({"output": {"result": "1", "document": null}})),
        (protocol::PROGRESS, json!({"percent": 99, "message": "forged"})),
        (protocol::USAGE, json!({"tokensIn": 10, "tokensOut": 2, "models": []})),
        (protocol::HISTORY, json!({})),
        (protocol::ENDED, json!({})),
        (
            protocol::REPORT,
            json!({"ending": {"kind": "exited", "code": 0}, "output": {"result": "1", "document": null}, "logTail": ""}),
        ),
        (protocol::ASK, json!({"questions": [{"question": "forged?"}]})),
        (protocol::APPROVAL, json!({"action": "forged", "payload": "1", "id": "11111111111111111111111111111111"})),
        (protocol::DOCUMENTS, json!({"kind": "list"})),
        (memory::PATH, json!({"operation": {"kind": "get", "key": "treasure"}})),
    ]
}

fn status(step_run: &StepRun) -> StepRunStatus {
    step_run.status.clone().unwrap_or_default()
}

fn waits(s: &StepRunStatus) -> bool {
    s.agent.as_ref().is_some_and(|agent| agent.claim.is_some()) && s.waiting_for.is_some()
}

/// The attempt of a StepRun, as somebody names it who does not know the id of its claim.
fn named(space: &Space, of: &StepRun) -> Result<AttemptRef> {
    Ok(AttemptRef {
        namespace: space.namespace.clone(),
        step_run: of.metadata.name.clone().context("a name")?,
        uid: of.metadata.uid.clone().context("a UID")?,
        attempt: 1,
        id: "0123456789abcdef0123456789abcdef".to_owned(),
    })
}

async fn call(gateway: &Gateway, token: &str, attempt: &AttemptRef, path: &str, body: &Value) -> Result<(u16, String)> {
    let (agent, url) = (gateway.agent.clone(), format!("{}{path}", gateway.url));
    let (token, headers, body) = (token.to_owned(), attempt.headers(), body.clone());
    tokio::task::spawn_blocking(move || {
        let mut call = agent.post(&url).header("Authorization", format!("Bearer {token}"));
        for (name, value) in headers {
            call = call.header(name, value);
        }
        let mut answer = call.send_json(&body).with_context(|| url.clone())?;
        Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
    })
    .await?
}

/// The API server, to whoever holds nothing but this token.
async fn bearer(token: &str) -> Result<Client> {
    let file = Kubeconfig::read_from(std::env::var("KUBECONFIG")?)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.auth_info = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
    Ok(Client::try_from(config)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_agent_and_its_author_with_its_token_get_nothing() -> Result<()> {
    // A refusal is asked for at one gateway, so nobody kills it meanwhile.
    let _lock = crate::restart::KILLING.lock().await;
    let space = Space::open("hostile").await?;
    space.agent("planner", "echo '# Secret' > $LOCKSTEP_OUT/plans.md", &json!({})).await?;
    space.agent("victim", VICTIM, &json!({"timeoutSeconds": 600})).await?;
    space.agent("hostile", HOSTILE, &json!({"timeoutSeconds": 600, "retry": {"maxAttempts": 1}})).await?;
    let steps = json!([{"name": "plan", "agentId": "planner", "produces": {"type": "plans"}}, {"name": "work", "agentId": "victim"}]);
    space.run("theirs", &json!({"session": "theirs", "steps": steps})).await?;
    let victim = space.step("theirs", "work", "it waits in its pod", waits).await?;
    let step = json!({"name": "work", "agentId": "hostile", "gate": {}});
    space.run("ours", &json!({"session": "ours", "steps": [step]})).await?;
    let hostile = space.step("ours", "work", "it has tried all and waits", waits).await?;

    let pods = space.pods("ours").await?;
    let pod = pods.first().context("a pod")?;
    let log = space.log(pod.metadata.name.as_deref().unwrap_or_default()).await?;
    let came: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("TRIED ")).collect();
    ensure!(came.len() == 4 && came.iter().all(|line| !line.ends_with(" 0")), "{came:?} in {log}");
    ensure!(!log.contains("gold") && !log.contains("Secret"), "{log}");
    let token = log.lines().find_map(|line| line.strip_prefix("TOKEN ")).context("the token of its pod")?;

    let door = gateway(pod)?;
    nothing_elsewhere(&space, &door, token, [&victim, &hostile]).await?;
    flooded(&space, &door, token, &victim).await?;
    leaves_lines(&space, &victim).await?;

    // Both go on as if nothing had been.
    for (run, of) in [("theirs", &victim), ("ours", &hostile)] {
        space.annotate(APPROVER, of, &json!({"lockstep.dev/answer": "yes"})).await.with_context(|| run.to_owned())?;
    }
    space.phase("theirs", Phase::Completed).await?;
    let gated = space.gate("ours", "work").await?;
    ensure!(status(&gated).gate.is_some_and(|gate| gate.state == GateState::Waiting), "nobody has decided");
    space.decide("ours", "work", "rejected").await?;
    space.phase("ours", Phase::Failed).await?;
    let end = space.step_run("ours", "work").await?.context("it is there")?;
    ensure!(status(&end).error.is_some_and(|error| error.class == AttemptResult::Rejected), "as a person decided");
    for run in ["theirs", "ours"] {
        let kept = space.step_run(run, "work").await?.context("it is there")?;
        let progress = status(&kept).agent.and_then(|agent| agent.progress);
        ensure!(!progress.is_some_and(|progress| progress.message.contains("forged")), "{run}: forged progress");
    }
    space.close().await
}

/// In the victim's name, in the name of its own attempt without the id of its claim, and at the API server.
async fn nothing_elsewhere(space: &Space, door: &Gateway, token: &str, [victim, hostile]: [&StepRun; 2]) -> Result<()> {
    for (whose, run, of, codes) in
        [("the victim's", "theirs", victim, [401, 403]), ("its own", "ours", hostile, [401, 409])]
    {
        let attempt = named(space, of)?;
        let version = async || {
            Ok::<_, anyhow::Error>(space.step_run(run, "work").await?.context("it is there")?.metadata.resource_version)
        };
        let before = version().await?;
        for (path, body) in calls() {
            let (code, answer) = call(door, token, &attempt, path, &body).await?;
            // How its container ended cannot be told yet, and its pod has just written progress.
            let is_early = [protocol::ENDED, protocol::PROGRESS].contains(&path) && run == "ours" && code == 503;
            ensure!(codes.contains(&code) || is_early, "{whose} {path}: {code} {answer}");
        }
        // Its own agent still tells progress meanwhile.
        ensure!(run == "ours" || version().await? == before, "{whose}: something was written");
    }
    let thief = bearer(token).await?;
    let letter = json!({"metadata": {"annotations": {"lockstep.dev/decision": "accepted"}}});
    let path = space.ours(&format!("stepruns/{}", hostile.metadata.name.clone().unwrap_or_default()));
    for (method, body) in [(Method::GET, None), (Method::PATCH, Some(&letter))] {
        let (code, words) = crate::support::refusal(crate::support::ask(&thief, method, &path, body).await)?;
        ensure!(code == 401, "{code} {words}");
    }
    Ok(())
}

/// A flood of them, and somebody honest beside it.
async fn flooded(space: &Space, door: &Gateway, token: &str, victim: &StepRun) -> Result<()> {
    space.agent("honest", "echo 1 > $LOCKSTEP_OUT/result.json", &json!({})).await?;
    let attempt = named(space, victim)?;
    let body = json!({"percent": 99, "message": "forged"});
    let flood = join_all((0..300).map(|_| call(door, token, &attempt, protocol::PROGRESS, &body)));
    let beside = async {
        space.run("beside", &json!({"steps": [{"name": "only", "agentId": "honest"}]})).await?;
        space.phase("beside", Phase::Completed).await
    };
    let (answers, done) = tokio::join!(flood, beside);
    done?;
    // Beyond so many of one address, connections are closed before anybody listens.
    let answered: Vec<(u16, String)> = answers.into_iter().filter_map(Result::ok).collect();
    ensure!(!answered.is_empty(), "nobody was answered at all");
    for (code, words) in answered {
        ensure!([401, 403, 429].contains(&code), "{code} {words}");
    }
    Ok(())
}

/// The gateways' logs tell of the attempts in the victim's name, with what is known of who made them and no secret, in a bounded number of lines.
async fn leaves_lines(space: &Space, victim: &StepRun) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(space.admin.clone(), SYSTEM);
    let name = victim.metadata.name.as_deref().unwrap_or_default();
    let mut lines = Vec::new();
    for gateway in component(&space.admin, "gateway").await? {
        let log = api.logs(gateway.metadata.name.as_deref().unwrap_or_default(), &LogParams::default()).await?;
        lines.extend(log.lines().filter(|line| line.contains("refused") && line.contains(name)).map(str::to_owned));
    }
    ensure!(!lines.is_empty() && lines.len() <= 120, "{} lines of 312 refused calls", lines.len());
    for line in &lines {
        let told: Value = serde_json::from_str(line).with_context(|| line.clone())?;
        ensure!(told.to_string().contains(&space.namespace), "{line}");
        ensure!(!line.contains("Bearer") && !line.contains("eyJ"), "a token in the log: {line}");
    }
    Ok(())
}
