//! What the night shift sees: JSON logs on stderr, metrics and health over plain HTTP. Decides nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::server::{self, Limits, Security, Server, Stats};

/// Logs as JSON lines; `filter` as in `info,lockstep=debug`.
pub fn log(filter: &str) -> anyhow::Result<()> {
    // The client logs each refused call as an error of its own; the reconcile that made it says more.
    let filter = EnvFilter::try_new(format!("{filter},kube_client::client::builder=off"))?;
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(std::io::stderr).with_env_filter(filter).init();
    Ok(())
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabel {
    pub kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ErrorLabel {
    pub kind: &'static str,
    pub class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct EffectLabel {
    pub effect: &'static str,
}

/// The operator's metrics.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<KindLabel, Histogram>,
    errors: Family<ErrorLabel, Counter>,
    writes: Family<EffectLabel, Counter>,
    leading: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lockstep");
        let reconciles =
            Family::new_with_constructor((|| Histogram::new(exponential_buckets(0.001, 2.0, 14))) as fn() -> Histogram);
        let (errors, writes, leading) = (Family::default(), Family::default(), Gauge::default());
        registry.register("reconcile_seconds", "Time of one pass, by kind", reconciles.clone());
        registry.register("reconcile_errors", "Passes that the cluster failed, by kind and class", errors.clone());
        registry.register("writes", "Writes to the API server, by effect", writes.clone());
        registry.register("leading", "1 where this process works, 0 where it stands by", leading.clone());
        Self { registry, reconciles, errors, writes, leading }
    }
}

impl Metrics {
    pub fn passed(&self, kind: &'static str, took: Duration) {
        self.reconciles.get_or_create(&KindLabel { kind }).observe(took.as_secs_f64());
    }

    pub fn failed(&self, kind: &'static str, class: &'static str) {
        self.errors.get_or_create(&ErrorLabel { kind, class }).inc();
    }

    pub fn wrote(&self, effect: &'static str) {
        self.writes.get_or_create(&EffectLabel { effect }).inc();
    }

    pub fn leading(&self) {
        self.leading.set(1);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// Health and metrics of a process.
#[derive(Clone, Default)]
pub struct Health {
    ready: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Health {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { ready: Arc::default(), metrics }
    }

    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Serves `/healthz`, `/readyz` and `/metrics` for ever.
    pub async fn serve(self, listen: SocketAddr) -> anyhow::Result<()> {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self);
        let listener = server::listen(listen)?;
        let server = Server { limits: Limits::default(), security: Security::Plain, stats: Stats::default(), router };
        // Nobody says stop.
        let (_says, stop) = tokio::sync::watch::channel(false);
        server.serve(listener, stop).await;
        Ok(())
    }
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    if health.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the caches are not filled yet")
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], health.metrics.text())
}
