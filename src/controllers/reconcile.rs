//! The passes. A branch in here belongs into `decide`.

use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::context::Context;
use super::history;
use crate::api::{Agent, Document, StepRun, Trigger, Workflow, WorkflowTemplate};
use crate::cluster::Error;
use crate::cluster::evaluator::Kind;
use crate::decide::{self, Plan, trace};
use crate::definition::expression::Evaluate;

pub async fn workflow(context: Arc<Context>, workflow: Arc<Workflow>) -> Result<Action, Error> {
    let observed = context.observer.workflow(workflow).await?;
    let (observed, plan) = context.decided(observed).await?;
    let plan = context.paced(&observed.workflow, plan);
    let ended = history::ending(&observed.workflow, plan.status.as_ref());
    let spans = context.traces.made(|| trace::of_run(&observed.workflow, plan.status.as_ref()));
    let write = |object: &mut Workflow, status, _| object.status = Some(status);
    let done = context.carry_out(observed.workflow.as_ref(), plan, write).await;
    if let Err(taken @ (Error::NotOurs { .. } | Error::Unusable(_))) = &done {
        let plan = decide::workflow::name_taken(&observed.workflow, &taken.to_string(), &context.observer.clock.now());
        context.carry_out(observed.workflow.as_ref(), plan, write).await?;
    }
    if let Some(plan) = done.as_ref().err().and_then(|error| context.session_refused(&observed.workflow, error)) {
        return context.carry_out(observed.workflow.as_ref(), plan, write).await;
    }
    done.inspect(|_| {
        history::log(ended.as_ref(), observed.step_runs.values());
        context.traces.send(spans);
    })
}

pub async fn step_run(context: Arc<Context>, step_run: Arc<StepRun>) -> Result<Action, Error> {
    let observed = context.observer.step_run(step_run).await?;
    let (observed, plan) = context.decided(observed).await?;
    let lost: Vec<_> = history::lost(&observed.step_run, plan.status.as_ref());
    let spans = context.traces.made(|| trace::of_step_run(&observed.step_run, plan.status.as_ref(), &observed.now));
    context
        .carry_out(observed.step_run.as_ref(), plan, |object, mut status, job| {
            // Its UID is known only now that it is made; no write of its own.
            status.job = job.or(status.job);
            object.status = Some(status);
        })
        .await
        .inspect(|_| {
            history::log_lost(&observed.step_run, &lost);
            context.traces.send(spans);
        })
}

pub async fn agent(context: Arc<Context>, agent: Arc<Agent>) -> Result<Action, Error> {
    let evaluator = evaluator(&context, Kind::Agent, agent.as_ref());
    let now = context.observer.clock.now();
    let dry_run = context.observer.dry_run(&agent).await;
    let (agent, plan) = context
        .decided_with((agent, evaluator), move |agent, evaluator| {
            decide::agent::agent(agent, &dry_run, evaluator, &now)
        })
        .await?;
    context
        .carry_out(agent.as_ref(), plan, |object, status, _| {
            object.status = Some(status);
        })
        .await
}

pub async fn template(context: Arc<Context>, template: Arc<WorkflowTemplate>) -> Result<Action, Error> {
    let evaluator = evaluator(&context, Kind::WorkflowTemplate, template.as_ref());
    let now = context.observer.clock.now();
    let (template, plan) = context
        .decided_with((template, evaluator), move |template, evaluator| {
            let status = decide::agent::template_status(template, evaluator, &now);
            Plan { status: Some(status).filter(|s| template.status.as_ref() != Some(s)), ..Plan::default() }
        })
        .await?;
    context
        .carry_out(template.as_ref(), plan, |object, status, _| {
            object.status = Some(status);
        })
        .await
}

pub async fn trigger(context: Arc<Context>, trigger: Arc<Trigger>) -> Result<Action, Error> {
    let observed = context.observer.trigger(trigger).await?;
    let evaluator = Arc::clone(&observed.evaluator);
    let (observed, plan) = context.decided_with((observed, evaluator), |o, _| decide::trigger::trigger(o)).await?;
    let plan = context.paced_trigger(&observed.trigger, plan);
    context
        .carry_out(observed.trigger.as_ref(), plan, |object, status, _| {
            object.status = Some(status);
        })
        .await
}

fn evaluator(context: &Context, kind: Kind, of: &impl ResourceExt) -> Arc<dyn Evaluate> {
    context.observer.evaluator.for_pass(kind, &of.namespace().unwrap_or_default(), &of.name_any())
}

pub async fn document(context: Arc<Context>, document: Arc<Document>) -> Result<Action, Error> {
    let (document, siblings, number) = context.observer.put_document(document).await?;
    let status = decide::document::standing(&document, &siblings, number);
    let effects = status.into_iter().map(|status| decide::document::set_status(&document, status)).collect();
    context.carry_out(document.as_ref(), Plan::<()> { effects, ..Plan::default() }, |_, (), _| {}).await
}
