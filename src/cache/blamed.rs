//! The blobs that the disk took and did not give back: for a while they are passed through without being stored.
//!
//! Promises: a memory of bounded size that forgets by itself, so that a disk which is mended is used again without a hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;

/// How long a blob that could not be read back is not written to the disk again: every try costs the upstream a transfer. Long
/// enough for those who wait for it, short enough for a disk that is mended to be used again soon.
const BLAMED_FOR: Duration = Duration::from_secs(60);

/// Blobs that are remembered so at the most; a disk that fails more than these has no use for a memory.
const BLAMED_MAX: usize = 1_024;

/// The blobs that the disk did not give back a moment ago. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blamed(Arc<Mutex<HashMap<Digest, Instant>>>);

impl Blamed {
    /// The disk did not give it back.
    pub(crate) fn add(&self, digest: Digest) {
        let mut blamed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blamed.retain(|_, since| since.elapsed() < BLAMED_FOR);
        if blamed.len() < BLAMED_MAX {
            blamed.insert(digest, Instant::now());
        }
    }

    /// The disk is well again.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether this one is better not written.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        let blamed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blamed.get(digest).is_some_and(|since| since.elapsed() < BLAMED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_blob_is_blamed_for_a_while() {
        let (blamed, digest) = (Blamed::default(), Digest::sha256_of(b"x"));
        assert!(!blamed.has(&digest));
        blamed.add(digest);
        assert!(blamed.has(&digest) && !blamed.has(&Digest::sha256_of(b"y")));
        tokio::time::advance(BLAMED_FOR).await;
        assert!(!blamed.has(&digest));
    }

    #[test]
    fn the_memory_is_bounded() {
        let blamed = Blamed::default();
        (0..BLAMED_MAX + 10).for_each(|n| blamed.add(Digest::sha256_of(&n.to_le_bytes())));
        assert_eq!(blamed.0.lock().expect("sound").len(), BLAMED_MAX);
    }
}
