//! What a server counts, for whoever writes metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

/// Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    open: Gauge,
    refused: Family<Why, Counter>,
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
        self.refused.get_or_create(&Why { why }).inc();
    }

    /// How many were refused for this.
    pub fn refusals(&self, why: &'static str) -> u64 {
        self.refused.get_or_create(&Why { why }).get()
    }
}
