//! Connections: accepted, encrypted, bounded in number and time, and let go in peace.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

const CONNECTIONS: u32 = 1024;
const HANDSHAKE: Duration = Duration::from_secs(5);
const HEAD: Duration = Duration::from_secs(15);
/// Then a connection is asked to end, so that none stays for good.
const LIFE: Duration = Duration::from_secs(600);
const FAREWELL: Duration = Duration::from_secs(10);
const STREAMS: u32 = 8;

/// Serves until told to stop, then ends what is under way, ten seconds at most.
pub async fn encrypted(listener: TcpListener, acceptor: TlsAcceptor, router: Router, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS as usize));
    loop {
        // The slot comes first: whoever is too many waits in the kernel's queue.
        let next = async {
            let slot = slots.clone().acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Some((slot, Ok((stream, _)))) => {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(connection(stream, acceptor, router, stop.clone(), slot));
            }
            Some((_, Err(error))) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            None => break,
        }
    }
    drop(listener);
    let ended = slots.acquire_many(CONNECTIONS);
    if tokio::time::timeout(FAREWELL, ended).await.is_err() {
        tracing::warn!("connections were still open at the end");
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    mut stop: watch::Receiver<bool>,
    slot: OwnedSemaphorePermit,
) {
    let _slot = slot;
    // Small answers must not wait for more to come; without it they only come later.
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(HEAD)
        .keep_alive_timeout(HANDSHAKE);
    let service = TowerToHyperService::new(router);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        // How a client leaves is its own affair.
        _ = serving.as_mut() => return,
        _ = stop.wait_for(|stop| *stop) => {}
        () = tokio::time::sleep(LIFE) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LIFE, serving).await;
}

/// Serves probes and metrics until told to stop.
pub async fn plain(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) -> std::io::Result<()> {
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            // Gone is told too.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}
