//! What is held in memory: manifests and small blobs, open files, tags and links. The only file that says `moka`.
//!
//! Nothing here is truth: each entry is a copy of something on the disk, verified when it was loaded, or an upstream's
//! word that is believed for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use moka::ops::compute::Op;
use tokio::time::Instant;

use super::blobs::BlobFile;
use super::repos::TagRecord;
use crate::oci::{Digest, MediaType, Repository, Tag};

/// Blobs up to this many bytes are served from memory: configs and the many tiny layers.
pub(crate) const SMALL_BLOB_BYTES_MAX: u64 = 64 << 10;

/// Files kept open: well under the usual soft limit of 1024 descriptors, which connections need too.
const OPEN_FILES_MAX: u64 = 256;

/// Tags and links in memory, by number: about 200 bytes each.
const RECORDS_MAX: u64 = 100_000;

/// Digests that all link sets together may have in memory: about 80 bytes each.
const LINKS_MAX: u64 = 500_000;

type Cache<K, V> = moka::sync::Cache<K, V, RandomState>;

/// A tag as this process knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownTag {
    /// Where it points, and when that was certain by the wall clock.
    pub(crate) record: TagRecord,
    /// The same moment by the monotonic clock, if it was in this process's time: nobody sets that one.
    pub(crate) checked: Option<Instant>,
}

/// The digests that a repository shows, each with the size that a manifest says it has; 0 when none says so.
pub(crate) type Links = Arc<Mutex<HashMap<Digest, u64>>>;

/// The memory part of the cache.
pub(crate) struct Hot {
    contents: Cache<Digest, Bytes>,
    files: Cache<Digest, Arc<BlobFile>>,
    tags: Cache<(Repository, Tag), KnownTag>,
    manifests: Cache<(Repository, Digest), MediaType>,
    links: Cache<Repository, Links>,
}

impl Hot {
    /// Room for so many bytes of contents.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let hasher = RandomState::default;
        // An entry costs its key and moka's own bookkeeping besides its bytes.
        let weigh = |_: &Digest, bytes: &Bytes| u32::try_from(bytes.len() + 256).unwrap_or(u32::MAX);
        let weigh_links = |_: &Repository, links: &Links| {
            let links = links.lock().unwrap_or_else(PoisonError::into_inner);
            u32::try_from(links.len() + 8).unwrap_or(u32::MAX)
        };
        Self {
            contents: moka::sync::Cache::builder().weigher(weigh).max_capacity(bytes_max).build_with_hasher(hasher()),
            // Idle descriptors are closed, so that a blob removed by hand frees its space.
            files: moka::sync::Cache::builder()
                .max_capacity(OPEN_FILES_MAX)
                .time_to_idle(Duration::from_secs(300))
                .build_with_hasher(hasher()),
            tags: moka::sync::Cache::builder().max_capacity(RECORDS_MAX).build_with_hasher(hasher()),
            manifests: moka::sync::Cache::builder().max_capacity(RECORDS_MAX).build_with_hasher(hasher()),
            links: moka::sync::Cache::builder().weigher(weigh_links).max_capacity(LINKS_MAX).build_with_hasher(hasher()),
        }
    }

    /// A manifest or small blob.
    pub(crate) fn content(&self, digest: &Digest) -> Option<Bytes> {
        self.contents.get(digest)
    }

    /// Holds a verified manifest or small blob. The bytes are copied: a slice would keep the whole it was cut from.
    pub(crate) fn hold_content(&self, digest: &Digest, bytes: &[u8]) -> Bytes {
        let bytes = Bytes::copy_from_slice(bytes);
        self.contents.insert(*digest, bytes.clone());
        bytes
    }

    /// The open file of a verified blob.
    pub(crate) fn file(&self, digest: &Digest) -> Option<Arc<BlobFile>> {
        self.files.get(digest)
    }

    /// Keeps the file of a verified blob open.
    pub(crate) fn hold_file(&self, file: &Arc<BlobFile>) {
        self.files.insert(file.digest, file.clone());
    }

    /// Forgets a blob: its file and its content.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.files.invalidate(digest);
        self.contents.invalidate(digest);
    }

    /// Closes the file of a blob; its content, which was verified when it was loaded, stays.
    pub(crate) fn close(&self, digest: &Digest) {
        self.files.invalidate(digest);
    }

    /// A tag.
    pub(crate) fn tag(&self, repository: &Repository, tag: &Tag) -> Option<KnownTag> {
        self.tags.get(&(repository.clone(), tag.clone()))
    }

    /// Holds a tag, or forgets it.
    pub(crate) fn hold_tag(&self, repository: &Repository, tag: &Tag, known: Option<KnownTag>) {
        let key = (repository.clone(), tag.clone());
        match known {
            Some(known) => self.tags.insert(key, known),
            None => self.tags.invalidate(&key),
        }
    }

    /// The media type of a manifest of a repository.
    pub(crate) fn manifest(&self, repository: &Repository, digest: &Digest) -> Option<MediaType> {
        self.manifests.get(&(repository.clone(), *digest))
    }

    /// Holds the media type of a manifest.
    pub(crate) fn hold_manifest(&self, repository: &Repository, digest: &Digest, media_type: &MediaType) {
        self.manifests.insert((repository.clone(), *digest), media_type.clone());
    }

    /// The link of a manifest or blob of a repository is gone.
    pub(crate) fn unlink(&self, repository: &Repository, digest: &Digest) {
        self.manifests.invalidate(&(repository.clone(), *digest));
        if let Some(links) = self.links.get(repository) {
            links.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        }
    }

    /// What a repository shows, if that is in memory.
    pub(crate) fn links(&self, repository: &Repository) -> Option<Links> {
        self.links.get(repository)
    }

    /// What a repository shows; `load` runs once for all who ask at a time, so that nobody adds to a copy that is lost.
    pub(crate) fn links_or(&self, repository: &Repository, load: impl FnOnce() -> HashMap<Digest, u64>) -> Links {
        self.links.get_with(repository.clone(), || Arc::new(Mutex::new(load())))
    }

    /// Weighs what a repository shows again, after it grew.
    pub(crate) fn links_grew(&self, repository: &Repository, links: &Links) {
        self.links.entry_by_ref(repository).and_compute_with(|entry| match entry {
            Some(entry) if Arc::ptr_eq(entry.value(), links) => Op::Put(links.clone()),
            _ => Op::Nop,
        });
    }
}

/// Something that is remembered for a while.
pub(crate) struct Recent<K, V> {
    // moka has a clock of its own, and uses it to tidy up; what counts is the one that ages tags too.
    cache: Cache<K, (Instant, V)>,
    ttl: Duration,
}

impl<K: std::hash::Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static> Recent<K, V> {
    /// Remembers so many for so long.
    pub(crate) fn new(entries_max: u64, ttl: Duration) -> Self {
        let cache = moka::sync::Cache::builder().max_capacity(entries_max).time_to_live(ttl).build_with_hasher(RandomState::default());
        Self { cache, ttl }
    }

    /// What is remembered.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.cache.get(key).and_then(|entry| self.if_recent(entry))
    }

    /// Remembers.
    pub(crate) fn put(&self, key: K, value: V) {
        self.cache.insert(key, (Instant::now(), value));
    }

    /// What is remembered, and forgets it.
    pub(crate) fn take(&self, key: &K) -> Option<V> {
        self.cache.remove(key).and_then(|entry| self.if_recent(entry))
    }

    fn if_recent(&self, (since, value): (Instant, V)) -> Option<V> {
        (since.elapsed() < self.ttl).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_stay_within_their_bytes() {
        let hot = Hot::new(100_000);
        for n in 0_u32..100 {
            let bytes = vec![0; 9_000];
            hot.hold_content(&Digest::sha256_of(&n.to_le_bytes()), &bytes);
        }
        hot.contents.run_pending_tasks();
        assert!(hot.contents.weighted_size() <= 100_000);
        assert!(hot.contents.entry_count() > 0);
    }
}
