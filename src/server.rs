//! Connections from anybody: bounded in number, by address, in time and in memory, before it is known who calls. Knows
//! neither a cluster nor what is served: the gateway's calls, probes and metrics all come in here.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

mod answer;
pub mod body;
mod connection;
pub mod peer;
pub mod rate;
pub mod stats;
pub mod table;

pub use peer::Peer;
use rate::Rate;
pub use stats::Stats;
use table::Table;

/// What is under way when the server is told to stop has so long to end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Connections that the kernel keeps until they are accepted, which takes microseconds. More would wait a second or more for
/// their next try, honest ones too; Linux has that many at most, unless told.
const BACKLOG: u32 = 4096;
/// After an accept that failed: usually there are no more file descriptors.
const BREATHER: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub per_address: usize,
    /// TLS handshakes of one address that are under way.
    pub handshakes_per_address: usize,
    /// New connections of one address.
    pub rate: Rate,
    /// How long a connection may do nothing.
    pub idle: Duration,
    /// How long a connection may live without a request that proves who calls; none where nobody is asked.
    pub proof: Option<Duration>,
}

impl Default for Limits {
    /// For probes and metrics: a kubelet and a few collectors.
    fn default() -> Self {
        Self {
            connections: 64,
            per_address: 16,
            handshakes_per_address: 16,
            rate: Rate { burst: 64, per_second: 20 },
            idle: Duration::from_secs(90),
            proof: None,
        }
    }
}

/// A bound, as it is written on a command line.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("must be a number, 1 or more".to_owned()),
    }
}

/// Listens, with a long queue.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A successor may listen although connections of its predecessor are not forgotten yet.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[derive(Clone)]
pub enum Security {
    Plain,
    Tls(TlsAcceptor),
}

#[derive(Clone)]
pub struct Server {
    pub limits: Limits,
    pub security: Security,
    pub stats: Stats,
    pub router: Router,
}

/// What all connections of one server share.
struct Shared {
    server: Server,
    table: Mutex<Table>,
}

impl Server {
    /// Serves until told to stop, then ends what is under way.
    #[expect(clippy::disallowed_methods, reason = "back-off of accept")]
    pub async fn serve(self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let table = Mutex::new(Table::new(self.limits));
        let shared = Arc::new(Shared { server: self, table });
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, from)) => {
                    // Whoever has no place hears it at once, by the end of the connection, and costs no more than that.
                    let Some(guard) = shared.admit(from) else { continue };
                    let (stop, alive) = (stop.clone(), alive.clone());
                    tokio::spawn(async move {
                        connection::serve(stream, guard, stop).await;
                        drop(alive);
                    });
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(BREATHER).await;
                }
            }
        }
        drop((listener, alive));
        if tokio::time::timeout(FAREWELL, all_gone.recv()).await.is_err() {
            tracing::warn!("connections were still open at the end");
        }
    }
}

/// Whoever connected was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl Shared {
    #[expect(clippy::disallowed_methods, reason = "connections come at a bounded pace")]
    fn admit(self: &Arc<Self>, from: SocketAddr) -> Option<ConnectionGuard> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = table.admit(table::network(from.ip()), Instant::now());
        self.server.stats.open(table.open());
        drop(table);
        match admitted {
            Ok(state) => Some(ConnectionGuard { shared: self.clone(), state }),
            Err(why) => {
                self.server.stats.refused(why.label());
                None
            }
        }
    }
}

/// Takes its connection out of the table when it is dropped.
struct ConnectionGuard {
    shared: Arc<Shared>,
    state: Arc<peer::ConnectionState>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut table = self.shared.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.leave(&self.state);
        self.shared.server.stats.open(table.open());
    }
}

#[cfg(test)]
mod tests;
