//! `list`: the runs.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::connect::Connection;
use super::fault::{Code, Fault};
use super::print::{self, Format, put};
use super::text::{age, inline, table};
use crate::api::{Workflow, condition};

/// List runs with phase, step and what they wait for
#[derive(clap::Args, Debug)]
#[command(visible_alias = "ls", after_help = "Examples:\n  kubectl lockstep list\n  kubectl lockstep list -A -o wide")]
pub struct Args {
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only runs of this session
    #[arg(long)]
    session: Option<String>,
}

pub async fn run(on: &Connection, args: Args) -> Result<Code, Fault> {
    let api: Api<Workflow> = if args.all_namespaces { Api::all(on.client.clone()) } else { on.api() };
    let mut params = ListParams::default();
    if let Some(session) = &args.session {
        params = params.fields(&format!("spec.session={session}"));
    }
    let mut runs = on.call("list the runs", api.list(&params)).await?.items;
    runs.sort_by_key(|run| (run.namespace(), run.creation_timestamp(), run.name_any()));
    if !on.output.is_text() {
        print::list(on.output, "Workflow", &runs)?;
        return Ok(Code::Done);
    }
    if runs.is_empty() {
        eprintln!("no runs; start one with kubectl lockstep run TEMPLATE");
        return Ok(Code::Done);
    }
    let wide = on.output == Format::Wide;
    let mut heads = vec!["NAME", "PHASE", "STEP", "WAITING", "AGE"];
    if args.all_namespaces {
        heads.insert(0, "NAMESPACE");
    }
    if wide {
        heads.extend(["TEMPLATE", "SESSION", "REASON", "MESSAGE"]);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = runs.iter().map(|run| row(run, (args.all_namespaces, wide), now)).collect();
    put(&table(&heads, &rows))?;
    Ok(Code::Done)
}

fn row(run: &Workflow, (all, wide): (bool, bool), now: Timestamp) -> Vec<String> {
    let status = run.status.clone().unwrap_or_default();
    let mut cells = Vec::new();
    if all {
        cells.push(run.namespace().unwrap_or_default());
    }
    cells.extend([
        run.name_any(),
        status.phase.unwrap_or_default().to_string(),
        inline(&status.current_step.unwrap_or_default(), 60),
        inline(&status.waiting.unwrap_or_default().summary, 64),
        age(run.metadata.creation_timestamp.as_ref(), now),
    ]);
    if wide {
        let succeeded = condition::get(&status.conditions, "Succeeded");
        cells.extend([
            run.spec.template_ref.as_ref().map_or_else(|| "-".to_owned(), |t| t.name.clone()),
            inline(&status.session.unwrap_or_default().id, 80),
            succeeded.map_or_else(String::new, |c| inline(&c.reason, 80)),
            succeeded.map_or_else(String::new, |c| inline(&c.message, 200)),
        ]);
    }
    cells
}
