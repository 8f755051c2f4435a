//! The certificate of the API: files of a folder (a mounted Secret, which the kubelet keeps up to date), read again while it
//! is served.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::future::{BoxFuture, FutureExt};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::cluster::certificate::{self, Certificate};
use crate::cluster::tls::{CERT, KEY};
use crate::server::Security;

const AGAIN: Duration = Duration::from_secs(60);

/// How connections are secured, and what keeps the certificate fresh for ever.
pub fn security(folder: Option<&Path>) -> anyhow::Result<(Security, BoxFuture<'static, ()>)> {
    let Some(folder) = folder else { return Ok((Security::Plain, std::future::pending().boxed())) };
    let served = Arc::new(Certificate::new(load(folder)?));
    let config = certificate::config(Arc::clone(&served))?;
    let renewal = renew(folder.to_owned(), served).boxed();
    Ok((Security::Tls(TlsAcceptor::from(Arc::new(config))), renewal))
}

/// What cannot be read leaves the old one in place.
async fn renew(folder: PathBuf, served: Arc<Certificate>) {
    let mut due = tokio::time::interval(AGAIN);
    due.tick().await;
    loop {
        due.tick().await;
        match load(&folder) {
            Ok(key) => served.replace(key),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the certificate could not be read again");
            }
        }
    }
}

fn load(folder: &Path) -> anyhow::Result<CertifiedKey> {
    let read = |name: &str| {
        let file = folder.join(name);
        std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    certificate::parse(&read(CERT)?, &read(KEY)?)
}
