//! What agents say that their work used. Tokens are integers; a cost is decimal text, added up in billionths as an integer:
//! binary fractions would make sums differ from what was said, and readers in other languages make of JSON numbers what they
//! like.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Models that are named.
const MODELS: usize = 8;
const MODEL_CHARS: usize = 64;
/// Billionths: the places behind the point.
const PLACES: usize = 9;
/// Just under a billion, so that a sum is text of the same form.
const MOST: i64 = 999_999_999_999_999_999;

/// What agents say that their work used. Lockstep adds it up and checks nothing of it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// How many tokens models have read.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub tokens_in: i64,
    /// How many tokens models have written.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub tokens_out: i64,
    /// What it cost, in the currency that the agents of the namespace use: a decimal number as text, with at most nine places
    /// behind the point. Absent if no agent said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"))]
    pub cost: Option<String>,
    /// The names of the models, the first eight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 64)))]
    pub models: Vec<String>,
}

/// How much the agents' work may use. What is used up to then counts as they say it, failed attempts included.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// How many tokens models may read and write together: 1 to 1000000000000000. The default is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_i64))]
    pub tokens: Option<i64>,
    /// What it may cost, in the currency that the agents of the namespace use: a decimal number as text, with at most nine places
    /// behind the point. The default is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"))]
    pub cost: Option<String>,
}

impl Budget {
    /// Whether it says anything.
    pub fn is_some(&self) -> bool {
        *self != Self::default()
    }

    fn billionths(&self) -> Option<i64> {
        self.cost.as_deref().and_then(|cost| billionths(cost).ok())
    }

    /// Whether so much leaves nothing of it.
    pub fn is_spent_by(&self, used: &Usage) -> bool {
        self.tokens.is_some_and(|most| used.tokens() >= most)
            || self.billionths().is_some_and(|most| used.billionths() >= most)
    }

    /// The same with the limits that another one gives in their place, as far as they are higher.
    #[must_use]
    pub fn raised(&self, to: &Self) -> Self {
        let tokens = match (self.tokens, to.tokens) {
            (Some(own), Some(new)) => Some(own.max(new)),
            (own, _) => own,
        };
        let cost = match (self.billionths(), to.billionths()) {
            (Some(own), Some(new)) if new > own => to.cost.clone(),
            _ => self.cost.clone(),
        };
        Self { tokens, cost }
    }

    /// How much of it is used, and by how much it was overshot.
    pub fn told(&self, used: &Usage) -> String {
        let mut parts = Vec::new();
        if let Some(most) = self.tokens {
            let over = used.tokens() - most;
            let over = if over > 0 { format!(" ({over} over)") } else { String::new() };
            parts.push(format!("{} of {most} tokens{over}", used.tokens()));
        }
        if let (Some(cost), Some(most)) = (&self.cost, self.billionths()) {
            let over = used.billionths() - most;
            let over = if over > 0 { format!(" ({} over)", cost_of(over)) } else { String::new() };
            parts.push(format!("cost {} of {cost}{over}", cost_of(used.billionths())));
        }
        parts.join(", ")
    }
}

impl Usage {
    /// Those that models read and wrote.
    pub fn tokens(&self) -> i64 {
        self.tokens_in.saturating_add(self.tokens_out)
    }

    /// Adds what else was used. What is too much to be counted stays at the most that can be.
    pub fn add(&mut self, other: &Self) {
        self.tokens_in = self.tokens_in.saturating_add(other.tokens_in);
        self.tokens_out = self.tokens_out.saturating_add(other.tokens_out);
        if self.cost.is_some() || other.cost.is_some() {
            self.cost = Some(cost_of(self.billionths().saturating_add(other.billionths())));
        }
        for model in &other.models {
            self.name_model(model);
        }
    }

    /// Names a model, if there is room.
    pub fn name_model(&mut self, model: &str) {
        let model: String = model.trim().chars().filter(|c| !c.is_control()).take(MODEL_CHARS).collect();
        if !model.is_empty() && self.models.len() < MODELS && !self.models.contains(&model) {
            self.models.push(model);
        }
    }

    /// Whether there is anything in it.
    pub fn is_some(&self) -> bool {
        *self != Self::default()
    }

    /// Whether it is at least as much in everything: of two sums of one attempt, the later one.
    pub fn covers(&self, other: &Self) -> bool {
        self.tokens_in >= other.tokens_in
            && self.tokens_out >= other.tokens_out
            && self.billionths() >= other.billionths()
            && other.models.iter().all(|model| self.models.contains(model))
    }

    /// The cost in billionths; nothing where it cannot be read.
    pub fn billionths(&self) -> i64 {
        self.cost.as_deref().and_then(|cost| billionths(cost).ok()).unwrap_or_default()
    }
}

/// A cost in billionths. An error says what it must be.
pub fn billionths(cost: &str) -> Result<i64, String> {
    let wrong = || format!("cost: must be a decimal number, 0 to 999999999.999999999 with at most {PLACES} places");
    let (whole, places) = cost.split_once('.').map_or((cost, None), |(whole, places)| (whole, Some(places)));
    let digits = |text: &str| (1..=PLACES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || places.is_some_and(|places| !digits(places)) {
        return Err(wrong());
    }
    let places = format!("{:0<PLACES$}", places.unwrap_or_default());
    format!("{whole}{places}").parse().map_err(|_| wrong())
}

/// Billionths as a decimal number, without zeros that say nothing.
pub fn cost_of(billionths: i64) -> String {
    let digits = format!("{:010}", billionths.clamp(0, MOST));
    let (whole, places) = digits.split_at(digits.len() - PLACES);
    let places = places.trim_end_matches('0');
    if places.is_empty() { whole.to_owned() } else { format!("{whole}.{places}") }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens in, {} out", self.tokens_in, self.tokens_out)?;
        if let Some(cost) = &self.cost {
            write!(f, ", cost {cost}")?;
        }
        match self.models.as_slice() {
            [] => Ok(()),
            models => write!(f, " ({})", models.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(tokens_in: i64, tokens_out: i64, cost: Option<&str>, models: &[&str]) -> Usage {
        let models = models.iter().map(|model| (*model).to_owned()).collect();
        Usage { tokens_in, tokens_out, cost: cost.map(str::to_owned), models }
    }

    #[test]
    fn a_budget_is_spent_by_tokens_or_by_cost_and_tells_by_how_much_it_was_overshot() {
        let budget = |tokens: Option<i64>, cost: Option<&str>| Budget { tokens, cost: cost.map(str::to_owned) };
        for (limit, used, spent, told) in [
            (budget(None, None), usage(9, 9, Some("9"), &[]), false, ""),
            (budget(Some(10), None), usage(4, 5, None, &[]), false, "9 of 10 tokens"),
            (budget(Some(10), None), usage(4, 6, None, &[]), true, "10 of 10 tokens"),
            (budget(Some(10), None), usage(14, 6, Some("3"), &[]), true, "20 of 10 tokens (10 over)"),
            (budget(None, Some("0.5")), usage(99, 0, Some("0.499999999"), &[]), false, "cost 0.499999999 of 0.5"),
            (budget(None, Some("0.5")), usage(0, 0, Some("0.75"), &[]), true, "cost 0.75 of 0.5 (0.25 over)"),
            (budget(Some(10), Some("1")), usage(1, 1, Some("1"), &[]), true, "2 of 10 tokens, cost 1 of 1"),
            (budget(Some(10), Some("1")), usage(1, 1, None, &[]), false, "2 of 10 tokens, cost 0 of 1"),
        ] {
            assert_eq!((limit.is_spent_by(&used), limit.told(&used).as_str()), (spent, told), "{limit:?} {used:?}");
        }
        for (own, to, raised) in [
            (budget(Some(10), None), budget(Some(20), Some("1")), budget(Some(20), None)),
            (budget(Some(10), Some("1")), budget(None, Some("2.5")), budget(Some(10), Some("2.5"))),
            // It is never lowered.
            (budget(Some(10), Some("1")), budget(Some(5), Some("0.5")), budget(Some(10), Some("1"))),
        ] {
            assert_eq!(own.raised(&to), raised, "{own:?} {to:?}");
        }
    }

    #[test]
    fn a_cost_is_read_exactly_or_not_at_all() {
        for (cost, expected) in [
            ("0", Some(0)),
            ("1", Some(1_000_000_000)),
            ("0.1", Some(100_000_000)),
            ("12.000000001", Some(12_000_000_001)),
            ("007.50", Some(7_500_000_000)),
            ("999999999.999999999", Some(MOST)),
            ("1000000000", None),
            ("0.0000000001", None),
            ("", None),
            (".5", None),
            ("5.", None),
            ("-1", None),
            ("+1", None),
            ("1e-3", None),
            ("1,5", None),
            ("NaN", None),
            (" 1", None),
        ] {
            assert_eq!(billionths(cost).ok(), expected, "{cost}");
        }
        assert!(billionths("x").is_err_and(|fault| fault.contains("decimal number")));
    }

    #[test]
    fn sums_are_exact_and_end_at_the_most_that_can_be_told() {
        let mut sum = Usage::default();
        assert!(!sum.is_some());
        for _ in 0..10 {
            sum.add(&usage(3, 1, Some("0.1"), &["a"]));
        }
        assert_eq!(sum, usage(30, 10, Some("1"), &["a"]));
        sum.add(&usage(0, 0, None, &["b", " ", "a"]));
        assert_eq!(sum, usage(30, 10, Some("1"), &["a", "b"]));
        sum.add(&usage(i64::MAX, 1, Some("999999999.999999999"), &[]));
        assert_eq!(sum, usage(i64::MAX, 11, Some("999999999.999999999"), &["a", "b"]));
        assert!(billionths(sum.cost.as_deref().unwrap()).is_ok());
        for n in 0..20 {
            sum.name_model(&format!("model-{n}{}", "x".repeat(100)));
        }
        assert_eq!(sum.models.len(), MODELS);
        assert!(sum.models.iter().all(|model| model.chars().count() <= MODEL_CHARS));
    }

    #[test]
    fn of_two_sums_the_later_one_is_known() {
        let first = usage(10, 5, Some("0.1"), &["a"]);
        for later in [
            first.clone(),
            usage(11, 5, Some("0.1"), &["a"]),
            usage(10, 5, Some("0.10"), &["a", "b"]),
            usage(10, 5, Some("0.2"), &["a"]),
        ] {
            assert!(later.covers(&first), "{later:?}");
            assert_eq!(first.covers(&later), later == first, "{later:?}");
        }
        for other in [usage(9, 5, Some("0.1"), &["a"]), usage(10, 5, None, &["a"]), usage(10, 5, Some("0.1"), &[])] {
            assert!(!other.covers(&first), "{other:?}");
        }
    }

    #[test]
    fn people_read_it_in_one_line() {
        assert_eq!(usage(1200, 300, None, &[]).to_string(), "1200 tokens in, 300 out");
        let all = usage(1, 0, Some("0.05"), &["small", "large"]).to_string();
        assert_eq!(all, "1 tokens in, 0 out, cost 0.05 (small, large)");
    }
}
