//! The courses that a run can take: what people decide, stopping and going on, branches, large outputs, a second try.

use anyhow::{Context as _, Result, ensure};
use lockstep::api::StepRun;
use lockstep::api::step_run::{AttemptResult, GateState, StepRunStatus, WaitKind};
use lockstep::api::workflow::{Phase, WorkflowStatus};
use serde_json::{Value, json};

use crate::support::{APPROVER, HELD, PATIENCE, Space, condition, pod_template, refusal};

async fn status_of(space: &Space, run: &str, path: &str) -> Result<StepRunStatus> {
    let found = space.step_run(run, path).await?.with_context(|| format!("no StepRun {run}/{path}"))?;
    found.status.with_context(|| format!("no status of {path}"))
}

fn name(step_run: &StepRun) -> &str {
    step_run.metadata.name.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn people_reject_revise_and_answer() -> Result<()> {
    let space = Space::open("people").await?;
    let script = "lockstep context /previous/comments || true; echo '# Draft' > $LOCKSTEP_OUT/draft.md";
    space.agent("writer", script, &json!({})).await?;
    space.agent("reader", "lockstep context /parameters/word", &json!({})).await?;
    let draft =
        |gate: Value| json!({"name": "draft", "agentId": "writer", "gate": gate, "produces": {"type": "draft"}});
    space.run("refused", &json!({"steps": [draft(json!({}))]})).await?;
    space.run("revised", &json!({"steps": [draft(json!({"onReject": "Revise"}))]})).await?;
    let question = json!({"name": "word", "ask": {"question": "Which word?"}});
    let reader = json!({"name": "read", "agentId": "reader", "parameters": {"word": "${ steps.word.output }"}});
    space.run("asked", &json!({"steps": [question, reader]})).await?;

    let asking = space.step("asked", "word", "it asks", |s| s.waiting_for.is_some()).await?;
    let waiting = asking.status.as_ref().and_then(|s| s.waiting_for.clone()).context("waits for nothing")?;
    ensure!(waiting.kind == WaitKind::Question && waiting.question.contains("Which word?"), "{waiting:?}");
    ensure!(space.pods("asked").await?.is_empty(), "a question costs no pod");
    space.obey(&asking).await?;

    space.decide("refused", "draft", "rejected").await?;
    let failed = space.phase("refused", Phase::Failed).await?;
    let (reason, message) = condition(&failed, "Succeeded")?;
    ensure!(reason == "Rejected" && message.contains(APPROVER), "{reason}: {message}");
    let step_run = space.step_run("refused", "draft").await?.context("no StepRun")?;
    space.event(name(&step_run), "GateRejected", &[APPROVER]).await?;
    let row = space.row(name(&step_run)).await?;
    ensure!(row.contains("Rejected") && row.contains("Failed"), "{row}");
    ensure!(status_of(&space, "refused", "draft").await?.error.is_some_and(|e| e.class == AttemptResult::Rejected));

    let waits = space.gate("revised", "draft").await?;
    let no = json!({"lockstep.dev/decision": "rejected", "lockstep.dev/comment": "shorter, please"});
    space.annotate(APPROVER, &waits, &no).await?;
    let second = |s: &StepRunStatus| {
        s.round == 2 && s.gate.as_ref().is_some_and(|g| g.round == 2 && g.state == GateState::Waiting)
    };
    let waits = space.step("revised", "draft", "its second round waits", second).await?;
    let pods = space.pods("revised").await?;
    let again =
        pods.iter().find(|pod| crate::support::label(&pod.metadata, "attempt") == "2").context("no second pod")?;
    // The second attempt knows why.
    space.says(again.metadata.name.as_deref().unwrap_or_default(), "shorter, please").await?;
    // From the second round on one says which output one saw.
    let yes = json!({"lockstep.dev/decision": "accepted"});
    let (code, message) = refusal(space.annotate(APPROVER, &waits, &yes).await)?;
    ensure!(code == 403 && message.contains("say which output you reviewed"), "{code} {message}");
    let seen = waits.status.as_ref().and_then(|s| s.gate.as_ref()).map(|g| g.output_digest.clone());
    let yes = json!({"lockstep.dev/decision": "accepted", "lockstep.dev/review": seen});
    space.annotate(APPROVER, &waits, &yes).await?;
    space.phase("revised", Phase::Completed).await?;

    space.phase("asked", Phase::Completed).await?;
    let read = space.step_run("asked", "read").await?.context("no StepRun")?;
    ensure!(read.spec.parameters == r#"{"word":"ANSWER"}"#, "{}", read.spec.parameters);
    ensure!(status_of(&space, "asked", "word").await?.answer.is_some_and(|a| a.value == "\"ANSWER\""));
    space.close().await
}

fn alive(pods: &[k8s_openapi::api::core::v1::Pod]) -> usize {
    let phase = |pod: &k8s_openapi::api::core::v1::Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
    pods.iter().filter(|pod| !matches!(phase(pod).as_deref(), Some("Succeeded" | "Failed"))).count()
}

#[tokio::test]
async fn runs_are_cancelled_and_suspended() -> Result<()> {
    let space = Space::open("stop").await?;
    // Takes its time when it is told to go, and is given it.
    let slow = format!("trap 'echo TOLD; {HELD}; exit 0' TERM; echo READY; sleep 600 & wait");
    let mut template = pod_template(&slow);
    template["spec"]["terminationGracePeriodSeconds"] = json!(300);
    space.agent("long", "", &json!({"template": template})).await?;
    space.agent("held", HELD, &json!({})).await?;
    space.agent("short", "true", &json!({})).await?;
    space
        .run(
            "cancelled",
            &json!({"steps": [{"name": "only", "agentId": "long"}, {"name": "next", "agentId": "short"}]}),
        )
        .await?;
    let two = json!([{"name": "first", "agentId": "held"}, {"name": "second", "agentId": "short"}]);
    space.run("suspended", &json!({"steps": two})).await?;
    let only = space.claimed("cancelled", "only").await?;
    let pod = space.pods("cancelled").await?.pop().and_then(|pod| pod.metadata.name).context("no pod")?;
    space.says(&pod, "READY").await?;
    let first = space.claimed("suspended", "first").await?;
    space.patch(&space.ours("workflows/cancelled"), &json!({"spec": {"cancel": true}})).await?;
    let ordered = space.patch(&space.ours("workflows/suspended"), &json!({"spec": {"suspend": true}})).await?;

    space.says(&pod, "TOLD").await?;
    space
        .until("the run waits for its pod", PATIENCE, Some("cancelled"), async || {
            let status = space.status("cancelled").await?;
            let waits = condition(&status, "Succeeded").is_ok_and(|(reason, _)| reason == "Cancelling");
            Ok((waits && status.phase == Some(Phase::Running)).then_some(()))
        })
        .await?;
    space.release(&only).await?;
    let ended = space.phase("cancelled", Phase::Cancelled).await?;
    let pods = space.pods("cancelled").await?;
    ensure!(alive(&pods) == 0, "Cancelled, and a pod still runs");
    ensure!(condition(&ended, "Succeeded")?.0 == "Cancelled" && space.step_runs("cancelled").await?.len() == 1);
    ensure!(status_of(&space, "cancelled", "only").await?.phase == Some(Phase::Cancelled));
    space.event("cancelled", "Cancelled", &["all its pods have ended"]).await?;

    let seen = space
        .until("the order is seen", PATIENCE, Some("suspended"), async || {
            let status = space.status("suspended").await?;
            Ok((ordered["metadata"]["generation"] == status.observed_generation).then_some(status))
        })
        .await?;
    ensure!(seen.phase == Some(Phase::Running), "what runs goes on: {:?}", seen.phase);
    space.release(&first).await?;
    space.phase("suspended", Phase::Suspended).await?;
    // Its command has ended and was reported; the container follows.
    space
        .until("no pod runs", PATIENCE, Some("suspended"), async || {
            Ok((alive(&space.pods("suspended").await?) == 0).then_some(()))
        })
        .await?;
    ensure!(status_of(&space, "suspended", "first").await?.phase == Some(Phase::Completed), "what runs is finished");
    ensure!(space.jobs("suspended").await?.len() == 1, "nothing new starts");
    space.event("suspended", "Suspended", &["nothing new starts"]).await?;
    let table = space.kubectl("get workflows").await?;
    ensure!(table.contains("Suspended") && table.contains("Cancelled"), "{table}");
    space.patch(&space.ours("workflows/suspended"), &json!({"spec": {"suspend": false}})).await?;
    space.phase("suspended", Phase::Completed).await?;
    space.assert_exactly_once("suspended", 2).await?;
    space.close().await
}

fn phase_of(status: &WorkflowStatus, step: &str) -> Option<Phase> {
    status.steps.iter().find(|s| s.path == step).map(|s| s.phase)
}

#[tokio::test]
async fn branches_run_at_once_and_are_skipped() -> Result<()> {
    let space = Space::open("graph").await?;
    space.agent("chooser", r#"echo '{"left": true, "right": false}' > $LOCKSTEP_OUT/result.json"#, &json!({})).await?;
    let done = "echo '\"done\"' > $LOCKSTEP_OUT/result.json";
    space.agent("worker", done, &json!({})).await?;
    space.agent("held", &format!("{HELD}; {done}"), &json!({})).await?;
    let step = |name: &str, agent: &str, needs: Value, when: Value| {
        let mut step = json!({"name": name, "agentId": agent, "needs": needs});
        if when.is_string() {
            step["when"] = when;
        }
        step
    };
    let mut join = step("join", "worker", json!(["left", "middle"]), Value::Null);
    join["parameters"] = json!({"left": "${ steps.left.output }", "right": 1});
    let spec = json!({"order": "Graph", "steps": [
        {"name": "choose", "agentId": "chooser"},
        step("left", "held", json!(["choose"]), json!("steps.choose.output.left")),
        step("middle", "held", json!(["choose"]), Value::Null),
        step("right", "worker", json!(["choose"]), json!("steps.choose.output.right")),
        step("beyond", "worker", json!(["right"]), Value::Null),
        join,
    ]});
    space.run("tree", &spec).await?;
    // Neither ends before both have begun.
    let branches = [space.claimed("tree", "left").await?, space.claimed("tree", "middle").await?];
    for branch in &branches {
        space.release(branch).await?;
    }
    let done = space.phase("tree", Phase::Completed).await?;
    for (path, phase) in [("left", Phase::Completed), ("right", Phase::Skipped), ("beyond", Phase::Skipped)] {
        ensure!(phase_of(&done, path) == Some(phase), "{path}: {:?}", done.steps);
    }
    ensure!(space.step_runs("tree").await?.len() == 4, "what is skipped has no StepRun");
    for path in ["left", "middle"] {
        let status = status_of(&space, "tree", path).await?;
        ensure!(status.attempts.len() == 1, "not released, but ended: {:?}", status.attempts);
    }
    let join = space.step_run("tree", "join").await?.context("no StepRun")?;
    let parameters: Value = serde_json::from_str(&join.spec.parameters)?;
    ensure!(parameters == json!({"left": "done", "right": 1}), "{parameters}");
    history_columns(&space, &join).await?;
    space.close().await
}

/// What the history of a step is asked for, by kubectl alone.
async fn history_columns(space: &Space, step_run: &StepRun) -> Result<()> {
    let table = space.kubectl("get stepruns -o wide").await?;
    let header: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    for column in ["STEPID", "STARTEDAT", "COMPLETEDAT", "STATUS", "INPUT", "OUTPUT"] {
        ensure!(header.contains(&column), "no column {column}: {header:?}");
    }
    let row = space.row(name(step_run)).await?;
    let status = step_run.status.clone().unwrap_or_default();
    let times = [status.started_at, status.completed_at].map(|t| t.map(|t| t.0.to_string()).unwrap_or_default());
    let cells = ["join", "Completed", &step_run.spec.parameters, "\"done\"", &times[0][..19], &times[1][..19]];
    for cell in cells {
        ensure!(row.contains(cell), "no {cell}: {row}");
    }
    Ok(())
}

#[tokio::test]
async fn large_outputs_are_read_and_taken_over() -> Result<()> {
    let space = Space::open("large").await?;
    // 100 KiB, with what is wanted behind them.
    let big = "(printf '{\"text\": \"'; head -c 102400 /dev/zero | tr '\\0' x; printf '\", \"n\": 7, \"list\": [\"a\", \"b\"]}') > $LOCKSTEP_OUT/result.json";
    space.agent("big", big, &json!({})).await?;
    space.agent("fails", "exit 9", &json!({"exitCodes": {"unrecoverable": [9]}})).await?;
    let steps = json!([
        {"name": "make", "agentId": "big"},
        {"name": "each", "agentId": "fails", "forEach": {"in": "steps.make.output.list", "as": "letter", "key": "letter"},
            "parameters": {"n": "${ steps.make.output.n }", "letter": "${ letter }"}},
    ]);
    space.run("first", &json!({"steps": steps})).await?;
    let gate = json!({"when": "output.n > 3"});
    space.run("gated", &json!({"steps": [{"name": "make", "agentId": "big", "gate": gate}]})).await?;
    space.phase("first", Phase::Failed).await?;
    let made = space.step_run("first", "make").await?.context("no StepRun")?;
    let report = made.status.as_ref().and_then(|s| s.agent.as_ref()?.report.clone()).context("no report")?;
    let document = report.output_document.context("no document for the output")?;
    ensure!(report.output.is_none() && report.document_name.is_none());
    let carrier = space.get(&space.ours(&format!("documents/{document}"))).await?;
    ensure!(
        carrier["spec"]["type"] == "lockstep-output" && carrier["spec"]["scope"] == "Workflow",
        "{}",
        carrier["metadata"]
    );
    ensure!(carrier["status"]["phase"].is_null(), "no lookup may find it");
    reads_it(&space, "first").await?;
    // What a gate's `when` cannot read is told, and never taken for null.
    space.phase("gated", Phase::Failed).await?;
    let error = status_of(&space, "gated", "make").await?.error.context("no error")?;
    ensure!(error.class == AttemptResult::ExpressionError && error.message.contains("16384 bytes"), "{error:?}");

    // Nothing before the step that failed runs again.
    let uid = space.workflow("first").await?.metadata.uid.context("no UID")?;
    space.agent("good", "true", &json!({})).await?;
    let good = space.get(&space.ours("agents/good")).await?;
    space.patch(&space.ours("agents/fails"), &json!({"spec": {"template": good["spec"]["template"]}})).await?;
    space.run("second", &json!({"steps": steps, "retryOf": {"name": "first", "uid": uid}})).await?;
    space.phase("second", Phase::Completed).await?;
    let taken = space.step_run("second", "make").await?.context("no StepRun")?;
    ensure!(taken.spec.reuse.as_ref().is_some_and(|r| r.step_run == name(&made)), "{:?}", taken.spec.reuse);
    reads_it(&space, "second").await?;
    let pods = space.pods("second").await?;
    ensure!(pods.len() == 2 && pods.iter().all(|pod| crate::support::label(&pod.metadata, "agent") == "fails"));
    space.close().await
}

#[tokio::test]
async fn links_are_checked_and_read() -> Result<()> {
    let space = Space::open("links").await?;
    let sum = "0123456789abcdef".repeat(4);
    // The first attempt leaves out what proves the bytes.
    let bad = r#"{"uri": "s3://models/m.bin", "bytes": 5000000000}"#;
    let good = format!(r#"{{"uri": "s3://models/m.bin", "bytes": 5000000000, "sha256": "{sum}"}}"#);
    let script = format!("f=$LOCKSTEP_OUT/model.json; echo '{bad}' > $f; [ $ATTEMPT = 1 ] || echo '{good}' > $f");
    space.agent("trainer", &script, &json!({"retry": {"initialBackoffSeconds": 1}})).await?;
    space.agent("user", "cat $LOCKSTEP_IN/documents/model.json", &json!({})).await?;
    let spec = json!({"steps": [
        {"name": "train", "agentId": "trainer", "produces": {"type": "model", "format": "link"}},
        {"name": "use", "agentId": "user", "documents": ["model"], "parameters": {"where": "${ documents.model.uri }"}},
    ]});
    space.run("linked", &spec).await?;
    space.phase("linked", Phase::Completed).await?;
    let attempts = status_of(&space, "linked", "train").await?.attempts;
    ensure!(attempts.len() == 2 && attempts[0].result == AttemptResult::InvalidOutput, "{attempts:?}");
    let told = attempts[0].message.as_deref().unwrap_or_default();
    ensure!(told == "/sha256: is needed: 64 hexadecimal digits", "{told}");
    let used = space.step_run("linked", "use").await?.context("no StepRun")?;
    ensure!(used.spec.parameters == r#"{"where":"s3://models/m.bin"}"#, "{}", used.spec.parameters);
    let pods = space.pods("linked").await?;
    let pod = pods.iter().find(|pod| crate::support::label(&pod.metadata, "agent") == "user").context("no pod")?;
    space.says(pod.metadata.name.as_deref().unwrap_or_default(), &good).await?;
    space.close().await
}

async fn reads_it(space: &Space, run: &str) -> Result<()> {
    let each = space
        .until("both items", PATIENCE, Some(run), async || {
            let found = space.step_runs(run).await?;
            let each: Vec<StepRun> = found.into_iter().filter(|s| s.spec.path == "each").collect();
            Ok((each.len() == 2).then_some(each))
        })
        .await?;
    for (item, letter) in each.iter().zip(["a", "b"]) {
        let parameters: Value = serde_json::from_str(&item.spec.parameters)?;
        ensure!(parameters == json!({"n": 7, "letter": letter}), "{parameters}");
    }
    Ok(())
}
