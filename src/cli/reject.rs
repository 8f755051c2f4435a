//! `reject`: refuses what waits at a gate, with a comment.

use super::complete;
use super::connect::Connection;
use super::decide::{Consent, GateDecision, HELP, decide};
use super::fault::{Code, Fault};

/// Read and reject what waits at a gate
#[derive(clap::Args, Debug)]
#[command(after_help = format!("{HELP}
Examples:
  kubectl lockstep reject shop/discovery -m 'the scope is too big'
  kubectl lockstep reject shop/discovery -m 'the scope is too big' --review 2c26b46b"))]
pub struct Args {
    /// RUN/STEP, RUN/STEP/KEY or the name of a StepRun; RUN where one gate is all that waits
    #[arg(add = complete::by(complete::waits_at_gate))]
    target: String,
    /// Comment: what must change
    #[arg(short = 'm', long = "comment", value_name = "TEXT", required = true)]
    comment: String,
    #[command(flatten)]
    consent: Consent,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let comment = Some(args.comment.as_str());
    let verdict = GateDecision { target: &args.target, accepted: false, comment, consent: &args.consent };
    // It holds whole objects.
    Box::pin(decide(on, verdict)).await
}
