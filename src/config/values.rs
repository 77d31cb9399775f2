//! The forms in which the file writes values: durations, sizes, URLs, addresses. Each either
//! becomes the thing itself or says what is wrong and what to write. Pure.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::HubUrl;

const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// `500ms`, `25s`, `1m`, `2h`, `90d`.
///
/// # Errors
/// In words: what is wrong, and what to write.
pub fn duration(text: &str) -> Result<Duration, String> {
    number_and_unit(text, &DURATION_UNITS).map(Duration::from_millis).ok_or_else(|| {
        format!(
            "{text:?} is not a duration; write a whole number and ms, s, m, h or d, such as \"25s\""
        )
    })
}

/// `512MiB`, `64KiB`, `1MB`, or a number of bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    if let Ok(bytes) = text.parse() {
        return Ok(bytes);
    }
    number_and_unit(text, &SIZE_UNITS).ok_or_else(|| {
        format!(
            "{text:?} is not a size; write a whole number and B, KiB, MiB, GiB, TiB, KB, MB, GB or \
             TB, such as \"64KiB\""
        )
    })
}

fn number_and_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(known, _)| *known == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A duration as the file would write it, in the largest unit that is exact.
pub fn show_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = DURATION_UNITS
        .into_iter()
        .rev()
        .find(|(_, f)| ms >= *f && ms.is_multiple_of(*f))
        .unwrap_or(("ms", 1));
    format!("{}{unit}", ms / factor)
}

/// A size as the file would write it, in the largest unit that is exact.
pub fn show_size(bytes: u64) -> String {
    let (unit, factor) = SIZE_UNITS
        .into_iter()
        .find(|(_, f)| bytes >= *f && bytes.is_multiple_of(*f))
        .unwrap_or(("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// `wss://hub.example.com/v1/gateway`; `ws://` only towards this machine.
pub(super) fn hub_url(text: &str) -> Result<HubUrl, String> {
    let (scheme, rest) =
        scheme(text, "write one such as wss://hub.example.com/v1/gateway", "use token_file")?;
    let tls = match scheme.as_str() {
        "wss" => true,
        "ws" => false,
        _ => return Err(format!("scheme {scheme:?} is not a WebSocket scheme; use wss://")),
    };
    if rest.contains('#') {
        return Err("the part after # never reaches a server; remove it".into());
    }
    if rest.contains(|c: char| !c.is_ascii_graphic()) {
        return Err("the URL has spaces or letters beyond ASCII; write them as %XX".into());
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = host_and_port(authority, if tls { 443 } else { 80 })?;
    if !tls && !is_loopback(&host) {
        return Err(format!(
            "ws:// would send credentials and readings to {host:?} in the clear; use wss://"
        ));
    }
    let path = if path.starts_with('/') { path.into() } else { format!("/{path}") };
    Ok(HubUrl { tls, host, port, path })
}

/// `mqtt://127.0.0.1:1883` or `mqtts://…`: whether it is TLS, the host and the port.
pub(super) fn broker_url(text: &str) -> Result<(bool, String, u16), String> {
    let (scheme, rest) =
        scheme(text, "write one such as mqtt://127.0.0.1:1883", "use username and password_file")?;
    let tls = match scheme.as_str() {
        "mqtts" => true,
        "mqtt" => false,
        _ => return Err(format!("scheme {scheme:?} is not MQTT's; use mqtt:// or mqtts://")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("a broker's URL ends with its port; remove what follows".into());
    }
    let (host, port) = host_and_port(authority, if tls { 8883 } else { 1883 })?;
    Ok((tls, host, port))
}

/// An address and a port, such as `127.0.0.1:1883` or `[::]:8883`.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{text:?} is not an address with a port; write one such as 127.0.0.1:1883 or [::]:8883"
        )
    })
}

/// Whether a host of a URL is surely this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The scheme in lower case and what follows `://`. Refuses credentials, and never repeats a URL
/// that has them.
pub(super) fn scheme<'a>(
    text: &'a str,
    such_as: &str,
    instead: &str,
) -> Result<(String, &'a str), String> {
    let authority_of = |rest: &'a str| rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match text.split_once("://") {
        Some((_, rest)) if authority_of(rest).contains('@') => {
            Err(format!("a URL must not hold credentials; {instead}"))
        }
        Some((scheme, rest)) if !scheme.is_empty() => Ok((scheme.to_ascii_lowercase(), rest)),
        _ if text.contains('@') => Err(format!("this is not a URL; {such_as}")),
        _ => Err(format!("{text:?} is not a URL; {such_as}")),
    }
}

pub(super) fn host_and_port(authority: &str, default_port: u16) -> Result<(String, u16), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest
            .split_once(']')
            .ok_or("the bracket of the IPv6 address is open; close it with ]")?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err(format!("{host:?} is not an IPv6 address; write one such as [::1]"));
        }
        (host, port)
    } else {
        authority.split_at(authority.find(':').unwrap_or(authority.len()))
    };
    if port.matches(':').count() > 1 {
        return Err("an IPv6 address needs brackets; write one such as [::1]:443".into());
    }
    let port = match port.strip_prefix(':').map(str::parse) {
        None if port.is_empty() => default_port,
        Some(Ok(port)) if port > 0 => port,
        _ => {
            let port = port.trim_start_matches(':');
            return Err(format!("{port:?} is not a port; write a number from 1 to 65535"));
        }
    };
    if host.is_empty() {
        return Err(format!("there is no host name; write one, such as localhost:{default_port}"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if host.len() > 253 || !host.chars().all(fits) {
        return Err(format!(
            "{host:?} is not a host name; write letters, digits, - and . (other alphabets as xn--…)"
        ));
    }
    Ok((host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_and_shown() {
        for (text, ms) in [
            ("500ms", 500),
            ("25s", 25_000),
            ("1m", 60_000),
            ("2h", 7_200_000),
            ("90d", 7_776_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
        for (text, bytes) in
            [("512MiB", 512 << 20), ("64KiB", 65_536), ("1MB", 1_000_000), ("7B", 7)]
        {
            assert_eq!(size(text), Ok(bytes));
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        for bad in
            ["", "25", "s", "-1s", "1.5s", "1w", "99999999999999999999h", "9999999999999999h"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "-512", "MiB", "1mib", "99999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(show_duration(Duration::ZERO), "0ms");
        assert_eq!(show_size(0), "0B");
    }

    #[test]
    fn a_hub_url_is_taken_apart() {
        let url = |tls, host: &str, port, path: &str| {
            Ok(HubUrl { tls, host: host.into(), port, path: path.into() })
        };
        for (text, expected) in [
            ("wss://hub.example.com/v1/gateway", url(true, "hub.example.com", 443, "/v1/gateway")),
            ("WSS://Hub.Example.com", url(true, "hub.example.com", 443, "/")),
            ("wss://h:8443?a=b", url(true, "h", 8443, "/?a=b")),
            ("wss://h/a@b", url(true, "h", 443, "/a@b")),
            ("ws://localhost:9001/x", url(false, "localhost", 9001, "/x")),
            ("ws://127.0.0.2", url(false, "127.0.0.2", 80, "/")),
            ("ws://[::1]:9001", url(false, "::1", 9001, "/")),
        ] {
            assert_eq!(hub_url(text), expected, "{text}");
        }
    }

    #[test]
    fn a_bad_url_says_what_is_wrong() {
        for (text, says) in [
            ("http://hub", "scheme \"http\" is not a WebSocket scheme; use wss://"),
            (
                "hub.example.com",
                "\"hub.example.com\" is not a URL; write one such as \
                 wss://hub.example.com/v1/gateway",
            ),
            (
                "user:secret@hub",
                "this is not a URL; write one such as wss://hub.example.com/v1/gateway",
            ),
            ("wss://user:secret@hub/x", "a URL must not hold credentials; use token_file"),
            ("wss:///x", "there is no host name; write one, such as localhost:443"),
            ("wss://h:0", "\"0\" is not a port; write a number from 1 to 65535"),
            ("wss://h:99999", "\"99999\" is not a port; write a number from 1 to 65535"),
            ("wss://h:", "\"\" is not a port; write a number from 1 to 65535"),
            ("wss://[::1]443", "\"443\" is not a port; write a number from 1 to 65535"),
            ("wss://::1/", "an IPv6 address needs brackets; write one such as [::1]:443"),
            ("wss://[::1", "the bracket of the IPv6 address is open; close it with ]"),
            ("wss://[x]", "\"x\" is not an IPv6 address; write one such as [::1]"),
            ("wss://h/#a", "the part after # never reaches a server; remove it"),
            ("wss://h/a b", "the URL has spaces or letters beyond ASCII; write them as %XX"),
            (
                "wss://h%41/",
                "\"h%41\" is not a host name; write letters, digits, - and . (other alphabets as \
                 xn--…)",
            ),
            (
                "ws://hub.lan/",
                "ws:// would send credentials and readings to \"hub.lan\" in the clear; use wss://",
            ),
            (
                "ws://10.0.0.1/",
                "ws:// would send credentials and readings to \"10.0.0.1\" in the clear; use \
                 wss://",
            ),
        ] {
            assert_eq!(hub_url(text), Err(says.into()), "{text}");
        }
    }

    #[test]
    fn a_broker_url_is_taken_apart() {
        assert_eq!(broker_url("mqtt://127.0.0.1:1883"), Ok((false, "127.0.0.1".into(), 1883)));
        assert_eq!(broker_url("mqtts://broker.lan/"), Ok((true, "broker.lan".into(), 8883)));
        for bad in ["tcp://x", "mqtt://u:p@x", "mqtt://x/topic", "mqtt://", "x"] {
            assert!(broker_url(bad).is_err(), "{bad}");
        }
    }
}
