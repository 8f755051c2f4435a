//! What agents, definitions and people get wrong, and that a run beside goes on.

use anyhow::{Context as _, Result, ensure};
use lockstep::api::StepRun;
use lockstep::api::step_run::{Attempt, AttemptResult, WaitKind};
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::support::{APPROVER, EDITOR, PATIENCE, Space, condition, pod_template, refusal};

struct Case {
    name: &'static str,
    script: &'static str,
    more: Value,
    class: AttemptResult,
    /// In the error's message.
    words: &'static str,
    attempts: i32,
}

/// One attempt, unless the case says otherwise.
fn case(name: &'static str, script: &'static str, class: AttemptResult, words: &'static str) -> Case {
    let more = json!({"retry": {"maxAttempts": 1}});
    Case { name, script, more, class, words, attempts: 1 }
}

fn cases() -> Vec<Case> {
    use AttemptResult as R;
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "object",
        "properties": {"deep": {"type": "integer"}}}}});
    let strict = json!({"retry": {"maxAttempts": 1}, "outputSchema": schema});
    vec![
        Case {
            more: json!({"retry": {"maxAttempts": 2, "initialBackoffSeconds": 1}}),
            attempts: 2,
            ..case("exit", "echo no luck; exit 1", R::Retryable, "1")
        },
        Case {
            more: json!({"retry": {"maxAttempts": 2, "initialBackoffSeconds": 1}, "exitCodes": {"unrecoverable": [42]}}),
            ..case("hopeless", "exit 42", R::Unrecoverable, "42")
        },
        Case {
            more: strict.clone(),
            ..case(
                "garbage",
                "head -c 3000 /dev/urandom; echo '{{nonsense' > $LOCKSTEP_OUT/result.json",
                R::InvalidOutput,
                "result.json is not JSON",
            )
        },
        Case {
            more: strict.clone(),
            ..case(
                "wrong",
                "echo '{\"n\":{\"deep\":\"text\"}}' > $LOCKSTEP_OUT/result.json",
                R::InvalidOutput,
                "/n/deep: ",
            )
        },
        Case { more: strict, ..case("silent", "true", R::InvalidOutput, "no result.json") },
        case(
            "large",
            "(printf '\"'; head -c 10485760 /dev/zero | tr '\\0' x; printf '\"') > $LOCKSTEP_OUT/result.json",
            R::OutputTooLarge,
            "bytes",
        ),
        case("quits", "lockstep fail --unrecoverable the brief is empty", R::Unrecoverable, "the brief is empty"),
        Case {
            more: json!({"retry": {"maxAttempts": 1}, "timeoutSeconds": 2}),
            ..case("slow", "sleep 30", R::Timeout, "2")
        },
    ]
}

fn one_step(agent: &str) -> Value {
    json!({"steps": [{"name": "only", "agentId": agent}]})
}

#[tokio::test]
async fn bad_output_and_garbage() -> Result<()> {
    let space = Space::open("bad").await?;
    let cases = cases();
    for case in &cases {
        space.agent(case.name, case.script, &case.more).await?;
        space.run(case.name, &one_step(case.name)).await?;
    }
    // Never claims: there is no such image. The attempt ends, and the cluster's fault is not the agent's.
    let mut absent = pod_template("true");
    absent["spec"]["containers"][0]["image"] = json!("localhost/no-such-image:none");
    absent["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    let more =
        json!({"template": absent, "startTimeoutSeconds": 20, "retry": {"maxAttempts": 1, "initialBackoffSeconds": 1}});
    space.agent("absent", "", &more).await?;
    space.run("absent", &one_step("absent")).await?;
    space.agent("healthy", "true", &json!({})).await?;
    space.run("healthy", &one_step("healthy")).await?;

    space.phase("healthy", Phase::Completed).await?;
    space.assert_exactly_once("healthy", 1).await?;
    for case in &cases {
        ends_as_documented(&space, case).await.with_context(|| case.name)?;
    }
    // The first attempts may end before a busy kubelet has looked for the image; the budget has room for them.
    let named = |m: &String| m.contains("not started within 20 s") && m.contains("no-such-image");
    let by_image =
        move |a: &Attempt| a.result == AttemptResult::Infrastructure && a.message.as_ref().is_some_and(named);
    space.step("absent", "only", "an attempt that names the image", |s| s.attempts.iter().any(by_image)).await?;
    space.close().await
}

async fn ends_as_documented(space: &Space, case: &Case) -> Result<()> {
    let fatal = matches!(case.class, AttemptResult::Unrecoverable | AttemptResult::OutputTooLarge);
    let wanted = if fatal { Phase::Failed } else { Phase::WaitingForInput };
    let run = space.phase(case.name, wanted).await?;
    let step_run = space.step_run(case.name, "only").await?.context("no StepRun")?;
    let status = step_run.status.context("status")?;
    let error = status.error.context("no error")?;
    ensure!(error.class == case.class, "{error:?}");
    ensure!(error.message.contains(case.words), "{error:?}");
    ensure!(status.attempt == case.attempts, "attempt {}", status.attempt);
    ensure!(status.phase == Some(wanted), "{:?}", status.phase);
    if fatal {
        ensure!(condition(&run, "Succeeded")?.0 == case.class.to_string());
    } else {
        let waiting = status.waiting_for.context("waits for nothing")?;
        ensure!(waiting.kind == WaitKind::RetriesSpent && !waiting.commands.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn answer_retry_after_spent() -> Result<()> {
    let space = Space::open("answer").await?;
    let script = "[ $ATTEMPT -gt 1 ] || exit 1";
    let once = json!({"retry": {"maxAttempts": 1}});
    space.agent("second", script, &once).await?;
    space.run("again", &one_step("second")).await?;
    space.phase("again", Phase::WaitingForInput).await?;
    let asking: StepRun = space.step_run("again", "only").await?.context("no StepRun")?;
    let retry = json!({"lockstep.dev/action": "retry", "lockstep.dev/comment": "try harder"});
    let (code, message) = refusal(space.annotate(EDITOR, &asking, &retry).await)?;
    ensure!(code == 403, "{code} {message}");
    space.annotate(APPROVER, &asking, &retry).await?;
    space.phase("again", Phase::Completed).await?;
    let done = space.step_run("again", "only").await?.and_then(|s| s.status);
    let done = done.context("status")?;
    let results: Vec<_> = done.attempts.iter().map(|a| a.result).collect();
    ensure!(results == [AttemptResult::Retryable, AttemptResult::Succeeded], "{results:?}");
    ensure!(done.waiting_for.is_none() && done.counts.answers == 1);
    space.close().await
}

#[tokio::test]
async fn invalid_definition_lists_every_fault() -> Result<()> {
    let space = Space::open("invalid").await?;
    // What the API server can see is refused at once, what the operator alone can see ends the run: all of it each time.
    let step = |name: &str| json!({"name": name, "agentId": "a"});
    let refused = json!({"steps": [step("twice"), step("twice"), {"name": "neither"}]});
    let answer = space.run("refused", &refused).await;
    let message = format!("{:#}", answer.err().context("accepted")?);
    for place in ["spec.steps[1]: Duplicate value", "spec.steps[2]: Invalid value: exactly one of"] {
        ensure!(message.contains(place), "nothing of {place}: {message}");
    }
    let mut torn = step("torn");
    torn["parameters"] = json!({"x": "${ 1 + }"});
    let mut early = step("early");
    early["parameters"] = json!({"x": "${ steps.later.output }"});
    let wrong = json!({"steps": [torn, early, step("later")]});
    space.run("wrong", &wrong).await?;
    let status = space.phase("wrong", Phase::Failed).await?;
    let (reason, message) = condition(&status, "Succeeded")?;
    ensure!(reason == "InvalidWorkflow", "{reason}: {message}");
    for place in ["spec.steps[0].parameters", "spec.steps[1].parameters"] {
        ensure!(message.contains(place), "nothing of {place}: {message}");
    }
    ensure!(space.step_runs("wrong").await?.is_empty());
    space.close().await
}

#[tokio::test]
async fn unknown_agent_then_appears() -> Result<()> {
    let space = Space::open("unknown").await?;
    space.run("early", &one_step("latecomer")).await?;
    space
        .until("the run names the missing Agent", PATIENCE, Some("early"), async || {
            let status = space.status("early").await?;
            let said = condition(&status, "Succeeded").is_ok_and(|(reason, message)| {
                reason == "AgentNotFound" && message.contains("spec.steps[0].agentId: Agent latecomer")
            });
            Ok((said && status.phase == Some(Phase::Pending)).then_some(()))
        })
        .await?;
    ensure!(space.jobs("early").await?.is_empty());
    space.agent("latecomer", "true", &json!({})).await?;
    space.phase("early", Phase::Completed).await?;
    space.assert_exactly_once("early", 1).await?;
    space.close().await
}

#[tokio::test]
async fn waiting_for_documents_goes_on() -> Result<()> {
    let space = Space::open("documents").await?;
    let script = "cat $LOCKSTEP_IN/$(lockstep context /documents/brief/path)";
    let needs = json!({"requiredDocuments": ["brief"]});
    space.agent("reader", script, &needs).await?;
    let mut spec = one_step("reader");
    spec["session"] = json!("s-1");
    space.run("hungry", &spec).await?;
    let status = space.phase("hungry", Phase::WaitingForDocuments).await?;
    ensure!(status.pending_documents == ["brief"]);
    let document = |session: &str, content: &str| json!({"type": "brief", "scope": "Session", "session": session, "content": content});
    // Another session's is not ours.
    space.document("theirs", &document("s-2", "theirs")).await?;
    space
        .until("theirs is published", PATIENCE, Some("hungry"), async || {
            let found = space.get(&space.ours("documents/theirs")).await?;
            Ok((found["status"]["phase"] == "Published").then_some(()))
        })
        .await?;
    ensure!(space.status("hungry").await?.phase == Some(Phase::WaitingForDocuments));
    ensure!(space.jobs("hungry").await?.is_empty());
    // A line of its own: the kubelet shows half a line only once the container has ended.
    space.document("ours", &document("s-1", "what we want\n")).await?;
    space.phase("hungry", Phase::Completed).await?;
    let pod = space.pods("hungry").await?.pop().context("no pod")?;
    let log = space.says(pod.metadata.name.as_deref().unwrap_or_default(), "what we want").await?;
    ensure!(!log.contains("theirs"), "{log}");
    space.close().await
}
