//! Discovery, epic backlog, architecture: the example, and what its gates hold back.

use anyhow::{Context as _, Result, ensure};
use lockstep::api::name::digest_bytes;
use lockstep::api::step_run::GateState;
use lockstep::api::workflow::{Phase, SessionPhase};
use serde_json::{Value, json};

use crate::support::{APPROVER, EDITOR, HELD, PATIENCE, Space, ask, client, condition, example, label, refusal};

async fn start_example(space: &Space, run: &str, brief: &str) -> Result<()> {
    let content = std::fs::read_to_string(format!("{}/{brief}", example()))?;
    let documents = json!([{"type": "brief", "content": content}]);
    space
        .run(run, &json!({"templateRef": {"name": "default"}, "documents": documents, "session": format!("s-{run}")}))
        .await
}

async fn content(space: &Space, run: &str, document_type: &str) -> Result<String> {
    let found = space.documents(run, document_type).await?;
    ensure!(found.len() == 1, "{} of {document_type}", found.len());
    Ok(found[0].spec.content.clone())
}

#[tokio::test]
async fn discovery_to_epic_backlog() -> Result<()> {
    let space = Space::open("discovery").await?;
    space.apply_example().await?;
    let runs = [("shop", "brief.md"), ("library", "brief-library.md")];
    for (run, brief) in runs {
        start_example(&space, run, brief).await?;
    }
    for (run, _) in runs {
        space.decide(run, "discovery", "accepted").await?;
    }
    let mut backlogs = Vec::new();
    for (run, word) in [("shop", "frame size"), ("library", "borrow and return")] {
        space.gate(run, "epic-backlog").await?;
        let discovery = content(&space, run, "discovery").await?;
        ensure!(discovery.contains(word), "the discovery of {run} says nothing of {word:?}: {discovery}");
        let backlog: Value = serde_json::from_str(&content(&space, run, "epic-backlog").await?)?;
        ensure!(backlog.to_string().contains(word), "the backlog of {run} says nothing of {word:?}: {backlog}");
        backlogs.push(backlog);
    }
    ensure!(backlogs[0]["epics"] != backlogs[1]["epics"]);
    space.close().await
}

#[tokio::test]
async fn full_workflow_with_iteration() -> Result<()> {
    let space = Space::open("full").await?;
    space.apply_example().await?;
    start_example(&space, "shop", "brief.md").await?;
    space.step("shop", "discovery", "claimed", |s| s.agent.as_ref().is_some_and(|a| a.claim.is_some())).await?;
    space.gate("shop", "discovery").await?;
    let waiting = space.phase("shop", Phase::WaitingForAcceptance).await?;
    let session = waiting.session.context("no session")?;
    ensure!(session.phase == SessionPhase::Busy && session.id == "s-shop");
    for gate in ["discovery", "epic-backlog"] {
        space.decide("shop", gate, "accepted").await?;
    }
    let done = space.phase("shop", Phase::Completed).await?;
    ensure!(done.session.as_ref().map(|s| s.phase) == Some(SessionPhase::Completed));
    ensure!(done.completed_at.is_some() && done.pending_acceptance.is_empty());
    let backlog: Value = serde_json::from_str(&content(&space, "shop", "epic-backlog").await?)?;
    let epics = backlog["epics"].as_array().context("epics")?;
    ensure!(epics.len() > 1);
    let architectures = space.documents("shop", "architecture").await?;
    ensure!(architectures.len() == epics.len(), "{} architectures for {} epics", architectures.len(), epics.len());
    for gate in ["discovery", "epic-backlog"] {
        decision_is_proven(&space, gate).await?;
    }
    history_is_whole(&space, epics).await?;
    overview_is_whole(&space, epics.len()).await?;
    space.close().await
}

/// What the run's status repeats of its steps is what they say themselves.
async fn overview_is_whole(space: &Space, epics: usize) -> Result<()> {
    let status = space.workflow("shop").await?.status.context("status")?;
    ensure!(status.completed_steps == ["discovery", "epic-backlog", "architecture"], "{:?}", status.completed_steps);
    let [progress] = status.iteration_progress.as_slice() else { anyhow::bail!("{:?}", status.iteration_progress) };
    let epics = i32::try_from(epics)?;
    ensure!((progress.path.as_str(), progress.total, progress.done) == ("architecture", epics, epics), "{progress:?}");
    let decided: Vec<(&str, &str)> =
        status.acceptance_decisions.iter().map(|d| (d.document_type.as_str(), d.decided_by.as_str())).collect();
    ensure!(decided == [("discovery", APPROVER), ("epic-backlog", APPROVER)], "{decided:?}");
    for step in &status.steps[..2] {
        let step_run = space.step_run("shop", &step.path).await?.context(step.path.clone())?;
        ensure!(step.step_run == step_run.metadata.name);
        let result = step_run.status.and_then(|s| s.result).context("no result")?;
        ensure!(step.output_digest.as_ref() == Some(&result.digest), "{step:?}");
    }
    Ok(())
}

async fn decision_is_proven(space: &Space, path: &str) -> Result<()> {
    let step_run = space.step_run("shop", path).await?.context(path.to_owned())?;
    let status = step_run.status.context("status")?;
    let gate = status.gate.context("gate")?;
    ensure!(gate.state == GateState::Accepted && gate.decisions.len() == 1);
    let decision = &gate.decisions[0];
    let run = space.workflow("shop").await?;
    ensure!(decision.document_type == path && decision.accepted && decision.round == 1);
    ensure!(decision.decided_by == APPROVER, "decided by {}", decision.decided_by);
    ensure!(Some(&decision.scope_id) == run.metadata.uid.as_ref());
    ensure!(decision.digest == gate.output_digest && decision.decided_at.0 >= gate.opened_at.0);
    Ok(())
}

async fn history_is_whole(space: &Space, epics: &[Value]) -> Result<()> {
    let uid = space.workflow("shop").await?.metadata.uid.context("uid")?;
    let step_runs = space.step_runs("shop").await?;
    ensure!(step_runs.len() == 2 + epics.len());
    for step_run in &step_runs {
        let name = step_run.metadata.name.clone().unwrap_or_default();
        let status = step_run.status.clone().context("status")?;
        let at = (status.started_at.clone(), status.completed_at.clone());
        let (Some(started), Some(completed)) = at else { anyhow::bail!("{name}: no times") };
        ensure!(started.0 <= completed.0 && status.phase == Some(Phase::Completed));
        ensure!(status.attempts.len() == 1 && status.result.is_some());
        let attempt = &status.attempts[0];
        ensure!(attempt.agent_uid.is_some() && attempt.agent_generation.is_some(), "{attempt:?}");
        ensure!(!step_run.spec.input_digest.is_empty());
        let chain = &step_run.spec.scope_chain;
        ensure!(chain[0].scope == "workflow" && chain[0].scope_id == uid);
        // The architects get their epic as a parameter, the others a document.
        ensure!(step_run.spec.item.is_some() || step_run.spec.documents.len() == 1);
        if let Some(item) = &step_run.spec.item {
            ensure!(chain.len() == 2 && chain[1].scope == "epic");
            ensure!(chain[1].scope_id == format!("{uid}/{}", item.key));
            let index = usize::try_from(item.index)?;
            ensure!(epics[index]["id"] == item.key.as_str() && epics[index] == item.value);
        }
    }
    let jobs = space.jobs("shop").await?;
    let pods = space.pods("shop").await?;
    ensure!(jobs.len() == step_runs.len() && pods.len() == step_runs.len());
    let metas = jobs.iter().map(|j| &j.metadata).chain(pods.iter().map(|p| &p.metadata));
    for meta in metas {
        let step_run = step_runs.iter().find(|s| s.metadata.name.as_deref() == Some(label(meta, "steprun")));
        let step_run = step_run.with_context(|| format!("{:?}", meta.name))?;
        ensure!(label(meta, "agent") == step_run.spec.agent_id);
        ensure!(label(meta, "attempt") == "1" && label(meta, "session") == "s-shop");
    }
    // What the documents say of themselves is what they hold.
    for document in space.documents("shop", "architecture").await? {
        let digest = document.status.and_then(|s| s.digest);
        ensure!(digest == Some(digest_bytes(document.spec.content.as_bytes())));
    }
    Ok(())
}

/// The node tells which image runs up to a second after the start, so the agent stays until it did.
#[tokio::test]
async fn the_image_that_ran_is_recorded() -> Result<()> {
    let space = Space::open("image").await?;
    let script = format!("{HELD}; echo '{{}}' > $LOCKSTEP_OUT/result.json");
    space.agent("stays", &script, &json!({})).await?;
    space.run("stays", &json!({"steps": [{"name": "only", "agentId": "stays"}]})).await?;
    let claimed = space.claimed("stays", "only").await?;
    let image = space
        .until("its node names the image", PATIENCE, Some("stays"), async || {
            let containers = space.pods("stays").await?.pop().and_then(|pod| pod.status?.container_statuses);
            let agent = containers.unwrap_or_default().into_iter().find(|c| c.name == "agent");
            Ok(agent.map(|c| c.image_id).filter(|image| !image.is_empty()))
        })
        .await?;
    space.release(&claimed).await?;
    space.phase("stays", Phase::Completed).await?;
    let status = space.step_run("stays", "only").await?.and_then(|s| s.status).context("status")?;
    let digest = status.attempts.first().and_then(|a| a.image_digest.clone()).context("no digest")?;
    ensure!(digest.starts_with("sha256:") && image.ends_with(&digest), "{digest} of {image}");
    space.close().await
}

#[tokio::test]
async fn pause_and_resume_at_acceptance() -> Result<()> {
    let space = Space::open("pause").await?;
    space.agent("quick", "echo '{}' > $LOCKSTEP_OUT/result.json", &json!({})).await?;
    let steps = json!([{"name": "draft", "agentId": "quick", "gate": {}}, {"name": "after", "agentId": "quick"}]);
    for run in ["good", "bad"] {
        space.run(run, &json!({"steps": steps})).await?;
    }
    for run in ["good", "bad"] {
        let waiting = space.gate(run, "draft").await?;
        let status = space.phase(run, Phase::WaitingForAcceptance).await?;
        ensure!(status.pending_acceptance.len() == 1 && status.active_steps == ["draft"]);
        nothing_runs(&space, run).await?;
        nobody_else_decides(&space, &waiting).await?;
        nothing_runs(&space, run).await?;
    }
    space.decide("good", "draft", "accepted").await?;
    space.decide("bad", "draft", "rejected").await?;
    space.phase("good", Phase::Completed).await?;
    let failed = space.phase("bad", Phase::Failed).await?;
    let (reason, message) = condition(&failed, "Succeeded")?;
    ensure!(reason == "Rejected" && message.contains("draft"), "{reason}: {message}");
    ensure!(space.step_runs("bad").await?.len() == 1);
    space.assert_exactly_once("good", 2).await?;
    space.close().await
}

/// Nothing downstream exists, and the pod of what waits has ended.
async fn nothing_runs(space: &Space, run: &str) -> Result<()> {
    ensure!(space.step_runs(run).await?.len() == 1 && space.jobs(run).await?.len() == 1);
    space
        .until("no pod runs", crate::support::PATIENCE, Some(run), async || {
            let ended = space
                .pods(run)
                .await?
                .iter()
                .all(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded"));
            Ok(ended.then_some(()))
        })
        .await
}

async fn nobody_else_decides(space: &Space, waiting: &lockstep::api::StepRun) -> Result<()> {
    // An account is no person, even with the role.
    let account = format!("system:serviceaccount:{}:default", space.namespace);
    for user in [EDITOR, account.as_str(), "system:serviceaccount:lockstep-system:lockstep-gateway"] {
        let answer = space.annotate(user, waiting, &json!({"lockstep.dev/decision": "accepted"})).await;
        let (code, message) = refusal(answer).with_context(|| user.to_owned())?;
        ensure!(code == 403, "{user}: {code} {message}");
    }
    // Nor does anybody write it into the status.
    let name = waiting.metadata.name.as_deref().unwrap_or_default();
    let forged = json!({"status": {"phase": "Completed"}});
    let answer = ask(
        &client(Some(APPROVER)).await?,
        http::Method::PATCH,
        &space.ours(&format!("stepruns/{name}/status")),
        Some(&forged),
    )
    .await;
    let (code, message) = refusal(answer)?;
    ensure!(code == 403, "{code} {message}");
    Ok(())
}
