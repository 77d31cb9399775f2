//! Whether the board is on another network than a moment ago, told by the kernel (rtnetlink(7)).
//!
//! A cable that is plugged in, a modem that dials in again, Wi-Fi that roams: whoever waits for a
//! timer then waits for nothing. What counts is what an address or a default route did; that an
//! address was announced once more, as each router advertisement does, is no change.

mod rtnetlink;

use std::{io, time::Duration};

use bytes::BytesMut;
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use self::rtnetlink::Network;

/// Changes come in crowds: a change is told when nothing followed it for so long, and at the latest
/// after this time.
const QUIET: Duration = Duration::from_millis(250);
const AT_MOST: Duration = Duration::from_secs(2);

/// What the kernel puts into one datagram at most, by its own word (`NLMSG_GOODSIZE`).
const DATAGRAM_BYTES: usize = 8 * 1024;

/// rtnetlink(7): the groups that tell of addresses and routes, as bits.
const GROUPS: u32 = GROUP_IPV4_ADDRESS | GROUP_IPV4_ROUTE | GROUP_IPV6_ADDRESS | GROUP_IPV6_ROUTE;
const GROUP_IPV4_ADDRESS: u32 = 0x10;
const GROUP_IPV4_ROUTE: u32 = 0x40;
const GROUP_IPV6_ADDRESS: u32 = 0x100;
const GROUP_IPV6_ROUTE: u32 = 0x400;

/// Listens in a task of its own. Each message says that the network changed; changes that nobody
/// has taken yet are one. Where the kernel can't be listened to there are none, and the link's own
/// timers find what there is to find.
pub fn watch_network() -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    match open() {
        Ok(socket) => drop(tokio::spawn(run(socket, sender))),
        Err(error) => tracing::info!(%error, "network changes are not noticed; timers do instead"),
    }
    receiver
}

fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
    Ok(socket)
}

async fn run(socket: TokioSocket, changes: mpsc::Sender<()>) {
    let mut network = Network::default();
    let mut settling = Settling::default();
    loop {
        let changed = tokio::select! {
            () = changes.closed() => return,
            () = settled(&settling) => {
                settling = Settling::default();
                // A change that waits to be taken stands for this one too.
                let _ = changes.try_send(());
                continue;
            }
            datagram = receive(&socket) => match datagram {
                Ok(datagram) => network.handle_datagram(&datagram),
                // The kernel dropped some: who knows what they said.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => true,
                Err(error) => {
                    tracing::info!(%error, "network changes are no longer noticed");
                    return;
                }
            },
        };
        if changed {
            settling.handle_change(Instant::now());
        }
    }
}

/// errno(3): no buffer space available.
const ENOBUFS: i32 = 105;

async fn receive(socket: &TokioSocket) -> io::Result<BytesMut> {
    let mut buffer = BytesMut::with_capacity(DATAGRAM_BYTES);
    socket.recv(&mut buffer).await?;
    Ok(buffer)
}

async fn settled(settling: &Settling) {
    match settling.at() {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The first and the last of a crowd of changes.
#[derive(Debug, Default)]
struct Settling {
    crowd: Option<(Instant, Instant)>,
}

impl Settling {
    fn handle_change(&mut self, now: Instant) {
        let (first, _) = self.crowd.unwrap_or((now, now));
        self.crowd = Some((first, now));
    }

    /// When the crowd is told of.
    fn at(&self) -> Option<Instant> {
        self.crowd.map(|(first, last)| (last + QUIET).min(first + AT_MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_changes_is_one_and_an_endless_crowd_is_cut() {
        let mut settling = Settling::default();
        assert_eq!(settling.at(), None);
        let start = Instant::now();
        settling.handle_change(start);
        assert_eq!(settling.at(), Some(start + QUIET));
        let next = start + QUIET / 2;
        settling.handle_change(next);
        assert_eq!(settling.at(), Some(next + QUIET));
        for step in 1..100 {
            settling.handle_change(start + QUIET / 2 * step);
        }
        assert_eq!(settling.at(), Some(start + AT_MOST));
    }

    #[tokio::test]
    async fn the_kernel_can_be_listened_to() {
        open().expect("rtnetlink needs no privilege");
        let mut changes = watch_network();
        let early = tokio::time::timeout(Duration::from_millis(50), changes.recv()).await;
        assert!(!matches!(early, Ok(None)), "the task lives");
    }
}
