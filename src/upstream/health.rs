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
    label: Option<String>,
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
    /// By the number of the account.
    limited: Vec<Limited>,
}

/// How long one account is limited: for manifests and lists, and for blobs.
#[derive(Clone, Copy, Default)]
struct Limited {
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
    /// `host` is what errors call it, `label` what the metric does; without one it is in none.
    pub(super) fn new(upstream: &Arc<str>, host: String, label: Option<String>, metrics: &Metrics, limits: &Arc<Limits>) -> Self {
        if let Some(label) = &label {
            metrics.up(upstream, label, true);
        }
        let (upstream, metrics, limits) = (Arc::clone(upstream), metrics.clone(), Arc::clone(limits));
        Self { upstream, host, label, metrics, limits, state: Mutex::default() }
    }

    /// A pass for any of these accounts, or why the host is left alone now.
    pub(super) fn admit(&self, kind: Kind, accounts: &[usize]) -> Result<Pass<'_>, Error> {
        let now = Instant::now();
        let mut state = self.lock();
        let limits = accounts.iter().map(|&account| state.limited_until(kind, account, now));
        // The first that is free again is the one to wait for; one that is free now is nothing at all, and less than all.
        if let Some(until) = limits.min().flatten() {
            return Err(self.limited_error(until - now));
        }
        let Some(until) = state.resting_until else { return Ok(Pass { health: self, probe: false }) };
        if now < until || state.probing {
            return Err(Error::Unavailable { host: self.host.clone(), why: Why::Resting });
        }
        state.probing = true;
        Ok(Pass { health: self, probe: true })
    }

    /// Whether this account may ask.
    pub(super) fn check_limit(&self, kind: Kind, account: usize) -> Result<(), Error> {
        let now = Instant::now();
        let limited = self.lock().limited_until(kind, account, now);
        limited.map_or(Ok(()), |until| Err(self.limited_error(until - now)))
    }

    fn limited_error(&self, left: Duration) -> Error {
        Error::RateLimited { host: self.host.clone(), retry_after: self.limits.wait(Some(left)) }
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
    pub(super) fn limited(&self, kind: Kind, (account, name): (usize, &str), retry_after: Option<Duration>) -> Error {
        let wait = self.limits.rest(retry_after);
        let now = Instant::now();
        let mut state = self.lock();
        if state.limited.len() <= account {
            state.limited.resize_with(account + 1, Limited::default);
        }
        let limited = &mut state.limited[account];
        let news = limited.metadata_until.is_none_or(|until| until <= now);
        let until = Some(now + wait);
        limited.metadata_until = limited.metadata_until.max(until);
        if kind == Kind::Blob || retry_after.is_some() {
            limited.blobs_until = limited.blobs_until.max(until);
        }
        drop(state);
        if news {
            warn!(
                upstream = %self.upstream,
                host = %self.host,
                account = name,
                "{} limits the number of requests (429): it is left alone for {} s, what is held is served; credentials for it raise the limit",
                self.host,
                wait.as_secs_f64().ceil(),
            );
        }
        self.limited_error(wait)
    }

    /// Whether it failed since its last answer.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failures > 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Until when it is left alone in the name of an account; nothing where it is not.
    fn limited_until(&self, kind: Kind, account: usize, now: Instant) -> Option<Instant> {
        let limited = self.limited.get(account)?;
        let until = if kind == Kind::Blob { limited.blobs_until } else { limited.metadata_until };
        until.filter(|&until| now < until)
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
            if let Some(label) = label {
                metrics.up(upstream, label, true);
            }
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
            if let Some(label) = label {
                metrics.up(upstream, label, false);
            }
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
        Health::new(&"up.test".into(), "h.test".into(), Some("https://h.test".into()), metrics, &Arc::default())
    }

    fn down() -> Error {
        Error::Unavailable { host: "h.test".into(), why: Why::Cut }
    }

    fn is_resting(health: &Health) -> bool {
        matches!(health.admit(Kind::Blob, &[0]).err(), Some(Error::Unavailable { why: Why::Resting, .. }))
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_are_a_rest_and_one_probe_ends_it() {
        let metrics = Metrics::new();
        let health = health(&metrics);
        let gauge = |up| format!("millpond_upstream_up{{upstream=\"up.test\",endpoint=\"https://h.test\"}} {up}\n");
        for _ in 0..4 {
            health.admit(Kind::Blob, &[0]).expect("admitted").failed(&down());
        }
        health.admit(Kind::Blob, &[0]).expect("admitted").answered();
        for n in 0..5 {
            assert!(!is_resting(&health), "after {n} failures");
            health.admit(Kind::Blob, &[0]).expect("admitted").failed(&down());
        }
        assert!(is_resting(&health));
        assert!(metrics.render().contains(&gauge(0)));

        tokio::time::advance(Duration::from_secs(11)).await;
        let probe = health.admit(Kind::Blob, &[0]).expect("the probe");
        assert!(is_resting(&health), "one probe at a time");
        drop(probe);
        health.admit(Kind::Blob, &[0]).expect("a probe that was abandoned makes room for the next").failed(&down());
        assert!(is_resting(&health), "a failed probe is another rest");

        tokio::time::advance(Duration::from_secs(11)).await;
        health.admit(Kind::Blob, &[0]).expect("the probe").answered();
        assert!(metrics.render().contains(&gauge(1)));
        let (first, second) = (health.admit(Kind::Blob, &[0]), health.admit(Kind::Blob, &[0]));
        assert!(first.is_ok() && second.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn stragglers_do_not_prolong_a_rest() {
        let health = health(&Metrics::new());
        let passes: Vec<_> = (0..8).map(|_| health.admit(Kind::Manifest, &[0]).expect("admitted")).collect();
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
        let wait = |retry_after| match health(&Metrics::new()).limited(Kind::Manifest, (0, "anonymous"), retry_after) {
            Error::RateLimited { retry_after, .. } => retry_after.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(None), 60);
        assert_eq!(wait(Some(Duration::ZERO)), 1);
        assert_eq!(wait(Some(Duration::from_secs(7))), 7);
        assert_eq!(wait(Some(Duration::from_secs(u64::MAX))), 60);

        let health = health(&Metrics::new());
        let _ = health.limited(Kind::Manifest, (0, "anonymous"), None);
        assert!(matches!(health.admit(Kind::Tags, &[0]).err(), Some(Error::RateLimited { .. })));
        assert!(health.admit(Kind::Blob, &[0]).is_ok(), "a pull that has begun gets its blobs");
        let _ = health.limited(Kind::Manifest, (0, "anonymous"), Some(Duration::from_secs(30)));
        assert!(matches!(health.admit(Kind::Blob, &[0]).err(), Some(Error::RateLimited { .. })));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(health.admit(Kind::Blob, &[0]).is_ok());
        assert!(health.admit(Kind::Manifest, &[0]).is_err(), "the longer limit holds");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(health.admit(Kind::Manifest, &[0]).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_of_one_account_and_a_long_one_is_obeyed_to_its_end() {
        let health = health(&Metrics::new());
        let _ = health.limited(Kind::Manifest, (1, "one"), Some(Duration::from_secs(900)));
        assert!(health.admit(Kind::Manifest, &[1]).is_err() && health.check_limit(Kind::Manifest, 1).is_err());
        assert!(health.admit(Kind::Manifest, &[1, 2]).is_ok() && health.check_limit(Kind::Manifest, 2).is_ok());
        assert!(health.admit(Kind::Manifest, &[0]).is_ok());
        let _ = health.limited(Kind::Manifest, (2, "two"), Some(Duration::from_secs(5)));
        let Err(Error::RateLimited { retry_after, .. }) = health.admit(Kind::Manifest, &[1, 2]).map(drop) else {
            panic!("both are limited")
        };
        assert_eq!(retry_after.as_secs(), 5, "the first that is free");
        tokio::time::advance(Duration::from_secs(899)).await;
        assert!(health.admit(Kind::Manifest, &[1]).is_err(), "what clients are told is shorter than what is obeyed");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(health.admit(Kind::Manifest, &[1]).is_ok());
        let _ = health.limited(Kind::Manifest, (1, "one"), Some(Duration::MAX));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(health.admit(Kind::Manifest, &[1]).is_ok(), "within reason");
    }
}
