//! May this host be asked now? The breaker and the rate limit of one endpoint or token service.
//!
//! Owns [`Health`]. Promises that a host which fails is left alone (and one request a while finds out whether it is
//! back), that a host which limits us is not asked before it said, and that each change is logged once. A [`Pass`] is
//! the permission to ask; what became of it is told by consuming calls, and a pass that is dropped says nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::budget::Limits;
use super::error::{Error, Why};
use crate::observe::{Kind, Metrics};

/// How one host is doing.
pub(super) struct Health {
    upstream: Arc<str>,
    host: String,
    label: String,
    metrics: Metrics,
    limits: Arc<Limits>,
    // std: held for a few instructions, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Failures since the last answer.
    failures: u32,
    failed_at: Option<Instant>,
    /// Left alone until then; afterwards one probe decides.
    resting_until: Option<Instant>,
    probing: bool,
    /// Limited until then: manifests and lists, and blobs.
    metadata_until: Option<Instant>,
    blobs_until: Option<Instant>,
}

/// The permission to send one request.
#[must_use]
pub(super) struct Pass<'a> {
    health: &'a Health,
    probe: bool,
}

impl Health {
    /// `host` is what errors call it, `label` what the metric does.
    pub(super) fn new(upstream: &Arc<str>, host: String, label: String, metrics: &Metrics, limits: &Arc<Limits>) -> Self {
        metrics.up(upstream, &label, true);
        let (upstream, metrics, limits) = (Arc::clone(upstream), metrics.clone(), Arc::clone(limits));
        Self { upstream, host, label, metrics, limits, state: Mutex::default() }
    }

    /// A pass, or why the host is left alone now.
    pub(super) fn admit(&self, kind: Kind) -> Result<Pass<'_>, Error> {
        let now = Instant::now();
        let mut state = self.lock();
        let limited_until = if kind == Kind::Blob { state.blobs_until } else { state.metadata_until };
        if let Some(until) = limited_until.filter(|&until| now < until) {
            return Err(Error::RateLimited { host: self.host.clone(), retry_after: (until - now).max(self.limits.retry_after.0) });
        }
        let Some(until) = state.resting_until else { return Ok(Pass { health: self, probe: false }) };
        if now < until || state.probing {
            return Err(Error::Unavailable { host: self.host.clone(), why: Why::Resting });
        }
        state.probing = true;
        Ok(Pass { health: self, probe: true })
    }

    /// Whether it failed a moment ago, so that others are asked first.
    pub(super) fn is_suspect(&self) -> bool {
        let failed_at = self.lock().failed_at;
        failed_at.is_some_and(|at| at.elapsed() < self.limits.breaker_rest)
    }

    /// The host said 429: it is left alone for as long as it said, within reason. Returns what to tell the caller.
    ///
    /// A registry that counts pulls (Docker Hub) goes on delivering the blobs of a pull that has begun. So a 429 to
    /// anything but a blob stops the blobs only if it says when to come back, as the limits against abuse do.
    pub(super) fn limited(&self, kind: Kind, retry_after: Option<Duration>) -> Error {
        let wait = self.limits.wait(retry_after);
        let now = Instant::now();
        let mut state = self.lock();
        let news = state.metadata_until.is_none_or(|until| until <= now);
        let until = Some(now + wait);
        state.metadata_until = state.metadata_until.max(until);
        if kind == Kind::Blob || retry_after.is_some() {
            state.blobs_until = state.blobs_until.max(until);
        }
        drop(state);
        if news {
            warn!(
                upstream = %self.upstream,
                host = %self.host,
                "{} limits the number of requests (429): it is left alone for {} s, what is held is served; credentials for it raise the limit",
                self.host,
                wait.as_secs_f64().ceil(),
            );
        }
        Error::RateLimited { host: self.host.clone(), retry_after: wait }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The host answered, whatever it said: it is well.
    pub(super) fn answered(self) {
        let mut state = self.health.lock();
        state.failures = 0;
        state.failed_at = None;
        let was_resting = state.resting_until.take().is_some();
        drop(state);
        if was_resting {
            let Health { upstream, host, label, metrics, .. } = self.health;
            metrics.up(upstream, label, true);
            info!(upstream = %upstream, host = %host, "{host} answers again");
        }
    }

    /// The host could not be reached, was too slow, or said 5xx.
    pub(super) fn failed(self, error: &Error) {
        let Health { upstream, host, label, metrics, limits, .. } = self.health;
        let now = Instant::now();
        let mut state = self.health.lock();
        state.failures = state.failures.saturating_add(1);
        state.failed_at = Some(now);
        let was_resting = state.resting_until.is_some();
        let rests = state.failures >= limits.breaker_failures && (self.probe || !was_resting);
        if rests {
            state.resting_until = Some(now + limits.breaker_rest);
        }
        let failures = state.failures;
        drop(state);
        if rests && !was_resting {
            metrics.up(upstream, label, false);
            warn!(
                upstream = %upstream,
                host = %host,
                "{host} failed {failures} times in a row, the last time so: {error}; it is left alone and probed every {} s, what is held is served; look at the network between here and it",
                limits.breaker_rest.as_secs_f64(),
            );
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.health.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(metrics: &Metrics) -> Health {
        Health::new(&"up.test".into(), "h.test".into(), "https://h.test".into(), metrics, &Arc::default())
    }

    fn down() -> Error {
        Error::Unavailable { host: "h.test".into(), why: Why::Cut }
    }

    fn is_resting(health: &Health) -> bool {
        matches!(health.admit(Kind::Blob).err(), Some(Error::Unavailable { why: Why::Resting, .. }))
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_are_a_rest_and_one_probe_ends_it() {
        let metrics = Metrics::new();
        let health = health(&metrics);
        let gauge = |up| format!("millpond_upstream_up{{upstream=\"up.test\",endpoint=\"https://h.test\"}} {up}\n");
        for _ in 0..4 {
            health.admit(Kind::Blob).expect("admitted").failed(&down());
        }
        health.admit(Kind::Blob).expect("admitted").answered();
        for n in 0..5 {
            assert!(!is_resting(&health), "after {n} failures");
            health.admit(Kind::Blob).expect("admitted").failed(&down());
        }
        assert!(is_resting(&health));
        assert!(metrics.render().contains(&gauge(0)));

        tokio::time::advance(Duration::from_secs(11)).await;
        let probe = health.admit(Kind::Blob).expect("the probe");
        assert!(is_resting(&health), "one probe at a time");
        drop(probe);
        health.admit(Kind::Blob).expect("a probe that was abandoned makes room for the next").failed(&down());
        assert!(is_resting(&health), "a failed probe is another rest");

        tokio::time::advance(Duration::from_secs(11)).await;
        health.admit(Kind::Blob).expect("the probe").answered();
        assert!(metrics.render().contains(&gauge(1)));
        let (first, second) = (health.admit(Kind::Blob), health.admit(Kind::Blob));
        assert!(first.is_ok() && second.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn stragglers_do_not_prolong_a_rest() {
        let health = health(&Metrics::new());
        let passes: Vec<_> = (0..8).map(|_| health.admit(Kind::Manifest).expect("admitted")).collect();
        for (n, pass) in passes.into_iter().enumerate() {
            pass.failed(&down());
            if n == 4 {
                tokio::time::advance(Duration::from_secs(9)).await;
            }
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!is_resting(&health));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_obeyed_within_reason() {
        let wait = |retry_after| match health(&Metrics::new()).limited(Kind::Manifest, retry_after) {
            Error::RateLimited { retry_after, .. } => retry_after.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(None), 60);
        assert_eq!(wait(Some(Duration::ZERO)), 1);
        assert_eq!(wait(Some(Duration::from_secs(7))), 7);
        assert_eq!(wait(Some(Duration::from_secs(u64::MAX))), 60);

        let health = health(&Metrics::new());
        let _ = health.limited(Kind::Manifest, None);
        assert!(matches!(health.admit(Kind::Tags).err(), Some(Error::RateLimited { .. })));
        assert!(health.admit(Kind::Blob).is_ok(), "a pull that has begun gets its blobs");
        let _ = health.limited(Kind::Manifest, Some(Duration::from_secs(30)));
        assert!(matches!(health.admit(Kind::Blob).err(), Some(Error::RateLimited { .. })));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(health.admit(Kind::Blob).is_ok());
        assert!(health.admit(Kind::Manifest).is_err(), "the longer limit holds");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(health.admit(Kind::Manifest).is_ok());
    }
}
