//! Who is connected: bounded in all and by address. Reads no clock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use super::Limits;
use super::peer::Standing;
use super::rate::Rates;

/// Why a connection is closed before anything was read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The address has as many as one may have.
    Address,
    /// So many of the address have not ended their TLS handshake.
    Handshakes,
    /// The address came too often.
    Rate,
    /// All places are taken by connections that are at work.
    Full,
}

impl Why {
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
    addresses: HashMap<IpAddr, Vec<Arc<Standing>>>,
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

    /// A place for a new connection, or why it has none. Where all are taken, one that does nothing is sent away: of the
    /// address that has the most the one that has done nothing for the longest time.
    pub fn admit(&mut self, address: IpAddr, now: Instant) -> Result<Arc<Standing>, Why> {
        let own = self.addresses.get(&address).map_or(&[][..], Vec::as_slice);
        if own.len() >= self.limits.per_address {
            return Err(Why::Address);
        }
        if own.iter().filter(|standing| standing.is_new()).count() >= self.limits.handshakes_per_address {
            return Err(Why::Handshakes);
        }
        if !self.rates.take(address, now) {
            return Err(Why::Rate);
        }
        if self.open >= self.limits.connections && !self.evict() {
            self.rates.give_back(address);
            return Err(Why::Full);
        }
        let standing = Arc::new(Standing::new(address, now));
        self.addresses.entry(address).or_default().push(standing.clone());
        self.open += 1;
        Ok(standing)
    }

    /// It is gone; said twice it counts once.
    pub fn leave(&mut self, standing: &Arc<Standing>) {
        let Some(own) = self.addresses.get_mut(&standing.address) else { return };
        let before = own.len();
        own.retain(|other| !Arc::ptr_eq(other, standing));
        self.open -= before - own.len();
        if own.is_empty() {
            self.addresses.remove(&standing.address);
        }
    }

    fn evict(&mut self) -> bool {
        let idle = self.addresses.values().flat_map(|own| {
            let many = own.len();
            own.iter().filter_map(move |standing| Some((many, standing.idle_since()?, standing)))
        });
        // The most connections first, then the earliest.
        let chosen = idle.max_by(|(many, since, _), (others, then, _)| many.cmp(others).then(then.cmp(since)));
        let Some(standing) = chosen.map(|(_, _, standing)| standing.clone()) else { return false };
        standing.evict();
        self.leave(&standing);
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
    fn settled(table: &mut Table, from: u8, now: Instant) -> Arc<Standing> {
        let standing = table.admit(address(from), now).expect("a place");
        standing.settle(now);
        standing
    }

    #[test]
    fn an_address_has_its_share_and_others_have_theirs() {
        let (mut table, now) = (Table::new(limits()), Instant::now());
        let first = table.admit(address(1), now).expect("a place");
        let second = table.admit(address(1), now).expect("a place");
        assert_eq!(table.admit(address(1), now).expect_err("refused"), Why::Handshakes);
        first.settle(now);
        second.settle(now);
        let _more = (settled(&mut table, 1, now), settled(&mut table, 1, now));
        assert_eq!(table.admit(address(1), now).expect_err("refused"), Why::Address);
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
        assert_eq!(table.admit(address(1), now).expect_err("refused"), Why::Rate);
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
            |standing: &Arc<Standing>| table.addresses[&standing.address].iter().any(|s| Arc::ptr_eq(s, standing));
        assert!(!stays(&greedy[1]) && stays(&greedy[0]), "the longest idle one of the greedy address goes");
        assert!(stays(&lone) && stays(&other));
        drop(busy);
        let _at_work: Vec<_> = table.addresses.values().flatten().map(Standing::begin).collect();
        assert_eq!(table.admit(address(5), at(7)).expect_err("refused"), Why::Full);
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
