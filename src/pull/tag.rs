//! A manifest by tag: believe it, ask about it, or serve it stale.

use std::time::Duration;

use super::freshness::{Reach, Verdict, judge, saves};
use super::memory::Announced;
use super::{Answer, Error, ManifestAnswer, Pull};
use crate::cache::{HeldManifest, HeldTag, Joined};
use crate::observe::{Kind, Outcome};
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::upstream::Upstream;

/// How long a client waits for the upstream when there is something stale to serve; the question goes on behind it.
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of a tag that is held.
#[derive(Debug)]
enum News {
    /// It points where it did.
    Same,
    /// It points elsewhere, and that is not worth one of the last pulls.
    Saved,
    /// It points elsewhere.
    Moved(Answer<ManifestAnswer>),
}

impl Pull {
    pub(super) async fn by_tag(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        head: bool,
    ) -> Result<Answer<ManifestAnswer>, Error> {
        let held = self.held_tag(repository, tag).await;
        let config = &self.0.config;
        let age = held.as_ref().map(|(tag, _)| tag.age);
        match judge(age, self.reach(repository), config.tag_ttl, config.max_stale) {
            Verdict::Believe => Ok(serve(held, Outcome::Hit)?),
            Verdict::Stale => Ok(serve(held, Outcome::Stale)?),
            Verdict::Absent => Err(Error::Offline(Kind::Manifest)),
            Verdict::Ask if head => Box::pin(self.announced(upstream, repository, tag)).await,
            Verdict::Ask => Box::pin(self.fetch_tag(upstream, repository, tag)).await,
            Verdict::AskOrStale => Box::pin(self.confirm(upstream, repository, tag, held, head)).await,
        }
    }

    /// A tag that is held, with its manifest: one without the other serves nobody.
    async fn held_tag(&self, repository: &Repository, tag: &Tag) -> Option<(HeldTag, HeldManifest)> {
        let held = self.0.cache.tag(repository, tag).await?;
        let manifest = self.0.cache.manifest(repository, &held.digest).await?;
        Some((held, manifest))
    }

    fn reach(&self, repository: &Repository) -> Reach {
        match () {
            () if self.offline() => Reach::Offline,
            () if self.0.memory.rests(&repository.registry) => Reach::Resting,
            () => Reach::Open,
        }
    }

    /// A tag whose time is up: what is new about it, or what is held when that cannot be had soon.
    async fn confirm(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        held: Option<(HeldTag, HeldManifest)>,
        head: bool,
    ) -> Result<Answer<ManifestAnswer>, Error> {
        let old = held.as_ref().map(|(tag, _)| (tag.digest, tag.age));
        match tokio::time::timeout(PATIENCE, self.news(upstream, repository, tag, old, head)).await {
            Ok(Ok(News::Same)) => serve(held, Outcome::Revalidated),
            Ok(Ok(News::Saved)) => serve(held, Outcome::Stale),
            Ok(Ok(News::Moved(answer))) => Ok(answer),
            Ok(Err(error)) if error.is_definite() => Err(error),
            // What was asked goes on behind this answer; nobody else asks for a while.
            late_or_failed => {
                tracing::debug!(%repository, %tag, ?late_or_failed, "a tag is served stale");
                self.0.memory.rest(&repository.registry, true);
                serve(held, Outcome::Stale)
            }
        }
    }

    /// What a tag points at now, unless that is `old`. One HEAD for all who wait, which costs nothing of Docker Hub's
    /// budget; a GET, which does, only when the tag moved, and not one of the last.
    async fn news(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        old: Option<(Digest, Option<Duration>)>,
        head: bool,
    ) -> Result<News, Error> {
        let new = self.ask(upstream, repository, tag).await?;
        if let Some((old, age)) = old {
            if new.digest == old {
                return Ok(News::Same);
            }
            // Whoever were told by a HEAD that it moved would ask for the new manifest by its digest.
            let config = &self.0.config;
            let saves = saves(age, upstream.pulls(), config.tag_ttl_low, config.tag_ttl, config.max_stale);
            if saves && self.0.cache.manifest(repository, &new.digest).await.is_none() {
                tracing::debug!(%repository, %tag, "the tag moved; what is held is served, because few pulls are left");
                return Ok(News::Saved);
            }
        }
        // A HEAD is told that it moved and costs no fetch; it may come from somebody who only watches.
        if head {
            return Ok(News::Moved(self.told(repository, new).await));
        }
        let answer = self.by_digest(upstream, repository, &new.digest, false).await?;
        self.0.cache.keep_tag(repository, tag, &new.digest).await;
        Ok(News::Moved(Answer { outcome: Outcome::Revalidated, ..answer }))
    }

    /// HEAD of a tag that is not held: what the upstream says of it.
    async fn announced(&self, upstream: &Upstream, repository: &Repository, tag: &Tag) -> Result<Answer<ManifestAnswer>, Error> {
        // Between a GET and the tag's way to the disk the announcement is all there is: no upstream is asked then.
        let known = self.0.memory.announced.get(&(repository.clone(), tag.clone())).is_some();
        let announced = self.ask(upstream, repository, tag).await?;
        let answer = self.told(repository, announced).await;
        Ok(if known { Answer { outcome: Outcome::Hit, ..answer } } else { answer })
    }

    async fn told(&self, repository: &Repository, announced: Announced) -> Answer<ManifestAnswer> {
        let Announced { digest, media_type, size } = announced;
        let content = match self.0.cache.manifest(repository, &digest).await {
            Some(held) => ManifestAnswer::held(digest, held),
            None => ManifestAnswer { digest, media_type, size, bytes: None },
        };
        Answer { content, outcome: Outcome::Passed }
    }

    /// What the upstream says a tag points at: one question for all who ask, and its answer is believed as a tag is.
    async fn ask(&self, upstream: &Upstream, repository: &Repository, tag: &Tag) -> Result<Announced, Error> {
        let key = (repository.clone(), tag.clone());
        if let Some(announced) = self.0.memory.announced.get(&key) {
            return Ok(announced);
        }
        self.check_absent(repository, Kind::Manifest, tag)?;
        let (pull, upstream) = (self.clone(), upstream.clone());
        let (_, answer) = self.0.memory.heads.run(key.clone(), &self.0.tasks, || pull.ask_upstream(upstream, key)).await;
        answer.unwrap_or(Err(Error::Abandoned))
    }

    /// What somebody else was told between our look and our turn: nobody asks the same thing twice.
    async fn settled_meanwhile(&self, repository: &Repository, tag: &Tag) -> Result<Option<(Digest, HeldManifest)>, Error> {
        self.check_absent(repository, Kind::Manifest, tag)?;
        let held = self.held_tag(repository, tag).await;
        let young = held.filter(|(tag, _)| tag.age.is_some_and(|age| age < self.0.config.tag_ttl));
        Ok(young.map(|(tag, manifest)| (tag.digest, manifest)))
    }

    async fn ask_upstream(self, upstream: Upstream, (repository, tag): (Repository, Tag)) -> Result<Announced, Error> {
        if let Some((digest, held)) = self.settled_meanwhile(&repository, &tag).await? {
            return Ok(Announced { digest, size: Some(held.bytes.len() as u64), media_type: Some(held.media_type) });
        }
        if let Some(announced) = self.0.memory.announced.get(&(repository.clone(), tag.clone())) {
            return Ok(announced);
        }
        let reference = Reference::Tag(tag.clone());
        let answer = upstream.head_manifest(&repository.name, &reference).await;
        let answer = self
            .judged(&repository, Kind::Manifest, answer)
            .inspect_err(|error| self.note_absent(&repository, Kind::Manifest, &tag, error));
        let answer = match answer {
            Err(error @ Error::NotFound(_)) => {
                self.0.cache.drop_tag(&repository, &tag).await;
                return Err(error);
            }
            other => other?,
        };
        let Some(digest) = answer.digest else {
            // A registry that names no digest on HEAD: only the manifest itself tells.
            let (digest, held) = self.fetch_tag_upstream(upstream, (repository, tag)).await?;
            return Ok(Announced { digest, size: Some(held.bytes.len() as u64), media_type: Some(held.media_type) });
        };
        let announced = Announced { digest, media_type: answer.media_type, size: answer.size };
        if self.0.cache.manifest(&repository, &digest).await.is_some() {
            self.0.cache.keep_tag(&repository, &tag, &digest).await;
        } else {
            self.0.memory.announce(&repository, &tag, &announced);
        }
        Ok(announced)
    }

    /// A tag that is not held: the manifest itself, in one request.
    async fn fetch_tag(&self, upstream: &Upstream, repository: &Repository, tag: &Tag) -> Result<Answer<ManifestAnswer>, Error> {
        let key = (repository.clone(), tag.clone());
        if let Some(announced) = self.0.memory.announced.get(&key) {
            // Somebody asked for its digest a moment ago: by digest it is shared with all who have that from the HEAD.
            return self.by_digest(upstream, repository, &announced.digest, false).await;
        }
        self.check_absent(repository, Kind::Manifest, tag)?;
        let (pull, upstream) = (self.clone(), upstream.clone());
        let shared = key.clone();
        let fetch = || async move {
            match pull.settled_meanwhile(&key.0, &key.1).await? {
                Some(found) => Ok(found),
                None => pull.fetch_tag_upstream(upstream, key).await,
            }
        };
        let (joined, answer) = self.0.memory.tags.run(shared, &self.0.tasks, fetch).await;
        let (digest, held) = answer.unwrap_or(Err(Error::Abandoned))?;
        let outcome = if joined == Joined::First { Outcome::Miss } else { Outcome::Collapsed };
        Ok(Answer { content: ManifestAnswer::held(digest, held), outcome })
    }

    async fn fetch_tag_upstream(self, upstream: Upstream, (repository, tag): (Repository, Tag)) -> Result<(Digest, HeldManifest), Error> {
        let reference = Reference::Tag(tag.clone());
        let (digest, held) = match self.fetch_manifest(&upstream, &repository, &reference).await {
            Err(error @ Error::NotFound(_)) => {
                self.0.cache.drop_tag(&repository, &tag).await;
                return Err(error);
            }
            other => other?,
        };
        self.0.cache.keep_tag(&repository, &tag, &digest).await;
        Ok((digest, held))
    }
}

fn serve(held: Option<(HeldTag, HeldManifest)>, outcome: Outcome) -> Result<Answer<ManifestAnswer>, Error> {
    let (tag, manifest) = held.ok_or(Error::Abandoned)?;
    Ok(Answer { content: ManifestAnswer::held(tag.digest, manifest), outcome })
}
