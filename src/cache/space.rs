//! How much may be held, is held, and is promised to blobs that are arriving.
//!
//! Promises: held and promised bytes together never pass the limit once the held ones are counted; a promise is given back
//! when its holder is dropped.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::blobs::free_bytes;
use crate::observe::Metrics;

/// The part of the file system that is left free for others, as a fraction and in bytes, whichever is less: a full disk
/// stops more than millpond.
const LEAVE_FREE_PART: u64 = 100;
const LEAVE_FREE_MAX: u64 = 1 << 30;

/// How long a blob waits at the start for the count of what is held, before it goes through without being stored.
const COUNT_DEADLINE: Duration = Duration::from_secs(10);

/// What a tag or link takes on the disk: a block, however few bytes are in it.
const RECORD_BYTES: u64 = 4 << 10;

/// What the data folder holds besides blobs: it takes its part of the limit too. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Beside(Arc<BesideInner>);

struct BesideInner {
    records: AtomicU64,
    quarantined: AtomicU64,
    metrics: Metrics,
}

/// The account of the disk. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Space(Arc<Inner>);

struct Inner {
    max: u64,
    leave_free: u64,
    root: PathBuf,
    counts: Mutex<Counts>,
    counted: watch::Sender<bool>,
    beside: Beside,
    metrics: Metrics,
}

#[derive(Default)]
struct Counts {
    held: u64,
    promised: u64,
}

impl Counts {
    /// By how many bytes there would be too many with so many more.
    fn over(&self, max: u64, more: u64) -> u64 {
        self.held.saturating_add(self.promised).saturating_add(more).saturating_sub(max)
    }
}

/// Bytes promised to a blob that is arriving.
#[derive(Debug)]
pub(crate) struct Promise {
    space: Space,
    bytes: u64,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("max", &self.0.max).finish_non_exhaustive()
    }
}

/// Whether a promise can be given.
pub(crate) enum Ask {
    /// Yes.
    Given(Promise),
    /// Only when so many bytes are evicted.
    Evict(u64),
    /// Never: it is larger than everything together.
    TooLarge,
}

impl Space {
    /// An account of at most `max` bytes on the file system at `root`, which has `total` bytes.
    pub(crate) fn new(max: u64, root: PathBuf, total: u64, metrics: Metrics) -> Self {
        let leave_free = (total / LEAVE_FREE_PART).min(LEAVE_FREE_MAX);
        let (counts, counted) = (Mutex::default(), watch::Sender::new(false));
        let beside = Beside::new(metrics.clone());
        Self(Arc::new(Inner { max, leave_free, root, counts, counted, beside, metrics }))
    }

    /// The account of what is no blob.
    pub(crate) fn beside(&self) -> &Beside {
        &self.0.beside
    }

    /// Asks for `bytes`. A call to the file system: not for a runtime's worker.
    pub(crate) fn ask(&self, bytes: u64) -> Ask {
        let inner = &*self.0;
        let max = self.max_of_blobs();
        if bytes > max {
            return Ask::TooLarge;
        }
        // What cannot be measured is found out by writing.
        let free = free_bytes(&inner.root).unwrap_or(u64::MAX);
        let mut counts = self.lock();
        let over_limit = counts.over(max, bytes);
        // What was promised before has been allocated by now, so the file system has counted it.
        let over_disk = bytes.saturating_add(inner.leave_free).saturating_sub(free);
        let short = over_limit.max(over_disk);
        if short > 0 {
            return Ask::Evict(short);
        }
        counts.promised += bytes;
        Ask::Given(Promise { space: self.clone(), bytes })
    }

    /// Whether the held bytes have been counted; waits for it, but not for ever.
    pub(crate) async fn counted(&self) -> bool {
        let mut counted = self.0.counted.subscribe();
        let counted = counted.wait_for(|counted| *counted);
        matches!(tokio::time::timeout(COUNT_DEADLINE, counted).await, Ok(Ok(_)))
    }

    /// The held bytes are known from now on.
    pub(crate) fn set_counted(&self) {
        self.0.counted.send_replace(true);
    }

    /// They are not known any more: whoever asks waits again.
    pub(crate) fn set_uncounted(&self) {
        self.0.counted.send_replace(false);
    }

    /// How many bytes are held beyond the limit.
    pub(crate) fn excess(&self) -> u64 {
        self.lock().over(self.max_of_blobs(), 0)
    }

    /// What is left of the limit for blobs: eviction frees nothing of what lies beside them.
    fn max_of_blobs(&self) -> u64 {
        self.0.max.saturating_sub(self.0.beside.bytes())
    }

    /// A blob was found that had not been counted.
    pub(crate) fn found(&self, bytes: u64) {
        let mut counts = self.lock();
        counts.held += bytes;
        self.0.metrics.cache_bytes(counts.held);
    }

    /// A counted blob is gone.
    pub(crate) fn gone(&self, bytes: u64) {
        let mut counts = self.lock();
        counts.held = counts.held.saturating_sub(bytes);
        self.0.metrics.cache_bytes(counts.held);
    }

    /// What was counted is worth nothing any more: it is counted anew.
    pub(crate) fn forget(&self) {
        self.lock().held = 0;
    }

    /// The bytes held.
    pub(crate) fn held(&self) -> u64 {
        self.lock().held
    }

    /// The limit.
    pub(crate) fn max(&self) -> u64 {
        self.0.max
    }

    // A few additions; never held across an await or a call to the disk.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beside {
    /// Nothing yet.
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self(Arc::new(BesideInner { records: AtomicU64::new(0), quarantined: AtomicU64::new(0), metrics }))
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> u64 {
        let inner = &*self.0;
        inner.records.load(Ordering::Relaxed).saturating_mul(RECORD_BYTES).saturating_add(inner.quarantined.load(Ordering::Relaxed))
    }

    /// A tag or link was written that was not there.
    pub(crate) fn record_added(&self) {
        self.0.records.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    /// A tag or link was removed.
    pub(crate) fn record_removed(&self) {
        // Not below zero, whatever was removed by hand before it was counted.
        let _ = self.0.records.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |records| Some(records.saturating_sub(1)));
        self.tell();
    }

    /// So many tags and links there are.
    pub(crate) fn records(&self, records: u64) {
        self.0.records.store(records, Ordering::Relaxed);
        self.tell();
    }

    /// So many bytes are in quarantine.
    pub(crate) fn quarantined(&self, bytes: u64) {
        self.0.quarantined.store(bytes, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        self.0.metrics.beside_bytes(self.bytes());
    }
}

impl Promise {
    /// The promised bytes are now held.
    pub(crate) fn keep(mut self, size: u64) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut counts = self.space.lock();
        counts.promised = counts.promised.saturating_sub(bytes);
        counts.held += size;
        self.space.0.metrics.cache_bytes(counts.held);
    }

    /// Takes another promise in.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// How much is promised.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut counts = self.space.lock();
        counts.promised = counts.promised.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(ask: Ask) -> Promise {
        match ask {
            Ask::Given(promise) => promise,
            _ => panic!("the promise is refused"),
        }
    }

    #[test]
    fn held_and_promised_never_pass_the_limit() {
        let dir = tempfile::tempdir().expect("a folder");
        let space = Space::new(100, dir.path().to_owned(), 0, Metrics::new());
        let mut first = given(space.ask(60));
        assert!(matches!(space.ask(50), Ask::Evict(10)));
        assert!(matches!(space.ask(101), Ask::TooLarge));
        first.join(given(space.ask(40)));
        assert_eq!(first.bytes(), 100);
        first.keep(90);
        assert_eq!(space.held(), 90);
        assert!(matches!(space.ask(20), Ask::Evict(10)));
        space.gone(30);
        drop(given(space.ask(40)));
        drop(given(space.ask(40)));
    }

    #[test]
    fn what_lies_beside_the_blobs_takes_its_part_of_the_limit() {
        let dir = tempfile::tempdir().expect("a folder");
        let space = Space::new(10 * RECORD_BYTES, dir.path().to_owned(), 0, Metrics::new());
        space.beside().record_added();
        space.beside().record_added();
        space.beside().quarantined(2 * RECORD_BYTES);
        assert!(matches!(space.ask(6 * RECORD_BYTES + 1), Ask::TooLarge), "evicting everything would not help");
        given(space.ask(5 * RECORD_BYTES)).keep(5 * RECORD_BYTES);
        assert!(matches!(space.ask(2 * RECORD_BYTES), Ask::Evict(RECORD_BYTES)));
        space.beside().record_removed();
        drop(given(space.ask(2 * RECORD_BYTES)));
        for _ in 0..3 {
            space.beside().record_removed();
        }
        assert_eq!(space.beside().bytes(), 2 * RECORD_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn an_uncounted_account_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().expect("a folder");
        let space = Space::new(100, dir.path().to_owned(), 0, Metrics::new());
        assert!(!space.counted().await);
        space.set_counted();
        assert!(space.counted().await);
    }
}
