//! One upstream body → one verified file, read by many while it grows.
//!
//! This is the heart of millpond, and it is written so that each of these holds by construction:
//!
//! * **The fill belongs to the server.** It runs in a task of its own, which holds the [`Permit`]: the one right to fetch
//!   that digest. No client's coming, going or slowness reaches it; all of them, the first included, read what it wrote.
//! * **A fill that ends in any way tells its readers.** The permit's destructor fails those who wait and frees the digest,
//!   whatever became of the task: returned, cancelled, panicked.
//! * **Nothing unverified is whole.** Readers get bytes as they arrive, except for the last 64 KiB, which are released when
//!   length and hash agree with the digest that was *asked for*; the file moves into `blobs/` only after that.
//! * **Bytes are paid once.** A body that is cut, silent or short is resumed from where it stopped, as long as there is
//!   progress. An upstream that answers with the whole again has its first bytes read and dropped.
//! * **The disk is optional.** What cannot be stored, from the start or from some byte on, goes through a window in memory.
//!
//! Bytes arrive on the runtime's workers; writing and hashing are done on the blocking pool, a batch at a time. While one
//! batch is written the next one gathers, so batches are as small as the upstream is slow (the first byte goes out at
//! once) and as large as it is fast. The order within a batch is write, release, hash: readers do not wait for the hash,
//! the tail does.
//!
//! Knows the cache, and takes any stream of bytes: neither upstreams nor HTTP.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, Failure, Growing, Kept, Permit};
use crate::observe::Metrics;
use crate::oci::{Digest, Hasher};

mod batch;
#[cfg(test)]
mod tests;
mod verify;
mod window;

use batch::{Batch, Work, Written};

/// Limits of a fill.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a body may be silent before it is given up and resumed: longer than any healthy pause, shorter than the
    /// patience of a client.
    pub silence: Duration,
    /// How often in a row a body is resumed without a single new byte.
    pub tries: u32,
    /// The pause before the second try; it doubles from there.
    pub pause: Duration,
    /// How long a reader may keep a full window waiting before it is cut off.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { silence: Duration::from_secs(15), tries: 6, pause: Duration::from_millis(200), stall: Duration::from_secs(15) }
    }
}

/// The largest blob that is believed, in bytes, 1 PiB: no sum of sizes overflows, and every offset fits a file.
const BLOB_BYTES_MAX: u64 = 1 << 50;

/// A stream of bytes from wherever the source has them.
pub type BoxBody = Pin<Box<dyn Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>> + Send>>;

/// Where the bytes of one blob come from.
pub trait Source: Send + 'static {
    /// Asks for the bytes from `offset` on. The source retries what is worth retrying before it answers.
    fn open(&mut self, offset: u64) -> impl Future<Output = Result<Opened, Failure>> + Send;
}

/// A source's answer.
pub struct Opened {
    /// The size of the whole blob, if the source says one.
    pub size: Option<u64>,
    /// Where the body really starts: the offset, or before it.
    pub start: u64,
    /// The bytes.
    pub body: BoxBody,
}

/// What a fill needs besides its permit and its source. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Where the blob goes.
    pub cache: Cache,
    /// What is counted.
    pub metrics: Metrics,
    /// Who owns the task.
    pub tasks: TaskTracker,
    /// Gives every fill up: the server stops.
    pub stop: CancellationToken,
    /// How long and how often.
    pub limits: Limits,
}

/// Starts the fill that the permit allows, and hands out the readers' side.
pub fn start(permit: Permit, source: impl Source, context: Context) -> Growing {
    let growing = permit.growing();
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        let guard = context.metrics.fill();
        Fill::new(permit, source, context).run().await;
        drop(guard);
    });
    growing
}

struct Fill<S> {
    // Shared with the batch that is being written, which releases what it wrote.
    permit: Arc<Permit>,
    digest: Digest,
    source: S,
    context: Context,
    store: Store,
    size: Option<u64>,
    /// Bytes received, in order, from the start.
    received: u64,
    /// Bytes that are in the file, or that went through the window.
    done: u64,
    /// Bytes of the next answer that were received before.
    skip: u64,
    gathered: Batch,
    hasher: Option<Hasher>,
    work: Option<JoinHandle<Work>>,
}

/// Where the bytes go.
enum Store {
    /// The upstream has not answered yet.
    Unopened,
    /// Into a temporary file.
    File(Kept),
    /// Through the window: they are not kept.
    Window,
}

/// How a body ended.
enum Ended {
    /// Everything that was announced is here.
    Whole,
    /// It broke off, fell silent, or sent more than it said.
    Broken(&'static str),
}

impl<S: Source> Fill<S> {
    fn new(permit: Permit, source: S, context: Context) -> Self {
        let digest = permit.digest();
        Self {
            permit: Arc::new(permit),
            digest,
            source,
            context,
            store: Store::Unopened,
            size: None,
            received: 0,
            done: 0,
            skip: 0,
            gathered: Batch::default(),
            hasher: Some(digest.hasher()),
            work: None,
        }
    }

    async fn run(mut self) {
        let (digest, stop) = (self.digest, self.context.stop.clone());
        match stop.run_until_cancelled(self.fetch()).await.unwrap_or(Err(Failure::Abandoned)) {
            // What is whole is kept, even when the server stops meanwhile.
            Ok(()) => self.commit().await,
            Err(failure) => {
                tracing::debug!(%digest, %failure, received = self.received, "a fill failed");
                self.permit.writer().fail(failure);
            }
        }
    }

    /// From the permit to a verified blob whose readers may have all of it.
    async fn fetch(&mut self) -> Result<(), Failure> {
        if self.verify_suspect().await? {
            return Ok(());
        }
        let body = self.open().await?;
        self.take_all(body).await
    }

    /// Everything that the answer promised, verified; begun anew once, if it was wrong and nobody has had any of it.
    async fn take_all(&mut self, mut body: BoxBody) -> Result<(), Failure> {
        let mut restarted = false;
        loop {
            self.receive(body).await?;
            self.settle().await?;
            let hash = self.hasher.take().map(Hasher::finish);
            if hash == Some(self.digest) {
                self.permit.writer().finish(self.received);
                return Ok(());
            }
            self.context.metrics.verify_failed();
            tracing::error!(digest = %self.digest, bytes = self.received, "an upstream sent a blob that does not hash to its digest; it is not kept, and nobody gets the whole of it");
            if restarted || self.permit.writer().has_released() || matches!(self.store, Store::Window) {
                return Err(Failure::Corrupt);
            }
            // Nobody has had a byte of it: one more try may be luckier.
            restarted = true;
            (self.received, self.done, self.skip) = (0, 0, 0);
            self.hasher = Some(self.digest.hasher());
            body = self.reopen().await?;
        }
    }

    /// Asks the source, finds a place for the answer, and tells the readers that it has begun.
    async fn open(&mut self) -> Result<BoxBody, Failure> {
        let opened = self.source.open(0).await?;
        if opened.start != 0 || opened.size.is_some_and(|size| size > BLOB_BYTES_MAX) {
            return Err(Failure::Corrupt);
        }
        self.size = opened.size;
        let writer = self.permit.writer();
        match self.context.cache.admit(opened.size).await {
            Ok(kept) => {
                writer.open(opened.size, Some(kept.file().clone()));
                self.store = Store::File(kept);
            }
            Err(reason) => {
                tracing::warn!(digest = %self.digest, size = opened.size, %reason, "a blob is passed through without being stored");
                writer.open(opened.size, None);
                self.store = Store::Window;
            }
        }
        Ok(opened.body)
    }

    /// Receives until everything is here, resuming as often as there is progress.
    async fn receive(&mut self, mut body: BoxBody) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            let before = self.received;
            let Ended::Broken(why) = self.drain(body).await? else { return Ok(()) };
            tries = if self.received > before { 1 } else { tries + 1 };
            tracing::warn!(digest = %self.digest, received = self.received, size = self.size, why, tries, "an upstream's body broke off; it is resumed");
            body = loop {
                if tries > self.context.limits.tries {
                    return Err(Failure::Unavailable);
                }
                if tries > 1 {
                    tokio::time::sleep(self.context.limits.pause * 2_u32.pow(tries - 2)).await;
                }
                match self.reopen().await {
                    Ok(body) => break body,
                    Err(definite @ (Failure::NotFound | Failure::Denied | Failure::RateLimited(_))) => return Err(definite),
                    Err(_) => tries += 1,
                }
            };
        }
    }

    /// Asks the source for the rest.
    async fn reopen(&mut self) -> Result<BoxBody, Failure> {
        let opened = self.source.open(self.received).await?;
        let another_size = opened.size.is_some() && self.size.is_some() && opened.size != self.size;
        if opened.start > self.received || another_size {
            return Err(Failure::Corrupt);
        }
        self.skip = self.received - opened.start;
        Ok(opened.body)
    }

    /// Takes one body to its end, writing as it comes.
    async fn drain(&mut self, mut body: BoxBody) -> Result<Ended, Failure> {
        let silence = self.context.limits.silence;
        let mut deadline = Instant::now() + silence;
        loop {
            let busy = Instant::now();
            self.dispatch().await?;
            // Time in which we did not listen is not the upstream's silence: room was made, or waited for.
            deadline += busy.elapsed();
            let hungry = self.gathered.is_hungry();
            if !hungry {
                deadline = Instant::now() + silence;
            }
            tokio::select! {
                // In this order: bytes that are here count, however late we come to look.
                biased;
                work = wait_for(&mut self.work) => {
                    let busy = Instant::now();
                    self.written(work).await?;
                    deadline += busy.elapsed();
                }
                frame = body.frame(), if hungry => match frame {
                    Some(Ok(frame)) => {
                        deadline = Instant::now() + silence;
                        if let Ok(bytes) = frame.into_data() && !self.take(bytes) {
                            return Ok(Ended::Broken("more bytes than announced"));
                        }
                    }
                    Some(Err(error)) => {
                        tracing::debug!(digest = %self.digest, %error, "body error");
                        return Ok(if self.size == Some(self.received) { Ended::Whole } else { Ended::Broken("connection lost") });
                    }
                    None if self.size.is_none_or(|size| size == self.received) => return Ok(Ended::Whole),
                    None => return Ok(Ended::Broken("fewer bytes than announced")),
                },
                () = tokio::time::sleep_until(deadline), if hungry => return Ok(Ended::Broken("silence")),
            }
        }
    }

    /// Gathers bytes, without those that were received before; false when there are more than announced.
    fn take(&mut self, mut bytes: Bytes) -> bool {
        self.context.metrics.fetched(bytes.len() as u64);
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let _ = bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len()));
        if self.size.is_some_and(|size| self.received + bytes.len() as u64 > size) {
            return false;
        }
        self.received += bytes.len() as u64;
        if !bytes.is_empty() {
            self.gathered.push(bytes);
        }
        true
    }

    /// Has the gathered bytes written, unless a batch is under way already.
    async fn dispatch(&mut self) -> Result<(), Failure> {
        if self.work.is_some() || self.gathered.is_empty() {
            return Ok(());
        }
        if let Store::File(kept) = &mut self.store
            && self.size.is_none()
            && let Err(reason) = self.context.cache.admit_more(kept, self.received).await
        {
            tracing::warn!(digest = %self.digest, %reason, "a blob of unknown size outgrew its place; the rest is passed through");
            self.leave_file();
        }
        let batch = std::mem::take(&mut self.gathered);
        if matches!(self.store, Store::Window) {
            self.wait_for_room().await?;
        }
        // The hasher is with the batch only while there is one.
        let hasher = self.hasher.take().ok_or(Failure::Abandoned)?;
        let target = match &self.store {
            Store::File(kept) => Some(kept.file().clone()),
            Store::Window | Store::Unopened => None,
        };
        let (permit, offset) = (self.permit.clone(), self.done);
        self.work = Some(tokio::task::spawn_blocking(move || batch.work(target.as_deref(), offset, hasher, &permit)));
        Ok(())
    }

    /// A batch is done: on disk, in the window, or refused by the disk.
    async fn written(&mut self, work: Work) -> Result<(), Failure> {
        self.hasher = Some(work.hasher);
        match work.written {
            Written::Done(bytes) => self.done += bytes,
            Written::Refused { batch, error } => {
                tracing::error!(digest = %self.digest, %error, at = self.done, "the disk refuses a blob that is arriving; the rest is passed through without being stored");
                self.leave_file();
                self.wait_for_room().await?;
                self.done += batch.push_to(&self.permit);
                // Else the readers could not move on, and the window would stay full.
                self.permit.writer().arrived(self.done);
            }
        }
        Ok(())
    }

    fn leave_file(&mut self) {
        self.permit.writer().leave_file(self.done);
        // Removes the file's name; those who read its part have it open.
        self.store = Store::Window;
    }

    /// Everything received is written and hashed.
    async fn settle(&mut self) -> Result<(), Failure> {
        while self.work.is_some() || !self.gathered.is_empty() {
            self.dispatch().await?;
            let work = wait_for(&mut self.work).await;
            self.written(work).await?;
        }
        Ok(())
    }

    /// Keeps the verified blob. Its readers have all they want: what fails here costs the next client a fetch.
    async fn commit(self) {
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
async fn wait_for(work: &mut Option<JoinHandle<Work>>) -> Work {
    let Some(handle) = work else { return std::future::pending().await };
    let done = handle.await;
    *work = None;
    match done {
        Ok(done) => done,
        // A panic in there is a fault of ours: the fill ends with it, and its permit tells the readers.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => std::future::pending().await,
    }
}
