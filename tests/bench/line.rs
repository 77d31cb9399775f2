//! The line between the gateway and the sink, which can be cut in the two ways that lines are: with
//! a reset that both ends see, and silently.

use std::{net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A relay on an address of its own.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) port: u16,
    cut: watch::Sender<Cut>,
    is_open: watch::Sender<bool>,
}

/// What became of the connections that were open at that moment; later ones are whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Cut {
    #[default]
    None,
    Reset,
    /// They stay open and nothing passes any more.
    Silence,
}

impl Line {
    /// Relays to `port` on this machine.
    pub(crate) async fn to(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let own = listener.local_addr()?.port();
        let ((cut, _), (is_open, open)) = (watch::channel(Cut::None), watch::channel(true));
        let cuts = cut.clone();
        tokio::spawn(async move {
            let far = SocketAddr::from(([127, 0, 0, 1], port));
            while let Ok((near, _)) = listener.accept().await {
                if *open.borrow() {
                    tokio::spawn(relay(near, far, cuts.subscribe()));
                }
            }
        });
        Ok(Self { port: own, cut, is_open })
    }

    /// Every open connection is reset, and later ones end at once, until the line is opened.
    pub(crate) fn close(&self) {
        self.is_open.send_replace(false);
        self.reset();
    }

    /// Later connections are relayed again.
    pub(crate) fn open(&self) {
        self.is_open.send_replace(true);
    }

    /// Every open connection is reset, at both ends.
    pub(crate) fn reset(&self) {
        self.cut.send_replace(Cut::Reset);
    }

    /// Nothing passes any more over the connections that are open.
    pub(crate) fn silence(&self) {
        self.cut.send_replace(Cut::Silence);
    }
}

async fn relay(mut near: TcpStream, far: SocketAddr, mut cut: watch::Receiver<Cut>) {
    // What happened before does not concern this connection.
    cut.mark_unchanged();
    let Ok(mut far) = TcpStream::connect(far).await else { return };
    for stream in [&near, &far] {
        // Without it a relay would be measured that waits for more to send.
        stream.set_nodelay(true).ok();
    }
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        _ = cut.changed() => {}
    }
    if *cut.borrow_and_update() == Cut::Silence {
        // Until this benchmark ends, or the line is cut again.
        cut.changed().await.ok();
    }
    for stream in [&near, &far] {
        SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
    }
}
