//! Counters of the gateway, as Prometheus reads them.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::api::usage::Usage;
use crate::cluster::fair::Fair;
use crate::server;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClassLabels {
    pub class: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// `claim`, `report`, ...
    pub call: String,
    /// HTTP status code.
    pub code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PathLabels {
    pub call: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    verdict: &'static str,
}

/// Places that calls share, by what they are for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: &'static str,
}

/// What came of a token that was not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    Good,
    Bad,
    /// Its address had sent too many bad ones.
    NotAsked,
}

pub struct Metrics {
    registry: Registry,
    pub server: server::Stats,
    reviews: Family<ReviewLabels, Counter>,
    held: Family<PoolLabels, Gauge>,
    waiting: Family<PoolLabels, Gauge>,
    pub claims: Counter,
    pub conflicts: Counter,
    pub reports: Family<ClassLabels, Counter>,
    tokens: Family<DirectionLabels, Counter>,
    cost: Counter<f64, AtomicU64>,
    pub calls: Family<CallLabels, Counter>,
    pub seconds: Family<PathLabels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("lockstep_gateway"),
            server: server::Stats::default(),
            reviews: Family::default(),
            held: Family::default(),
            waiting: Family::default(),
            claims: Counter::default(),
            conflicts: Counter::default(),
            reports: Family::default(),
            tokens: Family::default(),
            cost: Counter::default(),
            calls: Family::default(),
            seconds: Family::new_with_constructor(server::stats::call_seconds as fn() -> Histogram),
        };
        let registry = &mut metrics.registry;
        metrics.server.register(registry);
        registry.register("token_reviews", "Tokens that were not known, by verdict", metrics.reviews.clone());
        registry.register("places_held", "Calls that are under way, by pool", metrics.held.clone());
        registry.register("places_waiting", "Calls that wait for a place, by pool", metrics.waiting.clone());
        registry.register("claims", "Attempts claimed", metrics.claims.clone());
        registry.register(
            "conflicts",
            "Writes that another write outran and that were decided again",
            metrics.conflicts.clone(),
        );
        registry.register("reports", "Attempts that reported their end, by class", metrics.reports.clone());
        registry.register("tokens", "Tokens that agents said they used, by direction", metrics.tokens.clone());
        registry.register("cost", "What agents said that it cost, in the currency that they use", metrics.cost.clone());
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
    /// What an attempt used beyond what was known. No names of models: whoever writes an agent chooses them.
    #[expect(clippy::cast_precision_loss, reason = "a metric: sums that count are in the StepRuns")]
    pub fn used(&self, said: &Usage, known: Option<&Usage>) {
        let none = Usage::default();
        let known = known.unwrap_or(&none);
        let more = |said: i64, known: i64| u64::try_from(said.saturating_sub(known)).unwrap_or_default();
        let count = |direction, tokens| self.tokens.get_or_create(&DirectionLabels { direction }).inc_by(tokens);
        count("in", more(said.tokens_in, known.tokens_in));
        count("out", more(said.tokens_out, known.tokens_out));
        self.cost.inc_by(more(said.billionths(), known.billionths()) as f64 / 1e9);
    }

    pub fn reviewed(&self, review: Review) {
        let verdict = match review {
            Review::Good => "good",
            Review::Bad => "bad",
            Review::NotAsked => "not-asked",
        };
        self.reviews.get_or_create(&ReviewLabels { verdict }).inc();
    }

    /// Reads off how many hold a place and how many wait.
    pub fn places(&self, pool: &'static str, places: &Fair) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.held.get_or_create(&PoolLabels { pool }).set(gauge(places.held()));
        self.waiting.get_or_create(&PoolLabels { pool }).set(gauge(places.waiting()));
    }

    /// OpenMetrics text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        server::stats::open_metrics(&self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_counted_once_and_under_no_name_of_a_model() {
        let metrics = Metrics::default();
        let sum = |tokens: i64, cost: &str| Usage {
            tokens_in: tokens,
            tokens_out: tokens / 2,
            cost: Some(cost.to_owned()),
            models: vec![format!("model-{tokens}")],
        };
        metrics.used(&sum(10, "0.5"), None);
        metrics.used(&sum(30, "1.25"), Some(&sum(10, "0.5")));
        let text = metrics.text().expect("text");
        for line in [
            "lockstep_gateway_tokens_total{direction=\"in\"} 30",
            "lockstep_gateway_tokens_total{direction=\"out\"} 15",
            "lockstep_gateway_cost_total 1.25",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("model-"), "{text}");
    }
}
