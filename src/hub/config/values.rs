//! How values are written: times and sizes with their units, paths, networks, URLs.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::Uri;
use serde::{Deserialize, Deserializer, de};

/// A positive number that SQLite's signed integers hold.
pub(super) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(de::Error::custom("0 is not enough; at least 1")),
        number => Ok(number),
    }
}

/// A time, written with its unit.
#[derive(Clone, Copy)]
pub(super) struct Span(pub(super) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_time(&String::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
    }
}

/// Reads a time such as `25s`.
///
/// # Errors
/// Says how a time is written.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    match with_unit(text, &units) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err(format!(
            "{text:?} is not a time; write a whole number and ms, s, m, h or d, such as \"25s\""
        )),
    }
}

/// A number of bytes, written with its unit; 64 MiB at most, for it is held in memory per
/// connection.
#[derive(Clone, Copy)]
pub(super) struct Size(pub(super) usize);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("B", 1)];
        let text = String::deserialize(deserializer)?;
        let bytes = with_unit(&text, &units).filter(|bytes| (1024..=64 << 20).contains(bytes));
        bytes.and_then(|bytes| usize::try_from(bytes).ok()).map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not a size from 1KiB to 64MiB; write a whole number and B, KiB or \
                 MiB, such as \"256KiB\""
            ))
        })
    }
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find_map(|(unit, factor)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(*factor)
    })
}

/// A path: relative to the file, absolute, or in systemd's credentials directory.
pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn below(self, directory: &Path) -> PathBuf {
        directory.join(self.0)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";
        let text = String::deserialize(deserializer)?;
        if let Some(name) = text.strip_prefix(CREDENTIALS) {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                de::Error::custom(
                    "systemd sets $CREDENTIALS_DIRECTORY only where the unit has LoadCredential=; \
                     add it, or write a path",
                )
            })?;
            return Ok(Self(PathBuf::from(directory).join(name)));
        }
        match text.as_bytes() {
            [] => Err(de::Error::custom("the path is empty; write one or remove the key")),
            [b'$', ..] => Err(de::Error::custom(format!(
                "only {CREDENTIALS} is expanded; write the whole path"
            ))),
            _ => Ok(Self(text.into())),
        }
    }
}

/// Addresses with a common beginning: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether it has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (ours, theirs, bits) = match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => (ours.to_bits(), theirs.to_bits(), 128),
            _ => return false,
        };
        let rest = u32::from(bits - self.prefix);
        // A shift by all bits there are leaves nothing to compare.
        ours.checked_shr(rest) == theirs.checked_shr(rest)
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        (prefix <= bits).then_some(Self { address, prefix })
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is no address or network; write one such as \"10.0.0.0/8\""
            ))
        })
    }
}

/// Where a key set is fetched: https, or http on this machine.
#[derive(Debug, Clone)]
pub(super) struct KeySetUrl(pub(super) Uri);

impl<'de> Deserialize<'de> for KeySetUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let uri: Option<Uri> = text.parse().ok().filter(|uri: &Uri| uri.host().is_some());
        let fault = |what: &str| Err(de::Error::custom(format!("{text:?} {what}")));
        let Some(uri) = uri else { return fault("is no URL; write https://…") };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_here =
            host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        match uri.scheme_str() {
            _ if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
                Err(de::Error::custom("the URL has a password in it; leave it out"))
            }
            Some("https") => Ok(Self(uri)),
            Some("http") if is_here => Ok(Self(uri)),
            Some("http") => fault("would let anyone on the way change the keys; use https://"),
            _ => fault("is no https:// URL"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_of_its_prefix() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.200.3.4", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("10.1.2.3", "::ffff:10.1.2.3", true),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            let network = Network::parse(network).unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), expected, "{network:?}");
        }
        assert!(
            ["", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1"]
                .iter()
                .all(|text| Network::parse(text).is_none())
        );
    }
}
