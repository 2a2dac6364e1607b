//! Would more connections help? Pure: it is told what came and what time it is, and says what to do.
//!
//! The first connection is watched for a moment. If it is slow, and much of the blob is left, others join it; if all of them
//! together are not clearly faster than it was alone, the line is what is slow, and none joins again for a while.

use std::time::Duration;

use tokio::time::Instant;

/// When a blob is asked for over several connections.
#[derive(Debug, Clone)]
pub struct WideLimits {
    /// The smallest blob for which that may be worth it, in bytes, and a quarter of it the smallest rest: below, the first
    /// connection is done before the others have begun.
    pub worth: u64,
    /// Bytes a second with which one connection is fast enough: 160 Mbit/s.
    pub enough: u64,
    /// How long the first connection is watched: some round trips, after which TCP has found its speed on most ways.
    pub look: Duration,
    /// The same where more connections helped a while ago.
    pub look_again: Duration,
    /// How long after the others joined it is judged whether they help.
    pub judge: Duration,
    /// How fast all must be together, in percent of one alone. The second of two equal ones makes 200; 130 is more than chance.
    pub gain_percent: u64,
    /// How long the judgement holds, by the upstream's name.
    pub holds: Duration,
    /// The least and the most that one connection is asked for at once, in bytes. Small parts cost round trips, large ones
    /// memory.
    pub part: (u64, u64),
    /// Within these it is what a connection delivers in this time.
    pub part_time: Duration,
    /// Bytes of all parts of all blobs that may be in memory, because what comes before them is not there yet.
    pub ahead: u64,
    /// How long a part may be silent before it is asked for again; less than what a whole body may be (15 s).
    pub silence: Duration,
    /// How often a part is asked for in a row without a new byte.
    pub tries: u32,
}

impl Default for WideLimits {
    fn default() -> Self {
        Self {
            worth: 64 << 20,
            enough: 20 << 20,
            look: Duration::from_millis(500),
            look_again: Duration::from_millis(250),
            judge: Duration::from_secs(3),
            gain_percent: 130,
            holds: Duration::from_secs(600),
            part: (1 << 20, 8 << 20),
            part_time: Duration::from_secs(2),
            ahead: 48 << 20,
            silence: Duration::from_secs(6),
            tries: 3,
        }
    }
}

/// Time spent listening after which a speed is one: a few round trips.
const MEANS_SOMETHING: Duration = Duration::from_millis(250);

/// What is known of an upstream from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    Unknown,
    Helps,
    /// It does not help, or ranges are refused.
    Vain,
}

/// The decisions of one body.
#[derive(Debug)]
pub(super) struct Plan {
    stage: Stage,
    /// Bytes a second of one connection, once that is known.
    alone: Option<u64>,
}

#[derive(Debug)]
enum Stage {
    /// One connection, which is being watched.
    Watching { look: Duration, listened: Duration, bytes: u64 },
    /// Several, not judged yet. `bytes` of all of them were here when they began.
    Trying { since: Instant, bytes: u64 },
    /// As it is, to the end.
    Settled,
}

impl Plan {
    /// For a body of which so many bytes are to come.
    pub(super) fn new(limits: &WideLimits, left: u64, connections: usize, habit: Habit) -> Self {
        let never = left < limits.worth || connections < 2 || habit == Habit::Vain;
        let look = if habit == Habit::Helps { limits.look_again } else { limits.look };
        // A body that no other shall join is watched all the same: its speed says something of its endpoint.
        let look = if never { Duration::MAX } else { look };
        Self { stage: Stage::Watching { look, listened: Duration::ZERO, bytes: 0 }, alone: None }
    }

    /// The first connection brought so many bytes after so much listening, `left` are to come: whether others shall join now.
    pub(super) fn heard(&mut self, limits: &WideLimits, bytes: u64, listened: Duration, left: u64) -> bool {
        let Stage::Watching { look, listened: time, bytes: sum } = &mut self.stage else { return false };
        *time += listened;
        *sum += bytes;
        let rate = per_second(*sum, *time);
        self.alone = Some(rate);
        if *time < *look {
            return false;
        }
        if rate >= limits.enough || left < limits.worth / 4 {
            self.stage = Stage::Settled;
            return false;
        }
        true
    }

    /// The others joined: `bytes` came until now.
    pub(super) fn widened(&mut self, now: Instant, bytes: u64) {
        self.stage = Stage::Trying { since: now, bytes };
    }

    /// There is no other to join.
    pub(super) fn settle(&mut self) {
        self.stage = Stage::Settled;
    }

    /// Whether the others help: said once, when there is something to say. `bytes` came over all connections until now.
    pub(super) fn judge(&mut self, limits: &WideLimits, now: Instant, bytes: u64) -> Option<bool> {
        let Stage::Trying { since, bytes: before } = self.stage else { return None };
        let time = now.saturating_duration_since(since);
        if time < limits.judge {
            return None;
        }
        self.stage = Stage::Settled;
        let rate = per_second(bytes - before, time);
        Some(rate >= self.alone.unwrap_or_default() / 100 * limits.gain_percent)
    }

    /// Bytes a second of the first connection.
    pub(super) fn alone(&self) -> Option<u64> {
        self.alone
    }

    /// The same, once it was listened to for long enough to mean something.
    pub(super) fn measured(&self) -> Option<u64> {
        self.alone.filter(|_| !matches!(self.stage, Stage::Watching { listened, .. } if listened < MEANS_SOMETHING))
    }

    /// The size of the next part, in bytes, where so many are left to be asked for.
    pub(super) fn part(&self, limits: &WideLimits, left: u64, connections: usize) -> u64 {
        let (least, most) = limits.part;
        let millis = u64::try_from(limits.part_time.as_millis()).unwrap_or(u64::MAX);
        let in_time = (self.alone.unwrap_or_default() / 1000).saturating_mul(millis);
        // Towards the end all shall be done at the same time.
        let share = left.div_ceil(connections.max(1) as u64);
        in_time.min(share).clamp(least, most).min(left)
    }
}

/// Bytes a second.
pub(super) fn per_second(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LARGE: u64 = 256 * MIB;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn plan(habit: Habit) -> Plan {
        Plan::new(&WideLimits::default(), LARGE, 4, habit)
    }

    #[test]
    fn a_slow_connection_gets_help_and_a_fast_one_does_not() {
        let limits = WideLimits::default();
        let mut slow = plan(Habit::Unknown);
        assert!(!slow.heard(&limits, 2 * MIB, seconds(1) / 4, LARGE), "not yet");
        assert!(slow.heard(&limits, 2 * MIB, seconds(1) / 4, LARGE));
        let mut fast = plan(Habit::Unknown);
        assert!(!fast.heard(&limits, 30 * MIB, seconds(1), LARGE));
        assert!(!fast.heard(&limits, 1, seconds(9), LARGE), "that was judged");
        let mut known = plan(Habit::Helps);
        assert!(known.heard(&limits, MIB, limits.look_again, LARGE), "sooner, where it helped before");
    }

    #[test]
    fn what_is_small_or_nearly_done_or_forbidden_stays_alone() {
        let limits = WideLimits::default();
        let small = Plan::new(&limits, 64 * MIB - 1, 4, Habit::Unknown);
        let single = Plan::new(&limits, LARGE, 1, Habit::Unknown);
        for mut plan in [small, single, plan(Habit::Vain)] {
            assert!(!plan.heard(&limits, 1, seconds(3_600), LARGE));
        }
        assert!(!plan(Habit::Unknown).heard(&limits, 1, seconds(1), 16 * MIB - 1));
    }

    #[test]
    fn help_that_is_none_is_told_once() {
        let limits = WideLimits::default();
        for (rate, helps) in [(12 * MIB, false), (14 * MIB, true)] {
            let mut plan = plan(Habit::Unknown);
            let start = Instant::now();
            assert!(plan.heard(&limits, 10 * MIB, seconds(1), LARGE));
            plan.widened(start, 100);
            assert_eq!(plan.judge(&limits, start + seconds(2), 100 + 2 * rate), None);
            assert_eq!(plan.judge(&limits, start + seconds(4), 100 + 4 * rate), Some(helps));
            assert_eq!(plan.judge(&limits, start + seconds(9), 100), None);
        }
    }

    #[test]
    fn parts_are_as_large_as_a_connection_is_fast_and_shrink_towards_the_end() {
        let limits = WideLimits::default();
        let mut plan = plan(Habit::Unknown);
        plan.heard(&limits, 3 * MIB, seconds(1), LARGE);
        assert_eq!(plan.part(&limits, 100 * MIB, 4) / MIB, 5);
        assert_eq!(plan.part(&limits, 8 * MIB, 4), 2 * MIB);
        assert_eq!(plan.part(&limits, MIB / 2, 4), MIB / 2);
        plan.heard(&limits, 90 * MIB, seconds(1), LARGE);
        assert_eq!(plan.part(&limits, 100 * MIB, 4), 8 * MIB);
    }
}
