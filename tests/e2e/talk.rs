//! What an agent is told of what was before, and what it says of itself: history, journal, usage, actions.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lockstep::api::StepRun;
use lockstep::api::step_run::{GateState, JournalState, StepRunStatus};
use lockstep::api::workflow::{Phase, SessionPhase};
use serde_json::{Value, json};

use crate::support::{APPROVER, PATIENCE, Space, context, pod_template};

/// Gives its context as its output.
const TELL: &str = "cp $LOCKSTEP_IN/context.json $LOCKSTEP_OUT/result.json";

fn status(step_run: &StepRun) -> StepRunStatus {
    step_run.status.clone().unwrap_or_default()
}

fn output(step_run: &StepRun) -> Result<Value> {
    let report = status(step_run).agent.and_then(|agent| agent.report).context("no report")?;
    Ok(serde_json::from_str(&report.output.context("no output")?)?)
}

async fn done(space: &Space, run: &str, path: &str) -> Result<StepRun> {
    space.step(run, path, "it is done", |s| s.phase == Some(Phase::Completed)).await
}

/// Kind and text of each entry.
fn said(context: &Value) -> Vec<(String, String)> {
    let entries = context["history"].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    entries.iter().map(|entry| (text(entry, "kind"), text(entry, "text"))).collect()
}

#[tokio::test]
async fn a_conversation_goes_on_in_the_next_run() -> Result<()> {
    let space = Space::open("talk").await?;
    let script = format!(
        "case $ATTEMPT in 1) echo '{{}}' > $LOCKSTEP_OUT/result.json; exit 0;; 2) exit 3;; esac; {TELL}\n\
         lockstep history > $LOCKSTEP_WORK/page; cat $LOCKSTEP_WORK/page"
    );
    let more = json!({"retry": {"maxAttempts": 1, "initialBackoffSeconds": 1}});
    space.agent("writer", &script, &more).await?;
    let gate = json!({"onReject": "Revise"});
    let step = json!({"name": "draft", "agentId": "writer", "parameters": {"depth": 2}, "gate": gate});
    let spec = json!({"session": "bikes", "steps": [step]});
    space.run("first", &spec).await?;
    // A rejection with a comment, a failure, an order with advice, and then an acceptance with a word.
    let waits = space.gate("first", "draft").await?;
    let no = json!({"lockstep.dev/decision": "rejected", "lockstep.dev/comment": "shorter, please"});
    space.annotate(APPROVER, &waits, &no).await?;
    let asks = space.step("first", "draft", "it asks", |s| s.waiting_for.is_some()).await?;
    let retry = json!({"lockstep.dev/action": "retry", "lockstep.dev/comment": "exit with 0"});
    space.annotate(APPROVER, &asks, &retry).await?;
    let again =
        |s: &StepRunStatus| s.attempt == 3 && s.gate.as_ref().is_some_and(|gate| gate.state == GateState::Waiting);
    let waits = space.step("first", "draft", "it waits again", again).await?;
    let told = context(&output(&waits)?.to_string())?;
    let kinds: Vec<String> = said(&told).into_iter().map(|(kind, text)| format!("{kind}: {text}")).collect();
    ensure!(
        kinds.len() == 4
            && kinds[0] == "comment: shorter, please"
            && kinds[1].starts_with("fault: ")
            && kinds[2] == "action: retry"
            && kinds[3] == "guidance: exit with 0",
        "{kinds:?}"
    );
    for entry in told["history"].as_array().context("no history")? {
        let person = entry["kind"] != "fault";
        ensure!(entry["at"].is_string() && (entry["by"] == APPROVER) == person, "{entry}");
    }
    let pods = space.pods("first").await?;
    let third =
        pods.iter().find(|pod| crate::support::label(&pod.metadata, "attempt") == "3").context("no third pod")?;
    let log = space.log(third.metadata.name.as_deref().unwrap_or_default()).await?;
    ensure!(log.contains("shorter, please") && log.contains("\"cursor\":null"), "{log}");
    // In a second round a decision says which output was reviewed.
    let review = waits.status.as_ref().and_then(|s| s.gate.as_ref()).context("no gate")?.output_digest.clone();
    let yes =
        json!({"lockstep.dev/decision": "accepted", "lockstep.dev/comment": "good", "lockstep.dev/review": review});
    space.annotate(APPROVER, &waits, &yes).await?;
    let first = done(&space, "first", "draft").await?;
    let digest = status(&first).result.context("no result")?.digest;

    // The next run of the session is told in a line what was asked and given, and what people said; a stranger is not.
    space.agent("teller", TELL, &json!({})).await?;
    let tell = |agent: &str| json!([{"name": "tell", "agentId": agent}]);
    space.run("stranger", &json!({"session": "bikes", "steps": tell("teller")})).await?;
    let stranger = context(&output(&done(&space, "stranger", "tell").await?)?.to_string())?;
    ensure!(said(&stranger).is_empty(), "another agent is told nothing: {stranger}");
    let step = json!({"name": "tell", "agentId": "teller", "parameters": {"n": 7}});
    space.run("second", &json!({"session": "bikes", "steps": [step]})).await?;
    let second = context(&output(&done(&space, "second", "tell").await?)?.to_string())?;
    let of = &second["history"][0]["of"];
    ensure!(of["workflow"] == "stranger" && of["path"] == "tell", "{second}");
    ensure!(second["history"][1]["kind"] == "gave" && second["history"][1]["digest"].is_string(), "{second}");
    space.run("private", &json!({"steps": tell("teller")})).await?;
    let private = context(&output(&done(&space, "private", "tell").await?)?.to_string())?;
    ensure!(said(&private).is_empty(), "a private session has no other runs: {private}");
    ensure!(!digest.is_empty());
    space.close().await
}

#[tokio::test]
async fn journal_and_usage_are_kept() -> Result<()> {
    let space = Space::open("journal").await?;
    let script = r#"lockstep journal busy && lockstep journal busy || exit 9
        lockstep usage --tokens-in 100 --tokens-out 10 --cost 0.1 --model small || exit 8
        if test $ATTEMPT = 1; then lockstep journal failed no luck; fi
        lockstep usage --tokens-in 50 --cost 0.2 --model large || exit 8
        lockstep usage --tokens-in -1 2>/dev/null && exit 7
        lockstep journal completed all is written || exit 6
        lockstep journal busy 2>/dev/null && exit 5
        printf '["%s", "%s", "%s"]' "$SESSION_ID" "$S3_BUCKET_NAME" "$DDB_TABLE_NAME" > $LOCKSTEP_OUT/result.json"#;
    let mut template = pod_template(script);
    template["spec"]["containers"][0]["env"] =
        json!([{"name": "S3_BUCKET_NAME", "value": "bucket"}, {"name": "DDB_TABLE_NAME", "value": "table"}]);
    let more = json!({"template": template, "retry": {"maxAttempts": 2, "initialBackoffSeconds": 1}});
    space.agent("clerk", script, &more).await?;
    space.run("run", &json!({"session": "ported", "steps": [{"name": "work", "agentId": "clerk"}]})).await?;
    let work = done(&space, "run", "work").await?;
    ensure!(output(&work)? == json!(["ported", "bucket", "table"]), "{:?}", output(&work));
    let found = status(&work);
    ensure!(found.attempts.len() == 2 && found.attempts[0].message.as_deref() == Some("no luck"), "{found:?}");
    let journal = found.agent.as_ref().and_then(|agent| agent.journal.clone()).context("no journal")?;
    ensure!(journal.attempt == 2 && journal.state == JournalState::Completed, "{journal:?}");
    let used: Vec<String> = found.attempts.iter().filter_map(|a| a.usage.as_ref()).map(ToString::to_string).collect();
    let each = ["100 tokens in, 10 out, cost 0.1 (small)", "150 tokens in, 10 out, cost 0.3 (small, large)"];
    ensure!(used == each, "{used:?}");
    let total = "250 tokens in, 20 out, cost 0.4 (small, large)";
    ensure!(found.usage.map(|usage| usage.to_string()).as_deref() == Some(total));
    let run = space.phase("run", Phase::Completed).await?;
    ensure!(run.usage.map(|usage| usage.to_string()).as_deref() == Some(total));
    ensure!(run.session.is_some_and(|session| session.id == "ported" && session.phase == SessionPhase::Completed));
    // Completed is a word: without a valid output it counts for nothing.
    let schema = json!({"outputSchema": {"type": "object"}, "retry": {"maxAttempts": 1}});
    space.agent("boaster", "lockstep journal completed", &schema).await?;
    space.run("boast", &json!({"onFailure": "Fail", "steps": [{"name": "work", "agentId": "boaster"}]})).await?;
    space.phase("boast", Phase::Failed).await?;
    let boast = status(&space.step_run("boast", "work").await?.context("no StepRun")?);
    ensure!(boast.agent.and_then(|agent| agent.journal).is_some_and(|journal| journal.state == JournalState::Failed));
    space.close().await
}

#[tokio::test]
async fn an_agent_that_says_nothing_is_seen_to_start() -> Result<()> {
    let space = Space::open("silent").await?;
    space.agent("sleeper", "sleep 5", &json!({})).await?;
    space.run("run", &json!({"steps": [{"name": "work", "agentId": "sleeper"}]})).await?;
    let claimed = |s: &StepRunStatus| s.agent.as_ref().is_some_and(|agent| agent.claim.is_some());
    let agent = status(&space.step("run", "work", "it is claimed", claimed).await?).agent.context("no claim")?;
    let (claim, progress) = (agent.claim.context("no claim")?, agent.progress.context("no progress")?);
    let late = progress.at.0.duration_since(claim.at.0);
    ensure!(late.unsigned_abs() <= Duration::from_secs(1), "{late} after the claim");
    ensure!(agent.journal.is_some_and(|journal| journal.state == JournalState::Busy));
    space.phase("run", Phase::Completed).await?;
    space.close().await
}

#[tokio::test]
async fn the_action_of_an_agent_picks_what_follows() -> Result<()> {
    let space = Space::open("action").await?;
    space.apply("routing", &["agents.yaml", "workflow-template.yaml"]).await?;
    let ways = [
        ("letter", "A letter to the customer", "write", "hand-over"),
        ("bill", "An invoice of last year", "hand-over", "write"),
    ];
    for (run, input, _, _) in ways {
        space.run(run, &json!({"templateRef": {"name": "request"}, "input": input})).await?;
    }
    for (run, _, ran, skipped) in ways {
        space
            .until(&format!("{run} is over"), PATIENCE, Some(run), async || {
                Ok((space.status(run).await?.phase == Some(Phase::Completed)).then_some(()))
            })
            .await?;
        let found = space.status(run).await?;
        let phase = |path: &str| found.steps.iter().find(|step| step.path == path).map(|step| step.phase);
        ensure!(phase(ran) == Some(Phase::Completed) && phase(skipped) == Some(Phase::Skipped), "{found:?}");
    }
    space.close().await
}

/// Each line says when it was written, by the clock of the machine, which is that of whoever reads it.
const TICKS: &str =
    "for i in 1 2 3 4 5 6 7; do echo tick $(cut -d ' ' -f 1 /proc/uptime); sleep 1; done; lockstep progress 100 done";

#[tokio::test]
async fn logs_are_followed_and_kept() -> Result<()> {
    let space = Space::open("logs").await?;
    space.agent("ticker", TICKS, &json!({})).await?;
    space
        .agent(
            "failing",
            "echo attempt $ATTEMPT; exit $((2 - ATTEMPT))",
            &json!({"retry": {"initialBackoffSeconds": 1}}),
        )
        .await?;
    let steps = json!([{"name": "tick", "agentId": "ticker"}, {"name": "again", "agentId": "failing"}]);
    space.run("run", &json!({"steps": steps})).await?;
    // Before anything has started: it waits, and ends with the run.
    let ns = &space.namespace;
    let follow = format!(
        "timeout 90 kubectl lockstep -n {ns} logs run -f | while read -r line; do echo \"$line $(cut -d ' ' -f 1 /proc/uptime)\"; done"
    );
    let followed = crate::causes::shell(&follow).await?;
    let mut late = Vec::new();
    for line in followed.lines().filter(|line| line.starts_with("[tick] tick ")) {
        let times: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [written, read] = times[..] else { anyhow::bail!("{line}") };
        late.push(read - written);
    }
    ensure!(late.len() == 7, "{followed}");
    // Other tests keep the machine busy now and then; a line that waits for the next one would be late each time.
    late.sort_by(f64::total_cmp);
    ensure!(late[3] < 1.0, "seconds from the writing of a line to its reading: {late:.2?}");
    println!("seconds from the writing of a line to its reading: {late:.2?}");
    for attempt in ["[again] attempt 1 ", "[again] attempt 2 "] {
        ensure!(followed.lines().any(|line| line.starts_with(attempt)), "{followed}");
    }
    space.phase("run", Phase::Completed).await?;
    // From the pod, or from what is kept of it: the same lines, and the one before.
    let of = async |words: &str| crate::causes::shell(&format!("kubectl lockstep -n {ns} logs {words} 2>&1")).await;
    ensure!(of("run/again").await?.contains("attempt 2\n"), "the newest");
    ensure!(of("run/again --previous").await?.contains("attempt 1\n"), "the one before");
    for pod in space.pods("run").await? {
        space
            .kubectl(&format!("delete pod --ignore-not-found --wait {}", pod.metadata.name.unwrap_or_default()))
            .await?;
    }
    let kept = of("run/tick").await?;
    ensure!(kept.contains("run/tick attempt 1: its pod is gone") && kept.matches("tick ").count() >= 3, "{kept}");
    let nobody = of("run/tick --as nobody").await;
    ensure!(nobody.is_err(), "by the caller's rights: {nobody:?}");
    space.close().await
}
