//! The process that stands between an agent's command and the gateway: it claims the attempt, lays out the input, runs
//! the command, and reports the end. Also the verbs that an agent calls (`lockstep progress`, ...), which talk to it.
//! Threads and blocking calls only: it rides in every pod. Knows the protocol and the limits, no cluster.

mod calls;
mod files;
mod gateway;
mod install;
mod local;
mod mask;
mod process;
mod run;
mod settings;
mod supervise;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Exit codes of `run` beside the command's own.
pub mod exit {
    /// The command exited with 0, but what it made was refused.
    pub const INVALID_OUTPUT: u8 = 65;
    /// The gateway could not be reached or refused this pod: before the claim nothing was started, afterwards the end
    /// of the attempt was not accepted.
    pub const UNAVAILABLE: u8 = 69;
    /// The shim itself could not go on; the command was not started.
    pub const INTERNAL: u8 = 70;
    /// The attempt belongs to another pod, or is over; nothing was started, or what ran was stopped.
    pub const NOT_OURS: u8 = 75;
    /// `timeoutSeconds` or `progressTimeoutSeconds` is over.
    pub const TIMED_OUT: u8 = 124;
    /// The command exists, but cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// No such command.
    pub const NOT_FOUND: u8 = 127;
}

const CALLS_HELP: &str = "\
In an agent's container these verbs are on the PATH as `lockstep`: progress, result, fail, context, version.
The same over HTTP, from any language, with JSON bodies:
  POST $LOCKSTEP_URL/progress  {\"percent\": 50, \"message\": \"half way\"}         202
  POST $LOCKSTEP_URL/result    the result itself, or an empty body: check the file  200 valid, 422 {\"faults\": [...]}
  POST $LOCKSTEP_URL/fail      {\"retryable\": true, \"message\": \"no quota\"}       202, then SIGTERM";

const RUN_HELP: &str = "\
Exit codes:
  the command's own, 128 + N when signal N ended it, 0 when its output was accepted
   65  the command exited with 0, but its output was refused (the faults are in the log)
   69  the gateway could not be reached, or refused this pod
   70  the shim could not prepare the input; the command was not started
   75  the attempt belongs to another pod or is over; nothing was started, or what ran was stopped
  124  timeoutSeconds or progressTimeoutSeconds is over
  126, 127  the command cannot be executed, or does not exist";

/// The Lockstep shim: runs an agent's command for one attempt of a step, and answers its calls.
#[derive(Parser)]
#[command(name = "lockstep", version, after_help = CALLS_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Copy this program to DIR/bin/lockstep and make DIR/in, DIR/out and DIR/work (for the init container)
    Install { dir: PathBuf },
    /// Claim the attempt, run COMMAND, and report how it ended (the container's command)
    #[command(after_help = RUN_HELP)]
    Run {
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<std::ffi::OsString>,
    },
    /// Tell how far the work is; never waits for the cluster
    Progress {
        /// 0 to 100
        #[arg(value_parser = clap::value_parser!(i32).range(0..=100))]
        percent: i32,
        #[arg(trailing_var_arg = true)]
        text: Vec<String>,
    },
    /// Check the output now; prints `POINTER: message` for each fault and exits with 1 when it is wrong
    ///
    /// FILE is copied to $LOCKSTEP_OUT/result.json, unless it is that file. The document in $LOCKSTEP_OUT is checked as
    /// well. Repair and call again; what lies there at the command's exit counts.
    Result { file: Option<PathBuf> },
    /// End the attempt as failed; does not return
    Fail(FailArgs),
    /// Print the value at a JSON pointer of context.json; exits with 1 when there is none
    Context {
        /// For example /parameters/depth; the empty string is the whole
        pointer: String,
        /// Print strings as JSON too, in quotes
        #[arg(long, conflicts_with = "raw")]
        json: bool,
        /// Print strings as they are, without quotes (the default)
        #[arg(long)]
        raw: bool,
    },
    /// Print the version of the shim and of the protocol
    Version,
}

#[derive(Args)]
struct FailArgs {
    #[command(flatten)]
    kind: FailKind,
    #[arg(required = true, trailing_var_arg = true)]
    message: Vec<String>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct FailKind {
    /// Another attempt may do better
    #[arg(long)]
    retryable: bool,
    /// No attempt will do better
    #[arg(long)]
    unrecoverable: bool,
}

/// How `context` prints a string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strings {
    Raw,
    Json,
}

/// A reason to end with an exit code.
#[derive(Debug)]
struct Stop {
    code: u8,
    message: String,
}

impl Stop {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// One line for `kubectl logs`.
fn say(message: &str) {
    use std::io::Write as _;
    // A closed stderr must not end the shim.
    let _ = writeln!(std::io::stderr(), "lockstep: {message}");
}

/// The program's entry.
pub fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Install { dir } => install::install(&dir),
        Verb::Run { command } => run::run(&command),
        Verb::Progress { percent, text } => calls::progress(percent, &text.join(" ")),
        Verb::Result { file } => calls::result(file.as_deref()),
        Verb::Fail(fail) => calls::fail(&fail.kind, &fail.message.join(" ")),
        Verb::Context { pointer, json, .. } => {
            calls::context(&pointer, if json { Strings::Json } else { Strings::Raw })
        }
        Verb::Version => calls::version(),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(stop) => {
            say(&stop.message);
            ExitCode::from(stop.code)
        }
    }
}
