//! Is the upstream still sending, or does it only keep the connection alive? Pure bookkeeping of bytes and of time spent
//! listening, whatever the number of connections: nobody starts at nothing again by cutting the body.

use std::time::Duration;

use super::Limits;

/// The rate at which one blob arrives.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    over: Duration,
    listened: Duration,
    bytes: u64,
    slow: u32,
}

impl Pace {
    /// Nothing heard yet.
    pub(super) fn new(limits: &Limits) -> Self {
        Self { rate: limits.rate, over: limits.rate_over, listened: Duration::ZERO, bytes: 0, slow: 0 }
    }

    /// So many bytes came.
    pub(super) fn heard(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// So long nothing was done but listen. Whether with that a time is over in which too little came.
    pub(super) fn listened(&mut self, time: Duration) -> bool {
        self.listened += time;
        if self.listened < self.over {
            return false;
        }
        let least = self.listened.as_secs_f64() * self.rate as f64;
        let slow = (self.bytes as f64) < least;
        self.slow = if slow { self.slow + 1 } else { 0 };
        (self.listened, self.bytes) = (Duration::ZERO, 0);
        slow
    }

    /// How often in a row it was too slow.
    pub(super) fn slow(&self) -> u32 {
        self.slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_spent_listening_counts_and_every_minute_is_judged_by_itself() {
        let mut pace = Pace::new(&Limits::default());
        let minute = |pace: &mut Pace, bytes: u64| {
            pace.heard(bytes);
            assert!(!pace.listened(Duration::from_secs(59)));
            pace.listened(Duration::from_secs(1))
        };
        assert!(!minute(&mut pace, 60 << 10), "a KiB a second is enough");
        assert!(minute(&mut pace, (60 << 10) - 1));
        assert!(minute(&mut pace, 0));
        assert_eq!(pace.slow(), 2);
        assert!(!minute(&mut pace, 600 << 10));
        assert_eq!(pace.slow(), 0, "it is well again");
    }
}
