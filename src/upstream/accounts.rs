//! As whom is an upstream asked? Its accounts, what each of them may still pull, and which of them sees which repository.
//!
//! Owns [`Accounts`]. Number 0 is nobody in particular: whoever asks without a login, from the address of this host. Promises
//! that only the accounts that the operator named ask in millpond's own name (and nobody in particular, where he says so),
//! that the one with the most pulls left comes first, and that what is remembered of repositories is bounded and only an
//! order, but for one thing: an account that was shown something of a repository is believed when it is told that something
//! is not there.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::header::HeaderMap;
use tokio::time::Instant;
use tracing::{info, warn};

use super::ask::Identity;
use super::budget::Deadline;
use super::error::Error;
use super::headers;
use super::login::{Login, Secret};
use super::quota::{self, News, Pulls, Quota};
use crate::observe::Metrics;
use crate::oci::Name;

/// Nobody in particular.
pub(super) const ANYBODY: usize = 0;

/// What nobody in particular is called.
pub const ANONYMOUS: &str = "anonymous";

/// What the login beside the accounts is called.
pub const DEFAULT_ACCOUNT: &str = "default";

/// Accounts of one upstream, at most: before a refusal is believed each may be asked, and a client waits for that.
pub const ACCOUNTS_MAX: usize = 8;

/// Repositories of which it is remembered who sees them: some hundred bytes each.
const REPOSITORIES_MAX: usize = 4096;

/// How long that is remembered: who is let in, or kept out, there is found out anew after so long.
const SIGHT_FOR: Duration = Duration::from_secs(600);

/// One of those who ask.
pub(super) struct Account {
    pub(super) number: usize,
    /// What the metric and the log call it.
    pub(super) label: String,
    pub(super) login: Option<Login>,
    quota: Quota,
}

/// All who may ask one upstream.
pub(super) struct Accounts {
    upstream: Arc<str>,
    metrics: Metrics,
    all: Vec<Account>,
    /// Those who ask in millpond's own name, by number.
    own: Vec<usize>,
    anybody: [usize; 1],
    // std: held for a few instructions, never across an await.
    sights: Mutex<HashMap<Name, Sight>>,
}

/// Who sees a repository, a bit for each.
#[derive(Clone, Copy)]
struct Sight {
    shown: u32,
    refused: u32,
    since: Instant,
}

impl Accounts {
    /// `with_anybody` says that nobody in particular may be asked for what the accounts are for.
    pub(super) fn new(upstream: Arc<str>, metrics: Metrics, logins: Vec<(String, Login)>, with_anybody: bool) -> Self {
        let own = (1..=logins.len()).chain((with_anybody || logins.is_empty()).then_some(ANYBODY)).collect();
        let account = |(number, label, login)| Account { number, label, login, quota: Quota::default() };
        let named = (1..).zip(logins).map(|(number, (label, login))| account((number, label, Some(login))));
        let all = std::iter::once(account((ANYBODY, ANONYMOUS.to_owned(), None))).chain(named).collect();
        Self { upstream, metrics, all, own, anybody: [ANYBODY], sights: Mutex::default() }
    }

    /// Whether millpond has a login there.
    pub(super) fn have_login(&self) -> bool {
        self.all.len() > 1
    }

    pub(super) fn logins(&self) -> impl Iterator<Item = (&str, &Login)> {
        self.all.iter().filter_map(|account| Some((account.label.as_str(), account.login.as_ref()?)))
    }

    /// Who may ask in this name, by number.
    pub(super) fn of(&self, identity: Identity) -> &[usize] {
        if identity == Identity::Own { &self.own } else { &self.anybody }
    }

    /// The same in the order in which they are asked for something of a repository: first who has the most pulls left, last
    /// who was refused there. As long as nothing is known of one it is tried. Who has twice as many as another comes before
    /// it and no sooner: each change of accounts costs a token.
    pub(super) fn in_order(&self, identity: Identity, name: &Name) -> Vec<&Account> {
        let mut accounts: Vec<_> = self.of(identity).iter().map(|&number| &self.all[number]).collect();
        if accounts.len() > 1 {
            let refused = self.sight(name).map_or(0, |sight| sight.refused);
            accounts.sort_by_cached_key(|account| {
                let left = account.quota.now().map_or(u64::MAX, |said| said.remaining);
                (refused & account.bit(), Reverse(u64::BITS - left.leading_zeros()))
            });
        }
        accounts
    }

    /// An account was shown something of a repository, after `others` were told no.
    pub(super) fn shown(&self, account: &Account, others: &[&Account], name: &Name) {
        self.note_sight(name, |sight| {
            sight.shown |= account.bit();
            sight.refused &= !account.bit();
            for other in others {
                sight.shown &= !other.bit();
                sight.refused |= other.bit();
            }
        });
    }

    /// An account was told no: whether that is the answer, and nobody else needs to be asked. Who was shown something of a
    /// repository is believed that something else is not there; a refusal, and an absence that may be one, is not.
    pub(super) fn is_believed(&self, account: &Account, name: &Name, error: &Error) -> bool {
        matches!(error, Error::NotFound { .. }) && self.sight(name).is_some_and(|sight| sight.shown & account.bit() != 0)
    }

    /// Takes from an answer what it says of the pulls that are left.
    pub(super) fn note(&self, account: &Account, headers: &HeaderMap) {
        let Some(said) = headers::ratelimit(headers) else { return };
        let news = account.quota.take(said);
        let is_own = self.own.contains(&account.number);
        if self.own.len() > 1 && is_own {
            self.metrics.ratelimit().told_to(&self.upstream, &account.label, said.remaining);
        }
        if is_own && let Some(total) = self.total() {
            self.metrics.ratelimit().told(&self.upstream, total.remaining, total.limit, total.window);
        }
        let Some(news) = news else { return };
        let (upstream, account, source) = (&self.upstream, &account.label, headers::ratelimit_source(headers));
        let quota::Said { remaining, limit, .. } = said;
        let window_s = said.window.map(|window| window.as_secs());
        match news {
            News::Half => info!(%upstream, account, source, remaining, limit, window_s, "less than half of the pulls are left"),
            News::Few => warn!(
                %upstream, account, source, remaining, limit, window_s,
                "few pulls are left: held tags are believed for longer (cache.tag_ttl_low); a login, or another account, raises the limit"
            ),
            News::None => warn!(
                %upstream, account, source, remaining, limit, window_s,
                "no pull is left: what is held is served, what is not must wait; a login, or another account, raises the limit"
            ),
            News::Back => info!(%upstream, account, source, remaining, limit, window_s, "there are pulls enough again"),
        }
    }

    /// What all that ask in millpond's own name may still pull.
    pub(super) fn pulls(&self) -> Pulls {
        let all_told = self.own.iter().all(|&number| self.all[number].quota.now().is_some());
        match self.total().filter(|_| all_told) {
            Some(total) => quota::pulls(total.remaining, total.limit),
            None => Pulls::Ample,
        }
    }

    /// The words on all of them added up, as far as there are any.
    fn total(&self) -> Option<quota::Said> {
        let said = self.own.iter().filter_map(|&number| self.all[number].quota.now());
        said.reduce(|one, other| quota::Said {
            limit: one.limit.zip(other.limit).map(|(one, other)| one.saturating_add(other)),
            remaining: one.remaining.saturating_add(other.remaining),
            window: one.window.max(other.window),
        })
    }

    fn sight(&self, name: &Name) -> Option<Sight> {
        let sights = self.sights.lock().unwrap_or_else(PoisonError::into_inner);
        sights.get(name).copied().filter(|sight| sight.since.elapsed() < SIGHT_FOR)
    }

    fn note_sight(&self, name: &Name, change: impl FnOnce(&mut Sight)) {
        if self.own.len() < 2 {
            return;
        }
        let mut sights = self.sights.lock().unwrap_or_else(PoisonError::into_inner);
        if sights.len() >= REPOSITORIES_MAX && !sights.contains_key(name) {
            // Found out again at the price of a request each.
            sights.clear();
        }
        let new = || Sight { shown: 0, refused: 0, since: Instant::now() };
        let sight = sights.entry(name.clone()).or_insert_with(new);
        if sight.since.elapsed() >= SIGHT_FOR {
            *sight = new();
        }
        change(sight);
    }
}

impl Account {
    /// Its login now; nothing is nobody in particular.
    pub(super) async fn secret(&self, deadline: Deadline) -> Option<Arc<Secret>> {
        let login = self.login.as_ref()?;
        deadline.run(login.secret()).await.unwrap_or_else(|| login.now())
    }

    /// Whether there is another login since this one was refused.
    pub(super) async fn has_renewed(&self, refused: Option<&Arc<Secret>>, deadline: Deadline) -> bool {
        let (Some(login), Some(refused)) = (&self.login, refused) else { return false };
        deadline.run(login.renewed(refused)).await.unwrap_or(false)
    }

    fn bit(&self) -> u32 {
        1 << self.number
    }
}
