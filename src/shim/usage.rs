//! What the agent says that it used: added up here, in the one process of the attempt, and sent as a sum. So an answer that
//! is lost on the way makes nothing count twice.

use std::sync::{Condvar, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::{Number, Value};

use super::process::lock;
use crate::api::usage::{Usage, billionths};
use crate::protocol;

/// What the agent says in one call.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UsageCall {
    #[serde(default)]
    tokens_in: u32,
    #[serde(default)]
    tokens_out: u32,
    /// Text, or a number, which is rounded to nine places.
    #[serde(default)]
    cost: Option<Cost>,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged)]
enum Cost {
    Text(String),
    Number(Number),
}

/// The sum of the attempt.
#[derive(Default)]
pub struct Used {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    sum: Usage,
    unsent: bool,
}

impl Used {
    /// Adds a call; the sum, as the agent is told it.
    pub fn add(&self, call: UsageCall) -> Result<Value, String> {
        let mut more = Usage {
            tokens_in: call.tokens_in.into(),
            tokens_out: call.tokens_out.into(),
            cost: call.cost.map(text).transpose()?,
            ..Usage::default()
        };
        if let Some(model) = call.model {
            more.name_model(&model);
        }
        let mut state = lock(&self.state);
        state.sum.add(&more);
        state.unsent = true;
        self.changed.notify_one();
        serde_json::to_value(&state.sum).map_err(|error| error.to_string())
    }

    /// The next sum that the gateway does not know.
    pub fn next(&self) -> protocol::Usage {
        let mut state = lock(&self.state);
        while !state.unsent {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.unsent = false;
        as_said(&state.sum)
    }

    /// All of it, for the report; nothing where nothing was said.
    pub fn sum(&self) -> Option<protocol::Usage> {
        let state = lock(&self.state);
        state.sum.is_some().then(|| as_said(&state.sum))
    }
}

fn as_said(sum: &Usage) -> protocol::Usage {
    let Usage { tokens_in, tokens_out, cost, models } = sum.clone();
    protocol::Usage { tokens_in, tokens_out, cost, models }
}

fn text(cost: Cost) -> Result<String, String> {
    let text = match cost {
        Cost::Text(text) => text,
        Cost::Number(number) => match number.as_u64() {
            Some(whole) => whole.to_string(),
            None => format!("{:.9}", number.as_f64().unwrap_or(-1.0)),
        },
    };
    billionths(&text).map(|_| text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn add(used: &Used, call: Value) -> Result<Value, String> {
        let call = serde_json::from_value(call).map_err(|error| error.to_string())?;
        used.add(call)
    }

    #[test]
    fn calls_add_up_and_the_sum_is_sent() {
        let used = Used::default();
        assert_eq!(used.sum(), None);
        assert_eq!(add(&used, json!({"tokensIn": 10, "tokensOut": 2})), Ok(json!({"tokensIn": 10, "tokensOut": 2})));
        assert_eq!(used.next(), protocol::Usage { tokens_in: 10, tokens_out: 2, ..protocol::Usage::default() });
        add(&used, json!({"tokensIn": 5, "cost": 0.1, "model": "small"})).expect("good");
        let told = add(&used, json!({"tokensOut": 1, "cost": "0.2", "model": "small"})).expect("good");
        let sum = json!({"tokensIn": 15, "tokensOut": 3, "cost": "0.3", "models": ["small"]});
        assert_eq!(told, sum);
        // Two calls, one sum; the same again where it is asked for at the end.
        assert_eq!(serde_json::to_value(used.next()).expect("JSON"), sum);
        assert_eq!(serde_json::to_value(used.sum()).expect("JSON"), sum);
    }

    #[test]
    fn what_cannot_be_added_is_refused_and_changes_nothing() {
        let used = Used::default();
        for call in [
            json!({"tokensIn": -1}),
            json!({"tokensIn": 1.5}),
            json!({"tokensIn": "many"}),
            json!({"tokensIn": 5_000_000_000_u64}),
            json!({"tokens": 1}),
            json!({"cost": -0.1}),
            json!({"cost": "cheap"}),
            json!({"cost": 1e12}),
            json!({"cost": "0.1 USD"}),
        ] {
            assert!(add(&used, call.clone()).is_err(), "{call}");
        }
        assert_eq!(used.sum(), None);
        assert!(add(&used, json!({"cost": 0.000_000_1})).is_ok(), "as JSON writes it: 1e-7");
        assert_eq!(used.sum().and_then(|sum| sum.cost).as_deref(), Some("0.0000001"));
        assert!(add(&used, json!({"cost": 2})).is_ok());
    }
}
