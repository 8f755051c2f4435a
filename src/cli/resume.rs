//! `resume`: lets a suspended run go on.

use super::complete;
use super::connect::Connection;
use super::control::{self, ControlVerb};
use super::fault::{Code, Fault};

/// Resume a run that was suspended
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  kubectl lockstep resume shop")]
pub struct Args {
    /// The run
    #[arg(add = complete::by(complete::runs))]
    run: String,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    control::apply(on, &args.run, ControlVerb::Resume).await?;
    Ok(Code::Done)
}
