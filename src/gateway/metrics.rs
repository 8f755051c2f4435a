//! Counters of the gateway, as Prometheus reads them.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::cluster::fair::Fair;
use crate::server;

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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verdict {
    verdict: &'static str,
}

/// Places that calls share, by what they are for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pool {
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
    reviews: Family<Verdict, Counter>,
    held: Family<Pool, Gauge>,
    waiting: Family<Pool, Gauge>,
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
            server: server::Stats::default(),
            reviews: Family::default(),
            held: Family::default(),
            waiting: Family::default(),
            claims: Counter::default(),
            conflicts: Counter::default(),
            reports: Family::default(),
            calls: Family::default(),
            seconds: Family::new_with_constructor(buckets as fn() -> Histogram),
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
    pub fn reviewed(&self, review: Review) {
        let verdict = match review {
            Review::Good => "good",
            Review::Bad => "bad",
            Review::NotAsked => "not-asked",
        };
        self.reviews.get_or_create(&Verdict { verdict }).inc();
    }

    /// Reads off how many hold a place and how many wait.
    pub fn places(&self, pool: &'static str, places: &Fair) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.held.get_or_create(&Pool { pool }).set(gauge(places.held()));
        self.waiting.get_or_create(&Pool { pool }).set(gauge(places.waiting()));
    }

    /// OpenMetrics text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
