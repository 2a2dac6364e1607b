//! A manifest by digest: held, or fetched once, hashed by us and read before it is kept.

use super::private::What;
use super::{Answer, Error, ManifestAnswer, Pull};
use crate::cache::{HeldManifest, Joined};
use crate::observe::{Kind, Outcome};
use crate::oci::{Digest, Manifest, Reference, Repository};
use crate::upstream::{self, Upstream};

impl Pull {
    pub(super) async fn by_digest(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        head: bool,
    ) -> Result<Answer<ManifestAnswer>, Error> {
        if let Some(held) = self.0.cache.manifest(repository, digest).await {
            return Ok(Answer { content: ManifestAnswer::held(*digest, held), outcome: Outcome::Hit });
        }
        Box::pin(self.by_digest_elsewhere(upstream, repository, digest, head)).await
    }

    /// A manifest by digest that is not held.
    async fn by_digest_elsewhere(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        head: bool,
    ) -> Result<Answer<ManifestAnswer>, Error> {
        if self.offline() {
            return Err(Error::Offline(Kind::Manifest));
        }
        self.check_absent(repository, Kind::Manifest, digest)?;
        if head {
            return self.head_digest(upstream, repository, digest).await;
        }
        let key = (repository.clone(), *digest);
        let (pull, upstream) = (self.clone(), upstream.clone());
        let fetch = || async move {
            // Somebody else's fetch may have ended between our look and our turn.
            if let Some(held) = pull.0.cache.manifest(&key.0, &key.1).await {
                return Ok(held);
            }
            pull.check_absent(&key.0, Kind::Manifest, &key.1)?;
            let reference = Reference::Digest(key.1);
            pull.fetch_manifest(&upstream, &key.0, &reference).await.map(|(_, held)| held)
        };
        let (joined, held) = self.0.memory.manifests.run((repository.clone(), *digest), &self.0.tasks, fetch).await;
        let held = held.unwrap_or(Err(Error::Abandoned))?;
        let outcome = if joined == Joined::First { Outcome::Miss } else { Outcome::Collapsed };
        Ok(Answer { content: ManifestAnswer::held(*digest, held), outcome })
    }

    /// HEAD of a manifest that is not held goes to the upstream and is not kept.
    async fn head_digest(&self, upstream: &Upstream, repository: &Repository, digest: &Digest) -> Result<Answer<ManifestAnswer>, Error> {
        let answer = upstream.head_manifest(&repository.name, &Reference::Digest(*digest)).await;
        let answer = self
            .judged(repository, Kind::Manifest, answer)
            .inspect_err(|error| self.note_absent(repository, Kind::Manifest, digest, error))?;
        if answer.digest.is_some_and(|said| said.algorithm() == digest.algorithm() && said != *digest) {
            return Err(Error::BadUpstream);
        }
        let content = ManifestAnswer { digest: *digest, media_type: answer.media_type, size: answer.size, bytes: None };
        Ok(Answer { content, outcome: Outcome::Passed })
    }

    /// One GET: its bytes are hashed and compared, by the digest that was asked for, else by the one the upstream names.
    pub(super) async fn fetch_manifest(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(Digest, HeldManifest), Error> {
        let what = reference.to_string();
        if let Some(wait) = self.0.memory.refuted.wait(repository, &what) {
            return Err(Error::Refuted(wait));
        }
        let (custody, answer) =
            tokio::join!(self.custody(upstream, repository, What::of(reference)), upstream.manifest(&repository.name, reference));
        let fetched = self
            .judged(repository, Kind::Manifest, answer)
            .inspect_err(|error| self.note_absent(repository, Kind::Manifest, reference, error))?;
        let digest = match (reference, fetched.digest) {
            (Reference::Digest(digest), _) => *digest,
            (Reference::Tag(_), Some(digest)) => digest,
            (Reference::Tag(_), None) => Digest::sha256_of(&fetched.bytes),
        };
        if !digest.is_of(&fetched.bytes) {
            self.0.fills.metrics.verify_failed();
            tracing::error!(%repository, %reference, %digest, bytes = fetched.bytes.len(), "the upstream sent a manifest that does not hash to its digest; it is not kept");
            self.note_refuted(repository, &what);
            return Err(Error::BadUpstream);
        }
        self.0.memory.refuted.clear(repository, &what);
        let manifest = Manifest::parse(&fetched.bytes, fetched.content_type.as_deref()).map_err(|error| {
            tracing::error!(%repository, %reference, %error, "the upstream sent a manifest that cannot be used; it is not kept");
            Error::BadUpstream
        })?;
        // Its bytes are found by its digest too: from here on.
        let may_store = self.take_into_custody(repository, &digest, custody, true).await.map_err(|_| Error::Abandoned)?;
        let held = self.0.cache.hold_manifest(repository, &digest, &manifest, &fetched.bytes).await;
        if may_store {
            self.store_behind(repository, digest, &manifest, &held);
        }
        Ok((digest, held))
    }

    /// Writing to the disk is nothing a client waits for: the manifest is in memory, and its links are.
    fn store_behind(&self, repository: &Repository, digest: Digest, manifest: &Manifest, held: &HeldManifest) {
        let (pull, repository, media_type, bytes) = (self.clone(), repository.clone(), manifest.media_type.clone(), held.bytes.clone());
        let on_its_way = self.0.fills.metrics.fill();
        self.0.keeps.spawn(async move {
            let _on_its_way = on_its_way;
            pull.0.cache.keep_manifest(&repository, &digest, &media_type, bytes).await;
            // Tags that were announced to point here are true now; a tag never points at what is not held.
            let key = (repository, digest);
            for tag in pull.0.memory.awaited.take(&key).unwrap_or_default() {
                let moved = pull.0.memory.announced.get(&(key.0.clone(), tag.clone())).is_none_or(|now| now.digest != digest);
                if !moved {
                    pull.0.cache.keep_tag(&key.0, &tag, &digest).await;
                }
            }
        });
    }

    /// An upstream's answer, and what it says of the upstream itself.
    pub(super) fn judged<T>(&self, repository: &Repository, kind: Kind, answer: Result<T, upstream::Error>) -> Result<T, Error> {
        let result = answer.map_err(|error| (Error::of_upstream(&error, kind), error));
        match &result {
            Err((told, error)) if !told.is_definite() => {
                tracing::warn!(%repository, kind = kind.as_str(), %error, "an upstream did not deliver; what is held is served, what is not is refused");
            }
            _ => self.0.memory.rest(&repository.registry, false),
        }
        result.map_err(|(told, _)| told)
    }

    /// Whether the upstream said a moment ago that this is not there.
    pub(super) fn check_absent(&self, repository: &Repository, kind: Kind, what: impl Into<Reference>) -> Result<(), Error> {
        match self.0.memory.absent.get(&(repository.clone(), kind, what.into())) {
            Some(()) => Err(Error::NotFound(kind)),
            None => Ok(()),
        }
    }

    /// What came is wrong, and nobody else is left to be asked.
    pub(super) fn note_refuted(&self, repository: &Repository, what: &str) {
        if let Some(wait) = self.0.memory.refuted.add(repository, what) {
            tracing::warn!(%repository, what, ?wait, "what the upstream sends for this is wrong again and again; it is not asked for it for a while");
        }
    }

    pub(super) fn note_absent(&self, repository: &Repository, kind: Kind, what: impl Into<Reference>, error: &Error) {
        if matches!(error, Error::NotFound(_) | Error::NotShown(_)) {
            self.0.memory.absent.put((repository.clone(), kind, what.into()), ());
        }
    }
}
