//! What HTTP/2 needs beside the limits of its library: an end for the connection that idles, and for the client that asks and never takes.
//!
//! On HTTP/1 the header timer and the [`Guard`](super::guard::Guard) see to both. On HTTP/2 a client that answers pings may keep an idle
//! connection for ever, and one that grants no window is invisible to the guard: nothing is written. So the streams of a connection are
//! counted here, in atomics, and the connection's task looks every few seconds.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::Limits;

/// What to do with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// It moves, or waits for the server.
    Keep,
    /// It has no stream: tell it to go.
    Close,
    /// It has streams and took nothing from any of them.
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
    /// Milliseconds after `start` at which a stream last came, moved or ended.
    moved: AtomicU64,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { start: Instant::now(), open: AtomicUsize::new(0), serving: AtomicUsize::new(0), moved: AtomicU64::new(0) }))
    }

    /// A request came.
    pub(super) fn open(&self) -> Stream {
        self.0.open.fetch_add(1, Relaxed);
        self.0.serving.fetch_add(1, Relaxed);
        self.moved();
        Stream { streams: self.clone(), serving: true }
    }

    pub(super) fn advice(&self, limits: &Limits) -> Advice {
        let open = self.0.open.load(Relaxed);
        let still = self.0.start.elapsed().saturating_sub(Duration::from_millis(self.0.moved.load(Relaxed)));
        if open == 0 && still >= limits.header {
            Advice::Close
        } else if open > self.0.serving.load(Relaxed) && still >= limits.stall {
            Advice::Cut
        } else {
            Advice::Keep
        }
    }

    fn moved(&self) {
        let now = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.moved.store(now, Relaxed);
    }
}

/// One request, until its answer ends.
pub(super) struct Stream {
    streams: Streams,
    serving: bool,
}

impl Stream {
    fn serving(&mut self, serving: bool) {
        if self.serving != serving {
            self.serving = serving;
            let count = &self.streams.0.serving;
            _ = if serving { count.fetch_add(1, Relaxed) } else { count.fetch_sub(1, Relaxed) };
        }
        self.streams.moved();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.serving(false);
        self.streams.0.open.fetch_sub(1, Relaxed);
    }
}

/// An answer's body that tells whether it waits for its source or for the client.
pub(super) struct Watched<B> {
    body: Pin<Box<B>>,
    stream: Stream,
}

impl<B> Watched<B> {
    pub(super) fn new(body: B, mut stream: Stream) -> Self {
        stream.serving(false);
        Self { body: Box::pin(body), stream }
    }
}

impl<B: Body> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = self.body.as_mut().poll_frame(cx);
        self.stream.serving(frame.is_pending());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
