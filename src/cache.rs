//! What do we hold? The cache's face to the rest: blobs, manifests, tags and links, looked up and kept.
//!
//! Promises: what is found hashes to its digest; a blob that is not held has one writer, everybody else reads what that one
//! writes; what is held stays within `max_size`. Knows neither HTTP nor upstreams.
//!
//! The files are the truth (`folder`, `blobs`, `repos`), the index holds hints about them, memory holds copies (`hot`).

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::mapping;
use crate::observe::Metrics;
use crate::oci::{Digest, MANIFEST_BYTES_MAX, Manifest, MediaType, Repository, Tag};

mod admit;
mod aside;
mod audit;
mod blamed;
mod blobs;
mod boot;
mod catalog;
mod clock;
mod count;
mod disk;
mod evict;
mod flight;
mod folder;
mod growing;
mod hot;
mod index;
mod keep;
mod owed;
mod patrol;
mod pins;
mod pool;
mod quarantine;
mod repos;
mod space;
mod sweep;
#[cfg(test)]
mod tests;
mod withheld;
mod writeback;

pub(crate) use admit::{Kept, place};
pub(crate) use aside::dropped_aside;
pub use audit::{Audit, Finding, audit};
pub use catalog::{Listing, Wanted};
pub(crate) use disk::NoAnswer;
pub use flight::Permit;
pub(crate) use flight::{Coalesce, Joined};
pub use folder::FolderError;
pub(crate) use growing::Room;
pub(crate) use growing::Writer;
pub use growing::{Failure, Growing, Phase, Reader, TAIL};
pub use repos::{TagRecord, Visibility};

pub(crate) use blobs::BlobFile as Suspect;
use blobs::{BlobFile, Blobs};
use count::Count;
use disk::Disk;
use evict::Oldest;
use flight::{Flights, Role};
use folder::{Folder, Stamp};
pub(crate) use hot::Recent;
use hot::{Hot, KnownTag, SMALL_BLOB_BYTES_MAX};
use index::Index;
use owed::Owed;
use pins::{Pin, Pins};
pub(crate) use pool::Filling;
use quarantine::Quarantine;
use repos::Repos;
use space::Space;
use withheld::Withheld;
pub(crate) use writeback::begin_writing_back;
#[cfg(test)]
pub(crate) use writeback::tests::begun;

/// How far ahead of a read that waits for the disk the kernel is asked to read, in bytes.
const READ_AHEAD_BYTES: u64 = 4 << 20;

/// Files of fewer bytes are read: their pages cost more to map than their bytes to copy.
const MAPPED_BYTES_MIN: u64 = 1 << 20;

/// A part of the `[cache]` section.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data folder.
    pub dir: PathBuf,
    /// How much may be held.
    pub max_size: MaxSize,
    /// Bytes of manifests and small blobs held in memory.
    pub memory: u64,
    /// Bytes a second that the patrol reads; 0 switches it off.
    pub patrol: u64,
    /// How long a call on the disk may take.
    pub disk_patience: Duration,
    /// How long after the upstream last confirmed it a tag may still be served.
    pub tag_life: Duration,
}

/// `cache.max_size`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxSize {
    /// So many bytes.
    Bytes(u64),
    /// So much of the file system, 1 to 100.
    Percent(u8),
}

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    folder: Folder,
    disk: Disk,
    blobs: Blobs,
    repos: Repos,
    quarantine: Quarantine,
    withheld: Withheld,
    index: Index,
    hot: Hot,
    flights: Flights,
    owed: Owed,
    pins: Pins,
    space: Space,
    /// How long a tag can be of use after the upstream last confirmed it.
    tag_life: Duration,
    count: Count,
    evicting: tokio::sync::Mutex<()>,
    /// What is evicted next.
    oldest: Mutex<Oldest>,
    /// The index knows every file: the next start may believe it.
    complete: AtomicBool,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Where a blob stands.
#[derive(Debug)]
pub enum Found {
    /// Held, and small enough to be in memory.
    Memory(Bytes),
    /// Held.
    Whole(Blob),
    /// Arriving.
    Growing(Growing),
    /// Neither: the caller may fetch it, and nobody else may.
    Missing(Permit),
}

/// A held blob that is being read: it is not evicted meanwhile. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blob {
    file: Arc<BlobFile>,
    cache: Cache,
    _pin: Arc<Pin>,
}

/// A manifest that a repository holds.
#[derive(Debug, Clone)]
pub struct HeldManifest {
    /// Byte-exact, as the upstream sent them.
    pub bytes: Bytes,
    /// As this repository's upstream calls it.
    pub media_type: MediaType,
}

/// A tag that is held.
#[derive(Debug, Clone, Copy)]
pub struct HeldTag {
    /// Where it points.
    pub digest: Digest,
    /// How long ago the upstream confirmed it. Never negative: a clock that went back makes it `None`, unknown.
    pub age: Option<Duration>,
}

impl Blob {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.file.stamp.size
    }

    /// Reads at most `max` bytes at `offset` without waiting for the disk; `None` when [`Blob::read`] has to do it.
    pub fn read_now(&self, offset: u64, max: u64) -> Option<Bytes> {
        // An error is for the one that may wait: it does something about it.
        pool::read_now(&self.file.file, offset, max).ok().flatten()
    }

    /// At most `max` bytes at `offset` as the kernel has them, where it has all of them in memory and nobody cut the file. They are for a
    /// socket, and not to be looked at: see [`mapping`]. As long as they last the blob is not evicted.
    pub fn mapped_now(&self, offset: u64, max: u64) -> Option<Bytes> {
        let bytes = self.file.mapping()?.as_ref();
        let start = usize::try_from(offset).ok()?;
        let end = usize::try_from(offset.checked_add(max)?).ok()?.min(bytes.len());
        // A page after them is proof that the last of theirs is all there, and comes with the same question.
        let and_more = bytes.get(start..end + mapping::PAGE).is_some_and(mapping::is_resident);
        let can_be_sent = and_more || (mapping::is_resident(bytes.get(start..end)?) && self.file.is_uncut());
        can_be_sent.then(|| Bytes::from_owner(MappedSlice { blob: self.clone(), range: start..end }))
    }

    /// Whether its file is as long as it was, as far as the kernel knows without asking a disk.
    pub fn is_uncut(&self) -> bool {
        self.file.is_uncut()
    }

    /// What [`Blob::mapped_now`] gave cannot be read any more, and who was to have it does without. As with a read that fails, the blob is
    /// verified, and if need be fetched again, before it is served to anybody else. Waits for nothing.
    pub fn cannot_be_sent(&self, error: std::io::ErrorKind) {
        let (cache, digest) = (self.cache.clone(), self.file.digest);
        tracing::error!(%digest, %error, "a held blob cannot be read any more while it is sent, which breaks a connection; it is verified before it is served again. Check the disk");
        cache.0.hot.forget(&digest);
        // A disk that does not answer has said nothing bad of the blob; and at the stop nobody is there to be served.
        if error != std::io::ErrorKind::TimedOut && tokio::runtime::Handle::try_current().is_ok() {
            let (disk, tasks) = (cache.0.disk.clone(), cache.0.tasks.clone());
            tasks.spawn(async move { disk.ask_about(&digest, move || cache.distrust(&digest)).await });
        }
    }

    /// Reads at most `max` bytes at `offset`, waiting for the disk as long as it may take. A blob for which it does not answer
    /// is not looked for on it for a while.
    pub async fn read(self, offset: u64, max: u64) -> std::io::Result<Bytes> {
        let (cache, digest) = (self.cache.clone(), self.file.digest);
        let read = cache.0.disk.ask_about(&digest, move || self.read_blocking(offset, max)).await;
        read.unwrap_or_else(|no| {
            cache.0.hot.forget(&digest);
            Err(no.into())
        })
    }

    /// For the blocking pool only. The kernel is told to read ahead, so that what follows need not wait. A file that cannot be
    /// read is verified, and if need be fetched again, before it is served to anybody else.
    fn read_blocking(&self, offset: u64, max: u64) -> std::io::Result<Bytes> {
        let ahead = std::num::NonZeroU64::new(READ_AHEAD_BYTES);
        // Advice that is not taken costs nothing.
        let _ = rustix::fs::fadvise(&*self.file.file, offset, ahead, rustix::fs::Advice::WillNeed);
        pool::read_blocking(&self.file.file, offset, max).inspect_err(|error| {
            let digest = self.file.digest;
            tracing::error!(%digest, offset, %error, "a held blob cannot be read; it is verified before it is served again. Check the disk");
            self.cache.distrust(&digest);
        })
    }
}

/// A part of a blob's mapping.
struct MappedSlice {
    blob: Blob,
    /// Within it.
    range: std::ops::Range<usize>,
}

impl AsRef<[u8]> for MappedSlice {
    fn as_ref(&self) -> &[u8] {
        self.blob.file.mapping().map_or(&[], |mapping| &mapping.as_ref()[self.range.clone()])
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("space", &self.0.space).finish_non_exhaustive()
    }
}

impl Cache {
    /// Where a blob stands. Whoever gets [`Found::Missing`] is the only one to do so until its permit is gone.
    pub async fn blob(&self, digest: &Digest) -> Found {
        self.blob_from(digest, 0).await
    }

    /// The same for one who wants the bytes from there on, and can join a transfer that is past those before.
    pub async fn blob_from(&self, digest: &Digest, from: u64) -> Found {
        if let Some(found) = self.blob_at_hand(digest, from) {
            return found;
        }
        match Box::pin(self.look_up(digest, from)).await {
            Ok(found) => found,
            // The disk does not answer: what nobody knows to be here is fetched, and does without it.
            Err(NoAnswer) => match self.claim(digest, from, None) {
                Found::Missing(permit) => Found::Missing(permit.avoiding_disk()),
                other => other,
            },
        }
    }

    /// What can be said without touching the disk.
    fn blob_at_hand(&self, digest: &Digest, from: u64) -> Option<Found> {
        let inner = &*self.0;
        if let Some(bytes) = inner.hot.content(digest) {
            self.touch(digest);
            return Some(Found::Memory(bytes));
        }
        if let Some(file) = inner.hot.file(digest) {
            // One fstat tells whether somebody truncated, rewrote, replaced or removed the file since it was verified.
            if Stamp::of(&file.file).is_ok_and(|stamp| stamp == file.stamp) {
                self.touch(digest);
                return Some(Found::Whole(self.pinned(file)));
            }
            inner.hot.forget(digest);
        }
        inner.flights.get(digest, from).map(Found::Growing)
    }

    /// The permit is never with a call that may hang: those who join would wait for it.
    async fn look_up(&self, digest: &Digest, from: u64) -> Result<Found, NoAnswer> {
        let suspect = match self.open_in_time(digest, false).await? {
            Ok(found) => return Ok(found),
            Err(suspect) => suspect,
        };
        Ok(match self.claim(digest, from, suspect) {
            // A writer may have committed between our look at the disk and our claim.
            Found::Missing(permit) if !permit.has_suspect() => match self.open_in_time(digest, true).await {
                Ok(Ok(found)) => found,
                Ok(Err(None)) => Found::Missing(permit),
                Ok(Err(Some(suspect))) => Found::Missing(permit.with_suspect(suspect)),
                Err(NoAnswer) => Found::Missing(permit.avoiding_disk()),
            },
            other => other,
        })
    }

    /// Opens a blob whose file is as it was when it was verified; else the file that must be verified first, if any.
    fn open_trusted(&self, digest: &Digest) -> Result<Found, Option<BlobFile>> {
        let inner = &*self.0;
        let file = match inner.blobs.open(digest) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(None),
            Err(error) => {
                // Fail open: the upstream can still serve it.
                tracing::error!(%digest, %error, "a blob's file cannot be opened; it is fetched again");
                return Err(None);
            }
        };
        if file.stamp.size <= SMALL_BLOB_BYTES_MAX {
            return match self.load(&file) {
                Some(bytes) => Ok(Found::Memory(bytes)),
                None => Err(None),
            };
        }
        let verified = inner.index.get(digest).is_some_and(|entry| entry.stamp == file.stamp);
        if !verified {
            return Err(Some(file));
        }
        let file = Arc::new(if file.stamp.size < MAPPED_BYTES_MIN { file } else { file.mapped() });
        inner.hot.hold_file(&file);
        self.touch(digest);
        Ok(Found::Whole(self.pinned(file)))
    }

    /// Reads a small file whole and verifies it; one that does not hash to its name is set aside.
    fn load(&self, file: &BlobFile) -> Option<Bytes> {
        let inner = &*self.0;
        let bytes = match read_all(file) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(digest = %file.digest, %error, "a blob's file cannot be read; it is fetched again");
                return None;
            }
        };
        if !file.digest.is_of(&bytes) {
            self.set_aside(file);
            return None;
        }
        self.touch(&file.digest);
        Some(inner.hot.hold_content(&file.digest, &bytes))
    }

    fn claim(&self, digest: &Digest, from: u64, suspect: Option<BlobFile>) -> Found {
        match self.0.flights.join(digest, from) {
            Role::Reader(growing) => Found::Growing(growing),
            Role::Writer(permit) => Found::Missing(match suspect {
                Some(file) => permit.with_suspect(file),
                None => permit,
            }),
        }
    }

    fn pinned(&self, file: Arc<BlobFile>) -> Blob {
        Blob { _pin: Arc::new(self.0.pins.pin(&file.digest)), cache: self.clone(), file }
    }

    /// The size of a blob that is held or arriving, without reading or fetching it: of a file that changed since it was
    /// verified, only if somebody who was verified, a manifest, `named` the same size.
    pub async fn blob_size(&self, digest: &Digest, named: Option<u64>) -> Option<u64> {
        match self.blob_at_hand(digest, 0) {
            Some(Found::Memory(bytes)) => return Some(bytes.len() as u64),
            Some(Found::Whole(blob)) => return Some(blob.size()),
            Some(Found::Growing(growing)) => return growing.progress().size,
            _ => {}
        }
        let (cache, digest) = (self.clone(), *digest);
        let look = move || {
            let file = cache.0.blobs.open(&digest).ok().flatten()?;
            let size = file.stamp.size;
            let verified = || cache.0.index.get(&digest).is_some_and(|entry| entry.stamp == file.stamp);
            // A small one costs less to read than to be in doubt about.
            let small = || size <= SMALL_BLOB_BYTES_MAX && cache.load(&file).is_some();
            (named == Some(size) || verified() || small()).then_some(size)
        };
        self.look(look).await
    }

    /// A manifest of a repository, by digest.
    pub async fn manifest(&self, repository: &Repository, digest: &Digest) -> Option<HeldManifest> {
        let inner = &*self.0;
        let held = if let (Some(bytes), Some(media_type)) = (inner.hot.content(digest), inner.hot.manifest(repository, digest)) {
            self.touch(digest);
            HeldManifest { bytes, media_type }
        } else {
            let (cache, repository, digest) = (self.clone(), repository.clone(), *digest);
            self.look(move || cache.load_manifest(&repository, &digest)).await?
        };
        self.keep_if_owed(repository, digest, &held);
        Some(held)
    }

    fn load_manifest(&self, repository: &Repository, digest: &Digest) -> Option<HeldManifest> {
        let inner = &*self.0;
        let media_type = match inner.hot.manifest(repository, digest) {
            Some(media_type) => media_type,
            None => inner.repos.manifest(repository, digest).unwrap_or_else(|error| {
                tracing::error!(%repository, %digest, %error, "a manifest's link cannot be read; it is fetched again");
                None
            })?,
        };
        let bytes = self.load_small(digest)?;
        inner.hot.hold_manifest(repository, digest, &media_type);
        Some(HeldManifest { bytes, media_type })
    }

    /// A held content of at most the size of a manifest, verified.
    fn load_small(&self, digest: &Digest) -> Option<Bytes> {
        if let Some(bytes) = self.0.hot.content(digest) {
            return Some(bytes);
        }
        let file = self.0.blobs.open(digest).ok().flatten()?;
        if file.stamp.size > MANIFEST_BYTES_MAX as u64 {
            return None;
        }
        self.load(&file)
    }

    /// A tag, as it was last known.
    pub async fn tag(&self, repository: &Repository, tag: &Tag) -> Option<HeldTag> {
        let known = if let Some(known) = self.0.hot.tag(repository, tag) {
            known
        } else {
            let (cache, repository, tag) = (self.clone(), repository.clone(), tag.clone());
            self.look(move || cache.load_tag(&repository, &tag)).await?
        };
        let age = match known.checked {
            Some(checked) => Some(checked.elapsed()),
            None => known.record.checked.elapsed().ok(),
        };
        Some(HeldTag { digest: known.record.digest, age })
    }

    fn load_tag(&self, repository: &Repository, tag: &Tag) -> Option<KnownTag> {
        let record = self.0.repos.tag(repository, tag).unwrap_or_else(|error| {
            tracing::error!(%repository, %tag, %error, "a tag's file cannot be read; the upstream is asked again");
            None
        })?;
        let known = KnownTag { record, checked: None };
        self.0.hot.hold_tag(repository, tag, Some(known));
        Some(known)
    }

    /// The tags of a repository that are held, in lexical order.
    pub async fn tags(&self, repository: &Repository) -> Vec<Tag> {
        let (cache, repository) = (self.clone(), repository.clone());
        self.look(move || cache.0.repos.list_tags(&repository).ok()).await.unwrap_or_default()
    }

    /// Whether a repository shows a digest: a manifest of it names it, or it was linked by itself. Bytes that are here
    /// because of another repository are none of its business.
    pub async fn shows(&self, repository: &Repository, digest: &Digest) -> bool {
        self.shown_size(repository, digest).await.is_some()
    }

    /// The size that the manifests of a repository say a blob has. They may be wrong: it decides nothing by itself.
    pub async fn named_size(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        self.shown_size(repository, digest).await.filter(|&size| size > 0)
    }

    async fn shown_size(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        let (cache, digest) = (self.clone(), *digest);
        if let Some(links) = self.0.hot.links(repository) {
            return keep::shown_size(&links, &digest);
        }
        let repository = repository.clone();
        self.look(move || keep::shown_size(&cache.links(&repository), &digest)).await
    }

    /// Bytes held, and the limit.
    pub fn fullness(&self) -> (u64, u64) {
        (self.0.space.held(), self.0.space.max())
    }

    /// How many blobs are arriving.
    pub fn arriving(&self) -> usize {
        self.0.flights.len()
    }
}

fn read_all(file: &BlobFile) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; usize::try_from(file.stamp.size).unwrap_or(0)];
    file.file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn tag_known_now(digest: Digest) -> KnownTag {
    let record = TagRecord { digest, checked: std::time::SystemTime::now() };
    KnownTag { record, checked: Some(Instant::now()) }
}

/// What a manifest names, itself included, and the sizes that it says: what its repository shows by holding it.
fn named_by(digest: &Digest, manifest: &Manifest) -> Vec<(Digest, u64)> {
    let named = manifest.manifests.iter().chain(&manifest.blobs).map(|descriptor| (descriptor.digest, descriptor.size));
    std::iter::once((*digest, 0)).chain(named).collect()
}
