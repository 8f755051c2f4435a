//! Counters of the API, as Prometheus reads them.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::server;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResponseLabels {
    /// The `operationId` of the OpenAPI document.
    pub call: &'static str,
    /// HTTP status code.
    pub code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub call: &'static str,
}

pub struct Metrics {
    registry: Registry,
    pub server: server::Stats,
    pub calls: Family<ResponseLabels, Counter>,
    pub seconds: Family<RequestLabels, Histogram, fn() -> Histogram>,
    pub streams: Gauge,
    pub held: Gauge,
    pub waiting: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("lockstep_api"),
            server: server::Stats::default(),
            calls: Family::default(),
            seconds: Family::new_with_constructor(server::stats::call_seconds as fn() -> Histogram),
            streams: Gauge::default(),
            held: Gauge::default(),
            waiting: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        metrics.server.register(registry);
        registry.register("calls", "Calls answered, by status code", metrics.calls.clone());
        registry.register(
            "call_duration_seconds",
            "Time from a call's first byte to the head of its answer; of runs with the wait for their result",
            metrics.seconds.clone(),
        );
        registry.register("streams", "Streams of events and logs that are open", metrics.streams.clone());
        registry.register("requests_held", "Requests that are carried out now", metrics.held.clone());
        registry.register("requests_waiting", "Requests that wait for their turn", metrics.waiting.clone());
        metrics
    }
}

impl Metrics {
    /// OpenMetrics text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        server::stats::open_metrics(&self.registry)
    }
}
