//! What was got with a login, and nobody without one was seen to get: it is withheld from the other repositories.
//!
//! Blobs are held once, whoever brought them, and a manifest may name any digest: without this, whoever may push to one
//! repository that is open and knows the digest of a private blob could name it there and so get it from the cache. A
//! mark (`repos/_withheld`) is written before the first byte of such a content can be found by anybody, and says which
//! registries have *delivered* it, every byte of it and verified. `pull::custody` makes the decisions.
//!
//! Promises: a content that was withheld is never found without its mark, also after a kill or a power cut; where the disk
//! refuses the mark it is kept in memory, and the content is not stored. A folder without any mark is never looked into. A mark goes when anybody may
//! have the content, or when the content is gone (`sweep`).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Cache;
use super::disk::Call;
use super::hot::Recent;
use super::repos::{Repos, Visibility};
use crate::oci::{Digest, Registry, Repository};

/// Marks that the disk refused and memory holds, by number: about 150 bytes each. Whatever would need one more is not served.
const UNWRITTEN_MAX: usize = 100_000;

/// Repositories of which it is remembered whether anybody may see them, and for how long: it is asked about for each request, and
/// counts when the disk does not say.
const KNOWN_MAX: u64 = 20_000;
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3_600);

/// How long after somebody relied on a mark it stays at the least: the content that it was for is in memory or on the disk by
/// then, or was given up.
const RELIED_FOR: Duration = Duration::from_secs(60 * 60);

/// Marks that are remembered so: as long as there are more, none is swept.
const RELIED_MAX: usize = 100_000;

/// The marks.
pub(super) struct Withheld {
    repos: Repos,
    any: AtomicBool,
    /// Held over each change, so that no owner is lost to another's; for the blocking pool only.
    changing: Mutex<()>,
    // Never held across a call to the disk, which may not answer.
    unwritten: Mutex<HashMap<Digest, BTreeSet<Registry>>>,
    /// What was last known of a repository, for as long as the disk does not say.
    known: Recent<Repository, Option<Visibility>>,
    relied: Mutex<Relied>,
}

/// The marks that somebody relied on a while ago, by a clock that does not jump.
#[derive(Default)]
struct Relied {
    since: HashMap<Digest, Instant>,
    /// There were too many to remember them all.
    many: Option<Instant>,
}

impl Withheld {
    pub(super) fn new(repos: Repos) -> Self {
        Self {
            any: AtomicBool::new(repos.withholds()),
            repos,
            changing: Mutex::default(),
            unwritten: Mutex::default(),
            known: Recent::new(KNOWN_MAX, KNOWN_FOR),
            relied: Mutex::default(),
        }
    }

    fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<Digest, BTreeSet<Registry>>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted(&self, digest: &Digest) -> Option<BTreeSet<Registry>> {
        self.unwritten().get(digest).cloned()
    }

    /// Who delivered a content that is withheld; `None` where it is not withheld.
    fn owners(&self, digest: &Digest) -> Option<BTreeSet<Registry>> {
        if let Some(owners) = self.noted(digest) {
            return Some(owners);
        }
        self.repos.withheld(digest).unwrap_or_else(|error| {
            tracing::error!(%digest, %error, "it cannot be read whether a content is withheld; it is");
            Some(BTreeSet::new())
        })
    }

    /// Withholds a content, with one more owner; false when that can be noted nowhere.
    fn withhold(&self, digest: &Digest, owner: Option<&Registry>) -> bool {
        self.any.store(true, Ordering::Release);
        let _changing = self.changing();
        // Before the look at the mark: whoever sweeps holds the same lock.
        self.relied().add(*digest);
        let before = self.owners(digest);
        let mut owners = before.clone().unwrap_or_default();
        owners.extend(owner.cloned());
        if before.as_ref() == Some(&owners) {
            return true;
        }
        match self.repos.set_withheld(digest, &owners) {
            Ok(()) => {
                self.written(digest, &owners);
                true
            }
            Err(error) => {
                tracing::error!(%digest, %error, "a content that was got with a login cannot be marked; it is not stored");
                self.note(digest, owners)
            }
        }
    }

    /// Notes in memory what the disk does not take; false when that is full.
    fn note(&self, digest: &Digest, owners: BTreeSet<Registry>) -> bool {
        self.any.store(true, Ordering::Release);
        self.relied().add(*digest);
        let mut unwritten = self.unwritten();
        if unwritten.len() >= UNWRITTEN_MAX && !unwritten.contains_key(digest) {
            return false;
        }
        unwritten.entry(*digest).or_default().extend(owners);
        true
    }

    /// The disk has these. What was noted meanwhile is still to be written.
    fn written(&self, digest: &Digest, owners: &BTreeSet<Registry>) {
        let mut unwritten = self.unwritten();
        if unwritten.get(digest).is_some_and(|noted| noted.is_subset(owners)) {
            unwritten.remove(digest);
        }
    }

    /// A mark that the disk refused must be on it before its content is.
    pub(super) fn settle(&self, digest: &Digest) -> io::Result<()> {
        if !self.any() {
            return Ok(());
        }
        let _changing = self.changing();
        if let Some(mut owners) = self.noted(digest) {
            // The disk may have more of them, if it was away when these were noted.
            owners.extend(self.repos.withheld(digest)?.unwrap_or_default());
            self.repos.set_withheld(digest, &owners)?;
            self.written(digest, &owners);
        }
        Ok(())
    }

    fn relied(&self) -> MutexGuard<'_, Relied> {
        self.relied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the mark of a content that is not there and on nobody's way here; says whether it did. Whoever brings that
    /// content again is judged again, before anybody can find it. `gone` makes sure of it, durably.
    pub(super) fn sweep(&self, digest: &Digest, gone: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
        // As long as this is held nobody relies on the mark on the disk anew.
        let _changing = self.changing();
        let noted = self.noted(digest).is_some();
        if noted || self.relied().has(digest) || !gone()? {
            return Ok(false);
        }
        self.repos.remove_withheld(digest).map(|()| true)
    }

    fn release(&self, digest: &Digest) {
        let _changing = self.changing();
        self.unwritten().remove(digest);
        if let Err(error) = self.repos.remove_withheld(digest) {
            tracing::warn!(%digest, %error, "a content that anybody may have stays withheld: each repository is asked for it");
        }
    }
}

impl Relied {
    fn add(&mut self, digest: Digest) {
        if self.since.len() >= RELIED_MAX {
            self.since.retain(|_, since| since.elapsed() < RELIED_FOR);
        }
        if self.since.len() < RELIED_MAX {
            self.since.insert(digest, Instant::now());
        } else {
            self.many = Some(Instant::now());
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        self.since.get(digest).into_iter().chain(&self.many).any(|since| since.elapsed() < RELIED_FOR)
    }
}

impl Cache {
    /// Whether anything is withheld in this folder: where not, there is nothing to look for.
    pub(crate) fn withholds_anything(&self) -> bool {
        self.0.withheld.any()
    }

    /// The registries that delivered a content which is withheld; `None` where it is not.
    pub(crate) async fn withheld(&self, digest: &Digest) -> Option<BTreeSet<Registry>> {
        if !self.withholds_anything() {
            return None;
        }
        let (cache, of) = (self.clone(), *digest);
        // A disk that does not say proves nothing: then it is withheld.
        let unsaid = || Some(self.0.withheld.noted(digest).unwrap_or_default());
        self.0.disk.ask(Call::Look, move || cache.0.withheld.owners(&of)).await.unwrap_or_else(|_| unsaid())
    }

    /// Withholds a content that is about to be found; `owner` delivered it. False when it must not be used at all.
    pub(crate) async fn withhold(&self, digest: &Digest, owner: Option<&Registry>) -> bool {
        let (cache, of, by) = (self.clone(), *digest, owner.cloned());
        let withheld = self.0.disk.ask(Call::Write, move || cache.0.withheld.withhold(&of, by.as_ref())).await;
        withheld.unwrap_or_else(|_| self.0.withheld.note(digest, owner.cloned().into_iter().collect()))
    }

    /// Anybody may have a content.
    pub(crate) async fn release(&self, digest: &Digest) {
        if self.withheld(digest).await.is_some() {
            let (cache, digest) = (self.clone(), *digest);
            let _ = self.0.disk.ask(Call::Write, move || cache.0.withheld.release(&digest)).await;
        }
    }

    /// Whether the upstream showed a digest in this very repository.
    pub(crate) async fn claims(&self, repository: &Repository, digest: &Digest) -> bool {
        let (cache, repository, digest) = (self.clone(), repository.clone(), *digest);
        let look = move || cache.0.repos.claims(&repository, &digest).unwrap_or(false);
        self.0.disk.ask(Call::Look, look).await.unwrap_or(false)
    }

    /// Whether anybody may see a repository upstream, as far as was last known.
    pub(crate) async fn visibility(&self, repository: &Repository) -> Option<Visibility> {
        let (cache, owner) = (self.clone(), repository.clone());
        let look = move || {
            cache.0.repos.visibility(&owner).unwrap_or_else(|error| {
                tracing::error!(repository = %owner, %error, "it cannot be read whether a repository is public; it is not");
                Some(Visibility::Private)
            })
        };
        match self.0.disk.ask(Call::Look, look).await {
            Ok(visibility) => {
                self.0.withheld.known.put(repository.clone(), visibility);
                visibility
            }
            // What is in memory is served as it was before the disk went away.
            Err(_) => self.0.withheld.known.get(repository).unwrap_or(Some(Visibility::Private)),
        }
    }

    /// Notes whether anybody may see a repository upstream; false when that cannot be written.
    pub(crate) async fn note_visibility(&self, repository: &Repository, visibility: Visibility) -> bool {
        self.0.withheld.known.put(repository.clone(), Some(visibility));
        let (cache, repository) = (self.clone(), repository.clone());
        let note = move || {
            if matches!(cache.0.repos.visibility(&repository), Ok(Some(known)) if known == visibility) {
                return true;
            }
            let noted = cache.0.repos.set_visibility(&repository, visibility);
            if let Err(error) = &noted {
                tracing::error!(%repository, %error, "it cannot be noted whether the repository is public");
            }
            noted.is_ok()
        };
        self.0.disk.ask(Call::Write, note).await.unwrap_or(false)
    }
}
