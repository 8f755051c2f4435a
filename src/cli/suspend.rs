//! `suspend`: holds a run.

use super::connect::Connection;
use super::control::{self, Wish};
use super::fault::{Code, Fault};

/// Suspend a run: nothing new starts until it is resumed
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Attempts that run finish, and decisions and answers are still taken; nothing follows them.

Examples:
  kubectl lockstep suspend shop")]
pub struct Args {
    /// The run
    run: String,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    control::wish(on, &args.run, Wish::Suspend).await?;
    Ok(Code::Done)
}
