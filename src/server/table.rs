//! Who is connected: bounded in all and by address. Reads no clock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use super::Limits;
use super::peer::ConnectionState;
use super::rate::Rates;

/// Why a connection is closed before anything is read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The address has as many as one may have.
    Address,
    /// So many of the address have not ended their TLS handshake.
    Handshakes,
    /// The address came too often.
    Rate,
    /// All places are taken by connections that are at work.
    Full,
}

impl RefusalReason {
    /// The value of the metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Handshakes => "handshakes",
            Self::Rate => "rate",
            Self::Full => "full",
        }
    }
}

#[derive(Debug)]
pub struct Table {
    limits: Limits,
    rates: Rates,
    open: usize,
    addresses: HashMap<IpAddr, Vec<Arc<ConnectionState>>>,
}

/// What counts as one address: whoever has an IPv6 address has all of its /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 64 << 64)),
        four @ IpAddr::V4(_) => four,
    }
}

impl Table {
    pub fn new(limits: Limits) -> Self {
        Self { limits, rates: Rates::new(limits.rate), open: 0, addresses: HashMap::new() }
    }

    pub fn open(&self) -> usize {
        self.open
    }

    /// Admits a new connection, or says why not. Where the table is full an idle connection is evicted: of the address that
    /// has the most connections the one that has been idle for the longest time.
    pub fn admit(&mut self, address: IpAddr, now: Instant) -> Result<Arc<ConnectionState>, RefusalReason> {
        let own = self.addresses.get(&address).map_or(&[][..], Vec::as_slice);
        if own.len() >= self.limits.per_address {
            return Err(RefusalReason::Address);
        }
        if own.iter().filter(|state| state.is_new()).count() >= self.limits.handshakes_per_address {
            return Err(RefusalReason::Handshakes);
        }
        if !self.rates.take(address, now) {
            return Err(RefusalReason::Rate);
        }
        if self.open >= self.limits.connections && !self.evict() {
            self.rates.give_back(address);
            return Err(RefusalReason::Full);
        }
        let state = Arc::new(ConnectionState::new(address, now));
        self.addresses.entry(address).or_default().push(state.clone());
        self.open += 1;
        Ok(state)
    }

    /// Takes a connection out; one that is not in it any more changes nothing.
    pub fn leave(&mut self, state: &Arc<ConnectionState>) {
        let Some(own) = self.addresses.get_mut(&state.address) else { return };
        let before = own.len();
        own.retain(|other| !Arc::ptr_eq(other, state));
        self.open -= before - own.len();
        if own.is_empty() {
            self.addresses.remove(&state.address);
        }
    }

    fn evict(&mut self) -> bool {
        let idle = self.addresses.values().flat_map(|own| {
            let many = own.len();
            own.iter().filter_map(move |state| Some((many, state.idle_since()?, state)))
        });
        // The most connections first, then the earliest.
        let chosen = idle.max_by(|(many, since, _), (others, then, _)| many.cmp(others).then(then.cmp(since)));
        let Some(state) = chosen.map(|(_, _, state)| state.clone()) else { return false };
        state.evict();
        self.leave(&state);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::rate::Rate;
    use super::*;

    fn limits() -> Limits {
        Limits {
            connections: 6,
            per_address: 4,
            handshakes_per_address: 2,
            rate: Rate { burst: 100, per_second: 1 },
            ..Limits::default()
        }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// A connection whose handshake is over.
    fn settled(table: &mut Table, from: u8, now: Instant) -> Arc<ConnectionState> {
        let state = table.admit(address(from), now).expect("a place");
        state.settle(now);
        state
    }

    #[test]
    fn an_address_has_its_share_and_others_have_theirs() {
        let (mut table, now) = (Table::new(limits()), Instant::now());
        let first = table.admit(address(1), now).expect("a place");
        let second = table.admit(address(1), now).expect("a place");
        assert_eq!(table.admit(address(1), now).expect_err("refused"), RefusalReason::Handshakes);
        first.settle(now);
        second.settle(now);
        let _more = (settled(&mut table, 1, now), settled(&mut table, 1, now));
        assert_eq!(table.admit(address(1), now).expect_err("refused"), RefusalReason::Address);
        settled(&mut table, 2, now);
        assert_eq!(table.open(), 5);
        table.leave(&first);
        table.leave(&first);
        assert_eq!(table.open(), 4);
        settled(&mut table, 1, now);
    }

    #[test]
    fn whoever_comes_too_often_waits() {
        let rate = Rate { burst: 2, per_second: 1 };
        let (mut table, now) = (Table::new(Limits { rate, ..limits() }), Instant::now());
        for _ in 0..2 {
            let gone = settled(&mut table, 1, now);
            table.leave(&gone);
        }
        assert_eq!(table.admit(address(1), now).expect_err("refused"), RefusalReason::Rate);
        settled(&mut table, 2, now);
        settled(&mut table, 1, now + Duration::from_secs(1));
    }

    #[test]
    fn where_all_places_are_taken_the_idle_of_the_greediest_goes() {
        let (mut table, now) = (Table::new(limits()), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let lone = settled(&mut table, 1, at(0));
        let greedy: Vec<_> = (1..5).map(|second| settled(&mut table, 2, at(second))).collect();
        let other = settled(&mut table, 3, at(5));
        let busy = greedy[0].begin();
        settled(&mut table, 4, at(6));
        assert_eq!(table.open(), 6);
        let stays =
            |state: &Arc<ConnectionState>| table.addresses[&state.address].iter().any(|s| Arc::ptr_eq(s, state));
        assert!(!stays(&greedy[1]) && stays(&greedy[0]), "the longest idle one of the greedy address goes");
        assert!(stays(&lone) && stays(&other));
        drop(busy);
        let _at_work: Vec<_> = table.addresses.values().flatten().map(ConnectionState::begin).collect();
        assert_eq!(table.admit(address(5), at(7)).expect_err("refused"), RefusalReason::Full);
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(network(parse("2001:db8:1:2:3:4:5:6")), network(parse("2001:db8:1:2::9")));
        assert_ne!(network(parse("2001:db8:1:2::1")), network(parse("2001:db8:1:3::1")));
        assert_eq!(network(parse("::ffff:10.0.0.1")), parse("10.0.0.1"));
        assert_ne!(network(parse("10.0.0.1")), network(parse("10.0.0.2")));
    }
}
