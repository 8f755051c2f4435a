//! Whom clients of ours trust that speak HTTPS without a cluster's client: shim, plugin, prompts and the sender of traces.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

/// TLS that trusts the certificates of a PEM file, and nobody else; an error says what is wrong with the file.
pub fn only(pem: &[u8]) -> Result<TlsConfig, String> {
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => roots.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(format!("is no PEM: {error}")),
        }
    }
    if roots.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    // What cannot be read beside others is passed over, as Go does: bundles hold odd ones.
    let ders = roots.iter().map(|root| CertificateDer::from(root.der()));
    let (readable, _) = RootCertStore::empty().add_parsable_certificates(ders);
    if readable == 0 {
        return Err("holds no certificate that can be read".to_owned());
    }
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build())
}
