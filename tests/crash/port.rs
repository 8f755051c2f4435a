//! Ports for programs that a test starts, which bind them a moment later.

use std::io::{Error, Result};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those from which the system gives outgoing connections theirs (32768 and more), and below those of Services on nodes
/// (30000 and more): nothing takes one of these by chance before the program binds it.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// An address on which nobody listens now, another one each time.
pub fn free() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Tests that run beside this one begin elsewhere.
    let begin = std::process::id().wrapping_mul(37) % u32::from(COUNT);
    for _ in 0..COUNT {
        let at = (begin + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % u32::from(COUNT);
        let port = FIRST + u16::try_from(at).map_err(Error::other)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(Error::other(format!("no port is free from {FIRST} on")))
}
