//! What a pull remembers for a while: answers of upstreams that are not content, and questions that are under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::private::What;
use super::refuted::Refuted;
use super::search::{ANSWER_FOR, ANSWERS_MAX, Question};
use crate::cache::{Coalesce, HeldManifest, Recent};
use crate::observe::Kind;
use crate::oci::{Digest, MediaType, Reference, Registry, Repository, Tag};
use crate::upstream::{Results, Sight};

/// How long a 404 is remembered: clients that look for signatures ask for many things that are not there.
const ABSENT_FOR: Duration = Duration::from_secs(10);

/// How long an upstream that could not answer is left alone by those who hold something.
pub(super) const REST_FOR: Duration = Duration::from_secs(10);

/// How long it is believed that anybody may see a repository: as long as a tag is. Whoever makes one private does not wait
/// longer than that for this mirror.
const VISIBLE_FOR: Duration = Duration::from_secs(60);

/// How long it is remembered that a repository was closed to those without a login, when something is fetched there with
/// one. Clients without one are not kept out by this.
const CLOSED_FOR: Duration = Duration::from_secs(300);

/// How long an endpoint that sent wrong bytes for a digest is asked last for it: as long as a bad copy may well lie in
/// somebody's cache.
const WRONG_FOR: Duration = Duration::from_secs(3_600);

/// How long it is remembered that a repository may show a digest, which spares a look at the disk.
const CLEARED_FOR: Duration = Duration::from_secs(3_600);

/// Entries of each memory: a few hundred bytes each.
const ENTRIES_MAX: u64 = 20_000;

/// What an upstream said in answer to HEAD about a tag whose manifest is not held (yet).
#[derive(Debug, Clone)]
pub(super) struct Announced {
    pub(super) digest: Digest,
    pub(super) media_type: Option<MediaType>,
    pub(super) size: Option<u64>,
}

/// What the upstream says is not there. A blob may be absent where a manifest of the same digest is not.
pub(super) type Absent = (Repository, Kind, Reference);

pub(super) struct Memory {
    pub(super) announced: Recent<(Repository, Tag), Announced>,
    /// The tags that were announced to point at a digest: they are kept when its manifest is.
    pub(super) awaited: Recent<(Repository, Digest), Vec<Tag>>,
    pub(super) absent: Recent<Absent, ()>,
    /// Repositories of which anybody may see something.
    pub(super) public: Recent<Repository, ()>,
    /// Repositories of which nobody without a login was shown what was got with one.
    pub(super) closed: Recent<Repository, ()>,
    /// Repositories of which it could not be asked a moment ago whether anybody may see them.
    pub(super) unsure: Recent<Repository, ()>,
    /// Digests for which an upstream said yes in a repository.
    pub(super) claimed: Recent<(Repository, Digest), ()>,
    /// Held digests that a repository may show, whoever brought them: that does not change any more.
    pub(super) cleared: Recent<(Repository, Digest), ()>,
    /// What nobody may see without credentials, or what does not exist.
    pub(super) hidden: Recent<(Repository, What), ()>,
    /// The endpoints, by number, that sent something else for a blob.
    pub(super) wrong: Recent<(Registry, Digest), Vec<usize>>,
    /// What came wrong from everywhere, again and again.
    pub(super) refuted: Refuted,
    pub(super) heads: Coalesce<(Repository, Tag), Result<Announced, Error>>,
    pub(super) tags: Coalesce<(Repository, Tag), Result<(Digest, HeldManifest), Error>>,
    pub(super) manifests: Coalesce<(Repository, Digest), Result<HeldManifest, Error>>,
    /// The third says whether it is asked as anybody would.
    pub(super) blobs: Coalesce<(Repository, Digest, bool), Result<Option<u64>, Error>>,
    pub(super) visits: Coalesce<(Repository, What), Option<Sight>>,
    pub(super) proofs: Coalesce<(Repository, Digest), Result<(), Error>>,
    /// What searches found.
    pub(super) searched: Recent<Question, Arc<Results>>,
    /// Registries that could not answer a search.
    pub(super) mute: Recent<Registry, ()>,
    pub(super) searches: Coalesce<Question, Option<Arc<Results>>>,
    resting: Mutex<HashMap<Registry, Instant>>,
}

impl Memory {
    pub(super) fn new(tag_ttl: Duration, refuted: Refuted, stop: &CancellationToken) -> Self {
        Self {
            announced: Recent::new(ENTRIES_MAX, tag_ttl),
            awaited: Recent::new(ENTRIES_MAX, tag_ttl.max(Duration::from_secs(600))),
            absent: Recent::new(ENTRIES_MAX, ABSENT_FOR),
            public: Recent::new(ENTRIES_MAX, VISIBLE_FOR),
            closed: Recent::new(ENTRIES_MAX, CLOSED_FOR),
            unsure: Recent::new(ENTRIES_MAX, REST_FOR),
            claimed: Recent::new(ENTRIES_MAX, CLEARED_FOR),
            cleared: Recent::new(ENTRIES_MAX, CLEARED_FOR),
            hidden: Recent::new(ENTRIES_MAX, ABSENT_FOR),
            wrong: Recent::new(ENTRIES_MAX, WRONG_FOR),
            refuted,
            heads: Coalesce::new(stop.clone()),
            tags: Coalesce::new(stop.clone()),
            manifests: Coalesce::new(stop.clone()),
            blobs: Coalesce::new(stop.clone()),
            visits: Coalesce::new(stop.clone()),
            proofs: Coalesce::new(stop.clone()),
            searched: Recent::new(ANSWERS_MAX, ANSWER_FOR),
            mute: Recent::new(ENTRIES_MAX, REST_FOR),
            searches: Coalesce::new(stop.clone()),
            resting: Mutex::default(),
        }
    }

    /// An upstream could not answer, or can again.
    pub(super) fn rest(&self, registry: &Registry, failed: bool) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        if failed {
            resting.insert(registry.clone(), Instant::now() + REST_FOR);
        } else {
            resting.remove(registry);
        }
    }

    /// Whether an upstream is left alone by those who hold something.
    pub(super) fn rests(&self, registry: &Registry) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.get(registry).is_some_and(|until| *until > Instant::now())
    }

    /// A tag was announced to point at a manifest that is not held.
    pub(super) fn announce(&self, repository: &Repository, tag: &Tag, announced: &Announced) {
        self.announced.put((repository.clone(), tag.clone()), announced.clone());
        let key = (repository.clone(), announced.digest);
        let mut tags = self.awaited.get(&key).unwrap_or_default();
        if !tags.contains(tag) {
            tags.push(tag.clone());
            self.awaited.put(key, tags);
        }
    }
}
