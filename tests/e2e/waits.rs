//! Agents that wait for people in their pods: for an answer, and for the approval of one action.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use lockstep::api::StepRun;
use lockstep::api::step_run::{ApprovalRequest, AttemptResult, GateState, StepRunStatus, WaitKind};
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::restart::KILLING;
use crate::support::{APPROVER, EDITOR, PATIENCE, SYSTEM, Space, ask, component, refusal};

fn status(step_run: &StepRun) -> StepRunStatus {
    step_run.status.clone().unwrap_or_default()
}

fn output(step_run: &StepRun) -> Result<Value> {
    let report = status(step_run).agent.and_then(|agent| agent.report).context("no report")?;
    Ok(serde_json::from_str(&report.output.context("no output")?)?)
}

async fn waits(space: &Space, run: &str, path: &str) -> Result<StepRun> {
    let waits = |s: &StepRunStatus| s.waiting_for.as_ref().is_some_and(|w| w.agent_waits_until.is_some());
    space.step(run, path, "its agent waits for an answer", waits).await
}

/// Waits for that request, the newest.
async fn requested(space: &Space, run: &str, path: &str, action: &str) -> Result<(StepRun, ApprovalRequest)> {
    let open = |s: &StepRunStatus| {
        s.approval_requests.iter().rev().find(|r| r.action == action && r.gate.state == GateState::Waiting).cloned()
    };
    let found = space.step(run, path, &format!("it requests {action}"), |s| open(s).is_some()).await?;
    let request = open(&status(&found)).context("no request")?;
    Ok((found, request))
}

async fn decide(space: &Space, step_run: &StepRun, request: &ApprovalRequest, decision: &str, why: &str) -> Result<()> {
    let letter = json!({"lockstep.dev/decision": decision, "lockstep.dev/review": request.gate.output_digest,
        "lockstep.dev/comment": why});
    space.annotate(APPROVER, step_run, &letter).await.with_context(|| format!("{decision} {}", request.action))?;
    Ok(())
}

/// Seconds since the epoch at which the agent had its answer, against when it was given.
#[tokio::test]
async fn a_quick_answer_reaches_the_agent_that_waits() -> Result<()> {
    let space = Space::open("wait").await?;
    let script = r#"
        lockstep progress 10 asking
        budget=$(lockstep ask "How much?" --key budget --wait 50s) || exit 11
        lockstep memory set budget "$budget" || exit 12
        again=$(lockstep ask "How much?" --key budget --wait 50s) || exit 13
        echo "{\"budget\": $budget, \"again\": $again, \"attempt\": $ATTEMPT, \"at\": $(date +%s)}" > $LOCKSTEP_OUT/result.json"#;
    space.agent("asker", script, &json!({"progressTimeoutSeconds": 10})).await?;
    space.run("quick", &json!({"steps": [{"name": "ask", "agentId": "asker"}]})).await?;
    let asks = waits(&space, "quick", "ask").await?;
    ensure!(status(&asks).phase == Some(Phase::WaitingForInput), "{:?}", status(&asks).phase);
    // Longer than it may be silent, and the pod is there all the while.
    let since = Instant::now();
    space
        .until("it has waited for 13 s", PATIENCE, Some("quick"), async || {
            Ok((since.elapsed().as_secs() >= 13).then_some(()))
        })
        .await?;
    let asks = waits(&space, "quick", "ask").await?;
    let given = k8s_openapi::jiff::Timestamp::now();
    space.annotate(APPROVER, &asks, &json!({"lockstep.dev/answer": "20000"})).await?;
    space.phase("quick", Phase::Completed).await?;
    let done = space.step_run("quick", "ask").await?.context("no StepRun")?;
    let found = output(&done)?;
    ensure!(
        (&found["budget"], &found["again"], &found["attempt"]) == (&json!(20000), &json!(20000), &json!(1)),
        "{found}"
    );
    let took = found["at"].as_i64().context("no time")? - given.as_second();
    // It is told by a watch. Without one it would be looked for at the end of the call that waits, after 20 s; other tests
    // keep the machine busy.
    ensure!(took <= 15, "the answer took {took} s");
    ensure!(status(&done).attempts.len() == 1 && space.jobs("quick").await?.len() == 1, "{:?}", status(&done).attempts);
    space.close().await
}

#[tokio::test]
async fn an_answer_after_the_wait_starts_another_attempt() -> Result<()> {
    let space = Space::open("wait-over").await?;
    let script = r#"
        answer=$(lockstep ask "Which?" --choices a,b --wait 3s)
        echo "{\"answer\": \"$answer\", \"attempt\": $ATTEMPT}" > $LOCKSTEP_OUT/result.json"#;
    space.agent("asker", script, &json!({})).await?;
    space.run("late", &json!({"steps": [{"name": "ask", "agentId": "asker"}]})).await?;
    let gave_up = |s: &StepRunStatus| {
        s.attempts.len() == 1 && s.waiting_for.as_ref().is_some_and(|w| w.agent_waits_until.is_none())
    };
    let asks = space.step("late", "ask", "its attempt has ended", gave_up).await?;
    ensure!(status(&asks).attempts[0].result == AttemptResult::Asked, "{:?}", status(&asks).attempts);
    space.annotate(APPROVER, &asks, &json!({"lockstep.dev/answer": "b"})).await?;
    space.phase("late", Phase::Completed).await?;
    let found = output(&space.step_run("late", "ask").await?.context("no StepRun")?)?;
    ensure!(found == json!({"answer": "b", "attempt": 2}), "{found}");
    space.close().await
}

/// The gateways go while an agent waits: whichever comes answers it, and nobody is asked twice.
#[tokio::test]
async fn a_wait_outlives_the_gateways() -> Result<()> {
    let _lock = KILLING.lock().await;
    let space = Space::open("wait-gateway").await?;
    let script = r#"
        answer=$(lockstep ask "Still there?" --wait 55s) || exit 11
        lockstep request-approval "Go on" --wait 50s > $LOCKSTEP_WORK/told || exit 12
        echo "{\"answer\": \"$answer\", \"attempt\": $ATTEMPT}" > $LOCKSTEP_OUT/result.json"#;
    space.agent("asker", script, &json!({"timeoutSeconds": 120})).await?;
    let step = json!({"name": "ask", "agentId": "asker", "actionGates": [{"name": "go"}]});
    space.run("held", &json!({"steps": [step]})).await?;
    waits(&space, "held", "ask").await?;
    kill_gateways(&space).await?;
    let asks = waits(&space, "held", "ask").await?;
    space.annotate(APPROVER, &asks, &json!({"lockstep.dev/answer": "yes"})).await?;
    let (_, request) = requested(&space, "held", "ask", "Go on").await?;
    kill_gateways(&space).await?;
    let now = space.step_run("held", "ask").await?.context("no StepRun")?;
    decide(&space, &now, &request, "accepted", "go").await?;
    space.phase("held", Phase::Completed).await?;
    let done = space.step_run("held", "ask").await?.context("no StepRun")?;
    let found = output(&done)?;
    ensure!(found == json!({"answer": "yes", "attempt": 1}), "{found}");
    let status = status(&done);
    ensure!(status.questions.len() == 1 && status.approval_requests.len() == 1, "{status:?}");
    ensure!(status.approval_requests[0].used.as_ref().is_some_and(|used| used.attempt == 1), "{status:?}");
    space.close().await
}

async fn kill_gateways(space: &Space) -> Result<()> {
    for pod in component(&space.admin, "gateway").await? {
        let name = pod.metadata.name.unwrap_or_default();
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{name}");
        ask(&space.admin, Method::DELETE, &path, Some(&json!({"gracePeriodSeconds": 0}))).await?;
    }
    Ok(())
}

/// The example as its files have it: allowed while the agent waits.
#[tokio::test]
async fn an_action_is_approved_while_the_agent_waits() -> Result<()> {
    let space = Space::open("action").await?;
    space.apply("actions", &["agent.yaml", "workflow.yaml"]).await?;
    let (step_run, request) = requested(&space, "offer", "offer", "Send the offer to the customer").await?;
    ensure!(status(&step_run).phase == Some(Phase::WaitingForAcceptance), "{:?}", status(&step_run).phase);
    let payload = request.payload.as_deref().context("no payload")?;
    ensure!(payload.starts_with("{\"text\":") && payload.ends_with("\"to\":\"ann@example.org\"}"), "{payload}");
    let letter = |review: &str| json!({"lockstep.dev/decision": "accepted", "lockstep.dev/review": review});
    for (user, review, words) in [
        (EDITOR, request.gate.output_digest.as_str(), "lacks the permission approve on gates.lockstep.dev/mail"),
        (APPROVER, "sha256:another", "an action waits for a decision here"),
    ] {
        let (_, why) = refusal(space.annotate(user, &step_run, &letter(review)).await)?;
        ensure!(why.contains(words), "{why}");
    }
    decide(&space, &step_run, &request, "accepted", "well written").await?;
    space.phase("offer", Phase::Completed).await?;
    let done = space.step_run("offer", "offer").await?.context("no StepRun")?;
    ensure!(output(&done)? == json!({"sent": true}), "{:?}", output(&done));
    let own = &status(&done).approval_requests[0];
    ensure!(own.gate.decisions[0].decided_by == APPROVER && own.used.is_some(), "{own:?}");
    ensure!(status(&done).attempts.len() == 1, "{:?}", status(&done).attempts);
    space.close().await
}

/// Without a wait the attempt ends; the next one hears of the decision by the same call, uses it once, and is denied for good what was
/// rejected. A gate that the step does not declare is refused, and so is another's approval.
#[tokio::test]
async fn a_permission_is_used_once_and_a_denial_stays() -> Result<()> {
    let space = Space::open("action-once").await?;
    let script = r#"
        cd $LOCKSTEP_WORK
        lockstep request-approval "Anything" --gate nobody 2> refused; test $? = 2 || exit 11
        grep -q "none of the step's actionGates: mail, push" refused || exit 12
        echo '{"to": "ann", "cc": null}' > mail.json
        lockstep request-approval "Send" --gate mail --payload mail.json > told || exit 13
        grep -q '"decision":"allowed"' told && grep -q '"comment":"go"' told || exit 14
        echo '{"cc": null, "to": "ann"}' > same.json
        case $ATTEMPT in
          2) lockstep request-approval "Push" --gate push > told; test $? = 1 || exit 15;;
          3) lockstep request-approval "Push" --gate push > told; test $? = 1 || exit 15
             grep -q '"comment":"never"' told || exit 16;;
        esac
        # The same once more is another request.
        lockstep request-approval "Send" --gate mail --payload same.json > told || exit 17
        echo "{\"attempt\": $ATTEMPT}" > $LOCKSTEP_OUT/result.json"#;
    space.agent("sender", script, &json!({"retry": {"maxAttempts": 1}})).await?;
    let gates = json!([{"name": "mail"}, {"name": "push"}]);
    space.run("once", &json!({"steps": [{"name": "send", "agentId": "sender", "actionGates": gates}]})).await?;
    let (first, request) = requested(&space, "once", "send", "Send").await?;
    ensure!(status(&first).attempt == 1, "{:?}", status(&first));
    let ended = |s: &StepRunStatus| s.attempts.len() == 1;
    let first = space.step("once", "send", "its attempt has ended", ended).await?;
    ensure!(status(&first).attempts[0].result == AttemptResult::Asked, "{:?}", status(&first).attempts);
    decide(&space, &first, &request, "accepted", "go").await?;
    // The second attempt uses it, and ends to have the push decided.
    let (second, push) = requested(&space, "once", "send", "Push").await?;
    ensure!(
        status(&second).approval_requests[0].used.as_ref().is_some_and(|used| used.attempt == 2),
        "{:?}",
        status(&second)
    );
    let second = space.step("once", "send", "its second attempt has ended", |s| s.attempts.len() == 2).await?;
    decide(&space, &second, &push, "rejected", "never").await?;
    // The third must have the mail approved anew: the permission is used.
    let (_, again) = requested(&space, "once", "send", "Send").await?;
    ensure!(again.repeats == 1 && again.gate.output_digest != request.gate.output_digest, "{again:?}");
    space.close().await
}

/// A budget that is spent holds every further attempt, asks once for the run, and is raised by who may answer.
#[tokio::test]
async fn a_spent_budget_is_raised_by_who_may_answer() -> Result<()> {
    let space = Space::open("budget").await?;
    let script = "lockstep usage --tokens-in 800 --tokens-out 400 --cost 0.25 || exit 11; test $STEP_ID = free || exit $((ATTEMPT == 1))";
    space.agent("spender", script, &json!({"retry": {"initialBackoffSeconds": 1}})).await?;
    let step = |name: &str| json!({"name": name, "agentId": "spender"});
    let mut own = step("own");
    own["budget"] = json!({"tokens": 1000});
    space.run("step", &json!({"steps": [own]})).await?;
    let spent = |s: &StepRunStatus| s.waiting_for.as_ref().is_some_and(|w| w.kind == WaitKind::BudgetSpent);
    let asks = space.step("step", "own", "its budget is spent", spent).await?;
    let question = status(&asks).waiting_for.context("waits for nothing")?.question;
    ensure!(question.contains("the budget of the step is spent: 1200 of 1000 tokens (200 over)"), "{question}");
    let raise = |tokens: u32| json!({"lockstep.dev/answer": format!("{{\"tokens\": {tokens}}}")});
    let (_, why) = refusal(space.annotate(EDITOR, &asks, &raise(9000)).await)?;
    ensure!(why.contains("lacks the permission answer on inputs.lockstep.dev/spender"), "{why}");
    space.annotate(APPROVER, &asks, &raise(1200)).await?;
    let name = asks.metadata.name.clone().unwrap_or_default();
    space.event(&name, "AnswerRefused", &["minimum"]).await?;
    space.emptied("step", "own").await?;
    space.annotate(APPROVER, &asks, &raise(5000)).await?;
    space.phase("step", Phase::Completed).await?;
    let done = status(&space.step_run("step", "own").await?.context("no StepRun")?);
    ensure!(done.attempts.len() == 2 && done.budget_raises[0].by == APPROVER, "{done:?}");

    let steps = json!([step("free"), step("left"), step("right")]);
    let mut steps = steps.as_array().cloned().unwrap_or_default();
    for later in &mut steps[1..] {
        later["needs"] = json!(["free"]);
    }
    space.run("run", &json!({"order": "Graph", "budget": {"cost": "0.2"}, "steps": steps})).await?;
    let asker = space
        .until("one of both asks", PATIENCE, Some("run"), async || {
            let all = space.step_runs("run").await?;
            let waiting: Vec<&StepRun> = all.iter().filter(|s| spent(&status(s))).collect();
            let held = all.iter().filter(|s| status(s).phase == Some(Phase::Pending)).count();
            Ok((waiting.len() == 1 && held == 1).then(|| waiting[0].clone()))
        })
        .await?;
    let question = status(&asker).waiting_for.context("waits for nothing")?.question;
    ensure!(question.contains("the budget of the run is spent: cost 0.25 of 0.2 (0.05 over)"), "{question}");
    ensure!(space.jobs("run").await?.len() == 1, "nothing further has started");
    let known = space.status("run").await?.budget.context("no budget")?;
    ensure!(known.spent && known.step_run == asker.metadata.name, "{known:?}");
    space.annotate(APPROVER, &asker, &json!({"lockstep.dev/answer": "{\"cost\": \"10\"}"})).await?;
    space.phase("run", Phase::Completed).await?;
    space.close().await
}
