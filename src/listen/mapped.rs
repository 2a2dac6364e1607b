//! Answers that are sent as the kernel has them: pieces of a mapped file, which cost no memory and which our code does not touch.
//!
//! A body learns from [`mapped_piece`] whether its connection takes them, and says with [`gives_mapped`] that it gives one, which it has just seen
//! to be in memory. After a first write until it was sent the connection's socket looks before every write whether what it is about to write is,
//! and has it brought there if not: a client may leave a piece lying for a minute, and the kernel may need its pages for something else meanwhile.
//! A worker never waits for a disk. Where the disk has them no more, or the file was cut, the connection breaks, and who gave them is told.
//!
//! Only a connection that hands its pieces to the kernel untouched may have them: HTTP/1 in cleartext, with vectored writes.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::mapping;

/// Bytes of a mapped piece: half of it costs a seventh more, twice or four times as much gains nothing.
const MAPPED_PIECE: u64 = 1 << 20;

/// Writes that wait for a disk at a time: threads that are lost when it does not answer.
const BRINGING_MAX: usize = 16;

/// How long the disk may take, and the wait for one of those threads with it; then the connection breaks. As for other reads.
const PATIENCE: Duration = Duration::from_secs(10);

static BRINGING: Semaphore = Semaphore::const_new(BRINGING_MAX);

thread_local! {
    /// As in `hand`: set before a body is polled.
    static PIECE: Cell<u64> = const { Cell::new(0) };
    static GIVES: Cell<Option<Arc<dyn Giver>>> = const { Cell::new(None) };
}

/// Who gives pieces of a mapping. Asked and told by a worker: nothing here is to wait.
pub trait Giver: Send + Sync {
    /// Whether the file is as long as it was: what is missing of a mapped page looks like zeros.
    fn is_uncut(&self) -> bool;

    /// A piece could not be sent because of this; the connection has broken.
    fn failed(&self, error: io::ErrorKind);
}

/// How many bytes of a mapping the body that is being polled may give at the most; 0 when it may give none.
pub fn mapped_piece() -> u64 {
    PIECE.get()
}

/// The body that is being polled gives bytes of a mapping now, which it has just seen to be in memory, in a file that is uncut.
pub fn gives_mapped(giver: Arc<dyn Giver>) {
    GIVES.set(Some(giver));
}

/// The mapped pieces of one connection that were given and not sent. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Mapped(Arc<Pieces>);

#[derive(Default)]
struct Pieces {
    /// Who gave each of them: one or two, as hyper queues them.
    givers: Mutex<VecDeque<Arc<dyn Giver>>>,
    /// The only one was given since a write was tried, and so in the same turn: it is still where it was seen.
    seen: AtomicBool,
    /// Why one of them cannot be sent. The connection breaks then.
    failed: OnceLock<io::ErrorKind>,
}

/// One of them.
pub(super) struct Given(Mapped);

impl Mapped {
    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.givers().is_empty()
    }

    /// Whether a write that is tried now has to look for them first.
    pub(super) fn look(&self) -> bool {
        !self.0.seen.swap(false, Ordering::Relaxed) && self.any()
    }

    /// An error where a file of theirs was cut while they lay there.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.givers().iter().all(|giver| giver.is_uncut()) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// One of them cannot be sent, and none is any more.
    pub(super) fn fail(&self, error: &io::Error) {
        let _ = self.0.failed.set(error.kind());
    }

    fn give(&self, giver: Arc<dyn Giver>) -> Given {
        let mut givers = self.givers();
        // What was given earlier may have lain there for long.
        self.0.seen.store(givers.is_empty(), Ordering::Relaxed);
        givers.push_back(giver);
        drop(givers);
        Given(self.clone())
    }

    fn givers(&self) -> MutexGuard<'_, VecDeque<Arc<dyn Giver>>> {
        self.0.givers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        // They are sent in the order in which they were given.
        let giver = self.0.givers().pop_front();
        // Which of them it was nobody knows.
        if let (Some(error), Some(giver)) = (self.0.0.failed.get(), giver) {
            giver.failed(*error);
        }
    }
}

/// Polls a body, which may give mapped pieces if its connection takes them; and whether it did.
pub(super) fn poll<T>(mapped: Option<&Mapped>, poll: impl FnOnce() -> T) -> (T, Option<Given>) {
    let Some(mapped) = mapped else { return (poll(), None) };
    PIECE.set(MAPPED_PIECE);
    let polled = poll();
    PIECE.set(0);
    (polled, GIVES.take().map(|giver| mapped.give(giver)))
}

/// Pages on their way into memory.
pub(super) type Bringing = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Brings into memory what is about to be written; nothing when it is there.
pub(super) fn bring(offered: &[IoSlice<'_>]) -> Option<Bringing> {
    let absent = offered.iter().find(|slice| !mapping::is_resident(slice)).map(|slice| mapping::absent(slice))?;
    Some(Box::pin(async move {
        let brought = tokio::time::timeout(PATIENCE, async {
            let place = BRINGING.acquire().await;
            let bring = move || {
                let brought = mapping::bring_in(absent);
                drop(place);
                brought
            };
            tokio::task::spawn_blocking(bring).await.map_err(io::Error::other)?
        });
        brought.await.unwrap_or_else(|late| Err(late.into()))
    }))
}
