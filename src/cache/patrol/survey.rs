//! The survey: what nobody has verified since the host went down is hashed first, at once and quickly.
//!
//! After a power cut the index is begun anew (`boot`), and after its loss or the death of the process some of it is: a file
//! whose state no entry vouches for is verified before it is served, so a bad one harms nobody, but it lies under its name
//! until then. Promises: after the survey each file that was there has been hashed, or could not be read, and what does not
//! hash to its name lies in `quarantine/`. What clients had verified meanwhile is not read again, and a start in the middle
//! goes on with the rest: the index itself says what is left.

use super::{Patrol, SHARDS};
use crate::cache::count::Doubt;
use crate::oci::{Algorithm, Digest};

/// Bytes a second, unless `cache.patrol` is quicker: half of what a single hard disk reads, so that the other half is for
/// clients, and 50 GiB take a quarter of an hour.
pub(super) const SURVEY_RATE: u64 = 64 << 20;

impl Patrol {
    /// Hashes every file that no entry of the index vouches for.
    pub(super) async fn survey(&mut self) {
        let Doubt { files, bytes: mut left } = self.cache.0.count.doubt();
        self.told.unverified(left);
        if files == 0 {
            return;
        }
        tracing::info!(files, bytes = left, "files that were not verified since they were written or the host went down are hashed first");
        let usual = self.pace.rate;
        self.pace.rate = usual.max(SURVEY_RATE);
        for shard in 0..SHARDS {
            for algorithm in Algorithm::ALL {
                for (digest, size) in self.doubtful(algorithm, shard).await {
                    self.file(digest).await;
                    left = left.saturating_sub(size);
                    self.told.unverified(left);
                }
            }
        }
        self.pace.rate = usual;
        // Some were evicted meanwhile, or could not be read: those are for the usual round.
        self.told.unverified(0);
        tracing::info!(files, "the files that were not verified have been hashed");
    }

    async fn doubtful(&self, algorithm: Algorithm, shard: u16) -> Vec<(Digest, u64)> {
        let cache = self.cache.clone();
        let list = move || {
            let digests = super::list(&cache, algorithm, shard)?;
            let doubt = |digest| {
                let entry = cache.0.index.get(&digest)?;
                (!entry.is_vouched_for()).then_some((digest, entry.size))
            };
            Ok(digests.into_iter().filter_map(doubt).collect())
        };
        // A folder that cannot be listed is told of by the round that follows.
        self.ask(list).await.unwrap_or_default()
    }
}
