//! How long a connection waits for a request's head, by one timer for all of its heads.
//!
//! hyper sets a timer for every head and takes it back when the head has come, which is at once as a rule: for a hit that is a lock of the
//! runtime's timers twice, for nothing. Here the next deadline is only noted; the timer is set when there is none, and when it fires before
//! the deadline that is noted by then, which is as often as a head may take.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt;

/// The timer of one connection, as hyper sees it. Cheap to clone.
///
/// Each deadline has to be as late as those before it or later; all are of the one length that heads may take.
#[derive(Clone, Default)]
pub(super) struct HeadTimer(Arc<Mutex<Option<Instant>>>);

/// A head that is waited for.
struct Head {
    timer: HeadTimer,
    deadline: Instant,
}

/// What wakes the connection for it.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<tokio::time::Sleep>>>);

impl HeadTimer {
    fn next(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a head is overdue, which is said once: then the connection has to be polled again. Belongs into the task of the connection,
    /// after the connection was polled.
    pub(super) fn poll_overdue(&self, alarm: &mut Alarm, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(set) = &mut alarm.0 {
                ready!(set.as_mut().poll(cx));
            }
            // It fired, or was never set.
            alarm.0 = None;
            let mut next = self.next();
            let Some(deadline) = *next else { return Poll::Pending };
            if deadline <= now() {
                *next = None;
                return Poll::Ready(());
            }
            alarm.0 = Some(Box::pin(tokio::time::sleep_until(deadline.into())));
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl rt::Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        *self.next() = Some(deadline);
        Box::pin(Head { timer: self.clone(), deadline })
    }

    fn now(&self) -> Instant {
        now()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn rt::Sleep>>, deadline: Instant) {
        *sleep = self.sleep_until(deadline);
        // The one before took its note with it.
        *self.next() = Some(deadline);
    }
}

impl Future for Head {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.deadline <= now() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl rt::Sleep for Head {}

impl Drop for Head {
    fn drop(&mut self) {
        *self.timer.next() = None;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use hyper::rt::Timer as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// How long it takes until a head is overdue.
    async fn overdue(timer: &HeadTimer, alarm: &mut Alarm) -> Duration {
        let before = now();
        poll_fn(|cx| timer.poll_overdue(alarm, cx)).await;
        now() - before
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_is_overdue_in_time() {
        let (timer, mut alarm) = (HeadTimer::default(), Alarm::default());
        let mut head = timer.sleep(LIMIT);
        assert!(head.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(overdue(&timer, &mut alarm).await, LIMIT);
        assert!(head.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(timer.poll_overdue(&mut alarm, &mut Context::from_waker(Waker::noop())).is_pending(), "that was said");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_each_head_is_its_own_and_the_timer_is_set_once() {
        let (timer, mut alarm) = (HeadTimer::default(), Alarm::default());
        let mut set = Vec::new();
        for _ in 0..100 {
            let head = timer.sleep(LIMIT);
            assert!(timer.poll_overdue(&mut alarm, &mut Context::from_waker(Waker::noop())).is_pending());
            set.push(alarm.0.as_ref().map(|alarm| alarm.deadline()));
            drop(head);
            tokio::time::advance(LIMIT / 50).await;
        }
        set.dedup();
        assert!(set.len() <= 3, "{set:?}");
        // What is being answered may take as long as it likes.
        tokio::time::advance(LIMIT * 3).await;
        assert!(timer.poll_overdue(&mut alarm, &mut Context::from_waker(Waker::noop())).is_pending());
        let mut head = timer.sleep(LIMIT);
        timer.reset(&mut head, now() + LIMIT);
        assert_eq!(overdue(&timer, &mut alarm).await, LIMIT);
    }
}
