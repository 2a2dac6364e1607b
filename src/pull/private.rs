//! Private stays private: what only millpond's own credentials can see goes only to clients that authenticated.
//!
//! Decided before the cache is looked at, for every kind and method alike, and answered as if there were nothing: whoever
//! may not see a repository learns neither that it exists nor that it is held.
//!
//! What was once got with a login stays private when the login is taken out of the configuration, until somebody without
//! one is shown something of the repository or the operator shares it (`private = "anyone"`).

use super::{Asker, Error, Pull};
use crate::cache::Visibility;
use crate::observe::Kind;
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::upstream::{self, Private, Sight, Upstream};

/// What a client asks for: that is also what is asked for without credentials.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum What {
    /// A manifest by tag.
    Tag(Tag),
    /// A manifest by digest.
    Manifest(Digest),
    /// A blob.
    Blob(Digest),
    /// The list of tags.
    Tags,
}

impl What {
    /// A manifest.
    pub(super) fn of(reference: &Reference) -> Self {
        match reference {
            Reference::Tag(tag) => Self::Tag(tag.clone()),
            Reference::Digest(digest) => Self::Manifest(*digest),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Tag(_) | Self::Manifest(_) => Kind::Manifest,
            Self::Blob(_) => Kind::Blob,
            Self::Tags => Kind::Tags,
        }
    }
}

impl Pull {
    /// Whether this client may see what it asks for.
    pub(super) async fn check_visible(&self, asker: Asker, upstream: &Upstream, repository: &Repository, what: What) -> Result<(), Error> {
        let kind = what.kind();
        let open = asker.authenticated || upstream.private() == Private::Anyone;
        // A repository of which anything is visible to anyone is public as a whole: that is how registries grant it.
        if open || self.0.memory.public.get(repository).is_some() || Box::pin(self.is_visible_to_anyone(upstream, repository, what)).await {
            return Ok(());
        }
        Err(Error::NotFound(kind))
    }

    /// That one thing is not visible proves nothing of the others, for it may not exist.
    async fn is_visible_to_anyone(&self, upstream: &Upstream, repository: &Repository, what: What) -> bool {
        if !upstream.has_credentials() && self.0.cache.visibility(repository).await != Some(Visibility::Private) {
            // Whatever millpond gets there anybody could have got.
            self.0.memory.public.put(repository.clone(), ());
            return true;
        }
        if self.offline() {
            return self.was_public(repository).await;
        }
        if self.0.memory.hidden.get(&(repository.clone(), what.clone())).is_some() {
            return false;
        }
        match self.look(upstream, repository, what).await {
            Some(sight) => sight == Sight::Shown,
            // It cannot be asked: the last answer holds.
            None => self.was_public(repository).await,
        }
    }

    async fn was_public(&self, repository: &Repository) -> bool {
        self.0.cache.visibility(repository).await == Some(Visibility::Public)
    }

    /// What anybody gets to see of it: one question for all who ask. `None` when it could not be asked.
    pub(super) async fn look(&self, upstream: &Upstream, repository: &Repository, what: What) -> Option<Sight> {
        let key = (repository.clone(), what);
        let (pull, upstream) = (self.clone(), upstream.clone());
        let visit = || pull.visit(upstream, key.clone());
        let (_, sight) = self.0.memory.visits.run(key.clone(), &self.0.tasks, visit).await;
        sight.flatten()
    }

    async fn visit(self, upstream: Upstream, key: (Repository, What)) -> Option<Sight> {
        let (repository, what) = &key;
        let reference = match what {
            What::Tag(tag) => Some(Reference::Tag(tag.clone())),
            What::Manifest(digest) => Some(Reference::Digest(*digest)),
            What::Blob(_) | What::Tags => None,
        };
        let thing = match (what, &reference) {
            (_, Some(reference)) => upstream::What::Manifest(reference),
            (What::Blob(digest), _) => upstream::What::Blob(digest),
            _ => upstream::What::Tags,
        };
        let sight = upstream.seen_by_anyone(&repository.name, thing).await;
        let sight = sight.inspect_err(|error| {
            tracing::debug!(%repository, %error, "it cannot be asked whether the repository is public; the last answer holds");
        });
        match sight {
            Ok(Sight::Shown) => {
                self.0.cache.note_visibility(repository, Visibility::Public).await;
                self.0.memory.closed.take(repository);
                self.0.memory.public.put(repository.clone(), ());
            }
            Ok(Sight::Refused) => {
                self.close(repository).await;
                self.0.memory.hidden.put(key, ());
            }
            // Perhaps it does not exist: nothing is learnt of the repository.
            Ok(Sight::Absent) => self.0.memory.hidden.put(key, ()),
            Err(_) => {}
        }
        sight.ok()
    }
}
