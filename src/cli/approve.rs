//! `approve`: accepts what waits at a gate.

use super::connect::Connection;
use super::decide::{Verdict, decide};
use super::fault::{Code, Fault};

/// Accept what waits at a gate
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The decision binds the output as it is shown; if another replaces it in between, nothing is decided.

Examples:
  kubectl lockstep approve shop/discovery
  kubectl lockstep approve shop/architecture/E1 -m 'good' --review sha256:2c26b46b68ff")]
pub struct Args {
    /// RUN/STEP, RUN/STEP/KEY or the name of a StepRun
    target: String,
    /// Comment
    #[arg(short = 'm', long = "comment", value_name = "TEXT")]
    comment: Option<String>,
    /// Digest of the output that was read (its first 8 characters or more); refused if the output is another now
    #[arg(long, value_name = "sha256:...")]
    review: Option<String>,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let verdict = Verdict {
        target: &args.target,
        accepted: true,
        comment: args.comment.as_deref(),
        review: args.review.as_deref(),
    };
    decide(on, verdict).await
}
