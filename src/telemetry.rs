//! What the night shift sees: JSON logs on stderr, metrics and health over plain HTTP, traces. Decides nothing.

pub mod traces;

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

/// Logs as JSON lines; `filter` as in `info,lockstep=debug`. One that is not understood is said, and `info` is used: a
/// process that runs and is silent about it helps nobody.
pub fn log(filter: &str) -> anyhow::Result<()> {
    let fault = fault(filter);
    // The client logs each refused call as an error of its own; the reconcile that made it says more.
    let used = if fault.is_none() { filter } else { "info" };
    let used = EnvFilter::try_new(format!("{used},kube_client::client::builder=off"))?;
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(std::io::stderr).with_env_filter(used).init();
    if let Some(fault) = fault {
        tracing::warn!(filter, fault, "LOCKSTEP_LOG (chart value logLevel) is not understood; info is used");
    }
    Ok(())
}

/// The same into a file, for whoever has a terminal for something else.
pub fn log_into(filter: &str, file: std::fs::File) -> anyhow::Result<()> {
    let used = EnvFilter::try_new(if fault(filter).is_none() { filter } else { "info" })?;
    let writer = std::sync::Mutex::new(file);
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(writer).with_env_filter(used).init();
    Ok(())
}

/// What is wrong with a filter. A single word must be a level: as the name of a module it would silence all others.
fn fault(filter: &str) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let wrong = filter.split(',').find(|part| !level(part.rsplit('=').next().unwrap_or_default().trim()));
    match wrong {
        Some(part) => Some(format!("{part:?} names no level; levels are {}", LEVELS.join(", "))),
        None => EnvFilter::try_new(filter).err().map(|error| error.to_string()),
    }
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct NotificationLabel {
    pub sink: String,
    pub outcome: &'static str,
}

/// The operator's metrics.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<KindLabel, Histogram>,
    errors: Family<ErrorLabel, Counter>,
    writes: Family<EffectLabel, Counter>,
    notifications: Family<NotificationLabel, Counter>,
    leading: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lockstep");
        let reconciles =
            Family::new_with_constructor((|| Histogram::new(exponential_buckets(0.001, 2.0, 14))) as fn() -> Histogram);
        let (errors, writes, leading) = (Family::default(), Family::default(), Gauge::default());
        let notifications = Family::default();
        registry.register("reconcile_seconds", "Time of one pass, by kind", reconciles.clone());
        registry.register("reconcile_errors", "Passes that the cluster failed, by kind and class", errors.clone());
        registry.register("writes", "Writes to the API server, by effect", writes.clone());
        registry.register(
            "notifications",
            "Requests to receivers of notifications, by receiver and what became of them",
            notifications.clone(),
        );
        registry.register("leading", "1 where this process works, 0 where it stands by", leading.clone());
        Self { registry, reconciles, errors, writes, notifications, leading }
    }
}

impl Metrics {
    pub fn passed(&self, kind: &'static str, took: Duration) {
        self.reconciles.get_or_create(&KindLabel { kind }).observe(took.as_secs_f64());
    }

    /// Whether there was a pass over an object of that kind.
    pub fn has_passed(&self, kind: &'static str) -> bool {
        self.reconciles.get(&KindLabel { kind }).is_some()
    }

    pub fn failed(&self, kind: &'static str, class: &'static str) {
        self.errors.get_or_create(&ErrorLabel { kind, class }).inc();
    }

    pub fn wrote(&self, effect: &'static str) {
        self.writes.get_or_create(&EffectLabel { effect }).inc();
    }

    pub fn notified(&self, sink: &str, outcome: &'static str) {
        self.notifications.get_or_create(&NotificationLabel { sink: sink.to_owned(), outcome }).inc();
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

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn a_filter_that_would_silence_everything_is_told() {
        for (filter, right) in [
            ("info", true),
            ("INFO", true),
            ("info,lockstep=debug", true),
            ("warn,lockstep::gateway=trace,hyper=off", true),
            ("ifno", false),
            ("info,lockstep", false),
            ("lockstep=verbose", false),
            ("", false),
            ("info,,debug", false),
            ("info,[=debug", false),
        ] {
            assert_eq!(fault(filter).is_none(), right, "{filter}: {:?}", fault(filter));
        }
    }
}
