//! Counters of the gateway, as Prometheus reads them.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    pub class: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// `claim`, `report`, ...
    pub call: String,
    /// HTTP status code.
    pub code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Path {
    pub call: String,
}

pub struct Metrics {
    registry: Registry,
    pub claims: Counter,
    pub conflicts: Counter,
    pub reports: Family<Class, Counter>,
    pub calls: Family<Call, Counter>,
    pub seconds: Family<Path, Histogram, fn() -> Histogram>,
}

fn buckets() -> Histogram {
    Histogram::new([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("lockstep_gateway"),
            claims: Counter::default(),
            conflicts: Counter::default(),
            reports: Family::default(),
            calls: Family::default(),
            seconds: Family::new_with_constructor(buckets as fn() -> Histogram),
        };
        let registry = &mut metrics.registry;
        registry.register("claims", "Attempts claimed", metrics.claims.clone());
        registry.register(
            "conflicts",
            "Writes that another write outran and that were decided again",
            metrics.conflicts.clone(),
        );
        registry.register("reports", "Attempts that reported their end, by class", metrics.reports.clone());
        registry.register("calls", "Calls answered, by status code", metrics.calls.clone());
        registry.register(
            "call_duration_seconds",
            "Time from a call's first byte to its answer",
            metrics.seconds.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// OpenMetrics text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
