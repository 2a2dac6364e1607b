//! Manifests on their way to the disk, and those that it did not take: they are served from memory, and written when they are
//! served again.
//!
//! Without that one whose writing failed would stay in memory for as long as it is asked for, and be gone after a restart.
//! Promises: a memory of bounded size; no request waits for the disk; a manifest is written once at a time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::admit::{Kept, NotStored};
use super::aside::Aside;
use super::disk::Call;
use super::{Cache, HeldManifest};
use crate::oci::{Digest, MediaType, Repository};

/// Manifests that are remembered so at the most, a few hundred bytes each: more than fit into the memory they are served from.
const OWED_MAX: usize = 10_000;

/// The pause between two tries to write the same one: a disk that is full is not asked for every client that comes.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

type Key = (Repository, Digest);

/// The manifests that the disk did not take, and when it last did not.
#[derive(Default)]
pub(super) struct Owed(Mutex<HashMap<Key, Instant>>);

impl Owed {
    /// The disk did not take it. Of too many the oldest is forgotten.
    fn note(&self, key: Key) {
        let mut owed = self.lock();
        if owed.len() >= OWED_MAX
            && !owed.contains_key(&key)
            && let Some(oldest) = owed.iter().min_by_key(|(_, tried)| **tried).map(|(key, _)| key.clone())
        {
            owed.remove(&oldest);
        }
        owed.insert(key, Instant::now());
    }

    /// Whether it is time to write it: true for one caller, who notes it again if that fails.
    fn take_due(&self, repository: &Repository, digest: &Digest) -> bool {
        let mut owed = self.lock();
        if owed.is_empty() {
            return false;
        }
        let key = (repository.clone(), *digest);
        let is_due = owed.get(&key).is_some_and(|tried| tried.elapsed() >= AGAIN_AFTER);
        if is_due {
            owed.remove(&key);
        }
        is_due
    }

    // Held for a map operation only.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Keeps a verified manifest for a repository on disk. A disk that fails costs only the keeping, until it is served again.
    pub(crate) async fn keep_manifest(&self, repository: &Repository, digest: &Digest, media_type: &MediaType, bytes: Bytes) {
        if let Err(error) = self.write_manifest(repository, digest, media_type, bytes).await {
            tracing::error!(%repository, %digest, %error, "a manifest cannot be stored; it is served from memory");
        }
    }

    /// A manifest is served: if the disk did not take it before, that is tried again, behind the answer.
    pub(super) fn keep_if_owed(&self, repository: &Repository, digest: &Digest, held: &HeldManifest) {
        if self.0.disk.is_away() || !self.0.owed.take_due(repository, digest) {
            return;
        }
        let (cache, repository, digest, held) = (self.clone(), repository.clone(), *digest, held.clone());
        let on_its_way = self.0.metrics.fill();
        self.0.tasks.spawn(async move {
            let _on_its_way = on_its_way;
            // That it fails again was said the first time.
            if cache.write_manifest(&repository, &digest, &held.media_type, held.bytes).await.is_ok() {
                tracing::info!(%repository, %digest, "a manifest that could not be stored is now");
            }
        });
    }

    async fn write_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_type: &MediaType,
        bytes: Bytes,
    ) -> Result<(), NotStored> {
        let kept = Aside::new(self.admit(bytes.len() as u64).await);
        let (cache, owner, of, media_type) = (self.clone(), repository.clone(), *digest, media_type.clone());
        let write = move || cache.store_manifest(kept.take().unwrap_or(Err(NotStored::NoRoom)), &owner, &of, &media_type, &bytes);
        let written = self.0.disk.ask(Call::Write, write).await.unwrap_or_else(|no| Err(no.into()));
        written.inspect_err(|_| self.0.owed.note((repository.clone(), *digest)))
    }

    pub(super) fn store_manifest(
        &self,
        kept: Result<Kept, NotStored>,
        repository: &Repository,
        digest: &Digest,
        media_type: &MediaType,
        bytes: &[u8],
    ) -> Result<(), NotStored> {
        use std::os::unix::fs::FileExt;
        // Another repository may have brought it already.
        if self.0.blobs.open(digest)?.is_none() {
            let kept = kept?;
            kept.file().write_all_at(bytes, 0)?;
            self.commit(kept, digest, bytes.len() as u64)?;
        }
        self.0.repos.set_manifest(repository, digest, media_type)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Name, Registry};

    fn key(n: usize) -> Key {
        let name = Name::parse("library/debian").expect("valid");
        (Repository { registry: Registry::docker_hub(), name }, Digest::sha256_of(&n.to_le_bytes()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_owed_is_written_by_one_and_not_in_haste() {
        let (owed, (repository, digest)) = (Owed::default(), key(0));
        assert!(!owed.take_due(&repository, &digest));
        owed.note(key(0));
        assert!(!owed.take_due(&repository, &digest));
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(!owed.take_due(&repository, &key(1).1), "another");
        assert!(owed.take_due(&repository, &digest));
        assert!(!owed.take_due(&repository, &digest), "somebody is at it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded_and_the_oldest_goes() {
        let owed = Owed::default();
        owed.note(key(0));
        tokio::time::advance(AGAIN_AFTER).await;
        (1..=OWED_MAX).for_each(|n| owed.note(key(n)));
        tokio::time::advance(AGAIN_AFTER).await;
        assert_eq!(owed.lock().len(), OWED_MAX);
        let (repository, first) = key(0);
        assert!(!owed.take_due(&repository, &first) && owed.take_due(&repository, &key(1).1));
    }
}
