//! Admission, commit, eviction: how a blob gets its place on the disk, and whose place that was.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Cache;
use super::disk::{Call, NoAnswer};
use super::evict::{Candidate, Look, OLDEST_MAX, Oldest};
use super::flight::Permit;
use super::folder::Temp;
use super::index::Entry;
use super::keep::now;
use super::space::{Ask, Promise};
use crate::oci::Digest;

/// How long a blob that is about to arrive waits for its place, while its client sees nothing: with an upstream that takes
/// long itself it must stay within the half minute that clients wait for an answer.
const ADMIT_DEADLINE: Duration = Duration::from_secs(10);

/// Blobs that are evicted in one go, at most: seconds of a slow disk, so that no call takes so long that the disk seems not to
/// answer.
const EVICT_STEP: usize = 256;

/// How often room is asked for again after eviction, when others take it meanwhile.
const ROOM_TRIES: usize = 4;

/// The part of the limit that eviction frees beyond what is needed, so that it does not run for each blob.
const EVICT_AHEAD_PART: u64 = 64;
const EVICT_AHEAD_MAX: u64 = 256 << 20;

/// How much is promised at a time to a blob whose size the upstream has not said, in bytes.
const UNSIZED_STEP: u64 = 16 << 20;

/// For a blob whose size nobody knows, other blobs are evicted up to this part of the limit: it may be endless. What goes
/// beyond is stored as long as there is room anyway.
const UNSIZED_EVICTS_PART: u64 = 4;

/// How much of a blob's place is taken on the disk before its first bytes are written. The rest of a large one takes the file system up to
/// 20 ms, for which no client is to wait.
const PLACED_FIRST: u64 = 16 << 20;

/// A place for a blob that is arriving.
#[derive(Debug)]
pub(crate) struct Kept {
    temp: Temp,
    promise: Promise,
    /// What is not taken yet of its place on the disk.
    unplaced: Option<Range<u64>>,
    /// How many bytes may be promised to it by evicting others.
    evicts_upto: u64,
}

/// Why a blob is not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStored {
    /// It is larger than the cache.
    #[error("it is larger than cache.max_size")]
    TooLarge,
    /// Everything held is being read, or the disk is full of other things.
    #[error("no room can be made for it")]
    NoRoom,
    /// What is held has not been counted yet.
    #[error("the cache is still counting what it holds")]
    Uncounted,
    /// The disk, or eviction.
    #[error("making room for it takes too long")]
    Slow,
    /// The disk does not answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// The disk took the last transfer of it, and did not give it back.
    #[error("the disk cannot be read")]
    Unreadable,
    /// The disk.
    #[error("the disk refuses it: {0}")]
    Disk(#[from] io::Error),
}

/// Takes the place of a part of a blob: a disk that is full says so early and not at nine tenths, and the blob gets few extents. Blocks.
pub(crate) fn place(file: &File, part: Range<u64>) -> io::Result<()> {
    if part.is_empty() {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, part.start, part.end - part.start) {
        Err(Errno::OPNOTSUPP) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Kept {
    /// The file to write.
    pub(crate) fn file(&self) -> &Arc<File> {
        self.temp.file()
    }

    /// What of its place on the disk is to be taken once it arrives, by [`place`]: said once.
    pub(crate) fn unplaced(&mut self) -> Option<Range<u64>> {
        self.unplaced.take()
    }

    #[cfg(test)]
    pub(crate) fn writing_to(self, file: Arc<File>) -> Self {
        Self { temp: self.temp.writing_to(file), ..self }
    }
}

impl Cache {
    /// Whether what this permit allows to fetch is to be stored at all.
    pub(crate) fn may_store(permit: &Permit) -> Result<(), NotStored> {
        if permit.avoids_disk() { Err(NotStored::Unreadable) } else { Ok(()) }
    }

    /// A place for a blob of so many bytes: evicts what it must. An error says that the blob is not to be stored.
    pub(crate) async fn admit(&self, size: u64) -> Result<Kept, NotStored> {
        self.in_time(self.make_place(Some(size), size, size)).await
    }

    /// A place for a blob that may have any size; `expected` is what somebody says who may be wrong. It is believed as far as
    /// eviction goes, so that for a blob that has no place anyway nothing is evicted, and for no blob more than it needs.
    pub(crate) async fn admit_unsized(&self, expected: Option<u64>) -> Result<Kept, NotStored> {
        let max = self.0.space.max();
        let share = max / UNSIZED_EVICTS_PART;
        let (first, evicts_upto) = expected.map_or((UNSIZED_STEP.min(share), share), |expected| (expected, expected));
        self.in_time(self.make_place(None, first, evicts_upto)).await
    }

    async fn in_time(&self, place: impl Future<Output = Result<Kept, NotStored>>) -> Result<Kept, NotStored> {
        tokio::time::timeout(ADMIT_DEADLINE, place).await.unwrap_or(Err(NotStored::Slow))
    }

    async fn make_place(&self, size: Option<u64>, first: u64, evicts_upto: u64) -> Result<Kept, NotStored> {
        let promise = self.room(first, true).await?;
        let cache = self.clone();
        let make = move || -> Result<Kept, NotStored> {
            let temp = cache.0.folder.temp()?;
            let size = size.unwrap_or(0);
            let first = size.min(PLACED_FIRST);
            place(temp.file(), 0..first)?;
            Ok(Kept { temp, promise, unplaced: Some(first..size).filter(|rest| !rest.is_empty()), evicts_upto })
        };
        self.0.disk.ask(Call::Write, make).await?
    }

    /// Makes sure that so many bytes of an unsized blob are promised.
    pub(crate) async fn admit_more(&self, kept: &mut Kept, upto: u64) -> Result<(), NotStored> {
        while kept.promise.bytes() < upto {
            let may_evict = kept.promise.bytes() < kept.evicts_upto;
            let step = UNSIZED_STEP.min(self.0.space.max() / UNSIZED_EVICTS_PART).max(1);
            kept.promise.join(self.room(step, may_evict).await?);
        }
        Ok(())
    }

    async fn room(&self, bytes: u64, may_evict: bool) -> Result<Promise, NotStored> {
        if self.0.index.take_lost() {
            self.0.space.set_uncounted();
            self.count_in_background(None);
        }
        if !self.0.space.counted().await {
            return Err(NotStored::Uncounted);
        }
        // One at a time: two who evict for themselves would evict twice as much.
        let (mut turn, mut tries) = (None, 0);
        while tries < ROOM_TRIES {
            let cache = self.clone();
            let evict = turn.is_some();
            let ask = move || match cache.0.space.ask(bytes) {
                Ask::Evict(short) if evict => {
                    let freed = cache.evict(short);
                    (cache.0.space.ask(bytes), freed, freed >= short)
                }
                other => (other, 0, false),
            };
            match self.0.disk.ask(Call::Write, ask).await {
                Ok((Ask::Given(promise), ..)) => return Ok(promise),
                Ok((Ask::TooLarge, ..)) => return Err(NotStored::TooLarge),
                Ok((Ask::Evict(_), ..)) if !may_evict => return Err(NotStored::NoRoom),
                Ok((Ask::Evict(_), ..)) if turn.is_none() => turn = Some(self.0.evicting.lock().await),
                Ok((Ask::Evict(_), 0, _)) => return Err(NotStored::NoRoom),
                // What was freed is taken by others, or is not free on the disk; a step of many is no try.
                Ok((Ask::Evict(_), _, all)) => tries += usize::from(all),
                Err(no) => return Err(no.into()),
            }
        }
        Err(NotStored::NoRoom)
    }

    /// Forgets what is held beyond the limit, which may have been lowered since the last run: in steps, each in its turn, as
    /// long as that frees anything. Blocks.
    pub(super) fn evict_excess(&self) {
        while !self.0.stop.is_cancelled() {
            let _turn = self.0.evicting.blocking_lock();
            let excess = self.0.space.excess();
            if excess == 0 || self.evict(excess) == 0 {
                return;
            }
        }
    }

    /// Forgets the least recently used blobs that nobody reads, one step at most; says how many bytes that freed. Blocks.
    fn evict(&self, short: u64) -> u64 {
        let inner = &*self.0;
        let mut oldest = inner.oldest.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = (inner.space.max() / EVICT_AHEAD_PART).min(EVICT_AHEAD_MAX);
        let mut freed = self.evict_from(&mut oldest, short + ahead);
        if freed == 0 {
            *oldest = self.look_for_oldest();
            freed = self.evict_from(&mut oldest, short + ahead);
        }
        inner.metrics.evicted(freed);
        tracing::debug!(short, freed, "evicted");
        freed
    }

    /// A look at everything.
    fn look_for_oldest(&self) -> Oldest {
        let mut look = Look::new(OLDEST_MAX);
        self.0.index.each(|digest, entry| {
            if let Some(&begin) = digest.as_bytes().first_chunk() {
                look.offer(Candidate { used: entry.used, begin });
            }
        });
        look.done()
    }

    fn evict_from(&self, oldest: &mut Oldest, need: u64) -> u64 {
        let (inner, mut freed, mut removed) = (&*self.0, 0, 0);
        while freed < need
            && removed < EVICT_STEP
            && let Some(Candidate { used, begin }) = oldest.next()
        {
            // What was used since the look is not among the oldest any more.
            let Some((digest, entry)) = inner.index.first(begin).filter(|(_, entry)| entry.used <= used) else { continue };
            if inner.pins.holds(&digest) || inner.flights.contains(&digest) {
                continue;
            }
            // The order matters: a file without an entry would not be counted, an entry without a file is only a miss.
            inner.hot.forget(&digest);
            if let Err(error) = inner.blobs.remove(&digest) {
                tracing::error!(%digest, %error, "a blob cannot be evicted; another is");
                continue;
            }
            self.forget(&digest);
            (freed, removed) = (freed + entry.size, removed + 1);
        }
        freed
    }

    /// Puts a verified blob in place. Blocks.
    pub(crate) fn commit(&self, kept: Kept, digest: &Digest, size: u64) -> io::Result<()> {
        let inner = &*self.0;
        inner.withheld.settle(digest)?;
        let len = kept.file().metadata()?.len();
        if len < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if len > size {
            // What an upstream sent before it was asked anew may have been longer.
            kept.file().set_len(size)?;
        }
        let stamp = inner.blobs.commit(kept.temp, digest)?;
        let promise = kept.promise;
        self.enter(digest, Entry { size, used: now(), stamp }, || promise.keep(size));
        Ok(())
    }
}
