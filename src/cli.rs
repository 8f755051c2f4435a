//! `kubectl lockstep`: starts runs, shows them live, and carries people's decisions. Works on the objects alone, as the
//! person that the kubeconfig names; one file a verb. The exit codes stand in `fault`.

mod answer;
mod approve;
mod can_i;
mod cancel;
mod connect;
mod control;
mod decide;
mod difference;
mod fault;
mod history;
mod inbox;
mod line;
mod lint;
mod list;
mod mailbox;
mod pager;
mod print;
mod reject;
mod resume;
mod retry;
mod rows;
mod run;
mod show;
mod step_page;
mod subject;
mod suspend;
mod target;
mod text;
mod tree;
mod value;
mod version;
mod wait;
mod watch;
mod yaml;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use connect::{Connection, Global};
use fault::{Code, Fault};

const EXIT_CODES: &str = "\
Targets:
  RUN               a run (Workflow)
  RUN/STEP          a step of it; a step in a group also as RUN/GROUP/STEP
  RUN/STEP/KEY      one item of a forEach
  NAME              a StepRun by its own name, where a step is expected

Exit codes:
  0  done; the run completed
  1  the run failed or was cancelled; or it is too late: the wait or the run is over; or you said no; or lint found
     faults; or can-i says no
  2  wrong usage
  3  the run waits for people (watch --until-wait)
  4  not found, or more than one fits
  5  the API server refused, failed, could not be reached, or nothing answered in time
  6  a document is not what its step reported: it was exchanged or is gone, and nothing was decided
  130  left with Ctrl-C; the run goes on";

const EXAMPLES: &str = "\
Examples:
  kubectl lockstep run default --name shop --input 'A shop for used bikes' --doc brief=brief.md -w
  kubectl lockstep watch shop
  kubectl lockstep inbox -A
  kubectl lockstep show shop/discovery
  kubectl lockstep approve shop/discovery -m 'good'
  kubectl lockstep can-i approve discovery
  kubectl lockstep history shop --decisions
  kubectl lockstep retry shop --from architecture
  kubectl lockstep lint flow.yaml
";

#[derive(Parser, Debug)]
#[command(
    name = "kubectl-lockstep",
    bin_name = "kubectl lockstep",
    about = "Run agent workflows on Kubernetes, watch them, and decide at their gates",
    version,
    disable_version_flag = true,
    after_help = format!("{EXAMPLES}\n{EXIT_CODES}"),
    propagate_version = false,
    max_term_width = 110
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Run(run::Args),
    List(list::Args),
    Inbox(inbox::Args),
    Watch(watch::Args),
    Show(show::Args),
    Approve(approve::Args),
    Reject(reject::Args),
    Answer(answer::Args),
    CanI(can_i::Args),
    History(history::Args),
    Retry(retry::Args),
    Cancel(cancel::Args),
    Suspend(suspend::Args),
    Resume(resume::Args),
    Lint(lint::Args),
    Version(version::Args),
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(wrong) => {
            let code = if wrong.use_stderr() { Code::Usage } else { Code::Done };
            wrong.print().ok();
            return code.into();
        }
    };
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(wrong) => {
            eprintln!("error: cannot start: {wrong}");
            return Code::Api.into();
        }
    };
    let end = runtime.block_on(verb(cli));
    // Not waited for: a resolver thread may still hang on a dead network.
    runtime.shutdown_background();
    match end {
        Ok(code) => code.into(),
        Err(fault) => {
            if !fault.text.is_empty() {
                eprintln!("error: {}", text::block(&fault.text, usize::MAX));
            }
            fault.code.into()
        }
    }
}

async fn verb(cli: Cli) -> Result<Code, Fault> {
    if let Verb::Version(args) = &cli.verb
        && args.client
    {
        return version::client(cli.global.output);
    }
    if let Verb::Lint(args) = &cli.verb {
        return lint::run(cli.global.output, args);
    }
    let on = Connection::open(&cli.global).await?;
    match cli.verb {
        Verb::Run(args) => run::run(&on, args).await,
        Verb::List(args) => list::run(&on, args).await,
        Verb::Inbox(args) => inbox::run(&on, args).await,
        Verb::Watch(args) => watch::run(&on, &args).await,
        Verb::Show(args) => show::run(&on, &args).await,
        Verb::Approve(args) => approve::run(&on, &args).await,
        Verb::Reject(args) => reject::run(&on, &args).await,
        Verb::Answer(args) => answer::run(&on, &args).await,
        Verb::CanI(args) => can_i::run(&on, &args).await,
        Verb::History(args) => history::run(&on, &args).await,
        Verb::Retry(args) => retry::run(&on, &args).await,
        Verb::Cancel(args) => cancel::run(&on, &args).await,
        Verb::Suspend(args) => suspend::run(&on, &args).await,
        Verb::Resume(args) => resume::run(&on, &args).await,
        Verb::Lint(args) => lint::run(on.output, &args),
        Verb::Version(_) => version::run(&on).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_go_anywhere() {
        for line in [
            "kubectl-lockstep -n team-a show shop/discovery -o yaml",
            "kubectl-lockstep show shop/discovery -n team-a -o yaml",
            "kubectl-lockstep --as alice --as-group a --as-group b run default --input -x -w",
            "kubectl-lockstep run default --param a=1 --param b=@f.json --doc brief=b.md",
            "kubectl-lockstep run -f run.yaml",
            "kubectl-lockstep answer shop/a retry -m more --request-timeout 5s",
            "kubectl-lockstep answer shop/a -5",
            "kubectl-lockstep history shop --decisions -o json",
            "kubectl-lockstep retry shop --from a --name b -w",
            "kubectl-lockstep cancel shop --wait",
            "kubectl-lockstep suspend shop",
            "kubectl-lockstep resume shop",
            "kubectl-lockstep lint - a.yaml -o json",
            "kubectl-lockstep approve shop/a --review 01234567",
            "kubectl-lockstep approve shop/a -y -m good",
            "kubectl-lockstep reject shop/a -m bad --yes",
            "kubectl-lockstep can-i approve backlog --as ann --as-group product",
            "kubectl-lockstep can-i run",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "kubectl-lockstep",
            "kubectl-lockstep run",
            "kubectl-lockstep reject shop/a",
            "kubectl-lockstep answer shop/a",
            "kubectl-lockstep cancel",
            "kubectl-lockstep can-i",
            "kubectl-lockstep can-i delete x",
            "kubectl-lockstep lint",
            "kubectl-lockstep list -o fancy",
        ] {
            let wrong = Cli::try_parse_from(line.split(' ')).err();
            assert!(wrong.is_some_and(|wrong| wrong.use_stderr()), "{line}");
        }
    }
}
