//! `approve`: accepts what waits at a gate.

use super::complete;
use super::connect::Connection;
use super::decide::{Consent, GateDecision, HELP, decide};
use super::fault::{Code, Fault};

/// Read and accept what waits at a gate
#[derive(clap::Args, Debug)]
#[command(after_help = format!("{HELP}
Examples:
  kubectl lockstep approve shop/discovery
  kubectl lockstep approve shop/architecture/E1 -m 'good' --review sha256:2c26b46b68ff
  kubectl lockstep approve shop/discovery --yes"))]
pub struct Args {
    /// RUN/STEP, RUN/STEP/KEY or the name of a StepRun; RUN where one gate is all that waits
    #[arg(add = complete::by(complete::waits_at_gate))]
    target: String,
    /// Comment
    #[arg(short = 'm', long = "comment", value_name = "TEXT")]
    comment: Option<String>,
    #[command(flatten)]
    consent: Consent,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let comment = args.comment.as_deref();
    let verdict = GateDecision { target: &args.target, accepted: true, comment, consent: &args.consent };
    // It holds whole objects.
    Box::pin(decide(on, verdict)).await
}
