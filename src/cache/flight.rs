//! One transfer a digest: whoever asks first for a blob that is not held becomes its writer, the others its readers.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::blamed::Blamed;
use super::blobs::BlobFile;
use super::disk::Disk;
use super::growing::{Failure, Growing, Writer, growing_on};
use crate::oci::Digest;

/// The blobs that are arriving now.
#[derive(Clone, Default)]
pub(crate) struct Flights {
    arriving: Arc<Mutex<HashMap<Digest, Growing>>>,
    blamed: Blamed,
    disk: Disk,
}

/// The one right to fetch a blob. It is consumed by a fill; dropping it frees the digest and fails those who wait.
#[derive(Debug)]
pub struct Permit {
    // Shared with a batch that is being written: that may hang, and the permit must end without it.
    writer: Arc<Writer>,
    flights: Flights,
    suspect: Option<BlobFile>,
    avoids_disk: bool,
}

impl std::fmt::Debug for Flights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Flights").field(&self.len()).finish()
    }
}

/// Who one is for a digest.
pub(crate) enum Role {
    Reader(Growing),
    Writer(Permit),
}

impl Flights {
    /// Those whose bytes go to this disk.
    pub(crate) fn on(disk: Disk) -> Self {
        Self { disk, ..Self::default() }
    }

    /// Joins the transfer of a digest, or becomes its writer. A transfer that a newcomer could not read from the byte it
    /// wants first is left to its readers, and replaced.
    pub(crate) fn join(&self, digest: &Digest, from: u64) -> Role {
        let mut flights = self.lock();
        if let Some(growing) = flights.get(digest).filter(|growing| growing.serves_from(from)) {
            return Role::Reader(growing.clone());
        }
        let (writer, growing) = growing_on(*digest, &self.blamed, &self.disk);
        flights.insert(*digest, growing);
        let avoids_disk = self.blamed.has(digest);
        Role::Writer(Permit { writer: Arc::new(writer), flights: self.clone(), suspect: None, avoids_disk })
    }

    /// The transfer of a digest, if there is one that can be read from there.
    pub(crate) fn get(&self, digest: &Digest, from: u64) -> Option<Growing> {
        self.lock().get(digest).filter(|growing| growing.serves_from(from)).cloned()
    }

    /// Whether a digest is arriving.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    /// How many are arriving.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    // Held for a map operation only, never across an await.
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Growing>> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The blob to fetch.
    pub fn digest(&self) -> Digest {
        self.writer.growing().digest()
    }

    /// The readers' side.
    pub fn growing(&self) -> Growing {
        self.writer.growing()
    }

    /// Whether newcomers find this transfer, and not one that replaced it.
    pub(crate) fn is_current(&self) -> bool {
        let mine = self.writer.growing();
        self.flights.lock().get(&mine.digest()).is_some_and(|current| current.is(&mine))
    }

    /// There is a file of this blob, but not in a state in which it was verified: the fill looks at it first.
    pub(crate) fn with_suspect(mut self, file: BlobFile) -> Self {
        self.suspect = Some(file);
        self
    }

    /// The disk does not answer: nothing of this blob is to be stored.
    pub(crate) fn avoiding_disk(mut self) -> Self {
        self.avoids_disk = true;
        self
    }

    /// Whether there is such a file: the blob may be here after all.
    pub fn has_suspect(&self) -> bool {
        self.suspect.is_some()
    }

    /// The file to verify first.
    pub(crate) fn take_suspect(&mut self) -> Option<BlobFile> {
        self.suspect.take()
    }

    /// The disk did not give a transfer of this blob back a moment ago: this one is not to be stored.
    pub(crate) fn avoids_disk(&self) -> bool {
        self.avoids_disk
    }

    /// The writer's side.
    pub(crate) fn writer(&self) -> &Arc<Writer> {
        &self.writer
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.writer.fail(Failure::Abandoned);
        let mine = self.writer.growing();
        let mut flights = self.flights.lock();
        if flights.get(&mine.digest()).is_some_and(|current| current.is(&mine)) {
            flights.remove(&mine.digest());
        }
    }
}

/// The runs under way, each to be awaited by anybody.
type Running<K, V> = Arc<Mutex<HashMap<K, Shared<BoxFuture<'static, Option<V>>>>>>;

/// One run of a future a key, for everybody who asks while it runs. The run belongs to the server: it goes on when all who
/// asked have left, so that a question once put to an upstream is never put twice.
pub(crate) struct Coalesce<K, V> {
    running: Running<K, V>,
    stop: CancellationToken,
}

/// Whether this caller started the run or joined it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Joined {
    /// Started it.
    First,
    /// Joined it.
    Later,
}

impl<K: Hash + Eq + Clone + Send + 'static, V: Clone + Send + Sync + 'static> Coalesce<K, V> {
    /// Runs that end, with nothing, at the stop: nobody waits for them any more, and the stop would.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { running: Arc::default(), stop }
    }

    /// The result of the run for `key`; `None` when the run panicked or the server is stopping.
    pub(crate) async fn run<F>(&self, key: K, tasks: &TaskTracker, start: impl FnOnce() -> F) -> (Joined, Option<V>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (joined, shared) = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(shared) = running.get(&key) {
                (Joined::Later, shared.clone())
            } else {
                let cleanup = Cleanup { running: self.running.clone(), key: key.clone() };
                let (future, stop) = (start(), self.stop.clone());
                let task = tasks.spawn(async move {
                    // Dropped at the end of the task however it ends, a panic included.
                    let _cleanup = cleanup;
                    stop.run_until_cancelled(future).await
                });
                let shared = task.map(|ended| ended.ok().flatten()).boxed().shared();
                running.insert(key, shared.clone());
                (Joined::First, shared)
            }
        };
        (joined, shared.await)
    }
}

struct Cleanup<K: Hash + Eq, V> {
    running: Running<K, V>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Cleanup<K, V> {
    fn drop(&mut self) {
        let removed = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        // Its destructor may run code of its own: not under the lock.
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;
    use crate::cache::growing::Failure;

    #[tokio::test]
    async fn the_first_writes_the_others_read_and_a_dropped_permit_frees_the_digest() {
        let flights = Flights::default();
        let digest = Digest::sha256_of(b"x");
        let Role::Writer(permit) = flights.join(&digest, 0) else { panic!("the first is the writer") };
        let Role::Reader(growing) = flights.join(&digest, 0) else { panic!("the second reads") };
        drop(permit);
        assert!(matches!(growing.opened().await, Err(Failure::Abandoned)));
        assert!(matches!(flights.join(&digest, 0), Role::Writer(_)));
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn a_replaced_transfer_does_not_free_its_successor() {
        let flights = Flights::default();
        let digest = Digest::sha256_of(b"x");
        let Role::Writer(old) = flights.join(&digest, 0) else { panic!("the first is the writer") };
        old.writer().open(Some(1 << 30), None);
        let _reader = old.growing().reader(0, None).expect("reads");
        for _ in 0..3 {
            old.writer().push(bytes::Bytes::from(vec![0; 2 << 20]));
        }
        old.writer().arrived(6 << 20);
        old.writer().cut_slowest(4 << 20);
        let Role::Writer(new) = flights.join(&digest, 0) else { panic!("a newcomer starts anew") };
        drop(old);
        assert!(flights.contains(&digest));
        drop(new);
        assert!(!flights.contains(&digest));
    }

    #[tokio::test]
    async fn callers_share_a_run_and_it_outlives_them() {
        let coalesce = Arc::new(Coalesce::<u8, u8>::new(CancellationToken::new()));
        let tasks = TaskTracker::new();
        let gate = Arc::new(Semaphore::new(0));
        let runs = Arc::new(AtomicUsize::new(0));
        let start = || {
            let (gate, runs) = (gate.clone(), runs.clone());
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                let _open = gate.acquire().await;
                7
            }
        };
        {
            let first = std::pin::pin!(coalesce.run(1, &tasks, start));
            assert!(futures_util::poll!(first).is_pending());
        }
        let mut second = std::pin::pin!(coalesce.run(1, &tasks, start));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        gate.add_permits(1);
        assert_eq!(second.await, (Joined::Later, Some(7)));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        gate.add_permits(1);
        assert_eq!(coalesce.run(1, &tasks, start).await, (Joined::First, Some(7)));
    }

    #[tokio::test]
    async fn a_panic_reaches_nobody_else_and_frees_the_key() {
        let coalesce = Coalesce::<u8, u8>::new(CancellationToken::new());
        let tasks = TaskTracker::new();
        let (_, result) = coalesce.run(1, &tasks, || async { panic!("on purpose") }).await;
        assert_eq!(result, None);
        assert_eq!(coalesce.run(1, &tasks, || async { 3 }).await.1, Some(3));
    }

    #[tokio::test]
    async fn a_stop_ends_what_would_never_end() {
        let stop = CancellationToken::new();
        let coalesce = Coalesce::<u8, u8>::new(stop.clone());
        let tasks = TaskTracker::new();
        let mut run = std::pin::pin!(coalesce.run(1, &tasks, std::future::pending));
        assert!(futures_util::poll!(run.as_mut()).is_pending());
        stop.cancel();
        assert_eq!(run.await.1, None);
        tasks.close();
        tasks.wait().await;
    }
}
