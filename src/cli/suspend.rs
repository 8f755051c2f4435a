//! `suspend`: holds a run.

use super::complete;
use super::connect::Connection;
use super::control::{self, ControlVerb};
use super::fault::{Code, Fault};

/// Suspend a run: nothing new starts until it is resumed
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Attempts that run finish, and decisions and answers are still taken; nothing follows them.

Examples:
  kubectl lockstep suspend shop")]
pub struct Args {
    /// The run
    #[arg(add = complete::by(complete::runs))]
    run: String,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    control::apply(on, &args.run, ControlVerb::Suspend).await?;
    Ok(Code::Done)
}
