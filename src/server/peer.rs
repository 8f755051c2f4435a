//! Who is at the other end of a connection, and how that connection stands.

#![expect(clippy::disallowed_methods, reason = "since when a connection does nothing")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Limits;

/// A busy connection is looked at again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// The state of one connection, shared by the table, the connection's task and its calls.
#[derive(Debug)]
pub struct ConnectionState {
    pub address: IpAddr,
    accepted: Instant,
    /// Requests under way; their answers may still be on the wire.
    busy: AtomicUsize,
    /// The TLS handshake is over.
    settled: AtomicBool,
    /// A request of this connection said who calls, and that was true.
    proven: AtomicBool,
    idle_since: Mutex<Instant>,
    evict: Notify,
    dismiss: Notify,
}

/// What a call knows of its connection; an extension of its request.
#[derive(Clone, Debug)]
pub struct Peer(pub(super) Arc<ConnectionState>);

/// A request is under way.
#[derive(Debug)]
pub struct Busy(Arc<ConnectionState>);

impl Peer {
    /// Of a request, where a server set it.
    pub fn of(extensions: &http::Extensions) -> Self {
        let unknown = || Self(Arc::new(ConnectionState::new(Ipv4Addr::UNSPECIFIED.into(), Instant::now())));
        extensions.get().cloned().unwrap_or_else(unknown)
    }

    /// As the limits count it: an IPv6 network is one address.
    pub fn address(&self) -> IpAddr {
        self.0.address
    }

    /// The caller is known: the connection may stay as long as it is used.
    pub fn prove(&self) {
        self.0.proven.store(true, Ordering::Relaxed);
    }

    pub fn is_proven(&self) -> bool {
        self.0.proven.load(Ordering::Relaxed)
    }

    /// Counts as a request under way until it is dropped: for an answer that goes on after its head.
    pub fn hold(&self) -> Busy {
        self.0.begin()
    }

    /// Ends the connection at once, whatever is under way.
    pub fn cut(&self) {
        self.0.evict();
    }

    /// Ends the connection after the answers that are under way.
    pub fn dismiss(&self) {
        self.0.dismiss.notify_one();
    }
}

impl ConnectionState {
    pub fn new(address: IpAddr, now: Instant) -> Self {
        Self {
            address,
            accepted: now,
            busy: AtomicUsize::new(0),
            settled: AtomicBool::new(false),
            proven: AtomicBool::new(false),
            idle_since: Mutex::new(now),
            evict: Notify::new(),
            dismiss: Notify::new(),
        }
    }

    /// The handshake is not over.
    pub fn is_new(&self) -> bool {
        !self.settled.load(Ordering::Relaxed)
    }

    pub fn settle(&self, now: Instant) {
        self.settled.store(true, Ordering::Relaxed);
        self.idle_from(now);
    }

    /// Since when nothing was asked; none while something is.
    pub fn idle_since(&self) -> Option<Instant> {
        let idle = self.busy.load(Ordering::Relaxed) == 0;
        idle.then(|| *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn idle_from(&self, now: Instant) {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// A request begins; it is over when what this gives is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    pub fn evict(&self) {
        self.evict.notify_one();
    }

    pub async fn evicted(&self) {
        self.evict.notified().await;
    }

    pub async fn dismissed(&self) {
        self.dismiss.notified().await;
    }

    /// How long the connection may stay as it is; none where it is over. Who has proven nothing gets no time for being
    /// busy with more.
    pub fn patience(&self, limits: &Limits, now: Instant) -> Option<Duration> {
        let Some(since) = self.idle_since() else { return Some(AGAIN) };
        let idle = since + limits.idle;
        let strange = !self.proven.load(Ordering::Relaxed);
        let end = limits.proof.filter(|_| strange).map_or(idle, |proof| idle.min(self.accepted + proof));
        end.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle_from(Instant::now());
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_has_its_time_and_a_stranger_less() {
        let limits =
            Limits { idle: Duration::from_secs(60), proof: Some(Duration::from_secs(10)), ..Limits::default() };
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let state = Arc::new(ConnectionState::new(Ipv4Addr::LOCALHOST.into(), begun));
        let left = |now| state.patience(&limits, now).map(|left| left.as_secs());
        assert_eq!((left(at(0)), left(at(9)), left(at(10)), left(at(99))), (Some(10), Some(1), None, None));
        state.settle(at(5));
        assert_eq!(left(at(10)), None, "what is asked without proof prolongs nothing");
        Peer(state.clone()).prove();
        assert_eq!((left(at(10)), left(at(65))), (Some(55), None));
        let busy = state.begin();
        assert_eq!(left(at(1000)), Some(1), "nobody is cut off at work");
        drop(busy);
        assert!(state.idle_since().is_some());
        let open = Limits { proof: None, ..limits };
        let state = ConnectionState::new(Ipv4Addr::LOCALHOST.into(), begun);
        assert_eq!(state.patience(&open, at(59)).map(|left| left.as_secs()), Some(1));
    }
}
