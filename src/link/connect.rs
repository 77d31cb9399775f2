//! DNS and TCP: from a host and a port to a connection, over whichever address answers first.

use std::{io, net::SocketAddr, net::ToSocketAddrs as _, thread, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Semaphore, oneshot},
    time::{Instant, sleep_until},
};

use super::race::{Race, Step};

/// Lookups that may hang at once. A resolver that is silent holds each until it gives up by itself,
/// after about half a minute; at the bound, dials end at their DNS deadline.
static LOOKUPS: Semaphore = Semaphore::const_new(4);

/// What a resolver's stack needs, several times over.
const LOOKUP_STACK_BYTES: usize = 256 * 1024;

/// Silence on the connection until TCP itself asks whether the peer is there, and between its
/// questions. The gateway's pings come first; this frees sockets that nobody watches any more.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long sent bytes may go unacknowledged by the peer's kernel.
const UNACKED_LIMIT: Duration = Duration::from_secs(30);

/// Unsent bytes in the kernel above which the socket takes no more: so little that a slow link
/// shows its progress in `Counters` (2 s of 64 kbit/s).
const NOT_SENT_LOW_WATER: u32 = 16 * 1024;

/// Every address of the name, in the resolver's order of preference; at least one. Asked anew each
/// time, in a thread of its own: the system's resolver blocks, and neither the event loop nor the
/// end of the process may wait for it.
pub(super) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let permit = LOOKUPS.acquire().await.expect("this semaphore is never closed");
    let (sender, answer) = oneshot::channel();
    let name = host.to_owned();
    let lookup = move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        // Whoever asked may have gone; the permit goes only now.
        drop((sender.send(found), permit));
    };
    thread::Builder::new()
        .name("dns".into())
        .stack_size(LOOKUP_STACK_BYTES)
        .spawn(lookup)
        .map_err(|error| format!("no thread for the lookup of {host}: {error}; free memory"))?;
    let remedy = "check the name, and the board's DNS (/etc/resolv.conf)";
    match answer.await {
        Ok(Ok(found)) if !found.is_empty() => Ok(found),
        Ok(Ok(_)) => Err(format!("{host} has no address; {remedy}")),
        Ok(Err(error)) => Err(format!("{host} does not resolve: {error}; {remedy}")),
        Err(_) => Err(format!("the lookup of {host} ended without an answer; {remedy}")),
    }
}

/// Connects to whichever address answers first, within `limit`; the other attempts are dropped.
pub(super) async fn connect(
    host: &str,
    addresses: &[SocketAddr],
    interface: Option<&str>,
    limit: Duration,
) -> Result<TcpStream, String> {
    let deadline = Instant::now() + limit;
    let mut race = Race::new(addresses, limit);
    let mut attempts = FuturesUnordered::new();
    let (mut open, mut faults) = (Vec::new(), Vec::new());
    loop {
        let until = match race.poll(Instant::now().into_std()) {
            Step::Try(address) => {
                open.push(address);
                attempts.push(async move { (address, attempt(address, interface).await) });
                continue;
            }
            Step::Wait(at) => at.map_or(deadline, |at| deadline.min(at.into())),
            Step::Lost => break,
        };
        tokio::select! {
            Some((address, result)) = attempts.next(), if !attempts.is_empty() => match result {
                Ok(tcp) => {
                    tune(&tcp);
                    return Ok(tcp);
                }
                Err(error) => {
                    open.retain(|other| *other != address);
                    faults.push(format!("{address}: {error}"));
                    race.handle_failed();
                }
            },
            () = sleep_until(until) => if Instant::now() >= deadline { break },
        }
    }
    faults.extend(open.iter().map(|address| format!("{address}: no answer within {limit:?}")));
    Err(format!(
        "no connection to {host}: {}; see that it listens there, and that the board's network \
         and every firewall between let it through",
        faults.join(", ")
    ))
}

async fn attempt(address: SocketAddr, interface: Option<&str>) -> Result<TcpStream, String> {
    let words = |error: io::Error| error.to_string();
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(words)?;
    if let Some(name) = interface {
        socket.bind_device(Some(name.as_bytes())).map_err(|error| unbindable(name, &error))?;
    }
    socket.connect(address).await.map_err(words)
}

fn unbindable(interface: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "the kernel does not let this user bind to {interface}; it needs Linux 5.7 or the \
             capability CAP_NET_RAW; or remove uplink.bind_interface"
        ),
        _ => format!(
            "the network interface {interface} can't be used ({error}); see `ip link`, and correct \
             uplink.bind_interface"
        ),
    }
}

/// A kernel that lacks one of these still has a working connection.
fn tune(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    let results = [
        socket.set_tcp_nodelay(true),
        socket.set_tcp_keepalive(&keepalive),
        socket.set_tcp_user_timeout(Some(UNACKED_LIMIT)),
        socket.set_tcp_notsent_lowat(NOT_SENT_LOW_WATER),
    ];
    for error in results.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "the kernel refused a socket option");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::tests::{WAIT, bound};

    /// An address of this machine on which connecting hangs: a listener whose queue is full.
    async fn black_hole() -> (TcpSocket, SocketAddr, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        SockRef::from(&socket).listen(0).unwrap();
        let mut queued = Vec::new();
        let patience = Duration::from_millis(200);
        while let Ok(tcp) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
            queued.push(tcp.unwrap());
        }
        (socket, address, queued)
    }

    async fn refused() -> SocketAddr {
        let (listener, _) = bound().await;
        listener.local_addr().unwrap()
    }

    #[tokio::test]
    async fn an_address_that_refuses_leads_to_the_next_at_once() {
        let dead = refused().await;
        let (listener, _) = bound().await;
        let live = listener.local_addr().unwrap();
        let tcp = connect("h", &[dead, live], None, WAIT).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), live);
        let other = refused().await;
        let error = connect("h", &[dead, other], None, WAIT).await.unwrap_err();
        assert_eq!(error.matches("refused").count(), 2, "{error}");
        assert!(error.contains(&dead.to_string()) && error.contains(&other.to_string()), "{error}");
    }

    #[tokio::test]
    async fn an_address_that_is_silent_holds_up_the_next_by_the_attempt_delay_alone() {
        let (hole, silent, _queued) = black_hole().await;
        let (listener, _) = bound().await;
        let live = listener.local_addr().unwrap();
        let began = Instant::now();
        let tcp = connect("h", &[silent, live], None, WAIT).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), live);
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(250) && took < WAIT / 4, "{took:?}");
        drop(hole);
    }

    #[tokio::test]
    async fn silence_is_told_with_the_address_at_the_deadline() {
        let (hole, silent, _queued) = black_hole().await;
        let dead = refused().await;
        let limit = Duration::from_millis(300);
        let error = connect("h", &[silent, dead], None, limit).await.unwrap_err();
        assert!(error.contains(&format!("{silent}: no answer within 300ms")), "{error}");
        assert!(error.contains(&format!("{dead}: ")) && error.contains("refused"), "{error}");
        drop(hole);
    }

    #[tokio::test]
    async fn an_interface_is_bound_or_named() {
        let (listener, _) = bound().await;
        let live = [listener.local_addr().unwrap()];
        connect("h", &live, Some("lo"), WAIT).await.unwrap();
        let error = connect("h", &live, Some("nowhere0"), WAIT).await.unwrap_err();
        assert!(error.contains("nowhere0") && error.contains("bind_interface"), "{error}");
    }

    #[tokio::test]
    async fn the_socket_is_tuned() {
        let (listener, _) = bound().await;
        let live = listener.local_addr().unwrap();
        let tcp = connect("h", &[live], None, WAIT).await.unwrap();
        let socket = SockRef::from(&tcp);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKED_LIMIT));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOT_SENT_LOW_WATER);
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver_and_a_name_gives_all_it_has() {
        let found = resolve("::1", 7).await.unwrap();
        assert_eq!(found, [SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 7))]);
        let found = resolve("localhost", 7).await.unwrap();
        assert!(found.contains(&SocketAddr::from(([127, 0, 0, 1], 7))), "{found:?}");
    }
}
