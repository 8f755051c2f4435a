//! How often an address may do something: so many at once, and so many a second from then on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses that are remembered. Whoever did nothing lately is forgotten; beyond it strangers are refused.
const ADDRESSES: usize = 8192;

#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub burst: u32,
    pub per_second: u32,
}

/// For each address the time until which what it did is paid for; no more than the burst ahead of now.
#[derive(Debug)]
pub struct Rates {
    /// What one deed costs.
    price: Duration,
    credit: Duration,
    paid_until: HashMap<IpAddr, Instant>,
}

impl Rates {
    pub fn new(rate: Rate) -> Self {
        let price = Duration::from_secs(1) / rate.per_second.max(1);
        Self { price, credit: price.saturating_mul(rate.burst.saturating_sub(1)), paid_until: HashMap::new() }
    }

    /// Whether the address may do it now; counted if so.
    pub fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        let from = self.paid_until.get(&address).copied().unwrap_or(now).max(now);
        if from.duration_since(now) > self.credit {
            return false;
        }
        if self.paid_until.len() >= ADDRESSES && !self.paid_until.contains_key(&address) {
            self.paid_until.retain(|_, until| *until > now);
            if self.paid_until.len() >= ADDRESSES {
                return false;
            }
        }
        self.paid_until.insert(address, from + self.price);
        true
    }

    /// It was not to be counted.
    pub fn give_back(&mut self, address: IpAddr) {
        if let Some(until) = self.paid_until.get_mut(&address) {
            *until = until.checked_sub(self.price).unwrap_or(*until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_burst_and_then_so_many_a_second_for_each_address() {
        let mut rates = Rates::new(Rate { burst: 3, per_second: 2 });
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        for (address, millis, may) in [
            (one, 0, true),
            (one, 0, true),
            (one, 0, true),
            (one, 0, false),
            (other, 0, true),
            (one, 499, false),
            (one, 500, true),
            (one, 501, false),
            // An hour of peace gives the burst back, and no more.
            (one, 3_600_000, true),
            (one, 3_600_000, true),
            (one, 3_600_000, true),
            (one, 3_600_000, false),
        ] {
            assert_eq!(rates.take(address, at(millis)), may, "{address} at {millis}");
        }
        rates.give_back(one);
        assert!(rates.take(one, at(3_600_000)));
    }

    #[test]
    fn addresses_are_bounded_and_forgotten() {
        let mut rates = Rates::new(Rate { burst: 1, per_second: 1 });
        let now = Instant::now();
        let address = |n: usize| IpAddr::V4(Ipv4Addr::from(u32::try_from(n).expect("few")));
        for n in 0..ADDRESSES {
            assert!(rates.take(address(n), now));
        }
        assert!(!rates.take(address(ADDRESSES), now), "no room for one more");
        assert!(rates.take(address(ADDRESSES), now + Duration::from_secs(2)));
        assert_eq!(rates.paid_until.len(), 1);
    }
}
