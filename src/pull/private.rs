//! Private stays private: what only millpond's own credentials can see goes only to clients that authenticated.
//!
//! Decided before the cache is looked at, for every kind and method alike, and answered as if there were nothing: whoever
//! may not see a repository learns neither that it exists nor that it is held.

use super::{Asker, Error, Pull};
use crate::observe::Kind;
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::upstream::{self, Private, Upstream};

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
        let open = asker.authenticated || upstream.private() == Private::Anyone || !upstream.has_credentials();
        if open || self.is_visible_to_anyone(upstream, repository, what).await {
            return Ok(());
        }
        Err(Error::NotFound(kind))
    }

    /// A repository of which anything is visible to anyone is public as a whole: that is how registries grant it. That one
    /// thing is not visible proves nothing of the others, for it may not exist.
    async fn is_visible_to_anyone(&self, upstream: &Upstream, repository: &Repository, what: What) -> bool {
        if self.0.memory.public.get(repository).is_some() {
            return true;
        }
        if self.offline() {
            return self.0.cache.is_public(repository).await;
        }
        let key = (repository.clone(), what);
        if self.0.memory.hidden.get(&key).is_some() {
            return false;
        }
        let (pull, upstream) = (self.clone(), upstream.clone());
        let visit = || pull.visit(upstream, key.clone());
        let (_, visible) = self.0.memory.visits.run(key.clone(), &self.0.tasks, visit).await;
        // A task that died proves nothing: then it is not shown.
        visible.unwrap_or(false)
    }

    async fn visit(self, upstream: Upstream, key: (Repository, What)) -> bool {
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
        let seen = upstream.visible_to_anyone(&repository.name, thing).await;
        match seen {
            Ok(true) => {
                self.0.cache.note_public(repository, true).await;
                self.0.memory.public.put(repository.clone(), ());
                true
            }
            Ok(false) => {
                self.0.cache.note_public(repository, false).await;
                self.0.memory.hidden.put(key, ());
                false
            }
            Err(error) => {
                tracing::debug!(%repository, %error, "it cannot be asked whether the repository is public; the last answer holds");
                self.0.cache.is_public(repository).await
            }
        }
    }
}
