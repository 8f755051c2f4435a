//! The gateway's certificate: made by the operator, read from its Secret, read again while it serves.

#![expect(clippy::disallowed_methods, reason = "the certificate is waited for, and looked at again")]

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::cluster;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(3600);
/// After a failed renewal.
const SOON: Duration = Duration::from_secs(60);

/// The certificate that is served now.
#[derive(Debug)]
pub struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Waits until the Secret is there and usable.
pub async fn first(secrets: &Api<Secret>, name: &str) -> Arc<Certificate> {
    let mut pause = FIRST_PAUSE;
    loop {
        match load(secrets, name).await {
            Ok(key) => return Arc::new(Certificate(RwLock::new(Arc::new(key)))),
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
                *certificate.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                pause = AGAIN;
            }
            Err(error) => {
                tracing::warn!(secret = name, error = format!("{error:#}"), "the certificate could not be read again");
                pause = SOON;
            }
        }
    }
}

pub fn config(certificate: Arc<Certificate>) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn load(secrets: &Api<Secret>, name: &str) -> anyhow::Result<CertifiedKey> {
    let secret = cluster::call(|| secrets.get(name)).await?;
    let data = secret.data.unwrap_or_default();
    let part =
        |key: &str| data.get(key).map(|bytes| bytes.0.as_slice()).with_context(|| format!("the Secret has no {key}"));
    parse(part(CERTIFICATE)?, part(KEY)?)
}

fn parse(certificate: &[u8], key: &[u8]) -> anyhow::Result<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{CERTIFICATE} is not PEM"))?;
    anyhow::ensure!(!chain.is_empty(), "{CERTIFICATE} holds no certificate");
    // The parser's own words could hold pieces of the key.
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| anyhow::anyhow!("{KEY} is not a private key in PEM"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).context("certificate and key do not fit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_with_its_own_key_is_served() {
        let made = || rcgen::generate_simple_self_signed(vec!["gateway".to_owned()]).expect("a certificate");
        let (one, other) = (made(), made());
        let pem = |made: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes())
        };
        let (certificate, key) = pem(&one);
        assert!(parse(&certificate, &key).is_ok());
        assert!(parse(&certificate, &pem(&other).1).is_err());
        assert!(parse(b"", &key).is_err());
        assert!(parse(&certificate, b"nothing").is_err());
    }
}
