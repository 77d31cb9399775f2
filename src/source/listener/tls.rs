//! TLS with clients: the handshake, what a client showed in it, and for how long that counts.
//!
//! Files that were replaced count for new handshakes. Whoever came by a certificate stays only as
//! long as its authority is one that the listener names.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    time::{Duration, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Shared, connection::Caller, door::Shown};
use crate::identity::{Certificate, ServerTls};

/// How long a TLS handshake may take.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// What a client showed in its handshake, and what that was checked by.
#[derive(Debug, Clone)]
pub(super) struct Proof {
    chain: Vec<CertificateDer<'static>>,
    checked_by: Arc<ServerTls>,
}

impl Proof {
    /// Whether it counts as the listener's files are now.
    pub(super) fn counts(&self, now: Option<&Arc<ServerTls>>) -> bool {
        now.is_some_and(|tls| Arc::ptr_eq(tls, &self.checked_by) || tls.still_trusts(&self.chain))
    }
}

/// Shakes hands with a client, and notes what it showed. `None`: it is gone.
pub(super) async fn shake_hands(
    stream: TcpStream,
    tls: Arc<ServerTls>,
    caller: &mut Caller,
    shared: &Shared,
) -> Option<TlsStream<TcpStream>> {
    let (peer, refusals) = (caller.peer, &shared.door.refusals);
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)) => shaken,
        () = caller.leave.notified() => {
            refusals.say(peer, "client closed: too many others wait to connect");
            return None;
        }
    };
    match shaken {
        Ok(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            let chain = session.peer_certificates().unwrap_or_default();
            if let Some(own) = chain.first() {
                let own = Certificate::from_der(own).and_then(|own| own.common_name);
                caller.shown = Shown::certificate(own);
                caller.proof = Some(Proof { chain: chain.to_vec(), checked_by: tls });
            }
            return Some(stream);
        }
        Ok(Err(error)) => refusals.say(peer, format_args!("TLS handshake failed: {error}")),
        Err(_) => {
            refusals.say(peer, format_args!("no TLS handshake within {HANDSHAKE_DEADLINE:?}"));
        }
    }
    None
}

#[cfg(all(test, feature = "hub"))]
#[path = "tls_tests.rs"]
mod tests;
