//! The API client: named in every call, bounded in time and number, without hidden retries.

use std::time::Duration;

use kube::api::PostParams;
use kube::client::ClientBuilder;
use kube::config::AuthInfo;
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;
use tower::limit::GlobalConcurrencyLimitLayer;

use super::Error;

/// A call that takes longer has failed.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that calls itself `name/version`, with at most `in_flight` calls at a time.
pub async fn connect(name: &str, in_flight: usize) -> anyhow::Result<Client> {
    client(Config::infer().await?, name, in_flight)
}

fn client(mut config: Config, name: &str, in_flight: usize) -> anyhow::Result<Client> {
    let agent = format!("{name}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_str(&agent)?));
    // The built-in retries hide an outage for minutes; the work queue repeats with its own back-off.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder.with_layer(&GlobalConcurrencyLimitLayer::new(in_flight)).build())
}

/// The same for requests that bring credentials of their own: it has none.
pub async fn connect_as_nobody(name: &str, in_flight: usize) -> anyhow::Result<Client> {
    let mut config = Config::infer().await?;
    config.auth_info = AuthInfo::default();
    client(config, name, in_flight)
}

/// Bounds one call in time.
pub async fn bounded<T>(what: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Error::Timeout(what, CALL_TIMEOUT)),
    }
}

/// Posts a body as it is, which may hold more than our types can say; `more` is added to the query.
pub async fn post<K>(client: &Client, namespace: &str, body: Vec<u8>, params: PostParams, more: &str) -> kube::Result<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let request = kube::core::Request::new(K::url_path(&(), Some(namespace)));
    let mut request = request.create(&params, body).map_err(kube::Error::BuildRequest)?;
    let uri = format!("{}{more}", request.uri());
    *request.uri_mut() = uri.parse().map_err(|error: http::uri::InvalidUri| kube::Error::HttpError(error.into()))?;
    client.request(request).await
}
