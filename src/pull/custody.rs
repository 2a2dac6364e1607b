//! What was got with a login and is held here: which repository may show it.
//!
//! Blobs are held once for all repositories, and a manifest may name any digest. So a name alone shows only what anybody
//! may have. A content that was got with a login, where nobody without one was seen to get it, is *withheld* before anybody
//! can find it; from then on a repository shows it only when its registry
//!
//! 1. *claims* it there: it said yes when it was asked for the digest in this very repository, and
//! 2. is an *owner*: it once delivered every byte of it, verified. For a registry may claim whatever digest it heard of, and
//!    one that does not have the content must not get it, for its clients, out of another's.
//!
//! A registry that has yet to prove that it has the content is asked for all of it once; the bytes are hashed and dropped.
//! What somebody without a login may have after all is withheld no more.

use std::time::Duration;

use http_body_util::BodyExt;

use super::private::What;
use super::{Asker, Error, Pull};
use crate::cache::{Failure, Found, Visibility};
use crate::observe::Kind;
use crate::oci::{Digest, Repository};
use crate::upstream::{Private, Sight, Upstream};

/// How long what is fetched waits to hear whether anybody may have it; if that takes longer it is withheld.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);

/// How long a client waits while a registry proves that it has a content: within the half minute that clients wait for an
/// answer. The proof goes on behind it.
const PROOF_PATIENCE: Duration = Duration::from_secs(25);

/// To whom belongs what a registry delivers now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Custody {
    /// To anybody.
    Open,
    /// To those who may see the repository: others were refused, or were told that it does not exist.
    Closed,
    /// It could not be asked: as if it were closed, but the repository stays what it was.
    Unsure,
}

/// Whether a repository may show what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may.
    Fine,
    /// Its registry must be asked whether the digest is there.
    Unclaimed,
    /// Its registry must show that it has the content.
    Unproven,
}

impl Pull {
    /// To whom belongs what is fetched now. One anonymous question a repository, every few minutes at the most, and none
    /// where millpond has no login.
    pub(super) async fn custody(&self, upstream: &Upstream, repository: &Repository, what: What) -> Custody {
        if !upstream.has_credentials() || self.0.memory.public.get(repository).is_some() {
            return Custody::Open;
        }
        if self.0.memory.closed.get(repository).is_some() {
            return Custody::Closed;
        }
        if self.0.memory.unsure.get(repository).is_some() {
            return Custody::Unsure;
        }
        match tokio::time::timeout(LOOK_PATIENCE, self.look(upstream, repository, what)).await {
            Ok(Some(Sight::Shown)) => Custody::Open,
            Ok(Some(Sight::Refused | Sight::Absent)) => Custody::Closed,
            Ok(None) | Err(_) => {
                self.0.memory.unsure.put(repository.clone(), ());
                Custody::Unsure
            }
        }
    }

    /// Comes before a content can be found. `verified` says that every byte of it was delivered. True when the repository's
    /// links to it may be stored.
    pub(super) async fn take_into_custody(
        &self,
        repository: &Repository,
        digest: &Digest,
        custody: Custody,
        verified: bool,
    ) -> Result<bool, Failure> {
        if custody == Custody::Open {
            if verified {
                self.0.cache.release(digest).await;
            }
            return Ok(true);
        }
        if !self.0.cache.withhold(digest, verified.then_some(&repository.registry)).await {
            return Err(Failure::Disk(std::io::ErrorKind::StorageFull));
        }
        let was_public = custody == Custody::Unsure && self.0.cache.visibility(repository).await == Some(Visibility::Public);
        let may_store = was_public || self.close(repository).await;
        self.0.memory.claimed.put((repository.clone(), *digest), ());
        Ok(may_store)
    }

    /// Nobody without a login sees this repository; false when that cannot be written.
    pub(super) async fn close(&self, repository: &Repository) -> bool {
        if self.0.memory.closed.get(repository).is_some() {
            return true;
        }
        self.0.memory.public.take(repository);
        let noted = self.0.cache.note_visibility(repository, Visibility::Private).await;
        if noted {
            self.0.memory.closed.put(repository.clone(), ());
        }
        noted
    }

    /// Whether a repository may show what was found; `found` is `None` where only its size is told.
    pub(super) async fn standing(&self, repository: &Repository, digest: &Digest, found: Option<&Found>) -> Standing {
        let claimed = self.0.memory.claimed.get(&(repository.clone(), *digest)).is_some();
        let shown = claimed || self.0.cache.shows(repository, digest).await;
        let by_name = if shown { Standing::Fine } else { Standing::Unclaimed };
        if !self.0.cache.withholds_anything() {
            return by_name;
        }
        let memory = &self.0.memory;
        let key = (repository.clone(), *digest);
        if memory.cleared.get(&key).is_some() {
            return Standing::Fine;
        }
        let origin = match found {
            Some(Found::Growing(growing)) => growing.origin(),
            _ => None,
        };
        let Some(owners) = Box::pin(self.0.cache.withheld(digest)).await else {
            // Once anybody could have it, it is no secret any more. Of what is still arriving that is not known.
            if shown && matches!(found, Some(Found::Memory(_) | Found::Whole(_))) {
                memory.cleared.put(key, ());
            }
            return by_name;
        };
        let is_owner = owners.contains(&repository.registry);
        if !is_owner && origin != Some(&repository.registry) {
            return Standing::Unproven;
        }
        if memory.claimed.get(&key).is_none() && !Box::pin(self.0.cache.claims(repository, digest)).await {
            return Standing::Unclaimed;
        }
        if is_owner {
            memory.cleared.put(key, ());
        }
        Standing::Fine
    }

    /// Whether a repository is asked for a digest as anybody would: a login may see more than the client does who asks.
    pub(super) async fn asks_as_anyone(&self, asker: Asker, upstream: &Upstream, repository: &Repository, digest: &Digest) -> bool {
        let as_anyone = !asker.authenticated || self.0.memory.public.get(repository).is_some();
        let differs = upstream.has_credentials() && upstream.private() == Private::Authenticated;
        as_anyone && differs && self.0.cache.withheld(digest).await.is_some()
    }

    /// The upstream said yes when it was asked for a digest in a repository.
    pub(super) async fn note_claim(&self, upstream: &Upstream, repository: &Repository, digest: &Digest, as_anyone: bool) {
        self.0.memory.claimed.put((repository.clone(), *digest), ());
        let owners = self.0.cache.withheld(digest).await;
        self.0.cache.link_blob(repository, digest, owners.is_some()).await;
        let anybody = as_anyone || !upstream.has_credentials();
        if anybody && owners.is_some_and(|owners| owners.contains(&repository.registry)) {
            self.0.cache.release(digest).await;
        }
    }

    /// Has a registry prove that it has what is held. One transfer for all who ask, and it goes on without them.
    pub(super) async fn prove(&self, upstream: &Upstream, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        if self.offline() {
            return Err(Error::Offline(Kind::Blob));
        }
        self.check_absent(repository, Kind::Blob, digest)?;
        let key = (repository.clone(), *digest);
        let (pull, upstream) = (self.clone(), upstream.clone());
        let proof = self.0.memory.proofs.run(key.clone(), &self.0.tasks, || pull.fetch_proof(upstream, key));
        match tokio::time::timeout(PROOF_PATIENCE, proof).await {
            Ok((_, answer)) => answer.unwrap_or(Err(Error::Abandoned)),
            Err(_) => Err(Error::Unavailable),
        }
    }

    async fn fetch_proof(self, upstream: Upstream, (repository, digest): (Repository, Digest)) -> Result<(), Error> {
        tracing::info!(%repository, %digest, "held, but got with a login elsewhere: fetched once more, to see that this registry has it too");
        let (custody, body) =
            tokio::join!(self.custody(&upstream, &repository, What::Blob(digest)), upstream.blob(&repository.name, &digest, 0));
        let body =
            self.judged(&repository, Kind::Blob, body).inspect_err(|error| self.note_absent(&repository, Kind::Blob, &digest, error))?;
        let size = self.0.cache.blob_size(&digest, None).await.unwrap_or(u64::MAX);
        let (mut hasher, mut received, mut body) = (digest.hasher(), 0, body);
        loop {
            let frame = tokio::time::timeout(self.0.fills.limits.silence, body.frame()).await.map_err(|_| Error::Timeout)?;
            let Some(frame) = frame else { break };
            let Ok(bytes) = frame.map_err(|_| Error::Unavailable)?.into_data() else { continue };
            self.0.fills.metrics.fetched(bytes.len() as u64);
            received += bytes.len() as u64;
            if received > size {
                break;
            }
            hasher.update(&bytes);
        }
        if received > size || hasher.finish() != digest {
            self.0.fills.metrics.verify_failed();
            tracing::error!(%repository, %digest, received, "a registry claims a blob of another one that it does not have; it is not served there");
            self.note_absent(&repository, Kind::Blob, &digest, &Error::NotFound(Kind::Blob));
            return Err(Error::BadUpstream);
        }
        let may_store = self.take_into_custody(&repository, &digest, custody, true).await.map_err(|_| Error::Abandoned)?;
        if may_store {
            self.0.cache.link_blob(&repository, &digest, true).await;
        }
        Ok(())
    }
}
