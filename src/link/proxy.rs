//! What is said to a proxy before the hub is reached through it. Pure: bytes in, bytes out; who
//! reads and writes is `dial`.

mod http;
mod socks;

use self::{http::Connect, socks::Socks};
use crate::config::{Credentials, ProxyKind};

/// A proxy and who we are there.
#[derive(Debug, Clone)]
pub struct Via {
    /// What it speaks.
    pub kind: ProxyKind,
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Shown when it asks.
    pub credentials: Option<Credentials>,
}

/// A conversation with a proxy, until it has a way to the hub.
#[derive(Debug)]
pub(super) enum Handshake {
    Http(Connect),
    Socks(Socks),
}

/// Where the conversation stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The proxy has more to say.
    More,
    /// What follows is the hub's.
    Through,
}

impl Handshake {
    /// To reach `host` and `port` through `via`.
    pub(super) fn new(via: &Via, host: &str, port: u16) -> Self {
        match via.kind {
            ProxyKind::Http => Self::Http(Connect::new(via, host, port)),
            ProxyKind::Socks5 => Self::Socks(Socks::new(via, host, port)),
        }
    }

    /// What is to be written next, if anything is.
    pub(super) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Http(connect) => connect.poll_transmit(),
            Self::Socks(socks) => socks.poll_transmit(),
        }
    }

    /// Bytes of the proxy, in pieces of any size. Both kinds leave the first word to us once we are
    /// through, so that bytes beyond the answer are a fault.
    ///
    /// # Errors
    /// The proxy refuses, or does not speak as it should: the fault and the remedy.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Progress, String> {
        match self {
            Self::Http(connect) => connect.handle_bytes(bytes),
            Self::Socks(socks) => socks.handle_bytes(bytes),
        }
    }
}

const NO_CREDENTIALS: &str = "set uplink.proxy_user and uplink.proxy_password_file";
const WRONG_CREDENTIALS: &str = "check uplink.proxy_user and uplink.proxy_password_file";
const SPOKE_FIRST: &str = "it sends more than its answer; see that uplink.proxy names a proxy";

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn via(kind: ProxyKind, credentials: Option<(&str, &str)>) -> Via {
        let credentials = credentials.map(|(user, password)| Credentials {
            user: user.into(),
            password: password.to_owned().into(),
        });
        Via { kind, host: "proxy.lan".into(), port: 3128, credentials }
    }

    /// A conversation in which the proxy says each of `answers` after what it heard; what it heard,
    /// and how it ended. It is the same whatever pieces the answers come in.
    pub(super) fn converse(
        via: &Via,
        host: &str,
        answers: &[&[u8]],
    ) -> (Vec<Vec<u8>>, Result<Progress, String>) {
        let whole = in_pieces(via, host, answers, usize::MAX);
        let longest = answers.iter().map(|answer| answer.len()).max().unwrap_or(0);
        for size in 1..longest {
            assert_eq!(in_pieces(via, host, answers, size), whole, "in pieces of {size}");
        }
        for first in 1..longest {
            let split: Vec<&[u8]> = answers.iter().map(|answer| &answer[..]).collect();
            assert_eq!(split_at(via, host, &split, first), whole, "cut after {first}");
        }
        whole
    }

    fn in_pieces(
        via: &Via,
        host: &str,
        answers: &[&[u8]],
        size: usize,
    ) -> (Vec<Vec<u8>>, Result<Progress, String>) {
        let pieces = |answer: &[u8]| answer.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>();
        play(via, host, answers.iter().map(|answer| pieces(answer)).collect())
    }

    fn split_at(
        via: &Via,
        host: &str,
        answers: &[&[u8]],
        first: usize,
    ) -> (Vec<Vec<u8>>, Result<Progress, String>) {
        let pieces = |answer: &[u8]| {
            let (head, rest) = answer.split_at(first.min(answer.len()));
            [head, rest].map(<[u8]>::to_vec).to_vec()
        };
        play(via, host, answers.iter().map(|answer| pieces(answer)).collect())
    }

    fn play(
        via: &Via,
        host: &str,
        answers: Vec<Vec<Vec<u8>>>,
    ) -> (Vec<Vec<u8>>, Result<Progress, String>) {
        let mut handshake = Handshake::new(via, host, 443);
        let mut heard: Vec<Vec<u8>> = handshake.poll_transmit().into_iter().collect();
        let mut progress = Ok(Progress::More);
        for answer in answers {
            for piece in answer.iter().filter(|piece| !piece.is_empty()) {
                progress = handshake.handle_bytes(piece);
                if progress.is_err() {
                    return (heard, progress);
                }
            }
            heard.extend(handshake.poll_transmit());
            assert_eq!(handshake.poll_transmit(), None);
        }
        (heard, progress)
    }
}
