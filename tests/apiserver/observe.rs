//! What decides for good is read from the API server: an operator whose caches know nothing yet sees all of it.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, ResourceExt};
use lockstep::api::{Agent, StepRun, Workflow, condition, name};
use lockstep::cluster::Error;
use lockstep::cluster::apply::apply;
use lockstep::cluster::clock::Clock;
use lockstep::cluster::consistency::Consistency;
use lockstep::cluster::contents::{Contents, SettledRuns};
use lockstep::cluster::evaluator::Evaluator;
use lockstep::cluster::guard::{Accounts, JOB_CONTROLLER, PolicyGuard};
use lockstep::cluster::observe::Observer;
use lockstep::cluster::pod_events::PodEvents;
use lockstep::cluster::refusals::Refusals;
use lockstep::cluster::revisions::Revisions;
use lockstep::cluster::slots::Slots;
use lockstep::cluster::world::World;
use lockstep::decide::Effect;
use lockstep::decide::agent::{self, DryRun};
use lockstep::decide::build::{self, Installation};
use lockstep::decide::mail::{self, Mail};
use lockstep::decide::step_run::{self, Hold, JobSeen, Lack};
use lockstep::definition::agent::CheckedAgent;
use lockstep::definition::expression::InProcess;
use lockstep::definition::policy::AttemptPolicy;
use serde_json::{Value, json};

use crate::support::{Ask, GATEWAY, OPERATOR, Team, document, policies_whole, stamps, until, workflow};

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
        settled: SettledRuns::default(),
        guard: Box::new(PolicyGuard::new(&accounts)?),
        installation: Arc::new(Installation::default()),
        evaluator: Evaluator::of("/bin/false", 2),
        slots: Slots::new(0),
        refusals: Refusals::default(),
        taken: Refusals::default(),
        pod_events: PodEvents::default(),
        revisions: Revisions::default(),
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

/// What no cache keeps is read of the very version that is decided on.
#[tokio::test]
async fn a_mailbox_is_dated_by_the_entry_that_owns_what_lies_there() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("dated").await?;
    let gate = json!({"state": "Waiting", "round": 1, "outputDigest": "sha256:a", "openedAt": "2026-01-01T00:00:00Z",
        "policy": "p"});
    let waits = json!({"phase": "WaitingForAcceptance", "gate": gate});
    let before = team.step_run("held", json!({"gate": {"name": "brief"}}), waits).await?;
    let accepted = json!({"lockstep.dev/decision": "accepted", "lockstep.dev/decided-by": "alice"});
    let decided = team.alice.gets(&Ask::annotate(team.one("stepruns", "held"), accepted)).await?;
    let observer = observer(&team)?;
    let cached = |object: &Value| -> Result<Arc<StepRun>> {
        let mut step_run: StepRun = serde_json::from_value(object.clone())?;
        step_run.metadata.managed_fields = None;
        Ok(Arc::new(step_run))
    };
    let written = mail::written(&serde_json::from_value::<StepRun>(decided.clone())?.metadata);
    let mut current = observer.step_run(cached(&decided)?).await?;
    observer.step_run_lack(&mut current, Lack::Mail).await?;
    ensure!(written.is_some() && current.mail == Mail::Read(written.clone()), "{:?}, not {written:?}", current.mail);
    let mut behind = observer.step_run(cached(&before)?).await?;
    let asked = observer.step_run_lack(&mut behind, Lack::Mail).await;
    ensure!(matches!(asked, Err(Error::Stale(_))), "{asked:?}");
    team.close().await
}

#[tokio::test]
async fn what_finished_steps_made_is_seen_before_the_watch_tells_it() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("observe").await?;
    let (run, _) = begun(&team).await?;
    let now = run.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default();
    let put = team.operator.gets(&Ask::post(team.all("documents"), document("shop-brief", &json!({})))).await?;
    // However long the watch has told nothing.
    let long_ago = "2020-01-01T00:00:00Z";
    let done = json!({"phase": "Completed", "startedAt": long_ago, "completedAt": long_ago,
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
        let around = Installation { image: "none".to_owned(), ..Installation::default() };
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

/// An Agent of the team's namespace, with more in its pod and in its container.
fn agent_of(team: &Team, pod: &Value, container: &Value) -> Result<Agent> {
    let laid = |mut base: Value, more: &Value| {
        for (field, value) in more.as_object().into_iter().flatten() {
            base[field] = value.clone();
        }
        base
    };
    let container = laid(json!({"name": "agent", "image": "none", "command": ["run"]}), container);
    let template = json!({"spec": laid(json!({"containers": [container]}), pod)});
    let mut agent = Agent::new("discoverer", serde_json::from_value(json!({"template": template}))?);
    (agent.metadata.namespace, agent.metadata.generation) = (Some(team.namespace.clone()), Some(1));
    Ok(agent)
}

/// Fields that are newer than our types: those of 1.36 that are on by default there.
#[tokio::test]
async fn what_only_the_api_server_knows_of_a_pod_is_accepted_and_reaches_the_stored_job() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("newer").await?;
    if !stamps(&team.admin).await? {
        println!("not asked: this API server is older than 1.36");
        return team.close().await;
    }
    let observer = observer(&team)?;
    let file = json!({"fileKeyRef": {"volumeName": "keys", "path": "all", "key": "TOKEN"}});
    let pod = json!({"hostnameOverride": "writer.example", "volumes": [{"name": "keys", "emptyDir": {}}]});
    let env = json!({"env": [{"name": "PLAIN", "value": "1"}, {"name": "TOKEN", "valueFrom": file}]});
    let agent = agent_of(&team, &pod, &env)?;
    assert_eq!(observer.dry_run(&agent).await, DryRun::Accepted);
    let misspelt = agent_of(&team, &json!({"hostnameOverridee": "writer.example"}), &json!({"command": []}))?;
    let told = observer.dry_run(&misspelt).await;
    let DryRun::Refused(faults) = &told else { bail!("{told:?}") };
    assert!(faults.iter().any(|fault| fault.starts_with("spec.template.spec.hostnameOverridee: ")), "{faults:?}");
    let now = observer.clock.now();
    let plan = agent::agent(&misspelt, &told, &InProcess, &now);
    let ready = plan.status.and_then(|s| condition::get(&s.conditions, "Ready").cloned()).context("a condition")?;
    assert!(ready.message.contains("hostnameOverridee") && ready.message.contains("command"), "{}", ready.message);

    let (_, made) = begun(&team).await?;
    let step_run: StepRun = serde_json::from_value(made)?;
    let policy = AttemptPolicy::of(None, Some(&agent));
    let checked = CheckedAgent::of(&agent, &InProcess).map_err(|faults| anyhow::Error::msg(faults.join("; ")))?;
    let around = Installation { image: "none".to_owned(), ..Installation::default() };
    let status = step_run.status.clone().unwrap_or_default();
    let effects = [Effect::CreateJob(Box::new(build::job(&step_run, &status, &checked, &policy, &around)))];
    let ours = apply(&team.operator.client(), &team.namespace, &effects, &observer.consistency).await?;
    let stored = team.admin.gets(&Ask::get(format!("{}/{}", team.jobs(), ours.job.context("a Job")?.name))).await?;
    let pod = &stored["spec"]["template"]["spec"];
    assert_eq!(pod["hostnameOverride"], "writer.example", "{pod:#}");
    let env = pod["containers"][0]["env"].as_array().context("an environment")?;
    let token = env.iter().find(|v| v["name"] == "TOKEN").context("the variable")?;
    assert_eq!(token["valueFrom"]["fileKeyRef"]["key"], "TOKEN", "{pod:#}");
    team.close().await
}

/// An author of a prompt writes no pod: what we make of it, the API server has to take.
#[tokio::test]
async fn the_pod_of_a_prompt_is_accepted() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("prompt").await?;
    let mut observer = observer(&team)?;
    let amounts = build::quantities(r#"{"cpu": "100m", "memory": "128Mi"}"#).map_err(anyhow::Error::msg)?;
    let around = Installation { image: "none".to_owned(), prompt: amounts, ..Installation::default() };
    observer.installation = Arc::new(around.clone());
    let spec = json!({"prompt": {"system": "Count.", "model": "small", "baseURL": "https://models.example/v1",
        "apiKeySecretRef": {"name": "model-keys", "key": "api"}, "caConfigMapRef": {"name": "models-ca"}}});
    let mut agent = Agent::new("discoverer", serde_json::from_value(spec)?);
    (agent.metadata.namespace, agent.metadata.generation) = (Some(team.namespace.clone()), Some(1));
    assert_eq!(observer.dry_run(&agent).await, DryRun::Accepted);

    let (_, made) = begun(&team).await?;
    let step_run: StepRun = serde_json::from_value(made)?;
    let policy = AttemptPolicy::of(None, Some(&agent));
    let checked = CheckedAgent::of(&agent, &InProcess).map_err(|faults| anyhow::Error::msg(faults.join("; ")))?;
    let status = step_run.status.clone().unwrap_or_default();
    let effects = [Effect::CreateJob(Box::new(build::job(&step_run, &status, &checked, &policy, &around)))];
    let ours = apply(&team.operator.client(), &team.namespace, &effects, &observer.consistency).await?;
    let stored = team.admin.gets(&Ask::get(format!("{}/{}", team.jobs(), ours.job.context("a Job")?.name))).await?;
    let container = &stored["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["command"], json!(build::PROMPT), "{container:#}");
    assert_eq!(container["resources"]["limits"]["memory"], "128Mi", "{container:#}");
    team.close().await
}

#[tokio::test]
async fn an_agent_that_a_quota_lets_nobody_try_is_neither_ready_nor_refused() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("quota").await?;
    let (observer, agent) = (observer(&team)?, agent_of(&team, &json!({}), &json!({}))?);
    assert_eq!(observer.dry_run(&agent).await, DryRun::Accepted);
    let hard = json!({"count/jobs.batch": "0"});
    let quota =
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}});
    team.admin.gets(&Ask::post(team.core("resourcequotas"), quota)).await?;
    // Its controller would write this, and perhaps none runs.
    let counted = json!({"status": {"hard": hard, "used": hard}});
    team.admin.gets(&Ask::patch(format!("{}/none/status", team.core("resourcequotas")), counted)).await?;
    let told = until("the quota counts", || async {
        let told = observer.dry_run(&agent).await;
        Ok((told != DryRun::Accepted).then_some(told))
    })
    .await?;
    assert!(matches!(&told, DryRun::Unknown(why) if why.contains("exceeded quota: none")), "{told:?}");
    let plan = agent::agent(&agent, &told, &InProcess, &observer.clock.now());
    let ready = plan.status.and_then(|s| condition::get(&s.conditions, "Ready").cloned()).context("a condition")?;
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("Unknown", "NotChecked"));
    assert!(ready.message.contains("exceeded quota: none") && plan.requeue.is_some(), "{}", ready.message);
    team.close().await
}
