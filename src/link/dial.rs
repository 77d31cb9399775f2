//! From a URL to an open WebSocket: DNS, TCP, a proxy if there is one, TLS, upgrade. Each step has
//! its own deadline, and each failure names the step, the thing and the remedy.

use std::{io, net::SocketAddr, path::Path, pin::Pin, sync::Arc, time::Duration};

use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Counters, Down, Target,
    connect::{connect, resolve},
    proxy::{Handshake, Progress, Via},
    stream::{Counted, Stream},
    upgrade::{self, Answer},
};
use crate::{config::HubUrl, identity};

/// An open WebSocket whose frames nobody has read yet.
pub(super) struct Dialed {
    pub(super) stream: Stream,
    pub(super) answer: Answer,
    /// What the server sent right after its answer.
    pub(super) rest: Vec<u8>,
}

/// A step of dialling that is done.
#[derive(Debug, Clone)]
pub enum Passed {
    /// DNS: the addresses of the hub, or of the proxy before it.
    Resolved(Vec<SocketAddr>),
    /// TCP: the address that answered.
    Connected(SocketAddr),
    /// The proxy has made a way to the hub.
    Proxied,
    /// TLS: the chain that the server showed, its own certificate first.
    Secured(Vec<CertificateDer<'static>>),
}

/// Told of each step that is done.
pub(super) type Note<'a> = &'a mut (dyn FnMut(Passed) + Send);

/// Dials once, resolving the name anew. Returns within five times `connect_timeout`.
pub(super) async fn dial(
    target: &Target,
    counters: Arc<Counters>,
    note: Note<'_>,
) -> Result<Dialed, Down> {
    let limit = target.connect_timeout;
    let mut stream = reach(target, counters, note).await?;
    let (answer, rest) = match timeout(limit, upgrade::upgrade(&mut stream, target)).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(Down::Refused { status, retry_after, date_ms, .. })) => {
            let valid_until_ms = stream.valid_until_ms();
            return Err(Down::Refused { status, retry_after, date_ms, valid_until_ms });
        }
        Ok(Err(down)) => return Err(down),
        Err(_) => return Err(failed("upgrade", too_late("upgrade", &target.url.host, limit))),
    };
    Ok(Dialed { stream, answer, rest })
}

/// The way to the hub, up to and with TLS. Boxed, so that its code is there once for all who go it.
pub(super) fn reach<'a>(
    target: &'a Target,
    counters: Arc<Counters>,
    note: Note<'a>,
) -> Pin<Box<dyn Future<Output = Result<Stream, Down>> + Send + 'a>> {
    Box::pin(go(target, counters, note))
}

async fn go(target: &Target, counters: Arc<Counters>, note: Note<'_>) -> Result<Stream, Down> {
    let (url, limit) = (&target.url, target.connect_timeout);
    // With a proxy, its name is the one to be resolved here.
    let (host, port) = match &target.proxy {
        Some(via) => (&via.host, via.port),
        None => (&url.host, url.port),
    };
    let addresses = within("DNS", limit, host, resolve(host, port)).await?;
    note(Passed::Resolved(addresses.clone()));
    let interface = target.bind_interface.as_deref();
    let mut tcp =
        connect(host, &addresses, interface, limit).await.map_err(|error| failed("TCP", error))?;
    counters.local.get_or_init(|| tcp.local_addr().ok().map(|address| address.ip()));
    if let Ok(address) = tcp.peer_addr() {
        note(Passed::Connected(address));
    }
    if let Some(via) = &target.proxy {
        within("proxy", limit, &via.host, pass(&mut tcp, via, url)).await?;
        note(Passed::Proxied);
    }
    let counted = Counted::new(tcp, counters);
    if !url.tls {
        return Ok(Stream::Plain(counted));
    }
    let shake = secure(counted, url, target.tls.clone(), target.ca_file.as_deref());
    let stream = within("TLS", limit, &url.host, shake).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    note(Passed::Secured(chain.to_vec()));
    Ok(Stream::Tls(Box::new(stream)))
}

/// Has the proxy make a way to the hub.
async fn pass(tcp: &mut TcpStream, via: &Via, url: &HubUrl) -> Result<(), String> {
    let broken = |error| io_words(&error, &format!("the proxy {}", via.host), None);
    let mut handshake = Handshake::new(via, &url.host, url.port);
    let mut buffer = [0; 1024];
    loop {
        if let Some(bytes) = handshake.poll_transmit() {
            tcp.write_all(&bytes).await.map_err(broken)?;
        }
        let length = tcp.read(&mut buffer).await.map_err(broken)?;
        if length == 0 {
            return Err(format!(
                "the proxy {} ended the connection instead of answering; its log should say why",
                via.host
            ));
        }
        match handshake.handle_bytes(&buffer[..length]) {
            Ok(Progress::More) => {}
            Ok(Progress::Through) => return Ok(()),
            Err(error) => return Err(format!("the proxy {}: {error}", via.host)),
        }
    }
}

pub(super) fn failed(step: &'static str, error: String) -> Down {
    Down::Dial { step, error }
}

/// Why reading or writing failed, in words, TLS alerts explained.
pub(super) fn io_words(error: &io::Error, host: &str, ca_file: Option<&Path>) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => identity::explain(tls, host, ca_file),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!("{host} ended the connection; its log should say why")
        }
        None => format!("the connection to {host} broke: {error}"),
    }
}

async fn within<T>(
    step: &'static str,
    limit: Duration,
    host: &str,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, Down> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|error| failed(step, error)),
        Err(_) => Err(failed(step, too_late(step, host, limit))),
    }
}

fn too_late(step: &str, host: &str, limit: Duration) -> String {
    let (fault, remedy) = match step {
        "DNS" => ("the resolver said nothing about it", "check the board's DNS (/etc/resolv.conf)"),
        "proxy" => ("this proxy did not make the way to the hub", "see its log"),
        "TLS" => ("it did not finish TLS", "see that a TLS server answers on this port"),
        _ => ("it did not answer the upgrade", "see that the hub runs and is not overloaded"),
    };
    format!("{host}: {fault} within {limit:?}; {remedy}, or raise connect_timeout")
}

async fn secure(
    tcp: Counted,
    url: &HubUrl,
    tls: Option<Arc<ClientConfig>>,
    ca_file: Option<&Path>,
) -> Result<TlsStream<Counted>, String> {
    let host = &url.host;
    let tls = tls.ok_or_else(|| format!("{host}: a wss URL needs certificates to trust"))?;
    let name = ServerName::try_from(host.clone())
        .map_err(|_| format!("{host:?} is no name that a certificate can have; correct the URL"))?;
    match TlsConnector::from(tls).connect(name, tcp).await {
        Ok(stream) => Ok(stream),
        Err(error) => Err(io_words(&error, host, ca_file)),
    }
}

#[cfg(test)]
mod tests;
