//! The process that stands between an agent's command and the gateway: it claims the attempt, lays out the input, runs
//! the command, and reports the end. Also the verbs that an agent calls (`lockstep progress`, ...), which talk to it.
//! Threads and blocking calls, but for the local server and its MCP tools: it rides in every pod. Knows the protocol and the
//! limits, no cluster.

mod approve;
mod ask;
mod calls;
mod cgroup_memory;
mod documents;
mod files;
mod gateway;
mod hook;
mod install;
mod journal;
mod local;
mod mask;
mod mcp;
mod process;
mod recall;
mod remember;
mod repair;
mod run;
mod serve;
mod settings;
mod supervise;
mod talk;
mod tools;
mod usage;
mod wait;

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
In an agent's container these verbs are on the PATH as `lockstep`: progress, journal, usage, history, memory, document,
result, ask, request-approval, fail, context, mcp, version.
The same over HTTP, from any language, with JSON bodies:
  POST $LOCKSTEP_URL/progress  {\"percent\": 50, \"message\": \"half way\"}         202
  POST $LOCKSTEP_URL/journal   {\"state\": \"completed\", \"message\": \"\"}         202, 409 where it would go back
  POST $LOCKSTEP_URL/usage     {\"tokensIn\": 900, \"tokensOut\": 80, \"cost\": \"0.01\", \"model\": \"m\"}  200 and the sum
  GET  $LOCKSTEP_URL/history?before=CURSOR                                 200 {\"entries\": [...], \"cursor\": ...}
  POST $LOCKSTEP_URL/result    the result itself, or an empty body: check the file  200 valid, 422 {\"faults\": [...]}
  POST $LOCKSTEP_URL/ask       {\"questions\": [{\"question\": \"How much?\", \"key\": \"budget\"}]}
                               200 {\"answers\": {\"budget\": 20000}}; 202, then SIGTERM.
                               With \"waitSeconds\": 300 it holds so long for an answer
  POST $LOCKSTEP_URL/request-approval  {\"action\": \"Send the mail\", \"payload\": {...}, \"gate\": \"mail\", \"waitSeconds\": 300}
                               200 {\"decision\": \"allowed\" or \"denied\", \"decisions\": [...]}; 202, then SIGTERM
  POST $LOCKSTEP_URL/fail      {\"retryable\": true, \"message\": \"no quota\"}       202, then SIGTERM
  POST $LOCKSTEP_URL/memory/get     {\"key\": \"k\"}                      200 {\"value\": ..., \"revision\": 3}, 404
  POST $LOCKSTEP_URL/memory/set     {\"key\": \"k\", \"value\": {\"a\": 1}}  200 {\"revision\": 4}; 409 by \"ifRevision\"
  POST $LOCKSTEP_URL/memory/delete  {\"key\": \"k\", \"ifRevision\": 4}     200; 409 {\"revision\": 5}
  POST $LOCKSTEP_URL/memory/list                                      200 {\"entries\": [...], \"bytes\": 120}
  POST $LOCKSTEP_URL/document/get   {\"type\": \"glossary\"}           200 {\"document\": ..., \"content\": \"...\"}, 404
  POST $LOCKSTEP_URL/document/list  {\"scope\": \"Session\"}            200 {\"documents\": [...]}";

const MCP_HELP: &str = "\
The tools are progress, journal, usage, history, memory_get, memory_set, memory_delete, memory_list, document_list,
document_get, result, ask, request_approval, permission_prompt and fail. Their arguments are the JSON bodies that `lockstep --help` lists;
permission_prompt takes and gives what `claude --permission-prompt-tool mcp__lockstep__permission_prompt` expects.
The same server answers over streamable HTTP at $LOCKSTEP_URL/mcp.

Examples:
  claude mcp add lockstep -- lockstep mcp
  claude mcp add --transport http lockstep $LOCKSTEP_URL/mcp";

const RUN_HELP: &str = "\
Exit codes:
  the command's own, 128 + N when signal N ended it, 0 when its output was accepted, or when it asked
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
    /// Claim the attempt for a container that is left as it is, and report for it on SIGTERM (the sidecar's command)
    #[command(hide = true)]
    Attend,
    /// Whether the attempt is claimed (the sidecar's startup probe)
    #[command(hide = true)]
    Attended,
    /// Run COMMAND for the kubelet, while the agent's own command runs (probes and `preStop`)
    #[command(hide = true)]
    Hook {
        kind: hook::Hook,
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
    /// Keep the journal of the attempt; it never goes back
    ///
    /// The claim sets it to busy before the command runs. `completed` counts once the command ends with 0 and a valid output.
    /// `failed` ends the attempt as `fail --retryable` does, and does not return.
    Journal {
        state: journal::ReportedState,
        #[arg(trailing_var_arg = true)]
        message: Vec<String>,
    },
    /// Tell what models used since the last call; it is added up for the attempt
    Usage(talk::UsageArgs),
    /// Print what was said before as JSON: the newest entries, or those before a cursor
    History {
        /// The `historyCursor` of context.json, or the `cursor` of the page before
        #[arg(long)]
        before: Option<String>,
    },
    /// Check the output now; prints `POINTER: message` for each fault and exits with 1 when it is wrong
    ///
    /// FILE is copied to $LOCKSTEP_OUT/result.json, unless it is that file. The document in $LOCKSTEP_OUT is checked as
    /// well. Repair and call again; what lies there at the command's exit counts.
    Result { file: Option<PathBuf> },
    /// Ask a person; prints the answer if there is one, else ends the attempt and does not return
    #[command(after_help = ask::HELP)]
    Ask(ask::Args),
    /// Request the approval of one action by people; prints what they decided
    #[command(after_help = approve::HELP)]
    RequestApproval(approve::Args),
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
    /// Read and write what this agent remembers in this session
    Memory(recall::Args),
    /// Read documents beyond those in $LOCKSTEP_IN/documents
    Document(documents::Args),
    /// Offer these verbs as tools of an MCP server on stdin and stdout, for an agent's runtime to start
    #[command(after_help = MCP_HELP)]
    Mcp,
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
    called(std::env::args_os())
}

/// The same for a program that is more than the shim. The first word is its name.
pub fn called(words: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let done = match Cli::parse_from(words).verb {
        Verb::Install { dir } => install::install(&dir),
        Verb::Run { command } => run::run(&command),
        Verb::Attend => run::attend(),
        Verb::Attended => Ok(run::attended()),
        Verb::Hook { kind, command } => hook::hook(kind, &command),
        Verb::Progress { percent, text } => calls::progress(percent, &text.join(" ")),
        Verb::Journal { state, message } => talk::journal(state, &message.join(" ")),
        Verb::Usage(usage) => talk::usage(&usage),
        Verb::History { before } => talk::history(before.as_deref()),
        Verb::Result { file } => calls::result(file.as_deref()),
        Verb::Ask(args) => ask::ask(&args),
        Verb::RequestApproval(args) => approve::request(&args),
        Verb::Fail(fail) => calls::fail(&fail.kind, &fail.message.join(" ")),
        Verb::Context { pointer, json, .. } => {
            calls::context(&pointer, if json { Strings::Json } else { Strings::Raw })
        }
        Verb::Memory(args) => recall::memory(&args),
        Verb::Document(args) => documents::document(&args),
        Verb::Mcp => mcp::serve_stdio(),
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
