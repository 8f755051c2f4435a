//! `resume`: lets a suspended run go on.

use super::connect::Connection;
use super::control::{self, Wish};
use super::fault::{Code, Fault};

/// Resume a run that was suspended
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kubectl lockstep resume shop")]
pub struct Args {
    /// The run
    run: String,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    control::wish(on, &args.run, Wish::Resume).await?;
    Ok(Code::Done)
}
