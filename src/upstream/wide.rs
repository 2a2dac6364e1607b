//! One blob over several connections, where each of them is slow: long ways lose packets, and some hosts grant every
//! connection so much and no more.
//!
//! A blob begins as one plain request, whatever comes later. When that connection proves slow ([`plan`]), others fetch *parts*
//! ahead of it from the same place, and all of it is handed on in order, so that whoever reads sees one body. The first
//! connection goes on until it meets the first part that has begun, and no further: a part that the upstream refuses, or that
//! is not there in time, costs nothing but itself.
//!
//! Promises: no byte is asked for twice but those under way on the first connection when it ends; parts wait in memory within
//! a bound for all blobs; other blobs that want a connection come first; whoever drops the body ends all of its connections.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::info;

use super::Upstream;
use super::answers::{Asked, BlobBody};
use super::error::{Error, Why};
use super::flow::Flow;
use crate::oci::{Digest, Name};

mod part;
mod plan;

use part::{Origin, Part, Way};
pub use plan::WideLimits;
use plan::{Habit, Plan};

/// Parts that are here or under way before the one that is being handed on, besides one a connection.
const SPARE_PARTS: usize = 2;

/// What is remembered of an upstream from one blob to the next.
#[derive(Debug, Default)]
pub(super) struct Habits(Mutex<Option<(Habit, Instant)>>);

impl Habits {
    fn get(&self, holds: Duration) -> Habit {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.filter(|(_, since)| since.elapsed() < holds).map_or(Habit::Unknown, |(habit, _)| habit)
    }

    fn set(&self, habit: Habit) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((habit, Instant::now()));
    }
}

/// The body of a blob, from its first request to its end, over as many connections as help.
pub struct Wide {
    origin: Arc<Origin>,
    first: Option<Flow>,
    /// Where the first connection was asked for.
    endpoint: usize,
    parts: VecDeque<Part>,
    /// The next byte that is handed on.
    position: u64,
    /// The first byte that nobody was asked for besides the first connection.
    next: u64,
    /// The end; where nobody said one there are no parts.
    size: Option<u64>,
    /// Connections that may be under way at once.
    connections: usize,
    plan: Plan,
    /// Since when the first connection is listened to in vain.
    listening: Option<Instant>,
}

impl Upstream {
    /// A blob's body over as many connections as help. `asked` learns of the endpoints that its bytes come from.
    pub fn wide(&self, name: &Name, digest: &Digest, blob: BlobBody, asked: Asked) -> Wide {
        let BlobBody { size, start, body, endpoint, spot } = blob;
        let limits = &self.0.wire.limits.wide;
        let left = size.map_or(0, |size| size.saturating_sub(start));
        let plan = Plan::new(limits, left, self.0.parallel, self.0.habits.get(limits.holds));
        let origin = Origin::new(self.clone(), name.clone(), *digest, size, spot, endpoint, asked);
        Wide {
            origin: Arc::new(origin),
            first: Some(body),
            endpoint,
            parts: VecDeque::new(),
            position: start,
            next: start,
            size,
            connections: 1,
            plan,
            listening: None,
        }
    }
}

impl Body for Wide {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        loop {
            this.extend();
            if this.first.is_some() {
                if let Some(event) = ready!(this.poll_first(context)) {
                    return Poll::Ready(event);
                }
                continue;
            }
            let Some(part) = this.parts.front_mut() else { return Poll::Ready(None) };
            match ready!(part.bytes.poll_recv(context)) {
                Some(bytes) => return Poll::Ready(this.hand_on(bytes).map(|bytes| Ok(Frame::data(bytes)))),
                None if this.position == part.end => drop(this.parts.pop_front()),
                None => return Poll::Ready(Some(Err(this.broken()))),
            }
        }
    }
}

/// What [`Wide`] says next, if anything.
type Event = Option<Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>>;

impl Wide {
    /// Takes from the first connection; nothing to say when it has just ended in a part.
    fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        let Some(first) = &mut self.first else { return Poll::Ready(None) };
        let polled = Pin::new(first).poll_frame(context);
        let now = Instant::now();
        if polled.is_pending() {
            self.listening.get_or_insert(now);
            return Poll::Pending;
        }
        let listened = self.listening.take().map_or(Duration::ZERO, |since| now - since);
        match ready!(polled) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => {
                    self.heard(bytes.len() as u64, listened);
                    Poll::Ready(self.hand_on(bytes).map(|bytes| Some(Ok(Frame::data(bytes)))))
                }
                Err(trailers) => Poll::Ready(Some(Some(Ok(trailers)))),
            },
            // What is ahead is not lost: what lies between is one more part.
            end if self.parts.front().is_some_and(Part::has_begun) && self.size.is_some_and(|size| self.position < size) => {
                tracing::debug!(?end, "the first of several connections broke off; others fetch its rest");
                self.leave_first();
                if let Some(upto) = self.parts.front().map(|part| part.start).filter(|&start| start > self.position) {
                    let part = Part::fetch(&self.origin, self.position..upto, Way::Known, None, None);
                    self.parts.push_front(part);
                }
                Poll::Ready(None)
            }
            end => Poll::Ready(Some(end.map(|end| end.map_err(Into::into)))),
        }
    }

    /// Of bytes that came in order: those that nobody else brings, if there are any.
    fn hand_on(&mut self, mut bytes: Bytes) -> Option<Bytes> {
        if self.first.is_some() {
            while let Some(part) = self.parts.front() {
                let room = part.start.saturating_sub(self.position);
                if (bytes.len() as u64) < room {
                    break;
                }
                if part.has_begun() {
                    bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
                    self.leave_first();
                    break;
                }
                // Nobody knows when it comes, and here are its bytes.
                self.parts.pop_front();
            }
        }
        self.position += bytes.len() as u64;
        self.next = self.next.max(self.position);
        (!bytes.is_empty()).then_some(bytes)
    }

    fn heard(&mut self, bytes: u64, listened: Duration) {
        let limits = &self.origin.upstream.0.wire.limits.wide;
        let received = self.origin.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let left = self.size.map_or(0, |size| size.saturating_sub(self.position + bytes));
        if self.plan.heard(limits, bytes, listened, left) {
            self.connections = self.origin.upstream.0.parallel;
            self.plan.widened(Instant::now(), received);
            self.note_speed();
            // Until the first part the first connection is one of them.
            let alone = self.plan.part(limits, left, self.connections);
            self.next = self.position + bytes + alone;
            let rate = self.plan.alone().unwrap_or_default();
            info!(upstream = %self.origin.upstream.registry(), digest = %self.origin.digest, rate, "a large blob comes slowly over one connection ({rate} bytes a second): {} are tried", self.connections);
        }
    }

    fn leave_first(&mut self) {
        self.first = None;
        self.listening = None;
    }

    fn note_speed(&self) {
        if self.first.is_some()
            && let Some(rate) = self.plan.measured()
        {
            self.origin.upstream.0.endpoints[self.endpoint].speed.note(rate);
        }
    }

    /// Has parts fetched ahead, as many at once as there may be connections.
    fn extend(&mut self) {
        if self.connections < 2 && self.first.is_some() {
            return;
        }
        self.judge();
        let Some(size) = self.size else { return };
        let limits = &self.origin.upstream.0.wire.limits.wide;
        if self.origin.is_refused() && self.first.is_some() {
            // The first connection has everything.
            self.parts.clear();
            self.connections = 1;
            self.plan.settle();
            return;
        }
        while self.next < size {
            let alone = self.first.is_none() && self.parts.is_empty();
            let busy = usize::from(self.first.is_some()) + self.parts.iter().filter(|part| !part.is_done()).count();
            if !alone && (busy >= self.connections || self.parts.len() >= self.connections + SPARE_PARTS) {
                return;
            }
            let len = self.plan.part(limits, size - self.next, self.connections);
            let place = self.origin.place(len);
            let permit = self.origin.permit();
            // When nothing else is under way there must be one, and nothing waits in memory: it is handed on as it comes.
            if !alone && (place.is_none() || permit.is_none()) {
                return;
            }
            let len = if place.is_some() { len } else { len.min(limits.part.0) };
            // Nobody waits for the first part yet: it finds out what another endpoint is worth.
            let way = if self.first.is_some() && self.parts.is_empty() && self.origin.has_stranger() { Way::Stranger } else { Way::Known };
            self.parts.push_back(Part::fetch(&self.origin, self.next..self.next + len, way, place, permit));
            self.next += len;
        }
    }

    fn judge(&mut self) {
        let limits = &self.origin.upstream.0.wire.limits.wide;
        let Some(helps) = self.plan.judge(limits, Instant::now(), self.origin.received.load(Ordering::Relaxed)) else { return };
        self.origin.upstream.0.habits.set(if helps { Habit::Helps } else { Habit::Vain });
        if !helps {
            info!(upstream = %self.origin.upstream.registry(), "several connections are no faster than one: it stays at one for {} minutes", limits.holds.as_secs() / 60);
            self.connections = 1;
        }
    }

    /// A part could not be had: what is in order was handed on, and whoever reads goes on from there.
    fn broken(&mut self) -> Box<dyn std::error::Error + Send + Sync> {
        let host = self.origin.upstream.registry().to_string();
        self.parts.clear();
        Box::new(Error::Unavailable { host, why: Why::Cut })
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        if self.connections < 2 {
            self.note_speed();
        }
        if self.origin.is_refused() {
            self.origin.upstream.0.habits.set(Habit::Vain);
        }
    }
}

/// The memory of parts that are ahead, for all blobs of all upstreams, in KiB.
#[derive(Debug, Clone)]
pub(super) struct Ahead(Arc<Semaphore>);

impl Ahead {
    pub(super) fn new(limits: &WideLimits) -> Self {
        Self(Arc::new(Semaphore::new(usize::try_from(limits.ahead >> 10).unwrap_or(Semaphore::MAX_PERMITS))))
    }

    fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(kib).ok()
    }
}
