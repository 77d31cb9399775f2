//! SOCKS 5: RFC 1928, with a user and a password (RFC 1929). The proxy resolves the hub's name.

use std::net::IpAddr;

use super::{NO_CREDENTIALS, Progress, SPOKE_FIRST, Via, WRONG_CREDENTIALS};
use crate::config::Credentials;

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const CONNECT: u8 = 1;
const SUCCEEDED: u8 = 0;
/// Kinds of addresses.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The conversation, with as much of the next answer as has come: at most 262 bytes.
pub(in super::super) struct Socks {
    stage: Stage,
    transmit: Option<Vec<u8>>,
    credentials: Option<Credentials>,
    request: Vec<u8>,
    heard: Vec<u8>,
}

impl std::fmt::Debug for Socks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What is to be sent may have the password.
        f.debug_struct("Socks").field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// Which answer is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Method,
    Login,
    Reply,
    Through,
}

impl Socks {
    pub(super) fn new(via: &Via, host: &str, port: u16) -> Self {
        // With a credential both are offered: a proxy may not ask for it.
        let greeting = match via.credentials {
            Some(_) => vec![VERSION, 2, NO_LOGIN, LOGIN],
            None => vec![VERSION, 1, NO_LOGIN],
        };
        Self {
            stage: Stage::Method,
            transmit: Some(greeting),
            credentials: via.credentials.clone(),
            request: request(host, port),
            heard: Vec::new(),
        }
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmit.take()
    }

    pub(super) fn handle_bytes(&mut self, mut bytes: &[u8]) -> Result<Progress, String> {
        loop {
            let wanted = self.wanted()?;
            let (taken, rest) = bytes.split_at(bytes.len().min(wanted - self.heard.len()));
            self.heard.extend_from_slice(taken);
            bytes = rest;
            if self.heard.len() < self.wanted()? {
                if bytes.is_empty() {
                    return Ok(Progress::More);
                }
                continue;
            }
            self.answer()?;
            self.heard.clear();
            // Each answer is one to what we say next, so that nothing can follow it yet.
            if !bytes.is_empty() {
                return Err(SPOKE_FIRST.into());
            }
            let through = self.stage == Stage::Through;
            return Ok(if through { Progress::Through } else { Progress::More });
        }
    }

    /// How long the answer is that is due, as far as what has come says.
    fn wanted(&self) -> Result<usize, String> {
        match (self.stage, self.heard.get(3), self.heard.get(4)) {
            (Stage::Reply, Some(&IPV4), _) => Ok(4 + 4 + 2),
            (Stage::Reply, Some(&IPV6), _) => Ok(4 + 16 + 2),
            (Stage::Reply, Some(&NAME), None) => Ok(5),
            (Stage::Reply, Some(&NAME), Some(length)) => Ok(5 + usize::from(*length) + 2),
            // A refusal need not say what address it was refused from.
            (Stage::Reply, Some(_), _) if self.heard.get(1) != Some(&SUCCEEDED) => Ok(4),
            (Stage::Reply, Some(_), _) => Err(not_socks()),
            (Stage::Reply, None, _) => Ok(4),
            (Stage::Method | Stage::Login | Stage::Through, ..) => Ok(2),
        }
    }

    fn answer(&mut self) -> Result<(), String> {
        let (version, code) = (self.heard[0], self.heard[1]);
        let expected = if self.stage == Stage::Login { LOGIN_VERSION } else { VERSION };
        if version != expected {
            return Err(not_socks());
        }
        match (self.stage, code) {
            (Stage::Method, NO_LOGIN) => self.ask(),
            (Stage::Method, LOGIN) => {
                let login = self.credentials.as_ref().ok_or_else(not_socks)?;
                self.transmit = Some(login_message(login)?);
                self.stage = Stage::Login;
            }
            (Stage::Method, _) if self.credentials.is_none() => {
                return Err(format!(
                    "it lets nobody through without credentials; {NO_CREDENTIALS}"
                ));
            }
            (Stage::Method, _) => {
                let why = "it takes neither a user with a password nor nobody; have it take either";
                return Err(why.into());
            }
            (Stage::Login, SUCCEEDED) => self.ask(),
            (Stage::Login, _) => {
                return Err(format!("it refuses the credentials; {WRONG_CREDENTIALS}"));
            }
            (Stage::Reply | Stage::Through, SUCCEEDED) => self.stage = Stage::Through,
            (Stage::Reply | Stage::Through, code) => return Err(refusal(code)),
        }
        Ok(())
    }

    fn ask(&mut self) {
        self.transmit = Some(std::mem::take(&mut self.request));
        self.stage = Stage::Reply;
    }
}

/// RFC 1928, section 4.
fn request(host: &str, port: u16) -> Vec<u8> {
    let mut bytes = vec![VERSION, CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            bytes.push(IPV4);
            bytes.extend(address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            bytes.push(IPV6);
            bytes.extend(address.octets());
        }
        Err(_) => {
            let length = u8::try_from(host.len()).expect("a host's name has at most 253 bytes");
            bytes.extend([NAME, length]);
            bytes.extend(host.as_bytes());
        }
    }
    bytes.extend(port.to_be_bytes());
    bytes
}

/// RFC 1929, section 2.
fn login_message(login: &Credentials) -> Result<Vec<u8>, String> {
    let mut bytes = vec![LOGIN_VERSION];
    for part in [&login.user, &*login.password] {
        let length = u8::try_from(part.len())
            .map_err(|_| "user and password have at most 255 bytes there; shorten them")?;
        bytes.push(length);
        bytes.extend(part.as_bytes());
    }
    Ok(bytes)
}

fn not_socks() -> String {
    "it does not speak SOCKS 5 on this port; check uplink.proxy".into()
}

/// RFC 1928, section 6.
fn refusal(code: u8) -> String {
    let (fault, remedy) = match code {
        1 => ("it failed", "see its log"),
        2 => ("its rules do not allow the connection", "have it allow this host and port"),
        3 => ("the hub's network is unreachable from there", "see its routes"),
        4 => ("the hub is unreachable from there", "check the hub's name and its routes"),
        5 => ("the hub refuses the connection", "see that the hub listens there"),
        6 => ("the hub did not answer it in time", "see that the hub can be reached from there"),
        7 | 8 => ("it does not support this connection", "have it allow CONNECT"),
        _ => ("it refuses for a reason of its own", "see its log"),
    };
    format!("{fault} (SOCKS reply {code}); {remedy}")
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{converse, via},
        *,
    };
    use crate::config::ProxyKind;

    const NO_LOGIN_NEEDED: &[u8] = &[5, 0];
    const LOGIN_NEEDED: &[u8] = &[5, 2];
    const LOGIN_TAKEN: &[u8] = &[1, 0];
    const GRANTED: &[u8] = &[5, 0, 0, 1, 127, 0, 0, 1, 0x1f, 0x90];

    #[test]
    fn a_name_is_left_to_the_proxy_and_an_address_sent_as_one() {
        let via = via(ProxyKind::Socks5, None);
        for (host, coded) in [
            ("hub.lan", b"\x03\x07hub.lan".as_slice()),
            ("10.0.0.1", &[1, 10, 0, 0, 1]),
            ("::1", &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ] {
            let (heard, end) = converse(&via, host, &[NO_LOGIN_NEEDED, GRANTED]);
            let request = [&[5, 1, 0], coded, &[1, 187]].concat();
            assert_eq!(heard, [vec![5, 1, 0], request]);
            assert_eq!(end, Ok(Progress::Through));
        }
    }

    #[test]
    fn credentials_are_shown_when_asked_for() {
        let via = via(ProxyKind::Socks5, Some(("user", "s3cret")));
        let (heard, end) = converse(&via, "h", &[LOGIN_NEEDED, LOGIN_TAKEN, GRANTED]);
        assert_eq!(heard[0], [5, 2, 0, 2]);
        assert_eq!(heard[1], b"\x01\x04user\x06s3cret");
        assert_eq!(end, Ok(Progress::Through));
        let (heard, end) = converse(&via, "h", &[NO_LOGIN_NEEDED, GRANTED]);
        assert_eq!((heard.len(), end), (2, Ok(Progress::Through)));
        let shown = format!("{via:?} {:?}", Socks::new(&via, "h", 1));
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn addresses_of_every_kind_may_stand_in_the_reply() {
        let via = via(ProxyKind::Socks5, None);
        let v6 = [[5, 0, 0, 4].as_slice(), &[0; 18]].concat();
        let name = [[5, 0, 0, 3, 255].as_slice(), &[b'x'; 257]].concat();
        for granted in [&v6, &name, &vec![5, 0, 0, 3, 0, 0, 0]] {
            let (_, end) = converse(&via, "h", &[NO_LOGIN_NEEDED, granted]);
            assert_eq!(end, Ok(Progress::Through));
        }
    }

    #[test]
    fn what_else_it_says_is_explained() {
        let login = Some(("user", "s3cret"));
        let long = "x".repeat(256);
        type Login<'a> = Option<(&'a str, &'a str)>;
        let cases: [(Login<'_>, &[&[u8]], &str); 11] = [
            (None, &[b"HTTP/1.1 400"], "does not speak SOCKS 5"),
            (None, &[&[5, 255]], "set uplink.proxy_user"),
            (None, &[&[5, 2]], "does not speak SOCKS 5"),
            (login, &[&[5, 255]], "neither a user"),
            (login, &[LOGIN_NEEDED, &[1, 1]], "check uplink.proxy_user"),
            (Some(("user", &long)), &[LOGIN_NEEDED], "at most 255 bytes"),
            (None, &[NO_LOGIN_NEEDED, &[5, 2, 0, 1, 0, 0, 0, 0, 0, 0]], "do not allow"),
            (None, &[NO_LOGIN_NEEDED, &[5, 5, 0, 0]], "the hub refuses"),
            (None, &[NO_LOGIN_NEEDED, &[5, 0, 0, 9]], "does not speak SOCKS 5"),
            (None, &[&[5, 0, 5]], SPOKE_FIRST),
            (None, &[NO_LOGIN_NEEDED, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7]], SPOKE_FIRST),
        ];
        for (credentials, answers, says) in cases {
            let via = via(ProxyKind::Socks5, credentials);
            let mut socks = Socks::new(&via, "h", 443);
            let error = answers.iter().find_map(|answer| {
                socks.poll_transmit();
                socks.handle_bytes(answer).err()
            });
            let error = error.unwrap_or_else(|| panic!("{answers:?} was taken"));
            assert!(error.contains(says) && !error.contains("s3cret"), "{answers:?}: {error}");
        }
    }
}
