//! A certificate that is served, and exchanged while it is.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::tls::{CERT, KEY};

/// The certificate that is served now.
#[derive(Debug)]
pub struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Certificate {
    pub fn new(key: CertifiedKey) -> Self {
        Self(RwLock::new(Arc::new(key)))
    }

    /// Connections from now on are shown this one.
    pub fn replace(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }
}

/// TLS with whatever certificate is there at the time, for HTTP 1 and 2.
pub fn config(certificate: Arc<Certificate>) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Certificate and key of PEM texts, if they go together.
pub fn parse(certificate: &[u8], key: &[u8]) -> anyhow::Result<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{CERT} is not PEM"))?;
    anyhow::ensure!(!chain.is_empty(), "{CERT} holds no certificate");
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
