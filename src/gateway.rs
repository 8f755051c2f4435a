//! The gateway: what agents speak to. It alone writes `status.agent`, and holds nothing that a restart could lose.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::cluster::evaluator::Evaluator;

mod attempt;
mod auth;
mod claim;
mod cluster;
mod context;
mod definitions;
mod document;
mod judge;
mod metrics;
mod progress;
mod refusal;
mod report;
mod routes;
mod serve;
mod tls;

/// Calls with outputs that are under way at once.
const LARGE_AT_ONCE: usize = 128;
/// Outputs that are judged at once.
const JUDGED_AT_ONCE: usize = 4;

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
}

/// What all calls share. Caches only: every decision is made on objects that were just read.
struct Gateway {
    client: kube::Client,
    verdicts: auth::Verdicts,
    definitions: definitions::Definitions,
    pace: progress::Pace,
    metrics: metrics::Metrics,
    large: Arc<Semaphore>,
    judges: Arc<Semaphore>,
    evaluator: Evaluator,
    ready: AtomicBool,
}

impl Gateway {
    fn new(client: kube::Client, evaluator: Evaluator) -> Self {
        Self {
            client,
            verdicts: auth::Verdicts::default(),
            definitions: definitions::Definitions::default(),
            pace: progress::Pace::default(),
            metrics: metrics::Metrics::default(),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            judges: Arc::new(Semaphore::new(JUDGED_AT_ONCE)),
            evaluator,
            ready: AtomicBool::new(false),
        }
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// Serves until SIGTERM.
pub async fn run(options: Options, client: kube::Client) -> anyhow::Result<()> {
    let gateway = Arc::new(Gateway::new(client.clone(), Evaluator::new(options.evaluators)));
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
        stopper.send_replace(true);
    });

    let health = bind(options.health_listen).await?;
    let probes = routes::health(gateway.clone());
    let probes = tokio::spawn(serve::plain(health, probes, stop.clone()));

    let secrets: Api<Secret> = Api::namespaced(client, &options.namespace);
    let certificate = tokio::select! {
        certificate = tls::first(&secrets, &options.tls_secret) => certificate,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let config = tls::config(certificate.clone())?;
    let renewal = tokio::spawn(tls::renew(secrets, options.tls_secret, certificate));

    let listener = bind(options.listen).await?;
    gateway.ready.store(true, Ordering::Relaxed);
    tracing::info!(listen = %options.listen, "serving");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    serve::encrypted(listener, acceptor, routes::agents(gateway), stop).await;
    renewal.abort();
    probes.abort();
    tracing::info!("stopped");
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
