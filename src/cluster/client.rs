//! The API client: named in every call, bounded in time and number, without hidden retries.

use std::time::Duration;

use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::limit::GlobalConcurrencyLimitLayer;

use super::Error;

/// A call that takes longer has failed.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that calls itself `name/version`, with at most `in_flight` calls at a time.
pub async fn connect(name: &str, in_flight: usize) -> anyhow::Result<Client> {
    let mut config = Config::infer().await?;
    let agent = format!("{name}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_str(&agent)?));
    // The built-in retries hide an outage for minutes; the work queue repeats with its own back-off.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder.with_layer(&GlobalConcurrencyLimitLayer::new(in_flight)).build())
}

/// Bounds one call in time.
pub async fn bounded<T>(what: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Error::Timeout(what, CALL_TIMEOUT)),
    }
}
