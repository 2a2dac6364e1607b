//! What the patrol tells: how much it has read, what it found, how far it is.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The patrol's part of the metrics. Cheap to clone.
#[derive(Clone, Default)]
pub struct Patrol {
    bytes: Counter,
    files: Counter,
    findings: Counter,
    swept: Counter,
    rounds: Counter,
    position: Gauge<f64, AtomicU64>,
    ended: Gauge,
    unverified: Gauge,
}

impl Patrol {
    /// All at zero, under their names in `registry`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let patrol = Self::default();
        registry.register("patrol_bytes", "Bytes that the patrol has read and hashed", patrol.bytes.clone());
        registry.register("patrol_files", "Files that the patrol has hashed to their end", patrol.files.clone());
        registry.register("patrol_findings", "Files that the patrol found rotten or unreadable", patrol.findings.clone());
        registry.register("patrol_records_removed", "Tags and links that led to nothing held and were removed", patrol.swept.clone());
        registry.register("patrol_rounds", "Rounds over everything held that the patrol has ended", patrol.rounds.clone());
        registry.register("patrol_round_ratio", "How much of its round the patrol has done, 0 to 1", patrol.position.clone());
        let help = "When the patrol last ended a round, in seconds since 1970; 0 is never";
        registry.register("patrol_round_end_timestamp_seconds", help, patrol.ended.clone());
        let help = "Bytes of files that nobody has verified since they were written or the host went down, which the patrol hashes first";
        registry.register("patrol_unverified_bytes", help, patrol.unverified.clone());
        patrol
    }

    /// It read and hashed so many bytes.
    pub fn read(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// It hashed a file to its end.
    pub fn hashed(&self) {
        self.files.inc();
    }

    /// It found a file rotten or unreadable.
    pub fn found(&self) {
        self.findings.inc();
    }

    /// It removed a tag or link that leads to nothing held.
    pub fn swept(&self) {
        self.swept.inc();
    }

    /// So much of the round is done, 0 to 1.
    pub fn at(&self, share: f64) {
        self.position.set(share);
    }

    /// So many bytes of files are left that nobody has verified.
    pub fn unverified(&self, bytes: u64) {
        self.unverified.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// It ended a round.
    pub fn round(&self) {
        self.rounds.inc();
    }

    /// When it last ended a round, in this run or an earlier one.
    pub fn last_ended(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.ended.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}
