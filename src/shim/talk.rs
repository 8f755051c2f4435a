//! The verbs `journal`, `usage` and `history`.

#![expect(clippy::disallowed_macros, reason = "bodies of the agent's calls")]

use clap::Args;
use serde_json::json;

use super::Stop;
use super::calls::{expect, get, park, post, print};
use super::journal::ReportedState;

/// What `usage` takes.
#[derive(Args)]
pub struct UsageArgs {
    /// Tokens that the model read
    #[arg(long, default_value_t = 0)]
    tokens_in: u32,
    /// Tokens that the model wrote
    #[arg(long, default_value_t = 0)]
    tokens_out: u32,
    /// A decimal number, for example 0.0125
    #[arg(long)]
    cost: Option<String>,
    /// The name of the model
    #[arg(long)]
    model: Option<String>,
}

pub fn journal(state: ReportedState, message: &str) -> Result<u8, Stop> {
    let (status, answer) = post("journal", &json!({"state": state.text(), "message": message}))?;
    expect(status, 202, &answer)?;
    if state == ReportedState::Failed {
        park();
    }
    Ok(0)
}

pub fn usage(used: &UsageArgs) -> Result<u8, Stop> {
    let UsageArgs { tokens_in, tokens_out, cost, model } = used;
    let body = json!({"tokensIn": tokens_in, "tokensOut": tokens_out, "cost": cost, "model": model});
    let (status, answer) = post("usage", &body)?;
    expect(status, 200, &answer)?;
    print(&format!("{}\n", answer.trim()))
}

pub fn history(before: Option<&str>) -> Result<u8, Stop> {
    let (status, answer) = get("history", before.map(|before| ("before", before)))?;
    expect(status, 200, &answer)?;
    print(&format!("{}\n", answer.trim()))
}
