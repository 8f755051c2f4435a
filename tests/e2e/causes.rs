//! Every way in which an attempt can fail, by its real cause: what the agent does, what the cluster does to its pod. Each
//! shows its class and its words in the StepRun, in an event and to `kubectl get`; and the command that a wait names is
//! run as it stands.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use lockstep::api::StepRun;
use lockstep::api::step_run::{AttemptResult, StepRunStatus, WaitKind};
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Space, ask, condition, pod_template};

/// So that a budget is spent in seconds.
const HASTY: &str = r#"{"maxAttempts": 1, "initialBackoffSeconds": 1, "maxBackoffSeconds": 1}"#;

pub fn hasty() -> Value {
    serde_json::from_str(HASTY).unwrap_or_default()
}

fn one_step(agent: &str) -> Value {
    json!({"steps": [{"name": "only", "agentId": agent}]})
}

/// What a person's shell does with a line.
pub async fn shell(line: &str) -> Result<String> {
    let line = line.to_owned();
    let done = tokio::task::spawn_blocking(move || Command::new("sh").args(["-c", &line]).output()).await??;
    let told = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{}: {told}", done.status);
    Ok(told)
}

impl Space {
    pub async fn kubectl(&self, words: &str) -> Result<String> {
        shell(&format!("kubectl -n {} {words}", self.namespace)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        ask(&self.admin, Method::PATCH, path, Some(body)).await.with_context(|| format!("PATCH {path}"))
    }

    /// Another template for an Agent, which the next attempt reads, with all the time it wants to start.
    async fn mend(&self, agent: &str, template: &Value) -> Result<()> {
        // A merge patch keeps what it does not name: the node selector goes by name.
        let mut template = template.clone();
        template["spec"]["nodeSelector"] = Value::Null;
        self.patch(
            &self.ours(&format!("agents/{agent}")),
            &json!({"spec": {"template": template, "startTimeoutSeconds": 600}}),
        )
        .await?;
        Ok(())
    }

    /// Until an event about an object says so.
    pub async fn event(&self, about: &str, reason: &str, words: &[&str]) -> Result<()> {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace);
        self.until(&format!("event {reason} of {about} with {words:?}"), PATIENCE, None, async || {
            let list = self.get(&path).await?;
            let found = list["items"].as_array().into_iter().flatten().any(|event| {
                let note = event["note"].as_str().unwrap_or_default();
                event["regarding"]["name"] == about
                    && event["reason"] == reason
                    && words.iter().all(|word| note.contains(word))
            });
            Ok(found.then_some(()))
        })
        .await
    }

    pub async fn only(&self, run: &str, what: &str, wanted: impl Fn(&StepRunStatus) -> bool) -> Result<StepRun> {
        self.step(run, "only", what, wanted).await
    }

    /// The row of a step in `kubectl get stepruns -o wide`.
    pub async fn row(&self, step_run: &str) -> Result<String> {
        let table = self.kubectl("get stepruns -o wide").await?;
        let row = table.lines().find(|line| line.starts_with(step_run));
        row.map(str::to_owned).with_context(|| format!("no row of {step_run}: {table}"))
    }

    /// The newest pod of a run, once there is one that is as wanted.
    async fn pod(&self, run: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Result<Pod> {
        self.until(&format!("a pod of {run} that {what}"), PATIENCE, Some(run), async || {
            Ok(self.pods(run).await?.into_iter().find(|pod| wanted(pod)))
        })
        .await
    }

    /// Runs the first command of a wait as it stands.
    pub async fn obey(&self, step_run: &StepRun) -> Result<()> {
        let waiting = step_run.status.as_ref().and_then(|s| s.waiting_for.as_ref()).context("waits for nothing")?;
        let command = waiting.commands.first().context("no command")?;
        shell(command).await.with_context(|| command.clone())?;
        Ok(())
    }
}

fn name(step_run: &StepRun) -> &str {
    step_run.metadata.name.as_deref().unwrap_or_default()
}

fn status(step_run: &StepRun) -> StepRunStatus {
    step_run.status.clone().unwrap_or_default()
}

struct Case {
    name: &'static str,
    /// Of the first attempt; every other one succeeds.
    script: &'static str,
    more: Value,
    class: AttemptResult,
    words: &'static str,
    /// What its command exits with, where that is no matter of chance; 143 where the shim ends it.
    code: Option<i32>,
}

fn cases() -> Vec<Case> {
    use AttemptResult as R;
    let case = |name, script, more, class, words| {
        let code = match name {
            "exits" => Some(7),
            "killed" => Some(137),
            "hopeless" => Some(42),
            "slow" | "silent" => Some(143),
            "wrong" | "large" => Some(0),
            _ => None,
        };
        Case { name, script, more, class, words, code }
    };
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let silent = "lockstep progress 10 begun; sleep 2; lockstep context /version; sleep 2; lockstep version; sleep 600";
    vec![
        case("exits", "echo no luck; exit 7", json!({}), R::Retryable, "the agent exited with 7"),
        case("killed", "kill -9 0", json!({}), R::Retryable, "the agent exited with 137"),
        case("hopeless", "exit 42", json!({"exitCodes": {"unrecoverable": [42]}}), R::Unrecoverable, "exited with 42"),
        // The limits hold for the second attempt too, which is to end before them.
        case("slow", "sleep 600", json!({"timeoutSeconds": 10}), R::Timeout, "ended by the shim after 10 s"),
        case(
            "silent",
            silent,
            json!({"progressTimeoutSeconds": 10}),
            R::Timeout,
            "no call for 10 s (progressTimeoutSeconds)",
        ),
        case(
            "wrong",
            "echo '{\"n\": \"x\"}' > $LOCKSTEP_OUT/result.json; exit 0",
            json!({"outputSchema": schema}),
            R::InvalidOutput,
            "/n: ",
        ),
        case(
            "large",
            "(printf '\"'; head -c 530000 /dev/zero | tr '\\0' x; printf '\"') > $LOCKSTEP_OUT/result.json; exit 0",
            json!({}),
            R::OutputTooLarge,
            "result.json has 530002 bytes, the limit is 524288",
        ),
        case("quits", "lockstep fail --retryable come back later", json!({}), R::Retryable, "come back later"),
    ]
}

#[tokio::test]
async fn agents_fail_in_every_way() -> Result<()> {
    let space = Space::open("agents").await?;
    let cases = cases();
    for case in &cases {
        let script = format!(
            "[ $ATTEMPT = 1 ] || {{ echo '{{\"n\": 1}}' > $LOCKSTEP_OUT/result.json; exit 0; }}\n{}",
            case.script
        );
        let mut more = case.more.clone();
        more["retry"] = hasty();
        space.agent(case.name, &script, &more).await?;
        space.run(case.name, &one_step(case.name)).await?;
    }
    // Silence is counted from the last call, of whatever kind.
    let talks = "for i in $(seq 20); do sleep 1; lockstep context /version; done";
    space.agent("talks", talks, &json!({"progressTimeoutSeconds": 15})).await?;
    space.run("talks", &one_step("talks")).await?;
    for case in &cases {
        fails_and_goes_on(&space, case).await.with_context(|| case.name)?;
    }
    space.phase("talks", Phase::Completed).await?;
    space.assert_exactly_once("talks", 1).await?;
    space.close().await
}

async fn fails_and_goes_on(space: &Space, case: &Case) -> Result<()> {
    let class = case.class.to_string();
    let fatal = matches!(case.class, AttemptResult::Unrecoverable | AttemptResult::OutputTooLarge);
    let wanted = if fatal { Phase::Failed } else { Phase::WaitingForInput };
    let run = space.phase(case.name, wanted).await?;
    let step_run = space.only(case.name, "its error", |s| s.error.is_some()).await?;
    let status = status(&step_run);
    let error = status.error.context("no error")?;
    ensure!(error.class == case.class && error.message.contains(case.words) && error.attempt == 1, "{error:?}");
    ensure!(error.log_tail.as_ref().is_some_and(|tail| tail.contains("STARTED only 1")), "{error:?}");
    ensure!(status.attempts.len() == 1 && status.attempts[0].result == case.class);
    let codes = (status.attempts[0].exit_code, error.exit_code);
    ensure!(case.code.is_none() || codes == (case.code, case.code), "{codes:?}");
    space.event(name(&step_run), "AttemptFailed", &["attempt 1", &class, case.words]).await?;
    let row = space.row(name(&step_run)).await?;
    ensure!(row.contains(&class) && row.contains(&wanted.to_string()), "{row}");
    if fatal {
        let (reason, message) = condition(&run, "Succeeded")?;
        ensure!(reason == class && message.contains("only"), "{reason}: {message}");
        space.event(case.name, "Failed", &[&class, case.words]).await?;
        return Ok(());
    }
    ensure!(status.waiting_for.is_some_and(|w| w.kind == WaitKind::RetriesSpent && w.question.contains(case.words)));
    space.obey(&step_run).await?;
    space.phase(case.name, Phase::Completed).await?;
    let done = space.only(case.name, "two attempts", |s| s.attempts.len() == 2).await?.status.context("status")?;
    ensure!(done.error.is_none() && done.guidance.len() == 1 && done.attempts[1].result == AttemptResult::Succeeded);
    Ok(())
}

fn nowhere() -> Value {
    let mut template = pod_template("true");
    template["spec"]["nodeSelector"] = json!({"lockstep.dev/e2e": "nowhere"});
    template
}

fn absent() -> Value {
    let mut template = pod_template("true");
    template["spec"]["containers"][0]["image"] = json!("localhost/no-such-image:none");
    template["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    template
}

/// The shim claims, and then cannot lay out the input: it ends between claim and start.
fn unwritable() -> Value {
    let mut template = pod_template("true");
    template["spec"]["volumes"] = json!([{"name": "full", "emptyDir": {}}]);
    let mount = json!({"name": "full", "mountPath": "/lockstep/in", "readOnly": true});
    template["spec"]["containers"][0]["volumeMounts"] = json!([mount]);
    template
}

#[tokio::test]
async fn the_cluster_fails_in_every_way() -> Result<()> {
    let space = Space::open("cluster").await?;
    let agent =
        |seconds: i32, template: Value| json!({"template": template, "startTimeoutSeconds": seconds, "retry": hasty()});
    let agents = [
        ("unwritable", agent(600, unwritable())),
        ("evicted", agent(600, nowhere())),
        ("jobless", agent(600, nowhere())),
        ("unplaced", agent(10, nowhere())),
        ("absent", agent(20, absent())),
    ];
    let start = async |(agent, spec): &(&str, Value)| {
        space.agent(agent, "", spec).await?;
        space.run(agent, &one_step(agent)).await
    };
    for agent in &agents[..3] {
        start(agent).await?;
    }
    evict(&space, "evicted", |_| true).await?;
    let job = async || Ok(space.jobs("jobless").await?.pop().and_then(|j| j.metadata.name));
    let job = space.until("a Job", PATIENCE, Some("jobless"), job).await?;
    space.kubectl(&format!("delete job {job} --wait=false")).await?;
    for (run, words) in [("evicted", "its pod is gone"), ("jobless", "the Job was deleted")] {
        lost_before_the_claim(&space, run, &["before the agent started", words]).await.with_context(|| run)?;
        // The attempt that waits is started anew.
        space.mend(run, &pod_template("true")).await?;
    }
    // These lose one attempt after another until they are mended, so they begin when they are looked at.
    for (agent, words) in [
        (&agents[3], ["not started within 10 s", "node(s) didn't match"]),
        (&agents[4], ["not started within 20 s", "no-such-image"]),
    ] {
        start(agent).await?;
        let run = agent.0;
        let lost = lost_before_the_claim(&space, run, &words).await.with_context(|| run)?;
        let row = space.row(name(&lost)).await?;
        ensure!(row.contains("Infrastructure") && row.contains("Running"), "{row}");
        space.mend(run, &pod_template("true")).await?;
    }
    // One loss after another, until a person is asked.
    let asking = space.only("unwritable", "it asks", |s| s.waiting_for.is_some()).await?;
    let status = status(&asking);
    ensure!(status.waiting_for.as_ref().is_some_and(|w| w.kind == WaitKind::InfrastructureSpent), "{status:?}");
    let (attempts, claim) = (&status.attempts, status.agent.as_ref().and_then(|a| a.claim.as_ref()));
    ensure!(attempts.len() == 6 && attempts.iter().all(|a| a.result == AttemptResult::Infrastructure), "{attempts:?}");
    ensure!(claim.is_some_and(|c| c.attempt == 6) && attempts.iter().all(|a| a.started_at.is_some()), "{attempts:?}");
    space.event(name(&asking), "AttemptFailed", &["attempt 6", "Infrastructure", "ended without a report"]).await?;
    space.mend("unwritable", &mended_mount()).await?;
    space.obey(&asking).await?;
    for (run, _) in &agents {
        space.phase(run, Phase::Completed).await?;
        ensure!(space.only(run, "no error", |s| s.error.is_none()).await?.status.is_some());
    }
    space.close().await
}

fn mended_mount() -> Value {
    let mut template = pod_template("true");
    template["spec"]["volumes"] = Value::Null;
    template
}

/// Nothing was claimed, so the cluster is at fault, and the next attempt follows by itself.
async fn lost_before_the_claim(space: &Space, run: &str, words: &[&str]) -> Result<StepRun> {
    // The first attempt may end before a busy scheduler or kubelet has said why; the budget has room for another.
    let told = |s: &StepRunStatus| {
        s.attempts.iter().any(|a| {
            let message = a.message.as_deref().unwrap_or_default();
            a.result == AttemptResult::Infrastructure && words.iter().all(|word| message.contains(word))
        })
    };
    let lost = space.only(run, &format!("an attempt that says {words:?}"), told).await?;
    let seen = status(&lost);
    ensure!(seen.waiting_for.is_none() && seen.counts.retryable == 0, "{seen:?}");
    ensure!(seen.attempts[0].started_at.is_none(), "nothing was claimed");
    let mut told = vec!["Infrastructure"];
    told.extend(words);
    space.event(name(&lost), "AttemptFailed", &told).await?;
    Ok(lost)
}

async fn evict(space: &Space, run: &str, wanted: impl Fn(&Pod) -> bool) -> Result<()> {
    let pod = space.pod(run, "can be evicted", wanted).await?;
    let pod = pod.metadata.name.context("no name")?;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
    space.post(&space.core(&format!("pods/{pod}/eviction")), &eviction).await?;
    Ok(())
}

#[tokio::test]
async fn a_quota_is_waited_for() -> Result<()> {
    let space = Space::open("quota").await?;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
        "spec": {"hard": {"count/jobs.batch": "0"}}});
    space.post(&space.core("resourcequotas"), &quota).await?;
    space.agent("worker", "true", &json!({"retry": {"initialBackoffSeconds": 5, "maxBackoffSeconds": 5}})).await?;
    // A quota counts once its controller has looked.
    space
        .until("the quota stands", PATIENCE, None, async || {
            let found = space.get(&space.core("resourcequotas/none")).await?;
            Ok(found["status"]["hard"].is_object().then_some(()))
        })
        .await?;
    space.run("poor", &one_step("worker")).await?;
    let refused = |s: &StepRunStatus| s.attempts.first().is_some_and(|a| a.result == AttemptResult::Infrastructure);
    let refused = space.only("poor", "its Job is refused", refused).await?;
    let message = status(&refused).attempts[0].message.clone().unwrap_or_default();
    ensure!(message.contains("exceeded quota: none"), "{message}");
    space.event(name(&refused), "AttemptFailed", &["Infrastructure", "exceeded quota: none"]).await?;
    ensure!(space.row(name(&refused)).await?.contains("Infrastructure") && space.jobs("poor").await?.is_empty());
    space.kubectl("delete resourcequota none").await?;
    space.phase("poor", Phase::Completed).await?;
    space.close().await
}

#[tokio::test]
async fn pods_that_go_after_the_claim() -> Result<()> {
    let space = Space::open("gone").await?;
    // Neither a plain signal nor the grace of a kubelet that hurries lets the first say anything.
    let deaf = "[ $ATTEMPT -gt 1 ] || { trap '' TERM; echo READY; sleep 600; }";
    space.agent("deaf", deaf, &json!({"retry": hasty()})).await?;
    let more = json!({"retry": {"maxAttempts": 2, "initialBackoffSeconds": 1}});
    space.agent("polite", "[ $ATTEMPT -gt 1 ] || { echo READY; sleep 600; }", &more).await?;
    for agent in ["deaf", "polite"] {
        space.run(agent, &one_step(agent)).await?;
    }
    let started = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    for agent in ["deaf", "polite"] {
        space.claimed(agent, "only").await?;
        let pod = space.pod(agent, "runs", started).await?.metadata.name.unwrap_or_default();
        space.says(&pod, "READY").await?;
    }
    evict(&space, "polite", started).await?;
    let pod = space.pod("deaf", "runs", started).await?.metadata.name.context("no name")?;
    let now = json!({"gracePeriodSeconds": 0});
    ask(&space.admin, Method::DELETE, &space.core(&format!("pods/{pod}")), Some(&now)).await?;

    let asking = space.only("deaf", "it asks", |s| s.waiting_for.is_some()).await?;
    let seen = status(&asking);
    ensure!(seen.waiting_for.as_ref().is_some_and(|w| w.kind == WaitKind::OutcomeUnknown), "{seen:?}");
    let error = seen.error.context("no error")?;
    ensure!(error.class == AttemptResult::OutcomeUnknown && error.message.contains(&pod), "{error:?}");
    space.event(name(&asking), "AttemptFailed", &["OutcomeUnknown", "deleted or evicted before it reported"]).await?;
    ensure!(space.row(name(&asking)).await?.contains("OutcomeUnknown"));
    space.phase("deaf", Phase::WaitingForInput).await?;
    ensure!(space.pods("deaf").await?.is_empty(), "nothing starts before the answer");
    space.obey(&asking).await?;
    space.phase("deaf", Phase::Completed).await?;

    // Asked to go, the shim still reports: what it did is known, and that it had to go was the cluster's doing.
    space.phase("polite", Phase::Completed).await?;
    let done = status(&space.only("polite", "two attempts", |s| s.attempts.len() == 2).await?);
    ensure!(
        done.attempts[0].result == AttemptResult::Infrastructure && done.attempts[0].exit_code == Some(143),
        "{done:?}"
    );
    space.close().await
}
