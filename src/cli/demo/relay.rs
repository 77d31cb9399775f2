//! The way between gateway and hub, which can be cut: a TCP relay on this machine. TLS passes
//! through untouched.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// Connections at once: there is one gateway. At the bound the next one waits in the system's
/// queue.
const MAX_CONNECTIONS: usize = 8;

/// How long the relay rests when the system has no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running relay; it ends when dropped.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Relays from a port that the system chooses to `target`.
    ///
    /// # Errors
    /// No port can be had.
    pub(super) async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (cut, is_cut) = watch::channel(false);
        let task = tokio::spawn(accept(listener, target, is_cut));
        Ok(Self { address, cut, task })
    }

    /// Where the gateway connects to.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection and, until [`Self::heal`], every new one before a byte of it gets
    /// through.
    pub(super) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Lets connections through again.
    pub(super) fn heal(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, is_cut: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((near, _)) => drop(connections.spawn(carry(near, target, is_cut.clone()))),
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut near: TcpStream, target: SocketAddr, mut is_cut: watch::Receiver<bool>) {
    let both_ways = async {
        let mut far = TcpStream::connect(target).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        copy_bidirectional(&mut near, &mut far).await
    };
    tokio::select! {
        biased;
        // Both sockets close; what was under way is gone, as it would be with the link.
        _ = is_cut.wait_for(|is_cut| *is_cut) => {}
        // However it ended, its two ends know.
        _ = both_ways => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::timeout,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = socket.split();
                    tokio::io::copy(&mut reader, &mut writer).await.ok();
                });
            }
        });
        address
    }

    async fn is_carried(socket: &mut TcpStream) -> bool {
        let mut heard = [0; 4];
        let exchange = async {
            socket.write_all(b"ping").await?;
            socket.read_exact(&mut heard).await
        };
        timeout(PATIENCE, exchange).await.expect("an answer, or the end").is_ok()
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_lets_nothing_new_through_until_healed() {
        let relay = Relay::start(echo().await).await.unwrap();
        let mut first = TcpStream::connect(relay.address()).await.unwrap();
        assert!(is_carried(&mut first).await);
        relay.cut();
        assert!(!is_carried(&mut first).await, "the open connection was cut");
        let mut second = TcpStream::connect(relay.address()).await.unwrap();
        assert!(!is_carried(&mut second).await, "a new one came through a cut link");
        relay.heal();
        let mut third = TcpStream::connect(relay.address()).await.unwrap();
        assert!(is_carried(&mut third).await);
    }
}
