//! The operator, the gateway, the HTTP API, what a prompt runs, and the CRDs' printer: chosen by the first argument.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lockstep::api::name::{API, GATEWAY};
use lockstep::cluster::client::connect;
use lockstep::{controllers, gateway, http, telemetry};

/// Runs agent workflows on Kubernetes.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Log filter, for example `info,lockstep=debug`.
    #[arg(long, env = "LOCKSTEP_LOG", default_value = "info", global = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watches workflows and drives them.
    Operator(Box<controllers::Options>),
    /// Speaks with the agents' pods.
    Gateway(gateway::Options),
    /// Speaks HTTP with people's programs.
    Api(http::Options),
    /// Prints the CustomResourceDefinitions, or writes them into a folder.
    Crds {
        #[arg(long)]
        dir: Option<std::path::PathBuf>,
    },
    /// Talks to a model for an Agent that is only a prompt, below the shim.
    Prompt,
    /// Evaluates expressions and schemas for the operator or the gateway, a line of JSON each.
    #[command(hide = true)]
    Evaluate,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::Prompt) {
        return lockstep::prompt::main();
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Command::Crds { dir } = arguments.command {
        return lockstep::api::crd::write(dir.as_deref());
    }
    if matches!(arguments.command, Command::Evaluate) {
        return Ok(lockstep::cluster::evaluator::serve()?);
    }
    telemetry::log(&arguments.log)?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Expressions are parsed on these threads: the parser is recursive, and address space costs nothing.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(64 << 20).build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Operator(options) => Box::pin(controllers::run(*options)).await,
            Command::Gateway(options) => gateway::run(options, connect(GATEWAY, 64).await?).await,
            Command::Api(options) => http::run(options, connect(API, 64).await?, http::door(256).await?).await,
            Command::Crds { .. } | Command::Evaluate | Command::Prompt => Ok(()),
        }
    })
}
