//! The bytes of one answer on their way in: a connection's place among those of its upstream, and the operator's limit on
//! bytes a second.
//!
//! Owns [`Throttle`], which all connections of an upstream share, and [`Flow`], the body of a blob. A throttled body is handed
//! on in small slices, so that all who wait have their turn long before anybody calls them silent.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};

/// The share of a second that one slice takes: with 64 connections, the most there are, each has its turn every 4 s, and a
/// body counts as silent after 15 s.
const SLICES_A_SECOND: u64 = 16;

/// So many bytes a second for all who share it, in the order in which they come.
#[derive(Debug)]
pub(super) struct Throttle {
    rate: u64,
    // std: held for a few instructions, never across an await.
    free: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(bytes_a_second: u64) -> Self {
        Self { rate: bytes_a_second.max(1), free: Mutex::new(Instant::now()) }
    }

    /// The most that is taken at once, in bytes.
    fn slice(&self) -> usize {
        usize::try_from((self.rate / SLICES_A_SECOND).max(1)).unwrap_or(usize::MAX)
    }

    /// Takes so many bytes, and says when the next may be. Time that nobody used is lost but for one slice: an upstream that
    /// was idle is no reason for a burst.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = now.checked_sub(Duration::from_secs(1) / u32::try_from(SLICES_A_SECOND).unwrap_or(1)).unwrap_or(now);
        *free = (*free).max(unused) + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        *free
    }
}

/// The body of a blob. Holds its connection's place until it is dropped.
#[derive(Debug)]
pub(super) struct Flow {
    body: Incoming,
    throttle: Option<Arc<Throttle>>,
    /// What came and is not handed on yet.
    rest: Bytes,
    pause: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Flow {
    pub(super) fn new(body: Incoming, throttle: Option<Arc<Throttle>>, permit: OwnedSemaphorePermit) -> Self {
        Self { body, throttle, rest: Bytes::new(), pause: None, _permit: permit }
    }

    fn hand_on(&mut self, throttle: &Throttle) -> Frame<Bytes> {
        let slice = self.rest.split_to(throttle.slice().min(self.rest.len()));
        let next = throttle.take(slice.len() as u64, Instant::now());
        self.pause = Some(Box::pin(sleep_until(next)));
        Frame::data(slice)
    }
}

impl Body for Flow {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(throttle) = this.throttle.clone() else { return Pin::new(&mut this.body).poll_frame(context) };
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(context));
            this.pause = None;
        }
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.hand_on(&throttle))));
        }
        match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => {
                    this.rest = bytes;
                    Poll::Ready(Some(Ok(this.hand_on(&throttle))))
                }
                Err(trailers) => Poll::Ready(Some(Ok(trailers))),
            },
            end => Poll::Ready(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_holds_what_it_may_and_an_idle_hour_is_no_credit() {
        let throttle = Throttle::new(1_600);
        assert_eq!(throttle.slice(), 100);
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let began = Instant::now();
        let mut next = began;
        let mut taken = 0;
        while next < began + Duration::from_secs(1) {
            next = throttle.take(100, next.max(began));
            taken += 100;
        }
        assert!((1_600..=1_800).contains(&taken), "{taken} bytes in the first second");
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_share_it_wait_for_each_other() {
        let throttle = Throttle::new(1_000);
        let now = Instant::now();
        let first = throttle.take(500, now);
        let second = throttle.take(500, now);
        assert_eq!(second - first, Duration::from_millis(500));
    }
}
