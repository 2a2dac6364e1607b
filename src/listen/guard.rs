//! The socket of a connection, with the one limit that neither hyper nor the kernel has: a client must go on taking what it asked for.
//!
//! [`Guard`] passes everything through. When a write finds the socket full it starts to count; when the connection has been blocked for
//! [`Limits::stall`](super::Limits::stall) in all and the client has taken less than [`MIN_RATE`](super::MIN_RATE) meanwhile, the write
//! fails. Time in which nothing is being sent does not count: an upstream may be as slow as it likes. The fast path, a write that the
//! socket accepts, pays for an addition and a branch.
//!
//! Epoll says "there is room" only when a third of the send buffer is free, which a slow but honest client of a 4 MiB buffer takes long to
//! make. So before it gives up, the guard goes on asking the kernel directly, which takes what fits, until it takes no more: only then is
//! judged what the client took. What then fits may be room that was there from the start; a client that takes nothing is therefore cut after
//! one to two times the limit.
//!
//! It sits below TLS, so that a handshake and a `close_notify` are bound by it as well.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::MIN_RATE;
use super::hand::PAUSE;
use super::mapped::{self, Bringing, Mapped};
use super::unsent::{self, Wide};

/// After the last byte was sent: how long what the client still sends is read and thrown away. Closing a socket with unread bytes resets it,
/// and the reset overtakes the answer: a client that is refused in the middle of an upload would never see why. A second is a round trip to anywhere.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that a client takes without a [`PAUSE`] when more may wait in its socket: more than both kernels hold for one that reads nothing.
const WIDE_AFTER: u64 = 1 << 20;

/// Bytes thrown away at a time.
const DISCARD: usize = 8 * 1024;

/// A client's socket that gives up on a client that takes nothing.
pub(super) struct Guard {
    socket: TcpStream,
    stall: Duration,
    /// Since when the socket has been full; None while it accepts.
    blocked: Option<Instant>,
    /// How long it was full in this window, before `blocked`.
    earlier: Duration,
    /// Bytes accepted in this window.
    taken: u64,
    timer: Option<Pin<Box<Sleep>>>,
    /// The time is up, and the kernel is asked directly until it has no room.
    probing: bool,
    /// The timer has yet to fire. It is set anew only when it fired, not at every blocked write: firing early is cheap and rare.
    armed: bool,
    linger: Option<Pin<Box<Sleep>>>,
    /// What waits to be written may lie in a mapping, and has to be in memory before it is.
    mapped: Mapped,
    bringing: Option<Bringing>,
    /// Bytes accepted without a pause, and what that earned.
    run: u64,
    wide: Option<Wide>,
}

impl Guard {
    pub(super) fn new(socket: TcpStream, stall: Duration, mapped: Mapped) -> Self {
        Self {
            socket,
            stall,
            blocked: None,
            earlier: Duration::ZERO,
            taken: 0,
            timer: None,
            probing: false,
            armed: false,
            linger: None,
            mapped,
            bringing: None,
            run: 0,
            wide: None,
        }
    }

    /// Waits until what is offered is in memory: a write that waited for a disk would keep a worker.
    fn poll_resident(&mut self, cx: &mut Context<'_>, offered: &[IoSlice<'_>]) -> Poll<io::Result<()>> {
        if self.bringing.is_none() && !self.mapped.look() {
            return Poll::Ready(Ok(()));
        }
        loop {
            self.mapped.check().inspect_err(|error| self.mapped.fail(error))?;
            if let Some(bringing) = &mut self.bringing {
                let brought = ready!(bringing.as_mut().poll(cx));
                self.bringing = None;
                brought.inspect_err(|error| self.mapped.fail(error))?;
            }
            match mapped::bring(offered) {
                None => return Poll::Ready(Ok(())),
                Some(bringing) => {
                    // Time that the disk takes is not the client's.
                    self.accepted(0);
                    self.bringing = Some(bringing);
                }
            }
        }
    }

    /// The socket took, or had no room for, a part of `offered`.
    fn after(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>, offered: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.accepted(bytes);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(error))),
            Poll::Pending => self.full(cx, offered),
        }
    }

    #[cold]
    fn failed(&self, error: io::Error) -> io::Error {
        // Taken back, and not to be read any more, since it was looked at.
        if error.raw_os_error() == Some(Errno::FAULT.raw_os_error()) {
            self.mapped.fail(&error);
        }
        error
    }

    #[inline]
    fn accepted(&mut self, bytes: usize) {
        self.taken += bytes as u64;
        self.run += bytes as u64;
        if let Some(since) = self.blocked.take() {
            let waited = since.elapsed();
            self.earlier += waited;
            if waited > PAUSE {
                self.run = 0;
                if self.wide.take().is_some() {
                    let _ = unsent::limit(&self.socket);
                }
            }
        }
        if self.run >= WIDE_AFTER {
            self.run = 0;
            if self.wide.is_none() {
                self.wide = unsent::widen(&self.socket);
            }
        }
    }

    /// The socket is full: Pending until the time is up, then what the kernel still takes, then the end.
    #[cold]
    fn full(&mut self, cx: &mut Context<'_>, offered: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let since = *self.blocked.get_or_insert_with(Instant::now);
            if self.probing {
                let last = send_now(&self.socket, offered).map_err(|error| self.failed(error))?;
                self.taken += last as u64;
                if last == offered.iter().map(|slice| slice.len()).sum::<usize>() {
                    return Poll::Ready(Ok(last));
                }
                if self.taken < MIN_RATE.saturating_mul(self.stall.as_secs()).max(1) {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("the client took {} bytes in the {:?} it was waited for", self.taken, self.stall),
                    )));
                }
                (self.probing, self.earlier, self.taken, self.blocked) = (false, Duration::ZERO, 0, None);
                if last > 0 {
                    return Poll::Ready(Ok(last));
                }
                continue;
            }
            let end = since + self.stall.saturating_sub(self.earlier);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
            if !self.armed {
                timer.as_mut().reset(end);
                self.armed = true;
            }
            ready!(timer.as_mut().poll(cx));
            self.armed = false;
            self.probing = Instant::now() >= end;
        }
    }
}

/// What the kernel takes at once, whatever epoll said; 0 when it has no room.
fn send_now(socket: &TcpStream, offered: &[IoSlice<'_>]) -> io::Result<usize> {
    match sendmsg(socket, offered, &mut SendAncillaryBuffer::default(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(bytes) => Ok(bytes),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

impl AsyncRead for Guard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_resident(cx, &[IoSlice::new(buf)]))?;
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.after(cx, written, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_resident(cx, bufs))?;
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.after(cx, written, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Says that no more will come, then reads until the client has said so too, or [`LINGER`] is over.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
            self.linger = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        let mut buffer = [0; DISCARD];
        loop {
            let mut buf = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        match &mut self.linger {
            Some(linger) => linger.as_mut().poll(cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::unsent::tests::bound;
    use crate::mapping::{self, page_out};

    /// The guard of a socket that is limited as those of clients are, and its other end.
    async fn guarded() -> (Guard, Mapped, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().expect("bound")), listener.accept());
        let (socket, mapped) = (accepted.expect("a connection").0, Mapped::default());
        unsent::limit(&socket).expect("a socket");
        (Guard::new(socket, Duration::from_secs(60), mapped.clone()), mapped, client.expect("a connection"))
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_without_a_pause_may_have_more_waiting_until_it_pauses() {
        let (mut guard, _, _client) = guarded().await;
        let bounded = bound(&guard.socket);
        for _ in 0..2 {
            guard.accepted(usize::try_from(WIDE_AFTER).expect("small") - 1);
            assert_eq!(bound(&guard.socket), bounded, "it has taken no more than may lie in two kernels");
            guard.accepted(1);
            let wide = bound(&guard.socket);
            assert!(wide > bounded, "{wide}");
            guard.blocked = Some(Instant::now());
            tokio::time::advance(PAUSE).await;
            guard.accepted(1);
            assert_eq!(bound(&guard.socket), wide, "that was none");
            guard.blocked = Some(Instant::now());
            tokio::time::advance(PAUSE * 2).await;
            guard.accepted(1);
            assert_eq!(bound(&guard.socket), bounded);
            // It has taken one already.
            guard.run = 0;
        }
    }

    #[tokio::test]
    async fn time_that_the_disk_takes_is_not_the_clients() {
        let (file, _, mapping) = mapping::mapped(1 << 20);
        if !page_out(&file, &mapping) {
            return;
        }
        let (mut guard, mapped, _client) = guarded().await;
        let ((), _given) = mapped::poll(Some(&mapped), || mapped::gives_mapped(crate::listen::tests::mapped::nobody()));
        // A write was tried.
        mapped.look();
        guard.blocked = Some(Instant::now());
        let offered = [IoSlice::new(mapping.as_ref())];
        let mut since = Vec::new();
        let brought = std::future::poll_fn(|cx| {
            let brought = guard.poll_resident(cx, &offered);
            since.push(guard.blocked);
            brought
        });
        brought.await.expect("the disk answers");
        assert!(since.len() > 1, "it was not there");
        assert_eq!(since[0], None, "the client is not waited for");
    }
}
