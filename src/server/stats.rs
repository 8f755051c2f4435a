//! What a server counts, for whoever writes metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The labels of `connections_refused`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    why: &'static str,
}

/// How long calls take, in seconds.
pub fn call_seconds() -> Histogram {
    Histogram::new([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0])
}

/// All that is registered, as OpenMetrics text.
pub fn open_metrics(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

/// Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    open: Gauge,
    refused: Family<RefusalLabels, Counter>,
}

impl Stats {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Connections that are open now", self.open.clone());
        registry.register(
            "connections_refused",
            "Connections closed before a request: address, handshakes, rate or full by a limit, handshake where TLS failed",
            self.refused.clone(),
        );
    }

    pub fn open(&self, now: usize) {
        self.open.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    pub fn refused(&self, why: &'static str) {
        self.refused.get_or_create(&RefusalLabels { why }).inc();
    }

    /// How many were refused for this.
    pub fn refusals(&self, why: &'static str) -> u64 {
        self.refused.get_or_create(&RefusalLabels { why }).get()
    }
}
