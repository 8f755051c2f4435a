//! What decides for good is read from the API server: an operator whose caches know nothing yet sees all of it.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, ResourceExt};
use lockstep::api::{Agent, StepRun, Workflow, name};
use lockstep::cluster::Error;
use lockstep::cluster::apply::apply;
use lockstep::cluster::clock::Clock;
use lockstep::cluster::consistency::Consistency;
use lockstep::cluster::contents::{Contents, Memory};
use lockstep::cluster::evaluator::Evaluator;
use lockstep::cluster::guard::{Accounts, JOB_CONTROLLER, PolicyGuard};
use lockstep::cluster::observe::Observer;
use lockstep::cluster::refusals::Refusals;
use lockstep::cluster::slots::Slots;
use lockstep::cluster::world::World;
use lockstep::decide::Effect;
use lockstep::decide::build::{self, Surroundings};
use lockstep::decide::step_run::{self, Hold, JobSeen};
use lockstep::definition::agent::CheckedAgent;
use lockstep::definition::expression::InProcess;
use lockstep::definition::policy::AttemptPolicy;
use serde_json::{Value, json};

use crate::support::{Ask, GATEWAY, OPERATOR, Team, document, policies_whole, until, workflow};

/// The operator, a moment after its start: no watch has told it anything.
fn observer(team: &Team) -> Result<Observer> {
    let accounts = Accounts {
        operator: OPERATOR.to_owned(),
        gateway: GATEWAY.to_owned(),
        job_controller: JOB_CONTROLLER.to_owned(),
    };
    Ok(Observer {
        client: team.operator.client(),
        clock: Clock::default(),
        world: World::default(),
        consistency: Consistency::default(),
        contents: Contents::default(),
        settled: Memory::default(),
        guard: PolicyGuard::new(&accounts)?,
        surroundings: Arc::new(Surroundings::default()),
        evaluator: Evaluator::of("/bin/false", 2),
        slots: Slots::new(0),
        refusals: Refusals::default(),
        taken: Refusals::default(),
    })
}

fn uid(object: &Value) -> &str {
    object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default()
}

/// A run, and a StepRun that it controls.
async fn begun(team: &Team) -> Result<(Value, Value)> {
    let run = team.admin.gets(&Ask::post(team.all("workflows"), workflow("shop", &json!({})))).await?;
    let mut step_run = crate::support::step_run("shop-a", &json!({"workflow": {"name": "shop", "uid": uid(&run)}}));
    step_run["metadata"]["labels"] = json!({name::LABEL_WORKFLOW: name::label_value("shop")});
    step_run["metadata"]["ownerReferences"] = json!([{"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
        "name": "shop", "uid": uid(&run), "controller": true}]);
    let step_run = team.operator.gets(&Ask::post(team.all("stepruns"), step_run)).await?;
    Ok((run, step_run))
}

#[tokio::test]
async fn a_run_is_gone_only_if_the_api_server_says_so() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("observe").await?;
    let (_, step_run) = begun(&team).await?;
    let step_run: Arc<StepRun> = Arc::new(serde_json::from_value(step_run)?);
    let observer = observer(&team)?;
    let hold = || async { anyhow::Ok(observer.step_run(Arc::clone(&step_run)).await?.hold) };
    assert_eq!(hold().await.context("the run is there, and no cache knows it")?, Hold::No);
    team.admin.gets(&Ask::delete(team.one("workflows", "shop"))).await?;
    until("the run is gone", || async { Ok((hold().await? == Hold::Stopping).then_some(())) }).await?;
    team.close().await
}

#[tokio::test]
async fn what_finished_steps_made_is_seen_before_the_watch_tells_it() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("observe").await?;
    let (run, _) = begun(&team).await?;
    let now = run.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default();
    let put = team.operator.gets(&Ask::post(team.all("documents"), document("shop-brief", &json!({})))).await?;
    let done = json!({"phase": "Completed", "startedAt": now, "completedAt": now,
        "result": {"attempt": 1, "digest": "sha256:d", "documentName": "shop-brief"}});
    team.operator.gets(&Ask::patch(team.one("stepruns", "shop-a/status"), json!({"status": done}))).await?;
    let published = json!({"phase": "Published", "revision": 1});
    team.operator.gets(&Ask::patch(team.one("documents", "shop-brief/status"), json!({"status": published}))).await?;
    let status = json!({"phase": "Running", "startedAt": now,
        "definition": {"revisionName": "shop-1", "digest": "sha256:d"},
        "steps": [{"path": "discovery", "phase": "Running", "stepRun": "shop-a"}]});
    team.operator.gets(&Ask::patch(team.one("workflows", "shop/status"), json!({"status": status}))).await?;
    let runs: Api<Workflow> = Api::namespaced(team.operator.client(), &team.namespace);
    let seen = observer(&team)?.workflow(Arc::new(runs.get("shop").await?)).await?;
    assert!(seen.step_runs.contains_key("shop-a"), "the StepRun that the status names");
    let documents: Vec<_> = seen.documents.values().filter_map(|d| d.metadata.uid.as_deref()).collect();
    assert_eq!(documents, [uid(&put)], "the document that the StepRun names");
    team.close().await
}

fn writer() -> Result<Agent> {
    let template = json!({"spec": {"containers": [{"name": "agent", "image": "none", "command": ["run"]}]}});
    Ok(Agent::new("discoverer", serde_json::from_value(json!({"template": template}))?))
}

/// Somebody made a Job under the name of the attempt, with the StepRun as its owner: it is not taken for ours, it costs a
/// name, and the UID of the Job that is ours comes back from its making.
#[tokio::test]
async fn a_job_that_only_claims_to_be_ours_costs_a_name() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("squat").await?;
    let (_, made) = begun(&team).await?;
    let mut step_run: StepRun = serde_json::from_value(made)?;
    let (observer, agent) = (observer(&team)?, writer()?);
    let policy = AttemptPolicy::of(None, Some(&agent));
    let agent = CheckedAgent::of(&agent, &InProcess).map_err(|faults| anyhow::Error::msg(faults.join("; ")))?;
    let job = |step_run: &StepRun| {
        let status = step_run.status.clone().unwrap_or_default();
        let around = Surroundings { image: "none".to_owned(), ..Surroundings::default() };
        Box::new(build::job(step_run, &status, &agent, &policy, &around))
    };
    let first = job(&step_run);
    let mut squatter = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": first.name_any(),
        "ownerReferences": first.metadata.owner_references}, "spec": {"suspend": true, "template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "agent", "image": "evil"}]}}}});
    let squatter = team.admin.gets(&Ask::post(team.jobs(), squatter.take())).await?;

    let client = team.operator.client();
    let effects = [Effect::CreateJob(first)];
    let taken = apply(&client, &team.namespace, &effects, &observer.consistency).await;
    let Err(Error::NotOurs { name, holder, .. }) = taken else { bail!("not told from ours: {taken:?}") };
    assert!(holder.contains(uid(&squatter)) && holder.contains("owner StepRun shop-a"), "{holder}");
    observer.taken.remember(&team.namespace, &name, &holder);
    let mut seen = observer.step_run(Arc::new(step_run.clone())).await?;
    assert_eq!(seen.job, JobSeen::Foreign(holder));
    seen.agent = Some(Arc::new(agent.agent().clone()));
    let plan = step_run::step_run(&seen);
    let status = plan.status.context("a status")?;
    assert_eq!((status.attempt, status.counts.retryable, status.completed_at.is_some()), (2, 0, false));
    assert!(
        plan.notices.iter().any(|n| n.reason == "NameTaken" && n.note.contains(uid(&squatter))),
        "{:?}",
        plan.notices
    );
    step_run.status = Some(status);

    let second = [Effect::CreateJob(job(&step_run))];
    let ours = apply(&client, &team.namespace, &second, &observer.consistency).await?.job.context("a Job")?;
    let jobs: Api<Job> = Api::namespaced(team.admin.client(), &team.namespace);
    let live = jobs.get(&ours.name).await?;
    assert_eq!((live.uid().as_deref(), ours.attempt), (Some(ours.uid.as_str()), 2));
    assert_ne!(
        ours.name,
        name::job("shop-a", step_run.uid().as_deref().unwrap_or_default(), 2),
        "nobody could foresee it"
    );
    // As after a lost reply.
    let again = apply(&client, &team.namespace, &second, &observer.consistency).await?.job;
    assert_eq!(again, Some(ours.clone()));
    jobs.delete(&name, &kube::api::DeleteParams::background()).await?;
    team.close().await
}
