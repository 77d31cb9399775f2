//! What rtnetlink says of addresses and default routes: `linux/rtnetlink.h`, `linux/if_addr.h`.
//! Numbers are in the machine's own byte order. Pure.
//!
//! A message: length (4, with this header), type (2), flags (2), sequence (4), port (4), then a
//! fixed part by its type, then attributes: length (2, with these four), type (2), value. Messages
//! and attributes begin at multiples of four.

use std::collections::BTreeSet;

const MESSAGE_HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;

/// `struct ifaddrmsg`: family, prefix length, flags, scope (1 each), interface (4).
const ADDRESS_BYTES: usize = 8;
const TENTATIVE: u8 = 0x40;
const SCOPE_LINK: u8 = 253;
const ATTRIBUTE_ADDRESS: u16 = 1;
const ATTRIBUTE_LOCAL: u16 = 2;

/// `struct rtmsg`: family, lengths of destination and source, service, table, protocol, scope, type
/// (1 each), flags (4).
const ROUTE_BYTES: usize = 12;
const UNICAST: u8 = 1;
const TABLE_LOCAL: u8 = 255;
const ATTRIBUTE_OUT: u16 = 4;
const ATTRIBUTE_GATEWAY: u16 = 5;
const ATTRIBUTE_METRIC: u16 = 6;
const ATTRIBUTE_TABLE: u16 = 15;

/// More are forgotten all at once; then those that are announced again count as new.
const MAX_FACTS: usize = 256;

/// The addresses and default routes that were announced since the start.
#[derive(Debug, Default)]
pub(super) struct Network {
    facts: BTreeSet<Fact>,
}

/// What can come and go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    Address { interface: u32, address: Vec<u8> },
    DefaultRoute { family: u8, attributes: [Vec<u8>; 4] },
}

impl Network {
    /// Takes a datagram of the kernel and says whether the network is another one since.
    pub(super) fn handle_datagram(&mut self, datagram: &[u8]) -> bool {
        let mut changed = false;
        let mut rest = datagram;
        while let Some((kind, body, after)) = next_message(rest) {
            rest = after;
            changed |= match kind {
                NEW_ADDRESS => address(body).is_some_and(|fact| self.handle_came(fact)),
                NEW_ROUTE => default_route(body).is_some_and(|fact| self.handle_came(fact)),
                DEL_ADDRESS => address(body).is_some_and(|fact| self.handle_went(&fact)),
                DEL_ROUTE => default_route(body).is_some_and(|fact| self.handle_went(&fact)),
                _ => false,
            };
        }
        changed
    }

    fn handle_came(&mut self, fact: Fact) -> bool {
        if self.facts.len() >= MAX_FACTS {
            self.facts.clear();
        }
        self.facts.insert(fact)
    }

    /// It may have been there before the start.
    fn handle_went(&mut self, fact: &Fact) -> bool {
        self.facts.remove(fact);
        true
    }
}

/// The first message's type and body, and what follows it; `None` at the end, or where the lengths
/// make no sense.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(MESSAGE_HEADER_BYTES..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, after))
}

/// An address that others can reach, once the board may use it.
fn address(body: &[u8]) -> Option<Fact> {
    let (fixed, attributes) = body.split_at_checked(ADDRESS_BYTES)?;
    let (flags, scope) = (fixed[2], fixed[3]);
    if flags & TENTATIVE != 0 || scope >= SCOPE_LINK {
        return None;
    }
    let interface = u32::from_ne_bytes(fixed[4..8].try_into().ok()?);
    // On a point-to-point link the address is the peer's, and the local one ours.
    let ours = attribute(attributes, ATTRIBUTE_LOCAL);
    let address = ours.or_else(|| attribute(attributes, ATTRIBUTE_ADDRESS))?.to_vec();
    Some(Fact::Address { interface, address })
}

fn default_route(body: &[u8]) -> Option<Fact> {
    let (fixed, attributes) = body.split_at_checked(ROUTE_BYTES)?;
    let (family, destination_bits, table, kind) = (fixed[0], fixed[1], fixed[4], fixed[7]);
    if destination_bits != 0 || kind != UNICAST || table == TABLE_LOCAL {
        return None;
    }
    let named = [ATTRIBUTE_TABLE, ATTRIBUTE_OUT, ATTRIBUTE_GATEWAY, ATTRIBUTE_METRIC];
    let value = |kind| attribute(attributes, kind).unwrap_or_default().to_vec();
    Some(Fact::DefaultRoute { family, attributes: named.map(value) })
}

fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, value) in pairs {
            let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).unwrap();
            bytes.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn message(kind: u16, fixed: &[u8], pairs: &[(u16, &[u8])]) -> Vec<u8> {
        let body = [fixed, &attributes(pairs)].concat();
        let length = u32::try_from(MESSAGE_HEADER_BYTES + body.len()).unwrap();
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &body].concat()
    }

    fn address_message(kind: u16, flags: u8, scope: u8, last: u8) -> Vec<u8> {
        let fixed = [&[2, 24, flags, scope][..], &3u32.to_ne_bytes()].concat();
        message(kind, &fixed, &[(3, b"eth0\0"), (ATTRIBUTE_LOCAL, &[10, 0, 0, last])])
    }

    fn route_message(kind: u16, bits: u8, table: u8, gateway: &[u8]) -> Vec<u8> {
        let fixed = [2, bits, 0, 0, table, 3, 0, UNICAST, 0, 0, 0, 0];
        message(kind, &fixed, &[(ATTRIBUTE_OUT, &[3, 0, 0, 0]), (ATTRIBUTE_GATEWAY, gateway)])
    }

    #[test]
    fn an_address_that_comes_or_goes_is_a_change_and_one_announced_again_is_none() {
        let mut network = Network::default();
        let mut change = |bytes: &[u8]| network.handle_datagram(bytes);
        assert!(change(&address_message(NEW_ADDRESS, 0, 0, 2)));
        assert!(!change(&address_message(NEW_ADDRESS, 0, 0, 2)), "announced again");
        assert!(!change(&address_message(NEW_ADDRESS, TENTATIVE, 0, 3)), "not to be used yet");
        assert!(!change(&address_message(NEW_ADDRESS, 0, SCOPE_LINK, 4)), "of the link alone");
        assert!(change(&address_message(DEL_ADDRESS, 0, 0, 2)));
        assert!(change(&address_message(NEW_ADDRESS, 0, 0, 2)), "back again");
        assert!(change(&address_message(DEL_ADDRESS, 0, 0, 9)), "there before the start");
    }

    #[test]
    fn only_default_routes_count() {
        let mut network = Network::default();
        let mut change = |bytes: &[u8]| network.handle_datagram(bytes);
        assert!(change(&route_message(NEW_ROUTE, 0, 254, &[10, 0, 0, 1])));
        assert!(!change(&route_message(NEW_ROUTE, 0, 254, &[10, 0, 0, 1])));
        assert!(change(&route_message(NEW_ROUTE, 0, 254, &[10, 0, 0, 2])), "another gateway");
        assert!(!change(&route_message(NEW_ROUTE, 24, 254, &[10, 0, 0, 1])), "one network");
        assert!(!change(&route_message(NEW_ROUTE, 0, TABLE_LOCAL, &[10, 0, 0, 1])));
        assert!(change(&route_message(DEL_ROUTE, 0, 254, &[10, 0, 0, 1])));
    }

    #[test]
    fn every_message_of_a_datagram_is_read() {
        let quiet = message(16, &[0; 16], &[]);
        let loud = address_message(NEW_ADDRESS, 0, 0, 2);
        assert!(!Network::default().handle_datagram(&quiet));
        assert!(Network::default().handle_datagram(&[quiet.clone(), loud.clone()].concat()));
        assert!(Network::default().handle_datagram(&[loud, quiet].concat()));
    }

    #[test]
    fn nonsense_is_no_change_and_no_panic() {
        let whole = [
            address_message(NEW_ADDRESS, 0, 0, 2),
            route_message(NEW_ROUTE, 0, 254, &[10, 0, 0, 1]),
        ]
        .concat();
        for end in 0..whole.len() {
            Network::default().handle_datagram(&whole[..end]);
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut bent = whole.clone();
                bent[end] = value;
                Network::default().handle_datagram(&bent);
            }
        }
        assert!(!Network::default().handle_datagram(&[0; 64]));
        assert!(!Network::default().handle_datagram(&[0xff; 64]));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut network = Network::default();
        for number in 0..10_000u32 {
            let fixed = [&[2, 24, 0, 0][..], &number.to_ne_bytes()].concat();
            let local: &[u8] = &[10, 0, 0, 1];
            network.handle_datagram(&message(NEW_ADDRESS, &fixed, &[(ATTRIBUTE_LOCAL, local)]));
            assert!(network.facts.len() <= MAX_FACTS);
        }
    }
}
