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
//! * **Bytes are paid once.** A body that is cut, silent, slow beyond reason or short is resumed from where it stopped, as
//!   long as there is progress (`resume`). An upstream that answers with the whole again has its first bytes read and dropped.
//! * **The disk is optional.** What cannot be stored, from the start or from some byte on, goes through a window in memory.
//!
//! Bytes arrive on the runtime's workers; writing and hashing are done on the blocking pool, a batch at a time. While one
//! batch is written the next one gathers, and there is a millisecond between two, so batches are as small as the upstream is
//! slow (the first byte goes out at once) and as large as it is fast. They gather in buffers that are used again and again: on
//! the way to the disk no memory is touched for the first time but the kernel's. Within a batch what is written is released, whether it is hashed yet or not: readers do
//! not wait for the hash, the tail does.
//!
//! Knows the cache, and takes any stream of bytes: neither upstreams nor HTTP.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, Failure, Growing, Permit};
use crate::observe::Metrics;
use crate::oci::{Digest, Hasher};

mod batch;
mod pace;
mod resume;
#[cfg(test)]
mod tests;
mod verify;
mod window;
mod write;

use batch::Batch;
use pace::Pace;
use window::Place;
pub use window::Windows;
use write::{Filed, Working};

/// Limits of a fill.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a body may be silent before it is given up and resumed: longer than any healthy pause, shorter than the
    /// patience of a client.
    pub silence: Duration,
    /// The fewest bytes a second that an upstream may send, on average over [`Limits::rate_over`]: a thousandth of what
    /// anybody calls a slow line, so that such a line is never cut, and a connection that only pretends to live is.
    pub rate: u64,
    /// Over how much time spent listening the rate is measured. Time in which the disk or a reader is waited for is not the
    /// upstream's.
    pub rate_over: Duration,
    /// How often in a row the rate may be too low, each time followed by a fresh connection, before the blob is given up:
    /// with a minute each, a client of an upstream that trickles for ever knows after three or four minutes.
    pub slow: u32,
    /// How often in a row a body is resumed without progress.
    pub tries: u32,
    /// How often in a row it is resumed although the upstream answered and then sent no new byte. Whoever announces more than
    /// there is would be asked in vain, and may send all of it again each time.
    pub dry: u32,
    /// New bytes that count as progress. With less a resumption is one of [`Limits::tries`]: an upstream that breaks off
    /// after every byte is not asked a million times.
    pub progress: u64,
    /// The pause before the second try; it doubles from there.
    pub pause: Duration,
    /// How long, without progress, a body that broke off waits in all for an upstream that limits requests (429). Two times
    /// the longest `Retry-After` that is obeyed.
    pub limited: Duration,
    /// How long a content is not asked for that came wrong twice in a row from everywhere; it doubles from there. Longer than
    /// the pauses in which clients try again by themselves, short for somebody who has just mended it.
    pub refuted: Duration,
    /// The longest that this grows to: one transfer in so much time is what a content that nobody mends costs its upstream.
    pub refuted_max: Duration,
    /// How long a reader may keep a full window waiting before it is cut off, and a blob that cannot be stored may wait for a
    /// window.
    pub stall: Duration,
    /// Bytes that all blobs together have in memory which cannot be stored: 16 of them at the least are under way at once.
    pub windows: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(15),
            rate: 1 << 10,
            rate_over: Duration::from_secs(60),
            slow: 3,
            tries: 6,
            dry: 2,
            progress: 16 << 10,
            pause: Duration::from_millis(200),
            limited: Duration::from_secs(120),
            refuted: Duration::from_secs(10),
            refuted_max: Duration::from_secs(300),
            stall: Duration::from_secs(15),
            windows: 128 << 20,
        }
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

    /// What it sent hashes to the digest. Nobody has the whole yet, and nobody finds it; that waits for this to return.
    fn verified(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// The size of the blob as somebody else says, who may be wrong: it decides nothing, but tells a lie from a cut.
    fn expected(&self) -> Option<u64> {
        None
    }

    /// What came from the place that answered last is no good: it is the last to be asked again. Says whether there is a
    /// place from which nothing wrong has come.
    fn blame(&mut self, _blame: Blame) -> bool {
        false
    }
}

/// What a place did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// It is silent, slow, or breaks off without a new byte.
    Stuck,
    /// What it sent is not the blob.
    Wrong,
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
    /// The memory of all fills that do not store.
    pub windows: Windows,
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
    /// As the upstream says, unless the source expects another: then nobody knows before the end.
    size: Option<u64>,
    expected: Option<u64>,
    pace: Pace,
    /// Bytes received, in order, from the start.
    received: u64,
    /// Bytes that are in the file, or that went through the window.
    done: u64,
    /// Of those, bytes that the kernel was told to put on the disk, and the task that tells it.
    written_back: u64,
    writing_back: Option<JoinHandle<()>>,
    /// Bytes of the next answer that were received before.
    skip: u64,
    gathered: Batch,
    /// When the last batch was.
    dispatched: Option<Instant>,
    hasher: Option<Hasher>,
    work: Option<Working>,
}

/// Where the bytes go.
enum Store {
    /// The upstream has not answered yet.
    Unopened,
    /// Into a temporary file.
    File(Filed),
    /// Through the window: they are not kept.
    Window(Arc<Place>),
}

impl<S: Source> Fill<S> {
    fn new(permit: Permit, source: S, context: Context) -> Self {
        let digest = permit.digest();
        let (expected, pace) = (source.expected(), Pace::new(&context.limits));
        Self {
            permit: Arc::new(permit),
            digest,
            source,
            context,
            store: Store::Unopened,
            size: None,
            expected,
            pace,
            received: 0,
            done: 0,
            written_back: 0,
            writing_back: None,
            skip: 0,
            gathered: Batch::default(),
            dispatched: None,
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

    /// Everything that the answer promised, verified; begun anew, if it was wrong and nobody has had any of it: once, and
    /// from each other place where it may be right.
    async fn take_all(&mut self, mut body: BoxBody) -> Result<(), Failure> {
        let mut restarted = false;
        loop {
            self.receive(body).await?;
            if self.is_verified() {
                self.source.verified().await;
                self.permit.writer().finish(self.received);
                return Ok(());
            }
            self.context.metrics.verify_failed();
            tracing::error!(digest = %self.digest, bytes = self.received, "an upstream sent a blob that does not hash to its digest; it is not kept, and nobody gets the whole of it");
            let elsewhere = self.source.blame(Blame::Wrong);
            let seen = self.permit.writer().has_released() || matches!(self.store, Store::Window(_));
            if seen || restarted && !elsewhere {
                return Err(Failure::Corrupt);
            }
            restarted = true;
            (self.received, self.done, self.written_back, self.skip) = (0, 0, 0, 0);
            self.hasher = Some(self.digest.hasher());
            body = self.reopen().await?;
        }
    }

    /// Whether what was written until now is the blob.
    fn is_verified(&self) -> bool {
        self.hasher.as_ref().is_some_and(|hasher| hasher.clone().finish() == self.digest)
    }

    /// Asks the source, finds a place for the answer, and tells the readers that it has begun.
    async fn open(&mut self) -> Result<BoxBody, Failure> {
        let mut opened = self.source.open(0).await?;
        if self.contradicts(&opened) {
            // A page in place of the blob, or half of it: that is known before anybody was told a size.
            self.source.blame(Blame::Wrong);
            opened = self.source.open(0).await.unwrap_or(opened);
        }
        if opened.start != 0 || opened.size.is_some_and(|size| size > BLOB_BYTES_MAX) {
            return Err(Failure::Corrupt);
        }
        // Of two that contradict each other neither is believed: the hash says where the end is.
        self.size = opened.size.filter(|_| !self.contradicts(&opened));
        let cache = &self.context.cache;
        let place = match (Cache::may_store(&self.permit), self.size) {
            (Err(reason), _) => Err(reason),
            (Ok(()), Some(size)) => cache.admit(size).await,
            (Ok(()), None) => cache.admit_unsized(self.expected).await,
        };
        match place {
            Ok(kept) => {
                self.permit.writer().open(self.size, Some(kept.file().clone()));
                self.store = Store::File(Filed::new(kept, &self.context));
            }
            Err(reason) => {
                tracing::warn!(digest = %self.digest, size = self.size, %reason, "a blob is passed through without being stored");
                self.leave_file().await?;
                self.permit.writer().open(self.size, None);
            }
        }
        Ok(opened.body)
    }

    fn contradicts(&self, opened: &Opened) -> bool {
        opened.size.is_some_and(|size| self.expected.is_some_and(|expected| expected != size))
    }

    /// Gathers bytes, without those that were received before and those beyond the end; says whether there may be more.
    fn take(&mut self, mut bytes: Bytes) -> bool {
        self.context.metrics.fetched(bytes.len() as u64);
        self.pace.heard(bytes.len() as u64);
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let _ = bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len()));
        let room = self.size.map_or(u64::MAX, |size| size - self.received);
        let beyond = bytes.len() as u64 > room;
        bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        self.received += bytes.len() as u64;
        match &self.store {
            Store::File(_) => self.gathered.copy(&bytes, self.received - bytes.len() as u64),
            Store::Window(_) | Store::Unopened if bytes.is_empty() => {}
            Store::Window(_) | Store::Unopened => self.gathered.push(bytes),
        }
        !beyond
    }
}
