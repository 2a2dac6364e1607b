//! How long, how often and how much: every limit on the way to an upstream, and the clock of one call.
//!
//! Owns [`Limits`]. Time is the monotonic clock of tokio, so that a jump of the wall clock ends nothing.

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::address::is_public;
use super::wide::WideLimits;

/// The limits on requests to upstreams. The defaults are meant to be right everywhere; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Name resolution. As long as a resolver waits for its first server.
    pub dns: Duration,
    /// One address, TCP. Two lost SYN packets are survived.
    pub connect_address: Duration,
    /// Before the next address is tried beside the one that has not answered yet (RFC 8305 "Connection Attempt Delay").
    pub connect_stagger: Duration,
    /// Name, TCP and TLS together.
    pub connect: Duration,
    /// A proxy, from the connection to it until it leads to the host. Less than `connect`, of which it is a part, so that what is
    /// told is that it was the proxy.
    pub proxy: Duration,
    /// From sending a request to the head of its answer. ghcr.io is known to need more than 10 s.
    pub head: Duration,
    /// A call until the head is in, with all retries, redirects and tokens: containerd gives up after 30 s.
    pub call: Duration,
    /// A call that reads a small body, until it is whole.
    pub whole: Duration,
    /// A search, whole: somebody waits at a terminal, and what is held is shown without it.
    pub search: Duration,
    /// A token, with retries.
    pub token: Duration,
    /// How often the file of a login is looked at: a new password is in use within so many seconds, and a hundred requests a
    /// second cost no look each. A refused login is looked at at once.
    pub look: Duration,
    /// How long what a credential helper said is used: those of clouds give tokens of an hour or twelve.
    pub helper_life: Duration,
    /// How long a helper that has nothing, or fails, is not asked again; and between two refused logins for which it is.
    pub helper_pause: Duration,
    /// What a helper may take. It may have to ask a service of its own.
    pub helper: Duration,
    /// Attempts at one call, unless there are more endpoints than that.
    pub attempts: usize,
    /// The first pause before an endpoint is asked again; doubled each time, and varied by half.
    pub pause: Duration,
    /// Redirects that are followed for one request; the longest honest chain has three.
    pub redirects: u8,
    /// Failures in a row after which an endpoint is left alone.
    pub breaker_failures: u32,
    /// How long it is left alone, before one request may find out.
    pub breaker_rest: Duration,
    /// The least and the most that a client is told to wait.
    pub retry_after: (Duration, Duration),
    /// The most that a `Retry-After` is obeyed. The longest known are of some minutes; nonsense must not shut an upstream out for
    /// a day.
    pub retry_after_max: Duration,
    /// How long a 429 without a usable `Retry-After` is obeyed.
    pub retry_after_default: Duration,
    /// Searches, for one upstream: those who type terms take nothing from those who pull.
    pub searches: usize,
    /// Requests for tokens, for one upstream.
    pub tokens: usize,
    /// How long an idle connection is kept: less than the minute or more that servers do.
    pub idle: Duration,
    /// Idle connections kept for one host.
    pub idle_connections: usize,
    /// When a blob is asked for over several connections.
    pub wide: WideLimits,
    /// Which addresses a registry of the public internet may redirect to. Tests call a part of the loopback public.
    pub is_public: fn(IpAddr) -> bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dns: Duration::from_secs(5),
            connect_address: Duration::from_secs(5),
            connect_stagger: Duration::from_millis(300),
            connect: Duration::from_secs(10),
            proxy: Duration::from_secs(8),
            head: Duration::from_secs(20),
            call: Duration::from_secs(25),
            whole: Duration::from_secs(30),
            search: Duration::from_secs(5),
            token: Duration::from_secs(20),
            look: Duration::from_secs(5),
            helper_life: Duration::from_secs(600),
            helper_pause: Duration::from_secs(30),
            helper: Duration::from_secs(10),
            attempts: 3,
            pause: Duration::from_millis(200),
            redirects: 5,
            breaker_failures: 5,
            breaker_rest: Duration::from_secs(10),
            retry_after: (Duration::from_secs(1), Duration::from_secs(60)),
            retry_after_max: Duration::from_secs(3_600),
            retry_after_default: Duration::from_secs(60),
            searches: 4,
            tokens: 4,
            idle: Duration::from_secs(60),
            idle_connections: 16,
            wide: WideLimits::default(),
            is_public,
        }
    }
}

impl Limits {
    /// The pause before the `n`th repetition, counted from 0: doubled each time, ± 50 % so that mirrors that failed
    /// together do not come back together.
    pub(super) fn pause_before(&self, n: usize) -> Duration {
        let doubled = self.pause.saturating_mul(1 << n.min(8));
        doubled.mul_f64(0.5 + fastrand::f64())
    }

    /// How long an upstream that said 429 is left alone, given what its `Retry-After` says.
    pub(super) fn rest(&self, retry_after: Option<Duration>) -> Duration {
        retry_after.unwrap_or(self.retry_after_default).clamp(self.retry_after.0, self.retry_after_max.max(self.retry_after.0))
    }

    /// What to tell a client of it.
    pub(super) fn wait(&self, retry_after: Option<Duration>) -> Duration {
        let (least, most) = self.retry_after;
        retry_after.unwrap_or(self.retry_after_default).clamp(least, most)
    }
}

/// When a call must be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration)
    }

    /// The same, but no later than in `limit`.
    pub(super) fn within(self, limit: Duration) -> Self {
        Self(self.0.min(Instant::now() + limit))
    }

    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Nothing when the time is up first; the future is dropped then.
    pub(super) async fn run<F: Future>(self, future: F) -> Option<F::Output> {
        timeout_at(self.0, future).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_vary_by_half() {
        let limits = Limits::default();
        for n in 0..4 {
            let base = Duration::from_millis(200 << n);
            for _ in 0..50 {
                let pause = limits.pause_before(n);
                assert!(pause >= base / 2 && pause <= base * 3 / 2, "{pause:?}");
            }
        }
        assert!(limits.pause_before(usize::MAX) <= limits.pause * 512);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_what_runs() {
        let deadline = Deadline::after(Duration::from_secs(25));
        assert_eq!(deadline.within(Duration::from_secs(1)).run(std::future::pending::<()>()).await, None);
        assert_eq!(deadline.left(), Duration::from_secs(24));
        assert_eq!(deadline.within(Duration::from_secs(60)).left(), Duration::from_secs(24));
    }
}
