//! The disk as something that may not answer: every call on it that a client waits for is made through [`Disk::ask`], which
//! has a deadline.
//!
//! A disk that fails says so. One that hangs (a file server that is gone, a drive that is dying, a device that is suspended)
//! says nothing, and a thread that called it is lost until it answers. So:
//!
//! * Whoever waited for [`Disk::patience`] goes on as if nothing were held and nothing could be: what is asked for comes from
//!   the upstream and goes through a window. From then on the disk is *away*, and nobody else waits for it at all.
//! * While it is away one probe at a time does what is done all the time: opens, writes, syncs, removes. The disk is back
//!   when that is quick and every call that was overdue has returned; or, for one bad file must not keep the whole cache
//!   away, when those have been missing for [`LOST_AFTER`].
//! * Threads that may be lost are counted beforehand: a call has a place ([`LOOKS_MAX`] …) until it returns.
//!
//! Promises: no caller waits longer than its deadline, and none at all while the disk is away; a call whose caller has left,
//! because its client did, is watched all the same; what a late call brings is dropped where it was made, never on a
//! runtime's worker. One line in the log when it begins, one when it ends.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::blamed::Blamed;
use super::blobs::BlobFile;
use super::{Cache, Found};
use crate::observe::Metrics;
use crate::oci::Digest;

/// How long a call may take before its caller goes on without it, unless the configuration says another: no healthy disk is
/// silent for so long, and clients wait half a minute for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How many times longer a write may take: a busy disk makes writers wait for all that was written before.
const WRITE_PATIENCES: u32 = 2;

/// Look-ups and reads at a time: more than any disk does at once, and a quarter of the threads that the runtime has for all
/// calls that block.
const LOOKS_MAX: usize = 128;

/// Writes at a time, of records and of blobs that are arriving.
const WRITES_MAX: usize = 64;

/// Verified blobs on their way into place at a time. Each may take as long as the disk needs for its gigabytes, and no client
/// waits for it.
const COMMITS_MAX: usize = 64;

/// The fewest bytes a second with which a blob is expected to reach the disk when it is put into place.
const COMMIT_RATE: u64 = 1 << 20;

/// The pause between two probes of a disk that is away.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// After how long a call that is overdue counts no more, if the disk answers others.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// A disk that may not answer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Inner>);

struct Inner {
    patience: Duration,
    probe: Probe,
    looks: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    commits: Arc<Semaphore>,
    away: watch::Sender<bool>,
    overdue: Mutex<Overdue>,
    /// What was asked for when it did not answer.
    stuck: Blamed,
    metrics: Metrics,
    stop: CancellationToken,
}

#[derive(Default)]
struct Overdue {
    calls: i64,
    last: Option<Instant>,
}

/// What tells whether the disk answers; that it says no is an answer.
type Probe = Box<dyn Fn() + Send + Sync>;

/// The disk did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the disk does not answer")]
pub(crate) struct NoAnswer;

impl From<NoAnswer> for std::io::Error {
    fn from(no: NoAnswer) -> Self {
        Self::new(std::io::ErrorKind::TimedOut, no)
    }
}

/// What kind of call it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// Opens, reads, lists.
    Look,
    /// Writes.
    Write,
}

impl Default for Disk {
    fn default() -> Self {
        Self::new(PATIENCE, Metrics::new(), CancellationToken::new(), || {})
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("away", &self.is_away()).finish_non_exhaustive()
    }
}

impl Disk {
    /// A disk that has so long to answer, and a call that tells whether it does.
    pub(crate) fn new(patience: Duration, metrics: Metrics, stop: CancellationToken, probe: impl Fn() + Send + Sync + 'static) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self(Arc::new(Inner {
            patience,
            probe: Box::new(probe),
            looks: places(LOOKS_MAX),
            writes: places(WRITES_MAX),
            commits: places(COMMITS_MAX),
            away: watch::Sender::new(false),
            overdue: Mutex::default(),
            stuck: Blamed::default(),
            metrics,
            stop,
        }))
    }

    /// Whether it did not answer, and has not since.
    pub(crate) fn is_away(&self) -> bool {
        *self.0.away.borrow()
    }

    /// Looks for something about a blob. One for which the disk did not answer is not asked for again for a while: one bad
    /// file is not waited for again and again.
    pub(crate) async fn ask_about<T: Send + 'static>(
        &self,
        digest: &Digest,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        if self.is_away() || self.0.stuck.has(digest) {
            return Err(NoAnswer);
        }
        self.ask(Call::Look, call).await.inspect_err(|_| self.0.stuck.add(*digest))
    }

    /// Makes a call on the blocking pool and waits for it, but not for ever. A call that panics gives no answer either.
    pub(crate) async fn ask<T: Send + 'static>(&self, kind: Call, call: impl FnOnce() -> T + Send + 'static) -> Result<T, NoAnswer> {
        let (places, patience) = match kind {
            Call::Look => (&self.0.looks, self.0.patience),
            Call::Write => (&self.0.writes, self.0.patience * WRITE_PATIENCES),
        };
        let deadline = Instant::now() + patience;
        let place = self.place(places, deadline).await?;
        let (mut waiting, answer) = self.begin(place, deadline, call);
        if let Ok(answer) = timeout_at(deadline, answer).await {
            waiting.call = None;
            return answer.map_err(|_| NoAnswer);
        }
        waiting.is_overdue();
        Err(NoAnswer)
    }

    /// Has a blob of so many bytes put into place, and waits as long as it takes: for nobody's sake but its own.
    pub(crate) async fn commit(&self, bytes: u64, call: impl FnOnce() + Send + 'static) {
        let Ok(place) = Arc::clone(&self.0.commits).acquire_owned().await else { return };
        let patience = self.0.patience * WRITE_PATIENCES + Duration::from_secs(bytes / COMMIT_RATE);
        let deadline = Instant::now() + patience;
        let (mut waiting, mut answer) = self.begin(place, deadline, call);
        if timeout_at(deadline, &mut answer).await.is_err() {
            waiting.is_overdue();
            let _ = answer.await;
        }
        waiting.call = None;
    }

    /// A place for a thread that may be lost.
    async fn place(&self, places: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, NoAnswer> {
        if self.is_away() {
            return Err(NoAnswer);
        }
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(place);
        }
        if self.overdue().calls > 0 {
            // Who has them may never come back.
            return Err(NoAnswer);
        }
        let mut away = self.0.away.subscribe();
        tokio::select! {
            biased;
            place = timeout_at(deadline, Arc::clone(places).acquire_owned()) => place.ok().and_then(Result::ok).ok_or(NoAnswer),
            _ = away.wait_for(|away| *away) => Err(NoAnswer),
        }
    }

    fn begin<T: Send + 'static>(
        &self,
        place: OwnedSemaphorePermit,
        deadline: Instant,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> (Waiting, oneshot::Receiver<T>) {
        let (sender, answer) = oneshot::channel();
        let made = tokio::task::spawn_blocking(move || {
            let _place = place;
            // What nobody waits for any more is dropped here.
            drop(sender.send(call()));
        });
        (Waiting { disk: self.clone(), call: Some(made), deadline }, answer)
    }

    /// A call is overdue: the disk is away.
    fn lost(&self) {
        let was_away = {
            let mut overdue = self.overdue();
            overdue.calls += 1;
            overdue.last = Some(Instant::now());
            self.0.metrics.disk_overdue(overdue.calls);
            self.0.away.send_replace(true)
        };
        if !was_away {
            let patience = self.0.patience;
            tracing::error!(
                ?patience,
                "the disk does not answer: what is in memory is served, the rest comes from the upstreams and is not kept. Check the disk of cache.dir"
            );
            let disk = self.clone();
            tokio::spawn(async move {
                let stop = disk.0.stop.clone();
                stop.run_until_cancelled(disk.wait_until_back()).await;
            });
        }
    }

    /// A call that was overdue has returned.
    fn returned(&self) {
        let mut overdue = self.overdue();
        overdue.calls -= 1;
        self.0.metrics.disk_overdue(overdue.calls.max(i64::from(self.is_away())));
    }

    async fn wait_until_back(&self) {
        let began = Instant::now();
        loop {
            sleep(PROBE_EVERY).await;
            let (disk, started) = (self.clone(), Instant::now());
            // However long it takes: there is one of them.
            let probed = tokio::task::spawn_blocking(move || (disk.0.probe)()).await;
            let is_quick = probed.is_ok() && started.elapsed() < self.0.patience;
            let overdue = self.overdue();
            if is_quick && (overdue.calls == 0 || overdue.last.is_none_or(|last| last.elapsed() >= LOST_AFTER)) {
                if overdue.calls == 0 {
                    self.0.stuck.forget();
                }
                self.0.away.send_replace(false);
                self.0.metrics.disk_overdue(overdue.calls);
                let (seconds, lost) = (began.elapsed().as_secs_f64(), overdue.calls);
                drop(overdue);
                tracing::warn!(seconds, lost, "the disk answers again: what it holds is served, and what is fetched is kept");
                return;
            }
        }
    }

    // Held for a sum only.
    fn overdue(&self) -> MutexGuard<'_, Overdue> {
        self.0.overdue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Whether the disk does not answer.
    pub fn is_away(&self) -> bool {
        self.0.disk.is_away()
    }

    /// As `open_trusted`, with a deadline. The one with the `right` to fetch it forgets one whose file is gone.
    pub(super) async fn open_in_time(&self, digest: &Digest, right: bool) -> Result<Result<Found, Option<BlobFile>>, NoAnswer> {
        let (cache, of) = (self.clone(), *digest);
        let open = move || {
            let opened = cache.open_trusted(&of);
            if right && matches!(opened, Err(None)) {
                cache.forget_vanished(&of);
            }
            opened
        };
        self.0.disk.ask_about(digest, open).await
    }

    /// Writes a part of what is arriving, with a deadline.
    pub(crate) async fn write_in_time<T: Send + 'static>(&self, write: impl FnOnce() -> T + Send + 'static) -> Result<T, NoAnswer> {
        self.0.disk.ask(Call::Write, write).await
    }

    /// Reads a part of what is held, with a deadline.
    pub(crate) async fn look_in_time<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> Result<T, NoAnswer> {
        self.0.disk.ask(Call::Look, look).await
    }

    /// Has a blob of so many bytes put into place, however long that takes.
    pub(crate) async fn commit_aside(&self, bytes: u64, commit: impl FnOnce() + Send + 'static) {
        self.0.disk.commit(bytes, commit).await;
    }

    /// Looks at the disk, or goes without what it does not say in time. On the heap: what is in memory is to need no room for it.
    pub(super) async fn look<T: Send + 'static>(&self, look: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
        Box::pin(self.0.disk.ask(Call::Look, look)).await.ok().flatten()
    }
}

/// A call that is waited for. Who leaves before it returned has it watched.
struct Waiting {
    disk: Disk,
    call: Option<JoinHandle<()>>,
    deadline: Instant,
}

impl Waiting {
    fn is_overdue(&mut self) {
        let Some(call) = self.call.take() else { return };
        self.disk.lost();
        let disk = self.disk.clone();
        tokio::spawn(async move {
            let _ = call.await;
            disk.returned();
        });
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(mut call) = self.call.take().filter(|call| !call.is_finished()) else { return };
        let (disk, deadline) = (self.disk.clone(), self.deadline);
        // Outside a runtime nothing is asked.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if timeout_at(deadline, &mut call).await.is_err() {
                Self { disk, call: Some(call), deadline }.is_overdue();
            }
        });
    }
}

/// A file, or a folder, that the probe needs.
pub(crate) fn probe_of(folder: super::Folder) -> impl Fn() + Send + Sync + 'static {
    let places: [PathBuf; 2] = ["blobs", "repos"].map(|name| folder.root().join(name));
    move || {
        for place in &places {
            // That it answers is all.
            let _ = std::fs::read_dir(place).map(|mut entries| entries.next().is_some());
        }
        let written = folder.temp().and_then(|temp| {
            std::os::unix::fs::FileExt::write_all_at(&**temp.file(), b"?", 0)?;
            temp.file().sync_data()
        });
        drop(written);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A disk that hangs in whatever waits for this.
    fn hang() -> (mpsc::Sender<()>, impl FnOnce() -> u8 + Send) {
        let (sender, receiver) = mpsc::channel::<()>();
        (sender, move || {
            let _ = receiver.recv();
            7
        })
    }

    fn disk() -> Disk {
        Disk::new(Duration::from_millis(200), Metrics::new(), CancellationToken::new(), || {})
    }

    async fn back(disk: &Disk) {
        disk.0.away.subscribe().wait_for(|away| !away).await.expect("it lives");
    }

    #[tokio::test]
    async fn a_call_that_hangs_is_waited_for_once_and_nobody_waits_after_it() {
        let disk = disk();
        assert_eq!(disk.ask(Call::Look, || 1).await, Ok(1));
        let (end, call) = hang();
        assert_eq!(disk.ask(Call::Look, call).await, Err(NoAnswer));
        assert!(disk.is_away());
        assert!(futures_util::poll!(std::pin::pin!(disk.ask(Call::Look, || 1))).is_ready(), "it waits");
        assert!(futures_util::poll!(std::pin::pin!(disk.ask(Call::Write, || 1))).is_ready(), "it waits");
        drop(end);
        back(&disk).await;
        assert_eq!(disk.ask(Call::Write, || 2).await, Ok(2));
        assert_eq!(disk.0.looks.available_permits(), LOOKS_MAX);
        assert_eq!(disk.overdue().calls, 0);
    }

    #[tokio::test]
    async fn a_call_whose_caller_left_is_watched() {
        let disk = disk();
        let (end, call) = hang();
        assert!(futures_util::poll!(std::pin::pin!(disk.ask(Call::Look, call))).is_pending());
        disk.0.away.subscribe().wait_for(|away| *away).await.expect("it lives");
        drop(end);
        back(&disk).await;
    }

    #[tokio::test]
    async fn threads_that_can_be_lost_are_bounded() {
        let disk = disk();
        let (ends, calls): (Vec<_>, Vec<_>) = (0..LOOKS_MAX + 50).map(|_| hang()).unzip();
        let asked = calls.into_iter().map(|call| disk.ask(Call::Look, call));
        let answers = futures_util::future::join_all(asked).await;
        assert!(answers.iter().all(|answer| *answer == Err(NoAnswer)));
        assert_eq!(disk.overdue().calls, i64::try_from(LOOKS_MAX).expect("small"));
        drop(ends);
        back(&disk).await;
        assert_eq!(disk.0.looks.available_permits(), LOOKS_MAX);
    }
}
