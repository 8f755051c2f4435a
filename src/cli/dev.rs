//! `dev`: its command line. What it does stands above this room, in `crate::dev`: operator and gateway are in it.

use std::ffi::OsString;
use std::path::PathBuf;

use super::run::RunFlags;

/// Run a workflow, or one agent, on this machine: no cluster, no container
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The files hold a Workflow, or a WorkflowTemplate of which a run is made, and their Agents; Documents, Secrets and ConfigMaps are
taken, too. Files with one Agent and nothing to run are that agent's own trial: one step, one attempt, its output printed.

What runs is the product: its operator, its gateway and its shim, over an API server in this process. An Agent's command runs as a
process of yours, in this folder and with your environment, under that of its template. Where its command is not on this
machine, say what runs instead: --agent NAME=COMMAND (a line for sh), or a file of such lines, which run in the file's folder.

Who decides at gates is you, and nobody proves it: there are no admission policies here. On a terminal you are asked. Elsewhere
say it beforehand, or call again with what you decide: the run is kept in a folder (.lockstep/RUN), and the same command goes on
where it was, also after Ctrl-C or a crash. A run that has ended is begun anew.

Exit codes: 0 the run completed; 1 it failed; 2 wrong usage, or the files have faults; 3 it waits for people; 5 the state cannot
be kept, or another dev works there; 130 Ctrl-C.

Examples:
  kubectl lockstep dev -f flow.yaml -f agents.yaml --doc brief=brief.md
  kubectl lockstep dev -f flow.yaml -f agents.yaml --agent planner='python3 planner.py'
  kubectl lockstep dev -f flow.yaml --agents dev.agents --approve discovery
  kubectl lockstep dev -f flow.yaml --answer budget=20000 --approve-all
  kubectl lockstep dev -f agent.yaml --doc brief=brief.md --param depth=2 --input 'A shop' -- python3 agent.py
  kubectl lockstep dev -f agent.yaml --produces plan.md --comment 'shorter, please' -- node agent.js")]
pub struct Args {
    /// YAML or JSON files, or folders of them; may be repeated
    #[arg(short, long = "file", required = true, value_name = "FILE|FOLDER")]
    pub files: Vec<PathBuf>,
    /// WorkflowTemplate to run, where the files have several and no Workflow
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,
    /// Name of the run; that of the Workflow, template or Agent unless told
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub flags: RunFlags,
    /// What runs here for an Agent; may be repeated
    #[arg(long = "agent", value_name = "NAME=COMMAND")]
    pub agents: Vec<String>,
    /// File of lines NAME=COMMAND, which run in its folder
    #[arg(long = "agents", value_name = "FILE")]
    pub agents_file: Option<PathBuf>,
    /// Attempts that run at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// Folder that keeps the run; .lockstep/RUN unless told
    #[arg(long, value_name = "FOLDER")]
    pub state: Option<PathBuf>,
    /// Forget what the folder keeps, and begin anew
    #[arg(long)]
    pub fresh: bool,
    #[command(flatten)]
    pub decisions: DecisionFlags,
    /// With one Agent: the document that it makes, by its file name, as plan.md
    #[arg(long, value_name = "TYPE.md|.json|.txt")]
    pub produces: Option<String>,
    /// With one Agent: reject its output with this, and let it do better; each repetition is another round
    #[arg(long = "comment", value_name = "TEXT")]
    pub comments: Vec<String>,
    /// With one Agent: its command here
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What is decided and answered without being asked.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct DecisionFlags {
    /// Accept at every gate
    #[arg(long)]
    pub approve_all: bool,
    /// Accept at the gate of a step (STEP or STEP/KEY); may be repeated
    #[arg(long = "approve", value_name = "STEP")]
    pub approve: Vec<String>,
    /// Reject at the gate of a step, once; may be repeated
    #[arg(long = "reject", value_name = "STEP=WHY")]
    pub reject: Vec<String>,
    /// Answer a question of a step; or say retry, skip or fail where it cannot go on. Each is used once, in the order given
    #[arg(long = "answer", value_name = "STEP=ANSWER")]
    pub answers: Vec<String>,
}
