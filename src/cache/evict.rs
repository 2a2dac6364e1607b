//! What to forget when space is short: a pure plan. The cache applies it.

use std::collections::BinaryHeap;

use crate::oci::Digest;

/// A blob that may be forgotten. Ordered by last use first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Candidate {
    /// Last use; only the order matters.
    pub(crate) used: u64,
    /// Bytes that forgetting it frees.
    pub(crate) size: u64,
    /// Which.
    pub(crate) digest: Digest,
}

/// The fewest of the least recently used that free `need` bytes, or all when they do not free so much. Memory is that of
/// the plan, however many candidates there are.
pub(crate) struct Plan {
    need: u64,
    chosen: BinaryHeap<Candidate>,
    frees: u64,
}

impl Plan {
    /// A plan to free so many bytes.
    pub(crate) fn new(need: u64) -> Self {
        Self { need, chosen: BinaryHeap::new(), frees: 0 }
    }

    /// Considers a blob.
    pub(crate) fn offer(&mut self, candidate: Candidate) {
        if self.frees >= self.need && self.chosen.peek().is_none_or(|newest| candidate >= *newest) {
            return;
        }
        self.frees += candidate.size;
        self.chosen.push(candidate);
        while let Some(newest) = self.chosen.peek()
            && self.frees - newest.size >= self.need
        {
            self.frees -= newest.size;
            self.chosen.pop();
        }
    }

    /// The blobs to forget, least recently used first.
    pub(crate) fn decide(self) -> Vec<Candidate> {
        self.chosen.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(used: u64, size: u64, n: u64) -> Candidate {
        Candidate { used, size, digest: Digest::sha256_of(&n.to_le_bytes()) }
    }

    #[test]
    fn the_oldest_go_first_and_no_more_than_needed() {
        let mut plan = Plan::new(15);
        for (n, (used, size)) in [(5, 10), (1, 10), (9, 10), (3, 10)].into_iter().enumerate() {
            plan.offer(candidate(used, size, n as u64));
        }
        assert_eq!(plan.decide().iter().map(|c| c.used).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn nothing_needed_is_nothing_forgotten() {
        let mut plan = Plan::new(0);
        plan.offer(candidate(1, 10, 1));
        assert!(plan.decide().is_empty());
    }

    proptest! {
        #[test]
        fn the_plan_is_what_sorting_would_give(sizes in prop::collection::vec((0_u64..50, 1_u64..100), 0..40), need in 0_u64..2000) {
            let mut all = sizes.iter().enumerate().map(|(n, &(used, size))| candidate(used, size, n as u64)).collect::<Vec<_>>();
            let mut plan = Plan::new(need);
            for c in &all {
                plan.offer(*c);
            }
            all.sort();
            let mut expected = Vec::new();
            let mut frees = 0;
            for c in all {
                if frees >= need { break }
                frees += c.size;
                expected.push(c);
            }
            prop_assert_eq!(plan.decide(), expected);
        }
    }
}
