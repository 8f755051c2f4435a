//! `reject`: refuses what waits at a gate, with a comment.

use super::connect::Connection;
use super::decide::{Verdict, decide};
use super::fault::{Code, Fault};

/// Reject what waits at a gate
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kubectl lockstep reject shop/discovery -m 'the scope is too big'")]
pub struct Args {
    /// RUN/STEP, RUN/STEP/KEY or the name of a StepRun
    target: String,
    /// Comment: what must change
    #[arg(short = 'm', long = "comment", value_name = "TEXT", required = true)]
    comment: String,
    /// Digest of the output that was read (its first 8 characters or more); refused if the output is another now
    #[arg(long, value_name = "sha256:...")]
    review: Option<String>,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let verdict =
        Verdict { target: &args.target, accepted: false, comment: Some(&args.comment), review: args.review.as_deref() };
    decide(on, verdict).await
}
