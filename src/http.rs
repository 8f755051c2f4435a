//! The HTTP API: everything that kubectl gives, for programs with a token of Kubernetes and one HTTP call. Every write
//! is made with the caller's own token, but for runs that are started by somebody who has the secret of a Trigger; what
//! is read comes from watches that all callers share, after the API server has said that this caller may read it. Holds
//! nothing that a restart could lose.
//!
//! `operations` says which calls there are, `routes` how each is read, authenticated, bounded and answered; `caller`
//! who calls, `watches` what is known; `run` and what it uses is `POST /run`; `stream` tells the course of a run;
//! `events` with `received` and `senders` starts runs by Triggers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::clock::Clock;
use crate::cluster::evaluator::Evaluator;
use crate::cluster::fair::Fair;
use crate::server::rate::Rate;
use crate::server::{self, Limits, Security, Server};

mod act;
mod call;
mod caller;
mod decision;
mod decision_request;
mod docs;
mod documents;
mod evaluate;
mod events;
mod fields;
mod logs;
mod memory;
mod metrics;
mod openapi;
mod operations;
mod outcome;
mod problem;
mod received;
mod repeated;
mod result;
mod retry;
mod routes;
mod run;
mod run_request;
mod runs;
mod senders;
mod started;
mod steps;
mod stream;
mod stream_limit;
mod tls;
mod view;
mod watches;

const IDLE: Duration = Duration::from_secs(60);
/// From the handshake to a request whose token is good; a page or a probe of somebody without one is answered all the
/// same.
const PROOF: Duration = Duration::from_secs(15);

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where clients call.
    #[arg(long, env = "LOCKSTEP_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are.
    #[arg(long, env = "LOCKSTEP_HEALTH_LISTEN", default_value = "0.0.0.0:8081")]
    pub health_listen: SocketAddr,
    /// Folder with `tls.crt` and `tls.key`; without it connections are plain, for use behind something that ends TLS.
    #[arg(long, env = "LOCKSTEP_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Processes that evaluate expressions of Triggers at once, one of them what takes long; a spare one stands ready.
    #[arg(long, env = "LOCKSTEP_EVALUATORS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=16))]
    pub evaluators: u16,
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub bounds: Bounds,
}

/// How requests are understood.
#[derive(clap::Args, Clone, Debug)]
pub struct Settings {
    /// Namespace of requests whose path names none.
    #[arg(long, env = "LOCKSTEP_DEFAULT_NAMESPACE", default_value = "default")]
    pub default_namespace: String,
    /// Ask for the verb `run` on a flow before it is run, as the admission policy does.
    #[arg(long, env = "LOCKSTEP_RUN_PERMISSION", default_value_t = true, action = clap::ArgAction::Set)]
    pub run_permission: bool,
}

/// What memory is bounded by.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections in all.
    #[arg(long, env = "LOCKSTEP_MAX_CONNECTIONS", default_value_t = 1024, value_parser = server::at_least_one)]
    pub max_connections: usize,
    /// Connections of one address; an Ingress is one.
    #[arg(long, env = "LOCKSTEP_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 1024, value_parser = server::at_least_one)]
    pub max_connections_per_address: usize,
    /// Streams of events and logs at once.
    #[arg(long, env = "LOCKSTEP_MAX_STREAMS", default_value_t = 512, value_parser = server::at_least_one)]
    pub max_streams: usize,
    /// Of these, those of one user.
    #[arg(long, env = "LOCKSTEP_MAX_STREAMS_PER_USER", default_value_t = 128, value_parser = server::at_least_one)]
    pub max_streams_per_user: usize,
    /// Requests that are carried out at once; no user of one namespace gets the last quarter.
    #[arg(long, env = "LOCKSTEP_MAX_REQUESTS", default_value_t = 32, value_parser = server::at_least_one)]
    pub max_requests: usize,
    /// Requests of one user in one namespace that wait for their turn; beyond it the answer is 429.
    #[arg(long, env = "LOCKSTEP_MAX_QUEUED", default_value_t = 128, value_parser = server::at_least_one)]
    pub max_queued: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_connections_per_address: 1024,
            max_streams: 512,
            max_streams_per_user: 128,
            max_requests: 32,
            max_queued: 128,
        }
    }
}

impl Bounds {
    fn limits(&self) -> Limits {
        let each = u32::try_from(self.max_connections_per_address).unwrap_or(u32::MAX);
        Limits {
            connections: self.max_connections,
            per_address: self.max_connections_per_address,
            handshakes_per_address: self.max_connections_per_address.div_ceil(4),
            rate: Rate { burst: each.saturating_mul(2), per_second: each },
            idle: IDLE,
            proof: Some(PROOF),
        }
    }
}

/// What all requests share.
struct Http {
    callers: caller::Callers,
    watches: Arc<watches::Watches>,
    /// Requests that are carried out, by namespace and user.
    requests: Fair,
    streams: stream_limit::StreamLimiter,
    /// The API's own account: what is watched, Secrets of Triggers, and runs of senders without a token.
    own: Client,
    senders: senders::Senders,
    evaluator: Evaluator,
    clock: Clock,
    metrics: metrics::Metrics,
    settings: Settings,
    ready: AtomicBool,
}

/// The calls, without the connections that bring them, and the watches that they read from. `own` reads what is
/// watched; `door` says nothing of who it is: the callers' tokens are put on its requests.
pub struct Service {
    pub router: Router,
    /// Ends the watches when it is dropped.
    pub watching: JoinSet<()>,
    http: Arc<Http>,
}

impl Service {
    pub fn new(
        (own, door): (&Client, Client),
        (evaluator, clock): (Evaluator, Clock),
        settings: Settings,
        bounds: &Bounds,
    ) -> Self {
        let watches = Arc::new(watches::Watches::default());
        let watching = watches.spawn(own);
        let http = Arc::new(Http {
            callers: caller::Callers::new(door),
            watches,
            requests: Fair::new(bounds.max_requests, bounds.max_queued),
            streams: stream_limit::StreamLimiter::new(bounds.max_streams, bounds.max_streams_per_user),
            own: own.clone(),
            senders: senders::Senders::default(),
            evaluator,
            clock,
            metrics: metrics::Metrics::default(),
            settings,
            ready: AtomicBool::new(false),
        });
        Self { router: routes::calls(&http), watching, http }
    }

    /// Waits until everything that there is was read once.
    pub async fn filled(&self) {
        self.http.watches.filled().await;
        self.http.ready.store(true, Ordering::Relaxed);
    }

    /// Requests that are under way, and those that wait, for tests of the bounds.
    pub fn busy(&self) -> (usize, usize) {
        (self.http.requests.held(), self.http.requests.waiting())
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.http.streams.in_use()
    }
}

/// The OpenAPI document.
pub fn openapi() -> serde_json::Value {
    openapi::made()
}

/// Serves until SIGTERM.
pub async fn run(options: Options, own: Client, door: Client) -> anyhow::Result<()> {
    let around = (Evaluator::new(options.evaluators), Clock::default());
    let service = Service::new((&own, door), around, options.settings.clone(), &options.bounds);
    let (stopper, mut stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let told = Arc::clone(&service.http);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.ready.store(false, Ordering::Relaxed);
        stopper.send_replace(true);
    });
    let health = listen(options.health_listen)?;
    let probes = Server {
        limits: Limits::default(),
        security: Security::Plain,
        stats: server::Stats::default(),
        router: routes::health(&service.http),
    };
    let probes = tokio::spawn(probes.serve(health, stop.clone()));
    tokio::select! {
        () = service.filled() => {}
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    }
    let (security, renewal) = tls::security(options.tls_dir.as_deref())?;
    let renewal = tokio::spawn(renewal);
    let listener = listen(options.listen)?;
    tracing::info!(listen = %options.listen, tls = options.tls_dir.is_some(), "serving");
    let stats = service.http.metrics.server.clone();
    let clients = Server { limits: options.bounds.limits(), security, stats, router: service.router.clone() };
    clients.serve(listener, stop).await;
    renewal.abort();
    probes.abort();
    tracing::info!("stopped");
    Ok(())
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    server::listen(address).with_context(|| format!("cannot listen on {address}"))
}

/// A client for the callers' tokens: it has none of its own.
pub async fn door(in_flight: usize) -> anyhow::Result<Client> {
    crate::cluster::client::connect_as_nobody(crate::api::name::API, in_flight).await
}
