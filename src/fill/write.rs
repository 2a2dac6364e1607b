//! From the bytes that came to the file or the window: one batch at a time, on the blocking pool; and from the verified file
//! to the cache.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio_util::task::TaskTracker;

use super::batch::{Batch, Waited, Work, Written};
use super::{Context, Fill, Source, Store};
use crate::cache::{Cache, Failure, Kept, Writer, dropped_aside};
use crate::observe::Metrics;
use crate::oci::Hasher;

impl<S: Source> Fill<S> {
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
        let batch = std::mem::take(&mut self.gathered);
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
            Written::Done(bytes) => self.done += bytes,
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

/// Has a batch written to a file, and hashed meanwhile: readers wait for neither more than they must, and a disk that does not
/// answer, which is to refuse it too, keeps nobody from knowing the hash.
async fn write(cache: Cache, batch: Batch, file: Arc<File>, offset: u64, hasher: Hasher, writer: Arc<Writer>) -> Option<Work> {
    let batch = Arc::new(batch);
    let copy = batch.clone();
    let hashing = spawn_blocking(move || copy.hash(hasher));
    let (waited, copy) = (Waited::default(), batch.clone());
    let decided = waited.clone();
    let written = cache.write_in_time(move || copy.write(&file, offset, &writer, &decided)).await;
    let written = match written.map_err(io::Error::from) {
        Ok(Ok(())) => Written::Done(batch.len()),
        // Written after all, at the last moment: the readers have it from the file.
        Err(_) if !waited.settle() => Written::Done(batch.len()),
        Ok(Err(error)) | Err(error) => Written::Refused { batch, error },
    };
    Some(Work { hasher: hashing.await.ok()?, written })
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
