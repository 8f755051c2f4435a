//! The gateway's certificate: made by the operator, read from its Secret, read again while it serves.

#![expect(clippy::disallowed_methods, reason = "the certificate is waited for, and looked at again")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rustls::sign::CertifiedKey;

use super::cluster;
use crate::cluster::certificate::{Certificate, parse};
use crate::cluster::tls::{CERT, KEY};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(3600);
/// After a failed renewal.
const SOON: Duration = Duration::from_secs(60);

/// Waits until the Secret is there and usable.
pub async fn first(secrets: &Api<Secret>, name: &str) -> Arc<Certificate> {
    let mut pause = FIRST_PAUSE;
    loop {
        match load(secrets, name).await {
            Ok(key) => return Arc::new(Certificate::new(key)),
            Err(error) => {
                tracing::info!(secret = name, error = format!("{error:#}"), "waiting for the certificate");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Keeps it fresh. What cannot be read leaves the old one in place.
pub async fn renew(secrets: Api<Secret>, name: String, certificate: Arc<Certificate>) {
    let mut pause = AGAIN;
    loop {
        tokio::time::sleep(pause).await;
        match load(&secrets, &name).await {
            Ok(key) => {
                certificate.replace(key);
                pause = AGAIN;
            }
            Err(error) => {
                tracing::warn!(secret = name, error = format!("{error:#}"), "the certificate could not be read again");
                pause = SOON;
            }
        }
    }
}

async fn load(secrets: &Api<Secret>, name: &str) -> anyhow::Result<CertifiedKey> {
    let secret = cluster::call(|| secrets.get(name)).await?;
    let data = secret.data.unwrap_or_default();
    let part =
        |key: &str| data.get(key).map(|bytes| bytes.0.as_slice()).with_context(|| format!("the Secret has no {key}"));
    parse(part(CERT)?, part(KEY)?)
}
