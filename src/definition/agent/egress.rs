//! Where the pods of an Agent's attempts may connect to: `egress`, read. The API server keeps any value there, because no
//! structural schema can say "a word or a list"; what is wrong with it is told here.

use core::net::IpAddr;

use serde_json::Value;

/// Entries of the list, and ports of an entry.
const MOST: usize = 32;
const PLACE: &str = "spec.egress";

/// What attempts may connect to, besides the gateway and DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    Nothing,
    /// Everything but the private and special addresses.
    Internet,
    Only(Vec<Destination>),
}

/// Addresses that may be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub block: Block,
    /// Of TCP; without any, all ports of all protocols.
    pub ports: Vec<u16>,
}

/// A block of addresses, as `10.1.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    address: IpAddr,
    prefix: u8,
}

impl Block {
    /// An error says what it must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || format!("{text}: must be a block of addresses such as 10.1.0.0/16 or 2001:db8::/32");
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let digits = prefix.len() <= 3 && prefix.bytes().all(|digit| digit.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        let (bits, width) = match address {
            IpAddr::V4(four) => (u128::from(u32::from(four)) << 96, 32),
            IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => {
                return Err(format!("{text}: is an IPv4 address in the form of IPv6; write it as IPv4"));
            }
            IpAddr::V6(six) => (u128::from(six), 128),
        };
        if !digits || prefix > width {
            return Err(form());
        }
        let rest = bits.checked_shl(u32::from(prefix)).unwrap_or_default();
        if rest != 0 {
            let kept = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or_default() & bits;
            let first = match address {
                IpAddr::V4(_) => IpAddr::V4(u32::try_from(kept >> 96).unwrap_or_default().into()),
                IpAddr::V6(_) => IpAddr::V6(kept.into()),
            };
            return Err(format!("{text}: has bits behind its prefix; write {first}/{prefix}"));
        }
        Ok(Self { address, prefix })
    }

    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether it is all addresses of its family.
    pub fn is_all(&self) -> bool {
        self.prefix == 0
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

/// What an Agent says; nothing where it says nothing. An error is all faults, each with its path.
pub fn read(egress: Option<&Value>) -> Result<Option<Egress>, Vec<String>> {
    match egress {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word == "None" => Ok(Some(Egress::Nothing)),
        Some(Value::String(word)) if word == "Internet" => Ok(Some(Egress::Internet)),
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= MOST => {
            let mut faults = Vec::new();
            let read = list.iter().enumerate();
            let read =
                read.filter_map(|(n, entry)| destination(entry, &format!("{PLACE}[{n}]"), &mut faults)).collect();
            if faults.is_empty() { Ok(Some(Egress::Only(read))) } else { Err(faults) }
        }
        Some(Value::Array(_)) => {
            Err(vec![format!("{PLACE}: must have 1 to {MOST} entries; None lets the agent connect to nothing else")])
        }
        Some(_) => Err(vec![format!(
            "{PLACE}: must be None, Internet, or a list such as [{{cidr: 10.1.0.0/16, ports: [443]}}]"
        )]),
    }
}

fn destination(entry: &Value, place: &str, faults: &mut Vec<String>) -> Option<Destination> {
    let before = faults.len();
    let Some(fields) = entry.as_object() else {
        faults.push(format!("{place}: must have the fields cidr and, if it is limited to them, ports"));
        return None;
    };
    for field in fields.keys().filter(|field| !matches!(field.as_str(), "cidr" | "ports")) {
        faults.push(format!("{place}.{field}: is no field; there are cidr and ports"));
    }
    let block = match fields.get("cidr").and_then(Value::as_str).map(Block::parse) {
        Some(Ok(block)) => Some(block),
        Some(Err(fault)) => {
            faults.push(format!("{place}.cidr: {fault}"));
            None
        }
        None => {
            faults.push(format!("{place}.cidr: is required, a block of addresses such as 10.1.0.0/16"));
            None
        }
    };
    let ports = ports(fields.get("ports"), place, faults);
    (faults.len() == before).then_some(Destination { block: block?, ports })
}

fn ports(ports: Option<&Value>, place: &str, faults: &mut Vec<String>) -> Vec<u16> {
    let list = match ports {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= MOST => list,
        Some(_) => {
            faults.push(format!("{place}.ports: must be a list of 1 to {MOST} TCP ports; leave it out for all ports"));
            return Vec::new();
        }
    };
    let mut read = Vec::new();
    for (n, port) in list.iter().enumerate() {
        match port.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0) {
            Some(port) => read.push(port),
            None => faults.push(format!("{place}.ports[{n}]: {port}: must be a number from 1 to 65535")),
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(egress: &Value) -> String {
        read(Some(egress)).err().unwrap_or_default().join("; ")
    }

    #[test]
    fn a_word_or_a_list_is_read() {
        let block = |text: &str| Block::parse(text).expect("a block");
        assert_eq!(read(None), Ok(None));
        assert_eq!(read(Some(&json!(null))), Ok(None));
        assert_eq!(read(Some(&json!("None"))), Ok(Some(Egress::Nothing)));
        assert_eq!(read(Some(&json!("Internet"))), Ok(Some(Egress::Internet)));
        let list = json!([{"cidr": "10.1.0.0/16"}, {"cidr": "2001:DB8::/32", "ports": [443, 8443]}]);
        let expected = vec![
            Destination { block: block("10.1.0.0/16"), ports: Vec::new() },
            Destination { block: block("2001:db8::/32"), ports: vec![443, 8443] },
        ];
        assert_eq!(read(Some(&list)), Ok(Some(Egress::Only(expected))));
        assert_eq!(block("2001:DB8:0::/32").to_string(), "2001:db8::/32", "as the API server writes it");
        assert_eq!((block("0.0.0.0/0").is_all(), block("::/0").is_all(), block("::/1").is_all()), (true, true, false));
    }

    #[test]
    fn what_is_wrong_is_told_by_its_path() {
        for (egress, part) in [
            (json!("internet"), "spec.egress: must be None, Internet, or a list"),
            (json!(true), "spec.egress: must be None"),
            (json!({"cidr": "10.0.0.0/8"}), "spec.egress: must be None"),
            (json!([]), "spec.egress: must have 1 to 32 entries; None lets"),
            (json!(vec![json!({"cidr": "10.0.0.0/8"}); 33]), "must have 1 to 32 entries"),
            (json!(["10.0.0.0/8"]), "spec.egress[0]: must have the fields cidr"),
            (json!([{"ports": [1]}]), "spec.egress[0].cidr: is required"),
            (json!([{"cidr": 10}]), "spec.egress[0].cidr: is required"),
            (json!([{"cidr": "10.0.0.0"}]), "spec.egress[0].cidr: 10.0.0.0: must be a block"),
            (json!([{"cidr": "10.0.0.0/33"}]), "10.0.0.0/33: must be a block"),
            (json!([{"cidr": "10.0.0.0/+8"}]), "10.0.0.0/+8: must be a block"),
            (json!([{"cidr": "010.0.0.0/8"}]), "010.0.0.0/8: must be a block"),
            (json!([{"cidr": "example.org/8"}]), "example.org/8: must be a block"),
            (json!([{"cidr": "10.1.2.3/16"}]), "has bits behind its prefix; write 10.1.0.0/16"),
            (json!([{"cidr": "2001:db8::1/64"}]), "write 2001:db8::/64"),
            (json!([{"cidr": "::ffff:10.0.0.0/104"}]), "write it as IPv4"),
            (json!([{"cidr": "10.0.0.0/8", "port": 1}]), "spec.egress[0].port: is no field"),
            (json!([{"cidr": "10.0.0.0/8", "ports": []}]), "spec.egress[0].ports: must be a list of 1 to 32"),
            (json!([{"cidr": "10.0.0.0/8", "ports": 443}]), "spec.egress[0].ports: must be a list"),
            (json!([{"cidr": "10.0.0.0/8", "ports": [443, 0]}]), "spec.egress[0].ports[1]: 0: must be a number"),
            (json!([{"cidr": "10.0.0.0/8", "ports": [65_536]}]), "ports[0]: 65536: must be a number"),
            (json!([{"cidr": "10.0.0.0/8", "ports": ["443"]}]), "ports[0]: \"443\": must be a number"),
        ] {
            let told = told(&egress);
            assert!(told.contains(part), "{egress}: {told}");
        }
        let both = told(&json!([{"cidr": "x"}, {"cidr": "10.0.0.0/8", "ports": [0]}]));
        assert!(both.contains("egress[0].cidr") && both.contains("egress[1].ports[0]"), "all of them: {both}");
    }
}
