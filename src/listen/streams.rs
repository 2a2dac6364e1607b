//! What HTTP/2 needs beside the limits of its library: an end for the connection that idles, and for the client that asks and never takes.
//!
//! On HTTP/1 the header timer and the [`Guard`](super::guard::Guard) see to both. On HTTP/2 a client that answers pings may keep an idle
//! connection for ever, and one that grants no window is invisible to the guard: nothing is written. So the streams of a connection are
//! counted here, in atomics, and the connection's task looks every few seconds.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Limits, MIN_RATE};

/// What to do with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// It moves, or waits for the server.
    Keep,
    /// It has no stream: tell it to go.
    Close,
    /// It has streams and takes next to nothing, or was told to go and stays.
    Cut,
}

/// The streams of one connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct Streams(Arc<Inner>);

struct Inner {
    start: Instant,
    /// Requests that came and whose answer did not end.
    open: AtomicUsize,
    /// Those of them that wait for the service, or for its body, and so not for the client.
    serving: AtomicUsize,
    /// Bytes that bodies have given.
    given: AtomicU64,
    /// Milliseconds after `start` at which a stream last came, moved or ended.
    moved: AtomicU64,
}

/// Looks at the streams of a connection every now and then.
pub(super) struct Watch {
    streams: Streams,
    /// Since when a stream has waited for the client at every look, and what had been given then.
    waiting: Option<(Instant, u64)>,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            open: AtomicUsize::new(0),
            serving: AtomicUsize::new(0),
            given: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }))
    }

    /// A request came.
    pub(super) fn open(&self) -> Stream {
        self.0.open.fetch_add(1, Relaxed);
        self.0.serving.fetch_add(1, Relaxed);
        self.moved();
        Stream { streams: self.clone(), serving: true, turn: None }
    }

    /// Somebody to look at them.
    pub(super) fn watch(&self) -> Watch {
        Watch { streams: self.clone(), waiting: None }
    }

    fn moved(&self) {
        let now = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.moved.store(now, Relaxed);
    }
}

impl Watch {
    /// As [`Guard`](super::guard::Guard) does it with a socket: who keeps the server waiting for [`Limits::stall`] and takes less than
    /// [`MIN_RATE`] meanwhile is cut. What is asked for beside does not count, or a request a minute would hold a hundred others for ever.
    pub(super) fn advice(&mut self, limits: &Limits) -> Advice {
        let inner = &*self.streams.0;
        let open = inner.open.load(Relaxed);
        if open == 0 {
            self.waiting = None;
            let still = inner.start.elapsed().saturating_sub(Duration::from_millis(inner.moved.load(Relaxed)));
            // Told to go it has as long again, for what it asked before it heard.
            return if still >= limits.header * 2 {
                Advice::Cut
            } else if still >= limits.header {
                Advice::Close
            } else {
                Advice::Keep
            };
        }
        if open <= inner.serving.load(Relaxed) {
            self.waiting = None;
            return Advice::Keep;
        }
        let given = inner.given.load(Relaxed);
        let (since, before) = *self.waiting.get_or_insert_with(|| (Instant::now(), given));
        if since.elapsed() < limits.stall {
            return Advice::Keep;
        }
        self.waiting = None;
        if given - before < MIN_RATE.saturating_mul(limits.stall.as_secs()).max(1) { Advice::Cut } else { Advice::Keep }
    }
}

/// One request, until its answer ends.
pub(super) struct Stream {
    streams: Streams,
    serving: bool,
    /// Its leave to be served, from when it has it.
    turn: Option<OwnedSemaphorePermit>,
}

impl Stream {
    /// Keeps the leave to be served until its end.
    pub(super) fn in_turn(mut self, turn: OwnedSemaphorePermit) -> Self {
        self.turn = Some(turn);
        self
    }

    /// The body gave so many bytes, which now wait for the client.
    pub(super) fn gave(&mut self, bytes: u64) {
        self.streams.0.given.fetch_add(bytes, Relaxed);
        self.serving(false);
        self.streams.moved();
    }

    /// Whether it waits for the server, or else for the client.
    pub(super) fn serving(&mut self, serving: bool) {
        if self.serving != serving {
            self.serving = serving;
            let count = &self.streams.0.serving;
            _ = if serving { count.fetch_add(1, Relaxed) } else { count.fetch_sub(1, Relaxed) };
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.serving(false);
        self.streams.0.open.fetch_sub(1, Relaxed);
        self.streams.moved();
    }
}

/// Runs HTTP/2 streams as tasks that end with their connection.
#[derive(Clone)]
pub(super) struct Executor(pub(super) tokio_util::sync::CancellationToken);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(stream));
    }
}
