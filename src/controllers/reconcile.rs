//! The passes. A branch in here belongs into `decide`.

use std::sync::Arc;

use kube::runtime::controller::Action;

use super::context::Context;
use super::history;
use crate::api::{Agent, Document, StepRun, Workflow, WorkflowTemplate};
use crate::cluster::Error;
use crate::cluster::observe::now;
use crate::decide::{self, Plan};

pub async fn workflow(context: Arc<Context>, workflow: Arc<Workflow>) -> Result<Action, Error> {
    let observed = context.observer.workflow(workflow).await?;
    let (observed, plan) = context.decided(observed).await?;
    let plan = context.paced(&observed.workflow, plan);
    let ended = history::ending(&observed.workflow, plan.status.as_ref());
    context
        .carry_out(observed.workflow.as_ref(), plan, |object, status| {
            object.status = Some(status);
        })
        .await
        .inspect(|_| history::log(ended.as_ref(), observed.step_runs.values()))
}

pub async fn step_run(context: Arc<Context>, step_run: Arc<StepRun>) -> Result<Action, Error> {
    let observed = context.observer.step_run(step_run).await?;
    let plan = decide::step_run::step_run(&observed);
    let lost: Vec<_> = history::lost(&observed.step_run, plan.status.as_ref());
    context
        .carry_out(observed.step_run.as_ref(), plan, |object, status| {
            object.status = Some(status);
        })
        .await
        .inspect(|_| history::log_lost(&observed.step_run, &lost))
}

pub async fn agent(context: Arc<Context>, agent: Arc<Agent>) -> Result<Action, Error> {
    let status = decide::agent::agent_status(&agent, &now());
    let plan = Plan { status: Some(status).filter(|s| agent.status.as_ref() != Some(s)), ..Plan::default() };
    context
        .carry_out(agent.as_ref(), plan, |object, status| {
            object.status = Some(status);
        })
        .await
}

pub async fn template(context: Arc<Context>, template: Arc<WorkflowTemplate>) -> Result<Action, Error> {
    let status = decide::agent::template_status(&template, &now());
    let plan = Plan { status: Some(status).filter(|s| template.status.as_ref() != Some(s)), ..Plan::default() };
    context
        .carry_out(template.as_ref(), plan, |object, status| {
            object.status = Some(status);
        })
        .await
}

pub async fn document(context: Arc<Context>, document: Arc<Document>) -> Result<Action, Error> {
    let observed = context.observer.put_document(document).await?;
    let status = decide::document::standing(&observed.0, &observed.1);
    let effects = status.into_iter().map(|status| decide::document::set_status(&observed.0, status)).collect();
    context.carry_out(observed.0.as_ref(), Plan::<()> { effects, ..Plan::default() }, |_, ()| {}).await
}
