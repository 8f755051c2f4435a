//! `cancel`: ends a run.

use kube::ResourceExt;

use super::complete;
use super::connect::Connection;
use super::control::{self, ControlVerb};
use super::fault::{Code, Fault};
use super::print::put;
use crate::api::workflow::Phase;

/// Cancel a run: its pods end, its documents stay; this cannot be taken back
#[derive(clap::Args, Debug)]
#[command(after_help = "\
With --wait the exit code is 0 when the run is cancelled, and 1 when it came to another end first.

Examples:
  kubectl lockstep cancel shop
  kubectl lockstep cancel shop --wait && kubectl lockstep retry shop")]
pub struct Args {
    /// The run
    #[arg(add = complete::by(complete::runs))]
    run: String,
    /// Wait until its pods are gone and the run is over
    #[arg(long)]
    wait: bool,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let run = control::apply(on, &args.run, ControlVerb::Cancel).await?;
    let name = run.name_any();
    if !args.wait {
        if on.output.is_text() {
            eprintln!("next: {}", on.hint("watch", &name));
        }
        return Ok(Code::Done);
    }
    let end = control::ended(on, &run).await?;
    let phase = end.status.and_then(|s| s.phase).unwrap_or_default();
    if phase != Phase::Cancelled {
        return Err(Fault::new(Code::Failed, format!("{name} was {phase} before it could be cancelled")));
    }
    if on.output.is_text() {
        put(&format!("{name} is {phase}\n"))?;
    }
    Ok(Code::Done)
}
