//! From the bytes that came to the file or the window: one batch at a time, on the blocking pool; and from the verified file
//! to the cache.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::batch::{Batch, Waited, Work, Written};
use super::{Context, Fill, Source, Store};
use crate::cache::{Cache, Failure, Kept, Writer, begin_writing_back, dropped_aside, place};
use crate::observe::Metrics;
use crate::oci::Hasher;

/// A batch of fewer bytes is hashed by the thread that writes it: that takes a sixth of a millisecond.
const APART_BYTES: u64 = 256 << 10;

/// The pause between two batches of a blob, unless the first has gathered [`FULL_BYTES`]: nobody notices a millisecond, and
/// an upstream that sends a thousand small pieces in it costs one turn of the blocking pool and not a thousand.
const PAUSE: Duration = Duration::from_millis(1);

/// A batch of so many bytes does not wait for more: it is written while they come.
const FULL_BYTES: u64 = 1 << 20;

/// How much is written before the kernel is told to begin with it: some hundred times for a gigabyte, and never for the many
/// small blobs.
const WRITE_BACK_BYTES: u64 = 8 << 20;

impl<S: Source> Fill<S> {
    /// Until when what gathered waits for more; nothing when it waits for nothing, or there is nothing to wait with.
    pub(super) fn gathers_until(&self) -> Option<Instant> {
        let may_wait = self.work.is_none() && !self.gathered.is_empty() && self.gathered.len() < FULL_BYTES && self.is_hungry();
        let until = self.dispatched.filter(|_| may_wait)? + PAUSE;
        (until > Instant::now()).then_some(until)
    }

    /// Has the gathered bytes written, unless a batch is under way already.
    pub(super) async fn dispatch(&mut self) -> Result<(), Failure> {
        if self.work.is_some() || self.gathered.is_empty() {
            return Ok(());
        }
        // What came with a size has all of its place already.
        if let Store::File(kept) = &mut self.store
            && let Some(kept) = kept.kept()
            && let Err(reason) = self.context.cache.admit_more(kept, self.received).await
        {
            tracing::warn!(digest = %self.digest, %reason, "a blob of unknown size outgrew its place; the rest is passed through");
            self.leave_file().await?;
        }
        let batch = self.gathered.take();
        self.dispatched = Some(Instant::now());
        self.wait_for_room().await?;
        // The hasher is with the batch only while there is one.
        let hasher = self.hasher.take().ok_or(Failure::Abandoned)?;
        let target = match &self.store {
            Store::File(filed) => filed.file(),
            Store::Window(_) | Store::Unopened => None,
        };
        let (writer, offset) = (self.permit.writer().clone(), self.done);
        self.work = Some(match target {
            Some(file) => Box::pin(write(self.context.cache.clone(), batch, file, offset, hasher, writer)),
            None => Box::pin(pass(batch, offset, hasher, writer)),
        });
        Ok(())
    }

    /// A batch is done: on disk, in the window, or refused by the disk.
    pub(super) async fn written(&mut self, work: Work) -> Result<(), Failure> {
        self.hasher = Some(work.hasher);
        match work.written {
            Written::Done(bytes) => {
                self.done += bytes;
                self.write_back();
            }
            Written::Refused { batch, error } => {
                tracing::error!(digest = %self.digest, %error, at = self.done, "the disk refuses a blob that is arriving; the rest is passed through without being stored");
                self.leave_file().await?;
                self.wait_for_room().await?;
                batch.pass(self.done, self.permit.writer());
                self.done += batch.len();
            }
        }
        Ok(())
    }

    /// Has the rest of the blob's place taken, and the kernel begin with what it would put off: then there is little left to wait for when the
    /// blob is put into place. Nobody waits for that here; a disk that is slower than the upstream is asked for one part at a time.
    fn write_back(&mut self) {
        let Store::File(filed) = &mut self.store else { return };
        let bytes = self.done - self.written_back;
        let is_behind = self.writing_back.as_ref().is_some_and(|task| !task.is_finished());
        let Some(file) = filed.file().filter(|_| bytes >= WRITE_BACK_BYTES && !is_behind) else { return };
        let (cache, from) = (self.context.cache.clone(), self.written_back);
        if !cache.is_away() {
            let unplaced = filed.kept().and_then(Kept::unplaced);
            let begin = move || {
                // Where that fails the writes will say so.
                let placed = unplaced.map_or(Ok(()), |part| place(&file, part));
                tracing::trace!(?placed, from, bytes, "writing back begins");
                begin_writing_back(&file, from, bytes);
            };
            self.writing_back = Some(self.context.tasks.spawn(async move { cache.commit_aside(bytes, begin).await }));
            self.written_back = self.done;
        }
    }

    /// Everything received is written and hashed.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        while self.work.is_some() || !self.gathered.is_empty() {
            self.dispatch().await?;
            let work = wait_for(&mut self.work).await?;
            self.written(work).await?;
        }
        Ok(())
    }

    /// Keeps the verified blob. Its readers have all they want: what fails here, or hangs, costs the next client a fetch.
    pub(super) async fn commit(self) {
        let Self { permit, digest, store, received, context, .. } = self;
        let Store::File(filed) = store else { return };
        let Some(kept) = filed.into_kept() else { return };
        let cache = context.cache.clone();
        let commit = move || {
            if let Err(error) = context.cache.commit(kept, &digest, received) {
                tracing::error!(%digest, %error, "a blob was served but cannot be kept; it is fetched again when it is asked for");
            }
            // Only now may another look on the disk and find it there.
            drop(permit);
        };
        cache.commit_aside(received, commit).await;
    }
}

/// A temporary file. What is not kept is removed on the blocking pool: the disk may not answer.
pub(super) struct Filed {
    // There until it is kept or dropped.
    kept: Option<Kept>,
    metrics: Metrics,
    tasks: TaskTracker,
}

impl Filed {
    pub(super) fn new(kept: Kept, context: &Context) -> Self {
        Self { kept: Some(kept), metrics: context.metrics.clone(), tasks: context.tasks.clone() }
    }

    fn kept(&mut self) -> Option<&mut Kept> {
        self.kept.as_mut()
    }

    fn file(&self) -> Option<Arc<File>> {
        self.kept.as_ref().map(|kept| kept.file().clone())
    }

    fn into_kept(mut self) -> Option<Kept> {
        self.kept.take()
    }
}

impl Drop for Filed {
    fn drop(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        // It is still on its way out, for those who count what is under way.
        let guard = self.metrics.fill();
        self.tasks.spawn(dropped_aside((kept, guard)));
    }
}

/// A batch under way.
pub(super) type Working = Pin<Box<dyn Future<Output = Option<Work>> + Send>>;

/// Has a batch written to a file, and hashed: a large one at the same time, for readers and hash are to wait for each other no
/// more than they must; a small one afterwards by the same thread, for waking two costs more than the hash. A disk that does
/// not answer, which is to refuse it too, keeps nobody from knowing the hash.
async fn write(cache: Cache, batch: Batch, file: Arc<File>, offset: u64, hasher: Hasher, writer: Arc<Writer>) -> Option<Work> {
    let batch = Arc::new(batch);
    let hash = |hasher: Hasher| {
        let batch = batch.clone();
        spawn_blocking(move || batch.hash(hasher))
    };
    let (with, apart) = if batch.len() < APART_BYTES { (Some(hasher.clone()), None) } else { (None, Some(hash(hasher.clone()))) };
    let (waited, copy) = (Waited::default(), batch.clone());
    let decided = waited.clone();
    let write = move || (copy.write(&file, offset, &writer, &decided), with.map(|hasher| copy.hash(hasher)));
    let (written, hashed) = match cache.write_in_time(write).await {
        Ok(answer) => answer,
        Err(no) => (Err(no.into()), None),
    };
    let hasher = match (hashed, apart) {
        (Some(hasher), _) => hasher,
        (None, Some(hashing)) => hashing.await.ok()?,
        (None, None) => hash(hasher).await.ok()?,
    };
    let written = match written {
        Ok(()) => Written::Done(batch.len()),
        // Written after all, at the last moment: the readers have it from the file.
        Err(_) if !waited.settle() => Written::Done(batch.len()),
        Err(error) => Written::Refused { batch, error },
    };
    Some(Work { hasher, written })
}

/// Has a batch put into the window, and hashed.
async fn pass(batch: Batch, offset: u64, hasher: Hasher, writer: Arc<Writer>) -> Option<Work> {
    let work = spawn_blocking(move || {
        batch.pass(offset, &writer);
        Work { hasher: batch.hash(hasher), written: Written::Done(batch.len()) }
    });
    work.await.ok()
}

/// Waits for the batch that is being written; for ever when there is none. A panic in there is a fault of ours: the fill ends
/// with it, and its permit tells the readers.
pub(super) async fn wait_for(work: &mut Option<Working>) -> Result<Work, Failure> {
    let Some(working) = work else { return std::future::pending().await };
    let done = working.as_mut().await;
    *work = None;
    done.ok_or(Failure::Abandoned)
}
