//! One connection: its handshake, its requests, its end.

#![expect(
    clippy::disallowed_methods,
    reason = "how long a connection may do nothing; the life and the idleness of a connection"
)]

use std::time::{Duration, Instant};

use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::Service;

use super::answer::HeldBody;
use super::{ConnectionGuard, Peer, Security};

const HANDSHAKE: Duration = Duration::from_secs(5);
/// For the head of a request from the end of the one before, and for an answer to a ping. Longer than a shim keeps a
/// connection that it does not use.
const HEAD: Duration = Duration::from_secs(20);
/// Then a connection is asked to end, so that none stays for good.
const LIFE: Duration = Duration::from_secs(600);
/// What is under way then has so long to end: more than a call may take.
const LAST_CALLS: Duration = Duration::from_secs(40);
/// A connection without a call has nothing to end.
const IDLE_END: Duration = Duration::from_secs(1);

/// Bytes of a request's head, and of what is read of a body at a time. A token has about one kilobyte.
const HEAD_BYTES: usize = 16 * 1024;
const HEADER_LIST_BYTES: u32 = 16 * 1024;
const HEADERS: usize = 32;
/// HTTP/2: calls at once, bytes that may be on their way to us, and bytes that wait for a slow reader, by stream.
const STREAMS: u32 = 4;
const WINDOW: u32 = 32 * 1024;
/// The protocol allows no smaller one.
const CONNECTION_WINDOW: u32 = 65_535;
const SEND_BYTES: usize = 64 * 1024;
/// Streams that were reset and are not forgotten yet.
const RESETS: usize = 16;

pub(super) async fn serve(stream: TcpStream, guard: ConnectionGuard, stop: watch::Receiver<bool>) {
    // Small answers must not wait for more to come; without it they only come later.
    let _ = stream.set_nodelay(true);
    match guard.shared.server.security.clone() {
        Security::Plain => requests(stream, guard, stop).await,
        Security::Tls(acceptor) => {
            let shaken = tokio::select! {
                shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
                () = guard.state.evicted() => return,
            };
            match shaken {
                Ok(Ok(stream)) => requests(stream, guard, stop).await,
                _ => guard.shared.server.stats.refused("handshake"),
            }
        }
    }
}

async fn requests<S>(stream: S, guard: ConnectionGuard, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let state = &guard.state;
    let limits = &guard.shared.server.limits;
    state.settle(Instant::now());
    let peer = Peer(state.clone());
    let router = &guard.shared.server.router;
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        let busy = peer.0.begin();
        let known = peer.clone();
        request.extensions_mut().insert(peer.clone());
        let answer = router.clone().call(request);
        async move {
            let answer = answer.await;
            // A stranger who reads slowly must not keep the place of others.
            if known.is_proven() {
                answer.map(|answer| answer.map(|body| Body::new(HeldBody::new(body, busy))))
            } else {
                drop(busy);
                answer
            }
        }
    });
    let builder = builder();
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let life = tokio::time::sleep(LIFE);
    tokio::pin!(life);
    let last_calls = loop {
        let Some(patience) = state.patience(limits, Instant::now()) else { break IDLE_END };
        tokio::select! {
            // How a client leaves is its own affair.
            _ = serving.as_mut() => return,
            () = state.evicted() => return,
            () = state.dismissed() => break LAST_CALLS,
            _ = stop.wait_for(|stop| *stop) => break LAST_CALLS,
            () = life.as_mut() => break LAST_CALLS,
            () = tokio::time::sleep(patience) => {}
        }
    };
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(last_calls, serving).await;
}

/// Small in all that a connection can hold: the arithmetic is in docs/operations.md.
fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES).max_headers(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_send_buf_size(SEND_BYTES)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .keep_alive_interval(HEAD)
        .keep_alive_timeout(HANDSHAKE);
    builder
}
