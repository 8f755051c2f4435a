//! `kubectl lockstep dev`: a run on this machine. It is the product that runs: operator, gateway and shim, over the API server in
//! memory, with a kubelet whose pods are processes. What differs from a cluster: nothing proves who decides, there are no
//! containers, and what the API server keeps lies in a folder.
//!
//! Read `input` (what is asked for), `folder`, `disk` and `durable` (what is kept, and when), `installation` and `person` (who
//! works on it), `kubelet` and `leash` (processes), then `session` and `ending` (the local user).

mod chance;
mod command;
mod disk;
mod durable;
mod ending;
mod folder;
mod input;
mod installation;
mod kubelet;
mod leash;
mod person;
mod preset_decisions;
mod session;
mod tokens;

use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::apiserver::{ApiServer, Registry};
use crate::cli;
use crate::cli::connect::Global;
use crate::cli::dev::Args;
use crate::cli::fault::{Code, Fault};
use crate::cluster::clock::Clock;
use crate::telemetry::Metrics;
use crate::{shim, telemetry};
use command::Commands;
use durable::Durable;
use ending::Telling;
use folder::{Folder, OpenMode};
use input::{DevInput, RunStart};
use installation::Means;
use kubelet::ShutdownOrder;
use person::LocalPerson;
use preset_decisions::PresetDecisions;
use session::Session;
use tokens::Tokens;

/// Under which name agents call the shim's verbs.
const CALLED: &str = "lockstep";
/// What the program is told when it evaluates for another (`cluster/evaluator`).
const EVALUATES: &str = "evaluate";
/// And when it talks to a model for an Agent that is only a prompt.
const PROMPTS: &str = "prompt";
/// How long agents have to end after Ctrl-C.
const PATIENCE: Duration = Duration::from_secs(15);

/// The plugin, which is also what `dev` starts: the shim of an attempt, an agent's call, a process that evaluates.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(OsStr::new(CALLED)) {
        return shim::main();
    }
    match words.next().as_deref().and_then(OsStr::to_str) {
        Some(leash::WORD) => leash::main(words),
        Some(EVALUATES) => match crate::cluster::evaluator::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Some(PROMPTS) => crate::prompt::main(),
        _ => cli::main(run),
    }
}

fn run(global: &Global, args: Args) -> Result<Code, Fault> {
    if !global.output.is_text() {
        return Err(Fault::usage("dev prints text only; what the run makes lies in its folder"));
    }
    let failed = |why: std::io::Error| Fault::new(Code::Api, format!("cannot start: {why}"));
    // As in the operator's own program: the parser of expressions is recursive.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().thread_stack_size(64 << 20).build().map_err(failed)?;
    let ended = runtime.block_on(Box::pin(work(args)));
    // Not waited for: a thread may read what nobody types.
    runtime.shutdown_background();
    ended
}

async fn work(args: Args) -> Result<Code, Fault> {
    let input = input::read(&args)?;
    let decisions = PresetDecisions::read(&args.decisions, &args.comments)?;
    let here = std::env::current_dir().map_err(|why| Fault::usage(format!("there is no current folder: {why}")))?;
    let mut commands = Commands::read(&args.agents, args.agents_file.as_deref(), here)?;
    if let Some(agent) = input.trial_agent.as_deref().filter(|_| !args.command.is_empty()) {
        commands.say(agent, args.command.clone());
    }
    let faults = commands.faults(&input.named, &input.agents);
    if !faults.is_empty() {
        return Err(Fault::usage(faults.join("\n")));
    }
    let place = args.state.clone().unwrap_or_else(|| Path::new(".lockstep").join(input.name()));
    if input.trial_agent.is_some() && !std::io::stdout().is_terminal() {
        cli::print::speak_aside();
    }
    let mut dev = Dev::open(&place, &args, commands).await?;
    let (run, begun) = dev.begin(&input).await?;
    let uid = run.metadata.uid.clone().unwrap_or_default();
    let verb = if begun == RunStart::New { "runs" } else { "goes on" };
    eprintln!(
        "{} {verb} here: agents are processes of this machine; whoever runs this command ({}) decides at gates, and nothing proves who that is; kept in {}",
        input.name(),
        dev.user,
        place.display()
    );
    let (server, metrics) = (dev.server.clone(), Arc::clone(&dev.metrics));
    let mut session = Session { server, metrics, user: dev.user.clone(), decisions };
    let ended = tokio::select! {
        ended = session.follow(run) => ended,
        why = dev.fails() => Err(why),
    };
    let is_left = matches!(ended, Ok(Code::Interrupted));
    dev.stop(if is_left { "\nending what runs; Ctrl-C again kills it\n" } else { "" }).await?;
    let code = ended?;
    for unused in session.decisions.unused() {
        eprintln!("note: nothing was there for {unused}");
    }
    match code {
        Code::Done | Code::Failed => {
            let on = session.connection(&dev.user);
            let run = on.workflow(input.name()).await?;
            let telling = if input.trial_agent.is_some() { Telling::Whole } else { Telling::Places };
            ending::tell(&on, &run, &dev.folder, telling).await?;
            dev.folder
                .note_shown_run(&uid)
                .map_err(|why| Fault::new(Code::Api, format!("cannot note the end: {why}")))?;
        }
        Code::Waiting => eprintln!("{} waits; the same command goes on, with what is decided", input.name()),
        _ => eprintln!("\nleft; the same command goes on"),
    }
    Ok(code)
}

/// Everything that runs in this process.
struct Dev {
    user: String,
    folder: Arc<Folder>,
    server: Durable,
    /// What the operator does.
    metrics: Arc<Metrics>,
    parts: JoinSet<String>,
    kubelet: mpsc::Sender<ShutdownOrder>,
    /// What starts once the run is there.
    begin: Option<Beginning>,
}

struct Beginning {
    machine: kubelet::Machine,
    orders: mpsc::Receiver<ShutdownOrder>,
    listener: TcpListener,
    person: LocalPerson,
    jobs: u16,
}

impl Dev {
    async fn open(place: &Path, args: &Args, commands: Commands) -> Result<Self, Fault> {
        let failed = |why: std::io::Error| Fault::new(Code::Api, format!("cannot start: {why}"));
        let mode = if args.fresh { OpenMode::Reset } else { OpenMode::Keep };
        let folder = Arc::new(Folder::open(place, mode)?);
        if let Ok(file) = std::fs::File::create(folder.log()) {
            let filter = std::env::var("LOCKSTEP_LOG").unwrap_or_else(|_| "info".to_owned());
            // Without it nothing is missing that the run needs.
            telemetry::log_into(&filter, file).ok();
        }
        let opened = disk::open(&folder.state()).map_err(|why| Fault::new(Code::Api, why))?;
        let (user, tokens) = (person::name(), Tokens::default());
        let clock = Clock::default();
        let clock = Box::new(move || clock.now().0);
        let registry = Registry::new(Box::new(opened.disk), Box::new(tokens.clone()), clock, opened.salt.clone());
        let server = Durable { api: ApiServer::new(registry, &user), written: opened.written };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let program = program().map_err(failed)?;
        let machine = kubelet::Machine {
            calls: folder.calls(&program).map_err(failed)?,
            program,
            folder: Arc::clone(&folder),
            tokens,
            commands,
            gateway: format!("http://{}", listener.local_addr().map_err(failed)?),
        };
        let (kubelet, orders) = mpsc::channel(4);
        let begin = Beginning { machine, orders, listener, person: LocalPerson::at(&opened.salt), jobs: args.jobs };
        let metrics = Arc::default();
        Ok(Self { user, folder, server, metrics, parts: JoinSet::new(), kubelet, begin: Some(begin) })
    }

    /// Makes what is asked for, and starts all that works on it.
    async fn begin(&mut self, input: &DevInput) -> Result<(crate::api::Workflow, RunStart), Fault> {
        let (user, told) = (&self.user, self.folder.shown_run());
        let (run, begun) = self.server.api.with(|registry| {
            input.apply(registry, user)?;
            input.start(registry, user, told.as_deref())
        })?;
        if begun == RunStart::New {
            self.folder.forget_attempts();
        }
        let lost = |why: String| Fault::new(Code::Api, format!("the state cannot be kept: {why}"));
        self.server.kept().await.map_err(lost)?;
        if let Some(Beginning { machine, orders, listener, person, jobs }) = self.begin.take() {
            let (api, url) = (self.server.api.clone(), machine.gateway.clone());
            let means = Means::of(&machine.program, jobs);
            let (server, own) = (self.server.clone(), means.clone());
            self.parts.spawn(async move {
                let ended = installation::serve(&server, listener, &own).await;
                format!("the gateway ended: {ended:?}")
            });
            let (server, metrics) = (self.server.clone(), Arc::clone(&self.metrics));
            self.parts.spawn(async move {
                let why = installation::operate(&server, person, url, (&means, metrics)).await;
                format!("the operator ended: {why}")
            });
            let garbage = installation::collect(api.clone());
            self.parts.spawn(garbage.map(|()| "the garbage collector ended".to_owned()));
            let pods = kubelet::run(api, machine, orders);
            self.parts.spawn(pods.map(|()| "the kubelet ended".to_owned()));
        }
        Ok((run, begun))
    }

    /// Until something ends that must not.
    async fn fails(&mut self) -> Fault {
        let mut written = self.server.written.clone();
        let why = tokio::select! {
            Some(ended) = self.parts.join_next() => ended.unwrap_or_else(|panic| panic.to_string()),
            kept = written.wait_for(|written| written.fault.is_some()) => {
                let fault = kept.ok().and_then(|written| written.fault.clone()).unwrap_or_default();
                format!("the state cannot be kept: {fault}")
            }
        };
        let log = self.folder.log();
        Fault::new(Code::Api, format!("{why}; the same command goes on; the log is {}", log.display()))
    }

    /// Ends what runs, and waits until all that was written is kept.
    async fn stop(&mut self, told: &str) -> Result<(), Fault> {
        let (tell, stopped) = oneshot::channel();
        let mut stopped = Box::pin(stopped);
        if self.kubelet.send(ShutdownOrder::Stop(tell)).await.is_ok() {
            eprint!("{told}");
            let unsure = |wrong| Fault::new(Code::Api, format!("cannot take signals: {wrong}"));
            let mut again = signal(SignalKind::interrupt()).map_err(unsure)?;
            let ended = async {
                tokio::select! {
                    _ = &mut stopped => true,
                    _ = again.recv() => false,
                }
            };
            if !tokio::time::timeout(PATIENCE, ended).await.unwrap_or(false) {
                self.kill(&mut stopped).await;
            }
        }
        self.server.kept().await.map_err(|why| Fault::new(Code::Api, format!("the state cannot be kept: {why}")))
    }

    async fn kill(&self, stopped: &mut (impl Future<Output = Result<(), oneshot::error::RecvError>> + Unpin)) {
        if self.kubelet.send(ShutdownOrder::Kill).await.is_ok() {
            // What the system does not end is not waited for.
            let _ = tokio::time::timeout(PATIENCE, stopped).await;
        }
    }
}

/// This very program: as it is named, so that what it starts has a name in a list of processes.
fn program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}
