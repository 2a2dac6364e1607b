//! How fast an endpoint delivers blobs: what order by health alone does not know.
//!
//! Owns [`Speed`]. An endpoint that is clearly slower than another is asked after it, as long as that was measured a short
//! while ago; what is older counts for nothing, so that the operator's order has its next chance.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a measurement counts.
const HOLDS: Duration = Duration::from_secs(600);

/// How many times faster another endpoint must be. Twice as fast may be chance, and the operator's order has its reasons.
const TIMES: u64 = 3;

/// Bytes a second of one connection, as it was last measured.
#[derive(Debug, Default)]
pub(super) struct Speed(Mutex<Option<(u64, Instant)>>);

impl Speed {
    /// A connection delivered so many bytes a second. Half of what is known is from before.
    pub(super) fn note(&self, rate: u64) {
        let now = Instant::now();
        let known = self.at(now);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((known.map_or(rate, |known| known.midpoint(rate)), now));
    }

    /// What is known now.
    pub(super) fn get(&self) -> Option<u64> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Option<u64> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.filter(|(_, since)| now.saturating_duration_since(*since) < HOLDS).map(|(rate, _)| rate)
    }
}

/// Whether somebody with this speed is to be asked after somebody with the best one. Below `enough` bytes a second only:
/// nobody waits for the difference above.
pub(super) fn is_slow(own: Option<u64>, best: Option<u64>, enough: u64) -> bool {
    own.zip(best).is_some_and(|(own, best)| own < enough && own.saturating_mul(TIMES) < best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_measured_counts_for_a_while() {
        let speed = Speed::default();
        assert_eq!(speed.get(), None);
        speed.note(100);
        speed.note(300);
        assert_eq!(speed.get(), Some(200));
        tokio::time::advance(HOLDS).await;
        assert_eq!(speed.get(), None);
    }

    #[test]
    fn only_what_is_clearly_slower_and_slow_is_slow() {
        assert!(is_slow(Some(1 << 20), Some(4 << 20), 20 << 20));
        assert!(!is_slow(Some(1 << 20), Some(2 << 20), 20 << 20));
        assert!(!is_slow(Some(30 << 20), Some(200 << 20), 20 << 20));
        assert!(!is_slow(None, Some(4 << 20), 20 << 20));
        assert!(!is_slow(Some(1 << 20), None, 20 << 20));
    }
}
