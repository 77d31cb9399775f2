//! A peer that takes nothing must not hold a connection, and one that takes slowly must not lose
//! it: what bounds a write is how long nothing moves, not how long it takes.
//!
//! It lies directly on the TCP connection, beneath TLS and everything else that buffers.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// What shows that somebody is at the other end of a connection: bytes that it gave, and bytes that
/// it took once it had been full. That the kernel takes what little there is to send shows nothing.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU64);

impl Progress {
    /// Another number than before when there was progress in between.
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A connection whose writes fail when the peer takes nothing for too long. Reading may take as
/// long as it likes: what is waited for has deadlines of its own.
#[derive(Debug)]
pub(super) struct Patient<S> {
    io: S,
    patience: Duration,
    progress: Arc<Progress>,
    /// Since a write could not go on.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(io: S, patience: Duration, progress: Arc<Progress>) -> Self {
        Self { io, patience, progress, waiting: None }
    }
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    fn poll_patiently(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = write(Pin::new(&mut self.io), cx) {
            if self.waiting.take().is_some() {
                self.progress.add(*written.as_ref().unwrap_or(&0));
            }
            return Poll::Ready(written);
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.progress.add(buffer.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_patiently(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_patiently(cx, |io, cx| io.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// TCP holds nothing back that a flush would move.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_ends_the_write_and_one_that_is_slow_does_not() {
        const PATIENCE: Duration = Duration::from_millis(500);
        let progress = Arc::<Progress>::default();
        let (ours, theirs) = duplex(64);
        let mut ours = Patient::new(ours, PATIENCE, progress.clone());
        let error = ours.write_all(&[1; 65]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(progress.bytes(), 0, "what the buffer took shows nothing");
        drop(theirs);

        let (ours, mut theirs) = duplex(64);
        let mut ours = Patient::new(ours, PATIENCE, progress.clone());
        let reader = tokio::spawn(async move {
            let mut taken = 0;
            // Each pause is shorter than the patience, all of them together are longer.
            while taken < 640 {
                sleep(PATIENCE / 5).await;
                taken += theirs.read(&mut [0; 64]).await.unwrap();
            }
            theirs.write_all(&[2; 3]).await.unwrap();
            taken
        });
        ours.write_all(&[1; 640]).await.unwrap();
        assert_eq!(progress.bytes(), 640 - 64, "that the peer made room is progress");
        assert_eq!(reader.await.unwrap(), 640);
        ours.read_exact(&mut [0; 3]).await.unwrap();
        assert_eq!(progress.bytes(), 640 - 64 + 3, "and so is what it sends");
    }
}
