//! From the bytes that came to the file or the window: one batch at a time, on the blocking pool; and from the verified file
//! to the cache.

use tokio::task::JoinHandle;

use super::batch::{Work, Written, joined};
use super::{Fill, Source, Store};
use crate::cache::Failure;

impl<S: Source> Fill<S> {
    /// Has the gathered bytes written, unless a batch is under way already.
    pub(super) async fn dispatch(&mut self) -> Result<(), Failure> {
        if self.work.is_some() || self.gathered.is_empty() {
            return Ok(());
        }
        // What came with a size has all of its place already.
        if let Store::File(kept) = &mut self.store
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
            Store::File(kept) => Some(kept.file().clone()),
            Store::Window(_) | Store::Unopened => None,
        };
        let (permit, offset) = (self.permit.clone(), self.done);
        self.work = Some(batch.start(target, offset, hasher, permit));
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
                self.done += batch.push_to(&self.permit);
                // Else the readers could not move on, and the window would stay full.
                self.permit.writer().arrived(self.done);
            }
        }
        Ok(())
    }

    /// Everything received is written and hashed.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        while self.work.is_some() || !self.gathered.is_empty() {
            self.dispatch().await?;
            let work = wait_for(&mut self.work).await;
            self.written(work).await?;
        }
        Ok(())
    }

    /// Keeps the verified blob. Its readers have all they want: what fails here costs the next client a fetch.
    pub(super) async fn commit(self) {
        let Self { permit, digest, store, received, context, .. } = self;
        let Store::File(kept) = store else { return };
        let commit = move || {
            if let Err(error) = context.cache.commit(kept, &digest, received) {
                tracing::error!(%digest, %error, "a blob was served but cannot be kept; it is fetched again when it is asked for");
            }
            // Only now may another look on the disk and find it there.
            drop(permit);
        };
        let _ = tokio::task::spawn_blocking(commit).await;
    }
}

/// Waits for the batch that is being written; for ever when there is none.
pub(super) async fn wait_for(work: &mut Option<JoinHandle<Work>>) -> Work {
    let Some(handle) = work else { return std::future::pending().await };
    let done = joined(handle).await;
    *work = None;
    done
}
