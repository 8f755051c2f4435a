//! The gateway: what agents speak to. It alone writes `status.agent`, and holds nothing that a restart could lose.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::api::name::GATEWAY;
use crate::cluster::certificate;
use crate::cluster::clock::Clock;
use crate::cluster::evaluator::Evaluator;
use crate::cluster::fair::Fair;
use crate::server::rate::Rate;
use crate::server::{self, Limits, Security, Server, at_least_one};
use crate::telemetry::traces::{self, Traces};

mod answer;
mod answers;
mod approval;
mod ask;
mod attempt;
mod attended;
mod auth;
mod claim;
mod cluster;
mod context;
mod definitions;
mod document;
mod documents;
mod entries;
mod evaluate;
mod history;
mod judge;
mod memory;
mod metrics;
mod progress;
mod refusal;
mod refused;
mod report;
mod routes;
mod terms;
mod tls;
mod usage;
mod wait;

/// Outputs that are judged at once.
const JUDGED_AT_ONCE: usize = 4;
/// Calls of one namespace that wait for a place, in each pool.
const QUEUED: usize = 64;
const IDLE: Duration = Duration::from_secs(30);
/// From the handshake to a request whose token is good.
const PROOF: Duration = Duration::from_secs(10);

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where agents call, over TLS.
    #[arg(long, env = "LOCKSTEP_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are.
    #[arg(long, env = "LOCKSTEP_HEALTH_LISTEN", default_value = "0.0.0.0:8081")]
    pub health_listen: SocketAddr,
    /// Secret of the own namespace with `ca.crt`, `tls.crt` and `tls.key`; the operator makes it.
    #[arg(long, env = "LOCKSTEP_TLS_SECRET", default_value = "lockstep-gateway-tls")]
    pub tls_secret: String,
    /// The own namespace.
    #[arg(long, env = "LOCKSTEP_NAMESPACE")]
    pub namespace: String,
    /// Processes that check outputs against schemas at once, one of them what takes long; a spare one stands ready.
    #[arg(long, env = "LOCKSTEP_EVALUATORS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=16))]
    pub evaluators: u16,
    #[command(flatten)]
    pub bounds: Bounds,
    #[command(flatten)]
    pub traces: traces::OtlpOptions,
}

/// What memory is bounded by; docs/operations.md has the arithmetic.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections in all.
    #[arg(long, env = "LOCKSTEP_MAX_CONNECTIONS", default_value_t = 1024, value_parser = at_least_one)]
    pub max_connections: usize,
    /// Connections of one address, an IPv6 network of 64 bits counted as one.
    #[arg(long, env = "LOCKSTEP_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 64, value_parser = at_least_one)]
    pub max_connections_per_address: usize,
    /// TLS handshakes of one address that are under way at once.
    #[arg(long, env = "LOCKSTEP_MAX_HANDSHAKES_PER_ADDRESS", default_value_t = 32, value_parser = at_least_one)]
    pub max_handshakes_per_address: usize,
    /// Claims and documents that are given out at once.
    #[arg(long, env = "LOCKSTEP_MAX_INPUTS", default_value_t = 16, value_parser = at_least_one)]
    pub max_inputs: usize,
    /// Reports and checks that are taken in at once.
    #[arg(long, env = "LOCKSTEP_MAX_OUTPUTS", default_value_t = 16, value_parser = at_least_one)]
    pub max_outputs: usize,
}

impl Bounds {
    fn limits(&self) -> Limits {
        let each = u32::try_from(self.max_connections_per_address).unwrap_or(u32::MAX);
        Limits {
            connections: self.max_connections,
            per_address: self.max_connections_per_address,
            handshakes_per_address: self.max_handshakes_per_address,
            // A shim makes one connection and keeps it; whoever comes again and again costs handshakes.
            rate: Rate { burst: each.saturating_mul(2), per_second: each },
            idle: IDLE,
            proof: Some(PROOF),
        }
    }
}

/// What all calls share. Caches only: every decision is made on objects that were just read.
struct Gateway {
    client: kube::Client,
    verdicts: auth::Verdicts,
    definitions: definitions::Definitions,
    history: history::HistoryCache,
    answers: answers::Answers,
    pace: progress::Pace,
    usage_pace: progress::Pace,
    refused: refused::Lines,
    metrics: metrics::Metrics,
    /// Places that namespaces share: of calls that give out inputs, of calls that take in outputs, of judges.
    inputs: Fair,
    outputs: Fair,
    judges: Fair,
    memories: memory::Memories,
    evaluator: Evaluator,
    clock: Clock,
    ready: AtomicBool,
    traces: Traces,
    /// Says to calls that wait for people that they end.
    stopping: watch::Sender<bool>,
}

impl Gateway {
    fn new(client: kube::Client, bounds: &Bounds, evaluator: Evaluator, clock: Clock, traces: Traces) -> Self {
        Self {
            client,
            verdicts: auth::Verdicts::default(),
            definitions: definitions::Definitions::default(),
            history: history::HistoryCache::default(),
            answers: answers::Answers::default(),
            pace: progress::Pace::of_all(),
            usage_pace: progress::Pace::of_each(),
            refused: refused::Lines::default(),
            metrics: metrics::Metrics::default(),
            inputs: Fair::new(bounds.max_inputs, QUEUED),
            outputs: Fair::new(bounds.max_outputs, QUEUED),
            judges: Fair::new(JUDGED_AT_ONCE, QUEUED),
            memories: memory::Memories::new(bounds.max_inputs.div_ceil(2)),
            evaluator,
            clock,
            ready: AtomicBool::new(false),
            traces,
            stopping: watch::Sender::new(false),
        }
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// The calls of agents, without the connections that bring them.
pub fn calls(client: kube::Client, bounds: &Bounds, evaluator: Evaluator, clock: Clock, traces: Traces) -> Router {
    routes::agents(Arc::new(Gateway::new(client, bounds, evaluator, clock, traces)))
}

/// Serves until SIGTERM.
pub async fn run(options: Options, client: kube::Client) -> anyhow::Result<()> {
    let evaluator = Evaluator::new(options.evaluators);
    let traces = Traces::open(&options.traces, GATEWAY)?;
    let gateway = Arc::new(Gateway::new(client.clone(), &options.bounds, evaluator, Clock::default(), traces.clone()));
    let (stopper, mut stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let told = gateway.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.ready.store(false, Ordering::Relaxed);
        told.stopping.send_replace(true);
        stopper.send_replace(true);
    });

    let health = listen(options.health_listen)?;
    let probes = Server {
        limits: Limits::default(),
        security: Security::Plain,
        stats: server::Stats::default(),
        router: routes::health(gateway.clone()),
    };
    let probes = tokio::spawn(probes.serve(health, stop.clone()));

    let secrets: Api<Secret> = Api::namespaced(client, &options.namespace);
    let certificate = tokio::select! {
        certificate = tls::first(&secrets, &options.tls_secret) => certificate,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let config = certificate::config(certificate.clone())?;
    let renewal = tokio::spawn(tls::renew(secrets, options.tls_secret, certificate));

    let listener = listen(options.listen)?;
    gateway.ready.store(true, Ordering::Relaxed);
    tracing::info!(listen = %options.listen, "serving");
    let agents = Server {
        limits: options.bounds.limits(),
        security: Security::Tls(TlsAcceptor::from(Arc::new(config))),
        stats: gateway.metrics.server.clone(),
        router: routes::agents(gateway),
    };
    agents.serve(listener, stop).await;
    renewal.abort();
    probes.abort();
    traces.close().await;
    tracing::info!("stopped");
    Ok(())
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    server::listen(address).with_context(|| format!("cannot listen on {address}"))
}

#[cfg(test)]
mod tests;
