//! What to forget when space is short: the least recently used blobs, in order. Pure; the cache applies it.
//!
//! A look at all that is held is dear, so one gives enough for many evictions. Between two of them the order holds by itself:
//! what is used or comes anew is younger than everything in it.

use std::collections::BinaryHeap;

/// Blobs that one look finds, at most: 8 MiB of memory, and half of a million blobs.
pub(crate) const OLDEST_MAX: usize = 1 << 19;

/// The first bytes of a digest, for want of room. Should two blobs have the same, one of them may be passed over this time.
pub(crate) type Begin = [u8; 8];

/// A blob that may be forgotten. Ordered by last use first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Candidate {
    /// Last use; only the order matters.
    pub(crate) used: u64,
    /// Which.
    pub(crate) begin: Begin,
}

/// The least recently used of all that were held at the last look, least recently used last.
#[derive(Default)]
pub(crate) struct Oldest(Vec<Candidate>);

/// A look: it considers every blob, and keeps the oldest.
pub(crate) struct Look {
    most: usize,
    oldest: BinaryHeap<Candidate>,
}

impl Look {
    /// At so many at the most.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, oldest: BinaryHeap::new() }
    }

    /// Considers a blob.
    pub(crate) fn offer(&mut self, candidate: Candidate) {
        if self.oldest.len() < self.most {
            self.oldest.push(candidate);
        } else if let Some(mut newest) = self.oldest.peek_mut()
            && candidate < *newest
        {
            *newest = candidate;
        }
    }

    /// What was seen.
    pub(crate) fn done(self) -> Oldest {
        let mut oldest = self.oldest.into_sorted_vec();
        oldest.reverse();
        Oldest(oldest)
    }
}

impl Oldest {
    /// The next to forget, if it was not used since the look.
    pub(crate) fn next(&mut self) -> Option<Candidate> {
        self.0.pop()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(used: u64, n: u64) -> Candidate {
        Candidate { used, begin: n.to_be_bytes() }
    }

    proptest! {
        #[test]
        fn it_is_what_sorting_would_give(uses in prop::collection::vec(0_u64..50, 0..60), most in 1_usize..70) {
            let mut all = uses.iter().zip(0..).map(|(&used, n)| candidate(used, n)).collect::<Vec<_>>();
            let mut look = Look::new(most);
            for c in &all {
                look.offer(*c);
            }
            prop_assert!(look.oldest.len() <= most);
            all.sort();
            all.truncate(most);
            let mut oldest = look.done();
            let seen = std::iter::from_fn(|| oldest.next()).collect::<Vec<_>>();
            prop_assert_eq!(seen, all);
        }
    }
}
