//! The story: one manifest or blob request, every branch of the program in reading order.
//!
//! What is held is served; what is not is fetched once, for everybody who asks meanwhile. The cache and the upstreams do
//! not know each other: only here do they meet.
//!
//! An upstream question that is under way belongs to the server, not to the request that raised it: clients that leave
//! cancel nothing, and nobody asks the same thing twice.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::cache::{Blob, Cache, Failure, Growing, HeldManifest};
use crate::fill;
use crate::observe::{Kind, Outcome};
use crate::oci::{Digest, MediaType, Reference, Repository};
use crate::upstream::{Hops, Upstream, Upstreams, Why};

mod blob;
mod custody;
pub mod freshness;
mod lists;
mod manifest;
mod memory;
mod private;
mod refuted;
mod search;
mod tag;

pub use lists::{Referrers, Tags};
pub use search::{Catalog, Found, RESULTS_MAX, Search};

use memory::Memory;
use private::What;
use refuted::Refuted;

/// How tags are believed: a part of the `[cache]` section.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a tag is believed without asking.
    pub tag_ttl: Duration,
    /// How long a tag that moved is believed all the same while few pulls are left of the upstream's budget.
    pub tag_ttl_low: Duration,
    /// How old a tag may be served when the upstream cannot answer.
    pub max_stale: Duration,
    /// Never contact an upstream.
    pub offline: bool,
}

/// Everything that answers a pull, and the mirrors in whose name it asks. Cheap to clone.
#[derive(Clone)]
pub struct Pull(Arc<Inner>, Hops);

struct Inner {
    config: Config,
    cache: Cache,
    upstreams: Upstreams,
    fills: fill::Context,
    tasks: TaskTracker,
    /// What was answered and is on its way to the disk.
    keeps: TaskTracker,
    memory: Memory,
}

/// Who asks, as far as it matters for what they may see.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// They proved who they are: private content is theirs.
    pub authenticated: bool,
}

/// An answer, and how it came about.
#[derive(Debug)]
pub struct Answer<T> {
    /// What was asked for.
    pub content: T,
    /// For the log, the metrics and the header.
    pub outcome: Outcome,
}

/// A manifest, or what its HEAD says of it.
#[derive(Debug)]
pub struct ManifestAnswer {
    /// Its digest: the one asked for, else its sha256.
    pub digest: Digest,
    /// Its type, where it is known.
    pub media_type: Option<MediaType>,
    /// Its size in bytes, where it is known.
    pub size: Option<u64>,
    /// The manifest itself; `None` when only HEAD was asked and it is not held.
    pub bytes: Option<bytes::Bytes>,
}

/// A blob, wherever its bytes are.
#[derive(Debug)]
pub enum BlobAnswer {
    /// In memory.
    Memory(bytes::Bytes),
    /// On disk.
    Whole(Blob),
    /// Arriving.
    Growing(Growing),
    /// Not held; only HEAD was asked, and this is what the upstream says its size is.
    Size(Option<u64>),
}

/// Why there is no answer, in terms that decide what the client is told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It does not exist, or this client may not know that it does.
    #[error("not found")]
    NotFound(Kind),
    /// The upstream shows it to nobody without a login. Clients are told that it does not exist, for it may not; but what is
    /// held of it is not thrown away.
    #[error("not shown")]
    NotShown(Kind),
    /// The operator does not let this mirror serve the repository.
    #[error("not served here")]
    NotServed,
    /// It is not held here and millpond is told to ask nobody.
    #[error("not held, and this mirror is offline")]
    Offline(Kind),
    /// The upstream refuses it to the credentials that millpond has for it.
    #[error("the upstream refuses it")]
    Denied,
    /// The upstream asks to be left alone.
    #[error("the upstream's rate limit is used up")]
    RateLimited(Duration),
    /// The upstream cannot be reached.
    #[error("the upstream cannot be reached")]
    Unavailable,
    /// The request came through this mirror before, or would.
    #[error("the upstream asks this mirror")]
    Loop,
    /// The upstream did not answer in time.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// The upstream's answer cannot be used: wrong bytes, a broken protocol, a forbidden redirect.
    #[error("the upstream sent something that cannot be used")]
    BadUpstream,
    /// What the upstream sent for it was wrong again and again: it is not asked for that for so long.
    #[error("the upstream has it wrong")]
    Refuted(Duration),
    /// millpond is stopping, or has a fault.
    #[error("given up")]
    Abandoned,
}

impl Error {
    /// Whether the upstream has spoken: then nothing that is held may contradict it.
    fn is_definite(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::NotShown(_) | Self::Denied)
    }

    /// Whether the client is told that it does not exist here. Perhaps it does, for others.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::NotShown(_) | Self::Offline(_))
    }

    /// What a fill's failure means for a blob's client.
    pub fn of_fill(failure: &Failure) -> Self {
        match failure {
            Failure::NotFound => Self::NotFound(Kind::Blob),
            Failure::Denied => Self::Denied,
            Failure::RateLimited(after) => Self::RateLimited(*after),
            Failure::Unavailable => Self::Unavailable,
            Failure::Loop => Self::Loop,
            Failure::Timeout => Self::Timeout,
            Failure::Corrupt => Self::BadUpstream,
            Failure::Refuted(wait) => Self::Refuted(*wait),
            Failure::Abandoned | Failure::Behind | Failure::Disk(_) => Self::Abandoned,
        }
    }

    /// What an upstream's error means for the client of a `kind`. A refusal to nobody in particular is how registries
    /// say that something does not exist.
    fn of_upstream(error: &crate::upstream::Error, kind: Kind) -> Self {
        use crate::upstream::Error as From;
        match error {
            From::NotFound { .. } => Self::NotFound(kind),
            From::Denied { authenticated: false, .. } => Self::NotShown(kind),
            From::Denied { authenticated: true, .. } => Self::Denied,
            From::RateLimited { retry_after, .. } => Self::RateLimited(*retry_after),
            From::Unavailable { why: Why::Loop, .. } => Self::Loop,
            From::Unavailable { .. } => Self::Unavailable,
            From::Timeout { .. } => Self::Timeout,
            From::BadAnswer { .. } | From::RefusedTarget { .. } => Self::BadUpstream,
        }
    }
}

impl Pull {
    /// Puts the parts together.
    pub fn new(config: Config, cache: Cache, upstreams: Upstreams, fills: fill::Context, tasks: TaskTracker) -> Self {
        let refuted = Refuted::new(fills.limits.refuted, fills.limits.refuted_max);
        let memory = Memory::new(config.tag_ttl, refuted, &fills.stop);
        let inner = Inner { config, cache, upstreams, fills, tasks, keeps: TaskTracker::new(), memory };
        Self(Arc::new(inner), Hops::default())
    }

    /// The same for a request that came through these mirrors.
    #[must_use]
    pub fn behind(&self, hops: Hops) -> Self {
        Self(Arc::clone(&self.0), hops)
    }

    /// Waits until everything that was answered is on the disk. For the stop: nothing is answered any more.
    pub async fn kept(&self) {
        self.0.keeps.close();
        self.0.keeps.wait().await;
    }

    /// A manifest by tag or digest; with `head` nothing is fetched that is not held.
    pub async fn manifest(
        &self,
        asker: Asker,
        repository: &Repository,
        reference: &Reference,
        head: bool,
    ) -> Result<Answer<ManifestAnswer>, Error> {
        let upstream = self.upstream(repository, Kind::Manifest)?;
        self.check_visible(asker, &upstream, repository, What::of(reference)).await?;
        match reference {
            Reference::Tag(tag) => self.by_tag(&upstream, repository, tag, head).await,
            Reference::Digest(digest) => self.by_digest(&upstream, repository, digest, head).await,
        }
    }

    /// A blob, for one who wants its bytes from `from` on; with `head` nothing is fetched that is not held.
    pub async fn blob(
        &self,
        asker: Asker,
        repository: &Repository,
        digest: &Digest,
        from: u64,
        head: bool,
    ) -> Result<Answer<BlobAnswer>, Error> {
        let upstream = self.upstream(repository, Kind::Blob)?;
        self.check_visible(asker, &upstream, repository, What::Blob(*digest)).await?;
        if head {
            return self.blob_head(asker, &upstream, repository, digest).await;
        }
        self.blob_get(asker, &upstream, repository, digest, from).await
    }

    /// The router lets only configured registries through; this says so in the type. Comes before everything else: of what the
    /// operator does not let be served nothing that is held is shown either.
    fn upstream(&self, repository: &Repository, kind: Kind) -> Result<Upstream, Error> {
        let upstream = self.0.upstreams.get(&repository.registry).ok_or(Error::NotFound(kind))?;
        if upstream.admits(&repository.name) { Ok(upstream.behind(&self.1)) } else { Err(Error::NotServed) }
    }

    fn offline(&self) -> bool {
        self.0.config.offline
    }
}

impl ManifestAnswer {
    fn held(digest: Digest, held: HeldManifest) -> Self {
        let size = Some(held.bytes.len() as u64);
        Self { digest, media_type: Some(held.media_type), size, bytes: Some(held.bytes) }
    }
}
