//! Whose turn is it? The order in which the endpoints of an upstream are asked for one thing.
//!
//! Owns [`Tries`], the state of one call. Each endpoint that is well is asked once, in the operator's order, those that
//! failed a moment ago last, and for blobs those that are slow after those that are fast; then, after a pause, those are asked again that failed in a way that may pass at once.

use std::time::Duration;

use tokio::time::sleep;

use super::budget::{Deadline, Limits};
use super::endpoint::Endpoint;
use super::error::{Error, Why};
use super::health::Pass;
use super::speed::is_slow;
use crate::observe::Kind;
use crate::oci::Registry;

/// The attempts at one call.
pub(super) struct Tries<'a> {
    candidates: Vec<Candidate<'a>>,
    limits: &'a Limits,
    kind: Kind,
    /// In whose name, by the numbers of the accounts.
    accounts: &'a [usize],
    deadline: Deadline,
    /// The candidate to look at next; those before it were looked at once.
    cursor: usize,
    made: usize,
    pauses: usize,
}

struct Candidate<'a> {
    /// Its place in the operator's list.
    number: usize,
    endpoint: &'a Endpoint,
    error: Option<Error>,
    /// Worth another attempt.
    again: bool,
}

/// One attempt.
pub(super) struct Turn<'a> {
    pub(super) index: usize,
    pub(super) number: usize,
    pub(super) endpoint: &'a Endpoint,
    pub(super) pass: Pass<'a>,
    /// An endpoint that hangs must leave time for the others.
    pub(super) deadline: Deadline,
}

impl<'a> Tries<'a> {
    /// The endpoints of these numbers are `avoided`: asked when no other has it.
    pub(super) fn new(
        endpoints: &'a [Endpoint],
        avoided: &[usize],
        kind: Kind,
        accounts: &'a [usize],
        limits: &'a Limits,
        deadline: Deadline,
    ) -> Self {
        let candidate = |(number, endpoint)| Candidate { number, endpoint, error: None, again: false };
        let mut candidates: Vec<_> = endpoints.iter().enumerate().map(candidate).collect();
        if candidates.len() > 1 {
            let best = endpoints.iter().filter_map(|endpoint| endpoint.speed.get()).max();
            let is_slow = |endpoint: &Endpoint| kind == Kind::Blob && is_slow(endpoint.speed.get(), best, limits.wide.enough);
            candidates.sort_by_cached_key(|candidate| {
                let endpoint = candidate.endpoint;
                (avoided.contains(&candidate.number), endpoint.health.is_suspect(), is_slow(endpoint))
            });
        }
        Self { candidates, limits, kind, accounts, deadline, cursor: 0, made: 0, pauses: 0 }
    }

    /// The next attempt, after a pause where it repeats one; nothing when there is no more to try, or no time.
    pub(super) async fn next(&mut self) -> Option<Turn<'a>> {
        while self.cursor < self.candidates.len() {
            let index = self.cursor;
            self.cursor += 1;
            let left = self.deadline.left();
            if left == Duration::ZERO {
                return None;
            }
            if let Some(pass) = self.admit(index) {
                let waiting = u32::try_from(self.candidates.len() - index).unwrap_or(u32::MAX);
                return Some(self.turn(index, pass, left / waiting));
            }
        }
        while self.made < self.limits.attempts {
            let count = self.candidates.len();
            let index = (0..count).map(|n| (self.cursor + n) % count).find(|&index| self.candidates[index].again)?;
            let pause = self.limits.pause_before(self.pauses);
            if pause >= self.deadline.left() {
                return None;
            }
            sleep(pause).await;
            self.pauses += 1;
            self.cursor = count + index + 1;
            if let Some(pass) = self.admit(index) {
                return Some(self.turn(index, pass, self.deadline.left()));
            }
        }
        None
    }

    /// What became of a turn.
    pub(super) fn failed(&mut self, index: usize, error: Error) {
        let candidate = &mut self.candidates[index];
        candidate.again = error.is_worth_repeating();
        candidate.error = Some(error);
    }

    /// What to tell the caller when nothing helped.
    pub(super) fn verdict(self, registry: &Registry) -> Error {
        let errors = self.candidates.into_iter().rev().filter_map(|candidate| candidate.error);
        // Of equals the last one wins, and the order is reversed: the operator's first endpoint speaks.
        let worst = errors.max_by_key(Error::rank);
        worst.unwrap_or_else(|| Error::Unavailable { host: registry.to_string(), why: Why::Busy })
    }

    fn admit(&mut self, index: usize) -> Option<Pass<'a>> {
        let candidate = &mut self.candidates[index];
        let endpoint = candidate.endpoint;
        match endpoint.health.admit(self.kind, self.accounts) {
            Ok(pass) => Some(pass),
            Err(resting) => {
                candidate.again = false;
                // How it failed just now says more than that it rests since.
                candidate.error.get_or_insert(resting);
                None
            }
        }
    }

    fn turn(&mut self, index: usize, pass: Pass<'a>, share: Duration) -> Turn<'a> {
        self.made += 1;
        let Candidate { number, endpoint, .. } = self.candidates[index];
        Turn { index, number, endpoint, pass, deadline: self.deadline.within(share) }
    }
}
