//! An agent that asks people in the middle of its work: the example as its files have it, and what cannot be asked.

use anyhow::{Context as _, Result, ensure};
use lockstep::api::step_run::{AttemptResult, StepRunStatus, WaitKind};
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::support::{APPROVER, Space, refusal};

fn status(step_run: &lockstep::api::StepRun) -> StepRunStatus {
    step_run.status.clone().unwrap_or_default()
}

/// Waits for that question, in words that the wait must have.
async fn asked(space: &Space, run: &str, path: &str, words: &str) -> Result<lockstep::api::StepRun> {
    let asks = |s: &StepRunStatus| s.waiting_for.as_ref().is_some_and(|w| w.question.contains(words));
    let step_run = space.step(run, path, &format!("it asks: {words}"), asks).await?;
    let wait = status(&step_run).waiting_for.context("waits for nothing")?;
    ensure!(wait.kind == WaitKind::Question && wait.commands.len() == 2, "{wait:?}");
    Ok(step_run)
}

#[tokio::test]
async fn an_agent_asks_is_answered_and_goes_on() -> Result<()> {
    let space = Space::open("ask").await?;
    space.apply("questions", &["agent.yaml", "workflow.yaml"]).await?;
    let first = asked(&space, "estimate", "estimate", "What is the budget").await?;
    let wait = status(&first).waiting_for.context("waits for nothing")?;
    let schema: Value = serde_json::from_str(wait.schema.as_deref().context("no schema")?)?;
    ensure!(schema == json!({"type": "integer", "minimum": 1}), "{schema}");
    // No pod waits.
    let ended = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded")
    };
    space
        .until("its pod has ended", crate::support::PATIENCE, Some("estimate"), async || {
            let pods = space.pods("estimate").await?;
            Ok((pods.len() == 1 && pods.iter().all(ended)).then_some(()))
        })
        .await?;
    let (_, why) = refusal(space.annotate(APPROVER, &first, &json!({"lockstep.dev/action": "retry"})).await)?;
    ensure!(why.contains("this step is a question"), "{why}");

    let name = first.metadata.name.clone().unwrap_or_default();
    space.annotate(APPROVER, &first, &json!({"lockstep.dev/answer": "plenty"})).await?;
    space.event(&name, "AnswerRefused", &["not of type", "integer"]).await?;
    space.emptied("estimate", "estimate").await?;
    space.annotate(APPROVER, &first, &json!({"lockstep.dev/answer": "20000"})).await?;
    let second = asked(&space, "estimate", "estimate", "Which shop").await?;
    ensure!(status(&second).attempt == 2, "{:?}", status(&second).attempts);
    space.annotate(APPROVER, &second, &json!({"lockstep.dev/answer": "north"})).await?;
    space.phase("estimate", Phase::Completed).await?;

    let done = status(&space.step_run("estimate", "estimate").await?.context("no StepRun")?);
    let results: Vec<AttemptResult> = done.attempts.iter().map(|a| a.result).collect();
    ensure!(results == [AttemptResult::Asked, AttemptResult::Asked, AttemptResult::Succeeded], "{results:?}");
    ensure!(done.counts.retryable == 0 && done.counts.infrastructure == 0, "{:?}", done.counts);
    let report = done.agent.and_then(|agent| agent.report).context("no report")?;
    let output: Value = serde_json::from_str(report.output.as_deref().context("no output")?)?;
    ensure!(output == json!({"budget": 20000, "shop": "north", "attempt": 3}), "{output}");
    let by: Vec<&str> = done.questions.iter().filter_map(|q| Some(q.answer.as_ref()?.by.as_str())).collect();
    ensure!(by == [APPROVER, APPROVER], "{by:?}");
    space.close().await
}

/// Several by HTTP, one that deafens itself against SIGTERM, and calls that are refused while the attempt goes on.
#[tokio::test]
async fn what_cannot_be_asked_is_told_and_the_attempt_goes_on() -> Result<()> {
    let space = Space::open("ask-refused").await?;
    let script = r#"
        test "$ATTEMPT" = 1 || { lockstep context /answers > $LOCKSTEP_OUT/result.json; exit 0; }
        trap '' TERM
        lockstep ask '' 2>$LOCKSTEP_WORK/empty; test $? = 2 || exit 11
        grep -q 'is empty' $LOCKSTEP_WORK/empty || exit 12
        echo '{"type": "nonsense"}' > $LOCKSTEP_WORK/schema.json
        lockstep ask 'What?' --schema $LOCKSTEP_WORK/schema.json && exit 13
        wget -q -O - --header 'Content-Type: application/json' \
            --post-data '{"questions": [{"question": "How many?"}, {"question": "For whom?", "key": "whom"}]}' $LOCKSTEP_URL/ask
        sleep 60"#;
    space.agent("asker", script, &json!({})).await?;
    space.run("both", &json!({"steps": [{"name": "ask", "agentId": "asker"}]})).await?;
    let first = asked(&space, "both", "ask", "How many?").await?;
    space.annotate(APPROVER, &first, &json!({"lockstep.dev/answer": "3"})).await?;
    let second = asked(&space, "both", "ask", "For whom?").await?;
    ensure!(status(&second).attempt == 1, "both are of one attempt: {:?}", status(&second).attempts);
    space.annotate(APPROVER, &second, &json!({"lockstep.dev/answer": "riders"})).await?;
    space.phase("both", Phase::Completed).await?;
    let done = status(&space.step_run("both", "ask").await?.context("no StepRun")?);
    let report = done.agent.and_then(|agent| agent.report).context("no report")?;
    let answers: Value = serde_json::from_str(report.output.as_deref().context("no output")?)?;
    let told: Vec<(&Value, &Value)> =
        answers.as_array().into_iter().flatten().map(|a| (&a["key"], &a["answer"])).collect();
    ensure!(told == [(&json!("How many?"), &json!(3)), (&json!("whom"), &json!("riders"))], "{answers}");
    space.close().await
}
