//! What upstreams say of the pulls that are left, as gauges.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Upstream {
    upstream: Arc<str>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Account {
    upstream: Arc<str>,
    account: Arc<str>,
}

/// The gauges. Promises that whom the pulls are counted of is in none of them.
pub struct RateLimit {
    remaining: Family<Upstream, Gauge>,
    limit: Family<Upstream, Gauge>,
    window: Family<Upstream, Gauge>,
    account_remaining: Family<Account, Gauge>,
}

impl RateLimit {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let (remaining, limit, window) = (Family::default(), Family::default(), Family::default());
        let account_remaining = Family::default();
        registry.register("upstream_ratelimit_remaining", "Pulls left, as the upstream last said", Family::clone(&remaining));
        registry.register("upstream_ratelimit_limit", "Pulls that a window starts with", Family::clone(&limit));
        registry.register("upstream_ratelimit_window_seconds", "How long pulls are counted", Family::clone(&window));
        let by_account = Family::clone(&account_remaining);
        registry.register("upstream_account_ratelimit_remaining", "Pulls left to one of several accounts", by_account);
        Self { remaining, limit, window, account_remaining }
    }

    /// How many pulls an upstream says are left, of how many in how long, to all accounts together.
    pub fn told(&self, upstream: &str, remaining: u64, limit: Option<u64>, window: Option<Duration>) {
        let label = Upstream { upstream: upstream.into() };
        let set = |gauge: &Family<Upstream, Gauge>, value: u64| {
            gauge.get_or_create(&label).set(value.try_into().unwrap_or(i64::MAX));
        };
        set(&self.remaining, remaining);
        if let Some(limit) = limit {
            set(&self.limit, limit);
        }
        if let Some(window) = window {
            set(&self.window, window.as_secs());
        }
    }

    /// How many of them are left to one of several accounts.
    pub fn told_to(&self, upstream: &str, account: &str, remaining: u64) {
        let label = Account { upstream: upstream.into(), account: account.into() };
        self.account_remaining.get_or_create(&label).set(remaining.try_into().unwrap_or(i64::MAX));
    }
}
