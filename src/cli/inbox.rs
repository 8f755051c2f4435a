//! `inbox`: what waits for people.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::line::View;
use super::print::{self, Format, put};
use super::rows::so_far;
use super::target::label;
use super::text::{age, inline, quote, table};
use super::wait;
use crate::api::StepRun;
use crate::api::workflow::Phase;

/// List the steps that wait for a decision or an answer, with the command for each
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  kubectl lockstep inbox\n  kubectl lockstep inbox -A -o wide   # with the plain kubectl commands"
)]
pub struct Args {
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

pub async fn run(on: &Connection, args: Args) -> Result<Code, Fault> {
    let api: Api<StepRun> = if args.all_namespaces { Api::all(on.client.clone()) } else { on.api() };
    let mut steps = Vec::new();
    for phase in [Phase::WaitingForAcceptance, Phase::WaitingForInput] {
        let params = ListParams::default().fields(&format!("status.phase={phase}"));
        steps.extend(on.call("list what waits", api.list(&params)).await?.items);
    }
    if !on.output.is_text() {
        print::list(on.output, "StepRun", &steps)?;
        return Ok(Code::Done);
    }
    if steps.is_empty() {
        eprintln!("nothing waits for people");
        return Ok(Code::Done);
    }
    steps.sort_by_key(since);
    if on.output == Format::Wide {
        let view = View::default();
        put(&steps.iter().map(|step| wait::text(step, view)).collect::<String>())?;
        return Ok(Code::Done);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = steps.iter().map(|step| row(step, now)).collect();
    put(&table(&["NAMESPACE", "STEP", "WAITS FOR", "SINCE", "COMMAND"], &rows))?;
    Ok(Code::Done)
}

fn since(step: &StepRun) -> Option<Timestamp> {
    let status = step.status.as_ref()?;
    let gate = status.gate.as_ref().map(|gate| &gate.opened_at);
    let wait = status.waiting_for.as_ref().map(|wait| &wait.since);
    wait.or(gate).map(|at| at.0)
}

fn row(step: &StepRun, now: Timestamp) -> Vec<String> {
    let target = format!("{}/{}", step.spec.workflow.name, label(step));
    let status = step.status.clone().unwrap_or_default();
    let gate = step.spec.gate.as_ref().map_or("", |gate| &gate.name);
    let so_far = so_far(step).map_or_else(String::new, |so_far| format!(", {so_far}"));
    let at_gate = || format!("gate {gate}, round {}{so_far}", status.round);
    let what = status.waiting_for.as_ref().map_or_else(at_gate, |wait| format!("{:?}", wait.kind));
    let at = since(step).map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
    let namespace = step.namespace().unwrap_or_default();
    vec![
        namespace.clone(),
        inline(&target, 300),
        inline(&what, 80),
        age(at.as_ref(), now),
        format!("kubectl lockstep -n {namespace} show {}", quote(&target)),
    ]
}
