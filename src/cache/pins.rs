//! Which blobs are being read: those are not evicted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::oci::Digest;

/// How many read each blob.
#[derive(Clone, Default)]
pub(crate) struct Pins(Arc<Mutex<HashMap<Digest, usize>>>);

/// A reader of a blob, for as long as it lives.
pub(crate) struct Pin {
    pins: Pins,
    digest: Digest,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pin").field(&self.digest).finish()
    }
}

impl Pins {
    /// Counts a reader in until the pin is dropped.
    pub(crate) fn pin(&self, digest: &Digest) -> Pin {
        *self.lock().entry(*digest).or_default() += 1;
        Pin { pins: self.clone(), digest: *digest }
    }

    /// Whether anybody reads it.
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    // A map operation; never held across an await.
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}
