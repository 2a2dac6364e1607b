//! A blob that is arriving: one writer, any number of readers, who follow it from any offset.
//!
//! The writer (a `fill`) appends to a file and says how far; every client, the first included, reads from that file. So a
//! slow client slows only itself, a leaving one stops nothing, and a range is served as soon as its bytes are there.
//!
//! Promises: a reader gets no byte beyond what the writer released, and the writer releases the last [`TAIL`] bytes only
//! when it has verified the whole; a writer that vanishes is a failure, never an end.
//!
//! A blob that cannot be stored (it is larger than the cache, the disk is full or broken) goes on through a *window* in
//! memory: its readers are then served from there, the writer waits for the slowest of them up to a limit, and whoever
//! falls behind the window is cut off and may come again with a Range.

use std::any::Any;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::aside::drop_aside;
use super::blamed::Blamed;
use super::disk::{Call, Disk};
use super::pool;
use crate::oci::{Digest, Registry};

mod failure;
#[cfg(test)]
mod model;
mod window;

pub(crate) use window::Room;
use window::Window;

pub use failure::Failure;

/// The end of a blob that is held back until the whole is verified, in bytes. Every client takes a body that ends short
/// of its Content-Length as broken, so a wrong blob is never handed over as whole.
pub const TAIL: u64 = 64 << 10;

/// How far a blob has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Where in its life it is.
    pub phase: Phase,
    /// Its size in bytes, once the upstream has said one.
    pub size: Option<u64>,
    /// Bytes that readers may have, from the start.
    pub ready: u64,
}

/// Where in its life a growing blob is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The upstream has not answered yet.
    Opening,
    /// Bytes arrive.
    Flowing,
    /// All bytes are here and verified.
    Whole,
    /// It will not be whole.
    Failed(Failure),
}

/// A blob that is arriving, for its readers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Growing(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    digest: Digest,
    origin: OnceLock<Registry>,
    progress: watch::Sender<Progress>,
    file: OnceLock<Arc<File>>,
    /// The disk takes what is written and does not give it back.
    unreadable: AtomicBool,
    /// What is read is no transfer, but a file that is held and being verified.
    held: AtomicBool,
    blamed: Blamed,
    disk: Disk,
    window: Mutex<Window>,
    /// Readers of a window tell the writer that they moved on.
    moved: Notify,
}

/// The writer's side; exactly one exists. Dropping it before [`Writer::finish`] fails the blob.
#[derive(Debug)]
pub(crate) struct Writer(Arc<Shared>);

/// A new blob, as its writer and its readers see it.
#[cfg(test)]
pub(crate) fn growing(digest: Digest) -> (Writer, Growing) {
    growing_on(digest, &Blamed::default(), &Disk::default())
}

/// As `growing`, on a disk that has failed these before.
pub(crate) fn growing_on(digest: Digest, blamed: &Blamed, disk: &Disk) -> (Writer, Growing) {
    let progress = watch::Sender::new(Progress { phase: Phase::Opening, size: None, ready: 0 });
    let shared = Arc::new(Shared {
        digest,
        origin: OnceLock::new(),
        progress,
        file: OnceLock::new(),
        unreadable: AtomicBool::new(false),
        held: AtomicBool::new(false),
        blamed: blamed.clone(),
        disk: disk.clone(),
        window: Mutex::default(),
        moved: Notify::new(),
    });
    (Writer(shared.clone()), Growing(shared))
}

impl Growing {
    /// Whose content.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The registry that all of its bytes come from: known once it is [opened](Self::opened), if they come from one.
    pub fn origin(&self) -> Option<&Registry> {
        self.0.origin.get()
    }

    /// Notes where its bytes come from.
    pub fn comes_from(&self, registry: &Registry) {
        let _ = self.0.origin.set(registry.clone());
    }

    /// How far it is now.
    pub fn progress(&self) -> Progress {
        self.0.progress.borrow().clone()
    }

    /// Waits for the upstream's answer: the size, where it said one.
    pub async fn opened(&self) -> Result<Option<u64>, Failure> {
        self.wait(|progress| !matches!(progress.phase, Phase::Opening)).await.map(|progress| progress.size)
    }

    /// Waits until the size is known, which for an answer without a length is the end of the blob.
    pub async fn sized(&self) -> Result<u64, Failure> {
        let progress = self.wait(|p| p.size.is_some() || matches!(p.phase, Phase::Whole)).await?;
        Ok(progress.size.unwrap_or(progress.ready))
    }

    /// Waits until the blob is whole, or failed.
    pub async fn whole(&self) -> Result<u64, Failure> {
        self.wait(|progress| matches!(progress.phase, Phase::Whole)).await.map(|progress| progress.ready)
    }

    async fn wait(&self, until: impl Fn(&Progress) -> bool) -> Result<Progress, Failure> {
        let mut receiver = self.0.progress.subscribe();
        let seen = receiver.wait_for(|p| matches!(p.phase, Phase::Failed(_)) || until(p)).await;
        // The sender lives in what `self` holds, so the channel cannot be closed.
        let progress = seen.map_err(|_| Failure::Abandoned)?.clone();
        match progress.phase {
            Phase::Failed(failure) => Err(failure),
            _ => Ok(progress),
        }
    }

    /// Whether this is the same transfer as that.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A reader of `[start, end)`; `end` `None` is the end of the blob. Fails when the blob goes through a window that
    /// has moved on past `start`.
    pub fn reader(&self, start: u64, end: Option<u64>) -> Result<Reader, Failure> {
        let cursor = Arc::new(AtomicU64::new(start));
        let mut window = self.0.window();
        if window.from.is_some_and(|from| window.start > from && start < window.start) {
            return Err(Failure::Behind);
        }
        if window.readers.len().is_power_of_two() {
            // Ranged clients come and go by the thousand: forget those who left, now and then.
            window.readers.retain(|reader| reader.strong_count() > 0);
        }
        window.readers.push(Arc::downgrade(&cursor));
        drop(window);
        // A writer may wait for somebody to want its bytes at all.
        self.0.moved.notify_one();
        Ok(Reader { progress: self.0.progress.subscribe(), shared: self.0.clone(), cursor, position: start, end })
    }

    /// Whether it goes to the disk; what does not is gone when it has been read.
    pub fn is_stored(&self) -> bool {
        self.0.window().from.is_none()
    }

    /// Whether this is a held blob that is only verified again, and no upstream is asked for it.
    pub(crate) fn is_held(&self) -> bool {
        self.0.held.load(Ordering::Acquire)
    }

    /// Whether a reader that starts at `start` can still be served: of a window that has moved on, what nobody could have had
    /// yet, for that is forgotten by nobody. Of a file that cannot be read, nothing.
    pub(crate) fn serves_from(&self, start: u64) -> bool {
        if self.0.unreadable.load(Ordering::Acquire) {
            return false;
        }
        let ready = self.0.progress.borrow().ready;
        let window = self.0.window();
        window.from.is_none_or(|from| window.start == from || start >= ready)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The end of a file without a name is work for the disk.
        if let Some(file) = self.file.take() {
            drop_aside(file);
        }
    }
}

impl Shared {
    /// A poisoned lock only says that another thread panicked; the window is changed in single steps.
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's way through a growing blob.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    cursor: Arc<AtomicU64>,
    position: u64,
    end: Option<u64>,
}

/// What a reader finds at its position.
enum Step {
    Bytes(Bytes),
    File(Arc<File>, u64),
    End,
    Wait,
}

impl Reader {
    /// The next bytes, as soon as there are any; `None` at the end of the range, which for an open range is the verified
    /// end of the blob. Cancel-safe: nothing is taken before it is returned.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        self.next_upto(|| u64::MAX).await
    }

    /// As [`Reader::next`], and no more bytes than `max` says at the moment of reading.
    pub async fn next_upto(&mut self, max: impl Fn() -> u64) -> Result<Option<Bytes>, Failure> {
        loop {
            let bytes = match self.step(max())? {
                Step::Bytes(bytes) => bytes,
                Step::End => return Ok(None),
                Step::Wait => {
                    self.progress.changed().await.map_err(|_| Failure::Abandoned)?;
                    continue;
                }
                Step::File(file, max) => self.read(file, max).await?,
            };
            self.position += bytes.len() as u64;
            // Who has all of its range needs nothing of the window any more, however slowly the client takes it.
            let done = self.end.is_some_and(|end| self.position >= end);
            self.cursor.store(if done { u64::MAX } else { self.position }, Ordering::Release);
            self.shared.moved.notify_one();
            return Ok(Some(bytes));
        }
    }

    fn step(&mut self, max: u64) -> Result<Step, Failure> {
        let progress = self.progress.borrow_and_update();
        let whole = matches!(progress.phase, Phase::Whole);
        if whole && self.end.is_some_and(|end| end > progress.ready) && self.position >= progress.ready {
            // The size that its client was told, or its range was cut from, was a lie: no clean end.
            return Err(Failure::Corrupt);
        }
        if self.end.is_some_and(|end| self.position >= end) || whole && self.position >= progress.ready {
            return Ok(Step::End);
        }
        if self.position >= progress.ready {
            return match &progress.phase {
                Phase::Failed(failure) => Err(failure.clone()),
                _ => Ok(Step::Wait),
            };
        }
        let upto = self.end.unwrap_or(u64::MAX).min(progress.ready).min(self.position.saturating_add(max));
        drop(progress);
        let window = self.shared.window();
        match window.from {
            Some(from) if self.position >= from => window.read(self.position, upto).map(Step::Bytes),
            Some(from) => self.in_file(upto.min(from)),
            None => self.in_file(upto),
        }
    }

    fn in_file(&self, upto: u64) -> Result<Step, Failure> {
        let file = self.shared.file.get().ok_or(Failure::Abandoned)?;
        Ok(Step::File(file.clone(), upto - self.position))
    }

    async fn read(&self, file: Arc<File>, max: u64) -> Result<Bytes, Failure> {
        let offset = self.position;
        // An error is for the one that may wait: it may have better luck, and says why not.
        let bytes = if let Ok(Some(bytes)) = pool::read_now(&file, offset, max) {
            bytes
        } else {
            let read = self.shared.disk.ask(Call::Look, move || pool::read_blocking(&file, offset, max)).await;
            read.unwrap_or_else(|no| Err(no.into())).map_err(|error| {
                tracing::error!(digest = %self.shared.digest, offset, %error, "a blob that is arriving cannot be read from the disk");
                self.shared.unreadable.store(true, Ordering::Release);
                self.shared.blamed.add(self.shared.digest);
                Failure::Disk(error.kind())
            })?
        };
        if bytes.is_empty() {
            // The writer said that they are there: somebody truncated the file.
            return Err(Failure::Disk(io::ErrorKind::UnexpectedEof));
        }
        Ok(bytes)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A writer that waits for this reader need not any more.
        self.cursor.store(u64::MAX, Ordering::Release);
        self.shared.moved.notify_one();
    }
}

impl Writer {
    /// Tells readers whether the blob comes from a held file: for before it is opened.
    pub(crate) fn set_held(&self, held: bool) {
        self.0.held.store(held, Ordering::Release);
    }

    /// The readers' side of the same blob.
    pub(crate) fn growing(&self) -> Growing {
        Growing(self.0.clone())
    }

    /// The upstream answered: so many bytes will come, into this file; without a file they go through a window.
    pub(crate) fn open(&self, size: Option<u64>, file: Option<Arc<File>>) {
        match file {
            Some(file) => drop(self.0.file.set(file)),
            None => self.0.window().leave_file(0),
        }
        self.0.progress.send_modify(|progress| {
            progress.size = size;
            progress.phase = Phase::Flowing;
        });
    }

    /// So many bytes from the start are readable; the tail of them is held back.
    pub(crate) fn arrived(&self, upto: u64) {
        self.0.progress.send_if_modified(|progress| {
            let released = match progress.size {
                Some(size) => upto.min(size.saturating_sub(TAIL)),
                None => upto.saturating_sub(TAIL),
            };
            let moved = released > progress.ready;
            progress.ready = progress.ready.max(released);
            moved
        });
    }

    /// Whether any byte has been released to readers.
    pub(crate) fn has_released(&self) -> bool {
        self.0.progress.borrow().ready > 0
    }

    /// From `offset` on bytes cannot be stored: they go through the window, for whose memory `place` stands.
    pub(crate) fn leave_file(&self, offset: u64, place: Arc<dyn Any + Send + Sync>) {
        let mut window = self.0.window();
        window.leave_file(offset);
        window.place = Some(place);
    }

    /// Puts bytes into the window, for readers to have when [`Writer::arrived`] says so.
    pub(crate) fn push(&self, bytes: Bytes) {
        let mut window = self.0.window();
        window.len += bytes.len() as u64;
        window.chunks.push_back(bytes);
    }

    /// Forgets what every reader has had, and says whether there is room in a window of so many bytes. The held-back tail
    /// counts as needed: nobody could have had it.
    pub(crate) fn room(&self, max: u64) -> Room {
        let mut window = self.0.window();
        let Some(slowest) = window.slowest() else { return Room::Unwanted };
        window.forget_before(slowest);
        if window.len < max { Room::Free } else { Room::Full }
    }

    /// Where the slowest reader of the window is.
    pub(crate) fn slowest(&self) -> Option<u64> {
        self.0.window().slowest()
    }

    /// Forgets the older half of a window of so many bytes although a reader still needs it; says whether that was anything.
    pub(crate) fn cut_slowest(&self, max: u64) -> bool {
        let ready = self.0.progress.borrow().ready;
        let mut window = self.0.window();
        // What nobody could have had yet is not forgotten: its readers wait for it, and would wait for ever.
        let position = (window.start + max / 2).min(ready);
        let before = window.start;
        window.forget_before(position);
        window.start > before
    }

    /// Waits until a reader took bytes or left.
    pub(crate) async fn reader_moved(&self) {
        self.0.moved.notified().await;
    }

    /// All bytes are here and hash to the digest: readers may have the rest.
    pub(crate) fn finish(&self, size: u64) {
        self.0.progress.send_modify(|progress| {
            *progress = Progress { phase: Phase::Whole, size: Some(size), ready: size };
        });
    }

    /// The blob will not be whole.
    pub(crate) fn fail(&self, failure: Failure) {
        self.0.progress.send_if_modified(|progress| {
            let open = matches!(progress.phase, Phase::Opening | Phase::Flowing);
            if open {
                progress.phase = Phase::Failed(failure);
            }
            open
        });
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.fail(Failure::Abandoned);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const WINDOW_BYTES_MAX: u64 = 4 << 20;

    fn digest() -> Digest {
        Digest::sha256_of(b"")
    }

    async fn rest(reader: &mut Reader) -> Result<u64, Failure> {
        let mut total = 0;
        while let Some(bytes) = reader.next().await? {
            total += bytes.len() as u64;
        }
        Ok(total)
    }

    #[tokio::test]
    async fn the_tail_is_held_back_until_it_is_verified() {
        let (writer, growing) = growing(digest());
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let size = TAIL + 10;
        file.set_len(size).expect("grows");
        writer.open(Some(size), Some(file));
        writer.arrived(size);
        let mut reader = growing.reader(0, None).expect("a reader");
        assert_eq!(reader.next().await.expect("bytes").expect("some").len(), 10);
        assert!(futures_util::poll!(std::pin::pin!(reader.next())).is_pending());
        writer.finish(size);
        assert_eq!(rest(&mut reader).await.expect("whole"), TAIL);
    }

    #[tokio::test]
    async fn a_vanished_writer_is_a_failure_for_all_who_wait() {
        let (writer, growing) = growing(digest());
        writer.open(Some(100), Some(Arc::new(tempfile::tempfile().expect("a file"))));
        let mut reader = growing.reader(0, None).expect("a reader");
        drop(writer);
        assert!(matches!(reader.next().await, Err(Failure::Abandoned)));
        assert!(matches!(growing.whole().await, Err(Failure::Abandoned)));
    }

    #[tokio::test]
    async fn a_range_of_a_growing_blob_ends_where_it_should() {
        let (writer, growing) = growing(digest());
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        file.write_all_at(&[7; 100], 0).expect("writes");
        writer.open(Some(TAIL * 2), Some(file));
        let mut reader = growing.reader(10, Some(20)).expect("a reader");
        assert!(futures_util::poll!(std::pin::pin!(reader.next())).is_pending());
        writer.arrived(100);
        assert_eq!(rest(&mut reader).await.expect("the range"), 10);
    }

    #[tokio::test]
    async fn a_window_serves_its_readers_and_waits_for_the_slowest() {
        let (writer, growing) = growing(digest());
        let mut fast = growing.reader(0, None).expect("a reader");
        let mut slow = growing.reader(0, None).expect("a reader");
        writer.open(Some(100 << 20), None);
        let chunk = 1 << 20;
        for _ in 0..WINDOW_BYTES_MAX / chunk {
            assert_eq!(writer.room(WINDOW_BYTES_MAX), Room::Free);
            writer.push(Bytes::from(vec![1; usize::try_from(chunk).expect("small")]));
        }
        writer.arrived(WINDOW_BYTES_MAX);
        for _ in 0..2 {
            fast.next().await.expect("bytes");
        }
        assert_eq!(writer.room(WINDOW_BYTES_MAX), Room::Full);
        slow.next().await.expect("bytes");
        assert_eq!(writer.room(WINDOW_BYTES_MAX), Room::Free);
        assert!(matches!(growing.reader(0, None), Err(Failure::Behind)), "the first chunk is gone");
        assert!(!growing.serves_from(0) && growing.serves_from(WINDOW_BYTES_MAX));
        writer.cut_slowest(WINDOW_BYTES_MAX);
        assert!(matches!(slow.next().await, Err(Failure::Behind)));
        drop((fast, slow));
        assert_eq!(writer.room(WINDOW_BYTES_MAX), Room::Unwanted);
    }

    #[tokio::test]
    async fn what_is_in_the_file_and_what_is_in_the_window_read_as_one() {
        let (writer, growing) = growing(digest());
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        file.write_all_at(b"abc", 0).expect("writes");
        let mut reader = growing.reader(0, None).expect("a reader");
        writer.open(Some(6), Some(file));
        writer.leave_file(3, Arc::new(()));
        writer.push(Bytes::from_static(b"def"));
        writer.finish(6);
        assert_eq!(reader.next().await.expect("bytes").expect("some"), "abc");
        assert_eq!(reader.next().await.expect("bytes").expect("some"), "def");
        assert!(reader.next().await.expect("ends").is_none());
    }
}
