//! What came wrong from everywhere, again and again: for a while it is not asked for.
//!
//! A wrong body is known to be wrong at its end only, and clients try again: without a memory each try of each client costs a
//! whole transfer. A single wrong body says little, so the next request fetches anew; from the second in a row on
//! requests are refused, for a while that doubles. Then one may try again: those who come meanwhile join it.
//!
//! Promises: a table of bounded size that forgets by itself; what is in it keeps nothing back that is held, nor what another
//! repository has: whether this one has it must not show there.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Repository;

/// Wrong bodies in a row, each from where nobody else is left to be asked, after which it is waited: one may be an accident
/// on the way.
const REFUTED_MIN: u32 = 2;

/// How many such contents are remembered: about 300 bytes each. An upstream that has more of them wrong is broken as a whole.
const REFUTED_MAX: usize = 10_000;

/// How many times the longest wait after its end a content is forgotten: by then it is nobody's retry.
const FORGOTTEN_AFTER: u32 = 2;

/// What came wrong.
pub(super) struct Refuted {
    first: Duration,
    longest: Duration,
    table: Mutex<HashMap<Key, Entry>>,
}

/// A content: a tag, a digest, or a digest that is said to be a blob's.
type Key = (Repository, String);

struct Entry {
    /// Wrong bodies in a row.
    times: u32,
    /// Not asked for until then.
    until: Instant,
}

impl Refuted {
    /// Waits for `first` after the second wrong body, for twice as long after each further one, and never more than `longest`.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another wrong body, and nobody else is left to be asked. Returns for how long it is not asked for now.
    pub(super) fn add(&self, repository: &Repository, what: &str) -> Option<Duration> {
        let now = Instant::now();
        let mut table = self.table();
        table.retain(|_, entry| now < entry.until + self.longest * FORGOTTEN_AFTER);
        let key = (repository.clone(), what.to_owned());
        if table.len() >= REFUTED_MAX && !table.contains_key(&key) {
            return None;
        }
        let entry = table.entry(key).or_insert(Entry { times: 0, until: now });
        entry.times = entry.times.saturating_add(1);
        let doublings = entry.times.checked_sub(REFUTED_MIN)?;
        let wait = self.first.saturating_mul(1 << doublings.min(16)).min(self.longest);
        entry.until = now + wait;
        Some(wait)
    }

    /// It came right.
    pub(super) fn clear(&self, repository: &Repository, what: &str) {
        let mut table = self.table();
        // Most of the time there is nothing, and no key to be made.
        if !table.is_empty() {
            table.remove(&(repository.clone(), what.to_owned()));
        }
    }

    /// For how long it is not asked for, if so.
    pub(super) fn wait(&self, repository: &Repository, what: &str) -> Option<Duration> {
        let table = self.table();
        if table.is_empty() {
            return None;
        }
        let entry = table.get(&(repository.clone(), what.to_owned()))?;
        entry.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Name, Registry};

    const FIRST: Duration = Duration::from_secs(10);
    const LONGEST: Duration = Duration::from_secs(300);

    fn repository(name: &str) -> Repository {
        Repository { registry: Registry::docker_hub(), name: Name::parse(name).expect("a name") }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_grows_ends_and_is_cleared() {
        let (refuted, a, b) = (Refuted::new(FIRST, LONGEST), repository("a"), repository("b"));
        assert_eq!(refuted.add(&a, "x"), None, "one may be an accident");
        assert_eq!(refuted.wait(&a, "x"), None);
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(refuted.add(&a, "x"), Some(Duration::from_secs(seconds)));
            assert_eq!(refuted.wait(&a, "x"), Some(Duration::from_secs(seconds)));
            assert_eq!((refuted.wait(&a, "y"), refuted.wait(&b, "x")), (None, None));
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(refuted.wait(&a, "x"), None, "one may try again");
        }
        refuted.add(&a, "x");
        refuted.clear(&a, "x");
        assert_eq!((refuted.wait(&a, "x"), refuted.add(&a, "x")), (None, None), "as new");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_forgets() {
        let (refuted, a) = (Refuted::new(FIRST, LONGEST), repository("a"));
        for n in 0..REFUTED_MAX + 5 {
            refuted.add(&a, &n.to_string());
        }
        assert_eq!(refuted.table().len(), REFUTED_MAX);
        tokio::time::advance(LONGEST * FORGOTTEN_AFTER).await;
        refuted.add(&a, "x");
        assert_eq!(refuted.table().len(), 1);
    }
}
