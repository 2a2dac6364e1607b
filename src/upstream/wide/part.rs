//! A part of a blob: fetched by a task of its own into memory, handed on by whoever holds the body.
//!
//! A part that breaks off or falls silent is resumed where it stopped: first at the place where the blob was found, then by
//! asking the registry anew, other endpoints before the one that failed. What cannot be had ends short, and that says it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::plan::per_second;
use crate::oci::{Digest, Name};
use crate::upstream::Upstream;
use crate::upstream::answers::{Asked, BlobBody};
use crate::upstream::budget::Deadline;
use crate::upstream::error::{Error, Flaw};
use crate::upstream::flow::Flow;
use crate::upstream::speed::is_slow;
use crate::upstream::spot::Spot;

/// Of the connections that an upstream is granted, the share that further connections for a blob leave to others.
const LEFT_TO_OTHERS: usize = 2;

/// How many times longer than a part should take one connection may take for it, besides what it may be silent. What it
/// brought until then is kept.
const TIMES_TOO_LONG: u32 = 4;

/// Where the parts of one blob come from.
pub(super) struct Origin {
    pub(super) upstream: Upstream,
    pub(super) digest: Digest,
    /// Bytes that came over all connections.
    pub(super) received: AtomicU64,
    name: Name,
    size: Option<u64>,
    // std: held for a clone, never across an await.
    spot: Mutex<(Spot, usize)>,
    asked: Asked,
    /// Ranges are answered with something else.
    refused: AtomicBool,
}

/// Where a part is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Where the blob was found.
    Known,
    /// Where the registry says now.
    Anew,
    /// At another endpoint, if there is one: this one fails.
    Elsewhere,
    /// At an endpoint of which nobody knows how fast it is.
    Stranger,
}

/// One part, and what came of it by now.
pub(super) struct Part {
    pub(super) start: u64,
    /// The byte after its last.
    pub(super) end: u64,
    /// At most its own length waits here.
    pub(super) bytes: UnboundedReceiver<Bytes>,
    state: Arc<State>,
    task: AbortHandle,
    /// Its memory, where it waits for what comes before it.
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct State {
    begun: AtomicBool,
    failed: AtomicBool,
    done: AtomicBool,
}

impl Origin {
    pub(super) fn new(
        upstream: Upstream,
        name: Name,
        digest: Digest,
        size: Option<u64>,
        spot: Spot,
        endpoint: usize,
        asked: Asked,
    ) -> Self {
        let (received, refused) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { upstream, digest, received, name, size, spot: Mutex::new((spot, endpoint)), asked, refused }
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Memory for a part of so many bytes.
    pub(super) fn place(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        self.upstream.0.ahead.take(bytes)
    }

    /// A connection, unless others may want it.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let blobs = &self.upstream.0.blobs;
        if blobs.available_permits() <= self.upstream.0.blobs_max / LEFT_TO_OTHERS {
            return None;
        }
        Arc::clone(blobs).try_acquire_owned().ok()
    }

    /// Whether there is an endpoint of which nobody knows how fast it is.
    pub(super) fn has_stranger(&self) -> bool {
        let (_, current) = self.spot();
        let endpoints = self.upstream.0.endpoints.iter().enumerate();
        endpoints
            .filter(|(number, _)| *number != current)
            .any(|(_, endpoint)| endpoint.speed.get().is_none() && !endpoint.health.is_suspect())
    }

    /// The bytes `first..=last` from where the blob was found.
    async fn open_here(&self, range: (u64, u64), permit: OwnedSemaphorePermit) -> Result<Flow, Error> {
        let (spot, _) = self.spot();
        self.upstream.part_at(&spot, range, permit).await
    }

    /// The same from where the registry says now; from another endpoint, if there is one and `elsewhere` is meant.
    async fn open_anew(&self, range: (u64, u64), elsewhere: bool, permit: OwnedSemaphorePermit) -> Result<BlobBody, Error> {
        let (_, current) = self.spot();
        let known = self.upstream.0.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.speed.get().is_some());
        // Those of which something is known come after those of which nothing is, and the one that was asked comes last.
        let avoided = if elsewhere { known.map(|(number, _)| number).chain([current]).collect() } else { Vec::new() };
        let found = self.upstream.blob_part((&self.name, &self.digest), range, &avoided, permit).await?;
        if found.size.is_some_and(|size| self.size.is_some_and(|known| known != size)) {
            return Err(Error::BadAnswer { host: self.upstream.registry().to_string(), flaw: Flaw::Range });
        }
        self.asked.add(found.endpoint);
        Ok(found)
    }

    /// From here on parts come from there.
    fn go_to(&self, spot: Spot, endpoint: usize) {
        *self.lock() = (spot, endpoint);
    }

    fn spot(&self) -> (Spot, usize) {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, (Spot, usize)> {
        self.spot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// Begins to fetch a part. Without a permit it waits for a connection.
    pub(super) fn fetch(
        origin: &Arc<Origin>,
        range: Range<u64>,
        way: Way,
        place: Option<OwnedSemaphorePermit>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let (sender, bytes) = unbounded_channel();
        let state = Arc::new(State::default());
        let Range { start, end } = range;
        let work = Fetch { origin: Arc::clone(origin), position: start, end, state: Arc::clone(&state), sender };
        let task = tokio::spawn(work.run(way, permit)).abort_handle();
        Self { start, end, bytes, state, task, _place: place }
    }

    /// Its first byte is on its way, and nothing has gone wrong since.
    pub(super) fn has_begun(&self) -> bool {
        self.state.begun.load(Ordering::Acquire) && !self.state.failed.load(Ordering::Acquire)
    }

    /// Nothing more comes.
    pub(super) fn is_done(&self) -> bool {
        self.state.done.load(Ordering::Acquire)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Fetch {
    origin: Arc<Origin>,
    position: u64,
    end: u64,
    state: Arc<State>,
    sender: UnboundedSender<Bytes>,
}

impl Fetch {
    async fn run(mut self, way: Way, mut permit: Option<OwnedSemaphorePermit>) {
        let limits = self.origin.upstream.0.wire.limits.clone();
        let (mut way, mut tries) = (way, 0);
        while tries < limits.wide.tries {
            let before = self.position;
            let error = self.attempt(way, permit.take()).await.err();
            if self.position == self.end {
                self.state.done.store(true, Ordering::Release);
                return;
            }
            tracing::debug!(digest = %self.origin.digest, position = self.position, end = self.end, ?error, "a part broke off");
            let refused = matches!(error, Some(Error::BadAnswer { flaw: Flaw::Range, .. }));
            if refused && way == Way::Anew {
                // Neither the place nor the registry itself gives a part.
                self.origin.refused.store(true, Ordering::Release);
                break;
            }
            // A place that refuses was signed for a while that is over; one that does not answer is perhaps no place any more.
            way = if refused { Way::Anew } else { Way::Elsewhere };
            tries = if self.position > before { 0 } else { tries + 1 };
            tokio::time::sleep(limits.pause_before(usize::try_from(tries).unwrap_or(0))).await;
        }
        self.state.failed.store(true, Ordering::Release);
        self.state.done.store(true, Ordering::Release);
    }

    /// One connection: what it brings is handed on. No error means that it brought what it could.
    async fn attempt(&mut self, way: Way, permit: Option<OwnedSemaphorePermit>) -> Result<(), Error> {
        let upstream = self.origin.upstream.clone();
        let permit = match permit {
            Some(permit) => permit,
            None => upstream.permit(&upstream.0.blobs, Deadline::after(upstream.0.wire.limits.call)).await?,
        };
        let range = (self.position, self.end - 1);
        if way == Way::Known {
            let flow = self.origin.open_here(range, permit).await?;
            self.receive(flow).await;
            return Ok(());
        }
        let BlobBody { body, spot, endpoint, .. } = self.origin.open_anew(range, way != Way::Anew, permit).await?;
        let (_, current) = self.origin.spot();
        if way == Way::Anew {
            self.origin.go_to(spot, endpoint);
            self.receive(body).await;
            return Ok(());
        }
        let began = Instant::now();
        self.receive(body).await;
        if self.position < self.end {
            return Ok(());
        }
        let rate = per_second(self.end - range.0, began.elapsed());
        let speeds = [endpoint, current].map(|number| &upstream.0.endpoints[number].speed);
        if endpoint != current {
            speeds[0].note(rate);
        }
        tracing::debug!(digest = %self.origin.digest, endpoint, current, rate, known = speeds[1].get(), "a part came from another endpoint");
        // Who was asked because the other failed has proved to be better; a stranger must be much better.
        if way == Way::Elsewhere || is_slow(speeds[1].get(), Some(rate), u64::MAX) {
            self.origin.go_to(spot, endpoint);
        }
        Ok(())
    }

    /// Takes what comes, to the end of the part or of the connection, or until it took far too long.
    async fn receive(&mut self, mut flow: Flow) {
        let limits = &self.origin.upstream.0.wire.limits.wide;
        let silence = limits.silence;
        let late = Instant::now() + silence + limits.part_time * TIMES_TOO_LONG;
        self.state.begun.store(true, Ordering::Release);
        while self.position < self.end {
            let until = late.min(Instant::now() + silence);
            let Ok(Some(Ok(frame))) = timeout_at(until, flow.frame()).await else { return };
            let Ok(mut bytes) = frame.into_data() else { continue };
            bytes.truncate(usize::try_from(self.end - self.position).unwrap_or(usize::MAX));
            self.position += bytes.len() as u64;
            self.origin.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if self.sender.send(bytes).is_err() {
                return;
            }
        }
        // To its end, so that the connection can be used for the next part.
        let _ = timeout_at(Instant::now() + silence, flow.frame()).await;
    }
}
