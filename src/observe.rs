//! What is told of a request: one vocabulary for the log line, the metric label and the `Cache-Status` header.
//!
//! Owns [`Outcome`] and the process's [`Metrics`]. Knows nothing of how an outcome comes about.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::oci;

mod line;
mod patrol;
mod ratelimit;

pub use line::{Id, Line, Subject};
pub use patrol::Patrol;
pub use ratelimit::RateLimit;

/// How an answer came about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Held here, and believed without asking.
    Hit,
    /// Not held: this request made the upstream request.
    Miss,
    /// Not held: joined the upstream request of another.
    Collapsed,
    /// A tag whose time was up; the upstream confirmed or moved it.
    Revalidated,
    /// A tag whose time was up, served all the same because the upstream could not answer, or not in time.
    Stale,
    /// Streamed through and not kept, because it cannot be stored.
    Bypass,
    /// Passed on from the upstream, never kept: a HEAD, a list of tags.
    Passed,
    /// Answered from what millpond is: `/v2/`, a refusal, a bad request.
    Local,
    /// The upstream was needed and did not deliver.
    Failed,
}

impl Outcome {
    /// The word in the log and the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
            Self::Passed => "passed",
            Self::Local => "local",
            Self::Failed => "failed",
        }
    }

    /// The value of the `Cache-Status` header (RFC 9211).
    pub fn cache_status(self) -> &'static str {
        match self {
            Self::Hit => "millpond; hit",
            Self::Miss | Self::Failed => "millpond; fwd=miss",
            Self::Collapsed => "millpond; fwd=miss; collapsed",
            Self::Revalidated => "millpond; fwd=stale; fwd-status=200",
            Self::Stale => "millpond; fwd=stale; detail=served-stale",
            Self::Bypass => "millpond; fwd=miss; detail=not-stored",
            Self::Passed => "millpond; fwd=bypass",
            Self::Local => "millpond; detail=local",
        }
    }
}

/// What a request is about, or what an upstream was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A manifest or an index.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags.
    Tags,
    /// A list of referrers.
    Referrers,
    /// A token for an upstream.
    Token,
    /// A search.
    Search,
    /// The list of what is held.
    Catalog,
    /// `/v2/`.
    Ping,
    /// Anything else, such as a bad request.
    Other,
}

impl Kind {
    /// The word in the log and the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Token => "token",
            Self::Search => "search",
            Self::Catalog => "catalog",
            Self::Ping => "ping",
            Self::Other => "other",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.as_str().encode(encoder)
    }
}

/// Labels of a request that was answered.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Request {
    upstream: Arc<str>,
    kind: Kind,
    outcome: Outcome,
}

/// Labels of a request that was made.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Asked {
    upstream: Arc<str>,
    kind: Kind,
    status: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Endpoint {
    upstream: Arc<str>,
    endpoint: Arc<str>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// The counters and gauges of this process, under the names that DESIGN calls its contract. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Family<Request, Counter>,
    served: Counter,
    fetched: Counter,
    fills: Gauge,
    cache_bytes: Gauge,
    beside_bytes: Gauge,
    disk_overdue: Gauge,
    evicted: Counter,
    upstream_requests: Family<Asked, Counter>,
    ratelimit: RateLimit,
    up: Family<Endpoint, Gauge>,
    stale: Counter,
    verify_failures: Counter,
    index_rebuilds: Counter,
    patrol: Patrol,
    first_byte: Histogram,
    duration: Histogram,
    seconds: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("millpond");
        let bytes: Family<Direction, Counter> = Family::default();
        // 0.5 ms to 16 s for the first byte; 1 ms to 1 h for the whole answer.
        let first_byte = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let duration = Histogram::new(exponential_buckets(0.001, 3.0, 15));
        let direction = |direction| bytes.get_or_create(&Direction { direction }).clone();
        let inner = Inner {
            requests: Family::default(),
            served: direction("served"),
            fetched: direction("fetched"),
            fills: Gauge::default(),
            cache_bytes: Gauge::default(),
            beside_bytes: Gauge::default(),
            disk_overdue: Gauge::default(),
            evicted: Counter::default(),
            upstream_requests: Family::default(),
            ratelimit: RateLimit::register(&mut registry),
            up: Family::default(),
            stale: Counter::default(),
            verify_failures: Counter::default(),
            index_rebuilds: Counter::default(),
            patrol: Patrol::register(&mut registry),
            first_byte,
            duration,
            seconds: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Requests answered", inner.requests.clone());
        registry.register("bytes", "Bytes of bodies served to clients and fetched from upstreams", bytes);
        registry.register(
            "fills_inflight",
            "Blobs that are being fetched now, and manifests on their way to the disk",
            inner.fills.clone(),
        );
        registry.register("cache_bytes", "Bytes held in blobs/", inner.cache_bytes.clone());
        registry.register(
            "cache_beside_bytes",
            "Bytes of tags, links and quarantine/, which count towards max_size",
            inner.beside_bytes.clone(),
        );
        registry.register(
            "disk_overdue",
            "Calls on the disk that it has not answered in time, nor since; at least 1 until it answers again",
            inner.disk_overdue.clone(),
        );
        registry.register("cache_evicted_bytes", "Bytes removed to make room", inner.evicted.clone());
        registry.register("upstream_requests", "Requests made to upstreams, by status; 0 is no answer", inner.upstream_requests.clone());
        registry.register("upstream_up", "1 while the endpoint answers, 0 while it is left alone", inner.up.clone());
        registry.register("stale_served", "Answers given from a tag whose time was up", inner.stale.clone());
        registry.register("verify_failures", "Contents that did not hash to their digest", inner.verify_failures.clone());
        registry.register("index_rebuilds", "Times the index was rebuilt from the files", inner.index_rebuilds.clone());
        registry.register("first_byte_seconds", "Time from request to answer head", inner.first_byte.clone());
        registry.register("duration_seconds", "Time from request to the last byte handed over", inner.duration.clone());
        registry.register("start_seconds", "Time from start to listening", inner.seconds.clone());
        Self(Arc::new(Inner { registry, ..inner }))
    }

    /// The metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0.registry);
        text
    }

    /// A request was answered.
    pub fn answered(&self, upstream: Option<&oci::Registry>, kind: Kind, outcome: Outcome, first_byte: Duration) {
        let upstream = upstream.map(oci::Registry::shared).unwrap_or_default();
        self.0.requests.get_or_create(&Request { upstream, kind, outcome }).inc();
        self.0.first_byte.observe(first_byte.as_secs_f64());
        if outcome == Outcome::Stale {
            self.0.stale.inc();
        }
    }

    /// An answer's body ended, whole or not.
    pub fn finished(&self, bytes: u64, duration: Duration) {
        self.0.served.inc_by(bytes);
        self.0.duration.observe(duration.as_secs_f64());
    }

    /// Bytes of a body came from an upstream.
    pub fn fetched(&self, bytes: u64) {
        self.0.fetched.inc_by(bytes);
    }

    /// A fill runs until the guard is dropped.
    pub fn fill(&self) -> FillGuard {
        self.0.fills.inc();
        FillGuard(self.clone())
    }

    /// The bytes now held.
    pub fn cache_bytes(&self, bytes: u64) {
        self.0.cache_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
    }

    /// The bytes that now lie beside the blobs.
    pub fn beside_bytes(&self, bytes: u64) {
        self.0.beside_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
    }

    /// So many calls on the disk are overdue.
    pub fn disk_overdue(&self, calls: i64) {
        self.0.disk_overdue.set(calls);
    }

    /// Whether the disk leaves calls unanswered.
    pub fn is_disk_overdue(&self) -> bool {
        self.0.disk_overdue.get() > 0
    }

    /// Bytes were evicted.
    pub fn evicted(&self, bytes: u64) {
        self.0.evicted.inc_by(bytes);
    }

    /// An upstream was asked; `status` 0 says that no answer came.
    pub fn asked(&self, upstream: &str, kind: Kind, status: u16) {
        self.0.upstream_requests.get_or_create(&Asked { upstream: upstream.into(), kind, status }).inc();
    }

    /// What upstreams say of the pulls that are left.
    pub fn ratelimit(&self) -> &RateLimit {
        &self.0.ratelimit
    }

    /// Whether an endpoint is used or left alone.
    pub fn up(&self, upstream: &str, endpoint: &str, up: bool) {
        self.0.up.get_or_create(&Endpoint { upstream: upstream.into(), endpoint: endpoint.into() }).set(up.into());
    }

    /// A content did not hash to its digest.
    pub fn verify_failed(&self) {
        self.0.verify_failures.inc();
    }

    /// The index was rebuilt.
    pub fn index_rebuilt(&self) {
        self.0.index_rebuilds.inc();
    }

    /// What the patrol tells.
    pub fn patrol(&self) -> &Patrol {
        &self.0.patrol
    }

    /// How long the start took.
    pub fn started(&self, after: Duration) {
        self.0.seconds.set(after.as_secs_f64());
    }
}

/// A fill that is under way, for the gauge.
pub struct FillGuard(Metrics);

impl Drop for FillGuard {
    fn drop(&mut self) {
        self.0.0.fills.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_contract() {
        let metrics = Metrics::new();
        metrics.answered(Some(&oci::Registry::docker_hub()), Kind::Blob, Outcome::Stale, Duration::from_millis(1));
        metrics.finished(5, Duration::from_secs(1));
        metrics.asked("docker.io", Kind::Blob, 200);
        metrics.ratelimit().told("docker.io", 99, Some(100), Some(Duration::from_secs(21_600)));
        metrics.ratelimit().told_to("docker.io", "team", 98);
        metrics.up("docker.io", "https://registry-1.docker.io", true);
        metrics.patrol().read(7);
        metrics.patrol().at(0.5);
        let fill = metrics.fill();
        let text = metrics.render();
        drop(fill);
        for line in [
            "millpond_requests_total{upstream=\"docker.io\",kind=\"blob\",outcome=\"stale\"} 1",
            "millpond_bytes_total{direction=\"served\"} 5",
            "millpond_bytes_total{direction=\"fetched\"} 0",
            "millpond_fills_inflight 1",
            "millpond_cache_bytes 0",
            "millpond_cache_beside_bytes 0",
            "millpond_disk_overdue 0",
            "millpond_cache_evicted_bytes_total 0",
            "millpond_upstream_requests_total{upstream=\"docker.io\",kind=\"blob\",status=\"200\"} 1",
            "millpond_upstream_ratelimit_remaining{upstream=\"docker.io\"} 99",
            "millpond_upstream_ratelimit_limit{upstream=\"docker.io\"} 100",
            "millpond_upstream_ratelimit_window_seconds{upstream=\"docker.io\"} 21600",
            "millpond_upstream_account_ratelimit_remaining{upstream=\"docker.io\",account=\"team\"} 98",
            "millpond_upstream_up{upstream=\"docker.io\",endpoint=\"https://registry-1.docker.io\"} 1",
            "millpond_stale_served_total 1",
            "millpond_verify_failures_total 0",
            "millpond_patrol_bytes_total 7",
            "millpond_patrol_files_total 0",
            "millpond_patrol_findings_total 0",
            "millpond_patrol_rounds_total 0",
            "millpond_patrol_round_ratio 0.5",
            "millpond_patrol_round_end_timestamp_seconds 0",
        ] {
            assert!(text.contains(line), "{line} is missing from\n{text}");
        }
        assert!(metrics.render().contains("millpond_fills_inflight 0"));
    }
}
