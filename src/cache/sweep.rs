//! Tags and links that lead to nothing: each evicted manifest leaves some behind, and small files without limit fill a disk
//! too. They are removed when nothing can come of them any more.
//!
//! So are the marks of withheld contents (`withheld`) that are not here any more.
//!
//! Promises: no tag goes that is served or could be, and no link that shows a repository what is held. A tag goes when its
//! manifest is not held and it is too old to be served stale should that come back: until then the loss of it could be
//! noticed. A link gives nothing while what it names is not held, and who fetches that again writes it again: it goes
//! after a while that is longer than anything takes to arrive. A removal is one `unlink`: a crash leaves more or less of
//! what leads to nothing, and nothing else.

use std::time::Duration;

use super::Cache;
use super::folder::sync_dir;
use super::repos::{Record, Visibility};
use crate::oci::{Digest, Repository};

/// How old a file is at least before it goes: a manifest, and what it names, has long since arrived.
const ARRIVED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

impl Cache {
    /// Removes the mark of a withheld content that is gone; says whether it did. Blocks.
    ///
    /// Its links may still be there: who follows one finds nothing, and fetches it, which marks it anew where it has to be.
    pub(super) fn sweep_mark(&self, digest: &Digest) -> bool {
        let inner = &*self.0;
        let is_old = inner.repos.mark_age(digest).is_some_and(|age| age >= ARRIVED_AFTER);
        if !is_old || self.holds(digest) {
            return false;
        }
        let gone = || {
            if self.holds(digest) {
                return Ok(false);
            }
            // Else a power cut could bring the file back, and not the mark.
            inner.blobs.path(digest).parent().map_or(Ok(()), sync_dir).map(|()| true)
        };
        inner.withheld.sweep(digest, gone).unwrap_or_else(|error| {
            tracing::error!(%digest, %error, "the mark of a withheld content that is gone cannot be removed");
            false
        })
    }

    /// Removes a record that leads to nothing; says whether it did. Blocks.
    pub(super) fn sweep(&self, repository: &Repository, record: &Record) -> bool {
        self.sweep_if(repository, record, || self.leads_nowhere(repository, record))
    }

    fn sweep_if(&self, repository: &Repository, record: &Record, leads_nowhere: impl Fn() -> bool) -> bool {
        let inner = &*self.0;
        if !leads_nowhere() {
            return false;
        }
        // What was found without the lock may be otherwise by now.
        let still = inner.repos.still();
        if !leads_nowhere() {
            return false;
        }
        if let Err(error) = inner.repos.remove_still(&still, repository, record) {
            tracing::error!(%repository, ?record, %error, "a tag or link that leads to nothing cannot be removed");
            return false;
        }
        // What memory knows of it would keep it from being written again.
        match record {
            Record::Tag(tag) => inner.hot.hold_tag(repository, tag, None),
            Record::Manifest(digest) | Record::Blob(digest) => inner.hot.unlink(repository, digest),
            Record::Visibility => {}
        }
        tracing::debug!(%repository, ?record, "leads to nothing that is held; removed");
        true
    }

    fn leads_nowhere(&self, repository: &Repository, record: &Record) -> bool {
        let inner = &*self.0;
        let is_old = || inner.repos.age(repository, record).is_some_and(|age| age >= ARRIVED_AFTER);
        match record {
            Record::Tag(tag) => match inner.repos.tag(repository, tag) {
                // A clock that went back says nothing of its age.
                Ok(Some(record)) => {
                    let is_useless = |age| age > inner.tag_life.max(ARRIVED_AFTER);
                    record.checked.elapsed().is_ok_and(is_useless) && !self.holds(&record.digest)
                }
                // It cannot be understood, which is as good as none.
                Ok(None) => is_old(),
                Err(_) => false,
            },
            Record::Manifest(digest) | Record::Blob(digest) => is_old() && !self.holds(digest),
            // It says something about what else is there.
            // That nobody may see it stays: it is written once, and must be there before anything else is.
            Record::Visibility => {
                let alone = || inner.repos.records(repository).is_ok_and(|records| records == [Record::Visibility]);
                is_old() && matches!(inner.repos.visibility(repository), Ok(Some(Visibility::Public))) && alone()
            }
        }
    }

    /// Whether a content is here, or on its way.
    fn holds(&self, digest: &Digest) -> bool {
        let inner = &*self.0;
        inner.flights.contains(digest)
            || inner.hot.content(digest).is_some()
            || inner.index.get(digest).is_some()
            // The index may be lost, and the disk may not say: then it is.
            || inner.blobs.path(digest).try_exists().unwrap_or(true)
    }
}

#[cfg(test)]
mod tests;
