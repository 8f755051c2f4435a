//! `kubectl lockstep`: starts runs, shows them live, and carries people's decisions. Works on the objects alone, as the
//! person that the kubeconfig names; one file a verb. The exit codes stand in `fault`.

pub(crate) mod actions;
pub(crate) mod answer;
mod approve;
mod asked;
mod can_i;
mod cancel;
mod complete;
pub(crate) mod connect;
mod control;
pub(crate) mod decide;
pub(crate) mod dev;
mod difference;
mod doc;
mod export;
pub(crate) mod fault;
pub(crate) mod file;
#[cfg(test)]
mod golden;
mod held;
mod history;
mod import;
mod inbox;
pub(crate) mod line;
pub(crate) mod lint;
mod list;
mod logs;
mod mailbox;
mod memory;
pub(crate) mod pager;
pub(crate) mod print;
mod reject;
mod resolve;
mod resume;
mod retry;
mod retry_plan;
pub(crate) mod review;
mod rows;
pub(crate) mod run;
mod show;
mod spread;
mod step_page;
pub(crate) mod subject;
mod suspend;
mod table;
pub(crate) mod target;
pub(crate) mod text;
pub(crate) mod tree;
mod trigger;
mod value;
mod version;
pub(crate) mod wait;
pub(crate) mod watch;
pub(crate) mod yaml;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use connect::{Connection, Global};
use fault::{Code, Fault};
use print::Format;

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
  kubectl lockstep logs shop/discovery -f
  kubectl lockstep approve shop/discovery -m 'good'
  kubectl lockstep can-i approve discovery
  kubectl lockstep history shop --decisions
  kubectl lockstep retry shop --from architecture
  kubectl lockstep memory list planner shop
  kubectl lockstep doc put docs/ --session spring-campaign
  kubectl lockstep export shop > run.json
  kubectl lockstep trigger orders --data order.json
  kubectl lockstep lint flow.yaml
  kubectl lockstep dev -f flow.yaml -f agents.yaml --doc brief=brief.md
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
    Logs(logs::Args),
    Approve(approve::Args),
    Reject(reject::Args),
    Answer(answer::Args),
    CanI(can_i::Args),
    History(history::Args),
    Retry(retry::Args),
    Cancel(cancel::Args),
    Suspend(suspend::Args),
    Resume(resume::Args),
    Memory(memory::Args),
    Doc(doc::Args),
    Export(export::Args),
    Trigger(trigger::Args),
    Lint(lint::Args),
    Dev(Box<dev::Args>),
    Version(version::Args),
}

/// The verb that stands above this room.
pub(crate) type Dev = fn(&Global, dev::Args) -> Result<Code, Fault>;

/// The whole program; under another name it completes the command line of kubectl.
pub(crate) fn main(dev: Dev) -> ExitCode {
    let mut words = std::env::args_os();
    if complete::is_asked(words.next().as_deref()) {
        return complete::main(words.collect());
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(wrong) => {
            let code = if wrong.use_stderr() { Code::Usage } else { Code::Done };
            wrong.print().ok();
            return code.into();
        }
    };
    rustls::crypto::ring::default_provider().install_default().ok();
    if let Verb::Dev(args) = cli.verb {
        return ended(dev(&cli.global, *args));
    }
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
    ended(end)
}

fn ended(end: Result<Code, Fault>) -> ExitCode {
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
    if cli.global.output == Format::Sarif {
        return Err(Fault::usage("--output: sarif is what lint finds; choose table, wide, json, yaml or name"));
    }
    let on = Connection::open(&cli.global).await?;
    match cli.verb {
        Verb::Run(args) => Box::pin(run::run(&on, args)).await,
        Verb::List(args) => list::run(&on, args).await,
        Verb::Inbox(args) => inbox::run(&on, args).await,
        Verb::Watch(args) => watch::run(&on, &args).await,
        Verb::Logs(args) => Box::pin(logs::run(&on, &args)).await,
        Verb::Show(args) => Box::pin(show::run(&on, &args)).await,
        Verb::Approve(args) => approve::run(&on, &args).await,
        Verb::Reject(args) => reject::run(&on, &args).await,
        Verb::Answer(args) => answer::run(&on, &args).await,
        Verb::CanI(args) => can_i::run(&on, &args).await,
        Verb::History(args) => history::run(&on, &args).await,
        Verb::Retry(args) => Box::pin(retry::run(&on, &args)).await,
        Verb::Cancel(args) => cancel::run(&on, &args).await,
        Verb::Suspend(args) => suspend::run(&on, &args).await,
        Verb::Resume(args) => resume::run(&on, &args).await,
        Verb::Memory(args) => memory::run(&on, &args).await,
        Verb::Doc(args) => doc::run(&on, args).await,
        Verb::Export(args) => export::run(&on, &args).await,
        Verb::Trigger(args) => Box::pin(trigger::run(&on, &cli.global, &args)).await,
        Verb::Lint(args) => lint::run(on.output, &args),
        Verb::Dev(_) => Err(Fault::usage("dev takes no connection")),
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
            "kubectl-lockstep retry shop --all",
            "kubectl-lockstep cancel shop --wait",
            "kubectl-lockstep logs shop -f --tail 5",
            "kubectl-lockstep logs shop/a/b --previous",
            "kubectl-lockstep suspend shop",
            "kubectl-lockstep resume shop",
            "kubectl-lockstep lint - a.yaml -o json",
            "kubectl-lockstep approve shop/a --review 01234567",
            "kubectl-lockstep approve shop/a -y -m good",
            "kubectl-lockstep reject shop/a -m bad --yes",
            "kubectl-lockstep can-i approve backlog --as ann --as-group product",
            "kubectl-lockstep can-i run",
            "kubectl-lockstep memory get planner _shop-12345678",
            "kubectl-lockstep memory get planner shop style -o yaml",
            "kubectl-lockstep memory set planner shop count -5 --if-revision 0",
            "kubectl-lockstep memory set planner shop plan --file plan.json",
            "kubectl-lockstep memory rm planner shop plan --if-revision 3",
            "kubectl-lockstep memory ls planner shop",
            "kubectl-lockstep run default --wait -o json",
            "kubectl-lockstep run --from run.json --session s --param a=1",
            "kubectl-lockstep doc put a.md docs --session s",
            "kubectl-lockstep doc put a.md --type brief --project p",
            "kubectl-lockstep doc get brief --run shop --key E1/F2",
            "kubectl-lockstep doc ls -A --type brief",
            "kubectl-lockstep export shop -o yaml",
            "kubectl-lockstep dev -f a.yaml -f b --doc brief=b.md --agent a=b --approve x --answer s=-5 --fresh",
            "kubectl-lockstep trigger orders --data order.json --id 7 --type t --source s",
            "kubectl-lockstep trigger orders --url https://localhost:8443 --token t --certificate-authority ca.crt",
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
            "kubectl-lockstep logs",
            "kubectl-lockstep logs shop -f -p",
            "kubectl-lockstep can-i delete x",
            "kubectl-lockstep lint",
            "kubectl-lockstep memory set planner shop key",
            "kubectl-lockstep memory set planner shop key 1 --file x",
            "kubectl-lockstep memory rm planner shop",
            "kubectl-lockstep trigger",
            "kubectl-lockstep list -o fancy",
            "kubectl-lockstep retry shop --all --from a",
            "kubectl-lockstep run default --wait -w",
            "kubectl-lockstep run --from run.json -f run.yaml",
            "kubectl-lockstep run default --from run.json",
            "kubectl-lockstep doc put",
            "kubectl-lockstep doc put a.md --session s --project p",
            "kubectl-lockstep doc get brief --key E1",
            "kubectl-lockstep doc get brief --run shop --session s",
            "kubectl-lockstep export",
        ] {
            let wrong = Cli::try_parse_from(line.split(' ')).err();
            assert!(wrong.is_some_and(|wrong| wrong.use_stderr()), "{line}");
        }
    }
}
